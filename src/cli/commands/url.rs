//! `tfdev url`.

use clap::Args;

use crate::cli::Session;
use crate::error::Result;
use crate::server::Running;

/// Print the connection URL
///
/// It holds the password of the ordinary role, which is random for each instance.
#[derive(Debug, Args)]
pub struct Url {}

pub(super) async fn run(_: &Url, session: &Session) -> Result<()> {
    let running = Running::find(&session.settings, &session.events).await?;
    let url = running.server.url();
    session.output.result(&serde_json::json!({ "url": url }), |out| writeln!(out, "{url}"))
}

//! `tfdev compose`.

use clap::Args;

use crate::cli::Session;
use crate::compose;
use crate::error::Result;

/// Print the Compose file that equals the instance
///
/// Same image, settings, limits and healthcheck, with a volume of its own.
#[derive(Debug, Args)]
pub struct Compose {}

pub(super) fn run(_: &Compose, session: &Session) -> Result<()> {
    let text = compose::render(&session.settings, &session.events)?;
    session.output.result(&serde_json::json!({ "compose": text }), |out| out.write_all(text.as_bytes()))
}

//! `tfdev compose`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::Session;
use crate::compose;
use crate::error::Result;

/// Print the Compose file that equals the instance
///
/// Same image, settings, limits, role and healthcheck, with a volume of its own.
#[derive(Debug, Args)]
pub struct Compose {
    /// Write it as compose.yaml into this folder, with the passwords and certificates that it names
    #[arg(long, value_name = "FOLDER")]
    write: Option<PathBuf>,
}

pub(super) async fn run(command: &Compose, session: &Session) -> Result<()> {
    let Some(folder) = &command.write else {
        let text = compose::render(&session.settings, &session.events)?;
        return session.output.result(&serde_json::json!({ "compose": text }), |out| out.write_all(text.as_bytes()));
    };
    let files = compose::write(&session.settings, folder, &session.events).await?;
    session.output.result(&serde_json::json!({ "files": files }), |out| {
        files.iter().try_for_each(|file| writeln!(out, "wrote {}", file.display()))
    })
}

//! `tfdev down`.

use clap::Args;

use crate::cli::Session;
use crate::down;
use crate::error::Result;

/// Stop the server and keep its data
///
/// The server writes everything out before it ends; the next `tfdev up` goes on from there.
#[derive(Debug, Args)]
pub struct Down {
    /// Stop every instance of the project
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(command: &Down, session: &Session) -> Result<()> {
    let report = down::down(&session.settings, command.all, &session.events).await?;
    session.output.result(&report, |out| {
        for instance in &report.instances {
            let what = match (instance.changed, instance.data_kept) {
                _ if instance.running => "goes on running; its data is kept",
                (true, true) => "stopped; its data is kept",
                (true, false) => "stopped; its data was in memory and is gone",
                (false, _) => "was not running",
            };
            writeln!(out, "{} {what}", instance.instance)?;
        }
        Ok(())
    })
}

//! `tfdev destroy`.

use clap::Args;

use crate::cli::Session;
use crate::down;
use crate::error::Result;

/// Remove the server and its data
///
/// Asks first. Only what carries the labels of this project and instance is removed.
#[derive(Debug, Args)]
pub struct Destroy {
    /// Remove every instance of the project
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(command: &Destroy, session: &Session) -> Result<()> {
    let doomed = down::instances(&session.settings, command.all)?;
    let names: Vec<_> = doomed.iter().map(|instance| format!("`{}`", instance.container_name())).collect();
    session.output.confirm(&format!("Remove {} and all data in it?", names.join(", ")))?;
    let report = down::destroy(&session.settings, command.all, &session.events).await?;
    session.output.result(&report, |out| {
        for instance in &report.instances {
            if instance.removed.is_empty() {
                writeln!(out, "{}: there was nothing to remove", instance.instance)?;
            }
            for removed in &instance.removed {
                writeln!(out, "{}: removed {removed}", instance.instance)?;
            }
        }
        Ok(())
    })
}

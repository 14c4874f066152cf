//! `tfdev reset`.

use clap::Args;

use super::snapshot::write_restored;
use crate::cli::Session;
use crate::error::Result;
use crate::snapshot;

/// Make the database what it was when it was new: migrated and seeded
///
/// Asks first. The state before is kept as an automatic snapshot, so that `tfdev snapshot restore --undo` takes it back.
#[derive(Debug, Args)]
pub struct Reset {
    /// What it is filled with: small, demo, load, none, or a file under seeds/ [default: demo]
    #[arg(long, value_name = "NAME", env = "TFDEV_DATASET", hide_env = true)]
    dataset: Option<String>,
}

pub(super) async fn run(_: &Reset, session: &Session) -> Result<()> {
    let database = &session.settings.database.name.value;
    session.output.confirm(&format!("Replace all data in `{database}` by the migrated and seeded state?"))?;
    let restored = snapshot::reset(&session.settings, &session.events).await?;
    session.output.result(&restored, |out| write_restored(database, &restored, out))
}

/// Asks before the present state is lost, which it is only where no automatic snapshots are kept.
pub(super) fn confirm_loss(session: &Session) -> Result<()> {
    if session.settings.snapshots.auto.value > 0 {
        return Ok(());
    }
    let database = &session.settings.database.name.value;
    session.output.confirm(&format!("Lose all data in `{database}`, because `snapshots.auto` is 0?"))
}

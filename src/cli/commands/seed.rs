//! `tfdev seed`.

use std::time::Duration;

use clap::Args;

use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::{Error, ErrorKind, Result};
use crate::seed::{self, DataSet, Mode};
use crate::server::Running;
use crate::snapshot::Snapshots;

/// Load fake data
///
/// The same data set gives the same rows on every machine. A database that has rows is left alone unless you say what
/// to do with them.
#[derive(Debug, Args)]
pub struct Seed {
    /// small, demo, load, or a file or folder under seeds/ [default: demo]
    #[arg(long, value_name = "NAME", env = "TFDEV_DATASET", hide_env = true)]
    dataset: Option<String>,
    /// How many users, instead of the data set's number
    #[arg(long, value_name = "N")]
    users: Option<u64>,
    /// How many tasks, instead of the data set's number
    #[arg(long, value_name = "N")]
    tasks: Option<u64>,
    /// Another random seed, for other rows
    #[arg(long, value_name = "N")]
    rng: Option<u64>,
    /// Add to the rows that are there
    #[arg(long, conflicts_with = "replace")]
    append: bool,
    /// Delete the rows that are there first; asks, or takes `--yes`
    #[arg(long)]
    replace: bool,
}

pub(super) async fn run(command: &Seed, session: &Session) -> Result<()> {
    let settings = &session.settings;
    let name = &settings.dataset.value;
    let Some(mut dataset) = DataSet::load(name, &settings.project_dir)? else {
        return Err(Error::new(ErrorKind::Usage, "the data set is `none`, so there is nothing to load")
            .hint("name one with `--dataset`, for example `--dataset demo`"));
    };
    if command.users.is_some() || command.tasks.is_some() {
        dataset = dataset.with_counts(command.users, command.tasks)?;
    }
    if let Some(rng) = command.rng {
        dataset = dataset.with_rng(rng)?;
    }
    let mode = match (command.append, command.replace) {
        (true, _) => Mode::Append,
        (_, true) => Mode::Replace,
        _ => Mode::RefuseIfNotEmpty,
    };
    if mode == Mode::Replace {
        session.output.confirm("Delete all rows of the project's database and load the data set?")?;
    }
    let running = Running::find(settings, &session.events).await?;
    let mut connection = running.connect(Duration::from_secs(settings.timeout_seconds.value)).await?;
    let what = format!("the data set `{}`", dataset.name());
    Snapshots::of(&running, settings, &session.events)?.check_room(&what, dataset.estimated_bytes()).await?;
    let outcome = seed::apply(&mut connection, &dataset, mode, &session.events).await?;
    crate::provision::close(connection).await;
    running.remember_seed(&outcome)?;
    session.output.result(&outcome, |out| {
        writeln!(
            out,
            "loaded {}: {} users, {} tasks in {} ({:.0} rows/s)",
            outcome.dataset,
            outcome.users,
            outcome.tasks,
            seconds(outcome.elapsed),
            outcome.rows_per_second
        )
    })
}

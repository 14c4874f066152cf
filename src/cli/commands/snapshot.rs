//! `tfdev snapshot`.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::Result;
use crate::server::Running;
use crate::snapshot::{ExportOptions, ImportOptions, Overview, Restored, Snapshot as Kept, Snapshots, Way};

/// Keep the database as it is, and go back to it
///
/// A snapshot is a copy of the whole database inside its server. Restoring one takes a blink, whatever its size, and the
/// state before is kept, so that `tfdev snapshot restore --undo` takes it back.
#[derive(Debug, Args)]
pub struct Snapshot {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Keep the database as it is now
    Create {
        /// Up to 200 characters, whatever can be shown on a line [default: the time]
        name: Option<String>,
        /// What it is for
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// List the snapshots
    List,
    /// Make the database what it was
    Restore {
        /// The snapshot
        #[arg(required_unless_present = "undo")]
        name: Option<String>,
        /// Take back the last restore or reset
        #[arg(long, conflicts_with = "name")]
        undo: bool,
    },
    /// Give a snapshot another name; an automatic one is then kept for good
    Rename {
        /// Its name
        from: String,
        /// The new name
        to: String,
    },
    /// Remove snapshots
    Delete {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Write a snapshot, or the database as it is now, as one file
    Export {
        /// The file, for example `before.tfsnap`
        file: PathBuf,
        /// The snapshot [default: the database as it is now]
        #[arg(long, value_name = "NAME")]
        snapshot: Option<String>,
        /// How much to compress: 1 is fast, 22 is small
        #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(i32).range(1..=22))]
        level: i32,
    },
    /// Make a snapshot of a file that `export` wrote, on this or another machine
    Import {
        /// The file
        file: PathBuf,
        /// The snapshot's name [default: the one it had, else the file's]
        #[arg(long = "as", value_name = "NAME")]
        name: Option<String>,
    },
}

pub(super) async fn run(command: Snapshot, session: &Session) -> Result<()> {
    let output = &session.output;
    if let Action::Restore { .. } = &command.action {
        super::reset::confirm_loss(session)?;
    }
    let running = Running::find(&session.settings, &session.events).await?;
    let snapshots = Snapshots::of(&running, &session.settings, &session.events)?;
    match command.action {
        Action::Create { name, note } => {
            let created = snapshots.create(name.as_deref(), note.as_deref()).await?;
            output.result(&created, |out| {
                let elapsed = seconds(Duration::from_millis(created.elapsed_ms));
                let kept = &created.snapshot;
                writeln!(out, "created the snapshot `{}` ({}) in {elapsed}", kept.name, megabytes(kept.size_bytes))
            })
        }
        Action::List => {
            let overview = snapshots.overview().await?;
            output.result(&overview, |out| write_list(&overview, out))
        }
        Action::Restore { name, .. } => {
            let restored = match &name {
                Some(name) => snapshots.restore(name).await?,
                None => snapshots.undo().await?,
            };
            output.result(&restored, |out| write_restored(&running.server.database, &restored, out))
        }
        Action::Rename { from, to } => {
            let renamed = snapshots.rename(&from, &to).await?;
            output.result(&renamed, |out| writeln!(out, "`{from}` is now `{}`", renamed.name))
        }
        Action::Export { file, snapshot, level } => {
            let options = ExportOptions::of(&running, &file, level, session.settings.yes.value);
            let exported = snapshots.export(running.engine.as_ref(), snapshot.as_deref(), &options).await?;
            output.result(&exported, |out| {
                let elapsed = seconds(Duration::from_millis(exported.elapsed_ms));
                writeln!(out, "wrote {} ({}) in {elapsed}", exported.file, megabytes(exported.bytes))
            })
        }
        Action::Import { file, name } => {
            let options = ImportOptions::of(&running, &session.settings, &file, name.as_deref())?;
            let imported = snapshots.import(running.engine.as_ref(), &options).await?;
            output.result(&imported, |out| {
                let elapsed = seconds(Duration::from_millis(imported.elapsed_ms));
                let kept = &imported.snapshot;
                writeln!(out, "imported the snapshot `{}` ({}) in {elapsed}", kept.name, megabytes(kept.size_bytes))?;
                let name = shlex::try_quote(&kept.name).unwrap_or(kept.name.as_str().into());
                writeln!(out, "`tfdev snapshot restore {name}` makes the database equal to it")
            })
        }
        Action::Delete { names } => {
            let deleted = snapshots.delete(&names).await?;
            output.result(&deleted, |out| {
                deleted.iter().try_for_each(|snapshot| {
                    writeln!(out, "deleted `{}` ({})", snapshot.name, megabytes(snapshot.size_bytes))
                })
            })
        }
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1024 * 1024))
}

pub(super) fn write_restored(database: &str, restored: &Restored, out: &mut dyn Write) -> std::io::Result<()> {
    let elapsed = seconds(Duration::from_millis(restored.elapsed_ms));
    let how = match restored.way {
        Way::Standby => "a ready copy",
        Way::Copy => "copied",
        Way::Rename => "renamed",
    };
    match &restored.name {
        Some(name) => writeln!(out, "{database} is as in `{name}` again ({how}, {elapsed})")?,
        None => writeln!(out, "{database} is as new again ({how}, {elapsed})")?,
    }
    if let Some(kept) = &restored.kept_as {
        writeln!(out, "the state before is `{kept}`; `tfdev snapshot restore --undo` takes it back")?;
    }
    Ok(())
}

fn write_list(overview: &Overview, out: &mut dyn Write) -> std::io::Result<()> {
    if overview.snapshots.is_empty() {
        writeln!(out, "there are no snapshots; `tfdev snapshot create NAME` makes one")?;
    }
    let rows: Vec<[String; 5]> = overview.snapshots.iter().map(cells).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 5] = std::array::from_fn(width);
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(cell);
            line.extend(std::iter::repeat_n(' ', width - cell.chars().count() + 2));
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    for left in &overview.left_overs {
        writeln!(out, "left over: {} ({}); the next command removes it", left.what, megabytes(left.size_bytes))?;
    }
    Ok(())
}

fn cells(snapshot: &Kept) -> [String; 5] {
    let commit = snapshot.git_commit.as_deref().map(|commit| commit[..commit.len().min(8)].to_owned());
    let checkout: Vec<_> = snapshot.git_branch.clone().into_iter().chain(commit).collect();
    [
        snapshot.name.clone(),
        snapshot.created_at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        megabytes(snapshot.size_bytes),
        checkout.join(" "),
        snapshot.note.clone().unwrap_or_default(),
    ]
}

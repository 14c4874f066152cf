//! `export`: the project's database or a snapshot as one file, by the server's own `pg_dump`.
//!
//! What must hold: memory and disk beside the file stay small, whatever the size; the file takes its name when it is
//! whole; and the database that is read is not changed. Nobody gets into a snapshot for it but whoever looks for it: it
//! can be logged in to while it is read, which the next change of any snapshot ends if we are killed.

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::mpsc;

use super::create::milliseconds;
use super::work::Work;
use super::{Snapshots, details, outside};
use crate::archive::{Manifest, Payload, SnapshotName, Source, Writer};
use crate::engine::program::{Input, Program};
use crate::engine::{Engine, cannot};
use crate::error::{Context, Error, Result};
use crate::event::{Event, Events, Progress, Unit};
use crate::pg::Login;
use crate::pg::clone::Admin;
use crate::pg::quote;
use crate::server::{Running, Tenancy};

/// How many pieces of a dump wait for being compressed: some MB.
const WAITING_PIECES: usize = 64;

/// How to export.
#[derive(Debug, Clone)]
pub struct ExportOptions<'a> {
    /// The file to write.
    pub path: &'a Path,
    /// Whether a file of that name is replaced.
    pub replace: bool,
    /// The level of compression, one of [`crate::archive::LEVELS`].
    pub level: i32,
    /// Where the database is.
    pub source: Source,
}

/// What was exported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Exported {
    /// The file.
    pub file: String,
    /// Its size.
    pub bytes: u64,
    /// The size of the dump in it.
    pub dump_bytes: u64,
    /// The snapshot; `None` for the present state.
    pub snapshot: Option<String>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

impl<'a> ExportOptions<'a> {
    /// To write the database of a running instance as `path`.
    pub fn of(running: &Running, path: &'a Path, level: i32, replace: bool) -> Self {
        let source = Source {
            project: running.instance.project.clone(),
            instance: running.instance.name.clone(),
            engine: running.engine.kind().to_string(),
            database: running.server.database.clone(),
        };
        Self { path, replace, level, source }
    }
}

impl Snapshots<'_> {
    /// Writes a snapshot, or the present state, as one file.
    ///
    /// # Errors
    /// [`crate::ErrorKind::NotFound`] if there is no such snapshot; [`crate::ErrorKind::Refused`] if there is such a file.
    pub async fn export(
        &self,
        engine: &dyn Engine,
        name: Option<&str>,
        options: &ExportOptions<'_>,
    ) -> Result<Exported> {
        let begin = Instant::now();
        self.check_is_own()?;
        let (manifest, bytes) = match name {
            None => self.export_database(engine, self.database(), None, options).await?,
            Some(name) => self.export_snapshot(engine, name, options).await?,
        };
        Ok(Exported {
            file: options.path.display().to_string(),
            bytes,
            dump_bytes: manifest.payload.bytes,
            snapshot: manifest.snapshot.map(|snapshot| snapshot.name),
            elapsed_ms: milliseconds(begin),
        })
    }

    /// Fails on a server whose roles and programs are someone else's.
    pub(super) fn check_is_own(&self) -> Result<()> {
        if self.server.tenancy == Tenancy::Whole {
            return Ok(());
        }
        Err(cannot(
            "export or import a snapshot",
            "that needs a role of its own and programs beside the server, which is run by someone else",
        )
        .hint("`pg_dump --format=custom \"$(tfdev url)\"` writes a dump of an external one, for `pg_restore`"))
    }

    async fn export_snapshot(
        &self,
        engine: &dyn Engine,
        name: &str,
        options: &ExportOptions<'_>,
    ) -> Result<(Manifest, u64)> {
        let mut work = Work::begin(self).await?;
        let row = work.find(name)?.clone();
        work.set_open(&row.database, true).await?;
        let snapshot = SnapshotName { name: name.to_owned(), note: row.note.clone() };
        crate::fault::point("snapshot.export.opened").await;
        let exported = self.export_database(engine, &row.database, Some(snapshot), options).await;
        work.set_open(&row.database, false).await?;
        work.finish().await;
        exported
    }

    async fn export_database(
        &self,
        engine: &dyn Engine,
        database: &str,
        snapshot: Option<SnapshotName>,
        options: &ExportOptions<'_>,
    ) -> Result<(Manifest, u64)> {
        let login = Login { database: database.to_owned(), ..self.server.admin_login() };
        let mut manifest = self.describe(database, options.source.clone()).await?;
        manifest.snapshot = snapshot;
        manifest.payload.level = options.level;
        let writer = Writer::create(options.path, options.replace, manifest)?;
        let guard = writer.guard();
        let command = dump_command(&login.user, database, None)?;
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        self.events.started(format!("Writing `{}`", options.path.display()));
        let begin = Instant::now();
        let program = engine.stream(&command, Input::None).await?;
        let written = write(program, writer, self.events).await?;
        drop(guard);
        self.events.finished(format!("Wrote `{}`", options.path.display()), begin.elapsed());
        Ok(written)
    }

    /// What a file or backup says of `database`, but for its contents.
    pub(crate) async fn describe(&self, database: &str, source: Source) -> Result<Manifest> {
        let login = Login { database: database.to_owned(), ..self.server.admin_login() };
        let mut session = Admin::open(&login, self.options.timeout).await?;
        let read = async {
            self.server.prove(&mut session.connection, self.record).await?;
            let known = details::read_without_schema(&mut session.connection).await?;
            Ok::<_, Error>((known, outside::read(&mut session.connection).await?))
        };
        let read = read.await;
        crate::provision::close(session.connection).await;
        let (known, outside) = read?;
        let version = known.server_version;
        Ok(Manifest {
            tfdev: env!("CARGO_PKG_VERSION").to_owned(),
            postgres: format!("{}.{}", version / 10_000, version % 10_000),
            created: Timestamp::now(),
            source,
            snapshot: None,
            migration: known.migration,
            database: outside,
            payload: Payload { level: 3, bytes: 0, compressed_bytes: 0, sha256: String::new() },
        })
    }
}

impl Work<'_> {
    /// Lets sessions into a database of ours, or not any more.
    pub(super) async fn set_open(&mut self, database: &str, open: bool) -> Result<()> {
        let statement = format!("ALTER DATABASE {} WITH ALLOW_CONNECTIONS {open}", quote::identifier(database)?);
        self.admin.run(statement, "open or close a snapshot").await
    }
}

/// Writes all that `program` puts out.
async fn write(mut program: Program, writer: Writer, events: &Events) -> Result<(Manifest, u64)> {
    let (sender, receiver) = mpsc::channel(WAITING_PIECES);
    let writing = tokio::task::spawn_blocking(move || write_pieces(writer, receiver));
    let mut told = Told::new(events);
    while let Some(piece) = program.read().await? {
        told.add(piece.len());
        if sender.send(piece).await.is_err() {
            break;
        }
    }
    drop(sender);
    let cut_off = || "writing the export was cut off";
    let writer = writing.await.or_failed(cut_off)??;
    told.done();
    program.finish().await?.checked("dump the database")?;
    tokio::task::spawn_blocking(move || writer.finish()).await.or_failed(cut_off)?
}

fn write_pieces(mut writer: Writer, mut receiver: mpsc::Receiver<Bytes>) -> Result<Writer> {
    while let Some(piece) = receiver.blocking_recv() {
        writer.write(&piece)?;
    }
    Ok(writer)
}

/// The command that dumps a database, of the state that `snapshot` holds if there is one.
pub(crate) fn dump_command(user: &str, database: &str, snapshot: Option<&str>) -> Result<Vec<String>> {
    let conninfo = conninfo(user, database, "")?;
    let words =
        ["pg_dump", "--format=custom", "--compress=0", "--no-tablespaces", "--no-password", "--dbname", &conninfo];
    let words = words.into_iter().map(str::to_owned);
    Ok(words.chain(snapshot.map(|snapshot| format!("--snapshot={snapshot}"))).collect())
}

/// Where a program beside the server finds a database: over the server's own socket, which wants no password. `options`
/// are for the session.
pub(super) fn conninfo(user: &str, database: &str, options: &str) -> Result<String> {
    let value = |text: &str| {
        if text.contains('\0') {
            return Err(Error::bad_input("a name in the database contains a NUL character"));
        }
        Ok(format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")))
    };
    let options = if options.is_empty() { String::new() } else { format!(" options={}", value(options)?) };
    Ok(format!("user={} dbname={} application_name='tfdev'{options}", value(user)?, value(database)?))
}

/// Tells now and then how far a dump is.
pub(crate) struct Told<'a> {
    events: &'a Events,
    bytes: u64,
    last: Instant,
}

impl<'a> Told<'a> {
    const EVERY: Duration = Duration::from_millis(100);

    pub(crate) fn new(events: &'a Events) -> Self {
        Self { events, bytes: 0, last: Instant::now() }
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        if self.last.elapsed() >= Self::EVERY {
            self.last = Instant::now();
            self.send(false);
        }
    }

    pub(crate) fn done(&self) {
        self.send(true);
    }

    fn send(&self, done: bool) {
        self.events.send(Event::Progress(Progress {
            id: "dump".to_owned(),
            label: "dump".to_owned(),
            unit: Unit::Bytes,
            position: self.bytes,
            total: None,
            done,
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_name_of_a_database_is_one_value_for_libpq() {
        let text = conninfo("u'", r"a b\' host=evil", "-c a=b").unwrap();
        assert_eq!(text, r"user='u\'' dbname='a b\\\' host=evil' application_name='tfdev' options='-c a=b'");
        assert!(conninfo("u", "a\0b", "").is_err());
    }
}

//! `import`: a file that `export` wrote becomes a snapshot.
//!
//! What must hold: the file is an enemy's until the opposite is shown. All of it is checked before any of it is restored;
//! what it holds runs as a role that was made for it, which owns the new database and may do nothing else, so it can harm
//! neither the project's database nor another snapshot; and what is restored goes to the project's role only when all of
//! it is there. The server's own `pg_restore` reads it, never `psql`. Whatever fails or is killed on the way leaves
//! nothing that the next command does not remove.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;
use sqlx::Connection;
use tokio::sync::mpsc;

use super::create::milliseconds;
use super::export::{Told, conninfo};
use super::registry::{self, Kind, NewRow, Row, Stage};
use super::work::Work;
use super::{Snapshot, Snapshots, details, name, outside, shown};
use crate::archive::{Contents, Database, Manifest, Reader};
use crate::config::Settings;
use crate::engine::Engine;
use crate::engine::program::Input;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fault;
use crate::pg::clone::{self, Admin};
use crate::pg::{Login, quote};
use crate::profile;
use crate::server::{Running, Tenancy};

/// How many pieces of a dump wait for being written: some MB.
const WAITING_PIECES: usize = 16;

/// Sessions that restore, at least: while one waits for the disk another one can work.
const LEAST_JOBS: usize = 2;

/// What the name of a role for an import ends in, after that of its database.
const ROLE_SUFFIX: &str = "_import";

/// Restores the archive `$3` into the database of the conninfo `$1` with `$2` sessions, but for default privileges, which
/// only their own roles may set. The list has the number of each entry first, and line feeds only between entries.
///
/// What ends an import before its end is for `pg_restore`, which ends its own children, and not for what comes before.
const RESTORE: &str = r#"
trap '' TERM
pg_restore --list "$3" >"$3.all" || exit
grep -v '^[0-9]*; [0-9]* [0-9]* DEFAULT ACL ' "$3.all" >"$3.list"
exec pg_restore --dbname "$1" --jobs "$2" --use-list "$3.list" --no-owner --no-tablespaces --no-subscriptions \
    --no-password --exit-on-error "$3"
"#;

/// Settings of the sessions that restore: the snapshot counts only when all is there, and is written out then.
const RESTORE_SETTINGS: &str = "-c synchronous_commit=off -c maintenance_work_mem=128MB";

/// How to import.
#[derive(Debug, Clone)]
pub struct ImportOptions<'a> {
    /// The file.
    pub path: &'a Path,
    /// The snapshot's name; else the one that it had, else the file's.
    pub name: Option<&'a str>,
    /// How many sessions restore at the same time.
    pub jobs: usize,
}

impl<'a> ImportOptions<'a> {
    /// To restore in a running instance with all the cores that it may use.
    pub fn of(running: &Running, settings: &Settings, path: &'a Path, name: Option<&'a str>) -> Result<Self> {
        let profile = running.record.profile_name().unwrap_or_else(|| settings.profile_name());
        let limit = profile::resolve(profile, &settings.profiles)?.limits.nano_cpus;
        let cores = match limit.filter(|_| running.observed.limits_enforced) {
            Some(nano_cpus) => usize::try_from(nano_cpus.div_ceil(1_000_000_000)).unwrap_or(1),
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        Ok(Self { path, name, jobs: cores.max(LEAST_JOBS) })
    }
}

/// What was imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Imported {
    /// The snapshot.
    #[serde(flatten)]
    pub snapshot: Snapshot,
    /// The project that the file is from.
    pub from_project: String,
    /// What belongs to the database and could not be set here, in words.
    pub left_out: Vec<String>,
    /// How long it took, in milliseconds.
    pub elapsed_ms: u64,
}

impl Snapshots<'_> {
    /// Makes a snapshot of a file.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if the file is damaged, is from a newer version, or does what an ordinary role may not;
    /// [`ErrorKind::Conflict`] if there is a snapshot of that name; [`ErrorKind::Refused`] if it would not fit, or if it
    /// names roles that are not here.
    pub async fn import(&self, engine: &dyn Engine, options: &ImportOptions<'_>) -> Result<Imported> {
        let begin = Instant::now();
        self.check_is_own()?;
        let reader = Reader::open(options.path)?;
        let manifest = reader.manifest().clone();
        let name = name_of(options, &manifest);
        name::check(&name).map_err(|error| error.hint("`--as NAME` gives it a name"))?;
        let note = manifest.snapshot.as_ref().and_then(|snapshot| snapshot.note.clone());
        let note = note.filter(|note| name::check_note(note).is_ok());
        let mut work = Work::begin(self).await?;
        work.check_name_is_free(&name).map_err(|error| error.hint("`--as NAME` gives this one another name"))?;
        work.check_roles(&manifest.database).await?;
        work.make_room(manifest.database.size_bytes.max(manifest.payload.bytes), None).await?;
        let details = registry::Details { size: manifest.database.size_bytes, ..registry::Details::default() };
        let new = NewRow { name: Some(name), note, details, ..NewRow::of(Kind::Snapshot) };
        let row = registry::insert(&mut work.admin.connection, self.database(), &new, Stage::Building).await?;
        fault::point("snapshot.import.intent").await;
        self.events.started(format!("Importing `{}`", options.path.display()));
        let restoring = Restoring { engine, row: &row, manifest: &manifest, path: options.path, jobs: options.jobs };
        let (row, left_out) = match work.make_from_file(&restoring, reader).await {
            Ok(made) => made,
            Err(error) => {
                work.give_up(&row).await;
                work.drop_role(&row).await;
                work.finish().await;
                return Err(error);
            }
        };
        self.events.finished(format!("Imported `{}`", options.path.display()), begin.elapsed());
        for words in &left_out {
            self.events.warning(format!("left out: {words}"));
        }
        work.rows.push(row.clone());
        work.keep_standby_of(&row).await;
        let snapshot = shown(&row, &work.rows);
        work.finish().await;
        let from_project = manifest.source.project;
        Ok(Imported { snapshot, from_project, left_out, elapsed_ms: milliseconds(begin) })
    }
}

/// What is restored, and how.
struct Restoring<'a> {
    engine: &'a dyn Engine,
    row: &'a Row,
    manifest: &'a Manifest,
    path: &'a Path,
    jobs: usize,
}

fn name_of(options: &ImportOptions<'_>, manifest: &Manifest) -> String {
    let given = options.name.map(str::to_owned);
    let before = || manifest.snapshot.as_ref().map(|snapshot| snapshot.name.clone());
    given
        .or_else(before)
        .unwrap_or_else(|| options.path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default())
}

impl Work<'_> {
    /// Fails if the dump grants something to roles that are not here.
    async fn check_roles(&mut self, database: &Database) -> Result<()> {
        let question = "SELECT n FROM unnest($1::text[]) n WHERE n <> ALL (SELECT rolname FROM pg_roles) ORDER BY n";
        let missing: Vec<String> = sqlx::query_scalar(question)
            .bind(&database.roles)
            .fetch_all(&mut self.admin.connection)
            .await
            .or_failed(|| "cannot look for the roles that the file names")?;
        if missing.is_empty() {
            return Ok(());
        }
        let names = missing.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ");
        Err(Error::new(ErrorKind::Refused, format!("the file grants privileges to roles that are not here: {names}"))
            .hint("make them as the superuser `postgres` (`CREATE ROLE \"NAME\"`), then import again"))
    }

    /// Makes the database of a row from a file; the row as it is then, and what was left out.
    async fn make_from_file(&mut self, restoring: &Restoring<'_>, reader: Reader) -> Result<(Row, Vec<String>)> {
        let row = restoring.row;
        let role = quote::identifier(&role_of(row))?;
        let database = quote::identifier(&row.database)?;
        self.helper.end_with_us().await;
        registry::lock_row(&mut self.helper.connection, row.id).await?;
        let encoding = quote::literal(&restoring.manifest.database.encoding)?;
        self.helper.run(format!("CREATE ROLE {role} LOGIN"), "make a role for the import").await?;
        let create = format!("CREATE DATABASE {database} OWNER {role} TEMPLATE template0 ENCODING {encoding}");
        self.helper.run(create, "make a database for the import").await?;
        fault::point("snapshot.import.created").await;
        self.restore_file(restoring, reader).await?;
        fault::point("snapshot.import.restored").await;
        let left_out = self.adopt(restoring).await?;
        fault::point("snapshot.import.adopted").await;
        let details = details::read(&self.on.server.admin_login(), &row.database, self.on.options.timeout).await?;
        let room = self.measure().await?;
        if room.missing(0) > 0 {
            return Err(room.refuse(0, &self.rows));
        }
        self.unlock_rows().await?;
        let what = || "cannot note the snapshot";
        let found = clone::find(&mut self.admin.connection, &row.database).await?;
        let found = found.ok_or_else(|| Error::failed("the database that was imported is gone"))?;
        clone::close_sessions(&mut self.admin.connection, found.oid).await?;
        let mut transaction = self.admin.connection.begin().await.or_failed(what)?;
        let close = format!("ALTER DATABASE {database} WITH ALLOW_CONNECTIONS false");
        sqlx::raw_sql(sqlx::AssertSqlSafe(close)).execute(&mut *transaction).await.or_failed(what)?;
        registry::set_details(&mut transaction, row.id, &details).await?;
        registry::set_stage(&mut transaction, &[row.id], Stage::Ready).await?;
        transaction.commit().await.or_failed(what)?;
        Ok((Row { details, stage: Stage::Ready, exists: true, ..row.clone() }, left_out))
    }

    /// Checks the file while it is copied beside the server, and restores it when the last of it is there.
    async fn restore_file(&mut self, restoring: &Restoring<'_>, reader: Reader) -> Result<()> {
        let Restoring { engine, row, manifest, path, jobs } = restoring;
        let conninfo = conninfo(&role_of(row), &row.database, RESTORE_SETTINGS)?;
        let jobs = jobs.to_string();
        let command = ["sh", "-c", RESTORE, "tfdev", &conninfo, &jobs];
        let mut program = engine.stream(&command, Input::File(manifest.payload.bytes)).await?;
        let (sender, mut receiver) = mpsc::channel(WAITING_PIECES);
        let contents = reader.contents()?;
        let unpacking = tokio::task::spawn_blocking(move || unpack(contents, &sender));
        let mut told = Told::new(self.on.events);
        let mut ended_early = false;
        while let Some(piece) = receiver.recv().await {
            told.add(piece.len());
            if program.write(&piece).await.is_err() {
                ended_early = true;
                break;
            }
        }
        drop(receiver);
        told.done();
        unpacking.await.or_failed(|| "unpacking the export was cut off")??;
        fault::point("snapshot.import.copied").await;
        let output = program.finish().await?;
        if output.exit_code == 0 {
            return self.analyze(*engine, &conninfo, &jobs).await;
        }
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let full = words.contains("No space left on device");
        if ended_early || full {
            let error = Error::failed("cannot copy the export beside the server").caused_by(words);
            return Err(if full { error.hint("make room on the disk of the server, then try again") } else { error });
        }
        let lost =
            ["server closed the connection", "could not connect", "terminating connection", "connection to server"];
        if lost.iter().any(|sign| words.contains(sign)) {
            return Err(Error::failed("the server was lost while the export was restored").caused_by(words));
        }
        Err(Error::bad_input(format!("the dump in `{}` cannot be restored", path.display()))
            .hint("nothing was changed; an import runs as an ordinary role, which cannot make what needs a superuser")
            .caused_by(words))
    }

    /// Takes the statistics, which a dump has none of; quick at any size, and an application would miss them. It may run
    /// functions of the dump, so this too is for the role of the import.
    async fn analyze(&self, engine: &dyn Engine, conninfo: &str, jobs: &str) -> Result<()> {
        let command = ["vacuumdb", "--analyze-only", "--quiet", "--no-password", "--jobs", jobs, "--dbname", conninfo];
        let output = engine.stream(&command, Input::None).await?.finish().await?;
        if output.exit_code != 0 {
            let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            self.on.events.detail(format!("no statistics were taken of what was restored: {words}"));
        }
        Ok(())
    }

    /// Gives what was restored to the project's role, and to the database what a dump omits. Returns what was left out.
    async fn adopt(&mut self, restoring: &Restoring<'_>) -> Result<Vec<String>> {
        let row = restoring.row;
        let role = quote::identifier(&role_of(row))?;
        let owner = &self.on.server.user;
        // What the dump set for sessions in its database holds for no session of ours.
        let reset = format!("ALTER DATABASE {} RESET ALL", quote::identifier(&row.database)?);
        self.admin.run(reset, "reset the settings of the new database").await?;
        let limit = self.on.options.timeout;
        let login = Login { database: row.database.clone(), ..self.on.server.admin_login() };
        let mut session = Admin::open(&login, limit).await?;
        let adopt = format!(
            "SET search_path = pg_catalog; REASSIGN OWNED BY {role} TO {}; DROP OWNED BY {role}",
            quote::identifier(&owner.name)?
        );
        let adopted = session.run(adopt, "give what was restored to the project's role").await;
        crate::provision::close(session.connection).await;
        adopted?;
        self.admin.run(format!("DROP ROLE {role}"), "remove the role of the import").await?;
        let login = Login { database: row.database.clone(), ..self.on.server.login() };
        let connected = crate::pg::connect(&login, Instant::now() + limit).await;
        let mut connection = connected.map_err(|error| error.into_error(&login))?;
        let given = outside::apply(&mut connection, &row.database, &owner.name, &restoring.manifest.database).await;
        crate::provision::close(connection).await;
        given
    }

    /// Removes the role of an import that failed; what cannot be removed yet is left to the next command.
    async fn drop_role(&mut self, row: &Row) {
        if let Ok(role) = quote::identifier(&role_of(row)) {
            let _ = self.helper.run(format!("DROP ROLE IF EXISTS {role}"), "remove the role of the import").await;
        }
    }

    /// Cleans up after an import or export that was killed: roles whose database is gone, and snapshots that can be
    /// logged in to.
    pub(super) async fn sweep_transfers(&mut self) -> Result<()> {
        // There is none where others have databases too, and no role there is ours to drop.
        let drop_roles = self.on.server.tenancy == Tenancy::Whole;
        let question = format!(
            "SELECT format('DROP ROLE %I', rolname) FROM pg_roles WHERE {drop_roles} AND rolname ~ '^tfdev_[a-z]_[0-9a-f]{{16}}{ROLE_SUFFIX}$' \
             AND NOT EXISTS (SELECT FROM pg_database WHERE datname || '{ROLE_SUFFIX}' = rolname) \
             UNION ALL SELECT format('ALTER DATABASE %I WITH ALLOW_CONNECTIONS false', datname) \
             FROM pg_database d JOIN tfdev.snapshot s ON s.database = datname \
             WHERE datallowconn AND stage = 'ready' AND kind IN ('snapshot', 'auto')"
        );
        let statements: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(question))
            .fetch_all(&mut self.admin.connection)
            .await
            .or_failed(|| "cannot look for what an import left")?;
        for statement in statements {
            self.admin.run(statement, "clean up after an import or export").await?;
        }
        Ok(())
    }
}

/// The role that restores into the database of `row`.
fn role_of(row: &Row) -> String {
    format!("{}{ROLE_SUFFIX}", row.database)
}

/// Unpacks until nobody wants more.
fn unpack(mut contents: Contents, pieces: &mpsc::Sender<Vec<u8>>) -> Result<()> {
    while let Some(piece) = contents.next_piece()? {
        if pieces.blocking_send(piece).is_err() {
            break;
        }
    }
    Ok(())
}

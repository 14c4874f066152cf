//! The databases of the server: which are ours, making them and dropping them.
//!
//! What must hold: a database gets its marker before it gets its name, so one that carries a project's name without the
//! marker is never ours, whenever tfdev was killed; and only what carries the marker of the very instance, or a name that
//! is made from its identity, is dropped.

use sqlx::{AssertSqlSafe, PgConnection, Row};
use uuid::Uuid;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::marker::{Marker, registry_name};
use crate::pg::connect::server_error;
use crate::pg::quote;

/// A database of the server.
#[derive(Debug)]
pub(super) struct Database {
    pub(super) name: String,
    pub(super) marker: Option<Marker>,
    /// Whether it belongs to a role that ours is a member of.
    owned: bool,
}

impl Database {
    /// Whether it is of the instance with this identity.
    pub(super) fn is_of(&self, id: Uuid) -> bool {
        match &self.marker {
            Some(marker) => marker.id == id,
            // Killed between the making of a database and its marking.
            None => self.owned && (self.name == registry_name(id) || self.name == unfinished_name(id)),
        }
    }
}

/// All databases of the server, with their markers.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Vec<Database>> {
    let what = || "cannot list the server's databases";
    let question = "SELECT datname::text, shobj_description(oid, 'pg_database'), pg_has_role(datdba, 'USAGE') \
                    FROM pg_database ORDER BY datname";
    let rows = sqlx::raw_sql(question).fetch_all(connection).await.or_failed(what)?;
    let database = |row: &sqlx::postgres::PgRow| {
        let comment: Option<String> = row.try_get(1).or_failed(what)?;
        let marker = comment.as_deref().and_then(Marker::read);
        Ok(Database { name: row.try_get(0).or_failed(what)?, marker, owned: row.try_get(2).or_failed(what)? })
    };
    rows.iter().map(database).collect()
}

/// The name that the project's database has until it is marked.
fn unfinished_name(id: Uuid) -> String {
    format!("{}_new", registry_name(id))
}

/// Makes the registry, if it is not there. Returns whether it was made.
pub(super) async fn make_registry(
    connection: &mut PgConnection,
    marker: &Marker,
    databases: &[Database],
) -> Result<bool> {
    let name = registry_name(marker.id);
    let there = databases.iter().find(|database| database.name == name);
    if there.is_some_and(|database| database.marker.is_some()) {
        return Ok(false);
    }
    if there.is_none() {
        create(connection, &name).await?;
    }
    mark(connection, &name, marker).await?;
    Ok(true)
}

/// Makes the project's database `name`, if it is not there. Returns whether it was made. What an earlier try left half made
/// goes first, and this one leaves nothing half made.
///
/// Fails with [`ErrorKind::Conflict`] if a database of that name is not tfdev's, and with [`ErrorKind::Refused`] if it is
/// another instance's.
pub(super) async fn make_project(
    connection: &mut PgConnection,
    name: &str,
    marker: &Marker,
    databases: &[Database],
) -> Result<bool> {
    let unfinished = unfinished_name(marker.id);
    let is_left_over = |database: &&Database| database.name == unfinished && database.is_of(marker.id);
    if let Some(left_over) = databases.iter().find(is_left_over) {
        drop(connection, &left_over.name).await?;
    }
    if is_made(name, marker, databases)? {
        return Ok(false);
    }
    let made = make_under_name(connection, &unfinished, name, marker).await;
    if matches!(made, Ok(true)) {
        return made;
    }
    let dropped = drop(connection, &unfinished).await;
    made?;
    dropped?;
    // Somebody had the name a moment earlier.
    let now = read(connection).await?;
    if is_made(name, marker, &now)? { Ok(false) } else { Err(taken(name)) }
}

/// Whether the project's database is there; an error if it is somebody else's.
fn is_made(name: &str, marker: &Marker, databases: &[Database]) -> Result<bool> {
    match databases.iter().find(|database| database.name == name) {
        Some(Database { marker: Some(found), .. }) if found.id == marker.id => Ok(true),
        Some(Database { marker: Some(found), .. }) => Err(of_another_instance(name, found)),
        Some(Database { marker: None, .. }) => Err(taken(name)),
        None => Ok(false),
    }
}

/// Makes a database as `unfinished`, marks it and then gives it its name; false if a database has that name already.
async fn make_under_name(connection: &mut PgConnection, unfinished: &str, name: &str, marker: &Marker) -> Result<bool> {
    create(connection, unfinished).await?;
    mark(connection, unfinished, marker).await?;
    let rename = format!("ALTER DATABASE {} RENAME TO {}", quote::identifier(unfinished)?, quote::identifier(name)?);
    match sqlx::raw_sql(AssertSqlSafe(rename)).execute(connection).await {
        Err(error) if is_taken(&error) => Ok(false),
        done => done.map(|_| true).or_failed(|| format!("cannot name the new database `{name}`")),
    }
}

/// Whether there is a database of that name: since before (42P04), or made at the same moment by another session (23505,
/// of the catalog's own index).
fn is_taken(error: &sqlx::Error) -> bool {
    server_error(error).is_some_and(|error| matches!(error.code(), "42P04" | "23505"))
}

async fn create(connection: &mut PgConnection, name: &str) -> Result<()> {
    let create = format!("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'", quote::identifier(name)?);
    match sqlx::raw_sql(AssertSqlSafe(create)).execute(connection).await {
        // A tfdev that was killed may have left a session that was at it.
        Err(error) if is_taken(&error) => Ok(()),
        done => done.map(|_| ()).or_failed(|| format!("cannot create the database `{name}`")),
    }
}

async fn mark(connection: &mut PgConnection, name: &str, marker: &Marker) -> Result<()> {
    let comment = quote::literal(&marker.comment())?;
    let mark = format!("COMMENT ON DATABASE {} IS {comment}", quote::identifier(name)?);
    let done = sqlx::raw_sql(AssertSqlSafe(mark)).execute(connection).await;
    done.map(|_| ()).or_failed(|| format!("cannot mark the database `{name}`"))
}

/// Drops a database that is ours, and ends the sessions in it.
pub(super) async fn drop(connection: &mut PgConnection, name: &str) -> Result<()> {
    let statement = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quote::identifier(name)?);
    let done = sqlx::raw_sql(AssertSqlSafe(statement)).execute(connection).await;
    done.map(|_| ()).or_failed(|| format!("cannot drop the database `{name}`")).map_err(|error| {
        error.hint(format!(
            "sessions of other roles in it must end first: `SELECT pid, usename, application_name FROM \
             pg_stat_activity WHERE datname = '{name}'`"
        ))
    })
}

fn taken(name: &str) -> Error {
    Error::new(
        ErrorKind::Conflict,
        format!("the server has a database `{name}` that is not tfdev's; tfdev touches only databases that it made"),
    )
    .hint("choose another name: `name = \"…\"` under `[database]` in `tfdev.toml`")
    .hint(format!("or, if nobody needs that database, drop it yourself: `DROP DATABASE {name}`"))
}

fn of_another_instance(name: &str, found: &Marker) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!(
            "the database `{name}` belongs to the instance `{}` of the project `{}` (identity {}, made in {}), and not to \
             this one",
            found.instance, found.project, found.id, found.made_in
        ),
    )
    .hint("choose another name: `name = \"…\"` under `[database]` in `tfdev.toml`")
}

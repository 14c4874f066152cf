//! What a server of someone else is, looked at before anything is written to it.
//!
//! What must hold: a server that cannot serve is told by what it is (another version, a standby, read-only, behind a pooler)
//! and never by an error of the first statement that fails there.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sqlx::{PgConnection, Row};

use crate::config::same_setting;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::{self, Login};
use crate::provision::close;
use crate::spec::POSTGRES_MAJOR;

/// How long the second session of [`check_sessions`] may take: behind a pooler whose sessions are all taken it waits.
const SECOND_SESSION: Duration = Duration::from_secs(10);

/// What is known of a server.
#[derive(Debug)]
pub(super) struct Survey {
    version_number: i32,
    version: String,
    in_recovery: bool,
    read_only: bool,
    role: String,
    may_create: bool,
    /// The system identifier, if the role may read it.
    pub(super) system_identifier: Option<u64>,
}

impl Survey {
    /// Asks the server.
    pub(super) async fn take(connection: &mut PgConnection) -> Result<Self> {
        let what = || "cannot ask the server what it is";
        let question = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
                        pg_is_in_recovery(), current_setting('default_transaction_read_only')::boolean, \
                        current_user::text, coalesce((SELECT rolsuper OR rolcreatedb FROM pg_roles \
                        WHERE rolname = current_user), false)";
        let row = sqlx::raw_sql(question).fetch_one(&mut *connection).await.or_failed(what)?;
        Ok(Self {
            version_number: row.try_get(0).or_failed(what)?,
            version: row.try_get(1).or_failed(what)?,
            in_recovery: row.try_get(2).or_failed(what)?,
            read_only: row.try_get(3).or_failed(what)?,
            role: row.try_get(4).or_failed(what)?,
            may_create: row.try_get(5).or_failed(what)?,
            system_identifier: pg::system_identifier(connection).await?,
        })
    }

    /// Fails unless the server can serve.
    pub(super) fn check(&self) -> Result<()> {
        let unusable = |why: String, hint: &str| {
            Err(Error::new(ErrorKind::NoEngine, format!("the server of `external.url` cannot be used: {why}"))
                .hint(hint))
        };
        let major = self.version_number / 10_000;
        if u32::try_from(major) != Ok(POSTGRES_MAJOR) {
            let age = if u32::try_from(major).is_ok_and(|major| major > POSTGRES_MAJOR) { "newer" } else { "older" };
            return unusable(
                format!("it is PostgreSQL {}, {age} than {POSTGRES_MAJOR}", self.version),
                "give the URL of a PostgreSQL 15 server, or use `--engine docker` or `--engine native`",
            );
        }
        if self.in_recovery {
            return unusable(
                "it is a standby, which takes no writes".to_owned(),
                "give the URL of the server that it follows, or of another one",
            );
        }
        if self.read_only {
            return unusable(
                format!("sessions of the role `{}` are read-only (`default_transaction_read_only = on`)", self.role),
                "ask whoever runs it: `ALTER SYSTEM SET default_transaction_read_only` and `ALTER ROLE … SET` set that",
            );
        }
        Ok(())
    }

    /// Fails unless the role may make databases.
    pub(super) fn check_role(&self) -> Result<()> {
        if self.may_create {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::NoEngine,
            format!("the server of `external.url` cannot be used: the role `{}` may not create databases", self.role),
        )
        .hint(format!("have someone who may run: `ALTER ROLE \"{}\" CREATEDB`", self.role)))
    }
}

/// Fails if sessions share what is theirs alone, as behind a pooler in transaction or statement mode. `connection` is one
/// session of `login`.
pub(super) async fn check_sessions(connection: &mut PgConnection, login: &Login) -> Result<()> {
    let first = backend(connection).await?;
    let deadline = Instant::now() + SECOND_SESSION;
    let mut second = pg::connect(login, deadline).await.map_err(|error| error.into_error(login))?;
    // Held by a transaction, so that the pooler cannot give it to the first session meanwhile. What fails here is told by
    // the numbers: statement mode takes no transaction at all.
    let begun = sqlx::raw_sql("BEGIN").execute(&mut second).await.is_ok();
    let other = if begun { backend(&mut second).await? } else { first };
    let again = backend(connection).await?;
    close(second).await;
    if begun && other != first && again == first {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::NoEngine,
        "the server of `external.url` cannot be used: a pooler stands in front of it that gives each transaction another \
         session (PgBouncer's `pool_mode = transaction` or `statement`), and tfdev's locks live in sessions",
    )
    .hint("give the URL of the server itself, or of a pool with `pool_mode = session`"))
}

async fn backend(connection: &mut PgConnection) -> Result<i32> {
    let what = || "cannot ask the server for the session's number";
    let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(connection).await.or_failed(what)?;
    row.try_get(0).or_failed(what)
}

/// The settings of a profile that the server has otherwise: `name` and what the server has.
pub(super) async fn different(
    connection: &mut PgConnection,
    wanted: &BTreeMap<String, String>,
) -> Result<Vec<(String, String)>> {
    let what = || "cannot read the server's settings";
    let names: Vec<&str> = wanted.keys().map(String::as_str).collect();
    let rows = sqlx::query("SELECT name, setting, current_setting(name) FROM pg_settings WHERE name = ANY($1)")
        .bind(names)
        .fetch_all(connection)
        .await
        .or_failed(what)?;
    let mut different = Vec::new();
    for row in rows {
        let (name, setting): (String, String) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        if wanted.get(&name).is_some_and(|wanted| !same_setting(&name, wanted, &setting)) {
            different.push((name, row.try_get(2).or_failed(what)?));
        }
    }
    different.sort();
    Ok(different)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survey(version_number: i32) -> Survey {
        Survey {
            version_number,
            version: "x".into(),
            in_recovery: false,
            read_only: false,
            role: "me".into(),
            may_create: true,
            system_identifier: None,
        }
    }

    #[test]
    fn each_reason_has_words_of_its_own() {
        survey(150_018).check().unwrap();
        for (survey, words) in [
            (survey(140_011), "older than 15"),
            (survey(160_002), "newer than 15"),
            (survey(90_624), "older than 15"),
            (Survey { in_recovery: true, ..survey(150_000) }, "it is a standby"),
            (Survey { read_only: true, ..survey(150_000) }, "read-only"),
        ] {
            let error = survey.check().unwrap_err();
            assert!(error.kind() == ErrorKind::NoEngine && error.to_string().contains(words), "{error}");
        }
        assert!(
            Survey { may_create: false, ..survey(150_000) }.check_role().unwrap_err().hints()[0].contains("CREATEDB")
        );
    }
}

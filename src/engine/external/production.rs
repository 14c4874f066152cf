//! What a server that is used in earnest looks like.
//!
//! What must hold: a server with one of these signs is not written to, unless `external.allow_remote` names it; the error
//! names the very sign.

use std::net::IpAddr;
use std::time::Duration;

use sqlx::{PgConnection, Row};
use tokio::time::{sleep, timeout};

use super::databases::Database;
use crate::error::{Context, Error, ErrorKind, Result};

/// Words that only servers in earnest have in their names.
const WORDS: [&str; 7] = ["prod", "production", "prd", "live", "primary", "master", "rds"];

/// Databases that every server has, or that providers keep for themselves; a session there is no sign of anything.
const NO_SIGN: [&str; 7] =
    ["postgres", "template0", "template1", "rdsadmin", "cloudsqladmin", "azure_maintenance", "azure_sys"];

/// How long the servers of a name may take to be found.
const LOOKUP_LIMIT: Duration = Duration::from_secs(10);

/// How long new sessions in others' databases are watched for: applications that keep none open, and open one for each
/// request, show only so.
const OBSERVATION: Duration = Duration::from_millis(300);

/// The server and database that are to be used, and whether they were allowed by name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) host: &'a str,
    pub(super) database: &'a str,
    /// `external.allow_remote`.
    pub(super) allowed: Option<&'a str>,
}

impl Subject<'_> {
    /// Whether `external.allow_remote` names this very server and database.
    pub(super) fn is_allowed(&self) -> bool {
        self.allowed.is_some_and(|allowed| allowed == self.name())
    }

    fn name(&self) -> String {
        format!("{}/{}", self.host, self.database)
    }

    /// Fails if where the server is, or what it is called, says that it is used in earnest.
    pub(super) async fn check_place(&self) -> Result<()> {
        if self.is_allowed() {
            return Ok(());
        }
        for (what, name) in [("host", self.host), ("database", self.database)] {
            if let Some(word) = telling_word(name) {
                return Err(self.refused(&format!("its {what} `{name}` has `{word}` in its name")));
            }
        }
        match self.address_elsewhere().await? {
            Some(address) => Err(self.refused(&format!(
                "its host `{}` has the address {address}, which is neither loopback nor private",
                self.host
            ))),
            None => Ok(()),
        }
    }

    /// An address of the host that is neither of this machine nor of a private network.
    async fn address_elsewhere(&self) -> Result<Option<IpAddr>> {
        if self.host.starts_with('/') {
            return Ok(None);
        }
        let unknown = || format!("the host `{}` of `external.url` cannot be found", self.host);
        let found = timeout(LOOKUP_LIMIT, tokio::net::lookup_host((self.host, 0)))
            .await
            .context(ErrorKind::NoEngine, unknown)?
            .context(ErrorKind::NoEngine, unknown)?;
        Ok(found.map(|address| address.ip().to_canonical()).find(|address| !is_near(*address)))
    }

    /// Fails if replicas hang on the server, or if someone else's databases on it are in use. For a server on which we
    /// have nothing yet.
    pub(super) async fn check_use(&self, connection: &mut PgConnection, databases: &[Database]) -> Result<()> {
        if self.is_allowed() {
            return Ok(());
        }
        if let Some(sign) = replicas(connection).await? {
            return Err(self.refused(&sign));
        }
        let foreign: Vec<String> = databases
            .iter()
            .filter(|database| database.marker.is_none() && !NO_SIGN.contains(&database.name.as_str()))
            .map(|database| database.name.clone())
            .collect();
        match traffic(connection, &foreign).await? {
            Some(sign) => Err(self.refused(&sign)),
            None => Ok(()),
        }
    }

    fn refused(&self, sign: &str) -> Error {
        let name = self.name();
        Error::new(
            ErrorKind::Refused,
            format!("the server of `external.url` looks as if it were used in production: {sign}"),
        )
        .hint("nothing was written; tfdev is for development and tests")
        .hint(format!(
            "if it is the right one, name it: `allow_remote = \"{name}\"` under `[external]` in `tfdev.toml`, or \
             `TFDEV_EXTERNAL_ALLOW_REMOTE={name}`"
        ))
    }
}

/// The first word of a name that only servers in earnest have.
fn telling_word(name: &str) -> Option<&'static str> {
    let lower = name.to_lowercase();
    let parts: Vec<_> = lower.split(|character: char| !character.is_ascii_alphabetic()).collect();
    WORDS.into_iter().find(|word| parts.contains(word))
}

/// Whether an address is of this machine or of a private network (RFC 1918, RFC 4193, link-local).
fn is_near(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback() || address.is_private() || address.is_link_local(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unique_local() || address.is_unicast_link_local(),
    }
}

async fn replicas(connection: &mut PgConnection) -> Result<Option<String>> {
    let what = || "cannot see whether replicas hang on the server";
    // Rows are shown to every role, though not all of their columns.
    let question = "SELECT (SELECT count(*) FROM pg_stat_replication), \
                    (SELECT count(*) FROM pg_replication_slots WHERE active)";
    let row = sqlx::raw_sql(question).fetch_one(connection).await.or_failed(what)?;
    let (replicas, slots): (i64, i64) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
    Ok(match (replicas, slots) {
        (0, 0) => None,
        (0, slots) => Some(format!("{slots} of its replication slots are in use")),
        (replicas, _) => Some(format!("{replicas} replicas or other receivers of its WAL are attached")),
    })
}

/// Sessions of other roles in the databases of others, or new sessions there while we watch.
async fn traffic(connection: &mut PgConnection, foreign: &[String]) -> Result<Option<String>> {
    if foreign.is_empty() {
        return Ok(None);
    }
    let what = || "cannot see whether others use the server";
    let open = sqlx::query(
        "SELECT datname::text, coalesce(usename::text, '?') FROM pg_stat_activity \
         WHERE datname = ANY($1) AND usesysid IS NOT NULL AND usename <> current_user ORDER BY 1 LIMIT 1",
    )
    .bind(foreign)
    .fetch_optional(&mut *connection)
    .await
    .or_failed(what)?;
    if let Some(row) = open {
        let (database, role): (String, String) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
        return Ok(Some(format!("the role `{role}` has a session in the database `{database}`, which is not tfdev's")));
    }
    let before = sessions(connection, foreign).await?;
    sleep(OBSERVATION).await;
    let after = sessions(connection, foreign).await?;
    let busy = after.into_iter().find(|now| before.iter().any(|then| then.0 == now.0 && then.1 < now.1));
    Ok(busy.map(|(database, _)| format!("others opened sessions in its database `{database}` just now")))
}

/// How many sessions each of the databases had so far.
async fn sessions(connection: &mut PgConnection, foreign: &[String]) -> Result<Vec<(String, i64)>> {
    let what = || "cannot see whether others use the server";
    let rows = sqlx::query("SELECT datname::text, sessions FROM pg_stat_database WHERE datname = ANY($1)")
        .bind(foreign)
        .fetch_all(connection)
        .await
        .or_failed(what)?;
    rows.iter().map(|row| Ok((row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject<'a>(host: &'a str, database: &'a str) -> Subject<'a> {
        Subject { host, database, allowed: None }
    }

    #[test]
    fn words_are_found_as_words_only() {
        for (name, word) in [
            ("db-prod-1.internal", "prod"),
            ("shop_live", "live"),
            ("mydb.abc.eu-west-1.rds.amazonaws.com", "rds"),
            ("PRIMARY", "primary"),
            ("prod2", "prod"),
        ] {
            assert_eq!(telling_word(name), Some(word), "{name}");
        }
        for name in ["products", "olive", "reproduction", "taskflow", "cards", "localhost", "127.0.0.1"] {
            assert_eq!(telling_word(name), None, "{name}");
        }
    }

    #[tokio::test]
    async fn public_addresses_are_refused_unless_they_are_named() {
        for host in ["127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1", "fd00::1", "fe80::1"] {
            subject(host, "taskflow").check_place().await.unwrap();
        }
        subject("/run/postgresql", "taskflow").check_place().await.unwrap();
        for host in ["192.0.2.7", "2001:db8::7", "172.32.0.1", "::ffff:192.0.2.7"] {
            let error = subject(host, "taskflow").check_place().await.unwrap_err();
            assert!(error.kind() == ErrorKind::Refused && error.to_string().contains("neither loopback"), "{error}");
            let name = format!("{host}/taskflow");
            assert!(error.hints()[1].contains(&name), "{:?}", error.hints());
            Subject { allowed: Some(&name), ..subject(host, "taskflow") }.check_place().await.unwrap();
            let other = Subject { allowed: Some("192.0.2.7/other"), ..subject(host, "taskflow") };
            other.check_place().await.unwrap_err();
        }
    }
}

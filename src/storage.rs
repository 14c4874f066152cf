//! How much storage an instance takes, of what the source allows it, and what takes it.
//!
//! What must hold: it only looks. What would not fit is refused before it begins by those who make it: copies by
//! [`crate::snapshot`], data sets by [`crate::snapshot::Snapshots::check_room`], fresh databases by [`mod@crate::fresh`].

use serde::Serialize;
use sqlx::{PgConnection, Row as _};

use crate::error::{Context, Result};
use crate::server::Tenancy;
use crate::snapshot::registry::{self, Kind};

/// From how much of its limit on an instance is warned of, in percent.
const WARN_PERCENT: u64 = 80;

/// Name and bytes of all databases; one that is dropped at this moment has none any more.
const DATABASES: &str = "SELECT datname::text, coalesce(pg_database_size(oid), 0)::bigint FROM pg_database";

/// The same where others have databases too: those with the marker that this one has and those that the list of
/// snapshots (`$1`) names, which an ordinary role may ask for.
const OUR_DATABASES: &str = "\
    SELECT datname::text, coalesce(pg_database_size(oid), 0)::bigint FROM pg_database \
    WHERE shobj_description(oid, 'pg_database') = (SELECT shobj_description(oid, 'pg_database') \
                                                   FROM pg_database WHERE datname = current_database()) \
    OR datname = ANY($1)";

/// Bytes of the write-ahead log.
const WAL: &str = "SELECT coalesce(sum(size), 0)::bigint FROM pg_ls_waldir()";

/// Storage used, in bytes.
#[derive(Debug, Serialize)]
pub struct Storage {
    /// Databases and WAL together.
    pub used_bytes: u64,
    /// The profile's limit (CON-003 § Deployment, Resource limits).
    pub limit_bytes: u64,
    /// The write-ahead log alone; 0 where others' is in it too.
    pub wal_bytes: u64,
    /// The databases, the largest first.
    pub databases: Vec<DatabaseSize>,
    /// The last snapshot, and by how many bytes the project's database has grown since.
    pub growth: Option<Growth>,
}

/// A database and what it takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DatabaseSize {
    /// Its name in the server.
    pub database: String,
    /// What it is for.
    pub purpose: Purpose,
    /// The name that people gave it, of a snapshot.
    pub snapshot: Option<String>,
    /// Its bytes.
    pub size_bytes: u64,
}

/// What a database is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// The project's own.
    Project,
    /// A snapshot, automatic ones included.
    Snapshot,
    /// The base of `reset`, a ready copy, or one for a restore: made anew when needed.
    Copy,
    /// A fresh database for tests, or the template of some.
    Fresh,
    /// What every server has, and what people made in it.
    Other,
}

/// How the project's database has grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Growth {
    /// Since which snapshot.
    pub since: String,
    /// By how many bytes; negative if it is smaller now.
    pub bytes: i64,
}

impl Storage {
    /// Measures what the server's databases take. `source` is the project's database, `connection` the admin login's.
    pub async fn measure(
        connection: &mut PgConnection,
        tenancy: Tenancy,
        source: &str,
        limit_bytes: u64,
    ) -> Result<Self> {
        let what = || "cannot measure the storage in use";
        let rows = registry::rows(connection, source).await?;
        let sizes = match tenancy {
            Tenancy::Whole => sqlx::query(DATABASES),
            Tenancy::Shared => sqlx::query(OUR_DATABASES).bind(registry::databases(connection).await?),
        };
        let sizes = sizes.fetch_all(&mut *connection).await.or_failed(what)?;
        let mut databases = Vec::new();
        for size in sizes {
            let database: String = size.try_get(0).or_failed(what)?;
            let bytes: i64 = size.try_get(1).or_failed(what)?;
            let row = rows.iter().find(|row| row.database == database);
            databases.push(DatabaseSize {
                purpose: purpose(&database, source, row.map(|row| row.kind)),
                snapshot: row.filter(|row| row.is_restorable()).and_then(|row| row.name.clone()),
                database,
                size_bytes: bytes.unsigned_abs(),
            });
        }
        databases.sort_by(|one, other| (other.size_bytes, &one.database).cmp(&(one.size_bytes, &other.database)));
        let wal_bytes = match tenancy {
            Tenancy::Whole => {
                sqlx::query_scalar::<_, i64>(WAL).fetch_one(connection).await.or_failed(what)?.unsigned_abs()
            }
            Tenancy::Shared => 0,
        };
        let now = databases.iter().find(|database| database.purpose == Purpose::Project);
        let last = rows.iter().filter(|row| row.is_restorable()).max_by_key(|row| row.created_at);
        let growth = now.zip(last).map(|(now, last)| Growth {
            since: last.name.clone().unwrap_or_default(),
            bytes: now.size_bytes.cast_signed() - last.details.size.cast_signed(),
        });
        let used_bytes = databases.iter().map(|database| database.size_bytes).sum::<u64>() + wal_bytes;
        Ok(Self { used_bytes, limit_bytes, wal_bytes, databases, growth })
    }

    /// How many databases there are of a purpose, and what they take.
    pub fn of(&self, purpose: Purpose) -> (usize, u64) {
        let sizes: Vec<u64> =
            self.databases.iter().filter(|one| one.purpose == purpose).map(|one| one.size_bytes).collect();
        (sizes.len(), sizes.iter().sum())
    }

    /// What to tell people who are about to run out of it; `None` as long as there is room.
    pub fn warning(&self) -> Option<String> {
        let percent = self.used_bytes.saturating_mul(100) / self.limit_bytes.max(1);
        if percent < WARN_PERCENT {
            return None;
        }
        let megabytes = |bytes: u64| bytes.div_ceil(1 << 20);
        let what = self.databases.first().map(|largest| {
            format!("; the largest is `{}` with {} MB", largest.database, megabytes(largest.size_bytes))
        });
        Some(format!(
            "{percent} % of this instance's storage is in use: {} MB of {} MB{}. `tfdev snapshot delete NAME` frees that \
             of a snapshot, `tfdev fresh gc` that of tests",
            megabytes(self.used_bytes),
            megabytes(self.limit_bytes),
            what.unwrap_or_default()
        ))
    }
}

fn purpose(database: &str, source: &str, kind: Option<Kind>) -> Purpose {
    match kind {
        _ if database == source => Purpose::Project,
        Some(Kind::Snapshot | Kind::Auto) => Purpose::Snapshot,
        Some(Kind::Base | Kind::Standby | Kind::Restore) => Purpose::Copy,
        None if database.starts_with("tfdev_f_") || database.starts_with("tfdev_t_") => Purpose::Fresh,
        None => Purpose::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn storage(sizes: &[(&str, Purpose, u64)]) -> Storage {
        let databases = sizes.iter().map(|(database, purpose, size)| DatabaseSize {
            database: (*database).to_owned(),
            purpose: *purpose,
            snapshot: None,
            size_bytes: *size,
        });
        let used_bytes = sizes.iter().map(|(_, _, size)| size).sum();
        Storage { used_bytes, limit_bytes: 10 * GB, wal_bytes: 0, databases: databases.collect(), growth: None }
    }

    #[test]
    fn from_80_percent_on_it_is_warned() {
        assert_eq!(storage(&[("app", Purpose::Project, 8 * GB - 1)]).warning(), None);
        let warning = storage(&[("app", Purpose::Project, 7 * GB), ("tfdev_s_1", Purpose::Snapshot, GB)]).warning();
        let warning = warning.unwrap();
        assert!(warning.starts_with("80 % of this instance's storage is in use: 8192 MB of 10240 MB"), "{warning}");
        assert!(warning.contains("the largest is `app` with 7168 MB"), "{warning}");
    }

    #[test]
    fn what_takes_it_is_told_by_purpose() {
        let storage =
            storage(&[("app", Purpose::Project, 5), ("a", Purpose::Snapshot, 3), ("b", Purpose::Snapshot, 4)]);
        assert_eq!((storage.of(Purpose::Snapshot), storage.of(Purpose::Fresh)), ((2, 7), (0, 0)));
        assert_eq!(purpose("app", "app", None), Purpose::Project);
        assert_eq!(purpose("tfdev_b_1", "app", Some(Kind::Base)), Purpose::Copy);
        assert_eq!(purpose("tfdev_f_1", "app", None), Purpose::Fresh);
        assert_eq!(purpose("postgres", "app", None), Purpose::Other);
    }
}

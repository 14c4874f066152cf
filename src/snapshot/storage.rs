//! Whether a copy fits: into the instance's limit, and onto the disk.
//!
//! What must hold: it only ever refuses to begin. What cannot be told (the disk of a server whose role may not ask) is
//! left to the copy itself, which fails whole.

use sqlx::{Connection, PgConnection, Row};

use super::registry::{self, Kind};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::clone::Admin;
use crate::server::Tenancy;

/// What must stay free on the disk beside a copy: WAL and whatever the project's own work writes meanwhile.
const RESERVE: u64 = 64 * 1024 * 1024;

/// Bytes of databases and WAL.
const WHOLE_SERVER: &str = "\
    SELECT (SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database \
            WHERE $1::text IS NOT NULL AND has_database_privilege(oid, 'CONNECT'))::bigint + \
           CASE WHEN pg_has_role(current_user, 'pg_monitor', 'USAGE') \
           THEN (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir())::bigint ELSE 0 END";

/// Bytes of the project's database, of our records and of what they name: the rest, and the WAL, is others' too.
const OUR_DATABASES: &str = "\
    SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database \
    WHERE datname IN ($1, current_database()) OR datname IN (SELECT database FROM tfdev.snapshot)";

/// The same before anything was kept.
const OUR_DATABASES_ALONE: &str = "\
    SELECT coalesce(sum(pg_database_size(oid)), 0)::bigint FROM pg_database WHERE datname IN ($1, current_database())";

/// How much room there is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    /// Bytes of databases and WAL.
    pub(super) used: u64,
    /// The instance's limit in bytes.
    pub(super) limit: u64,
    /// Bytes free on the server's disk, if it can be told.
    pub(super) free: Option<u64>,
}

impl Room {
    /// Measures it, in the server itself: all of it, or what is ours of a server where others have databases too.
    /// `source` is the project's database.
    pub(super) async fn measure(admin: &mut Admin, tenancy: Tenancy, source: &str, limit: u64) -> Result<Self> {
        let what = || "cannot measure the storage in use";
        let question = match tenancy {
            Tenancy::Whole => WHOLE_SERVER,
            Tenancy::Shared if registry::is_there(&mut admin.connection).await? => OUR_DATABASES,
            Tenancy::Shared => OUR_DATABASES_ALONE,
        };
        let used: i64 =
            sqlx::query_scalar(question).bind(source).fetch_one(&mut admin.connection).await.or_failed(what)?;
        let free = if admin.superuser { free_bytes(&mut admin.connection).await } else { None };
        Ok(Self { used: used.unsigned_abs(), limit, free })
    }

    /// What is left of it by a copy of `size` bytes.
    pub(super) fn without(self, size: u64) -> Self {
        Self { used: self.used + size, limit: self.limit, free: self.free.map(|free| free.saturating_sub(size)) }
    }

    /// How many bytes are missing for `needed` more.
    pub(super) fn missing(&self, needed: u64) -> u64 {
        let over = (self.used + needed).saturating_sub(self.limit);
        let short = self.free.map_or(0, |free| (needed + RESERVE).saturating_sub(free));
        over.max(short)
    }

    /// The error for a copy of `needed` bytes, with the snapshots that could go.
    pub(super) fn refuse(&self, needed: u64, rows: &[registry::Row]) -> Error {
        self.refuse_what("a copy", needed, rows)
    }

    /// The error for `what`, which needs so many bytes, with the snapshots that could go.
    pub(super) fn refuse_what(&self, what: &str, needed: u64, rows: &[registry::Row]) -> Error {
        let megabytes = |bytes: u64| bytes.div_ceil(1024 * 1024);
        let missing = self.missing(needed);
        let message = if self.used + needed > self.limit {
            format!(
                "{what} needs {} MB, and {} MB of this instance's limit of {} MB are in use",
                megabytes(needed),
                megabytes(self.used),
                megabytes(self.limit)
            )
        } else {
            format!(
                "{what} needs {} MB, and the server's disk has {} MB left",
                megabytes(needed),
                megabytes(self.free.unwrap_or(0))
            )
        };
        let error = Error::new(ErrorKind::Refused, message);
        let mut kept: Vec<_> = rows.iter().filter(|row| row.is_restorable()).collect();
        kept.sort_by_key(|row| std::cmp::Reverse((row.kind == Kind::Auto, row.details.size)));
        let names = |row: &&registry::Row| {
            format!("`{}` ({} MB)", row.name.as_deref().unwrap_or_default(), megabytes(row.details.size))
        };
        if kept.is_empty() {
            return error.hint(format!("{} MB are missing, and there is no snapshot to delete", megabytes(missing)));
        }
        let list = kept.iter().take(5).map(names).collect::<Vec<_>>().join(", ");
        error.hint(format!("{} MB are missing: `tfdev snapshot delete NAME` frees those of {list}", megabytes(missing)))
    }
}

/// Bytes free on the disk of the server's data folder, as the server's own machine tells. Nothing of this is kept.
async fn free_bytes(connection: &mut PgConnection) -> Option<u64> {
    let mut transaction = connection.begin().await.ok()?;
    let copy = "CREATE TEMPORARY TABLE tfdev_free (line text); COPY tfdev_free FROM PROGRAM 'df -Pk .'";
    let copied = sqlx::raw_sql(copy).execute(&mut *transaction).await;
    let rows = match copied {
        Ok(_) => sqlx::raw_sql("SELECT line FROM tfdev_free").fetch_all(&mut *transaction).await.ok(),
        Err(_) => None,
    };
    transaction.rollback().await.ok()?;
    let lines: Vec<String> = rows?.iter().filter_map(|row| row.try_get(0).ok()).collect();
    available(&lines)
}

/// The bytes in the column `Available` of what `df -Pk` prints.
fn available(lines: &[String]) -> Option<u64> {
    let kilobytes: u64 = lines.get(1)?.split_whitespace().nth(3)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_column_of_df_is_read() {
        let lines = [
            "Filesystem     1024-blocks     Used Available Capacity Mounted on".to_owned(),
            "/dev/vda         263174212 13000000  82000000      14% /".to_owned(),
        ];
        assert_eq!(available(&lines), Some(82_000_000 * 1024));
        assert_eq!(available(&lines[..1]), None);
    }

    #[test]
    fn both_the_limit_and_the_disk_count() {
        const MB: u64 = 1024 * 1024;
        let room = Room { used: 100 * MB, limit: 200 * MB, free: Some(500 * MB) };
        assert_eq!(room.missing(100 * MB), 0);
        assert_eq!(room.missing(101 * MB), MB);
        let full = Room { free: Some(70 * MB), ..room };
        assert_eq!(full.missing(10 * MB), 4 * MB);
        assert_eq!(Room { free: None, ..room }.missing(10 * MB), 0);
        assert!(full.refuse(10 * MB, &[]).to_string().contains("disk has 70 MB left"));
        assert!(room.refuse(101 * MB, &[]).to_string().contains("limit of 200 MB"));
    }
}

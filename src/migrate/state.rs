//! Which migrations a database has, compared with those of a source.

use std::fmt;

use sqlx::{PgConnection, Row};

use super::source::{MigrationFile, Source};
use super::while_reading;
use crate::error::Result;

/// How a migration in the source and in the database compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MigrationState {
    /// Applied, and the file is as it was.
    Applied,
    /// In the source, not in the database.
    Pending,
    /// Applied, but the file was changed since.
    Changed,
    /// Applied, and only the line endings of the file were changed since.
    LineEndings,
    /// Applied, but not in the source.
    Missing,
    /// Noted as begun and not finished. sqlx itself does not write this to PostgreSQL.
    Failed,
}

impl MigrationState {
    /// Whether the database has it.
    pub fn is_applied(self) -> bool {
        matches!(self, Self::Applied | Self::Changed | Self::LineEndings | Self::Missing)
    }
}

impl fmt::Display for MigrationState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Applied => "applied",
            Self::Pending => "pending",
            Self::Changed => "changed since it was applied",
            Self::LineEndings => "applied (other line endings)",
            Self::Missing => "applied, but missing here",
            Self::Failed => "failed",
        })
    }
}

/// One migration of the source, of the database, or of both.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MigrationRow {
    /// Its version.
    pub version: i64,
    /// Its description: the words of the file's name.
    pub description: String,
    /// How source and database compare.
    pub state: MigrationState,
    /// When it was applied: UTC, RFC 3339.
    pub installed_on: Option<String>,
}

impl MigrationRow {
    /// Version and description, for messages.
    pub(super) fn name(&self) -> String {
        format!("`{} {}`", self.version, self.description)
    }
}

/// All migrations of a source and of a database.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct MigrationStatus {
    /// Each migration, oldest version first.
    pub rows: Vec<MigrationRow>,
    /// How many of the source's migrations the database has.
    pub applied: usize,
    /// How many migrations the source has.
    pub total: usize,
}

impl MigrationStatus {
    pub(super) fn new(rows: Vec<MigrationRow>) -> Self {
        let in_source = |row: &&MigrationRow| row.state != MigrationState::Missing;
        let total = rows.iter().filter(in_source).count();
        let applied = rows.iter().filter(in_source).filter(|row| row.state.is_applied()).count();
        Self { rows, applied, total }
    }
}

/// A row of sqlx's table.
#[derive(Debug, Clone)]
pub(super) struct AppliedMigration {
    version: i64,
    description: String,
    installed_on: String,
    success: bool,
    checksum: Vec<u8>,
}

/// Reads sqlx's table; `None` if it does not exist.
pub(super) async fn applied(connection: &mut PgConnection) -> Result<Option<Vec<AppliedMigration>>> {
    // Asked for first, because a query of a missing table would be an error in the server's log at each new database.
    let question = "SELECT to_regclass('_sqlx_migrations') IS NOT NULL";
    let exists = while_reading(sqlx::raw_sql(question).fetch_one(&mut *connection).await)?;
    if !while_reading(exists.try_get::<bool, _>(0))? {
        return Ok(None);
    }
    let question = "SELECT version, description, success, checksum, \
                    to_char(installed_on AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"') AS installed_on \
                    FROM _sqlx_migrations ORDER BY version";
    let rows = while_reading(sqlx::raw_sql(question).fetch_all(connection).await)?;
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(AppliedMigration {
            version: row.try_get("version")?,
            description: row.try_get("description")?,
            installed_on: row.try_get("installed_on")?,
            success: row.try_get("success")?,
            checksum: row.try_get("checksum")?,
        })
    };
    while_reading(rows.iter().map(read).collect()).map(Some)
}

/// Compares `source` with `applied`; both are ordered by version, and so is the result.
pub(super) fn compare(source: &Source, applied: &[AppliedMigration]) -> Vec<MigrationRow> {
    let pending = source.files().iter().map(|file| &file.migration).filter_map(|migration| {
        let known = applied.iter().any(|row| row.version == migration.version);
        (!known).then(|| MigrationRow {
            version: migration.version,
            description: migration.description.to_string(),
            state: MigrationState::Pending,
            installed_on: None,
        })
    });
    let known = applied.iter().map(|row| MigrationRow {
        version: row.version,
        description: row.description.clone(),
        state: state(source.find(row.version), row),
        installed_on: Some(row.installed_on.clone()),
    });
    let mut rows: Vec<MigrationRow> = pending.chain(known).collect();
    rows.sort_by_key(|row| row.version);
    rows
}

fn state(file: Option<&MigrationFile>, row: &AppliedMigration) -> MigrationState {
    match file {
        _ if !row.success => MigrationState::Failed,
        None => MigrationState::Missing,
        Some(file) if *file.migration.checksum == *row.checksum => MigrationState::Applied,
        Some(file) if file.has_checksum_with_other_line_endings(&row.checksum) => MigrationState::LineEndings,
        Some(_) => MigrationState::Changed,
    }
}

//! What to say when a migration fails: where in the file, in the server's own words, and what state it left.

use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgDatabaseError, PgErrorPosition};
use sqlx::{PgConnection, Row};

use super::AppliedNow;
use super::source::MigrationFile;
use crate::error::{Error, ErrorKind};
use crate::pg::connect::server_error;

/// Describes the failure of `file`, before which this run applied `done`.
pub(super) async fn describe(
    connection: &mut PgConnection,
    file: &MigrationFile,
    error: MigrateError,
    done: &[AppliedNow],
) -> Error {
    let (cause, ran) = match error {
        MigrateError::ExecuteMigration(cause, _) => (cause, false),
        // The file itself ran; its note in the table, or the commit with its deferred checks, failed.
        MigrateError::Execute(cause) => (cause, true),
        other => return Error::failed(format!("the migration {} failed", file.place)).caused_by(other),
    };
    let described = match server_error(&cause) {
        Some(server) => from_server(file, server, ran),
        None => Error::failed(format!("the connection was lost while the migration {} ran", file.place))
            .hint("`tfdev migrate status` shows whether it was applied; `tfdev logs` shows what the server met")
            .caused_by(cause),
    };
    let mut described = described;
    if file.migration.no_tx {
        for index in invalid_indexes(connection).await {
            described = described.hint(format!("{index}, then run `tfdev migrate run` again"));
        }
    }
    if !done.is_empty() {
        let names: Vec<String> = done.iter().map(|one| format!("`{} {}`", one.version, one.description)).collect();
        described = described.hint(format!("applied before it, and kept: {}", names.join(", ")));
    }
    described
}

fn from_server(file: &MigrationFile, server: &PgDatabaseError, ran: bool) -> Error {
    let line = match server.position() {
        Some(PgErrorPosition::Original(position)) if !ran => {
            format!(", line {}", line_of(file.text(), position))
        }
        _ => String::new(),
    };
    let when = if ran { " when it was noted and committed" } else { "" };
    let message = format!(
        "the migration {}{line} failed{when}: {} (SQL state {}); {}",
        file.place,
        server.message(),
        server.code(),
        what_was_kept(file)
    );
    let mut error = Error::new(kind(server.code()), message);
    if let Some(hint) = own_hint(file, server, ran) {
        error = error.hint(hint);
    }
    if let Some(hint) = server.hint() {
        error = error.hint(format!("the server says: {hint}"));
    }
    error = error.hint("mend the file, then run `tfdev migrate run` again");
    let details: Vec<&str> = [server.detail(), server.r#where()].into_iter().flatten().collect();
    if details.is_empty() { error } else { error.caused_by(details.join("; ")) }
}

/// What the server refuses in a file is bad input; what happened to the server is not.
fn kind(state: &str) -> ErrorKind {
    // Connection, transaction rollback, resources, lock not available, operator, system.
    let elsewhere = ["08", "40", "53", "55P03", "57", "58"];
    if elsewhere.iter().any(|class| state.starts_with(class)) { ErrorKind::Failed } else { ErrorKind::BadInput }
}

fn what_was_kept(file: &MigrationFile) -> &'static str {
    if file.migration.no_tx {
        "it ran outside a transaction, so part of it may have been kept"
    } else if contains_commit(file.text()) {
        "it contains COMMIT, so what ran before that may have been kept"
    } else {
        "nothing of this migration was kept"
    }
}

/// Whether a statement seems to be COMMIT, which would end the transaction around the file. A guess for a message: it
/// does not know strings and function bodies.
fn contains_commit(text: &str) -> bool {
    text.split([';', '\n'])
        .any(|part| part.trim_start().get(..6).is_some_and(|word| word.eq_ignore_ascii_case("commit")))
}

/// A hint of ours for failures that come from how migrations are run.
fn own_hint(file: &MigrationFile, server: &PgDatabaseError, ran: bool) -> Option<&'static str> {
    match (server.code(), file.migration.no_tx) {
        ("25001", false) => Some("make `-- no-transaction` the first line of the file, and keep it to that statement"),
        ("25001", true) => Some("a `-- no-transaction` file is sent as a whole: keep it to this one statement"),
        ("42P01" | "3F000", _) if ran => {
            Some("the file changes `search_path`, so its note found no table: put it back at the end of the file")
        }
        _ => None,
    }
}

/// The line, counted from 1, of the character at `position`, counted from 1 in characters as the server does.
fn line_of(text: &str, position: usize) -> usize {
    text.chars().take(position.saturating_sub(1)).filter(|letter| *letter == '\n').count() + 1
}

/// Lists the indexes that the server does not use because building them failed, each as a sentence with what to do.
/// Nothing if the server cannot be asked any more.
pub(super) async fn invalid_indexes(connection: &mut PgConnection) -> Vec<String> {
    // regclass quotes names where needed. An index that is being built right now is not valid either.
    let question = "SELECT i.indexrelid::regclass::text, i.indrelid::regclass::text FROM pg_index i \
                    WHERE NOT i.indisvalid AND NOT EXISTS \
                    (SELECT FROM pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid) ORDER BY 1";
    let rows = sqlx::raw_sql(question).fetch_all(connection).await.unwrap_or_default();
    let sentence = |row: &sqlx::postgres::PgRow| {
        let (index, table): (String, String) = (row.try_get(0).ok()?, row.try_get(1).ok()?);
        Some(format!(
            "the index `{index}` on `{table}` is not valid, and costs time without being used: run `DROP INDEX {index}` \
             in `tfdev psql`"
        ))
    };
    rows.iter().filter_map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_in_characters_from_one() {
        assert_eq!(line_of("abc", 1), 1);
        assert_eq!(line_of("ä\nö\nü", 3), 2);
        assert_eq!(line_of("ä\r\nö\r\nü", 7), 3);
        assert_eq!(line_of("a\n", 99), 2);
    }

    #[test]
    fn commit_is_seen_as_a_statement_only() {
        assert!(contains_commit("SELECT 1; COMMIT; SELECT 2"));
        assert!(contains_commit("commit"));
        assert!(!contains_commit("CREATE TABLE a (commit int)"));
        assert!(!contains_commit("-- commit\nSELECT 'ä'"));
    }
}

//! Runs the SQL files of a data set, statement by statement, and looks after the tables of any schema.
//!
//! What must hold: the error of a statement names the file and the line where it went wrong. A table counts as data unless
//! it is sqlx's own record of migrations, belongs to an extension, or a script says `-- tfdev: keep TABLE`, because its
//! rows come with the migrations: those neither keep `up` from seeding nor are they deleted by a replacement.

use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgConnection, PgDatabaseError, PgErrorPosition};

use super::load::{SILENCE, database_code, run};
use super::script::{Script, Statement, line_error};
use crate::error::{Context as _, Error, Result};
use crate::event::{Event, Events, Progress, Unit};

/// Runs `scripts` in order and returns how many rows they added.
pub(super) async fn run_all(transaction: &mut PgConnection, scripts: &[Script], events: &Events) -> Result<u64> {
    let mut rows = 0;
    for script in scripts {
        run(transaction, SILENCE).await.or_failed(|| "cannot silence notifications")?;
        for statement in script.statements() {
            let affected = run_statement(transaction, script, statement)
                .await
                .map_err(|error| explain(error, script, statement))?;
            if adds_rows(script.sql(statement)) {
                rows += affected;
            }
            tell_progress(events, script.file(), rows, false);
        }
        tell_progress(events, script.file(), rows, true);
        // What a file sets, such as pg_dump's empty `search_path`, is over with the file.
        run(transaction, "RESET ROLE; RESET ALL")
            .await
            .or_failed(|| "cannot reset the settings that a file changed")?;
    }
    let tables = data_tables(transaction, scripts).await?;
    if !tables.is_empty() {
        let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
        run(transaction, &format!("ANALYZE {}", names.join(", "))).await.or_failed(|| "cannot analyze the new rows")?;
    }
    Ok(rows)
}

async fn run_statement(transaction: &mut PgConnection, script: &Script, statement: &Statement) -> sqlx::Result<u64> {
    let sql = script.sql(statement);
    let Some(data) = script.copy_data(statement) else { return run(transaction, sql).await };
    let mut sink = transaction.copy_in_raw(sql).await?;
    sink.send(data.as_bytes()).await?;
    sink.finish().await
}

fn adds_rows(sql: &str) -> bool {
    let first = sql.split(|letter: char| !letter.is_ascii_alphabetic()).next().unwrap_or_default();
    ["INSERT", "COPY", "WITH", "MERGE"].iter().any(|command| first.eq_ignore_ascii_case(command))
}

fn tell_progress(events: &Events, file: &str, rows: u64, done: bool) {
    events.send(Event::Progress(Progress {
        id: file.to_owned(),
        label: file.to_owned(),
        unit: Unit::Rows,
        position: rows,
        total: None,
        done,
    }));
}

/// Makes the error of a statement, with the line inside it where the server tells a position.
fn explain(error: sqlx::Error, script: &Script, statement: &Statement) -> Error {
    let Some(database_error) = error.as_database_error() else {
        return Error::failed(format!("the connection was lost in `{}`", script.file())).caused_by(error);
    };
    let database_error = database_error.downcast_ref::<PgDatabaseError>();
    let mut line = statement.line;
    if let Some(PgErrorPosition::Original(position)) = database_error.position() {
        // Positions count characters from 1.
        line += script.sql(statement).chars().take(position.saturating_sub(1)).filter(|letter| *letter == '\n').count();
    } else if let Some(offset) = database_error.r#where().and_then(copy_line) {
        line += script.sql(statement).matches('\n').count() + offset;
    }
    let mut message = database_error.message().to_owned();
    if let Some(detail) = database_error.detail() {
        message = format!("{message} ({})", detail.trim_end_matches('.'));
    }
    let hint = database_error.hint().map(str::to_owned);
    let error = line_error(script.file(), line, message);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Finds the line of the data in the context of an error of COPY: `COPY countries, line 3, column name: …`.
fn copy_line(context: &str) -> Option<usize> {
    let rest = context.strip_prefix("COPY ")?.split_once(", line ")?.1;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// A table that holds data.
struct DataTable {
    /// Its quoted name with its schema.
    name: String,
    /// A query that returns the quoted name if the table has rows.
    probe: String,
}

/// Lists the tables that count as data.
async fn data_tables(connection: &mut PgConnection, scripts: &[Script]) -> Result<Vec<DataTable>> {
    let kept = kept_tables(connection, scripts).await?;
    let rows: Vec<(String, String)> = sqlx::query_as(
        r"SELECT format('%I.%I', nspname, relname),
                 format('SELECT %L::text WHERE EXISTS (SELECT FROM %I.%I)', format('%I.%I', nspname, relname), nspname, relname)
          FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
          WHERE relkind IN ('r', 'p') AND relpersistence <> 't'
            AND nspname NOT LIKE 'pg\_%' AND nspname <> 'information_schema' AND relname <> '_sqlx_migrations'
            AND pg_class.oid <> ALL ($1)
            AND has_schema_privilege(pg_namespace.oid, 'USAGE') AND has_table_privilege(pg_class.oid, 'SELECT')
            AND NOT EXISTS (
                SELECT FROM pg_depend
                WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid AND deptype = 'e'
            )
          ORDER BY 1",
    )
    .bind(kept)
    .fetch_all(connection)
    .await
    .or_failed(|| "cannot list the tables of the database")?;
    Ok(rows.into_iter().map(|(name, probe)| DataTable { name, probe }).collect())
}

/// Finds the tables that scripts want to be kept.
async fn kept_tables(connection: &mut PgConnection, scripts: &[Script]) -> Result<Vec<Oid>> {
    let mut kept = Vec::new();
    for script in scripts {
        for (line, name) in script.kept_tables() {
            let found: sqlx::Result<Option<Oid>> =
                sqlx::query_scalar("SELECT to_regclass($1)::oid").bind(name).fetch_one(&mut *connection).await;
            match found {
                Ok(Some(table)) => kept.push(table),
                Err(error) if database_code(&error).is_none() => {
                    return Err(Error::failed("cannot look for a table").caused_by(error));
                }
                Ok(None) | Err(_) => {
                    return Err(line_error(script.file(), *line, format!("there is no table `{name}` to keep"))
                        .hint("name a table of the migrations, with its schema if that is not in the search path"));
                }
            }
        }
    }
    Ok(kept)
}

/// Names a table that holds rows.
pub(super) async fn table_with_rows(connection: &mut PgConnection, scripts: &[Script]) -> Result<Option<String>> {
    let tables = data_tables(connection, scripts).await?;
    if tables.is_empty() {
        return Ok(None);
    }
    let probes: Vec<&str> = tables.iter().map(|table| table.probe.as_str()).collect();
    let query = format!("{} LIMIT 1", probes.join(" UNION ALL "));
    sqlx::query_scalar(sqlx::AssertSqlSafe(query))
        .fetch_optional(connection)
        .await
        .or_failed(|| "cannot look whether the tables have rows")
}

/// Makes the statement that empties all tables that count as data; `None` if there is none.
pub(super) async fn truncation(connection: &mut PgConnection, scripts: &[Script]) -> Result<Option<String>> {
    let tables = data_tables(connection, scripts).await?;
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    Ok((!names.is_empty()).then(|| format!("TRUNCATE {} RESTART IDENTITY", names.join(", "))))
}

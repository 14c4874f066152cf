//! JSONB and full-text search: marked tasks are found, and by an index. All of it is rolled back.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{Task, mark, run};
use crate::error::{Context, Result};
use crate::provision;
use crate::verify::{Bench, Schema, Verdict};

/// The expression of TaskFlow's index for full-text search, which a query has to repeat.
const TASK_TEXT: &str = "to_tsvector('english', coalesce(title, '') || ' ' || coalesce(description, ''))";

/// Stands in for `tasks` where the project has a schema of its own; it goes with the transaction.
const STAND_IN: &str = "CREATE TEMP TABLE tfdev_verify_documents (title text, description text, metadata jsonb) ON COMMIT DROP; \
     CREATE INDEX ON tfdev_verify_documents USING gin (metadata jsonb_path_ops); \
     CREATE INDEX ON tfdev_verify_documents USING gin \
     (to_tsvector('english', coalesce(title, '') || ' ' || coalesce(description, '')))";

/// What a feature does: how a query finds the marked rows, and what it must find.
struct Use {
    what: &'static str,
    query: String,
    /// The titles in the order in which the query must give them.
    titles: [&'static str; 2],
    column: &'static str,
}

pub(super) async fn jsonb(bench: &Bench<'_>) -> Result<Verdict> {
    let mark = mark();
    let table = table(bench);
    let one = Use {
        what: "a containment query (@>)",
        query: format!("SELECT title FROM {table} WHERE metadata @> '{{\"{mark}\": \"first\"}}'"),
        titles: ["first", ""],
        column: "metadata",
    };
    look(bench, &mark, &one).await
}

pub(super) async fn search(bench: &Bench<'_>) -> Result<Verdict> {
    let mark = mark();
    let table = table(bench);
    let one = Use {
        what: "a ranked query (ts_rank)",
        query: format!(
            "SELECT title FROM {table}, websearch_to_tsquery('english', '{mark}') AS asked WHERE {TASK_TEXT} @@ asked \
             ORDER BY ts_rank({TASK_TEXT}, asked) DESC"
        ),
        titles: ["first", "second"],
        column: "the text",
    };
    look(bench, &mark, &one).await
}

fn table(bench: &Bench<'_>) -> &'static str {
    if bench.schema == Schema::TaskFlow { "tasks" } else { "tfdev_verify_documents" }
}

async fn look(bench: &Bench<'_>, mark: &str, one: &Use) -> Result<Verdict> {
    let mut connection = bench.user().await?;
    let looked = within_transaction(bench, &mut connection, mark, one).await;
    // If this fails the session ends, which undoes it as well.
    let _ = run(&mut connection, "ROLLBACK".to_owned(), "take the rows back").await;
    provision::close(connection).await;
    looked
}

async fn within_transaction(
    bench: &Bench<'_>,
    connection: &mut PgConnection,
    mark: &str,
    one: &Use,
) -> Result<Verdict> {
    // The first names the mark more often, so it ranks higher.
    let (often, rarely) = (format!("{mark} {mark} {mark}"), format!("{mark} among other words"));
    let rows = if bench.schema == Schema::TaskFlow {
        format!("{}; {}", Task::new().insert(mark, "first", &often), Task::new().insert(mark, "second", &rarely))
    } else {
        let row = |title: &str, text: &str| {
            format!("INSERT INTO tfdev_verify_documents VALUES ('{title}', '{text}', '{{\"{mark}\": \"{title}\"}}')")
        };
        format!("{STAND_IN}; {}; {}", row("first", &often), row("second", &rarely))
    };
    // A table of few rows is read as a whole if that is allowed, whatever indexes there are.
    run(
        connection,
        format!("BEGIN; SET LOCAL taskflow.silent = 'on'; {rows}; SET LOCAL enable_seqscan = off"),
        "insert rows",
    )
    .await?;
    let found = titles(connection, &one.query).await?;
    let indexes = indexes(connection, &one.query).await?;
    let expected: Vec<_> = one.titles.into_iter().filter(|title| !title.is_empty()).collect();
    let of_own = if bench.schema == Schema::TaskFlow {
        ""
    } else {
        ", on a temporary table: the project has a schema of its own"
    };
    let proof = format!("{} and its EXPLAIN without sequential scans{of_own}", one.what);
    if found != expected {
        return Ok(Verdict::fail(
            format!("it found {}", found.join(", ")),
            proof,
            format!("it must find {}", expected.join(", then ")),
        ));
    }
    match indexes.first() {
        Some(index) => Ok(Verdict::pass(format!("it finds what it must, by the GIN index {index}"), proof)),
        None => Ok(Verdict::fail(
            "it finds what it must, by reading the whole table",
            proof,
            format!("no valid GIN index on {} serves it", one.column),
        )),
    }
}

async fn titles(connection: &mut PgConnection, query: &str) -> Result<Vec<String>> {
    let what = || "cannot run the query";
    let rows = sqlx::raw_sql(AssertSqlSafe(query.to_owned())).fetch_all(connection).await.or_failed(what)?;
    rows.iter().map(|row| row.try_get(0).or_failed(what)).collect()
}

/// The GIN indexes that the plan of `query` uses.
async fn indexes(connection: &mut PgConnection, query: &str) -> Result<Vec<String>> {
    let what = || "cannot explain the query";
    let explain =
        sqlx::raw_sql(AssertSqlSafe(format!("EXPLAIN (FORMAT JSON) {query}"))).fetch_one(&mut *connection).await;
    let explained = explain.or_failed(what)?;
    let text = explained.try_get_raw(0).or_failed(what)?;
    let plan: serde_json::Value =
        serde_json::from_str(text.as_str().map_err(|error| crate::Error::failed(what()).caused_by(error))?)
            .or_failed(what)?;
    let mut names = Vec::new();
    collect_indexes(&plan, &mut names);
    let question = "SELECT c.relname::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam \
                    WHERE c.relkind = 'i' AND a.amname = 'gin' AND c.relname = ANY($1) AND pg_table_is_visible(c.oid)";
    let rows = sqlx::query(question).bind(names).fetch_all(connection).await.or_failed(what)?;
    rows.iter().map(|row| row.try_get(0).or_failed(what)).collect()
}

fn collect_indexes(plan: &serde_json::Value, names: &mut Vec<String>) {
    match plan {
        serde_json::Value::Object(node) => {
            names.extend(node.get("Index Name").and_then(serde_json::Value::as_str).map(str::to_owned));
            node.values().for_each(|inner| collect_indexes(inner, names));
        }
        serde_json::Value::Array(nodes) => nodes.iter().for_each(|inner| collect_indexes(inner, names)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_are_found_at_any_depth_of_a_plan() {
        let plan = serde_json::json!([{ "Plan": { "Node Type": "Sort", "Plans": [
            { "Node Type": "Bitmap Heap Scan", "Plans": [{ "Index Name": "a" }] }, { "Index Name": "b" }] } }]);
        let mut names = Vec::new();
        collect_indexes(&plan, &mut names);
        assert_eq!(names, ["a", "b"]);
    }
}

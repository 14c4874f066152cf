//! § Features Provided, each by using it as an application would.
//!
//! ```text
//! pooling       clients through a pool        notify        a change of a task arrives
//! documents     JSONB and full-text search    replication   a slot streams changes
//! ```
//!
//! What must hold: see [`super`]. A transaction that is rolled back, or that takes back itself what it wrote, could still
//! leave something where a trigger of the project writes elsewhere; there the tables are left alone ([`other_triggers`]).

mod documents;
mod notify;
mod pooling;
mod replication;

use std::time::Instant;

use sqlx::{AssertSqlSafe, PgConnection, Row as _};
use uuid::Uuid;

use super::{Bench, Row, Section, Verdict};
use crate::error::{Context, Result};

/// What nobody else's rows or objects are called: a name, and one word for the full-text search, too.
fn mark() -> String {
    let letters = Uuid::new_v4().into_bytes().map(|byte| char::from(b'a' + byte % 26));
    letters.into_iter().fold("tfdevverify".to_owned(), |mark, letter| mark + letter.encode_utf8(&mut [0; 4]))
}

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let row = |looked: Result<Verdict>, name: &str, purpose: &str, begin: Instant| {
        Verdict::of(looked).row(Section::Features, name, purpose, begin)
    };
    let mut rows = Vec::new();
    let begin = Instant::now();
    rows.push(row(pooling::verdict(bench).await, "Connection pooling support", "Efficient connection reuse", begin));
    let begin = Instant::now();
    rows.push(row(notify::verdict(bench).await, "LISTEN/NOTIFY", "Real-time event notifications", begin));
    let begin = Instant::now();
    rows.push(row(documents::jsonb(bench).await, "JSON/JSONB columns", "Flexible task metadata", begin));
    let begin = Instant::now();
    rows.push(row(documents::search(bench).await, "Full-text search", "Task search functionality", begin));
    let begin = Instant::now();
    rows.push(row(replication::verdict(bench).await, "WAL logical replication", "CDC for external systems", begin));
    rows
}

/// Runs statements of ours that hold nothing but marks.
async fn run(connection: &mut PgConnection, statements: String, what: &str) -> Result<()> {
    let ran = sqlx::raw_sql(AssertSqlSafe(statements)).execute(connection).await;
    ran.map(drop).or_failed(|| format!("cannot {what}"))
}

/// The names of triggers on TaskFlow's tables that are not the schema's own. What they do in a transaction that is
/// committed would stay.
async fn other_triggers(connection: &mut PgConnection) -> Result<Vec<String>> {
    let what = || "cannot look for triggers";
    let question = "SELECT tgname::text FROM pg_trigger WHERE NOT tgisinternal \
                    AND tgrelid IN (to_regclass('users'), to_regclass('tasks')) AND tgname <> 'tasks_notify_change' \
                    UNION SELECT rulename::text FROM pg_rewrite \
                    WHERE ev_class IN (to_regclass('users'), to_regclass('tasks')) ORDER BY 1";
    let rows = sqlx::raw_sql(question).fetch_all(connection).await.or_failed(what)?;
    rows.iter().map(|row| row.try_get(0).or_failed(what)).collect()
}

/// A task that never was, and its user.
struct Task {
    user: Uuid,
    id: Uuid,
}

impl Task {
    fn new() -> Self {
        Self { user: Uuid::new_v4(), id: Uuid::new_v4() }
    }

    /// The statements that make it, marked.
    fn insert(&self, mark: &str, title: &str, description: &str) -> String {
        let Self { user, id } = self;
        format!(
            "INSERT INTO users (id, email, password_hash) VALUES ('{user}', '{user}@{mark}.invalid', 'x'); \
             INSERT INTO tasks (id, user_id, title, description, metadata) \
             VALUES ('{id}', '{user}', '{title}', '{description}', '{{\"{mark}\": \"{title}\"}}')"
        )
    }

    /// The statements that make it, change it and take it away again.
    fn come_and_go(&self, mark: &str) -> String {
        let Self { user, id } = self;
        format!(
            "{}; UPDATE tasks SET status = 'done' WHERE id = '{id}'; DELETE FROM tasks WHERE id = '{id}'; \
             DELETE FROM users WHERE id = '{user}'",
            self.insert(mark, "x", "")
        )
    }
}

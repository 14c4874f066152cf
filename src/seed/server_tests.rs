//! Data sets on a real server.

use std::fs;
use std::sync::{Arc, Mutex};

use sqlx::postgres::{PgConnectOptions, PgConnection, PgListener};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};
use tempfile::TempDir;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::event::{Event, Events, Unit};
use crate::pg::test_server;

const MIGRATIONS: [&str; 3] = [
    include_str!("../../migrations/20260101000001_users.sql"),
    include_str!("../../migrations/20260101000002_tasks.sql"),
    include_str!("../../migrations/20260101000003_task_notifications.sql"),
];

/// An empty TaskFlow database; `None` where there is no PostgreSQL.
async fn taskflow() -> Option<PgConnectOptions> {
    let options = test_server::database().await?.options();
    let mut connection = connect(&options).await;
    for migration in MIGRATIONS {
        connection.execute(migration).await.unwrap();
    }
    connection.close().await.unwrap();
    Some(options)
}

async fn connect(options: &PgConnectOptions) -> PgConnection {
    PgConnection::connect_with(options).await.unwrap()
}

async fn number(connection: &mut PgConnection, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(connection).await.unwrap()
}

async fn counts(connection: &mut PgConnection) -> (i64, i64) {
    let users = number(connection, "SELECT count(*) FROM users").await;
    (users, number(connection, "SELECT count(*) FROM tasks").await)
}

fn built_in(name: &str) -> DataSet {
    DataSet::load(name, std::path::Path::new("/nonexistent")).unwrap().unwrap()
}

/// A project whose `seeds/own` folder holds `files`.
fn own(files: &[(&str, &str)]) -> (TempDir, DataSet) {
    let project = tempfile::tempdir().unwrap();
    fs::create_dir_all(project.path().join("seeds/own")).unwrap();
    for (name, text) in files {
        fs::write(project.path().join("seeds/own").join(name), text).unwrap();
    }
    let dataset = DataSet::load("own", project.path()).unwrap().unwrap();
    (project, dataset)
}

async fn apply_quietly(connection: &mut PgConnection, dataset: &DataSet, mode: Mode) -> Result<SeedOutcome, Error> {
    apply(connection, dataset, mode, &Events::none()).await
}

#[tokio::test]
async fn small_fills_the_schema_once_and_tells_its_progress() {
    let Some(options) = taskflow().await else { return };
    let mut connection = connect(&options).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let events = Events::to(move |event| sink.lock().unwrap().push(event));
    let small = built_in("small");

    let outcome = apply(&mut connection, &small, Mode::OnlyIfEmpty, &events).await.unwrap();
    assert!(outcome.applied && outcome.rows_per_second > 0.0, "{outcome:?}");
    assert_eq!((outcome.users, outcome.tasks, outcome.rows), (10, 50, 60));
    assert_eq!(counts(&mut connection).await, (10, 50));
    let done: Vec<(String, u64, Option<u64>)> = seen.lock().unwrap().iter().filter_map(finished_progress).collect();
    assert_eq!(done, [("users".to_owned(), 10, Some(10)), ("tasks".to_owned(), 50, Some(50))]);

    let again = apply_quietly(&mut connection, &small, Mode::OnlyIfEmpty).await.unwrap();
    assert!(!again.applied && again.rows == 0, "{again:?}");
    assert_eq!(counts(&mut connection).await, (10, 50));

    let refusal = apply_quietly(&mut connection, &small, Mode::RefuseIfNotEmpty).await.unwrap_err();
    assert_eq!(refusal.kind(), ErrorKind::Refused);
    assert!(refusal.hints()[0].contains("--append") && refusal.hints()[1].contains("--replace"), "{refusal:?}");
    assert_eq!(counts(&mut connection).await, (10, 50));
}

fn finished_progress(event: &Event) -> Option<(String, u64, Option<u64>)> {
    match event {
        Event::Progress(progress) if progress.done => {
            assert_eq!(progress.unit, Unit::Rows);
            Some((progress.label.clone(), progress.position, progress.total))
        }
        _ => None,
    }
}

#[tokio::test]
async fn rows_arrive_as_they_were_made() {
    let Some(options) = taskflow().await else { return };
    let mut connection = connect(&options).await;
    apply_quietly(&mut connection, &built_in("demo"), Mode::OnlyIfEmpty).await.unwrap();
    let broken = "SELECT count(*) FROM tasks JOIN users ON users.id = user_id \
                  WHERE tasks.created_at <= users.created_at OR due_date <= tasks.created_at \
                     OR tasks.created_at >= '2026-01-01T00:00:00Z'";
    assert_eq!(number(&mut connection, broken).await, 0);
    let urgent = r#"SELECT count(*) FROM tasks WHERE metadata @> '{"priority": "urgent"}'"#;
    assert!(number(&mut connection, urgent).await > 0);
    let search = "to_tsvector('english', coalesce(title, '') || ' ' || coalesce(description, '')) \
                  @@ websearch_to_tsquery('english', 'invoices')";
    assert!(number(&mut connection, &format!("SELECT count(*) FROM tasks WHERE {search}")).await > 0);
    let content = "SELECT md5(string_agg(tasks::text, '|' ORDER BY id)) FROM tasks";
    let digest: String = sqlx::query_scalar(content).fetch_one(&mut connection).await.unwrap();
    apply_quietly(&mut connection, &built_in("demo"), Mode::Replace).await.unwrap();
    let again: String = sqlx::query_scalar(content).fetch_one(&mut connection).await.unwrap();
    assert_eq!(digest, again);
}

#[tokio::test]
async fn indexes_serve_search_containment_and_the_foreign_key() {
    let Some(options) = taskflow().await else { return };
    let mut connection = connect(&options).await;
    apply_quietly(&mut connection, &built_in("demo"), Mode::OnlyIfEmpty).await.unwrap();
    connection.execute("SET enable_seqscan = off").await.unwrap();
    for (index, condition) in [
        ("tasks_user_id_idx", "user_id = gen_random_uuid()"),
        ("tasks_metadata_idx", r#"metadata @> '{"priority": "urgent"}'"#),
        (
            "tasks_search_idx",
            "to_tsvector('english', coalesce(title, '') || ' ' || coalesce(description, '')) @@ to_tsquery('english', 'invoice')",
        ),
    ] {
        let explain = format!("EXPLAIN SELECT 1 FROM tasks WHERE {condition}");
        let plan: Vec<String> = sqlx::query_scalar(AssertSqlSafe(explain)).fetch_all(&mut connection).await.unwrap();
        assert!(plan.iter().any(|line| line.contains(index)), "{index}: {plan:?}");
    }
}

#[tokio::test]
async fn append_continues_and_replace_starts_over() {
    let Some(options) = taskflow().await else { return };
    let mut connection = connect(&options).await;
    let small = built_in("small");
    for round in 1..=3 {
        apply_quietly(&mut connection, &small, Mode::Append).await.unwrap();
        assert_eq!(counts(&mut connection).await, (10 * round, 50 * round));
    }
    // A gap in the sequence is no reason to use a number twice.
    connection.execute("DELETE FROM users WHERE email LIKE '%5@example%'").await.unwrap();
    apply_quietly(&mut connection, &small, Mode::Append).await.unwrap();
    assert_eq!(number(&mut connection, "SELECT count(*) FROM users").await, 37);

    apply_quietly(&mut connection, &small, Mode::Replace).await.unwrap();
    assert_eq!(counts(&mut connection).await, (10, 50));
}

#[tokio::test]
async fn replace_refuses_to_empty_what_others_refer_to() {
    let Some(options) = taskflow().await else { return };
    let mut connection = connect(&options).await;
    apply_quietly(&mut connection, &built_in("small"), Mode::OnlyIfEmpty).await.unwrap();
    let comments = "CREATE TABLE comments (task_id uuid REFERENCES tasks); INSERT INTO comments SELECT id FROM tasks";
    connection.execute(comments).await.unwrap();
    let error = apply_quietly(&mut connection, &built_in("small"), Mode::Replace).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert_eq!(counts(&mut connection).await, (10, 50));
}

#[tokio::test]
async fn two_at_once_add_rows_once() {
    let Some(options) = taskflow().await else { return };
    let demo = built_in("demo");
    let seeders = (0..4).map(|_| {
        let (options, demo) = (options.clone(), demo.clone());
        tokio::spawn(async move {
            let mut connection = connect(&options).await;
            apply_quietly(&mut connection, &demo, Mode::OnlyIfEmpty).await.unwrap().applied
        })
    });
    let mut applied = 0;
    for seeder in seeders.collect::<Vec<_>>() {
        applied += u32::from(seeder.await.unwrap());
    }
    assert_eq!(applied, 1);
    assert_eq!(counts(&mut connect(&options).await).await, (100, 1_000));
}

#[tokio::test]
async fn a_seeder_waits_for_the_one_before_it_and_says_so() {
    let Some(options) = taskflow().await else { return };
    let mut first = connect(&options).await;
    let mut holder = first.begin().await.unwrap();
    let lock = format!("SELECT pg_advisory_xact_lock({})", i64::from_be_bytes(*b"tfd-seed"));
    holder.execute(AssertSqlSafe(lock)).await.unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let events = Events::to(move |event| drop(tell.send(event)));
    let mut second = connect(&options).await;
    let small = built_in("small");
    let waiting = apply(&mut second, &small, Mode::OnlyIfEmpty, &events);
    let release = async {
        let note = told.recv().await.unwrap();
        assert!(matches!(&note, Event::Note(text) if text.contains("Waiting")), "{note:?}");
        holder.execute("INSERT INTO users (email, password_hash) VALUES ('a@b', '')").await.unwrap();
        holder.commit().await.unwrap();
    };
    let (outcome, ()) = tokio::join!(waiting, release);
    assert!(!outcome.unwrap().applied, "the rows of the first seeder were not seen");
}

#[tokio::test]
async fn a_seeder_that_goes_away_leaves_nothing() {
    let Some(options) = taskflow().await else { return };
    let mut watcher = connect(&options).await;
    let demo = built_in("demo").with_counts(None, Some(100_000)).unwrap();
    // Cancelled by dropping the future in the middle of the tasks, as Ctrl-C does.
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let events = Events::to(move |event| match event {
        Event::Progress(progress) if progress.label == "tasks" && progress.position > 5_000 => drop(tell.send(())),
        _ => {}
    });
    let mut connection = connect(&options).await;
    tokio::select! {
        outcome = apply(&mut connection, &demo, Mode::OnlyIfEmpty, &events) => panic!("it came to its end: {outcome:?}"),
        _ = told.recv() => {}
    }
    drop(connection);
    wait_until_alone(&mut watcher).await;
    assert_eq!(counts(&mut watcher).await, (0, 0));

    // Killed at the server, in the middle of the tasks.
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let events = Events::to(move |event| match event {
        Event::Progress(progress) if progress.label == "tasks" && progress.position > 5_000 => drop(tell.send(())),
        _ => {}
    });
    let mut connection = connect(&options).await;
    let kill = async {
        told.recv().await.unwrap();
        let others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                      WHERE datname = current_database() AND pid <> pg_backend_pid()";
        watcher.execute(others).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(apply(&mut connection, &demo, Mode::OnlyIfEmpty, &events), kill);
    outcome.unwrap_err();
    assert_eq!(counts(&mut watcher).await, (0, 0));
    let mut connection = connect(&options).await;
    assert!(apply_quietly(&mut connection, &built_in("small"), Mode::OnlyIfEmpty).await.unwrap().applied);
}

/// Waits until no other session is in the database, so that what it did is undone.
async fn wait_until_alone(connection: &mut PgConnection) {
    let others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()";
    let deadline = std::time::Instant::now() + std::time::Duration::from_mins(1);
    while number(connection, others).await > 0 {
        assert!(std::time::Instant::now() < deadline, "the session goes on");
    }
}

#[tokio::test]
async fn notifications_are_silent_while_seeding_and_heard_afterwards() {
    let Some(options) = taskflow().await else { return };
    let pool = sqlx::postgres::PgPoolOptions::new().max_connections(1).connect_with(options.clone()).await.unwrap();
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("task_changes").await.unwrap();
    let mut connection = connect(&options).await;
    apply_quietly(&mut connection, &built_in("small"), Mode::OnlyIfEmpty).await.unwrap();
    // On the same connection, so that the silence is seen to end with the load.
    let changed: String = sqlx::query_scalar(
        "UPDATE tasks SET status = 'blocked' WHERE id = (SELECT min(id::text)::uuid FROM tasks) RETURNING id::text",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let heard: serde_json::Value = serde_json::from_str(listener.recv().await.unwrap().payload()).unwrap();
    assert_eq!((&heard["op"], &heard["id"], &heard["status"]), (&"update".into(), &changed.into(), &"blocked".into()));
    connection
        .execute("DELETE FROM tasks WHERE status = 'blocked' AND id::text = (SELECT min(id::text) FROM tasks)")
        .await
        .unwrap();
    let heard: serde_json::Value = serde_json::from_str(listener.recv().await.unwrap().payload()).unwrap();
    assert_eq!((&heard["op"], heard["user_id"].is_string()), (&"delete".into(), true));
}

#[tokio::test]
async fn a_database_without_the_tables_is_explained() {
    let Some(options) = test_server::database().await.map(|login| login.options()) else { return };
    let mut connection = connect(&options).await;
    for mode in [Mode::OnlyIfEmpty, Mode::RefuseIfNotEmpty, Mode::Append, Mode::Replace] {
        let error = apply_quietly(&mut connection, &built_in("small"), mode).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{mode:?}");
        assert!(error.hints()[0].contains("tfdev migrate run"), "{error:?}");
    }
}

#[tokio::test]
async fn sql_files_run_in_order_once_and_in_one_transaction() {
    let Some(options) = test_server::database().await.map(|login| login.options()) else { return };
    let mut connection = connect(&options).await;
    connection
        .execute(
            "CREATE TABLE countries (code text PRIMARY KEY); INSERT INTO countries VALUES ('FR'); \
                  CREATE TABLE cities (name text, country text REFERENCES countries)",
        )
        .await
        .unwrap();
    let first = "-- tfdev: keep countries\nSET search_path = pg_catalog;\n\
                 COPY public.cities (name, country) FROM stdin;\nLyon\tFR\nNice\tFR\n\\.\n";
    let second = "INSERT INTO cities SELECT upper(name), country FROM cities;";
    let (_project, dataset) = own(&[("02_more.sql", second), ("01_cities.sql", first)]);

    let outcome = apply_quietly(&mut connection, &dataset, Mode::OnlyIfEmpty).await.unwrap();
    assert_eq!((outcome.applied, outcome.rows), (true, 4));
    assert_eq!(number(&mut connection, "SELECT count(*) FROM cities").await, 4);
    assert!(!apply_quietly(&mut connection, &dataset, Mode::OnlyIfEmpty).await.unwrap().applied);
    let refusal = apply_quietly(&mut connection, &dataset, Mode::RefuseIfNotEmpty).await.unwrap_err();
    assert!(refusal.to_string().contains("`public.cities` has rows"), "{refusal}");
    apply_quietly(&mut connection, &dataset, Mode::Replace).await.unwrap();
    assert_eq!(number(&mut connection, "SELECT count(*) FROM cities").await, 4);
    assert_eq!(number(&mut connection, "SELECT count(*) FROM countries").await, 1, "a kept table was emptied");
}

#[tokio::test]
async fn rows_that_came_with_migrations_count_unless_they_are_kept() {
    let Some(options) = test_server::database().await.map(|login| login.options()) else { return };
    let mut connection = connect(&options).await;
    connection.execute("CREATE TABLE roles AS SELECT 'admin' AS name; CREATE TABLE people (name text)").await.unwrap();
    let (_project, dataset) = own(&[("1.sql", "INSERT INTO people VALUES ('Ada')")]);
    assert!(!apply_quietly(&mut connection, &dataset, Mode::OnlyIfEmpty).await.unwrap().applied);
    let (_project, dataset) = own(&[("1.sql", "-- tfdev: keep roles\nINSERT INTO people VALUES ('Ada')")]);
    assert!(apply_quietly(&mut connection, &dataset, Mode::OnlyIfEmpty).await.unwrap().applied);
    let (_project, dataset) = own(&[("1.sql", "SELECT 1;\n-- tfdev: keep nothing")]);
    let error = apply_quietly(&mut connection, &dataset, Mode::OnlyIfEmpty).await.unwrap_err();
    assert_eq!(error.to_string(), "`seeds/own/1.sql:2`: there is no table `nothing` to keep");
}

#[tokio::test]
async fn a_broken_sql_file_names_its_line_and_leaves_nothing() {
    let Some(options) = test_server::database().await.map(|login| login.options()) else { return };
    let mut connection = connect(&options).await;
    connection.execute("CREATE TABLE t (a int PRIMARY KEY)").await.unwrap();
    for (text, line, message) in [
        ("INSERT INTO t VALUES (1);\n\nINSERT INTO t\nVALUES ('größe',\n nonsense);", 5, "column \"nonsense\""),
        ("INSERT INTO t VALUES (1);\nSELECT 'é', 1;\nINSERT INTO t VALUES (1);", 3, "Key (a)=(1) already exists"),
        ("INSERT INTO t VALUES (1);\nCOPY t FROM stdin;\n2\nx\n\\.\n", 4, "invalid input syntax for type integer"),
        ("SELECT 1;\n  VACUUM t;", 2, "VACUUM cannot run inside a transaction block"),
        ("INSERT INTO t VALUES (1);\nDO $$ BEGIN\nCOMMIT; END $$;", 2, "invalid transaction termination"),
        ("SELEC 1;", 1, "syntax error"),
    ] {
        let (_project, dataset) = own(&[("x.sql", text)]);
        let error = apply_quietly(&mut connection, &dataset, Mode::OnlyIfEmpty).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{error}");
        assert!(error.to_string().starts_with(&format!("`seeds/own/x.sql:{line}`: ")), "{error}");
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(number(&mut connection, "SELECT count(*) FROM t").await, 0, "{text}");
    }
}

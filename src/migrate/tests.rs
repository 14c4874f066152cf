use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};

use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AssertSqlSafe, Executor};

use super::*;
use crate::event::Event;
use crate::pg::test_server::{self, session};

/// A fresh database and a folder of migrations.
struct Case {
    login: Login,
    folder: tempfile::TempDir,
    events: Events,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Case {
    async fn new(files: &[(&str, &str)]) -> Option<Self> {
        let login = test_server::database().await?;
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let heard = Arc::clone(&warnings);
        let events = Events::to(move |event| {
            if let Event::Warning(text) | Event::Note(text) = event {
                heard.lock().unwrap().push(text);
            }
        });
        let case = Self { login, folder: tempfile::tempdir().unwrap(), events, warnings };
        for (name, text) in files {
            case.write(name, text);
        }
        Some(case)
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    fn source(&self) -> Source {
        Source::folder(self.path()).unwrap()
    }

    async fn run_with(&self, options: &Options) -> Result<MigrateOutcome> {
        run(&self.login, &self.source(), options, &self.events).await
    }

    async fn run(&self) -> Result<MigrateOutcome> {
        self.run_with(&Options::default()).await
    }

    fn warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap())
    }

    async fn text(&self, query: &str) -> String {
        let mut connection = session(&self.login).await;
        sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&mut connection).await.unwrap()
    }

    async fn states(&self) -> Vec<(i64, MigrationState)> {
        let mut connection = session(&self.login).await;
        let status = status(&mut connection, &self.source()).await.unwrap();
        status.rows.iter().map(|row| (row.version, row.state)).collect()
    }

    /// sqlx's own migrator on the same folder.
    async fn sqlx(&self) -> Result<(), MigrateError> {
        let mut connection = session(&self.login).await;
        Migrator::new(self.path()).await?.run(&mut connection).await
    }
}

const TWO: &[(&str, &str)] =
    &[("1_users.sql", "CREATE TABLE users (id int);\n"), ("2_tasks.sql", "CREATE TABLE tasks (id int);\n")];

/// All that a person gets to read.
fn all_text(error: &Error) -> String {
    format!("{error}\n{}\n{}", error.causes().join("\n"), error.hints().join("\n"))
}

fn versions(outcome: &MigrateOutcome) -> Vec<i64> {
    outcome.applied_now.iter().map(|one| one.version).collect()
}

#[tokio::test]
async fn a_second_run_is_a_no_op_and_sqlx_agrees() {
    let Some(case) = Case::new(TWO).await else { return };
    assert_eq!(case.states().await, [(1, MigrationState::Pending), (2, MigrationState::Pending)]);
    let first = case.run().await.unwrap();
    assert_eq!((versions(&first), first.applied, first.total), (vec![1, 2], 2, 2));
    case.sqlx().await.unwrap();

    let log = || test_server::log(&case.login);
    let statements = || log().matches("LOG:  statement:").count() + log().matches("LOG:  execute").count();
    let before = statements();
    assert!(before > 2, "the filter finds statements");
    let second = case.run().await.unwrap();
    assert_eq!((versions(&second), second.applied), (vec![], 2));
    assert_eq!(statements() - before, 2, "two queries when there is nothing to do");
    assert!(!log().contains("ERROR:"), "no error for a table that is not there yet");
    assert!(case.warnings().is_empty());
}

#[tokio::test]
async fn what_sqlx_applied_is_known_and_continued() {
    let Some(case) = Case::new(TWO).await else { return };
    case.sqlx().await.unwrap();
    assert_eq!(versions(&case.run().await.unwrap()), [0_i64; 0]);
    case.write("3_more.up.sql", "CREATE TABLE more (id int)");
    case.write("3_more.down.sql", "DROP TABLE more");
    assert_eq!(versions(&case.run().await.unwrap()), [3]);
    case.sqlx().await.unwrap();
    let mut connection = session(&case.login).await;
    Migrator::new(case.path()).await.unwrap().undo(&mut connection, 2).await.unwrap();
    assert_eq!(case.states().await[2], (3, MigrationState::Pending));
}

#[tokio::test]
async fn the_built_in_schema_applies_for_an_ordinary_role() {
    let Some(login) = test_server::database().await else { return };
    let mut admin = session(&login).await;
    let setup = format!("CREATE ROLE app LOGIN; ALTER DATABASE {} OWNER TO app", login.database);
    admin.execute(AssertSqlSafe(setup)).await.unwrap();
    crate::pg::scram::set_password(&mut admin, "app", "secret").await.unwrap();
    let app = Login { user: "app".into(), password: "secret".into(), ..login };
    let source = Source::embedded();
    let outcome = run(&app, &source, &Options::default(), &Events::none()).await.unwrap();
    assert_eq!((outcome.applied, outcome.total), (source.len(), source.len()));
    let status = status(&mut session(&app).await, &source).await.unwrap();
    assert_eq!((status.applied, status.total), (source.len(), source.len()));
    assert!(status.rows.iter().all(|row| row.state == MigrationState::Applied && row.installed_on.is_some()));
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(json["rows"][0]["state"], "applied");
    assert!(json["rows"][0]["installed_on"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{json}");
}

#[tokio::test]
async fn a_role_that_may_not_create_tables_is_told_so() {
    let Some(case) = Case::new(TWO).await else { return };
    let mut admin = session(&case.login).await;
    admin.execute("CREATE ROLE guest LOGIN").await.unwrap();
    crate::pg::scram::set_password(&mut admin, "guest", "secret").await.unwrap();
    let guest = Login { user: "guest".into(), password: "secret".into(), ..case.login.clone() };
    let error = run(&guest, &case.source(), &Options::default(), &Events::none()).await.unwrap_err();
    assert!(all_text(&error).contains("GRANT CREATE"), "{}", all_text(&error));
}

#[tokio::test]
async fn changed_line_endings_are_recognised_both_ways() {
    let Some(case) = Case::new(TWO).await else { return };
    case.run().await.unwrap();
    case.write("1_users.sql", "CREATE TABLE users (id int);\r\n");
    case.write("3_crlf.sql", "CREATE TABLE crlf (id int);\r\n");
    assert_eq!(versions(&case.run().await.unwrap()), [3]);
    let warnings = case.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("1_users.sql") && warnings[0].contains("*.sql text eol=lf"), "{warnings:?}");
    assert!(matches!(case.sqlx().await, Err(MigrateError::VersionMismatch(1))), "sqlx minds it");

    case.write("3_crlf.sql", "CREATE TABLE crlf (id int);\n");
    case.run().await.unwrap();
    assert_eq!(case.warnings().len(), 2, "said also when nothing is pending");
    let states: Vec<_> = case.states().await.into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, [MigrationState::LineEndings, MigrationState::Applied, MigrationState::LineEndings]);
}

#[tokio::test]
async fn a_changed_file_is_refused_with_what_to_do() {
    let Some(case) = Case::new(TWO).await else { return };
    case.run().await.unwrap();
    case.write("1_users.sql", "CREATE TABLE users (id bigint);\n");
    case.write("3_more.sql", "CREATE TABLE more (id int)");
    let error = case.run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    let text = all_text(&error);
    for part in ["1_users.sql", "version 1", "tfdev migrate new", "tfdev destroy"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(case.states().await[0], (1, MigrationState::Changed));
    assert_eq!(case.states().await[2], (3, MigrationState::Pending), "nothing else was applied");
}

#[tokio::test]
async fn a_version_without_a_file_is_refused_by_name() {
    let Some(case) = Case::new(TWO).await else { return };
    case.run().await.unwrap();
    fs::remove_file(case.path().join("2_tasks.sql")).unwrap();
    let error = case.run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.to_string().contains("`2 tasks`"), "{error}");
    let status = status(&mut session(&case.login).await, &case.source()).await.unwrap();
    assert_eq!(status.rows[1].state, MigrationState::Missing);
    assert_eq!((status.applied, status.total), (1, 1));
}

#[tokio::test]
async fn a_row_that_is_marked_as_failed_is_refused() {
    let Some(case) = Case::new(TWO).await else { return };
    case.run().await.unwrap();
    session(&case.login).await.execute("UPDATE _sqlx_migrations SET success = false WHERE version = 2").await.unwrap();
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("`2 tasks`") && text.contains("DELETE FROM _sqlx_migrations WHERE version = 2"), "{text}");
    assert_eq!(case.states().await[1], (2, MigrationState::Failed));
}

#[tokio::test]
async fn an_older_version_is_applied_with_a_warning_or_refused_when_strict() {
    let Some(case) = Case::new(&[("5_late.sql", "CREATE TABLE late (id int)")]).await else { return };
    case.run().await.unwrap();
    assert!(case.warnings().is_empty());
    case.write("3_early.sql", "CREATE TABLE early (id int)");
    let strict = Options { strict: true, ..Options::default() };
    let error = case.run_with(&strict).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("3_early.sql") && error.to_string().contains("older than 5"), "{error}");
    assert_eq!(case.states().await[0], (3, MigrationState::Pending));

    assert_eq!(versions(&case.run().await.unwrap()), [3]);
    let warnings = case.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("`3 early` is older than 5"), "{warnings:?}");
    assert_eq!(versions(&case.run_with(&strict).await.unwrap()), [0_i64; 0], "applied ones are in no one's way");
}

#[tokio::test]
async fn a_failure_names_file_line_and_state_and_a_mended_file_goes_on() {
    let Some(case) = Case::new(TWO).await else { return };
    case.write("3_bad.sql", "CREATE TABLE half (id int);\n-- ä\nCREATE TABLE no (id strange_type);\n");
    case.write("4_never.sql", "CREATE TABLE never (id int)");
    let error = case.run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    let text = all_text(&error);
    for part in ["3_bad.sql`, line 3 ", "\"strange_type\"", "42704", "nothing of this", "`1 users`, `2 tasks`"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert_eq!(case.text("SELECT coalesce(to_regclass('half')::text, 'none')").await, "none");
    assert_eq!(case.states().await[2..], [(3, MigrationState::Pending), (4, MigrationState::Pending)]);

    // The lock went with the failed run's connection: the next one need not wait.
    case.write("3_bad.sql", "CREATE TABLE half (id int);");
    let began = Instant::now();
    let soon = Options { lock_timeout: Duration::from_secs(5), ..Options::default() };
    assert_eq!(versions(&case.run_with(&soon).await.unwrap()), [3, 4]);
    assert!(began.elapsed() < Duration::from_secs(10));
    case.sqlx().await.unwrap();
}

#[tokio::test]
async fn the_servers_detail_and_hint_are_passed_on() {
    let Some(case) =
        Case::new(&[("1_a.sql", "CREATE TABLE one (id int UNIQUE); INSERT INTO one VALUES (7), (7)")]).await
    else {
        return;
    };
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("23505") && text.contains("Key (id)=(7) already exists"), "{text}");
    case.write("1_a.sql", "CREATE TABLE one (long_name int); SELECT long_nam FROM one");
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("the server says: Perhaps you meant"), "{text}");
}

#[tokio::test]
async fn failures_that_come_from_the_transaction_say_how_to_mend_them() {
    let index = "CREATE TABLE a (id int);\nCREATE INDEX CONCURRENTLY a_id ON a (id);\n";
    let Some(case) = Case::new(&[("1_a.sql", index)]).await else { return };
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("make `-- no-transaction` the first line"), "{text}");
    case.write("1_a.sql", &format!("-- no-transaction\n{index}"));
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("sent as a whole") && text.contains("outside a transaction"), "{text}");

    case.write("1_a.sql", "SELECT set_config('search_path', '', false)");
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("changes `search_path`"), "{text}");
    case.write(
        "1_a.sql",
        "CREATE TABLE b (id int PRIMARY KEY, up int REFERENCES b DEFERRABLE INITIALLY DEFERRED);\n\
         INSERT INTO b VALUES (1, 2)",
    );
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("when it was noted and committed") && text.contains("23503"), "{text}");
    case.write("1_a.sql", "CREATE TABLE kept (id int);\nCOMMIT;\nSELECT nothing_such");
    let text = all_text(&case.run().await.unwrap_err());
    assert!(text.contains("line 3") && text.contains("contains COMMIT"), "{text}");
}

#[tokio::test]
async fn an_index_that_was_cut_off_is_named_with_its_mending() {
    let Some(case) = Case::new(&[
        ("1_a.sql", "CREATE TABLE \"Big\" AS SELECT generate_series(1, 10) AS id"),
        ("2_index.sql", "-- no-transaction\nCREATE INDEX CONCURRENTLY \"Big_id\" ON \"Big\" (id);\n"),
    ])
    .await
    else {
        return;
    };
    // A transaction that wrote the table holds the index up; meanwhile the build is cancelled, as by Ctrl-C in psql.
    fs::rename(case.path().join("2_index.sql"), case.path().join("later")).unwrap();
    case.run().await.unwrap();
    fs::rename(case.path().join("later"), case.path().join("2_index.sql")).unwrap();
    let mut writer = session(&case.login).await;
    writer.execute("BEGIN; INSERT INTO \"Big\" VALUES (11)").await.unwrap();
    let mut admin = session(&case.login).await;
    let cancel = async {
        loop {
            let cancelled: i64 = sqlx::query_scalar(
                "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity \
                 WHERE query LIKE '-- no-transaction%' AND wait_event_type = 'Lock' AND datname = current_database()",
            )
            .fetch_one(&mut admin)
            .await
            .unwrap();
            if cancelled > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let (result, ()) = tokio::join!(case.run(), cancel);
    let error = result.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "being cancelled is not the file's fault");
    let text = all_text(&error);
    assert!(text.contains("57014") && text.contains("outside a transaction"), "{text}");
    assert!(text.contains("run `DROP INDEX \"Big_id\"`"), "{text}");
    assert_eq!(case.states().await[1], (2, MigrationState::Pending));

    // Running it again says the same; after the advice it goes through.
    writer.execute("ROLLBACK").await.unwrap();
    let again = all_text(&case.run().await.unwrap_err());
    assert!(again.contains("already exists") && again.contains("DROP INDEX \"Big_id\""), "{again}");
    case.write(
        "2_index.sql",
        "-- no-transaction\nCREATE INDEX CONCURRENTLY IF NOT EXISTS \"Big_id\" ON \"Big\" (id);\n",
    );
    case.run().await.unwrap();
    let warnings = case.warnings();
    assert!(warnings.len() == 1 && warnings[0].contains("DROP INDEX \"Big_id\""), "{warnings:?}");
}

#[tokio::test]
async fn two_runs_at_once_apply_each_migration_once_without_a_deadlock() {
    let Some(case) = Case::new(TWO).await else { return };
    case.write("3_slow.sql", "CREATE TABLE slow (id int); SELECT pg_sleep(0.3)");
    // Waits for every older snapshot in the database, such as one of a session that waits for the lock.
    case.write("4_index.sql", "-- no-transaction\nCREATE INDEX CONCURRENTLY users_id ON users (id)");
    let (one, two, three) = tokio::join!(case.run(), case.run(), case.run());
    let outcomes = [one.unwrap(), two.unwrap(), three.unwrap()];
    let mut applied: Vec<i64> = outcomes.iter().flat_map(versions).collect();
    applied.sort_unstable();
    assert_eq!(applied, [1, 2, 3, 4]);
    assert!(outcomes.iter().all(|outcome| outcome.applied == 4));
    assert!(!test_server::log(&case.login).contains("deadlock"));
}

#[tokio::test]
async fn a_lock_that_stays_taken_names_its_holder() {
    let Some(case) = Case::new(TWO).await else { return };
    let login = Login { application_name: "someone-else".into(), ..case.login.clone() };
    let mut other = session(&login).await;
    // sqlx's own lock, so the key is proven to be the same one.
    Migrate::lock(&mut other).await.unwrap();
    let (pid,): (i32,) = sqlx::query_as("SELECT pg_backend_pid()").fetch_one(&mut other).await.unwrap();

    let began = Instant::now();
    let options = Options { lock_timeout: Duration::from_millis(1300), ..Options::default() };
    let error = case.run_with(&options).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    let text = all_text(&error);
    for part in [&format!("process {pid} of `someone-else`"), "connected since 20", "pg_terminate_backend"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    assert!(began.elapsed() >= Duration::from_millis(1300) && began.elapsed() < Duration::from_secs(5));
    let notes = case.warnings();
    assert!(notes.len() == 1 && notes[0].contains("waiting for process"), "{notes:?}");
    assert_eq!(case.states().await[0], (1, MigrationState::Pending));

    let release = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        Migrate::unlock(&mut other).await.unwrap();
    };
    let (outcome, ()) = tokio::join!(case.run(), release);
    assert_eq!(versions(&outcome.unwrap()), [1, 2], "it goes on as soon as the lock is free");
}

#[tokio::test]
async fn a_run_that_is_dropped_leaves_nothing_half_applied_and_no_lock() {
    let Some(case) = Case::new(TWO).await else { return };
    case.write("3_slow.sql", "CREATE TABLE half (id int);\nSELECT pg_sleep(60);\n");
    let mut admin = session(&case.login).await;
    let in_the_middle = async {
        loop {
            let sleeping: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()",
            )
            .fetch_one(&mut admin)
            .await
            .unwrap();
            if sleeping > 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        result = case.run() => panic!("{result:?}"),
        () = in_the_middle => {}
    }
    case.write("3_slow.sql", "CREATE TABLE half (id int);\n");
    let soon = Options { lock_timeout: Duration::from_secs(10), ..Options::default() };
    assert_eq!(versions(&case.run_with(&soon).await.unwrap()), [3], "1 and 2 were kept, 3 was undone as a whole");
}

#[tokio::test]
async fn a_server_that_goes_away_is_no_bad_input() {
    let Some(case) = Case::new(&[("1_a.sql", "SELECT pg_terminate_backend(pg_backend_pid())")]).await else { return };
    let error = case.run().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
    let wrong = Login { password: "wrong".into(), ..case.login.clone() };
    let error = run(&wrong, &case.source(), &Options::default(), &Events::none()).await.unwrap_err();
    assert!(error.to_string().contains("does not accept the role or its password"), "{error}");
}

/// Callers spawn these, or box them as `Send` behind the engine's trait.
#[test]
fn the_futures_may_move_between_threads() {
    fn movable<T: Send>(_: &T) {}
    let login = Login {
        host: "127.0.0.1".into(),
        port: 1,
        database: String::new(),
        user: String::new(),
        password: String::new(),
        tls: crate::pg::Tls::Disable,
        application_name: String::new(),
    };
    let (source, options, events) = (Source::embedded(), Options::default(), Events::none());
    movable(&run(&login, &source, &options, &events));
    movable(&crate::pg::wait_ready(&login, Instant::now(), || async { Ok(()) }));
}

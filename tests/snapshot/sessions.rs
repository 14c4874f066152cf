//! What programs see that use the database meanwhile: their sessions are closed, and new ones are let in.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sqlx::{Connection, PgConnection};

use super::{automatic, rows, snapshot, wait_for_order};
use crate::support::{Session, TestEnv, finish, on_every_engine, one, query, start, until};

on_every_engine!(
    a_pool_that_reconnects_in_a_tight_loop_is_never_refused_a_login,
    an_open_transaction_is_closed_and_told,
    a_schema_that_changes_just_before_it_is_kept_comes_back,
);

/// How many programs try to log in without a pause.
const PROGRAMS: usize = 4;

/// The longest that a login may take or be refused. The swap takes milliseconds, a copy of the small database a tenth of
/// a second; the rest is for a machine that is busy with other tests.
const LONGEST: Duration = Duration::from_secs(4);

/// What a program that logs in again and again has seen.
#[derive(Default)]
struct Seen {
    logins: usize,
    refused: Vec<String>,
    longest: Duration,
}

/// Logs in, asks for a row and does it again, until it is told to stop.
fn reconnect(url: &str, stop: &AtomicBool, seen: &Mutex<Seen>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        let login = runtime.block_on(PgConnection::connect(url));
        match login {
            Ok(mut session) => {
                let now = Instant::now();
                let mut seen = seen.lock().unwrap();
                seen.logins += 1;
                seen.longest = seen.longest.max(now - last);
                drop(seen);
                // It may be closed while it asks.
                let _ = runtime.block_on(sqlx::raw_sql("SELECT count(*) FROM users").execute(&mut session));
                last = Instant::now();
            }
            Err(sqlx::Error::Database(error)) => {
                // A session that had logged in when it was closed is no refusal.
                if error.code().as_deref() != Some("57P01") {
                    seen.lock().unwrap().refused.push(error.to_string());
                }
            }
            // So is one whose end came in the middle of its first words.
            Err(_) => {}
        }
    }
}

fn a_pool_that_reconnects_in_a_tight_loop_is_never_refused_a_login(env: &TestEnv) {
    env.up();
    let before = rows(env);
    let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Seen::default())));
    let programs: Vec<_> = (0..PROGRAMS)
        .map(|_| {
            let (url, stop, seen) = (env.url(), stop.clone(), seen.clone());
            std::thread::spawn(move || reconnect(&url, &stop, &seen))
        })
        .collect();
    for round in 0..3 {
        let name = format!("round {round}");
        snapshot(env, &["create", &name]);
        snapshot(env, &["restore", &name]);
        snapshot(env, &["restore", "--undo"]);
    }
    stop.store(true, Ordering::Relaxed);
    for program in programs {
        program.join().unwrap();
    }
    let seen = seen.lock().unwrap();
    if env.engine().runs_the_server() {
        assert_eq!(seen.refused, Vec::<String>::new());
    }
    // An ordinary role cannot have logins wait before they look the database up. Such a one is told so once, and no more.
    let told = |text: &&String| text.contains("just been dropped or renamed") || text.contains("does not exist");
    assert_eq!(seen.refused.iter().find(|text| !told(text)), None);
    assert!(seen.refused.len() <= 6 * PROGRAMS, "{:?}", seen.refused);
    assert!(seen.longest < LONGEST, "a program was kept out for {:?}", seen.longest);
    assert!(seen.logins > 20, "{}", seen.logins);
    assert_eq!(rows(env), before);
    wait_for_order(env);
}

fn an_open_transaction_is_closed_and_told(env: &TestEnv) {
    env.up();
    let url = format!("{}{}application_name=shop", env.url(), if env.url().contains('?') { '&' } else { '?' });
    let mut session = Session::open(&url);
    session.run("BEGIN; DELETE FROM tasks");
    let before = rows(env);
    env.run(&["snapshot", "create", "a"]).ok().says("Closed 1 session of `shop` in `taskflow`");
    assert_eq!(rows(env), before, "what was not committed is not there");
}

/// What is noted of a schema is read before the sessions of those who may change it are closed.
fn a_schema_that_changes_just_before_it_is_kept_comes_back(env: &TestEnv) {
    env.up();
    let pause = env.project.join("pause");
    let change_at = |point: &str, arguments: &[&str], column: &str| {
        let mut command = env.command(arguments);
        command.env("TFDEV_FAULT_POINT", format!("{point}=pause:{}", pause.display()));
        let running = start(command);
        until(point, || pause.exists().then_some(()));
        query(&env.url(), &format!("ALTER TABLE tasks ADD COLUMN {column} int"));
        std::fs::remove_file(&pause).unwrap();
        finish(running).ok();
    };
    let columns = || {
        one(
            &env.url(),
            "SELECT string_agg(attname, ' ' ORDER BY attnum) FROM pg_attribute WHERE attrelid = 'tasks'::regclass AND attname ~ '^late'",
        )
    };
    change_at("snapshot.create.intent", &["snapshot", "create", "kept"], "late_for_kept");
    change_at("snapshot.restore.prepared", &["snapshot", "restore", "kept"], "late_for_auto");
    assert_eq!(columns(), "late_for_kept");
    let auto = automatic(env).remove(0);
    // Once by a look at the state itself, and once by the note, which was set right then.
    for (name, expected) in
        [(auto.as_str(), "late_for_kept late_for_auto"), ("kept", "late_for_kept"), ("kept", "late_for_kept")]
    {
        snapshot(env, &["restore", name]);
        assert_eq!(columns(), expected, "{name}");
    }
    wait_for_order(env);
}

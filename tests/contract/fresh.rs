//! Fresh databases: by the command line, and by the Rust library in processes of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::support::process::{as_ordinary_user, kill};
use crate::support::{TestEngine, TestEnv, on_every_engine, one, query, try_query, until};

on_every_engine!(
    a_database_is_held_for_the_program_that_asked_and_goes_with_it,
    a_test_command_gets_a_database_and_its_exit_status_passes,
    a_database_with_a_time_to_live_is_listed_and_dropped_by_name,
    suites_of_the_library_get_databases_of_their_own_in_parallel,
    a_killed_suite_leaves_the_other_alone_and_its_databases_go_with_the_next_call,
    a_panic_gives_the_database_back_and_keeps_it_if_asked_to,
    suites_that_are_killed_at_any_moment_leave_nothing_behind,
);

/// What only a server of ours does.
mod of_ours {
    use super::{
        a_server_that_nobody_uses_is_stopped_and_started_again, logins_are_short_on_test_and_on_no_other,
        what_a_killed_process_was_emptying_is_empty_or_gone,
    };
    use crate::support::on_every_engine;

    on_every_engine!(@of_ours
        a_server_that_nobody_uses_is_stopped_and_started_again
        logins_are_short_on_test_and_on_no_other
        what_a_killed_process_was_emptying_is_empty_or_gone
    );
}

/// What takes long to set up, and comes to the same on each engine.
mod on_one {
    use super::{
        a_suite_goes_on_when_its_server_was_made_anew, thirty_two_threads_share_the_twenty_connections_of_dev,
    };
    use crate::support::on_every_engine;

    on_every_engine!(@each native Native:
        thirty_two_threads_share_the_twenty_connections_of_dev
        a_suite_goes_on_when_its_server_was_made_anew
    );
}

/// The URL of the project's own database on the instance `test`.
fn instance_url(env: &TestEnv) -> String {
    env.run(&["url", "--instance", "test"]).ok().stdout.trim().to_owned()
}

/// Whether there is a database of that name on the instance `test`.
fn exists(instance: &str, database: &str) -> bool {
    one(instance, &format!("SELECT count(*) FROM pg_database WHERE datname = '{database}'")) == "1"
}

fn name_in(url: &str) -> String {
    url.trim().rsplit('/').next().unwrap().to_owned()
}

/// A program of the test's own choice in the surroundings of tfdev.
fn command_in(env: &TestEnv, program: &str, arguments: &[&str]) -> Command {
    let surroundings = if env.engine() == TestEngine::External { env.command(&[]) } else { env.command_of_tester(&[]) };
    let mut command = Command::new(program);
    command.args(arguments).current_dir(&env.project).env_clear();
    command.envs(surroundings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    if matches!(env.engine(), TestEngine::Native | TestEngine::NativeUser) {
        command.env("TFDEV_ENGINE", "native");
    }
    if env.engine() == TestEngine::NativeUser { as_ordinary_user(&command) } else { command }
}

/// A shell that runs tfdev with `arguments`, tells what it printed, and waits for a line.
fn shell_with(env: &TestEnv, arguments: &str) -> (Child, String) {
    let script = format!("{} {arguments}; read _", env!("CARGO_BIN_EXE_tfdev"));
    let mut command = command_in(env, "/bin/sh", &["-c", &script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    (child, line.trim().to_owned())
}

fn a_database_is_held_for_the_program_that_asked_and_goes_with_it(env: &TestEnv) {
    let (mut first, url) = shell_with(env, "fresh");
    let (mut second, other) = shell_with(env, "fresh --seed small");
    assert_ne!(url, other);
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "0");
    assert_eq!(one(&other, "SELECT count(*) FROM tasks"), "50");
    let instance = instance_url(env);
    assert_eq!(one(&instance, "SELECT count(*) FROM tasks"), "0", "the project's own database there has no rows");
    first.kill().unwrap();
    first.wait().unwrap();
    until("the first shell's database to go", || (!exists(&instance, &name_in(&url))).then_some(()));
    assert_eq!(one(&other, "SELECT count(*) FROM tasks"), "50");
    drop(second.stdin.take());
    second.wait().unwrap();
    until("the second shell's database to go", || (!exists(&instance, &name_in(&other))).then_some(()));
}

fn a_test_command_gets_a_database_and_its_exit_status_passes(env: &TestEnv) {
    let outcome = env.run(&["test", "--", "sh", "-c", "echo $DATABASE_URL; exit 7"]);
    assert_eq!(outcome.status.code(), Some(7), "{outcome:?}");
    let instance = instance_url(env);
    assert!(!exists(&instance, &name_in(&outcome.stdout)));
    let missing = env.run(&["test", "--", "no-such-program"]);
    assert_eq!(missing.status.code(), Some(2), "{missing:?}");
    let by_signal = env.run(&["test", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(by_signal.status.code(), Some(137), "{by_signal:?}");

    let script = "trap 'echo told; exit 3' TERM; echo $DATABASE_URL; while :; do sleep 0.1; done";
    let mut child =
        env.command(&["test", "--", "sh", "-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let url = lines.next().unwrap().unwrap();
    kill(child.id(), "TERM");
    assert_eq!(lines.next().unwrap().unwrap(), "told");
    assert_eq!(child.wait().unwrap().code(), Some(3));
    assert!(!exists(&instance, &name_in(&url)));
}

fn a_database_with_a_time_to_live_is_listed_and_dropped_by_name(env: &TestEnv) {
    let made = env.run(&["fresh", "--ttl", "1h", "--json"]).ok().json();
    let name = made["database"].as_str().unwrap();
    let listed = env.run(&["fresh", "list", "--json"]).ok().json();
    let row = listed.as_array().unwrap().iter().find(|row| row["database"] == name).unwrap();
    assert_eq!((&row["stage"], &row["url"]), (&"kept".into(), &made["url"]));
    env.run(&["fresh", "gc"]).ok();
    assert_eq!(query(made["url"].as_str().unwrap(), "SELECT 1"), ["1"]);
    let unknown = env.run(&["fresh", "drop", name, "tfdev_f_unknown"]);
    assert_eq!(unknown.status.code(), Some(4), "{unknown:?}");
    assert_eq!(query(made["url"].as_str().unwrap(), "SELECT 1"), ["1"]);
    env.run(&["fresh", "drop", name]).ok();
    try_query(made["url"].as_str().unwrap(), "SELECT 1").unwrap_err();
}

/// A process that uses the library as its orders say; it tells lines, and waits for its standard input to end.
struct Suite {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Suite {
    fn start(env: &TestEnv, orders: &str) -> Self {
        Self::start_with(env, orders, &[])
    }

    fn start_with(env: &TestEnv, orders: &str, variables: &[(&str, &str)]) -> Self {
        let program = std::env::current_exe().unwrap();
        let this = "contract::fresh::a_suite_of_the_library";
        let arguments = ["--exact", this, "--ignored", "--nocapture", "--test-threads=1"];
        let mut command = command_in(env, program.to_str().unwrap(), &arguments);
        command.envs(variables.iter().copied()).env(ORDERS, orders).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, stdin, lines }
    }

    /// The next line of the suite's own.
    fn told(&mut self) -> String {
        let own = self.lines.find_map(|line| line.unwrap().split_once("suite: ").map(|(_, told)| told.to_owned()));
        own.expect("the suite says something")
    }

    fn end(&mut self) {
        drop(self.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

/// The variable with the orders of a suite.
const ORDERS: &str = "SUITE_ORDERS";

fn suites_of_the_library_get_databases_of_their_own_in_parallel(env: &TestEnv) {
    let mut suites = [Suite::start(env, "parallel"), Suite::start(env, "parallel")];
    for suite in &mut suites {
        assert_eq!(suite.told(), "24 tests, each with a database of its own");
        suite.end();
    }
    env.run(&["fresh", "gc"]).ok();
    let listed = env.run(&["fresh", "list", "--json"]).ok().json();
    assert!(listed.as_array().unwrap().iter().all(|row| row["stage"] == "free"), "{listed}");
}

fn a_killed_suite_leaves_the_other_alone_and_its_databases_go_with_the_next_call(env: &TestEnv) {
    let (mut killed, mut alive) = (Suite::start(env, "hold"), Suite::start(env, "hold"));
    let (lost, kept) = (killed.told(), alive.told());
    let instance = instance_url(env);
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    // Unless the other suite was just looking.
    env.run(&["fresh", "gc"]).ok();
    assert!(!exists(&instance, &name_in(&lost)));
    assert_eq!(one(&kept, "SELECT count(*) FROM tasks"), "0");
    alive.end();
    until("the other suite's database to go", || {
        env.run(&["fresh", "gc"]).ok();
        (!exists(&instance, &name_in(&kept))).then_some(())
    });
}

fn a_panic_gives_the_database_back_and_keeps_it_if_asked_to(env: &TestEnv) {
    let mut suite = Suite::start(env, "panic");
    let (given_back, kept) = (suite.told(), suite.told());
    suite.end();
    env.run(&["fresh", "gc"]).ok();
    let instance = instance_url(env);
    assert!(!exists(&instance, &name_in(&given_back)));
    assert_eq!(one(&kept, "SELECT count(*) FROM tasks"), "0");
}

/// How many leases suites take while they are killed; `TFDEV_SOAK` makes it more.
const SOAK: u64 = 150;

fn suites_that_are_killed_at_any_moment_leave_nothing_behind(env: &TestEnv) {
    #[expect(clippy::disallowed_methods, reason = "how long to soak is no setting of tfdev")]
    let wanted = std::env::var("TFDEV_SOAK").map_or(SOAK, |text| text.parse().unwrap());
    let instance = {
        env.run(&["fresh", "--ttl", "1s"]).ok();
        instance_url(env)
    };
    env.write(LEASES, "");
    let leases = || std::fs::metadata(env.project.join(LEASES)).unwrap().len();
    let mut suites: Vec<Suite> = (0..3).map(|_| Suite::start(env, "churn")).collect();
    let mut pause = 7;
    while leases() < wanted {
        for suite in &mut suites {
            // Any moment: a different one each time.
            pause = pause * 31 % 397;
            // Time to get a lease at all, on a busy machine.
            std::thread::sleep(std::time::Duration::from_millis(100 + pause));
            suite.child.kill().unwrap();
            suite.child.wait().unwrap();
            *suite = Suite::start(env, "churn");
        }
    }
    for suite in &mut suites {
        suite.child.kill().unwrap();
        suite.child.wait().unwrap();
    }
    until("all databases to go", || {
        env.run(&["fresh", "gc"]).ok();
        env.run(&["fresh", "drop", "--all"]).ok();
        let left = query(&instance, "SELECT datname FROM pg_database WHERE datname LIKE 'tfdev\\_f\\_%'");
        left.is_empty().then_some(())
    });
    assert_eq!(query(&instance, "SELECT datname FROM pg_database WHERE datname LIKE 'tfdev\\_t\\_%'").len(), 1);
    assert!(!env.project.join(NOT_FRESH).exists(), "a database had rows when it was handed out");
}

fn what_a_killed_process_was_emptying_is_empty_or_gone(env: &TestEnv) {
    env.run(&["fresh", "--ttl", "1s"]).ok();
    for point in ["fresh.reuse.closed", "fresh.empty.deleted", "fresh.empty.vacuumed"] {
        let mut suite = Suite::start_with(env, "write", &[("TFDEV_FAULT_POINT", &format!("{point}=kill"))]);
        let written = suite.told();
        writeln!(suite.stdin.as_mut().unwrap(), "give it back").unwrap();
        let status = suite.child.wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{point}: {status}");
        env.run(&["fresh", "gc"]).ok();
        try_query(&written, "SELECT 1").expect_err("its old name is gone");
        let listed = env.run(&["fresh", "list", "--json"]).ok().json();
        for row in listed.as_array().unwrap().iter().filter(|row| row["stage"] == "free") {
            assert_eq!(one(row["url"].as_str().unwrap(), "SELECT count(*) FROM users"), "0", "{point}: {row}");
        }
        let mut next = Suite::start(env, "write");
        assert_eq!(one(&next.told(), "SELECT count(*) FROM users"), "1", "its own row alone");
        next.end();
        // Else the next one would be killed over it before it says anything.
        env.run(&["fresh", "gc"]).ok();
    }
}

/// The file of the project to which suites add a byte for each lease that has ended.
const LEASES: &str = "leases";

/// The file that they make if a database was not empty when they got it.
const NOT_FRESH: &str = "not-fresh";

/// How long after its last use a server is stopped in the test of that, in seconds.
const IDLE_STOP: u64 = 2;

fn a_server_that_nobody_uses_is_stopped_and_started_again(env: &TestEnv) {
    env.write("tfdev.toml", format!("project = \"{}\"\n[fresh]\nidle_stop = {IDLE_STOP}\n", env.id));
    let (mut shell, url) = shell_with(env, "fresh");
    // Not by a login, which is a use.
    let place = url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let answers = || std::net::TcpStream::connect(&place).is_ok();
    // In use, for longer than the limit.
    assert_eq!(one(&url, &format!("SELECT count(*) FROM pg_sleep({})", 2 * IDLE_STOP)), "1");
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "0");
    drop(shell.stdin.take());
    shell.wait().unwrap();
    until("the server to be stopped", || (!answers()).then_some(()));
    let again = env.run(&["fresh", "--ttl", "1h", "--json"]).ok().json();
    let url = again["url"].as_str().unwrap();
    // Kept for an hour, so in use. What does not happen can only be waited for.
    std::thread::sleep(std::time::Duration::from_secs(2 * IDLE_STOP));
    assert_eq!(one(url, "SELECT count(*) FROM tasks"), "0");
    let down = env.run(&["down", "--all", "--json"]).ok().json();
    let stopped = down["instances"].as_array().unwrap().iter().find(|one| one["instance"] == "test").unwrap();
    assert_eq!((&stopped["changed"], &stopped["running"]), (&true.into(), &false.into()), "{down}");
}

fn logins_are_short_on_test_and_on_no_other(env: &TestEnv) {
    env.up();
    env.run(&["fresh", "--ttl", "1h"]).ok();
    let form = "SELECT string_agg(DISTINCT left(rolpassword, 3), ' ') FROM pg_authid WHERE rolpassword IS NOT NULL";
    let methods = "SELECT string_agg(DISTINCT auth_method, ' ') FROM pg_hba_file_rules WHERE type LIKE 'host%'";
    for (instance, stored, method) in [("test", "md5", "md5"), ("dev", "SCR", "scram-sha-256")] {
        let status = env.run(&["status", "--instance", instance, "--json"]).ok().json();
        let folder = env.instance_dir().with_file_name(instance);
        let password = std::fs::read_to_string(folder.join("superuser.password")).unwrap();
        let superuser = format!("postgres://postgres:{}@127.0.0.1:{}/postgres", password.trim(), status["port"]);
        assert_eq!((one(&superuser, form).as_str(), one(&superuser, methods).as_str()), (stored, method), "{instance}");
        let user = std::fs::read_to_string(folder.join("user.password")).unwrap();
        assert!(user.trim().len() >= 32 && password.trim().len() >= 32);
        try_query(&superuser.replacen(password.trim(), "wrong", 1), "SELECT 1").unwrap_err();
    }
}

fn thirty_two_threads_share_the_twenty_connections_of_dev(env: &TestEnv) {
    env.up();
    let mut suite = Suite::start(env, "crowd");
    assert_eq!(suite.told(), "32 of 32 tests passed");
    suite.end();
    until("the databases of the suite to go", || {
        // What its process was dropping when it ended, the server drops to the end.
        env.run(&["fresh", "gc", "--instance", "dev"]).ok();
        let listed = env.run(&["fresh", "list", "--instance", "dev", "--json"]).ok().json();
        listed.as_array().unwrap().iter().all(|row| row["stage"] == "free").then_some(())
    });
}

fn a_suite_goes_on_when_its_server_was_made_anew(env: &TestEnv) {
    let mut suite = Suite::start(env, "again");
    let first = suite.told();
    assert_eq!(one(&first, "SELECT count(*) FROM tasks"), "0");
    env.run(&["destroy", "--instance", "test", "--yes"]).ok();
    writeln!(suite.stdin.as_mut().unwrap(), "go on").unwrap();
    let second = suite.told();
    assert_eq!(one(&second, "SELECT count(*) FROM tasks"), "0");
    suite.end();
}

/// Says something to the test that started the suite.
#[expect(clippy::print_stdout, reason = "standard output is how the suite tells")]
fn tell(text: &str) {
    println!("suite: {text}");
    std::io::stdout().flush().unwrap();
}

#[test]
#[ignore = "the other tests start it as a process of its own"]
fn a_suite_of_the_library() {
    #[expect(clippy::disallowed_methods, reason = "the orders of the test that started this process")]
    let orders = std::env::var(ORDERS).unwrap();
    match orders.as_str() {
        "parallel" => parallel(),
        "hold" => {
            let db = tfdev::blocking::fresh().unwrap();
            tell(&db.url());
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        "again" => {
            for _ in 0..2 {
                let db = tfdev::blocking::fresh().unwrap();
                tell(&db.url());
                let _ = std::io::stdin().read_line(&mut String::new());
            }
        }
        "write" => {
            let db = tfdev::blocking::fresh().unwrap();
            query(&db.url(), INSERT);
            tell(&db.url());
            let _ = std::io::stdin().read_line(&mut String::new());
            drop(db);
            // For as long as it is emptied.
            let _ = std::io::stdin().read_line(&mut String::new());
        }
        "crowd" => crowd(),
        "churn" => {
            for _ in 0..3 {
                std::thread::spawn(churn);
            }
            drop(std::io::stdin().read_line(&mut String::new()));
        }
        "panic" => {
            for keep in [false, true] {
                let config = tfdev::FreshConfig::new().keep_on_failure(keep);
                let failed = std::thread::spawn(move || {
                    let db = config.database_blocking().unwrap();
                    tell(&db.url());
                    panic!("the test fails");
                });
                failed.join().unwrap_err();
            }
        }
        other => panic!("unknown orders: {other}"),
    }
}

const INSERT: &str = "INSERT INTO users (email, password_hash) VALUES ('a@example.com', 'x') RETURNING 1";

/// Takes one database after the other, and writes to every second one.
fn churn() {
    let mut leases = std::fs::File::options().append(true).open(LEASES).unwrap();
    for number in 0_u64.. {
        let db = tfdev::blocking::fresh().unwrap();
        if number.is_multiple_of(2) {
            if one(&db.url(), "SELECT count(*) FROM users") != "0" {
                std::fs::write(NOT_FRESH, db.url()).unwrap();
            }
            query(&db.url(), INSERT);
        }
        drop(db);
        leases.write_all(b".").unwrap();
    }
}

/// More tests at once than the server has connections.
fn crowd() {
    let test = || {
        let db = tfdev::FreshConfig::new().instance("dev").connections(2).database_blocking().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let pool = db.pool_options().connect_with(db.connect_options()).await.unwrap();
            let users = "SELECT count(*) FROM users";
            let (one, two) = tokio::join!(
                sqlx::query_scalar::<_, i64>(users).fetch_one(&pool),
                sqlx::query_scalar::<_, i64>(users).fetch_one(&pool)
            );
            assert_eq!((one.unwrap(), two.unwrap()), (0, 0));
            pool.close().await;
        });
    };
    let threads: Vec<_> = (0..32).map(|_| std::thread::spawn(test)).collect();
    let passed = threads.into_iter().filter_map(|thread| thread.join().ok()).count();
    tell(&format!("{passed} of 32 tests passed"));
}

/// Tests in threads, half of them asynchronous, each of which writes and sees its own rows alone.
fn parallel() {
    let threads: Vec<_> = (0..8)
        .map(|number| {
            std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                for _ in 0..3 {
                    let db = match number % 2 {
                        0 => tfdev::blocking::fresh().unwrap(),
                        _ => runtime.block_on(tfdev::fresh()).unwrap(),
                    };
                    let users: i64 = runtime.block_on(async {
                        let pool = db.pool_options().connect_with(db.connect_options()).await.unwrap();
                        sqlx::raw_sql(INSERT).execute(&pool).await.unwrap();
                        // Left open on purpose: an open pool must not keep the database.
                        sqlx::query_scalar("SELECT count(*) FROM users").fetch_one(&pool).await.unwrap()
                    });
                    assert_eq!(users, 1);
                }
                3
            })
        })
        .collect();
    let tests: i32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    tell(&format!("{tests} tests, each with a database of its own"));
}

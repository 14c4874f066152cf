//! `health`: what it says and how it ends, over every engine; with every connection taken; and while the server comes and
//! goes.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::support::docker::{inspect, run as run_docker};
use crate::support::process::{kill, server_of};
use crate::support::{PATIENCE, Session, SomeonesServer, TestEngine, TestEnv, on_every_engine, try_query, until};

on_every_engine!(health_says_whether_the_server_lives_and_is_ready);

fn health_says_whether_the_server_lives_and_is_ready(env: &TestEnv) {
    env.run(&["health"]).exits(4).says("make it with `tfdev up`");
    env.up();
    let health = env.run(&["health", "--json"]).ok();
    assert_eq!(health.stderr, "");
    let health = health.json();
    assert_eq!((&health["healthy"], &health["engine"]), (&json!(true), &json!(env.engine().kind())));
    for check in ["live", "ready"] {
        assert_eq!((&health[check]["ok"], &health[check]["reason"]), (&json!(true), &Value::Null));
        assert!(health[check]["latency_ms"].as_f64().unwrap() > 0.0);
    }
    let (most, limit) = if env.engine().runs_the_server() { (20, 18) } else { (100, 90) };
    let counts = [&health["ready"]["max_connections"], &health["ready"]["limit"], &health["ready"]["reserved"]];
    assert_eq!(counts, [&json!(most), &json!(limit), &json!(3)]);
    let live = env.run(&["health", "--live", "--json"]).ok().json();
    assert!(live["live"]["ok"] == true && live["ready"].is_null());
    let ready = env.run(&["health", "--ready"]).ok().stdout;
    assert!(ready.starts_with("ready   yes") && !ready.contains("live"), "{ready}");
    env.run(&["health", "--live", "--ready"]).exits(2);
    if !env.engine().runs_the_server() {
        return;
    }
    connections_are_used_up(env);
    env.freeze_server();
    // A signal takes its time.
    until("a server that stands still", || (env.state() == "unhealthy").then_some(()));
    env.run(&["health"]).exits(4).says("is not running");
    env.run(&["down"]).ok();
    env.run(&["health", "--json"]).exits(4).json_error();
}

/// Sessions of one role, at work or not.
fn sessions(url: &str, count: usize, at_work: bool) -> Vec<Session> {
    let open = || {
        let mut session = Session::open(url);
        if at_work {
            // A transaction that waits for its client is at work, too: its state is not `idle`.
            session.run("BEGIN");
        }
        session
    };
    (0..count).map(|_| open()).collect()
}

/// What `health` says, and what the container's own healthcheck says: the same.
#[track_caller]
fn readiness(env: &TestEnv) -> (bool, String) {
    let outcome = env.run(&["health", "--ready", "--json"]);
    let ready = outcome.json()["ready"].take();
    let ok = ready["ok"].as_bool().unwrap();
    assert_eq!(outcome.status.code(), Some(i32::from(!ok)));
    if env.engine() == TestEngine::Docker {
        let container = env.container_name();
        let check = inspect(&container)["Config"]["Healthcheck"]["Test"][1].as_str().unwrap().to_owned();
        let own = run_docker(&["exec", &container, "sh", "-c", &check]);
        assert_eq!(own.status.success(), ok, "the container's healthcheck: {own:?}");
    }
    (ok, ready["reason"].as_str().unwrap_or_default().to_owned())
}

fn connections_are_used_up(env: &TestEnv) {
    let url = env.url();
    let superuser = env.superuser_url(&env.status()["port"], "postgres");
    // 17 of 20 are for ordinary roles. As long as they are idle the source calls the server ready.
    let idle = sessions(&url, 17, false);
    assert!(try_query(&url, "SELECT 1").is_err());
    assert_eq!(readiness(env), (true, String::new()));
    drop(idle);
    until("the sessions' end", || try_query(&url, "SELECT 1").is_ok().then_some(()));
    until("16 free ones", || {
        let open = env.run(&["health", "--json"]).json()["ready"]["open"].as_i64().unwrap();
        (open == 0).then_some(())
    });
    let mut busy = sessions(&url, 16, true);
    assert_eq!(readiness(env), (true, String::new()));
    busy.extend(sessions(&url, 1, true));
    let (ready, reason) = readiness(env);
    assert!(!ready && reason.starts_with("all 17 connections for ordinary roles are at work"), "{reason}");
    // Up to the last one but one, which is the one that `health` takes.
    busy.extend(sessions(&superuser, 2, true));
    let (ready, reason) = readiness(env);
    assert!(!ready && reason.starts_with("19 connections are at work, and fewer than 18"), "{reason}");
    env.run(&["health", "--live"]).ok();
    // Up to the last one.
    busy.extend(sessions(&superuser, 1, true));
    let health = env.run(&["health", "--json"]).exits(1).json();
    for check in ["live", "ready"] {
        let reason = health[check]["reason"].as_str().unwrap();
        assert!(reason.contains("not even one of those that it keeps for superusers"), "{reason}");
    }
    drop(busy);
    until("a server that is ready again", || env.run(&["health"]).status.success().then_some(()));
}

/// Fewer connections than others need are no matter of time: what does not answer is told by its own exit status.
#[test]
fn a_server_that_does_not_answer_is_told_in_time() {
    let Some(env) = TestEnv::on(TestEngine::External) else { return };
    env.up();
    let pid = postmaster(env.server());
    kill(pid, "STOP");
    let outcome = env.run(&["health", "--timeout", "1", "--json"]);
    kill(pid, "CONT");
    let outcome = outcome.exits(7);
    assert!(outcome.elapsed < PATIENCE, "{:?}", outcome.elapsed);
    assert!(outcome.stderr.contains("no answer within 1 s"), "{outcome:?}");
    until("its answer", || env.run(&["health"]).status.success().then_some(()));
}

fn postmaster(server: &SomeonesServer) -> u32 {
    let data = server.read("SHOW data_directory").remove(0);
    server_of(&PathBuf::from(data)).unwrap()
}

/// `health --watch`, which is ended with the test.
struct Watcher {
    child: Child,
    path: PathBuf,
}

impl Watcher {
    fn start(env: &TestEnv) -> Self {
        let path = env.path("watched");
        let mut command = env.command(&["health", "--watch", "--interval", "0.05", "--json"]);
        command.stdin(Stdio::null()).stdout(File::create(&path).unwrap());
        Self { child: command.spawn().unwrap(), path }
    }

    /// The looks so far.
    fn looks(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Waits for a look, after `seen` others, for which `condition` holds. Returns how many there were then.
    fn wait(&self, seen: usize, what: &str, condition: impl Fn(&Value) -> bool) -> usize {
        until(what, || {
            let looks = self.looks();
            let found = looks.iter().skip(seen).position(&condition)?;
            Some(seen + found + 1)
        })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn watching_goes_on_while_the_server_comes_and_goes() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.up();
    let watcher = Watcher::start(&env);
    let seen = watcher.wait(0, "a healthy look", |look| look["healthy"] == true);
    env.kill_server();
    let seen = watcher.wait(seen, "a look at nothing", |look| look["error"]["kind"] == "not_found");
    env.up();
    watcher.wait(seen, "a healthy look again", |look| look["healthy"] == true);
}

//! Settings with which a server does not run, and what is killed while they change.

use std::os::unix::process::ExitStatusExt;

use serde_json::json;

use super::{on_docker_and_native, ordered, settings, show, up};
use crate::support::{TestEngine, TestEnv, finish, start, until};

on_docker_and_native!(
    settings_that_do_not_work_are_taken_back,
    a_change_that_is_killed_leaves_the_old_or_the_new_settings,
);

/// A server with these does not start.
const FATAL: &str = "shared_preload_libraries = \"nope\"\nmax_connections = 30\n";

fn settings_that_do_not_work_are_taken_back(env: &TestEnv) {
    env.up();
    settings(env, FATAL);
    let error = up(env, &[]).exits(1).json_error();
    let causes = error["causes"].to_string();
    assert!(error["message"].as_str().unwrap().contains("were taken back"), "{error}");
    assert!(causes.contains("could not access file \\\"nope"), "{error}");
    assert!(error["hints"].to_string().contains("max_connections 20 → 30 ("), "{error}");
    assert_eq!((show(env, "max_connections"), env.tasks(), env.state()), ("20".into(), "50".into(), "running".into()));

    // The same for a server that did not run.
    env.run(&["down"]).ok();
    up(env, &[]).exits(1).says("were taken back");
    assert_eq!((show(env, "max_connections"), env.state()), ("20".into(), "running".into()));

    // This one starts, and lets nobody in.
    settings(env, "session_preload_libraries = \"nope\"\n");
    up(env, &[]).exits(1).says("could not access file").says("were taken back");
    settings(env, "");
    assert_eq!((up(env, &[]).ok().json()["changes"].clone(), env.tasks()), (json!([]), "50".into()));

    // This one is not even given to the server.
    let born = env.born();
    settings(env, "synchronous_standby_names = \"ANY (\"\nwork_mem = \"8MB\"\n");
    up(env, &[]).exits(8).says("synchronous_standby_names: setting could not be applied");
    assert_eq!((show(env, "work_mem"), env.born()), ("4MB".into(), born));

    settings(env, "max_connections = 31\n");
    up(env, &[]).ok();
    assert_eq!((show(env, "max_connections"), env.tasks()), ("31".into(), "50".into()));
}

fn a_change_that_is_killed_leaves_the_old_or_the_new_settings(env: &TestEnv) {
    env.up();
    let killed = |order: &str| {
        let outcome = finish(start(ordered(env, &format!("{order}=kill"), &[])));
        assert_eq!(outcome.status.signal(), Some(9), "{order} was not reached: {}", outcome.stderr);
    };
    // Read again and with a restart, by turns; an `up` with the old settings and one with the new ones finishes it.
    let states = ["work_mem = \"5MB\"\n", "work_mem = \"6MB\"\nmax_connections = 25\n", "work_mem = \"7MB\"\n"];
    let mut old = "";
    for (point, new) in ["up.change.intent", "up.change.started", "up.change.ready"].into_iter().zip(states) {
        settings(env, new);
        killed(point);
        settings(env, old);
        up(env, &[]).ok();
        check(env, old);
        settings(env, new);
        killed(point);
        up(env, &[]).ok();
        check(env, new);
        old = new;
    }
    // The native engine does not return from the start of a server that ends.
    let points = if env.engine() == TestEngine::Docker {
        &["up.change.started", "up.change.failed"][..]
    } else {
        &["up.change.failed"]
    };
    for point in points {
        settings(env, FATAL);
        killed(point);
        up(env, &[]).exits(1).says("were taken back");
        check(env, old);
    }

    // The server crashes in the middle of the change.
    settings(env, "max_connections = 26\n");
    let mark = env.path("paused");
    let change = start(ordered(env, &format!("up.change.started=pause:{}", mark.display()), &[]));
    until("the change", || mark.exists().then_some(()));
    env.kill_server();
    std::fs::remove_file(&mark).unwrap();
    let outcome = finish(change);
    // Docker's server is not there any more when it is looked at; the other one may have ended before or after that.
    if outcome.status.success() {
        check(env, "max_connections = 26\n");
    } else {
        outcome.says("were taken back");
        check(env, old);
    }
    up(env, &[]).ok();
    check(env, "max_connections = 26\n");
}

/// Fails unless the server runs with these lines of the project's file, and with its data.
#[track_caller]
fn check(env: &TestEnv, lines: &str) {
    let set = |name: &str, default: &str| {
        let line = lines.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = "));
        line.map_or_else(|| default.to_owned(), |value| value.trim_matches('"').to_owned())
    };
    let found = (show(env, "work_mem"), show(env, "max_connections"), env.tasks());
    assert_eq!(found, (set("work_mem", "4MB"), set("max_connections", "20"), "50".into()), "{lines}");
    assert_eq!(env.state(), "running");
}

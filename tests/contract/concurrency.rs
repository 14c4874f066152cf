//! Several tfdevs at once, and tfdevs that are killed (`ARCHITECTURE.md` § What must always hold, 3 and 4;
//! `FAILURES.md` § Readiness and § "Ports, names, volumes, resources").

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use serde_json::json;

use crate::support::{ONE_SERVER, Session, TestEnv, finish, on_every_engine, one, query, start, tell, until};

on_every_engine!(
    twenty_ups_at_once_make_one_server_and_seed_it_once,
    ten_projects_at_once_get_ten_ports,
    ups_killed_among_others_harm_nobody,
    up_succeeds_after_a_kill_at_any_moment_of_the_first_one,
    ctrl_c_ends_with_130_and_the_next_up_goes_on,
    down_and_destroy_wait_for_an_up_that_is_at_work,
    a_lock_that_is_held_too_long_is_a_conflict,
    what_a_killed_up_left_running_in_the_server_is_waited_for,
);

const UP: [&str; 4] = ["up", "--json", "--dataset", "small"];

fn twenty_ups_at_once_make_one_server_and_seed_it_once(env: &TestEnv) {
    let running: Vec<_> = (0..20).map(|_| start(env.command(&UP))).collect();
    let reports: Vec<_> = running.into_iter().map(|running| finish(running).ok().json()).collect();
    for (key, times) in [("created", 1), ("started", usize::from(env.engine().runs_the_server()))] {
        assert_eq!(reports.iter().filter(|report| report[key] == json!(true)).count(), times, "{key}");
    }
    assert_eq!(reports.iter().filter(|report| report["seed"]["applied"] == json!(true)).count(), 1);
    assert_eq!(reports.iter().map(|report| report["url"].to_string()).collect::<BTreeSet<_>>().len(), 1);
    assert_eq!(env.tasks(), "50");
    assert_eq!(env.made(), ONE_SERVER);
}

fn ten_projects_at_once_get_ten_ports(env: &TestEnv) {
    let folders: Vec<_> = (0..10).map(|number| env.other_project(&format!("p{number}"))).collect();
    let running: Vec<_> = folders.iter().map(|folder| start(env.command_in(folder, &UP))).collect();
    if !env.engine().runs_the_server() {
        let outcomes: Vec<_> = running.into_iter().map(finish).collect();
        let (done, refused): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(|outcome| outcome.status.success());
        assert_eq!(done.len(), 1, "one has the name: {refused:?}");
        for refused in refused {
            refused.exits(5).says("the database `taskflow` belongs to the instance `dev`");
        }
        return assert_eq!(env.made(), ONE_SERVER, "the others leave nothing behind");
    }
    let reports: Vec<_> = running.into_iter().map(|running| finish(running).ok().json()).collect();
    let ports: BTreeSet<_> = reports.iter().map(|report| report["port"].as_u64().unwrap()).collect();
    assert_eq!(ports.len(), 10, "{ports:?}");
    for report in &reports {
        assert_eq!(one(report["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "50");
    }
}

fn ups_killed_among_others_harm_nobody(env: &TestEnv) {
    let seed = 15;
    tell(&format!("random sequence {seed}"));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let begin = Instant::now();
    let mut running: Vec<_> = (0..20).map(|_| start(env.command(&UP))).collect();
    let mut kills: Vec<_> =
        (0..10).map(|number| (Duration::from_millis(random.random_range(0..2500)), 2 * number)).collect();
    kills.sort();
    for (moment, number) in kills {
        until("the moment of a kill", || (begin.elapsed() >= moment).then_some(()));
        // One that is done already is simply none of the killed ones.
        let _ = running[number].child.kill();
    }
    for (number, running) in running.into_iter().enumerate() {
        let outcome = finish(running);
        if number % 2 == 1 {
            outcome.ok();
        }
    }
    env.up();
    assert_eq!(env.tasks(), "50");
    assert_eq!(env.made(), ONE_SERVER);
}

fn up_succeeds_after_a_kill_at_any_moment_of_the_first_one(env: &TestEnv) {
    let first = finish(start(env.command(&UP))).ok();
    env.run(&["destroy", "--yes"]).ok();
    let seed = 5432;
    tell(&format!("random sequence {seed}"));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let points = 8;
    for point in 0..points {
        // One point in each eighth of the time that an undisturbed run takes.
        let part = (f64::from(point) + random.random::<f64>()) / f64::from(points);
        let moment = first.elapsed.mul_f64(part);
        let mut running = start(env.command(&UP));
        let begin = Instant::now();
        until("the moment of the kill", || {
            (begin.elapsed() >= moment || running.child.try_wait().unwrap().is_some()).then_some(())
        });
        let _ = running.child.kill();
        finish(running);
        let next = env.run(&UP);
        assert!(next.status.success(), "killed after {moment:?} of {:?}: {}", first.elapsed, next.stderr);
        assert_eq!(env.tasks(), "50", "killed after {moment:?}");
        assert_eq!(env.made(), ONE_SERVER, "killed after {moment:?}");
        env.run(&["destroy", "--yes"]).ok();
        env.assert_nothing_left();
    }
}

fn ctrl_c_ends_with_130_and_the_next_up_goes_on(env: &TestEnv) {
    let running = start(env.command(&UP));
    until("the first run at work", || env.has_begun().then_some(()));
    let interrupt = std::process::Command::new("kill").args(["-INT", &running.child.id().to_string()]).status();
    assert!(interrupt.unwrap().success());
    let outcome = finish(running).exits(130);
    assert_eq!(outcome.json_error()["kind"], json!("interrupted"));
    env.up();
    assert_eq!(env.tasks(), "50");
}

fn down_and_destroy_wait_for_an_up_that_is_at_work(env: &TestEnv) {
    let running = start(env.command(&UP));
    until("the first run at work", || env.has_begun().then_some(()));
    let down = env.run(&["down", "--json"]).ok();
    let up = finish(running).ok().json();
    assert_eq!(up["state"], json!("running"));
    let stops = env.engine().runs_the_server();
    assert_eq!(down.json()["instances"][0]["changed"], json!(stops));
    assert_eq!(env.state(), if stops { "stopped" } else { "running" });

    let running = start(env.command(&UP));
    until("the second run at work", || (env.state() != "stopped").then_some(()));
    env.run(&["destroy", "--yes"]).ok();
    finish(running);
    env.assert_nothing_left();
}

fn a_lock_that_is_held_too_long_is_a_conflict(env: &TestEnv) {
    env.up();
    let lock = std::fs::File::options().write(true).open(env.instance_dir().with_extension("lock")).unwrap();
    lock.lock().unwrap();
    for command in [&["up"] as &[&str], &["down"], &["destroy", "--yes"]] {
        env.run(&[command, &["--timeout", "1"]].concat()).exits(6);
    }
    assert_eq!(env.state(), "running", "who only looks needs no lock");
    lock.unlock().unwrap();
    env.run(&["down", "--timeout", "30"]).ok();
}

fn what_a_killed_up_left_running_in_the_server_is_waited_for(env: &TestEnv) {
    let up = env.up();
    let superuser = env.superuser_url(&up["port"], "postgres");
    query(&superuser, "DROP DATABASE taskflow WITH (FORCE)");
    let mut session = Session::open(&superuser);
    session.run("BEGIN; LOCK TABLE pg_database IN SHARE MODE");
    let blocked = || {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tfdev' AND wait_event_type = 'Lock'";
        one(&superuser, waiting)
    };

    let mut killed = start(env.command(&UP));
    until("the first run to make the database", || (blocked() == "1").then_some(()));
    killed.child.kill().unwrap();
    finish(killed);
    let next = start(env.command(&UP));
    until("the second run at the same point", || (blocked() == "2").then_some(()));
    session.run("COMMIT");
    finish(next).ok();
    assert_eq!(env.tasks(), "50");
}

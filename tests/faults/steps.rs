//! Every call of an engine fails, stalls until Ctrl-C, and is where tfdev is killed, each before and after its work
//! (`src/engine/fault.rs`). After each, the next command works, what was there before is there, and nothing is left over.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;

use serde_json::json;
use tfdev::engine::fault::{MARK, STEPS};

use crate::support::{ONE_SERVER, Session, TestEngine, TestEnv, finish, one, query, run_on, start, until};

const UP: [&str; 3] = ["up", "--dataset", "small"];

/// The calls that a first `up` makes.
const FIRST_UP: [&str; 5] = ["observe", "source", "start", "server", "flush"];

/// The calls that an `up` of a stopped instance makes.
const NEXT_UP: [&str; 4] = ["observe", "source", "start", "server"];

/// The calls that an `up` makes while it cannot log in, and when it must set passwords from beside the server.
const MENDING_UP: [&str; 2] = ["check_alive", "run"];

/// The calls that `down` makes.
const DOWN: [&str; 2] = ["stop", "observe"];

/// The calls that `destroy` makes.
const DESTROY: [&str; 1] = ["destroy"];

/// The calls that `logs` and a `psql` from beside the server make.
const LOOKING: [&str; 2] = ["logs", "interactive"];

/// The calls that only `verify` makes.
const PROVING: [&str; 1] = ["resources"];

/// The calls that an export and an import make.
const MOVING: [&str; 1] = ["stream"];

/// The calls that a restore of a backup makes beside those of an `up`.
const RESTORING: [&str; 1] = ["restore"];

/// The calls that putting a restored instance in the place of another makes beside those.
const REPLACING: [&str; 2] = ["before_rename", "renamed"];

const FAULTS: [&str; 3] = ["fail", "stall", "kill"];

#[test]
fn every_call_of_an_engine_is_driven_into_every_fault() {
    let restoring = [&RESTORING as &[&str], &REPLACING].concat();
    let driven =
        [&FIRST_UP as &[&str], &NEXT_UP, &MENDING_UP, &DOWN, &DESTROY, &LOOKING, &PROVING, &MOVING, &restoring]
            .concat();
    assert_eq!(BTreeSet::from_iter(driven), BTreeSet::from(STEPS));
}

/// Each of `steps`, on both sides, with each of `faults`.
fn cues(steps: &[&'static str], faults: &[&'static str]) -> Vec<[&'static str; 3]> {
    let both = |step: &&'static str| [[*step, "before"], [*step, "after"]];
    let points: Vec<_> = steps.iter().flat_map(both).collect();
    points.iter().flat_map(|[step, side]| faults.iter().map(|fault| [*step, *side, *fault])).collect()
}

/// Runs a command that comes to its cue, and ends as the cue says.
#[track_caller]
fn run_with_fault(env: &TestEnv, arguments: &[&str], cue: [&str; 3]) {
    let mark = env.state_dir().join(MARK);
    let _ = std::fs::remove_file(&mark);
    let mut command = env.command(arguments);
    command.env("TFDEV_FAULT", cue.join(":"));
    if cue[0] == "interactive" {
        command.env("PATH", env.path("nothing-here"));
    }
    let mut running = start(command);
    if cue[2] == "stall" {
        until("the stall", || (mark.exists() || running.child.try_wait().unwrap().is_some()).then_some(()));
        crate::support::process::kill(running.child.id(), "INT");
    }
    let outcome = finish(running);
    assert_eq!(std::fs::read_to_string(&mark).unwrap_or_default(), cue[0], "{cue:?} was not reached: {outcome:?}");
    match cue[2] {
        "fail" => drop(outcome.exits(1).says("failed on cue")),
        "stall" => drop(outcome.exits(130)),
        _ => assert_eq!(outcome.status.signal(), Some(9), "{outcome:?}"),
    }
}

/// How many of the rows that a test wrote are there.
fn kept(env: &TestEnv) -> String {
    one(&env.url(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'")
}

/// An instance with a row of its own.
fn with_row(env: &TestEnv) {
    env.up();
    query(&env.url(), "INSERT INTO users (email, password_hash) VALUES ('kept@example.com', 'x')");
}

fn first_up(env: &TestEnv, fault: &'static str) {
    for cue in cues(&FIRST_UP, &[fault]) {
        run_with_fault(env, &UP, cue);
        env.up();
        assert_eq!((env.tasks().as_str(), env.made()), ("50", ONE_SERVER), "{cue:?}");
        env.run(&["destroy", "--yes"]).ok();
        env.assert_nothing_left();
    }
    // Without an `up` in between: what is half made can be removed.
    for side in ["before", "after"] {
        run_with_fault(env, &UP, ["start", side, fault]);
        env.run(&["destroy", "--yes"]).ok();
        env.assert_nothing_left();
        assert_eq!(env.state(), "absent");
    }
}

/// An instance with a row of its own and a copy of it in a store.
fn with_backup(env: &TestEnv) {
    let store = env.path("store");
    env.write("tfdev.toml", format!("project = \"{}\"\n[backup]\nstore = \"file://{}\"\n", env.id, store.display()));
    with_row(env);
    env.run(&["backup", "now", "--only", "physical"]).ok();
}

fn replacing(env: &TestEnv) {
    with_backup(env);
    env.leave_common_port();
    let url = env.url();
    for cue in cues(&REPLACING, &FAULTS) {
        run_with_fault(env, &["--yes", "backup", "restore", "--as", "copy", "--replace"], cue);
        // Whichever of the two has the name now, it is whole and where it was.
        env.up();
        assert_eq!((env.url(), kept(env).as_str()), (url.clone(), "1"), "{cue:?}");
        // There is another one only if they had changed places.
        drop(env.run(&["destroy", "--yes", "--instance", "copy"]));
        assert_eq!((kept(env).as_str(), env.made()), ("1", ONE_SERVER), "{cue:?}");
    }
}

fn restoring(env: &TestEnv) {
    with_backup(env);
    let restore = ["backup", "restore", "--as", "copy"];
    for cue in cues(&RESTORING, &FAULTS) {
        // What the one before has left goes first.
        run_with_fault(env, &restore, cue);
    }
    env.run(&restore).ok();
    let url = env.run(&["url", "--instance", "copy"]).ok().stdout;
    assert_eq!(one(url.trim(), "SELECT count(*) FROM users WHERE email = 'kept@example.com'"), "1");
    env.run(&["destroy", "--yes", "--instance", "copy"]).ok();
    assert_eq!((kept(env).as_str(), env.made()), ("1", ONE_SERVER));
}

fn next_up(env: &TestEnv) {
    with_row(env);
    for cue in cues(&NEXT_UP, &FAULTS) {
        env.run(&["down"]).ok();
        run_with_fault(env, &UP, cue);
        assert_eq!(env.up()["created"], json!(false), "{cue:?}");
        assert_eq!((kept(env).as_str(), env.made()), ("1", ONE_SERVER), "{cue:?}");
    }
}

fn up_that_waits_for_a_login(env: &TestEnv) {
    with_row(env);
    let up = env.up();
    for cue in cues(&["check_alive"], &FAULTS) {
        let mut session = Session::open(&env.superuser_url(&up["port"], "postgres"));
        // Whoever logs in reads this table.
        session.run("BEGIN; LOCK TABLE pg_authid IN ACCESS EXCLUSIVE MODE");
        run_with_fault(env, &UP, cue);
        session.run("COMMIT");
        assert_eq!(env.up()["started"], json!(false), "{cue:?}");
        assert_eq!(kept(env), "1", "{cue:?}");
    }
}

fn up_that_mends_passwords(env: &TestEnv) {
    with_row(env);
    let up = env.up();
    for cue in cues(&["run"], &FAULTS) {
        let superuser = env.superuser_url(&up["port"], "postgres");
        query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'; ALTER ROLE postgres PASSWORD 'other'");
        run_with_fault(env, &UP, cue);
        env.up();
        assert_eq!((kept(env).as_str(), one(&superuser, "SELECT 1").as_str()), ("1", "1"), "{cue:?}");
    }
}

fn down(env: &TestEnv) {
    with_row(env);
    for cue in cues(&DOWN, &FAULTS) {
        run_with_fault(env, &["down"], cue);
        env.run(&["down"]).ok();
        assert_eq!(env.state(), if env.engine().runs_the_server() { "stopped" } else { "running" }, "{cue:?}");
        assert_eq!(env.up()["created"], json!(false), "{cue:?}");
        assert_eq!((kept(env).as_str(), env.made()), ("1", ONE_SERVER), "{cue:?}");
    }
}

fn destroy(env: &TestEnv) {
    for cue in cues(&DESTROY, &FAULTS) {
        env.up();
        run_with_fault(env, &["destroy", "--yes"], cue);
        // Either can come next: a new start from nothing, or the rest of the removal.
        if cue[1] == "before" {
            assert_eq!((env.up()["created"].clone(), env.tasks().as_str()), (json!(false), "50"), "{cue:?}");
        } else {
            assert_eq!(env.state(), "absent", "{cue:?}");
            assert_eq!((env.up()["created"].clone(), env.tasks().as_str()), (json!(true), "50"), "{cue:?}");
            run_with_fault(env, &["destroy", "--yes"], cue);
        }
        env.run(&["destroy", "--yes"]).ok();
        env.assert_nothing_left();
    }
}

fn looking(env: &TestEnv) {
    with_row(env);
    for cue in cues(&["logs"], &FAULTS) {
        run_with_fault(env, &["logs"], cue);
    }
    for cue in cues(&PROVING, &FAULTS) {
        run_with_fault(env, &["verify"], cue);
    }
    // After it begins, psql has the terminal, and with some engines it has become this process.
    for fault in ["fail", "kill"] {
        run_with_fault(env, &["psql", "--", "-c", "SELECT 1"], ["interactive", "before", fault]);
    }
    assert_eq!((env.state().as_str(), kept(env).as_str()), ("running", "1"));
}

fn moving(env: &TestEnv) {
    with_row(env);
    let whole = env.path("whole.tfsnap");
    let (whole, file) = (whole.to_str().unwrap(), env.path("cut.tfsnap"));
    env.run(&["snapshot", "export", whole]).ok();
    for cue in cues(&MOVING, &FAULTS) {
        run_with_fault(env, &["snapshot", "export", file.to_str().unwrap()], cue);
        assert!(!file.exists(), "{cue:?}");
        run_with_fault(env, &["snapshot", "import", whole, "--as", "cut"], cue);
        env.run(&["snapshot", "import", whole, "--as", "cut"]).ok();
        env.run(&["snapshot", "delete", "cut"]).ok();
    }
    assert_eq!(kept(env), "1");
}

/// Makes tests of the cases for one engine. An ordinary user's tfdev takes the same steps as root's.
macro_rules! steps_on {
    ($module:ident $engine:ident) => {
        mod $module {
            use super::{TestEngine::$engine, run_on};

            #[test]
            fn a_first_up_goes_on_after_each_step_failed() {
                run_on($engine, |env| super::first_up(env, "fail"));
            }

            #[test]
            fn a_first_up_goes_on_after_each_step_stalled_and_was_interrupted() {
                run_on($engine, |env| super::first_up(env, "stall"));
            }

            #[test]
            fn a_first_up_goes_on_after_a_kill_at_each_step() {
                run_on($engine, |env| super::first_up(env, "kill"));
            }

            #[test]
            fn an_up_of_a_stopped_instance_goes_on_after_a_fault_at_each_step() {
                run_on($engine, super::next_up);
            }

            #[test]
            fn an_up_that_waits_for_a_login_goes_on_after_a_fault() {
                run_on($engine, super::up_that_waits_for_a_login);
            }

            #[test]
            fn an_up_that_mends_passwords_goes_on_after_a_fault() {
                run_on($engine, super::up_that_mends_passwords);
            }

            #[test]
            fn a_down_goes_on_after_a_fault_at_each_step() {
                run_on($engine, super::down);
            }

            #[test]
            fn a_destroy_goes_on_after_a_fault_at_each_step() {
                run_on($engine, super::destroy);
            }

            #[test]
            fn an_export_and_an_import_go_on_after_a_fault() {
                run_on($engine, super::moving);
            }

            #[test]
            fn a_restore_begins_anew_after_a_fault() {
                run_on($engine, super::restoring);
            }

            #[test]
            fn a_replacement_goes_on_after_a_fault_at_each_step() {
                run_on($engine, super::replacing);
            }

            #[test]
            fn who_only_looks_harms_nothing_by_a_fault() {
                run_on($engine, super::looking);
            }
        }
    };
}

steps_on!(docker Docker);
steps_on!(native Native);

/// A server of someone else: there is no login to wait for (the engine logs in by itself), no password to mend, and no log.
mod external {
    use super::{TestEngine::External, run_on};

    #[test]
    fn a_first_up_goes_on_after_each_step_failed() {
        run_on(External, |env| super::first_up(env, "fail"));
    }

    #[test]
    fn a_first_up_goes_on_after_each_step_stalled_and_was_interrupted() {
        run_on(External, |env| super::first_up(env, "stall"));
    }

    #[test]
    fn a_first_up_goes_on_after_a_kill_at_each_step() {
        run_on(External, |env| super::first_up(env, "kill"));
    }

    #[test]
    fn a_next_up_goes_on_after_a_fault_at_each_step() {
        run_on(External, super::next_up);
    }

    #[test]
    fn a_down_goes_on_after_a_fault_at_each_step() {
        run_on(External, super::down);
    }

    #[test]
    fn a_destroy_goes_on_after_a_fault_at_each_step() {
        run_on(External, super::destroy);
    }
}

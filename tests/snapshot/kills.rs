//! The kill matrix: tfdev, its sessions in the server and the server itself are ended at every point that the code names,
//! and at random moments. After each there is the old or the new state, whole, and the next command puts all in order.

use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use serde_json::json;
use tfdev::fault::POINTS;

use super::{change, rows, snapshot, superuser, wait_for_order};
use crate::support::{Session, TestEngine, TestEnv, finish, on_every_engine, one, process, start, until};

// Each takes a minute, and what a kill leaves is the server's, whoever runs tfdev.
on_every_engine!(@by_one_user
    tfdev_is_killed_at_every_point_of_a_create
    tfdev_is_killed_at_every_point_of_a_restore
    tfdev_is_killed_at_every_point_of_a_rename_and_a_delete
    tfdev_is_killed_at_every_point_of_a_reset
    its_sessions_are_ended_at_every_point_of_a_change
    the_server_is_killed_at_every_point_of_a_change
    tfdev_is_killed_at_random_moments
);

/// A command that comes by a point, with the configuration that it needs.
struct Scene {
    points: &'static [&'static str],
    standby: bool,
    command: &'static [&'static str],
}

const SCENES: &[Scene] = &[
    Scene {
        points: &[
            "snapshot.locked",
            "snapshot.sweep.marked",
            "snapshot.create.intent",
            "snapshot.create.closing",
            "clone.working",
            "snapshot.create.copied",
            "snapshot.create.noted",
            "snapshot.background.intent",
            "snapshot.background.sent",
        ],
        standby: true,
        command: &["snapshot", "create", "new"],
    },
    Scene {
        points: &["snapshot.restore.intent", "snapshot.restore.copied"],
        standby: false,
        command: &["snapshot", "restore", "kept"],
    },
    Scene {
        points: &[
            "snapshot.restore.checked",
            "snapshot.restore.prepared",
            "snapshot.swap.locked",
            "snapshot.swap.renamed",
            "snapshot.swap.committed",
        ],
        standby: true,
        command: &["snapshot", "restore", "kept"],
    },
    Scene { points: &["snapshot.undo.begin"], standby: true, command: &["snapshot", "restore", "--undo"] },
    Scene { points: &["snapshot.rename.begin"], standby: true, command: &["snapshot", "rename", "old", "older"] },
    Scene {
        points: &["snapshot.delete.marked", "snapshot.delete.dropped"],
        standby: true,
        command: &["snapshot", "delete", "old"],
    },
    Scene {
        points: &[
            "snapshot.base.intent",
            "snapshot.base.made",
            "snapshot.base.migrated",
            "snapshot.base.filled",
            "snapshot.base.ready",
        ],
        standby: true,
        command: &["reset", "--yes", "--dataset", "small"],
    },
];

/// Points in whose middle something else than tfdev dies; the others differ only in what is noted already.
const OF_A_CHANGE: [&str; 8] = [
    "clone.working",
    "snapshot.create.copied",
    "snapshot.restore.copied",
    "snapshot.restore.prepared",
    "snapshot.swap.locked",
    "snapshot.swap.renamed",
    "snapshot.base.made",
    "snapshot.background.sent",
];

#[test]
fn every_point_has_a_scene() {
    let mut played: Vec<_> = SCENES.iter().flat_map(|scene| scene.points).copied().collect();
    // The others are those of exports and imports, of backups, of fresh databases, and of other settings.
    let other = ["backup.", "fresh.", "up."];
    let is_ours =
        |point: &&str| !crate::export::POINTS.contains(point) && !other.iter().any(|begin| point.starts_with(begin));
    let mut points: Vec<_> = POINTS.iter().copied().filter(is_ours).collect();
    played.sort_unstable();
    points.sort_unstable();
    assert_eq!(played, points);
}

/// An instance with the snapshot `kept`, whose rows are returned.
fn with_snapshot(env: &TestEnv) -> String {
    env.up();
    snapshot(env, &["create", "kept"]);
    rows(env)
}

/// Makes what the scenes' commands work on, and returns the states that may be there afterwards.
fn set_the_scene(env: &TestEnv, scene: &Scene, kept: &str) -> Vec<String> {
    env.write("tfdev.toml", format!("[snapshots]\nstandby = {}\n", scene.standby));
    let _ = env.run(&["snapshot", "delete", "new"]);
    let _ = env.run(&["snapshot", "delete", "older"]);
    if scene.command[0] == "reset" {
        // The base of this data set goes, and is to be made again.
        env.run(&["reset", "--yes", "--dataset", "none"]).ok();
    } else {
        let _ = env.run(&["snapshot", "create", "old"]);
        snapshot(env, &["restore", "kept"]);
    }
    change(env);
    let changed = rows(env);
    if scene.command.contains(&"--undo") {
        snapshot(env, &["restore", "kept"]);
    }
    // `up` loads the data set `small`, so the base of it is as the snapshot.
    vec![changed, kept.to_owned()]
}

/// Fails unless one of `states` is there whole, nothing that was kept is lost, and the next commands work.
#[track_caller]
fn check(env: &TestEnv, states: &[String], kept: &str, what: &str) {
    let now = until("a login", || {
        let outcome = crate::support::try_query(&env.url(), super::ROWS);
        outcome.ok().map(|mut rows| rows.remove(0))
    });
    assert!(states.contains(&now), "{what}: {now} is none of {states:?}");
    assert_eq!(env.status()["state"], json!("running"), "{what}");
    let after = env.run(&["snapshot", "create", "after", "--json"]).ok();
    assert_eq!(rows(env), now, "{what}: {}", after.stderr);
    snapshot(env, &["delete", "after"]);
    snapshot(env, &["restore", "kept"]);
    assert_eq!(rows(env), kept, "{what}");
    snapshot(env, &["restore", "--undo"]);
    assert_eq!(rows(env), now, "{what}");
    wait_for_order(env);
}

/// The command of a scene, with an order for a point.
fn ordered(env: &TestEnv, scene: &Scene, order: &str) -> std::process::Command {
    let mut command = env.command(scene.command);
    command.env("TFDEV_FAULT_POINT", order);
    command
}

/// Kills tfdev at each point of the scenes of `commands`.
fn kill_at_points(env: &TestEnv, commands: &[&str]) {
    let kept = with_snapshot(env);
    for scene in SCENES.iter().filter(|scene| commands.contains(&scene.command[scene.command.len().min(2) - 1])) {
        for point in scene.points {
            let states = set_the_scene(env, scene, &kept);
            let outcome = finish(start(ordered(env, scene, &format!("{point}=kill"))));
            assert_eq!(outcome.status.signal(), Some(9), "{point} was not reached: {outcome:?}");
            check(env, &states, &kept, point);
        }
    }
}

fn tfdev_is_killed_at_every_point_of_a_create(env: &TestEnv) {
    kill_at_points(env, &["create"]);
}

fn tfdev_is_killed_at_every_point_of_a_restore(env: &TestEnv) {
    kill_at_points(env, &["restore"]);
}

fn tfdev_is_killed_at_every_point_of_a_rename_and_a_delete(env: &TestEnv) {
    kill_at_points(env, &["rename", "delete"]);
}

fn tfdev_is_killed_at_every_point_of_a_reset(env: &TestEnv) {
    kill_at_points(env, &["--yes"]);
}

/// Something that is done in the middle of a command.
type Harm = Box<dyn FnOnce()>;

/// Runs each scene up to each point of a change, does harm there, and lets tfdev go on. `prepare` makes the harm
/// beforehand: at some points nobody can log in.
fn harm_at_points(env: &TestEnv, prepare: fn(&TestEnv) -> Harm, mend: fn(&TestEnv)) {
    let kept = with_snapshot(env);
    for scene in SCENES {
        for point in scene.points.iter().filter(|point| OF_A_CHANGE.contains(point)) {
            let states = set_the_scene(env, scene, &kept);
            env.write("pause/keep", "");
            let file = env.project.join("pause/here");
            let harm = prepare(env);
            let mut running = start(ordered(env, scene, &format!("{point}=pause:{}", file.display())));
            until(point, || (file.exists() || running.child.try_wait().unwrap().is_some()).then_some(()));
            assert!(file.exists(), "{point} was not reached: {:?}", finish(running));
            harm();
            std::fs::remove_file(&file).unwrap();
            // It may have been through with what matters.
            drop(finish(running));
            mend(env);
            check(env, &states, &kept, point);
        }
    }
}

fn its_sessions_are_ended_at_every_point_of_a_change(env: &TestEnv) {
    harm_at_points(
        env,
        |env| {
            let mut session = Session::open(&superuser(env, "postgres"));
            Box::new(move || {
                session.run(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_get_activity(NULL) WHERE application_name LIKE 'tfdev%'",
                );
            })
        },
        |_| {},
    );
}

fn the_server_is_killed_at_every_point_of_a_change(env: &TestEnv) {
    harm_at_points(
        env,
        |env| match env.engine() {
            TestEngine::Docker => {
                let container = env.container_name();
                Box::new(move || drop(crate::support::docker::docker(&["kill", "--signal", "KILL", &container])))
            }
            TestEngine::Native | TestEngine::NativeUser => {
                let server = crate::support::native::pid(env);
                Box::new(move || process::kill(server, "KILL"))
            }
            // Whoever runs it has it start again by itself, as it does when one of its processes dies.
            TestEngine::External => {
                let pids = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
                let process = one(&superuser(env, "postgres"), pids).parse().unwrap();
                Box::new(move || process::kill(process, "KILL"))
            }
        },
        |env| {
            until("the server's start", || env.run(&["up", "--dataset", "small"]).status.success().then_some(()));
        },
    );
}

/// How many random moments are tried; `make kill-matrix` tries 500.
#[expect(clippy::disallowed_methods, reason = "the tests' own surroundings, apart from Settings")]
fn rounds() -> usize {
    std::env::var("TFDEV_KILL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(6)
}

fn tfdev_is_killed_at_random_moments(env: &TestEnv) {
    let kept = with_snapshot(env);
    for round in 0..rounds() {
        let random = uuid::Uuid::new_v4().as_u128();
        let scene = &SCENES[usize::try_from(random % SCENES.len() as u128).unwrap()];
        let states = set_the_scene(env, scene, &kept);
        let delay = Duration::from_millis(u64::try_from((random >> 32) % 600).unwrap());
        let mut running = start(env.command(scene.command));
        std::thread::sleep(delay);
        let _ = running.child.kill();
        drop(finish(running));
        check(env, &states, &kept, &format!("round {round}: {:?} after {delay:?}", scene.command));
    }
}

/// One process of the server, not all of it. Someone else's server is killed in just this way above.
mod processes {
    use super::*;

    on_every_engine!(@of_ours_by_one_user a_process_of_the_server_is_killed_at_every_point_of_a_change);

    /// `kill -9` of what does tfdev's work in the server, after which the server starts itself again.
    fn a_process_of_the_server_is_killed_at_every_point_of_a_change(env: &TestEnv) {
        harm_at_points(
            env,
            |env| {
                let container = (env.engine() == TestEngine::Docker).then(|| env.container_name());
                let mut session = Session::open(&superuser(env, "postgres"));
                Box::new(move || {
                    let newest = "SELECT pid FROM pg_stat_get_activity(NULL) WHERE application_name LIKE 'tfdev%' \
                                  ORDER BY backend_start DESC LIMIT 1";
                    let pid = session.number(newest);
                    match container {
                        Some(name) => drop(crate::support::docker::docker(&[
                            "exec",
                            &name,
                            "sh",
                            "-c",
                            &format!("kill -9 {pid}"),
                        ])),
                        None => process::kill(u32::try_from(pid).unwrap(), "KILL"),
                    }
                })
            },
            |_| {},
        );
    }
}

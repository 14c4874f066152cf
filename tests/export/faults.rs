//! Kills in the middle.

use std::time::{Duration, Instant};

use super::dumps::slow_restore;
use super::{Side, text};
use crate::support::process::kill;
use crate::support::{PATIENCE, Session, TestEngine, TestEnv, finish, on_every_engine, query, start, until};

/// Without ready copies, so that what there is can be counted.
const NO_COPIES: &str = "[snapshots]\nstandby = false\n";

/// Waits until there is the snapshot `kept` and nothing else: one command has what was left over
/// dropped, the next one removes the role.
fn until_tidy(side: &Side<'_>) {
    until_tidy_after(side, "what is left over");
}

/// The same; `after` names what left it.
fn until_tidy_after(side: &Side<'_>, after: &str) {
    let begin = Instant::now();
    loop {
        side.run(&["snapshot", "rename", "kept", "kept"]).ok();
        let (made, files) = (side.made(), side.files_beside());
        if made.len() == 1 && files.is_empty() {
            return;
        }
        assert!(begin.elapsed() < PATIENCE, "{after}: databases and roles {made:?}, files {files:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

on_every_engine!(@of_ours a_dump_ends_with_a_tfdev_that_is_killed a_restore_ends_with_a_tfdev_that_is_killed);

/// How many sessions there are whose application or role is so.
fn sessions(side: &Side<'_>, condition: &str) -> usize {
    query(&side.superuser("postgres"), &format!("SELECT pid FROM pg_stat_activity WHERE {condition}")).len()
}

fn a_dump_ends_with_a_tfdev_that_is_killed(env: &TestEnv) {
    let side = Side::up(env);
    let mut watch = side.watch();
    // pg_dump waits for this lock.
    let mut locker = Session::open(&side.url());
    locker.run("BEGIN; LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE");
    let file = side.file("a.tfsnap");
    for signal in ["KILL", "INT"] {
        let running = start(side.command(&["snapshot", "export", text(&file)]));
        until("pg_dump to wait", || {
            (sessions(&side, "query ~ '^LOCK TABLE' AND wait_event_type = 'Lock'") == 1).then_some(())
        });
        kill(running.child.id(), signal);
        finish(running);
        until("pg_dump to end", || {
            (sessions(&side, "query ~ '^LOCK TABLE' AND wait_event_type = 'Lock'") == 0).then_some(())
        });
    }
    assert!(!file.exists());
    drop(locker);
    // What the first one left beside the file is gone with the next one.
    side.export(&file).ok();
    let left = std::fs::read_dir(file.parent().unwrap()).unwrap().flatten();
    let left = left.filter(|entry| entry.file_name().to_string_lossy().ends_with(".partial"));
    assert_eq!(left.count(), 0);
    watch.run("SELECT 1");
}

fn a_restore_ends_with_a_tfdev_that_is_killed(env: &TestEnv) {
    env.write("tfdev.toml", NO_COPIES);
    let side = Side::up(env);
    let mut watch = side.watch();
    let (good, slow) = (side.file("good.tfsnap"), side.file("slow.tfsnap"));
    side.export(&good).ok();
    slow_restore(&side, &good, &slow);
    side.import(&good, "kept").ok();
    until_tidy(&side);
    for signal in ["KILL", "INT"] {
        let running = start(side.command(&["snapshot", "import", text(&slow), "--as", "slow"]));
        until("pg_restore to sleep", || (sessions(&side, "wait_event = 'PgSleep'") == 1).then_some(()));
        assert!(!side.files_beside().is_empty());
        kill(running.child.id(), signal);
        finish(running);
        until("pg_restore to end", || (sessions(&side, "usename ~ '_import$'") == 0).then_some(()));
        until("its file to go", || side.files_beside().is_empty().then_some(()));
        until_tidy(&side);
    }
    watch.run("SELECT 1");
}

/// Places of the program where it is killed (`src/fault.rs`).
pub(crate) const POINTS: [&str; 6] = [
    "snapshot.import.intent",
    "snapshot.import.created",
    "snapshot.import.copied",
    "snapshot.import.restored",
    "snapshot.import.adopted",
    "snapshot.export.opened",
];

#[test]
fn an_import_or_export_that_is_killed_anywhere_leaves_nothing_for_long() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.write("tfdev.toml", NO_COPIES);
    let side = Side::up(&env);
    let file = side.file("a.tfsnap");
    side.export(&file).ok();
    side.import(&file, "kept").ok();
    until_tidy(&side);
    for point in POINTS {
        let arguments: &[&str] = if point.contains("export") {
            &["snapshot", "export", "/dev/null/never", "--snapshot", "kept"]
        } else {
            &["snapshot", "import", text(&file), "--as", "new"]
        };
        let mut command = side.command(arguments);
        command.env("TFDEV_FAULT_POINT", format!("{point}=kill"));
        let outcome = finish(start(command));
        assert_eq!(outcome.status.code(), None, "{point} was not reached: {}", outcome.stderr);
        until_tidy_after(&side, point);
        let open = "SELECT datname FROM pg_database WHERE datallowconn AND datname ~ '^tfdev_s'";
        assert_eq!(query(&side.superuser("postgres"), open), Vec::<String>::new(), "{point}");
        side.import(&file, "new").ok();
        side.run(&["snapshot", "delete", "new"]).ok();
        until_tidy(&side);
    }
}

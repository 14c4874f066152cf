//! Disks that are full and ports that are taken.

use std::net::TcpListener;

use serde_json::json;
use tfdev::config::PortChoice;
use tfdev::engine::ports;
use tfdev::instance::Instance;

use super::{Native, shell};
use crate::support::disk::Disk;
use crate::support::{finish, one, query, start, until};

/// The folders below `native` of the instance that are or were to be a data folder.
fn made(native: &Native) -> Vec<String> {
    let folder = native.env.instance_dir().join("native");
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).filter(|name| name.starts_with("data")).collect()
}

#[test]
fn a_full_disk_is_told_leaves_nothing_half_made_and_hinders_nothing_once_there_is_room() {
    let Some(mut native) = Native::ordinary() else { return };
    native.env.begin_with_no_cache();
    let Some(disk) = Disk::mount(native.env.state_dir(), 20) else { return };
    let full = |words: &str| {
        let outcome = native.run(&["up", "--dataset", "none"]).exits(1);
        let outcome = outcome.says(words).says("No space left on device");
        outcome.says(&format!("free some space below `{}", disk.0.display()));
        assert_eq!(made(&native), [] as [&str; 0]);
        assert_eq!(native.status()["state"], "absent");
    };
    // In initdb, and then in the copy of what it made.
    full("cannot make a new data folder");
    disk.resize(500);
    assert_eq!(native.up()["created"], json!(true));
    native.destroy();
    disk.resize(20);
    full("cannot unpack a data folder");
    disk.resize(500);
    assert_eq!(native.up()["created"], json!(true));
    assert_eq!(native.tasks(), "50");
    native.destroy();
}

#[test]
fn a_disk_that_fills_up_in_mid_copy_costs_the_copy_and_nothing_else() {
    let Some(native) = Native::ordinary() else { return };
    let Some(disk) = Disk::mount(native.env.state_dir(), 1000) else { return };
    native.up();
    // Copied through the WAL, and then, with this, file by file.
    for (fill, room) in [
        ("CREATE TABLE bulk ()", 4),
        ("INSERT INTO bulk_rows SELECT repeat(md5(g::text), 60) FROM generate_series(1, 60000) g", 40),
    ] {
        query(&native.url(), "CREATE TABLE IF NOT EXISTS bulk_rows (text text)");
        query(&native.url(), fill);
        let rows = one(&native.url(), "SELECT count(*) FROM bulk_rows");
        let pause = native.env.project.join("pause");
        let mut create = native.command(&["snapshot", "create", "full"]);
        create.env("TFDEV_FAULT_POINT", format!("snapshot.create.intent=pause:{}", pause.display()));
        let create = start(create);
        until("the intent", || pause.exists().then_some(()));
        disk.resize(disk.used() + room);
        std::fs::remove_file(&pause).unwrap();
        finish(create).says("disk is full");
        disk.resize(1000);
        // A server that could not write its log has ended, and comes back whole.
        native.up();
        assert_eq!((native.tasks(), one(&native.url(), "SELECT count(*) FROM bulk_rows")), ("50".to_owned(), rows));
        native.run(&["snapshot", "create", "after"]).ok();
        let list = native.run(&["snapshot", "list", "--json"]).ok().json();
        assert_eq!((&list["snapshots"].as_array().unwrap().len(), &list["left_overs"]), (&1, &json!([])));
        native.run(&["snapshot", "delete", "after"]).ok();
    }
}

#[test]
fn a_full_disk_of_the_cache_is_told() {
    let Some(mut native) = Native::ordinary() else { return };
    native.env.begin_with_no_cache();
    let Some(disk) = Disk::mount(native.env.path("cache"), 20) else { return };
    let outcome = native.run(&["up", "--dataset", "none"]).exits(1);
    outcome.says("No space left on device").says(&format!("free some space below `{}", disk.0.display()));
    assert_eq!(made(&native), [] as [&str; 0]);
    let left = shell(&format!("find {} -name '*.tar*'", disk.0.display()));
    assert_eq!(left, "", "what is of no use takes no room");
    disk.resize(500);
    assert_eq!(native.up()["created"], json!(true));
}

#[test]
fn a_machine_without_a_free_port_is_told_and_one_that_is_free_again_is_used() {
    let Some(native) = Native::new() else { return };
    let project = native.env.settled("project").0;
    let instance = Instance {
        project,
        name: "dev".to_owned(),
        project_dir: native.env.project.clone(),
        state_dir: native.env.state_dir(),
    };
    let candidates = ports::candidates(PortChoice::Auto, None, &instance);
    assert!(candidates.len() > 60 && candidates.contains(&ports::PREFERRED));
    // Another test may have a port, and give it back at any time: then it is this instance's, and all begins again.
    let mut taken = Vec::new();
    let refused = until("a machine without a free port", || {
        let held = |port: &u16| taken.iter().any(|held: &TcpListener| held.local_addr().unwrap().port() == *port);
        let free: Vec<_> = candidates.iter().filter(|port| !held(port)).collect();
        taken.extend(free.into_iter().filter_map(|port| TcpListener::bind(("127.0.0.1", *port)).ok()));
        let outcome = native.run(&["up", "--dataset", "none"]);
        if !outcome.status.success() {
            return Some(outcome.exits(6));
        }
        assert!(taken.len() < candidates.len(), "every port is held, and yet: {}", outcome.stdout);
        native.destroy();
        None
    });
    refused.says("none of the ports that tfdev would use is free").says("`port`");
    assert_eq!(native.status()["state"], "stopped", "its data is made, and waits for a port");
    taken.truncate(1);
    native.up();
    assert_eq!(native.tasks(), "50");
}

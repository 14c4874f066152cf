//! A restored instance in the place of the one that it was restored from.

use serde_json::json;

use super::{Side, assert_prefix, history};
use crate::support::docker::docker;
use crate::support::{
    Made, ONE_SERVER, TestEngine, TestEnv, finish, on_every_engine, one, query, run_on, start, try_query,
};

/// An instance with three rows up to the point `good`, and two behind it.
fn with_good_point(env: &TestEnv) -> Side<'_> {
    let side = Side::up(env);
    env.leave_common_port();
    side.add(1..=3);
    side.base();
    side.backup(&["mark", "good"]).ok();
    side.add(4..=5);
    side
}

on_every_engine!(@of_ours_by_one_user
    what_was_restored_takes_the_place_and_what_was_there_is_kept
    whenever_it_is_killed_each_is_whole_under_one_of_the_names);

fn what_was_restored_takes_the_place_and_what_was_there_is_kept(env: &TestEnv) {
    let side = with_good_point(env);
    let (url, superuser) = (env.url(), side.superuser());
    side.backup(&["restore", "--to-name", "good", "--as", "before", "--replace"]).exits(5).says("--yes");
    let swap =
        |name: &str| side.backup(&["--yes", "restore", "--to-name", "good", "--as", name, "--replace"]).ok().json();
    let replaced = swap("before");
    assert_eq!((&replaced["instance"], &replaced["replaced"]), (&json!("dev"), &json!("before")), "{replaced}");
    assert_eq!(replaced["url"], json!(url), "port and passwords are as they were");
    assert_prefix(&url, 3);
    assert_eq!(one(&superuser, "SHOW archive_mode"), "on");
    let old = env.run(&["--instance", "before", "status", "--json"]).ok().json();
    assert_eq!(old["state"], json!("stopped"), "{old}");

    // It goes on as the instance that it is now: stop, start, back up, restore.
    env.run(&["down"]).ok();
    env.up();
    assert_eq!(env.url(), url);
    side.add(4..=4);
    side.base();
    assert_prefix(side.restore(&[], "copy")["url"].as_str().unwrap(), 4);
    side.destroy("copy");

    // What was there has all that it had, on another port.
    let old = env.run(&["--instance", "before", "up", "--json", "--dataset", "none"]).ok().json();
    assert_prefix(old["url"].as_str().unwrap(), 5);
    assert_eq!(one(old["url"].as_str().unwrap(), "SHOW archive_mode"), "off");
    assert_prefix(&url, 4);
    side.destroy("before");
    assert_eq!(env.made(), ONE_SERVER);
    assert_prefix(&url, 4);

    // The name is free again, and nothing under it is what was kept there.
    swap("before");
    assert_prefix(&url, 3);
    side.destroy("before");

    // The way back leads to what was replaced, though that is gone; and a dump takes the place as well.
    let listed = side.backup(&["list"]).ok().json();
    let marks = listed.as_array().unwrap().iter().flat_map(|cluster| cluster["marks"].as_array().unwrap().clone());
    let last = marks.map(|mark| mark["name"].as_str().unwrap().to_owned()).filter(|name| name.starts_with("replaced"));
    let back = side.restore(&["--to-name", &last.max().unwrap()], "back");
    assert_prefix(back["url"].as_str().unwrap(), 4);
    side.destroy("back");
    let dump = side.backup(&["now", "--only", "logical"]).ok().json();
    side.sql("DELETE FROM history");
    side.backup(&["--yes", "restore", dump[0]["id"].as_str().unwrap(), "--as", "emptied", "--replace"]).ok();
    assert_eq!(env.url(), url);
    assert_prefix(&url, 3);
    side.destroy("emptied");
    side.backup(&["--yes", "--instance", "nowhere", "restore", "--as", "x", "--replace"])
        .exits(4)
        .says("nothing to replace");
}

fn whenever_it_is_killed_each_is_whole_under_one_of_the_names(env: &TestEnv) {
    let side = with_good_point(env);
    let url = env.url();
    let mut wanted = (5, 3);
    for point in ["backup.replace.stopped", "backup.replace.prepared", "backup.replace.exchanged"] {
        let arguments = ["--yes", "backup", "restore", "--to-name", "good", "--as", "other", "--replace"];
        let mut killed = env.command(&arguments);
        killed.env("TFDEV_FAULT_POINT", format!("{point}=kill"));
        assert!(!finish(start(killed)).status.success(), "{point}");
        if point.ends_with("exchanged") {
            wanted = (3, 5);
        }
        env.up();
        assert_eq!(env.url(), url, "{point}");
        assert_prefix(&url, wanted.0);
        assert_eq!(query(&url, "INSERT INTO history (id) VALUES (99) RETURNING id"), ["99"], "{point}");
        query(&url, "DELETE FROM history WHERE id = 99");
        let other = env.run(&["--instance", "other", "up", "--json", "--dataset", "none"]).ok().json();
        assert_prefix(other["url"].as_str().unwrap(), wanted.1);
        assert_eq!(history(&url).0, wanted.0.to_string(), "{point}: they are two servers");
        side.destroy("other");
        assert!(try_query(other["url"].as_str().unwrap(), "SELECT 1").is_err());
        assert_eq!(env.made(), ONE_SERVER, "{point}");
    }
}

/// Up, and how many rows its history has.
fn rows_of(env: &TestEnv, instance: &str) -> String {
    let up = env.run(&["--instance", instance, "up", "--json", "--dataset", "none"]).ok().json();
    history(up["url"].as_str().unwrap()).0
}

#[test]
fn whatever_is_lost_in_docker_each_name_has_its_own_data() {
    run_on(TestEngine::Docker, |env: &TestEnv| {
        let side = with_good_point(env);
        side.backup(&["--yes", "restore", "--to-name", "good", "--as", "before", "--replace"]).ok();
        let both = || (rows_of(env, "dev"), rows_of(env, "before"));
        let own = ("3".to_owned(), "5".to_owned());
        assert_eq!(both(), own);
        env.run(&["verify", "--json"]).json();
        let volume = env.status()["volume"].as_str().unwrap().to_owned();
        assert!(volume.ends_with("-before-data"), "{volume}: the volume that it brought");

        // The records, while the containers are there and while they run.
        env.lose_records();
        assert_eq!(both(), own);
        assert_eq!(env.status()["volume"], json!(volume));
        // The containers.
        let remove_containers = || {
            for container in env.in_docker().iter().filter(|name| !name.ends_with("-data")) {
                docker(&["rm", "--force", container]);
            }
        };
        remove_containers();
        assert_eq!(both(), own);
        // Both.
        remove_containers();
        env.lose_records();
        assert_eq!(both(), own);
        assert_eq!(env.made(), Made { servers: 2, data: 2 });

        // Both, and the data of this name: what is in the volume of its name is the other one's.
        remove_containers();
        env.lose_records();
        docker(&["volume", "rm", &volume]);
        env.run(&["up"]).exits(5).says("is the instance `before` by now").says("--instance before");
        env.run(&["destroy", "--yes"]).exits(5).says("is the instance `before` by now");
        assert_eq!(rows_of(env, "before"), "5");
        // Now that this is on record, the name gets a volume of its own.
        env.up();
        assert!(try_query(&env.url(), "SELECT FROM history").is_err());
        assert_eq!(rows_of(env, "before"), "5");
        side.destroy("before");
        assert_eq!(env.made(), ONE_SERVER);
        env.run(&["doctor", "--json"]).json();
    });
}

#[test]
fn a_restore_of_data_in_memory_takes_no_place() {
    run_on(TestEngine::Docker, |env: &TestEnv| {
        let side = Side::up(env);
        let base = side.base();
        env.run(&["--instance", "quick", "up", "--profile", "test"]).ok();
        side.backup(&["--yes", "--instance", "quick", "restore", &base, "--as", "other", "--replace"])
            .exits(5)
            .says("in memory");
        env.run(&["--instance", "quick", "destroy", "--yes"]).ok();
        assert_eq!(env.made(), ONE_SERVER, "nothing was restored for that");
    });
}

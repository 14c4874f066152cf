//! The profile's limits on memory and processor time: they hold, or `status` says why not.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Native, is_root, kill, shell, skip};
use crate::support::{Session, one, try_query, until};

/// The control groups that the running server is on record with.
fn groups(native: &Native) -> Vec<PathBuf> {
    let record = std::fs::read_to_string(native.env.instance_dir().join("native/limits.json")).unwrap();
    let record: Value = serde_json::from_str(&record).unwrap();
    record["groups"].as_array().unwrap().iter().map(|path| path.as_str().unwrap().into()).collect()
}

/// What a file of any of the groups says.
fn read(groups: &[PathBuf], file: &str) -> Option<String> {
    groups.iter().find_map(|group| std::fs::read_to_string(group.join(file)).ok()).map(|text| text.trim().to_owned())
}

/// The server and all of its children.
fn processes(native: &Native) -> Vec<String> {
    let pid = native.pid();
    let children = shell(&format!("cat /proc/{pid}/task/{pid}/children"));
    std::iter::once(pid.to_string()).chain(children.split_whitespace().map(str::to_owned)).collect()
}

fn assert_limited(native: &Native) -> Vec<PathBuf> {
    let groups = groups(native);
    // Workers come and go, so it is looked at until nothing happens meanwhile.
    until("the same processes in the server and in its groups", || {
        let processes = processes(native);
        let are_members = groups.iter().all(|group| {
            let members = shell(&format!("cat {}/cgroup.procs", group.display()));
            let members: Vec<_> = members.lines().collect();
            members.len() == processes.len() && processes.iter().all(|process| members.contains(&process.as_str()))
        });
        (are_members && processes.len() > 5).then_some(())
    });
    let memory = read(&groups, "memory.limit_in_bytes").or_else(|| read(&groups, "memory.max"));
    assert_eq!(memory.unwrap(), (1u64 << 30).to_string());
    let quota = read(&groups, "cpu.max").unwrap_or_else(|| {
        let part = |file| read(&groups, file).unwrap();
        format!("{} {}", part("cpu.cfs_quota_us"), part("cpu.cfs_period_us"))
    });
    let (quota, period) = quota.split_once(' ').unwrap();
    assert_eq!(quota, period, "one core");
    groups
}

#[test]
fn the_server_and_its_children_are_held_to_the_profile_or_status_says_why_not() {
    for native in Native::each() {
        native.up();
        let status = native.status();
        if status["limits_enforced"] == json!(false) {
            let reason = status["limits_reason"].as_str().unwrap();
            let text = native.run(&["status"]).ok().stdout;
            assert!(!reason.is_empty() && text.contains(&format!("not limited by this engine: {reason}")), "{text}");
            assert!(groups(&native).is_empty());
            let may = is_root() && status["data_dir"].as_str().unwrap().starts_with("/var/lib/tfdev");
            assert!(!may || shell("touch /sys/fs/cgroup/memory/x 2>&1 || true").contains("Read-only"), "{reason}");
            continue;
        }
        assert_eq!(status["limits_reason"], json!(null));
        assert!(!native.run(&["status"]).ok().stdout.contains("not limited"));
        let _session = Session::open(&native.url());
        let made = assert_limited(&native);

        native.run(&["down"]).ok();
        assert!(made.iter().all(|group| !group.exists()), "{made:?}");
        assert_eq!(native.status()["limits_enforced"], json!(true), "as far as can be seen");
        native.up();
        assert_limited(&native);
        kill(native.pid(), "KILL");
        until("the server's end", || (native.status()["state"] == "crashed").then_some(()));
        native.up();
        let made = assert_limited(&native);
        native.destroy();
        assert!(made.iter().all(|group| !group.exists()), "{made:?}");
    }
}

#[test]
fn other_limits_come_with_another_profile() {
    let Some(native) = Native::new() else { return };
    native.up();
    if native.status()["limits_enforced"] == json!(false) {
        return skip("nothing can be limited here");
    }
    native.run(&["up", "--profile", "test", "--dataset", "none"]).ok();
    let groups = groups(&native);
    let memory = read(&groups, "memory.limit_in_bytes").or_else(|| read(&groups, "memory.max"));
    assert_eq!(memory.unwrap(), (4u64 << 30).to_string());
    assert_eq!(read(&groups, "cpu.cfs_quota_us"), None, "all cores");
    assert_eq!(native.status()["limits_enforced"], json!(true));
}

#[test]
fn a_query_that_wants_more_memory_is_ended_and_the_server_goes_on() {
    let Some(native) = Native::new() else { return };
    native.up();
    if native.status()["limits_enforced"] == json!(false) {
        return skip("nothing can be limited here");
    }
    let url = native.url();
    let greedy = "SELECT cardinality(array_agg(repeat('x', 1000000) || g)) FROM generate_series(1, 3000) g";
    let error = try_query(&url, greedy).unwrap_err();
    until("the server's recovery", || try_query(&url, "SELECT 1").ok());
    assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "50", "{error}");
    assert!(native.run(&["logs"]).ok().stdout.contains("was terminated by signal 9"), "{error}");
    assert!(Path::new(&groups(&native)[0]).exists());
}

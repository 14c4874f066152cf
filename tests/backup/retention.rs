//! Forgetting what is too old.

use serde_json::{Value, json};

use super::Side;
use crate::support::{TestEngine, TestEnv, run_on};

/// Makes a backup in the store look as if it was made so many days ago.
fn age(side: &Side<'_>, id: &str, days: i64) {
    let path = side.stored_with(&[id, "manifest.json"]);
    let mut manifest: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
    manifest["created"] = json!(at.to_string());
    manifest["finished"] = json!(at.to_string());
    std::fs::write(&path, manifest.to_string()).unwrap();
}

#[test]
fn old_backups_go_and_the_reason_is_told() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        let ids: Vec<String> = (0..3)
            .map(|number| {
                side.add(number..=number);
                let made = side.backup(&["now", "--only", "logical"]).ok().json();
                // The name has the second in it.
                crate::support::until("another second", || {
                    let now = jiff::Timestamp::now().strftime("%Y%m%dT%H%M%SZ").to_string();
                    (!made[0]["id"].as_str().unwrap().starts_with(&now)).then_some(())
                });
                made[0]["id"].as_str().unwrap().to_owned()
            })
            .collect();
        side.backup(&["verify", &ids[0]]).ok();
        for (index, id) in ids.iter().enumerate() {
            age(&side, id, 20 - i64::try_from(index).unwrap());
        }
        let before = side.stored();
        let report = side.backup(&["prune", "--dry-run"]).ok().json();
        let fates: Vec<(bool, &str)> = report["decisions"]["full"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["keep"].as_bool().unwrap(), one["why"].as_str().unwrap()))
            .collect();
        assert_eq!(fates.iter().map(|(keep, _)| *keep).collect::<Vec<_>>(), [true, false, true], "{report}");
        assert!(fates[0].1.contains("proven") && fates[1].1.contains("older than 7 days"), "{report}");
        assert_eq!(side.stored(), before, "only told");
        let installed = side.backup(&["agent", "install"]).ok().json();
        let unit = std::fs::read_to_string(installed["file"].as_str().unwrap()).unwrap();
        assert!(unit.contains("\"backup\" \"agent\""), "{unit}");
        // Killed after the manifest of a backup is gone, the rest goes with a later one.
        let mut killed = env.command(&["backup", "prune"]);
        killed.env("TFDEV_FAULT_POINT", "backup.forget.deleted=kill");
        assert!(!crate::support::finish(crate::support::start(killed)).status.success());
        side.backup(&["prune"]).ok();
        let listed = side.backup(&["list"]).ok().json();
        let left: Vec<&str> =
            listed[0]["backups"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
        assert_eq!(left, [ids[0].as_str(), ids[2].as_str()]);
    });
}

//! What goes wrong: the store is away, something in it is damaged or missing, someone is killed.

use serde_json::json;

use super::{Side, assert_prefix};
use crate::support::{ONE_SERVER, TestEngine, TestEnv, finish, native, one, process, run_on, start, until};

#[test]
fn a_store_that_is_away_stands_in_nobodys_way() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        // Backups are switched on for a server that is there already.
        env.write("tfdev.toml", format!("project = \"{}\"\n", env.id));
        env.up();
        env.run(&["backup", "status"]).exits(4).says("[backup]");
        let store = env.path("store");
        env.write(
            "tfdev.toml",
            format!("project = \"{}\"\n[backup]\nstore = \"file://{}\"\n", env.id, store.display()),
        );
        env.run(&["backup", "now", "--only", "physical"]).exits(5).says("`tfdev up` restarts it");
        env.run(&["backup", "status"]).exits(1);
        let side = Side { env, store: store.clone() };
        env.up();
        side.sql("CREATE TABLE history (id bigint PRIMARY KEY)");
        side.base();
        side.add(1..=1);
        side.ship();

        let away = env.path("away");
        std::fs::rename(&store, &away).unwrap();
        std::fs::write(&store, "no folder").unwrap();
        side.add(2..=2);
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        side.backup(&["agent", "--once"]).exits(8).says("cannot use the folder");
        side.add(3..=3);
        std::fs::remove_file(&store).unwrap();
        std::fs::rename(&away, &store).unwrap();
        side.ship();
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 3);
        side.destroy("restored");
        assert!(side.backup(&["status"]).json()["rpo_seconds"].as_u64().unwrap() <= 60);

        // Without the manifest of a first backup, which a kill left, all of it counts as never made.
        let stored = side.stored();
        let mut killed = env.command(&["backup", "now", "--only", "physical"]);
        killed.env("TFDEV_FAULT_POINT", "backup.full.stored=kill");
        assert!(!finish(start(killed)).status.success());
        assert!(side.stored().len() > stored.len());
        let listed = side.backup(&["list"]).ok().json();
        assert_eq!(listed[0]["backups"].as_array().unwrap().len(), 1);

        // The server dies in the middle: no backup, and no word of one.
        let order = env.path("order");
        let mut paused = env.command(&["backup", "now", "--only", "physical"]);
        paused.env("TFDEV_FAULT_POINT", format!("backup.full.stored=pause:{}", order.display()));
        let paused = start(paused);
        until("the pause", || order.exists().then_some(()));
        side.backup(&["--timeout", "1", "mark", "meanwhile"]).exits(6).says("at work on the backups");
        std::fs::remove_file(&order).unwrap();
        finish(paused).ok();
    });
}

#[test]
fn the_server_dies_while_it_is_backed_up() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        // More than what is on its way at once.
        side.sql("INSERT INTO history (id) SELECT generate_series(1, 200000)");
        for kind in ["logical", "physical"] {
            let order = env.path("order");
            let mut paused = env.command(&["backup", "now", "--only", kind]);
            paused.env("TFDEV_FAULT_POINT", format!("backup.{kind}.begun=pause:{}", order.display()));
            let paused = start(paused);
            until("the pause", || order.exists().then_some(()));
            process::kill(native::pid(env), "KILL");
            until("the server's end", || native::servers_of(env).is_empty().then_some(()));
            std::fs::remove_file(&order).unwrap();
            let outcome = finish(paused);
            assert!(!outcome.status.success(), "{kind}: {}", outcome.stdout);
            env.up();
            let manifests = side.stored().iter().filter(|path| path.ends_with("manifest.json")).count();
            assert_eq!(manifests, 0, "{kind}: {:?}", side.stored());
        }
        side.backup(&["now"]).ok();
        let proven = side.backup(&["verify"]).ok().json();
        assert_eq!(proven.as_array().unwrap().len(), 2);
    });
}

#[test]
fn what_is_damaged_or_missing_is_found_and_told() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        side.add(1..=2);
        let first = side.base();
        side.add(3..=3);
        side.ship();
        side.add(4..=4);
        side.ship();
        let good = side.backup(&["list"]).ok().json();

        // A segment in the middle is not there.
        let segments: Vec<String> = side.stored().into_iter().filter(|path| path.contains("/wal/")).collect();
        let middle = side.store.join(&segments[segments.len() - 2]);
        let kept = std::fs::read(&middle).unwrap();
        std::fs::remove_file(&middle).unwrap();
        let segment = middle.file_name().unwrap().to_str().unwrap()[..24].to_owned();
        side.backup(&["restore", "--as", "other"]).exits(5).says(&segment).says("--to-lsn");
        assert!(side.backup(&["status"]).exits(1).stdout.contains(&segment));
        // The backup by itself needs none of that.
        assert_prefix(side.restore(&[&first], "alone")["url"].as_str().unwrap(), 2);
        side.destroy("alone");

        // It is there, and another.
        let mut changed = kept.clone();
        changed[kept.len() / 2] ^= 0x55;
        std::fs::write(&middle, changed).unwrap();
        side.backup(&["restore", "--as", "other"]).exits(8).says(&segment).says("damaged");
        assert_eq!(env.made(), ONE_SERVER, "nothing is left of a restore that failed");
        std::fs::write(&middle, &kept).unwrap();

        // The base is cut off at 60 %.
        let base = side.stored_with(&[&first, "base.tar.zst"]);
        let whole = std::fs::read(&base).unwrap();
        std::fs::write(&base, &whole[..whole.len() * 6 / 10]).unwrap();
        side.backup(&["restore", "--as", "other"]).exits(8).says("damaged");
        side.backup(&["verify"]).exits(1);
        let status = side.backup(&["status"]).exits(1).json();
        assert!(status["alarms"].to_string().contains("did not give what was recorded"), "{status}");
        std::fs::write(&base, &whole).unwrap();

        // A hash is no proof: the log was tampered with, its checksum is right, and still a row is another one.
        let manifest = side.stored_with(&[&first, "manifest.json"]);
        let text = std::fs::read_to_string(&manifest).unwrap();
        let other = text.replacen("\"rows\": 2", "\"rows\": 7", 1);
        assert_ne!(text, other);
        std::fs::write(&manifest, other).unwrap();
        let failed = side.backup(&["verify"]).exits(1).json();
        assert!(failed[0]["problems"].to_string().contains("2 rows, and had 7"), "{failed}");
        std::fs::write(&manifest, &text).unwrap();
        side.backup(&["verify"]).ok();
        assert_eq!(side.backup(&["list"]).ok().json()[0]["marks"], good[0]["marks"]);

        // A manifest that cannot be read hides no other backup, and what it may need stays.
        std::fs::write(&manifest, &text[..text.len() / 2]).unwrap();
        assert!(side.backup(&["status"]).exits(1).stdout.contains("cannot be understood"));
        side.backup(&["restore", &first, "--as", "other"]).exits(8).says("cannot be understood");
        let report = side.backup(&["prune"]).ok().json();
        assert_eq!(report["removed"], json!([]));
        std::fs::write(&manifest, &text).unwrap();

        // Another server has written the segment that comes next.
        // The row first: right behind a switch the position still counts to the segment before.
        side.add(5..=5);
        let next = one(&side.superuser(), "SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
        let foreign = middle.with_file_name(format!("{next}-{}.zst", "0".repeat(64)));
        std::fs::write(&foreign, "x").unwrap();
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the segment in the spool", || side.spooled().contains(&next).then_some(()));
        side.backup(&["agent", "--once"]).exits(1).says("another").says(&next);
        assert!(side.spooled().contains(&next), "it waits");
        std::fs::remove_file(&foreign).unwrap();
        side.ship();
        assert_prefix(side.restore(&[], "whole")["url"].as_str().unwrap(), 5);
    });
}

#[test]
fn one_agent_works_and_what_it_leaves_when_killed_is_taken_up() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        side.add(1..=2);
        let order = env.path("order");
        let mut agent = env.command(&["backup", "agent"]);
        agent.env("TFDEV_FAULT_POINT", format!("backup.verify.restored=pause:{}", order.display()));
        let agent = start(agent);
        // The first pass makes the full backups that there are none of, and proves them.
        until("a throw-away server", || order.exists().then_some(()));
        side.backup(&["agent", "--once"]).exits(6).says("an agent");
        // However long that takes, what is committed meanwhile gets into the store by itself.
        side.add(3..=3);
        one(&side.superuser(), "SELECT pg_switch_wal()");
        let status = until("nothing to lose", || {
            let status = side.backup(&["status"]).json();
            (status["rpo_seconds"] == json!(0)).then_some(status)
        });
        assert_eq!(status["agent"], json!(true), "{status}");
        until("proven backups", || {
            let _ = std::fs::remove_file(&order);
            let listed = side.backup(&["list"]).ok().json();
            let backups = listed[0]["backups"].as_array()?;
            let is_proven = backups.len() == 2 && backups.iter().all(|one| one["verified"]["passed"] == json!(true));
            is_proven.then_some(())
        });
        process::kill(agent.child.id(), "KILL");
        finish(agent);

        for point in ["backup.ship.put", "backup.ship.stored"] {
            side.add_next();
            one(&side.superuser(), "SELECT pg_switch_wal()");
            until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
            let mut killed = env.command(&["backup", "agent", "--once"]);
            killed.env("TFDEV_FAULT_POINT", format!("{point}=kill"));
            assert!(!finish(start(killed)).status.success(), "{point}");
            assert!(!side.spooled().is_empty(), "{point}: it leaves the spool last");
            side.ship();
        }
        for point in ["backup.restore.intent", "backup.restore.filled", "backup.restore.promoted"] {
            let mut killed = env.command(&["backup", "restore", "--as", "restored"]);
            killed.env("TFDEV_FAULT_POINT", format!("{point}=kill"));
            assert!(!finish(start(killed)).status.success(), "{point}");
            side.run(&["--instance", "restored", "up"]).exits(5).says("cut off");
            assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 5);
            side.destroy("restored");
        }
        let mut killed = env.command(&["backup", "verify"]);
        killed.env("TFDEV_FAULT_POINT", "backup.verify.restored=kill");
        assert!(!finish(start(killed)).status.success());
        side.backup(&["verify"]).ok();
        assert_eq!(env.made(), ONE_SERVER, "the throw-away server of the one that was killed is gone too");
    });
}

//! The log on its way: parts of it are missing, and the server cannot hand it over.

use serde_json::json;

use super::{Side, assert_prefix};
use crate::support::{ONE_SERVER, TestEngine, TestEnv, finish, one, query, run_on, start, until};

/// The server's clock, as a target.
fn now(side: &Side<'_>) -> String {
    let now = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    one(&side.env.url(), now)
}

/// The project's file without a place for backups, and the server with it.
fn without_archive(side: &Side<'_>, work: impl FnOnce()) {
    let project = format!("project = \"{}\"\n", side.env.id);
    side.env.write("tfdev.toml", &project);
    side.env.up();
    work();
    side.env.write("tfdev.toml", format!("{project}[backup]\nstore = \"file://{}\"\n", side.store.display()));
    side.env.up();
}

#[test]
fn a_gap_in_the_log_is_noticed_and_told_and_a_new_base_begins_behind_it() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        side.add(1..=1);
        side.backup(&["agent", "--once"]).ok();
        side.add(2..=3);
        let before = now(&side);
        // Recovery to a time ends at the first commit behind it.
        side.add(4..=4);
        side.ship();
        let within = std::cell::RefCell::new(String::new());
        without_archive(&side, || {
            // Each of these segments is over, and used again for a later one.
            for id in 5..=7 {
                side.add(id..=id);
                within.replace(now(&side));
                query(&side.superuser(), "SELECT pg_switch_wal()");
                query(&side.superuser(), "CHECKPOINT");
            }
        });
        side.add(8..=8);
        side.ship();
        let status = side.backup(&["status"]).exits(1).json();
        assert!(status["alarms"][0].as_str().unwrap().contains("the log has a gap at 0000000"), "{status}");
        side.backup(&["restore", "--as", "other"]).exits(5).says("is missing in the store");

        // Nobody has to do anything about it, but run the agent.
        let pass = side.backup(&["agent", "--once"]).ok().json();
        assert_eq!(pass["made"].as_array().unwrap().len(), 2, "{pass}");
        assert_eq!(side.backup(&["status"]).ok().json()["alarms"], json!([]));
        side.add(9..=9);
        side.ship();
        // A checkpoint finds what was written while the archive was off, and hands it over now.
        query(&side.superuser(), "CHECKPOINT");
        side.ship();
        side.backup(&["agent", "--once"]).ok();
        let idle = side.backup(&["agent", "--once"]).ok().json();
        assert_eq!((&idle["shipped"], &idle["made"]), (&json!(0), &json!([])), "an answer though there is no news");
        let listed = side.backup(&["list"]).ok().json();
        assert_eq!(listed[0]["backups"].as_array().unwrap().len(), 4, "one base is enough for a gap: {listed}");
        let gaps = listed[0]["gaps"].as_array().unwrap();
        assert_eq!(gaps.len(), 1, "{listed}");
        let told = |key: &str| gaps[0][key].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
        let lost: jiff::Timestamp = within.borrow().parse().unwrap();
        assert!(told("from") < lost && lost < told("until"), "{lost} is in {gaps:?}");
        assert!(env.run(&["backup", "list"]).ok().stdout.contains("but not from 20"));
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 9);
        side.destroy("restored");
        assert_prefix(side.restore(&["--to", &before], "restored")["url"].as_str().unwrap(), 3);
        side.destroy("restored");
        side.backup(&["restore", "--as", "other", "--to", &within.borrow()])
            .exits(5)
            .says("is missing in the store")
            .says("up to the position")
            .says("and from 20");
        assert_eq!(env.made(), ONE_SERVER, "nothing is left of it");

        // What goes away in the store is noticed within the hour.
        side.add(10..=10);
        side.ship();
        let log: Vec<String> = side.stored().into_iter().filter(|path| path.contains("/wal/")).collect();
        let middle = &log[log.len() - 2];
        std::fs::remove_file(side.store.join(middle)).unwrap();
        let segment = &middle.rsplit('/').next().unwrap()[..24];
        assert!(side.backup(&["status"]).exits(1).json()["alarms"].to_string().contains(segment));
        let mut later = env.command(&["--json", "backup", "agent", "--once"]);
        later.env("TFDEV_FAULT_CLOCK", "3700");
        let pass = finish(start(later)).ok().json();
        assert_eq!(pass["made"].as_array().unwrap().len(), 2, "{pass}");
        side.add(11..=11);
        side.ship();
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 11);
    });
}

#[test]
fn a_server_that_cannot_hand_over_its_log_goes_on_and_that_is_an_alarm() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let side = Side::up(env);
        side.add(1..=1);
        side.base();
        // PostgreSQL counts the last of these failures only: the others end its archiver as well.
        for (command, told) in [
            ("exit 126", "exit code 126"),
            ("exit 255", "exit code 255"),
            ("kill -9 $$", "terminated by signal 9"),
            ("exit 3", "exit code 3"),
        ] {
            let stub = format!("ALTER SYSTEM SET archive_command = '{command} # pg_wal/tfdev_spool'");
            query(&side.superuser(), &stub);
            query(&side.superuser(), "SELECT pg_reload_conf()");
            side.add_next();
            query(&side.superuser(), "SELECT pg_switch_wal()");
            until(told, || side.run(&["logs"]).stdout.contains(told).then_some(()));
            until("the alarm", || {
                let status = side.backup(&["status"]).json();
                status["alarms"].to_string().contains("the server cannot archive the segment").then_some(())
            });
            side.backup(&["now", "--only", "physical"]).exits(1).says("cannot archive the segment");
        }
        query(&side.superuser(), "ALTER SYSTEM RESET archive_command");
        query(&side.superuser(), "SELECT pg_reload_conf()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        side.ship();
        assert_eq!(side.backup(&["status"]).json()["rpo_seconds"], json!(0));
        assert_prefix(side.restore(&[], "restored")["url"].as_str().unwrap(), 5);
    });
}

//! `doctor`: what it finds on a machine, and what it cleans away.

use std::net::TcpListener;
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::native::pid;
use crate::support::{Made, ONE_SERVER, TestEngine, TestEnv, finish, on_every_engine, start};

/// The findings in an area.
fn findings<'a>(report: &'a Value, area: &str) -> Vec<&'a Value> {
    report["findings"].as_array().unwrap().iter().filter(|finding| finding["area"] == area).collect()
}

/// Whether a finding has these words in any of its texts.
fn says(finding: &Value, words: &str) -> bool {
    finding.to_string().contains(words)
}

#[test]
fn a_broken_file_is_a_finding_and_not_an_end() {
    let env = TestEnv::new();
    env.write("tfdev.toml", "engine = \"native\"\nworkers = 3\n");
    env.run(&["status"]).exits(8);
    let report = env.run(&["doctor", "--json"]).exits(1).json();
    let configuration = findings(&report, "configuration");
    assert!(configuration[0]["level"] == "problem" && says(configuration[0], "tfdev.toml:2"), "{report}");
    for area in ["docker", "ports", "files", "clock", "left_over"] {
        assert!(!findings(&report, area).is_empty(), "{area}: {report}");
    }
    let human = env.run(&["doctor"]).exits(1).stdout;
    assert!(human.starts_with("PROBLEM  configuration") && human.contains("mend: "), "{human}");
}

#[test]
fn without_a_project_each_finding_says_why_and_how_and_nothing_is_made() {
    let env = TestEnv::new();
    env.write_user_file("[snapshots]\nauto = 7\n");
    let report = env.run(&["doctor", "--json"]).json();
    for finding in report["findings"].as_array().unwrap() {
        let is_well = finding["level"] == "ok";
        assert_eq!(finding["why"].is_null(), is_well, "{finding}");
        let mends = finding["mend"].as_array().unwrap();
        assert!(is_well || mends.iter().any(|mend| mend.as_str().unwrap().contains('`')), "{finding}");
    }
    let configured = report["configuration"].as_array().unwrap();
    let own = configured.iter().find(|one| one["key"] == "snapshots.auto").unwrap();
    assert!(own["value"] == "7" && own["origin"].as_str().unwrap().ends_with("tfdev.toml:2"), "{own}");
    assert!(!env.state_dir().exists(), "looking makes nothing");
    assert!(env.run(&["doctor", "--clean"]).ok().stdout.contains("nothing is left over"));
}

#[test]
fn a_daemon_that_cannot_be_used_is_told_with_the_way_out_and_in_time() {
    let env = TestEnv::new();
    let ask = |host: &str| {
        let mut command = env.command(&["doctor", "--json"]);
        command.env("DOCKER_HOST", host);
        let outcome = finish(start(command));
        (outcome.json(), outcome.elapsed)
    };
    let (report, _) = ask("unix:///nowhere/docker.sock");
    let docker = findings(&report, "docker");
    assert!(
        docker.len() == 1 && says(docker[0], "there is no such socket") && says(docker[0], "DOCKER_HOST"),
        "{report}"
    );
    // It takes the connection and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (report, elapsed) = ask(&format!("tcp://{}", silent.local_addr().unwrap()));
    let docker = findings(&report, "docker");
    assert!(says(docker[0], "gave no answer within"), "{report}");
    // Two seconds are promised, on a machine that is not busy; without the limit it would be ten minutes.
    assert!(elapsed < Duration::from_secs(10), "{elapsed:?}");
    let has_programs = findings(&report, "programs")[0]["level"] == "ok";
    assert_eq!(docker[0]["level"], if has_programs { "warning" } else { "problem" });
}

on_every_engine!(@of_ours_by_one_user what_a_checkout_that_is_gone_has_left_is_listed_and_cleaned_away);

fn what_a_checkout_that_is_gone_has_left_is_listed_and_cleaned_away(env: &TestEnv) {
    env.up();
    let url = env.url();
    let (gone, named) = (env.other_project("gone"), env.other_project("named"));
    env.run_in(&gone, &["up", "--dataset", "none"]).ok();
    assert_eq!(env.made(), Made { servers: 2, data: 2 });
    std::fs::write(named.join("tfdev.toml"), format!("project = \"{}-named\"\n", env.id)).unwrap();
    // Its record alone says where it was.
    env.run_in(&named, &["up", "--dataset", "none"]).ok();
    let report = env.run(&["doctor", "--json"]).json();
    assert_eq!(report["left_over"], json!([]));

    std::fs::remove_dir_all(&gone).unwrap();
    std::fs::remove_dir_all(&named).unwrap();
    let report = env.run(&["doctor", "--json"]).json();
    let left = report["left_over"].as_array().unwrap();
    assert!(left.len() == 1 && left[0]["project_dir"] == gone.to_str().unwrap(), "{report}");
    let kind = if env.engine() == TestEngine::Docker { "volume" } else { "data folder" };
    assert!(left[0]["parts"].to_string().contains(kind), "{report}");
    let told = findings(&report, "left_over");
    assert!(told.iter().any(|finding| says(finding, "doctor --clean") && finding["level"] == "warning"), "{report}");
    assert!(told.iter().any(|finding| says(finding, "may name the same project")), "{report}");

    let refused = env.run(&["doctor", "--clean"]).exits(5);
    assert!(refused.stderr.contains(gone.to_str().unwrap()), "it is listed before: {refused:?}");
    assert_eq!(env.made(), Made { servers: 3, data: 3 });
    let cleaned = env.run(&["doctor", "--clean", "--yes", "--json"]).ok().json();
    assert_eq!(cleaned["removed"].as_array().unwrap().len(), 1, "{cleaned}");
    assert_eq!(env.made(), Made { servers: 2, data: 2 });
    assert_eq!(env.url(), url);
    assert_eq!(env.run(&["doctor", "--json"]).json()["left_over"], json!([]));

    // The named one is found again from any folder that names it.
    std::fs::create_dir_all(&named).unwrap();
    std::fs::write(named.join("tfdev.toml"), format!("project = \"{}-named\"\n", env.id)).unwrap();
    env.run_in(&named, &["destroy", "--yes"]).ok();
    assert_eq!(env.made(), ONE_SERVER);
}

#[test]
fn certificates_that_end_or_are_gone_are_told() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.run(&["up", "--profile", "prod", "--dataset", "none"]).ok();
    let levels = |report: &Value| -> Vec<String> {
        findings(report, "certificates").iter().map(|finding| finding["level"].as_str().unwrap().to_owned()).collect()
    };
    let report = env.run(&["doctor", "--json"]).ok().json();
    assert_eq!(levels(&report), ["ok", "ok"], "{report}");
    let file = env.instance_dir().join("certificate.json");
    let kept = std::fs::read_to_string(&file).unwrap();
    let mut changed: Value = serde_json::from_str(&kept).unwrap();
    changed["not_after"] = json!("2020-01-01T00:00:00Z");
    std::fs::write(&file, changed.to_string()).unwrap();
    let report = env.run(&["doctor", "--json"]).exits(1).json();
    let told = findings(&report, "certificates");
    assert!(told.iter().any(|finding| says(finding, "ended on 2020-01-01") && says(finding, "tfdev up")), "{report}");
    std::fs::write(&file, "{").unwrap();
    let report = env.run(&["doctor", "--json"]).exits(1).json();
    assert!(findings(&report, "certificates").iter().any(|finding| says(finding, "cannot be read")), "{report}");
    std::fs::write(&file, kept).unwrap();
    let root = env.state_dir().join("authority/root.crt");
    std::fs::remove_file(&root).unwrap();
    let report = env.run(&["doctor", "--json"]).exits(1).json();
    assert!(findings(&report, "certificates").iter().any(|finding| says(finding, "is gone")), "{report}");
    // What it says mends it.
    env.run(&["up", "--profile", "prod", "--dataset", "none"]).ok();
    assert!(root.exists() && pid(&env) > 0);
    assert_eq!(levels(&env.run(&["doctor", "--json"]).ok().json()), ["ok", "ok"]);
}

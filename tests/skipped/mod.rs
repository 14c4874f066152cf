//! The list of the tests that did not run here. With nextest this test is the last one of a run, and the one whose words
//! are shown (`.config/nextest.toml`).

use std::collections::BTreeMap;

use crate::support::{skipped, tell};

#[test]
fn tests_that_did_not_run_here_are_told_by_name() {
    let Some(list) = skipped::list() else { return };
    let text = std::fs::read_to_string(&list).unwrap_or_default();
    let mut tests: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (reason, name) in text.lines().filter_map(|line| line.split_once('\t')) {
        tests.entry(reason).or_default().push(name);
    }
    for (reason, names) in &mut tests {
        names.sort_unstable();
        tell(&format!("{} tests skipped: {reason}\n  {}", names.len(), names.join("\n  ")));
        assert!(!(skipped::is_docker_required() && reason.contains("Docker")), "Docker is required");
    }
    // The next run has a list of its own.
    let _ = std::fs::remove_file(list);
}

//! Tests that do not run on this machine: each says so in a file of the run, and the run ends with the list.
//!
//! A test runner hides what a test that passes says, and nextest gives each test a process of its own; so what was
//! skipped stands in a file. `make test` ends with it (`tests/skipped` with nextest, `scripts/test` without). The
//! unit tests share this file.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// Notes that the test of this thread does not run here, and says so on standard error.
pub(crate) fn skip(reason: &str) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("an unnamed test");
    let reason = reason.trim().replace(['\n', '\t'], " ");
    #[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
    {
        eprintln!("skipped: {name}: {reason}");
    }
    let Some(list) = list() else { return };
    let mut file = File::options().create(true).append(true).open(list).unwrap();
    // One call for each line: lines of tests that run at the same time stay whole.
    file.write_all(format!("{reason}\t{name}\n").as_bytes()).unwrap();
}

/// As [`skip`], where Docker is what is missing; fails the test where `TFDEV_REQUIRE_DOCKER=1` forbids that.
pub(crate) fn skip_without_docker(reason: &str) {
    assert!(!is_docker_required(), "needs Docker: {reason}");
    skip(&format!("needs Docker: {reason}"));
}

/// Whether no test may be skipped for want of Docker.
pub(crate) fn is_docker_required() -> bool {
    variable("TFDEV_REQUIRE_DOCKER").is_some_and(|value| value == "1")
}

/// The file of this run's skipped tests: a reason and a name on each line, with a tab between them.
pub(crate) fn list() -> Option<PathBuf> {
    let of_this_run = || Some(std::env::temp_dir().join(format!("tfdev-skipped-{}", variable("NEXTEST_RUN_ID")?)));
    variable("TFDEV_SKIPPED_TESTS").map(PathBuf::from).or_else(of_this_run)
}

/// A variable of the test run.
#[expect(clippy::disallowed_methods, reason = "tests are steered from outside, apart from Settings")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

//! A server of someone else: a dump of the project's database, and nothing of the server itself.

use super::{Side, assert_prefix};
use crate::support::{TestEngine, TestEnv, run_on};

#[test]
fn a_logical_backup_is_served_and_a_physical_one_refused() {
    run_on(TestEngine::External, |env: &TestEnv| {
        let side = Side::up(env);
        side.add(1..=3);
        side.backup(&["now", "--only", "physical"]).exits(5).says("someone else's");
        side.backup(&["mark", "x"]).exits(5);
        let made = side.backup(&["now"]).ok().json();
        assert_eq!(made.as_array().unwrap().len(), 1);
        let id = made[0]["id"].as_str().unwrap();
        side.add(4..=4);
        // What is restored is a server of our own.
        let run = |arguments: &[&str]| {
            let mut command = env.command(arguments);
            command.env("TFDEV_ENGINE", "native").env_remove("TFDEV_EXTERNAL_URL").env_remove("PGPASSWORD");
            crate::support::finish(crate::support::start(command))
        };
        let copy = run(&["--json", "backup", "restore", id, "--as", "copy"]).ok().json();
        assert_prefix(copy["url"].as_str().unwrap(), 3);
        run(&["destroy", "--yes", "--instance", "copy"]).ok();
    });
}

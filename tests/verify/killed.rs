//! A `verify` that is killed at any moment leaves nothing.

use std::process::Stdio;
use std::time::Duration;

use super::traces;
use crate::support::{TestEngine, TestEnv, until};

#[test]
fn a_verify_that_is_killed_leaves_nothing() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.up();
    let before = traces(&env.url());
    for round in 0..12u64 {
        let mut command = env.command(&["verify", "--json"]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Any moment will do: the rounds reach from the first login to the end.
        std::thread::sleep(Duration::from_millis(40 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        until("a server without a trace", || (traces(&env.url()) == before).then_some(()));
    }
}

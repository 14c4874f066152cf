//! Profiles on a real server: switching between them, TLS, settings that do not work, the Compose file, and storage.
//!
//! What must hold: an `up` with other settings leaves a server that runs with the new or the old ones, whatever happens;
//! the data stays; and what the running server can tell beforehand is told before it is touched.

mod compose;
mod faults;
mod random;
mod storage;
mod switch;
mod tls;

use std::process::Command;

use serde_json::Value;

use crate::support::{Outcome, TestEnv, finish, one, process, start};

/// Each case on Docker and on the PostgreSQL of this machine.
macro_rules! on_docker_and_native {
    ($($case:ident),+ $(,)?) => {
        $crate::support::on_every_engine!(@each on_docker Docker: $($case)+);
        $crate::support::on_every_engine!(@each on_native Native: $($case)+);
    };
}
use on_docker_and_native;

/// Writes the project's file with these lines in the section of the profile `dev`.
fn settings(env: &TestEnv, lines: &str) {
    env.write("tfdev.toml", format!("[profiles.dev]\n{lines}"));
}

/// `up` with few rows, and `arguments`.
fn up(env: &TestEnv, arguments: &[&str]) -> Outcome {
    env.run(&[&["up", "--json", "--dataset", "small"], arguments].concat())
}

/// `up` that is ordered to do something at a point.
fn ordered(env: &TestEnv, order: &str, arguments: &[&str]) -> Command {
    let mut command = env.command(&[&["up", "--json", "--dataset", "small"], arguments].concat());
    command.env("TFDEV_FAULT_POINT", order);
    command
}

/// The changes that an `up` reports, as `name old new`.
fn changes(up: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or("default").to_owned();
    let rows = up["changes"].as_array().unwrap().iter();
    rows.map(|row| format!("{} {} {}", row["name"].as_str().unwrap(), text(&row["old"]), text(&row["new"]))).collect()
}

/// What the server shows of a setting.
#[track_caller]
fn show(env: &TestEnv, name: &str) -> String {
    one(&env.url(), &format!("SELECT current_setting('{name}', true)"))
}

/// Runs the real psql on a URL, whose options are libpq's.
fn psql(url: &str) -> Outcome {
    let mut command = Command::new(process::bin_dir().unwrap().join("psql"));
    command.args(["-X", "-A", "-t", "-c", "SELECT 'in'", url]);
    finish(start(command))
}

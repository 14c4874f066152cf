//! What all tests share: a place of their own ([`TestEnv`]) on each engine ([`on_every_engine`]), Docker's command line
//! ([`docker`]), processes ([`process`]), SQL ([`query`]), and waiting for a condition ([`until`]).

pub(crate) mod disk;
pub(crate) mod docker;
mod engine;
mod environment;
pub(crate) mod native;
mod outcome;
pub(crate) mod process;
#[cfg(target_os = "linux")]
pub(crate) mod remote;
mod server;
pub(crate) mod skipped;
mod sql;

pub(crate) use engine::{Made, ONE_SERVER, TestEngine, on_every_engine, run_on};
pub(crate) use environment::TestEnv;
pub(crate) use outcome::{Outcome, finish, start};
pub(crate) use server::{SomeonesServer, free_port};
pub(crate) use sql::{Session, one, query, try_query};

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long a test waits for something that is to happen.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Waits until `condition` gives a value; `what` names it if it never does.
pub(crate) fn until<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Fails unless an instance that was stopped in between, as two `up` tell of it, is reached as before. Its port is kept
/// unless another program took it meanwhile, which tests do to each other with 5432, the port that all of them prefer.
#[track_caller]
pub(crate) fn assert_reached_as_before(first: &Value, again: &Value) {
    let url = first["url"].as_str().unwrap();
    if first["port"] == json!(5432) {
        assert_eq!(again["url"], json!(url.replace(":5432/", &format!(":{}/", again["port"]))));
    } else {
        assert_eq!((&again["port"], &again["url"]), (&first["port"], &first["url"]));
    }
}

/// Says something about a test that must be seen.
#[expect(clippy::print_stderr, reason = "standard error is where the test runner shows what a test says")]
pub(crate) fn tell(text: &str) {
    eprintln!("{text}");
}

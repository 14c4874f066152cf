//! Drives the real binary against the real Docker Engine and the PostgreSQL 15 of this machine.
//!
//! - `cli` is about words: arguments, files, streams, exit statuses. It needs no Docker.
//! - `contract` is what people rely on when nothing is wrong, over every engine.
//! - `faults` is what happens when something is, over every engine where it can happen there.
//! - `hooks` is one database state for each branch of a git repository.
//! - `native` is what only the native engine has.
//! - `readme` runs the README's tour.
//! - `skipped` tells the tests that did not run here, by name.
//!
//! What must hold: no test leaves a container, a volume, a server or a data folder behind, not even one that fails; tests
//! run at the same time as each other and as other tfdevs of this machine; and a test that does not run here says so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on is to fail where it stands")]

mod cli;
mod contract;
mod export;
mod faults;
mod hooks;
mod native;
#[cfg(unix)]
mod readme;
mod skipped;
mod support;

//! Drives the real binary against the real Docker Engine and the PostgreSQL 15 of this machine.
//!
//! - `cli` is about words: arguments, files, streams, exit statuses. It needs no Docker.
//! - `contract` is what people rely on when nothing is wrong.
//! - `faults` is what happens when something is.
//! - `identity` is about servers, volumes and data folders that are not the instance's own.
//! - `native` is both for the native engine.
//! - `remote` is both for a Docker on another machine.
//! - `readme` runs the README's tour.
//!
//! What must hold: no test leaves a container or a volume behind, not even one that fails; tests run at the same time as
//! each other and as other tfdevs of this machine; and without Docker each test that needs it says so in one line.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on is to fail where it stands")]

mod cli;
mod contract;
mod faults;
mod identity;
mod native;
#[cfg(unix)]
mod readme;
#[cfg(target_os = "linux")]
mod remote;
mod support;

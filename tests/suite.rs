//! Drives the real binary against the real Docker Engine and the PostgreSQL 15 of this machine.
//!
//! - `backup` is about full backups, the archived log, and recovery.
//! - `cli` is about words: arguments, files, streams, exit statuses. It needs no Docker.
//! - `contract` is what people rely on when nothing is wrong, over every engine.
//! - `doctor` is what is found on a machine; `health` and `verify` what is found on a server; `logs` what it wrote.
//! - `export` is a database in one file, from one engine to another, and files that an enemy made.
//! - `faults` is what happens when something is, over every engine where it can happen there.
//! - `hooks` is one database state for each branch of a git repository.
//! - `identity` is about servers, volumes and data folders that are not the instance's own.
//! - `native` is what only the native engine has, and `external` what a server of someone else has.
//! - `profiles` is about other settings for an instance: switching, TLS, what does not work, Compose, storage.
//! - `remote` is about a Docker on another machine.
//! - `readme` runs the README's tour.
//! - `serve` is fresh databases over HTTP, with raw calls and with the published client of IntegreSQL.
//! - `snapshot` is about snapshots, restore and reset, kills at every point included.
//! - `skipped` tells the tests that did not run here, by name.
//!
//! What must hold: no test leaves a container, a volume, a server or a data folder behind, not even one that fails; tests
//! run at the same time as each other and as other tfdevs of this machine; and a test that does not run here says so.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on is to fail where it stands")]

mod backup;
mod cli;
mod contract;
#[cfg(unix)]
mod doctor;
mod export;
mod external;
mod faults;
#[cfg(unix)]
mod health;
mod hooks;
mod identity;
#[cfg(unix)]
mod logs;
mod native;
#[cfg(unix)]
mod profiles;
#[cfg(unix)]
mod readme;
#[cfg(target_os = "linux")]
mod remote;
#[cfg(unix)]
mod serve;
mod skipped;
#[cfg(unix)]
mod snapshot;
mod support;
#[cfg(unix)]
mod verify;

//! tfdev: a real PostgreSQL 15 for development and tests, migrated and seeded, in about a second.
//!
//! The way of every command:
//!
//! ```text
//! arguments ─ Settings ─ Instance ─ ServerSpec ─▶ Engine ─▶ Server ─▶ migrate ─▶ seed ─▶ report
//! (cli/args)  (config)   (instance) (spec)        (engine)  (server)
//! ```
//!
//! - [`config`] settles values, each with its origin; nothing below it reads the environment.
//! - [`instance`] is identity: the project's key, names, folders, lock, record and passwords.
//! - [`profile`] and [`spec`] are pure data: which server it is to be. [`compose`] is one more rendering of it.
//! - [`engine`] is the only seam with effects on a machine, with one folder for Docker, one for PostgreSQL 15 of this
//!   machine and one for a server of someone else (and, in debug builds, one file that wraps any of them and fails on cue);
//!   [`image`] is what the Docker engine runs, and [`marker`] tells our databases from others'.
//! - [`tls`] makes the certificates of servers with `ssl = on`.
//! - [`server`] is what an engine hands back, proven to be the instance's own; [`provision`] makes what a new one lacks.
//! - [`identity`] tells whether record, labels, data folder and server are of one instance.
//! - [`checks`] warns of what a server that answers may still have wrong.
//! - [`health`] asks whether the server lives and is ready; [`verify`] proves on it, row by row, what the source document
//!   promises; [`doctor`] looks at the machine and says how to mend it; [`server_log`] understands what the server wrote.
//! - [`storage`] tells how much of the instance's limit is in use, and by what.
//! - [`pg`], [`migrate`], [`seed`] and [`snapshot`] speak SQL and never ask which engine it is.
//! - [`mod@fresh`] gives each test a database of its own, out of a pool that all processes share.
//! - `serve` hands the same databases out over HTTP, as IntegreSQL does (feature `server`).
//! - [`archive`] is the form of a database in one file, which [`snapshot`] writes and reads beside the server.
//! - [`backup`] makes full backups and archives the log, and restores, verifies and forgets them.
//! - [`hooks`] keeps one state for each branch of a git repository, with [`snapshot`].
//! - [`up`], [`down`], [`status`] and [`psql`] are the commands as calls; [`cli`] turns arguments into these calls and
//!   [`event`]s into lines and bars. The library itself never prints.
//! - [`fault`] names the places at which tests end the program.

pub mod archive;
pub mod backup;
mod channel_reader;
pub mod checks;
#[cfg(feature = "cli")]
pub mod cli;
pub mod compose;
pub mod config;
pub mod doctor;
pub mod down;
pub mod engine;
pub mod error;
pub mod event;
pub mod fault;
pub mod fresh;
pub mod health;
pub mod hooks;
pub mod identity;
pub mod image;
pub mod instance;
pub mod marker;
pub mod migrate;
mod partial_file;
pub mod pg;
pub mod profile;
pub mod provision;
pub mod psql;
pub mod seed;
#[cfg(feature = "server")]
pub mod serve;
pub mod server;
pub mod server_log;
#[cfg(test)]
#[path = "../tests/support/skipped.rs"]
mod skipped;
pub mod snapshot;
pub mod spec;
pub mod status;
pub mod storage;
pub mod tls;
pub mod up;
pub mod verify;

pub use error::{Error, ErrorKind, Result};
pub use fresh::{Fresh, FreshConfig, blocking, fresh};

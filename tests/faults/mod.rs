//! What goes wrong with such tools, and what tfdev does instead (`FAILURES.md`): over every engine in `data` and `server`,
//! what only Docker has in `daemon` and `takeover`, and each step of an engine in `steps`.

mod daemon;
mod data;
mod server;
// The engine that fails on cue is in debug builds alone.
#[cfg(debug_assertions)]
mod steps;
mod takeover;

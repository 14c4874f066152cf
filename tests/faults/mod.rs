//! What goes wrong with such tools, and what tfdev does instead (`FAILURES.md`): over every engine in `data` and `server`,
//! and what only Docker has in `daemon` and `takeover`.

mod daemon;
mod data;
mod server;
mod takeover;

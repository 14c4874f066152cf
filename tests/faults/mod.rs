//! What goes wrong with such tools, and what tfdev does instead (`FAILURES.md`).

mod daemon;
mod data;
mod server;
mod takeover;

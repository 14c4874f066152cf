//! Talking to a PostgreSQL server, and knowing its files: everything here works on any server, whoever started it.
//!
//! What must hold: no value reaches SQL text without [`quote`]; no password reaches a server in plain text except
//! through the login itself; and what the user's `PG…` variables say never decides where a login goes.

pub mod clone;
pub mod connect;
pub mod control;
pub mod programs;
pub mod quote;
pub mod scram;
#[cfg(test)]
pub(crate) mod test_server;

pub use connect::{Login, LoginError, NotReady, Tls, connect, wait_ready};

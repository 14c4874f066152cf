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
pub mod tls;
pub mod url;
pub(crate) mod wal;

use sqlx::{PgConnection, Row};

use crate::error::{Context, Result};

pub use connect::{Login, LoginError, NotReady, connect, options_that_work, wait_ready};
pub use tls::{Tls, TlsParameters};

/// The server's system identifier; `None` if the role may not read it, as on some managed servers.
pub async fn system_identifier(connection: &mut PgConnection) -> Result<Option<u64>> {
    let what = || "cannot read the server's identity";
    let answer = sqlx::raw_sql("SELECT system_identifier FROM pg_control_system()").fetch_one(connection).await;
    match answer {
        Ok(row) => Ok(Some(row.try_get::<i64, _>(0).or_failed(what)?.cast_unsigned())),
        Err(error) if connect::server_error(&error).is_some_and(|error| error.code() == "42501") => Ok(None),
        Err(error) => Err(error).or_failed(what),
    }
}

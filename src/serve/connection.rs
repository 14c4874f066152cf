//! How a client connects to a database, in IntegreSQL's form.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::fresh::Pool;
use crate::pg::Login;

/// What a client needs to connect.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Connection {
    host: String,
    port: u16,
    username: String,
    password: String,
    database: String,
    /// Parameters of libpq, for servers with TLS.
    #[serde(rename = "additionalParams", skip_serializing_if = "BTreeMap::is_empty")]
    additional_params: BTreeMap<&'static str, String>,
}

impl Connection {
    pub(super) fn of(login: &Login, pool: &Pool) -> Self {
        Self {
            host: login.host.clone(),
            port: login.port,
            username: login.user.clone(),
            password: login.password.clone(),
            database: login.database.clone(),
            additional_params: pool.tls_parameters().into_iter().collect(),
        }
    }
}

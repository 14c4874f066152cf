//! The server that an engine runs, as everything above the engine reaches it: where it answers, as whom to log in, and
//! whose it is.
//!
//! What must hold: before the first write of a command the server is proven to be the instance's own, by its system
//! identifier, never by its address.

use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{PgConnection, Row};

use crate::config::Settings;
use crate::engine::{self, Endpoint, Engine, Observed, State};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, Record, Secrets};
use crate::pg::{self, Login, Tls};
use crate::spec::SUPERUSER;

/// What `pg_stat_activity` shows of tfdev's own sessions.
const APPLICATION_NAME: &str = "tfdev";

/// A running server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it answers.
    pub endpoint: Endpoint,
    /// The project's database.
    pub database: String,
    /// The ordinary role that owns it.
    pub user: String,
    /// The passwords of the roles.
    pub secrets: Secrets,
}

impl Server {
    /// The server of an instance at `endpoint`.
    pub fn new(settings: &Settings, endpoint: Endpoint, secrets: Secrets) -> Self {
        Self {
            endpoint,
            database: settings.database.name.value.clone(),
            user: settings.database.user.value.clone(),
            secrets,
        }
    }

    /// The ordinary role's login to the project's database.
    pub fn login(&self) -> Login {
        Login {
            host: self.endpoint.host.clone(),
            port: self.endpoint.port,
            database: self.database.clone(),
            user: self.user.clone(),
            password: self.secrets.user.expose().to_owned(),
            tls: Tls::Disable,
            application_name: APPLICATION_NAME.to_owned(),
        }
    }

    /// The superuser's login to the database `postgres`.
    pub fn superuser_login(&self) -> Login {
        Login {
            database: SUPERUSER.to_owned(),
            user: SUPERUSER.to_owned(),
            password: self.secrets.superuser.expose().to_owned(),
            ..self.login()
        }
    }

    /// The connection URL with the ordinary role's password.
    pub fn url(&self) -> String {
        let part = |text: &str| utf8_percent_encode(text, &URL_PART).to_string();
        let host = &self.endpoint.host;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!(
            "postgres://{}:{}@{host}:{}/{}",
            part(&self.user),
            part(self.secrets.user.expose()),
            self.endpoint.port,
            part(&self.database)
        )
    }
}

/// Everything in a part of a URL but what RFC 3986 § 2.3 calls unreserved is encoded.
const URL_PART: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// An instance that runs, for commands that need one and do not start it.
pub struct Running {
    /// The instance.
    pub instance: Instance,
    /// What runs it.
    pub engine: Box<dyn Engine>,
    /// What the engine sees.
    pub observed: Observed,
    /// What is on record.
    pub record: Record,
    /// The server.
    pub server: Server,
}

impl Running {
    /// Finds the running instance; an error with the way to start it if it does not run.
    pub async fn find(settings: &Settings, events: &Events) -> Result<Self> {
        let instance = Instance::of(settings)?;
        let engine = engine::choose(settings, &instance, events).await?;
        let observed = engine.observe().await?;
        let record = instance.read_record(events)?;
        if observed.state == State::Absent {
            return Err(instance.not_found());
        }
        let (Some(endpoint), Some(record), State::Starting) = (observed.endpoint.clone(), record, observed.state) else {
            return Err(instance.not_running(observed.reason.as_deref()));
        };
        let server = Server::new(settings, endpoint, instance.secrets(events)?);
        Ok(Self { instance, engine, observed, record, server })
    }

    /// Logs in as the ordinary role and proves whose server it is.
    pub async fn connect(&self, timeout: Duration) -> Result<PgConnection> {
        let login = self.server.login();
        let mut connection =
            pg::connect(&login, Instant::now() + timeout).await.map_err(|error| error.into_error(&login))?;
        prove(&mut connection, &self.record).await?;
        Ok(connection)
    }
}

/// Fails unless the server is the one on record.
pub async fn prove(connection: &mut PgConnection, record: &Record) -> Result<()> {
    let what = || "cannot read the server's identity";
    let row = sqlx::raw_sql("SELECT system_identifier FROM pg_control_system()").fetch_one(connection).await;
    let found: i64 = row.or_failed(what)?.try_get(0).or_failed(what)?;
    let found = found.cast_unsigned();
    match record.system_identifier {
        Some(expected) if expected != found => Err(Error::new(
            ErrorKind::Refused,
            format!("the server that answers has the system identifier {found}, and this instance has {expected}"),
        )
        .hint("nothing was written; `docker ps` shows what is published on the port")),
        _ => Ok(()),
    }
}

//! The server that an engine runs, as everything above the engine reaches it: where it answers, as whom to log in, and
//! whose it is.
//!
//! What must hold: before the first write of a command the server is proven to be the instance's own, by its system
//! identifier, never by its address.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::config::Settings;
use crate::engine::{self, Endpoint, Engine, Observed, State};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::identity;
use crate::instance::{Instance, InstanceRecord, Password, PgpassEntry, Secrets};
use crate::marker::Marker;
use crate::pg::{self, Login, Tls};
use crate::seed::SeedOutcome;
use crate::spec::SUPERUSER;
use crate::up::SeedReport;

/// What `pg_stat_activity` shows of tfdev's own sessions.
pub(crate) const APPLICATION_NAME: &str = "tfdev";

/// A running server.
#[derive(Debug, Clone)]
pub struct Server {
    /// Where it answers.
    pub endpoint: Endpoint,
    /// Whether and how connections are encrypted.
    pub tls: Tls,
    /// The project's database.
    pub database: String,
    /// The role that owns it, and that the printed URL is for.
    pub user: Role,
    /// The role that manages databases.
    pub admin: Role,
    /// The database that this role logs in to, where the schema `tfdev` is.
    pub registry: String,
    /// Who else has databases there.
    pub tenancy: Tenancy,
    /// The user's own password file, if the password for the project's database is from there.
    pub password_file: Option<PathBuf>,
}

/// Who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// The role's name.
    pub name: String,
    /// Its password; empty where the server wants none.
    pub password: Password,
}

/// How much of a server is the instance's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenancy {
    /// All of it: its roles and their passwords are ours to make.
    Whole,
    /// The databases that carry the instance's marker; the roles are someone else's.
    Shared,
}

impl Server {
    /// A server that is all the instance's own, with the passwords of this machine's record, made if there are none yet.
    pub fn own(settings: &Settings, endpoint: Endpoint, root_cert: Option<PathBuf>, events: &Events) -> Result<Self> {
        let secrets = Secrets::of(&Instance::of(settings));
        let user = Role { name: settings.database.user.value.clone(), password: secrets.user(events)? };
        let admin = Role { name: SUPERUSER.to_owned(), password: secrets.superuser(events)? };
        Ok(Self {
            endpoint,
            tls: root_cert.map_or(Tls::Disable, |root_cert| Tls::VerifyFull { root_cert }),
            database: settings.database.name.value.clone(),
            user,
            admin,
            registry: SUPERUSER.to_owned(),
            tenancy: Tenancy::Whole,
            password_file: None,
        })
    }

    /// The login of the role that owns the project's database to that database.
    pub fn login(&self) -> Login {
        self.login_as(&self.user, &self.database)
    }

    /// The login of the role that manages databases to the database where the schema `tfdev` is.
    pub fn admin_login(&self) -> Login {
        self.login_as(&self.admin, &self.registry)
    }

    fn login_as(&self, role: &Role, database: &str) -> Login {
        Login {
            host: self.endpoint.host.clone(),
            port: self.endpoint.port,
            database: database.to_owned(),
            user: role.name.clone(),
            password: role.password.expose().to_owned(),
            tls: self.tls.clone(),
            application_name: APPLICATION_NAME.to_owned(),
        }
    }

    /// The connection URL with the ordinary role's password.
    pub fn url(&self) -> String {
        let part = |text: &str| utf8_percent_encode(text, &URL_PART).to_string();
        let host = &self.endpoint.host;
        let host = if host.contains(':') { format!("[{host}]") } else { part(host) };
        format!(
            "postgres://{}:{}@{host}:{}/{}",
            part(&self.user.name),
            part(self.user.password.expose()),
            self.endpoint.port,
            part(&self.database)
        ) + &self.tls_parameters().iter().enumerate().fold(String::new(), |query, (index, (name, value))| {
            format!("{query}{}{name}={}", if index == 0 { '?' } else { '&' }, part(value))
        })
    }

    /// The parameters of libpq that make it encrypt and check who answers; none for a server without TLS.
    pub(crate) fn tls_parameters(&self) -> Vec<(&'static str, String)> {
        match &self.tls {
            Tls::Disable => Vec::new(),
            Tls::VerifyFull { root_cert } => {
                vec![("sslmode", "verify-full".to_owned()), ("sslrootcert", root_cert.display().to_string())]
            }
            Tls::AsGiven(given) => {
                let files =
                    [("sslrootcert", &given.root_cert), ("sslcert", &given.client_cert), ("sslkey", &given.client_key)];
                let files =
                    files.into_iter().filter_map(|(name, file)| Some((name, file.as_ref()?.display().to_string())));
                std::iter::once(("sslmode", given.mode.word().to_owned())).chain(files).collect()
            }
        }
    }

    /// Variables for a shell or a `.env` file. The password stands in `DATABASE_URL`, which is what it is for, and else
    /// in the file that `PGPASSFILE` names, if one is kept.
    pub fn variables(&self, pgpass: Option<&Path>) -> Vec<(&'static str, String)> {
        let variables = [
            ("DATABASE_URL", self.url()),
            ("PGHOST", self.endpoint.host.clone()),
            ("PGPORT", self.endpoint.port.to_string()),
            ("PGDATABASE", self.database.clone()),
            ("PGUSER", self.user.name.clone()),
        ];
        let pgpass = pgpass.map(|file| ("PGPASSFILE", file.display().to_string()));
        variables.into_iter().chain(pgpass).chain(self.tls_variables()).collect()
    }

    /// Variables that make libpq encrypt and check who answers; none for a server without TLS.
    pub fn tls_variables(&self) -> Vec<(&'static str, String)> {
        let variable = |parameter| match parameter {
            "sslmode" => "PGSSLMODE",
            "sslcert" => "PGSSLCERT",
            "sslkey" => "PGSSLKEY",
            _ => "PGSSLROOTCERT",
        };
        self.tls_parameters().into_iter().map(|(name, value)| (variable(name), value)).collect()
    }
}

/// Everything in a part of a URL but what RFC 3986 § 2.3 calls unreserved is encoded.
const URL_PART: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A password file for programs of libpq.
#[derive(Debug)]
pub enum PasswordFile {
    /// One that stays: ours, or the user's own.
    Kept(PathBuf),
    /// One that is removed when this is dropped, because the password is not ours to keep.
    Temporary(tempfile::NamedTempFile),
}

impl PasswordFile {
    /// The file.
    pub fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(file) => file.path(),
        }
    }

    /// The file, if it outlives this process.
    pub fn lasting(&self) -> Option<&Path> {
        match self {
            Self::Kept(path) => Some(path),
            Self::Temporary(_) => None,
        }
    }
}

/// An instance that runs, for commands that need one and do not start it.
pub struct Running {
    /// The instance.
    pub instance: Instance,
    /// What runs it.
    pub engine: Box<dyn Engine>,
    /// What the engine sees.
    pub observed: Observed,
    /// What is on record.
    pub record: InstanceRecord,
    /// The server.
    pub server: Server,
}

impl Running {
    /// Finds the running instance; an error with the way to start it if it does not run.
    pub async fn find(settings: &Settings, events: &Events) -> Result<Self> {
        let instance = Instance::of(settings);
        let engine = engine::choose(settings, &instance, events).await?.engine;
        let observed = engine.observe().await?;
        let record = InstanceRecord::read(&instance, events)?;
        if observed.state == State::Absent {
            return Err(instance.not_found());
        }
        let (Some(endpoint), Some(record), State::Starting) = (observed.endpoint.clone(), record, observed.state)
        else {
            return Err(instance.not_running(observed.reason.as_deref()));
        };
        identity::check_record(&instance, Some(&record), &observed)?;
        let server = engine.server(settings, endpoint, record.root_cert.clone(), events).await?;
        Ok(Self { instance, engine, observed, record, server })
    }

    /// A password file for psql and other programs of libpq.
    pub fn password_file(&self) -> Result<PasswordFile> {
        let server = &self.server;
        let entry = PgpassEntry {
            host: if server.endpoint.host.starts_with('/') { "*" } else { &server.endpoint.host },
            port: server.endpoint.port,
            database: "*",
            user: &server.user.name,
            password: &server.user.password,
        };
        match (server.tenancy, &server.password_file) {
            (Tenancy::Whole, _) => Secrets::of(&self.instance).write_pgpass(&[entry]).map(PasswordFile::Kept),
            (Tenancy::Shared, Some(own)) => Ok(PasswordFile::Kept(own.clone())),
            (Tenancy::Shared, None) => entry.write_temporary().map(PasswordFile::Temporary),
        }
    }

    /// Notes which data set the database was filled with.
    pub fn remember_seed(&self, outcome: &SeedOutcome) -> Result<()> {
        self.remember_data(&SeedReport::from(outcome))
    }

    /// As [`Running::remember_seed`].
    pub fn remember_data(&self, seed: &SeedReport) -> Result<()> {
        let Some(mut record) = InstanceRecord::read(&self.instance, &Events::none())? else { return Ok(()) };
        record.remember_seed(seed);
        record.write(&self.instance)
    }

    /// Logs in as the ordinary role and proves whose server it is.
    pub async fn connect(&self, timeout: Duration) -> Result<PgConnection> {
        if self.record.system_identifier.is_none() {
            return Err(identity::unknown(&self.instance));
        }
        let login = self.server.login();
        let connected = pg::connect(&login, Instant::now() + timeout).await;
        let mut connection = connected.map_err(|error| identity::login_failed(error, &login))?;
        self.server.prove(&mut connection, &self.record).await?;
        Ok(connection)
    }
}

impl Server {
    /// Fails unless the server is the one on record and, where others have databases too, unless the database that
    /// `connection` is to carries the instance's marker.
    pub async fn prove(&self, connection: &mut PgConnection, record: &InstanceRecord) -> Result<()> {
        let found = pg::system_identifier(&mut *connection).await?;
        if let (Some(expected), Some(found)) = (record.system_identifier(), found)
            && expected != found
        {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the server that answers has the system identifier {found}, and this instance has {expected}"),
            )
            .hint("nothing was written; look at what else is on the port: `docker ps`, or `lsof -i :PORT`")
            .hint(
                "if it is a copy of this instance's data, load a dump of it instead: `tfdev up`, then `tfdev psql`",
            ));
        }
        match (self.tenancy, record.id()) {
            (Tenancy::Shared, Some(id)) => prove_marked(connection, None, id).await.map(drop),
            _ => Ok(()),
        }
    }

    /// Fails unless the project's database is the instance's own, where others have databases too. Returns its marker,
    /// which the one that takes its place must carry as well; `None` where all databases are ours.
    pub async fn project_marker(
        &self,
        connection: &mut PgConnection,
        record: &InstanceRecord,
    ) -> Result<Option<Marker>> {
        match (self.tenancy, record.id()) {
            (Tenancy::Shared, Some(id)) => prove_marked(connection, Some(&self.database), id).await.map(Some),
            _ => Ok(None),
        }
    }
}

/// Fails unless `database`, or the one that `connection` is to, carries the marker of the instance with this identity.
async fn prove_marked(connection: &mut PgConnection, database: Option<&str>, id: Uuid) -> Result<Marker> {
    let what = || "cannot read the database's marker";
    let question = "SELECT datname::text, shobj_description(oid, 'pg_database') FROM pg_database \
                    WHERE datname = coalesce($1, current_database())";
    let row = sqlx::query(question).bind(database).fetch_one(connection).await.or_failed(what)?;
    let name: String = row.try_get(0).or_failed(what)?;
    let comment: Option<String> = row.try_get(1).or_failed(what)?;
    match comment.as_deref().and_then(Marker::read) {
        Some(marker) if marker.id == id => Ok(marker),
        Some(marker) => Err(not_marked(&name, &format!("the marker of the instance {}", marker.id), id)),
        None => Err(not_marked(&name, "no marker of tfdev", id)),
    }
}

fn not_marked(database: &str, found: &str, id: Uuid) -> Error {
    let message = format!("the database `{database}` carries {found}, and this instance is {id}");
    Error::new(ErrorKind::Refused, message).hint(
        "nothing was written; the marker is the database's comment: `SELECT shobj_description(oid, 'pg_database') \
               FROM pg_database`",
    )
}

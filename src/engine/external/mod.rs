//! The external engine: a PostgreSQL 15 server by URL, which someone else runs and which tfdev never starts or stops.
//!
//! What must hold: only databases that carry the instance's marker ([`crate::marker`]) are written to and dropped; before
//! the first write the server is proven to be the one on record, and not to look like production (`production`); a role
//! with CREATEDB and nothing else is enough; and what needs the machine is refused with the reason.
//!
//! ```text
//! login       who logs in, with which password        password_file   libpq's rules for it
//! survey      what the server is, and why it is none  production      what it must not look like
//! databases   ours and others'
//! ```

mod databases;
mod login;
mod password_file;
mod production;
mod survey;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use tokio::io::AsyncWriteExt;
use uuid::Uuid;

use self::databases::Database;
use self::login::{Known, Session};
use self::production::Subject;
use self::survey::Survey;
use crate::config::{Origin, PasswordEnvironment, PortChoice, Setting, Settings};
use crate::engine::program::{Input, Program};
use crate::engine::{
    DataSource, Endpoint, Engine, EngineKind, LogReceiver, Observed, Parts, ProgramOutput, Resources, Source,
    StartRequest, Started, State, cannot,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::identity::Claim;
use crate::instance::{Instance, InstanceRecord, PgpassEntry};
use crate::marker::{Marker, registry_name};
use crate::pg::clone;
use crate::pg::programs::{SearchPlaces, client_program};
use crate::pg::url::ServerUrl;
use crate::provision::close;
use crate::server::{Role, Server, Tenancy};
use crate::snapshot::registry;

/// What is told when none of the instance's databases is there any more.
const REMOVED: &str = "The data of this instance was removed by something other than tfdev; it is made anew";

/// The external engine for one instance.
#[derive(Debug)]
pub struct ExternalEngine {
    instance: Instance,
    url: ServerUrl,
    /// The URL's role.
    user: String,
    /// The project's database.
    database: String,
    /// Who the instance's databases belong to, with an identity that is not its own.
    unidentified: Marker,
    allow_remote: Option<String>,
    passwords: PasswordEnvironment,
    home_dir: Option<PathBuf>,
    places: SearchPlaces,
    /// Whether the profile was asked for, so that it matters that the server has other settings.
    profile_asked: bool,
    events: Events,
    /// The password, once it was looked for.
    known: Mutex<Option<Known>>,
    /// A database that let us in. One that does not may take a pooler its whole time limit, each time.
    entrance: Mutex<Option<String>>,
}

impl ExternalEngine {
    /// Makes the engine for `instance`. Nothing is asked of the server yet.
    ///
    /// Fails with [`ErrorKind::BadInput`] if there is no usable `external.url`, and with [`ErrorKind::Refused`] if a flag asks
    /// for what only a server of ours can have.
    pub fn new(instance: Instance, settings: &Settings, events: Events) -> Result<Self> {
        let Some(given) = &settings.external_url else {
            return Err(Error::bad_input(
                "the engine external needs the URL of a server, and `external.url` is not set",
            )
            .hint(
                "set it under `[external]` in `tfdev.toml`, without a password, or set `TFDEV_EXTERNAL_URL`: \
                       `postgres://ROLE@HOST:5432/postgres`",
            ));
        };
        let url = ServerUrl::parse(&given.value)
            .map_err(|says| Error::bad_input(format!("`external.url` ({}) {says}", given.origin)))?;
        let user = url.user.clone().ok_or_else(|| {
            Error::bad_input(format!("`external.url` ({}) names no role", given.origin))
                .hint("write it in front of the host: `postgres://ROLE@HOST/DATABASE`")
        })?;
        let port = &settings.database.port;
        if matches!((port.value, &port.origin), (PortChoice::Fixed(_), Origin::Flag { .. })) {
            return Err(cannot("choose the server's port", "the server is run by someone else")
                .hint("the port stands in `external.url`"));
        }
        Ok(Self {
            unidentified: Marker::of(settings, &instance, Uuid::nil()),
            instance,
            url,
            user,
            database: settings.database.name.value.clone(),
            allow_remote: settings.external_allow_remote.as_ref().map(|allowed| allowed.value.clone()),
            passwords: settings.passwords.clone(),
            home_dir: settings.home_dir.clone(),
            places: SearchPlaces::of(settings),
            profile_asked: settings.profile.is_some(),
            events,
            known: Mutex::new(None),
            entrance: Mutex::new(None),
        })
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint { host: self.url.host.clone(), port: self.url.port }
    }

    /// The server, for messages.
    fn place(&self) -> String {
        format!("{}:{}", self.url.host, self.url.port)
    }

    fn subject(&self) -> Subject<'_> {
        Subject { host: &self.url.host, database: &self.database, allowed: self.allow_remote.as_deref() }
    }

    fn remembered(&self) -> Option<Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember(&self, known: Known) {
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
    }

    /// What is on record of the instance, if it was made on this engine.
    fn record(&self) -> Result<Option<InstanceRecord>> {
        let record = InstanceRecord::read(&self.instance, &Events::none())?;
        Ok(record.filter(|record| record.engine == Some(EngineKind::External.into())))
    }

    /// What is there of an instance that was never finished, or whose record is lost: asked of the server.
    async fn look(&self, record: Option<&InstanceRecord>) -> Result<Option<Uuid>> {
        self.subject().check_place().await?;
        let mut session = self.open(&[]).await?;
        let databases = databases::read(&mut session.connection).await?;
        close(session.connection).await;
        let id = match record.and_then(InstanceRecord::id) {
            Some(id) => Some(id),
            None => self.lost_identity(&databases),
        };
        Ok(id.filter(|id| databases.iter().any(|database| database.is_of(*id))))
    }

    /// The identity of the databases that were made from this very checkout on this machine.
    fn lost_identity(&self, databases: &[Database]) -> Option<Uuid> {
        let markers = databases.iter().filter_map(|database| database.marker.as_ref());
        markers.into_iter().find(|marker| marker.is_of_same_checkout(&self.unidentified)).map(|marker| marker.id)
    }

    /// Makes what is missing, after everything that speaks against it was looked at.
    async fn make(&self, request: &StartRequest) -> Result<bool> {
        self.subject().check_place().await?;
        let registry = registry_name(request.id);
        let finished = self.record()?.is_some_and(|record| record.initialised);
        let own = [registry.as_str()];
        let mut session = self.open(if finished { &own } else { &[] }).await?;
        let survey = Survey::take(&mut session.connection).await?;
        survey.check()?;
        survey::check_sessions(&mut session.connection, &session.login).await?;
        let databases = databases::read(&mut session.connection).await?;
        self.prove(&mut session, &survey, &databases, request.id).await?;
        if !databases.iter().any(|database| database.is_of(request.id)) {
            self.subject().check_use(&mut session.connection, &databases).await?;
        }
        self.compare(&mut session, request).await?;
        if finished {
            self.tell_missing(&databases, request.id);
        }
        let missing = |name: &str| !databases.iter().any(|database| database.name == name);
        if missing(&registry) || missing(&self.database) {
            survey.check_role()?;
        }
        let marker = Marker { id: request.id, ..self.unidentified.clone() };
        let connection = &mut session.connection;
        // First what may be refused: the name may be another's.
        let made = databases::make_project(connection, &self.database, &marker, &databases).await?;
        databases::make_registry(connection, &marker, &databases).await?;
        close(session.connection).await;
        Ok(made)
    }

    /// The databases that the instance's registry names: snapshots, what belongs to them, and fresh databases. Whatever the server is still
    /// making or dropping of these ends first.
    async fn listed(&self, registry: &str) -> Result<Vec<String>> {
        let mut session = self.open(&[registry]).await?;
        if session.login.database != registry {
            return Err(Error::failed(format!(
                "cannot log in to the database `{registry}`, which names the snapshots"
            ))
            .hint(format!("let the role in again: `ALTER DATABASE {registry} ALLOW_CONNECTIONS true`")));
        }
        if let Some(found) = clone::find(&mut session.connection, registry).await? {
            clone::close_sessions(&mut session.connection, found.oid).await?;
        }
        let mut listed = registry::databases(&mut session.connection).await?;
        listed.extend(crate::fresh::registry::databases(&mut session.connection).await?);
        close(session.connection).await;
        Ok(listed)
    }

    /// Fails unless the server is the one on record, as far as there is a record: the same system identifier, or the
    /// marker where that may not be read; and unless the registry is the instance's own.
    async fn prove(&self, session: &mut Session, survey: &Survey, databases: &[Database], id: Uuid) -> Result<()> {
        let registry = registry_name(id);
        let marked = databases.iter().any(|database| database.is_of(id));
        let look_alike = databases.iter().find(|database| database.name == registry && !database.is_of(id));
        if let Some(database) = look_alike {
            let found = database
                .marker
                .as_ref()
                .map_or_else(|| "no marker".to_owned(), |marker| format!("the marker of the instance {}", marker.id));
            return Err(refused(format!(
                "the database `{registry}` of the server at {} carries {found}",
                self.place()
            )));
        }
        self.check_identity(databases, id)?;
        if session.login.database == registry
            && let Some(claim) = Claim::read(&mut session.connection, survey.system_identifier).await?
        {
            claim.check(id)?;
        }
        let Some(record) = self.record()?.filter(|record| record.initialised) else { return Ok(()) };
        match (record.system_identifier(), survey.system_identifier) {
            (Some(expected), Some(found)) if expected != found => {
                let what = if marked { "is a copy of this instance's server" } else { "is another one" };
                Err(refused(format!(
                    "the server at {} {what}: its system identifier is {found}, and this instance has {expected}",
                    self.place()
                )))
            }
            (Some(_), Some(_)) => Ok(()),
            _ if marked => Ok(()),
            _ => Err(refused(format!("the server at {} carries no marker of the instance {id}", self.place()))),
        }
    }

    /// Fails if the project's database was made from this very checkout under another identity than the one on record.
    fn check_identity(&self, databases: &[Database], id: Uuid) -> Result<()> {
        let found = databases.iter().find(|database| database.name == self.database);
        match found.and_then(|database| database.marker.as_ref()) {
            Some(marker) if marker.id != id && marker.is_of_same_checkout(&self.unidentified) => Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the database `{}` carries the identity {}, and the record of this machine names {id}",
                    self.database, marker.id
                ),
            )
            .hint(format!(
                "if what is there is the right one, remove the record `{}` and run the command again",
                self.instance.record_file().display()
            ))),
            _ => Ok(()),
        }
    }

    /// Tells what is gone of an instance that was once made.
    fn tell_missing(&self, databases: &[Database], id: Uuid) {
        if !databases.iter().any(|database| database.is_of(id)) {
            self.events.warning(REMOVED);
        } else if !databases.iter().any(|database| database.name == self.database) {
            self.events.note(format!("The database `{}` is gone; it is made anew", self.database));
        }
    }

    /// Tells which settings of the profile the server has otherwise: they are not ours to change.
    async fn compare(&self, session: &mut Session, request: &StartRequest) -> Result<()> {
        let different = survey::different(&mut session.connection, &request.spec.settings).await?;
        if different.is_empty() {
            return Ok(());
        }
        let list = different.iter().map(|(name, value)| {
            format!("{name} is {value}, not {}", request.spec.settings.get(name).map_or("", String::as_str))
        });
        let list = list.collect::<Vec<_>>().join("; ");
        let profile = &request.spec.profile;
        let text =
            format!("The server's settings are not tfdev's to change; those of the profile `{profile}` differ: {list}");
        if self.profile_asked {
            self.events.warning(text);
        } else {
            self.events.detail(text);
        }
        Ok(())
    }

    /// Runs a program of this machine with the server as its target.
    fn command(&self, command: &[&str]) -> Result<(std::process::Command, tempfile::NamedTempFile)> {
        let known = self.known()?;
        let host = &self.url.host;
        let entry = PgpassEntry {
            host: if host.starts_with('/') { "*" } else { host },
            port: self.url.port,
            database: "*",
            user: &self.user,
            password: &known.password,
        };
        let file = entry.write_temporary()?;
        let mut prepared = std::process::Command::new(client_program(&self.places, command[0])?);
        prepared.args(&command[1..]).env("PGHOST", host).env("PGPORT", self.url.port.to_string());
        prepared.env("PGUSER", &self.user).env("PGPASSFILE", file.path());
        for name in ["PGPASSWORD", "PGHOSTADDR", "PGSERVICE", "PGOPTIONS"] {
            prepared.env_remove(name);
        }
        prepared.envs(self.as_server(Uuid::nil())?.tls_variables());
        Ok((prepared, file))
    }

    fn as_server(&self, id: Uuid) -> Result<Server> {
        let known = self.known()?;
        let role = Role { name: self.user.clone(), password: known.password };
        Ok(Server {
            endpoint: self.endpoint(),
            tls: self.tls()?,
            database: self.database.clone(),
            user: role.clone(),
            admin: role,
            registry: registry_name(id),
            tenancy: Tenancy::Shared,
            password_file: known.file,
        })
    }
}

fn parts(id: Uuid) -> Parts {
    Parts { registry: Some(registry_name(id)), ..Parts::default() }
}

/// The error for a server that is not the instance's.
fn refused(message: String) -> Error {
    Error::new(ErrorKind::Refused, message).hint("nothing was written; mend `external.url`").hint(
        "or give up what is on record: `tfdev destroy`, if the right server can still be reached, else another \
               `--instance NAME`",
    )
}

#[async_trait]
impl Engine for ExternalEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::External
    }

    fn certificate_host(&self) -> Option<String> {
        None
    }

    async fn server(&self, _: &Settings, _: Endpoint, _: Option<PathBuf>, _: &Events) -> Result<Server> {
        let id = self.record()?.and_then(|record| record.id()).ok_or_else(|| self.instance.not_found())?;
        if self.remembered().is_none() {
            self.subject().check_place().await?;
            // A session tells whether the password is right, or must be asked for; and whether anything is there.
            let registry = registry_name(id);
            let mut session = self.open(&[&registry]).await?;
            let is_there = session.login.database == registry
                || databases::read(&mut session.connection).await?.iter().any(|database| database.is_of(id));
            close(session.connection).await;
            if !is_there {
                return Err(self.instance.not_found());
            }
        }
        self.as_server(id)
    }

    async fn observe(&self) -> Result<Observed> {
        let record = self.record()?;
        let finished = record.as_ref().filter(|record| record.initialised).and_then(InstanceRecord::id);
        let id = match finished {
            Some(id) => Some(id),
            None => self.look(record.as_ref()).await?,
        };
        Ok(Observed {
            state: if id.is_some() { State::Starting } else { State::Absent },
            id,
            endpoint: id.map(|_| self.endpoint()),
            parts: id.map(parts).unwrap_or_default(),
            limits_enforced: false,
            limits_reason: Some("the server is run by someone else".to_owned()),
            reason: None,
        })
    }

    async fn resources(&self) -> Result<Resources> {
        Err(cannot("tell what the server has of its machine", "the server is run by someone else"))
    }

    async fn start(&self, request: &StartRequest) -> Result<Started> {
        let created = self.make(request).await?;
        let parts = parts(request.id);
        let endpoint = self.endpoint();
        Ok(Started { created, started: false, reconfigured: false, endpoint, first_password: None, parts })
    }

    async fn before_rename(&self) -> Result<()> {
        Err(super::cannot("put another server in its place", "the server is not tfdev's own"))
    }

    async fn renamed(&self) -> Result<()> {
        Ok(())
    }

    async fn check_alive(&self) -> Result<()> {
        Ok(())
    }

    async fn stop(&self) -> Result<bool> {
        self.events.note(format!("The server at {} is someone else's: tfdev never stops it", self.place()));
        Ok(false)
    }

    async fn destroy(&self) -> Result<Vec<String>> {
        let record = self.record()?;
        let Some(id) = self.look(record.as_ref()).await? else { return Ok(Vec::new()) };
        let mut session = self.open(&[]).await?;
        let survey = Survey::take(&mut session.connection).await?;
        let found = databases::read(&mut session.connection).await?;
        self.prove(&mut session, &survey, &found, id).await?;
        let registry = registry_name(id);
        let listed = if found.iter().any(|database| database.name == registry) {
            self.listed(&registry).await?
        } else {
            Vec::new()
        };
        // Looked at again: a copy may have come to its end since.
        let found = databases::read(&mut session.connection).await?;
        let ours = found.iter().filter(|database| database.is_of(id) || listed.contains(&database.name));
        let (last, first): (Vec<_>, Vec<_>) = ours.partition(|database| database.name == registry);
        let mut removed = Vec::new();
        // The registry goes last, so that a kill leaves something that can be destroyed again.
        for database in first.into_iter().chain(last) {
            databases::drop(&mut session.connection, &database.name).await?;
            removed.push(format!("database {}", database.name));
        }
        close(session.connection).await;
        Ok(removed)
    }

    async fn flush(&self) -> Result<()> {
        Ok(())
    }

    async fn source(&self, requested: Option<&Setting<String>>, _: Option<&str>) -> Result<Source> {
        if let Some(Setting { origin: Origin::Flag { .. }, .. }) = requested {
            return Err(cannot("run an image", "the server is run by someone else"));
        }
        Ok(Source { name: format!("the server at {}", self.place()), id: "external".to_owned() })
    }

    async fn restore(&self, _: &StartRequest, _: DataSource) -> Result<()> {
        Err(cannot("have its data folder restored", "that folder is on a machine that someone else runs"))
    }

    async fn stream(&self, command: &[&str], input: Input) -> Result<Program> {
        if command.first() != Some(&"pg_dump") || input != Input::None {
            let message = "there is nothing beside an external server that could run a program";
            return Err(Error::new(ErrorKind::Refused, message));
        }
        // That of this machine: a client as any other, which ends when nobody reads what it writes.
        let (mut prepared, password_file) = self.command(command)?;
        prepared.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let what = || format!("cannot run `{}`", command[0]);
        let child = tokio::process::Command::from(prepared).kill_on_drop(true).spawn().or_failed(what)?;
        Ok(Program::of_child(format!("run `{}`", command[0]), child, password_file))
    }

    async fn run(&self, command: &[&str], stdin: &[u8]) -> Result<ProgramOutput> {
        let what = || format!("cannot run `{}`", command[0]);
        let (mut prepared, _password_file) = self.command(command)?;
        prepared.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(prepared).kill_on_drop(true).spawn().or_failed(what)?;
        let input = child.stdin.take();
        let feed = async {
            if let Some(mut input) = input {
                // A program that ends before it has read all says so by its exit status.
                let _ = input.write_all(stdin).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.or_failed(what)?;
        let exit_code = output.status.code().unwrap_or(1).into();
        Ok(ProgramOutput { exit_code, stdout: output.stdout, stderr: output.stderr })
    }

    async fn interactive(&self, command: &[&str], _: bool) -> Result<i64> {
        let (mut prepared, _password_file) = self.command(command)?;
        let status = prepared.status().or_failed(|| format!("cannot run `{}`", command[0]))?;
        Ok(status.code().unwrap_or(1).into())
    }

    async fn logs(&self, _: Option<u32>, _: bool, _: &mut LogReceiver<'_>) -> Result<()> {
        Err(cannot("show the server's log", "the log is a file of a machine that someone else runs"))
    }
}

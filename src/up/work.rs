//! From what is there to a server that answers with the profile that is asked for, or else with the one that it had.
//!
//! What must hold: see [`super::change`].

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use uuid::Uuid;

use super::change::{self, Plan};
use super::record;
use super::run::Run;
use crate::config::Settings;
use crate::engine::{Engine, Observed, Source, StartRequest, Started, State};
use crate::error::{Error, Result};
use crate::event::Events;
use crate::fault;
use crate::identity;
use crate::instance::{Instance, InstanceRecord};
use crate::pg::scram::StoredForm;
use crate::profile::{Change, DataPlacement, Profile, Proven};
use crate::provision;
use crate::server::{Server, Tenancy};
use crate::spec::ServerSpec;
use crate::tls::ServerCertificate;

/// What an `up` works with, once it knows on what and from what.
pub(super) struct Work<'a> {
    pub(super) settings: &'a Settings,
    pub(super) instance: &'a Instance,
    pub(super) engine: &'a dyn Engine,
    pub(super) source: &'a Source,
    pub(super) id: Uuid,
    pub(super) timeout: Duration,
    pub(super) events: &'a Events,
}

/// A server that answers.
pub(super) struct Begun {
    pub(super) started: Started,
    pub(super) server: Server,
    /// A session of the ordinary role.
    pub(super) connection: PgConnection,
    /// The settings that it was given and did not have before.
    pub(super) changes: Vec<Change>,
    /// The record as it is on the disk.
    pub(super) written: InstanceRecord,
}

impl Work<'_> {
    /// Makes the server run with `profile`. Where that fails for the profile, and the settings of before are known, it
    /// runs with those, and the error says so.
    pub(super) async fn begin(
        &self,
        profile: &Profile,
        observed: &Observed,
        record: &mut InstanceRecord,
    ) -> Result<Begun> {
        let plan = Plan::of(record, profile);
        if let (Some(_), Some(endpoint), State::Starting) = (&plan.before, &observed.endpoint, observed.state) {
            let root_cert = record.root_cert.clone();
            let server = self.engine.server(self.settings, endpoint.clone(), root_cert, self.events).await?;
            change::check(&server, record, profile, &plan, self.events).await?;
        }
        let request = self.request(profile, record)?;
        if !identity::data_stays(observed, request.spec.data) {
            record.system_identifier = None;
        }
        // What an `up` that was killed gave to the server, it may not have read.
        let must_reload = record.changing || record.proven.is_none();
        record.changing |= plan.before.is_some();
        // On record before the engine makes anything that carries the identity, and before anything changes.
        let written = record::remember(self.instance, record, None)?;
        if record.changing {
            fault::point("up.change.intent").await;
        }
        let (started, server, connection) = match self.start(&request, profile, record, must_reload).await {
            Ok(begun) => {
                if record.changing {
                    fault::point("up.change.ready").await;
                }
                begun
            }
            Err(error) => return Err(Box::pin(self.go_back(&plan, profile, record, error)).await),
        };
        let mut written = written;
        if server.tenancy == Tenancy::Whole {
            record.proven = Some(profile.proven());
            if std::mem::take(&mut record.changing) {
                record.write(self.instance)?;
                written = record.clone();
            }
        }
        let changes = if started.created { Vec::new() } else { plan.changes };
        Ok(Begun { started, server, connection, changes, written })
    }

    /// The steps after the engine's start.
    pub(super) fn run<'a>(
        &'a self,
        server: &'a Server,
        profile: &Profile,
        started: &Started,
        record: &InstanceRecord,
    ) -> Run<'a> {
        Run {
            instance: self.instance,
            id: self.id,
            engine: self.engine,
            server,
            stored: if profile.has_short_logins() { StoredForm::Md5 } else { StoredForm::Scram },
            data: profile.data,
            must_flush: profile.data == DataPlacement::Volume && (started.created || !record.initialised),
            image_changed: record.image_id.as_ref().is_some_and(|id| *id != self.source.id),
            events: self.events,
            timeout: self.timeout,
        }
    }

    fn request(&self, profile: &Profile, record: &InstanceRecord) -> Result<StartRequest> {
        let (spec, certificate) =
            spec(self.settings, profile, self.instance, self.engine, self.source, record.archive_off)?;
        Ok(StartRequest { spec, certificate, id: self.id, last_port: record.port })
    }

    /// Starts the server, has it read its settings if it runs already and they are others, and waits for a login.
    async fn start(
        &self,
        request: &StartRequest,
        profile: &Profile,
        record: &mut InstanceRecord,
        must_reload: bool,
    ) -> Result<(Started, Server, PgConnection)> {
        let starting = Instant::now();
        let started = self.engine.start(request).await?;
        if record.changing && record.proven.as_ref().is_some_and(|proven| *proven != profile.proven()) {
            fault::point("up.change.started").await;
        }
        record.port = Some(started.endpoint.port);
        record.image.clone_from(&started.parts.image);
        record.root_cert = request.certificate.as_ref().map(|certificate| certificate.root_cert.clone());
        let endpoint = started.endpoint.clone();
        let server = self.engine.server(self.settings, endpoint, record.root_cert.clone(), self.events).await?;
        let reads_again = started.reconfigured || must_reload && !started.started;
        if reads_again && server.tenancy == Tenancy::Whole {
            change::reload(self.engine, self.timeout).await?;
        }
        let connection = self.run(&server, profile, &started, record).ready(&started, record).await?;
        if started.started {
            self.events.finished("Started PostgreSQL", starting.elapsed());
        }
        Ok((started, server, connection))
    }

    /// Makes the server run with the settings of before, if `error` may come from the new ones. Returns what is to be told.
    async fn go_back(&self, plan: &Plan, profile: &Profile, record: &mut InstanceRecord, error: Error) -> Error {
        let Some(before) = plan.before.as_ref().filter(|_| change::may_be_at_fault(&error, plan)) else { return error };
        self.events.warning("The server does not run with its new settings: it gets those of before back");
        fault::point("up.change.failed").await;
        match self.restore(before, record).await {
            Ok(()) => plan.taken_back(profile, error),
            Err(again) => error.hint(format!("it does not run with the settings of before either: {again}")),
        }
    }

    async fn restore(&self, before: &Proven, record: &mut InstanceRecord) -> Result<()> {
        let profile = before.profile();
        let request = self.request(&profile, record)?;
        let mut restored = self.start(&request, &profile, record, true).await;
        if restored.is_err() {
            // A server that runs may let nobody in.
            self.engine.stop().await?;
            restored = self.start(&request, &profile, record, false).await;
        }
        let (_, _, connection) = restored?;
        provision::close(connection).await;
        record.changing = false;
        record.write(self.instance)
    }
}

/// The server that the instance is to have, and its certificate if the profile has `ssl = on`.
pub(crate) fn spec(
    settings: &Settings,
    profile: &Profile,
    instance: &Instance,
    engine: &dyn Engine,
    source: &Source,
    archive_off: bool,
) -> Result<(ServerSpec, Option<ServerCertificate>)> {
    let mut spec = ServerSpec::new(profile, &source.name, &source.id, settings.database.port.value);
    if settings.backup.store.is_some() && !archive_off && profile.no_archive().is_none() {
        spec = spec.with_archive();
    }
    // None for a server that is someone else's.
    let Some(host) = engine.certificate_host() else { return Ok((spec, None)) };
    if profile.has_short_logins() {
        return Ok((spec.with_short_logins(), None));
    }
    if !profile.ssl {
        return Ok((spec, None));
    }
    let certificate = ServerCertificate::of(instance, &settings.state_dir, &host)?;
    Ok((spec.with_certificate(certificate.fingerprint()), Some(certificate)))
}

/// Starts an instance whose data was restored, and makes it this machine's own: passwords, role, database and mark. It is
/// neither migrated nor seeded. The caller holds the instance's lock.
pub(crate) async fn adopt(
    settings: &Settings,
    instance: &Instance,
    engine: &dyn Engine,
    request: &StartRequest,
    record: &mut InstanceRecord,
    events: &Events,
) -> Result<Server> {
    let started = engine.start(request).await?;
    record.port = Some(started.endpoint.port);
    record.image.clone_from(&started.parts.image);
    record.root_cert = request.certificate.as_ref().map(|certificate| certificate.root_cert.clone());
    let server = engine.server(settings, started.endpoint.clone(), record.root_cert.clone(), events).await?;
    let run = Run {
        instance,
        id: request.id,
        engine,
        server: &server,
        stored: request.spec.stored,
        data: request.spec.data,
        must_flush: false,
        image_changed: false,
        events,
        timeout: Duration::from_secs(settings.timeout_seconds.value),
    };
    provision::close(run.ready(&started, record).await?).await;
    Ok(server)
}

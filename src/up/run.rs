//! The steps of `up` once the engine has a server: wait for it, prove whose it is, set up what it lacks, fill it.

use std::time::{Duration, Instant};

use sqlx::PgConnection;
use uuid::Uuid;

use super::{Inputs, MigrationCounts, SeedReport};
use crate::checks;
use crate::engine::{Engine, Started};
use crate::error::{Error, Result};
use crate::event::Events;
use crate::identity::{self, Claim};
use crate::instance::{Instance, InstanceRecord, Password};
use crate::migrate;
use crate::pg::scram::StoredForm;
use crate::pg::{self, Login, LoginError, NotReady};
use crate::profile::DataPlacement;
use crate::provision::{self, Provision};
use crate::seed;
use crate::server::{Server, Tenancy};
use crate::spec::SUPERUSER;

/// How long a server that recovers from a crash may take, as long as it says that it does.
const RECOVERY_LIMIT: Duration = Duration::from_mins(10);

/// What the steps after the engine's start share.
pub(super) struct Run<'a> {
    pub(super) instance: &'a Instance,
    pub(super) id: Uuid,
    pub(super) engine: &'a dyn Engine,
    pub(super) server: &'a Server,
    /// In which form the server keeps passwords.
    pub(super) stored: StoredForm,
    /// Where the data lives.
    pub(super) data: DataPlacement,
    /// Whether the data was never written to the disk on purpose.
    pub(super) must_flush: bool,
    /// Whether the data was last used by another build of the image.
    pub(super) image_changed: bool,
    pub(super) events: &'a Events,
    pub(super) timeout: Duration,
}

impl Run<'_> {
    /// Waits for a login as the ordinary role and proves whose server it is; sets up what a new server lacks.
    pub(super) async fn ready(&self, started: &Started, record: &mut InstanceRecord) -> Result<PgConnection> {
        if record.initialised && record.system_identifier.is_some() && !started.created {
            let login = self.server.login();
            match self.wait(&login).await {
                Ok(mut connection) => {
                    self.server.prove(&mut connection, record).await?;
                    return Ok(connection);
                }
                Err(NotReady::Answered(LoginError::WrongPassword(_))) => {
                    self.events.detail("the role's password is not the one on record");
                }
                Err(NotReady::Answered(LoginError::NoDatabase(_))) => {
                    self.events.note(format!("The database `{}` is gone; it is made anew", self.server.database));
                }
                Err(error) => return Err(error.into_error(&login)),
            }
        }
        // Data in memory may have gone with its server without our knowing: whoever kills this process before the new
        // identifier is on record must not leave the old one beside a server that lets us in.
        if (started.created || self.data == DataPlacement::Memory) && record.system_identifier.take().is_some() {
            record.write(self.instance)?;
        }
        self.provision(started, record).await?;
        let login = self.server.login();
        self.wait(&login).await.map_err(|error| error.into_error(&login))
    }

    /// Waits until `login` succeeds. A server that says that it recovers gets more time than the time limit.
    async fn wait(&self, login: &Login) -> Result<PgConnection, NotReady> {
        let begin = Instant::now();
        loop {
            match pg::wait_ready(login, Instant::now() + self.timeout, || self.engine.check_alive()).await {
                Err(NotReady::TimedOut(LoginError::StartingUp(_))) if begin.elapsed() < RECOVERY_LIMIT => {
                    self.events.note("The server recovers from a crash; waiting for it");
                }
                other => return other,
            }
        }
    }

    /// Sets up a new server, or mends one whose passwords or database are not as they should be.
    async fn provision(&self, started: &Started, record: &mut InstanceRecord) -> Result<()> {
        let mut connection = match self.server.tenancy {
            Tenancy::Whole => self.superuser(started.first_password.as_ref()).await?,
            Tenancy::Shared => {
                let login = self.server.admin_login();
                self.wait(&login).await.map_err(|error| error.into_error(&login))?
            }
        };
        let wanted = Provision { instance: self.instance, id: self.id, server: self.server, stored: self.stored };
        let identifier = provision::provision(&mut connection, &wanted).await?;
        provision::close(connection).await;
        record.system_identifier = identifier.map(|identifier| identifier.to_string());
        record.write(self.instance)
    }

    /// Logs in as the superuser, with the password a new data folder came with, or the one on record, or after setting
    /// it from beside the server.
    async fn superuser(&self, first: Option<&Password>) -> Result<PgConnection> {
        let own = self.server.admin_login();
        for password in first.into_iter().chain([&self.server.admin.password]) {
            let login = Login { password: password.expose().to_owned(), ..own.clone() };
            match self.wait(&login).await {
                Ok(connection) => return Ok(connection),
                Err(NotReady::Answered(LoginError::WrongPassword(_))) => {}
                Err(error) => return Err(error.into_error(&login)),
            }
        }
        self.set_password_from_beside().await?;
        self.wait(&own).await.map_err(|error| match error {
            NotReady::Answered(LoginError::WrongPassword(_)) => identity::another_answers(&own),
            error => error.into_error(&own),
        })
    }

    /// Sets the superuser's password over the server's own socket, after looking whose server it is.
    async fn set_password_from_beside(&self) -> Result<()> {
        self.events.note("The server has other passwords than this machine; they are set anew");
        let psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", SUPERUSER];
        let found = self.engine.run(&psql, identity::PSQL_SCRIPT.as_bytes()).await?;
        let found = found.checked("read the server's identity")?.stdout;
        if let Some(claim) = Claim::parse(&String::from_utf8_lossy(&found))? {
            claim.check(self.id)?;
        }
        let script = provision::superuser_password_script(&self.server.admin.password, self.stored)?;
        self.engine.run(&psql, script.as_bytes()).await?.checked("set the superuser's password")?;
        Ok(())
    }

    /// Migrates, and loads the data set into an empty database, while what is new is written to the disk.
    pub(super) async fn fill(
        &self,
        mut connection: PgConnection,
        inputs: &Inputs,
        was_started: bool,
    ) -> Result<(MigrationCounts, Option<SeedReport>)> {
        let fill = async {
            if was_started {
                checks::clock(&mut connection, self.events).await?;
            }
            if self.image_changed {
                checks::collations(&mut connection, self.events).await?;
            }
            let options = migrate::Options { lock_timeout: self.timeout, ..migrate::Options::default() };
            let login = self.server.login();
            let migrated =
                migrate::run_if_pending(&mut connection, &login, &inputs.migrations, &options, self.events).await?;
            let counts = MigrationCounts { applied: migrated.applied, total: migrated.total };
            let Some(dataset) = &inputs.dataset else { return Ok((counts, None)) };
            let outcome = seed::apply(&mut connection, dataset, seed::Mode::OnlyIfEmpty, self.events).await?;
            Ok::<_, Error>((counts, Some(SeedReport::from(&outcome))))
        };
        // A new data folder was never written to the disk on purpose, and until it is the instance counts as unfinished.
        let flush = async { if self.must_flush { self.engine.flush().await } else { Ok(()) } };
        let (filled, ()) = tokio::try_join!(fill, flush)?;
        provision::close(connection).await;
        Ok(filled)
    }
}

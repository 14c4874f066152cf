//! A new data folder's way from a copy and a log to an instance: the server replays what is in the folder, up to the
//! target, promotes, and gets an identity and a password of its own.
//!
//! What must hold: the server replays with what its source had room for, whatever its own profile says; it needs nothing
//! but its data folder; and however long the replay takes, it is waited for as long as the server lives.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;

use super::plan::Stop;
use super::position::Lsn;
use crate::config::Settings;
use crate::engine::{Engine, StartRequest};
use crate::error::{Error, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord};
use crate::pg::{self, LoginError, NotReady, quote};
use crate::provision;
use crate::server::Server;
use crate::spec::{SUPERUSER, ServerSpec};

/// What PostgreSQL says if the log ends before the target.
const ENDED_EARLY: &str = "recovery ended before configured recovery target was reached";

/// What a new instance is made with.
pub(super) struct New {
    pub(super) settings: Settings,
    pub(super) instance: Instance,
    pub(super) engine: Box<dyn Engine>,
    pub(super) record: InstanceRecord,
    pub(super) request: StartRequest,
    pub(super) source_id: String,
}

impl New {
    /// What the server is started with to recover.
    pub(super) fn recovery(&self, stop: &Stop, timeline: String, at_least: &BTreeMap<String, u32>) -> StartRequest {
        let mut request = self.request.clone();
        let spec: &mut ServerSpec = &mut request.spec;
        for (name, least) in at_least {
            let own = spec.settings.get(name).and_then(|value| value.parse::<u32>().ok());
            // What the profile does not say is PostgreSQL's default, which the source may have had or not.
            if own.is_none_or(|own| own < *least) {
                spec.settings.insert(name.clone(), least.to_string());
            }
        }
        let (name, value) = match stop {
            Stop::End => ("recovery_target", String::new()),
            Stop::Time(time) => ("recovery_target_time", time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string()),
            Stop::Lsn(lsn) => ("recovery_target_lsn", lsn.to_string()),
            Stop::Name(name) => ("recovery_target_name", name.clone()),
        };
        let inclusive = if matches!(stop, Stop::Lsn(_)) { "off" } else { "on" };
        let settings = [
            (name, value),
            ("recovery_target_inclusive", inclusive.to_owned()),
            ("recovery_target_timeline", timeline),
            ("recovery_target_action", "promote".to_owned()),
            // All of the log is in the data folder already.
            ("restore_command", "false".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("hot_standby", "off".to_owned()),
        ];
        spec.settings.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        request
    }

    /// Starts the server and waits until it has recovered. It takes its own passwords only.
    pub(super) async fn replay(&self, request: &StartRequest) -> Result<Server> {
        let (settings, engine) = (&self.settings, self.engine.as_ref());
        let started = engine.start(request).await?;
        let root_cert = request.certificate.as_ref().map(|certificate| certificate.root_cert.clone());
        let server = engine.server(settings, started.endpoint, root_cert, &Events::none()).await?;
        let login = server.admin_login();
        let step = Duration::from_secs(settings.timeout_seconds.value);
        loop {
            match pg::wait_ready(&login, Instant::now() + step, || engine.check_alive()).await {
                // The first to answer has the passwords of the source.
                Err(NotReady::Answered(LoginError::WrongPassword(_))) => return Ok(server),
                Ok(connection) => {
                    provision::close(connection).await;
                    return Ok(server);
                }
                // As long as it replays the log, it is waited for.
                Err(NotReady::TimedOut(LoginError::StartingUp(_))) => {}
                Err(error) => return Err(error.into_error(&login)),
            }
        }
    }

    /// Gives the promoted server this instance's identity and password, over its own socket. Returns where recovery ended,
    /// and when the last transaction was committed that is in it.
    pub(super) async fn take_over(&self, server: &Server) -> Result<(Option<Lsn>, Option<Timestamp>)> {
        let psql = ["psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", SUPERUSER, "-d", SUPERUSER];
        let script = format!(
            "SELECT pg_last_wal_replay_lsn();\n\
             SELECT (extract(epoch FROM pg_last_xact_replay_timestamp()) * 1000)::bigint;\n\
             SET log_statement = 'none';\n\
             BEGIN; DELETE FROM tfdev.instance;\n\
             INSERT INTO tfdev.instance (id, project, instance, system_identifier) SELECT {}, {}, {}, system_identifier \
             FROM pg_control_system(); COMMIT;\n{}",
            quote::literal(&self.request.id.to_string())?,
            quote::literal(&self.instance.project)?,
            quote::literal(&self.instance.name)?,
            provision::superuser_password_script(&server.admin.password, self.request.spec.stored)?,
        );
        let output =
            self.engine.run(&psql, script.as_bytes()).await?.checked("make the restored server this instance's own")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut lines = text.lines();
        let lsn = lines.next().and_then(|line| line.parse().ok());
        let commit = lines.next().and_then(|line| line.parse().ok());
        Ok((lsn, commit.and_then(|milliseconds| Timestamp::from_millisecond(milliseconds).ok())))
    }
}

/// Whether the server ended because its log does before the target.
pub(super) fn is_ended_early(error: &Error) -> bool {
    error.to_string().contains(ENDED_EARLY) || error.causes().iter().any(|cause| cause.contains(ENDED_EARLY))
}

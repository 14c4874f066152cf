//! `tfdev test`.

use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use tokio::process::{Child, Command};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::fresh::take;
use crate::cli::Session;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::fresh::{Lease, Pool};

/// How long the database of a failed command stays if `fresh.keep_on_failure` says so.
const KEPT_FOR: Duration = Duration::from_hours(24);

/// Run a test command with a database of its own
///
/// `DATABASE_URL` is that of a fresh database. Tests that ask for more, with the Rust library or with a client of IntegreSQL
/// (INTEGRESQL_BASE_URL is that of a service that lives as long as the command), get them from the same instance; some are
/// made ahead while the command runs. Signals are passed on, the exit status is the command's, and
/// afterwards nothing remains.
#[derive(Debug, Args)]
pub struct Test {
    /// Fill the databases with a data set: small, demo, or a file under seeds/ [default: no rows]
    #[arg(long, value_name = "NAME")]
    seed: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
}

pub(super) async fn run(command: Test, session: &Session) -> Result<ExitCode> {
    let (pool, template, lease) = take(command.seed.as_deref(), session).await?;
    let cores = std::thread::available_parallelism().map_or(2, usize::from);
    pool.keep_ready(&template, 2 * cores);
    let service = Service::start(&pool, session).await?;
    let ended = run_with(&command.command, &lease, &service, session).await;
    let stopped = service.stop().await;
    let failed = !ended.as_ref().is_ok_and(ExitStatus::success);
    clean_up(&pool, lease, failed && session.settings.fresh.keep_on_failure.value, session).await?;
    stopped?;
    ended.map(exit_code)
}

/// Runs the command to its end.
async fn run_with(command: &[String], lease: &Lease, service: &Service, session: &Session) -> Result<ExitStatus> {
    let (program, arguments) = command.split_first().expect("clap wants at least one word");
    let settings = &session.settings;
    let mut child = Command::new(program);
    child.args(arguments).env("DATABASE_URL", lease.url()).envs(service.variables());
    // What the library in the command asks for is found in the same place.
    child.env("TFDEV_INSTANCE", &settings.instance.value).env("TFDEV_PROJECT_DIR", &settings.project_dir);
    // From here on, so that no signal finds a command that has begun and nobody to pass it on.
    let signals = Signals::take()?;
    let child = child.spawn().map_err(|error| {
        Error::new(ErrorKind::Usage, format!("cannot run `{program}`: {error}"))
            .hint("what is in PATH can be run; a line of shell needs `tfdev test -- sh -c '…'`")
    })?;
    signals.pass_on(child).await
}

/// The service for clients of IntegreSQL among the tests, where tfdev has it.
struct Service {
    #[cfg(feature = "server")]
    service: crate::serve::Service,
}

#[cfg(feature = "server")]
impl Service {
    async fn start(pool: &Pool, session: &Session) -> Result<Self> {
        use crate::serve;
        let listener = serve::Listener::bind("127.0.0.1:0", None, &[]).await?;
        let service = serve::Service::start(listener, &session.settings, Some(pool.clone()), &session.events);
        Ok(Self { service: service.await? })
    }

    fn variables(&self) -> Vec<(&'static str, String)> {
        self.service.variables()
    }

    async fn stop(self) -> Result<()> {
        self.service.stop().await
    }
}

#[cfg(not(feature = "server"))]
impl Service {
    #[expect(clippy::unused_async, reason = "with the feature it takes a moment")]
    async fn start(_: &Pool, _: &Session) -> Result<Self> {
        Ok(Self {})
    }

    #[expect(clippy::unused_self, reason = "with the feature they are those of the service")]
    fn variables(&self) -> [(&'static str, String); 0] {
        []
    }

    #[expect(clippy::unused_async, reason = "with the feature it takes a moment")]
    async fn stop(self) -> Result<()> {
        Ok(())
    }
}

/// The signals that end programs.
struct Signals {
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    interrupt: Signal,
}

impl Signals {
    fn take() -> Result<Self> {
        let of = |kind| signal(kind).or_failed(|| "cannot take signals");
        Ok(Self {
            terminate: of(SignalKind::terminate())?,
            hang_up: of(SignalKind::hangup())?,
            quit: of(SignalKind::quit())?,
            interrupt: of(SignalKind::interrupt())?,
        })
    }

    /// Waits for the command and passes them on to it. Ctrl-C reaches it by the terminal.
    async fn pass_on(mut self, mut child: Child) -> Result<ExitStatus> {
        use rustix::process::Signal;
        let by_terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
        loop {
            let received = tokio::select! {
                ended = child.wait() => return ended.or_failed(|| "cannot wait for the command"),
                _ = self.terminate.recv() => Some(Signal::TERM),
                _ = self.hang_up.recv() => Some(Signal::HUP),
                _ = self.quit.recv() => Some(Signal::QUIT).filter(|_| !by_terminal),
                _ = self.interrupt.recv() => Some(Signal::INT).filter(|_| !by_terminal),
            };
            let process = child.id().and_then(|id| rustix::process::Pid::from_raw(id.cast_signed()));
            if let (Some(received), Some(process)) = (received, process) {
                // It may just have ended.
                let _ = rustix::process::kill_process(process, received);
            }
        }
    }
}

/// Gives back what is ours, and removes what tests of the command have left.
async fn clean_up(pool: &Pool, lease: Lease, keep: bool, session: &Session) -> Result<()> {
    pool.make_ahead(0);
    if keep {
        let name = lease.database.clone();
        pool.keep(lease, KEPT_FOR).await?;
        session.events.note(format!("The database `{name}` stays for a day; `tfdev fresh list` shows its URL"));
    } else {
        pool.give_back(lease).await?;
    }
    pool.settle().await
}

/// The command's exit status; that of a shell if a signal ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let signal = std::os::unix::process::ExitStatusExt::signal(&status).map(|signal| 128 + signal);
    let code = status.code().or(signal).and_then(|code| u8::try_from(code).ok());
    ExitCode::from(code.unwrap_or(1))
}

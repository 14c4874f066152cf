//! Starting and stopping the server's process.
//!
//! What must hold: the server is a session of its own and outlives this program and its terminal; its own bind decides on
//! the port; a pid file is removed only when its process was just proven not to be the server, because PostgreSQL takes
//! any living process of the same user for a running server; and a signal goes only to a process that was just proven to
//! be the server.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::time::sleep;

use super::account::Account;
use super::limits::Limits;
use super::log::{self, Sink};
use super::place::Place;
use super::process::{PidFile, Process};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::pg::programs::{self, Programs};

/// How often a process that starts or stops is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// How long the shared memory of a server that was killed may still be in use by its last processes.
const LEFTOVERS_LIMIT: Duration = Duration::from_secs(10);

/// What became of an attempt to start the server.
pub(super) enum Attempt {
    /// It listens.
    Running(Launched),
    /// Something else has the port.
    PortTaken,
    /// A server of this data folder runs already: another tfdev started it and was killed.
    AlreadyRunning,
}

/// A server that this process started.
#[derive(Debug)]
pub(super) struct Launched {
    child: Child,
    /// Where its part of the log begins.
    log_begin: u64,
}

impl Launched {
    /// How it ended, if it did.
    pub(super) fn ended(&mut self, place: &Place) -> Option<Error> {
        let status = self.child.try_wait().ok().flatten()?;
        Some(ended(&status.to_string(), &log::since(&place.log_dir(), self.log_begin)))
    }
}

/// The error for a server that ended by itself.
pub(super) fn ended(how: &str, log: &str) -> Error {
    let mut error = Error::failed(format!("the server ended by itself ({how})"));
    let lines = log::last_lines(log);
    if !lines.is_empty() {
        error = error.caused_by(format!("the last lines of its log:\n{lines}"));
    }
    error.hint(
        "see the whole log with `tfdev logs`; if a setting of the profile is at fault, mend it and run `tfdev up`",
    )
}

/// What a server is started from.
pub(super) struct Launch<'a> {
    pub(super) place: &'a Place,
    pub(super) account: Account,
    pub(super) programs: &'a Programs,
    /// tfdev's own program, which writes the server's log.
    pub(super) own_program: Option<&'a Path>,
    pub(super) limits: &'a Limits,
    pub(super) timeout: Duration,
    pub(super) events: &'a Events,
}

/// Waits for a line before it becomes the program that it is given: until then the process has no memory and no
/// children that would escape the limits. It ends without one if the other end is closed, that is by a kill of tfdev.
const GATE: &str = r#"read -r line && exec "$0" "$@" </dev/null"#;

impl Launch<'_> {
    /// Starts the server and waits until it listens or has ended.
    pub(super) async fn start(&self) -> Result<Attempt> {
        let begin = Instant::now();
        loop {
            let log = Sink::open(self.place, self.account, self.own_program)?;
            let child = self.spawn(&log)?;
            let mut launched = Launched { child, log_begin: log.begin() };
            let ended_with = wait_until_listening(&mut launched, &self.place.data(), begin + self.timeout).await?;
            let Some(status) = ended_with else { return Ok(Attempt::Running(launched)) };
            let text = log.close();
            if text.contains("Address already in use") && text.contains("could not create any TCP/IP sockets") {
                return Ok(Attempt::PortTaken);
            }
            if text.contains("lock file \"postmaster.pid\" already exists") {
                return Ok(Attempt::AlreadyRunning);
            }
            let leftovers = text.contains("pre-existing shared memory block");
            if !leftovers || begin.elapsed() > LEFTOVERS_LIMIT {
                return Err(ended(&status, &text));
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    /// Starts the server's process, within its limits.
    fn spawn(&self, log: &Sink) -> Result<Child> {
        let server = self.programs.program("postgres");
        let gated = self.limits.are_there();
        let mut words: Vec<OsString> =
            if gated { ["/bin/sh", "-c", GATE].map(OsString::from).into() } else { Vec::new() };
        words.extend([server.clone().into(), "-D".into(), self.place.data().into()]);
        let run = |mut command: Command| {
            command.stdin(if gated { Stdio::piped() } else { Stdio::null() });
            command.stdout(log.stream()?).stderr(log.stream()?).spawn()
        };
        // `setsid` becomes the server: the child of this process leads no group yet.
        let mut with_session = self.account.command(Path::new("setsid"));
        with_session.args(&words);
        let child = match run(with_session) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut in_group = self.account.command(Path::new(&words[0]));
                in_group.args(&words[1..]).process_group(0);
                run(in_group)
            }
            child => child,
        };
        let mut child = child
            .or_failed(|| format!("cannot run `{}`", server.display()))
            .map_err(|error| error.hint("the server's user must be able to reach it").hint(programs::INSTALL_HINT))?;
        if let Some(mut gate) = child.stdin.take() {
            if let Err(error) = self.limits.admit(child.id()) {
                self.events.warning(format!("the server runs without limits on memory and processor time: {error}"));
            }
            // A process that is gone is noticed by those who wait for it.
            let _ = gate.write_all(b"\n");
        }
        Ok(child)
    }
}

/// Waits until the server listens; how it ended, if it did that first.
async fn wait_until_listening(launched: &mut Launched, data: &Path, deadline: Instant) -> Result<Option<String>> {
    let pid = launched.child.id().cast_signed();
    loop {
        let ended = launched.child.try_wait().or_failed(|| "cannot look after the server's process")?;
        if let Some(status) = ended {
            return Ok(Some(status.to_string()));
        }
        if PidFile::read(data).is_some_and(|file| file.pid == pid && file.status.is_some()) {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            return Err(Error::new(ErrorKind::TimedOut, "the server did not begin to listen in time")
                .hint("`tfdev logs` shows what it does; `--timeout SECONDS` gives it longer"));
        }
        sleep(LOOK).await;
    }
}

/// Removes what a server that is gone left, and what would keep the next one from starting.
pub(super) async fn clear_leftovers(data: &Path, socket_dir: &Path, events: &Events) -> Result<()> {
    if let Some(file) = PidFile::read(data) {
        let deadline = Instant::now() + LEFTOVERS_LIMIT;
        while file.process(data) == Process::Ending && Instant::now() < deadline {
            sleep(LOOK).await;
        }
        let why = match file.process(data) {
            Process::Server { .. } | Process::Ending => return Ok(()),
            Process::Gone => "which is gone".to_owned(),
            Process::Another(name) => format!("whose number `{name}` has now"),
        };
        events.detail(format!("the pid file names process {}, {why}; it is removed", file.pid));
        let path = data.join("postmaster.pid");
        fs::remove_file(&path).or_failed(|| format!("cannot remove the stale file `{}`", path.display()))?;
    }
    // The folder of the socket is this server's alone, so whatever is in it is as stale.
    for entry in fs::read_dir(socket_dir).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(".s.PGSQL.") {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

/// How a server is to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stop {
    /// Sessions are cut off, everything is written out.
    Fast,
    /// At once: what is written goes away anyway.
    Immediate,
}

/// Stops the server, if it runs, within `limit`, or at once after that. Returns whether it was running.
pub(super) async fn stop(data: &Path, how: Stop, limit: Duration, events: &Events) -> Result<bool> {
    let Some(file) = PidFile::read(data) else { return Ok(false) };
    match file.process(data) {
        Process::Server { .. } => {}
        Process::Ending => return wait_until_gone(&file, data, limit).await.map(|_| false),
        Process::Gone | Process::Another(_) => return Ok(false),
    }
    file.signal(if how == Stop::Fast { Signal::INT } else { Signal::QUIT })?;
    if wait_until_gone(&file, data, limit).await? {
        return Ok(true);
    }
    events.warning(format!(
        "the server did not stop within {} s and is ended at once; it recovers when it starts again",
        limit.as_secs()
    ));
    for signal in [Signal::QUIT, Signal::KILL] {
        file.signal(signal)?;
        if wait_until_gone(&file, data, Duration::from_secs(10)).await? {
            return Ok(true);
        }
    }
    Err(Error::new(ErrorKind::TimedOut, format!("the server, process {}, does not end", file.pid))
        .hint(format!("look at it with `ps -fp {}`", file.pid)))
}

async fn wait_until_gone(file: &PidFile, data: &Path, limit: Duration) -> Result<bool> {
    let deadline = Instant::now() + limit;
    loop {
        match file.process(data) {
            // A process that is stopped hears no other signal.
            Process::Server { stopped: true } => file.signal(Signal::CONT)?,
            Process::Server { stopped: false } | Process::Ending => {}
            Process::Gone | Process::Another(_) => return Ok(true),
        }
        if Instant::now() >= deadline {
            return Ok(false);
        }
        sleep(LOOK).await;
    }
}

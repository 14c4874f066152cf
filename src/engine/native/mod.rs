//! The native engine: a server from the PostgreSQL 15 programs of this machine, as a process of its own.
//!
//! What must hold: see [`crate::engine`]; beside that, whether the server runs is told by its pid file, by what the
//! process of that number is (`process`) and, above the engine, by a login; only a data folder with the instance's
//! marker is started or removed (`data`); the server listens on loopback and on a socket in a private folder; and it
//! never runs as root (`account`).
//! The profile's limits on memory and processor time hold where this user may make control groups (`limits`); elsewhere
//! `status` says why not.

mod account;
mod data;
mod launch;
mod limits;
mod log;
mod place;
mod process;
mod settings_file;
mod start;
mod stream;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest, Sha256};
use tokio::io::AsyncWriteExt;

use self::data::DataFolder;
use self::launch::{Launched, Stop};
pub use self::log::{WRITER_ARGUMENT, write_log};
use self::place::{Kept, Place};
use self::process::{PidFile, Process};
use crate::config::{Setting, Settings};
use crate::engine::program::{Input, Program};
use crate::engine::{
    DataMount, DataSource, Endpoint, Engine, EngineKind, LogReceiver, Observed, Parts, ProgramOutput, Resources,
    Source, StartRequest, Started, State,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::Instance;
use crate::pg::programs::{Programs, SearchPlaces};
use crate::spec::{STOP_TIMEOUT_SECONDS, hexadecimal};

/// The address on which every native server listens.
const HOST: &str = "127.0.0.1";

/// The native engine for one instance.
#[derive(Debug)]
pub struct NativeEngine {
    instance: Instance,
    places: SearchPlaces,
    /// Who is to run the server if root runs tfdev.
    user: Option<Setting<String>>,
    runtime_dir: Option<PathBuf>,
    /// Where data folders are kept that were initialised once (see [`crate::engine::cluster`]).
    cluster_dir: PathBuf,
    /// tfdev's own program, if this process is one.
    own_program: Option<PathBuf>,
    timeout: Duration,
    events: Events,
    /// The server, if this process started it.
    launched: Mutex<Option<Launched>>,
}

/// What there is of an instance.
struct Found {
    kept: Option<Kept>,
    place: Place,
    folder: Option<DataFolder>,
    pid_file: Option<PidFile>,
    process: Process,
}

impl NativeEngine {
    /// Makes the engine for `instance`. It needs no programs until a server is to be started.
    pub fn new(instance: Instance, settings: &Settings, events: Events) -> Self {
        Self {
            instance,
            places: SearchPlaces::of(settings),
            user: settings.native_user.clone(),
            runtime_dir: settings.docker.runtime_dir.clone(),
            cluster_dir: settings.cache_dir.join("clusters"),
            own_program: settings.own_program.clone(),
            timeout: Duration::from_secs(settings.timeout_seconds.value),
            events,
            launched: Mutex::new(None),
        }
    }

    /// Finds the programs; an error says what is missing and how to get it.
    pub fn programs(&self) -> Result<Programs> {
        Programs::find(&self.places)
    }

    /// The programs of the running server, which need not be asked again, or those that a start would use.
    fn programs_in_use(&self) -> Result<Programs> {
        let found = self.find()?;
        let used = found.kept.as_ref().filter(|_| found.is_running()).map(|kept| kept.programs.clone());
        let is_wanted = |used: &Programs| match &self.places.bin_dir {
            Some(named) => named.canonicalize().is_ok_and(|named| named == used.bin_dir),
            None => used.program("postgres").exists(),
        };
        used.filter(is_wanted).map_or_else(|| self.programs(), Ok)
    }

    /// Looks at what is there.
    fn find(&self) -> Result<Found> {
        let kept = Kept::read(&self.instance);
        let place = Place::of(&self.instance, kept.as_ref());
        let data = place.data();
        let former = kept.as_ref().and_then(|kept| kept.former.as_deref());
        let folder = DataFolder::look(&data, &self.instance, former)?;
        let pid_file = folder.as_ref().and_then(|_| PidFile::read(&data));
        let process = pid_file.as_ref().map_or(Process::Gone, |file| file.process(&data));
        Ok(Found { kept, place, folder, pid_file, process })
    }

    /// Gives the data its instance's name, if it still carries the one that this had before.
    fn settle_name(&self, found: &Found) -> Result<()> {
        let (Some(folder), Some(kept)) = (&found.folder, &found.kept) else { return Ok(()) };
        folder.rename(&found.place.data(), &self.instance)?;
        if kept.former.is_none() {
            return Ok(());
        }
        Kept { former: None, ..kept.clone() }.write(&found.place)
    }

    fn socket_dir(&self, place: &Place) -> PathBuf {
        place.socket_dir(self.runtime_dir.as_deref())
    }

    /// A program of the server's, set to its socket.
    fn program(&self, command: &[&str], found: &Found) -> Result<(PathBuf, Vec<(&'static str, String)>)> {
        let port = found.running_port().ok_or_else(|| self.instance.not_running(None))?;
        let variables = [("PGHOST", self.socket_dir(&found.place).display().to_string()), ("PGPORT", port.to_string())];
        Ok((self.programs_in_use()?.program(command[0]), variables.to_vec()))
    }

    fn launched(&self) -> std::sync::MutexGuard<'_, Option<Launched>> {
        self.launched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Found {
    fn is_running(&self) -> bool {
        matches!(self.process, Process::Server { .. })
    }

    /// Whether the data is gone together with the server, as data in memory is to.
    fn went_with_the_server(&self) -> bool {
        self.folder.is_none() && self.kept.as_ref().is_some_and(|kept| kept.in_memory)
    }

    /// Whether the server was started with the spec of this hash.
    fn has_spec(&self, hash: &str) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.spec_hash == hash)
    }

    fn running_port(&self) -> Option<u16> {
        self.pid_file.as_ref().filter(|_| self.is_running()).and_then(|file| file.port)
    }

    fn parts(&self) -> Parts {
        Parts { data_dir: self.folder.is_some().then(|| self.place.data()), ..Parts::default() }
    }

    /// Why the server is not held to the profile's limits, or would not be; `None` if it is.
    fn limits_missing(&self) -> Option<String> {
        match self.pid_file.as_ref().filter(|_| self.is_running()) {
            Some(file) => limits::missing(&self.place, file.pid),
            None => limits::impossible(),
        }
    }

    /// What the process is doing, and why it is not running.
    fn observe(&self) -> (State, Option<String>) {
        match (&self.folder, &self.pid_file, &self.process) {
            (None, ..) if self.went_with_the_server() => (State::Stopped, None),
            (None, ..) => (State::Absent, None),
            (Some(_), _, Process::Server { stopped: true }) => {
                (State::Unhealthy, Some("the server's process is stopped by a signal".to_owned()))
            }
            (Some(_), _, Process::Server { stopped: false }) => (State::Starting, None),
            (Some(_), Some(file), Process::Gone | Process::Ending) => {
                (State::Crashed, Some(format!("its process {} is gone without having stopped in order", file.pid)))
            }
            (Some(_), Some(file), Process::Another(name)) => {
                let what = format!("its process {} is gone, and the number is now that of `{name}`", file.pid);
                (State::Crashed, Some(what))
            }
            (Some(_), None, _) if data::was_stopped_in_order(&self.place.data()) => (State::Stopped, None),
            (Some(_), None, _) => (State::Crashed, Some("it was not stopped in order".to_owned())),
        }
    }
}

#[async_trait]
impl Engine for NativeEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Native
    }

    fn certificate_host(&self) -> Option<String> {
        Some(HOST.to_owned())
    }

    async fn observe(&self) -> Result<Observed> {
        let found = self.find()?;
        let (state, reason) = found.observe();
        let marked = found.folder.as_ref().map(|folder| folder.marker.id);
        let kept = found.kept.as_ref().filter(|_| state != State::Absent);
        let limits_reason = found.limits_missing();
        Ok(Observed {
            state,
            id: marked.or_else(|| kept.map(|kept| kept.id)),
            endpoint: found.running_port().map(endpoint),
            parts: found.parts(),
            limits_enforced: limits_reason.is_none(),
            limits_reason,
            reason,
        })
    }

    async fn resources(&self) -> Result<Resources> {
        let found = self.find()?;
        let (memory_bytes, nano_cpus) = limits::held(&found.place);
        Ok(Resources { image: None, memory_bytes, nano_cpus, data: DataMount::Folder(found.place.data()) })
    }

    async fn start(&self, request: &StartRequest) -> Result<Started> {
        self.start_instance(request).await
    }

    async fn restore(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        self.restore_data(request, data).await
    }

    async fn before_rename(&self) -> Result<()> {
        let found = self.find()?;
        let (Some(folder), Some(kept)) = (&found.folder, found.kept.clone()) else {
            return Err(self.instance.not_found());
        };
        if kept.in_memory {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the data of `{}` is in memory and goes with its server", self.instance.name),
            ));
        }
        let former = Some(folder.marker.instance.clone());
        if kept.former == former { Ok(()) } else { Kept { former, ..kept }.write(&found.place) }
    }

    async fn renamed(&self) -> Result<()> {
        self.settle_name(&self.find()?)
    }

    async fn check_alive(&self) -> Result<()> {
        let place = Place::of(&self.instance, Kept::read(&self.instance).as_ref());
        if let Some(launched) = self.launched().as_mut() {
            return launched.ended(&place).map_or(Ok(()), Err);
        }
        if self.find()?.is_running() {
            return Ok(());
        }
        let log = log::since(&place.log_dir(), 0);
        Err(launch::ended("its process is gone", &log))
    }

    async fn stop(&self) -> Result<bool> {
        let found = self.find()?;
        let data = found.place.data();
        let limit = Duration::from_secs(STOP_TIMEOUT_SECONDS.cast_unsigned());
        let in_memory = found.kept.as_ref().is_some_and(|kept| kept.in_memory);
        let how = if in_memory { Stop::Immediate } else { Stop::Fast };
        let was_running = launch::stop(&data, how, limit, &self.events).await?;
        limits::remove(&found.place, &self.events).await;
        if in_memory && found.folder.is_some() {
            remove_home(&found.place, &self.socket_dir(&found.place))?;
        }
        Ok(was_running)
    }

    async fn destroy(&self) -> Result<Vec<String>> {
        let found = self.find()?;
        let place = &found.place;
        let mut removed = Vec::new();
        if found.folder.is_some() {
            let limit = Duration::from_secs(STOP_TIMEOUT_SECONDS.cast_unsigned());
            launch::stop(&place.data(), Stop::Immediate, limit, &self.events).await?;
            removed.push(format!("data folder {}", place.data().display()));
        }
        limits::remove(place, &self.events).await;
        remove_home(place, &self.socket_dir(place))?;
        Ok(removed)
    }

    async fn flush(&self) -> Result<()> {
        let place = self.find()?.place;
        let what = || "flushing the data folder was cut off";
        let flushed = tokio::task::spawn_blocking(move || data::flush(&place.home));
        flushed.await.or_failed(what)?.or_failed(|| "cannot write the new data folder to the disk")
    }

    async fn source(&self, requested: Option<&Setting<String>>, _: Option<&str>) -> Result<Source> {
        if let Some(requested) = requested {
            self.events.detail(format!("the image that {} names is not used: the engine is native", requested.origin));
        }
        let name = self.programs_in_use()?.to_string();
        Ok(Source { id: hexadecimal(&Sha256::digest(&name)[..8]), name })
    }

    async fn run(&self, command: &[&str], stdin: &[u8]) -> Result<ProgramOutput> {
        let found = self.find()?;
        let (program, variables) = self.program(command, &found)?;
        let account = found.folder.as_ref().map(|folder| folder.account).ok_or_else(|| self.instance.not_found())?;
        let what = || format!("cannot run `{}`", program.display());
        let mut prepared = account.command(&program);
        prepared.args(&command[1..]).envs(variables);
        prepared.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = tokio::process::Command::from(prepared).kill_on_drop(true).spawn().or_failed(what)?;
        let mut input = child.stdin.take();
        let feed = async {
            if let Some(mut input) = input.take() {
                // A program that ends before it has read all says so by its exit status.
                let _ = input.write_all(stdin).await;
            }
        };
        let ((), output) = tokio::join!(feed, child.wait_with_output());
        let output = output.or_failed(what)?;
        let exit_code = output.status.code().unwrap_or(1).into();
        Ok(ProgramOutput { exit_code, stdout: output.stdout, stderr: output.stderr })
    }

    async fn stream(&self, command: &[&str], input: Input) -> Result<Program> {
        let found = self.find()?;
        let (_, mut variables) = self.program(command, &found)?;
        // Found by its name, so that a script may be the program too.
        let bin_dir = self.programs_in_use()?.bin_dir;
        variables.push(("PATH", format!("{}:{}", bin_dir.display(), account::SEARCH_PATH)));
        let account = found.folder.as_ref().map(|folder| folder.account).ok_or_else(|| self.instance.not_found())?;
        let folder = found.place.files();
        if input != Input::None {
            Place::create_folder_for(&folder, account)?;
        }
        stream::start(account, command, &variables, &folder, input)
    }

    async fn interactive(&self, command: &[&str], _: bool) -> Result<i64> {
        let found = self.find()?;
        let (program, variables) = self.program(command, &found)?;
        // This process becomes the program, so that signals and the terminal are its own; it runs as the person who
        // typed, with all of that person's settings.
        let error = std::process::Command::new(&program).args(&command[1..]).envs(variables).exec();
        Err(Error::failed(format!("cannot run `{}`", program.display())).caused_by(error))
    }

    async fn logs(&self, tail: Option<u32>, follow: bool, receive: &mut LogReceiver<'_>) -> Result<()> {
        let found = self.find()?;
        if found.folder.is_none() && !found.went_with_the_server() {
            return Err(self.instance.not_found());
        }
        log::read(&found.place.log_dir(), tail, follow, receive).await
    }
}

fn endpoint(port: u16) -> Endpoint {
    Endpoint { host: HOST.to_owned(), port }
}

/// Removes what a server has that does not run: its data folder, which was looked at and first loses its name, so that a
/// kill leaves nothing that looks whole; what killed runs left; and all of a home outside of the state folder.
fn remove_home(place: &Place, socket_dir: &Path) -> Result<()> {
    let (data, removed) = (place.data(), place.removed());
    data::remove(&removed)?;
    match std::fs::rename(&data, &removed) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        done => done.or_failed(|| format!("cannot move aside `{}`", data.display()))?,
    }
    data::remove(&removed)?;
    data::remove(&place.partial())?;
    data::remove(&place.files())?;
    data::remove(socket_dir)?;
    place.outside().map_or(Ok(()), |home| data::remove(&home))
}

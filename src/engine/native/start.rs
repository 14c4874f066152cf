//! Starting an instance: its data folder is made if it is missing, the port is settled, the server runs.
//!
//! What must hold: each step can be the last one before a kill, and the next call goes on from there.

use std::path::Path;
use std::time::{Duration, Instant};

use super::account::Account;
use super::data::{DataFolder, Maker};
use super::launch::{self, Attempt, Launch, Stop};
use super::limits::{self, Limits};
use super::place::{Kept, Place};
use super::{Found, NativeEngine, endpoint, remove_home, settings_file};
use crate::config::PortChoice;
use crate::engine::{DataSource, Parts, StartRequest, Started, State, ports};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::{FileLock, Password};
use crate::pg::programs::Programs;
use crate::profile::DataPlacement;
use crate::spec::STOP_TIMEOUT_SECONDS;

impl NativeEngine {
    pub(super) async fn start_instance(&self, request: &StartRequest) -> Result<Started> {
        let found = self.find()?;
        if found.is_running() {
            if let Some(port) = found.running_port().filter(|_| found.has_spec(&request.spec.hash())) {
                self.wake(&found)?;
                let parts = found.parts();
                return Ok(Started {
                    created: false,
                    started: false,
                    reconfigured: self.reconfigure(&found, request, port)?,
                    endpoint: endpoint(port),
                    first_password: None,
                    parts,
                });
            }
            self.events.note("The server's settings or programs changed: it is restarted, its data stays");
            let limit = Duration::from_secs(STOP_TIMEOUT_SECONDS.cast_unsigned());
            launch::stop(&found.place.data(), Stop::Fast, limit, &self.events).await?;
        } else if let (State::Crashed, Some(reason)) = found.observe() {
            self.events
                .warning(format!("the server was not stopped in order: {reason}; PostgreSQL recovers by itself"));
        }
        let programs = self.programs()?;
        let (place, account, first_password) = if let Some(account) = self.reuse(&found, request, &programs)? {
            (found.place.clone(), account, None)
        } else {
            let (place, account, password) = self.create(&found, request, &programs).await?;
            (place, account, Some(password))
        };
        let port = self.launch(request, &place, account, &programs).await?;
        Ok(Started {
            created: first_password.is_some(),
            started: true,
            reconfigured: false,
            endpoint: endpoint(port),
            first_password,
            parts: Parts { data_dir: Some(place.data()), ..Parts::default() },
        })
    }

    /// Gives the running server its settings file, if that is another one than it has.
    fn reconfigure(&self, found: &Found, request: &StartRequest, port: u16) -> Result<bool> {
        let (Some(folder), socket_dir) = (&found.folder, self.socket_dir(&found.place)) else { return Ok(false) };
        if settings_file::is_current(&found.place, request, port, &socket_dir) {
            return Ok(false);
        }
        settings_file::write(&found.place, folder.account, request, port, &socket_dir)?;
        Ok(true)
    }

    /// Lets a server go on that a signal had stopped.
    fn wake(&self, found: &Found) -> Result<()> {
        match (&found.pid_file, found.observe().0) {
            (Some(file), State::Unhealthy) => {
                self.events.note("The server's process was stopped by a signal; it goes on");
                file.signal(rustix::process::Signal::CONT)
            }
            _ => Ok(()),
        }
    }

    /// Who runs the server of the data that is there; `None` if new data is to be made.
    fn reuse(&self, found: &Found, request: &StartRequest, programs: &Programs) -> Result<Option<Account>> {
        let Some(folder) = &found.folder else { return Ok(None) };
        self.settle_name(found)?;
        let in_memory = found.kept.as_ref().is_some_and(|kept| kept.in_memory);
        match (in_memory, request.spec.data) {
            (true, DataPlacement::Volume) => {
                self.events.note("The profile wants its data on the disk; that in memory goes, and is made anew there");
                remove_home(&found.place, &self.socket_dir(&found.place))?;
                return Ok(None);
            }
            (false, DataPlacement::Memory) => {
                self.events.detail("the profile wants its data in memory; what is on the disk stays there");
            }
            _ => {}
        }
        DataFolder::check_version(&found.place.data())?;
        remember(found, &found.place, in_memory, request, programs)?;
        Ok(Some(folder.account))
    }

    /// Where new data is to be, and whether that is in memory.
    fn place_for_new(&self, request: &StartRequest) -> (Place, bool) {
        if request.spec.data == DataPlacement::Memory {
            let room = request.spec.limits.storage_bytes;
            if let Some(place) = Place::in_memory(&self.instance, self.runtime_dir.as_deref(), room) {
                return (place, true);
            }
            self.events.note(format!(
                "No file system in memory has {} MB left, so this instance's data is on the disk",
                room / (1024 * 1024)
            ));
        }
        (Place::of(&self.instance, None), false)
    }

    /// Makes the data folder. Returns its place, who runs its server, and the superuser's password in it.
    async fn create(
        &self,
        found: &Found,
        request: &StartRequest,
        programs: &Programs,
    ) -> Result<(Place, Account, Password)> {
        let (account, name) = Account::for_new(self.user.as_ref())?;
        let (place, in_memory) = self.place_for_new(request);
        if let Some(name) = name {
            self.events.note(format!(
                "PostgreSQL refuses to be run by root: the server runs as the user `{name}`, its data is in `{}`",
                place.home.display()
            ));
        }
        // Before there is anything in a place that only this names.
        remember(found, &place, in_memory, request, programs)?;
        place.create()?;
        let maker = Maker {
            place: place.clone(),
            instance: self.instance.clone(),
            account,
            programs: programs.clone(),
            cache: self.cluster_dir.clone(),
        };
        let mut cached = maker.cached();
        let mut lock = None;
        if cached.is_none() {
            let path = self.cluster_dir.join(format!("{}.lock", maker.key()));
            let what = "the data folder of these programs";
            lock = Some(FileLock::acquire(&path, what, "up", self.timeout, &self.events).await?);
            cached = maker.cached();
        }
        // The lock is for initdb alone, whose result is the cached one for all who wait.
        let lock = lock.filter(|_| cached.is_none());
        let begin = Instant::now();
        self.events.started("Making a data folder");
        let request = request.clone();
        let password = tokio::task::spawn_blocking(move || maker.make(&request, cached));
        let password = password.await.or_failed(|| "making the data folder was cut off")??;
        self.events.finished("Made a data folder", begin.elapsed());
        drop(lock);
        Ok((place, account, password))
    }

    /// Makes the data folder of a new instance from `data`.
    pub(super) async fn restore_data(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        let found = self.find()?;
        if found.folder.is_some() {
            let message = format!("there is a data folder `{}` already", found.place.data().display());
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let programs = self.programs()?;
        let (account, _) = Account::for_new(self.user.as_ref())?;
        let place = Place::of(&self.instance, None);
        remember(&found, &place, false, request, &programs)?;
        place.create()?;
        let instance = self.instance.clone();
        let maker = Maker { place, instance, account, programs, cache: self.cluster_dir.clone() };
        let request = request.clone();
        let made = tokio::task::spawn_blocking(move || maker.restore(&request, data));
        made.await.or_failed(|| "making the data folder was cut off")?
    }

    /// Starts the server on the first port that is free, within the profile's limits. Returns the port.
    async fn launch(
        &self,
        request: &StartRequest,
        place: &Place,
        account: Account,
        programs: &Programs,
    ) -> Result<u16> {
        let socket_dir = self.socket_dir(place);
        Place::create_folder_for(&socket_dir, account)?;
        launch::clear_leftovers(&place.data(), &socket_dir, &self.events).await?;
        let limits = Limits::make(place, &request.spec.limits, &self.events).await?;
        let launch = Launch {
            place,
            account,
            programs,
            own_program: self.own_program.as_deref(),
            limits: &limits,
            timeout: self.timeout,
            events: &self.events,
        };
        let launched = self.launch_on_free_port(request, &launch, &socket_dir).await;
        if launched.is_err() && self.find().is_ok_and(|found| !found.is_running()) {
            limits::remove(place, &self.events).await;
        }
        launched
    }

    async fn launch_on_free_port(&self, request: &StartRequest, launch: &Launch<'_>, socket_dir: &Path) -> Result<u16> {
        let choice = request.spec.port;
        for port in ports::candidates(choice, request.last_port, &self.instance) {
            if choice == PortChoice::Auto && ports::looks_taken(port) {
                continue;
            }
            settings_file::write(launch.place, launch.account, request, port, socket_dir)?;
            match launch.start().await? {
                Attempt::Running(launched) => {
                    *self.launched() = Some(launched);
                    ports::say(request, port, &self.events);
                    return Ok(port);
                }
                Attempt::PortTaken if choice != PortChoice::Auto => return Err(taken(port)),
                Attempt::PortTaken => self.events.detail(format!("port {port} is taken")),
                Attempt::AlreadyRunning => return self.adopt(),
            }
        }
        Err(ports::none_free())
    }

    /// The port of a server that a killed run started a moment ago.
    fn adopt(&self) -> Result<u16> {
        self.find()?.running_port().ok_or_else(|| {
            Error::failed("another process has just started or stopped the server of this data folder")
                .hint("run `tfdev up` again")
        })
    }
}

/// Keeps what the server is started with.
fn remember(found: &Found, place: &Place, in_memory: bool, request: &StartRequest, programs: &Programs) -> Result<()> {
    let kept = Kept {
        id: request.id,
        home: place.outside(),
        former: None,
        in_memory,
        spec_hash: request.spec.hash(),
        programs: programs.clone(),
    };
    if found.kept.as_ref() == Some(&kept) { Ok(()) } else { kept.write(place) }
}

fn taken(port: u16) -> Error {
    Error::new(ErrorKind::Conflict, format!("port {port} is taken by another program"))
        .hint(format!("`lsof -i :{port}` shows which one; stop it"))
        .hint("or set another `port` (or \"auto\") in the section `[database]` of tfdev.toml")
}

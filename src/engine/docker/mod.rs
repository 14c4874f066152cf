//! The Docker engine: one container and one named volume for each instance, through the Docker API.
//!
//! What must hold: see [`crate::engine`]; beside that, every container is looked up by its fixed name and every volume by
//! the one on record (`volume`), and what is found there is touched only if its labels name this project ([`labels`]). The data folder is
//! complete before the server starts for the first time ([`crate::engine::cluster`]), so the image's own initialisation, which cannot
//! be resumed after a kill, never runs on an instance's volume.

pub mod cleanup;
pub mod connect;
pub mod container;
pub mod endpoint;
pub mod errors;
pub mod exec;
mod files;
mod identity;
pub mod labels;
pub mod machine;
mod resources;
mod room;
mod start;
#[cfg(test)]
pub(crate) mod testing;
mod throwaway;
mod volume;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use self::connect::DockerConnection;
use self::errors::{failed, is_not_found};
use self::labels::Labels;
pub use self::volume::DataVolume;
use crate::config::{Setting, Settings};
use crate::engine::program::{Input, Program};
use crate::engine::{
    DataSource, Endpoint, Engine, EngineKind, LogReceiver, Observed, Parts, ProgramOutput, Resources, Source,
    StartRequest, Started, State,
};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::image::{self, Sources};
use crate::instance::Instance;
use crate::spec::{DATA_DIRECTORY, STOP_TIMEOUT_SECONDS};
use async_trait::async_trait;
use bollard::models::{ContainerInspectResponse, ContainerState, MountPoint};
use bollard::query_parameters::{
    InspectContainerOptions, KillContainerOptionsBuilder, LogsOptionsBuilder, RemoveContainerOptionsBuilder,
    RemoveVolumeOptions, StopContainerOptionsBuilder,
};
use futures_util::StreamExt;

/// How often a container that is to stop is told so.
const SIGNAL_EVERY: Duration = Duration::from_millis(500);

/// The Docker engine for one instance.
#[derive(Debug)]
pub struct DockerEngine {
    connection: DockerConnection,
    instance: Instance,
    /// Where data folders are kept that were initialised once (see [`crate::engine::cluster`]).
    cluster_dir: PathBuf,
    sources: Sources,
    /// The address to publish on, if one is asked for.
    publish: Option<Setting<IpAddr>>,
    timeout: Duration,
    events: Events,
    /// The volume that was found to be the instance's though it is not on record.
    found_volume: Mutex<Option<DataVolume>>,
}

/// A container as the engine describes it, reduced to what is needed here.
struct Container {
    labels: Labels,
    state: ContainerState,
    port: Option<u16>,
    /// The address that it is published on while it runs.
    published_on: Option<IpAddr>,
    /// The volume that it has its data in.
    volume: Option<String>,
}

impl DockerEngine {
    /// Makes the engine for `instance`.
    pub fn new(connection: DockerConnection, instance: Instance, settings: &Settings, events: Events) -> Self {
        Self {
            connection,
            instance,
            cluster_dir: settings.cache_dir.join("clusters"),
            sources: Sources::of(settings),
            publish: settings.docker_publish.clone(),
            timeout: Duration::from_secs(settings.timeout_seconds.value),
            events,
            found_volume: Mutex::new(None),
        }
    }

    /// The connection to the daemon.
    pub fn connection(&self) -> &DockerConnection {
        &self.connection
    }

    fn docker(&self) -> &bollard::Docker {
        &self.connection.docker
    }

    /// The container of that name, whoever's it is.
    async fn container_named(&self, name: &str) -> Result<Option<Container>> {
        match self.docker().inspect_container(name, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(Container::from(found))),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(failed(&format!("look at container `{name}`"), error)),
        }
    }

    /// The instance's container; `None` if there is no container of that name; an error if it is someone else's.
    async fn container(&self) -> Result<Option<Container>> {
        let name = self.instance.container_name();
        let Some(container) = self.container_named(&name).await? else { return Ok(None) };
        if !labels::are_ours(Some(&container.labels), &self.instance) {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the container name `{name}` is taken by a container that tfdev did not make for this project"),
            )
            .hint(format!("look at it with `docker inspect {name}`, and rename or remove it if it is not needed"))
            .hint("or choose another `project` in tfdev.toml"));
        }
        Ok(Some(container))
    }

    /// The labels of the volume of that name; `None` if there is none.
    async fn volume_labels(&self, name: &str) -> Result<Option<Labels>> {
        match self.docker().inspect_volume(name).await {
            Ok(volume) => Ok(Some(volume.labels)),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(failed(&format!("look at volume `{name}`"), error)),
        }
    }

    /// The labels of the instance's volume; `None` if there is no such volume; an error if it is someone else's.
    async fn volume(&self) -> Result<Option<Labels>> {
        let volume = self.data_volume();
        let Some(labels) = self.volume_labels(&volume.name).await? else { return Ok(None) };
        if volume.has(&labels, &self.instance) {
            return Ok(Some(labels));
        }
        let name = volume.name;
        Err(Error::new(
            ErrorKind::Refused,
            format!("the volume `{name}` has no label of this project and instance, so tfdev leaves it alone"),
        )
        .hint(format!("look at it with `docker volume inspect {name}`, and rename or remove it if it is not needed"))
        .hint("or choose another `project` in tfdev.toml"))
    }

    /// The last lines of the server's log, for an error.
    async fn last_log_lines(&self, container: &str) -> String {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).tail("15").build();
        let chunks: Vec<_> = self.docker().logs(container, Some(options)).collect().await;
        let text: Vec<u8> = chunks.into_iter().flatten().flat_map(|chunk| chunk.into_bytes().to_vec()).collect();
        String::from_utf8_lossy(&text).trim_end().to_owned()
    }

    /// The error for a server that ended by itself.
    async fn ended(&self, name: &str, state: &ContainerState) -> Error {
        let code = state.exit_code.unwrap_or_default();
        let why = if state.oom_killed.unwrap_or_default() {
            " because it needed more memory than its limit".to_owned()
        } else {
            format!(" with exit status {code}")
        };
        let log = self.last_log_lines(name).await;
        let mut error = Error::failed(format!("the server in container `{name}` ended{why}"));
        if !log.is_empty() {
            error = error.caused_by(format!("the last lines of its log:\n{log}"));
        }
        error.hint(
            "see the whole log with `tfdev logs`; if a setting of the profile is at fault, mend it and run `tfdev up`",
        )
    }

    /// The host under which the published port is reached.
    fn database_host(&self) -> String {
        self.connection.endpoint.database_host(self.publish.as_ref())
    }

    fn parts(&self, container: &Container) -> Parts {
        Parts {
            container: Some(self.instance.container_name()),
            volume: container.volume.clone(),
            image: container.label(labels::IMAGE),
            ..Parts::default()
        }
    }

    fn endpoint(&self, port: u16) -> Endpoint {
        Endpoint { host: self.database_host(), port }
    }

    async fn remove_container(&self, name: &str) -> Result<()> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.docker().remove_container(name, Some(options)).await {
            Ok(()) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(failed(&format!("remove container `{name}`"), error)),
        }
    }

    /// Stops a container in order. The engine kills it only when the time for that is over.
    async fn stop_container(&self, name: &str) -> Result<()> {
        let seconds = i32::try_from(STOP_TIMEOUT_SECONDS).expect("two minutes fit");
        let options = StopContainerOptionsBuilder::default().t(seconds).build();
        let patient =
            self.docker().clone().with_timeout(Duration::from_secs(STOP_TIMEOUT_SECONDS.cast_unsigned() + 30));
        let mut stop = std::pin::pin!(patient.stop_container(name, Some(options)));
        let stopped = loop {
            tokio::select! {
                stopped = &mut stop => break stopped,
                // The image's entrypoint hears no signal before it becomes the server, and a server that stops already
                // does not mind another one. If there is nothing left to hear it, the stop is about to say so.
                () = tokio::time::sleep(SIGNAL_EVERY) => {
                    let signal = KillContainerOptionsBuilder::default().signal("SIGINT").build();
                    let _ = self.docker().kill_container(name, Some(signal)).await;
                }
            }
        };
        match stopped {
            Ok(()) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(failed(&format!("stop container `{name}`"), error)),
        }
    }
}

impl From<ContainerInspectResponse> for Container {
    fn from(found: ContainerInspectResponse) -> Self {
        let bindings = found.network_settings.and_then(|settings| settings.ports);
        let port = bindings
            .as_ref()
            .and_then(|ports| ports.get(container::SERVER_PORT))
            .and_then(Option::as_ref)
            .and_then(|bindings| bindings.first())
            .and_then(|binding| binding.host_port.as_deref())
            .and_then(|port| port.parse().ok());
        let bindings = found.host_config.and_then(|config| config.port_bindings);
        let published_on = bindings
            .as_ref()
            .and_then(|ports| ports.get(container::SERVER_PORT))
            .and_then(Option::as_ref)
            .and_then(|bindings| bindings.first())
            .and_then(|binding| binding.host_ip.as_deref())
            .and_then(|address| address.parse().ok());
        let mounts = found.mounts.unwrap_or_default();
        let is_data = |mount: &&MountPoint| {
            mount.typ.as_deref() == Some("volume") && mount.destination.as_deref() == Some(DATA_DIRECTORY)
        };
        let volume = mounts.iter().find(is_data).and_then(|mount| mount.name.clone());
        Self {
            labels: found.config.and_then(|config| config.labels).unwrap_or_default(),
            state: found.state.unwrap_or_default(),
            port,
            published_on,
            volume,
        }
    }
}

impl Container {
    fn is_running(&self) -> bool {
        self.state.running.unwrap_or_default() && !self.state.paused.unwrap_or_default()
    }

    /// Whether its process was ever started.
    fn has_run(&self) -> bool {
        // The engine writes the year 1 for "never".
        self.state.started_at.as_deref().is_some_and(|at| !at.starts_with("0001-"))
    }

    /// Whether its process ended by itself, or for want of memory.
    fn ended_with_an_error(&self) -> bool {
        self.observe().0 == State::Crashed
    }

    fn is_paused(&self) -> bool {
        self.state.paused.unwrap_or_default()
    }

    fn label(&self, name: &str) -> Option<String> {
        self.labels.get(name).cloned()
    }

    /// What the process is doing, and why it is not running.
    fn observe(&self) -> (State, Option<String>) {
        let state = &self.state;
        let code = state.exit_code.unwrap_or_default();
        if self.is_paused() {
            (State::Unhealthy, Some("the container is paused".to_owned()))
        } else if state.running.unwrap_or_default() {
            let killed = "a process of the server was killed because the container needed more memory than its limit";
            (State::Starting, state.oom_killed.unwrap_or_default().then(|| killed.to_owned()))
        } else if state.oom_killed.unwrap_or_default() {
            (State::Crashed, Some("it needed more memory than its limit".to_owned()))
        } else if code != 0 {
            (State::Crashed, Some(format!("it ended with exit status {code}")))
        } else {
            (State::Stopped, None)
        }
    }
}

#[async_trait]
impl Engine for DockerEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Docker
    }

    fn certificate_host(&self) -> Option<String> {
        Some(self.database_host())
    }

    async fn observe(&self) -> Result<Observed> {
        let (container, volume) = self.look().await?;
        let Some(container) = container else {
            return Ok(Observed {
                state: if volume.is_some() { State::Stopped } else { State::Absent },
                id: labels::id(volume.as_ref()),
                endpoint: None,
                parts: Parts {
                    image: volume.as_ref().and_then(|labels| labels.get(labels::IMAGE).cloned()),
                    volume: volume.map(|_| self.data_volume().name),
                    ..Parts::default()
                },
                limits_enforced: true,
                limits_reason: None,
                reason: None,
            });
        };
        let (state, reason) = container.observe();
        Ok(Observed {
            state,
            id: labels::id(Some(&container.labels)),
            endpoint: container.port.map(|port| self.endpoint(port)),
            parts: self.parts(&container),
            limits_enforced: true,
            limits_reason: None,
            reason,
        })
    }

    async fn resources(&self) -> Result<Resources> {
        self.read_resources().await
    }

    async fn start(&self, request: &StartRequest) -> Result<Started> {
        self.start_instance(request).await
    }

    async fn restore(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        self.restore_data(request, data).await
    }

    async fn before_rename(&self) -> Result<()> {
        self.keep_volume_for_rename().await
    }

    async fn renamed(&self) -> Result<()> {
        self.settle_volume().await
    }

    async fn check_alive(&self) -> Result<()> {
        let name = self.instance.container_name();
        match self.container().await? {
            Some(container) => self.check_alive_now(&container).await,
            None => Err(Error::failed(format!("the container `{name}` was removed while tfdev waited for it"))
                .hint("run `tfdev up` again")),
        }
    }

    async fn stop(&self) -> Result<bool> {
        let (Some(container), _) = self.look().await? else { return Ok(false) };
        let name = self.instance.container_name();
        if container.is_paused() {
            // A paused process hears no signal.
            self.docker().unpause_container(&name).await.map_err(|error| failed("unpause the container", error))?;
        }
        let was_running = container.state.running.unwrap_or_default();
        if was_running {
            self.stop_container(&name).await?;
        }
        Ok(was_running)
    }

    async fn destroy(&self) -> Result<Vec<String>> {
        let mut removed = Vec::new();
        let (container, volume) = self.look().await?;
        self.prove_data(container.as_ref(), volume.as_ref()).await?;
        if self.container().await?.is_some() {
            let name = self.instance.container_name();
            self.remove_container(&name).await?;
            removed.push(format!("container {name}"));
        }
        if self.volume().await?.is_some() {
            let name = self.data_volume().name;
            self.docker()
                .remove_volume(&name, None::<RemoveVolumeOptions>)
                .await
                .map_err(|error| failed(&format!("remove volume `{name}`"), error))?;
            removed.push(format!("volume {name}"));
        }
        Ok(removed)
    }

    async fn flush(&self) -> Result<()> {
        // Only the file system of the data; busybox and coreutils agree on this, and plain `sync` does for others.
        let script = format!("sync -f {DATA_DIRECTORY}/PG_VERSION || sync");
        self.run(&["sh", "-c", &script], b"").await?.checked("write the new data folder to the disk")?;
        Ok(())
    }

    async fn source(&self, requested: Option<&Setting<String>>, last: Option<&str>) -> Result<Source> {
        // An instance stays with the image that made it until told otherwise: another C library sorts text otherwise.
        let name = requested.map(|setting| setting.value.as_str()).or(last);
        let image = image::resolve(self.docker(), name, &self.sources, &self.events).await?;
        if let (Some(requested), Some(last)) = (requested, last.filter(|last| *last != image.reference)) {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the data of this instance was made with the image `{last}`, and {} says `{}`",
                    requested.origin, image.reference
                ),
            )
            .hint(
                "another image may sort text in another way, which breaks indexes; write the data to a file first: \
                 `tfdev snapshot export moved.tfsnap`",
            )
            .hint(format!(
                "then `tfdev destroy`, `tfdev up`, `tfdev snapshot import moved.tfsnap` and `tfdev snapshot restore \
                 moved`; or go on with `--image {last}`"
            )));
        }
        Ok(Source { name: image.reference, id: image.id })
    }

    async fn interactive(&self, command: &[&str], terminal: bool) -> Result<i64> {
        exec::interactive(self.docker(), &self.instance.container_name(), command, &[], terminal).await
    }

    async fn stream(&self, command: &[&str], input: Input) -> Result<Program> {
        exec::stream(self.docker(), &self.instance.container_name(), command, input).await
    }

    async fn run(&self, command: &[&str], stdin: &[u8]) -> Result<ProgramOutput> {
        let name = self.instance.container_name();
        let output = exec::run(self.docker(), &name, command, Some(stdin)).await?;
        Ok(ProgramOutput { exit_code: output.exit_code, stdout: output.stdout, stderr: output.stderr })
    }

    async fn logs(&self, tail: Option<u32>, follow: bool, receive: &mut LogReceiver<'_>) -> Result<()> {
        let name = self.instance.container_name();
        if self.container().await?.is_none() {
            return Err(self.instance.not_found());
        }
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).follow(follow).tail(&tail).build();
        let mut stream = self.docker().logs(&name, Some(options));
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| failed(&format!("read the log of container `{name}`"), error))?;
            let bytes = chunk.into_bytes();
            receive(&bytes)?;
        }
        Ok(())
    }
}

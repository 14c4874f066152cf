//! Starting an instance: the container is made or made anew, its volume is filled once, and the port is settled.
//!
//! What must hold: each step can be the last one before a kill, and the next call goes on from there. The volume is
//! filled only while no server has ever run on it, which its own contents prove.

use std::net::IpAddr;
use std::path::Path;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, ListContainersOptionsBuilder, StartContainerOptions, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use tokio::sync::mpsc;
use uuid::Uuid;

use super::errors::{failed, is_conflict, port_taken};
use super::{Container, DockerEngine, container, endpoint, labels, room};
use crate::config::PortChoice;
use crate::engine::cluster::{Cluster, VERSION_FILE_TIME};
use crate::engine::{DataSource, StartRequest, Started, ports};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::Password;
use crate::profile::DataPlacement;
use crate::spec::{DATA_DIRECTORY, POSTGRES_MAJOR};

/// What a volume holds, as its files tell.
enum Contents {
    /// Nothing, or a copy that was cut off before any server ran on it.
    Fresh,
    /// A data folder of this major version, whole.
    Complete,
}

impl DockerEngine {
    pub(super) async fn start_instance(&self, request: &StartRequest) -> Result<Started> {
        self.settle_volume().await?;
        let (found, _) = self.look().await?;
        self.keep_volume()?;
        let address = self.connection.endpoint.publish_address(self.publish.as_ref()).await?;
        if let Some(found) = &found {
            let hash = request.spec.body_hash();
            let same = found.label(labels::SPEC_HASH).as_deref() == Some(&hash) && found.published_on == Some(address);
            let runs = found.is_running() || found.is_paused();
            // One that runs and is not published any more is made anew.
            if same && (!runs || found.port.is_some()) {
                if runs && let Some(started) = self.keep_running(request, found).await? {
                    return Ok(started);
                }
                if let Some(started) = self.start_again(request, found, runs).await? {
                    return Ok(started);
                }
            }
            self.take_away(found).await?;
        }
        self.create_and_start(request, address).await
    }

    /// Lets the server run on, with another settings file if it has another one. `None`, with the server stopped, if it
    /// can take its new settings at a start only: the file that it has is always one that it could read.
    async fn keep_running(&self, request: &StartRequest, found: &Container) -> Result<Option<Started>> {
        let name = self.instance.container_name();
        if found.is_paused() {
            self.docker().unpause_container(&name).await.map_err(|error| failed("unpause the container", error))?;
        }
        let files = self.files_of(request)?;
        if !self.holds(&name, &files.started_with).await? {
            self.events.note("The server's settings changed: it is restarted, its data stays");
            self.stop_container(&name).await?;
            return Ok(None);
        }
        let (started, current) =
            tokio::try_join!(self.started(false, false, None), self.holds(&name, &files.settings))?;
        if !current {
            self.upload_settings(request, &files).await?;
        }
        Ok(Some(Started { reconfigured: !current, ..started }))
    }

    /// Starts the container as it is. `None` if it must be made anew because its port is taken or it was never filled.
    /// One that `was_running` until now needs no look at its data.
    async fn start_again(
        &self,
        request: &StartRequest,
        found: &Container,
        was_running: bool,
    ) -> Result<Option<Started>> {
        if request.spec.data == DataPlacement::Volume && !was_running {
            if found.has_run() {
                // A server only ever starts on a complete volume.
                let name = self.instance.container_name();
                tokio::try_join!(self.check_version(), self.check_marker(&name, request.id))?;
            } else if matches!(self.contents(request.id).await?, Contents::Fresh) {
                return Ok(None);
            }
        }
        self.explain_last_end(found);
        let name = self.instance.container_name();
        let files = self.files_of(request)?;
        // What ended with an error may have done so for files that someone meddled with.
        if was_running || found.ended_with_an_error() || !self.holds(&name, &files.settings).await? {
            self.upload_settings(request, &files).await?;
        }
        match self.start_container().await {
            // Data in memory went with the server, so the image makes it anew.
            Ok(()) => Ok(Some(self.started(request.spec.data == DataPlacement::Memory, true, None).await?)),
            Err(error) if port_taken(&error).is_some() => {
                if let PortChoice::Fixed(port) = request.spec.port {
                    return Err(self.taken(port).await);
                }
                Ok(None)
            }
            Err(error) => Err(failed(&format!("start container `{}`", self.instance.container_name()), error)),
        }
    }

    /// Says why the server was not running, if it did not stop in order.
    fn explain_last_end(&self, found: &Container) {
        if let (crate::engine::State::Crashed, Some(reason)) = found.observe() {
            self.events
                .warning(format!("the server was not stopped in order: {reason}; PostgreSQL recovers by itself"));
        }
    }

    /// Removes a container that differs from what it should be. Its data stays in the volume.
    async fn take_away(&self, found: &Container) -> Result<()> {
        let name = self.instance.container_name();
        if found.state.running.unwrap_or_default() {
            self.events.note("The server's image, limits or port changed: it is restarted, its data stays");
            if found.is_paused() {
                self.docker().unpause_container(&name).await.map_err(|error| failed("unpause the container", error))?;
            }
            self.stop_container(&name).await?;
        }
        self.remove_container(&name).await
    }

    /// Makes the container with the first port that is free, fills the volume if it is new, and starts the server.
    async fn create_and_start(&self, request: &StartRequest, address: IpAddr) -> Result<Started> {
        let volume = request.spec.data == DataPlacement::Volume;
        let cluster = if volume && self.volume().await?.is_none() {
            let cluster = self.cluster(&request.spec).await?;
            self.create_volume(request).await?;
            Some(cluster)
        } else {
            None
        };
        let local = self.connection.endpoint.is_local();
        let candidates = ports::candidates(request.spec.port, request.last_port, &self.instance);
        let mut first_password = None;
        for port in candidates {
            if local && request.spec.port == PortChoice::Auto && ports::looks_taken(port) {
                continue;
            }
            self.create_container(request, (address, port)).await?;
            let mut created = false;
            if volume {
                let filled = self.fill(request, cluster.as_ref(), first_password).await;
                if filled.as_ref().is_err_and(|error| error.kind() == ErrorKind::Refused) {
                    // What has another's data must not look like this instance.
                    self.remove_container(&self.instance.container_name()).await?;
                }
                (created, first_password) = filled?;
            }
            match self.start_container().await {
                Ok(()) => {
                    ports::say(request, port, &self.events);
                    if let Some(exposure) = endpoint::exposure(&self.database_host(), address) {
                        self.events.note(exposure);
                    }
                    let created = created || first_password.is_some() || !volume;
                    return self.started(created, true, first_password).await;
                }
                Err(error) if port_taken(&error).is_some() => {
                    let name = self.instance.container_name();
                    if let PortChoice::Fixed(port) = request.spec.port {
                        let explained = self.taken(port).await;
                        self.remove_container(&name).await?;
                        return Err(explained);
                    }
                    self.events.detail(format!("port {port} is taken"));
                    self.remove_container(&name).await?;
                }
                Err(error) => {
                    return Err(failed(&format!("start container `{}`", self.instance.container_name()), error));
                }
            }
        }
        Err(ports::none_free())
    }

    async fn create_volume(&self, request: &StartRequest) -> Result<()> {
        let name = self.new_volume()?.name;
        let body = container::volume(&self.instance, request.id, &request.spec, &name);
        let made = self.docker().create_volume(body).await;
        let made = made.map_err(|error| failed(&format!("create volume `{name}`"), error))?;
        if self.connection.endpoint.is_local() {
            room::check(Path::new(&made.mountpoint))?;
        }
        // Another user of the same daemon may have made one of the same name in the meantime.
        self.volume().await?;
        Ok(())
    }

    async fn create_container(&self, request: &StartRequest, (address, port): (IpAddr, u16)) -> Result<()> {
        let name = self.instance.container_name();
        let address = address.to_string();
        let volume = self.data_volume();
        let body = container::body(&self.instance, request.id, &request.spec, &volume, (&address, port));
        match self.create_named(&name, body.clone()).await {
            Err(error) if is_conflict(&error) => {
                // Ours, from a run that was killed or by hand: `container` refuses what is not ours.
                self.container().await?;
                self.remove_container(&name).await?;
                self.create_named(&name, body).await
            }
            other => other,
        }
        .map_err(|error| failed(&format!("create container `{name}`"), error))?;
        self.upload_settings(request, &self.files_of(request)?).await
    }

    pub(super) async fn create_named(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<(), bollard::errors::Error> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        self.docker().create_container(Some(options), body).await.map(|_| ())
    }

    async fn start_container(&self) -> Result<(), bollard::errors::Error> {
        self.docker().start_container(&self.instance.container_name(), None::<StartContainerOptions>).await
    }

    /// Fills the volume unless it is complete. Returns whether this call filled it, and the password the copy came with.
    async fn fill(
        &self,
        request: &StartRequest,
        cluster: Option<&Cluster>,
        before: Option<Password>,
    ) -> Result<(bool, Option<Password>)> {
        if let Contents::Complete = self.contents(request.id).await? {
            return Ok((before.is_some(), before));
        }
        let cluster = match cluster {
            Some(cluster) => cluster.clone(),
            None => self.cluster(&request.spec).await?,
        };
        let password = Password::new(cluster.index.password.clone());
        self.upload_cluster(request, cluster).await?;
        Ok((true, Some(password)))
    }

    async fn upload_cluster(&self, request: &StartRequest, cluster: Cluster) -> Result<()> {
        let id = request.id;
        self.upload_data(request, Box::new(move |marker, send| cluster.copy(id, marker, send))).await
    }

    /// Makes the volume of a new instance from `data`, and a container for it, which is not started.
    pub(super) async fn restore_data(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        let (container, volume) = self.look().await?;
        if container.is_some() || volume.is_some() {
            let message = format!("there is a container or volume of `{}` already", self.instance.container_name());
            return Err(Error::new(ErrorKind::Conflict, message));
        }
        let address = self.connection.endpoint.publish_address(self.publish.as_ref()).await?;
        // The start looks again for a port that is free.
        let candidates = ports::candidates(request.spec.port, request.last_port, &self.instance);
        let port = candidates.into_iter().find(|port| !ports::looks_taken(*port)).ok_or_else(ports::none_free)?;
        self.create_volume(request).await?;
        self.create_container(request, (address, port)).await?;
        self.upload_data(request, data).await
    }

    /// Fills the volume of the container, which does not run.
    async fn upload_data(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        let name = self.instance.container_name();
        let marker = serde_json::json!({
            "id": request.id.to_string(), "project": self.instance.project, "instance": self.instance.name,
            "image": request.spec.image, "image_id": request.spec.image_id,
        })
        .to_string();
        let (sender, receiver) = mpsc::channel::<Bytes>(4);
        let reader =
            tokio::task::spawn_blocking(move || data(&marker, &mut |piece| sender.blocking_send(piece).is_ok()));
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|piece| (piece, receiver))
        });
        let options = UploadToContainerOptionsBuilder::default().path(DATA_DIRECTORY).build();
        let uploaded = self.docker().upload_to_container(&name, Some(options), bollard::body_stream(pieces)).await;
        reader.await.or_failed(|| "reading the data folder was cut off")??;
        uploaded.map_err(|error| failed(&format!("fill volume `{}`", self.data_volume().name), error))
    }

    /// What the volume of the (not running) container holds.
    async fn contents(&self, id: Uuid) -> Result<Contents> {
        let volume = self.data_volume().name;
        if self.check_marker(&self.instance.container_name(), id).await? {
            self.check_version().await?;
            return Ok(Contents::Complete);
        }
        if self.has_file(&self.instance.container_name(), "postmaster.opts").await? {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("the volume `{volume}` has this project's label, but a data folder that tfdev did not make"),
            )
            .hint("if nothing in it is needed, remove it with `tfdev destroy`; else copy it away first"));
        }
        Ok(Contents::Fresh)
    }

    /// Fails, with the way out, if the data is of another major version.
    async fn check_version(&self) -> Result<()> {
        let name = self.instance.container_name();
        if self.is_dated(&name, "PG_VERSION", VERSION_FILE_TIME).await? {
            return Ok(());
        }
        let version = self.read_file(&name, "PG_VERSION").await?.unwrap_or_default();
        let version = version.trim();
        if version == POSTGRES_MAJOR.to_string() {
            return Ok(());
        }
        let volume = self.data_volume().name;
        Err(Error::new(
            ErrorKind::Refused,
            format!("the volume `{volume}` holds data of PostgreSQL {version}, and tfdev runs {POSTGRES_MAJOR}"),
        )
        .hint(format!(
            "dump it with a PostgreSQL {version} server (`docker run -v {volume}:{DATA_DIRECTORY} postgres:{version}-alpine`, \
             then `pg_dump`), run `tfdev destroy` and `tfdev up`, and load the dump"
        )))
    }

    /// Who holds a port, for an error.
    async fn taken(&self, port: u16) -> Error {
        let list = ListContainersOptionsBuilder::default().build();
        let containers = self.docker().list_containers(Some(list)).await.unwrap_or_default();
        let holder = containers.into_iter().find(|container| {
            let mut ports = container.ports.iter().flatten();
            ports.any(|published| published.public_port == Some(port))
        });
        let who = holder.and_then(|container| container.names?.first().cloned()).map_or_else(
            || "another program".to_owned(),
            |name| format!("the container `{}`", name.trim_start_matches('/')),
        );
        Error::new(ErrorKind::Conflict, format!("port {port} is taken by {who}"))
            .hint("stop it, or set another `port` (or \"auto\") in the section `[database]` of tfdev.toml")
    }

    async fn started(&self, created: bool, started: bool, first_password: Option<Password>) -> Result<Started> {
        let name = self.instance.container_name();
        let Some(found) = self.container().await? else {
            return Err(Error::failed(format!("the container `{name}` was removed while tfdev started it"))
                .hint("run `tfdev up` again"));
        };
        let Some(port) = found.port else {
            // A container that ended at once has no published port any more.
            self.check_alive_now(&found).await?;
            return Err(Error::failed(format!("the engine published no port for container `{name}`")).hint(format!(
                "look at it with `docker inspect {name}`; `tfdev up` makes it anew after `docker rm -f {name}`"
            )));
        };
        let (endpoint, parts) = (self.endpoint(port), self.parts(&found));
        Ok(Started { created, started, reconfigured: false, endpoint, first_password, parts })
    }

    pub(super) async fn check_alive_now(&self, found: &Container) -> Result<()> {
        if found.state.running.unwrap_or_default() {
            return Ok(());
        }
        Err(self.ended(&self.instance.container_name(), &found.state).await)
    }
}

//! Making the cached data folder of an image: its own initialisation runs once, in a container that is thrown away.
//!
//! What must hold: one process at a time makes the folder of an image (a file lock); a container that a killed run left
//! behind is removed by the next one, known by its label; and the container never outlives its use.

use std::time::Instant;

use bollard::models::{ContainerCreateBody, HostConfig};
use bollard::query_parameters::{
    DownloadFromContainerOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder, StartContainerOptions,
};
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::cleanup::RemoveOnDrop;
use super::errors::failed;
use super::{Container, DockerEngine, container, exec, labels};
use crate::channel_reader::ChannelReader;
use crate::engine::cluster::{self, Cluster};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::{FileLock, Password};
use crate::profile::DataPlacement;
use crate::spec::{DATA_DIRECTORY, INITDB_ARGUMENTS, ServerSpec, hexadecimal};

/// Settings of the throw-away server: what it writes need not survive a crash.
const SETTINGS: [&str; 5] =
    ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_wal_senders=0", "wal_level=minimal"];

/// Ends when the server answers; an end of the container ends it too.
const UNTIL_READY: &str = "until pg_isready --quiet --host 127.0.0.1; do sleep 0.05; done";

/// The name of the cached data folder of an image.
fn key(image_id: &str) -> String {
    hexadecimal(&Sha256::digest(format!("{image_id}\0{INITDB_ARGUMENTS}"))[..8])
}

impl DockerEngine {
    /// The cached data folder for the image of `spec`, made now if there is none.
    pub(super) async fn cluster(&self, spec: &ServerSpec) -> Result<Cluster> {
        let key = key(&spec.image_id);
        if let Some(cluster) = cluster::find(&self.cluster_dir, &key) {
            return Ok(cluster);
        }
        let lock_path = self.cluster_dir.join(format!("{key}.lock"));
        let _lock =
            FileLock::acquire(&lock_path, "the data folder of this image", "up", self.timeout, &self.events).await?;
        if let Some(cluster) = cluster::find(&self.cluster_dir, &key) {
            return Ok(cluster);
        }
        let start = Instant::now();
        self.events.started(format!("Preparing {} (once for this image)", spec.image));
        self.remove_leftovers(&key).await?;
        let name = format!("tfdev-cluster-{key}");
        let guard = RemoveOnDrop::new(self.docker(), &name);
        let made = self.make_cluster(spec, &key, &name).await;
        drop(guard);
        let cluster = made?;
        self.events.finished(format!("Prepared {}", spec.image), start.elapsed());
        Ok(cluster)
    }

    /// Who owns the server's files in the image, if its data folder was made before.
    pub(super) fn file_owner(&self, image_id: &str) -> Option<(u64, u64)> {
        cluster::find(&self.cluster_dir, &key(image_id)).map(|cluster| (cluster.index.user_id, cluster.index.group_id))
    }

    async fn remove_leftovers(&self, key: &str) -> Result<()> {
        let filter = labels::filter(labels::CLUSTER, key);
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let found = self.docker().list_containers(Some(options)).await;
        for left in found.map_err(|error| failed("list containers", error))? {
            if let Some(id) = left.id {
                self.remove_container(&id).await?;
            }
        }
        Ok(())
    }

    async fn make_cluster(&self, spec: &ServerSpec, key: &str, name: &str) -> Result<Cluster> {
        let password = Password::random()?;
        let settings = SETTINGS.iter().flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]);
        let body = ContainerCreateBody {
            image: Some(spec.image_id.clone()),
            cmd: Some(std::iter::once("postgres".to_owned()).chain(settings).collect()),
            // Nothing here needs to survive a crash: it is copied once the server has stopped.
            env: Some(container::environment(DataPlacement::Memory)),
            labels: Some([(labels::CLUSTER.to_owned(), key.to_owned())].into()),
            // Nobody but this container's own programs reaches it.
            host_config: Some(HostConfig { network_mode: Some("none".to_owned()), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let create = || format!("create container `{name}`");
        self.create_named(name, body).await.map_err(|error| failed(&create(), error))?;
        let owner = self.server_user(name).await?;
        self.upload_files(name, &[(container::PASSWORD_FILE, password.expose())], owner).await?;
        self.docker()
            .start_container(name, None::<StartContainerOptions>)
            .await
            .map_err(|error| failed(&format!("start container `{name}`"), error))?;
        self.wait_for_throwaway(name).await?;
        self.stop_container(name).await?;
        self.download_cluster(key, name, &password).await
    }

    async fn inspect(&self, name: &str) -> Result<Container> {
        self.docker()
            .inspect_container(name, None::<InspectContainerOptions>)
            .await
            .map(Container::from)
            .map_err(|error| failed(&format!("look at container `{name}`"), error))
    }

    /// Waits until the server answers on the container's own loopback, which the image's temporary server does not.
    async fn wait_for_throwaway(&self, name: &str) -> Result<()> {
        let waiting = exec::run(self.docker(), name, &["sh", "-c", UNTIL_READY], None);
        let answered = tokio::time::timeout(self.timeout, waiting).await;
        let found = self.inspect(name).await?;
        if !found.is_running() {
            return Err(self.ended(name, &found.state).await);
        }
        let slow =
            || Error::new(ErrorKind::TimedOut, format!("the server in container `{name}` did not come up in time"));
        let output = answered.map_err(|_| slow().hint("`--timeout SECONDS` waits longer"))??;
        if output.exit_code == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::failed(format!("cannot tell whether the server in container `{name}` answers")).caused_by(text))
    }

    async fn download_cluster(&self, key: &str, name: &str, password: &Password) -> Result<Cluster> {
        let options = DownloadFromContainerOptionsBuilder::default().path(DATA_DIRECTORY).build();
        let mut stream = self.docker().download_from_container(name, Some(options));
        let (sender, receiver) = mpsc::channel::<bytes::Bytes>(4);
        let (folder, key, password) = (self.cluster_dir.clone(), key.to_owned(), password.expose().to_owned());
        let writer =
            tokio::task::spawn_blocking(move || cluster::keep(&folder, &key, ChannelReader::new(receiver), &password));
        while let Some(piece) = stream.next().await {
            let piece = piece.map_err(|error| failed(&format!("read the data folder of container `{name}`"), error))?;
            if sender.send(piece).await.is_err() {
                break;
            }
        }
        drop(sender);
        writer
            .await
            .map_err(|error| Error::failed("keeping the data folder was cut off").caused_by(error))?
            .or_failed(|| format!("cannot keep the data folder of the image under `{}`", self.cluster_dir.display()))
    }
}

//! What a daemon's machine has, and what of tfdev is there: for `doctor`, which only looks.

use std::collections::HashMap;
use std::path::Path;

use bollard::query_parameters::{ListContainersOptionsBuilder, ListVolumesOptionsBuilder};
use jiff::Timestamp;

use super::connect::DockerConnection;
use super::errors::failed;
use super::labels::{self, Labels};
use super::room;
use crate::error::Result;

/// The machine that a daemon runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Memory in bytes.
    pub memory_bytes: Option<u64>,
    /// Cores.
    pub cpus: Option<u64>,
    /// The folder of volumes and images.
    pub root_dir: String,
    /// Bytes that are free there, for a daemon of this machine whose folder can be looked at.
    pub free_bytes: Option<u64>,
    /// What its clock said.
    pub time: Option<Timestamp>,
    /// Whether it runs without root.
    pub rootless: bool,
    /// What the daemon itself complains of.
    pub warnings: Vec<String>,
}

/// A container or a volume with tfdev's labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// Its name.
    pub name: String,
    /// Whether it is a volume.
    pub is_volume: bool,
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
}

impl DockerConnection {
    /// Asks the daemon about its machine.
    pub async fn machine(&self) -> Result<Machine> {
        let info = self.docker.info().await.map_err(|error| failed("ask Docker about its machine", error))?;
        let positive = |number: Option<i64>| number.filter(|number| *number > 0).map(i64::cast_unsigned);
        let root_dir = info.docker_root_dir.unwrap_or_default();
        let free_bytes = (self.endpoint.is_local() && Path::new(&root_dir).exists())
            .then(|| room::free_bytes(Path::new(&root_dir)))
            .flatten();
        let options = info.security_options.unwrap_or_default();
        Ok(Machine {
            memory_bytes: positive(info.mem_total),
            cpus: positive(info.ncpu),
            root_dir,
            free_bytes,
            time: info.system_time.and_then(|time| time.parse().ok()),
            rootless: options.iter().any(|option| option.contains("rootless")),
            warnings: info.warnings.unwrap_or_default(),
        })
    }

    /// The containers and volumes that carry tfdev's labels, whoever's they are.
    pub async fn things(&self) -> Result<Vec<Thing>> {
        let filter = HashMap::from([("label".to_owned(), vec![labels::PROJECT.to_owned()])]);
        let containers = ListContainersOptionsBuilder::default().all(true).filters(&filter).build();
        let volumes = ListVolumesOptionsBuilder::default().filters(&filter).build();
        let (containers, volumes) =
            tokio::join!(self.docker.list_containers(Some(containers)), self.docker.list_volumes(Some(volumes)));
        let containers = containers.map_err(|error| failed("list containers", error))?;
        let volumes = volumes.map_err(|error| failed("list volumes", error))?;
        let containers = containers.into_iter().filter_map(|found| {
            let name = found.names?.first()?.trim_start_matches('/').to_owned();
            Some(thing(name, false, &found.labels.unwrap_or_default()))
        });
        let volumes = volumes.volumes.unwrap_or_default().into_iter();
        Ok(containers.chain(volumes.map(|found| thing(found.name, true, &found.labels))).collect())
    }

    /// The container that publishes `port`, if there is one.
    pub async fn publisher(&self, port: u16) -> Result<Option<String>> {
        let list = ListContainersOptionsBuilder::default().build();
        let found = self.docker.list_containers(Some(list)).await.map_err(|error| failed("list containers", error))?;
        let holder = found
            .into_iter()
            .find(|container| container.ports.iter().flatten().any(|published| published.public_port == Some(port)));
        Ok(holder.and_then(|found| Some(found.names?.first()?.trim_start_matches('/').to_owned())))
    }
}

fn thing(name: String, is_volume: bool, labels: &Labels) -> Thing {
    let label = |name: &str| labels.get(name).cloned().unwrap_or_default();
    Thing { name, is_volume, project: label(labels::PROJECT), instance: label(labels::INSTANCE) }
}

//! What Docker really gives a running server: read back from the engine, not from what it was told.

use bollard::models::MountPoint;
use bollard::query_parameters::InspectContainerOptions;

use super::DockerEngine;
use super::errors::failed;
use crate::engine::{DataMount, Resources, RunningImage};
use crate::error::Result;
use crate::spec::DATA_DIRECTORY;

impl DockerEngine {
    /// As [`crate::engine::Engine::resources`].
    pub(super) async fn read_resources(&self) -> Result<Resources> {
        // Proves that the container is the instance's own.
        if self.container().await?.is_none() {
            return Err(self.instance.not_found());
        }
        let name = self.instance.container_name();
        let found = self.docker().inspect_container(&name, None::<InspectContainerOptions>).await;
        let found = found.map_err(|error| failed(&format!("look at container `{name}`"), error))?;
        let host = found.host_config.unwrap_or_default();
        let positive = |number: Option<i64>| number.filter(|number| *number > 0).map(i64::cast_unsigned);
        let quota = positive(host.cpu_quota).zip(positive(host.cpu_period));
        let in_memory = host.tmpfs.unwrap_or_default().contains_key(DATA_DIRECTORY);
        Ok(Resources {
            image: match found.image {
                Some(id) => Some(self.running_image(id).await?),
                None => None,
            },
            memory_bytes: positive(host.memory),
            nano_cpus: positive(host.nano_cpus).or(quota.map(|(quota, period)| quota * 1_000_000_000 / period)),
            data: data(&found.mounts.unwrap_or_default(), in_memory),
        })
    }

    async fn running_image(&self, id: String) -> Result<RunningImage> {
        let image = self.docker().inspect_image(&id).await;
        let image = image.map_err(|error| failed(&format!("look at image `{id}`"), error))?;
        Ok(RunningImage { id, names: image.repo_tags.unwrap_or_default() })
    }
}

fn data(mounts: &[MountPoint], in_memory: bool) -> DataMount {
    let target = DATA_DIRECTORY.to_owned();
    if in_memory {
        return DataMount::Memory { target };
    }
    match mounts.iter().find(|mount| mount.destination.as_deref() == Some(DATA_DIRECTORY)) {
        Some(mount) if mount.typ.as_deref() == Some("volume") => {
            DataMount::Volume { name: mount.name.clone().unwrap_or_default(), target }
        }
        Some(mount) => DataMount::Folder(mount.source.clone().unwrap_or_default().into()),
        None => DataMount::None,
    }
}

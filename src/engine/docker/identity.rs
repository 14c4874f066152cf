//! What an instance has in Docker, looked at together: the container, the volume, and the marker in the data folder.
//!
//! What must hold: nothing is started, stopped or removed where one of them is another instance's, and the error says
//! which one and whose.

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use serde::Deserialize;
use uuid::Uuid;

use super::labels::{self, Labels};
use super::{Container, DockerEngine};
use crate::engine::cluster::{MARKER, stamp};
use crate::error::{Error, ErrorKind, Result};
use crate::spec::DATA_DIRECTORY;

/// What is in the marker of a data folder.
#[derive(Debug, Deserialize)]
struct DataMarker {
    id: Uuid,
    project: String,
    instance: String,
}

impl DockerEngine {
    /// The instance's container and the labels of its volume. Fails if they are not of one instance.
    pub(super) async fn look(&self) -> Result<(Option<Container>, Option<Labels>)> {
        let (container, volume) = tokio::join!(self.container(), self.volume());
        let Some(container) = container? else { return Ok((None, volume?)) };
        let Some(mounted) = &container.volume else {
            // Its data is in memory; a volume of an earlier profile is looked at when it is needed.
            return Ok((Some(container), volume.ok().flatten()));
        };
        let (name, own) = (self.instance.container_name(), self.instance.volume_name());
        if *mounted != own {
            return Err(mixed_up(format!(
                "the container `{name}` has its data in the volume `{mounted}` and not in `{own}`"
            ))
            .hint(format!(
                "remove the container with `docker rm -f {name}`: `tfdev up` makes it anew on its own volume"
            )));
        }
        let volume = volume?;
        let (of_container, of_volume) = (labels::id(Some(&container.labels)), labels::id(volume.as_ref()));
        if of_container != of_volume {
            let shown = |id: Option<Uuid>| id.map_or_else(|| "none".to_owned(), |id| id.to_string());
            return Err(mixed_up(format!(
                "the container `{name}` carries the identity {}, and its volume `{own}` {}",
                shown(of_container),
                shown(of_volume)
            ))
            .hint(format!(
                "look at both with `docker inspect {name} {own}`; remove the one that is not this instance's"
            )));
        }
        Ok((Some(container), volume))
    }

    /// Fails if the data folder in the container `name`, which need not run, carries another identity than `id`. One
    /// without a marker is not whole.
    pub(super) async fn check_marker(&self, name: &str, id: Uuid) -> Result<bool> {
        if self.is_dated(name, MARKER, stamp(&id.to_string())).await? {
            return Ok(true);
        }
        let Some(text) = self.read_file(name, MARKER).await? else { return Ok(false) };
        let volume = self.instance.volume_name();
        let marker: DataMarker = serde_json::from_str(&text).map_err(|error| {
            mixed_up(format!("the mark in the data of the volume `{volume}` is damaged")).caused_by(error)
        })?;
        if marker.id == id {
            return Ok(true);
        }
        Err(mixed_up(format!(
            "the data in the volume `{volume}` is that of the instance `{}` of the project `{}` (identity {}), and this \
             instance is {id}",
            marker.instance, marker.project, marker.id
        ))
        .hint("nothing was written; copy the right data back, or away what is there, and remove the volume by hand"))
    }

    /// Fails if what is about to be removed holds the data of another instance.
    pub(super) async fn prove_data(&self, container: Option<&Container>, volume: Option<&Labels>) -> Result<()> {
        let (Some(labels), Some(id)) = (volume, labels::id(volume)) else { return Ok(()) };
        let name = self.instance.container_name();
        if container.is_some_and(|container| container.volume.is_some()) {
            return self.check_marker(&name, id).await.map(drop);
        }
        // A volume is looked into through a container, which need not run. Without its image the labels must do.
        // A name that no instance can have.
        let look = format!("{name}.look");
        let body = ContainerCreateBody {
            image: labels.get(labels::IMAGE_ID).cloned(),
            labels: Some(labels.clone()),
            host_config: Some(HostConfig {
                mounts: Some(vec![Mount {
                    target: Some(DATA_DIRECTORY.to_owned()),
                    source: Some(self.instance.volume_name()),
                    typ: Some(MountType::VOLUME),
                    ..Mount::default()
                }]),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        self.remove_container(&look).await?;
        if self.create_named(&look, body).await.is_err() {
            return Ok(());
        }
        let proven = self.check_marker(&look, id).await;
        self.remove_container(&look).await?;
        proven.map(drop)
    }
}

fn mixed_up(message: String) -> Error {
    Error::new(ErrorKind::Refused, message)
}

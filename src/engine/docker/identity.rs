//! What an instance has in Docker, looked at together: the container, the volume, and the marker in the data folder.
//!
//! What must hold: nothing is started, stopped or removed where one of them is another instance's, and the error says
//! which one and whose.

use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use super::labels::{self, Labels};
use super::{Container, DataVolume, DockerEngine};
use crate::engine::cluster::{MARKER, stamp};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::Instance;

/// What is in the marker of a data folder.
#[derive(Debug, Deserialize)]
pub(super) struct DataMarker {
    id: Uuid,
    project: String,
    instance: String,
}

impl DataMarker {
    /// Whether it names this very project and instance.
    pub(super) fn is_of(&self, instance: &Instance) -> bool {
        (&self.project, &self.instance) == (&instance.project, &instance.name)
    }
}

/// The time of a mark that was written anew, because its instance has got another name.
fn stamp_of(id: Uuid, instance: &str) -> u64 {
    stamp(&format!("{id} {instance}"))
}

impl DockerEngine {
    /// The instance's container and the labels of its volume. Fails if they are not of one instance.
    pub(super) async fn look(&self) -> Result<(Option<Container>, Option<Labels>)> {
        let (container, volume) = tokio::join!(self.container(), self.volume());
        let container = container?;
        if self.find_volume(container.as_ref()).await? {
            // Once: what was found is known from now on.
            return Box::pin(self.look()).await;
        }
        let own = self.data_volume();
        // The container of the instance whose place this one took a moment ago.
        let is_former = |found: &Container| {
            own.unsettled && !found.is_running() && found.volume.as_ref().is_some_and(|mounted| *mounted != own.name)
        };
        let Some(container) = container.filter(|found| !is_former(found)) else { return Ok((None, volume?)) };
        let Some(mounted) = &container.volume else {
            // Its data is in memory; a volume of an earlier profile is looked at when it is needed.
            return Ok((Some(container), volume.ok().flatten()));
        };
        let (name, own) = (self.instance.container_name(), own.name);
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

    /// The mark in the data folder of the container `name`, which need not run; `None` if there is none.
    pub(super) async fn mark(&self, name: &str) -> Result<Option<DataMarker>> {
        let Some(text) = self.read_file(name, MARKER).await? else { return Ok(None) };
        let mark = serde_json::from_str(&text);
        mark.map(Some).map_err(|error| {
            let volume = self.data_volume().name;
            mixed_up(format!("the mark in the data of the volume `{volume}` is damaged")).caused_by(error)
        })
    }

    /// Fails if the data folder in the container `name`, which need not run, carries another identity than `id`, or has
    /// become another instance's. One without a mark is not whole.
    pub(super) async fn check_marker(&self, name: &str, id: Uuid) -> Result<bool> {
        if self.is_dated(name, MARKER, stamp(&id.to_string())).await?
            || self.is_dated(name, MARKER, stamp_of(id, &self.instance.name)).await?
        {
            return Ok(true);
        }
        let Some(mark) = self.mark(name).await? else { return Ok(false) };
        let DataVolume { name: volume, unsettled, .. } = self.data_volume();
        if mark.id != id {
            return Err(mixed_up(format!(
                "the data in the volume `{volume}` is that of the instance `{}` of the project `{}` (identity {}), and \
                 this instance is {id}",
                mark.instance, mark.project, mark.id
            ))
            .hint(
                "nothing was written; copy the right data back, or away what is there, and remove the volume by hand",
            ));
        }
        if mark.instance == self.instance.name || unsettled {
            return Ok(true);
        }
        Err(mixed_up(format!(
            "the data in the volume `{volume}` is the instance `{}` by now, which changed places with `{}`",
            mark.instance, self.instance.name
        ))
        .hint(format!(
            "`tfdev up --instance {}` starts it; to use this name again, destroy that one first",
            mark.instance
        )))
    }

    /// Writes the instance's name into the mark of the data in the container `name`, which does not run.
    pub(super) async fn name_mark(&self, name: &str) -> Result<()> {
        let what = || format!("cannot write the mark in the data of the volume `{}`", self.data_volume().name);
        let Some(text) = self.read_file(name, MARKER).await? else { return Ok(()) };
        let mut mark: Value = serde_json::from_str(&text).or_failed(what)?;
        let id: DataMarker = serde_json::from_value(mark.clone()).or_failed(what)?;
        mark["instance"] = self.instance.name.clone().into();
        let owner = self.server_user(name).await?;
        self.upload_mark(name, &mark.to_string(), owner, stamp_of(id.id, &self.instance.name)).await
    }

    /// Fails if what is about to be removed holds the data of another instance.
    pub(super) async fn prove_data(&self, container: Option<&Container>, volume: Option<&Labels>) -> Result<()> {
        let (Some(labels), Some(id)) = (volume, labels::id(volume)) else { return Ok(()) };
        if container.is_some_and(|container| container.volume.is_some()) {
            return self.check_marker(&self.instance.container_name(), id).await.map(drop);
        }
        // Without its image the labels must do.
        let Some(look) = self.open(&self.data_volume(), labels).await? else { return Ok(()) };
        let proven = self.check_marker(&look, id).await;
        self.remove_container(&look).await?;
        proven.map(drop)
    }
}

fn mixed_up(message: String) -> Error {
    Error::new(ErrorKind::Refused, message)
}

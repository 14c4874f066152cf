//! Which volume an instance has its data in.
//!
//! It is the one of the instance's own name, unless the instance took another's place (`tfdev backup restore --replace`).
//! Docker gives a volume no other name and no other labels, so each of the two keeps the volume that it had, and
//! `volume.json` in its state folder, which changes places with all else that is in there, says which one that is. The mark
//! in the data gets the new name afterwards.
//!
//! What must hold: two instances never have one volume; and whatever of the records is lost, an instance gets its own data
//! or none:
//!
//! | lost | then |
//! |---|---|
//! | the state folder | the container says which volume it has; the two carry one identity |
//! | the container as well | the mark in the data says whose it is; another's is neither used nor removed |

use std::fs;
use std::path::Path;

use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType};
use bollard::query_parameters::ListVolumesOptionsBuilder;
use serde::{Deserialize, Serialize};

use super::errors::failed;
use super::labels::{self, Labels};
use super::{Container, DockerEngine};
use crate::config::is_instance;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::{Instance, private_file};
use crate::spec::DATA_DIRECTORY;

/// The file in the state folder.
const FILE: &str = "volume.json";

/// The volume of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataVolume {
    /// Its name.
    pub name: String,
    /// The instance that it was made for, which is in its labels.
    made_for: String,
    /// Whether the mark in the data has yet to get the name of the instance that has it now.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(super) unsettled: bool,
}

impl DataVolume {
    /// The volume that is on record for `instance`, or else the one that would be made for it.
    pub fn of(instance: &Instance) -> Self {
        Self::kept(&instance.state_dir).unwrap_or_else(|| Self::for_new(instance))
    }

    fn kept(state_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_dir.join(FILE)).ok()?).ok()
    }

    /// The volume of the instance's own name, or one of its like if that is another's by now.
    fn for_new(instance: &Instance) -> Self {
        let numbered = (2..).map(|number| format!("{}-{number}-data", instance.container_name()));
        let mut names = std::iter::once(instance.volume_name()).chain(numbered);
        let name = names.find(|name| !is_anothers(name, instance)).expect("there is no end of them");
        Self { name, made_for: instance.name.clone(), unsettled: false }
    }

    fn write(&self, instance: &Instance) -> Result<()> {
        instance.create_state_dir()?;
        private_file::write_json(&instance.state_dir.join(FILE), self)
    }

    fn is_usual(&self, instance: &Instance) -> bool {
        self.name == instance.volume_name() && !self.unsettled
    }

    /// How a container has it.
    pub(super) fn mount(&self) -> Mount {
        Mount {
            target: Some(DATA_DIRECTORY.to_owned()),
            source: Some(self.name.clone()),
            typ: Some(MountType::VOLUME),
            ..Mount::default()
        }
    }

    /// Whether these are the labels that it was made with.
    pub(super) fn has(&self, labels: &Labels, instance: &Instance) -> bool {
        labels.get(labels::PROJECT) == Some(&instance.project) && labels.get(labels::INSTANCE) == Some(&self.made_for)
    }
}

/// Whether that volume is on record for another instance of the project.
fn is_anothers(name: &str, instance: &Instance) -> bool {
    instance.other_state_dirs().any(|other| DataVolume::kept(&other).is_some_and(|kept| kept.name == name))
}

impl DockerEngine {
    /// The instance's volume, if it is on record or was found.
    fn known_volume(&self) -> Option<DataVolume> {
        let found = self.found_volume.lock().ok().and_then(|found| found.clone());
        found.or_else(|| DataVolume::kept(&self.instance.state_dir))
    }

    /// The instance's volume, which need not be there.
    pub(super) fn data_volume(&self) -> DataVolume {
        self.known_volume().unwrap_or_else(|| DataVolume::for_new(&self.instance))
    }

    fn remember_volume(&self, volume: Option<DataVolume>) {
        if let Ok(mut found) = self.found_volume.lock() {
            *found = volume;
        }
    }

    /// Looks for the volume of an instance whose state folder may be lost; says whether there is one that has to be looked
    /// at anew. `container` is the one of its name.
    pub(super) async fn find_volume(&self, container: Option<&Container>) -> Result<bool> {
        if self.known_volume().is_some() {
            return Ok(false);
        }
        let usual = self.data_volume().name;
        let found = match container.map(|container| (container, container.volume.as_deref())) {
            Some((_, None)) => None,
            Some((_, Some(mounted))) if mounted == usual => None,
            Some((container, Some(mounted))) => self.volume_of(container, mounted).await?,
            None => self.volume_by_mark(&usual).await?,
        };
        let is_found = found.is_some();
        self.remember_volume(found);
        Ok(is_found)
    }

    /// The volume in which the instance's container has its data, if both carry one identity.
    async fn volume_of(&self, container: &Container, mounted: &str) -> Result<Option<DataVolume>> {
        let Some(labels) = self.volume_labels(mounted).await? else { return Ok(None) };
        let same = labels::id(Some(&labels)).is_some_and(|id| labels::id(Some(&container.labels)) == Some(id));
        let made_for = labels.get(labels::INSTANCE).cloned().unwrap_or_default();
        let found = DataVolume { name: mounted.to_owned(), made_for, unsettled: false };
        Ok((same && found.has(&labels, &self.instance)).then_some(found))
    }

    /// The volume of the project whose data says that it is the instance's, among those that no other instance has, as far
    /// as records and containers tell.
    async fn volume_by_mark(&self, usual: &str) -> Result<Option<DataVolume>> {
        let filter = labels::filter(labels::PROJECT, &self.instance.project);
        let list = ListVolumesOptionsBuilder::default().filters(&filter).build();
        let listed = self.docker().list_volumes(Some(list)).await.map_err(|error| failed("list volumes", error))?;
        for volume in listed.volumes.unwrap_or_default() {
            let made_for = volume.labels.get(labels::INSTANCE).cloned().unwrap_or_default();
            if !is_instance(&made_for) || volume.name == usual || is_anothers(&volume.name, &self.instance) {
                continue;
            }
            let maker = Instance { name: made_for.clone(), ..self.instance.clone() };
            let of_maker = self.container_named(&maker.container_name()).await?;
            if of_maker.is_some_and(|container| container.volume.as_ref() == Some(&volume.name)) {
                continue;
            }
            let found = DataVolume { name: volume.name, made_for, unsettled: false };
            let Some(look) = self.open(&found, &volume.labels).await? else { continue };
            let mark = self.mark(&look).await;
            self.remove_container(&look).await?;
            if mark?.is_some_and(|mark| mark.is_of(&self.instance)) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// Puts what was found on record. The caller holds the instance's lock.
    pub(super) fn keep_volume(&self) -> Result<()> {
        let volume = self.data_volume();
        if volume.is_usual(&self.instance) || DataVolume::kept(&self.instance.state_dir).is_some() {
            return Ok(());
        }
        volume.write(&self.instance)
    }

    /// The volume that is to be made, on record if it is not the usual one.
    pub(super) fn new_volume(&self) -> Result<DataVolume> {
        let volume = DataVolume::for_new(&self.instance);
        if volume.is_usual(&self.instance) {
            // That on record was removed by hand.
            match fs::remove_file(self.instance.state_dir.join(FILE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).or_failed(|| "cannot remove the record of a volume that is gone");
                }
                _ => {}
            }
        } else {
            volume.write(&self.instance)?;
        }
        self.remember_volume(Some(volume.clone()));
        Ok(volume)
    }

    /// Makes a container, which is not started, to look into a volume with, and returns its name. `None` without the image
    /// that filled the volume.
    pub(super) async fn open(&self, volume: &DataVolume, labels: &Labels) -> Result<Option<String>> {
        // A name that no instance can have.
        let name = format!("{}.look", self.instance.container_name());
        let own = [(labels::PROJECT, &self.instance.project), (labels::INSTANCE, &self.instance.name)];
        let body = ContainerCreateBody {
            image: labels.get(labels::IMAGE_ID).cloned(),
            labels: Some(own.map(|(label, value)| (label.to_owned(), value.clone())).into()),
            host_config: Some(HostConfig { mounts: Some(vec![volume.mount()]), ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        self.remove_container(&name).await?;
        Ok(self.create_named(&name, body).await.is_ok().then_some(name))
    }

    /// As [`crate::engine::Engine::before_rename`]: from now on its volume is on record, with the name that its data has.
    pub(super) async fn keep_volume_for_rename(&self) -> Result<()> {
        let (container, volume) = self.look().await?;
        if volume.is_none() || container.is_some_and(|container| container.volume.is_none()) {
            let message = format!("the data of `{}` is in memory and goes with its server", self.instance.name);
            return Err(Error::new(ErrorKind::Refused, message));
        }
        DataVolume { unsettled: true, ..self.data_volume() }.write(&self.instance)
    }

    /// Takes away the container of the instance that had this place before, and writes the new name into the data's mark.
    pub(super) async fn settle_volume(&self) -> Result<()> {
        let Some(volume) = DataVolume::kept(&self.instance.state_dir).filter(|kept| kept.unsettled) else {
            return Ok(());
        };
        self.remember_volume(None);
        let (container, labels) = self.look().await?;
        if container.is_none() && self.container().await?.is_some() {
            self.remove_container(&self.instance.container_name()).await?;
        }
        let Some(labels) = labels else { return Ok(()) };
        let Some(look) = self.open(&volume, &labels).await? else { return Ok(()) };
        let named = self.name_mark(&look).await;
        self.remove_container(&look).await?;
        named?;
        DataVolume { unsettled: false, ..volume }.write(&self.instance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::instance;

    fn beside(instance: &Instance, name: &str) -> Instance {
        let state_dir = instance.state_dir.with_file_name(name);
        Instance { name: name.to_owned(), state_dir, ..instance.clone() }
    }

    #[test]
    fn two_instances_never_have_one_volume() {
        let root = tempfile::tempdir().unwrap();
        let dev = instance(root.path());
        let other = beside(&dev, "other");
        assert_eq!(DataVolume::of(&dev).name, dev.volume_name());
        // They change places.
        let (of_dev, of_other) = (DataVolume::of(&dev), DataVolume::of(&other));
        of_other.write(&dev).unwrap();
        of_dev.write(&other).unwrap();
        assert_eq!(DataVolume::of(&dev).name, other.volume_name());
        assert_eq!(DataVolume::of(&other).name, dev.volume_name());
        // One of them is destroyed and made anew.
        other.remove_state_dir().unwrap();
        let new = DataVolume::of(&other);
        assert_eq!(new.name, format!("{}-2-data", other.container_name()));
        new.write(&other).unwrap();
        assert_eq!(DataVolume::of(&other), new);
        dev.remove_state_dir().unwrap();
        assert_eq!(DataVolume::of(&dev).name, dev.volume_name());
    }

    #[test]
    fn a_record_that_cannot_be_read_counts_as_none() {
        let root = tempfile::tempdir().unwrap();
        let dev = instance(root.path());
        dev.create_state_dir().unwrap();
        fs::write(dev.state_dir.join(FILE), "{").unwrap();
        assert_eq!(DataVolume::of(&dev).name, dev.volume_name());
    }
}

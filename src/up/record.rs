//! The record of the instance, before and after the work.

use uuid::Uuid;

use crate::engine::{EngineKind, Observed, State};
use crate::error::Result;
use crate::event::Events;
use crate::identity;
use crate::instance::{Instance, InstanceRecord};

/// What is on record of the instance, brought in line with what the engine sees, and the instance's identity.
pub(super) fn recall(
    instance: &Instance,
    engine: EngineKind,
    observed: &Observed,
    events: &Events,
) -> Result<(Uuid, InstanceRecord)> {
    let mut record = InstanceRecord::read(instance, events)?.unwrap_or_default();
    identity::check_record(instance, Some(&record), observed)?;
    let id = match (record.id(), observed.id) {
        (Some(on_record), None) if !record.initialised || observed.state != State::Absent => on_record,
        (Some(_), None) => {
            events.warning("The data of this instance was removed by something other than tfdev; it is made anew");
            record.initialised = false;
            record.system_identifier = None;
            Uuid::new_v4()
        }
        // The record is lost, or this is the first run: what carries our labels names its identity.
        (_, Some(seen)) => seen,
        (None, None) => Uuid::new_v4(),
    };
    record.uuid = Some(id.to_string());
    record.engine = Some(engine.into());
    record.project_dir = Some(instance.project_dir.clone());
    record.tfdev_version = Some(env!("CARGO_PKG_VERSION").to_owned());
    record.created_at.get_or_insert_with(|| jiff::Timestamp::now().to_string());
    Ok((id, record))
}

/// Writes the record if it differs from what is `known` to be written; returns what is written now.
pub(super) fn remember(
    instance: &Instance,
    record: &InstanceRecord,
    known: Option<&InstanceRecord>,
) -> Result<InstanceRecord> {
    let on_disk = match known {
        Some(known) => Some(known.clone()),
        None => InstanceRecord::read(instance, &Events::none())?,
    };
    if on_disk.as_ref() != Some(record) {
        record.write(instance)?;
    }
    Ok(record.clone())
}

//! A restored instance in the place of the one that it was restored from.
//!
//! All that makes an instance the one of its name is in its state folder: the record, the passwords, where its data is. So
//! the two instances change places by their state folders getting each other's name, which the file system does in one
//! step. The data stays where it is; only the mark in it gets the new name afterwards, and until then it is known by the
//! one that it had. The new instance has the passwords of the old one from its begin, and its port, so a URL stays what it
//! was.
//!
//! | killed | then |
//! |---|---|
//! | before the step | both are there as they were, stopped: `tfdev up` goes on with the old one, the other one is `--as` |
//! | behind it | both have their new names: `tfdev up` starts the restored one |
//!
//! So nothing is left to be taken up again, and at every moment each is reachable by one of the two names. In Docker a
//! volume keeps its name and its labels; which one is whose is in the state folder as well (`engine/docker/volume.rs`).
//!
//! Before that a point is set in the old instance's log, all of which goes into the store: so that there is a way back also
//! when the old instance is removed.
//!
//! What must hold: nothing of the old instance is removed or written to but its name; and its server was stopped in order.

use std::time::{Duration, Instant};

use super::Backups;
use super::restore::Restored;
use crate::config::{Setting, Settings};
use crate::engine::{self, Engine, StartRequest};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::fault;
use crate::identity;
use crate::instance::{Instance, InstanceLock, InstanceRecord, private_file};
use crate::profile;
use crate::server::{Running, Server};
use crate::up;

/// One of the two.
struct Side {
    settings: Settings,
    instance: Instance,
    engine: Box<dyn Engine>,
    record: InstanceRecord,
}

impl Side {
    async fn of(settings: Settings, events: &Events) -> Result<Self> {
        let instance = Instance::of(&settings);
        let engine = engine::choose(&settings, &instance, events).await?.engine;
        let observed = engine.observe().await?;
        let record = InstanceRecord::read(&instance, events)?;
        identity::check_record(&instance, record.as_ref(), &observed)?;
        match record {
            Some(record) if record.initialised && !record.restoring => Ok(Self { settings, instance, engine, record }),
            _ => Err(instance.not_found()),
        }
    }
}

/// Looks whether the settled instance can be replaced, before anything is restored.
///
/// # Errors
/// [`ErrorKind::NotFound`] if it is not on this machine; [`ErrorKind::Refused`] if its engine cannot do that.
pub async fn check(settings: &Settings, events: &Events) -> Result<()> {
    let instance = Instance::of(settings);
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = InstanceLock::acquire(&instance, "backup restore", limit, events).await?;
    let side = Side::of(settings.clone(), events).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            error.hint("there is nothing to replace: leave `--replace` out, or name the instance with `--instance`")
        }
        _ => error,
    })?;
    side.engine.before_rename().await
}

/// Lets the restored instance and the settled one change places, and starts the restored one.
///
/// # Errors
/// Whatever fails before the change leaves both as they are, under the names that they have, perhaps stopped.
pub async fn replace(settings: &Settings, restored: Restored, events: &Events) -> Result<Restored> {
    let begin = Instant::now();
    let mut own = settings.clone();
    own.instance = Setting::flag("as", restored.instance.clone());
    let limit = Duration::from_secs(settings.timeout_seconds.value);
    let _lock = InstanceLock::acquire(&Instance::of(settings), "backup restore", limit, events).await?;
    let _new_lock = InstanceLock::acquire(&Instance::of(&own), "backup restore", limit, events).await?;
    let (old, mut new) = (Side::of(settings.clone(), events).await?, Side::of(own, events).await?);
    let kept_as = new.instance.name.clone();
    keep_the_way_back(&old, events).await;
    events.started("Changing places");
    for side in [&old, &new] {
        side.engine.before_rename().await?;
        side.engine.stop().await?;
    }
    fault::point("backup.replace.stopped").await;
    new.record.port = old.record.port;
    new.record.archive_off = old.record.archive_off;
    new.record.write(&new.instance)?;
    fault::point("backup.replace.prepared").await;
    private_file::exchange(&old.instance.state_dir, &new.instance.state_dir)
        .map_err(|error| error.hint(format!("nothing was changed; the restored instance is `{kept_as}`")))?;
    fault::point("backup.replace.exchanged").await;
    // The engines and instances are those of the names, behind which the other one is now.
    old.engine.renamed().await?;
    new.engine.renamed().await?;
    let mut kept = old.record;
    kept.archive_off = true;
    kept.write(&new.instance)?;
    let place = Side { settings: old.settings, instance: old.instance, engine: old.engine, record: new.record };
    let started = start(place, events).await;
    let server = started.map_err(|error| {
        error.hint(format!("both have changed places: `tfdev up` starts the restored one; the old one is `{kept_as}`"))
    })?;
    events.finished("Changed places", begin.elapsed());
    Ok(Restored {
        instance: settings.instance.value.clone(),
        url: server.url(),
        port: server.endpoint.port,
        replaced: Some(kept_as),
        ..restored
    })
}

/// Brings the rest of the old instance's log into the store, with a point to come back to: later it has no agent. What is
/// not in the store stays with its data.
async fn keep_the_way_back(old: &Side, events: &Events) {
    let name = format!("replaced {}", super::now().strftime("%Y-%m-%d %H:%M:%S UTC"));
    let marked = async {
        let running = Running::find(&old.settings, events).await?;
        Backups::of(&running, &old.settings, events)?.mark(&name).await
    };
    match marked.await {
        Ok(mark) => events.note(format!("The point `{}` leads back to what was there", mark.name)),
        Err(error) => events.warning(format!(
            "the end of the old instance's log is not in the store, and stays with its data: {}",
            super::words(&error)
        )),
    }
}

/// Starts the restored instance under its new name, neither migrated nor seeded.
async fn start(mut side: Side, events: &Events) -> Result<Server> {
    let (settings, instance, engine) = (&side.settings, &side.instance, side.engine.as_ref());
    let profile = profile::resolve(up::profile_name(settings, Some(&side.record)), &settings.profiles)?;
    let source = engine.source(settings.image.as_ref(), side.record.image.as_deref()).await?;
    let (spec, certificate) = up::spec(settings, &profile, instance, engine, &source, side.record.archive_off)?;
    let id = side.record.id().ok_or_else(|| Error::failed("the restored instance has no identity on record"))?;
    let request = StartRequest { spec, id, last_port: side.record.port, certificate };
    let server = up::adopt(settings, instance, engine, &request, &mut side.record, events).await?;
    side.record.profile = Some(profile.name.clone());
    side.record.write(instance)?;
    Ok(server)
}

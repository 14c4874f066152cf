//! This machine without Docker: PostgreSQL's programs, the port, and tfdev's own folders.

use std::fs::TryLockError;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::left_over::Project;
use super::{Area, Finding, Level};
use crate::config::{PortChoice, Settings};
use crate::engine::docker::connect::DockerConnection;
use crate::engine::ports;
use crate::error::{Error, Result};
use crate::instance::Instance;
use crate::pg::programs::{Programs, SearchPlaces};

/// How long Docker may take to say who has a port.
const LIMIT: Duration = Duration::from_millis(500);

/// How far the clock of a file system may be off.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(10);

/// PostgreSQL 15's programs, which the native engine runs.
pub(super) fn programs(settings: &Settings) -> Finding {
    match Programs::find(&SearchPlaces::of(settings)) {
        Ok(programs) => Finding::ok(Area::Programs, format!("{programs}")),
        Err(error) => {
            let level = if settings.native_bin_dir.is_some() { Level::Warning } else { Level::Note };
            Finding::of(Area::Programs, level, &error, "servers can be run in Docker only")
        }
    }
}

/// The port that a new instance would get.
pub(super) async fn ports(
    settings: &Settings,
    projects: &[Project],
    docker: Option<&DockerConnection>,
) -> Vec<Finding> {
    let (port, fixed) = match settings.database.port.value {
        PortChoice::Fixed(port) => (port, true),
        PortChoice::Auto => (ports::PREFERRED, false),
    };
    if !ports::looks_taken(port) {
        return vec![Finding::ok(Area::Ports, format!("port {port} is free"))];
    }
    let own = Instance::of(settings);
    let holder = projects.iter().find(|project| project.record.port == Some(port));
    if let Some(project) = holder {
        let Project { instance, .. } = project;
        let what = format!("port {port} is that of the instance `{}` of `{}`", instance.name, instance.project);
        let is_own = instance.state_dir == own.state_dir;
        return vec![if is_own || !fixed { Finding::ok(Area::Ports, what) } else { in_the_way(what, port) }];
    }
    let container = match docker {
        Some(docker) => {
            tokio::time::timeout(LIMIT, docker.publisher(port)).await.ok().and_then(|found| found.ok().flatten())
        }
        None => None,
    };
    let who = container.map_or_else(|| "another program".to_owned(), |name| format!("the container `{name}`"));
    let what = format!("port {port} is taken by {who}");
    if fixed {
        return vec![in_the_way(what, port)];
    }
    let why = "a new instance gets another port, which `tfdev url` tells";
    vec![Finding::new(Area::Ports, Level::Note, what, why).mend(look_at(port))]
}

fn in_the_way(what: String, port: u16) -> Finding {
    Finding::new(
        Area::Ports,
        Level::Problem,
        what,
        "`port` in tfdev.toml names it, so this project's server cannot start",
    )
    .mend(look_at(port))
    .mend("or take any free one: `port = \"auto\"` under `[database]`")
}

fn look_at(port: u16) -> String {
    format!("see who has it: `ss -ltnp 'sport = :{port}'`, or `lsof -i :{port}`")
}

/// Locks and clock in the folder of records, and whether it can be written to at all.
pub(super) fn files(settings: &Settings) -> Vec<Finding> {
    let folder = &settings.state_dir;
    let Some(there) = folder.ancestors().find(|folder| folder.is_dir()).map(Path::to_owned) else {
        return Vec::new();
    };
    let mend = format!(
        "make `{}` a folder that you may write to, or set `TFDEV_STATE_DIR` to one on a local disk",
        folder.display()
    );
    let why = "two tfdev at once could not wait for each other, and no command that changes something works";
    match try_lock(&there) {
        Ok(written) => {
            let locks = Finding::ok(Area::Files, format!("file locks work in `{}`", there.display()));
            vec![locks, clock(&there, Timestamp::now(), written)]
        }
        Err(error) => vec![Finding::of(Area::Files, Level::Problem, &error, why).mend(mend)],
    }
}

/// Takes a lock on a file that is gone afterwards, and sees that it cannot be taken twice. Gives the file's time.
fn try_lock(folder: &Path) -> Result<Timestamp> {
    let cannot = |what: &str| format!("cannot {what} a file in `{}`", folder.display());
    let failed = |what: &str, cause: std::io::Error| Error::failed(cannot(what)).caused_by(cause);
    let file = tempfile::NamedTempFile::new_in(folder).map_err(|error| failed("make", error))?;
    file.as_file().lock().map_err(|error| failed("lock", error))?;
    let second = file.reopen().map_err(|error| failed("open", error))?;
    match second.try_lock() {
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(failed("lock", error)),
        Ok(()) => return Err(Error::failed(format!("a lock on a file in `{}` keeps nobody out", folder.display()))),
    }
    let written =
        file.as_file().metadata().and_then(|found| found.modified()).map_err(|error| failed("look at", error))?;
    Ok(Timestamp::try_from(written).unwrap_or_else(|_| Timestamp::now()))
}

fn clock(folder: &Path, here: Timestamp, written: Timestamp) -> Finding {
    let difference = written.duration_since(here);
    if difference.abs() <= CLOCK_TOLERANCE {
        return Finding::ok(Area::Clock, format!("the clock of the file system of `{}` agrees", folder.display()));
    }
    let what = format!("a file that is written now in `{}` is {} s off", folder.display(), difference.as_secs());
    Finding::new(Area::Clock, Level::Warning, what, "leases and certificates are judged by a wrong time")
        .mend("set the clock: `sudo timedatectl set-ntp true`, also on the file server")
}

/// Whether a folder is gone; one that may not be looked at is not.
pub(super) fn is_gone(folder: &PathBuf) -> bool {
    std::fs::symlink_metadata(folder).is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::settings;

    #[test]
    fn locks_are_tried_in_the_nearest_folder_and_nothing_is_left() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path(), "app", "");
        let before: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let found = files(&settings);
        assert!(found.iter().all(|finding| finding.level == Level::Ok) && found.len() == 2, "{found:?}");
        let after: Vec<_> = std::fs::read_dir(root.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(before, after);
    }

    #[test]
    fn a_file_systems_clock_that_is_off_is_told() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        assert_eq!(clock(Path::new("/"), at(0), at(-10)).level, Level::Ok);
        assert_eq!(clock(Path::new("/"), at(0), at(60)).level, Level::Warning);
    }

    #[tokio::test]
    async fn a_port_that_is_taken_matters_only_if_it_is_asked_for() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let root = tempfile::tempdir().unwrap();
        let fixed = settings(root.path(), "app", &format!("[database]\nport = {port}\n"));
        let found = ports(&fixed, &[], None).await;
        assert!(found[0].level == Level::Problem && found[0].mend[1].contains("auto"), "{found:?}");
        drop(listener);
        assert_eq!(ports(&fixed, &[], None).await[0].level, Level::Ok);
    }
}

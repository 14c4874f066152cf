//! The Docker daemon: whether it answers, and what its machine has.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

use super::{Area, Finding, Level};
use crate::config::Settings;
use crate::engine::docker::connect::{DockerConnection, connect};
use crate::engine::docker::machine::Machine;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;
use crate::image;
use crate::profile::Profile;

/// How long the daemon may take, for all questions together.
const LIMIT: Duration = Duration::from_millis(1500);

/// What a new server needs on the disk: its data folder, the first WAL and sample data.
const LEAST_ROOM: u64 = 300 << 20;

/// How far clocks may differ.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(10);

/// The daemon, if it answers, and what there is to say of it.
pub(super) struct Looked {
    pub(super) connection: Option<DockerConnection>,
    pub(super) findings: Vec<Finding>,
}

/// Looks at the daemon. `has_programs` is whether there is another way to run servers.
pub(super) async fn look(settings: &Settings, has_programs: bool, events: &Events) -> Looked {
    let level = if has_programs { Level::Warning } else { Level::Problem };
    let why = if has_programs {
        "new instances are run by the PostgreSQL 15 of this machine, and those in Docker cannot be reached"
    } else {
        "there is no PostgreSQL 15 on this machine either, so no server can be run"
    };
    let begin = Instant::now();
    let connection = match connect(&settings.docker, LIMIT, events).await {
        Ok(connection) => connection,
        Err(error) => {
            return Looked { connection: None, findings: vec![Finding::of(Area::Docker, level, &error, why)] };
        }
    };
    let mut findings = vec![Finding::ok(
        Area::Docker,
        format!(
            "Docker {} ({}/{}, API {}) answers at {}",
            connection.server_version, connection.os, connection.arch, connection.api_version, connection.endpoint
        ),
    )];
    match tokio::time::timeout(LIMIT.saturating_sub(begin.elapsed()), more(settings, &connection)).await {
        Ok(Ok(more)) => findings.extend(more),
        Ok(Err(error)) => findings.push(Finding::of(Area::Docker, level, &error, why)),
        Err(_) => {
            let slow =
                Error::new(ErrorKind::TimedOut, "the Docker daemon answers, but not when asked about its machine")
                    .hint("look at its log: `sudo journalctl -u docker -n 50`");
            findings.push(Finding::of(Area::Docker, level, &slow, why));
            return Looked { connection: None, findings };
        }
    }
    Looked { connection: Some(connection), findings }
}

async fn more(settings: &Settings, connection: &DockerConnection) -> Result<Vec<Finding>> {
    let machine = connection.machine().await?;
    let mut findings = resources(settings, &machine);
    findings.extend(machine.time.map(|time| clock(Timestamp::now(), time)));
    findings.push(images(connection).await?);
    Ok(findings)
}

/// Memory, disk, and limits that the kernel does not know.
fn resources(settings: &Settings, machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    let megabytes = |bytes: u64| bytes >> 20;
    let profile = Profile::of(settings).ok();
    let needed = profile.as_ref().map_or(0, |profile| profile.limits.memory_bytes);
    let name = profile.as_ref().map_or("", |profile| profile.name.as_str());
    if let Some(memory) = machine.memory_bytes {
        let what =
            format!("Docker's machine has {} MB of memory and {} cores", megabytes(memory), machine.cpus.unwrap_or(0));
        findings.push(if memory >= needed {
            Finding::ok(Area::Docker, what)
        } else {
            let why = format!(
                "a server with the profile `{name}` may use {} MB, and is killed before that",
                megabytes(needed)
            );
            Finding::new(Area::Docker, Level::Warning, what, why)
                .mend("give Docker's virtual machine more memory (Docker Desktop: Settings, Resources)")
        });
    }
    if let Some(free) = machine.free_bytes {
        let what = format!("{} MB are free for volumes in `{}`", megabytes(free), machine.root_dir);
        let storage = profile.as_ref().map_or(0, |profile| profile.limits.storage_bytes);
        findings.push(if free < LEAST_ROOM {
            Finding::new(Area::Docker, Level::Problem, what, format!("a new server needs {} MB", megabytes(LEAST_ROOM)))
                .mend("see what takes the space: `docker system df`")
                .mend("remove what is not in use: `docker system prune`")
        } else if free < storage {
            let why = format!("a server with the profile `{name}` may use {} MB", megabytes(storage));
            Finding::new(Area::Docker, Level::Warning, what, why).mend("see what takes the space: `docker system df`")
        } else {
            Finding::ok(Area::Docker, what)
        });
    }
    let about_limits = |warning: &&String| {
        let warning = warning.to_lowercase();
        warning.contains("no memory limit") || warning.contains("no cpu cfs quota")
    };
    for warning in machine.warnings.iter().filter(about_limits) {
        let why = "servers are not held to the limits of their profile";
        let mend = "switch the controllers on in the kernel: `cgroup_enable=memory` on its command line, or cgroup v2";
        findings.push(Finding::new(Area::Docker, Level::Warning, warning.as_str(), why).mend(mend));
    }
    findings
}

fn clock(here: Timestamp, there: Timestamp) -> Finding {
    let difference = there.duration_since(here);
    if difference.abs() <= CLOCK_TOLERANCE {
        return Finding::ok(Area::Clock, "the clocks of Docker and of this machine agree");
    }
    let direction = if difference.is_positive() { "ahead of" } else { "behind" };
    let what = format!("Docker's clock is {} s {direction} this machine's", difference.abs().as_secs());
    Finding::new(Area::Clock, Level::Warning, what, "`now()` in the server, tokens and certificates are wrong")
        .mend("restart Docker, whose virtual machine sets its clock then: `sudo systemctl restart docker`")
}

async fn images(connection: &DockerConnection) -> Result<Finding> {
    for name in [image::OFFICIAL, image::OFFLINE] {
        if image::find(&connection.docker, name).await?.is_some() {
            return Ok(Finding::ok(Area::Docker, format!("the image {name} is there")));
        }
    }
    let what = format!("neither {} nor {} is there", image::OFFICIAL, image::OFFLINE);
    Ok(Finding::new(Area::Docker, Level::Note, what, "the first `tfdev up` gets one, which takes longer")
        .mend("get it now: `tfdev image ensure`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::settings;

    fn machine(memory: u64, free: u64) -> Machine {
        Machine {
            memory_bytes: Some(memory),
            cpus: Some(2),
            root_dir: "/var/lib/docker".into(),
            free_bytes: Some(free),
            time: None,
            rootless: false,
            warnings: vec!["WARNING: No swap limit support".into(), "WARNING: No memory limit support".into()],
        }
    }

    #[test]
    fn a_machine_that_is_too_small_is_told_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path(), "app", "");
        let levels = |memory: u64, free: u64| {
            resources(&settings, &machine(memory, free)).iter().map(|found| found.level).collect::<Vec<_>>()
        };
        assert_eq!(levels(2 << 30, 20 << 30), [Level::Ok, Level::Ok, Level::Warning]);
        assert_eq!(levels(512 << 20, 5 << 30), [Level::Warning, Level::Warning, Level::Warning]);
        assert_eq!(levels(2 << 30, 100 << 20), [Level::Ok, Level::Problem, Level::Warning]);
        let found = resources(&settings, &machine(2 << 30, 100 << 20));
        assert!(found[1].mend[0].contains("`docker system df`"));
    }

    #[test]
    fn a_clock_that_is_off_is_told() {
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        assert_eq!(clock(at(0), at(10)).level, Level::Ok);
        assert!(clock(at(0), at(-3600)).what.contains("3600 s behind"));
    }
}

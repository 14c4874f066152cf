//! The profile's limits on memory and processor time, by control groups (cgroups(7)), where the kernel has them and this
//! user may make them (`hierarchy`).
//!
//! What must hold: the server is in its groups before its program begins, so that all of its processes are; groups are on
//! record before they are made, and go when the server is gone; nothing but a group of our name is ever removed; and
//! where there can be no limit the server runs without, and the reason is known.

mod hierarchy;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::hierarchy::{Group, Hierarchies, ROOTS_PARENT};
use super::place::Place;
use crate::error::Result;
use crate::event::Events;
use crate::instance::private_file;
use crate::profile;

/// How long the last processes of a server that was killed may still be in its groups.
const EMPTY_LIMIT: Duration = Duration::from_secs(2);

/// How often a group is looked at that is not empty yet.
const LOOK: Duration = Duration::from_millis(2);

/// What our groups' names begin with.
const PREFIX: &str = "tfdev-";

/// The limits of one server.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Limits {
    /// The groups that the server is in.
    groups: Vec<PathBuf>,
    /// Why it is in none.
    reason: Option<String>,
}

impl Limits {
    /// Makes the groups for a server that is about to start. Without them it runs unlimited, which is no failure.
    pub(super) async fn make(place: &Place, wanted: &profile::Limits, events: &Events) -> Result<Self> {
        remove(place, events).await;
        let name = format!("{PREFIX}{}", place.name());
        let limits = match Hierarchies::read().and_then(|hierarchies| hierarchies.groups(&name, wanted)) {
            Ok(groups) => Self::of(place, &groups)?,
            Err(reason) => Self::none(reason),
        };
        if let Some(reason) = &limits.reason {
            events.detail(format!("the limits on memory and processor time are not enforced: {reason}"));
            limits.write(place)?;
        }
        Ok(limits)
    }

    /// Makes these groups, after they went on record.
    fn of(place: &Place, groups: &[Group]) -> Result<Self> {
        let limits = Self { groups: groups.iter().map(|group| group.path.clone()).collect(), reason: None };
        limits.write(place)?;
        let Err((path, error)) = groups.iter().try_for_each(Group::make) else { return Ok(limits) };
        for group in &limits.groups {
            let _ = fs::remove_dir(group);
        }
        Ok(Self::none(format!("cannot write `{}`: {error}", path.display())))
    }

    fn none(reason: String) -> Self {
        Self { groups: Vec::new(), reason: Some(reason) }
    }

    fn read(place: &Place) -> Self {
        let text = fs::read(record(place)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    fn write(&self, place: &Place) -> Result<()> {
        private_file::write_json(&record(place), self)
    }

    /// Whether there are groups, into which the server has to be admitted.
    pub(super) fn are_there(&self) -> bool {
        !self.groups.is_empty()
    }

    /// Puts a process that has no children yet into the groups.
    pub(super) fn admit(&self, pid: u32) -> io::Result<()> {
        self.groups.iter().try_for_each(|group| fs::write(group.join("cgroup.procs"), pid.to_string()))
    }
}

/// The file with the groups' paths, by which another session finds them again.
fn record(place: &Place) -> PathBuf {
    place.records.join("limits.json")
}

/// What the kernel holds the server's groups to: memory in bytes, and processor time in billionths of a core. `None` means
/// all there is.
pub(super) fn held(place: &Place) -> (Option<u64>, Option<u64>) {
    let groups = Limits::read(place).groups;
    let read = |file: &str| groups.iter().find_map(|group| fs::read_to_string(group.join(file)).ok());
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let memory = number("memory.max").or_else(|| number("memory.limit_in_bytes"));
    let quota = match read("cpu.max") {
        Some(text) => text
            .split_once(' ')
            .and_then(|(quota, period)| Some((quota.parse::<u64>().ok()?, period.trim().parse::<u64>().ok()?))),
        None => number("cpu.cfs_quota_us").zip(number("cpu.cfs_period_us")),
    };
    let cpus = quota.filter(|(_, period)| *period > 0).map(|(quota, period)| quota * 1_000_000_000 / period);
    (memory, cpus)
}

/// Why the server of this process number is not held to its limits; `None` if it is.
pub(super) fn missing(place: &Place, pid: i32) -> Option<String> {
    let limits = Limits::read(place);
    let is_in = |group: &PathBuf| {
        let members = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
        members.lines().any(|line| line.parse() == Ok(pid))
    };
    if limits.are_there() && limits.groups.iter().all(is_in) {
        return None;
    }
    Some(limits.reason.unwrap_or_else(|| "the server is not in the control groups that were made for it".to_owned()))
}

/// Why the limits of a server that does not run could not be enforced; `None` if they could, as far as can be seen.
pub(super) fn impossible() -> Option<String> {
    Hierarchies::read().and_then(|hierarchies| hierarchies.parents(true).map(drop)).err()
}

/// Removes the groups of a server that is gone.
pub(super) async fn remove(place: &Place, events: &Events) {
    let limits = Limits::read(place);
    let mut left = Vec::new();
    for group in limits.groups.iter().filter(|group| is_ours(group)) {
        if let Err(error) = remove_group(group).await {
            events.detail(format!("the control group `{}` is left: {error}", group.display()));
            left.push(group.clone());
        }
    }
    if left.is_empty() {
        let _ = fs::remove_file(record(place));
    } else {
        let _ = Limits { groups: left, reason: None }.write(place);
    }
}

fn is_ours(group: &Path) -> bool {
    group.is_absolute() && group.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PREFIX))
}

/// Removes a group once it is empty, and the one above if nothing else is in it. The kernel removes a group with all its
/// files when its folder is removed.
async fn remove_group(group: &Path) -> io::Result<()> {
    let deadline = Instant::now() + EMPTY_LIMIT;
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                tokio::time::sleep(LOOK).await;
            }
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => break,
        }
    }
    if let Some(parent) = group.parent().filter(|parent| parent.ends_with(ROOTS_PARENT)) {
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(root: &Path) -> Place {
        Place { records: root.join("records"), home: root.join("records") }
    }

    #[tokio::test]
    async fn only_groups_of_our_name_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        let (ours, others) = (root.path().join("tfdev-1"), root.path().join("system.slice"));
        for folder in [&place.records, &ours, &others] {
            fs::create_dir(folder).unwrap();
        }
        let groups = vec![ours.clone(), others.clone(), root.path().join("tfdev-gone")];
        Limits { groups, reason: None }.write(&place).unwrap();
        remove(&place, &Events::none()).await;
        assert!(!ours.exists() && others.exists() && !record(&place).exists());
    }

    #[test]
    fn what_a_group_is_held_to_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        let group = root.path().join("tfdev-1");
        for folder in [&place.records, &group] {
            fs::create_dir(folder).unwrap();
        }
        assert_eq!(held(&place), (None, None));
        Limits { groups: vec![group.clone()], reason: None }.write(&place).unwrap();
        let write = |name: &str, text: &str| fs::write(group.join(name), text).unwrap();
        write("memory.max", "1073741824\n");
        write("cpu.max", "100000 100000\n");
        assert_eq!(held(&place), (Some(1 << 30), Some(1_000_000_000)));
        write("memory.max", "max\n");
        write("cpu.max", "max 100000\n");
        assert_eq!(held(&place), (None, None));
        fs::remove_file(group.join("cpu.max")).unwrap();
        for (name, text) in
            [("memory.limit_in_bytes", "5\n"), ("cpu.cfs_quota_us", "50000\n"), ("cpu.cfs_period_us", "100000\n")]
        {
            write(name, text);
        }
        assert_eq!(held(&place), (Some(5), Some(500_000_000)));
    }

    #[test]
    fn a_server_that_is_not_in_its_groups_is_not_limited() {
        let root = tempfile::tempdir().unwrap();
        let place = place(root.path());
        let group = root.path().join("tfdev-1");
        for folder in [&place.records, &group] {
            fs::create_dir(folder).unwrap();
        }
        assert!(missing(&place, 7).unwrap().contains("not in the control groups"));
        let limits = Limits { groups: vec![group.clone()], reason: None };
        limits.write(&place).unwrap();
        fs::write(group.join("cgroup.procs"), "17\n70\n").unwrap();
        assert!(missing(&place, 7).is_some());
        limits.admit(7).unwrap();
        assert_eq!(missing(&place, 7), None);
        Limits::none("no groups here".into()).write(&place).unwrap();
        assert_eq!(missing(&place, 7).unwrap(), "no groups here");
    }
}

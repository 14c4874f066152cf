//! Where control groups are on this machine, and which of them this user may make.
//!
//! - Version 2 (one tree for all): root makes its groups in `tfdev` at the top. Everybody else makes them in the nearest
//!   group above this process that was handed to them with both controllers; systemd hands each user such a one.
//! - Version 1 (a tree for each controller): root alone, in `tfdev` at the top of each tree.
//!
//! What must hold: a group of somebody else is only ever made a parent of ours.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::engine::native::account::Account;
use crate::profile::Limits;

/// The group at the top of a tree that holds those of root's servers.
pub(super) const ROOTS_PARENT: &str = "tfdev";

/// The length of a period of processor time in microseconds, which is the kernel's default (cgroup-v2.rst, `cpu.max`).
const PERIOD: u64 = 100_000;

/// How often a group is made again whose parent was just removed by another tfdev.
const ATTEMPTS: usize = 5;

/// The versions of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// A group that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) path: PathBuf,
    /// What is written into which of its files.
    files: Vec<(&'static str, String)>,
    /// What is switched on in the parent for its children: files of version 2.
    switch_on: Vec<(PathBuf, String)>,
}

/// The trees of this machine.
#[derive(Debug)]
pub(super) struct Hierarchies {
    version: Version,
    /// The top folder of the controller of memory, and that of processor time.
    tops: [PathBuf; 2],
    /// The group of this process in the tree of version 2, relative to the top.
    own: PathBuf,
    is_root: bool,
}

const CONTROLLERS: [&str; 2] = ["memory", "cpu"];

impl Hierarchies {
    /// Finds the trees; why there are none if there are none.
    #[cfg(target_os = "linux")]
    pub(super) fn read() -> Result<Self, String> {
        let read = |path: &str| fs::read_to_string(path).map_err(|error| format!("cannot read `{path}`: {error}"));
        Self::of(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?, Account::am_root())
    }

    /// Other systems have no control groups.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn read() -> Result<Self, String> {
        Err("this system has no control groups".to_owned())
    }

    fn of(mounts: &str, own: &str, is_root: bool) -> Result<Self, String> {
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let own = Path::new(own).to_owned();
        if let Some(top) = mounted(mounts, "cgroup2", None) {
            let there = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
            if has_all(&there, &CONTROLLERS) {
                return Ok(Self { version: Version::Two, tops: [top.clone(), top], own, is_root });
            }
        }
        let [memory, cpu] = CONTROLLERS.map(|controller| mounted(mounts, "cgroup", Some(controller)));
        match (memory, cpu) {
            (Some(memory), Some(cpu)) => Ok(Self { version: Version::One, tops: [memory, cpu], own, is_root }),
            _ => Err("there are no control groups for memory and processor time here".to_owned()),
        }
    }

    /// The groups above ours: for memory and, if `cpu`, for processor time, which is the same in version 2.
    pub(super) fn parents(&self, cpu: bool) -> Result<Vec<PathBuf>, String> {
        let number = if cpu { 2 } else { 1 };
        match (self.version, self.is_root) {
            (Version::One, false) => Err("only root can limit them here (cgroup v1)".to_owned()),
            (Version::One, true) => self.tops[..number].iter().map(|top| writable(top)).collect(),
            (Version::Two, true) => Ok(vec![writable(&self.tops[0])?]),
            (Version::Two, false) => self.handed_over(&CONTROLLERS[..number]).map(|group| vec![group]),
        }
    }

    /// The nearest group above this process that may be a parent of ours.
    fn handed_over(&self, controllers: &[&str]) -> Result<PathBuf, String> {
        let top = &self.tops[0];
        let own = top.join(&self.own);
        let mut above = own.ancestors().take_while(|group| group.starts_with(top));
        let fits = |group: &&Path| {
            let passed_on = fs::read_to_string(group.join("cgroup.subtree_control")).unwrap_or_default();
            let may_write = |path: &Path| access(path, Access::WRITE_OK).is_ok();
            has_all(&passed_on, controllers) && may_write(group) && may_write(&group.join("cgroup.procs"))
        };
        above.find(fits).map(Path::to_owned).ok_or_else(|| {
            format!(
                "no control group with the controllers {} was handed to this user; `systemd-run --user --scope tfdev \
                 up` starts it in one where systemd runs the session",
                controllers.join(" and ")
            )
        })
    }

    /// The groups to make for a server.
    pub(super) fn groups(&self, name: &str, limits: &Limits) -> Result<Vec<Group>, String> {
        let quota = limits.nano_cpus.map(|cpus| (cpus / (1_000_000_000 / PERIOD)).max(1000));
        let memory = limits.memory_bytes.to_string();
        let parents = self.parents(quota.is_some())?;
        let below = |parent: &Path| {
            if self.is_root { parent.join(ROOTS_PARENT).join(name) } else { parent.join(name) }
        };
        if self.version == Version::One {
            let files = [
                vec![("memory.limit_in_bytes", memory)],
                vec![
                    ("cpu.cfs_period_us", PERIOD.to_string()),
                    ("cpu.cfs_quota_us", quota.unwrap_or_default().to_string()),
                ],
            ];
            let groups = parents.iter().zip(files);
            let groups = groups.map(|(top, files)| Group { path: below(top), files, switch_on: Vec::new() });
            return Ok(groups.collect());
        }
        let mut files = vec![("memory.max", memory)];
        files.extend(quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD}"))));
        let wanted = if quota.is_some() { "+memory +cpu" } else { "+memory" };
        let switch_on = if self.is_root {
            let groups = [parents[0].clone(), parents[0].join(ROOTS_PARENT)];
            groups.map(|group| (group.join("cgroup.subtree_control"), wanted.to_owned())).into()
        } else {
            Vec::new()
        };
        Ok(vec![Group { path: below(&parents[0]), files, switch_on }])
    }
}

impl Group {
    /// Makes the group; names the file at fault if that fails.
    pub(super) fn make(&self) -> Result<(), (PathBuf, io::Error)> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| (path, error)
        };
        let mut attempts = 0;
        loop {
            attempts += 1;
            match self.make_folders() {
                // The parent was empty, and another tfdev removed it.
                Err((_, error)) if error.kind() == io::ErrorKind::NotFound && attempts < ATTEMPTS => {}
                done => break done?,
            }
        }
        for (name, value) in &self.files {
            let path = self.path.join(name);
            fs::write(&path, value).map_err(at(&path))?;
        }
        Ok(())
    }

    fn make_folders(&self) -> Result<(), (PathBuf, io::Error)> {
        for (path, value) in &self.switch_on {
            let group = path.parent().unwrap_or(path);
            fs::create_dir_all(group).map_err(|error| (group.to_owned(), error))?;
            fs::write(path, value).map_err(|error| (path.clone(), error))?;
        }
        fs::create_dir_all(&self.path).map_err(|error| (self.path.clone(), error))
    }
}

/// Where a file system of this kind is mounted, with `option` among its own options (proc(5), mountinfo).
fn mounted(mounts: &str, kind: &str, option: Option<&str>) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let found = after.next()?;
        let options = after.nth(1)?;
        let fits = found == kind && option.is_none_or(|option| options.split(',').any(|one| one == option));
        fits.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn has_all(list: &str, names: &[&str]) -> bool {
    names.iter().all(|name| list.split_whitespace().any(|one| one == *name))
}

/// The group, if this process may make groups in it.
fn writable(group: &Path) -> Result<PathBuf, String> {
    match access(group, Access::WRITE_OK) {
        Ok(()) => Ok(group.to_owned()),
        Err(error) => Err(format!("cannot write to `{}`: {}", group.display(), io::Error::from(error))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn limits(nano_cpus: Option<u64>) -> Limits {
        Limits { memory_bytes: 1 << 30, nano_cpus, storage_bytes: 0, shm_bytes: 0 }
    }

    fn tree(controllers: &str) -> (tempfile::TempDir, String) {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), controllers).unwrap();
        let mounts = format!(
            "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
             31 22 0:26 / {} rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
            root.path().display()
        );
        (root, mounts)
    }

    #[test]
    fn version_1_has_a_tree_for_each_controller_and_is_roots() {
        let root = tempfile::tempdir().unwrap();
        let mount = |(name, options): (&str, &str)| {
            fs::create_dir(root.path().join(name)).unwrap();
            let path = root.path().join(name);
            format!("32 31 0:29 / {} rw,relatime - cgroup cgroup {options}", path.display())
        };
        let mounts =
            [("memory", "rw,memory"), ("cpuset", "rw,cpuset"), ("cpu", "rw,cpu,cpuacct")].map(mount).join("\n");
        let own = "4:memory:/user\n0::/\n";
        let ordinary = Hierarchies::of(&mounts, own, false).unwrap();
        assert!(ordinary.groups("tfdev-1", &limits(None)).unwrap_err().contains("only root"));
        let groups =
            Hierarchies::of(&mounts, own, true).unwrap().groups("tfdev-1", &limits(Some(1_500_000_000))).unwrap();
        for group in &groups {
            group.make().unwrap();
        }
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("memory/tfdev/tfdev-1/memory.limit_in_bytes"), "1073741824");
        assert_eq!(read("cpu/tfdev/tfdev-1/cpu.cfs_period_us"), "100000");
        assert_eq!(read("cpu/tfdev/tfdev-1/cpu.cfs_quota_us"), "150000");
        let memory_alone = Hierarchies::of(&mounts, own, true).unwrap().groups("tfdev-1", &limits(None)).unwrap();
        assert_eq!(memory_alone.len(), 1);
    }

    #[test]
    fn root_makes_its_groups_of_version_2_at_the_top() {
        let (root, mounts) = tree("cpuset cpu io memory pids");
        let hierarchies = Hierarchies::of(&mounts, "0::/user.slice/session-1.scope\n", true).unwrap();
        let groups = hierarchies.groups("tfdev-1", &limits(Some(1_000_000_000))).unwrap();
        groups[0].make().unwrap();
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!((groups.len(), read("tfdev/tfdev-1/memory.max").as_str()), (1, "1073741824"));
        assert_eq!(read("tfdev/tfdev-1/cpu.max"), "100000 100000");
        assert_eq!(read("cgroup.subtree_control"), "+memory +cpu");
        assert_eq!(read("tfdev/cgroup.subtree_control"), "+memory +cpu");
    }

    #[test]
    fn others_make_theirs_in_the_nearest_group_that_was_handed_to_them() {
        let (root, mounts) = tree("cpuset cpu io memory pids");
        let own = "user.slice/user-1000.slice/user@1000.service/app.slice/terminal.scope";
        let mut group = root.path().to_owned();
        for part in own.split('/') {
            group.push(part);
            fs::create_dir(&group).unwrap();
            let passed_on = if part == "terminal.scope" { "" } else { "memory pids" };
            fs::write(group.join("cgroup.subtree_control"), passed_on).unwrap();
            fs::write(group.join("cgroup.procs"), "").unwrap();
        }
        let own = format!("0::/{own}\n");
        let groups = |nano_cpus| Hierarchies::of(&mounts, &own, false).unwrap().groups("tfdev-1", &limits(nano_cpus));
        let app = group.parent().unwrap();
        assert_eq!(groups(None).unwrap()[0].path, app.join("tfdev-1"));
        assert!(groups(Some(1)).unwrap_err().contains("memory and cpu"), "no processor time was handed over");
        fs::write(app.join("cgroup.subtree_control"), "cpu memory").unwrap();
        let made = groups(Some(500_000_000)).unwrap();
        assert_eq!((made.len(), made[0].switch_on.len()), (1, 0));
        assert!(made[0].files.contains(&("cpu.max", "50000 100000".to_owned())));
        if !Account::am_root() {
            fs::set_permissions(app.join("cgroup.procs"), fs::Permissions::from_mode(0o444)).unwrap();
            assert!(groups(Some(1)).unwrap_err().contains("was handed to this user"));
        }
    }

    #[test]
    fn without_both_controllers_there_are_no_limits() {
        let (_root, mounts) = tree("hugetlb");
        assert!(Hierarchies::of(&mounts, "0::/\n", true).unwrap_err().contains("no control groups"));
        assert!(Hierarchies::of("", "", true).is_err());
    }
}

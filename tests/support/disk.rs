//! A small disk, to be filled.

use std::path::PathBuf;
use std::process::Command;

use super::process::{is_root, shell};
use super::skipped::skip;
use super::{finish, start};

/// A file system of its own, which is gone with the test.
pub(crate) struct Disk(pub(crate) PathBuf);

impl Disk {
    /// Mounts one of that size for the ordinary user; `None`, after one line, where that is not allowed.
    pub(crate) fn mount(path: PathBuf, megabytes: u32) -> Option<Self> {
        if !is_root() {
            skip("only root can mount a small disk");
            return None;
        }
        std::fs::create_dir_all(&path).unwrap();
        let options = format!("size={megabytes}m,mode=0755,uid={}", shell("id -u nobody"));
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &options, "tfdev-test"]).arg(&path);
        let outcome = finish(start(mount));
        if !outcome.status.success() {
            skip(&format!("this root cannot mount a small disk: {}", outcome.stderr.trim()));
            return None;
        }
        Some(Self(path))
    }

    /// Megabytes that are taken.
    pub(crate) fn used(&self) -> u32 {
        shell(&format!("df -m --output=used {} | tail -n 1", self.0.display())).trim().parse().unwrap()
    }

    pub(crate) fn resize(&self, megabytes: u32) {
        shell(&format!("mount -o remount,size={megabytes}m {}", self.0.display()));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

//! What the native engine has of a test: folders and processes of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

use sha2::{Digest, Sha256};

use super::TestEnv;
use super::engine::Made;
use super::process::{self, servers};

/// The data folder of the instance `dev`.
#[track_caller]
pub(crate) fn data(env: &TestEnv) -> PathBuf {
    PathBuf::from(env.status()["data_dir"].as_str().unwrap())
}

/// The server's process number, as its pid file has it.
#[track_caller]
pub(crate) fn pid(env: &TestEnv) -> u32 {
    process::server_of(&data(env)).unwrap()
}

/// Holds the running server to another limit on memory than tfdev did, as root may.
pub(crate) fn limit_memory(env: &TestEnv, bytes: u64) {
    let limits = std::fs::read(env.instance_dir().join("native/limits.json")).unwrap();
    let limits: serde_json::Value = serde_json::from_slice(&limits).unwrap();
    let groups = limits["groups"].as_array().unwrap().iter().map(|group| PathBuf::from(group.as_str().unwrap()));
    let mut files = groups.flat_map(|group| ["memory.max", "memory.limit_in_bytes"].map(|file| group.join(file)));
    std::fs::write(files.find(|file| file.exists()).unwrap(), bytes.to_string()).unwrap();
}

/// The folders that servers of this test have or had, whether they are there or not.
fn homes(env: &TestEnv) -> Vec<PathBuf> {
    let below = |folder: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let projects = below(&env.state_dir().join("projects"));
    // A lock stays when its instance goes.
    let locks = projects.iter().flat_map(|project| below(project)).filter(|path| path.extension().is_some());
    locks.flat_map(|lock| homes_of(&lock.with_extension(""))).collect()
}

/// The folders that the server of an instance may have (`src/engine/native/place.rs`).
fn homes_of(instance: &Path) -> Vec<PathBuf> {
    let digest = Sha256::digest(instance.as_os_str().as_encoded_bytes());
    let hash = format!("{:016x}", u64::from_be_bytes(*digest.first_chunk().unwrap()));
    let below = |folder| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut homes = vec![instance.join("native"), Path::new("/var/lib/tfdev").join(&hash)];
    // After a replacement another one's home may have the name.
    homes.extend(
        below("/var/lib/tfdev").filter(|path| path.with_extension("").ends_with(&hash) && path.extension().is_some()),
    );
    homes.extend(below("/dev/shm").filter(|path| path.to_string_lossy().ends_with(&hash)));
    homes
}

/// The running servers of this test.
pub(crate) fn servers_of(env: &TestEnv) -> Vec<u32> {
    homes(env).iter().flat_map(|home| servers(home)).collect()
}

/// What there is of all instances of this test.
pub(crate) fn made(env: &TestEnv) -> Made {
    let data = homes(env).iter().filter(|home| home.join("data").exists()).count();
    Made { servers: servers_of(env).len(), data }
}

/// What is there of servers of this test, running or not, whole or not.
pub(crate) fn leftovers(env: &TestEnv) -> Vec<String> {
    let homes = homes(env).into_iter().filter(|home| home.exists()).map(|home| home.display().to_string());
    homes.chain(servers_of(env).into_iter().map(|pid| format!("process {pid}"))).collect()
}

/// Removes all servers of a test and their data. It says nothing of failures: a test that failed already has its own.
pub(crate) fn remove_all(env: &TestEnv) {
    for folder in env.project_folders() {
        let _ = env.command_in(&folder, &["destroy", "--all", "--yes"]).output();
    }
    for home in homes(env) {
        for server in servers(&home) {
            let _ = Command::new("kill").args(["-KILL", &server.to_string()]).output();
        }
        let _ = std::fs::remove_dir_all(home);
    }
}

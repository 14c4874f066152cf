//! Processes and users of this machine.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The ordinary user that tests of root step down to; every system has it.
pub(crate) const ORDINARY: &str = "nobody";

/// Runs a shell script and gives what it printed; it must succeed.
#[track_caller]
pub(crate) fn shell(script: &str) -> String {
    let output = Command::new("sh").args(["-c", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Whether root runs the tests.
pub(crate) fn is_root() -> bool {
    std::fs::metadata("/proc/self")
        .map_or_else(|_| shell("id -u") == "0", |own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Sends `signal`, such as `KILL`, to a process.
#[track_caller]
pub(crate) fn kill(pid: u32, signal: &str) {
    shell(&format!("kill -{signal} {pid}"));
}

/// The number of the server whose data folder is `data`, as its pid file has it.
pub(crate) fn server_of(data: &Path) -> Option<u32> {
    std::fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()
}

/// The servers whose data folder is `folder` or below it, as process numbers.
pub(crate) fn servers(folder: &Path) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_server = |pid: &u32| {
        let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        arguments.len() > 2 && arguments[1] == "-D" && Path::new(arguments[2].as_ref()).starts_with(folder)
    };
    let found: Vec<_> = numbers.filter(is_server).collect();
    // A process that a server has just made for a session still has the server's command line.
    found.iter().copied().filter(|pid| parent_of(*pid).is_none_or(|parent| !found.contains(&parent))).collect()
}

/// The process that made `pid`.
fn parent_of(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

/// The folder of PostgreSQL 15's programs on this machine, if they are in one of the places that tests know.
pub(crate) fn bin_dir() -> Option<PathBuf> {
    let folders = ["/usr/lib/postgresql/15/bin", "/usr/pgsql-15/bin", "/opt/homebrew/opt/postgresql@15/bin"];
    folders.iter().map(PathBuf::from).find(|folder| folder.join("initdb").exists())
}

/// The numbers of the ordinary user and of the group that is first among its groups.
fn ordinary() -> (u32, u32) {
    static NUMBERS: std::sync::OnceLock<(u32, u32)> = std::sync::OnceLock::new();
    let number = |what: &str| shell(&format!("id {what} {ORDINARY}")).parse().unwrap();
    *NUMBERS.get_or_init(|| (number("-u"), number("-g")))
}

/// `command` as the ordinary user: its program, arguments, folder and variables, and no others.
pub(crate) fn as_ordinary_user(command: &Command) -> Command {
    // By its path: the standard library would look for it in the `PATH` that the command is to have.
    let mut stepped_down = Command::new("/usr/bin/setpriv");
    let (user, group) = ordinary();
    stepped_down.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    stepped_down.arg(command.get_program()).args(command.get_args()).env_clear();
    if let Some(folder) = command.get_current_dir() {
        stepped_down.current_dir(folder);
    }
    stepped_down.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    stepped_down
}

/// Gives `path` to the ordinary user.
pub(crate) fn give(path: &Path) {
    let (user, group) = ordinary();
    std::os::unix::fs::chown(path, Some(user), Some(group)).unwrap();
}

//! The server's process: whether it runs, known by its pid file and by what the process itself shows.
//!
//! What must hold: a number alone proves nothing. After a crash or a reboot it may be another program's, or that of a
//! dead process that nobody has reaped; signals are sent only to a process that was just proven to be this data folder's
//! server.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};

use crate::error::{Context, Result};

/// How far a process's age may be off where nothing better than the age is known: `ps` counts whole seconds.
const AGE_TOLERANCE: Duration = Duration::from_secs(3);

/// What the server writes into `postmaster.pid` (`src/include/utils/pidfile.h`), as far as it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PidFile {
    /// The server's process.
    pub(super) pid: i32,
    /// When it started, in seconds since 1970.
    start_time: u64,
    /// The port on which it listens or will.
    pub(super) port: Option<u16>,
    /// `starting`, `ready` and so on: written once it listens.
    pub(super) status: Option<String>,
}

/// What the process of a pid file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Process {
    /// The server of this data folder; `stopped` by SIGSTOP or a debugger.
    Server { stopped: bool },
    /// A server that is ending: it has let go of its memory and folder, so nothing tells whose it is.
    Ending,
    /// There is no such process, or it is dead and not yet reaped.
    Gone,
    /// Another program got the number.
    Another(String),
}

impl PidFile {
    /// Reads the pid file of a data folder; `None` if there is none or its first line is not written yet.
    pub(super) fn read(data: &Path) -> Option<Self> {
        Self::parse(&fs::read_to_string(data.join("postmaster.pid")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        let pid = lines.next()?.parse().ok().filter(|pid: &i32| *pid > 0)?;
        let start_time = lines.nth(1).and_then(|line| line.parse().ok()).unwrap_or_default();
        let port = lines.next().and_then(|line| line.parse().ok());
        let status = lines.nth(3).filter(|line| !line.is_empty()).map(str::to_owned);
        Some(Self { pid, start_time, port, status })
    }

    /// Looks what its process is.
    pub(super) fn process(&self, data: &Path) -> Process {
        if Path::new("/proc/self/stat").exists() { self.look_in_proc(data) } else { self.ask_ps() }
    }

    fn look_in_proc(&self, data: &Path) -> Process {
        let folder = Path::new("/proc").join(self.pid.to_string());
        let Ok(stat) = fs::read_to_string(folder.join("stat")) else { return Process::Gone };
        let Some((name, rest)) = stat.split_once('(').and_then(|(_, rest)| rest.rsplit_once(") ")) else {
            return Process::Gone;
        };
        let state = rest.chars().next().unwrap_or('X');
        if matches!(state, 'Z' | 'X') {
            return Process::Gone;
        }
        // The server changes into its data folder, wherever that is moved; what we may not look at is another user's.
        let is_here = fs::read_link(folder.join("cwd")).ok().is_some_and(|cwd| is_same(&cwd, data));
        let command = fs::read(folder.join("cmdline")).unwrap_or_default();
        let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
        let program = String::from_utf8_lossy(program);
        let is_server = program.rsplit('/').next().is_some_and(|program| ["postgres", "postmaster"].contains(&program));
        if is_here && is_server {
            return Process::Server { stopped: matches!(state, 'T' | 't') };
        }
        if command.is_empty() && name == "postgres" {
            return Process::Ending;
        }
        Process::Another(name.to_owned())
    }

    /// Where there is no `/proc`: by the program's name and age.
    fn ask_ps(&self) -> Process {
        let output = Command::new("ps").args(["-o", "stat=,etime=,comm=", "-p", &self.pid.to_string()]).output();
        let Ok(output) = output else { return Process::Gone };
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut words = text.split_whitespace();
        let (Some(state), Some(age)) = (words.next(), words.next().and_then(elapsed)) else { return Process::Gone };
        let program = words.collect::<Vec<_>>().join(" ");
        if state.starts_with('Z') {
            return Process::Gone;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let expected = now.saturating_sub(Duration::from_secs(self.start_time));
        let name = program.rsplit('/').next().unwrap_or_default();
        if ["postgres", "postmaster"].contains(&name) && age.abs_diff(expected) <= AGE_TOLERANCE {
            return Process::Server { stopped: state.starts_with('T') };
        }
        Process::Another(name.to_owned())
    }

    /// Sends a signal to the server, which the caller has just seen to be one.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(()) };
        match kill_process(pid, signal) {
            Err(error) if error == rustix::io::Errno::SRCH => Ok(()),
            result => result.or_failed(|| format!("cannot send a signal to the server, process {}", self.pid)),
        }
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    one == other || other.canonicalize().is_ok_and(|other| other == one)
}

/// Reads `[[days-]hours:]minutes:seconds`.
fn elapsed(text: &str) -> Option<Duration> {
    let (days, rest) = text.split_once('-').unwrap_or(("0", text));
    let mut seconds = 0;
    for part in rest.split(':') {
        seconds = seconds * 60 + part.parse::<u64>().ok()?;
    }
    Some(Duration::from_secs(days.parse::<u64>().ok()? * 86_400 + seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(pid: u32, start_time: u64) -> PidFile {
        PidFile { pid: pid.cast_signed(), start_time, port: None, status: None }
    }

    #[test]
    fn a_pid_file_is_read_as_far_as_it_is_written() {
        let whole = "4711\n/data\n1700000000\n5432\n/run\n127.0.0.1\n  123  456\nready   \n";
        let read = PidFile::parse(whole).unwrap();
        assert_eq!((read.pid, read.start_time, read.port), (4711, 1_700_000_000, Some(5432)));
        assert_eq!(read.status.as_deref(), Some("ready"));
        let part = PidFile::parse("4711\n/data\n1700000000\n5432\n/run\n").unwrap();
        assert_eq!((part.port, part.status), (Some(5432), None));
        for broken in ["", "\n", "-3\n", "x\n"] {
            assert_eq!(PidFile::parse(broken), None, "{broken:?}");
        }
    }

    #[test]
    fn another_program_with_the_number_is_no_server() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let own = file(std::process::id(), now);
        assert!(matches!(own.process(Path::new("/")), Process::Another(_)));
        assert!(matches!(own.ask_ps(), Process::Another(_)));
        // The highest number that Linux ever gives is 4,194,304.
        assert_eq!(file(4_194_305, now).process(Path::new("/")), Process::Gone);
        assert_eq!(file(4_194_305, now).ask_ps(), Process::Gone);
    }

    #[test]
    fn a_dead_process_that_nobody_reaped_is_gone() {
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while file(child.id(), 0).process(Path::new("/")) != Process::Gone {
            assert!(std::time::Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(file(child.id(), 0).ask_ps(), Process::Gone);
        child.wait().unwrap();
    }

    #[test]
    fn ages_are_read_as_ps_writes_them() {
        assert_eq!(elapsed("00:07"), Some(Duration::from_secs(7)));
        assert_eq!(elapsed("01:02:03"), Some(Duration::from_secs(3723)));
        assert_eq!(elapsed("2-00:00:01"), Some(Duration::from_secs(172_801)));
        assert_eq!(elapsed("x"), None);
    }

    #[tokio::test]
    async fn a_real_server_is_recognised_by_its_folder_and_by_its_age() {
        let Some(mut cluster) = crate::pg::test_server::Cluster::initialise(&[]) else { return };
        cluster.start(&[]).await;
        let data = cluster.data();
        let found = PidFile::read(&data).unwrap();
        assert_eq!(found.process(&data), Process::Server { stopped: false });
        assert_eq!(found.ask_ps(), Process::Server { stopped: false });
        assert_eq!(found.port, Some(cluster.login.port));
        assert!(matches!(found.process(Path::new("/tmp")), Process::Another(_)), "another data folder's server");
        let older = PidFile { start_time: found.start_time - 3600, ..found };
        assert!(matches!(older.ask_ps(), Process::Another(_)), "a number that was given again");
    }
}

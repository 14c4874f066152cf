//! The server's log: bounded while the server runs, and followed over it.

use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{Native, kill, shell};
use crate::support::{Session, one, until};

/// What one statement writes into the log.
const STATEMENT: usize = 1_000_000;

/// The size at which a log is moved on, and how far one may be over it: a piece and a line.
const LARGE: u64 = (10 << 20) + (2 << 20);

fn folder(native: &Native) -> PathBuf {
    native.env.instance_dir().join("native/log")
}

fn sizes(native: &Native) -> Vec<u64> {
    std::fs::read_dir(folder(native)).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect()
}

/// Has the server log a line that ends with this number.
fn log(session: &mut Session, number: usize) {
    session.run(&format!("SELECT length('{} marker-{number:03}')", "x".repeat(STATEMENT)));
}

/// The numbers of the lines that a text has.
fn markers(text: &str) -> Vec<usize> {
    text.split("marker-").skip(1).map(|rest| rest[..3].parse().unwrap()).collect()
}

/// `logs -f`, which is ended with the test.
struct Follower {
    child: Child,
    path: PathBuf,
}

impl Follower {
    fn start(native: &Native) -> Self {
        let path = native.env.path("followed");
        let mut command: Command = native.command(&["logs", "-f", "-n", "0"]);
        command.stdin(Stdio::null()).stdout(File::create(&path).unwrap());
        Self { child: command.spawn().unwrap(), path }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.path).unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_log_stays_small_while_the_server_runs_and_those_who_follow_it_miss_nothing() {
    for native in Native::each() {
        native.up();
        let follower = Follower::start(&native);
        let mut session = Session::open(&native.url());
        // It may begin before or after the first of these lines.
        until("a follower", || {
            session.run("SELECT 'begun'");
            follower.text().contains("begun").then_some(())
        });
        // More than what four files hold.
        for number in 0..48 {
            log(&mut session, number);
            if number % 4 == 3 {
                until("the line", || markers(&follower.text()).contains(&number).then_some(()));
            }
        }
        assert_eq!(markers(&follower.text()), (0..48).collect::<Vec<_>>());
        let sizes = sizes(&native);
        assert_eq!(sizes.len(), 4);
        assert!(sizes.iter().all(|size| *size <= LARGE), "{sizes:?}");
        let kept = markers(&native.run(&["logs"]).ok().stdout);
        assert!(kept.len() > 20 && kept.ends_with(&[46, 47]) && !kept.contains(&0), "{kept:?}");
        assert_eq!(native.run(&["logs", "-n", "14"]).ok().stdout.lines().count(), 14, "from two files");
        // The server's user has them, and nobody else.
        let modes = shell(&format!("stat -c '%a %U' {0} {0}/*", folder(&native).display()));
        let user = shell(&format!("ps -o user= -p {}", native.pid()));
        assert!(modes.lines().all(|line| line.ends_with(&format!("00 {user}"))), "{modes}");
    }
}

/// The process that writes the log, known by the folder that it has open.
fn writer(native: &Native) -> Option<u32> {
    let folder = folder(native).canonicalize().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.find(|pid| std::fs::read_link(format!("/proc/{pid}/fd/1")).is_ok_and(|open| open == folder))
}

#[test]
fn the_process_that_writes_the_log_is_nobodys_child_and_goes_with_the_server() {
    for native in Native::each() {
        native.up();
        let pid = writer(&native).unwrap();
        let user = shell(&format!("ps -o user= -p {}", native.pid()));
        assert_eq!(shell(&format!("ps -o user= -p {pid}")), user, "never root's");
        assert_eq!(shell(&format!("ps -o sid= -p {pid}")), pid.to_string());
        assert_eq!(shell(&format!("ps -o tty= -p {pid}")), "?");
        native.run(&["down"]).ok();
        until("its end", || writer(&native).is_none().then_some(()));
        native.up();
        // A crash: its last processes go, and then this one.
        assert!(writer(&native).is_some());
        kill(native.pid(), "KILL");
        until("its end", || writer(&native).is_none().then_some(()));
    }
}

#[test]
fn a_server_goes_on_without_the_process_that_writes_its_log() {
    let Some(native) = Native::new() else { return };
    native.up();
    kill(writer(&native).unwrap(), "KILL");
    until("its end", || writer(&native).is_none().then_some(()));
    for _ in 0..20 {
        assert_eq!(native.tasks(), "50");
    }
    native.run(&["down"]).ok();
    native.up();
    assert_eq!(one(&native.url(), "SELECT 'written-again'"), "written-again");
    until("the line", || native.run(&["logs"]).ok().stdout.contains("written-again").then_some(()));
}

#[test]
fn a_log_that_cannot_be_written_to_is_told() {
    let Some(native) = Native::ordinary() else { return };
    native.up();
    native.run(&["down"]).ok();
    let log = folder(&native).join("server.log");
    std::fs::remove_file(&log).unwrap();
    std::fs::create_dir(&log).unwrap();
    native.run(&["up"]).exits(1).says("cannot open the server's log");
    std::fs::remove_dir(&log).unwrap();
    native.up();
}

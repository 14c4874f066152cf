//! A server outlives the terminal in which it was started.

use std::fs::File;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use rustix::io::{FdFlags, fcntl_setfd};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use super::{Native, shell, skip};
use crate::support::{PATIENCE, until};

/// The signal that a session gets whose terminal is closed.
const HANGUP: i32 = 1;

#[test]
fn a_server_survives_that_its_terminal_is_closed() {
    if Command::new("setsid").args(["--ctty", "true"]).stdin(Stdio::null()).output().is_err() {
        return skip("there is no `setsid`");
    }
    for native in Native::each() {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        // Only this process is to hold its other side, the window.
        fcntl_setfd(&terminal, FdFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let path = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let end = File::options().read(true).write(true).open(path).unwrap();
        let up = native.command(&["up", "--dataset", "small"]);
        let words: Vec<_> = std::iter::once(up.get_program()).chain(up.get_args()).collect();
        // A shell that has this terminal, as in a window: it is still there when the window is closed.
        let mut shell_in_terminal = Command::new("setsid");
        shell_in_terminal
            .args(["--ctty", "--wait", "sh", "-c", "\"$@\"; echo has-ended with $?; exec sleep 60", "sh"])
            .args(words);
        shell_in_terminal.current_dir(&native.env.project).env_clear();
        shell_in_terminal.envs(up.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "dumb");
        shell_in_terminal.stdin(end.try_clone().unwrap()).stdout(end.try_clone().unwrap()).stderr(end);
        let mut child = shell_in_terminal.spawn().unwrap();
        drop(shell_in_terminal);

        let mut reader = File::from(terminal);
        let mut text = String::new();
        let deadline = std::time::Instant::now() + PATIENCE;
        while !text.contains("has-ended") {
            let mut buffer = [0; 4096];
            let count = reader.read(&mut buffer).unwrap();
            text += &String::from_utf8_lossy(&buffer[..count]);
            assert!(std::time::Instant::now() < deadline, "{text}");
        }
        assert!(text.contains("has-ended with 0"), "{text}");
        let pid = native.pid();
        drop(reader);
        let status = child.wait().unwrap();
        assert!(status.signal() == Some(HANGUP) || status.code() == Some(128 + HANGUP), "the shell's end: {status:?}");

        assert_eq!(native.pid(), pid);
        assert_eq!(native.status()["state"], "running");
        let url = native.url();
        shell(&format!("pg_isready -d '{url}'"));
        assert_eq!(shell(&format!("psql '{url}' -Atc 'SELECT count(*) FROM tasks'")), "50");
        // Its log is written on as well.
        shell(&format!("psql '{url}' -Atc \"SELECT 'after-the-hangup'\""));
        until("the line", || native.run(&["logs"]).ok().stdout.contains("after-the-hangup").then_some(()));
    }
}

#![cfg(unix)]

use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use bollard::models::ContainerCreateBody;
use bollard::query_parameters::{CreateContainerOptionsBuilder, RemoveContainerOptionsBuilder};

use super::*;
use crate::engine::docker::errors::is_not_found;
use crate::engine::docker::testing::{docker, pass_over, skip, variable};
use crate::engine::program::Input;
use crate::error::ErrorKind;

/// Images with a shell, in the order in which they are tried.
const IMAGES: [&str; 2] = ["tfdev/postgres:15-offline", "postgres:15-alpine"];

/// A container that sleeps, until this is dropped.
struct Sleeper {
    docker: Docker,
    name: String,
}

impl Sleeper {
    async fn start() -> Option<Self> {
        let docker = docker().await?.docker;
        let mut found = None;
        for image in IMAGES {
            match docker.inspect_image(image).await {
                Ok(_) => found = found.or(Some(image)),
                Err(failure) => assert!(is_not_found(&failure), "{failure}"),
            }
        }
        let Some(image) = found else {
            skip(&format!("none of the images {IMAGES:?} is there"));
            return None;
        };
        let name = format!("tfdev-test-exec-{}", uuid::Uuid::new_v4());
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec!["sleep".to_owned(), "120".to_owned()]),
            cmd: Some(Vec::new()),
            labels: Some([("dev.tfdev.test".to_owned(), "1".to_owned())].into()),
            ..ContainerCreateBody::default()
        };
        let options = CreateContainerOptionsBuilder::new().name(&name).build();
        docker.create_container(Some(options), body).await.unwrap();
        docker.start_container(&name, None).await.unwrap();
        Some(Self { docker, name })
    }

    async fn run(&self, argv: &[&str], stdin: Option<&[u8]>) -> Result<ExecOutput> {
        let running = run(&self.docker, &self.name, argv, stdin);
        tokio::time::timeout(Duration::from_mins(1), running).await.expect("the program ends")
    }
}

impl Drop for Sleeper {
    /// Removes the container, also when the test has failed.
    fn drop(&mut self) {
        let name = self.name.clone();
        // A thread, a runtime and a connection of its own, because those of the test stand still until this is done.
        let remove = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
                docker().await.unwrap().docker.remove_container(&name, Some(options)).await.unwrap();
            });
        };
        let removed = std::thread::spawn(remove).join();
        assert!(std::thread::panicking() || removed.is_ok(), "{removed:?}");
    }
}

#[tokio::test]
async fn output_and_exit_code_are_the_programs() {
    let Some(sleeper) = Sleeper::start().await else { return };
    let output = sleeper.run(&["sh", "-c", "echo out; echo err >&2; exit 3"], None).await.unwrap();
    assert_eq!(output, ExecOutput { exit_code: 3, stdout: b"out\n".to_vec(), stderr: b"err\n".to_vec() });

    // Bytes that look like the headers of the daemon's own framing pass unchanged.
    let output = sleeper.run(&["printf", "\\001\\000\\002"], None).await.unwrap();
    assert_eq!(output.stdout, [1, 0, 2]);
}

#[tokio::test]
async fn input_reaches_the_program_with_its_end() {
    let Some(sleeper) = Sleeper::start().await else { return };
    // More than any buffer on the way holds, so feeding and collecting must go on at the same time.
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).take(8 << 20).collect();
    let output = sleeper.run(&["cat"], Some(&input)).await.unwrap();
    assert_eq!(output.exit_code, 0);
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());

    let output = sleeper.run(&["cat"], Some(b"")).await.unwrap();
    assert_eq!((output.exit_code, output.stdout.len()), (0, 0));

    // A program that leaves most of its input unread.
    let output = sleeper.run(&["head", "-c", "4"], Some(&input)).await.unwrap();
    assert_eq!((output.exit_code, output.stdout), (0, input[..4].to_vec()));
}

#[tokio::test]
async fn what_cannot_be_run_is_told() {
    let Some(sleeper) = Sleeper::start().await else { return };
    match sleeper.run(&["no-such-program"], None).await {
        // Docker up to 27 starts the exec and reports by exit code, later ones refuse to start it.
        Ok(output) => {
            assert!(matches!(output.exit_code, 126 | 127), "{}", output.exit_code);
            assert!(String::from_utf8_lossy(&output.stderr).contains("no-such-program"), "{output:?}");
        }
        Err(error) => assert!(error.causes().join(" ").contains("no-such-program"), "{error}"),
    }
    sleeper.docker.kill_container(&sleeper.name, None).await.unwrap();
    let error = sleeper.run(&["true"], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error.to_string(), format!("cannot run `true` in container `{}`", sleeper.name));
    assert!(error.causes()[0].contains("not running"), "{:?}", error.causes());

    let (docker, name) = (sleeper.docker.clone(), sleeper.name.clone());
    drop(sleeper);
    let error = run(&docker, &name, &["true"], None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// The session that the tests below run in a process of its own, because it takes that process's input and output.
///
/// `TFDEV_TEST_SESSION` holds the container, whether there is a terminal, and the program, one a line.
#[tokio::test]
async fn session() {
    let Some(orders) = variable("TFDEV_TEST_SESSION") else { return };
    let Some(connection) = docker().await else { return };
    let orders: Vec<&str> = orders.lines().collect();
    let (container, tty, argv) = (orders[0], orders[1] == "tty", &orders[2..]);
    let code = interactive(&connection.docker, container, argv, &[("GREETING", "hello")], tty).await.unwrap();
    #[expect(clippy::print_stderr, reason = "the other process reads it")]
    {
        eprintln!("exit code {code}");
    }
}

const SESSION: &str = "engine::docker::exec::tests::session";

fn session_orders(sleeper: &Sleeper, tty: &str, argv: &[&str]) -> String {
    [&[sleeper.name.as_str(), tty], argv].concat().join("\n")
}

#[tokio::test]
async fn without_a_terminal_a_session_is_a_pipe() {
    let Some(sleeper) = Sleeper::start().await else { return };
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", SESSION, "--nocapture"])
        .env("TFDEV_TEST_SESSION", session_orders(&sleeper, "pipe", &["sh", "-c", "cat; echo $GREETING >&2; exit 5"]))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"SELECT 1;\n").unwrap();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("SELECT 1;\n"), "{stdout}");
    assert!(stderr.contains("hello\n") && stderr.contains("exit code 5"), "{stderr}");
}

/// A process in a terminal of its own, made by the program `script`.
struct Terminal {
    child: std::process::Child,
    input: std::process::ChildStdin,
    output: mpsc::Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn start(command: &str, orders: &str) -> Self {
        let mut child = Command::new("script")
            .args(["--quiet", "--flush", "--return", "--command", command, "/dev/null"])
            .env("TFDEV_TEST_SESSION", orders)
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, output) = mpsc::channel();
        let mut stdout = child.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = stdout.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { input: child.stdin.take().unwrap(), child, output, seen: String::new() }
    }

    fn type_in(&mut self, text: &str) {
        self.input.write_all(text.as_bytes()).unwrap();
        self.input.flush().unwrap();
    }

    /// Waits for `text` and forgets all up to its end. With `again`, types that in until then.
    fn expect(&mut self, text: &str, again: Option<&str>) -> String {
        let started = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                let rest = self.seen.split_off(at + text.len());
                return std::mem::replace(&mut self.seen, rest);
            }
            assert!(started.elapsed() < Duration::from_secs(30), "no `{text}` in: {}", self.seen);
            if let Ok(bytes) = self.output.recv_timeout(Duration::from_millis(200)) {
                self.seen.push_str(&String::from_utf8_lossy(&bytes));
            } else if let Some(again) = again {
                self.type_in(again);
            }
        }
    }
}

#[tokio::test]
async fn a_terminal_session_has_our_size_and_gives_the_terminal_back() {
    if Command::new("script").arg("--version").output().is_err() {
        return pass_over("there is no `script` to make a terminal with");
    }
    let Some(sleeper) = Sleeper::start().await else { return };
    // Tells its size, then does what it is told, line by line. Alpine's image has `stty`, the offline image has bash.
    let program = "size() { echo size=$(stty size 2>/dev/null || bash -c 'shopt -s checkwinsize; /bin/true; echo $LINES $COLUMNS'). ; }; \
                   test -t 0 && echo is-a-terminal; while read line; do $line; done";
    let orders = session_orders(&sleeper, "tty", &["sh", "-c", program]);
    let folder = tempfile::tempdir().unwrap();
    let tty_file = folder.path().join("tty");
    let program = std::env::current_exe().unwrap();
    let command = format!(
        "stty rows 33 cols 77; tty >{}; {} --exact {SESSION} --nocapture; stty -a",
        tty_file.display(),
        program.display()
    );
    tokio::task::spawn_blocking(move || {
        let mut terminal = Terminal::start(&command, &orders);
        terminal.expect("is-a-terminal", None);
        terminal.expect("size=33 77.", Some("size\n"));

        let tty = std::fs::read_to_string(&tty_file).unwrap();
        let resized = Command::new("stty").args(["-F", tty.trim(), "rows", "44", "cols", "88"]).status().unwrap();
        assert!(resized.success());
        terminal.expect("size=44 88.", Some("size\n"));

        // Ctrl-C is a key for the program in the container and does not end the session: the shell there dies of it.
        terminal.type_in("\u{3}");
        terminal.expect("exit code 130", None);
        let after = terminal.expect("echoke", None);
        for setting in ["icanon", "isig", "echo", "opost"] {
            assert!(after.split_whitespace().any(|word| word == setting), "{setting} in: {after}");
        }
        assert!(terminal.child.wait().unwrap().success());
    })
    .await
    .unwrap();
}

/// Waits until the container has no process whose arguments hold `words`.
async fn gone(sleeper: &Sleeper, words: &str) {
    let started = Instant::now();
    // The brackets keep the search from finding itself.
    let script = format!("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[{}]{}'", &words[..1], &words[1..]);
    while sleeper.run(&["sh", "-c", &script], None).await.unwrap().stdout != b"0\n" {
        assert!(started.elapsed() < Duration::from_secs(20), "`{words}` still runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_streamed_program_gets_a_file_it_can_seek_in_and_which_goes_with_it() {
    let Some(sleeper) = Sleeper::start().await else { return };
    let stale = "/var/tmp/tfdev-file-1-12345";
    let leave = format!("touch {stale} && chown postgres {stale}");
    sleeper.run(&["sh", "-c", &leave], None).await.unwrap();
    let bytes: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let command = ["sh", "-c", "tail -c 4 \"$1\"; cat \"$1\"; echo done >&2; exit 3", "sh"];
    let length = Input::File(bytes.len() as u64);
    let mut program = stream(&sleeper.docker, &sleeper.name, &command, length).await.unwrap();
    program.write(&bytes[..70_000]).await.unwrap();
    program.write(&bytes[70_000..]).await.unwrap();
    let mut output = Vec::new();
    while let Some(piece) = program.read().await.unwrap() {
        output.extend_from_slice(&piece);
    }
    assert!(output[..4] == bytes[bytes.len() - 4..] && output[4..] == bytes, "{} bytes", output.len());
    let ended = program.finish().await.unwrap();
    assert_eq!((ended.exit_code, ended.stderr), (3, b"done\n".to_vec()));
    // Neither its own file nor that of a shell that is gone.
    let left = sleeper.run(&["ls", "/var/tmp"], None).await.unwrap();
    assert_eq!(left.stdout, b"");
}

#[tokio::test]
async fn a_streamed_program_ends_when_nobody_is_interested() {
    let Some(sleeper) = Sleeper::start().await else { return };
    // One that writes without end, and one that is silent.
    for (number, script) in ["while :; do echo and on; done", "echo begun; sleep 4321"].into_iter().enumerate() {
        let marker = format!("marker{number}");
        let command = ["sh", "-c", script, &marker];
        let mut program = stream(&sleeper.docker, &sleeper.name, &command, Input::None).await.unwrap();
        assert!(program.read().await.unwrap().is_some());
        drop(program);
        gone(&sleeper, &marker).await;
    }
    // One whose file never comes.
    let mut program = stream(&sleeper.docker, &sleeper.name, &["true"], Input::File(100)).await.unwrap();
    program.write(b"not all").await.unwrap();
    files(&sleeper, |files| files > 0).await;
    drop(program);
    files(&sleeper, |files| files == 0).await;
}

/// Waits until the number of files for programs is as it should be.
async fn files(sleeper: &Sleeper, as_wanted: impl Fn(usize) -> bool) {
    let started = Instant::now();
    loop {
        let listing = sleeper.run(&["ls", "/var/tmp"], None).await.unwrap().stdout;
        let count = String::from_utf8_lossy(&listing).lines().count();
        if as_wanted(count) {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{count} files");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

//! Running the program and looking at what it left.

use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No command of a test takes longer than this; one that does is stuck.
const DEADLINE: Duration = Duration::from_mins(2);

/// A program that was started.
pub(crate) struct Running {
    pub(crate) child: Child,
    what: String,
    begin: Instant,
    stdout: JoinHandle<String>,
    stderr: JoinHandle<String>,
}

/// What a program left.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

/// Starts `command`, with its output captured and no input.
pub(crate) fn start(mut command: Command) -> Running {
    let what = format!("{command:?}");
    let begin = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot run {what}: {error}"));
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    Running { child, what, begin, stdout, stderr }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        stream.unwrap().read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Waits for a program to end, and kills it and fails if it is stuck.
pub(crate) fn finish(mut running: Running) -> Outcome {
    let status = loop {
        if let Some(status) = running.child.try_wait().unwrap() {
            break status;
        }
        if running.begin.elapsed() > DEADLINE {
            running.child.kill().unwrap();
            running.child.wait().unwrap();
            panic!("{} was stuck: {}", running.what, running.stderr.join().unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Outcome {
        status,
        stdout: running.stdout.join().unwrap(),
        stderr: running.stderr.join().unwrap(),
        elapsed: running.begin.elapsed(),
    }
}

impl Outcome {
    /// Fails, with what the program wrote, unless it ended with `code`.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails unless the program succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    /// Fails unless standard error holds `words`.
    #[track_caller]
    pub(crate) fn says(self, words: &str) -> Self {
        assert!(self.stderr.contains(words), "`{words}` is missing in: {}", self.stderr);
        self
    }

    /// The one JSON document on standard output.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not one JSON document ({error}): {}\n{}", self.stdout, self.stderr))
    }

    /// The one JSON object on standard error, under `error`; fails unless it has the four keys and nothing went to
    /// standard output.
    #[track_caller]
    pub(crate) fn json_error(&self) -> Value {
        assert_eq!(self.stdout, "", "an error leaves standard output empty");
        let mut document: Value = serde_json::from_str(&self.stderr)
            .unwrap_or_else(|error| panic!("not one JSON object ({error}): {}", self.stderr));
        assert_eq!(keys(&document), ["error"]);
        let error = document["error"].take();
        assert_eq!(keys(&error), ["causes", "hints", "kind", "message"]);
        assert!(error["kind"].is_string() && error["message"].is_string(), "{error}");
        assert!(error["causes"].is_array() && error["hints"].is_array(), "{error}");
        error
    }
}

fn keys(object: &Value) -> Vec<String> {
    let mut keys: Vec<_> = object.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys
}

//! HTTP as it goes over the wire, so that a test says exactly what a client sends.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::support::process::kill;
use crate::support::{PATIENCE, TestEnv, until};

/// A `tfdev serve` of a test.
pub(super) struct Served {
    pub(super) child: Child,
    /// What it listens on.
    pub(super) address: String,
}

impl Served {
    /// Starts one on a free port and waits until it listens.
    #[track_caller]
    pub(super) fn start(env: &TestEnv) -> Self {
        Self::start_with(env, &[])
    }

    #[track_caller]
    pub(super) fn start_with(env: &TestEnv, arguments: &[&str]) -> Self {
        let all = [&["serve", "--json", "--listen", "127.0.0.1:0"], arguments].concat();
        let mut child = env.command(&all).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let told: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let url = told["url"].as_str().unwrap();
        assert_eq!(told["integresql_base_url"], format!("{url}/api"));
        Self { address: url.strip_prefix("http://").unwrap().to_owned(), child }
    }

    /// Sends `signal` and waits for the end.
    pub(super) fn end_by(mut self, signal: &str) -> ExitStatus {
        kill(self.child.id(), signal);
        until("the service to end", || self.child.try_wait().unwrap())
    }

    /// A call with a JSON body, or none if `body` is empty.
    #[track_caller]
    pub(super) fn call(&self, method: &str, path: &str, body: &str) -> Reply {
        self.call_with(method, path, &[("Content-Type", "application/json")], body)
    }

    #[track_caller]
    pub(super) fn call_with(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        self.begin(method, path, headers, body).reply()
    }

    #[track_caller]
    pub(super) fn get(&self, path: &str) -> Reply {
        self.call("GET", path, "")
    }

    /// The value of a metric, whole with its labels.
    #[track_caller]
    pub(super) fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").is(200).body;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Sends a call, and does not wait for the answer.
    pub(super) fn begin(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Call {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let has_host = headers.iter().any(|(name, _)| *name == "Host");
        let host = if has_host { String::new() } else { format!("Host: {}\r\n", self.address) };
        let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<Vec<_>>().concat();
        let head = format!("{method} {path} HTTP/1.1\r\n{host}{headers}Connection: close\r\n");
        write!(stream, "{head}Content-Length: {}\r\n\r\n", body.len()).unwrap();
        // A service that refuses what is too long need not read it all.
        drop(stream.write_all(body.as_bytes()));
        Call(stream)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }
}

/// A call that was sent.
pub(super) struct Call(TcpStream);

impl Call {
    /// Fails if there is an answer already.
    #[track_caller]
    pub(super) fn is_waiting(&self) {
        self.0.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let peeked = self.0.peek(&mut [0]);
        assert!(peeked.is_err(), "there is an answer: {peeked:?}");
    }

    /// Waits for the answer.
    #[track_caller]
    pub(super) fn reply(mut self) -> Reply {
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut bytes = Vec::new();
        let read = self.0.read_to_end(&mut bytes);
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {read:?} {text}"));
        let mut lines = head.lines();
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let headers = lines.filter_map(|line| line.split_once(": "));
        let headers = headers.map(|(name, value)| (name.to_lowercase(), value.to_owned())).collect();
        Reply { status, headers, body: body.to_owned() }
    }
}

/// An answer.
#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Reply {
    /// Fails unless the status is `wanted`, and unless an error says something in IntegreSQL's form.
    #[track_caller]
    pub(super) fn is(self, wanted: u16) -> Self {
        assert_eq!(self.status, wanted, "{self:?}");
        if wanted >= 400 {
            let body = self.json();
            assert_eq!(body.as_object().unwrap().len(), 1, "{body}");
            assert!(!body["message"].as_str().unwrap().is_empty());
        }
        if wanted == 204 {
            assert_eq!(self.body, "");
        }
        assert!(self.header("x-request-id").is_some());
        self
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(one, _)| one == name).map(|(_, value)| value.as_str())
    }

    #[track_caller]
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

/// The connection URL in the `config` of an answer.
#[track_caller]
pub(super) fn url_of(config: &Value) -> String {
    let text = |name: &str| config[name].as_str().unwrap_or_else(|| panic!("{name} in {config}"));
    let port = config["port"].as_u64().unwrap();
    format!("postgres://{}:{}@{}:{port}/{}", text("username"), text("password"), text("host"), text("database"))
}

//! The external engine: an ordinary server that someone else runs, and a role that may create databases and nothing else.
//!
//! What must hold: the server and all that is in it belong to the test; without PostgreSQL 15 each test says so in one line.

mod identity;
mod lifecycle;
mod login;
mod refusals;
mod snapshot;

use std::process::Command;

use serde_json::Value;

use crate::support::{Outcome, SomeonesServer, TestEnv, finish, start};

/// The password of the role `dev`.
const PASSWORD: &str = "d3v-s3cret";

/// A project, and a server of someone else for it.
pub(crate) struct External {
    pub(crate) env: TestEnv,
    pub(crate) server: SomeonesServer,
    /// What stands behind the database in the URL.
    pub(crate) parameters: String,
}

impl External {
    /// A server on which the role `dev` may create databases, and may not even log in to `postgres`.
    pub(crate) fn new() -> Option<Self> {
        Self::with(&[])
    }

    /// As [`External::new`], with these settings of the server.
    pub(crate) fn with(settings: &[&str]) -> Option<Self> {
        Some(Self::on(SomeonesServer::start(settings)?))
    }

    /// A project for `server`, which gets the role `dev`.
    pub(crate) fn on(server: SomeonesServer) -> Self {
        server.sql(&format!("CREATE ROLE dev LOGIN CREATEDB PASSWORD '{PASSWORD}'"));
        server.sql("REVOKE CONNECT ON DATABASE postgres FROM public");
        Self { env: TestEnv::new(), server, parameters: String::new() }
    }

    pub(crate) fn url(&self) -> String {
        self.url_at(self.server.port)
    }

    pub(crate) fn url_at(&self, port: u16) -> String {
        format!("postgres://dev@127.0.0.1:{port}/postgres{}", self.parameters)
    }

    /// tfdev with the engine external, and no password.
    pub(crate) fn bare(&self, arguments: &[&str]) -> Command {
        let mut command = self.env.command(arguments);
        command.env("TFDEV_ENGINE", "external").env("TFDEV_EXTERNAL_URL", self.url());
        command
    }

    /// tfdev with the engine external and the password in a variable.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.bare(arguments);
        command.env("PGPASSWORD", PASSWORD);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        finish(start(self.command(arguments)))
    }

    /// tfdev with another URL.
    pub(crate) fn run_at(&self, url: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.command(arguments);
        command.env("TFDEV_EXTERNAL_URL", url);
        finish(start(command))
    }

    /// `up` with few rows; it must succeed.
    #[track_caller]
    pub(crate) fn up(&self) -> Value {
        self.run(&["up", "--json", "--dataset", "small"]).ok().json()
    }

    /// Fails unless `up` is refused with `code`, says all of `words`, and left the server as it was.
    #[track_caller]
    pub(crate) fn up_is_refused(&self, code: i32, words: &[&str]) -> Outcome {
        let before = self.server.databases();
        let mut outcome = self.run(&["up", "--dataset", "small"]).exits(code);
        for word in words {
            outcome = outcome.says(word);
        }
        assert_eq!(self.server.databases(), before);
        outcome
    }

    /// The database with tfdev's own records, as `status` names it.
    #[track_caller]
    pub(crate) fn registry_of_status(&self) -> String {
        self.run(&["status", "--json"]).ok().json()["registry"].as_str().unwrap().to_owned()
    }

    /// The database with tfdev's own records, where there are no others of ours.
    #[track_caller]
    pub(crate) fn registry(&self) -> String {
        let ours = "SELECT datname FROM pg_database WHERE datname LIKE 'tfdev\\_%'";
        self.server.read(ours).pop().unwrap()
    }
}

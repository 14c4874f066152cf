//! A place of its own for each test: home, state, project; and the removal of all that the test made.

use std::cell::RefCell;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

use super::engine::TestEngine;
use super::{Outcome, SomeonesServer, docker, finish, native, one, process, skipped, start};

/// Variables that are passed on: what programs need to be found, and what test coverage needs.
const KEPT: [&str; 2] = ["PATH", "LLVM_PROFILE_FILE"];

/// Folders of a test, and the program's surroundings. All keys of its projects begin with [`TestEnv::id`], by which
/// everything in Docker is removed at the end.
pub(crate) struct TestEnv {
    root: TempDir,
    /// What the names of all projects of this test begin with.
    pub(crate) id: String,
    /// The test's project, which holds nothing at first.
    pub(crate) project: PathBuf,
    /// The other folders in which the program ran.
    other_folders: RefCell<Vec<PathBuf>>,
    engine: Option<TestEngine>,
    image: Option<String>,
    /// A folder of cached data folders for this test alone.
    own_cache: Option<PathBuf>,
    /// The server that someone else runs, on the engine external.
    server: Option<SomeonesServer>,
}

/// The role on someone else's server that may create databases and nothing else, and its password.
const SOMEONES_ROLE: (&str, &str) = ("dev", "d3v-s3cret");

/// What someone else has set on that server, so that it can hold what stands in the way of a copy.
const SOMEONES_SETTINGS: [&str; 2] = ["max_prepared_transactions=2", "wal_level=logical"];

impl TestEnv {
    /// A place for a test that needs no engine.
    pub(crate) fn new() -> Self {
        Self::with(None, None)
    }

    fn with(engine: Option<TestEngine>, image: Option<String>) -> Self {
        let root = TempDir::new().unwrap();
        let unique = uuid::Uuid::new_v4().simple().to_string();
        let id = format!("tftest{}", &unique[..10]);
        let project = root.path().join(&id);
        for folder in [project.as_path(), &root.path().join("home")] {
            std::fs::create_dir_all(folder).unwrap();
        }
        let project = project.canonicalize().unwrap();
        let env =
            Self { root, id, project, other_folders: RefCell::default(), engine, image, own_cache: None, server: None };
        for folder in [env.root.path(), &env.project, &env.path("home")] {
            env.give(folder);
        }
        env
    }

    /// A place for a test on `engine`; `None`, with the test noted as skipped, if there is no such engine here.
    pub(crate) fn on(engine: TestEngine) -> Option<Self> {
        match engine {
            TestEngine::Docker => return Self::docker(),
            _ if process::bin_dir().is_none() => skipped::skip("PostgreSQL 15 is not installed"),
            TestEngine::NativeUser if !process::is_root() => {
                skipped::skip("the tests are an ordinary user's, so this is the same as on `native`");
            }
            TestEngine::Native | TestEngine::NativeUser => return Some(Self::with(Some(engine), None)),
            TestEngine::External => return Some(Self::with_server(SomeonesServer::start(&SOMEONES_SETTINGS)?)),
        }
        None
    }

    /// A place for a test on `server`, with a role that may not even log in to the database `postgres`.
    fn with_server(server: SomeonesServer) -> Self {
        let (role, password) = SOMEONES_ROLE;
        server.sql(&format!("CREATE ROLE {role} LOGIN CREATEDB PASSWORD '{password}'"));
        server.sql("REVOKE CONNECT ON DATABASE postgres FROM public");
        let mut env = Self::with(Some(TestEngine::External), None);
        env.server = Some(server);
        env
    }

    /// The server that someone else runs.
    #[track_caller]
    pub(crate) fn server(&self) -> &SomeonesServer {
        self.server.as_ref().expect("this test is on the engine external")
    }

    /// A place for a test that needs Docker and an image; `None`, with the test noted as skipped, if there is none.
    pub(crate) fn docker() -> Option<Self> {
        match image() {
            Ok(image) => Some(Self::with(Some(TestEngine::Docker), Some(image))),
            Err(reason) => {
                skipped::skip_without_docker(&reason);
                None
            }
        }
    }

    /// What this test's servers are run by.
    #[track_caller]
    pub(crate) fn engine(&self) -> TestEngine {
        self.engine.expect("this test is on an engine")
    }

    /// The program with `arguments`, in the test's project.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_in(&self.project, arguments)
    }

    /// The program with `arguments`, in `folder`.
    pub(crate) fn command_in(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = self.command_by_choice(folder, arguments);
        match self.engine {
            Some(TestEngine::Native | TestEngine::NativeUser) => drop(command.env("TFDEV_ENGINE", "native")),
            Some(TestEngine::External) => {
                let (role, password) = SOMEONES_ROLE;
                let url = format!("postgres://{role}@127.0.0.1:{}/postgres", self.server().port);
                command.env("TFDEV_ENGINE", "external").env("TFDEV_EXTERNAL_URL", url).env("PGPASSWORD", password);
            }
            // Docker is what tfdev chooses by itself.
            Some(TestEngine::Docker) | None => {}
        }
        command
    }

    /// As [`TestEnv::command_in`], with the choice of the engine left to the program.
    pub(crate) fn command_by_choice(&self, folder: &Path, arguments: &[&str]) -> Command {
        let mut command = self.command_of_tester(arguments);
        command.current_dir(folder);
        if self.is_ordinary_user() { process::as_ordinary_user(&command) } else { command }
    }

    /// The program with `arguments`, in the test's project, always run by whoever runs the tests.
    pub(crate) fn command_of_tester(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tfdev"));
        let home = self.root.path().join("home");
        command.args(arguments).current_dir(&self.project).env_clear();
        command.envs(KEPT.iter().filter_map(|name| Some((*name, variable(name)?))));
        command.env("HOME", &home).env("LC_ALL", "C");
        for (name, folder) in [("CONFIG", "config"), ("CACHE", "cache"), ("STATE", "state"), ("DATA", "data")] {
            command.env(format!("XDG_{name}_HOME"), home.join(folder));
        }
        command.env("TFDEV_STATE_DIR", self.state_dir()).env("TFDEV_CACHE_DIR", self.cache_dir());
        if let Some(image) = &self.image {
            command.env("TFDEV_IMAGE", image);
        }
        command
    }

    /// Whether the program is run by another user than the tests.
    fn is_ordinary_user(&self) -> bool {
        self.engine == Some(TestEngine::NativeUser)
    }

    /// Gives a file or folder that the test made to who runs the program.
    fn give(&self, path: &Path) {
        if self.is_ordinary_user() {
            process::give(path);
        }
    }

    /// Keeps no data folder of another test's: the first server of this one is made by `initdb`.
    pub(crate) fn begin_with_no_cache(&mut self) {
        let folder = self.path("cache");
        std::fs::create_dir_all(&folder).unwrap();
        self.give(&folder);
        self.own_cache = Some(folder);
    }

    /// Cached data folders, kept from run to run: a newer image has another name in there.
    fn cache_dir(&self) -> PathBuf {
        if let Some(folder) = &self.own_cache {
            return folder.clone();
        }
        if !self.is_ordinary_user() {
            return cache_dir();
        }
        let folder = cache_dir().with_file_name("tfdev-test-cache-of-nobody");
        std::fs::create_dir_all(&folder).unwrap();
        self.give(&folder);
        folder
    }

    /// Runs the program in the test's project.
    pub(crate) fn run(&self, arguments: &[&str]) -> Outcome {
        finish(start(self.command(arguments)))
    }

    /// Runs the program in `folder`.
    pub(crate) fn run_in(&self, folder: &Path, arguments: &[&str]) -> Outcome {
        finish(start(self.command_in(folder, arguments)))
    }

    /// `up` with few rows; it must succeed, on the test's engine.
    #[track_caller]
    pub(crate) fn up(&self) -> Value {
        let up = self.run(&["up", "--json", "--dataset", "small"]).ok().json();
        assert_eq!(up["engine"], self.engine().kind());
        up
    }

    /// Gives the running instance a port of its own in place of the one that all tests would like best: that one may be
    /// another's as soon as the instance stops.
    #[track_caller]
    pub(crate) fn leave_common_port(&self) {
        while self.url().contains(":5432/") {
            self.run(&["down"]).ok();
            let held = std::net::TcpListener::bind(("127.0.0.1", 5432));
            self.up();
            drop(held);
        }
    }

    /// The connection URL of the running instance `dev`.
    #[track_caller]
    pub(crate) fn url(&self) -> String {
        self.run(&["url"]).ok().stdout.trim().to_owned()
    }

    /// What `status` tells.
    #[track_caller]
    pub(crate) fn status(&self) -> Value {
        self.run(&["status", "--json"]).ok().json()
    }

    /// The state that `status` tells.
    #[track_caller]
    pub(crate) fn state(&self) -> String {
        self.status()["state"].as_str().unwrap().to_owned()
    }

    /// How many rows of the data set are in the running instance `dev`.
    #[track_caller]
    pub(crate) fn tasks(&self) -> String {
        one(&self.url(), "SELECT count(*) FROM tasks")
    }

    /// Another project folder of this test: `below/<id>`.
    pub(crate) fn other_project(&self, below: &str) -> PathBuf {
        let folder = self.root.path().join(below).join(&self.id);
        std::fs::create_dir_all(&folder).unwrap();
        let folder = folder.canonicalize().unwrap();
        self.give(&folder);
        self.other_folders.borrow_mut().push(folder.clone());
        folder
    }

    /// The folders of all projects of this test.
    pub(crate) fn project_folders(&self) -> Vec<PathBuf> {
        std::iter::once(self.project.clone()).chain(self.other_folders.borrow().iter().cloned()).collect()
    }

    /// Writes a file of the project.
    pub(crate) fn write(&self, path: &str, text: impl AsRef<[u8]>) {
        let path = self.project.join(path);
        let folder = path.parent().unwrap();
        std::fs::create_dir_all(folder).unwrap();
        std::fs::write(&path, text).unwrap();
        self.give(folder);
        self.give(&path);
    }

    /// Writes the user's own configuration file.
    pub(crate) fn write_user_file(&self, text: &str) {
        let folder = self.root.path().join("home/config/tfdev");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("tfdev.toml"), text).unwrap();
    }

    /// A folder of the test that is no project.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The folder of records and passwords.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.root.path().join("tfdev-state")
    }

    /// The folder of the record and passwords of the instance `dev`, which was made before.
    #[track_caller]
    pub(crate) fn instance_dir(&self) -> PathBuf {
        let projects = self.state_dir().join("projects");
        let mut found = std::fs::read_dir(&projects).unwrap().map(|entry| entry.unwrap().path().join("dev"));
        let folder = found.next().unwrap();
        assert!(found.next().is_none(), "more than one project in {}", projects.display());
        folder
    }

    /// The role that owns the project's database.
    pub(crate) fn user(&self) -> &'static str {
        if self.server.is_some() { SOMEONES_ROLE.0 } else { "taskflow" }
    }

    /// The password in the file `<role>.password` of the instance `dev`.
    #[track_caller]
    pub(crate) fn password(&self, role: &str) -> String {
        if self.server.is_some() {
            return SOMEONES_ROLE.1.to_owned();
        }
        let file = self.instance_dir().join(format!("{role}.password"));
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    }

    /// The superuser's connection URL to `database`.
    #[track_caller]
    pub(crate) fn superuser_url(&self, port: &Value, database: &str) -> String {
        if let Some(server) = &self.server {
            return server.superuser_url(database);
        }
        format!("postgres://postgres:{}@127.0.0.1:{port}/{database}", self.password("superuser"))
    }

    /// Whether this test may use Docker.
    pub(crate) fn has_docker(&self) -> bool {
        self.image.is_some()
    }

    /// The image that this test's servers run.
    pub(crate) fn image(&self) -> &str {
        self.image.as_deref().unwrap()
    }

    /// A value as `config show` has it: value and origin.
    #[track_caller]
    pub(crate) fn settled(&self, key: &str) -> (String, String) {
        let listing = self.run(&["config", "show", "--json"]).ok().json();
        let row = listing.as_array().unwrap().iter().find(|row| row["key"] == key).unwrap();
        let text = |part: &str| row[part].as_str().unwrap().to_owned();
        (text("value"), text("origin"))
    }

    /// The name of the container that the instance `dev` has or is to have.
    #[track_caller]
    pub(crate) fn container_name(&self) -> String {
        format!("tfdev-{}-dev", self.settled("project").0)
    }

    /// Names of the containers and volumes that this test has in Docker.
    pub(crate) fn in_docker(&self) -> Vec<String> {
        let containers = docker::listed(&["ps", "--all", "--format", "{{.Names}}", "--filter", docker::OURS]);
        let volumes = docker::listed(&["volume", "ls", "--format", "{{.Name}}", "--filter", docker::OURS]);
        containers.into_iter().chain(volumes).filter(|name| name.contains(&self.id)).collect()
    }
}

impl Drop for TestEnv {
    fn drop(&mut self) {
        match self.engine {
            Some(TestEngine::Docker) => docker::remove_all(&self.id),
            Some(TestEngine::Native | TestEngine::NativeUser) => native::remove_all(self),
            // Someone else's server goes with all that is in it.
            Some(TestEngine::External) | None => {}
        }
    }
}

/// Cached data folders, kept from run to run: a newer image has another name in there.
fn cache_dir() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("tfdev-test-cache")
}

/// The image for the tests, made sure of once a run; or why there is none.
fn image() -> Result<String, String> {
    static IMAGE: OnceLock<Result<String, String>> = OnceLock::new();
    IMAGE.get_or_init(ensure_image).clone()
}

/// nextest runs each test in a process of its own, so what was found out stands in a file with the run's name.
fn ensure_image() -> Result<String, String> {
    docker::is_there()?;
    let folder = cache_dir();
    std::fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("image.lock")).unwrap();
    lock.lock().unwrap();
    let run = variable("NEXTEST_RUN_ID").unwrap_or_else(|| std::process::id().to_string());
    let known = folder.join("image-of-this-run");
    let found_out = std::fs::read_to_string(&known).unwrap_or_default();
    if let Some((_, image)) = found_out.split_once(' ').filter(|(known_run, _)| *known_run == run) {
        return Ok(image.to_owned());
    }
    let outcome = TestEnv::new().run(&["image", "ensure", "--json"]);
    if !outcome.status.success() {
        return Err(format!("`tfdev image ensure` failed: {}", outcome.stderr.trim()));
    }
    let image = outcome.json()[0]["reference"].as_str().unwrap().to_owned();
    std::fs::write(known, format!("{run} {image}")).unwrap();
    Ok(image)
}

/// A variable of the test run.
#[expect(clippy::disallowed_methods, reason = "the tests' own surroundings, apart from Settings")]
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

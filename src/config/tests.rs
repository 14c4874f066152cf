//! The rules of the resolver, each over real files in a folder of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;

use super::reference::{self, KEYS, Place};
use super::*;
use crate::error::{Error, ErrorKind};

/// The project file of the reference (`CLI.md` § Project file), word for word.
const REFERENCE_EXAMPLE: &str = r#"
project = "taskflow"            # key of the project; default: folder name and a hash of its path
engine = "auto"                 # auto | docker | native | external

[database]
name = "taskflow"
user = "taskflow"
port = "auto"                   # auto: 5432 if free, else assigned and kept; or a number

[docker]
image = "postgres:15-alpine"
publish = "127.0.0.1"

[native]
bin_dir = "/usr/lib/postgresql/15/bin"
user = "postgres"               # who runs the server of root

[external]
url = "postgres://…"            # no password here
allow_remote = "host/database"

[migrations]
dir = "migrations"              # default: the TaskFlow schema that is built in

[seed]
dataset = "demo"                # small | demo | load | a file or folder under seeds/ | none

[profiles.dev]                  # extends the built-in profile of that name; any server setting
work_mem = "8MB"

[profiles.perf]
extends = "prod"
random_page_cost = 1.1

[snapshots]
auto = 3                        # automatic ones kept before restore and reset
standby = true                  # keep a ready copy

[fresh]
max_databases = 64
keep_on_failure = false
idle_stop = 3600

[backup]
store = "s3://bucket/prefix"    # or file:///path
encryption_key_file = "backup.key"  # encrypts before it leaves the machine
schedule = "02:00"              # UTC
keep_full_days = 7
keep_wal_days = 30
"#;

/// A home with a user's file and a checkout, all in a folder that goes away.
struct World {
    folder: TempDir,
    flags: Flags,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: TempDir::new().unwrap(), flags: Flags::default() };
        fs::create_dir_all(world.project()).unwrap();
        world
    }

    fn with_project_file(text: &str) -> Self {
        let world = Self::new();
        fs::write(world.project_file(), text).unwrap();
        world
    }

    fn root(&self) -> PathBuf {
        self.folder.path().canonicalize().unwrap()
    }

    fn project(&self) -> PathBuf {
        self.root().join("work/Task Flow")
    }

    fn project_file(&self) -> PathBuf {
        self.project().join(FILE_NAME)
    }

    fn user_file(&self) -> PathBuf {
        self.root().join("user.toml")
    }

    fn environment(&self) -> Environment {
        Environment {
            current_dir: self.project(),
            home_dir: Some(self.root()),
            user_file: Some(self.user_file()),
            state_dir: Setting::default_value(self.root().join("state")),
            cache_dir: Setting::default_value(self.root().join("cache")),
            docker: DockerEnvironment::default(),
            search_path: None,
            passwords: PasswordEnvironment::default(),
            machine: "machine".to_owned(),
            no_color: false,
            cloud: CloudEnvironment::default(),
        }
    }

    fn resolve(&self) -> crate::Result<Settings> {
        Settings::resolve(&self.flags, &self.environment())
    }

    fn origin(&self, line: usize) -> Origin {
        Origin::File { path: self.project_file(), line }
    }

    /// The error of a bad project file, its message without the path in front.
    fn refusal(&self) -> (String, Error) {
        let error = self.resolve().expect_err("the file should be refused");
        assert_eq!(error.kind(), ErrorKind::BadInput);
        let path = format!("{}:", self.project_file().display());
        let message = error.to_string();
        (message.strip_prefix(&path).unwrap_or(&message).to_owned(), error)
    }
}

fn refusal(project_file: &str) -> String {
    World::with_project_file(project_file).refusal().0
}

fn listed(settings: &Settings, key: &str) -> (String, String) {
    let (_, setting) = settings.listing.iter().find(|(name, _)| name == key).expect("every key is listed");
    (setting.value.clone(), setting.origin.to_string())
}

#[test]
fn default_toml_is_exactly_the_defaults() {
    let settings = World::new().resolve().unwrap();
    assert_eq!(settings.instance, Setting::default_value("dev".to_owned()));
    assert_eq!(settings.engine, Setting::default_value(EngineChoice::Auto));
    assert_eq!(settings.database.name, Setting::default_value("taskflow".to_owned()));
    assert_eq!(settings.database.user, Setting::default_value("taskflow".to_owned()));
    assert_eq!(settings.database.port, Setting::default_value(PortChoice::Auto));
    assert_eq!(settings.dataset, Setting::default_value("demo".to_owned()));
    assert_eq!(settings.snapshots.auto, Setting::default_value(3));
    assert_eq!(settings.snapshots.standby, Setting::default_value(true));
    assert_eq!(settings.fresh.max_databases, Setting::default_value(64));
    assert_eq!(settings.fresh.keep_on_failure, Setting::default_value(false));
    assert_eq!(settings.fresh.idle_stop_seconds, Setting::default_value(3600));
    assert_eq!(settings.backup.schedule, Setting::default_value("02:00".to_owned()));
    assert_eq!((settings.backup.keep_full_days.value, settings.backup.keep_wal_days.value), (7, 30));
    assert_eq!((settings.timeout_seconds.value, settings.yes.value), (300, false));
    assert!(settings.project.is_none() && settings.profile.is_none() && settings.image.is_none());
    assert!(settings.native_bin_dir.is_none() && settings.external_url.is_none());
    assert!(settings.external_allow_remote.is_none() && settings.migrations_dir.is_none());
    assert!(settings.backup.store.is_none() && settings.profiles.is_empty());
}

#[test]
fn the_example_of_the_reference_is_taken() {
    let world = World::with_project_file(REFERENCE_EXAMPLE);
    let settings = world.resolve().unwrap();
    assert_eq!(settings.project.as_ref().unwrap().value, "taskflow");
    assert_eq!(settings.database.port, Setting { value: PortChoice::Auto, origin: world.origin(8) });
    assert_eq!(settings.migrations_dir.unwrap().value, world.project().join("migrations"));
    assert_eq!(settings.profiles["perf"].extends.as_ref().unwrap().value, "prod");
    assert_eq!(settings.profiles["perf"].settings["random_page_cost"].value, "1.1");
    assert_eq!(settings.profiles["dev"].settings["work_mem"].origin, world.origin(29));
    // Every key of the table that may stand in a file is in the example, so neither forgets one.
    let table: toml::Table = toml::from_str(REFERENCE_EXAMPLE).unwrap();
    for key in KEYS.iter().filter(|key| !matches!(key.place, Place::Flag(_))) {
        let found = match key.path.split_once('.') {
            Some((section, name)) => table[section].get(name),
            None => table.get(key.path),
        };
        assert!(found.is_some(), "{}", key.path);
    }
}

#[test]
fn every_key_is_documented_and_every_documented_key_is_known() {
    // Taking away the comment sign of each `# key = value` and `# [section]` makes a valid file with every key.
    let is_code =
        |text: &str| text.starts_with('[') || text.split_once(" = ").is_some_and(|(key, _)| !key.contains(' '));
    let uncommented: String = template(None)
        .lines()
        .map(|line| line.strip_prefix("# ").filter(|rest| is_code(rest)).unwrap_or(line).to_owned() + "\n")
        .collect();
    let world = World::with_project_file(&uncommented);
    let settings = world.resolve().unwrap();
    for key in KEYS.iter().filter(|key| !matches!(key.place, Place::Flag(_))) {
        assert!(listed(&settings, key.path).1.contains(FILE_NAME), "{} is not documented", key.path);
    }
    assert!(settings.profiles.contains_key("perf"));
}

#[test]
fn the_template_changes_nothing_but_the_name() {
    let world = World::with_project_file(&template(None));
    let settings = world.resolve().unwrap();
    assert!(settings.listing.iter().all(|(_, setting)| setting.origin == Origin::Default));
    let named = World::with_project_file(&template(Some("../My App")));
    let settings = named.resolve().unwrap();
    assert_eq!(settings.project.unwrap().value, "my-app");
    assert_eq!(settings.listing.iter().filter(|(_, setting)| setting.origin != Origin::Default).count(), 1);
}

#[test]
fn a_flag_is_stronger_than_a_variable_than_the_project_than_the_user() {
    let mut world = World::new();
    assert_eq!(world.resolve().unwrap().engine.origin, Origin::Default);
    fs::write(world.user_file(), "\nengine = \"external\"\n[profiles.dev]\nwork_mem = \"1MB\"\njit = false\n").unwrap();
    let engine = world.resolve().unwrap().engine;
    assert_eq!(engine.value, EngineChoice::External);
    assert_eq!(engine.origin, Origin::File { path: world.user_file(), line: 2 });
    fs::write(world.project_file(), "# ä\r\n\r\nengine = \"native\"\r\n[profiles.dev]\r\nwork_mem = \"2MB\"").unwrap();
    let settings = world.resolve().unwrap();
    assert_eq!(settings.engine, Setting { value: EngineChoice::Native, origin: world.origin(3) });
    assert_eq!(settings.profiles["dev"].settings["work_mem"].origin, world.origin(5));
    assert_eq!(settings.profiles["dev"].settings["jit"].value, "off");
    world.flags.engine = Some(Setting::variable("engine", "docker".to_owned()));
    let engine = world.resolve().unwrap().engine;
    assert_eq!((engine.value, engine.origin.to_string()), (EngineChoice::Docker, "TFDEV_ENGINE".to_owned()));
    world.flags.engine = Some(Setting::flag("engine", "auto".to_owned()));
    let engine = world.resolve().unwrap().engine;
    assert_eq!((engine.value, engine.origin.to_string()), (EngineChoice::Auto, "--engine".to_owned()));
}

#[test]
fn all_flags_arrive() {
    let mut world = World::new();
    let given = |name: &str, value: &str| Some(Setting::flag(name, value.to_owned()));
    world.flags = Flags {
        project_dir: given("project-dir", "."),
        instance: given("instance", "test"),
        engine: None,
        profile: Some(Setting::variable("profile", String::new())),
        image: given("image", "registry.example.org:5000/pg/postgres:15@sha256:0123456789abcdef0123456789abcdef"),
        port: given("port", "5433"),
        dataset: given("dataset", "none"),
        external_url: given("external-url", "postgres://me@host/db"),
        external_allow_remote: None,
        timeout: given("timeout", "7"),
        yes: Some(Setting::flag("yes", true)),
    };
    let settings = world.resolve().unwrap();
    assert_eq!((settings.instance.value.as_str(), settings.profile_name()), ("test", "test"));
    assert!(settings.profile.is_none(), "an empty variable is as good as none");
    assert!(settings.image.as_ref().unwrap().value.starts_with("registry.example.org"));
    assert_eq!(settings.database.port.value, PortChoice::Fixed(5433));
    assert_eq!((settings.dataset.value.as_str(), settings.timeout_seconds.value), ("none", 7));
    assert!(settings.yes.value);
    assert_eq!(listed(&settings, "project_dir").1, "--project-dir");
    assert_eq!(listed(&settings, "profile"), ("test".to_owned(), "default".to_owned()));
}

#[test]
fn a_wrong_flag_is_called_by_its_own_name() {
    let mut world = World::new();
    world.flags.port = Some(Setting::flag("port", "http".to_owned()));
    world.flags.timeout = Some(Setting::variable("timeout", "0".to_owned()));
    let (message, error) = world.refusal();
    assert_eq!(message, "`--port` must be \"auto\" or a number from 1 to 65535, found \"http\"");
    assert_eq!(error.causes(), ["`TFDEV_TIMEOUT` must be a whole number from 1 to 86400, found 0"]);
    world.flags = Flags { profile: Some(Setting::flag("profile", "tset".to_owned())), ..Flags::default() };
    assert_eq!(world.refusal().0, "there is no profile `tset`; did you mean `test`?");
}

#[test]
fn wrong_types_tell_the_line_what_was_expected_and_what_was_found() {
    for (text, message) in [
        ("[database]\nport = \"x\"", "2: `database.port` must be \"auto\" or a number from 1 to 65535, found \"x\""),
        ("database.port = 70000", "1: `database.port` must be \"auto\" or a number from 1 to 65535, found 70000"),
        (
            "\n\ndatabase = { port = true }",
            "3: `database.port` must be \"auto\" or a number from 1 to 65535, found true",
        ),
        ("engine = 1", "1: `engine` must be one of \"auto\", \"docker\", \"native\", \"external\", found 1"),
        ("project = [\"a\"]", "1: `project` must be a string in quotes, found an array"),
        ("[snapshots]\nstandby = \"yes\"", "2: `snapshots.standby` must be true or false, found \"yes\""),
        ("[snapshots]\nauto = -1", "2: `snapshots.auto` must be a whole number from 0 to 1000, found -1"),
        ("database = 5", "1: `database` must be a section `[database]`, found 5"),
        ("[[database]]", "1: `database` must be a section `[database]`, found an array"),
        ("profiles.dev = 5", "1: `profiles.dev` must be a section `[profiles.dev]`, found 5"),
        (
            "[backup]\nschedule = \"2:00\"",
            "2: `backup.schedule` must be a time of day in UTC such as \"02:00\", found \"2:00\"",
        ),
        ("[migrations]\ndir = \"\"", "2: `migrations.dir` must be a path in quotes, found \"\""),
        (
            "[profiles.dev]\n\nshared_buffers = \"12X\"",
            "3: `shared_buffers` must be a size such as \"128MB\" (units B, kB, MB, GB, TB), found \"12X\"",
        ),
        ("[profiles.dev]\nport = 5433", "2: `port` cannot be set in a profile: the port is `database.port`"),
        ("[profiles.x]\nextends = 5", "2: `extends` must be the name of a profile in quotes, found 5"),
        ("[profiles.x]\nextends = \"y\"", "2: there is no profile `y`"),
        (
            "instance = \"test\"",
            "1: `instance` cannot be set in a file; use `--instance` or the variable `TFDEV_INSTANCE`",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
}

#[test]
fn unknown_keys_name_the_nearest_one() {
    for (text, message) in [
        ("databse = 1", "1: unknown key `databse`; did you mean `database`?"),
        ("[databse]\nname = \"x\"", "1: unknown section `databse`; did you mean `database`?"),
        ("[database]\nuesr = \"x\"", "2: unknown key `database.uesr`; did you mean `database.user`?"),
        ("port = 5433", "1: unknown key `port`; did you mean `database.port`?"),
        ("[docker]\nimagee = \"x\"", "2: unknown key `docker.imagee`; did you mean `docker.image`?"),
        ("[profile.dev]", "1: unknown section `profile`; did you mean `profiles`?"),
        (
            "[profiles.dev]\nwrok_mem = \"8MB\"",
            "2: `wrok_mem` is not a setting of PostgreSQL 15; did you mean `work_mem`?",
        ),
    ] {
        assert_eq!(refusal(text), message);
    }
    let (message, error) = World::with_project_file("[fresh]\nzzzzzz = 1").refusal();
    assert_eq!(message, "2: unknown key `fresh.zzzzzz`");
    assert_eq!(error.hints(), ["known in `[fresh]`: max_databases, keep_on_failure, idle_stop"]);
}

#[test]
fn all_mistakes_come_in_one_error() {
    let world = World::with_project_file("engine = \"dokcer\"\nproject = \"../x\"\n[fresh]\nmax_databases = 0\n");
    let (message, error) = world.refusal();
    assert!(message.starts_with("1: `engine` must be one of"), "{message}");
    let causes = error.causes();
    assert_eq!(causes.len(), 2);
    assert!(causes[0].contains("tfdev.toml:2: `project` must be"), "{causes:?}");
    assert!(causes[1].contains("tfdev.toml:4: `fresh.max_databases` must be"), "{causes:?}");
    assert_eq!(error.hints(), ["did you mean \"docker\"?", "for example `project = \"x\"`"]);
}

#[test]
fn broken_toml_tells_line_and_column() {
    for (text, place) in [
        ("engine = \"auto\"\nproject = taskflow\n", "2:11: not valid TOML: "),
        ("[database\n", "1:10: not valid TOML: "),
        ("engine = \"auto\"\nengine = \"auto\"", "2:1: not valid TOML: "),
        ("ä", "1:"),
        ("x = \"abc", "1:"),
    ] {
        let message = refusal(text);
        assert!(message.starts_with(place), "{message}");
        assert!(!message.contains('\n') && message.len() > place.len(), "{message}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_refused() {
    let world = World::new();
    fs::write(world.project_file(), b"# \xc3\xa4\nproject = \"\xff\"").unwrap();
    assert_eq!(world.refusal().0, "2: not UTF-8 text");
    fs::remove_file(world.project_file()).unwrap();
    fs::create_dir(world.project_file()).unwrap();
    assert!(world.refusal().0.starts_with("cannot read `"));
    #[cfg(unix)]
    {
        fs::remove_dir(world.project_file()).unwrap();
        std::os::unix::fs::symlink("nowhere", world.project_file()).unwrap();
        assert!(world.refusal().0.ends_with("it is a link that leads nowhere"));
    }
}

#[cfg(unix)]
#[test]
fn a_home_that_is_no_folder_has_no_users_file() {
    let world = World::new();
    let environment = Environment { user_file: Some(PathBuf::from("/dev/null/tfdev.toml")), ..world.environment() };
    assert!(Settings::resolve(&world.flags, &environment).is_ok());
}

#[test]
fn the_users_file_cannot_name_the_project() {
    let world = World::new();
    fs::write(world.user_file(), "project = \"taskflow\"").unwrap();
    let (message, _) = world.refusal();
    assert!(message.contains("user.toml:1: `project` cannot be set in the user's file"), "{message}");
}

#[test]
fn names_that_could_leave_their_place_are_refused() {
    for bad in ["../x", "a/b", "", "Task", "-a", "_a", "a b", "ä", &"a".repeat(42)] {
        assert!(refusal(&format!("project = {bad:?}")).contains("`project` must be"), "{bad}");
    }
    for bad in ["../x", "a-b", "1a", "", "A", &"a".repeat(31)] {
        let mut world = World::new();
        world.flags.instance = Some(Setting::flag("instance", bad.to_owned()));
        assert!(world.refusal().0.starts_with("`--instance` must be"), "{bad}");
    }
    for bad in ["../x", "/x", "", "a/../../b", "a\\b", "."] {
        assert!(refusal(&format!("[seed]\ndataset = {bad:?}")).contains("`seed.dataset` must be"), "{bad}");
    }
    for bad in ["postgres", "template1", "pg_x", "", "a\\u0007", &"ä".repeat(32)] {
        assert!(refusal(&format!("[database]\nname = \"{bad}\"")).contains("`database.name`"), "{bad}");
    }
    for bad in ["postgres", "public", "pg_monitor", ""] {
        assert!(refusal(&format!("[database]\nuser = {bad:?}")).contains("`database.user` must be"), "{bad}");
    }
    assert!(refusal("[profiles.\"../x\"]").contains("is not the name of a profile"));
}

#[test]
fn images_have_the_shape_of_a_reference() {
    let digest = "0".repeat(64);
    for good in [
        "postgres",
        "postgres:15-alpine",
        "localhost/x",
        "localhost:5000/a/b_c:1.0",
        "ghcr.io/Org/x".to_lowercase().as_str(),
    ] {
        assert!(World::with_project_file(&format!("[docker]\nimage = {good:?}")).resolve().is_ok(), "{good}");
    }
    assert!(World::with_project_file(&format!("docker.image = \"tfdev/postgres@sha256:{digest}\"")).resolve().is_ok());
    for bad in ["", "a b", "Postgres", "a::b", "a:", "/a", "a/", "a//b", "a@sha256:1", "a:-x", "a\nb", "-a", "a._b"] {
        assert!(refusal(&format!("[docker]\nimage = {bad:?}")).contains("`docker.image` must be"), "{bad}");
    }
}

#[test]
fn a_password_in_the_url_is_refused_and_never_shown() {
    for url in [
        "postgres://user:s3cret@host/db",
        "postgres://user@host/db?password=s3cret",
        "postgres://user@host/db?sslmode=require&p%61ssword=s3cret",
        "postgres://user:s3c/s3cret@host/db",
        "postgres://user:1/s3cret@host/db",
        "postgres://user:s3cret#x@host/db",
        "user:s3cret@host",
        "mysql://user:s3cret@host/db",
    ] {
        let (message, error) = World::with_project_file(&format!("[external]\nurl = {url:?}")).refusal();
        let all = format!("{message} {:?} {:?}", error.causes(), error.hints());
        assert!(message.starts_with("2: `external.url` must") && !all.contains("s3c"), "{all}");
    }
    let (_, error) = World::with_project_file("external.url = \"postgres://user:x@host/db\"").refusal();
    assert!(error.hints()[0].contains("PGPASSFILE"));
    assert!(!refusal("external.allow_remote = \"user:s3cret@host/db\"").contains("s3cret"));
    for url in
        ["postgres://user@host:5433/db?sslmode=require", "postgresql://[::1]:5432/db", "postgres:///db?host=/tmp"]
    {
        assert!(World::with_project_file(&format!("external.url = {url:?}")).resolve().is_ok(), "{url}");
    }
}

#[test]
fn the_project_is_the_nearest_folder_with_a_file_or_the_root_of_the_checkout() {
    let world = World::new();
    let deep = world.project().join("a/b");
    fs::create_dir_all(&deep).unwrap();
    let found = |from: &Path| {
        let environment = Environment { current_dir: from.to_owned(), ..world.environment() };
        Settings::resolve(&Flags::default(), &environment).unwrap().project_dir
    };
    assert_eq!(found(&deep), deep, "neither a file nor a checkout");
    fs::write(world.root().join(FILE_NAME), "").unwrap();
    assert_eq!(found(&deep), world.root(), "a file far up");
    fs::write(world.project().join(".git"), "gitdir: elsewhere").unwrap();
    assert_eq!(found(&deep), world.project(), "the root of the checkout ends the search");
    fs::write(world.project().join("a").join(FILE_NAME), "").unwrap();
    assert_eq!(found(&deep), world.project().join("a"), "a file below the root of the checkout");
}

#[test]
fn a_project_folder_that_is_not_there_is_refused() {
    let mut world = World::new();
    world.flags.project_dir = Some(Setting::flag("project-dir", "missing".to_owned()));
    let (message, error) = world.refusal();
    assert!(message.starts_with("the folder of `--project-dir` `"), "{message}");
    assert!(error.hints()[0].contains("--project-dir"));
    fs::write(world.project().join("missing"), "").unwrap();
    assert!(world.refusal().0.ends_with("is not a folder"));
}

#[test]
fn the_listing_has_every_key_once_and_in_order() {
    let world = World::with_project_file("[profiles.dev]\nwork_mem = \"8MB\"\n[external]\nurl = \"postgres://u@h/d\"");
    let settings = world.resolve().unwrap();
    let names: Vec<_> = settings.listing.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    let keys: Vec<_> = names.iter().copied().filter(|name| reference::find(name).is_some()).collect();
    assert_eq!(keys, KEYS.iter().map(|key| key.path).collect::<Vec<_>>());
    assert_eq!(listed(&settings, "profiles.dev.work_mem").0, "8MB");
    assert!(listed(&settings, "project").0.starts_with("task-flow-"));
    assert_eq!(listed(&settings, "backup.store"), (String::new(), "default".to_owned()));
}

#[test]
fn the_key_of_a_folder_differs_by_path() {
    let one = names::key_of_folder(Path::new("/home/a/Täsk  Flow!"));
    let other = names::key_of_folder(Path::new("/home/b/Täsk  Flow!"));
    assert!(one.starts_with("t-sk-flow-") && one != other, "{one} {other}");
    assert!(names::key_of_folder(Path::new("/")).starts_with("project-"));
}

/// Lines of a project file: known and unknown keys and sections with values right and wrong.
fn any_line() -> impl Strategy<Value = String> {
    let paths: Vec<String> = KEYS.iter().map(|key| key.path.to_owned()).collect();
    let key = prop_oneof![
        prop::sample::select(paths),
        "profiles\\.[a-z]{1,3}\\.(extends|work_mem|wal_level|shared_buffers|[a-z_.\"]{0,8})",
        "[a-zA-Z0-9_.\"' ]{0,12}",
    ];
    let value = prop_oneof![
        any::<i64>().prop_map(|number| number.to_string()),
        any::<f64>().prop_map(|number| number.to_string()),
        any::<bool>().prop_map(|value| value.to_string()),
        "[a-z0-9:/@.%?=_-]{0,20}".prop_map(|text| format!("{text:?}")),
        any::<String>().prop_map(|text| format!("{text:?}")),
        "[-+]?[0-9a-fx.eE]{0,20} ?(kB|MB|ms|é)?".prop_map(|text| format!("{text:?}")),
        Just("[1, {a = 2}]".to_owned()),
    ];
    prop_oneof![
        (key.clone(), value).prop_map(|(key, value)| format!("{key} = {value}")),
        key.prop_map(|key| format!("[{key}]")),
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn no_file_makes_the_resolver_panic(lines in prop::collection::vec(any_line(), 0..6)) {
        let world = World::with_project_file(&lines.join("\n"));
        if let Err(error) = world.resolve() {
            prop_assert_eq!(error.kind(), ErrorKind::BadInput);
        }
    }

    #[test]
    fn an_accepted_key_is_safe_in_names_and_paths(text in "[ -~]{0,44}|[a-zA-Z0-9_./ -]{0,44}|\\PC{0,8}") {
        let valid = names::valid_key(&text);
        prop_assert!(names::project_key(&valid).is_ok());
        for key in [valid, text] {
            if names::project_key(&key).is_ok() {
                prop_assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_'));
                prop_assert!((1..=41).contains(&key.len()) && !key.starts_with(['-', '_']));
            }
        }
    }

    #[test]
    fn the_key_of_any_folder_is_valid(name in "\\PC{1,60}") {
        let key = names::key_of_folder(&Path::new("/home").join(name));
        prop_assert!(names::project_key(&key).is_ok(), "{}", key);
    }
}

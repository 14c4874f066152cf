//! What a test may ask and do without naming the engine: how much there is, whether it is the same server, and what goes
//! wrong with servers.

use std::process::Command;

use super::process::{kill, shell};
use super::{Outcome, TestEnv, docker, finish, native, one, start, until};

/// What runs a test's servers, and who runs tfdev.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TestEngine {
    /// Docker, by whoever runs the tests.
    Docker,
    /// PostgreSQL 15 of this machine, by whoever runs the tests.
    Native,
    /// PostgreSQL 15 of this machine, by an ordinary user, though root runs the tests.
    NativeUser,
    /// A server that someone else runs, and a role that may create databases there and nothing else.
    External,
}

/// What there is of all instances of a test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    /// Containers, or processes of servers.
    pub(crate) servers: usize,
    /// Volumes, or data folders.
    pub(crate) data: usize,
}

/// Nothing at all.
const NOTHING: Made = Made { servers: 0, data: 0 };

/// One running server with its data.
pub(crate) const ONE_SERVER: Made = Made { servers: 1, data: 1 };

impl TestEngine {
    /// The engine's name, as `up` reports it.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::Docker => "docker",
            Self::Native | Self::NativeUser => "native",
            Self::External => "external",
        }
    }

    /// Whether tfdev starts, sets and stops the server.
    pub(crate) fn runs_the_server(self) -> bool {
        self != Self::External
    }
}

impl TestEnv {
    /// What there is of all instances of this test, running or not.
    pub(crate) fn made(&self) -> Made {
        match self.engine() {
            TestEngine::Docker => {
                let (volumes, containers): (Vec<_>, Vec<_>) =
                    self.in_docker().into_iter().partition(|name| name.ends_with("-data"));
                Made { servers: containers.len(), data: volumes.len() }
            }
            TestEngine::Native | TestEngine::NativeUser => native::made(self),
            TestEngine::External => {
                let count = |condition: &str| self.foreign().iter().filter(|name| name.starts_with(condition)).count();
                Made { servers: count("tfdev_"), data: self.foreign().len() - count("tfdev_") }
            }
        }
    }

    /// Fails if anything is left that a `destroy` of all instances is to remove.
    #[track_caller]
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.made(), NOTHING);
        assert_eq!(native::leftovers(self), Vec::<String>::new());
    }

    /// The databases on someone else's server that were not there when it was made.
    fn foreign(&self) -> Vec<String> {
        let first = ["postgres", "template0", "template1"];
        self.server().databases().into_iter().filter(|name| !first.contains(&name.as_str())).collect()
    }

    /// Whether a first `up` has begun to make something.
    pub(crate) fn has_begun(&self) -> bool {
        match self.engine() {
            TestEngine::Docker => !self.in_docker().is_empty(),
            TestEngine::Native | TestEngine::NativeUser => !native::leftovers(self).is_empty(),
            TestEngine::External => !self.foreign().is_empty(),
        }
    }

    /// When the server's process was started, which tells whether it is still the same one.
    #[track_caller]
    pub(crate) fn born(&self) -> String {
        one(&self.url(), "SELECT pg_postmaster_start_time()")
    }

    /// The container of the instance `dev`, as `status` names it.
    #[track_caller]
    fn container(&self) -> String {
        self.status()["container"].as_str().unwrap().to_owned()
    }

    /// Ends the server of the instance `dev` at once, as a crash does.
    #[track_caller]
    pub(crate) fn kill_server(&self) {
        match self.engine() {
            TestEngine::Docker => drop(docker::docker(&["kill", "--signal", "KILL", &self.container()])),
            TestEngine::Native | TestEngine::NativeUser => kill(native::pid(self), "KILL"),
            TestEngine::External => panic!("the server is someone else's"),
        }
    }

    /// Makes the process of the server of the instance `dev` stand still.
    #[track_caller]
    pub(crate) fn freeze_server(&self) {
        match self.engine() {
            TestEngine::Docker => drop(docker::docker(&["pause", &self.container()])),
            TestEngine::Native | TestEngine::NativeUser => kill(native::pid(self), "STOP"),
            TestEngine::External => panic!("the server is someone else's"),
        }
    }

    /// Removes the server and the data of the instance `dev` in another way than by tfdev.
    #[track_caller]
    pub(crate) fn remove_by_hand(&self) {
        let status = self.status();
        match self.engine() {
            TestEngine::Docker => {
                docker::docker(&["rm", "--force", status["container"].as_str().unwrap()]);
                docker::docker(&["volume", "rm", status["volume"].as_str().unwrap()]);
            }
            TestEngine::Native | TestEngine::NativeUser => {
                let data = native::data(self);
                kill(native::pid(self), "KILL");
                until("the server's end", || native::servers_of(self).is_empty().then_some(()));
                std::fs::remove_dir_all(data).unwrap();
            }
            TestEngine::External => {
                for database in self.foreign() {
                    self.server().sql(&format!("DROP DATABASE {database}"));
                }
            }
        }
    }

    /// Removes the record and the passwords of the instance `dev`, and all else of the state folder that is no server's.
    pub(crate) fn lose_records(&self) {
        match self.engine() {
            TestEngine::Docker | TestEngine::External => std::fs::remove_dir_all(self.state_dir()).unwrap(),
            TestEngine::Native | TestEngine::NativeUser => {
                for file in ["instance.json", "superuser.password", "user.password"] {
                    std::fs::remove_file(self.instance_dir().join(file)).unwrap();
                }
            }
        }
    }

    /// Replaces a file of the data folder of the stopped instance `dev`.
    #[track_caller]
    pub(crate) fn write_data_file(&self, name: &str, text: &str) {
        match self.engine() {
            TestEngine::Docker => {
                let file = self.path("data-file");
                std::fs::write(&file, text).unwrap();
                let target = format!("{}:/var/lib/postgresql/data/{name}", self.container());
                docker::docker(&["cp", file.to_str().unwrap(), &target]);
            }
            // The file that is there keeps its owner.
            TestEngine::Native | TestEngine::NativeUser => std::fs::write(native::data(self).join(name), text).unwrap(),
            TestEngine::External => panic!("the data is someone else's"),
        }
    }

    /// What everyone on this machine can see of the server: its command line and what the engine tells of it.
    #[track_caller]
    pub(crate) fn seen_by_everyone(&self) -> Vec<(&'static str, String)> {
        match self.engine() {
            TestEngine::Docker => {
                let status = self.status();
                let (container, volume) = (status["container"].as_str().unwrap(), status["volume"].as_str().unwrap());
                vec![
                    ("inspect", docker::inspect(container).to_string()),
                    ("inspect of the volume", docker::inspect(volume).to_string()),
                    ("docker top", docker::docker(&["top", container])),
                    ("the environment of the server", docker::docker(&["exec", container, "env"])),
                ]
            }
            TestEngine::Native | TestEngine::NativeUser => {
                let variables = format!("tr '\\0' '\\n' < /proc/{}/environ", native::pid(self));
                vec![("the environment of the server", shell(&variables))]
            }
            TestEngine::External => {
                let markers =
                    self.server().read("SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database");
                vec![("a comment on a database", markers.join("\n"))]
            }
        }
    }

    /// The server's log from its beginning, as the engine has it.
    #[track_caller]
    pub(crate) fn server_log(&self) -> String {
        match self.engine() {
            TestEngine::Docker => docker::run(&["logs", &self.container()]).ok().stderr,
            TestEngine::Native | TestEngine::NativeUser => {
                std::fs::read_to_string(self.instance_dir().join("native/log/server.log")).unwrap()
            }
            TestEngine::External => self.server().log(),
        }
    }

    /// The program with `arguments` and a `PATH` that has no programs.
    pub(crate) fn run_without_programs(&self, arguments: &[&str]) -> Outcome {
        let mut command: Command = self.command(arguments);
        command.env("PATH", self.path("nothing-here"));
        finish(start(command))
    }
}

/// Runs `case` on `engine`, if there is one here.
pub(crate) fn run_on(engine: TestEngine, case: fn(&TestEnv)) {
    if let Some(env) = TestEnv::on(engine) {
        case(&env);
    }
}

/// Makes of each case, a function that takes a [`TestEnv`], one test for each engine, in a module with its name; with
/// `@of_ours` for those engines alone that run the server, and with `@by_one_user` without the ordinary user, where it makes
/// no difference who runs tfdev.
macro_rules! on_every_engine {
    (@each $module:ident $engine:ident: $($case:ident)+) => {
        mod $module {
            $(
                #[test]
                fn $case() {
                    $crate::support::run_on($crate::support::TestEngine::$engine, super::$case);
                }
            )+
        }
    };
    (@of_ours $($case:ident)+) => {
        on_every_engine!(@each docker Docker: $($case)+);
        on_every_engine!(@each native Native: $($case)+);
        on_every_engine!(@each native_user NativeUser: $($case)+);
    };
    (@of_ours_by_one_user $($case:ident)+) => {
        on_every_engine!(@each docker Docker: $($case)+);
        on_every_engine!(@each native Native: $($case)+);
    };
    (@by_one_user $($case:ident)+) => {
        on_every_engine!(@of_ours_by_one_user $($case)+);
        on_every_engine!(@each external External: $($case)+);
    };
    ($($case:ident),+ $(,)?) => {
        on_every_engine!(@of_ours $($case)+);
        on_every_engine!(@each external External: $($case)+);
    };
}
pub(crate) use on_every_engine;

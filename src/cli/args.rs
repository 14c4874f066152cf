//! What can be said on the command line (`CLI.md` § Commands). Each command's own arguments stand in its file.

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Parser, Subcommand, ValueEnum};

#[cfg(all(unix, feature = "server"))]
use super::commands::serve;
use super::commands::{
    backup, completions, compose, config as config_command, destroy, doctor, down, env, health, hooks, image, init,
    logs, man, migrate, psql, reset, seed, snapshot, status, up, url, verify,
};
#[cfg(unix)]
use super::commands::{fresh, test};
use crate::config::{self, Flags, Setting};
use crate::error::Result;

/// A real PostgreSQL 15 for development and tests: migrated, seeded, in about a second.
///
/// `tfdev up` starts the project's database and says how to connect; running it again changes nothing. Without a
/// `tfdev.toml` you get the sample application TaskFlow; `tfdev init` writes one for your own project.
#[derive(Debug, Parser)]
#[command(name = "tfdev", version, max_term_width = 100, propagate_version = false)]
#[command(after_help = "Run `tfdev COMMAND --help` for a command's own arguments.\n\
    Exit status: 0 done, 1 failed, 2 usage, 3 no engine, 4 not there, 5 refused to be safe, 6 conflict, \
    7 timed out, 8 bad input, 130 interrupted.")]
pub struct Arguments {
    /// Flags of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command; each has an environment variable.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// The project's folder [default: the nearest one with a tfdev.toml, else the checkout's root]
    #[arg(long, global = true, value_name = "DIR", env = "TFDEV_PROJECT_DIR", hide_env = true)]
    pub project_dir: Option<String>,
    /// The instance to work on: `dev`, `test` or another name [default: dev, or test for `fresh`, `test` and `serve`]
    #[arg(long, global = true, value_name = "NAME", env = "TFDEV_INSTANCE", hide_env = true)]
    pub instance: Option<String>,
    /// What runs the server [default: auto]
    #[arg(long, global = true, value_enum, value_name = "ENGINE", env = "TFDEV_ENGINE", hide_env = true)]
    pub engine: Option<EngineArgument>,
    /// The server's settings: `dev`, `prod`, `test` or one of the project's own [default: dev]
    #[arg(long, global = true, value_name = "NAME", env = "TFDEV_PROFILE", hide_env = true)]
    pub profile: Option<String>,
    /// How long to wait for a server or a lock [default: 300]
    #[arg(long, global = true, value_name = "SECONDS", env = "TFDEV_TIMEOUT", hide_env = true)]
    pub timeout: Option<String>,
    /// Write one JSON document to standard output, and errors as JSON
    #[arg(long, global = true, env = "TFDEV_JSON", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub json: bool,
    /// Show results, warnings and errors only
    #[arg(long, short, global = true, env = "TFDEV_QUIET", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub quiet: bool,
    /// Show also how decisions were made
    #[arg(long, short, global = true, env = "TFDEV_VERBOSE", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub verbose: bool,
    /// Use no colours
    #[arg(long, global = true, env = "TFDEV_NO_COLOR", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub no_color: bool,
    /// Answer questions with yes
    #[arg(long, short, global = true, env = "TFDEV_YES", hide_env = true, value_parser = clap::builder::FalseyValueParser::new())]
    pub yes: bool,
}

/// The words for `--engine`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum EngineArgument {
    /// The first one that can be used.
    Auto,
    /// A container through the Docker API.
    Docker,
    /// PostgreSQL 15 programs of this machine.
    Native,
    /// A server by URL.
    External,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the database, migrate it, seed it if it is empty, and say how to connect
    Up(up::Up),
    /// Stop the server and keep its data
    Down(down::Down),
    /// Remove the server and its data
    Destroy(destroy::Destroy),
    /// Show what runs, and how full it is
    Status(status::Status),
    /// Print the connection URL
    Url(url::Url),
    /// Print variables for a shell: eval "$(tfdev env)"
    Env(env::Env),
    /// Open a psql session
    Psql(psql::Psql),
    /// Show the server's log
    Logs(logs::Logs),
    /// Apply migrations, list them, or begin a new one
    Migrate(migrate::Migrate),
    /// Load fake data
    Seed(seed::Seed),
    /// Keep the database as it is, and go back to it
    Snapshot(snapshot::Snapshot),
    /// Make the database what it was when it was new
    Reset(reset::Reset),
    /// Get a private database for a test
    #[cfg(unix)]
    Fresh(fresh::Fresh),
    /// Run a test command with a database of its own
    #[cfg(unix)]
    Test(test::Test),
    /// Hand out fresh databases over HTTP
    #[cfg(all(unix, feature = "server"))]
    Serve(serve::Serve),
    /// Keep one database state for each branch, by a git hook
    Hooks(hooks::Hooks),
    /// Make backups, recover to any second, and prove that it works
    Backup(backup::Backup),
    /// Say whether the server lives and is ready
    Health(health::Health),
    /// Prove on the running server what the source document promises
    Verify(verify::Verify),
    /// Look at this machine, and say what is in the way and how to mend it
    Doctor(doctor::Doctor),
    /// Get, build, load or save the server's image
    Image(image::Image),
    /// Print the Compose file that equals the instance
    Compose(compose::Compose),
    /// Show the settled configuration with each value's origin, or how two profiles differ
    Config(config_command::Config),
    /// Write a commented tfdev.toml
    Init(init::Init),
    /// Print shell completion
    Completions(completions::Completions),
    /// Print the manual pages
    Man(man::Man),
    /// Write the log of a server of the native engine, which starts this by itself
    #[cfg(unix)]
    #[command(hide = true)]
    WriteLog,
}

impl Command {
    /// Whether git called, which is to go on whatever happens here.
    pub(super) fn is_of_git(&self) -> bool {
        matches!(self, Self::Hooks(command) if command.is_run())
    }

    /// Whether the command is to work also where the configuration is wrong.
    pub(super) fn works_without_configuration(&self) -> bool {
        matches!(self, Self::Doctor(_))
    }

    /// Whether the command itself says what Ctrl-C does: passes it on to a program of its own, or ends in order.
    pub(super) fn handles_interrupts(&self) -> bool {
        match self {
            Self::Psql(_) => true,
            #[cfg(unix)]
            Self::Test(_) => true,
            #[cfg(all(unix, feature = "server"))]
            Self::Serve(_) => true,
            _ => false,
        }
    }

    /// Whether the command is about the instance `test` unless another one is named.
    pub(super) fn is_about_tests(&self) -> bool {
        match self {
            #[cfg(unix)]
            Self::Fresh(_) | Self::Test(_) => true,
            #[cfg(all(unix, feature = "server"))]
            Self::Serve(_) => true,
            _ => false,
        }
    }
}

/// What the flags settle, each with whether it was typed or came from its variable.
///
/// A variable of a flag that only some commands have counts for all of them: `config show` and `compose` tell what `up`
/// would do.
pub(super) fn flags(matches: &ArgMatches, global: &Global) -> Result<Flags> {
    let origin = Origins(matches);
    let engine = global.engine.and_then(|engine| Some(engine.to_possible_value()?.get_name().to_owned()));
    let of_some = |name: &str| match origin.of(name, name, origin.text(name)) {
        None => config::variable_of(name),
        given => Ok(given),
    };
    Ok(Flags {
        project_dir: origin.of("project_dir", "project-dir", global.project_dir.clone()),
        instance: origin.of("instance", "instance", global.instance.clone()),
        engine: origin.of("engine", "engine", engine),
        profile: origin.of("profile", "profile", global.profile.clone()),
        image: of_some("image")?,
        port: of_some("port")?,
        dataset: of_some("dataset")?,
        external_url: config::variable_of("external_url")?,
        external_allow_remote: config::variable_of("external_allow_remote")?,
        timeout: origin.of("timeout", "timeout", global.timeout.clone()),
        yes: global.yes.then(|| Setting::flag("yes", true)),
    })
}

/// Tells where a value came from; an argument of a subcommand is known only to that subcommand's matches.
struct Origins<'a>(&'a ArgMatches);

impl Origins<'_> {
    fn innermost(&self) -> Vec<&ArgMatches> {
        let mut all = vec![self.0];
        while let Some((_, inner)) = all.last().and_then(|matches| matches.subcommand()) {
            all.push(inner);
        }
        all
    }

    fn of(&self, id: &str, flag: &str, value: Option<String>) -> Option<Setting<String>> {
        let value = value?;
        let source = self.innermost().iter().rev().find_map(|matches| {
            matches.try_contains_id(id).unwrap_or_default().then(|| matches.value_source(id)).flatten()
        });
        Some(match source {
            Some(ValueSource::EnvVariable) => Setting::variable(flag, value),
            _ => Setting::flag(flag, value),
        })
    }

    fn text(&self, id: &str) -> Option<String> {
        self.innermost().iter().rev().find_map(|matches| matches.try_get_one::<String>(id).ok().flatten().cloned())
    }
}

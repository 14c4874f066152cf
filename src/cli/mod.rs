//! The command line: arguments in, one library call, a report out.
//!
//! What must hold: data goes to standard output and everything else to standard error; with `--json` standard output is
//! exactly one JSON document, and an error is one JSON object on standard error; exit statuses are those of `CLI.md`.

pub mod args;
mod commands;
mod exit;
mod output;
mod password;
mod progress;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};

use self::args::{Arguments, Command};
use self::output::Output;
use crate::config::{self, Environment, Settings};
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;

/// How long the program waits at its end for what it has to clean up.
const CLEANUP_LIMIT: Duration = Duration::from_secs(10);

/// What a command works with.
pub(crate) struct Session {
    pub(crate) settings: Settings,
    pub(crate) events: Events,
    pub(crate) output: Output,
    /// What is wrong in the configuration, for the one command that works all the same.
    pub(crate) wrong: Option<Error>,
}

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    if let Some(code) = config::restart_without_unwanted() {
        return code;
    }
    let raw: Vec<_> = std::env::args_os().collect();
    let matches = match Arguments::command().try_get_matches_from(&raw) {
        Ok(matches) => matches,
        Err(error) => return exit::of_usage(&error, config::json() || raw.iter().any(|argument| argument == "--json")),
    };
    let arguments = match Arguments::from_arg_matches(&matches) {
        Ok(arguments) => arguments,
        Err(error) => return exit::of_usage(&error, config::json()),
    };
    let output = Output::new(&arguments.global);
    let is_of_git = arguments.command.is_of_git();
    match run(&matches, arguments, &output) {
        Ok(code) => code,
        Err(error) if is_of_git => {
            output.failed_hook(&error);
            ExitCode::SUCCESS
        }
        Err(error) => {
            output.error(&error);
            exit::code(error.kind())
        }
    }
}

fn run(matches: &clap::ArgMatches, arguments: Arguments, output: &Output) -> Result<ExitCode> {
    match arguments.command {
        // These need no project.
        Command::Completions(command) => return commands::completions::run(&command, output),
        Command::Man(command) => return commands::man::run(&command, output),
        #[cfg(unix)]
        Command::WriteLog => return commands::write_log::run(),
        _ => {}
    }
    let mut flags = args::flags(matches, &arguments.global)?;
    if arguments.command.is_about_tests() {
        let test = || config::Setting::default_value(crate::fresh::TEST_INSTANCE.to_owned());
        flags.instance.get_or_insert_with(test);
    }
    let environment = Environment::read()?;
    let (mut settings, wrong) = match Settings::resolve(&flags, &environment) {
        Err(error) if arguments.command.works_without_configuration() => {
            (Settings::without_files(&environment)?, Some(error))
        }
        settled => (settled?, None),
    };
    settings.passwords.ask = password::way_to_ask(output.json);
    settings.own_program = own_program();
    let events = progress::events(output);
    let session = Session { settings, events, output: output.clone(), wrong };
    // One thread: tfdev waits most of the time, and `up` on a running instance is to take a blink and little memory.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed("cannot start the asynchronous runtime").caused_by(error))?;
    let handles_interrupts = arguments.command.handles_interrupts();
    // In a place of its own: some commands have much to remember.
    let command = Box::pin(commands::run(arguments.command, &session));
    let result = runtime.block_on(async {
        if handles_interrupts {
            return command.await;
        }
        tokio::select! {
            // In this order: before the command does anything, signals are waited for.
            biased;
            () = interrupted() => Err(Error::new(ErrorKind::Interrupted, "interrupted")
                .hint("run the same command again: it goes on from where this one was")),
            result = command => result,
        }
    });
    runtime.block_on(crate::engine::settle(CLEANUP_LIMIT));
    // A blocking read of the terminal must not keep the program from ending.
    runtime.shutdown_background();
    result
}

/// This program, for another process of it. Linux finds it also after it was replaced, and in a folder that another user
/// cannot reach into.
fn own_program() -> Option<PathBuf> {
    let itself = PathBuf::from("/proc/self/exe");
    if itself.exists() { Some(itself) } else { std::env::current_exe().ok() }
}

/// Waits for Ctrl-C or, where there is such a thing, for SIGTERM.
async fn interrupted() {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            return;
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

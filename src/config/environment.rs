//! What the process was started with: variables, home folder, current folder. Read once, here and nowhere else.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use directories::{BaseDirs, ProjectDirs};

use super::cloud::CloudEnvironment;
use super::{DockerEnvironment, FILE_NAME, PasswordEnvironment, Setting};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::Password;
use crate::pg::connect::UNWANTED_VARIABLES;

/// The surroundings of the process, as far as they settle anything. Tests make one by hand.
#[derive(Debug, Clone)]
pub struct Environment {
    /// The folder that tfdev was started in; absolute.
    pub current_dir: PathBuf,
    /// The user's home folder.
    pub home_dir: Option<PathBuf>,
    /// The user's file, whether it exists or not.
    pub user_file: Option<PathBuf>,
    /// Folder for records, passwords and locks: `TFDEV_STATE_DIR`, else the XDG state folder, or the local data folder
    /// where the platform has none.
    pub state_dir: Setting<PathBuf>,
    /// Folder for what can be made again: `TFDEV_CACHE_DIR`, else the XDG cache folder.
    pub cache_dir: Setting<PathBuf>,
    /// What decides which Docker daemon is used.
    pub docker: DockerEnvironment,
    /// `PATH`.
    pub search_path: Option<OsString>,
    /// Where the password for an external server may be.
    pub passwords: PasswordEnvironment,
    /// The name of this machine; empty if it has none.
    pub machine: String,
    /// `NO_COLOR` is set and not empty.
    pub no_color: bool,
    /// Who logs in to a store of backups.
    pub cloud: CloudEnvironment,
}

impl Environment {
    /// Reads the surroundings of this process.
    ///
    /// Fails with [`ErrorKind::BadInput`] if the current folder is gone, if a variable is not UTF-8, or if there is
    /// neither a home folder nor the variable that stands in for it.
    pub fn read() -> Result<Self> {
        let current_dir = env::current_dir()
            .context(ErrorKind::BadInput, || "cannot tell the current folder")
            .map_err(|error| error.hint("change to a folder that exists and that you may read, then try again"))?;
        let home_dir = BaseDirs::new().map(|folders| folders.home_dir().to_owned());
        let folders = ProjectDirs::from("dev", "", "tfdev");
        let folder = |name: &str, usual: Option<PathBuf>| match path(&format!("TFDEV_{name}_DIR")) {
            Some(given) => Ok(Setting::variable(&format!("{name}_dir"), current_dir.join(given))),
            None => usual.map(Setting::default_value).ok_or_else(|| no_home(name)),
        };
        let state_dir = folder(
            "STATE",
            folders.as_ref().map(|folders| folders.state_dir().unwrap_or(folders.data_local_dir()).to_owned()),
        )?;
        let cache_dir = folder("CACHE", folders.as_ref().map(|folders| folders.cache_dir().to_owned()))?;
        let docker = DockerEnvironment {
            host: text("DOCKER_HOST")?,
            context: text("DOCKER_CONTEXT")?,
            config_dir: path("DOCKER_CONFIG").or_else(|| home_dir.as_ref().map(|home| home.join(".docker"))),
            tls_verify: variable("DOCKER_TLS_VERIFY").is_some(),
            cert_path: path("DOCKER_CERT_PATH"),
            runtime_dir: path("XDG_RUNTIME_DIR"),
        };
        let user_file = folders.as_ref().map(|folders| folders.config_dir().join(FILE_NAME));
        let search_path = variable("PATH");
        let passwords = PasswordEnvironment {
            variable: text("PGPASSWORD")?.map(Password::new),
            file: path("PGPASSFILE").or_else(|| home_dir.as_ref().map(|home| home.join(".pgpass"))),
            ask: None,
        };
        let no_color = no_color();
        let cloud = CloudEnvironment::read(home_dir.as_deref());
        let machine = machine();
        Ok(Self {
            current_dir,
            home_dir,
            user_file,
            state_dir,
            cache_dir,
            docker,
            search_path,
            passwords,
            machine,
            no_color,
            cloud,
        })
    }
}

/// The name of this machine.
#[cfg(unix)]
fn machine() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The name of this machine.
#[cfg(not(unix))]
fn machine() -> String {
    variable("COMPUTERNAME").map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether `NO_COLOR` asks for plain text, also for errors that come before anything else is read.
pub fn no_color() -> bool {
    variable("NO_COLOR").is_some()
}

/// What the variable of the flag `name` says: `TFDEV_DATASET` for `dataset`. For flags that only some commands have.
pub fn variable_of(name: &str) -> Result<Option<Setting<String>>> {
    let variable = Setting::variable(name, ());
    let value = text(&variable.origin.to_string())?;
    Ok(value.map(|value| variable.map(|()| value)))
}

/// What `TFDEV_FAULT` asks of the fault engine (`crate::engine::fault`), which only debug builds have.
#[cfg(debug_assertions)]
pub(super) fn fault() -> Option<String> {
    variable("TFDEV_FAULT").map(|value| value.to_string_lossy().into_owned())
}

/// Whether `TFDEV_JSON` asks for JSON, also for errors that come before anything else is read.
pub fn json() -> bool {
    variable("TFDEV_JSON").is_some_and(|value| !["0", "false", "no", "off", "n", "f"].iter().any(|no| value == *no))
}

/// What a test orders for a named place of the program (`crate::fault`); only debug builds ask.
#[cfg(all(debug_assertions, unix))]
pub(crate) fn fault_point() -> Option<String> {
    variable("TFDEV_FAULT_POINT")?.into_string().ok()
}

/// By how many seconds a test moves the clock of backups on; only debug builds ask.
#[cfg(debug_assertions)]
pub(crate) fn fault_clock() -> i64 {
    variable("TFDEV_FAULT_CLOCK").and_then(|text| text.into_string().ok()?.parse().ok()).unwrap_or_default()
}

/// Starts this program again without the variables that would change its own sessions with servers
/// ([`UNWANTED_VARIABLES`]), if one of them is set: they cannot be cleared in a running program without `unsafe`. Returns
/// the exit status of the second run, where the platform cannot replace the first one by it.
pub fn restart_without_unwanted() -> Option<ExitCode> {
    if UNWANTED_VARIABLES.iter().all(|name| variable(name).is_none()) {
        return None;
    }
    let mut command = Command::new(env::current_exe().ok()?);
    command.args(env::args_os().skip(1));
    for name in UNWANTED_VARIABLES {
        command.env_remove(name);
    }
    replace_by(command)
}

/// Becomes `command`. It returns only if that failed; then the sessions themselves refuse the variables.
#[cfg(unix)]
fn replace_by(mut command: Command) -> Option<ExitCode> {
    let _ = std::os::unix::process::CommandExt::exec(&mut command);
    None
}

/// Runs `command` and gives its exit status.
#[cfg(not(unix))]
fn replace_by(mut command: Command) -> Option<ExitCode> {
    let code = command.status().ok()?.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
    Some(ExitCode::from(code))
}

/// The value of a variable that is set and not empty.
#[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

fn path(name: &str) -> Option<PathBuf> {
    variable(name).map(PathBuf::from)
}

fn text(name: &str) -> Result<Option<String>> {
    variable(name)
        .map(|value| {
            let not_text = |_| Error::bad_input(format!("the variable `{name}` is not valid UTF-8"));
            value.into_string().map_err(|value| not_text(value).hint(format!("unset it: `unset {name}`")))
        })
        .transpose()
}

fn no_home(name: &str) -> Error {
    let purpose = if name == "STATE" { "records and passwords" } else { "cache" };
    Error::bad_input(format!("there is no folder for tfdev's {purpose}: this user has no home folder"))
        .hint(format!("set `HOME`, or `TFDEV_{name}_DIR` to a folder of your own"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_surroundings_of_this_process_can_be_read() {
        let environment = Environment::read().unwrap();
        assert!(environment.current_dir.is_absolute());
        assert!(environment.state_dir.value.is_absolute());
        assert_ne!(environment.state_dir.value, environment.cache_dir.value);
        assert!(environment.user_file.is_none_or(|file| file.ends_with(FILE_NAME)));
    }
}

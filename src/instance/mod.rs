//! Identity of an instance: which project it belongs to, what its things are called, where its records stand.
//!
//! What must hold: two checkouts never share an instance unless their files name the same project; every name made here
//! is safe in a path and for Docker; the lock stands outside the instance's own folder and is never removed, so that
//! whoever waits for it and whoever takes it next mean the same file.
//!
//! On disk, below the state folder:
//!
//! ```text
//! projects/<key>/<instance>.lock     who is at work (lock.rs)
//! projects/<key>/<instance>/         mode 0700
//!     instance.json                  the record (state.rs)
//!     superuser.password             mode 0600 (secret.rs)
//!     user.password
//!     pgpass
//! ```

mod lock;
pub(crate) mod private_file;
mod secret;
mod state;

use std::path::{Path, PathBuf};

use crate::config::{Settings, is_instance};
use crate::error::{Context, Error, ErrorKind, Result};

pub use lock::{FileLock, Holder, InstanceLock};
pub use secret::{Password, PgpassEntry, Secrets};
pub use state::InstanceRecord;

/// What the name of everything that belongs to tfdev begins with.
const PREFIX: &str = "tfdev";

/// One PostgreSQL server of a project, running or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// The project's key.
    pub project: String,
    /// The instance's name within its project.
    pub name: String,
    /// The root of the checkout; canonical.
    pub project_dir: PathBuf,
    /// The folder of its record and passwords; it need not exist yet.
    pub state_dir: PathBuf,
}

impl Instance {
    /// The instance that the settings mean.
    pub fn of(settings: &Settings) -> Self {
        Self::named(settings, &settings.instance.value)
    }

    /// Another instance of the same project. `name` has the shape of an instance's name.
    pub fn named(settings: &Settings, name: &str) -> Self {
        let project = settings.project_key();
        let state_dir = settings.state_dir.join("projects").join(&project).join(name);
        Self { project, name: name.to_owned(), project_dir: settings.project_dir.clone(), state_dir }
    }

    /// The names of all instances of the project that have a folder here, in order.
    pub fn names_on_disk(settings: &Settings) -> Result<Vec<String>> {
        let folder = settings.state_dir.join("projects").join(settings.project_key());
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.or_failed(|| format!("cannot read the folder `{}`", folder.display()))?,
        };
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| is_instance(name)).collect();
        names.sort();
        Ok(names)
    }

    /// The state folders of what else is on record of the project.
    pub(crate) fn other_state_dirs(&self) -> impl Iterator<Item = PathBuf> {
        let entries = self.state_dir.parent().map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|other| *other != self.state_dir)
    }

    /// The name of its container: `tfdev-<project>-<instance>`. An instance's name has no hyphen, so no two are alike.
    pub fn container_name(&self) -> String {
        format!("{PREFIX}-{}-{}", self.project, self.name)
    }

    /// The name of the volume with its data.
    pub fn volume_name(&self) -> String {
        format!("{}-data", self.container_name())
    }

    /// The name under which Compose and Docker Desktop show the project.
    pub fn compose_project(&self) -> String {
        format!("{PREFIX}-{}", self.project)
    }

    /// The file that is locked while something is done to the instance.
    pub fn lock_file(&self) -> PathBuf {
        self.state_dir.with_file_name(format!("{}.lock", self.name))
    }

    /// The file with its record.
    pub fn record_file(&self) -> PathBuf {
        self.state_dir.join("instance.json")
    }

    /// The error for an instance that does not exist.
    pub fn not_found(&self) -> Error {
        Error::new(
            ErrorKind::NotFound,
            format!("there is no instance `{}` of the project `{}`", self.name, self.project),
        )
        .hint("make it with `tfdev up`")
    }

    /// The error for an instance that does not run; `reason` says why, if that is known.
    pub fn not_running(&self, reason: Option<&str>) -> Error {
        let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
        let what = format!("the instance `{}` of the project `{}` is not running{reason}", self.name, self.project);
        Error::new(ErrorKind::NotFound, what).hint("start it with `tfdev up`")
    }

    /// Makes its folder, open to its owner alone. Does nothing if it is there.
    pub fn create_state_dir(&self) -> Result<()> {
        private_file::create_folder(&self.state_dir)
    }

    /// Removes its record, passwords and whatever else is in its folder; the lock stays. The caller holds the lock.
    pub fn remove_state_dir(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.state_dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            result => result.context(ErrorKind::Failed, || cannot("remove the folder", &self.state_dir)),
        }
    }
}

fn cannot(what: &str, path: &Path) -> String {
    format!("cannot {what} `{}`", path.display())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{CloudEnvironment, DockerEnvironment, Environment, Flags, PasswordEnvironment, Setting};

    /// The settings of a project folder with this `tfdev.toml`, records below `root`.
    pub(crate) fn settings(root: &Path, folder: &str, file: &str) -> Settings {
        let project = root.join(folder);
        std::fs::create_dir_all(&project).unwrap();
        std::fs::write(project.join("tfdev.toml"), file).unwrap();
        let environment = Environment {
            current_dir: project,
            home_dir: None,
            user_file: None,
            state_dir: Setting::default_value(root.join("state")),
            cache_dir: Setting::default_value(root.join("cache")),
            docker: DockerEnvironment::default(),
            search_path: None,
            passwords: PasswordEnvironment::default(),
            machine: "machine".to_owned(),
            no_color: false,
            cloud: CloudEnvironment::default(),
        };
        Settings::resolve(&Flags::default(), &environment).unwrap()
    }

    /// An instance below `root`.
    pub(crate) fn instance(root: &Path) -> Instance {
        Instance::of(&settings(root, "app", "project = \"app\""))
    }

    #[test]
    fn names_are_made_of_the_key_and_the_instance() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        assert_eq!(instance.container_name(), "tfdev-app-dev");
        assert_eq!(instance.volume_name(), "tfdev-app-dev-data");
        assert_eq!(instance.compose_project(), "tfdev-app");
        assert_eq!(instance.state_dir, root.path().join("state/projects/app/dev"));
        assert_eq!(instance.lock_file(), root.path().join("state/projects/app/dev.lock"));
    }

    #[test]
    fn two_checkouts_of_one_name_share_nothing_unless_told() {
        let root = tempfile::tempdir().unwrap();
        let one = Instance::of(&settings(root.path(), "a/app", ""));
        let other = Instance::of(&settings(root.path(), "b/app", ""));
        assert!(one.project.starts_with("app-") && other.project.starts_with("app-"));
        assert_ne!(one.container_name(), other.container_name());
        assert_ne!(one.state_dir, other.state_dir);
        let named = Instance::of(&settings(root.path(), "c/app", "project = \"app\""));
        let again = Instance::of(&settings(root.path(), "d/app", "project = \"app\""));
        assert_eq!(named.container_name(), again.container_name());
    }

    #[test]
    fn the_longest_names_stay_short_enough() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path(), &"long ".repeat(40), "");
        let instance = Instance::named(&settings, &"i".repeat(30));
        assert!(instance.project.len() <= 41);
        assert!(instance.volume_name().len() <= 90, "{}", instance.volume_name());
    }

    #[test]
    fn only_the_own_folder_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let settings = settings(root.path(), "app", "project = \"app\"");
        let (dev, test) = (Instance::of(&settings), Instance::named(&settings, "test"));
        assert_eq!(Instance::names_on_disk(&settings).unwrap(), Vec::<String>::new());
        dev.create_state_dir().unwrap();
        test.create_state_dir().unwrap();
        std::fs::write(dev.lock_file(), "").unwrap();
        std::fs::create_dir(dev.state_dir.with_file_name("not-ours")).unwrap();
        assert_eq!(Instance::names_on_disk(&settings).unwrap(), ["dev", "test"]);
        dev.remove_state_dir().unwrap();
        dev.remove_state_dir().unwrap();
        assert!(dev.lock_file().exists());
        assert_eq!(Instance::names_on_disk(&settings).unwrap(), ["test"]);
    }
}

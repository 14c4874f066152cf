//! Layers into [`Settings`].

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::layer::{self, Layer, Source};
use super::problem::{Problem, refuse_if_any};
use super::reference::{self, BEFORE_PROFILES, KEYS, PROFILES};
use super::template::DEFAULTS;
use super::{
    BackupSettings, DatabaseSettings, EngineChoice, Environment, FILE_NAME, Flags, FreshSettings, Origin, PortChoice,
    Setting, Settings, SnapshotSettings, project_dir,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::profile;

/// Why a value can be read back: it went through [`reference::Kind::check`], and the keys without a default are optional.
const CHECKED: &str = "the value was checked when its layer was read, and default.toml has every key that is required";

impl Settings {
    /// Settles everything from the flags, the environment and the two files.
    ///
    /// Fails with [`ErrorKind::BadInput`]: the project's folder can't be used, a file can't be read, or something in a
    /// file or flag is wrong; then all mistakes are told in one error.
    pub fn resolve(flags: &Flags, environment: &Environment) -> Result<Self> {
        let project_dir = project_dir::find(flags, environment)?;
        let user_text = environment.user_file.as_deref().map(read_file).transpose()?.flatten();
        let project_file = project_dir.value.join(FILE_NAME);
        let project_text = read_file(&project_file)?;

        let mut files = Vec::new();
        if let (Some(path), Some(text)) = (&environment.user_file, &user_text) {
            files.push((Source::UserFile(path), text.as_str()));
        }
        if let Some(text) = &project_text {
            files.push((Source::ProjectFile(&project_file), text));
        }
        let layer = settle(&files, flags, &environment.current_dir)?;
        let settings = build(layer, &project_dir, environment);
        check_profiles(&settings)?;
        Ok(settings)
    }

    /// Settles what is built in and what the surroundings say alone: for looking at a machine whose files are wrong.
    pub fn without_files(environment: &Environment) -> Result<Self> {
        let layer = settle(&[], &Flags::default(), &environment.current_dir)?;
        Ok(build(layer, &Setting::default_value(environment.current_dir.clone()), environment))
    }
}

/// Reads a file that need not exist.
fn read_file(path: &Path) -> Result<Option<String>> {
    let is_link = || fs::symlink_metadata(path).is_ok();
    match fs::read(path) {
        Ok(bytes) => text_of(bytes, path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !is_link() => Ok(None),
        // A home folder of /dev/null, as users of services have it.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => {
            let why = match error.kind() {
                io::ErrorKind::IsADirectory => ": it is a folder",
                io::ErrorKind::NotFound => ": it is a link that leads nowhere",
                io::ErrorKind::PermissionDenied => ": permission denied",
                _ => "",
            };
            Err(error).context(ErrorKind::BadInput, || format!("cannot read `{}`{why}", path.display()))
        }
    }
}

/// The text of a file, or an error with the line that is none.
fn text_of(bytes: Vec<u8>, path: &Path) -> Result<String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + valid.split(|byte| *byte == b'\n').skip(1).count();
        Error::bad_input(format!("{}:{line}: not UTF-8 text", path.display())).hint("save the file as UTF-8")
    })
}

/// Puts all layers on top of each other, weakest first.
fn settle(files: &[(Source<'_>, &str)], flags: &Flags, current_dir: &Path) -> Result<Layer> {
    let mut problems = Vec::new();
    let mut settled = layer::read(DEFAULTS, Source::Defaults, &mut problems);
    for key in KEYS {
        if let Some(fallback) = key.fallback {
            settled.values.insert(key.path, Setting::default_value(fallback.to_owned()));
        }
    }
    for (source, text) in files {
        settled.overlay(layer::read(text, *source, &mut problems));
    }
    for (path, given) in flags.given() {
        let kind = reference::find(path).expect("every flag names a key of the reference").kind;
        match kind.check(&kind.read(&given.value), current_dir) {
            Ok(value) => drop(settled.values.insert(path, Setting { value, origin: given.origin })),
            Err(fault) => problems.push(Problem::of_value(&given.origin, path, fault)),
        }
    }
    refuse_if_any(problems)?;
    Ok(settled)
}

/// Makes the settings from values that were all checked.
fn build(layer: Layer, project_dir: &Setting<PathBuf>, environment: &Environment) -> Settings {
    let optional = |key: &str| layer.values.get(key).cloned();
    let text = |key: &str| optional(key).expect(CHECKED);
    let number = |key: &str| text(key).map(|value| value.parse::<u64>().expect(CHECKED));
    let truth = |key: &str| text(key).map(|value| value == "true");
    let path = |key: &str| optional(key).map(|setting| setting.map(PathBuf::from));
    let mut settings = Settings {
        project: optional("project"),
        instance: text("instance"),
        engine: text("engine").map(|word| engine_choice(&word)),
        profile: optional("profile"),
        database: DatabaseSettings {
            name: text("database.name"),
            user: text("database.user"),
            port: text("database.port").map(|word| word.parse().map_or(PortChoice::Auto, PortChoice::Fixed)),
        },
        image: optional("docker.image"),
        docker: environment.docker.clone(),
        docker_publish: optional("docker.publish").map(|setting| setting.map(|text| text.parse().expect(CHECKED))),
        native_bin_dir: path("native.bin_dir"),
        native_user: optional("native.user"),
        external_url: optional("external.url"),
        external_allow_remote: optional("external.allow_remote"),
        passwords: environment.passwords.clone(),
        machine: environment.machine.clone(),
        migrations_dir: path("migrations.dir"),
        dataset: text("seed.dataset"),
        snapshots: SnapshotSettings { auto: number("snapshots.auto"), standby: truth("snapshots.standby") },
        fresh: FreshSettings {
            max_databases: number("fresh.max_databases"),
            keep_on_failure: truth("fresh.keep_on_failure"),
            idle_stop_seconds: number("fresh.idle_stop"),
        },
        backup: BackupSettings {
            store: optional("backup.store"),
            encryption_key_file: path("backup.encryption_key_file"),
            schedule: text("backup.schedule"),
            keep_full_days: number("backup.keep_full_days"),
            keep_wal_days: number("backup.keep_wal_days"),
            variables: environment.cloud.clone(),
        },
        timeout_seconds: number("timeout"),
        yes: truth("yes"),
        profiles: layer.profiles,
        state_dir: environment.state_dir.value.clone(),
        cache_dir: environment.cache_dir.value.clone(),
        home_dir: environment.home_dir.clone(),
        search_path: environment.search_path.clone(),
        #[cfg(debug_assertions)]
        fault: super::environment::fault(),
        own_program: None,
        listing: Vec::new(),
        project_dir: project_dir.value.clone(),
    };
    settings.listing = listing(&settings, &layer.values, &project_dir.origin, environment);
    settings
}

fn engine_choice(word: &str) -> EngineChoice {
    match word {
        "docker" => EngineChoice::Docker,
        "native" => EngineChoice::Native,
        "external" => EngineChoice::External,
        _ => EngineChoice::Auto,
    }
}

/// All settled values for people. Two keys have a default that depends on others; both are shown as they come out.
fn listing(
    settings: &Settings,
    values: &std::collections::BTreeMap<&'static str, Setting<String>>,
    project_dir: &Origin,
    environment: &Environment,
) -> Vec<(String, Setting<String>)> {
    let folder = |path: &Path, origin: &Origin| Setting { value: path.display().to_string(), origin: origin.clone() };
    let mut lines = vec![("project_dir".to_owned(), folder(&settings.project_dir, project_dir))];
    for key in KEYS {
        let unset = || match key.path {
            "project" => settings.project_key(),
            "profile" => settings.profile_name().to_owned(),
            _ => String::new(),
        };
        let setting = values.get(key.path).cloned().unwrap_or_else(|| Setting::default_value(unset()));
        lines.push((key.path.to_owned(), setting));
        if key.path == BEFORE_PROFILES {
            lines.extend(profile_lines(settings));
        }
    }
    for (name, setting) in [("state_dir", &environment.state_dir), ("cache_dir", &environment.cache_dir)] {
        lines.push((name.to_owned(), folder(&setting.value, &setting.origin)));
    }
    lines
}

fn profile_lines(settings: &Settings) -> Vec<(String, Setting<String>)> {
    let mut lines = Vec::new();
    for (profile, section) in &settings.profiles {
        let extends = section.extends.iter().map(|setting| ("extends", setting));
        let others = section.settings.iter().map(|(name, setting)| (name.as_str(), setting));
        for (name, setting) in extends.chain(others) {
            lines.push((format!("{PROFILES}.{profile}.{name}"), setting.clone()));
        }
    }
    lines
}

/// Resolves every profile, so that a mistake in one is told before anything starts, whichever is in use.
fn check_profiles(settings: &Settings) -> Result<()> {
    let asked = std::iter::once(settings.profile_name());
    for name in asked.chain(settings.profiles.keys().map(String::as_str)) {
        profile::resolve(name, &settings.profiles)?;
    }
    Ok(())
}

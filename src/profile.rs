//! Profiles: which server settings and limits an instance gets.
//!
//! What must hold: `prod` has the figures of `CON-003-postgres.md` § Configuration, and `dev` differs from it only where
//! § Development vs Production says so; `test` is tfdev's own, for data that is thrown away. All of it is pure data.
//!
//! What fails: an unknown profile, a chain of `extends` that comes back to itself, and settings that the server would
//! refuse together; each is [`crate::ErrorKind::BadInput`] and told before anything starts.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::config::{Origin, ProfileSection, Setting, Settings, is_on, nearest, same_setting, size_in_bytes};
use crate::error::{Error, Result};

/// One mebibyte, which PostgreSQL and Docker both call a megabyte.
const MEBIBYTE: u64 = 1 << 20;
/// One gibibyte.
const GIBIBYTE: u64 = 1 << 30;
/// Memory of `dev` and `prod`: "Memory: 1GB", `CON-003-postgres.md` § Deployment.
const MEMORY: u64 = GIBIBYTE;
/// Processor of `dev` and `prod`: "CPU: 1 core", same place, in billionths of a core as Docker counts.
const NANO_CPUS: u64 = 1_000_000_000;
/// Storage of `dev` and `prod`: "Storage: 10GB", same place.
const STORAGE: u64 = 10 * GIBIBYTE;
/// Memory of `test`, with the data that stands in it: `CLI.md` § Profiles.
const TEST_MEMORY: u64 = 4 * GIBIBYTE;
/// Storage of `test`, in memory: `CLI.md` § Profiles.
const TEST_STORAGE: u64 = 3 * GIBIBYTE;
/// Size of /dev/shm. Docker's 64 MB is too little for a parallel hash join; 256 MB is four times as much.
const SHARED_MEMORY: u64 = 256 * MEBIBYTE;

/// PostgreSQL's own `max_connections`.
const MAX_CONNECTIONS: u64 = 100;
/// PostgreSQL's own `superuser_reserved_connections`.
const RESERVED_CONNECTIONS: u64 = 3;
/// How many connections must be left for ordinary roles: a migration takes two, and a program wants one.
const LEAST_CONNECTIONS: u64 = 3;

/// A profile that is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BuiltIn {
    /// For development: the source's development column.
    Dev,
    /// As in production: the source's production column.
    Prod,
    /// For test suites: data in memory that does not survive a crash.
    Test,
}

/// Where the data of a profile stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPlacement {
    /// In a named volume.
    Volume,
    /// In memory (tmpfs): gone when the server stops.
    Memory,
}

/// What an instance may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Limits {
    /// Memory in bytes, with the data if that stands in memory.
    pub memory_bytes: u64,
    /// Processor time in billionths of a core; `None` means all cores.
    pub nano_cpus: Option<u64>,
    /// Storage for the data in bytes.
    pub storage_bytes: u64,
    /// Size of /dev/shm in bytes.
    pub shm_bytes: u64,
}

/// A settled profile.
#[derive(Debug, Clone)]
pub struct Profile {
    /// Its name.
    pub name: String,
    /// The built-in profile at the end of its chain, which decides on limits and data.
    pub base: BuiltIn,
    /// Server settings by name, each as in postgresql.conf; `ssl` is one of them.
    pub settings: BTreeMap<String, Setting<String>>,
    /// What an instance may use.
    pub limits: Limits,
    /// Where the data stands.
    pub data: DataPlacement,
    /// Whether the server speaks TLS; it is in `settings` as well.
    pub ssl: bool,
}

impl BuiltIn {
    /// All of them, in the order of the reference.
    pub const ALL: [Self; 3] = [Self::Dev, Self::Prod, Self::Test];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dev => "dev",
            Self::Prod => "prod",
            Self::Test => "test",
        }
    }

    /// The one of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|built_in| built_in.name() == name)
    }

    /// Its server settings: `CLI.md` § Profiles, whose source is `CON-003-postgres.md` § Configuration.
    pub fn settings(self) -> &'static [(&'static str, &'static str)] {
        match self {
            // § Development vs Production: max_connections, shared_buffers, log_statement and ssl differ from prod.
            Self::Dev => &[
                ("max_connections", "20"),
                ("shared_buffers", "128MB"),
                ("work_mem", "4MB"),
                ("maintenance_work_mem", "64MB"),
                ("wal_level", "logical"),
                ("log_statement", "all"),
                ("log_min_duration_statement", "1000"),
                ("ssl", "off"),
                ("fsync", "on"),
                ("synchronous_commit", "on"),
                ("full_page_writes", "on"),
            ],
            Self::Prod => &[
                ("max_connections", "100"),
                ("shared_buffers", "256MB"),
                ("work_mem", "4MB"),
                ("maintenance_work_mem", "64MB"),
                ("wal_level", "logical"),
                ("log_statement", "ddl"),
                ("log_min_duration_statement", "1000"),
                ("ssl", "on"),
                ("fsync", "on"),
                ("synchronous_commit", "on"),
                ("full_page_writes", "on"),
            ],
            // Ours. wal_level = minimal starts only with no WAL senders, whose default is 10.
            Self::Test => &[
                ("max_connections", "200"),
                ("shared_buffers", "128MB"),
                ("work_mem", "4MB"),
                ("maintenance_work_mem", "64MB"),
                ("wal_level", "minimal"),
                ("max_wal_senders", "0"),
                ("log_statement", "none"),
                ("log_min_duration_statement", "1000"),
                ("ssl", "off"),
                ("fsync", "off"),
                ("synchronous_commit", "off"),
                ("full_page_writes", "off"),
            ],
        }
    }

    /// What its instances may use: `CON-003-postgres.md` § Deployment for dev and prod, `CLI.md` § Profiles for test.
    pub fn limits(self) -> Limits {
        match self {
            Self::Dev | Self::Prod => Limits {
                memory_bytes: MEMORY,
                nano_cpus: Some(NANO_CPUS),
                storage_bytes: STORAGE,
                shm_bytes: SHARED_MEMORY,
            },
            Self::Test => Limits {
                memory_bytes: TEST_MEMORY,
                nano_cpus: None,
                storage_bytes: TEST_STORAGE,
                shm_bytes: SHARED_MEMORY,
            },
        }
    }

    /// Where its data stands: "Data volume", `CON-003-postgres.md` § Deployment; in memory for test.
    pub fn data(self) -> DataPlacement {
        match self {
            Self::Dev | Self::Prod => DataPlacement::Volume,
            Self::Test => DataPlacement::Memory,
        }
    }
}

impl fmt::Display for BuiltIn {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Settles the profile `name`: the built-in one at the end of its chain, then each section on the way back.
///
/// A section named as a built-in profile extends that one; another one without `extends` starts from `dev`. Fails with
/// [`crate::ErrorKind::BadInput`] if there is no such profile, if a chain has no end, or if the settings don't fit
/// together.
pub fn resolve(name: &str, sections: &BTreeMap<String, ProfileSection>) -> Result<Profile> {
    let (base, chain) = chain(name, sections)?;
    let built_in = base.settings().iter();
    let mut settings: BTreeMap<String, Setting<String>> =
        built_in.map(|(name, value)| ((*name).to_owned(), Setting::default_value((*value).to_owned()))).collect();
    for section in chain.iter().rev() {
        settings.extend(section.settings.iter().map(|(name, setting)| (name.clone(), setting.clone())));
    }
    let is_minimal = settings.get("wal_level").is_some_and(|level| level.value == "minimal");
    if is_minimal {
        settings.entry("max_wal_senders".to_owned()).or_insert_with(|| Setting::default_value("0".to_owned()));
    }
    let ssl = settings.get("ssl").is_some_and(|setting| is_on(&setting.value));
    let profile = Profile { name: name.to_owned(), base, settings, limits: base.limits(), data: base.data(), ssl };
    profile.check()?;
    Ok(profile)
}

/// Follows `extends` from `name` to a built-in profile. The sections on the way are given nearest first.
fn chain<'a>(name: &str, sections: &'a BTreeMap<String, ProfileSection>) -> Result<(BuiltIn, Vec<&'a ProfileSection>)> {
    let mut seen: Vec<String> = Vec::new();
    let mut chain = Vec::new();
    let mut current = name.to_owned();
    let mut asked_by: Option<&Origin> = None;
    loop {
        if seen.contains(&current) {
            seen.push(current);
            let round = seen.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(" extends ");
            return Err(at(asked_by, format_args!("the profiles never come to an end: {round}"))
                .hint("let one of them extend `dev`, `prod` or `test`"));
        }
        let built_in = BuiltIn::by_name(&current);
        let section = sections.get(&current);
        chain.extend(section);
        let extends = section.and_then(|section| section.extends.as_ref());
        match (built_in, section, extends) {
            (Some(built_in), _, None) => return Ok((built_in, chain)),
            (Some(built_in), _, Some(extends)) if extends.value == current => return Ok((built_in, chain)),
            (Some(_), _, Some(extends)) => {
                let says = format!("`{current}` is built in, so its section always extends that profile");
                return Err(at(Some(&extends.origin), says).hint(format!(
                    "remove the line with `extends`, or give the section another name than `{current}`"
                )));
            }
            (None, None, _) => return Err(unknown(&current, asked_by, sections)),
            (None, Some(_), extends) => {
                asked_by = extends.map(|setting| &setting.origin);
                let next = extends.map_or("dev", |setting| &setting.value).to_owned();
                seen.push(std::mem::replace(&mut current, next));
            }
        }
    }
}

fn unknown(name: &str, asked_by: Option<&Origin>, sections: &BTreeMap<String, ProfileSection>) -> Error {
    let mut known: Vec<&str> = BuiltIn::ALL.map(BuiltIn::name).to_vec();
    known.extend(sections.keys().map(String::as_str).filter(|name| BuiltIn::by_name(name).is_none()));
    let guess =
        nearest(name, known.iter().copied()).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    at(asked_by, format_args!("there is no profile `{name}`{guess}")).hint(format!(
        "the profiles are {}; a section `[profiles.{name}]` in tfdev.toml would add this one",
        known.join(", ")
    ))
}

fn at(origin: Option<&Origin>, says: impl fmt::Display) -> Error {
    match origin {
        Some(origin @ Origin::File { .. }) => Error::bad_input(format!("{origin}: {says}")),
        _ => Error::bad_input(says.to_string()),
    }
}

/// The settings of a profile with which a server was seen to run: what a change that fails goes back to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Proven {
    /// The profile's name.
    pub profile: String,
    /// The built-in profile at the end of its chain.
    pub base: BuiltIn,
    /// Server settings by name.
    pub settings: BTreeMap<String, String>,
}

/// A setting that two profiles, or a server before and after, have otherwise; `None` is the server's own default.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Change {
    /// The setting's name.
    pub name: String,
    /// Its value before, or in the first.
    pub old: Option<String>,
    /// Its value now, or in the second.
    pub new: Option<String>,
}

impl fmt::Display for Change {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "the default".to_owned());
        write!(formatter, "{} {} → {}", self.name, shown(&self.old), shown(&self.new))
    }
}

/// What differs between two sets of settings, in the order of the names. `4096kB` and `4MB` are the same.
pub fn changes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> Vec<Change> {
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    let change = |name: &String| {
        let (old, new) = (old.get(name).cloned(), new.get(name).cloned());
        let same = match (&old, &new) {
            (Some(old), Some(new)) => same_setting(name, old, new),
            _ => false,
        };
        (!same).then(|| Change { name: name.clone(), old, new })
    };
    names.into_iter().filter_map(change).collect()
}

/// What differs between the profiles of these names: server settings, then limits and the place of the data.
pub fn difference(first: &str, second: &str, sections: &BTreeMap<String, ProfileSection>) -> Result<Vec<Change>> {
    let (first, second) = (resolve(first, sections)?, resolve(second, sections)?);
    let mut all = changes(&first.values(), &second.values());
    let rows = first.limit_rows().into_iter().zip(second.limit_rows());
    all.extend(rows.filter(|((_, old), (_, new))| old != new).map(|((name, old), (_, new))| Change {
        name: name.to_owned(),
        old: Some(old),
        new: Some(new),
    }));
    Ok(all)
}

impl Proven {
    /// The profile that it was.
    pub fn profile(&self) -> Profile {
        let settings = self.settings.iter().map(|(name, value)| (name.clone(), Setting::default_value(value.clone())));
        let ssl = self.settings.get("ssl").is_some_and(|value| is_on(value));
        Profile {
            name: self.profile.clone(),
            base: self.base,
            settings: settings.collect(),
            limits: self.base.limits(),
            data: self.base.data(),
            ssl,
        }
    }
}

impl Profile {
    /// The profile that the settings mean.
    pub fn of(settings: &Settings) -> Result<Self> {
        resolve(settings.profile_name(), &settings.profiles)
    }

    /// Its limits and the place of its data, as people read them.
    fn limit_rows(&self) -> [(&'static str, String); 4] {
        let megabytes = |bytes: u64| format!("{} MB", bytes / MEBIBYTE);
        let cores = |billionths: u64| format!("{}.{:02}", billionths / NANO_CPUS, billionths % NANO_CPUS / 10_000_000);
        [
            ("memory (limit)", megabytes(self.limits.memory_bytes)),
            ("processor cores (limit)", self.limits.nano_cpus.map_or_else(|| "all".to_owned(), cores)),
            ("storage (limit)", megabytes(self.limits.storage_bytes)),
            (
                "data",
                match self.data {
                    DataPlacement::Volume => "volume".to_owned(),
                    DataPlacement::Memory => "memory".to_owned(),
                },
            ),
        ]
    }

    /// Why a server with this profile has no archived log; `None` if it can have one.
    pub(crate) fn no_archive(&self) -> Option<String> {
        let profile = &self.name;
        if self.data == DataPlacement::Memory {
            return Some(format!("the data of the profile `{profile}` is in memory and goes with its server"));
        }
        let is_minimal = self.settings.get("wal_level").is_some_and(|level| level.value == "minimal");
        is_minimal.then(|| format!("the profile `{profile}` has `wal_level = \"minimal\"`, whose log leads nowhere"))
    }

    /// Whether the server keeps passwords so that a login is short: its data is thrown away, and it speaks no TLS.
    pub fn has_short_logins(&self) -> bool {
        self.base == BuiltIn::Test && !self.ssl
    }

    /// The values of its server settings by name.
    pub fn values(&self) -> BTreeMap<String, String> {
        self.settings.iter().map(|(name, setting)| (name.clone(), setting.value.clone())).collect()
    }

    /// What is kept of it once a server was seen to run with it.
    pub fn proven(&self) -> Proven {
        Proven { profile: self.name.clone(), base: self.base, settings: self.values() }
    }

    /// Refuses settings that are right one by one, but with which the server would not start or not live.
    fn check(&self) -> Result<()> {
        self.check_wal_senders()?;
        self.check_connections()?;
        self.check_memory()
    }

    /// What is reserved for superusers is no use to a program, nor to tfdev where it is the program's role.
    fn check_connections(&self) -> Result<()> {
        let number = |name: &str, default: u64| {
            let setting = self.settings.get(name);
            (setting, setting.and_then(|setting| setting.value.parse::<u64>().ok()).unwrap_or(default))
        };
        let (connections, most) = number("max_connections", MAX_CONNECTIONS);
        let (reserved, kept) = number("superuser_reserved_connections", RESERVED_CONNECTIONS);
        if most >= kept + LEAST_CONNECTIONS {
            return Ok(());
        }
        let written = [connections, reserved].into_iter().flatten().find(|setting| setting.origin != Origin::Default);
        let says = format!(
            "`max_connections` is {most} in the profile `{}`, of which {kept} are reserved for superusers: {} more are \
             needed at least",
            self.name, LEAST_CONNECTIONS
        );
        Err(at(written.map(|setting| &setting.origin), says)
            .hint(format!("set `max_connections` to {} or more", kept + LEAST_CONNECTIONS)))
    }

    fn check_wal_senders(&self) -> Result<()> {
        let (Some(level), Some(senders)) = (self.settings.get("wal_level"), self.settings.get("max_wal_senders"))
        else {
            return Ok(());
        };
        if level.value != "minimal" || senders.value == "0" {
            return Ok(());
        }
        let written = if senders.origin == Origin::Default { level } else { senders };
        let says = format!(
            "`max_wal_senders` is {} in the profile `{}`, which needs more than `wal_level = \"minimal\"`",
            senders.value, self.name
        );
        Err(at(Some(&written.origin), says)
            .hint("set `wal_level = \"replica\"` or `max_wal_senders = 0` in the profile"))
    }

    fn check_memory(&self) -> Result<()> {
        let Some(buffers) = self.settings.get("shared_buffers") else { return Ok(()) };
        let data = match self.data {
            DataPlacement::Volume => 0,
            DataPlacement::Memory => self.limits.storage_bytes,
        };
        let room = self.limits.memory_bytes.saturating_sub(data);
        if size_in_bytes("shared_buffers", &buffers.value).is_none_or(|bytes| bytes < room) {
            return Ok(());
        }
        let says = format!(
            "`shared_buffers` is {} in the profile `{}`, but its memory limit leaves {} MB",
            buffers.value,
            self.name,
            room / MEBIBYTE
        );
        Err(at(Some(&buffers.origin), says).hint("a quarter of the memory is usual: `shared_buffers = \"256MB\"`"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn line(line: usize) -> Origin {
        Origin::File { path: PathBuf::from("tfdev.toml"), line }
    }

    fn section(extends: Option<&str>, settings: &[(&str, &str)]) -> ProfileSection {
        let setting = |value: &str| Setting { value: value.to_owned(), origin: line(7) };
        ProfileSection {
            extends: extends.map(setting),
            settings: settings.iter().map(|(name, value)| ((*name).to_owned(), setting(value))).collect(),
        }
    }

    fn sections(list: &[(&str, ProfileSection)]) -> BTreeMap<String, ProfileSection> {
        list.iter().map(|(name, section)| ((*name).to_owned(), section.clone())).collect()
    }

    fn value<'a>(profile: &'a Profile, name: &str) -> &'a str {
        &profile.settings[name].value
    }

    #[test]
    fn dev_differs_from_prod_only_where_the_source_says_so() {
        let prod: BTreeMap<_, _> = BuiltIn::Prod.settings().iter().copied().collect();
        let dev: BTreeMap<_, _> = BuiltIn::Dev.settings().iter().copied().collect();
        let different: Vec<_> =
            prod.iter().filter(|(name, value)| dev[*name] != **value).map(|(name, _)| *name).collect();
        assert_eq!(different, ["log_statement", "max_connections", "shared_buffers", "ssl"]);
        assert_eq!(prod.len(), dev.len());
        assert_eq!(BuiltIn::Prod.limits(), BuiltIn::Dev.limits());
    }

    #[test]
    fn the_built_in_profiles_have_the_figures_of_the_source() {
        let none = BTreeMap::new();
        let prod = resolve("prod", &none).unwrap();
        assert_eq!((value(&prod, "max_connections"), value(&prod, "shared_buffers")), ("100", "256MB"));
        assert_eq!((value(&prod, "log_statement"), prod.ssl, prod.data), ("ddl", true, DataPlacement::Volume));
        let dev = resolve("dev", &none).unwrap();
        assert_eq!((value(&dev, "max_connections"), value(&dev, "shared_buffers")), ("20", "128MB"));
        assert_eq!((value(&dev, "wal_level"), dev.ssl), ("logical", false));
        assert_eq!(dev.limits.memory_bytes, 1_073_741_824);
        assert_eq!((dev.limits.nano_cpus, dev.limits.storage_bytes), (Some(1_000_000_000), 10_737_418_240));
        assert!(dev.limits.shm_bytes >= 268_435_456);
        let test = resolve("test", &none).unwrap();
        assert_eq!((value(&test, "wal_level"), value(&test, "max_wal_senders")), ("minimal", "0"));
        assert_eq!((value(&test, "fsync"), value(&test, "full_page_writes")), ("off", "off"));
        assert_eq!((test.data, test.limits.nano_cpus), (DataPlacement::Memory, None));
    }

    #[test]
    fn a_section_extends_another_or_the_built_in_of_its_name() {
        let sections = sections(&[
            ("dev", section(None, &[("work_mem", "8MB")])),
            ("perf", section(Some("prod"), &[("random_page_cost", "1.1"), ("ssl", "off")])),
            ("mine", section(Some("dev"), &[("jit", "off")])),
            ("plain", section(None, &[])),
        ]);
        let perf = resolve("perf", &sections).unwrap();
        assert_eq!((perf.base, perf.ssl, value(&perf, "max_connections")), (BuiltIn::Prod, false, "100"));
        assert_eq!(perf.settings["random_page_cost"].origin, line(7));
        assert_eq!(perf.settings["work_mem"].origin, Origin::Default);
        let mine = resolve("mine", &sections).unwrap();
        assert_eq!((value(&mine, "work_mem"), value(&mine, "jit")), ("8MB", "off"));
        assert_eq!(resolve("plain", &sections).unwrap().base, BuiltIn::Dev);
    }

    #[test]
    fn chains_without_an_end_and_unknown_bases_are_told_with_their_line() {
        let round = sections(&[("a", section(Some("b"), &[])), ("b", section(Some("a"), &[]))]);
        let error = resolve("a", &round).unwrap_err();
        assert_eq!(error.to_string(), "tfdev.toml:7: the profiles never come to an end: `a` extends `b` extends `a`");
        let error = resolve("x", &sections(&[("x", section(Some("prdo"), &[]))])).unwrap_err();
        assert_eq!(error.to_string(), "tfdev.toml:7: there is no profile `prdo`; did you mean `prod`?");
        let error = resolve("dev", &sections(&[("dev", section(Some("prod"), &[]))])).unwrap_err();
        assert!(error.to_string().starts_with("tfdev.toml:7: `dev` is built in"), "{error}");
    }

    #[test]
    fn what_differs_is_told_with_both_values() {
        let change = |name: &str, old: Option<&str>, new: Option<&str>| Change {
            name: name.to_owned(),
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
        };
        let own = sections(&[("perf", section(Some("dev"), &[("work_mem", "4096kB"), ("jit", "off")]))]);
        assert_eq!(difference("dev", "perf", &own).unwrap(), [change("jit", None, Some("off"))]);
        let prod = difference("dev", "prod", &own).unwrap();
        assert_eq!(prod[0], change("log_statement", Some("all"), Some("ddl")));
        assert_eq!(prod[1].to_string(), "max_connections 20 → 100");
        assert_eq!(prod.len(), 4);
        let test = difference("dev", "test", &own).unwrap();
        assert!(test.contains(&change("data", Some("volume"), Some("memory"))), "{test:?}");
        assert_eq!(difference("dev", "prdo", &own).unwrap_err().kind(), crate::ErrorKind::BadInput);
    }

    #[test]
    fn what_was_proven_is_the_same_profile_again() {
        let profile = resolve("prod", &BTreeMap::new()).unwrap();
        let again = profile.proven().profile();
        assert_eq!((again.values(), again.ssl, again.limits), (profile.values(), true, profile.limits));
        let text = serde_json::to_string(&profile.proven()).unwrap();
        assert_eq!(serde_json::from_str::<Proven>(&text).unwrap(), profile.proven());
    }

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let refusal = |base: &str, settings: &[(&str, &str)]| {
            resolve("x", &sections(&[("x", section(Some(base), settings))])).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refusal("test", &[("max_wal_senders", "5")]).contains("`max_wal_senders` is 5"));
        assert!(
            refusal("dev", &[("max_connections", "5")]).contains("3 are reserved for superusers: 3 more are needed")
        );
        assert!(refusal("dev", &[("superuser_reserved_connections", "18")]).contains("`max_connections` is 20"));
        assert!(refusal("dev", &[("shared_buffers", "1GB")]).contains("its memory limit leaves 1024 MB"));
        assert!(refusal("test", &[("shared_buffers", "2GB")]).contains("its memory limit leaves 1024 MB"));
        let minimal = sections(&[("x", section(Some("dev"), &[("wal_level", "minimal")]))]);
        assert_eq!(value(&resolve("x", &minimal).unwrap(), "max_wal_senders"), "0");
    }
}

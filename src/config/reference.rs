//! The table of all keys: what each may hold and where it may stand. `default.toml` documents the same keys for people;
//! a test holds the two together.

use std::path::Path;

use super::names;
use super::problem::Fault;
use super::raw::Raw;

/// Where a key may be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In both files and by a flag where there is one.
    Anywhere,
    /// Not in the user's file, which is for all projects.
    ProjectFile,
    /// By a flag or variable only: the flag.
    Flag(&'static str),
}

/// What a key may hold.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// Text of a shape.
    Text(fn(&str) -> Result<(), Fault>),
    /// One of these words.
    Word(&'static [&'static str]),
    /// `auto` or a port.
    Port,
    /// A whole number from the first to the second, both included.
    Number(i64, i64),
    /// `true` or `false`.
    Bool,
    /// A path, relative to the folder of the file that it stands in.
    Path,
}

/// A key of the configuration.
#[derive(Debug)]
pub(super) struct Key {
    /// Its name with its section.
    pub(super) path: &'static str,
    /// What it may hold.
    pub(super) kind: Kind,
    /// Where it may be set.
    pub(super) place: Place,
    /// The default of a key that cannot stand in a file; the others have theirs in `default.toml`.
    pub(super) fallback: Option<&'static str>,
}

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, kind, place: Place::Anywhere, fallback: None }
}

const fn flag(path: &'static str, flag: &'static str, kind: Kind, fallback: Option<&'static str>) -> Key {
    Key { path, kind, place: Place::Flag(flag), fallback }
}

/// The words of `engine`.
pub(super) const ENGINES: &[&str] = &["auto", "docker", "native", "external"];
/// The section whose keys are profiles and server settings.
pub(super) const PROFILES: &str = "profiles";
/// `timeout` when nothing is said, in seconds: above the longest wait that is normal, a first start that pulls the image
/// (about 100 MB) over a slow line.
const TIMEOUT: &str = "300";

/// All keys in the order of the reference. `profiles` has its own rules and stands for its whole section.
pub(super) const KEYS: &[Key] = &[
    Key { path: "project", kind: Kind::Text(names::project_key), place: Place::ProjectFile, fallback: None },
    flag("instance", "--instance", Kind::Text(names::instance), Some("dev")),
    key("engine", Kind::Word(ENGINES)),
    flag("profile", "--profile", Kind::Text(names::profile), None),
    flag("timeout", "--timeout", Kind::Number(1, 86_400), Some(TIMEOUT)),
    flag("yes", "--yes", Kind::Bool, Some("false")),
    key("database.name", Kind::Text(names::database)),
    key("database.user", Kind::Text(names::user)),
    key("database.port", Kind::Port),
    key("docker.image", Kind::Text(names::image)),
    key("docker.publish", Kind::Text(names::address)),
    key("native.bin_dir", Kind::Path),
    key("native.user", Kind::Text(names::system_user)),
    key("external.url", Kind::Text(names::server_url)),
    key("external.allow_remote", Kind::Text(names::remote)),
    key("migrations.dir", Kind::Path),
    key("seed.dataset", Kind::Text(names::dataset)),
    key("snapshots.auto", Kind::Number(0, 1000)),
    key("snapshots.standby", Kind::Bool),
    key("fresh.max_databases", Kind::Number(1, 10_000)),
    key("fresh.keep_on_failure", Kind::Bool),
    key("fresh.idle_stop", Kind::Number(0, 2_592_000)),
    key("backup.store", Kind::Text(names::store)),
    key("backup.encryption_key_file", Kind::Path),
    key("backup.schedule", Kind::Text(names::time_of_day)),
    key("backup.keep_full_days", Kind::Number(1, 36_500)),
    key("backup.keep_wal_days", Kind::Number(1, 36_500)),
];

/// The key after which the profiles are listed.
pub(super) const BEFORE_PROFILES: &str = "seed.dataset";

/// Finds a key by its name with its section.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Says whether `name` is a section.
pub(super) fn is_section(name: &str) -> bool {
    sections().any(|section| section == name)
}

/// The sections, with repeats.
fn sections() -> impl Iterator<Item = &'static str> {
    KEYS.iter().filter_map(|key| key.path.split_once('.').map(|(section, _)| section)).chain([PROFILES])
}

/// The known key nearest to an unknown one: the same word in another section, or one that is spelled almost so.
pub(super) fn nearest_key(path: &str) -> Option<&'static str> {
    let word = path.rsplit('.').next().unwrap_or(path);
    let in_files = || KEYS.iter().filter(|key| !matches!(key.place, Place::Flag(_))).map(|key| key.path);
    in_files()
        .find(|known| known.rsplit('.').next() == Some(word))
        .or_else(|| names::nearest(path, in_files().chain(sections())))
        .or_else(|| {
            let (section, _) = path.split_once('.')?;
            let siblings = || in_files().filter_map(|known| known.split_once('.').filter(|(name, _)| *name == section));
            let nearest = names::nearest(word, siblings().map(|(_, word)| word))?;
            in_files().find(|known| known.split_once('.') == Some((section, nearest)))
        })
}

/// The keys of a section, or of the top level, for a hint.
pub(super) fn keys_of(section: Option<&str>) -> Vec<&'static str> {
    let mut words: Vec<_> = KEYS
        .iter()
        .filter(|key| !matches!(key.place, Place::Flag(_)))
        .filter_map(|key| match (key.path.split_once('.'), section) {
            (Some((of, word)), Some(section)) if of == section => Some(word),
            (Some((of, _)), None) => Some(of),
            (None, None) => Some(key.path),
            _ => None,
        })
        .chain(section.is_none().then_some(PROFILES))
        .collect();
    words.dedup();
    words
}

impl Kind {
    /// Reads the text of a flag or variable, where numbers and truth values stand without a type of their own.
    pub(super) fn read(self, text: &str) -> Raw {
        let read = match self {
            Self::Port | Self::Number(..) => text.parse().ok().map(Raw::Integer),
            Self::Bool => text.parse().ok().map(Raw::Bool),
            Self::Text(_) | Self::Word(_) | Self::Path => None,
        };
        read.unwrap_or_else(|| Raw::Text(text.to_owned()))
    }

    /// Checks a value and gives it as text that [`super::resolve`] reads back. A path is made absolute against `folder`.
    pub(super) fn check(self, raw: &Raw, folder: &Path) -> Result<String, Fault> {
        match (self, raw) {
            (Self::Text(shape), Raw::Text(text)) => shape(text).map(|()| text.clone()),
            (Self::Text(_), _) => Err(Fault::expected("a string in quotes", raw)),
            (Self::Word(words), Raw::Text(text)) if words.contains(&text.as_str()) => Ok(text.clone()),
            (Self::Word(words), _) => Err(word_expected(words, raw)),
            (Self::Port, Raw::Text(text)) if text == "auto" => Ok(text.clone()),
            (Self::Port, Raw::Integer(number @ 1..=65_535)) => Ok(number.to_string()),
            (Self::Port, _) => Err(Fault::expected("\"auto\" or a number from 1 to 65535", raw)),
            (Self::Number(from, to), Raw::Integer(number)) if (from..=to).contains(number) => Ok(number.to_string()),
            (Self::Number(from, to), _) => Err(Fault::expected(&format!("a whole number from {from} to {to}"), raw)),
            (Self::Bool, Raw::Bool(value)) => Ok(value.to_string()),
            (Self::Bool, _) => Err(Fault::expected("true or false", raw)),
            (Self::Path, Raw::Text(text)) if !text.is_empty() && !text.contains('\0') => absolute(text, folder),
            (Self::Path, _) => Err(Fault::expected("a path in quotes", raw)),
        }
    }
}

fn word_expected(words: &[&str], raw: &Raw) -> Fault {
    let quoted: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
    let fault = Fault::expected(&format!("one of {}", quoted.join(", ")), raw);
    match raw {
        Raw::Text(text) => match names::nearest(text, words.iter().copied()) {
            Some(nearest) => fault.hint(format!("did you mean {nearest:?}?")),
            None => fault,
        },
        _ => fault,
    }
}

fn absolute(text: &str, folder: &Path) -> Result<String, Fault> {
    let joined = folder.join(text);
    let cleaned: std::path::PathBuf = joined.components().collect();
    cleaned.into_os_string().into_string().map_err(|_| Fault::new("stands in a folder whose path is not valid UTF-8"))
}

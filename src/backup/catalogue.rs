//! What is in the store of one cluster: full backups, the log, named points, and what is known of them.
//!
//! What must hold: a backup counts only when its manifest is there, which is written last; and everything in here comes
//! from the store alone, so that it works on a machine that never had the instance.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::keys::EXTENSION;
use super::manifest::{Backup, Coverage, FORMAT_ENCRYPTED, Kind, Manifest, Mark, Verification};
use super::position::{History, Segment, history_file, parse_history};
use super::store::Store;
use crate::error::{Context, Error, ErrorKind, Result};

/// How many small objects are read at once.
const READS_AT_ONCE: usize = 8;

/// A file of the log in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFile {
    /// The object, below the folder of the cluster.
    pub key: String,
    /// Its size there.
    pub bytes: u64,
    /// The SHA-256 of what is in it, unpacked; of the object if that is encrypted.
    pub sha256: String,
    /// When it came into the store.
    pub at: Timestamp,
}

/// The log in the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Log {
    /// Whole segments. More than one file is two contents for one segment, which must not be.
    pub segments: BTreeMap<Segment, Vec<LogFile>>,
    /// History files by their timeline.
    pub histories: BTreeMap<u32, (LogFile, History)>,
    /// Other files: backup labels and partial segments.
    pub others: Vec<LogFile>,
}

/// All of one cluster.
#[derive(Debug, Clone, PartialEq)]
pub struct Catalogue {
    /// Its folder in the store.
    pub folder: String,
    /// The backups, oldest first.
    pub backups: Vec<Backup>,
    /// The log.
    pub log: Log,
    /// Named points, by name.
    pub marks: BTreeMap<String, Mark>,
    /// Up to when everything is there.
    pub coverage: Option<Coverage>,
    /// Folders of backups that have no manifest: being made, or cut off.
    pub unfinished: Vec<String>,
    /// What cannot be understood, by its key, and why: it is left alone, and what it may need.
    pub damaged: BTreeMap<String, String>,
}

/// The folder of a cluster: what is of one instance, with one identity, in one server.
pub fn cluster_folder(project: &str, instance: &str, system_identifier: Option<u64>, id: uuid::Uuid) -> String {
    let server = system_identifier.map_or_else(|| "external".to_owned(), |identifier| identifier.to_string());
    // Part of the identity is enough: the clusters of one server are few.
    format!("{project}/{instance}/{server}-{}", &id.simple().to_string()[..8])
}

/// The object of a file of the log, below the folder of the cluster. The checksum is of the file as PostgreSQL has it, or
/// of the object with `extension` `.age`.
pub fn log_key(name: &str, sha256: &str, extension: &str) -> String {
    format!("{}/{name}-{sha256}.zst{extension}", log_folder(name))
}

/// The folder of a file of the log, which holds no more than some hundred.
pub fn log_folder(name: &str) -> String {
    // 000000010000000A000000FE → wal/000000010000000A
    match name.get(..16) {
        Some(log) if name.len() >= 24 => format!("wal/{log}"),
        _ => "wal/history".to_owned(),
    }
}

/// The name and checksum of a file of the log.
pub fn read_log_key(key: &str) -> Option<(&str, &str)> {
    let file = key.rsplit('/').next()?;
    let file = file.strip_suffix(EXTENSION).unwrap_or(file).strip_suffix(".zst")?;
    file.rsplit_once('-').filter(|(_, sha256)| sha256.len() == 64)
}

impl Catalogue {
    /// Reads what the store has in `folder`.
    pub async fn load(store: &Store, folder: &str) -> Result<Self> {
        let objects = store.list(folder).await?;
        let mut found = Self {
            folder: folder.to_owned(),
            backups: Vec::new(),
            log: Log::default(),
            marks: BTreeMap::new(),
            coverage: None,
            unfinished: Vec::new(),
            damaged: BTreeMap::new(),
        };
        let mut manifests = Vec::new();
        let (mut proofs, mut marks, mut folders) = (Vec::new(), Vec::new(), Vec::new());
        for object in &objects {
            let Some(key) = object.key.strip_prefix(folder).map(|key| key.trim_start_matches('/')) else { continue };
            match key.split('/').collect::<Vec<_>>()[..] {
                ["full", id, "manifest.json"] => manifests.push((id.to_owned(), key.to_owned())),
                ["full", id, "verified.json"] => proofs.push((id.to_owned(), key.to_owned())),
                ["full", id, _] => folders.push(id.to_owned()),
                ["marks", _] => marks.push(key.to_owned()),
                ["wal", ..] => found.log.add(key, object.bytes, object.at),
                _ => {}
            }
        }
        let mut proofs: BTreeMap<String, Verification> = found.understood(read_all(store, folder, proofs).await?);
        for (id, proof) in &mut proofs {
            proof.open(id, store.keys());
        }
        let manifests = stream::iter(manifests)
            .map(|(id, key)| async move { understood(read_manifest(store, folder, &id, &key).await, id, &key) })
            .buffer_unordered(READS_AT_ONCE)
            .try_collect()
            .await?;
        let manifests: BTreeMap<String, Manifest> = found.understood(manifests);
        found.backups =
            manifests.into_iter().map(|(id, manifest)| Backup { verified: proofs.remove(&id), manifest }).collect();
        found.backups.sort_by(|one, other| {
            (one.manifest.created, &one.manifest.id).cmp(&(other.manifest.created, &other.manifest.id))
        });
        folders.sort();
        folders.dedup();
        folders.retain(|id| {
            let is_damaged = found.damaged.contains_key(&format!("full/{id}/manifest.json"));
            !is_damaged && !found.backups.iter().any(|backup| backup.manifest.id == *id)
        });
        found.unfinished = folders;
        let marks = marks.into_iter().map(|key| (key.clone(), key)).collect();
        let marks: BTreeMap<String, Mark> = found.understood(read_all(store, folder, marks).await?);
        found.marks = marks.into_values().map(|mark| (mark.name.clone(), mark)).collect();
        found.coverage = match store.get(&format!("{folder}/coverage.json")).await? {
            // One that cannot be understood tells nothing; the next one takes its place.
            Some(bytes) => parse(&bytes, "coverage.json").ok(),
            None => None,
        };
        found.read_histories(store).await?;
        Ok(found)
    }

    async fn read_histories(&mut self, store: &Store) -> Result<()> {
        for (file, history) in self.log.histories.values_mut() {
            let key = format!("{}/{}", self.folder, file.key);
            let bytes = super::codec::read_checked(store, &key, &file.sha256).await?;
            let parsed = parse_history(&String::from_utf8_lossy(&bytes));
            *history = parsed.ok_or_else(|| Error::bad_input(format!("the history file `{key}` cannot be read")))?;
        }
        Ok(())
    }

    /// Takes what could be understood, and notes the rest.
    fn understood<T>(&mut self, read: Vec<Read<T>>) -> BTreeMap<String, T> {
        let mut good = BTreeMap::new();
        for (id, read) in read {
            match read {
                Ok(value) => drop(good.insert(id, value)),
                Err((key, why)) => drop(self.damaged.insert(key, why)),
            }
        }
        good
    }

    /// The backup of that name.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] with those that there are.
    pub fn backup(&self, id: &str) -> Result<&Backup> {
        if let Some(why) = self.damaged.get(&format!("full/{id}/manifest.json")) {
            return Err(Error::bad_input(why.clone()).hint("`tfdev backup list` shows the others"));
        }
        self.backups.iter().find(|backup| backup.manifest.id == id).ok_or_else(|| {
            let ids = self.backups.iter().map(|backup| backup.manifest.id.as_str());
            let guess = crate::config::nearest(id, ids).map(|near| format!("; did you mean `{near}`?"));
            let message = format!("there is no backup `{id}`{}", guess.unwrap_or_default());
            Error::new(ErrorKind::NotFound, message).hint("`tfdev backup list` shows them")
        })
    }

    /// The backups of one kind, oldest first.
    pub fn of_kind(&self, kind: Kind) -> impl DoubleEndedIterator<Item = &Backup> {
        self.backups.iter().filter(move |backup| backup.manifest.kind == kind)
    }
}

impl Log {
    fn add(&mut self, key: &str, bytes: u64, at: Timestamp) {
        let Some((name, sha256)) = read_log_key(key) else { return };
        let file = LogFile { key: key.to_owned(), bytes, sha256: sha256.to_owned(), at };
        match (name.parse::<Segment>(), history_file(name)) {
            (Ok(segment), _) => self.segments.entry(segment).or_default().push(file),
            (_, Some(timeline)) => drop(self.histories.insert(timeline, (file, History::new()))),
            _ => self.others.push(file),
        }
    }
}

/// What was read under a name: the value, or the key with the reason why it cannot be understood.
type Read<T> = (String, Result<T, (String, String)>);

/// Tells what cannot be understood apart from a store that does not answer.
fn understood<T>(read: Result<T>, id: String, key: &str) -> Result<Read<T>> {
    match read {
        Ok(value) => Ok((id, Ok(value))),
        Err(error) if error.kind() == ErrorKind::BadInput => Ok((id, Err((key.to_owned(), super::words(&error))))),
        Err(error) => Err(error),
    }
}

/// Reads several small objects, each with the name that it is for.
async fn read_all<T: DeserializeOwned>(
    store: &Store,
    folder: &str,
    keys: Vec<(String, String)>,
) -> Result<Vec<Read<T>>> {
    stream::iter(keys)
        .map(|(id, key)| async move { understood(read(store, folder, &key).await, id, &key) })
        .buffer_unordered(READS_AT_ONCE)
        .try_collect()
        .await
}

async fn read<T: DeserializeOwned>(store: &Store, folder: &str, key: &str) -> Result<T> {
    let missing = || Error::failed(format!("`{key}` went away while the backups were listed")).hint("try again");
    let bytes = store.get(&format!("{folder}/{key}")).await?.ok_or_else(missing)?;
    parse(&bytes, key)
}

fn parse<T: DeserializeOwned>(bytes: &Bytes, key: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .context(ErrorKind::BadInput, || format!("`{key}` in the backup store cannot be understood"))
}

async fn read_manifest(store: &Store, folder: &str, id: &str, key: &str) -> Result<Manifest> {
    #[derive(Deserialize)]
    struct Versioned {
        format: u32,
    }
    let value: serde_json::Value = read(store, folder, key).await?;
    let damaged = || format!("the manifest of the backup `{id}` cannot be understood");
    let version: Versioned = Versioned::deserialize(&value).context(ErrorKind::BadInput, damaged)?;
    if version.format > FORMAT_ENCRYPTED {
        let message = format!("the backup `{id}` was made by a newer tfdev (format {})", version.format);
        return Err(Error::bad_input(message).hint("use that version of tfdev"));
    }
    let mut manifest: Manifest = serde_json::from_value(value).context(ErrorKind::BadInput, damaged)?;
    if manifest.id == id {
        manifest.open(store.keys())?;
        return Ok(manifest);
    }
    Err(Error::bad_input(format!("the manifest of the backup `{id}` says that it is `{}`", manifest.id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_log_have_their_checksum_in_their_name() {
        let sha = "a".repeat(64);
        let key = log_key("000000010000000A000000FE", &sha, "");
        let encrypted = log_key("000000010000000A000000FE", &sha, ".age");
        assert_eq!(encrypted, format!("{key}.age"));
        assert_eq!(read_log_key(&encrypted), read_log_key(&key));
        assert_eq!(key, format!("wal/000000010000000A/000000010000000A000000FE-{sha}.zst"));
        assert_eq!(read_log_key(&key), Some(("000000010000000A000000FE", sha.as_str())));
        assert_eq!(log_folder("00000002.history"), "wal/history");
        assert_eq!(read_log_key("wal/x/000000010000000A000000FE-short.zst"), None);
        let mut log = Log::default();
        let at = Timestamp::UNIX_EPOCH;
        log.add(&key, 1, at);
        log.add(&log_key("00000002.history", &sha, ""), 1, at);
        log.add(&log_key("000000010000000A000000FE.00000028.backup", &sha, ""), 1, at);
        assert_eq!((log.segments.len(), log.histories.len(), log.others.len()), (1, 1, 1));
    }
}

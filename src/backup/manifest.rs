//! What a backup says of itself, and what is noted beside it: the small objects in the store, as JSON.
//!
//! What must hold: keys are added and never renamed, so that every later tfdev understands what is in a store; and what is
//! said of the data itself is encrypted if the data is.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::keys::{Keys, is_locked};
use super::position::Lsn;
use crate::archive;
use crate::error::{Context, ErrorKind, Result};

/// The version of a backup that is not encrypted.
pub const FORMAT: u32 = 1;

/// The version of one that is, and the newest that is understood; a newer one is refused.
pub const FORMAT_ENCRYPTED: u32 = 2;

/// How a backup was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A dump of the project's database by `pg_dump`.
    Logical,
    /// A copy of the whole server by `pg_basebackup`; the log leads on from it.
    Physical,
}

impl Kind {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Logical => "logical",
            Self::Physical => "physical",
        }
    }
}

/// What a backup says of itself. Keys are added, never renamed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the layout.
    pub format: u32,
    /// The backup's name: its time and kind.
    pub id: String,
    /// How it was made.
    pub kind: Kind,
    /// The version of tfdev that made it.
    pub tfdev: String,
    /// The version of the server.
    pub postgres: String,
    /// When it was begun.
    pub created: Timestamp,
    /// When all of it was there.
    pub finished: Timestamp,
    /// What it is of.
    pub source: Source,
    /// Its contents.
    pub payload: Payload,
    /// The next three, encrypted as text, in a backup that is: names and sizes of tables tell of the data. `None` once they
    /// are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
    /// What a physical one needs to know.
    pub physical: Option<Physical>,
    /// What a logical one needs to know.
    pub logical: Option<archive::Manifest>,
    /// What its tables held, to compare with what a restore gives; `None` if that could not be told.
    pub fingerprint: Option<Fingerprint>,
    /// Why it could not.
    pub no_fingerprint: Option<String>,
}

/// What a backup is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// The instance's identity.
    pub instance_id: String,
    /// The engine.
    pub engine: crate::engine::EngineKind,
    /// The image or programs that ran the server.
    pub image: String,
    /// The profile.
    pub profile: String,
    /// The project's database.
    pub database: String,
    /// The role that owns it.
    pub user: String,
    /// The server's system identifier, in decimal.
    pub system_identifier: Option<String>,
}

/// Where the contents are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The object, below the folder of the cluster.
    pub key: String,
    /// How many bytes there are, unpacked.
    pub bytes: u64,
    /// How many bytes the object has.
    pub compressed_bytes: u64,
    /// The SHA-256 of the object, in hexadecimal digits.
    pub sha256: String,
    /// The public key of the one that opens it; `None` if it is not encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<String>,
}

/// What a recovery from a physical backup needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Physical {
    /// The timeline.
    pub timeline: u32,
    /// Where recovery begins.
    pub start: Lsn,
    /// Where the copy is consistent: no recovery ends before.
    pub stop: Lsn,
    /// The named point behind it at which the fingerprint was taken: its name and position.
    pub point: Option<(String, Lsn)>,
    /// Settings that must be at least as large while the log is replayed, out of the control file.
    pub settings: BTreeMap<String, u32>,
}

/// What came of a restore into a throw-away server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// When.
    pub at: Timestamp,
    /// Whether all was as recorded.
    pub passed: bool,
    /// How long the restore took until the server answered, in milliseconds: the measured RTO.
    pub restore_ms: u64,
    /// How many tables were compared.
    pub tables: usize,
    /// Whether `pg_amcheck` found the files in order; `None` if it is not there.
    pub amcheck: Option<bool>,
    /// What was wrong, in words.
    pub problems: Vec<String>,
    /// The same, encrypted as text, of a backup that is: words name tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed: Option<String>,
}

/// A point with a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Its name.
    pub name: String,
    /// When it was set.
    pub at: Timestamp,
    /// Where it is in the log.
    pub lsn: Lsn,
    /// The timeline.
    pub timeline: u32,
}

/// Up to when everything is in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// All that was committed until then is in the store.
    pub until: Timestamp,
    /// The position at that time.
    pub lsn: Lsn,
    /// When this was written.
    pub updated: Timestamp,
}

/// A backup, with what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Backup {
    /// What it says of itself.
    pub manifest: Manifest,
    /// The last restore of it.
    pub verified: Option<Verification>,
}

/// What a manifest says of the data itself.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Inner {
    logical: Option<archive::Manifest>,
    fingerprint: Option<Fingerprint>,
    no_fingerprint: Option<String>,
}

impl Manifest {
    /// As it goes into the store: what it says of the data is encrypted if there are keys.
    pub(super) fn closed(&self, keys: &Keys) -> Result<Self> {
        let what = || "cannot write the manifest";
        let mut closed = self.clone();
        let inner = Inner {
            logical: closed.logical.take(),
            fingerprint: closed.fingerprint.take(),
            no_fingerprint: closed.no_fingerprint.take(),
        };
        match keys.seal_text(&serde_json::to_vec(&inner).or_failed(what)?)? {
            None => Ok(self.clone()),
            sealed => Ok(Self { sealed, format: FORMAT_ENCRYPTED, ..closed }),
        }
    }

    /// Opens what is encrypted, if its key is here.
    pub(super) fn open(&mut self, keys: &Keys) -> Result<()> {
        let Some(sealed) = &self.sealed else { return Ok(()) };
        let bytes = match keys.open_text(sealed, &self.id) {
            Err(error) if is_locked(&error) => return Ok(()),
            bytes => bytes?,
        };
        let damaged = || format!("the manifest of the backup `{}` cannot be understood", self.id);
        let inner: Inner = serde_json::from_slice(&bytes).context(ErrorKind::BadInput, damaged)?;
        let Inner { logical, fingerprint, no_fingerprint } = inner;
        *self = Self { sealed: None, logical, fingerprint, no_fingerprint, ..self.clone() };
        Ok(())
    }

    /// Fails, with the key that is missing, if what is encrypted could not be opened.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`].
    pub(super) fn check_open(&self, keys: &Keys) -> Result<()> {
        if self.sealed.is_none() {
            return Ok(());
        }
        Err(keys.locked(&self.id, self.payload.recipient.as_deref()))
    }
}

impl Verification {
    /// As it goes into the store.
    pub(super) fn closed(&self, keys: &Keys) -> Result<Self> {
        let text = serde_json::to_vec(&self.problems).or_failed(|| "cannot write what came of the restore")?;
        match keys.seal_text(&text)? {
            None => Ok(self.clone()),
            sealed => Ok(Self { sealed, problems: Vec::new(), ..self.clone() }),
        }
    }

    /// Opens what is encrypted, as far as that can be done: whether it passed is known anyway.
    pub(super) fn open(&mut self, id: &str, keys: &Keys) {
        let Some(sealed) = self.sealed.take() else { return };
        let opened = keys.open_text(&sealed, id).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let locked = || if self.passed { Vec::new() } else { vec!["what was wrong is encrypted".to_owned()] };
        self.problems = opened.unwrap_or_else(locked);
    }
}

impl Backup {
    /// Whether a restore of it gave what was recorded.
    pub fn is_proven(&self) -> bool {
        self.verified.as_ref().is_some_and(|verified| verified.passed)
    }
}

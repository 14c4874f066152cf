//! What a file says of the database in it.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::pg::clone::Properties;
use crate::spec::POSTGRES_MAJOR;

/// The longest text in a manifest that is shown to people, in bytes.
const LONGEST_TEXT: usize = 16 * 1024;

/// What a file says of the database in it. Keys are added, never renamed; what is not understood is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of tfdev that wrote it.
    pub tfdev: String,
    /// The version of the server that the dump is of, for example `15.18`.
    pub postgres: String,
    /// When the dump began.
    pub created: Timestamp,
    /// Where it is from.
    pub source: Source,
    /// The snapshot that was exported; `None` if that was the present state.
    pub snapshot: Option<SnapshotName>,
    /// The newest migration that was applied; `None` if there is none.
    pub migration: Option<i64>,
    /// What a dump of one database omits.
    pub database: Database,
    /// The dump.
    pub payload: Payload,
}

/// Where a database is from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The project's key.
    pub project: String,
    /// The instance.
    pub instance: String,
    /// The engine.
    pub engine: String,
    /// The database's name.
    pub database: String,
}

/// A snapshot's name and note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotName {
    /// Its name.
    pub name: String,
    /// What was noted of it.
    pub note: Option<String>,
}

/// What `pg_dump` of one database omits, or what an import has to know before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    /// Its encoding.
    pub encoding: String,
    /// Its collation, `LC_COLLATE`.
    pub collation: String,
    /// Its size, in bytes.
    pub size_bytes: u64,
    /// Its owner, privileges, settings, connection limit and comment.
    pub properties: Properties,
    /// What new objects of some role are granted to others: `ALTER DEFAULT PRIVILEGES`. It is in the dump too, but only
    /// those roles themselves may set it.
    pub default_privileges: Vec<DefaultPrivileges>,
    /// Roles, beside the owner, that privileges and policies within it name.
    pub roles: Vec<String>,
    /// Extensions that are not part of every database.
    pub extensions: Vec<String>,
}

/// What new objects of a role are granted to others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefaultPrivileges {
    /// Whose objects.
    pub role: String,
    /// In which schema; `None` for all.
    pub schema: Option<String>,
    /// Which kind: `r`, `S`, `f`, `T` or `n`, as `pg_default_acl` has it.
    pub kind: String,
    /// Who gets what.
    pub grants: Vec<Grant>,
}

/// A privilege.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Who has it; `None` for everybody.
    pub role: Option<String>,
    /// What it is, for example `SELECT`.
    pub privilege: String,
    /// Whether that role may give it to others.
    pub grantable: bool,
}

/// The dump in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Payload {
    /// The level of compression.
    pub level: i32,
    /// How many bytes the dump has.
    pub bytes: u64,
    /// How many bytes it has in the file.
    pub compressed_bytes: u64,
    /// The SHA-256 of those bytes in the file, in hexadecimal digits.
    pub sha256: String,
}

/// More than any database that fits a machine for development, in bytes; sums of such numbers do not overflow.
const LARGEST: u64 = 1 << 50;

impl Payload {
    /// What is not known yet. Nothing that is known later is longer in JSON.
    pub(super) fn unknown(level: i32) -> Self {
        Self { level, bytes: u64::MAX, compressed_bytes: u64::MAX, sha256: "0".repeat(64) }
    }
}

impl Manifest {
    /// Fails if this is nothing that tfdev can use, or nothing that may be shown to people.
    pub(super) fn check(&self) -> Result<()> {
        let major = self.postgres.split('.').next().and_then(|major| major.parse::<u32>().ok());
        match major {
            None => return Err(Error::bad_input(format!("`{}` is no version of PostgreSQL", shown(&self.postgres)))),
            Some(major) if major > POSTGRES_MAJOR => {
                return Err(Error::bad_input(format!(
                    "the dump is of PostgreSQL {}, and this is PostgreSQL {POSTGRES_MAJOR}",
                    shown(&self.postgres)
                ))
                .hint("a dump cannot go back to an older server"));
            }
            Some(_) => {}
        }
        if self.payload.bytes.max(self.database.size_bytes) > LARGEST {
            return Err(Error::bad_input("it says that its database is larger than any database can be"));
        }
        for text in self.texts() {
            let unprintable = |letter: char| letter.is_control() && !matches!(letter, '\n' | '\t');
            if text.len() > LONGEST_TEXT || text.contains(unprintable) {
                return Err(Error::bad_input(format!("the text `{}` in it is not printable or too long", shown(text))));
            }
        }
        Ok(())
    }

    /// Every text that people or a server get to see, but for those that a server refuses if they are nothing it knows.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let Database { encoding, collation, properties, default_privileges, roles, extensions, .. } = &self.database;
        let source = &self.source;
        let fixed = [
            &self.tfdev,
            &source.project,
            &source.instance,
            &source.engine,
            &source.database,
            encoding,
            collation,
            &properties.owner,
        ];
        let snapshot = self.snapshot.iter().flat_map(|snapshot| std::iter::once(&snapshot.name).chain(&snapshot.note));
        let privileges = properties.privileges.iter().flatten();
        let privileges = privileges.flat_map(|one| [Some(&one.grantor), Some(&one.privilege), one.grantee.as_ref()]);
        let settings = properties.settings.iter();
        let settings = settings.flat_map(|one| [Some(&one.name), Some(&one.value), one.role.as_ref()]);
        let defaults = default_privileges.iter().flat_map(|one| {
            let grants = one.grants.iter().flat_map(|grant| [Some(&grant.privilege), grant.role.as_ref()]);
            [Some(&one.role), Some(&one.kind), one.schema.as_ref()].into_iter().chain(grants)
        });
        let listed = privileges.chain(settings).chain(defaults).flatten();
        let lists = roles.iter().chain(extensions).chain(&properties.comment);
        fixed.into_iter().chain(snapshot).chain(listed).chain(lists).map(String::as_str)
    }
}

/// The beginning of a text from elsewhere, safe for a terminal.
fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

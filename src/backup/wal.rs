//! The log on its way into the store.
//!
//! PostgreSQL hands each finished segment to `archive_command`, which copies it into a spool beside the data: no network,
//! no S3 client, so a store that is away never stands in the server's way. tfdev takes the spool to the store from
//! outside. `pg_receivewal` would have the log within a second and not within `archive_timeout`, but only while it runs:
//! what it misses needs a replication slot, which fills the server's disk without a limit when nobody comes for it, and a
//! base backup could not wait for its log. So a minute is the price for a server that never waits for its backup.
//!
//! The spool is in `pg_wal`, on the server's own volume (it outlives the container), whose contents `pg_basebackup` leaves
//! out.
//!
//! What must hold: a segment counts as archived when its copy is on the disk; the same segment again is no error, another
//! one under its name is; a segment leaves the spool only after the store has given it back as it is; and before the disk
//! is full the log is given up, not the server: then `GAP` is there, and only a new physical backup makes the log whole.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, BytesMut};
use jiff::Timestamp;
use sha2::{Digest, Sha256};
use sqlx::{PgConnection, Row};

use super::Backups;
use super::catalogue::{log_folder, log_key, read_log_key};
use super::codec;
use super::keys::{EXTENSION, Keys};
use super::manifest::Coverage;
use super::position::{Lsn, SEGMENT_BYTES, Segment};
use super::state::{Sample, State};
use crate::engine::program::{Input, Program};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::fault;
use crate::instance::FileLock;
use crate::spec::hexadecimal;

/// The spool, relative to the data folder.
pub const SPOOL: &str = "pg_wal/tfdev_spool";

/// The file that names what was given up or never came, relative to the data folder.
const GAP: &str = "pg_wal/tfdev_gap";

/// After how many seconds a segment is closed though it is not full, so that little is lost with the machine: less than a
/// minute, with the agent's pause and what it knows of the moment before. `CON-003` § Backup & Recovery has an RPO of five.
pub const ARCHIVE_TIMEOUT_SECONDS: u64 = 50;

/// The part of the profile's storage that the spool may take, as a divisor.
const SPOOL_PART: u64 = 4;

/// Free room on the disk below which the log is given up, in KiB.
const LEAST_FREE_KIB: u64 = 256 * 1024;

/// How many files are taken at once.
const BATCH: usize = 16;

/// The largest file that is believed, in bytes.
const LARGEST: u64 = SEGMENT_BYTES;

/// How long ago a moment must be for its commits to be in the log for sure.
const SETTLED: jiff::SignedDuration = jiff::SignedDuration::from_secs(1);

/// The header of a segment's first page (`SizeOfXLogLongPHD`).
const LONG_HEADER_BYTES: u64 = 40;

/// How often, at least, the store is told that an idle server has lost nothing.
const TELL_EVERY: jiff::SignedDuration = jiff::SignedDuration::from_secs(30);

/// Hands over the files of the spool in the data folder `$1`, each after a line with its name and size.
const HAND_OVER: &str = r#"
cd "$1/pg_wal/tfdev_spool" 2>/dev/null || exit 0
n=0
for f in *; do
    case $f in '*' | *.part) continue ;; esac
    n=$((n + 1))
    [ "$n" -le "$2" ] || break
    s=$(wc -c <"$f") || exit 1
    echo "$f" $s
    cat "$f" || exit 1
done
"#;

/// Removes files of the spool in the data folder `$1`.
const REMOVE: &str = r#"cd "$1/pg_wal/tfdev_spool" && shift && rm -f -- "$@""#;

/// Notes that the log of the data folder `$1` misses the segment `$2`.
const NOTE_GAP: &str = r#"echo "$2" >>"$1/pg_wal/tfdev_gap""#;

/// Tells how many files the spool of the data folder `$1` has, and what was given up.
const LOOK: &str = r#"
cd "$1/pg_wal" || exit 1
n=0
for f in tfdev_spool/*; do [ -e "$f" ] && n=$((n + 1)); done
echo "$n"
df -Pk . | { read -r x; read -r x x x a x; echo "${a:-0}"; }
[ ! -e tfdev_gap ] || cat tfdev_gap
"#;

/// The settings of a server whose log is archived, where it may use `storage_bytes`.
pub fn settings(storage_bytes: u64) -> [(&'static str, String); 3] {
    [
        ("archive_mode", "on".to_owned()),
        ("archive_timeout", ARCHIVE_TIMEOUT_SECONDS.to_string()),
        ("archive_command", archive_command(storage_bytes)),
    ]
}

/// Copies a segment into the spool. It runs in the data folder, by whatever shell there is; no single quotes, for Compose
/// and people.
fn archive_command(storage_bytes: u64) -> String {
    let most = (storage_bytes / SPOOL_PART / SEGMENT_BYTES).max(4);
    format!(
        "d={SPOOL}; f=$d/%f; mkdir -p $d || exit 1; \
         if [ -e $f ]; then \
         if command -v cmp >/dev/null; then cmp -s %p $f; else [ \"$(sha256sum <%p)\" = \"$(sha256sum <$f)\" ]; fi; exit; fi; \
         set -- $d/*; a=$(df -Pk $d | {{ read -r x; read -r x x x a x; echo $a; }}); \
         if [ $# -ge {most} ] || [ ${{a:-{LEAST_FREE_KIB}}} -lt {LEAST_FREE_KIB} ]; then echo %f >>{GAP} && exit 0; exit 1; fi; \
         {{ dd if=%p of=$f.part bs=1048576 conv=fsync 2>/dev/null || {{ cp %p $f.part && sync; }}; }} && \
         mv $f.part $f && {{ sync $d 2>/dev/null || sync; }}"
    )
}

/// What is in the spool.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Spool {
    /// How many files wait for the store.
    pub files: u64,
    /// How many bytes that is, about.
    pub bytes: u64,
    /// How much room is left on the disk of the data, in bytes.
    pub free_bytes: u64,
    /// Segments that were given up for lack of room.
    pub given_up: Vec<String>,
}

/// What one pass brought into the store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Shipped {
    pub(super) files: usize,
}

/// Reads what [`HAND_OVER`] writes.
struct Files {
    program: Program,
    buffer: BytesMut,
}

impl Files {
    /// The next file; `None` after the last.
    async fn next(&mut self) -> Result<Option<(String, bytes::Bytes)>> {
        let strange = || Error::failed("cannot understand what the spool of the log holds");
        let end = loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                break end;
            }
            if !self.more().await? {
                return if self.buffer.is_empty() { Ok(None) } else { Err(strange()) };
            }
        };
        let line = self.buffer.split_to(end);
        self.buffer.advance(1);
        let line = String::from_utf8(line.to_vec()).map_err(|_| strange())?;
        let (name, size) = line.rsplit_once(' ').ok_or_else(strange)?;
        let size: u64 = size.parse().ok().filter(|size| *size <= LARGEST).ok_or_else(strange)?;
        let size = usize::try_from(size).expect("it is small");
        while self.buffer.len() < size {
            if !self.more().await? {
                return Err(Error::failed(format!("the file `{name}` of the spool came cut off")));
            }
        }
        Ok(Some((name.to_owned(), self.buffer.split_to(size).freeze())))
    }

    async fn more(&mut self) -> Result<bool> {
        let piece = self.program.read().await?;
        Ok(piece.map(|piece| self.buffer.extend_from_slice(&piece)).is_some())
    }
}

impl Backups<'_> {
    /// Runs a shell script beside the server, with the data folder as its first argument.
    async fn script(&self, script: &str, arguments: &[&str]) -> Result<Program> {
        let data = self.data_dir();
        let mut command = vec!["sh", "-c", script, "tfdev", &data];
        command.extend(arguments);
        self.running.engine.stream(&command, Input::None).await
    }

    /// Looks at the spool.
    pub(super) async fn spool(&self) -> Result<Spool> {
        let mut program = self.script(LOOK, &[]).await?;
        let mut text = Vec::new();
        while let Some(piece) = program.read().await? {
            text.extend_from_slice(&piece);
        }
        program.finish().await?.checked("look at the log's spool")?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut lines = text.lines().map(str::trim);
        let mut number = || lines.next().and_then(|line| line.parse::<u64>().ok()).unwrap_or_default();
        let (files, free) = (number(), number());
        let given_up = lines.map(str::to_owned).collect();
        Ok(Spool { files, bytes: files * SEGMENT_BYTES, free_bytes: free * 1024, given_up })
    }

    /// The log is whole again, because a base was begun after what was given up.
    pub(super) async fn forget_gap(&self) -> Result<()> {
        let program = self.script(r#"rm -f "$1/pg_wal/tfdev_gap""#, &[]).await?;
        program.finish().await?.checked("forget what was given up of the log")?;
        let mut state = State::read(&self.running.instance, &self.folder);
        state.gap = None;
        state.write(&self.running.instance)
    }

    /// Brings all that waits in the spool into the store.
    pub(super) async fn ship(&self, connection: &mut PgConnection) -> Result<Shipped> {
        // A lock of its own: the log goes on while a full backup is made, or proven.
        let lock = super::lock_file(&self.running.instance).with_extension("log.lock");
        let _lock = FileLock::acquire(&lock, "the log of this instance", "backup", self.limit, &Events::none()).await?;
        let mut state = State::read(&self.running.instance, &self.folder);
        state.add(sample(connection).await?);
        let mut shipped = Shipped::default();
        let (waiting, given_up) = look(connection).await?;
        note_gap(&mut state, given_up);
        let moved = if waiting == 0 { Ok(()) } else { self.move_all(&mut state, &mut shipped).await };
        state.spool_files = Some(if moved.is_ok() { 0 } else { waiting });
        let trouble = moved.as_ref().err().map(super::words);
        super::state::note(&mut state.shipping, trouble);
        let is_whole = moved.is_ok() && state.gap.is_none();
        let covered = if is_whole { self.cover(&mut state, shipped.files > 0).await } else { Ok(()) };
        // Others have written meanwhile what is theirs.
        let others = State::read(&self.running.instance, &self.folder);
        let State { safe, waiting, last_segment, last_shipped, spool_files, shipping, gap, .. } = state;
        let state = State { safe, waiting, last_segment, last_shipped, spool_files, shipping, gap, ..others };
        state.write(&self.running.instance)?;
        moved.and(covered)?;
        Ok(shipped)
    }

    async fn move_all(&self, state: &mut State, shipped: &mut Shipped) -> Result<()> {
        let mut known: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        loop {
            let names = self.move_batch(&mut known).await?;
            if names.is_empty() {
                return Ok(());
            }
            let arguments: Vec<&str> = names.iter().map(String::as_str).collect();
            fault::point("backup.ship.stored").await;
            let removing = self.script(REMOVE, &arguments).await?.finish().await?;
            removing.checked("remove from the spool what is in the store")?;
            shipped.files += names.len();
            self.look_for_gap(state, &names).await?;
            let last = last_segment(state);
            if let Some(newest) = names.iter().filter_map(|name| name.parse::<Segment>().ok()).max() {
                state.last_segment = Some(last.map_or(newest, |last| last.max(newest)).to_string());
                state.last_shipped = Some(super::now());
            }
        }
    }

    /// Notes a gap if these files do not go on where the last ones ended: the archive was off in between, or someone has
    /// taken files out of the spool.
    async fn look_for_gap(&self, state: &mut State, names: &[String]) -> Result<()> {
        let mut last = last_segment(state);
        for segment in names.iter().filter_map(|name| name.parse::<Segment>().ok()) {
            if let Some(last) = last.filter(|last| segment.number > last.number + 1)
                && let Some(missing) = self.missing(last, segment).await?
            {
                let missing = missing.to_string();
                let noting = self.script(NOTE_GAP, &[&missing]).await?.finish().await?;
                noting.checked("note the gap in the log")?;
                note_gap(state, Some(missing));
            }
            // An archive that was off hands over late what it still has from that time: that is no step back.
            last = last.max(Some(segment));
        }
        Ok(())
    }

    /// The first segment between two that is not in the store. One that was killed may have brought them there and not
    /// taken note of it.
    async fn missing(&self, after: Segment, before: Segment) -> Result<Option<Segment>> {
        let listed = self.store.list(&format!("{}/wal", self.folder)).await?;
        let there: BTreeSet<u64> = listed
            .iter()
            .filter_map(|object| read_log_key(&object.key)?.0.parse().ok())
            .map(|segment: Segment| segment.number)
            .collect();
        let number = (after.number + 1..before.number).find(|number| !there.contains(number));
        Ok(number.map(|number| Segment { number, ..before }))
    }

    /// Brings some files into the store, and returns their names.
    async fn move_batch(&self, known: &mut BTreeMap<String, BTreeMap<String, String>>) -> Result<Vec<String>> {
        let mut names = Vec::new();
        let program = self.script(HAND_OVER, &[&BATCH.to_string()]).await?;
        let mut files = Files { program, buffer: BytesMut::new() };
        while let Some((name, contents)) = files.next().await? {
            if !is_of_the_log(&name) {
                return Err(Error::failed(format!("the file `{name}` in the spool is none of PostgreSQL's"))
                    .hint(format!("look at it in `{SPOOL}` of the data folder, and move it away")));
            }
            if name.ends_with(".backup") {
                // It tells where a base began, which the manifest of ours says.
                names.push(name);
                continue;
            }
            let folder = log_folder(&name);
            if !known.contains_key(&folder) {
                let listed = self.store.list(&format!("{}/{folder}", self.folder)).await?;
                self.store.keys().check_no_clear_text(listed.iter().map(|object| object.key.as_str()))?;
                let found = listed.into_iter().filter_map(|object| {
                    let name = read_log_key(&object.key)?.0.to_owned();
                    Some((name, object.key))
                });
                known.insert(folder.clone(), found.collect());
            }
            let there = known.get(&folder).and_then(|listed| listed.get(&name)).map(String::as_str);
            self.store_file(&name, contents, there).await?;
            names.push(name);
        }
        files.program.finish().await?.checked("read the log's spool")?;
        Ok(names)
    }

    /// Brings one file into the store; `there` is the object that it has under this name.
    async fn store_file(&self, name: &str, contents: bytes::Bytes, there: Option<&str>) -> Result<()> {
        let damaged = match there {
            None => None,
            Some(key) => match self.is_same(key, contents.clone()).await {
                Ok(true) => return Ok(()),
                Ok(false) => {
                    return Err(Error::failed(format!("the store has another `{name}` than this server"))
                        .hint("another server writes to the same place; look at `project` in tfdev.toml")
                        .hint("`tfdev backup now --only physical` begins anew, once only one server is left"));
                }
                // Its own checksum says so, and what is right is here.
                Err(error) if error.kind() == ErrorKind::BadInput => Some(key),
                Err(error) => return Err(error),
            },
        };
        // Of a history file all is known by the names of objects, and whoever plans a recovery needs it.
        let is_history = super::position::history_file(name).is_some();
        let keys = if is_history { Keys::default() } else { self.store.keys().clone() };
        let extension = keys.extension();
        let packed = tokio::task::spawn_blocking(move || codec::pack_file(&contents, &keys)).await;
        let (packed, sha256) = packed.or_failed(|| format!("packing `{name}` was cut off"))??;
        let key = format!("{}/{}", self.folder, log_key(name, &sha256, extension));
        self.store.put(&key, packed.clone()).await?;
        fault::point("backup.ship.put").await;
        // What is taken out of the spool is nowhere else: the store's word alone is not enough.
        if self.store.get(&key).await? != Some(packed) {
            return Err(Error::failed(format!(
                "the backup store {} said that it wrote `{key}`, but gives something else back",
                self.store.place()
            )));
        }
        match damaged.filter(|damaged| *damaged != key) {
            Some(damaged) => self.store.delete(damaged).await,
            None => Ok(()),
        }
    }

    /// Whether an object holds exactly these contents. The name of one that is not encrypted tells; of the others no two
    /// are alike, so it is opened.
    async fn is_same(&self, key: &str, contents: bytes::Bytes) -> Result<bool> {
        let sum = read_log_key(key).map(|(_, sum)| sum.to_owned()).unwrap_or_default();
        if key.ends_with(EXTENSION) {
            return Ok(codec::read_checked(&self.store, key, &sum).await? == contents);
        }
        let own = tokio::task::spawn_blocking(move || hexadecimal(&Sha256::digest(&contents))).await;
        Ok(own.or_failed(|| "looking at a file of the log was cut off")? == sum)
    }

    /// Tells the store up to when everything is in it.
    async fn cover(&self, state: &mut State, has_more: bool) -> Result<()> {
        let before = state.safe.as_ref().map(|safe| safe.at);
        let Some(last) = last_segment(state) else { return Ok(()) };
        state.settle(last.end());
        let Some(safe) = state.safe.clone() else { return Ok(()) };
        let is_news = before.is_none_or(|before| safe.at.duration_since(before) >= TELL_EVERY);
        if !is_news && !has_more {
            return Ok(());
        }
        let coverage = Coverage { until: safe.at - SETTLED, lsn: safe.lsn, updated: super::now() };
        let text = serde_json::to_vec_pretty(&coverage).or_failed(|| "cannot write the coverage")?;
        self.store.put(&format!("{}/coverage.json", self.folder), text.into()).await
    }
}

/// The newest segment that came into the store.
fn last_segment(state: &State) -> Option<Segment> {
    state.last_segment.as_deref().and_then(|name| name.parse().ok())
}

/// Notes the first segment that is missing, or that none is.
fn note_gap(state: &mut State, first: Option<String>) {
    let what = first.map(|first| {
        format!(
            "the log has a gap at {first}, because there was no room for it or the archive was off: a new physical \
             backup mends that"
        )
    });
    super::state::note(&mut state.gap, what);
}

/// How many files are in the spool, and the first segment that was given up; asked of the server, which is quicker than a
/// program beside it.
async fn look(connection: &mut PgConnection) -> Result<(u64, Option<String>)> {
    let what = || "cannot look at the log's spool";
    let question = format!(
        "SELECT (SELECT count(*) FROM pg_ls_dir('{SPOOL}', true, false) f WHERE f !~ '[.]part$'), \
         split_part(pg_read_file('{GAP}', 0, 1000, true), E'\\n', 1)"
    );
    let row = sqlx::raw_sql(sqlx::AssertSqlSafe(question)).fetch_one(connection).await.or_failed(what)?;
    let count: i64 = row.try_get(0).or_failed(what)?;
    Ok((count.unsigned_abs(), row.try_get(1).or_failed(what)?))
}

/// The server's present moment.
pub(super) async fn sample(connection: &mut PgConnection) -> Result<Sample> {
    let what = || "cannot ask the server how far its log is";
    // The snapshot first: what it has not seen is at a position that is read later.
    let question = "SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, \
                    (extract(epoch FROM statement_timestamp()) * 1000)::bigint";
    let row = sqlx::raw_sql(question).fetch_one(connection).await.or_failed(what)?;
    let lsn: String = row.try_get(1).or_failed(what)?;
    let at = Timestamp::from_millisecond(row.try_get(2).or_failed(what)?).or_failed(what)?;
    let lsn: Lsn = lsn.parse().map_err(|why: String| Error::failed(what()).caused_by(why))?;
    // What is behind the header of a segment's first page and nothing else is the end of the segment before.
    let lsn = if lsn.0 % SEGMENT_BYTES == LONG_HEADER_BYTES { Lsn(lsn.0 - LONG_HEADER_BYTES) } else { lsn };
    Ok(Sample { at, lsn, snapshot: row.try_get(0).or_failed(what)? })
}

/// Whether PostgreSQL gives such a name to what it archives.
fn is_of_the_log(name: &str) -> bool {
    let is_segment = |name: &str| name.parse::<Segment>().is_ok();
    is_segment(name)
        || super::position::history_file(name).is_some()
        || name.strip_suffix(".partial").is_some_and(is_segment)
        || name.strip_suffix(".backup").and_then(|name| name.split_once('.')).is_some_and(|(name, at)| {
            is_segment(name) && at.len() == 8 && at.bytes().all(|byte| byte.is_ascii_hexdigit())
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_the_log_are_taken() {
        for good in [
            "000000010000000000000005",
            "00000002.history",
            "000000010000000000000005.00000028.backup",
            "000000010000000000000005.partial",
        ] {
            assert!(is_of_the_log(good), "{good}");
        }
        for bad in ["notes.txt", "../x", "000000010000000000000005.part", "000000010000000000000005.x.backup"] {
            assert!(!is_of_the_log(bad), "{bad}");
        }
    }

    /// Runs the command as the server does.
    fn archive(data: &std::path::Path, name: &str, most: u64) -> i32 {
        let command = archive_command(most * SPOOL_PART * SEGMENT_BYTES);
        assert!(!command.contains('\''));
        let command = command.replace("%p", &format!("pg_wal/{name}")).replace("%f", name);
        let status = std::process::Command::new("sh").args(["-c", &command]).current_dir(data).status().unwrap();
        status.code().unwrap()
    }

    #[cfg(unix)]
    #[test]
    fn the_archive_command_copies_once_and_never_overwrites() {
        let data = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| std::fs::write(data.path().join(path), text).unwrap();
        let spooled = |name: &str| std::fs::read_to_string(data.path().join(SPOOL).join(name)).ok();
        std::fs::create_dir(data.path().join("pg_wal")).unwrap();
        write("pg_wal/A", "one");
        assert_eq!(archive(data.path(), "A", 9), 0);
        assert_eq!(spooled("A").as_deref(), Some("one"));
        assert_eq!(archive(data.path(), "A", 9), 0, "the same again");
        write("pg_wal/A", "two");
        assert_eq!(archive(data.path(), "A", 9), 1, "another one under the name");
        assert_eq!(spooled("A").as_deref(), Some("one"));
        let absent = archive(data.path(), "B", 9);
        assert!((1..126).contains(&absent), "{absent}");
        assert_eq!(spooled("B"), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_full_spool_gives_up_the_log_and_not_the_server() {
        let data = tempfile::tempdir().unwrap();
        std::fs::create_dir(data.path().join("pg_wal")).unwrap();
        for name in ["A", "B", "C", "D", "E"] {
            std::fs::write(data.path().join("pg_wal").join(name), name).unwrap();
            assert_eq!(archive(data.path(), name, 4), 0);
        }
        assert!(!data.path().join(SPOOL).join("E").exists());
        assert_eq!(std::fs::read_to_string(data.path().join(GAP)).unwrap(), "E\n");
    }
}

//! A data folder that was initialised once for each image or installation of PostgreSQL, kept on this machine and copied
//! for each new instance.
//!
//! `initdb` and the image's first start take most of the time of a first `up`, and always come to the same result. So
//! they run once, with the docker engine in a throw-away container; the data folder, after an orderly stop, is kept as a
//! tar file. A new instance gets a copy before its server starts for the first time.
//!
//! What must hold: two instances never look like one server (each copy gets a system identifier of its own, in the
//! control file and in the WAL); the file is used only when it is whole (its index is written last); a copy is whole
//! only when [`MARKER`], its last entry, is there; and the superuser's password in it is replaced at the first login.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::control::{self, ClusterState, ControlFile};
use crate::spec::POSTGRES_MAJOR;

/// The file that is written last into a data folder; its presence says that the copy is whole. PostgreSQL ignores it.
pub const MARKER: &str = "tfdev-instance.json";

/// When every copy's `PG_VERSION` says that it was written, in seconds since 1970. PostgreSQL never writes that file again,
/// so one with this time is the one that was copied, of [`POSTGRES_MAJOR`]; looking at a file's time is five times as
/// fast as reading it.
pub const VERSION_FILE_TIME: u64 = 1_665_619_200;

/// The time, in seconds since 1970, with which a file of ours is dated that holds `text`: a digest of it, up to 2038. That of
/// [`MARKER`] is the instance's identity alone.
pub fn stamp(text: &str) -> u64 {
    let digest = Sha256::digest(text);
    u64::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 1)
}

/// Counts up when the form of the cached file changes.
const FORMAT: u32 = 2;

/// What must be known of a cached data folder to copy it; kept beside the tar file and written after it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Index {
    format: u32,
    /// Bytes of the tar file, to notice one that was cut.
    size: u64,
    /// The superuser's password in this data folder.
    pub password: String,
    system_identifier: u64,
    /// Where the control file's contents begin in the tar file.
    control_offset: u64,
    /// Where each WAL segment's contents begin in the tar file.
    wal_offsets: Vec<u64>,
    /// The owner of the files inside the container.
    pub user_id: u64,
    /// The group of the files inside the container.
    pub group_id: u64,
}

/// A cached data folder.
#[derive(Debug, Clone)]
pub struct Cluster {
    tar: PathBuf,
    /// What is known of it.
    pub index: Index,
}

/// The files of a cached data folder with `key` under `folder`.
fn paths(folder: &Path, key: &str) -> (PathBuf, PathBuf) {
    (folder.join(format!("{key}.tar")), folder.join(format!("{key}.json")))
}

/// Finds the cached data folder for `key`; `None` if there is none that is whole.
pub fn find(folder: &Path, key: &str) -> Option<Cluster> {
    let (tar, index_path) = paths(folder, key);
    let index: Index = serde_json::from_slice(&std::fs::read(index_path).ok()?).ok()?;
    let whole = index.format == FORMAT && std::fs::metadata(&tar).ok()?.len() == index.size;
    whole.then_some(Cluster { tar, index })
}

/// Keeps the data folder whose tar file, as the engine hands it out, is `source`. Fails unless the server was stopped
/// in order.
pub fn keep(folder: &Path, key: &str, source: impl Read, password: &str) -> Result<Cluster> {
    let (tar_path, index_path) = paths(folder, key);
    let partial = tar_path.with_extension("tar.partial");
    let io = || format!("cannot write the cached data folder `{}`", partial.display());
    let mut index = Index {
        format: FORMAT,
        size: 0,
        password: password.to_owned(),
        system_identifier: 0,
        control_offset: 0,
        wal_offsets: Vec::new(),
        user_id: 0,
        group_id: 0,
    };
    let mut target = private_file(&partial).or_failed(io)?;
    let written = rewrite(source, &mut target, &mut index).and_then(|()| target.sync_all().or_failed(io));
    if written.is_err() {
        // Most of all on a full disk, which it would keep full.
        let _ = std::fs::remove_file(&partial);
    }
    written?;
    index.size = target.stream_position().or_failed(io)?;
    drop(target);
    std::fs::rename(&partial, &tar_path).or_failed(io)?;
    let mut file = private_file(&index_path.with_extension("json.partial")).or_failed(io)?;
    file.write_all(&serde_json::to_vec_pretty(&index).or_failed(io)?).or_failed(io)?;
    file.sync_all().or_failed(io)?;
    std::fs::rename(index_path.with_extension("json.partial"), &index_path).or_failed(io)?;
    Ok(Cluster { tar: tar_path, index })
}

/// Creates a file that only its owner can read.
fn private_file(path: &Path) -> std::io::Result<File> {
    let mut options = File::options();
    options.write(true).read(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// Copies the tar entries under names relative to the data folder, without the end mark, and notes what is patched later.
fn rewrite(source: impl Read, target: &mut File, index: &mut Index) -> Result<()> {
    let failed = || "cannot copy the data folder that the engine handed out";
    let mut archive = tar::Archive::new(source);
    for entry in archive.entries().or_failed(failed)? {
        let mut entry = entry.or_failed(failed)?;
        let path = entry.path().or_failed(failed)?.into_owned();
        // The engine names the entries after the folder, `data/PG_VERSION`, or relative to it, `./PG_VERSION`.
        let relative: PathBuf = path.components().skip(1).collect();
        let kind = entry.header().entry_type();
        let name = relative.to_string_lossy().into_owned();
        if name.is_empty() || name == "postmaster.opts" || !(kind.is_file() || kind.is_dir()) {
            continue;
        }
        let mut header = entry.header().clone();
        header.set_path(&name).or_failed(failed)?;
        if name == "PG_VERSION" {
            header.set_mtime(VERSION_FILE_TIME);
        }
        header.set_cksum();
        target.write_all(header.as_bytes()).or_failed(failed)?;
        let start = target.stream_position().or_failed(failed)?;
        let length = std::io::copy(&mut entry, target).or_failed(failed)?;
        let padding = (512 - length % 512) % 512;
        target.write_all(&[0; 512][..usize::try_from(padding).expect("less than 512")]).or_failed(failed)?;
        if name == "PG_VERSION" {
            index.user_id = header.uid().or_failed(failed)?;
            index.group_id = header.gid().or_failed(failed)?;
            check_version(&read_back(target, start, small(length)?)?)?;
        } else if name == "global/pg_control" {
            index.control_offset = start;
            index.system_identifier = check_control(&read_back(target, start, small(length)?)?)?;
        } else if name.starts_with("pg_wal/") && kind.is_file() && length > 0 {
            index.wal_offsets.push(start);
        }
    }
    if index.control_offset == 0 || index.wal_offsets.is_empty() {
        return Err(Error::failed("the image made a data folder without a control file or without WAL"));
    }
    Ok(())
}

fn read_back(target: &mut File, start: u64, length: usize) -> Result<Vec<u8>> {
    let failed = || "cannot read the cached data folder back";
    let mut bytes = vec![0; length];
    target.seek(SeekFrom::Start(start)).or_failed(failed)?;
    target.read_exact(&mut bytes).or_failed(failed)?;
    target.seek(SeekFrom::End(0)).or_failed(failed)?;
    Ok(bytes)
}

/// The length of a file that is known to be small.
fn small(length: u64) -> Result<usize> {
    let length = usize::try_from(length).ok().filter(|length| *length <= 1 << 20);
    length.ok_or_else(|| Error::failed("a small file of the data folder is of unexpected size"))
}

fn check_version(version: &[u8]) -> Result<()> {
    let version = String::from_utf8_lossy(version).trim().to_owned();
    if version == POSTGRES_MAJOR.to_string() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::BadInput,
        format!("the image is PostgreSQL {version}, and tfdev is made for {POSTGRES_MAJOR}"),
    )
    .hint(
        "name a PostgreSQL 15 image with `--image` or `docker.image` in tfdev.toml, for example `postgres:15-alpine`",
    ))
}

fn check_control(bytes: &[u8]) -> Result<u64> {
    let control = ControlFile::parse(bytes)?;
    if control.state == ClusterState::ShutDown {
        return Ok(control.system_identifier);
    }
    Err(Error::failed(format!("the throw-away server was not stopped in order: its state is {:?}", control.state))
        .hint("run the command again"))
}

impl Cluster {
    /// Hands the tar file of a copy to `send` in pieces: another system identifier, and [`MARKER`] with `marker` last.
    /// Stops early, without an error, when `send` says that nobody listens.
    pub fn copy(&self, id: Uuid, marker: &str, send: impl FnMut(Bytes) -> bool) -> Result<()> {
        let failed = || format!("cannot read the cached data folder `{}`", self.tar.display());
        let mut file = File::open(&self.tar).or_failed(failed)?;
        let patches = self.patches(&mut file, control::new_system_identifier())?;
        file.seek(SeekFrom::Start(0)).or_failed(failed)?;
        let mut send = send;
        let mut position = 0u64;
        while position < self.index.size {
            let length = usize::try_from((self.index.size - position).min(PIECE)).expect("a piece fits in memory");
            let mut piece = vec![0; length];
            file.read_exact(&mut piece).or_failed(failed)?;
            for (offset, bytes) in &patches {
                apply(&mut piece, position, *offset, bytes);
            }
            position += length as u64;
            if !send(Bytes::from(piece)) {
                return Ok(());
            }
        }
        send(self.marker_entry(id, marker)?);
        Ok(())
    }

    /// What differs in a copy: offset in the tar file and the new bytes.
    fn patches(&self, file: &mut File, identifier: u64) -> Result<Vec<(u64, Vec<u8>)>> {
        let index = &self.index;
        let control = read_back(file, index.control_offset, control::FILE_SIZE)?;
        let mut patches = vec![(index.control_offset, control::with_system_identifier(&control, identifier)?)];
        for offset in &index.wal_offsets {
            let mut header = read_back(file, *offset, control::WAL_LONG_HEADER_SIZE)?;
            control::patch_wal_segment(&mut header, index.system_identifier, identifier)?;
            patches.push((*offset, header));
        }
        Ok(patches)
    }

    /// The last entry and the end mark.
    fn marker_entry(&self, id: Uuid, marker: &str) -> Result<Bytes> {
        let failed = || format!("cannot describe the copy for instance {id}");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        header.set_uid(self.index.user_id);
        header.set_gid(self.index.group_id);
        header.set_size(marker.len() as u64);
        header.set_mtime(stamp(&id.to_string()));
        builder.append_data(&mut header, MARKER, marker.as_bytes()).or_failed(failed)?;
        Ok(Bytes::from(builder.into_inner().or_failed(failed)?))
    }
}

/// How much of the file is in memory at once.
const PIECE: u64 = 256 * 1024;

/// Writes the part of `bytes`, which belong at `offset` of the file, that falls into `piece`, which begins at `position`.
fn apply(piece: &mut [u8], position: u64, offset: u64, bytes: &[u8]) {
    let end = position + piece.len() as u64;
    for (distance, byte) in bytes.iter().enumerate() {
        let at = offset + distance as u64;
        if (position..end).contains(&at) {
            piece[usize::try_from(at - position).expect("inside the piece")] = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_patch_over_the_edge_of_a_piece_is_written_in_both() {
        let mut first = [0u8; 4];
        let mut second = [0u8; 4];
        apply(&mut first, 0, 2, &[1, 2, 3, 4]);
        apply(&mut second, 4, 2, &[1, 2, 3, 4]);
        assert_eq!((first, second), ([0, 0, 1, 2], [3, 4, 0, 0]));
    }

    #[test]
    fn what_could_not_be_kept_takes_no_room() {
        let folder = tempfile::tempdir().unwrap();
        let error = keep(folder.path(), "k", [7u8; 2000].as_slice(), "secret").unwrap_err();
        assert!(error.to_string().contains("cannot copy the data folder"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_cut_or_half_written_file_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        assert!(find(folder.path(), "k").is_none());
        std::fs::write(folder.path().join("k.tar"), b"123").unwrap();
        assert!(find(folder.path(), "k").is_none());
        let index = Index {
            format: FORMAT,
            size: 4,
            password: String::new(),
            system_identifier: 1,
            control_offset: 1,
            wal_offsets: vec![1],
            user_id: 70,
            group_id: 70,
        };
        std::fs::write(folder.path().join("k.json"), serde_json::to_vec(&index).unwrap()).unwrap();
        assert!(find(folder.path(), "k").is_none());
        std::fs::write(folder.path().join("k.tar"), b"1234").unwrap();
        assert!(find(folder.path(), "k").is_some());
    }
}

//! A physical backup on its way: the tar stream of `pg_basebackup`, read for what must be known of it.
//!
//! What must hold: every file in the stream is the one that the server's own manifest names, with its size and checksum,
//! and none is missing; the manifest itself is whole. So what is in the store is what the server sent.
//!
//! The files' checksums are CRC-32C, PostgreSQL's own choice: the way from the server to here is damaged by accident if at
//! all, and SHA-256 costs the server as much time as reading the files. What is in the store has its SHA-256.

use std::collections::BTreeMap;
use std::io::Read;

use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::manifest::Physical;
use super::position::{Lsn, SEGMENT_BYTES};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::control::{CONTROL_FILE, ControlFile};
use crate::spec::hexadecimal;

/// The name of the server's manifest in the stream.
pub(super) const MANIFEST: &str = "backup_manifest";

/// The largest file that is kept in memory, in bytes: the manifest of a million files.
const LARGEST_KEPT: u64 = 256 << 20;

/// How much of a file is looked at at once, in bytes.
const PIECE: usize = 256 * 1024;

/// The option of `pg_basebackup` for the checksums in its manifest.
pub(super) const MANIFEST_CHECKSUMS: &str = "--manifest-checksums=CRC32C";

/// The server's manifest, format 1 (PostgreSQL 13 and later).
#[derive(Debug, Deserialize)]
struct ServerManifest {
    #[serde(rename = "PostgreSQL-Backup-Manifest-Version")]
    version: u32,
    #[serde(rename = "Files")]
    files: Vec<ManifestFile>,
    #[serde(rename = "WAL-Ranges")]
    ranges: Vec<WalRange>,
    #[serde(rename = "Manifest-Checksum")]
    checksum: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestFile {
    path: Option<String>,
    size: u64,
    checksum: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WalRange {
    timeline: u32,
    #[serde(rename = "Start-LSN")]
    start: String,
    #[serde(rename = "End-LSN")]
    end: String,
}

/// Reads the stream, checks all that is in it, and says what recovery needs to know.
pub(super) fn inspect(stream: &mut dyn Read) -> Result<Physical> {
    let what = || "cannot understand what pg_basebackup sent";
    let mut sent: BTreeMap<String, (u64, String)> = BTreeMap::new();
    let (mut manifest, mut control) = (None, None);
    let mut archive = tar::Archive::new(stream);
    let mut buffer = vec![0; PIECE];
    for entry in archive.entries().or_failed(what)? {
        let mut entry = entry.or_failed(what)?;
        let name = entry.path().or_failed(what)?.to_string_lossy().into_owned();
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let mut sum = 0;
        let is_kept = name == MANIFEST || name == CONTROL_FILE;
        let mut kept = Vec::new();
        let mut size = 0;
        loop {
            let length = entry.read(&mut buffer).or_failed(what)?;
            if length == 0 {
                break;
            }
            sum = crc32c::crc32c_append(sum, &buffer[..length]);
            size += length as u64;
            if is_kept && size <= LARGEST_KEPT {
                kept.extend_from_slice(&buffer[..length]);
            }
        }
        match name.as_str() {
            MANIFEST => manifest = Some(kept),
            CONTROL_FILE => control = Some(kept),
            _ => {}
        }
        sent.insert(name, (size, in_manifest(sum)));
    }
    let missing = |name: &str| Error::failed(format!("there is no `{name}` in what pg_basebackup sent"));
    let manifest = manifest.ok_or_else(|| missing(MANIFEST))?;
    let control = ControlFile::parse(&control.ok_or_else(|| missing(CONTROL_FILE))?)?;
    if u64::from(control.wal_segment_size) != SEGMENT_BYTES {
        let message = format!("the server's log has segments of {} bytes, not 16 MB", control.wal_segment_size);
        return Err(Error::new(ErrorKind::Refused, message));
    }
    let range = check(&manifest, &sent)?;
    let position = |text: &str| text.parse::<Lsn>().map_err(|why| Error::failed(what()).caused_by(why));
    Ok(Physical {
        timeline: range.timeline,
        start: position(&range.start)?,
        stop: position(&range.end)?,
        point: None,
        settings: control.recovery_settings(),
    })
}

/// A checksum as the manifest has it: the bytes as the server has them in memory.
fn in_manifest(sum: u32) -> String {
    hexadecimal(&sum.to_le_bytes())
}

/// Holds what was sent against the manifest; returns the log that the backup needs.
fn check(manifest: &[u8], sent: &BTreeMap<String, (u64, String)>) -> Result<WalRange> {
    let read: ServerManifest =
        serde_json::from_slice(manifest).or_failed(|| "cannot understand the manifest of pg_basebackup")?;
    if read.version != 1 {
        return Err(Error::failed(format!("the manifest of pg_basebackup has the format {}, not 1", read.version)));
    }
    // The checksum is of all lines before its own.
    let own_line = b"\"Manifest-Checksum\"";
    let end = manifest.windows(own_line.len()).rposition(|window| window == own_line).unwrap_or_default();
    if hexadecimal(&Sha256::digest(&manifest[..end])) != read.checksum {
        return Err(Error::failed("the manifest of pg_basebackup came damaged: its checksum does not match"));
    }
    let mut expected = 0;
    for file in &read.files {
        // A name that is no UTF-8 is none of PostgreSQL's own.
        let Some(path) = &file.path else { continue };
        expected += 1;
        let differs = match (sent.get(path), &file.checksum) {
            (None, _) => Some("is missing"),
            (Some((size, _)), _) if *size != file.size => Some("has another size"),
            (Some((_, sum)), Some(checksum)) if sum != checksum => Some("has another checksum"),
            (Some(_), None) => Some("has no checksum"),
            _ => None,
        };
        if let Some(differs) = differs {
            let message = format!("what pg_basebackup sent is not what its manifest says: `{path}` {differs}");
            return Err(Error::failed(message).hint("run the command again"));
        }
    }
    let listed = sent.keys().filter(|name| *name != MANIFEST && !name.starts_with("pg_wal/")).count();
    if listed != expected {
        return Err(Error::failed(format!("pg_basebackup sent {listed} files, and its manifest names {expected}")));
    }
    match <[WalRange; 1]>::try_from(read.ranges) {
        Ok([range]) => Ok(range),
        Err(ranges) => Err(Error::failed(format!(
            "the timeline changed {} times while the backup was made",
            ranges.len().saturating_sub(1)
        ))
        .hint("run the command again")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(files: &str) -> Vec<u8> {
        let mut text = format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n{files}\n],\n\"WAL-Ranges\": [\n\
             {{ \"Timeline\": 1, \"Start-LSN\": \"0/2000028\", \"End-LSN\": \"0/2000100\" }}\n],\n"
        );
        let checksum = hexadecimal(&Sha256::digest(&text));
        text.extend(["\"Manifest-Checksum\": \"", &checksum, "\"}\n"]);
        text.into_bytes()
    }

    #[test]
    fn what_was_sent_is_held_against_the_manifest() {
        let sum = in_manifest(crc32c::crc32c(b"15\n"));
        let file = |size: u64, sum: &str| {
            format!(
                "{{ \"Path\": \"PG_VERSION\", \"Size\": {size}, \"Checksum-Algorithm\": \"CRC32C\", \"Checksum\": \"{sum}\" }}"
            )
        };
        let sent: BTreeMap<_, _> =
            [("PG_VERSION".to_owned(), (3, sum.clone())), (MANIFEST.to_owned(), (1, String::new()))].into();
        assert_eq!(check(&manifest(&file(3, &sum)), &sent).unwrap().end, "0/2000100");
        let told = |manifest: &[u8], sent: &BTreeMap<_, _>| check(manifest, sent).unwrap_err().to_string();
        assert!(told(&manifest(&file(4, &sum)), &sent).contains("another size"));
        assert!(told(&manifest(&file(3, &"0".repeat(8))), &sent).contains("another checksum"));
        assert!(told(&manifest(&file(3, &sum)), &BTreeMap::new()).contains("is missing"));
        assert!(told(&manifest(""), &sent).contains("sent 1 files"));
        let mut damaged = manifest(&file(3, &sum));
        let at = damaged.iter().position(|byte| *byte == b'3').unwrap();
        damaged[at] = b'4';
        assert!(told(&damaged, &sent).contains("came damaged"));
    }
}

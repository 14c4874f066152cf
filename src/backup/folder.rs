//! A data folder as a tar file, out of a base and of files of the log.
//!
//! What must hold: nothing of it is whole before all of it was checked, for the marker comes last; only files and folders
//! are in it; and of the server that the backup is of, neither the marker nor the settings of its own archive and recovery.

use std::cell::Cell;
use std::io::Read;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::base;
use super::codec::Unpacked;
use super::keys::Keys;
use super::manifest::Payload;
use crate::engine::cluster::MARKER;
use crate::error::{Context, Error, ErrorKind, Result};

/// Settings in `postgresql.auto.conf` that belonged to the server which the backup is of.
const NOT_INHERITED: [&str; 5] = ["archive_", "restore_command", "recovery_", "primary_", "hot_standby"];

/// A data folder out of a base and files of the log.
pub(super) struct Folder {
    /// The pieces of the packed base.
    pub(super) base: mpsc::Receiver<Bytes>,
    /// What they must come to.
    pub(super) payload: Payload,
    /// What opens them.
    pub(super) keys: Keys,
    /// The files of the log, checked, each with its name.
    pub(super) log: mpsc::Receiver<(String, Bytes)>,
    /// How many of them there are.
    pub(super) files: usize,
}

/// Writes a tar file to whoever takes its pieces.
struct Pieces<'a> {
    send: &'a mut dyn FnMut(Bytes) -> bool,
    /// Whether nobody takes more: then who listened says why.
    is_over: &'a Cell<bool>,
}

impl std::io::Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if !self.is_over.get() && !(self.send)(Bytes::copy_from_slice(bytes)) {
            self.is_over.set(true);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Folder {
    /// Hands over the base, checked; the files of the log; what makes the server recover; and the marker last.
    pub(super) fn write(mut self, marker: &str, send: &mut dyn FnMut(Bytes) -> bool) -> Result<()> {
        let key = self.payload.key.clone();
        let what = || format!("`{key}` in the backup store is damaged: it cannot be unpacked");
        let is_over = Cell::new(false);
        let buffered = std::io::BufWriter::with_capacity(256 * 1024, Pieces { send, is_over: &is_over });
        let mut builder = tar::Builder::new(buffered);
        let mut unpacked = Unpacked::new(self.base, self.payload, &self.keys)?;
        let mut owner = (0, 0);
        let mut archive = tar::Archive::new(&mut unpacked);
        for entry in archive.entries().context(ErrorKind::BadInput, what)? {
            let mut entry = entry.context(ErrorKind::BadInput, what)?;
            // pg_basebackup names some folders relative to `.`.
            let name =
                entry.path().context(ErrorKind::BadInput, what)?.to_string_lossy().trim_start_matches("./").to_owned();
            let kind = entry.header().entry_type();
            if name.is_empty() {
                continue;
            }
            if !kind.is_file() && !kind.is_dir() {
                return Err(Error::bad_input(format!("`{key}` in the backup store holds `{name}`, which is no file")));
            }
            let mut header = entry.header().clone();
            header.set_path(&name).context(ErrorKind::BadInput, what)?;
            header.set_cksum();
            match name.as_str() {
                // The marker of the source, and what only its own recovery needs.
                MARKER | base::MANIFEST | "recovery.signal" | "standby.signal" | "postmaster.pid" => continue,
                "PG_VERSION" => {
                    owner = (
                        header.uid().context(ErrorKind::BadInput, what)?,
                        header.gid().context(ErrorKind::BadInput, what)?,
                    );
                }
                "postgresql.auto.conf" => {
                    let mut text = String::new();
                    entry.read_to_string(&mut text).context(ErrorKind::BadInput, what)?;
                    let kept = inherited(&text);
                    header.set_size(kept.len() as u64);
                    header.set_cksum();
                    builder.append(&header, kept.as_bytes()).context(ErrorKind::BadInput, what)?;
                    continue;
                }
                _ => {}
            }
            builder.append(&header, &mut entry).context(ErrorKind::BadInput, what)?;
            if is_over.get() {
                return Ok(());
            }
        }
        unpacked.check()?;
        let mut add = |name: &str, contents: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            header.set_uid(owner.0);
            header.set_gid(owner.1);
            header.set_size(contents.len() as u64);
            builder.append_data(&mut header, name, contents).or_failed(what)
        };
        let mut files = 0;
        while let Some((name, contents)) = self.log.blocking_recv() {
            add(&format!("pg_wal/{name}"), &contents)?;
            files += 1;
        }
        if files != self.files {
            return Err(Error::failed(format!("only {files} of {} files of the log came", self.files)));
        }
        add("recovery.signal", b"")?;
        add(MARKER, marker.as_bytes())?;
        let buffered = builder.into_inner().or_failed(what)?;
        buffered.into_inner().map(drop).map_err(|error| Error::failed(what()).caused_by(error.into_error()))
    }
}

/// What a restored server keeps of the settings that were made with `ALTER SYSTEM`.
fn inherited(text: &str) -> String {
    let is_kept = |line: &&str| !NOT_INHERITED.iter().any(|name| line.trim_start().starts_with(name));
    text.lines().filter(is_kept).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_the_sources_own_recovery_and_archive_stay_behind() {
        let text =
            "# by hand\nwork_mem = '8MB'\narchive_command = 'x'\nrecovery_target_time = 'y'\nprimary_conninfo = ''\n";
        assert_eq!(inherited(text), "# by hand\nwork_mem = '8MB'\n");
    }
}

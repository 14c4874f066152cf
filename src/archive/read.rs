//! Reads a file that claims to hold a database, and believes nothing in it.

use std::fs::File;
use std::io::{self, BufReader, Read, Take};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zstd::stream::read::Decoder;

use super::write::Hashing;
use super::{FORMAT, FRAME, HEADER_BYTES, LARGEST_MANIFEST, MAGIC, Manifest};
use crate::error::{Context, Error, ErrorKind, Result};

/// How much of a dump is handed on at once, in bytes.
const PIECE: usize = 256 * 1024;

/// The largest window of the decoder, as a power of two: what level 22 uses (128 MB). More is for who wants our memory.
const LARGEST_WINDOW: u32 = 27;

/// A file whose manifest was read and checked.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: File,
    manifest: Manifest,
}

impl Reader {
    /// Opens `path` and reads its manifest. Nothing else is read, but a file of the wrong length is refused already.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadInput`] if it is no such file, is damaged or cut, or is from a newer tfdev.
    pub fn open(path: &Path) -> Result<Self> {
        let shown = path.display();
        let what = || format!("cannot read `{shown}`");
        let mut file = File::open(path).context(ErrorKind::BadInput, what)?;
        let metadata = file.metadata().context(ErrorKind::BadInput, what)?;
        if !metadata.is_file() {
            return Err(Error::bad_input(format!("`{shown}` is no file")));
        }
        let mut header = Vec::new();
        (&mut file).take(HEADER_BYTES as u64).read_to_end(&mut header).context(ErrorKind::BadInput, what)?;
        let length = manifest_length(&header, path)?;
        let mut text = Vec::new();
        (&mut file).take(length as u64).read_to_end(&mut text).context(ErrorKind::BadInput, what)?;
        if text.len() < length {
            return Err(damaged(path, "it ends within its manifest"));
        }
        if Sha256::digest(&text)[..] != header[20..] {
            return Err(damaged(path, "the checksum of its manifest does not match"));
        }
        let manifest: Manifest = serde_json::from_slice(&text)
            .context(ErrorKind::BadInput, || format!("the manifest of `{shown}` cannot be understood"))?;
        manifest.check().map_err(|error| {
            let hints = error.hints().to_vec();
            let message = format!("`{shown}` cannot be imported: {error}");
            hints.into_iter().fold(Error::bad_input(message), Error::hint)
        })?;
        let expected = ((HEADER_BYTES + length) as u64).checked_add(manifest.payload.compressed_bytes);
        if expected != Some(metadata.len()) {
            let expected = expected.map_or_else(|| "more".to_owned(), |bytes| bytes.to_string());
            return Err(damaged(path, &format!("it has {} bytes and says {expected}", metadata.len())));
        }
        Ok(Self { path: path.to_owned(), file, manifest })
    }

    /// What the file says of itself.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The dump in it.
    pub fn contents(self) -> Result<Contents> {
        let compressed =
            BufReader::with_capacity(PIECE, Hashing::new(self.file.take(self.manifest.payload.compressed_bytes)));
        let mut decoder = Decoder::with_buffer(compressed).or_failed(|| "cannot unpack the export")?;
        decoder.window_log_max(LARGEST_WINDOW).or_failed(|| "cannot unpack the export")?;
        Ok(Contents { path: self.path, manifest: self.manifest, decoder, bytes: 0, held: None })
    }
}

/// The dump in a file, piece by piece.
pub struct Contents {
    path: PathBuf,
    manifest: Manifest,
    decoder: Decoder<'static, BufReader<Hashing<Take<File>>>>,
    /// How many bytes were unpacked.
    bytes: u64,
    held: Option<Vec<u8>>,
}

impl Contents {
    /// The next piece; `None` at the end. The last piece is given only after every byte of the file was checked: who
    /// got as many bytes as the manifest declares has the dump as it was written.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::BadInput`] if the file is damaged, or unpacks to something else than it declares.
    pub fn next_piece(&mut self) -> Result<Option<Vec<u8>>> {
        loop {
            let piece = self.unpack()?;
            if piece.is_empty() {
                if let Some(last) = self.held.take() {
                    self.check_all()?;
                    return Ok(Some(last));
                }
                return if self.bytes == 0 { Err(damaged(&self.path, "there is no dump in it")) } else { Ok(None) };
            }
            if let Some(before) = self.held.replace(piece) {
                return Ok(Some(before));
            }
        }
    }

    /// As much as there is, up to a whole piece; nothing at the end.
    fn unpack(&mut self) -> Result<Vec<u8>> {
        let mut piece = Vec::with_capacity(PIECE);
        let unpacked = (&mut self.decoder).take(PIECE as u64).read_to_end(&mut piece);
        unpacked.map_err(|error| match error.kind() {
            // Of the file itself; the decoder's own errors have no number of the system.
            _ if error.raw_os_error().is_some() => {
                Error::failed(format!("cannot read `{}`", self.path.display())).caused_by(error)
            }
            io::ErrorKind::UnexpectedEof => damaged(&self.path, "it ends too early"),
            _ => damaged(&self.path, "it cannot be unpacked").caused_by(error),
        })?;
        self.bytes += piece.len() as u64;
        if self.bytes > self.manifest.payload.bytes {
            return Err(damaged(&self.path, "it unpacks to more than it says"));
        }
        Ok(piece)
    }

    fn check_all(&self) -> Result<()> {
        let payload = &self.manifest.payload;
        if self.bytes != payload.bytes {
            return Err(damaged(&self.path, "it unpacks to less than it says"));
        }
        let (sha256, compressed_bytes) = self.decoder.get_ref().get_ref().digest();
        if compressed_bytes != payload.compressed_bytes || sha256 != payload.sha256 {
            return Err(damaged(&self.path, "the checksum of its dump does not match"));
        }
        Ok(())
    }
}

/// The length of the manifest, from what comes before it.
fn manifest_length(header: &[u8], path: &Path) -> Result<usize> {
    let shown = path.display();
    let number =
        |at: usize| header.get(at..at + 4).map(|bytes| u32::from_le_bytes(bytes.try_into().expect("four bytes")));
    if number(0) != Some(FRAME) || header.get(8..16) != Some(&MAGIC[..]) {
        let what = if header.starts_with(b"PGDMP") { ": it is a dump by `pg_dump`" } else { "" };
        return Err(Error::bad_input(format!("`{shown}` is no export by tfdev{what}"))
            .hint("`tfdev snapshot export FILE` writes one; load a dump by `pg_dump` with `pg_restore`"));
    }
    match number(16) {
        Some(FORMAT) => {}
        Some(newer @ FORMAT..) => {
            return Err(Error::bad_input(format!(
                "`{shown}` has the format {newer}, and this tfdev ({}) knows formats up to {FORMAT}",
                env!("CARGO_PKG_VERSION")
            ))
            .hint("it is from a newer tfdev, or damaged; update tfdev and try again"));
        }
        _ => return Err(damaged(path, "it has no version")),
    }
    let length = number(4).map_or(0, |length| length as usize).checked_sub(HEADER_BYTES - 8);
    match length {
        Some(length) if length <= LARGEST_MANIFEST && header.len() == HEADER_BYTES => Ok(length),
        _ => Err(damaged(path, "its header makes no sense")),
    }
}

fn damaged(path: &Path, why: &str) -> Error {
    Error::bad_input(format!("`{}` is damaged: {why}", path.display()))
        .hint("nothing was changed; copy the file again, or export the database again")
}

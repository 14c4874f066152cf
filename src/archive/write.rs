//! Writes a database into one file, as it comes.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::ops::RangeInclusive;
use std::path::Path;

use sha2::{Digest, Sha256};
use zstd::stream::write::Encoder;

use super::{LARGEST_MANIFEST, Manifest, Payload, frame};
use crate::error::{Context, Error, Result};
use crate::partial_file::{self, PartialFile, RemovedOnDrop};
use crate::spec::hexadecimal;

/// The levels of compression, fast to small.
pub const LEVELS: RangeInclusive<i32> = 1..=22;

/// A file that is being written. It takes its name with [`Writer::finish`]; else it is removed.
pub struct Writer {
    target: PartialFile,
    manifest: Manifest,
    manifest_bytes: usize,
    encoder: Encoder<'static, Hashing<BufWriter<File>>>,
    bytes: u64,
    replace: bool,
}

impl Writer {
    /// Begins to write `path`, which must not be there unless it is to be replaced. `manifest.payload` counts for its
    /// level alone.
    pub fn create(path: &Path, replace: bool, mut manifest: Manifest) -> Result<Self> {
        if !replace && path.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            return Err(partial_file::exists(path));
        }
        manifest.payload.bytes = 0;
        manifest.check()?;
        manifest.payload = Payload::unknown(manifest.payload.level);
        let text = serde_json::to_vec(&manifest).or_failed(|| "cannot write the manifest")?;
        if text.len() > LARGEST_MANIFEST {
            return Err(Error::failed("the database has more settings and privileges than an export can hold"));
        }
        let target = PartialFile::beside(path, &format!("database.{}", super::EXTENSION))?;
        let unwritable = || format!("cannot write `{}`", path.display());
        let mut file = BufWriter::with_capacity(256 * 1024, target.file()?);
        file.write_all(&frame(&text)).or_failed(unwritable)?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut encoder = Encoder::new(Hashing::new(file), manifest.payload.level).or_failed(unwritable)?;
        encoder.include_checksum(true).or_failed(unwritable)?;
        encoder.multithread(u32::try_from(threads).unwrap_or(1)).or_failed(unwritable)?;
        Ok(Self { target, manifest, manifest_bytes: text.len(), encoder, bytes: 0, replace })
    }

    /// Removes the file when it is dropped, unless it took its name: a thread that writes may not come to it.
    pub(crate) fn guard(&self) -> RemovedOnDrop {
        self.target.guard()
    }

    /// Writes the next bytes of the dump.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.bytes += bytes.len() as u64;
        self.encoder.write_all(bytes).or_failed(|| "cannot write the export")
    }

    /// Completes the file: it is on the disk and has its name. Returns what it says, and its size in bytes.
    pub fn finish(mut self) -> Result<(Manifest, u64)> {
        let what = || "cannot write the export";
        let mut hashing = self.encoder.finish().or_failed(what)?;
        hashing.inner.flush().or_failed(what)?;
        let (sha256, compressed_bytes) = hashing.digest();
        self.manifest.payload.bytes = self.bytes;
        self.manifest.payload.compressed_bytes = compressed_bytes;
        self.manifest.payload.sha256 = sha256;
        let mut text = serde_json::to_vec(&self.manifest).or_failed(what)?;
        // What was not known took the most room that it can take.
        text.resize(self.manifest_bytes, b' ');
        let frame = frame(&text);
        let mut file = self.target.file()?;
        file.seek(SeekFrom::Start(0)).and_then(|_| file.write_all(&frame)).or_failed(what)?;
        if self.replace { self.target.take_name() } else { self.target.take_free_name() }?;
        Ok((self.manifest, frame.len() as u64 + compressed_bytes))
    }
}

/// Passes bytes on, counted and hashed.
pub(super) struct Hashing<T> {
    pub(super) inner: T,
    hash: Sha256,
    bytes: u64,
}

impl<T> Hashing<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, hash: Sha256::new(), bytes: 0 }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
    }

    /// The hash in hexadecimal digits, and the number of bytes.
    pub(super) fn digest(&self) -> (String, u64) {
        (hexadecimal(&self.hash.clone().finalize()), self.bytes)
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.inner.write(bytes)?;
        self.add(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: io::Read> io::Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.add(&buffer[..length]);
        Ok(length)
    }
}

/// Writes a file out of what another place keeps: a manifest, and the dump as it is packed. Nothing of it is checked here:
/// whoever reads the file does that. Replaces what is there.
pub(crate) fn assemble(path: &Path, manifest: &Manifest, packed: &mut dyn io::Read) -> Result<()> {
    let what = || format!("cannot write `{}`", path.display());
    let text = serde_json::to_vec(manifest).or_failed(what)?;
    let target = PartialFile::beside(path, &format!("database.{}", super::EXTENSION))?;
    let mut file = target.file()?;
    file.write_all(&frame(&text)).or_failed(what)?;
    io::copy(packed, &mut file).or_failed(what)?;
    target.take_name()
}

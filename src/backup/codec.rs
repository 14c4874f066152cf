//! Between a program's output and an object: zstd, encryption, checksums, and the network, at the same time and in little
//! memory. The checksum is that of the object, so it can be proven without a key; encryption has a proof of its own.
//!
//! What must hold: no more than some dozen MB are in memory, whatever the size; an object is completed only after the
//! program that wrote its contents ended with success; and what is read is handed on only with its checksum checked at the
//! end, which every reader must wait for.

use std::io::{self, Read, Write};

use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use zstd::stream::read::Decoder;
use zstd::stream::write::Encoder;

use super::keys::{EXTENSION, Keys, Opening, Sealing};
use super::manifest::Payload;
use super::store::Store;
use crate::channel_reader::ChannelReader;
use crate::engine::program::Program;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::Told;
use crate::spec::hexadecimal;

/// The level of compression: most data gets a third of its size or less. Level 3 takes twice the time for some percent.
const LEVEL: i32 = 1;

/// How many pieces wait on either side: some MB.
const WAITING_PIECES: usize = 32;

/// How much compressed data is handed on at once.
const PIECE: usize = 512 * 1024;

/// The largest file of the log that is believed, in bytes; all are 16 MB or less.
const LARGEST_LOG_FILE: u64 = 64 << 20;

/// Looks at contents on their way, on a thread that may block, and must read all of it.
pub(super) type Look<T> = Box<dyn FnOnce(&mut dyn Read) -> Result<T> + Send>;

/// A packed object, and the packed contents in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packed {
    /// The object.
    pub(super) payload: Payload,
    /// The size of what zstd made, before it was encrypted.
    pub(super) zstd_bytes: u64,
    /// The SHA-256 of that.
    pub(super) zstd_sha256: String,
}

/// Uploads what `program` writes as the object `key` of `store`, encrypted if there are keys. Returns what `look` made of it.
///
/// The object is there only if the program succeeded and `look` found nothing wrong; `action` reads after "cannot".
pub(super) async fn upload<T: Send + 'static>(
    store: &Store,
    folder: &str,
    key: &str,
    program: Program,
    action: &str,
    look: Look<T>,
    told: Told<'_>,
) -> Result<(Packed, T)> {
    let keys = store.keys().clone();
    let recipient = keys.recipient();
    let (input, contents) = mpsc::channel(WAITING_PIECES);
    let (packed, output) = mpsc::channel(WAITING_PIECES);
    let packing = tokio::task::spawn_blocking(move || pack(contents, packed, look, &keys));
    let mut upload = store.upload(&format!("{folder}/{key}")).await?;
    let feeding = feed(program, input, told);
    let sending = async {
        let mut output = output;
        while let Some(piece) = output.recv().await {
            upload.write(piece).await?;
        }
        Ok::<_, Error>(())
    };
    let (fed, sent) = tokio::join!(feeding, sending);
    let packed = packing.await.or_failed(|| "packing the backup was cut off").and_then(|packed| packed);
    // The program's own words first: they are why the others failed.
    let checked = fed.and_then(|program| program.map_or(Ok(()), |output| output.checked(action).map(drop)));
    let packed = checked.and(sent).and(packed);
    match packed {
        Ok((packed, looked)) => {
            upload.finish(packed.stored.bytes).await?;
            let payload = Payload {
                key: key.to_owned(),
                bytes: packed.bytes,
                compressed_bytes: packed.stored.bytes,
                sha256: packed.stored.sha256,
                recipient,
            };
            Ok((Packed { payload, zstd_bytes: packed.zstd.bytes, zstd_sha256: packed.zstd.sha256 }, looked))
        }
        Err(error) => {
            upload.abort().await;
            Err(error)
        }
    }
}

/// Hands on what the program writes. `None` if nobody wanted all of it; then the other side says why.
async fn feed(
    mut program: Program,
    input: mpsc::Sender<Bytes>,
    mut told: Told<'_>,
) -> Result<Option<crate::engine::ProgramOutput>> {
    while let Some(piece) = program.read().await? {
        told.add(piece.len());
        if input.send(piece).await.is_err() {
            return Ok(None);
        }
    }
    told.done();
    drop(input);
    program.finish().await.map(Some)
}

/// The size and SHA-256 of something.
#[derive(Clone)]
struct Sum {
    bytes: u64,
    sha256: String,
}

/// What was packed.
struct Measured {
    bytes: u64,
    zstd: Sum,
    stored: Sum,
}

fn pack<T>(
    contents: mpsc::Receiver<Bytes>,
    packed: mpsc::Sender<Bytes>,
    look: Look<T>,
    keys: &Keys,
) -> Result<(Measured, T)> {
    let what = || "cannot pack the backup";
    let sink = Hashed::new(Sink { sender: packed, buffer: Vec::with_capacity(PIECE) }, true);
    // What is not encrypted is the same before and behind.
    let sealing = Hashed::new(keys.seal(sink).or_failed(what)?, keys.recipient().is_some());
    let mut encoder = Encoder::new(sealing, LEVEL).or_failed(what)?;
    encoder.include_checksum(true).or_failed(what)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    encoder.multithread(u32::try_from(threads).unwrap_or(1)).or_failed(what)?;
    let mut tee = Tee { source: ChannelReader::new(contents), encoder, bytes: 0 };
    let looked = look(&mut tee)?;
    io::copy(&mut tee, &mut io::sink()).or_failed(what)?;
    let (sealing, zstd) = tee.encoder.finish().or_failed(what)?.finish();
    let (mut sink, stored) = sealing.finish().or_failed(what)?.finish();
    sink.flush_all().or_failed(what)?;
    let stored = stored.expect("the sink is always counted");
    let zstd = zstd.unwrap_or_else(|| stored.clone());
    Ok((Measured { bytes: tee.bytes, zstd, stored }, looked))
}

/// Passes on what is written, counted and hashed if that is wanted.
struct Hashed<W> {
    output: W,
    sum: Option<(Sha256, u64)>,
}

impl<W> Hashed<W> {
    fn new(output: W, is_wanted: bool) -> Self {
        Self { output, sum: is_wanted.then(|| (Sha256::new(), 0)) }
    }

    fn finish(self) -> (W, Option<Sum>) {
        let sum = self.sum.map(|(hash, bytes)| Sum { bytes, sha256: hexadecimal(&hash.finalize()) });
        (self.output, sum)
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.output.write(bytes)?;
        if let Some((hash, count)) = &mut self.sum {
            hash.update(&bytes[..length]);
            *count += length as u64;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Reads contents and packs them by the way.
struct Tee {
    source: ChannelReader,
    encoder: Encoder<'static, Hashed<Sealing<Hashed<Sink>>>>,
    bytes: u64,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.encoder.write_all(&buffer[..length])?;
        self.bytes += length as u64;
        Ok(length)
    }
}

/// Hands on what is written in pieces.
struct Sink {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Sink {
    fn flush_all(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.sender.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= PIECE {
            self.flush_all()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Packs a file of the log, with the checksum that is in its name: that of the file if it is not encrypted, which tells
/// equal files at once, and that of the object if it is, because the other would tell of what is in it.
pub(super) fn pack_file(contents: &[u8], keys: &Keys) -> Result<(Bytes, String)> {
    let what = || "cannot pack a file of the log";
    let mut encoder = Encoder::new(keys.seal(Vec::new()).or_failed(what)?, LEVEL).or_failed(what)?;
    encoder.include_checksum(true).or_failed(what)?;
    encoder.write_all(contents).or_failed(what)?;
    let packed = encoder.finish().or_failed(what)?.finish().or_failed(what)?;
    let sha256 =
        hexadecimal(&if keys.recipient().is_some() { Sha256::digest(&packed) } else { Sha256::digest(contents) });
    Ok((packed.into(), sha256))
}

/// Reads a packed file and checks its contents against the checksum in its name.
///
/// # Errors
/// [`ErrorKind::NotFound`] if it is not there, or is encrypted for a key that is not; [`ErrorKind::BadInput`] if it is
/// damaged.
pub(super) async fn read_checked(store: &Store, key: &str, sha256: &str) -> Result<Bytes> {
    let missing =
        || Error::new(ErrorKind::NotFound, format!("`{key}` is not in the backup store {} any more", store.place()));
    let packed = store.get(key).await?.ok_or_else(missing)?;
    let (name, expected, keys) = (key.to_owned(), sha256.to_owned(), store.keys().clone());
    let unpacked = tokio::task::spawn_blocking(move || unpack_file(&packed, &name, &expected, &keys)).await;
    unpacked.or_failed(|| format!("reading `{key}` was cut off"))?
}

fn unpack_file(packed: &[u8], key: &str, sha256: &str, keys: &Keys) -> Result<Bytes> {
    let damaged = |why: &str| {
        Error::bad_input(format!("`{key}` in the backup store is damaged: {why}"))
            .hint("recover to a time before or after it from another backup: `tfdev backup list`")
    };
    let matches = |bytes: &[u8]| {
        let is_good = hexadecimal(&Sha256::digest(bytes)) == sha256;
        if is_good { Ok(()) } else { Err(damaged("its checksum does not match")) }
    };
    let is_encrypted = key.ends_with(EXTENSION);
    if is_encrypted {
        // Before its key is looked for: one that is damaged is so for everybody.
        matches(packed)?;
    }
    let mut contents = Vec::new();
    let opening = keys.open(packed, key)?;
    let read = Decoder::new(opening).and_then(|decoder| decoder.take(LARGEST_LOG_FILE).read_to_end(&mut contents));
    read.map_err(|error| damaged("it cannot be unpacked").caused_by(error))?;
    if !is_encrypted {
        matches(&contents)?;
    }
    Ok(contents.into())
}

/// The pieces of an object, as they come from the store, for [`Unpacked`].
pub(super) async fn fetch(store: &Store, key: &str, pieces: mpsc::Sender<Bytes>) -> Result<()> {
    let mut stream = store.stream(key).await?;
    while let Some(piece) = stream.next().await {
        if pieces.send(piece?).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// The contents of an object, unpacked on a thread that may block.
pub(super) struct Unpacked {
    decoder: Decoder<'static, io::BufReader<Opening<Hashing>>>,
    expected: Payload,
    bytes: u64,
}

/// Counts and hashes what it passes on.
struct Hashing {
    source: ChannelReader,
    hash: Sha256,
    bytes: u64,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.source.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.bytes += length as u64;
        Ok(length)
    }
}

impl Unpacked {
    /// Unpacks what [`fetch`] sends; the first of it is read here.
    ///
    /// # Errors
    /// Those of [`Keys::open`].
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>, expected: Payload, keys: &Keys) -> Result<Self> {
        let source = Hashing { source: ChannelReader::new(pieces), hash: Sha256::new(), bytes: 0 };
        let opening = keys.open(source, &expected.key)?;
        let decoder = Decoder::new(opening).or_failed(|| "cannot unpack the backup")?;
        Ok(Self { decoder, expected, bytes: 0 })
    }

    /// Reads what is left and fails unless all was as the manifest says.
    pub(super) fn check(mut self) -> Result<()> {
        let damaged = |why: String| {
            Error::bad_input(format!("`{}` in the backup store is damaged: {why}", self.expected.key))
                .hint("`tfdev backup list` shows the others")
        };
        io::copy(&mut self.decoder, &mut CountTo(&mut self.bytes))
            .map_err(|error| damaged("it cannot be unpacked".to_owned()).caused_by(error))?;
        let mut opening = self.decoder.finish();
        io::copy(&mut opening, &mut io::sink())
            .map_err(|error| damaged("it cannot be read".to_owned()).caused_by(error))?;
        let hashing = opening.into_inner().into_inner();
        let expected = &self.expected;
        if (hashing.bytes, self.bytes) != (expected.compressed_bytes, expected.bytes) {
            return Err(damaged(format!(
                "it has {} of {} bytes, and {} of {} unpacked",
                hashing.bytes, expected.compressed_bytes, self.bytes, expected.bytes
            )));
        }
        if hexadecimal(&hashing.hash.finalize()) == expected.sha256 {
            return Ok(());
        }
        Err(damaged("its checksum does not match".to_owned()))
    }
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.decoder.read(buffer)?;
        self.bytes += length as u64;
        if self.bytes > self.expected.bytes {
            return Err(io::Error::other("there is more in it than its manifest says"));
        }
        Ok(length)
    }
}

/// Adds up how much is written.
struct CountTo<'a>(&'a mut u64);

impl Write for CountTo<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        *self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "encryption")]
    #[test]
    fn an_encrypted_file_of_the_log_comes_back_or_is_found_damaged_or_locked() {
        use super::super::age::Identity;
        use super::super::keys::{is_locked, tests::keys};
        let contents: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let [own, other] = [(); 2].map(|()| keys([Identity::generate().unwrap()]));
        let (packed, sha256) = pack_file(&contents, &own).unwrap();
        assert_ne!(pack_file(&contents, &own).unwrap().1, sha256, "it tells nothing of the contents");
        assert_eq!(unpack_file(&packed, "k.age", &sha256, &own).unwrap(), contents);
        assert!(is_locked(&unpack_file(&packed, "k.age", &sha256, &other).unwrap_err()));
        let mut changed = packed.to_vec();
        changed[packed.len() / 2] ^= 1;
        for keys in [&own, &other] {
            let error = unpack_file(&changed, "k.age", &sha256, keys).unwrap_err();
            assert!(!is_locked(&error) && error.kind() == ErrorKind::BadInput, "{error}");
        }
    }

    #[test]
    fn a_file_of_the_log_comes_back_or_is_found_damaged() {
        let contents: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let none = &Keys::default();
        let (packed, sha256) = pack_file(&contents, none).unwrap();
        assert_eq!(unpack_file(&packed, "k", &sha256, none).unwrap(), contents);
        let mut changed = packed.to_vec();
        changed[packed.len() / 2] ^= 1;
        assert_eq!(unpack_file(&changed, "k", &sha256, none).unwrap_err().kind(), ErrorKind::BadInput);
        let cut = unpack_file(&packed[..packed.len() / 2], "k", &sha256, none).unwrap_err();
        assert!(cut.to_string().contains("is damaged"), "{cut}");
        assert!(unpack_file(&packed, "k", &"0".repeat(64), none).unwrap_err().to_string().contains("checksum"));
    }
}

//! Between a program's output and an object: zstd, checksums, and the network, at the same time and in little memory.
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

use super::catalogue::Payload;
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

/// Uploads what `program` writes as the object `key` of `store`. Returns what `look` made of it.
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
) -> Result<(Payload, T)> {
    let (input, contents) = mpsc::channel(WAITING_PIECES);
    let (packed, output) = mpsc::channel(WAITING_PIECES);
    let packing = tokio::task::spawn_blocking(move || pack(contents, packed, look));
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
            upload.finish(packed.compressed_bytes).await?;
            let payload = Payload {
                key: key.to_owned(),
                bytes: packed.bytes,
                compressed_bytes: packed.compressed_bytes,
                sha256: packed.sha256,
            };
            Ok((payload, looked))
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

/// What was packed.
struct Packed {
    bytes: u64,
    compressed_bytes: u64,
    sha256: String,
}

fn pack<T>(contents: mpsc::Receiver<Bytes>, packed: mpsc::Sender<Bytes>, look: Look<T>) -> Result<(Packed, T)> {
    let what = || "cannot pack the backup";
    let sink = Sink { sender: packed, buffer: Vec::with_capacity(PIECE), hash: Sha256::new(), bytes: 0 };
    let mut encoder = Encoder::new(sink, LEVEL).or_failed(what)?;
    encoder.include_checksum(true).or_failed(what)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    encoder.multithread(u32::try_from(threads).unwrap_or(1)).or_failed(what)?;
    let mut tee = Tee { source: ChannelReader::new(contents), encoder, bytes: 0 };
    let looked = look(&mut tee)?;
    io::copy(&mut tee, &mut io::sink()).or_failed(what)?;
    let mut sink = tee.encoder.finish().or_failed(what)?;
    sink.flush_all().or_failed(what)?;
    let sha256 = hexadecimal(&sink.hash.finalize());
    Ok((Packed { bytes: tee.bytes, compressed_bytes: sink.bytes, sha256 }, looked))
}

/// Reads contents and packs them by the way.
struct Tee {
    source: ChannelReader,
    encoder: Encoder<'static, Sink>,
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

/// Hands on what is written in pieces, counted and hashed.
struct Sink {
    sender: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
    hash: Sha256,
    bytes: u64,
}

impl Sink {
    fn flush_all(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.hash.update(&piece);
        self.bytes += piece.len() as u64;
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

/// Packs a file of the log, with the checksum of what is in it.
pub(super) fn pack_file(contents: &[u8]) -> Result<(Bytes, String)> {
    let what = || "cannot pack a file of the log";
    let mut encoder = Encoder::new(Vec::new(), LEVEL).or_failed(what)?;
    encoder.include_checksum(true).or_failed(what)?;
    encoder.write_all(contents).or_failed(what)?;
    Ok((encoder.finish().or_failed(what)?.into(), hexadecimal(&Sha256::digest(contents))))
}

/// Reads a packed file and checks its contents.
///
/// # Errors
/// [`ErrorKind::NotFound`] if it is not there, [`ErrorKind::BadInput`] if it is damaged.
pub(super) async fn read_checked(store: &Store, key: &str, sha256: &str) -> Result<Bytes> {
    let missing =
        || Error::new(ErrorKind::NotFound, format!("`{key}` is not in the backup store {} any more", store.place()));
    let packed = store.get(key).await?.ok_or_else(missing)?;
    let (name, expected) = (key.to_owned(), sha256.to_owned());
    let unpacked = tokio::task::spawn_blocking(move || unpack_file(&packed, &name, &expected)).await;
    unpacked.or_failed(|| format!("reading `{key}` was cut off"))?
}

fn unpack_file(packed: &[u8], key: &str, sha256: &str) -> Result<Bytes> {
    let damaged = |why: &str| {
        Error::bad_input(format!("`{key}` in the backup store is damaged: {why}"))
            .hint("recover to a time before or after it from another backup: `tfdev backup list`")
    };
    let mut contents = Vec::new();
    let read = Decoder::new(packed).and_then(|decoder| decoder.take(LARGEST_LOG_FILE).read_to_end(&mut contents));
    read.map_err(|error| damaged("it cannot be unpacked").caused_by(error))?;
    if hexadecimal(&Sha256::digest(&contents)) == sha256 {
        Ok(contents.into())
    } else {
        Err(damaged("its checksum does not match"))
    }
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
    decoder: Decoder<'static, io::BufReader<Hashing>>,
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
    /// Unpacks what [`fetch`] sends.
    pub(super) fn new(pieces: mpsc::Receiver<Bytes>, expected: Payload) -> Result<Self> {
        let source = Hashing { source: ChannelReader::new(pieces), hash: Sha256::new(), bytes: 0 };
        let decoder = Decoder::new(source).or_failed(|| "cannot unpack the backup")?;
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
        let mut hashing = self.decoder.finish();
        io::copy(&mut hashing, &mut io::sink()).or_failed(|| "cannot read the backup")?;
        let hashing = hashing.into_inner();
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

    #[test]
    fn a_file_of_the_log_comes_back_or_is_found_damaged() {
        let contents: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let (packed, sha256) = pack_file(&contents).unwrap();
        assert_eq!(unpack_file(&packed, "k", &sha256).unwrap(), contents);
        let mut changed = packed.to_vec();
        changed[packed.len() / 2] ^= 1;
        assert_eq!(unpack_file(&changed, "k", &sha256).unwrap_err().kind(), ErrorKind::BadInput);
        let cut = unpack_file(&packed[..packed.len() / 2], "k", &sha256).unwrap_err();
        assert!(cut.to_string().contains("is damaged"), "{cut}");
        assert!(unpack_file(&packed, "k", &"0".repeat(64)).unwrap_err().to_string().contains("checksum"));
    }
}

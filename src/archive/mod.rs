//! A database in one file: what `tfdev snapshot export` writes and `tfdev snapshot import` reads.
//!
//! ```text
//! offset  bytes
//!      0      4  0x184D2A5E, little-endian: a skippable frame of zstd, so `zstd -d` gives the dump alone
//!      4      4  length of the rest of this frame, little-endian
//!      8      8  "tfdevsnp"
//!     16      4  version of this format, little-endian: 1
//!     20     32  SHA-256 of the manifest
//!     52      n  the manifest: JSON and then spaces
//!   52+n         the dump by pg_dump in its custom format, uncompressed by itself, as frames of zstd
//! ```
//!
//! What must hold: the manifest is known without reading the rest; every byte of the file is covered by a checksum, so a
//! file that was cut, lengthened or changed is found out before its last byte is handed on; what the manifest declares is
//! a bound that is kept, so no file unpacks to more than it says; and nothing in a file names another file.

mod manifest;
mod read;
mod write;

#[cfg(test)]
mod tests;

pub use manifest::{Database, DefaultPrivileges, Grant, Manifest, Payload, SnapshotName, Source};
pub use read::{Contents, Reader};
pub(crate) use write::assemble;
pub use write::{LEVELS, Writer};

/// The usual ending of such a file's name.
pub const EXTENSION: &str = "tfsnap";

/// The version of the format that is written, and the newest that is read.
const FORMAT: u32 = 1;

/// A skippable frame (RFC 8878 § 3.1.2).
const FRAME: u32 = 0x184D_2A5E;

/// What the frame begins with.
const MAGIC: [u8; 8] = *b"tfdevsnp";

/// What is before the manifest.
const HEADER_BYTES: usize = 52;

/// The most bytes that a manifest may have: grants and settings of thousands of roles fit.
const LARGEST_MANIFEST: usize = 4 * 1024 * 1024;

/// The header of a manifest, with the manifest behind it.
fn frame(manifest: &[u8]) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let length = u32::try_from(HEADER_BYTES - 8 + manifest.len()).expect("a manifest is a few MB at most");
    let mut frame = Vec::with_capacity(HEADER_BYTES + manifest.len());
    frame.extend_from_slice(&FRAME.to_le_bytes());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&FORMAT.to_le_bytes());
    frame.extend_from_slice(&Sha256::digest(manifest));
    frame.extend_from_slice(manifest);
    frame
}

use std::io::Write as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::error::{Error, ErrorKind, Result};
use crate::pg::clone::Properties;

fn manifest() -> Manifest {
    Manifest {
        tfdev: "0.1.0".into(),
        postgres: "15.18".into(),
        created: "2026-11-23T10:00:00Z".parse().unwrap(),
        source: Source {
            project: "app".into(),
            instance: "dev".into(),
            engine: "docker".into(),
            database: "app".into(),
        },
        snapshot: Some(SnapshotName { name: "before ü".into(), note: Some("two\nlines".into()) }),
        migration: Some(3),
        database: Database {
            encoding: "UTF8".into(),
            collation: "C".into(),
            size_bytes: 1,
            properties: Properties {
                owner: "app".into(),
                privileges: None,
                connection_limit: -1,
                comment: None,
                settings: Vec::new(),
            },
            default_privileges: Vec::new(),
            roles: Vec::new(),
            extensions: Vec::new(),
        },
        payload: Payload { level: 3, bytes: 0, compressed_bytes: 0, sha256: String::new() },
    }
}

/// Writes `dump` in pieces as the file `path`.
fn write(path: &Path, dump: &[u8]) -> Manifest {
    let mut writer = Writer::create(path, true, manifest()).unwrap();
    for piece in dump.chunks(10_000) {
        writer.write(piece).unwrap();
    }
    let (manifest, bytes) = writer.finish().unwrap();
    assert_eq!(bytes, path.metadata().unwrap().len());
    manifest
}

/// All that is handed on of the dump, and the error after it.
fn read(path: &Path) -> (usize, Result<Vec<u8>>) {
    let mut dump = Vec::new();
    let mut read_all = || -> Result<()> {
        let mut contents = Reader::open(path)?.contents()?;
        while let Some(piece) = contents.next_piece()? {
            dump.extend_from_slice(&piece);
        }
        Ok(())
    };
    let outcome = read_all();
    (dump.len(), outcome.map(|()| dump))
}

/// What does not compress well, and what does.
fn dump(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|at| if at % 3 == 0 { b'x' } else { next() }).collect()
}

#[test]
fn what_is_read_is_what_was_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tfsnap");
    for length in [1, 1000, 256 * 1024, 256 * 1024 + 1, 3_000_000] {
        let written = write(&path, &dump(length));
        assert_eq!(Reader::open(&path).unwrap().manifest(), &written);
        assert_eq!(written.payload.bytes, length as u64);
        assert!(read(&path).1.unwrap() == dump(length));
    }
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
}

#[test]
fn zstd_alone_gives_the_dump() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tfsnap");
    write(&path, &dump(100_000));
    let unpacked = zstd::stream::decode_all(std::fs::File::open(&path).unwrap()).unwrap();
    assert!(unpacked == dump(100_000));
}

#[test]
fn a_file_that_is_there_is_replaced_only_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tfsnap");
    std::fs::write(&path, "mine").unwrap();
    let error = Writer::create(&path, false, manifest()).err().unwrap();
    assert_eq!(error.kind(), ErrorKind::Refused);
    let mut unfinished = Writer::create(&path, true, manifest()).unwrap();
    unfinished.write(b"half").unwrap();
    drop(unfinished);
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    write(&path, b"dump");
    assert_eq!(read(&path).1.unwrap(), b"dump");
}

#[track_caller]
fn assert_refused(path: &Path, length: usize, why: &str) -> Error {
    let (handed_on, outcome) = read(path);
    let error = outcome.err().unwrap_or_else(|| panic!("{why} is not noticed"));
    assert_eq!(error.kind(), ErrorKind::BadInput, "{why}: {error}");
    assert!(handed_on < length, "{why}: all of the dump was handed on");
    error
}

#[test]
fn every_byte_that_is_flipped_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tfsnap");
    let dump = dump(600);
    write(&path, &dump);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for change in [0x01, 0x80] {
            let mut flipped = whole.clone();
            flipped[at] ^= change;
            std::fs::write(&path, &flipped).unwrap();
            assert_refused(&path, dump.len(), &format!("byte {at} with {change:#x}"));
        }
    }
}

#[test]
fn every_cut_and_whatever_is_added_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tfsnap");
    let dump = dump(2_000_000);
    write(&path, &dump);
    let whole = std::fs::read(&path).unwrap();
    for percent in 0..100 {
        std::fs::write(&path, &whole[..whole.len() * percent / 100]).unwrap();
        assert_refused(&path, dump.len(), &format!("a cut at {percent} %"));
    }
    std::fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    assert_refused(&path, dump.len(), "a missing byte");
    std::fs::write(&path, [whole.as_slice(), b"x"].concat()).unwrap();
    assert_refused(&path, dump.len(), "a byte more");
}

/// A file with this manifest and payload, whose checksums are right.
fn forged(path: &Path, payload: &[u8], change: impl FnOnce(&mut Manifest)) {
    use sha2::{Digest, Sha256};
    let mut manifest = manifest();
    manifest.payload.compressed_bytes = payload.len() as u64;
    manifest.payload.sha256 = crate::spec::hexadecimal(&Sha256::digest(payload));
    change(&mut manifest);
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&frame(&serde_json::to_vec(&manifest).unwrap())).unwrap();
    file.write_all(payload).unwrap();
}

#[test]
fn a_file_that_unpacks_to_more_than_it_says_is_stopped_there() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bomb.tfsnap");
    let bomb = zstd::stream::encode_all(std::io::Read::take(std::io::repeat(0), 1 << 27), 3).unwrap();
    assert!(bomb.len() < 200_000);
    forged(&path, &bomb, |manifest| manifest.payload.bytes = 1 << 20);
    let (handed_on, outcome) = read(&path);
    assert!(outcome.unwrap_err().to_string().contains("more than it says"));
    assert!(handed_on <= 1 << 20, "{handed_on}");
    // And one that says more than there is.
    forged(&path, &bomb[..100], |manifest| manifest.payload.bytes = 1 << 20);
    assert_refused(&path, 1 << 20, "a frame that ends early");
}

#[test]
fn a_window_that_wants_all_memory_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("window.tfsnap");
    // A frame of 2^31 bytes' window (RFC 8878 § 3.1.1.1.2), with one raw block.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x09, 0x00, 0x00, b'x'];
    forged(&path, &frame, |manifest| manifest.payload.bytes = 1);
    assert_refused(&path, 1, "a window of 2 GB");
}

#[test]
fn what_is_newer_or_not_ours_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tfsnap");
    let says = |words: &str| {
        let error = assert_refused(&path, 1, words);
        assert!(error.to_string().contains(words), "{error}");
    };
    write(&path, &dump(100));
    let mut newer = std::fs::read(&path).unwrap();
    newer[16] = 2;
    std::fs::write(&path, &newer).unwrap();
    says("has the format 2");
    let payload = zstd::stream::encode_all(&b"x"[..], 3).unwrap();
    forged(&path, &payload, |manifest| manifest.postgres = "16.1".into());
    says("is of PostgreSQL 16.1");
    forged(&path, &payload, |manifest| manifest.source.project = "\u{1b}[2J".into());
    says("not printable");
    forged(&path, &payload, |manifest| manifest.payload.bytes = u64::MAX);
    says("larger than any database");
    forged(&path, &payload, |manifest| manifest.database.size_bytes = u64::MAX);
    says("larger than any database");
    forged(&path, &payload, |manifest| manifest.payload.compressed_bytes = u64::MAX);
    says("is damaged");
    std::fs::write(&path, b"PGDMP\x01\x0e\x00").unwrap();
    says("a dump by `pg_dump`");
    std::fs::write(&path, b"").unwrap();
    says("is no export");
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    says("`");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever stands behind a header that looks right, reading ends with an error and not with a panic.
    #[test]
    fn noise_is_refused(noise in proptest::collection::vec(any::<u8>(), 0..300), length in any::<u32>()) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("noise.tfsnap");
        let mut bytes = frame(&noise);
        bytes[4..8].copy_from_slice(&length.to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        assert_refused(&path, 1, "noise");
    }
}

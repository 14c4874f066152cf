//! The control file and the WAL headers of a PostgreSQL 15 data folder, as bytes: read, and given a new identity.
//!
//! A data folder that was initialised once and shut down cleanly is copied for each new instance. What must hold: no two
//! servers share a system identifier, because backups, WAL archives and replicas take equal identifiers for one and the
//! same cluster. The identifier stands in `global/pg_control`, under a CRC-32C, and in the long header of the first page
//! of every WAL segment, which has no checksum. Nowhere else.
//!
//! Layout: `ControlFileData` in `src/include/catalog/pg_control.h` and `XLogLongPageHeaderData` in
//! `src/include/access/xlog_internal.h` of PostgreSQL 15, on a little-endian machine with 8-byte alignment (x86-64 and
//! AArch64); the version fields and the CRC refuse anything else.

use std::collections::BTreeMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::{Error, Result};

/// The file inside the data folder that [`ControlFile::parse`] reads.
pub const CONTROL_FILE: &str = "global/pg_control";

/// The folder inside the data folder whose segment files [`patch_wal_segment`] is for.
pub const WAL_FOLDER: &str = "pg_wal";

/// The format of PostgreSQL 13 to 16 (`PG_CONTROL_VERSION`).
const CONTROL_VERSION: u32 = 1300;

/// The size of the file, `PG_CONTROL_FILE_SIZE`, in bytes; all behind the CRC is zero.
pub const FILE_SIZE: usize = 8192;

/// Offsets in `ControlFileData`, in bytes.
mod offset {
    pub(super) const SYSTEM_IDENTIFIER: usize = 0;
    pub(super) const CONTROL_VERSION: usize = 8;
    pub(super) const CATALOG_VERSION: usize = 12;
    pub(super) const STATE: usize = 16;
    pub(super) const CHECKPOINT: usize = 32;
    pub(super) const CHECKPOINT_TIMELINE: usize = 48;
    pub(super) const WAL_LEVEL: usize = 172;
    pub(super) const MAX_CONNECTIONS: usize = 180;
    pub(super) const MAX_WORKER_PROCESSES: usize = 184;
    pub(super) const MAX_WAL_SENDERS: usize = 188;
    pub(super) const MAX_PREPARED_TRANSACTIONS: usize = 192;
    pub(super) const MAX_LOCKS_PER_TRANSACTION: usize = 196;
    pub(super) const WAL_SEGMENT_SIZE: usize = 228;
    pub(super) const DATA_CHECKSUM_VERSION: usize = 252;
    pub(super) const CRC: usize = 288;
}

/// `XLOG_PAGE_MAGIC` of PostgreSQL 15.
const WAL_PAGE_MAGIC: u16 = 0xD110;

/// `XLP_LONG_HEADER`: the page is the first of its segment and carries the system identifier.
const WAL_LONG_HEADER: u16 = 0x0002;

/// Where `xlp_sysid` stands in the long header, in bytes.
const WAL_SYSTEM_IDENTIFIER: usize = 24;

/// CRC-32C, as `src/port/pg_crc32c*` computes it.
pub(super) const CRC_32C: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISCSI);

/// What state the control file says the cluster is in (`DBState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClusterState {
    /// Being made by initdb.
    Starting,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly while in recovery.
    ShutDownInRecovery,
    /// In the middle of a shutdown.
    ShuttingDown,
    /// In recovery after a crash.
    InCrashRecovery,
    /// In recovery from an archive, or a standby.
    InArchiveRecovery,
    /// Running, or crashed while it ran.
    InProduction,
}

/// What a control file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlFile {
    /// The cluster's identity.
    pub system_identifier: u64,
    /// The format of the control file: 1300.
    pub control_version: u32,
    /// The layout of the system catalogs, for example 202209061.
    pub catalog_version: u32,
    /// The cluster's state.
    pub state: ClusterState,
    /// Where the latest checkpoint is in the WAL.
    pub checkpoint: u64,
    /// The timeline of the latest checkpoint.
    pub timeline: u32,
    /// `wal_level` of the last start: 0 is minimal, 1 is replica, 2 is logical.
    pub wal_level: u32,
    /// `max_connections` of the last start; a recovery needs at least as many.
    pub max_connections: u32,
    /// `max_worker_processes` of the last start.
    pub max_worker_processes: u32,
    /// `max_wal_senders` of the last start.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions` of the last start.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction` of the last start.
    pub max_locks_per_transaction: u32,
    /// The size of a WAL segment, in bytes.
    pub wal_segment_size: u32,
    /// Whether data pages carry checksums.
    pub data_checksums: bool,
}

impl ControlFile {
    /// Reads the bytes of `global/pg_control` and checks its CRC.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        if bytes.len() != FILE_SIZE {
            return Err(damaged(&format!("it has {} bytes, but should have {FILE_SIZE}", bytes.len())));
        }
        let control_version = u32_at(bytes, offset::CONTROL_VERSION);
        if control_version != CONTROL_VERSION {
            return Err(Error::bad_input(format!(
                "the data folder's control file has format {control_version}, but PostgreSQL 15 has {CONTROL_VERSION}"
            ))
            .hint("the folder was made by another major version or on another kind of machine; use a dump instead"));
        }
        let stored = u32_at(bytes, offset::CRC);
        let computed = CRC_32C.checksum(&bytes[..offset::CRC]);
        if stored != computed {
            return Err(damaged(&format!("its checksum is {computed:08x}, but it says {stored:08x}")));
        }
        Ok(Self {
            system_identifier: u64_at(bytes, offset::SYSTEM_IDENTIFIER),
            control_version,
            catalog_version: u32_at(bytes, offset::CATALOG_VERSION),
            state: state(u32_at(bytes, offset::STATE))?,
            checkpoint: u64_at(bytes, offset::CHECKPOINT),
            timeline: u32_at(bytes, offset::CHECKPOINT_TIMELINE),
            wal_level: u32_at(bytes, offset::WAL_LEVEL),
            max_connections: u32_at(bytes, offset::MAX_CONNECTIONS),
            max_worker_processes: u32_at(bytes, offset::MAX_WORKER_PROCESSES),
            max_wal_senders: u32_at(bytes, offset::MAX_WAL_SENDERS),
            max_prepared_transactions: u32_at(bytes, offset::MAX_PREPARED_TRANSACTIONS),
            max_locks_per_transaction: u32_at(bytes, offset::MAX_LOCKS_PER_TRANSACTION),
            wal_segment_size: u32_at(bytes, offset::WAL_SEGMENT_SIZE),
            data_checksums: u32_at(bytes, offset::DATA_CHECKSUM_VERSION) != 0,
        })
    }

    /// The settings that must be at least as large in a server that replays this one's log, by name.
    pub fn recovery_settings(&self) -> BTreeMap<String, u32> {
        let settings = [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ];
        settings.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// Gives the control file `bytes` with the system identifier `new` and the CRC that belongs to it.
///
/// Refuses a cluster that was not shut down cleanly: it would recover from WAL, of which not every page that matters may
/// have been given the new identifier.
pub fn with_system_identifier(bytes: &[u8], new: u64) -> Result<Vec<u8>> {
    let control = ControlFile::parse(bytes)?;
    if control.state != ClusterState::ShutDown {
        return Err(Error::new(
            crate::ErrorKind::Refused,
            format!("a data folder in the state {:?} cannot be given a new identity", control.state),
        )
        .hint("stop its server the orderly way first"));
    }
    let mut patched = bytes.to_vec();
    patched[offset::SYSTEM_IDENTIFIER..][..8].copy_from_slice(&new.to_le_bytes());
    let checksum = CRC_32C.checksum(&patched[..offset::CRC]);
    patched[offset::CRC..][..4].copy_from_slice(&checksum.to_le_bytes());
    Ok(patched)
}

/// Bytes at the beginning of a WAL segment that [`patch_wal_segment`] needs: `SizeOfXLogLongPHD`.
pub const WAL_LONG_HEADER_SIZE: usize = 40;

/// Changes the system identifier in `first_page`, the beginning (at least 40 bytes) of a WAL segment file, from `old` to
/// `new`. A segment that was made ahead of need and is still all zero is left as it is.
pub fn patch_wal_segment(first_page: &mut [u8], old: u64, new: u64) -> Result<()> {
    let Some(header) = first_page.get_mut(..WAL_LONG_HEADER_SIZE) else {
        return Err(damaged_wal(&format!("it has only {} bytes", first_page.len())));
    };
    if header.iter().all(|byte| *byte == 0) {
        return Ok(());
    }
    let magic = u16::from_le_bytes([header[0], header[1]]);
    let flags = u16::from_le_bytes([header[2], header[3]]);
    if magic != WAL_PAGE_MAGIC {
        return Err(damaged_wal(&format!(
            "its magic number is {magic:04X}, but PostgreSQL 15's is {WAL_PAGE_MAGIC:04X}"
        )));
    }
    if flags & WAL_LONG_HEADER == 0 {
        return Err(damaged_wal("its first page has no long header"));
    }
    let found = u64_at(header, WAL_SYSTEM_IDENTIFIER);
    if found != old {
        return Err(damaged_wal(&format!("it belongs to the cluster {found}, not to {old}")));
    }
    header[WAL_SYSTEM_IDENTIFIER..][..8].copy_from_slice(&new.to_le_bytes());
    Ok(())
}

/// Whether `name` is that of a WAL segment file in [`WAL_FOLDER`]: 24 upper-case hexadecimal digits, or a `.partial` of it.
pub fn is_wal_segment(name: &str) -> bool {
    let name = name.strip_suffix(".partial").unwrap_or(name);
    name.len() == 24 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'))
}

/// Makes a system identifier. As with initdb the upper half is the time in seconds. The lower half, which initdb makes of
/// microseconds and its process number, counts up here from a random start: those of one process never repeat, and two
/// processes in the same second meet by a chance of one in four billion.
pub fn new_system_identifier() -> u64 {
    static COUNTER: LazyLock<AtomicU32> = LazyLock::new(|| AtomicU32::new(rand::random()));
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    (seconds << 32) | u64::from(COUNTER.fetch_add(1, Ordering::Relaxed))
}

fn state(number: u32) -> Result<ClusterState> {
    Ok(match number {
        0 => ClusterState::Starting,
        1 => ClusterState::ShutDown,
        2 => ClusterState::ShutDownInRecovery,
        3 => ClusterState::ShuttingDown,
        4 => ClusterState::InCrashRecovery,
        5 => ClusterState::InArchiveRecovery,
        6 => ClusterState::InProduction,
        other => return Err(damaged(&format!("it names the unknown state {other}"))),
    })
}

fn damaged(how: &str) -> Error {
    Error::bad_input(format!("the data folder's control file `{CONTROL_FILE}` is damaged: {how}"))
}

fn damaged_wal(how: &str) -> Error {
    Error::bad_input(format!("a WAL segment of the data folder cannot be used: {how}"))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;

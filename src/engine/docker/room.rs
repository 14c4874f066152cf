//! Room on the disk of a daemon on this machine, looked at before a new data folder is written there.
//!
//! What must hold: it only ever refuses to begin. Where the room cannot be told (a remote daemon, one in a virtual
//! machine, no permission to look), nothing is said and the write itself finds out.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};

/// What a new data folder needs: the folder (48 MB), the first WAL segments and the sample data, with room to start.
const NEEDED_BYTES: u64 = 300 * 1024 * 1024;

/// Fails if a new data folder below `folder` would not fit.
pub(super) fn check(folder: &Path) -> Result<()> {
    free_bytes(folder).map_or(Ok(()), |free| enough(folder, free))
}

fn enough(folder: &Path, free: u64) -> Result<()> {
    if free >= NEEDED_BYTES {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Refused,
        format!(
            "a new database needs {} MB, and the disk of Docker's volumes (`{}`) has {} MB left",
            NEEDED_BYTES / 1024 / 1024,
            folder.display(),
            free / 1024 / 1024
        ),
    )
    .hint("`docker system df` shows what takes the space, and `docker system prune` removes what is not in use"))
}

/// The bytes that are free in the file system of `folder`, or of the nearest folder above it that may be looked at.
#[cfg(unix)]
pub(super) fn free_bytes(folder: &Path) -> Option<u64> {
    folder.ancestors().find_map(|folder| rustix::fs::statvfs(folder).ok()).map(|room| room.f_bavail * room.f_frsize)
}

/// There is no daemon of this machine's own file systems elsewhere.
#[cfg(not(unix))]
pub(super) fn free_bytes(_: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_refused_before_anything_is_written() {
        let error = enough(Path::new("/var/lib/docker/volumes"), 12 * 1024 * 1024).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("12 MB left"), "{error}");
        assert!(enough(Path::new("/"), NEEDED_BYTES).is_ok());
    }

    #[test]
    fn a_folder_that_is_not_there_stands_for_the_one_above_it() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(free_bytes(&root.path().join("a/b")).is_some(), free_bytes(root.path()).is_some());
        assert!(free_bytes(root.path()).is_some_and(|free| free > 0));
    }
}

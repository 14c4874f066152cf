//! A process that holds a lease for another one, such as a shell, which has no session with the server itself.
//!
//! What must hold: the lease ends when that process does, however it ends; a process that later gets the same number is
//! not taken for it.

use std::time::Duration;

use super::pool::{Lease, Pool};
use crate::error::{Context, Error, ErrorKind, Result};

/// How often the process is looked for where the system cannot tell of its end.
#[cfg(not(target_os = "linux"))]
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How often the holder looks whether the database was dropped by name.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// How long giving back and dropping may take when the process has ended.
const CLEAN_UP_LIMIT: Duration = Duration::from_secs(10);

/// A process of this machine whose end can be waited for.
#[derive(Debug)]
pub struct Watched {
    #[cfg(target_os = "linux")]
    handle: std::os::fd::OwnedFd,
    #[cfg(not(target_os = "linux"))]
    process: rustix::process::Pid,
}

impl Watched {
    /// The process with this number, which must run.
    pub fn new(process: i32) -> Result<Self> {
        let gone = || Error::new(ErrorKind::NotFound, format!("there is no process {process} to hold a database for"));
        let pid = rustix::process::Pid::from_raw(process).filter(|_| process > 1).ok_or_else(gone)?;
        #[cfg(target_os = "linux")]
        {
            let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty());
            Ok(Self { handle: handle.map_err(|error| gone().caused_by(error))? })
        }
        #[cfg(not(target_os = "linux"))]
        {
            rustix::process::test_kill_process(pid).map_err(|error| gone().caused_by(error))?;
            Ok(Self { process: pid })
        }
    }

    /// Waits for its end.
    #[cfg(target_os = "linux")]
    async fn ended(self) -> Result<()> {
        let what = || "cannot watch the process that has the database";
        let wait = move || {
            use rustix::event::{PollFd, PollFlags, poll};
            let mut ended = [PollFd::new(&self.handle, PollFlags::IN)];
            while let Err(rustix::io::Errno::INTR) = poll(&mut ended, None) {}
        };
        tokio::task::spawn_blocking(wait).await.or_failed(what)
    }

    /// Waits for its end.
    #[cfg(not(target_os = "linux"))]
    async fn ended(self) -> Result<()> {
        while rustix::process::test_kill_process(self.process) != Err(rustix::io::Errno::SRCH) {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Holds the lease until the process has ended, then drops the database. Ends as well if the database was dropped by name.
pub async fn hold(pool: &Pool, lease: Lease, process: Watched) -> Result<()> {
    let dropped = async {
        loop {
            tokio::time::sleep(CHECK_EVERY).await;
            // A server that does not answer now may answer later.
            if pool.list().await.is_ok_and(|all| !all.iter().any(|one| one.id == lease.id)) {
                return;
            }
        }
    };
    tokio::select! {
        ended = process.ended() => ended?,
        () = dropped => {}
    }
    let clean_up = async {
        pool.give_back(lease.clone()).await?;
        pool.collect().await.map(drop)
    };
    // The server may be gone for good; what is not done is left to the next call.
    tokio::time::timeout(CLEAN_UP_LIMIT, clean_up).await.unwrap_or(Ok(()))
}

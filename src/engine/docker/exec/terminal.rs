//! Our own terminal while a program in a container uses it.

use std::io;
use std::time::Duration;

use bollard::Docker;
use bollard::exec::ResizeExecOptions;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use crate::error::{Error, ErrorKind, Result};

/// The terminal in raw mode: keys go to the program unchanged. Dropping it gives the terminal back as it was.
pub(super) struct RawMode(Termios);

impl RawMode {
    /// Puts the terminal of our standard input into raw mode.
    pub(super) fn enter() -> Result<Self> {
        let failed = |error: rustix::io::Errno| {
            Error::new(ErrorKind::Failed, "cannot use the standard input as a terminal").caused_by(error)
        };
        let before = tcgetattr(io::stdin()).map_err(failed)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).map_err(failed)?;
        Ok(Self(before))
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // Drain: what the program wrote last was meant for the raw terminal. Nothing can be done about a failure.
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

/// How often, and how long apart, the first resize is tried: the daemon refuses it until the program has started.
const ATTEMPTS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(10);

/// Gives the terminal of exec `id` the size of ours, now and whenever ours changes.
pub(super) async fn follow_size(docker: &Docker, id: &str) {
    #[cfg(feature = "cli")]
    let changes = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::window_change());
    for _ in 0..ATTEMPTS {
        if resize(docker, id).await {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    #[cfg(feature = "cli")]
    if let Ok(mut changes) = changes {
        while changes.recv().await.is_some() {
            resize(docker, id).await;
        }
    }
}

/// Whether there is nothing left to do about the size. A wrong size is a blemish and no reason to end the session.
async fn resize(docker: &Docker, id: &str) -> bool {
    match tcgetwinsize(io::stdout()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => {
            let options = ResizeExecOptions { height: size.ws_row, width: size.ws_col };
            docker.resize_exec(id, options).await.is_ok()
        }
        // Some terminals do not know their size.
        _ => true,
    }
}

//! What a failed call to the daemon means.

use bollard::errors::Error as DaemonError;

use crate::error::{Error, ErrorKind};

/// Makes the error for a call that failed: [`ErrorKind::NoEngine`] if the daemon did not answer, else
/// [`ErrorKind::Failed`]. A full disk gets its own hint.
pub(super) fn error(message: impl Into<String>, cause: DaemonError) -> Error {
    let text = words(&cause);
    let kind = if unanswered(&cause) { ErrorKind::NoEngine } else { ErrorKind::Failed };
    let error = Error::new(kind, message);
    let error = match kind {
        ErrorKind::NoEngine => error.hint("`docker version` shows whether the daemon answers"),
        _ if text.contains("no space left") => {
            error.hint("the daemon's disk is full: `docker system df` shows what uses it")
        }
        _ => error,
    };
    // The daemon's own words say more than the client's sentence around them.
    match cause {
        DaemonError::DockerResponseServerError { .. } | DaemonError::DockerStreamError { .. } => error.caused_by(text),
        other => error.caused_by(other),
    }
}

/// What the daemon itself said, or the client's error where it said nothing.
pub(super) fn words(error: &DaemonError) -> String {
    match error {
        DaemonError::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        DaemonError::DockerStreamError { error } => error.trim().to_owned(),
        other => other.to_string(),
    }
}

/// Whether the daemon itself can't be reached, as opposed to having said no.
fn unanswered(error: &DaemonError) -> bool {
    matches!(
        error,
        DaemonError::HyperLegacyError { .. }
            | DaemonError::HyperResponseError { .. }
            | DaemonError::SocketNotFoundError(_)
            | DaemonError::RequestTimeoutError
            | DaemonError::IOError { .. }
    )
}

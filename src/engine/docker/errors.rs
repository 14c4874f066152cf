//! Turns failures of calls to the Docker API into [`Error`], and tells the few that callers act on.
//!
//! What must hold: a person sees the daemon's own words or the system's (`permission denied`), never those of the HTTP
//! library between us. Why a daemon cannot be reached at all is told by [`super::connect`].

use std::error::Error as StandardError;
use std::io;

use bollard::errors::Error as Failure;

use crate::error::{Error, ErrorKind};

/// Says that `action` failed, for example ``create container `tfdev-dev` ``, with the daemon's words as the cause.
///
/// Takes the [`ErrorKind`] from what happened: no such thing, a conflict, a taken port, a time limit, a lost daemon.
#[expect(clippy::needless_pass_by_value, reason = "it ends here, and `map_err` hands over values")]
pub fn failed(action: &str, failure: Failure) -> Error {
    let error = |kind| Error::new(kind, format!("cannot {action}"));
    let words = words(&failure);
    if let Some(port) = port_taken(&failure) {
        return Error::new(ErrorKind::Conflict, format!("cannot {action}: port {port} is taken by something else"))
            .caused_by(words)
            .hint(
                "stop what listens there, or set another port: `port = \"auto\"` under `[database]` takes a free one",
            );
    }
    match &failure {
        Failure::DockerResponseServerError { status_code, message } => {
            let kind = match status_code {
                404 => ErrorKind::NotFound,
                409 => ErrorKind::Conflict,
                _ => ErrorKind::Failed,
            };
            let error = error(kind).caused_by(words);
            if message.to_lowercase().contains("cannot assign requested address") {
                error.hint("the daemon's machine does not have the address to publish on (address translation, a jump host): name one that it has with `publish` in the section `[docker]` of tfdev.toml")
            } else if message.to_lowercase().contains("no space left on device") {
                error.hint("`docker system df` shows what takes the space")
            } else {
                error
            }
        }
        Failure::RequestTimeoutError => Error::new(
            ErrorKind::TimedOut,
            format!("cannot {action}: the Docker daemon gave no answer within the time limit"),
        )
        .hint("`docker ps` shows whether the daemon still answers; restart it if not"),
        _ if is_lost(&failure) => {
            Error::new(ErrorKind::NoEngine, format!("cannot {action}: the connection to the Docker daemon was lost"))
                .caused_by(words)
                .hint("was Docker stopped or restarted? run the command again, it goes on where it stopped")
        }
        _ => error(ErrorKind::Failed).caused_by(words),
    }
}

/// Whether the daemon says that there is no such thing.
pub fn is_not_found(failure: &Failure) -> bool {
    has_status(failure, 404)
}

/// Whether the daemon says that the name is taken or that the thing is in a state that forbids this.
pub fn is_conflict(failure: &Failure) -> bool {
    has_status(failure, 409)
}

fn has_status(failure: &Failure, status: u16) -> bool {
    matches!(failure, Failure::DockerResponseServerError { status_code, .. } if *status_code == status)
}

/// Words of an engine that could not publish a port.
const TAKEN: [&str; 5] = [
    "port is already allocated",
    "address already in use",
    "ports are not available",
    // Windows' words for the same.
    "only one usage of each socket address",
    "forbidden by its access permissions",
];

/// The port of this machine that a container cannot be published on because something else has it.
///
/// No status tells this, so the words must do; the tests list those of Docker Engine, Docker Desktop and Podman.
pub fn port_taken(failure: &Failure) -> Option<u16> {
    let Failure::DockerResponseServerError { message, .. } = failure else { return None };
    let message = message.to_lowercase();
    TAKEN.iter().any(|words| message.contains(words)).then(|| port_in(&message)).flatten()
}

/// The first port in `127.0.0.1:5432`, `[::]:5432` or `port 5432`.
fn port_in(message: &str) -> Option<u16> {
    let after_address = message.match_indices(':').filter_map(|(at, _)| {
        let follows_address = message[..at].ends_with(|before: char| before.is_ascii_digit() || before == ']');
        if follows_address { number_at(&message[at + 1..]) } else { None }
    });
    let after_word = message.match_indices("port ").filter_map(|(at, word)| number_at(&message[at + word.len()..]));
    after_address.chain(after_word).next()
}

/// The number that `text` begins with, if a separator or the end follows it.
fn number_at(text: &str) -> Option<u16> {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let ends_well = text[end..].chars().next().is_none_or(|next| " :/,.)-".contains(next));
    text[..end].parse().ok().filter(|port| ends_well && *port > 0)
}

/// Whether the daemon went away in the middle.
fn is_lost(failure: &Failure) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, NotFound, UnexpectedEof};
    let by_kind = matches!(
        io_kind(failure),
        Some(BrokenPipe | ConnectionAborted | ConnectionRefused | ConnectionReset | UnexpectedEof)
    );
    // Of an HTTP call, `not found` means that the socket is gone; of other errors it may be about any file.
    let socket_gone = matches!(failure, Failure::HyperLegacyError { .. }) && io_kind(failure) == Some(NotFound);
    by_kind || socket_gone || chain(failure).any(|error| is_cut_off(&error.to_string()))
}

/// The HTTP library's words for a connection that ended inside an answer. Its type for that is not ours to name.
fn is_cut_off(text: &str) -> bool {
    text.contains("connection closed before message completed")
        || text.contains("error reading a body from connection")
        || text.contains("connection closed")
        || text.contains("unexpected end of file")
}

/// What a person should read about `failure`: the daemon's message, or the innermost cause.
pub(crate) fn words(failure: &Failure) -> String {
    match failure {
        Failure::DockerResponseServerError { status_code, message } if message.trim().is_empty() => {
            format!("the Docker daemon answered with status {status_code} and no explanation")
        }
        Failure::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Failure::DockerStreamError { error } | Failure::DockerContainerWaitError { error, .. } => error.clone(),
        Failure::RequestTimeoutError => "no answer within the time limit".to_owned(),
        Failure::JsonDataError { message, .. } => format!("the answer is not what Docker says: {message}"),
        _ => chain(failure).last().map_or_else(|| failure.to_string(), ToString::to_string),
    }
}

/// The kind of the input or output error at the bottom of `failure`.
pub(super) fn io_kind(failure: &Failure) -> Option<io::ErrorKind> {
    chain(failure).filter_map(|error| error.downcast_ref::<io::Error>()).last().map(io::Error::kind)
}

/// `failure` and the errors below it, outermost first.
///
/// [`StandardError::source`] leaves out an error that is wrapped in an [`io::Error`], and transparent variants leave
/// out their content, so both are opened here.
pub(super) fn chain(failure: &Failure) -> impl Iterator<Item = &(dyn StandardError + 'static)> {
    let first: &(dyn StandardError + 'static) = match failure {
        Failure::IOError { err } => err,
        Failure::HyperResponseError { err } => err,
        Failure::HyperLegacyError { err } => err,
        _ => failure,
    };
    std::iter::successors(Some(first), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status_code: u16, message: &str) -> Failure {
        Failure::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn a_taken_port_is_recognised_in_the_words_of_each_engine() {
        // Docker 20.10 to 29, Docker Desktop on macOS and Windows, Podman with slirp4netns and with pasta.
        for message in [
            "driver failed programming external connectivity on endpoint tfdev-dev (3f0a1c22b8d94be1): Bind for 127.0.0.1:5432 failed: port is already allocated",
            "driver failed programming external connectivity on endpoint tfdev-dev (3f0a1c22b8d94be1): Error starting userland proxy: listen tcp4 127.0.0.1:5432: bind: address already in use",
            "failed to set up container networking: driver failed programming external connectivity on endpoint tfdev-dev (3f0a): failed to bind host port for 127.0.0.1:5432:172.17.0.2:5433/tcp: address already in use",
            "failed to set up container networking: driver failed programming external connectivity on endpoint tfdev-dev (3f0a): failed to bind host port 127.0.0.1:5432/tcp: address already in use",
            "Ports are not available: exposing port TCP 127.0.0.1:5432 -> 0.0.0.0:0: listen tcp 127.0.0.1:5432: bind: address already in use",
            "Ports are not available: exposing port TCP 127.0.0.1:5432 -> 127.0.0.1:0: listen tcp 127.0.0.1:5432: bind: Only one usage of each socket address (protocol/network address/port) is normally permitted.",
            "Ports are not available: listen tcp 127.0.0.1:5432: bind: An attempt was made to access a socket in a way forbidden by its access permissions.",
            "rootlessport listen tcp 127.0.0.1:5432: bind: address already in use",
            "cannot listen on the TCP port: listen tcp4 :5432: bind: address already in use, then 127.0.0.1:5432",
            "pasta failed with exit code 1:\nFailed to bind port 5432 (Address already in use) for option '-t 127.0.0.1/5432-5432:5432-5432', exiting",
            "Bind for [::1]:5432 failed: port is already allocated",
        ] {
            assert_eq!(port_taken(&answer(500, message)), Some(5432), "{message}");
            let error = failed("start container `tfdev-dev`", answer(500, message));
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert_eq!(error.causes(), [message]);
        }
        for message in ["No such container: 127.0.0.1:5432", "port is already allocated", "Conflict at 10:15:00"] {
            assert_eq!(port_taken(&answer(500, message)), None, "{message}");
        }
        assert_eq!(port_taken(&Failure::RequestTimeoutError), None);
    }

    #[test]
    fn the_status_decides_the_kind_and_the_daemons_words_are_the_cause() {
        for (status, kind) in [(404, ErrorKind::NotFound), (409, ErrorKind::Conflict), (500, ErrorKind::Failed)] {
            let error = failed("remove volume `v`", answer(status, "volume is in use\n"));
            assert_eq!(error.kind(), kind);
            assert_eq!(error.to_string(), "cannot remove volume `v`");
            assert_eq!(error.causes(), ["volume is in use"]);
        }
        assert!(is_not_found(&answer(404, "")) && !is_not_found(&answer(409, "")));
        assert!(is_conflict(&answer(409, "")) && !is_conflict(&Failure::RequestTimeoutError));
        assert_eq!(failed("x", Failure::RequestTimeoutError).kind(), ErrorKind::TimedOut);
    }

    #[test]
    fn a_daemon_that_goes_away_is_told_from_other_trouble() {
        let lost = Failure::from(io::Error::from(io::ErrorKind::ConnectionReset));
        let error = failed("list containers", lost);
        assert_eq!(error.kind(), ErrorKind::NoEngine);
        assert_eq!(error.to_string(), "cannot list containers: the connection to the Docker daemon was lost");

        let file = Failure::from(io::Error::new(io::ErrorKind::NotFound, "no such archive"));
        let error = failed("load image `x`", file);
        assert_eq!(error.kind(), ErrorKind::Failed);
        assert_eq!(error.causes(), ["no such archive"]);
    }

    #[test]
    fn an_error_inside_an_io_error_is_found() {
        let inner = io::Error::new(io::ErrorKind::PermissionDenied, "not yours");
        let failure = Failure::from(io::Error::other(inner));
        assert_eq!(io_kind(&failure), Some(io::ErrorKind::PermissionDenied));
        assert_eq!(words(&failure), "not yours");
    }
}

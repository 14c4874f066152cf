//! Exit statuses (`CLI.md` § Exit status).

use std::process::ExitCode;

use crate::error::{Error, ErrorKind};

/// The exit status of a failure.
pub(super) fn code(kind: ErrorKind) -> ExitCode {
    ExitCode::from(match kind {
        ErrorKind::Failed => 1,
        ErrorKind::Usage => 2,
        ErrorKind::NoEngine => 3,
        ErrorKind::NotFound => 4,
        ErrorKind::Refused => 5,
        ErrorKind::Conflict => 6,
        ErrorKind::TimedOut => 7,
        ErrorKind::BadInput => 8,
        ErrorKind::Interrupted => 130,
    })
}

/// Shows clap's help, version or error.
pub(super) fn of_usage(error: &clap::Error, json: bool) -> ExitCode {
    if json && error.use_stderr() {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let error = Error::new(ErrorKind::Usage, message).hint("see `tfdev --help`");
        super::output::json_error(&error);
    } else {
        // A closed pipe is the only way to fail here, and then nobody reads.
        let _ = error.print();
    }
    if error.use_stderr() { code(ErrorKind::Usage) } else { ExitCode::SUCCESS }
}

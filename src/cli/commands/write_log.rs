//! `tfdev write-log`: the process beside a server of the native engine that writes its log. No command for people.

use std::process::ExitCode;

use crate::engine::native;
use crate::error::{Context, Result};

pub(in crate::cli) fn run() -> Result<ExitCode> {
    native::write_log().or_failed(|| "cannot write the server's log")?;
    Ok(ExitCode::SUCCESS)
}

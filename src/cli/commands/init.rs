//! `tfdev init`.

use std::io::Write;

use clap::Args;

use crate::cli::Session;
use crate::config;
use crate::error::{Context, Error, ErrorKind, Result};

/// Write a commented tfdev.toml
///
/// Every key is explained and commented out, so that defaults stay defaults. An existing file is left alone.
#[derive(Debug, Args)]
pub struct Init {
    /// The project's key [default: made from the folder]
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
}

pub(super) fn run(command: &Init, session: &Session) -> Result<()> {
    let text = config::template(command.project.as_deref());
    let path = session.settings.project_dir.join(config::FILE_NAME);
    let mut file = std::fs::File::create_new(&path).map_err(|error| {
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            Error::new(ErrorKind::Conflict, format!("`{}` is there already and was left as it is", path.display()))
                .hint("edit it, or move it away and run `tfdev init` again")
        } else {
            Error::failed(format!("cannot write `{}`", path.display())).caused_by(error)
        }
    })?;
    file.write_all(text.as_bytes()).or_failed(|| format!("cannot write `{}`", path.display()))?;
    let shown = path.display().to_string();
    session.output.result(&serde_json::json!({ "file": shown }), |out| {
        writeln!(out, "Wrote {shown}: every key is explained in it, and commented out")
    })
}

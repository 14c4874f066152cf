//! `tfdev config`.

use clap::{Args, Subcommand};

use crate::cli::Session;
use crate::error::Result;

/// Show the settled configuration with each value's origin
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every value and where it came from
    Show,
}

pub(super) fn run(command: &Config, session: &Session) -> Result<()> {
    let Action::Show = command.action;
    let listing = &session.settings.listing;
    let rows: Vec<_> = listing
        .iter()
        .map(|(key, setting)| {
            serde_json::json!({ "key": key, "value": setting.value, "origin": setting.origin.to_string() })
        })
        .collect();
    session.output.result(&rows, |out| {
        let width = listing.iter().map(|(key, setting)| key.len() + setting.value.len() + 3).max().unwrap_or_default();
        for (key, setting) in listing {
            let value = format!("{key} = {}", setting.value);
            writeln!(out, "{value:<width$}  # {}", setting.origin)?;
        }
        Ok(())
    })
}

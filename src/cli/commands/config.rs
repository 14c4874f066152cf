//! `tfdev config`.

use clap::{Args, Subcommand};

use crate::cli::Session;
use crate::error::Result;
use crate::profile;

/// Show the settled configuration with each value's origin, or how two profiles differ
#[derive(Debug, Args)]
pub struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Show every value and where it came from
    Show,
    /// Show how two profiles differ, the project's own included
    Diff {
        /// A profile: `dev`, `prod`, `test` or one of the project's own
        first: String,
        /// The profile to compare it with
        second: String,
    },
}

pub(super) fn run(command: &Config, session: &Session) -> Result<()> {
    match &command.action {
        Action::Show => show(session),
        Action::Diff { first, second } => diff(first, second, session),
    }
}

fn diff(first: &str, second: &str, session: &Session) -> Result<()> {
    let changes = profile::difference(first, second, &session.settings.profiles)?;
    session.output.result(&changes, |out| {
        let shown = |value: &Option<String>| value.clone().unwrap_or_else(|| "(default)".to_owned());
        let mut rows = vec![("setting".to_owned(), first.to_owned(), second.to_owned())];
        rows.extend(changes.iter().map(|change| (change.name.clone(), shown(&change.old), shown(&change.new))));
        let width = |column: fn(&(String, String, String)) -> &String| {
            rows.iter().map(|row| column(row).chars().count()).max().unwrap_or_default() + 2
        };
        let (name, old) = (width(|row| &row.0), width(|row| &row.1));
        rows.iter().try_for_each(|row| writeln!(out, "{:<name$}{:<old$}{}", row.0, row.1, row.2))
    })
}

fn show(session: &Session) -> Result<()> {
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

//! Which folder is the project.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Environment, FILE_NAME, Flags, Origin, Setting};
use crate::error::{Context, Error, ErrorKind, Result};

/// Finds the project's folder: `--project-dir`, else the nearest one upwards with a `tfdev.toml`, looked for no further
/// than the root of the checkout, which is the answer if there is none; else the current folder. Canonical.
pub(super) fn find(flags: &Flags, environment: &Environment) -> Result<Setting<PathBuf>> {
    if let Some(given) = flags.given_project_dir() {
        let folder = canonical(&environment.current_dir.join(&given.value), &given.origin)?;
        return Ok(Setting { value: folder, origin: given.origin.clone() });
    }
    let current = canonical(&environment.current_dir, &Origin::Default)?;
    for folder in current.ancestors() {
        if exists(&folder.join(FILE_NAME)) || exists(&folder.join(".git")) {
            return Ok(Setting::default_value(folder.to_owned()));
        }
    }
    Ok(Setting::default_value(current))
}

/// A link that leads nowhere exists as well: it is told when it is read, not passed over.
fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn canonical(folder: &Path, origin: &Origin) -> Result<PathBuf> {
    let whose = match origin {
        Origin::Flag { name } | Origin::Environment { name } => format!(" of `{name}`"),
        Origin::File { .. } | Origin::Default => String::new(),
    };
    let hint = "name the root of the checkout with `--project-dir`, or change to it";
    let canonical = fs::canonicalize(folder)
        .context(ErrorKind::BadInput, || format!("the folder{whose} `{}` cannot be used", folder.display()))
        .map_err(|error| error.hint(hint))?;
    if canonical.is_dir() {
        return Ok(canonical);
    }
    Err(Error::bad_input(format!("`{}`{whose} is not a folder", folder.display())).hint(hint))
}

//! Making a new migration file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::source::{Name, sql_files};
use crate::error::{Error, ErrorKind, Result};

/// What a new file says.
const TEMPLATE: &str = "\
-- Runs in one transaction, together with the note that it was applied.
-- A file whose first line is `-- no-transaction` runs outside one; keep it to a single statement,
-- such as CREATE INDEX CONCURRENTLY.
-- Once other databases have applied this file, write a new migration instead of changing it.

";

/// Makes an empty migration in `folder` (created if needed) and gives its path.
///
/// The version is `now` in UTC as `YYYYMMDDHHMMSS`, which is sqlx's way, or one more than the latest that is there if that
/// is not later. `name` may be words or snake case.
pub fn new_file(folder: &Path, name: &str, now: Timestamp) -> Result<PathBuf> {
    let name = snake_case(name)?;
    let failed = |error: io::Error| {
        Error::failed(format!("cannot make a migration in `{}`: {error}", folder.display())).caused_by(error)
    };
    fs::create_dir_all(folder).map_err(failed)?;
    let version = next_version(folder, now)?;
    let path = folder.join(format!("{version}_{name}.sql"));
    match File::create_new(&path) {
        Ok(mut file) => file.write_all(TEMPLATE.as_bytes()).map_err(failed)?,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("`{}` was made by someone else just now", path.display()),
            )
            .hint("run `tfdev migrate new` again"));
        }
        Err(error) => return Err(failed(error)),
    }
    Ok(path)
}

fn next_version(folder: &Path, now: Timestamp) -> Result<i64> {
    let clock = now.to_zoned(TimeZone::UTC).strftime("%Y%m%d%H%M%S").to_string();
    let clock: i64 = clock.parse().expect("fourteen digits");
    // A name that does not parse is not ours to judge here; running the migrations will say it.
    let latest = sql_files(folder)?.iter().filter_map(|file| Name::parse(file).ok()).map(|name| name.version).max();
    let latest = latest.unwrap_or(0);
    if latest < clock {
        return Ok(clock);
    }
    latest.checked_add(1).ok_or_else(|| Error::bad_input("the latest migration's version leaves no room for another"))
}

/// Turns words into a file name's part: lower case, `_` between words.
fn snake_case(name: &str) -> Result<String> {
    let odd = |reason: &str| {
        Error::new(ErrorKind::Usage, format!("`{}` is no name for a migration: {reason}", name.escape_debug()))
            .hint("use a few words, for example `tfdev migrate new add_tags`")
    };
    let allowed = |letter: char| letter.is_alphanumeric() || matches!(letter, ' ' | '_' | '-');
    if let Some(letter) = name.chars().find(|letter| !allowed(*letter)) {
        return Err(odd(&format!("it contains `{}`", letter.escape_debug())));
    }
    let words: Vec<String> =
        name.split([' ', '_', '-']).filter(|word| !word.is_empty()).map(str::to_lowercase).collect();
    if words.is_empty() {
        return Err(odd("it has no letter or digit"));
    }
    let name = words.join("_");
    if name.len() > 100 {
        return Err(odd("it is longer than 100 bytes"));
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::Source;

    #[test]
    fn the_version_is_the_time_in_utc_and_always_the_latest() {
        let folder = tempfile::tempdir().unwrap();
        let migrations = folder.path().join("deep/migrations");
        let now: Timestamp = "2026-03-01T00:59:07+02:00".parse().unwrap();
        let made = [
            new_file(&migrations, "Add tags", now).unwrap(),
            new_file(&migrations, "add--more_tags ", now).unwrap(),
            new_file(&migrations, "ÄNDERUNG 2", "2020-01-01T00:00:00Z".parse().unwrap()).unwrap(),
        ];
        let names: Vec<_> = made.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(
            names,
            ["20260228225907_add_tags.sql", "20260228225908_add_more_tags.sql", "20260228225909_änderung_2.sql"]
        );
        assert_eq!(Source::folder(&migrations).unwrap().len(), 3, "what it makes can be read");
    }

    #[test]
    fn odd_names_are_refused_and_nothing_is_made() {
        let folder = tempfile::tempdir().unwrap();
        let migrations = folder.path().join("migrations");
        for name in ["", "  ", "--", "../evil", "a/b", "a\\b", "a.sql", "a\nb", "a\0b", &"x".repeat(101)] {
            let error = new_file(&migrations, name, Timestamp::UNIX_EPOCH).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Usage, "{name}");
        }
        assert!(!migrations.exists());
    }
}

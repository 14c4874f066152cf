//! The user's password file, read by libpq's rules (PostgreSQL 15 § 34.16, The Password File).

use std::io;
use std::path::Path;

use crate::error::{Context, Result};
use crate::instance::{Password, private_file};

/// What a login looks for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// What a password file has for a login.
#[derive(Debug)]
pub(super) enum Lookup {
    Password(Password),
    /// No line fits, or there is no file.
    Nothing,
    /// The file may not be used; why, in words.
    Unusable(String),
}

/// Looks for the first line that fits.
pub(super) fn find(file: &Path, wanted: Wanted<'_>) -> Result<Lookup> {
    let path = file.display();
    let metadata = match std::fs::metadata(file) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Lookup::Nothing);
        }
        metadata => metadata.or_failed(|| format!("cannot look at the password file `{path}`"))?,
    };
    if !metadata.is_file() {
        return Ok(Lookup::Unusable(format!("the password file `{path}` is not used: it is not a plain file")));
    }
    if private_file::is_open_to_others(&metadata) {
        return Ok(Lookup::Unusable(format!(
            "the password file `{path}` is not used, because others may read it; close it: chmod 600 '{path}'"
        )));
    }
    let text = std::fs::read(file).or_failed(|| format!("cannot read the password file `{path}`"))?;
    Ok(in_text(&String::from_utf8_lossy(&text), wanted).map_or(Lookup::Nothing, Lookup::Password))
}

fn in_text(text: &str, wanted: Wanted<'_>) -> Option<Password> {
    // libpq calls the usual socket's folder by the name of the machine.
    let host = if wanted.host.starts_with('/') { "localhost" } else { wanted.host };
    let port = wanted.port.to_string();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let passwords = lines.filter_map(|line| {
        let fields = fields(line)?;
        let fits = |field: &(String, bool), wanted: &str| (field.0 == "*" && !field.1) || field.0 == wanted;
        let all = (fits(&fields[0], host) || fits(&fields[0], wanted.host))
            && fits(&fields[1], &port)
            && fits(&fields[2], wanted.database)
            && fits(&fields[3], wanted.user);
        all.then(|| Password::new(fields[4].0.clone()))
    });
    passwords.into_iter().next()
}

/// The five fields of a line, without their backslashes, and whether each had one.
fn fields(line: &str) -> Option<[(String, bool); 5]> {
    let mut fields: [(String, bool); 5] = Default::default();
    let mut index = 0;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => {
                fields[index].0.extend(characters.next());
                fields[index].1 = true;
            }
            ':' if index < 4 => index += 1,
            // The password ends where the line has a sixth field.
            ':' => break,
            other => fields[index].0.push(other),
        }
    }
    (index == 4).then_some(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted<'_> = Wanted { host: "db", port: 5432, database: "shop", user: "me" };

    fn found(text: &str) -> Option<String> {
        in_text(text, WANTED).map(|password| password.expose().to_owned())
    }

    #[test]
    fn the_first_line_that_fits_counts() {
        assert_eq!(found("db:5432:other:me:a\n#db:*:*:*:no\ndb:*:shop:me:b\n*:*:*:*:c").as_deref(), Some("b"));
        assert_eq!(found("*:*:*:*:c\ndb:*:shop:me:b").as_deref(), Some("c"));
        assert_eq!(found("db:5433:*:me:a\nother:*:*:*:a\ndb:5432:shop").as_deref(), None);
    }

    #[test]
    fn backslashes_are_taken_away() {
        assert_eq!(found(r"db:5432:shop:me:a\:b\\c").as_deref(), Some(r"a:b\c"));
        let star = Wanted { user: "*", ..WANTED };
        assert!(in_text(r"db:*:*:\*:a", star).is_some());
        assert_eq!(found(r"db:*:*:\*:a"), None, "an escaped star is a role of that name");
    }

    #[test]
    fn a_socket_is_localhost() {
        assert!(in_text("localhost:5432:*:me:a", Wanted { host: "/run/postgresql", ..WANTED }).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_others_may_read_is_not_used() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pgpass");
        assert!(matches!(find(&file, WANTED).unwrap(), Lookup::Nothing));
        std::fs::write(&file, "*:*:*:*:c").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(find(&file, WANTED).unwrap(), Lookup::Password(_)));
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(find(&file, WANTED).unwrap(), Lookup::Unusable(why) if why.contains("chmod 600")));
    }
}

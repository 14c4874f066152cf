//! The shapes of names and addresses: which texts may become part of a container's name, a path or a login.
//!
//! What must hold: whatever is accepted here as a project, an instance or a data set is safe in a path and in Docker's
//! names: no separator, no `..`, no upper case. No message repeats a URL, which may hold a password.

use std::path::{Component, Path};

use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

use super::problem::Fault;
use crate::pg::url::ServerUrl;

/// Longest key of a project. With the longest instance and what is put around both, names stay far below the 255 bytes
/// that file systems and Docker take.
const LONGEST_PROJECT: usize = 41;
/// Longest name of an instance.
const LONGEST_INSTANCE: usize = 30;
/// Longest name of a database or role: `NAMEDATALEN - 1` of PostgreSQL, in bytes.
const LONGEST_IDENTIFIER: usize = 63;
/// Hexadecimal digits of the path's hash in a key made from a folder.
const HASH_DIGITS: usize = 6;

/// Says whether `text` begins with `first` and goes on with `rest`, `longest` characters at most.
fn is_made_of(text: &str, longest: usize, first: fn(char) -> bool, rest: fn(char) -> bool) -> bool {
    let mut characters = text.chars();
    characters.next().is_some_and(first) && characters.all(rest) && text.len() <= longest
}

fn is_lower_or_digit(character: char) -> bool {
    character.is_ascii_lowercase() || character.is_ascii_digit()
}

fn is_key_character(character: char) -> bool {
    is_lower_or_digit(character) || matches!(character, '_' | '-')
}

/// Checks an address to listen on.
pub(super) fn address(text: &str) -> Result<(), Fault> {
    let expected = "an address such as \"127.0.0.1\", or \"0.0.0.0\" for all";
    text.parse::<std::net::IpAddr>().map(drop).map_err(|_| Fault::expected(expected, format_args!("{text:?}")))
}

/// Checks a project's key.
pub(super) fn project_key(text: &str) -> Result<(), Fault> {
    if is_made_of(text, LONGEST_PROJECT, is_lower_or_digit, is_key_character) {
        return Ok(());
    }
    let expected = "1 to 41 lower-case letters, digits, `-` or `_`, the first one a letter or digit";
    Err(Fault::expected(expected, format_args!("{text:?}"))
        .hint(format!("for example `project = \"{}\"`", valid_key(text))))
}

/// The valid key nearest to `text`, at most `longest` characters.
fn sanitised_key(text: &str, longest: usize) -> String {
    let mut key = String::new();
    for character in text.chars().flat_map(char::to_lowercase) {
        let character = if is_key_character(character) { character } else { '-' };
        let repeats = character == '-' && key.ends_with('-');
        let begins_badly = key.is_empty() && !is_lower_or_digit(character);
        if !repeats && !begins_badly && key.len() < longest {
            key.push(character);
        }
    }
    let key = key.trim_end_matches('-');
    if key.is_empty() { "project".to_owned() } else { key.to_owned() }
}

/// The valid key nearest to `text`.
pub(super) fn valid_key(text: &str) -> String {
    sanitised_key(text, LONGEST_PROJECT)
}

/// The key of a project that has no name: its folder's name and six digits of the hash of its canonical path, so that
/// two checkouts never share a server.
pub(crate) fn key_of_folder(folder: &Path) -> String {
    let name = folder.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    let hash = Sha256::digest(folder.as_os_str().as_encoded_bytes());
    let start = sanitised_key(&name, LONGEST_PROJECT - HASH_DIGITS - 1);
    format!("{start}-{:02x}{:02x}{:02x}", hash[0], hash[1], hash[2])
}

/// Checks an instance's name. It has no hyphen, so that container names can be taken apart again.
pub(super) fn instance(text: &str) -> Result<(), Fault> {
    let rest = |character| is_lower_or_digit(character) || character == '_';
    if is_made_of(text, LONGEST_INSTANCE, |character| character.is_ascii_lowercase(), rest) {
        return Ok(());
    }
    let expected = "1 to 30 lower-case letters, digits or `_`, the first one a letter";
    Err(Fault::expected(expected, format_args!("{text:?}")))
}

/// Says whether `text` can be the name of an instance.
pub(crate) fn is_instance(text: &str) -> bool {
    instance(text).is_ok()
}

/// Checks a profile's name.
pub(super) fn profile(text: &str) -> Result<(), Fault> {
    if is_made_of(text, LONGEST_PROJECT, |character| character.is_ascii_lowercase(), is_key_character) {
        return Ok(());
    }
    let expected = "1 to 41 lower-case letters, digits, `-` or `_`, the first one a letter";
    Err(Fault::expected(expected, format_args!("{text:?}")))
}

/// Checks the name of the project's database.
pub(super) fn database(text: &str) -> Result<(), Fault> {
    identifier(text, &["postgres", "template0", "template1"])
}

/// Checks the name of the ordinary role. `public` and `none` are words that PostgreSQL reserves.
pub(super) fn user(text: &str) -> Result<(), Fault> {
    identifier(text, &["postgres", "public", "none"])
}

/// A user of this machine, as login names may be; root cannot run a server.
pub(super) fn system_user(text: &str) -> Result<(), Fault> {
    let found = format!("{text:?}");
    let good = |character: char| character.is_ascii_alphanumeric() || "_-.".contains(character);
    let begins = text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if !begins || !text.chars().all(good) || text.len() > 32 {
        return Err(Fault::expected("the login name of a user of this machine", found));
    }
    if text == "root" {
        return Err(Fault::new("must be a user other than root, which PostgreSQL refuses to be run by".to_owned()));
    }
    Ok(())
}

fn identifier(text: &str, taken: &[&str]) -> Result<(), Fault> {
    let found = format!("{text:?}");
    if taken.contains(&text) || text.starts_with("pg_") {
        return Err(Fault::new(format!("must be a name that PostgreSQL does not keep for itself, found {found}")));
    }
    if text.is_empty() || text.len() > LONGEST_IDENTIFIER || text.chars().any(char::is_control) {
        return Err(Fault::expected("a name of 1 to 63 bytes without control characters", found));
    }
    Ok(())
}

/// Checks the shape of an image reference: `[host[:port]/]path[:tag][@algorithm:digest]`, as Docker's distribution
/// reference grammar has it.
pub(super) fn image(text: &str) -> Result<(), Fault> {
    if is_image(text) {
        return Ok(());
    }
    let expected = "an image such as \"postgres:15-alpine\"";
    Err(Fault::expected(expected, format_args!("{text:?}")))
}

fn is_image(text: &str) -> bool {
    let (name, digest) = text.split_once('@').map_or((text, None), |(name, digest)| (name, Some(digest)));
    let digest_fits = digest.is_none_or(|digest| {
        digest.split_once(':').is_some_and(|(algorithm, value)| {
            is_made_of(algorithm, 32, |c| c.is_ascii_alphabetic(), |c| c.is_ascii_alphanumeric() || "+._-".contains(c))
                && value.len() >= 32
                && value.chars().all(|c| c.is_ascii_hexdigit())
        })
    });
    let path_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let (path, tag) = match name[path_start..].split_once(':') {
        Some((last, tag)) => (&name[..path_start + last.len()], Some(tag)),
        None => (name, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let tag_fits = tag.is_none_or(|tag| is_made_of(tag, 128, word, |c| c.is_ascii_alphanumeric() || "_.-".contains(c)));
    let path = match path.split_once('/') {
        Some((host, rest)) if is_registry(host) => rest,
        _ => path,
    };
    digest_fits && tag_fits && name.len() <= 255 && path.split('/').all(is_image_component)
}

/// Says whether the first part of an image's name is a registry's host: Docker tells by a dot, a port or `localhost`.
fn is_registry(first: &str) -> bool {
    let (host, port) = first.split_once(':').map_or((first, None), |(host, port)| (host, Some(port)));
    let port_fits = port.is_none_or(|port| port.parse::<u16>().is_ok());
    let host_fits =
        is_made_of(host, 253, |c| c.is_ascii_alphanumeric(), |c| c.is_ascii_alphanumeric() || ".-".contains(c));
    (first == "localhost" || first.contains(['.', ':'])) && port_fits && host_fits
}

fn is_image_component(part: &str) -> bool {
    let separators_fit = part
        .split(is_lower_or_digit)
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|byte| byte == b'-'));
    separators_fit && part.starts_with(is_lower_or_digit) && part.ends_with(is_lower_or_digit)
}

/// Checks the name of a data set: one word, or a path that stays below `seeds/`.
pub(super) fn dataset(text: &str) -> Result<(), Fault> {
    let stays_below = Path::new(text).components().all(|part| matches!(part, Component::Normal(_)));
    if !text.is_empty() && stays_below && !text.contains('\\') && !text.chars().any(char::is_control) {
        return Ok(());
    }
    let expected = "\"small\", \"demo\", \"load\", \"none\", or a file or folder under seeds/";
    Err(Fault::expected(expected, format_args!("{text:?}")))
}

/// Checks the URL of an external server, which must hold no password.
pub(super) fn server_url(text: &str) -> Result<(), Fault> {
    let shape = || {
        Fault::new(
            "must be a URL such as \"postgres://user@host:5432/database\"; what was found is not shown here, because it may hold a password",
        )
    };
    let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")).ok_or_else(shape)?;
    if rest.contains('#') || rest.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return Err(shape());
    }
    let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = address.split_once('/').unwrap_or((address, ""));
    let (login, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    let names_password = query.split('&').any(|pair| {
        let name = pair.split_once('=').map_or(pair, |(name, _)| name);
        percent_decode_str(name).decode_utf8_lossy().to_lowercase().contains("password")
    });
    if login.contains(':') || names_password {
        return Err(Fault::new("must not hold a password")
            .hint("put the password in a file of mode 0600 with lines host:port:database:user:password, and name that file in `PGPASSFILE`"));
    }
    let port_fits = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    let host_fits = match host.strip_prefix('[') {
        Some(address) => address
            .split_once(']')
            .is_some_and(|(_, rest)| rest.is_empty() || rest.strip_prefix(':').is_some_and(port_fits)),
        None => host.split_once(':').is_none_or(|(_, port)| port_fits(port)),
    };
    if !host_fits || path.contains(['/', '@']) {
        return Err(shape());
    }
    ServerUrl::parse(text).map(|_| ()).map_err(Fault::new)
}

/// Checks `host/database`, the name of a server that is not on this machine.
pub(super) fn remote(text: &str) -> Result<(), Fault> {
    let is_word = |part: &str| {
        !part.is_empty() && !part.chars().any(|c| c.is_control() || c.is_whitespace() || matches!(c, '/' | '@'))
    };
    match text.split_once('/') {
        Some((host, database)) if is_word(host) && is_word(database) => Ok(()),
        // What is there may be a whole URL with a password.
        _ => Err(Fault::new("must be \"host/database\", without a login")),
    }
}

/// Checks where backups go.
pub(super) fn store(text: &str) -> Result<(), Fault> {
    let expected = "\"s3://bucket/prefix\" or \"file:///folder\"";
    let is_plain = !text.chars().any(char::is_control) && !text.split('/').any(|part| part == "..");
    let is_bucket = |text: &str| {
        // What stands behind `?` says where the store is.
        let bucket = text.split(['/', '?']).next().unwrap_or_default();
        (3..=63).contains(&bucket.len())
            && is_made_of(bucket, 63, is_lower_or_digit, |c| is_lower_or_digit(c) || ".-".contains(c))
    };
    let fits = match (text.strip_prefix("s3://"), text.strip_prefix("file://")) {
        (Some(rest), _) => is_bucket(rest),
        (_, Some(path)) => path.starts_with('/') && path.len() > 1,
        _ => false,
    };
    if fits && is_plain { Ok(()) } else { Err(Fault::new(format!("must be {expected}, without keys or passwords"))) }
}

/// Checks a time of day, `HH:MM`.
pub(super) fn time_of_day(text: &str) -> Result<(), Fault> {
    let part = |text: &str, limit: u8| {
        text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u8>().is_ok_and(|n| n < limit)
    };
    match text.split_once(':') {
        Some((hour, minute)) if part(hour, 24) && part(minute, 60) => Ok(()),
        _ => Err(Fault::expected("a time of day in UTC such as \"02:00\"", format_args!("{text:?}"))),
    }
}

/// The candidate that looks most like `word`, if any does: about a third of it may differ.
pub(crate) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = match word.chars().count() {
        0..2 => 0,
        length => (length / 3).max(1),
    };
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

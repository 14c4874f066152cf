//! The server's settings as a file of our own, which `postgresql.conf` in the data folder includes.
//!
//! What must hold: every value is one quoted string whatever is in it; the file is whole or the old one; and it lies
//! where the server's user cannot change it, so that a person's `ALTER SYSTEM` is the only thing that goes before it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::account::Account;
use super::place::Place;
use crate::engine::StartRequest;
use crate::error::{Context, Result};
use crate::spec::ServerSpec;

/// The line in `postgresql.conf`; the path is relative to that file, so that all can be moved together.
pub(super) const INCLUDE: &str = "include = '../tfdev.conf'\n";

/// The names of the files, relative to the home, that settings of the spec name.
const FILES: [(&str, &str); 3] =
    [("ssl_cert_file", "server.crt"), ("ssl_key_file", "server.key"), ("hba_file", "pg_hba.conf")];

/// Writes the settings for a start on `port`, and what they name.
pub(super) fn write(
    place: &Place,
    account: Account,
    request: &StartRequest,
    port: u16,
    socket_dir: &Path,
) -> Result<()> {
    let put = |name: &str, text: &str| {
        let path = place.home.join(name);
        replace(&path, text, account).or_failed(|| format!("cannot write the file `{}`", path.display()))
    };
    if let Some(certificate) = &request.certificate {
        put("server.crt", &certificate.certificate)?;
        put("server.key", certificate.key.expose())?;
    }
    if let Some(rules) = request.spec.login_rules() {
        put("pg_hba.conf", rules)?;
    }
    put("tfdev.conf", &text(&request.spec, &place.home, port, socket_dir))
}

/// The settings as a file.
fn text(spec: &ServerSpec, home: &Path, port: u16, socket_dir: &Path) -> String {
    let mut text = format!(
        "# Made anew by each `tfdev up` that starts the server: profile `{}` of tfdev.toml.\n",
        spec.profile.escape_default()
    );
    let mut line = |name: &str, value: &str| writeln!(text, "{name} = {}", quoted(value)).expect("a String takes all");
    for (name, value) in &spec.settings {
        match FILES.iter().find(|(setting, _)| setting == name) {
            // The spec has the paths inside a container. Absolute, for `hba_file` is relative to nothing that lasts.
            Some((_, file)) => line(name, &home.join(file).display().to_string()),
            None => line(name, value),
        }
    }
    line("listen_addresses", "127.0.0.1");
    line("port", &port.to_string());
    // A list of folders, each of which may be quoted itself.
    line("unix_socket_directories", &format!("\"{}\"", socket_dir.display().to_string().replace('"', "\"\"")));
    line("unix_socket_permissions", "0700");
    text
}

/// A value as `guc-file.l` reads it back.
fn quoted(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for character in value.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// Puts a file that only the server's user may read in the place of what is there. It is made anew at each start, so it
/// need not survive a crash of the machine.
fn replace(path: &Path, text: &str, account: Account) -> io::Result<()> {
    let new = path.with_added_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    account.give(&file)?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::PortChoice;
    use crate::pg::test_server;

    #[test]
    fn ours_come_last_and_values_are_quoted() {
        let profile = crate::profile::resolve("dev", &BTreeMap::new()).unwrap();
        let mut spec = ServerSpec::new(&profile, "x", "y", PortChoice::Auto).with_certificate("f".into());
        spec.settings.insert("search_path".into(), "it's \\ \"x\"\nport = 1".into());
        let text = text(&spec, Path::new("/a, b"), 5433, Path::new("/a, b/run"));
        assert!(text.contains("max_connections = '20'\n"));
        assert!(text.contains("search_path = 'it''s \\\\ \"x\"\\nport = 1'\n"), "{text}");
        assert!(text.contains("ssl_key_file = '/a, b/server.key'\n") && !text.contains("/etc/"));
        assert!(text.contains("port = '5433'\nunix_socket_directories = '\"/a, b/run\"'\n"), "{text}");
    }

    #[tokio::test]
    async fn postgresql_reads_back_what_was_quoted() {
        let Some(mut cluster) = test_server::Cluster::initialise(&[]) else { return };
        let odd = "it's \\n a \"path\"\\\\ with # and =\tand ünïcode";
        let path = cluster.data().join("odd.conf");
        fs::write(&path, format!("app.odd = {}\n", quoted(&format!("{odd}\nand a line")))).unwrap();
        test_server::own(&path);
        let configuration = cluster.data().join("postgresql.conf");
        let all = fs::read_to_string(&configuration).unwrap() + "include = 'odd.conf'\n";
        fs::write(&configuration, all).unwrap();
        cluster.start(&[]).await;
        let mut connection = test_server::session(&cluster.login).await;
        let row = sqlx::raw_sql("SHOW app.odd").fetch_one(&mut connection).await.unwrap();
        assert_eq!(sqlx::Row::get::<String, _>(&row, 0), format!("{odd}\nand a line"));
    }
}

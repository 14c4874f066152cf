//! Passwords, encryption, and what may stand between us and the server.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::{External, PASSWORD};
use crate::support::process::{is_root, shell};
use crate::support::skipped::skip;
use crate::support::{Outcome, SomeonesServer, finish, free_port, one, start, try_query, until};

/// Runs `up` with the password in a file of this mode.
fn up_with_file(external: &External, mode: &str, line: &str) -> (Outcome, PathBuf) {
    let file = external.env.path("pgpass");
    std::fs::write(&file, format!("{line}\n")).unwrap();
    shell(&format!("chmod {mode} '{}'", file.display()));
    let mut command = external.bare(&["up", "--json", "--dataset", "small"]);
    command.env("PGPASSFILE", &file);
    (finish(start(command)), file)
}

#[test]
fn the_password_comes_from_the_password_file_as_for_libpq() {
    let Some(external) = External::new() else { return };
    let line = format!("127.0.0.1:{}:*:dev:{PASSWORD}", external.server.port);
    let (open, _) = up_with_file(&external, "644", &line);
    open.exits(3).says("others may read it").says("wants a password for the role `dev`");
    let (other, _) = up_with_file(&external, "600", &line.replace(":dev:", ":other:"));
    other.exits(3).says("and there is none").says("PGPASSWORD");
    let (wrong, _) = up_with_file(&external, "600", "*:*:*:*:wrong");
    wrong.exits(3).says("does not accept the password of the role `dev`");
    let (right, file) = up_with_file(&external, "600", &line);
    right.ok();
    let mut variables = external.bare(&["env", "--json"]);
    variables.env("PGPASSFILE", &file);
    assert_eq!(finish(start(variables)).ok().json()["PGPASSFILE"], file.to_str().unwrap());
}

#[test]
fn the_password_is_asked_for_at_a_terminal_and_not_shown() {
    let Some(external) = External::new() else { return };
    if shell("command -v script || true").is_empty() {
        return skip("util-linux's `script` is not installed");
    }
    let bare = external.bare(&["up", "--dataset", "small", "--no-color"]);
    let line = std::iter::once(bare.get_program()).chain(bare.get_args()).map(|part| part.to_str().unwrap());
    let mut terminal = Command::new("script");
    terminal.args(["-qec", &line.collect::<Vec<_>>().join(" "), "/dev/null"]).current_dir(&external.env.project);
    terminal.env_clear().envs(bare.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut child = terminal.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut shown = String::new();
    let mut piece = [0; 4096];
    while let Ok(length @ 1..) = std::io::Read::read(&mut stdout, &mut piece) {
        let asked = shown.contains("Password of the role `dev`");
        shown.push_str(&String::from_utf8_lossy(&piece[..length]));
        if !asked && shown.contains("Password of the role `dev`") {
            std::io::Write::write_all(&mut stdin, format!("{PASSWORD}\n").as_bytes()).unwrap();
        }
    }
    assert!(child.wait().unwrap().success(), "{shown}");
    let after = shown.split("Password of the role").nth(1).unwrap();
    let before_url = after.split("url ").next().unwrap();
    assert!(!before_url.contains(PASSWORD), "{shown}");
    assert_eq!(shown.matches("Password of the role").count(), 1, "{shown}");
}

#[test]
fn every_tls_mode_means_what_it_means_to_libpq() {
    let only_tls = "hostssl all all all scram-sha-256\nhostssl replication all all scram-sha-256\n";
    let Some((server, root)) = SomeonesServer::start_with_tls(only_tls) else { return };
    let mut external = External::on(server);
    let other = external.env.path("other.crt");
    let authority = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&other, authority.cert.pem()).unwrap();
    let (root, other) = (root.display(), other.display());
    for (parameters, says) in [
        ("?sslmode=disable".to_owned(), "takes encrypted connections only"),
        ("?sslmode=verify-full".to_owned(), "needs a certificate to check with"),
        (format!("?sslmode=verify-full&sslrootcert={other}"), "was not accepted"),
        (format!("?sslmode=require&sslrootcert={other}"), "was not accepted"),
    ] {
        external.parameters.clone_from(&parameters);
        let outcome = external.run(&["up"]);
        assert!([Some(3), Some(8)].contains(&outcome.status.code()), "{parameters}: {}", outcome.stderr);
        outcome.says(says);
    }
    for parameters in [
        String::new(),
        "?sslmode=allow".to_owned(),
        "?sslmode=prefer".to_owned(),
        "?sslmode=require".to_owned(),
        format!("?sslmode=verify-ca&sslrootcert={root}"),
        format!("?sslmode=verify-full&sslrootcert={root}"),
    ] {
        external.parameters.clone_from(&parameters);
        let up = external.up();
        let encrypted = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
        let psql = external.run(&["psql", "--", "-XAtc", encrypted]).ok();
        assert_eq!(psql.stdout.trim(), "t", "{parameters}");
        let url = up["url"].as_str().unwrap();
        // sqlx has no `allow`.
        if !parameters.contains("allow") {
            assert_eq!(one(url, encrypted), "t", "{parameters}");
        }
    }
}

#[test]
fn a_server_without_tls_is_told_where_it_is_wanted() {
    let Some(mut external) = External::new() else { return };
    "?sslmode=require".clone_into(&mut external.parameters);
    external.up_is_refused(3, &["has no encryption"]);
    "?sslmode=prefer".clone_into(&mut external.parameters);
    external.up();
}

#[test]
fn a_server_that_wants_no_tls_is_reached_by_prefer() {
    let rules = "host all postgres all scram-sha-256\nhostnossl all all all scram-sha-256\n";
    let Some((server, _)) = SomeonesServer::start_with_tls(rules) else { return };
    let external = External::on(server);
    external.up();
}

/// A PgBouncer in front of a server.
pub(super) struct Pooler {
    child: Child,
    pub(super) port: u16,
}

impl Pooler {
    /// Starts one; `None`, after one line, if PgBouncer is not installed.
    pub(super) fn start(external: &External, mode: &str) -> Option<Self> {
        let program = shell("command -v pgbouncer || command -v /usr/sbin/pgbouncer || true");
        if program.is_empty() {
            skip("PgBouncer is not installed");
            return None;
        }
        let port = free_port();
        let folder = external.env.path(&format!("pgbouncer-{mode}"));
        std::fs::create_dir(&folder).unwrap();
        let users = folder.join("users");
        std::fs::write(&users, format!("\"dev\" \"{PASSWORD}\"\n")).unwrap();
        let file = folder.join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = scram-sha-256\nauth_file = {}\npool_mode = {mode}\n",
            external.server.port,
            users.display()
        );
        std::fs::write(&file, text).unwrap();
        shell(&format!("chmod 755 '{}' && chmod -R a+rX '{}'", external.env.path("").display(), folder.display()));
        let mut command = Command::new(&program);
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", &program]);
        }
        let child = command.arg("--quiet").arg(&file).stderr(Stdio::null()).spawn().unwrap();
        let pooler = Self { child, port };
        let url = format!("postgres://dev:{PASSWORD}@127.0.0.1:{port}/template1");
        until("PgBouncer to listen", || {
            let refused = try_query(&url, "SELECT 1").err();
            (!refused.is_some_and(|error| matches!(error, sqlx::Error::Io(_)))).then_some(())
        });
        Some(pooler)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! What the machine may be like: languages, terminals, ports, programs, folders.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::{Native, bin_dir, is_root, servers, shell, skip};
use crate::support::{finish, one, start};

#[test]
fn the_language_of_the_caller_matters_nowhere() {
    for (name, value) in [("LANG", None), ("LC_ALL", Some("xx_YY.no-such")), ("LANG", Some("C"))] {
        let Some(native) = Native::ordinary() else { return };
        let mut command = native.command(&["up", "--json", "--dataset", "none"]);
        command.env_remove("LC_ALL").env_remove("LANG");
        if let Some(value) = value {
            command.env(name, value);
        }
        let up = finish(start(command)).ok().json();
        assert_eq!(one(up["url"].as_str().unwrap(), "SHOW lc_messages"), "C.UTF-8", "{name} {value:?}");
        assert_eq!(one(up["url"].as_str().unwrap(), "SHOW timezone"), "UTC");
    }
}

#[test]
fn a_machine_that_does_not_know_the_usual_locale_gets_the_plain_one() {
    let Some(native) = Native::ordinary() else { return };
    // The real programs, with an initdb that knows one locale less.
    let (real, folder) = (bin_dir().unwrap(), native.env.path("programs"));
    std::fs::create_dir(&folder).unwrap();
    let write = |name: &str, script: String| {
        std::fs::write(folder.join(name), script).unwrap();
        std::fs::set_permissions(folder.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    for name in ["postgres", "pg_ctl"] {
        write(name, format!("#!/bin/sh\nexec {}/{name} \"$@\"\n", real.display()));
    }
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--locale=C.UTF-8*)\n  echo 'initdb: error: invalid locale name \"C.UTF-8\"' >&2\n  \
         exit 1\nesac\nexec {}/initdb \"$@\"\n",
        real.display()
    );
    write("initdb", script);
    native.env.write("tfdev.toml", format!("[native]\nbin_dir = \"{}\"\n", folder.display()));
    native.up();
    assert_eq!(
        one(
            &native.url(),
            "SELECT datcollate || ' ' || pg_encoding_to_char(encoding) FROM pg_database WHERE datname = 'taskflow'"
        ),
        "C UTF8"
    );
}

#[test]
fn the_server_survives_its_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        return skip("there is no `script`");
    }
    let Some(native) = Native::new() else { return };
    let direct = native.command(&["up", "--dataset", "small"]);
    let program = direct.get_program().to_str().unwrap().to_owned();
    let mut in_terminal = Command::new("script");
    in_terminal.args(["-qec", &format!("{program} up --dataset small"), "/dev/null"]);
    in_terminal.current_dir(&native.env.project).env_clear();
    in_terminal.envs(direct.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "dumb");
    finish(start(in_terminal)).ok();
    let pid = native.pid();
    assert_eq!(
        shell(&format!("ps -o sid=,tty= -p {pid}")).split_whitespace().collect::<Vec<_>>(),
        [pid.to_string().as_str(), "?"]
    );
    assert_eq!(native.tasks(), "50");
    assert_eq!(native.status()["state"], "running");
}

#[test]
fn a_named_port_that_is_taken_is_a_conflict_and_another_one_is_kept() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let Some(native) = Native::with(&format!("[database]\nport = {port}\n")) else { return };
    native.run(&["up"]).exits(6).says(&format!("port {port} is taken"));
    drop(taken);
    assert_eq!(native.up()["port"], json!(port));

    // Another test may have 5432 instead of this one, and give it back before the server starts.
    let (native, preferred, first) = loop {
        let Some(native) = Native::new() else { return };
        let preferred = std::net::TcpListener::bind("127.0.0.1:5432");
        let first = native.up()["port"].clone();
        if first != json!(5432) {
            break (native, preferred, first);
        }
        assert!(preferred.is_err(), "this test holds 5432, and the instance has it too");
    };
    native.run(&["down"]).ok();
    drop(preferred);
    assert_eq!(native.up()["port"], first, "a port once given is kept");
}

/// A folder with programs that say this version.
fn programs(root: &Path, version: &str, names: &[&str]) -> String {
    let folder = root.join(version);
    std::fs::create_dir_all(&folder).unwrap();
    for name in names {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\necho 'postgres (PostgreSQL) {version}'\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    folder.display().to_string()
}

#[test]
fn programs_that_do_not_fit_are_refused_with_what_is_wrong() {
    let Some(native) = Native::new() else { return };
    let root = native.env.path("programs");
    let other = programs(&root, "16.4", &["postgres", "initdb", "pg_ctl"]);
    let part = programs(&root, "15.4", &["postgres", "initdb"]);
    for (folder, words) in [
        (other.as_str(), "it is PostgreSQL 16.4, not 15"),
        (&part, "there is no program `pg_ctl`"),
        ("/nowhere", "there is no program `postgres`"),
    ] {
        native.env.write("tfdev.toml", format!("[native]\nbin_dir = \"{folder}\"\n"));
        native.run(&["up"]).exits(8).says(words).says("install PostgreSQL 15");
    }
    native.env.write("tfdev.toml", format!("[native]\nbin_dir = \"{}\"\n", bin_dir().unwrap().display()));
    native.up();
}

#[test]
fn a_state_folder_that_cannot_be_written_to_is_told() {
    let Some(native) = Native::ordinary() else { return };
    let closed = native.env.path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
    if is_root() {
        shell(&format!("chown nobody {}", closed.display()));
    }
    let mut command = native.command(&["up"]);
    command.env("TFDEV_STATE_DIR", closed.join("state"));
    finish(start(command)).exits(1).says("TFDEV_STATE_DIR");
}

#[test]
fn a_user_who_is_named_runs_the_server_of_root() {
    if !is_root() {
        return skip("only root steps down");
    }
    let Some(native) = Native::with("[native]\nuser = \"nobody\"\n") else { return };
    native.run(&["up", "--dataset", "small"]).ok().says("runs as the user `nobody`");
    assert_eq!(shell(&format!("ps -o user= -p {}", native.pid())), "nobody");
    assert_eq!(native.tasks(), "50");
    let Some(native) = Native::with("[native]\nuser = \"no-such-user\"\n") else { return };
    native.run(&["up"]).exits(8).says("no user `no-such-user`");
    native.env.write("tfdev.toml", "[native]\nuser = \"root\"\n");
    native.run(&["up"]).exits(8).says("other than root");
}

#[test]
fn long_paths_get_a_short_socket() {
    let Some(native) = Native::ordinary() else { return };
    let mut command = native.command(&["up", "--json", "--dataset", "none"]);
    let long = native.env.path(&"long".repeat(30));
    command.env("TFDEV_STATE_DIR", &long);
    finish(start(command)).ok();
    assert_eq!(servers(&long).len(), 1);
    let mut command = native.command(&["destroy", "--yes"]);
    command.env("TFDEV_STATE_DIR", &long);
    finish(start(command)).ok();
    assert!(servers(&long).is_empty());
}

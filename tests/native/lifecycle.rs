//! From nothing to a database and back, as with any engine.

use serde_json::json;

use super::{Native, is_root, servers, shell};
use crate::support::{one, query, try_query};

#[test]
fn a_server_is_made_stopped_started_and_removed_by_root_and_by_an_ordinary_user() {
    for native in Native::each() {
        assert_eq!(native.status()["state"], "absent");
        native.run(&["down"]).exits(4);
        let up = native.up();
        for (key, value) in [
            ("engine", json!("native")),
            ("state", json!("running")),
            ("created", json!(true)),
            ("started", json!(true)),
            ("container", json!(null)),
            ("volume", json!(null)),
            ("image", json!(null)),
            ("host", json!("127.0.0.1")),
            ("migrations", json!({ "applied": 3, "total": 3 })),
        ] {
            assert_eq!(up[key], value, "{key}");
        }
        let data = native.data();
        assert_eq!(up["data_dir"].as_str(), data.to_str());
        let url = native.url();
        shell(&format!("pg_isready -d '{url}'"));
        assert_eq!(shell(&format!("psql '{url}' -Atc 'SELECT count(*) FROM users'")), "10");
        let sql = "SELECT current_user || ' ' || count(*) FROM tasks";
        assert_eq!(native.run(&["psql", "--", "-Atc", sql]).ok().stdout.trim(), "taskflow 50");
        assert!(native.run(&["logs"]).ok().stdout.contains("database system is ready to accept connections"));
        assert_eq!(native.run(&["logs", "-n", "1"]).ok().stdout.lines().count(), 1);

        let again = native.up();
        assert_eq!((&again["created"], &again["started"]), (&json!(false), &json!(false)));
        assert_eq!(again["url"], up["url"]);
        native.run(&["down"]).ok();
        assert_eq!((&native.status()["state"], servers(&data).len()), (&json!("stopped"), 0));
        native.run(&["url"]).exits(4).says("start it with `tfdev up`");
        let third = native.up();
        assert_eq!((&third["created"], &third["started"], &third["url"]), (&json!(false), &json!(true), &up["url"]));
        assert_eq!(native.tasks(), "50");

        native.destroy();
        assert_eq!(native.status()["state"], "absent");
        assert!(!data.exists() && servers(&data).is_empty());
        if is_root() && data.starts_with("/var/lib/tfdev") {
            assert!(!data.parent().unwrap().exists(), "the whole home goes");
        }
    }
}

#[test]
fn status_says_the_engine_and_why() {
    let Some(native) = Native::new() else { return };
    native.up();
    let status = native.status();
    assert_eq!(status["engine_reason"], "asked for by TFDEV_ENGINE");
}

#[test]
fn the_server_has_the_profiles_settings_and_closed_doors() {
    let Some(native) = Native::with("[profiles.dev]\nwork_mem = \"8MB\"\nlog_line_prefix = \"it's, \\\\odd %m \"\n")
    else {
        return;
    };
    let up = native.up();
    let superuser = native.env.superuser_url(&up["port"], "postgres");
    for (name, value) in [
        ("max_connections", "20"),
        ("shared_buffers", "128MB"),
        ("work_mem", "8MB"),
        ("wal_level", "logical"),
        ("log_statement", "all"),
        ("listen_addresses", "127.0.0.1"),
        ("unix_socket_permissions", "0700"),
        ("data_checksums", "on"),
        ("server_encoding", "UTF8"),
        ("lc_collate", "C.UTF-8"),
        ("fsync", "on"),
        ("log_line_prefix", "it's, \\odd %m "),
    ] {
        assert_eq!(one(&superuser, &format!("SHOW {name}")), value, "{name}");
    }
    let methods = "SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE type LIKE 'host%'";
    assert_eq!(query(&superuser, methods), ["scram-sha-256"]);
    let wrong = native.url().replacen(&native.env.password("user"), "wrong", 1);
    assert!(try_query(&wrong, "SELECT 1").unwrap_err().to_string().contains("password authentication failed"));
    let socket_dir = one(&superuser, "SHOW unix_socket_directories");
    let socket_dir = socket_dir.trim_matches('"');
    assert_eq!(shell(&format!("stat -c %a '{socket_dir}'")), "700");
    assert_eq!(shell(&format!("stat -c %a '{}'", native.data().display())), "700");
    let owner = shell(&format!("stat -c %u '{}'", native.data().display()));
    let process = shell(&format!("ps -o uid= -p {}", native.pid()));
    assert_eq!(process, owner);
    assert_ne!(owner, "0");
}

#[test]
fn a_changed_profile_restarts_the_server_and_keeps_the_data() {
    let Some(native) = Native::new() else { return };
    native.up();
    let before = native.pid();
    native.env.write("tfdev.toml", "[profiles.dev]\nmax_connections = 33\n");
    let up = native.up();
    assert_eq!((&up["created"], &up["started"]), (&json!(false), &json!(true)));
    assert_ne!(native.pid(), before);
    assert_eq!((one(&native.url(), "SHOW max_connections").as_str(), native.tasks().as_str()), ("33", "50"));
}

#[test]
fn a_profile_with_tls_takes_encrypted_connections_only() {
    let Some(native) = Native::new() else { return };
    native.run(&["up", "--profile", "prod", "--dataset", "small"]).ok();
    let url = native.url();
    assert!(url.contains("sslmode=verify-full"), "{url}");
    assert_eq!(one(&url, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()"), "t");
    let plain = format!("{}?sslmode=disable", url.split('?').next().unwrap());
    assert!(try_query(&plain, "SELECT 1").unwrap_err().to_string().contains("pg_hba.conf"));
}

#[test]
fn data_of_the_test_profile_is_in_memory_and_goes_with_the_server() {
    let Some(native) = Native::new() else { return };
    let up = || native.run(&["up", "--profile", "test", "--dataset", "small", "--json"]).ok().json();
    let first = up();
    let data = native.data();
    if !data.starts_with("/dev/shm") {
        return super::skip("no file system in memory has room");
    }
    assert_eq!(one(&native.url(), "SHOW fsync"), "off");
    let down = native.run(&["down", "--json"]).ok().json();
    assert_eq!(down["instances"][0]["data_kept"], json!(false));
    assert!(!data.parent().unwrap().exists(), "the memory is free again");
    assert_eq!(native.status()["state"], "stopped");
    let second = up();
    assert_eq!((&second["created"], &second["url"]), (&json!(true), &first["url"]));
    assert_eq!(native.tasks(), "50");

    // To the disk: what was in memory must not stay there under a profile that promises more.
    let third = native.run(&["up", "--profile", "dev", "--dataset", "small", "--json"]).ok().json();
    assert_eq!(third["created"], json!(true));
    assert!(!data.exists() && !native.data().starts_with("/dev/shm"));
    native.destroy();
    assert!(!data.parent().unwrap().exists());
}

#[test]
fn no_two_servers_share_a_system_identifier() {
    let Some(native) = Native::new() else { return };
    let identifier = |instance: &str| {
        let up = native.run(&["up", "--instance", instance, "--profile", "dev", "--dataset", "none", "--json"]);
        let url = up.ok().json()["url"].as_str().unwrap().to_owned();
        one(&url, "SELECT system_identifier FROM pg_control_system()")
    };
    let mut all: Vec<_> = ["one", "two", "three"].map(identifier).into();
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 3, "{all:?}");
}

#[test]
fn psql_of_the_servers_own_folder_serves_where_the_path_has_none() {
    let Some(native) = Native::new() else { return };
    native.up();
    let mut command = native.command(&["psql", "--", "-Atc", "SELECT current_user || ' ' || count(*) FROM tasks"]);
    command.env("PATH", "/nowhere");
    let outcome = crate::support::finish(crate::support::start(command)).ok();
    assert_eq!(outcome.stdout.trim(), "taskflow 50");
}

#[test]
fn lost_and_changed_passwords_are_set_anew_over_the_socket() {
    for native in Native::each() {
        let up = native.up();
        let superuser = native.env.superuser_url(&up["port"], "postgres");
        query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'");
        query(&superuser, "ALTER ROLE postgres PASSWORD 'other'");
        native.run(&["up"]).ok().says("The server has other passwords");
        assert_eq!(native.tasks(), "50");
    }
}

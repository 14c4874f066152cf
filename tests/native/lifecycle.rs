//! Where a server's files and processes are, and whose.

use serde_json::json;

use super::{Native, shell};
use crate::support::{one, query};

#[test]
fn the_server_has_closed_doors() {
    let Some(native) = Native::new() else { return };
    let up = native.up();
    let superuser = native.env.superuser_url(&up["port"], "postgres");
    for (name, value) in
        [("listen_addresses", "127.0.0.1"), ("unix_socket_permissions", "0700"), ("lc_collate", "C.UTF-8")]
    {
        assert_eq!(one(&superuser, &format!("SHOW {name}")), value, "{name}");
    }
    let methods = "SELECT DISTINCT auth_method FROM pg_hba_file_rules WHERE type LIKE 'host%'";
    assert_eq!(query(&superuser, methods), ["scram-sha-256"]);
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

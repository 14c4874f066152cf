//! What happens when something goes wrong, and that the next command works.

use std::process::{Command, Stdio};

use serde_json::json;

use super::{Native, is_root, kill, shell, skip};
use crate::support::{finish, one, start, until};

#[test]
fn a_number_that_another_program_got_is_not_the_server() {
    for native in Native::each() {
        native.up();
        let data = native.data();
        let stale = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let server = native.pid();
        kill(server, "KILL");
        // A program of the same user: PostgreSQL itself would take it for a running server.
        let owner = shell(&format!("stat -c %u {}", data.display()));
        let mut program = if is_root() { Command::new("setpriv") } else { Command::new("sleep") };
        if is_root() {
            program.args(["--reuid", &owner, "--clear-groups", "sleep"]);
        }
        let mut other = program.arg("600").current_dir("/").stdout(Stdio::null()).spawn().unwrap();
        let number = other.id();
        std::fs::write(data.join("postmaster.pid"), stale.replacen(&server.to_string(), &number.to_string(), 1))
            .unwrap();
        until("the program", || shell(&format!("cat /proc/{number}/comm")).contains("sleep").then_some(()));
        let status = native.status();
        assert_eq!(status["state"], "crashed");
        assert!(status["reason"].as_str().unwrap().contains("`sleep`"), "{status}");
        native.run(&["down"]).ok();
        native.up();
        assert_eq!(native.tasks(), "50");
        assert!(other.try_wait().unwrap().is_none(), "the other program was left alone");
        other.kill().unwrap();
        other.wait().unwrap();
    }
}

#[test]
fn a_state_folder_may_be_moved() {
    for native in Native::each() {
        native.up();
        native.run(&["down"]).ok();
        let (old, new) = (native.env.state_dir(), native.env.path("elsewhere"));
        std::fs::rename(&old, &new).unwrap();
        let mut command = native.command(&["up", "--json"]);
        command.env("TFDEV_STATE_DIR", &new);
        let up = finish(start(command)).ok().json();
        assert_eq!(up["created"], json!(false));
        assert_eq!(one(up["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "50");
        let mut command = native.command(&["down"]);
        command.env("TFDEV_STATE_DIR", &new);
        finish(start(command)).ok();
        std::fs::rename(&new, &old).unwrap();
    }
}

#[test]
fn data_that_is_not_ours_or_not_whole_is_refused_and_left_alone() {
    let Some(native) = Native::new() else { return };
    native.up();
    native.run(&["down"]).ok();
    let data = native.data();
    std::fs::write(data.join("PG_VERSION"), "14\n").unwrap();
    native.run(&["up"]).exits(5).says("PostgreSQL 14").says("pg_dump");
    std::fs::write(data.join("PG_VERSION"), "15\n").unwrap();

    let marker = data.join("tfdev-instance.json");
    let text = std::fs::read_to_string(&marker).unwrap();
    std::fs::write(&marker, text.replacen("\"project\":\"", "\"project\":\"not-", 1)).unwrap();
    for command in [&["up"] as &[&str], &["down"], &["destroy", "--yes"]] {
        native.run(command).exits(5).says("leaves it alone");
    }
    std::fs::remove_file(&marker).unwrap();
    native.run(&["destroy", "--yes"]).exits(5).says("is not a data folder that tfdev made");
    assert!(data.join("PG_VERSION").exists());
    std::fs::write(&marker, &text).unwrap();

    std::fs::write(
        &marker,
        text.replacen("\"id\":\"", "\"id\":\"00000000-0000-4000-8000-000000000000\",\"was\":\"", 1),
    )
    .unwrap();
    native.run(&["up"]).exits(5).says("carries the identity");
    std::fs::write(&marker, &text).unwrap();
    assert_eq!(native.up()["created"], json!(false));
}

#[test]
fn a_data_folder_of_the_wrong_owner_is_refused() {
    if !is_root() {
        return skip("only root can give files away");
    }
    let Some(native) = Native::ordinary() else { return };
    native.up();
    native.run(&["down"]).ok();
    let data = native.data();
    shell(&format!("chown daemon {}", data.display()));
    native.run(&["up"]).exits(5).says("belongs to the user");
    shell(&format!("chown nobody {}", data.display()));
    native.up();
    // Root starts it as its owner, whoever that is.
    let mut command = native.env.command_of_tester(&["up", "--json"]);
    command.env("TFDEV_ENGINE", "native");
    kill(native.pid(), "KILL");
    let up = finish(start(command)).ok().json();
    assert_eq!(up["created"], json!(false));
    assert_eq!(shell(&format!("ps -o user= -p {}", native.pid())), "nobody");

    let Some(native) = Native::new() else { return };
    native.up();
    native.run(&["down"]).ok();
    let data = native.data();
    let owner = shell(&format!("stat -c %u {}", data.display()));
    shell(&format!("chown root {}", data.display()));
    native.run(&["up"]).exits(5).says("belongs to root").says("chown");
    shell(&format!("chown {owner} {}", data.display()));
}

#[test]
fn what_a_killed_removal_left_is_removed_by_the_next() {
    let Some(native) = Native::new() else { return };
    native.up();
    native.run(&["down"]).ok();
    let data = native.data();
    let home = data.parent().unwrap();
    std::fs::rename(&data, home.join("data.removed")).unwrap();
    std::fs::create_dir(home.join("data.partial")).unwrap();
    assert_eq!(native.status()["state"], "absent");
    native.up();
    assert!(!home.join("data.partial").exists());
    native.destroy();
    assert!(!home.join("data.removed").exists());
}

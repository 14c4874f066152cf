//! Which port an instance has, and keeps (`FAILURES.md` § "Ports, names, volumes, resources").

use std::net::{Ipv4Addr, TcpListener};

use serde_json::json;

use crate::support::docker::docker;
use crate::support::{Outcome, TestEngine, TestEnv, finish, on_every_engine, one, query, start, try_query, until};

on_every_engine!(
    another_port_is_taken_if_5432_is_and_kept_from_then_on,
    a_fixed_port_that_is_taken_is_an_error_that_names_its_holder,
    a_kept_port_that_is_taken_meanwhile_is_replaced_with_a_note,
    two_worktrees_of_one_name_run_side_by_side,
);

/// `up` while port 5432 is taken, by this test or by whoever has it already. Gives what it said and the new port.
fn up_while_5432_is_taken(env: &TestEnv) -> (Outcome, u16) {
    loop {
        let held = TcpListener::bind((Ipv4Addr::LOCALHOST, 5432));
        let outcome = env.run(&["up", "--dataset", "small"]).ok();
        let port = env.run(&["status", "--json"]).ok().json()["port"].as_u64().unwrap();
        if port != 5432 {
            return (outcome, u16::try_from(port).unwrap());
        }
        // Another test had the port, and gave it back in between.
        assert!(held.is_err(), "this test holds 5432, and the instance has it too");
        env.run(&["destroy", "--yes"]).ok();
    }
}

/// Whether the engine leaves the port to someone else; then it is the one in the URL, and another one is refused.
fn the_port_is_not_ours(env: &TestEnv) -> bool {
    if env.engine().runs_the_server() {
        return false;
    }
    env.run(&["up", "--port", "6543"]).exits(5).says("can't choose the server's port, because");
    assert_eq!(env.up()["port"], json!(env.server().port));
    true
}

/// A port that is free now, and its holder.
fn free_port() -> (u16, TcpListener) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    (listener.local_addr().unwrap().port(), listener)
}

fn another_port_is_taken_if_5432_is_and_kept_from_then_on(env: &TestEnv) {
    if the_port_is_not_ours(env) {
        return;
    }
    let (outcome, port) = up_while_5432_is_taken(env);
    outcome.says("Port 5432 is taken");
    assert!((20_000..32_000).contains(&port), "{port}");
    let port = &json!(port);
    let first = env.run(&["status", "--json"]).ok().json();

    env.run(&["down"]).ok();
    assert_eq!(&env.up()["port"], port, "kept, though 5432 may be free now");
    if env.engine() == TestEngine::Docker {
        docker(&["restart", "--time", "30", first["container"].as_str().unwrap()]);
        until("the server after `docker restart`", || try_query(first["url"].as_str().unwrap(), "SELECT 1").ok());
        assert_eq!(&env.up()["port"], port);
        docker(&["rm", "--force", first["container"].as_str().unwrap()]);
        assert_eq!(&env.up()["port"], port, "kept also by a container made anew");
    }
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

fn a_fixed_port_that_is_taken_is_an_error_that_names_its_holder(env: &TestEnv) {
    if the_port_is_not_ours(env) {
        return;
    }
    let (port, listener) = free_port();
    let fixed = port.to_string();
    let outcome = env.run(&["up", "--json", "--dataset", "small", "--port", &fixed]).exits(6);
    assert!(
        outcome.json_error()["message"].as_str().unwrap().contains(&format!("port {port} is taken by another program"))
    );
    drop(listener);
    let up = env.run(&["up", "--json", "--dataset", "small", "--port", &fixed]).ok().json();
    assert_eq!(up["port"], json!(port));

    let mut second = env.command_in(&env.other_project("second"), &["up", "--json", "--port", &fixed]);
    second.env("TFDEV_DATASET", "none");
    let error = finish(start(second)).exits(6).json_error();
    let message = error["message"].as_str().unwrap();
    let holder = up["container"].as_str().unwrap_or("another program");
    assert!(message.contains(&format!("port {port} is taken by")) && message.contains(holder), "{message}");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50", "the holder is left alone");
}

fn a_kept_port_that_is_taken_meanwhile_is_replaced_with_a_note(env: &TestEnv) {
    if the_port_is_not_ours(env) {
        return;
    }
    let (_, port) = up_while_5432_is_taken(env);
    env.run(&["down"]).ok();
    let _held = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
    let outcome = env.run(&["up", "--dataset", "small"]).ok();
    outcome.says(&format!("Port {port} is taken by something else"));
    assert_ne!(env.run(&["status", "--json"]).ok().json()["port"], json!(port));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

fn two_worktrees_of_one_name_run_side_by_side(env: &TestEnv) {
    let (left, right) = (env.other_project("left"), env.other_project("right"));
    assert_eq!(left.file_name(), right.file_name());
    if !env.engine().runs_the_server() {
        // On one server their databases need names of their own.
        std::fs::write(right.join("tfdev.toml"), "[database]\nname = \"right\"\n").unwrap();
    }
    let up = |folder| env.run_in(folder, &["up", "--json", "--dataset", "small"]).ok().json();
    let (one_side, other_side) = (up(&left), up(&right));
    let different = ["project", "container", "volume", "data_dir", "registry", "url"];
    for different in different.into_iter().chain(env.engine().runs_the_server().then_some("port")) {
        assert!(one_side[different].is_null() || one_side[different] != other_side[different], "{different}");
    }
    query(one_side["url"].as_str().unwrap(), "DELETE FROM users");
    assert_eq!(one(other_side["url"].as_str().unwrap(), "SELECT count(*) FROM users"), "10");
    env.run_in(&left, &["destroy", "--yes"]).ok();
    assert_eq!(one(other_side["url"].as_str().unwrap(), "SELECT count(*) FROM users"), "10");
    // Started in a folder below, it is still the same project.
    for below in [".git", "src"] {
        std::fs::create_dir(right.join(below)).unwrap();
    }
    assert_eq!(env.run_in(&right.join("src"), &["url"]).ok().stdout.trim(), other_side["url"].as_str().unwrap());
}

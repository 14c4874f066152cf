//! Names that are someone else's, and things that someone else removed (`FAILURES.md` § "Ports, names, volumes,
//! resources" and § Security).

use serde_json::json;

use crate::support::{TestEnv, docker, one};

#[test]
fn a_container_of_our_name_that_is_not_ours_is_a_conflict() {
    let Some(env) = TestEnv::docker() else { return };
    let name = env.container_name();
    docker::docker(&["create", "--name", &name, "--label", "dev.tfdev.project=another", env.image(), "sleep", "9"]);
    let id = docker::id(&name);
    for command in [&["up"] as &[&str], &["down"], &["destroy", "--yes"], &["status"], &["url"], &["logs"]] {
        env.run(command).exits(6).says(&name);
    }
    assert_eq!(docker::id(&name), id, "it was touched");
    assert_eq!(
        docker::listed(&["volume", "ls", "--quiet", "--filter", &format!("name={name}-data")]),
        Vec::<String>::new()
    );
}

#[test]
fn a_volume_of_our_name_without_our_labels_is_left_alone() {
    let Some(env) = TestEnv::docker() else { return };
    let volume = format!("{}-data", env.container_name());
    docker::docker(&["volume", "create", &volume]);
    docker::docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "sh",
        "--volume",
        &format!("{volume}:/there"),
        env.image(),
        "-c",
        "echo precious > /there/file",
    ]);
    for command in [&["up"] as &[&str], &["destroy", "--yes"]] {
        env.run(command).exits(5).says(&volume);
    }
    let kept = docker::docker(&[
        "run",
        "--rm",
        "--network",
        "none",
        "--entrypoint",
        "cat",
        "--volume",
        &format!("{volume}:/there"),
        env.image(),
        "/there/file",
    ]);
    assert_eq!(kept, "precious");
}

#[test]
fn a_container_that_was_removed_by_hand_comes_back_with_its_data() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    docker::docker(&["rm", "--force", up["container"].as_str().unwrap()]);
    let status = env.run(&["status", "--json"]).ok().json();
    assert_eq!((&status["state"], &status["volume"]), (&json!("stopped"), &up["volume"]));
    let again = env.up();
    assert_eq!((&again["created"], &again["started"], &again["url"]), (&json!(false), &json!(true), &up["url"]));
    assert_eq!(again["seed"]["applied"], json!(false));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn data_that_was_removed_by_hand_is_made_anew_with_a_warning() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    docker::docker(&["rm", "--force", up["container"].as_str().unwrap()]);
    docker::docker(&["volume", "rm", up["volume"].as_str().unwrap()]);
    env.run(&["up", "--dataset", "small"]).ok().says("removed by something other than tfdev");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
    assert_eq!(env.up()["created"], json!(false));
}

#[test]
fn a_destroy_finds_what_is_ours_with_no_record_of_it() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    std::fs::remove_dir_all(env.state_dir()).unwrap();
    env.run(&["destroy", "--yes"]).ok();
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

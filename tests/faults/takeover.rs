//! Names in Docker that are someone else's, and what killed runs and other people left there (`FAILURES.md` § "Ports,
//! names, volumes, resources" and § Security).

use serde_json::json;

use crate::support::{TestEnv, assert_reached_as_before, docker, one};

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
    assert_eq!((&again["created"], &again["started"]), (&json!(false), &json!(true)));
    assert_reached_as_before(&up, &again);
    assert_eq!(again["seed"]["applied"], json!(false));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn a_destroy_finds_what_is_ours_with_no_record_of_it() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    std::fs::remove_dir_all(env.state_dir()).unwrap();
    env.run(&["destroy", "--yes"]).ok();
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

/// The labels of a volume as a killed run leaves it, for `docker volume create`.
fn labels(project: &str) -> Vec<String> {
    let id = "0f4de2b5-6c39-4b1e-9a51-6f1d1f8a4f10";
    ["project=".to_owned() + project, "instance=dev".to_owned(), format!("id={id}")]
        .iter()
        .flat_map(|label| ["--label".to_owned(), format!("dev.tfdev.{label}")])
        .collect()
}

/// Makes the volume of the test's instance `dev` by hand, filled by `script`.
fn make_volume(env: &TestEnv, script: &str) -> String {
    let volume = format!("{}-data", env.container_name());
    let labels = labels(&env.settled("project").0);
    let mut create = vec!["volume", "create"];
    create.extend(labels.iter().map(String::as_str));
    create.push(&volume);
    docker::docker(&create);
    run_on_volume(&volume, env.image(), script);
    volume
}

/// Runs a shell script in a container that has `volume` at `/there`.
fn run_on_volume(volume: &str, image: &str, script: &str) -> String {
    let mount = format!("{volume}:/there");
    docker::docker(&["run", "--rm", "--network", "none", "--entrypoint", "sh", "--volume", &mount, image, "-c", script])
}

#[test]
fn a_volume_that_a_killed_run_left_half_filled_is_completed() {
    for script in [
        "true",
        "mkdir -p /there/base /there/global; echo 15 > /there/PG_VERSION; echo rubbish > /there/global/pg_control",
    ] {
        let Some(env) = TestEnv::docker() else { return };
        let volume = make_volume(&env, script);
        let up = env.up();
        assert_eq!((&up["created"], &up["volume"]), (&json!(true), &json!(volume)));
        assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
        assert_eq!(env.up()["created"], json!(false));
    }
}

#[test]
fn a_data_folder_that_tfdev_did_not_make_is_never_overwritten() {
    let Some(env) = TestEnv::docker() else { return };
    let volume = make_volume(&env, "echo 15 > /there/PG_VERSION; echo precious > /there/postmaster.opts");
    env.run(&["up"]).exits(5).says(&volume);
    assert_eq!(run_on_volume(&volume, env.image(), "cat /there/postmaster.opts"), "precious");
}

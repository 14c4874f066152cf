//! On Docker.

use serde_json::{Value, json};

use super::{DANGEROUS, edit_record, forget_server};
use crate::support::{TestEnv, docker, one, query, try_query};

const ANOTHER: &str = "00000000-0000-4000-8000-000000000000";

/// Starts two instances of one project, `dev` and `other`; only the first has tasks. Gives what `up` said.
fn two_instances(env: &TestEnv) -> (Value, Value) {
    let dev = env.up();
    let arguments = ["up", "--json", "--instance", "other", "--profile", "dev", "--dataset", "small"];
    let other = env.run(&arguments).ok().json();
    query(other["url"].as_str().unwrap(), "DELETE FROM tasks");
    (dev, other)
}

fn name<'a>(up: &'a Value, part: &str) -> &'a str {
    up[part].as_str().unwrap()
}

/// Runs a shell script in a container that has both volumes, at `/one` and `/two`.
fn with_both(image: &str, one: &str, two: &str, script: &str) {
    let (one, two) = (format!("{one}:/one"), format!("{two}:/two"));
    let mounts = ["--volume", &one, "--volume", &two];
    let run = [&["run", "--rm", "--network", "none", "--entrypoint", "sh"] as &[&str], &mounts, &[image, "-c", script]];
    docker::docker(&run.concat());
}

#[test]
fn a_record_of_another_identity_stops_every_command() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let container = docker::id(name(&up, "container"));
    edit_record(&env.instance_dir(), |record| record["uuid"] = json!(ANOTHER));
    for command in DANGEROUS {
        env.run(command).exits(5).says(ANOTHER).says("instance.json");
    }
    assert_eq!(docker::id(name(&up, "container")), container);
    assert_eq!(one(name(&up, "url"), "SELECT coalesce(to_regclass('written')::text, 'none')"), "none");
}

#[test]
fn two_instances_whose_data_was_swapped_are_refused_and_neither_is_removed() {
    let Some(env) = TestEnv::docker() else { return };
    let (dev, other) = two_instances(&env);
    env.run(&["down", "--all"]).ok();
    let (ours, theirs) = (name(&dev, "volume"), name(&other, "volume"));
    let swap = "mkdir /one/.s && mv /one/* /one/.s && mv /two/* /one && mv /one/.s/* /two && rmdir /one/.s";
    with_both(env.image(), ours, theirs, swap);
    let refused = |words: &str| {
        for command in [&["up"] as &[&str], &["destroy", "--yes"]] {
            let outcome = env.run(command).exits(5).says(words);
            outcome.says(&format!("the data in the volume `{ours}` is that of the instance `other`"));
        }
    };
    refused("nothing was written");
    // Also with no container to look through.
    docker::docker(&["rm", name(&dev, "container")]);
    refused("nothing was written");
    with_both(env.image(), ours, theirs, swap);
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
    env.run(&["destroy", "--all", "--yes"]).ok();
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

#[test]
fn a_container_of_ours_on_the_volume_of_another_instance_is_refused() {
    let Some(env) = TestEnv::docker() else { return };
    let (dev, other) = two_instances(&env);
    let (container, volume) = (name(&dev, "container"), name(&other, "volume"));
    let labels = docker::inspect(container)["Config"]["Labels"].clone();
    docker::docker(&["rm", "--force", container]);
    let mount = format!("{volume}:/var/lib/postgresql/data");
    let labels = labels.as_object().unwrap().iter();
    let labels: Vec<_> = labels.map(|(label, value)| format!("--label={label}={}", value.as_str().unwrap())).collect();
    let mut create = vec!["create", "--name", container, "--volume", &mount];
    create.extend(labels.iter().map(String::as_str));
    create.extend([env.image(), "true"]);
    docker::docker(&create);
    let id = docker::id(container);
    for command in DANGEROUS {
        env.run(command).exits(5).says(&format!("has its data in the volume `{volume}`"));
    }
    assert_eq!(docker::id(container), id);
    docker::docker(&["rm", container]);
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn a_container_and_a_volume_of_two_identities_are_refused() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let (container, volume) = (name(&up, "container"), name(&up, "volume"));
    let project = format!("dev.tfdev.project={}", name(&up, "project"));
    docker::docker(&["rm", "--force", container]);
    let (id, mount) = (format!("dev.tfdev.id={ANOTHER}"), format!("{volume}:/var/lib/postgresql/data"));
    let labels = ["--label", &project, "--label", "dev.tfdev.instance=dev", "--label", &id];
    let create = ["create", "--name", container, "--volume", &mount];
    docker::docker(&[&create as &[&str], &labels, &[env.image(), "true"]].concat());
    // With no record to compare with.
    std::fs::remove_dir_all(env.state_dir()).unwrap();
    for command in [&["up"] as &[&str], &["down"], &["destroy", "--yes"]] {
        env.run(command).exits(5).says(ANOTHER).says(volume);
    }
    docker::docker(&["rm", container]);
    env.up();
    assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), "50");
}

#[test]
fn a_volume_of_our_name_of_another_project_is_left_alone() {
    let Some(env) = TestEnv::docker() else { return };
    let volume = format!("{}-data", env.container_name());
    docker::docker(&["volume", "create", "--label", "dev.tfdev.project=another", &volume]);
    for command in [&["up"] as &[&str], &["down"], &["destroy", "--yes"]] {
        env.run(command).exits(5).says(&volume);
    }
    docker::inspect(&volume);
}

#[test]
fn a_server_whose_identity_came_by_a_dump_is_known_as_a_copy() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    let url = name(&up, "url").to_owned();
    let superuser = env.superuser_url(&up["port"], "postgres");
    // As after `pg_dumpall` of the instance into a server that was initialised anew.
    query(&superuser, "UPDATE tfdev.instance SET system_identifier = 7");
    query(&superuser, "ALTER ROLE taskflow PASSWORD 'other'");
    env.run(&["up"]).exits(5).says("is a copy").says("nothing was written");
    try_query(&url, "SELECT 1").unwrap_err();
    query(&superuser, "ALTER ROLE postgres PASSWORD 'other'");
    env.run(&["up"]).exits(5).says("is a copy");
    try_query(&superuser, "SELECT 1").unwrap_err();
    // Nor is it taken for ours where the record is lost.
    std::fs::remove_dir_all(env.state_dir()).unwrap();
    env.run(&["up"]).exits(5).says("is a copy");
}

#[test]
fn an_instance_whose_server_is_not_on_record_is_set_up_before_it_is_used() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    edit_record(&env.instance_dir(), forget_server);
    for command in [&["migrate"] as &[&str], &["psql", "--", "-c", "CREATE TABLE written ()"]] {
        env.run(command).exits(5).says("was never set up to its end").says("tfdev up");
    }
    assert_eq!(env.up()["url"], up["url"]);
    env.run(&["migrate"]).ok();
}

#[test]
fn a_server_with_another_password_is_not_written_to() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.up();
    query(&env.superuser_url(&up["port"], "postgres"), "ALTER ROLE taskflow PASSWORD 'other'");
    for command in [&["migrate"] as &[&str], &["psql"]] {
        env.run(command).exits(5).says("does not accept this instance's password").says("`tfdev up`");
    }
    env.up();
    env.run(&["migrate"]).ok();
}

#[test]
fn data_in_memory_and_data_on_the_disk_are_each_known_again() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    query(&env.url(), "DELETE FROM tasks");
    for (profile, tasks) in [("test", "50"), ("dev", "0"), ("test", "50"), ("dev", "0")] {
        env.run(&["up", "--profile", profile, "--dataset", "small"]).ok();
        assert_eq!(one(&env.url(), "SELECT count(*) FROM tasks"), tasks, "{profile}");
        env.run(&["migrate"]).ok();
    }
}

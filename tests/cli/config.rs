//! Settled values and where they came from (`CLI.md` § Commands, § Project file).

use std::process::Command;

use crate::support::{Outcome, TestEnv, finish, start};

fn with_variable(env: &TestEnv, arguments: &[&str], variable: (&str, &str)) -> Outcome {
    let mut command: Command = env.command(arguments);
    command.env(variable.0, variable.1);
    finish(start(command))
}

/// The line of `key` in what `config show` prints.
fn line(outcome: Outcome, key: &str) -> String {
    let text = outcome.ok().stdout;
    let line = text.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap_or_else(|| panic!("{text}"));
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_flag_goes_before_a_variable_a_project_file_a_user_file_and_a_default() {
    let env = TestEnv::new();
    let show = ["config", "show"];
    assert_eq!(line(env.run(&show), "engine"), "engine = auto # default");
    env.write_user_file("engine = \"external\"\n");
    let from_user = line(env.run(&show), "engine");
    assert!(from_user.starts_with("engine = external # "), "{from_user}");
    assert!(from_user.ends_with("config/tfdev/tfdev.toml:1"), "{from_user}");
    env.write("tfdev.toml", "# mine\nengine = \"native\"\n");
    let file = env.project.join("tfdev.toml");
    assert_eq!(line(env.run(&show), "engine"), format!("engine = native # {}:2", file.display()));
    let variable = ("TFDEV_ENGINE", "docker");
    assert_eq!(line(with_variable(&env, &show, variable), "engine"), "engine = docker # TFDEV_ENGINE");
    let flag = with_variable(&env, &["config", "show", "--engine", "auto"], variable);
    assert_eq!(line(flag, "engine"), "engine = auto # --engine");
}

#[test]
fn the_variables_of_up_are_shown_too() {
    let env = TestEnv::new();
    for (variable, value, key) in [
        ("TFDEV_DATASET", "small", "seed.dataset"),
        ("TFDEV_PORT", "6543", "database.port"),
        ("TFDEV_IMAGE", "example/postgres:15", "docker.image"),
        ("TFDEV_INSTANCE", "test", "instance"),
        ("TFDEV_TIMEOUT", "7", "timeout"),
    ] {
        let outcome = with_variable(&env, &["config", "show"], (variable, value));
        assert_eq!(line(outcome, key), format!("{key} = {value} # {variable}"));
    }
    let compose = with_variable(&env, &["compose"], ("TFDEV_PORT", "6543")).ok();
    assert!(compose.stdout.contains("6543"), "{}", compose.stdout);
    with_variable(&env, &["config", "show"], ("TFDEV_PORT", "many")).exits(8).says("`TFDEV_PORT`");
}

#[test]
fn init_writes_a_file_that_is_valid_and_changes_nothing() {
    let env = TestEnv::new();
    let values = |env: &TestEnv| {
        let mut rows = env.run(&["config", "show", "--json"]).ok().json();
        for row in rows.as_array_mut().unwrap() {
            row["origin"].take();
        }
        rows
    };
    let before = values(&env);
    let written = env.run(&["init", "--json"]).ok().json();
    let file = env.project.join("tfdev.toml");
    assert_eq!(written["file"].as_str(), file.to_str());
    assert_eq!(values(&env), before, "everything in it is a default");
    let text = std::fs::read_to_string(&file).unwrap();
    env.run(&["init"]).exits(6).says("left as it is");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);

    let other = env.other_project("other");
    env.run_in(&other, &["init", "--project", "my-app"]).ok();
    assert_eq!(
        line(env.run_in(&other, &["config", "show"]), "project"),
        format!("project = my-app # {}:{}", other.join("tfdev.toml").display(), line_of(&other, "project ="))
    );
}

/// The number of the first line of the folder's `tfdev.toml` that begins with `start`.
fn line_of(folder: &std::path::Path, start: &str) -> usize {
    let text = std::fs::read_to_string(folder.join("tfdev.toml")).unwrap();
    text.lines().position(|line| line.starts_with(start)).unwrap() + 1
}

#[test]
fn init_makes_a_valid_key_of_any_name() {
    let env = TestEnv::new();
    env.run(&["init", "--project", "../My App"]).ok();
    assert!(line(env.run(&["config", "show"]), "project").starts_with("project = my-app # "));
}

#[test]
fn compose_prints_what_the_instance_is() {
    let env = TestEnv::new();
    env.write("tfdev.toml", "project = \"shop\"\n[profiles.dev]\nwork_mem = \"8MB\"\n");
    let text = env.run(&["compose"]).ok().stdout;
    for part in
        ["work_mem=8MB", "max_connections=20", "/var/lib/postgresql/data", "127.0.0.1:", "pg_stat_activity", "256"]
    {
        assert!(text.contains(part), "{part} in {text}");
    }
}

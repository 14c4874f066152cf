//! What goes to which stream, and how (`CLI.md` § Output).

use crate::support::{TestEnv, docker, finish, start};

#[test]
fn help_is_what_was_agreed_on() {
    let env = TestEnv::new();
    insta::assert_snapshot!(env.run(&["--help"]).ok().stdout);
}

#[test]
fn the_version_is_the_packages() {
    let outcome = TestEnv::new().run(&["--version"]).ok();
    assert_eq!(outcome.stdout, format!("tfdev {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_command_has_help_with_a_summary() {
    let env = TestEnv::new();
    let help = env.run(&["--help"]).ok().stdout;
    let commands = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<_> = commands.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert!(names.len() >= 17, "{names:?}");
    for name in names.iter().filter(|name| **name != "help") {
        let own = env.run(&[name, "--help"]).ok();
        assert!(own.stdout.contains(&format!("Usage: tfdev {name}")), "{name}: {}", own.stdout);
        assert_eq!(own.stderr, "", "{name}");
    }
}

#[test]
fn completions_and_manual_pages_are_made() {
    let env = TestEnv::new();
    for (shell, words) in [("bash", "complete -F"), ("zsh", "#compdef tfdev"), ("fish", "complete -c tfdev")] {
        let text = env.run(&["completions", shell]).ok().stdout;
        assert!(text.contains(words) && text.contains("migrate"), "{shell}");
    }
    assert!(env.run(&["man"]).ok().stdout.contains(".TH tfdev 1"));
    let folder = env.path("man");
    env.run(&["man", "--out", folder.to_str().unwrap()]).ok();
    for page in ["tfdev.1", "tfdev-up.1", "tfdev-migrate-new.1"] {
        assert!(folder.join(page).exists(), "{page}");
    }
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let env = TestEnv::new();
    for arguments in [
        &["config", "show"] as &[&str],
        &["config", "show", "--json"],
        &["man"],
        &["--help"],
        &["completions", "bash"],
        &["compose"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = env.command(arguments).stdin(std::process::Stdio::null()).stdout(writer).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && stderr.is_empty(), "{arguments:?}: {:?} {stderr}", output.status);
    }
}

#[test]
fn with_json_standard_output_is_one_document_and_standard_error_is_empty() {
    let Some(env) = TestEnv::docker() else { return };
    for arguments in [
        &["status"] as &[&str],
        &["up", "--dataset", "small"],
        &["up", "--dataset", "small", "--verbose"],
        &["status"],
        &["url"],
        &["env"],
        &["logs"],
        &["logs", "--slow"],
        &["health"],
        &["verify"],
        &["doctor"],
        &["migrate"],
        &["migrate", "status"],
        &["seed", "--dataset", "small", "--replace", "--yes"],
        &["compose"],
        &["config", "show"],
        &["image", "ensure"],
        &["down"],
        &["destroy", "--yes"],
    ] {
        let outcome = env.run(&[arguments, &["--json"]].concat()).ok();
        outcome.json();
        assert_eq!(outcome.stderr, "", "{arguments:?}");
    }
}

#[test]
fn without_a_terminal_there_are_no_bars_no_colours_and_quiet_is_quiet() {
    let Some(env) = TestEnv::docker() else { return };
    let up = env.run(&["up", "--dataset", "small", "--verbose"]).ok();
    assert!(up.stderr.contains("detail:"), "{}", up.stderr);
    assert!(!up.stdout.contains('\u{1b}') && !up.stderr.contains('\u{1b}') && !up.stderr.contains('\r'), "{up:?}");
    let quiet = env.run(&["up", "--dataset", "small", "--quiet"]).ok();
    assert_eq!(quiet.stderr, "");
    assert!(quiet.stdout.contains("postgres://"), "results are shown also then");
    docker::docker(&["kill", "--signal", "KILL", &env.container_name()]);
    env.run(&["up", "--dataset", "small", "--quiet"]).ok().says("warning:");
    let mut down = env.command(&["down"]);
    down.env("TFDEV_JSON", "1");
    assert!(finish(start(down)).ok().json()["instances"].is_array());
}

//! The README's tour and its examples of fresh databases run as they stand there, and print what the README shows.

mod example;

use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Command;

use crate::support::{Outcome, TestEngine, TestEnv, finish, free_port, start};

const README: &str = include_str!("../../README.md");

/// The blocks of a section in the language `language`, one after the other.
fn blocks(section: &str, language: &str) -> String {
    let heading = format!("{section}\n");
    let section = README.split("\n## ").find(|text| text.starts_with(&heading)).unwrap();
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

/// The first word of each line, which holds no time, port, password or name of a folder.
fn first_words(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

/// Runs a script with `tfdev`, and what else is in `programs`, in its path.
fn run_script(env: &TestEnv, programs: &[(&str, &str)], script: &str) -> Outcome {
    let folder = env.path("bin");
    std::fs::create_dir(&folder).unwrap();
    symlink(env!("CARGO_BIN_EXE_tfdev"), folder.join("tfdev")).unwrap();
    for (name, text) in programs {
        std::fs::write(folder.join(name), text).unwrap();
        std::fs::set_permissions(folder.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    let surroundings = env.command(&[]);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-eu", "-c", r#"PATH="$0:$PATH"; eval "$1""#]).arg(folder).arg(script);
    shell.current_dir(&env.project).env_clear();
    shell.envs(surroundings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    finish(start(shell)).ok()
}

/// Fails unless the text shown in `section` was printed, by the first words of its lines.
#[track_caller]
fn assert_printed(section: &str, outcome: &Outcome) {
    let mut printed = first_words(&outcome.stdout).into_iter();
    for shown in first_words(&blocks(section, "text")) {
        assert!(printed.any(|word| word == shown), "`{shown}` is not printed where it is shown: {}", outcome.stdout);
    }
}

#[test]
fn the_tour_works_and_prints_what_it_shows() {
    let Some(env) = TestEnv::docker() else { return };
    let outcome = run_script(&env, &[], &blocks("Tour", "sh"));
    assert_printed("Tour", &outcome);
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

#[test]
fn the_example_of_profiles_works_and_prints_what_it_shows() {
    let Some(env) = TestEnv::docker() else { return };
    env.up();
    assert_printed("Profiles", &run_script(&env, &[], &blocks("Profiles", "sh")));
}

#[test]
fn the_example_of_backups_works() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    let file = blocks("Backups", "toml").replace("/var/backups/tfdev", env.path("store").to_str().unwrap());
    env.write("tfdev.toml", file.replace("shop", &env.id));
    let outcome = run_script(&env, &[], &blocks("Backups", "sh"));
    assert!(outcome.stdout.contains("tables are as they were"), "{outcome:?}");
    env.run(&["destroy", "--all", "--yes"]).ok();
}

#[test]
fn the_examples_of_fresh_databases_work_in_a_shell_and_in_a_ci_job() {
    let Some(env) = TestEnv::docker() else { return };
    let section = "Fresh databases for tests";
    // The programs of the examples: each only looks whether it has a database.
    let program =
        "#!/bin/sh\ncase \"$DATABASE_URL\" in */tfdev_f_*) echo \"$0 $*\" | sed 's!.*/!ran !' ;; *) exit 1 ;; esac\n";
    let job = blocks(section, "yaml");
    let commands: Vec<_> = job.lines().filter_map(|line| line.trim().strip_prefix("- run: ")).collect();
    assert!(!commands.is_empty());
    let script = format!("{}\n{}\n", blocks(section, "sh"), commands.join("\n"));
    let outcome = run_script(&env, &[("npm", program), ("cargo", program)], &script);
    assert_eq!(outcome.stdout.lines().filter(|line| line.starts_with("ran ")).count(), 2, "{outcome:?}");
    env.run(&["destroy", "--all", "--yes"]).ok();
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

#[test]
fn the_example_of_fresh_databases_over_http_works() {
    let Some(env) = TestEnv::docker() else { return };
    let section = "Over HTTP";
    // Another service may be on the port that people use.
    let address = format!("127.0.0.1:{}", free_port());
    let script = blocks(section, "sh").replace("127.0.0.1:5000", &address);
    assert!(script.contains(&address));
    let tell = "echo\necho \"$DATABASE_URL\"\nwait $! || true\ncat serve.log";
    let outcome = run_script(&env, &[], &format!("export TFDEV_SERVE_LISTEN={address}\n{script}\n{tell}"));
    let answer: serde_json::Value = serde_json::from_str(outcome.stdout.lines().next().unwrap()).unwrap();
    let shown = blocks(section, "text");
    for member in answer.as_object().unwrap().keys() {
        assert!(shown.contains(&format!("\"{member}\":")), "{member}: {answer}");
    }
    assert!(outcome.stdout.lines().any(|line| line.starts_with("postgres://") && line.contains("/tfdev_f_")));
    assert!(outcome.stdout.contains(&format!("listening on http://{address}")), "{outcome:?}");
    env.run(&["destroy", "--all", "--yes"]).ok();
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

#[test]
fn the_examples_of_fresh_databases_in_rust_are_those_that_are_run() {
    let shown = blocks("Fresh databases for tests", "rust");
    let examples = include_str!("example.rs").split("// README\n").skip(1);
    let run: String = examples.map(|example| example.split_once("// END\n").unwrap().0).collect();
    assert_eq!(shown, run);
    let Some(env) = TestEnv::docker() else { return };
    let mut suite = Command::new(std::env::current_exe().unwrap());
    suite.args(["readme::example::", "--ignored"]).current_dir(&env.project);
    let surroundings = env.command(&[]);
    suite.env_clear().envs(surroundings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let outcome = finish(start(suite)).ok();
    assert!(outcome.stdout.contains("2 passed"), "{outcome:?}");
}

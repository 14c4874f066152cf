//! The README's tour runs as it stands there, and prints what the README shows.

use std::os::unix::fs::symlink;
use std::process::Command;

use crate::support::{TestEnv, finish, start};

/// The blocks of the tour in the language `language`, one after the other.
fn blocks(language: &str) -> String {
    let readme = include_str!("../../README.md");
    let tour = readme.split("\n## ").find(|section| section.starts_with("Tour\n")).unwrap();
    let fence = format!("```{language}\n");
    tour.split(&fence).skip(1).map(|block| block.split("```").next().unwrap()).collect()
}

/// The first word of each line, which holds no time, port, password or name of a folder.
fn first_words(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split_whitespace().next()).collect()
}

#[test]
fn the_tour_works_and_prints_what_it_shows() {
    let Some(env) = TestEnv::docker() else { return };
    let programs = env.path("bin");
    std::fs::create_dir(&programs).unwrap();
    symlink(env!("CARGO_BIN_EXE_tfdev"), programs.join("tfdev")).unwrap();
    let surroundings = env.command(&[]);
    let mut shell = Command::new("/bin/sh");
    shell.args(["-eu", "-c", r#"PATH="$0:$PATH"; eval "$1""#]).arg(programs).arg(blocks("sh"));
    shell.current_dir(&env.project).env_clear();
    shell.envs(surroundings.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let outcome = finish(start(shell)).ok();
    let mut printed = first_words(&outcome.stdout).into_iter();
    for shown in first_words(&blocks("text")) {
        assert!(printed.any(|word| word == shown), "`{shown}` is not printed where it is shown: {}", outcome.stdout);
    }
    assert_eq!(env.in_docker(), Vec::<String>::new());
}

//! The git hook, with real repositories: one database state for each branch.

use std::path::Path;
use std::process::Command;

use crate::support::process::shell;
use crate::support::{Outcome, TestEngine, TestEnv, finish, one, query, run_on, start};

/// git in `folder`, with a `PATH` that has no other tfdev and the surroundings of the test's tfdev, which the hook gets.
fn git_in(env: &TestEnv, folder: &Path, arguments: &[&str]) -> Outcome {
    let mut command = Command::new("git");
    command.args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"]);
    command.args(arguments).current_dir(folder).env_clear();
    let of_tfdev = env.command(&[]);
    command.envs(of_tfdev.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_COUNT", "1");
    command.env("GIT_CONFIG_KEY_0", "safe.directory").env("GIT_CONFIG_VALUE_0", "*");
    finish(start(command))
}

fn git(env: &TestEnv, arguments: &[&str]) -> Outcome {
    git_in(env, &env.project, arguments).ok()
}

/// A repository with a file and the branch `main`.
fn repository(env: &TestEnv) {
    git(env, &["init", "--quiet"]);
    env.write("file", "1");
    git(env, &["add", "."]);
    git(env, &["commit", "--quiet", "-m", "first"]);
}

fn hook(env: &TestEnv) -> std::path::PathBuf {
    env.project.join(".git/hooks/post-checkout")
}

fn install(env: &TestEnv) {
    finish(start(env.command_of_tester(&["hooks", "install"]))).ok();
}

fn tasks(env: &TestEnv) -> String {
    one(&env.url(), "SELECT count(*) FROM tasks")
}

#[test]
fn each_branch_has_a_state_of_its_own() {
    run_on(TestEngine::Native, each_branch);
}

#[test]
fn each_branch_has_a_state_of_its_own_in_docker() {
    run_on(TestEngine::Docker, each_branch);
}

fn each_branch(env: &TestEnv) {
    env.up();
    repository(env);
    install(env);
    git(env, &["checkout", "--quiet", "-b", "feature"]).says("`feature` goes on with the database of `main`");
    query(&env.url(), "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks LIMIT 20)");
    assert_eq!(tasks(env), "30");
    git(env, &["checkout", "--quiet", "main"]).says("the database is as `main` left it");
    assert_eq!(tasks(env), "50");
    query(&env.url(), "DELETE FROM tasks");
    git(env, &["checkout", "--quiet", "feature"]).says("the database is as `feature` left it");
    assert_eq!(tasks(env), "30");
    git(env, &["checkout", "--quiet", "main"]);
    assert_eq!(tasks(env), "0");
    let listed = env.run(&["snapshot", "list", "--json"]).ok().json();
    let mut names: Vec<_> =
        listed["snapshots"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["branch feature", "branch main"]);

    // The same branch, files, and no branch at all: nothing happens.
    for arguments in
        [&["checkout", "main"] as &[&str], &["checkout", "--", "file"], &["checkout", "--quiet", "--detach"]]
    {
        let outcome = git(env, arguments);
        assert!(!outcome.stderr.contains("tfdev"), "{arguments:?}: {}", outcome.stderr);
    }
    git(env, &["checkout", "--quiet", "feature"]).says("the database is as `feature` left it");
    assert_eq!(tasks(env), "30");

    // A server that does not run is left alone, and its database still belongs to the branch that it belonged to.
    env.run(&["down"]).ok();
    assert_eq!(git(env, &["checkout", "--quiet", "main"]).stderr, "");
    env.run(&["up", "--dataset", "small"]).ok();
    assert_eq!(tasks(env), "30");
    git(env, &["checkout", "--quiet", "-b", "third"]).says("`third` goes on with the database of `feature`");
    git(env, &["checkout", "--quiet", "main"]).says("the database is as `main` left it");
    assert_eq!(tasks(env), "0");
}

#[test]
fn without_an_instance_a_checkout_says_nothing() {
    let env = TestEnv::new();
    repository(&env);
    install(&env);
    assert_eq!(git(&env, &["checkout", "--quiet", "-b", "feature"]).stderr, "");
}

#[test]
fn whatever_fails_fails_no_checkout() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.up();
    repository(&env);
    install(&env);
    git(&env, &["checkout", "--quiet", "-b", "feature"]).says("goes on with");
    // A project file that is wrong, a prepared transaction in the way, and no program any more.
    env.write("tfdev.toml", "nonsense = [");
    let outcome = git(&env, &["checkout", "--quiet", "-b", "second"]);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    outcome.says("the database was not switched with the branch");
    std::fs::remove_file(env.project.join("tfdev.toml")).unwrap();
    let text = std::fs::read_to_string(hook(&env)).unwrap();
    std::fs::write(hook(&env), text.replace(env!("CARGO_BIN_EXE_tfdev"), "/nowhere/tfdev")).unwrap();
    assert_eq!(git(&env, &["checkout", "--quiet", "-b", "third"]).stderr, "");
    assert_eq!(tasks(&env), "50");
}

#[test]
fn a_hook_that_is_killed_in_the_middle_mixes_no_states() {
    let Some(env) = TestEnv::on(TestEngine::Native) else { return };
    env.up();
    repository(&env);
    git(&env, &["branch", "feature"]);
    // Without the hook itself: git would wait for it, and it is called the same.
    let post_checkout = |point: Option<&str>| {
        let mut command = env.command(&["hooks", "run", "post-checkout", "0", "0", "1"]);
        if let Some(point) = point {
            command.env("TFDEV_FAULT_POINT", format!("{point}=kill"));
        }
        finish(start(command))
    };
    let switch = |branch: &str, point: Option<&str>| {
        git(&env, &["checkout", "--quiet", branch]);
        post_checkout(point)
    };
    switch("feature", None).ok();
    query(&env.url(), "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks LIMIT 20)");
    switch("main", None).ok();
    assert_eq!(tasks(&env), "50");
    let points = [
        "snapshot.locked",
        "snapshot.restore.prepared",
        "snapshot.swap.renamed",
        "snapshot.swap.committed",
        "snapshot.rename.begin",
        "snapshot.delete.marked",
    ];
    for point in points {
        let killed = switch("feature", Some(point));
        assert_eq!(killed.status.code(), None, "{point}: {}", killed.stderr);
        // The next one ends what was begun, and both branches have what was theirs.
        post_checkout(None).ok();
        assert_eq!(tasks(&env), "30", "{point}");
        switch("main", None).ok();
        assert_eq!(tasks(&env), "50", "{point}");
    }
}

#[test]
fn the_hook_respects_what_is_there() {
    let env = TestEnv::new();
    repository(&env);
    let own = "#!/bin/sh\necho mine >&2\nexit 0\n";
    std::fs::write(hook(&env), own).unwrap();
    shell(&format!("chmod +x {}", hook(&env).display()));
    install(&env);
    install(&env);
    git(&env, &["checkout", "--quiet", "-b", "feature"]).says("mine");
    finish(start(env.command_of_tester(&["hooks", "remove"]))).ok();
    assert_eq!(std::fs::read_to_string(hook(&env)).unwrap(), own);
    finish(start(env.command_of_tester(&["hooks", "remove"]))).ok();

    // Another folder for hooks, from a worktree.
    git(&env, &["config", "core.hooksPath", "my hooks"]);
    let worktree = env.other_project("worktree").join("tree");
    git(&env, &["worktree", "add", "--quiet", worktree.to_str().unwrap(), "-b", "third"]);
    finish(start(env.command_in(&worktree, &["hooks", "install"]))).ok();
    assert!(worktree.join("my hooks/post-checkout").exists());
    git(&env, &["config", "--unset", "core.hooksPath"]);
    std::fs::remove_file(hook(&env)).unwrap();
    finish(start(env.command_in(&worktree, &["hooks", "install"]))).ok();
    assert!(hook(&env).exists(), "worktrees share the hooks of their repository");

    // No shell script, and no repository.
    std::fs::write(hook(&env), "#!/usr/bin/env python3\n").unwrap();
    finish(start(env.command_of_tester(&["hooks", "install"]))).exits(5).says("no shell script");
    let elsewhere = env.other_project("elsewhere");
    finish(start(env.command_in(&elsewhere, &["hooks", "install"]))).exits(4).says("git knows nothing of");
}

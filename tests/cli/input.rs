//! Bad input is told with its place, and nothing is started (issue § Bad input and faults; `CLI.md` § Exit status).

use serde_json::Value;

use crate::support::{Outcome, TestEnv};

/// Runs `up` and fails unless it refuses the input with exit 8, with all of `words` in its message or causes, and with
/// no container, volume or record made.
#[track_caller]
fn refuses(env: &TestEnv, words: &[&str]) -> Value {
    let error = env.run(&["up", "--json"]).exits(8).json_error();
    assert_eq!(error["kind"], "bad_input");
    let told = format!("{} {}", error["message"].as_str().unwrap(), error["causes"]);
    for word in words {
        assert!(told.contains(word), "`{word}` is missing in: {error}");
    }
    assert!(!env.state_dir().join("projects").exists(), "a record was made");
    error
}

/// An environment where Docker, if it is there, would be used.
fn environment(file: &str) -> TestEnv {
    let env = TestEnv::docker().unwrap_or_else(TestEnv::new);
    env.write("tfdev.toml", file);
    env
}

#[track_caller]
fn nothing_started(env: &TestEnv) {
    if env.has_docker() {
        assert_eq!(env.in_docker(), Vec::<String>::new());
    }
}

#[test]
fn mistakes_in_the_project_file_are_told_with_their_line_all_at_once() {
    for (file, words) in [
        ("\n[databse]\nname = \"x\"\n", &["tfdev.toml:2", "databse", "did you mean `database`"] as &[&str]),
        ("[database]\nport = \"many\"\n", &["tfdev.toml:2", "port"]),
        ("[database]\nnam = \"x\"\n", &["tfdev.toml:2", "database.nam", "`database.name`"]),
        ("[database]\nname = 3\n", &["tfdev.toml:2", "name"]),
        ("[profiles.dev]\n\nshared_buffers = \"12X\"\n", &["tfdev.toml:3", "shared_buffers", "12X", "128MB"]),
        ("[profiles.dev]\nwork_memm = \"4MB\"\n", &["tfdev.toml:2", "work_memm", "work_mem"]),
        ("project = \"../etc\"\n", &["tfdev.toml:1", "../etc"]),
        ("[database\n", &["tfdev.toml:1"]),
        ("project = \"../x\"\n[seed]\ndata = 1\n", &["tfdev.toml:1", "tfdev.toml:3"]),
        ("[seed]\ndataset = \"../../etc/passwd\"\n", &["tfdev.toml:2"]),
    ] {
        let env = environment(file);
        refuses(&env, words);
        nothing_started(&env);
    }
}

#[test]
fn a_project_file_that_is_no_text_is_told() {
    let env = environment("");
    env.write("tfdev.toml", b"project = \"x\"\n# caf\xe9\n");
    refuses(&env, &["tfdev.toml:2", "UTF-8"]);
    nothing_started(&env);
}

#[test]
fn unreadable_migrations_are_told_with_their_line() {
    for (name, text, words) in [
        ("1_bad.sql", b"SELECT 1;\nSELECT '\xff';\n".as_slice(), &["1_bad.sql", "line 2", "UTF-8"] as &[&str]),
        ("bad.sql", b"SELECT 1;\n", &["bad.sql"]),
    ] {
        let env = environment("[migrations]\ndir = \"db\"\n");
        env.write(&format!("db/{name}"), text);
        refuses(&env, words);
        nothing_started(&env);
    }
    let env = environment("[migrations]\ndir = \"nowhere\"\n");
    refuses(&env, &["nowhere"]);
    nothing_started(&env);
}

#[test]
fn broken_data_sets_are_told_with_their_line() {
    for (name, text, words) in [
        ("mine.toml", "users = 1\ntasks = \"many\"\n", &["mine.toml:2", "tasks"] as &[&str]),
        ("mine.toml", "users = 1\ntasks = 2\nuzers = 3\n", &["mine.toml:3", "uzers"]),
        ("mine.sql", "SELECT 1;\nSELECT 'never closed;\n", &["mine.sql:2"]),
    ] {
        let env = environment("[seed]\ndataset = \"mine\"\n");
        env.write(&format!("seeds/{name}"), text);
        refuses(&env, words);
        nothing_started(&env);
    }
}

#[test]
fn a_data_set_that_is_not_there_is_told_with_those_that_are() {
    let env = environment("");
    let error = env.run(&["up", "--json", "--dataset", "dem"]).exits(4).json_error();
    assert!(error.to_string().contains("demo"), "{error}");
    nothing_started(&env);
}

#[test]
fn flags_and_variables_are_checked_like_files() {
    let env = TestEnv::new();
    for (arguments, words) in [
        (&["up", "--port", "70000"] as &[&str], "`--port`"),
        (&["up", "--timeout", "soon"], "`--timeout`"),
        (&["up", "--instance", "../x"], "`--instance`"),
        (&["up", "--profile", "prdo"], "prod"),
        (&["up", "--image", "UPPER/../case"], "`--image`"),
        (&["up", "--dataset", "../x"], "`--dataset`"),
        (&["status", "--project-dir", "/nonexistent/folder"], "/nonexistent/folder"),
    ] {
        env.run(arguments).exits(8).says(words);
    }
}

/// Wrong usage: exit 2, told on standard error only.
fn usage(outcome: Outcome, words: &str) {
    assert_eq!(outcome.stdout, "");
    outcome.exits(2).says(words);
}

#[test]
fn wrong_usage_exits_with_2() {
    let env = TestEnv::new();
    usage(env.run(&["up", "--nonesuch"]), "--nonesuch");
    usage(env.run(&["upp"]), "upp");
    usage(env.run(&[]), "Usage:");
    usage(env.run(&["seed", "--append", "--replace"]), "--append");
    usage(env.run(&["completions", "nosh"]), "nosh");
    let error = env.run(&["up", "--nonesuch", "--json"]).exits(2).json_error();
    assert_eq!(error["kind"], "usage");
    assert!(error["message"].as_str().unwrap().contains("--nonesuch"), "{error}");
}

#[test]
fn a_question_without_a_terminal_is_refused() {
    let env = TestEnv::new();
    for command in [&["destroy"] as &[&str], &["destroy", "--all"], &["seed", "--replace"]] {
        let error = env.run(&[command, &["--json"]].concat()).exits(5).json_error();
        assert_eq!(error["kind"], "refused");
        assert!(error["hints"].to_string().contains("--yes"), "{error}");
    }
}

#[test]
fn flags_of_making_a_database_are_for_no_other_word_and_an_instance_is_for_all() {
    let env = environment("");
    env.run(&["fresh", "--ttl", "1m", "list"]).exits(2).says("`--ttl`").says("tfdev fresh create");
    env.run(&["fresh", "--instance", "other", "list"]).exits(4).says("`other`");
    env.run(&["fresh", "list", "--instance", "other"]).exits(4).says("`other`");
    nothing_started(&env);
}

//! Backups that are encrypted before they leave the machine.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use super::{Side, assert_prefix};
use crate::support::{Outcome, TestEngine, TestEnv, finish, one, query, run_on, start, until};

/// What must not be found in the store: a text, the name of a table and that of a role.
const SECRETS: [&str; 3] = ["the eagle has landed", "payroll_of_the_board", "auditor_of_the_board"];

/// Sets the lines of the section `[backup]` anew.
fn configure(env: &TestEnv, lines: &str) {
    let store = env.path("store");
    env.write(
        "tfdev.toml",
        format!("project = \"{}\"\n[backup]\nstore = \"file://{}\"\n{lines}", env.id, store.display()),
    );
}

/// Makes a key; its file and its public half.
fn key(env: &TestEnv, name: &str) -> (PathBuf, String) {
    let file = env.path(name);
    let made = env.run(&["--json", "backup", "key", file.to_str().unwrap()]).ok().json();
    (file, made["public_key"].as_str().unwrap().to_owned())
}

fn named(file: &Path) -> String {
    format!("encryption_key_file = \"{}\"\n", file.display())
}

/// The files of the store that hold one of these words, packed or not.
fn files_with(side: &Side<'_>, words: &[&str]) -> Vec<String> {
    let holds = |path: &String| {
        let bytes = std::fs::read(side.store.join(path)).unwrap();
        let unpacked = zstd::decode_all(bytes.as_slice()).unwrap_or_default();
        words
            .iter()
            .any(|word| [&bytes, &unpacked].iter().any(|text| text.windows(word.len()).any(|w| w == word.as_bytes())))
    };
    side.stored().into_iter().filter(holds).collect()
}

/// Makes one pass of the program that was ordered to die at `point`.
fn killed_at(env: &TestEnv, arguments: &[&str], point: &str) -> Outcome {
    let mut killed = env.command(arguments);
    killed.env("TFDEV_FAULT_POINT", format!("{point}=kill"));
    finish(start(killed))
}

#[test]
fn what_is_encrypted_shows_nothing_and_comes_back() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let (file, public) = key(env, "backup.key");
        env.run(&["backup", "key", file.to_str().unwrap()]).exits(6).says("never written over");
        let side = Side::up_with(env, &format!("store = \"file://{}\"\n{}", env.path("store").display(), named(&file)));
        query(&side.superuser(), "CREATE ROLE auditor_of_the_board");
        side.sql("CREATE TABLE payroll_of_the_board (note text)");
        side.sql("GRANT SELECT ON payroll_of_the_board TO auditor_of_the_board");
        side.sql("INSERT INTO payroll_of_the_board SELECT 'the eagle has landed' FROM generate_series(1, 5000)");
        side.add(1..=3);
        let made = side.backup(&["now"]).ok().json();
        side.add(4..=5);
        side.ship();
        assert_eq!(files_with(&side, &SECRETS), Vec::<String>::new());
        let stored = side.stored();
        assert!(stored.iter().any(|path| path.ends_with("base.tar.zst.age")), "{stored:?}");
        let log = |path: &&String| path.contains("/wal/");
        assert!(stored.iter().filter(log).all(|path| path.ends_with(".zst.age")), "{stored:?}");
        let listed = side.backup(&["list"]).ok().json();
        for index in [0, 1] {
            assert_eq!(listed[0]["backups"][index]["recipient"], json!(public), "{listed}");
            assert!(listed[0]["backups"][index]["tables"].as_u64().unwrap() > 3, "{listed}");
        }

        // The log that a kill left in the spool is known in the store again, though no two objects are alike.
        side.add_next();
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        assert!(!killed_at(env, &["backup", "agent", "--once"], "backup.ship.put").status.success());
        let before = side.stored();
        side.ship();
        let mut segments: Vec<String> = side.stored().iter().filter(log).map(|path| segment(path)).collect();
        assert!(before.iter().all(|path| side.stored().contains(path)), "what was there is not written again");
        let count = segments.len();
        segments.dedup();
        assert_eq!(segments.len(), count, "no segment is there twice");

        let restored = side.restore(&[], "restored");
        let url = restored["url"].as_str().unwrap();
        assert_prefix(url, 6);
        assert_eq!(one(url, "SELECT count(*) FROM payroll_of_the_board"), "5000");
        side.destroy("restored");
        let logical = made[0]["id"].as_str().unwrap();
        // The privilege is for a role that only this server has.
        side.sql("REVOKE ALL ON payroll_of_the_board FROM auditor_of_the_board");
        side.backup(&["restore", logical, "--as", "copy"]).says("auditor_of_the_board");
        side.backup(&["now", "--only", "logical"]).ok();
        let proven = side.backup(&["verify"]).ok().json();
        assert_eq!((&proven[0]["passed"], &proven[1]["passed"]), (&json!(true), &json!(true)), "{proven}");
        assert_eq!(files_with(&side, &SECRETS), Vec::<String>::new());
        let status = side.backup(&["status"]).ok().json();
        assert_eq!(status["alarms"], json!([]), "{status}");
        its_own_program_opens_it(&side, &file);
    });
}

fn segment(path: &str) -> String {
    path.rsplit('/').next().unwrap()[..24].to_owned()
}

/// If age is on this machine, it opens what we wrote.
fn its_own_program_opens_it(side: &Side<'_>, key: &Path) {
    let base = side.stored_with(&["base.tar.zst.age"]);
    let opened =
        Command::new("age").args(["--decrypt", "--identity"]).args([key, &base]).stderr(Stdio::null()).output();
    let Ok(opened) = opened else { return };
    assert!(opened.status.success());
    assert!(zstd::decode_all(opened.stdout.as_slice()).unwrap().len() > 1 << 20);
}

#[test]
fn keys_are_replaced_and_a_lost_one_is_named_and_loses_nothing() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        // In the clear first.
        let side = Side::up(env);
        side.add(1..=1);
        let clear = side.base();
        side.ship();
        let (first, first_public) = key(env, "first.key");
        configure(env, &named(&first));
        side.add(2..=2);
        side.ship();
        assert_prefix(side.restore(&[], "mixed")["url"].as_str().unwrap(), 2);
        side.destroy("mixed");
        let encrypted = side.base();

        // A new key on top; the old one still opens.
        let (second, second_public) = key(env, "second.key");
        let both = env.path("both.key");
        let text = |path: &Path| std::fs::read_to_string(path).unwrap();
        std::fs::copy(&second, &both).unwrap();
        std::fs::write(&both, text(&second) + &text(&first)).unwrap();
        configure(env, &named(&both));
        side.add(3..=3);
        side.ship();
        assert_prefix(side.restore(&[], "rotated")["url"].as_str().unwrap(), 3);
        side.destroy("rotated");
        side.backup(&["verify", &encrypted]).ok();
        let (listed, pruned) = (side.backup(&["list"]).ok().json(), side.backup(&["prune", "--dry-run"]).ok().json());

        // The old one is lost: what is its own is told, and nothing counts as damaged or goes for that.
        configure(env, &named(&second));
        for arguments in [&["restore", "--as", "other"][..], &["verify", &encrypted]] {
            side.backup(arguments).exits(4).says(&encrypted).says(&first_public).says("second.key");
        }
        assert_eq!(side.backup(&["prune", "--dry-run"]).ok().json(), pruned);
        let locked = side.backup(&["list"]).ok().json();
        assert_eq!(locked[0]["backups"][1]["verified"], listed[0]["backups"][1]["verified"], "it counts as proven");
        assert_eq!(locked[0]["damaged"], json!([]));
        assert!(side.backup(&["status"]).exits(1).stdout.contains(&first_public));
        assert_prefix(side.restore(&[&clear], "clear")["url"].as_str().unwrap(), 1);
        side.destroy("clear");
        // What is new is for the new key, and needs nothing of the old one.
        let last = side.base();
        assert_eq!(side.backup(&["list"]).json()[0]["backups"][2]["recipient"], json!(second_public));
        assert_prefix(side.restore(&[&last], "last")["url"].as_str().unwrap(), 3);
        side.destroy("last");

        // Without any key nothing goes in the clear to where the rest is encrypted.
        configure(env, "");
        side.add(4..=4);
        let stored = side.stored();
        side.backup(&["now"]).exits(5).says("encryption_key_file");
        one(&side.superuser(), "SELECT pg_switch_wal()");
        until("the log in the spool", || (!side.spooled().is_empty()).then_some(()));
        side.backup(&["agent", "--once"]).exits(1).says("no key is named");
        assert_eq!(side.stored(), stored);
        configure(env, &named(&env.path("lost.key")));
        side.backup(&["list"]).exits(4).says("tfdev backup key");
        std::fs::write(env.path("lost.key"), "AGE-SECRET-KEY-1NONSENSE").unwrap();
        side.backup(&["list"]).exits(5).says("chmod 600");
        configure(env, &named(&both));
        side.ship();
        assert_prefix(side.restore(&[], "whole")["url"].as_str().unwrap(), 4);
    });
}

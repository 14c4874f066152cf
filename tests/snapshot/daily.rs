//! What people do with snapshots (`CLI.md` § Commands).

use serde_json::json;

use super::{automatic, change, names, rows, snapshot, wait_for_order};
use crate::support::process::shell;
use crate::support::{TestEnv, finish, on_every_engine, one, query, start};

on_every_engine!(
    a_state_is_kept_and_comes_back_and_a_restore_can_be_undone,
    a_name_is_any_text_that_fits_on_a_line,
    the_last_three_automatic_snapshots_are_kept_and_none_if_so_wished,
    a_reset_goes_back_to_the_migrated_and_seeded_state,
    the_base_is_made_anew_when_the_migrations_change,
    snapshots_are_known_after_the_records_are_lost,
    two_restores_at_once_both_succeed,
    a_snapshot_goes_with_its_ready_copy,
);

fn a_state_is_kept_and_comes_back_and_a_restore_can_be_undone(env: &TestEnv) {
    env.run(&["snapshot", "list"]).exits(4);
    env.up();
    assert_eq!(names(env), Vec::<String>::new());
    env.run(&["snapshot", "restore", "nonesuch"]).exits(4).says("there are none yet");
    env.run(&["snapshot", "restore", "--undo"]).exits(4).says("no automatic snapshot");
    let before = rows(env);
    let created = snapshot(env, &["create", "before-split", "--note", "the big one"]);
    assert_eq!((&created["name"], &created["note"]), (&json!("before-split"), &json!("the big one")));
    assert_eq!((&created["migration"], &created["automatic"]), (&json!(20_260_101_000_003_i64), &json!(false)));
    assert!(created["postgres_version"].as_str().unwrap().starts_with("15."), "{created}");
    assert!(created["size_bytes"].as_u64().unwrap() > 5_000_000, "{created}");
    assert!(created["fingerprint"].is_string() && created["created_at"].is_string(), "{created}");
    assert_eq!(rows(env), before);
    change(env);
    let changed = rows(env);
    env.run(&["snapshot", "restore", "befor-split"]).exits(4).says("did you mean `before-split`?");

    let restored = snapshot(env, &["restore", "before-split"]);
    assert_eq!(restored["name"], json!("before-split"));
    // The server makes the ready copy when it can; on a busy machine it may not have begun.
    assert!(["standby", "copy"].contains(&restored["way"].as_str().unwrap()), "{restored}");
    assert_eq!(rows(env), before);
    assert_eq!(names(env), ["before-split", restored["kept_as"].as_str().unwrap()]);
    let undone = snapshot(env, &["restore", "--undo"]);
    assert_eq!((rows(env), &undone["way"]), (changed.clone(), &json!("rename")));
    snapshot(env, &["restore", "--undo"]);
    assert_eq!(rows(env), before, "an undo can be undone");
    snapshot(env, &["restore", "--undo"]);
    assert_eq!(rows(env), changed);
    assert_eq!(names(env).len(), 2);

    let status = env.status();
    assert_eq!(status["snapshots"][0]["name"], json!("before-split"));
    assert!(env.run(&["status"]).ok().stdout.contains("snapshots   2, the last one `auto-"));
    assert!(env.run(&["snapshot", "list"]).ok().stdout.contains("the big one"));
    wait_for_order(env);
}

fn a_name_is_any_text_that_fits_on_a_line(env: &TestEnv) {
    env.up();
    let long = "x".repeat(200);
    let bytes = "ü".repeat(40);
    let fine = ["'; DROP DATABASE taskflow; --", "../x", "Case", "case", &bytes, &long, "日本語 name", "-"];
    for name in fine {
        assert_eq!(snapshot(env, &["create", name])["name"], json!(name));
    }
    assert_eq!(names(env), fine);
    for name in ["", " ", "a\nb", "\u{1b}[31m", "\u{85}", &"x".repeat(201)] {
        env.run(&["snapshot", "create", name]).exits(8).says("the name of a snapshot");
        env.run(&["snapshot", "rename", "case", name]).exits(8);
    }
    env.run(&["snapshot", "create", "case"]).exits(6).says("there is a snapshot `case` already");
    env.run(&["snapshot", "rename", "case", "Case"]).exits(6);
    env.run(&["snapshot", "rename", "none", "other"]).exits(4);
    snapshot(env, &["rename", "../x", "/etc/passwd"]);
    env.run(&["snapshot", "delete", "case", "none"]).exits(4);
    assert_eq!(names(env).len(), fine.len(), "all or none are deleted");
    let before = rows(env);
    change(env);
    snapshot(env, &["restore", fine[0]]);
    assert_eq!(rows(env), before);
    let all = names(env);
    let delete: Vec<&str> = ["delete"].into_iter().chain(all.iter().map(String::as_str)).collect();
    // The one called `-` is no flag, and none of the others is.
    assert_eq!(snapshot(env, &delete).as_array().unwrap().len(), all.len());
    assert_eq!(names(env), Vec::<String>::new());
    assert_eq!(rows(env), before);
    let unnamed = snapshot(env, &["create"])["name"].as_str().unwrap().to_owned();
    assert!(unnamed.starts_with("20") && unnamed.ends_with(" UTC"), "{unnamed}");
    wait_for_order(env);
}

fn the_last_three_automatic_snapshots_are_kept_and_none_if_so_wished(env: &TestEnv) {
    env.up();
    snapshot(env, &["create", "a"]);
    let before = rows(env);
    let mut kept = Vec::new();
    for _ in 0..5 {
        change(env);
        kept.push(snapshot(env, &["restore", "a"])["kept_as"].as_str().unwrap().to_owned());
    }
    assert_eq!(automatic(env), kept[2..]);
    // One that has a name of its own is kept like any other.
    snapshot(env, &["rename", &kept[2], "kept"]);
    change(env);
    snapshot(env, &["restore", "a"]);
    change(env);
    snapshot(env, &["restore", "a"]);
    assert_eq!(automatic(env).len(), 3);
    assert!(names(env).contains(&"kept".to_owned()));

    env.write("tfdev.toml", "[snapshots]\nauto = 0\nstandby = false\n");
    change(env);
    env.run(&["snapshot", "restore", "a"]).exits(5).says("--yes");
    let restored = snapshot(env, &["restore", "a", "--yes"]);
    assert_eq!((&restored["kept_as"], &restored["way"]), (&json!(null), &json!("standby")));
    assert_eq!((rows(env), automatic(env)), (before, Vec::new()));
    assert_eq!(snapshot(env, &["restore", "a", "--yes"])["way"], json!("copy"), "no ready copy is kept");
    env.run(&["snapshot", "restore", "--undo", "--yes"]).exits(4);
    assert_eq!(names(env), ["a", "kept"]);
    wait_for_order(env);
}

fn a_reset_goes_back_to_the_migrated_and_seeded_state(env: &TestEnv) {
    env.up();
    let fresh = "SELECT count(*) || ' ' || (SELECT count(*) FROM tasks) FROM users";
    query(&env.url(), "DELETE FROM tasks; CREATE TABLE extra ()");
    let changed = rows(env);
    env.run(&["reset", "--dataset", "small"]).exits(5).says("--yes");
    assert_eq!(rows(env), changed);
    let reset = env.run(&["reset", "--dataset", "small", "--yes", "--json"]).ok().json();
    assert_eq!((&reset["base_built"], &reset["name"]), (&json!(true), &json!(null)));
    assert_eq!(one(&env.url(), fresh), "10 50");
    assert_eq!(one(&env.url(), "SELECT to_regclass('extra') IS NULL"), "t");
    assert_eq!(one(&env.url(), "SELECT tableowner FROM pg_tables WHERE tablename = 'tasks'"), env.user());
    snapshot(env, &["restore", "--undo"]);
    assert_eq!(rows(env), changed);
    let again = env.run(&["reset", "--dataset", "small", "--yes", "--json"]).ok().json();
    assert_eq!((&again["base_built"], &again["way"]), (&json!(false), &json!("standby")));
    assert_eq!(one(&env.url(), fresh), "10 50");
    let up = env.run(&["up", "--dataset", "small", "--json"]).ok().json();
    assert_eq!((&up["seed"]["applied"], &up["migrations"]["applied"]), (&json!(false), &json!(3)));
    // Another data set is another base, and the old one goes.
    env.run(&["reset", "--dataset", "none", "--yes"]).ok();
    assert_eq!(one(&env.url(), fresh), "0 0");
    assert_eq!(automatic(env).len(), 3);
    wait_for_order(env);
}

fn the_base_is_made_anew_when_the_migrations_change(env: &TestEnv) {
    env.write("tfdev.toml", "[migrations]\ndir = \"db\"\n[seed]\ndataset = \"none\"\n");
    env.write("db/1_first.sql", "CREATE TABLE first ();\n");
    env.run(&["up"]).ok();
    let built = |env: &TestEnv| env.run(&["reset", "--yes", "--json"]).ok().json()["base_built"].clone();
    assert_eq!(built(env), json!(true));
    assert_eq!(built(env), json!(false));
    env.write("db/2_second.sql", "CREATE TABLE second ();\n");
    assert_eq!(built(env), json!(true));
    assert_eq!(one(&env.url(), "SELECT count(*) FROM second"), "0");
    env.write("db/3_broken.sql", "CREATE TABEL third ();\n");
    query(&env.url(), "CREATE TABLE mine ()");
    env.run(&["reset", "--yes"]).exits(8).says("3_broken.sql");
    assert_eq!(one(&env.url(), "SELECT count(*) FROM mine"), "0", "a reset that fails changes nothing");
    std::fs::remove_file(env.project.join("db/3_broken.sql")).unwrap();
    assert_eq!(built(env), json!(false), "the base before is still there");
    wait_for_order(env);
}

fn snapshots_are_known_after_the_records_are_lost(env: &TestEnv) {
    shell(&format!(
        "cd {0} && git init -q -b trunk . && \
         git -c safe.directory=* -c user.name=a -c user.email=a@b commit -q --allow-empty -m a && \
         chown -R --reference={0} .git",
        env.project.display()
    ));
    env.up();
    let made = snapshot(env, &["create", "kept"]);
    let before = rows(env);
    env.run(&["down"]).ok();
    env.lose_records();
    env.up();
    let list = snapshot(env, &["list"]);
    let mut kept = list["snapshots"][0].clone();
    for key in ["name", "created_at", "size_bytes", "fingerprint", "migration", "git_branch", "git_commit"] {
        assert_eq!(kept[key], made[key], "{key}");
    }
    if env.engine() != crate::support::TestEngine::NativeUser {
        // git does not trust another user's checkout.
        assert_eq!(kept["git_branch"].take(), json!("trunk"));
    }
    change(env);
    snapshot(env, &["restore", "kept"]);
    assert_eq!(rows(env), before);
}

fn two_restores_at_once_both_succeed(env: &TestEnv) {
    env.up();
    snapshot(env, &["create", "a"]);
    let a = rows(env);
    change(env);
    snapshot(env, &["create", "b"]);
    let b = rows(env);
    for _ in 0..3 {
        let both = ["a", "b"].map(|name| start(env.command(&["snapshot", "restore", name, "--json"])));
        for running in both {
            finish(running).ok();
        }
        let now = rows(env);
        assert!(now == a || now == b);
    }
    wait_for_order(env);
}

fn a_snapshot_goes_with_its_ready_copy(env: &TestEnv) {
    env.up();
    snapshot(env, &["create", "a"]);
    // At once: the server may still be making the copy.
    snapshot(env, &["delete", "a"]);
    wait_for_order(env);
    assert_eq!(names(env), Vec::<String>::new());
    snapshot(env, &["create", "a"]);
    snapshot(env, &["restore", "a"]);
    wait_for_order(env);
}

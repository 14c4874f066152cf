//! Seeds and migrations through the command line (`CLI.md` § Commands; `FAILURES.md` § Migrations). What their SQL does
//! is tested where it is made.

use serde_json::json;

use crate::support::{TestEnv, on_every_engine, one, query};

on_every_engine!(
    a_data_set_is_loaded_into_an_empty_database_only,
    the_same_data_set_is_the_same_everywhere,
    a_project_has_migrations_and_sql_rows_of_its_own,
    a_migration_that_fails_says_where_and_the_next_run_goes_on,
    an_older_migration_is_told_and_refused_if_asked,
);

fn a_data_set_is_loaded_into_an_empty_database_only(env: &TestEnv) {
    let up = env.run(&["up", "--json", "--dataset", "none"]).ok().json();
    assert_eq!(up["seed"], json!(null));
    let url = env.url();
    let users = || one(&url, "SELECT count(*) FROM users");
    assert_eq!(users(), "0");

    let seeded = env.run(&["seed", "--json", "--dataset", "small"]).ok().json();
    assert_eq!((&seeded["users"], &seeded["tasks"]), (&json!(10), &json!(50)));
    env.run(&["seed", "--dataset", "small"]).exits(5).says("--append");
    assert_eq!(users(), "10");

    env.run(&["seed", "--dataset", "small", "--rng", "7", "--append"]).ok();
    assert_eq!(users(), "20");
    env.run(&["seed", "--dataset", "small", "--replace"]).exits(5).says("--yes");
    assert_eq!(users(), "20");
    env.run(&["seed", "--dataset", "small", "--users", "3", "--tasks", "4", "--replace", "--yes"]).ok();
    assert_eq!((users(), one(&url, "SELECT count(*) FROM tasks")), ("3".into(), "4".into()));
    env.run(&["seed", "--dataset", "none"]).exits(2);
    env.run(&["seed", "--dataset", "nonesuch"]).exits(4).says("small");

    // What `up` finds there is neither replaced nor doubled.
    assert_eq!(env.run(&["up", "--json"]).ok().json()["seed"]["applied"], json!(false));
    assert_eq!(users(), "3");
}

fn the_same_data_set_is_the_same_everywhere(env: &TestEnv) {
    env.up();
    let print = "SELECT md5(string_agg(t::text, ',' ORDER BY id)) FROM tasks t";
    let here = one(&env.url(), print);
    env.write("tfdev.toml", "[database]\nname = \"second\"\n");
    let there = env.run(&["up", "--json", "--instance", "test", "--dataset", "small"]).ok().json();
    assert_eq!(one(there["url"].as_str().unwrap(), print), here);
}

/// A project with a schema and rows of its own.
const OWN_PROJECT: &str = "[database]\nname = \"shop\"\nuser = \"clerk\"\n\n[migrations]\ndir = \"db\"\n\n\
                           [seed]\ndataset = \"fruit\"\n";

fn a_project_has_migrations_and_sql_rows_of_its_own(env: &TestEnv) {
    env.write("tfdev.toml", OWN_PROJECT);
    env.write("db/20260101000000_fruit.sql", "CREATE TABLE fruit (name text PRIMARY KEY);\n");
    env.write("seeds/fruit.sql", "INSERT INTO fruit VALUES ('apple');\nINSERT INTO fruit VALUES ('pear');\n");
    let up = env.run(&["up", "--json"]).ok().json();
    assert_eq!(up["migrations"], json!({ "applied": 1, "total": 1 }));
    assert_eq!((&up["seed"]["dataset"], &up["seed"]["applied"]), (&json!("fruit"), &json!(true)));
    let url = up["url"].as_str().unwrap();
    assert_eq!(query(url, "SELECT name FROM fruit ORDER BY name"), ["apple", "pear"]);
    assert_eq!(
        one(url, "SELECT current_user || '@' || current_database()"),
        if env.engine().runs_the_server() { "clerk@shop" } else { "dev@shop" }
    );

    let made = env.run(&["migrate", "new", "add price", "--json"]).ok().json();
    let file = std::path::Path::new(made["file"].as_str().unwrap()).to_owned();
    assert!(file.starts_with(env.project.join("db")), "{}", file.display());
    std::fs::write(&file, "ALTER TABLE fruit ADD COLUMN price int;\n").unwrap();
    let status = env.run(&["migrate", "status", "--json"]).ok().json();
    assert_eq!((&status["applied"], &status["total"]), (&json!(1), &json!(2)));
    assert!(env.run(&["migrate", "status"]).ok().stdout.contains("pending"));
    env.run(&["migrate", "run"]).ok();
    assert_eq!(env.run(&["migrate", "run", "--json"]).ok().json()["applied_now"], json!([]));
    assert_eq!(one(url, "SELECT count(*) FROM fruit WHERE price IS NULL"), "2");
    assert_eq!(query(url, "SELECT success FROM _sqlx_migrations ORDER BY version"), ["t", "t"], "sqlx reads this");
    let again = env.run(&["up", "--json"]).ok().json();
    assert_eq!(again["seed"]["applied"], json!(false));
    assert_eq!(one(url, "SELECT count(*) FROM fruit"), "2");
}

fn a_migration_that_fails_says_where_and_the_next_run_goes_on(env: &TestEnv) {
    env.write("tfdev.toml", OWN_PROJECT);
    env.write("seeds/fruit.sql", "INSERT INTO fruit VALUES ('apple');\n");
    env.write("db/20260101000000_fruit.sql", "CREATE TABLE fruit (name text PRIMARY KEY);\n");
    env.write("db/20260102000000_broken.sql", "CREATE TABLE fine ();\nCREATE TABEL wrong ();\n");
    let outcome = env.run(&["up", "--json"]).exits(8);
    let error = outcome.json_error();
    let told = error.to_string();
    assert!(told.contains("20260102000000_broken.sql`, line 2") && told.contains("TABEL"), "{told}");
    assert_eq!(env.state(), "running", "the server is there to look at");
    env.write("db/20260102000000_broken.sql", "CREATE TABLE fine ();\n");
    let mended = env.run(&["up", "--json"]).ok();
    assert!(mended.elapsed.as_secs() < 10, "no lock is left over: {:?}", mended.elapsed);
    assert_eq!(mended.json()["migrations"], json!({ "applied": 2, "total": 2 }));

    env.write("db/20260101000000_fruit.sql", "CREATE TABLE fruit (name varchar PRIMARY KEY);\n");
    env.run(&["up"]).exits(8).says("20260101000000");
    env.write("db/20260101000000_fruit.sql", "CREATE TABLE fruit (name text PRIMARY KEY);\r\n");
    let crlf = env.run(&["migrate", "run"]);
    assert!(
        crlf.status.success() || crlf.stderr.to_uppercase().contains("CRLF") || crlf.stderr.contains("line end"),
        "line ends are not a changed migration: {}",
        crlf.stderr
    );
}

fn an_older_migration_is_told_and_refused_if_asked(env: &TestEnv) {
    env.write("tfdev.toml", "[migrations]\ndir = \"db\"\n[seed]\ndataset = \"none\"\n");
    env.write("db/2_second.sql", "CREATE TABLE second ();\n");
    env.run(&["up"]).ok();
    env.write("db/1_first.sql", "CREATE TABLE first ();\n");
    env.run(&["migrate", "run", "--strict"]).exits(5).says("1");
    env.run(&["migrate", "run"]).ok().says("warning:");
    assert_eq!(query(&env.url(), "SELECT version FROM _sqlx_migrations ORDER BY version"), ["1", "2"]);
}

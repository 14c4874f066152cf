//! Every row of IntegreSQL's table of calls, and what its clients count on beside it, byte by byte.

use serde_json::{Value, json};

use super::http::{Served, url_of};
use super::{exists, fresh_databases_of, instance_url};
use crate::support::{Session, TestEnv, on_every_engine, one, query, try_query, until};

on_every_engine!(
    every_call_of_integresql_answers_as_its_clients_expect,
    calls_work_as_well_within_the_twenty_connections_of_the_instance_dev,
);

const TEMPLATES: &str = "/api/v1/templates";

/// A template with one table, by two calls.
fn template(served: &Served, hash: &str) {
    let begun = begin(served, hash);
    query(&url_of(&begun["database"]["config"]), "CREATE TABLE notes (text text)");
    served.call("PUT", &format!("{TEMPLATES}/{hash}"), "null").is(204);
}

fn begin(served: &Served, hash: &str) -> Value {
    let begun = served.call("POST", TEMPLATES, &json!({ "hash": hash }).to_string()).is(200).json();
    assert_eq!(begun["database"]["templateHash"], hash);
    begun
}

/// A template that is discarded as soon as it is finished; the URL of its database.
fn let_go_at_once(served: &Served, hash: &str) -> String {
    let begun = begin(served, hash);
    served.call("PUT", &format!("{TEMPLATES}/{hash}"), "").is(204);
    served.call("DELETE", &format!("{TEMPLATES}/{hash}"), "").is(204);
    url_of(&begun["database"]["config"])
}

fn take(served: &Served, hash: &str) -> (i64, String) {
    let test = served.get(&format!("{TEMPLATES}/{hash}/tests")).is(200).json();
    assert_eq!(test["database"]["templateHash"], hash);
    (test["id"].as_i64().unwrap(), url_of(&test["database"]["config"]))
}

fn every_call_of_integresql_answers_as_its_clients_expect(env: &TestEnv) {
    calls_answer_on(env, "test");
}

fn calls_work_as_well_within_the_twenty_connections_of_the_instance_dev(env: &TestEnv) {
    calls_answer_on(env, "dev");
}

fn calls_answer_on(env: &TestEnv, instance: &str) {
    let served = Served::start_with(env, &["--instance", instance]);
    let url = instance_url(env, instance);
    templates_are_begun_filled_and_finished(&served);
    databases_are_handed_out_and_given_back(&served, &url);
    templates_are_discarded(&served, &url);
    served.get("/api/v1/other").is(404);
    served.call("PATCH", TEMPLATES, "{}").is(405);
    assert!(served.end_by("TERM").success());
    // What the server was still making ahead, it goes on with.
    until("nothing to be left but what is ready", || {
        env.run(&["fresh", "--instance", instance, "gc"]).ok();
        fresh_databases_of(env, instance, |stage| stage != "free").is_empty().then_some(())
    });
}

fn templates_are_begun_filled_and_finished(served: &Served) {
    for wrong in [r#"{"hash":""}"#, "{}", "null", r#""""#, "", "{", "[]", r#"{"hash":1}"#] {
        served.call("POST", TEMPLATES, wrong).is(400);
    }
    let unknown = format!("{TEMPLATES}/unknown");
    for (method, path) in [
        ("PUT", unknown.clone()),
        ("DELETE", unknown.clone()),
        ("GET", format!("{unknown}/tests")),
        ("POST", format!("{unknown}/tests/0/unlock")),
        ("DELETE", format!("{unknown}/tests/0")),
        ("POST", format!("{unknown}/tests/0/recreate")),
    ] {
        served.call(method, &path, "").is(404);
    }

    let begun = begin(served, "first");
    let url = url_of(&begun["database"]["config"]);
    served.call("POST", TEMPLATES, r#"{"hash":"first"}"#).is(423);
    served.call("POST", &format!("{TEMPLATES}/first/tests/0/unlock"), "").is(423);
    served.call("POST", &format!("{TEMPLATES}/first/tests/0/recreate"), "").is(423);
    let waits = served.begin("GET", &format!("{TEMPLATES}/first/tests"), &[], "");
    waits.is_waiting();
    // A session that stays open is no reason not to finish.
    let mut session = Session::open(&url);
    session.run("CREATE TABLE notes (text text); INSERT INTO notes VALUES ('of the template')");
    served.call("PUT", &format!("{TEMPLATES}/first"), "null").is(204);
    served.call("PUT", &format!("{TEMPLATES}/first"), "").is(204);
    try_query(&url, "SELECT 1").unwrap_err();
    served.call("POST", TEMPLATES, r#"{"hash":"first"}"#).is(423);
    let test = waits.reply().is(200).json();
    assert_eq!((&test["id"], &test["database"]["templateHash"]), (&json!(0), &json!("first")));
    assert_eq!(one(&url_of(&test["database"]["config"]), "SELECT text FROM notes"), "of the template");

    // Forms, slashes at the end, and letters that an address cannot have as they are.
    let form = [("Content-Type", "application/x-www-form-urlencoded")];
    let begun = served.call_with("POST", &format!("{TEMPLATES}/"), &form, "hash=a+form%2Fhash").is(200).json();
    assert_eq!(begun["database"]["templateHash"], "a form/hash");
    served.call("PUT", &format!("{TEMPLATES}/a%20form%2Fhash/"), r#""""#).is(204);
    let test = served.get(&format!("{TEMPLATES}/a%20form%2Fhash/tests/")).is(200).json();
    assert_eq!((&test["id"], &test["database"]["templateHash"]), (&json!(0), &json!("a form/hash")));

    let named = served.call_with("GET", "/healthz", &[("X-Request-ID", "call-7")], "").is(200);
    assert_eq!(named.header("x-request-id"), Some("call-7"));
}

fn databases_are_handed_out_and_given_back(served: &Served, instance: &str) {
    template(served, "tests");
    let tests = format!("{TEMPLATES}/tests/tests");
    let ((first, first_url), (second, second_url)) = (take(served, "tests"), take(served, "tests"));
    assert_eq!((first, second), (0, 1));
    assert_ne!(first_url, second_url);
    query(&first_url, "INSERT INTO notes VALUES ('mine')");
    assert_eq!(one(&second_url, "SELECT count(*) FROM notes"), "0");

    // Unlocked: the same again, as it is. Once more is no error, by either name of the call.
    served.call("POST", &format!("{tests}/{first}/unlock"), r#""""#).is(204);
    served.call("POST", &format!("{tests}/{first}/unlock"), "").is(204);
    assert_eq!(take(served, "tests"), (first, first_url.clone()));
    assert_eq!(one(&first_url, "SELECT text FROM notes"), "mine");
    served.call("DELETE", &format!("{tests}/{second}"), "").is(204);
    served.call("DELETE", &format!("{tests}/{second}/"), "").is(204);
    assert_eq!(take(served, "tests"), (second, second_url.clone()));

    // Recreated: gone, but not under somebody who is connected.
    let mut session = Session::open(&first_url);
    served.call("POST", &format!("{tests}/{first}/recreate"), r#""""#).is(204);
    served.call("POST", &format!("{tests}/{second}/recreate"), "").is(204);
    until("the second one to go", || (!exists(instance, &second_url)).then_some(()));
    session.run("INSERT INTO notes VALUES ('still there')");
    drop(session);
    until("the first one to go", || (!exists(instance, &first_url)).then_some(()));
    served.call("POST", &format!("{tests}/{first}/recreate"), "").is(204);
    served.call("POST", &format!("{tests}/{first}/unlock"), "").is(204);
    let (third, third_url) = take(served, "tests");
    assert_eq!(one(&third_url, "SELECT count(*) FROM notes"), "0");

    for id in [third + 1, -1, i64::MAX] {
        for call in ["unlock", "recreate"] {
            served.call("POST", &format!("{tests}/{id}/{call}"), "").is(404);
        }
    }
    for id in ["x", "1.5", "99999999999999999999", "%22"] {
        served.call("POST", &format!("{tests}/{id}/unlock"), "").is(400);
        served.call("POST", &format!("{tests}/{id}/recreate"), "").is(400);
        served.call("DELETE", &format!("{tests}/{id}"), "").is(400);
    }
}

fn templates_are_discarded(served: &Served, instance: &str) {
    // While somebody waits for it.
    let begun = begin(served, "gone");
    let waits = served.begin("GET", &format!("{TEMPLATES}/gone/tests"), &[], "");
    waits.is_waiting();
    served.call("DELETE", &format!("{TEMPLATES}/gone"), "").is(204);
    waits.reply().is(410);
    assert!(!exists(instance, &url_of(&begun["database"]["config"])));
    served.call("DELETE", &format!("{TEMPLATES}/gone"), "").is(404);
    served.get(&format!("{TEMPLATES}/gone/tests")).is(404);
    // With its databases, one of them in use.
    template(served, "gone");
    let (_, url) = take(served, "gone");
    let _session = Session::open(&url);
    served.call("DELETE", &format!("{TEMPLATES}/gone"), "").is(204);
    until("the discarded template's database to go", || (!exists(instance, &url)).then_some(()));
    // While copies of it are being made ahead.
    let soon: Vec<String> = (0..3).map(|number| let_go_at_once(served, &format!("soon{number}"))).collect();
    until("templates that were let go at once to go", || (!soon.iter().any(|url| exists(instance, url))).then_some(()));
    // All of them.
    let (_, url) = take(served, "tests");
    begin(served, "begun");
    served.call("DELETE", "/api/v1/admin/templates", "").is(204);
    until("the forgotten template's database to go", || (!exists(instance, &url)).then_some(()));
    for hash in ["first", "tests", "begun"] {
        served.get(&format!("{TEMPLATES}/{hash}/tests")).is(404);
    }
    template(served, "tests");
    assert_eq!(take(served, "tests").0, 0);
}

//! Clients that send nonsense, forget, or go away; and a service that ends, in order or not.

use serde_json::json;

use super::http::{Call, Served, url_of};
use super::{exists, fresh_databases, instance_url};
use crate::support::{Session, TestEngine, TestEnv, one, query, run_on, until};

const TEMPLATES: &str = "/api/v1/templates";

fn template(served: &Served, hash: &str) {
    let begun = served.call("POST", TEMPLATES, &json!({ "hash": hash }).to_string()).is(200).json();
    query(&url_of(&begun["database"]["config"]), "CREATE TABLE notes (text text)");
    served.call("PUT", &format!("{TEMPLATES}/{hash}"), "").is(204);
}

/// Sends a call for a test database.
fn ask(served: &Served, hash: &str) -> Call {
    served.begin("GET", &format!("{TEMPLATES}/{hash}/tests"), &[], "")
}

fn take(served: &Served, hash: &str) -> (i64, String) {
    let test = ask(served, hash).reply().is(200).json();
    (test["id"].as_i64().unwrap(), url_of(&test["database"]["config"]))
}

#[test]
fn nonsense_is_refused_and_leaves_nothing() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let served = Served::start(env);
        served.get("/healthz").is(200);
        let instance = instance_url(env, "test");
        let databases = || query(&instance, "SELECT datname FROM pg_database ORDER BY 1");
        let before = databases();
        let long = "h".repeat(1 << 20);
        served.call("POST", TEMPLATES, &json!({ "hash": long }).to_string()).is(400);
        served.call("POST", TEMPLATES, &json!({ "hash": "h".repeat(3 << 20) }).to_string()).is(413);
        for hash in ["it's", "a\"b", "a`b", "a\\b", "a\nb", "a\0b", "\u{7f}"] {
            served.call("POST", TEMPLATES, &json!({ "hash": hash }).to_string()).is(400);
        }
        for path in ["it's", "%27%3B%20DROP%20DATABASE%20postgres", "%22", "%00", "..", "%2e%2e"] {
            served.get(&format!("{TEMPLATES}/{path}/tests")).is(404);
            served.call("PUT", &format!("{TEMPLATES}/{path}"), "").is(404);
            served.call("DELETE", &format!("{TEMPLATES}/{path}"), "").is(404);
        }
        served.get(&format!("{TEMPLATES}/%ff/tests")).is(400);
        served.get(&format!("{TEMPLATES}/{}/tests", "h".repeat(60_000))).is(404);
        // Not HTTP at all, and one that breaks off.
        for bytes in ["\u{1}\u{2}\u{3}\r\n\r\n", "GET /fresh HTTP/1.1\r\nHost"] {
            use std::io::Write;
            std::net::TcpStream::connect(&served.address).unwrap().write_all(bytes.as_bytes()).unwrap();
        }
        assert_eq!(databases(), before);
        assert_eq!(served.metric(r#"tfdev_serve_templates{stage="filling"}"#), 0);

        // More templates at once than there are places for clients that fill them.
        for number in 0..16 {
            served.call("POST", TEMPLATES, &json!({ "hash": format!("many {number}") }).to_string()).is(200);
        }
        served.call("POST", TEMPLATES, r#"{"hash":"one too many"}"#).is(503);
        served.call("DELETE", "/api/v1/admin/templates", "").is(204);
        assert_eq!(databases(), before);
        template(&served, "another");
    });
}

#[test]
fn databases_that_clients_forget_make_room_but_none_that_is_in_use() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        env.write("tfdev.toml", "[fresh]\nmax_databases = 3\n");
        let served = Served::start(env);
        template(&served, "forgetful");
        let (_, in_use) = take(&served, "forgetful");
        let mut session = Session::open(&in_use);
        // Nobody gives one back.
        for number in 1..10 {
            let (id, url) = take(&served, "forgetful");
            assert_eq!(id, number);
            assert_eq!(one(&url, "SELECT count(*) FROM notes"), "0");
            query(&url, "INSERT INTO notes VALUES ('mine')");
        }
        session.run("INSERT INTO notes VALUES ('still mine')");
        assert!(served.metric("tfdev_serve_recycled_total") >= 6);

        // A client that goes away while it waits: what it would have got is free for the next one.
        // Connected to at once, so that neither makes room for the other.
        let connected = || Session::open(&take(&served, "forgetful").1);
        let sessions = [connected(), connected()];
        let waits = ask(&served, "forgetful");
        waits.is_waiting();
        drop(waits);
        drop(sessions);
        until("the unclaimed database to be free", || {
            (served.metric(r#"tfdev_serve_databases{state="unlocked"}"#) > 0).then_some(())
        });
        let (_, url) = take(&served, "forgetful");
        assert_eq!(one(&url, "SELECT count(*) FROM notes"), "0");
        // One of another door finds room as well: what clients unlocked goes first.
        served.get("/fresh").is(200);
        session.run("INSERT INTO notes VALUES ('mine to the end')");
    });
}

#[test]
fn a_service_that_ends_leaves_nothing_but_finished_templates() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let served = Served::start(env);
        let instance = instance_url(env, "test");
        template(&served, "kept");
        let (_, url) = take(&served, "kept");
        let begun = served.call("POST", TEMPLATES, r#"{"hash":"unfinished"}"#).is(200).json();
        let draft = url_of(&begun["database"]["config"]);
        let waits = ask(&served, "unfinished");
        waits.is_waiting();
        let lease = served.get("/fresh").is(200).json();
        let _session = Session::open(&url);
        assert!(served.end_by("TERM").success());
        // Whoever waited hears of it: that it is over, or that the template went first.
        let told = waits.reply();
        assert!(told.json()["message"].is_string(), "{told:?}");
        for url in [url.as_str(), draft.as_str(), lease["url"].as_str().unwrap()] {
            assert!(!exists(&instance, url), "{url}");
        }
        assert_eq!(fresh_databases(env, |stage| stage != "free"), Vec::<String>::new());

        let mut killed = Served::start(env);
        killed.call("POST", TEMPLATES, r#"{"hash":"kept"}"#).is(423);
        let (id, url) = take(&killed, "kept");
        assert_eq!(id, 0);
        let lease = killed.get("/fresh").is(200).json();
        let begun = killed.call("POST", TEMPLATES, r#"{"hash":"unfinished"}"#).is(200).json();
        killed.child.kill().unwrap();
        killed.child.wait().unwrap();
        assert!(exists(&instance, &url));

        let next = Served::start(env);
        for url in [url.as_str(), lease["url"].as_str().unwrap()] {
            until("a killed service's database to go", || (!exists(&instance, url)).then_some(()));
        }
        // What it had begun is begun anew, and what was finished is there.
        next.call("POST", TEMPLATES, r#"{"hash":"unfinished"}"#).is(200);
        assert!(!exists(&instance, &url_of(&begun["database"]["config"])));
        let (id, url) = take(&next, "kept");
        assert_eq!((id, one(&url, "SELECT count(*) FROM notes").as_str()), (0, "0"));
        next.call("POST", &format!("{TEMPLATES}/kept/tests/0/recreate"), "").is(204);
        assert!(next.end_by("HUP").success());
    });
}

#[test]
fn two_services_share_templates_and_an_instance_that_was_stopped_is_started_by_the_next_call() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let (one_, other) = (Served::start(env), Served::start(env));
        let begun = one_.call("POST", TEMPLATES, r#"{"hash":"shared"}"#).is(200).json();
        other.call("POST", TEMPLATES, r#"{"hash":"shared"}"#).is(423);
        other.call("DELETE", &format!("{TEMPLATES}/shared"), "").is(423);
        let waits = ask(&other, "shared");
        waits.is_waiting();
        query(&url_of(&begun["database"]["config"]), "CREATE TABLE notes (text text)");
        one_.call("PUT", &format!("{TEMPLATES}/shared"), "").is(204);
        let test = waits.reply().is(200).json();
        assert_eq!(one(&url_of(&test["database"]["config"]), "SELECT count(*) FROM notes"), "0");

        let lease = one_.get("/fresh").is(200).json();
        env.run(&["down", "--instance", "test"]).ok();
        // With the server gone there is nothing to give back, and nothing to wait for.
        assert!(other.end_by("TERM").success());
        // Its data was in memory, so what comes next is a new server.
        let again = until("the service to find the instance again", || {
            let reply = one_.get("/fresh");
            (!reply.body.contains("message")).then(|| reply.is(200).json())
        });
        assert_ne!(again["id"], lease["id"]);
        assert_eq!(one(again["url"].as_str().unwrap(), "SELECT count(*) FROM tasks"), "0");
        one_.get(&format!("{TEMPLATES}/shared/tests")).is(404);
        template(&one_, "shared");
    });
}

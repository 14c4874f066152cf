//! The service's own calls: leases, health, metrics, the description; and who may call.

use std::path::Path;

use serde_json::json;

use super::http::{Served, url_of};
use super::{exists, instance_url};
use crate::support::{TestEngine, TestEnv, one, query, run_on, until};

#[test]
fn a_lease_is_had_in_one_call_and_ends_in_time() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        env.write("tfdev.toml", "[migrations]\ndir = \"migrations\"\n");
        for name in ["20260101000001_users", "20260101000002_tasks", "20260101000003_task_notifications"] {
            let file = format!("migrations/{name}.sql");
            let text = std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(&file)).unwrap();
            env.write(&file, text);
        }
        let served = Served::start(env);
        let fresh = served.get("/fresh").is(200);
        assert_eq!(fresh.header("cache-control"), Some("no-store"));
        let fresh = fresh.json();
        let url = fresh["url"].as_str().unwrap();
        assert_eq!(url_of(&fresh["config"]), url);
        assert_eq!(one(url, "SELECT count(*) FROM tasks"), "0");
        let instance = instance_url(env, "test");

        let text = served.call_with("GET", "/fresh?seed=small&ttl=2h", &[("Accept", "text/plain")], "").is(200).body;
        assert_ne!(text.trim(), url);
        assert_eq!(one(text.trim(), "SELECT count(*) FROM tasks"), "50");

        let short = served.call("POST", "/leases", r#"{"ttl":"1s"}"#).is(201).json();
        let long =
            served.call_with("POST", "/leases", &[("Content-Type", "application/x-www-form-urlencoded")], "ttl=1s");
        let long = long.is(201).json();
        let path = format!("/leases/{}", long["id"].as_str().unwrap());
        let extended = served.call("PATCH", &path, r#"{"ttl":"1d"}"#).is(200).json();
        assert!(extended["expires_at"].as_str() > long["expires_at"].as_str());
        until("the short lease to end", || (!exists(&instance, short["url"].as_str().unwrap())).then_some(()));
        assert_eq!(one(long["url"].as_str().unwrap(), "SELECT 1"), "1");
        let listed = served.get("/leases").is(200).json();
        assert_eq!(listed.as_array().unwrap().len(), 3);
        assert_eq!(listed[2], extended);
        served.call("DELETE", &path, "").is(204);
        until("the lease to end", || (!exists(&instance, long["url"].as_str().unwrap())).then_some(()));
        served.call("DELETE", &path, "").is(404);
        served.call("PATCH", &path, "").is(404);

        for query in ["ttl=1", "ttl=0s", "ttl=8d", "seed=unknown", "seed=..%2F..%2Fetc", "other=1"] {
            served.get(&format!("/fresh?{query}")).is(400);
        }
        for body in ["{", r#"{"ttl":7}"#, r#"{"other":"x"}"#, r#"{"seed":"no-such"}"#] {
            served.call("POST", "/leases", body).is(400);
        }
        assert_eq!(served.get("/leases").is(200).json().as_array().unwrap().len(), 2);
        migrations_count_as_they_are(env, &served);
    });
}

/// A new migration is in the next database, with no word to the service.
fn migrations_count_as_they_are(env: &TestEnv, served: &Served) {
    env.write("migrations/20270101000001_pets.sql", "CREATE TABLE pets (name text);");
    let fresh = served.get("/fresh").is(200).json();
    let url = fresh["url"].as_str().unwrap().to_owned();
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename = 'pets'";
    assert_eq!(one(&url, tables), "1");
}

#[test]
fn the_service_tells_of_itself() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let served = Served::start(env);
        assert_eq!(served.get("/healthz").is(200).json(), json!({ "status": "ok" }));
        served.get("/fresh").is(200);
        served.get("/no/such/call").is(404);
        let description = served.get("/openapi.json").is(200).json();
        assert!(description["paths"]["/fresh"]["get"].is_object());
        assert_eq!(served.metric(r#"tfdev_fresh_databases{stage="leased"}"#), 1);
        assert_eq!(served.metric(r#"tfdev_serve_databases{state="leased"}"#), 1);
        assert_eq!(served.metric(r#"tfdev_serve_hand_out_seconds_count{door="leases"}"#), 1);
        assert_eq!(served.metric(r#"tfdev_serve_requests_total{method="GET",route="/fresh",status="200"}"#), 1);
        assert_eq!(served.metric(r#"tfdev_serve_requests_total{method="GET",route="none",status="404"}"#), 1);

        let taken = env.run(&["serve", "--listen", &served.address]).exits(6);
        taken.says("something else listens on").says("--listen 127.0.0.1:0");
    });
}

#[test]
fn the_figures_of_backups_are_those_that_the_agent_saw_last() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let served = Served::start(env);
        let figure = |served: &Served, name: &str| {
            let text = served.get("/metrics").is(200).body;
            let line = text.lines().find(|line| line.starts_with(&format!("tfdev_backup_{name}{{instance=\"dev\"")));
            line.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap())
        };
        assert!(!served.get("/metrics").is(200).body.contains("tfdev_backup"), "there is no store");
        drop(served);

        let store = env.path("store");
        let project = env.id.clone();
        env.write("tfdev.toml", format!("project = \"{project}\"\n[backup]\nstore = \"file://{}\"\n", store.display()));
        env.up();
        let served = Served::start(env);
        assert_eq!(figure(&served, "agent"), None, "nobody has worked on backups yet");
        env.run(&["backup", "agent", "--once"]).ok();
        let status = env.run(&["--json", "backup", "status"]).ok().json();
        // Whatever the store has become: nobody asks it.
        let away = env.path("away");
        std::fs::rename(&store, &away).unwrap();
        assert_eq!(figure(&served, "store_bytes").unwrap().to_string(), status["stored_bytes"].to_string());
        let rto_ms = (figure(&served, "rto_seconds").unwrap() * 1000.0).round();
        assert_eq!(rto_ms.to_string(), status["last_verified"]["rto_ms"].to_string());
        assert!(figure(&served, "rpo_seconds").unwrap() < 300.0);
        assert_eq!((figure(&served, "alarms"), figure(&served, "spool_bytes")), (Some(0.0), Some(0.0)));
        for name in ["last_full", "last_wal", "last_verified", "seen"] {
            let at = figure(&served, &format!("{name}_timestamp_seconds")).unwrap();
            assert!((1.6e9..1e11).contains(&at), "{name}: {at}");
        }
        assert_eq!(figure(&served, "agent"), Some(0.0));
        drop(served);
        env.run(&["destroy", "--all", "--yes"]).ok();
    });
}

#[test]
fn pages_of_other_sites_and_callers_without_the_token_are_refused() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        env.run(&["serve", "--listen", "0.0.0.0:0"]).exits(5).says("no token").says("--token-file");
        env.run(&["serve", "--listen", "nonsense"]).exits(2).says("--listen 127.0.0.1:5000");
        env.run(&["serve", "--allow-host", "http://x"]).exits(2).says("`http://x` is not the name of a host");
        env.write("short", "abc");
        env.run(&["serve", "--token-file", "short"]).exits(8).says("16 printable characters");

        let served = Served::start(env);
        let port = served.address.rsplit(':').next().unwrap().to_owned();
        let own = format!("http://{}", served.address);
        let rebound = format!("evil.example:{port}");
        let fresh = |headers: &[(&str, &str)]| served.call_with("GET", "/fresh", headers, "");
        assert!(fresh(&[("Host", &rebound)]).is(403).body.contains("--allow-host evil.example"));
        fresh(&[("Origin", "http://evil.example")]).is(403);
        fresh(&[("Origin", "null")]).is(403);
        fresh(&[("Sec-Fetch-Site", "cross-site")]).is(403);
        let form = [("Origin", "http://evil.example"), ("Content-Type", "text/plain")];
        served.call_with("POST", "/api/v1/templates", &form, r#"{"hash":"x"}"#).is(403);
        served.call_with("DELETE", "/api/v1/admin/templates", &[("Host", &rebound)], "").is(403);
        assert_eq!(served.get("/leases").is(200).json(), json!([]));
        fresh(&[("Host", &format!("localhost:{port}")), ("Origin", &format!("http://localhost:{port}"))]).is(200);
        fresh(&[("Origin", &own), ("Sec-Fetch-Site", "same-origin")]).is(200);
        drop(served);

        let served = Served::start_with(env, &["--allow-host", "integresql"]);
        let calls = |host: &str| served.call_with("GET", "/fresh", &[("Host", host)], "");
        calls("integresql:5000").is(200);
        calls("other:5000").is(403);
        drop(served);

        let token = "b5c1f0a2d3e4968770";
        env.write("token", format!("{token}\n"));
        let served = Served::start_with(env, &["--token-file", "token"]);
        served.get("/fresh").is(401);
        served.get("/healthz").is(200);
        served.call_with("GET", "/fresh", &[("Authorization", "Bearer b5c1f0a2d3e4968771")], "").is(401);
        let bearer = format!("Bearer {token}");
        served.call_with("GET", "/fresh", &[("Authorization", &bearer)], "").is(200);
        let arguments = std::fs::read_to_string(format!("/proc/{}/cmdline", served.child.id())).unwrap();
        assert!(!arguments.contains(token));
    });
}

/// How many databases are handed out in a row; `TFDEV_SOAK` makes it more.
const IN_A_ROW: usize = 200;

/// The memory of the service that is its own, in kB.
#[cfg(target_os = "linux")]
fn memory_of(served: &Served) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", served.child.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn many_databases_in_a_row_leave_the_service_as_it_was() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        #[expect(clippy::disallowed_methods, reason = "how long to soak is no setting of tfdev")]
        let wanted = std::env::var("TFDEV_SOAK").map_or(IN_A_ROW, |text| text.parse().unwrap());
        let served = Served::start(env);
        let templates = "/api/v1/templates";
        let begun = served.call("POST", templates, r#"{"hash":"soak"}"#).is(200).json();
        query(&url_of(&begun["database"]["config"]), "CREATE TABLE notes (text text)");
        served.call("PUT", &format!("{templates}/soak"), "").is(204);
        let mut at_first = None;
        for number in 1..=wanted {
            let test = served.get(&format!("{templates}/soak/tests")).is(200).json();
            if number % 8 == 0 {
                query(&url_of(&test["database"]["config"]), "INSERT INTO notes VALUES ('written to')");
            }
            let id = test["id"].as_i64().unwrap();
            let way = if number % 2 == 0 { "recreate" } else { "unlock" };
            served.call("POST", &format!("{templates}/soak/tests/{id}/{way}"), "").is(204);
            if number == wanted.div_ceil(4) || number == wanted {
                let found = memory_of(&served);
                let first = *at_first.get_or_insert(found);
                assert!(found < first + 4096, "{found} kB after {number} databases, and {first} kB at first");
            }
        }
        assert!(served.end_by("TERM").success());
        assert_eq!(super::fresh_databases(env, |stage| stage != "free"), Vec::<String>::new());
    });
}

//! Fresh databases over HTTP: IntegreSQL's calls and its published client, the service's own calls, who may call, and what
//! is left when clients or the service itself fail.

mod client;
mod conformance;
mod faults;
mod http;
mod own;

use crate::support::{TestEnv, one};

/// The URL of the project's own database on an instance.
fn instance_url(env: &TestEnv, instance: &str) -> String {
    env.run(&["url", "--instance", instance]).ok().stdout.trim().to_owned()
}

/// Whether there is the database of a URL on the instance with that URL.
fn exists(instance: &str, url: &str) -> bool {
    let name = url.trim().rsplit('/').next().unwrap();
    one(instance, &format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")) == "1"
}

/// The fresh databases on the instance `test` whose stage is one that `wanted` wants.
fn fresh_databases(env: &TestEnv, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    fresh_databases_of(env, "test", wanted)
}

fn fresh_databases_of(env: &TestEnv, instance: &str, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let listed = env.run(&["fresh", "--instance", instance, "list", "--json"]).ok().json();
    let rows = listed.as_array().unwrap().iter().filter(|row| wanted(row["stage"].as_str().unwrap()));
    rows.map(|row| row["database"].as_str().unwrap().to_owned()).collect()
}

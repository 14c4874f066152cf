//! Certificates and keys that are wrong (`FAILURES.md` § "The official image's contract": TLS key).

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::{on_docker_and_native, psql, show, up};
use crate::support::{TestEnv, docker, finish, native, process, start, try_query, until};

on_docker_and_native!(certificates_and_keys_that_are_wrong_are_made_anew_by_up);

fn certificates_and_keys_that_are_wrong_are_made_anew_by_up(env: &TestEnv) {
    up(env, &["--profile", "prod"]).ok();
    let (born, authority) = (env.born(), env.state_dir().join("authority"));

    // It has expired: the server goes on with it until the next `up`.
    let kept = env.instance_dir().join("certificate.json");
    expire(&kept, &authority.join("authority.json"), "2099-01-01T00:00:00Z");
    let outcome = up(env, &[]).exits(1);
    outcome.says("encrypted").says("xpired").says("`tfdev up`");
    let mut certificate: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    certificate["not_after"] = json!("2020-01-01T00:00:00Z");
    std::fs::write(&kept, certificate.to_string()).unwrap();
    up(env, &[]).ok();
    assert_eq!((env.born(), show(env, "ssl"), env.tasks()), (born.clone(), "on".into(), "50".into()));

    // The authority's file is gone, then all of the authority.
    std::fs::remove_file(authority.join("root.crt")).unwrap();
    try_query(&env.url(), "SELECT 1").unwrap_err();
    up(env, &[]).ok();
    assert_eq!(env.born(), born);
    std::fs::remove_dir_all(&authority).unwrap();
    up(env, &[]).ok();
    assert_eq!(env.born(), born, "a new certificate is read without a restart");
    if process::bin_dir().is_some() {
        psql(&env.url()).ok();
    }

    // A key that others can read, or of another owner, keeps a server from starting; `up` puts it right.
    for spoil in ["chmod 0644", "chown nobody"] {
        spoil_key(env, spoil);
        env.kill_server();
        until("the server's end", || (env.state() == "crashed").then_some(()));
        up(env, &[]).ok();
        assert_eq!((show(env, "ssl"), env.tasks()), ("on".into(), "50".into()), "{spoil}");
    }
}

/// Puts a certificate that has expired in the place of the one that is kept, said to end at `not_after`.
fn expire(kept: &Path, authority: &Path, not_after: &str) {
    let read = |path: &Path| -> Value { serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap() };
    let key = rcgen::KeyPair::from_pem(read(authority)["key"].as_str().unwrap()).unwrap();
    let mut issuer = rcgen::CertificateParams::default();
    issuer.distinguished_name = rcgen::DistinguishedName::new();
    issuer.distinguished_name.push(rcgen::DnType::CommonName, "tfdev local authority");
    let names = ["127.0.0.1", "localhost"].map(str::to_owned).to_vec();
    let mut parameters = rcgen::CertificateParams::new(names).unwrap();
    parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
    parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    let own_key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.signed_by(&own_key, &rcgen::Issuer::new(issuer, key)).unwrap();
    let mut value = read(kept);
    value["certificate"] = json!(certificate.pem());
    value["key"] = json!(own_key.serialize_pem());
    value["not_after"] = json!(not_after);
    std::fs::write(kept, value.to_string()).unwrap();
}

/// Does `spoil` to the server's key.
fn spoil_key(env: &TestEnv, spoil: &str) {
    let container = env.status()["container"].as_str().map(str::to_owned);
    if let Some(container) = container {
        docker::docker(&["exec", &container, "sh", "-c", &format!("{spoil} /etc/tfdev/server.key")]);
        return;
    }
    let home: PathBuf = native::data(env).parent().unwrap().to_owned();
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{spoil} {}", home.join("server.key").display())]);
    finish(start(command)).ok();
}

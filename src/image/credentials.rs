//! Registry logins from Docker's `config.json`.
//!
//! Only logins that stand in the file are read (`auths`). A credential helper is another program; it is not run, but named
//! in the hint of a pull that was denied.

use std::path::Path;

use bollard::auth::DockerCredentials;
use serde_json::Value;

/// The key of Docker Hub in `auths`.
const DOCKER_HUB: &str = "index.docker.io";

/// What `config.json` says about a registry.
#[derive(Debug, Default)]
pub(super) struct Login {
    /// The login, if it stands in the file.
    pub(super) credentials: Option<DockerCredentials>,
    /// The credential helper that has it instead.
    pub(super) helper: Option<String>,
}

/// Looks in `config.json` of `config_dir` for the registry of `reference`. A file that is not there or that can't be
/// understood holds no login: a public image needs none.
pub(super) fn for_image(config_dir: Option<&Path>, reference: &str) -> Login {
    let Some(text) = config_dir.and_then(|folder| std::fs::read_to_string(folder.join("config.json")).ok()) else {
        return Login::default();
    };
    serde_json::from_str(&text).map_or_else(|_| Login::default(), |config| in_config(&config, registry_of(reference)))
}

/// The registry that an image comes from: the part before the first `/`, if that looks like a host.
pub(super) fn registry_of(reference: &str) -> &str {
    match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => match host {
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => DOCKER_HUB,
            other => other,
        },
        _ => DOCKER_HUB,
    }
}

fn in_config(config: &Value, registry: &str) -> Login {
    let auths = config["auths"].as_object();
    let entry = auths.and_then(|auths| auths.iter().find(|(key, _)| host_of(key) == registry));
    let helpers = config["credHelpers"].as_object();
    let own_helper = helpers.and_then(|helpers| helpers.iter().find(|(key, _)| host_of(key) == registry));
    let helper = own_helper.map_or(&config["credsStore"], |(_, helper)| helper).as_str();
    Login {
        credentials: entry.and_then(|(key, value)| credentials(key, value)),
        helper: helper.map(|name| format!("docker-credential-{name}")),
    }
}

/// `host:port` of a key such as `https://index.docker.io/v1/`.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn credentials(key: &str, value: &Value) -> Option<DockerCredentials> {
    let text = |name: &str| value[name].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let decoded = text("auth").and_then(|auth| decode_base64(&auth)).and_then(|bytes| String::from_utf8(bytes).ok());
    let pair = decoded.as_deref().and_then(|pair| pair.trim_end_matches('\0').split_once(':'));
    let (username, password) = match pair {
        Some((username, password)) => (Some(username.to_owned()), Some(password.to_owned())),
        None => (text("username"), text("password")),
    };
    let identitytoken = text("identitytoken");
    if identitytoken.is_none() && (username.is_none() || password.is_none()) {
        return None;
    }
    let serveraddress = Some(key.to_owned());
    Some(DockerCredentials { username, password, identitytoken, serveraddress, ..DockerCredentials::default() })
}

/// Decodes base64 in its usual alphabet, padded or not; `None` if it is no base64.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.trim().trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).expect("eight bits"));
            bits &= (1 << count) - 1;
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(config: &Value, reference: &str) -> Login {
        in_config(config, registry_of(reference))
    }

    #[test]
    fn the_registry_is_the_first_part_that_looks_like_a_host() {
        assert_eq!(registry_of("postgres:15-alpine"), DOCKER_HUB);
        assert_eq!(registry_of("team/postgres:15"), DOCKER_HUB);
        assert_eq!(registry_of("docker.io/library/postgres"), DOCKER_HUB);
        assert_eq!(registry_of("localhost/a"), "localhost");
        assert_eq!(registry_of("127.0.0.1:5000/a/b:1"), "127.0.0.1:5000");
        assert_eq!(registry_of("ghcr.io/a/b"), "ghcr.io");
    }

    #[test]
    fn a_login_in_the_file_is_found_by_its_host() {
        let config = serde_json::json!({ "auths": { "https://index.docker.io/v1/": { "auth": "YW5uOnM6M2NyZXQ=" } } });
        let credentials = login(&config, "postgres:15").credentials.unwrap();
        assert_eq!(credentials.username.as_deref(), Some("ann"));
        assert_eq!(credentials.password.as_deref(), Some("s:3cret"), "a password may hold a colon");
        assert!(login(&config, "ghcr.io/a/b").credentials.is_none());
    }

    #[test]
    fn a_helper_is_named_and_an_empty_entry_is_no_login() {
        let config = serde_json::json!({ "auths": { "ghcr.io": {} }, "credsStore": "desktop" });
        let found = login(&config, "ghcr.io/a/b");
        assert!(found.credentials.is_none());
        assert_eq!(found.helper.as_deref(), Some("docker-credential-desktop"));
    }

    #[test]
    fn base64_of_every_length_is_read() {
        for (text, bytes) in [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYg", "foob")] {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(decode_base64("Zm 9v"), None);
    }
}

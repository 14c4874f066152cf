//! `compose`: the [`ServerSpec`] as a Compose file.
//!
//! What must hold: the server that Compose starts has the settings, the environment, the limits and the ordinary role that
//! the instance has, row for row; the file holds no secret; and its volume is its own, because two servers on one data
//! folder would destroy it. It archives no log: what `tfdev backup` takes away is the instance's own, and a spool that nobody
//! empties fills the disk.
//!
//! What an engine uploads, a Compose file brings along: its entrypoint writes the settings and a first script, copies the
//! secrets to where the server may read them, and hands over to the image's own.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{EngineChoice, PortChoice, Settings};
use crate::engine::cannot;
use crate::engine::docker::container;
use crate::engine::ports;
use crate::error::{Context, Result};
use crate::event::Events;
use crate::image;
use crate::instance::{Instance, InstanceLock, InstanceRecord, Password, private_file};
use crate::pg::quote;
use crate::profile::{self, DataPlacement, Profile};
use crate::provision::UNLOGGED;
use crate::spec::{
    CONFIGURATION_FILE, DATA_DIRECTORY, FILES_DIRECTORY, HOST_BASED_AUTHENTICATION_FILE, STOP_TIMEOUT_SECONDS,
    ServerSpec,
};
use crate::tls::ServerCertificate;
use crate::up;

/// The secrets of every server, by the names of their files.
const PASSWORDS: [&str; 2] = ["superuser-password", "user-password"];

/// What a server with `ssl = on` needs beside.
const TLS_FILES: [&str; 2] = ["server.crt", "server.key"];

/// Where the image looks for what it is to run at its first start.
const FIRST_SCRIPT: &str = "/docker-entrypoint-initdb.d/role.sql";

/// The settled instance as Compose is to have it.
struct Service<'a> {
    instance: Instance,
    spec: ServerSpec,
    profile: Profile,
    database: &'a str,
    user: &'a str,
    port: u16,
    /// Whether there is a place for backups.
    has_store: bool,
}

/// Renders the Compose file of the settled instance. It needs no engine.
pub fn render(settings: &Settings, events: &Events) -> Result<String> {
    Service::of(settings, events)?.document()
}

/// Writes the Compose file of the settled instance and the secrets that it names into `folder`: random passwords, unless
/// there are some, and for a server with `ssl = on` a certificate. Returns the files, the Compose file first.
pub async fn write(settings: &Settings, folder: &Path, events: &Events) -> Result<Vec<PathBuf>> {
    let service = Service::of(settings, events)?;
    let document = service.document()?;
    std::fs::create_dir_all(folder).or_failed(|| format!("cannot make the folder `{}`", folder.display()))?;
    let mut files = vec![folder.join("compose.yaml")];
    for name in PASSWORDS {
        let path = folder.join(name);
        private_file::write_new(&path, Password::random()?.expose().as_bytes())?;
        files.push(path);
    }
    if service.profile.ssl {
        let timeout = Duration::from_secs(settings.timeout_seconds.value);
        let _lock = InstanceLock::acquire(&service.instance, "compose", timeout, events).await?;
        let made = ServerCertificate::of_compose(&service.instance, &settings.state_dir, "127.0.0.1")?;
        let root = std::fs::read(&made.root_cert)
            .or_failed(|| format!("cannot read the certificate `{}`", made.root_cert.display()))?;
        let contents: [&[u8]; 3] = [made.certificate.as_bytes(), made.key.expose().as_bytes(), &root];
        for (name, content) in TLS_FILES.into_iter().chain(["root.crt"]).zip(contents) {
            private_file::write(&folder.join(name), content)?;
            files.push(folder.join(name));
        }
    }
    std::fs::write(&files[0], document).or_failed(|| format!("cannot write the file `{}`", files[0].display()))?;
    Ok(files)
}

impl<'a> Service<'a> {
    fn of(settings: &'a Settings, events: &Events) -> Result<Self> {
        let instance = Instance::of(settings);
        let record = InstanceRecord::read(&instance, events)?;
        let on_record = record.as_ref().and_then(|record| record.engine);
        if [Some(settings.engine.value), on_record].contains(&Some(EngineChoice::External)) {
            return Err(cannot(
                "be written as a Compose file",
                "Compose runs servers, and this one is run by someone else",
            ));
        }
        let profile = profile::resolve(up::profile_name(settings, record.as_ref()), &settings.profiles)?;
        let requested = settings.image.as_ref().map(|image| image.value.clone());
        let recorded = record.as_ref().and_then(|record| record.image.clone());
        let name = requested.or(recorded).unwrap_or_else(|| image::OFFICIAL.to_owned());
        let port = match settings.database.port.value {
            PortChoice::Fixed(port) => port,
            PortChoice::Auto => record.and_then(|record| record.port).unwrap_or(ports::PREFERRED),
        };
        let mut spec = ServerSpec::new(&profile, &name, "", settings.database.port.value);
        if profile.ssl {
            spec = spec.with_certificate("of Compose".to_owned());
        } else if profile.has_short_logins() {
            spec = spec.with_short_logins();
        }
        let (database, user) = (&settings.database.name.value, &settings.database.user.value);
        let has_store = settings.backup.store.is_some();
        Ok(Self { instance, spec, profile, database, user, port, has_store })
    }

    /// The names of the secrets' files.
    fn secrets(&self) -> Vec<&'static str> {
        let tls: &[&str] = if self.profile.ssl { &TLS_FILES } else { &[] };
        PASSWORDS.into_iter().chain(tls.iter().copied()).collect()
    }

    /// What the container does before the image's own entrypoint.
    fn entrypoint(&self) -> Result<String> {
        let secrets = self.secrets().join(" ");
        let mut text = format!(
            "set -e\numask 077\nmkdir -p -m 755 {FILES_DIRECTORY}\n\
             for secret in {secrets}; do cp /run/secrets/$secret {FILES_DIRECTORY}/$secret; done\n"
        );
        let mut file = |path: &str, content: &str| {
            write!(text, "cat > {path} <<'END'\n{content}END\n").expect("writing to a String cannot fail");
        };
        file(CONFIGURATION_FILE, &container::configuration(&self.spec));
        if let Some(rules) = self.spec.login_rules() {
            file(HOST_BASED_AUTHENTICATION_FILE, rules);
        }
        file(FIRST_SCRIPT, &self.first_script()?);
        write!(
            text,
            "chown -R postgres:postgres {FILES_DIRECTORY} {FIRST_SCRIPT}\n\
             exec docker-entrypoint.sh \"$@\"\n"
        )
        .expect("writing to a String cannot fail");
        Ok(text)
    }

    /// Makes the ordinary role and its database, without a word in the log about the password.
    fn first_script(&self) -> Result<String> {
        let (user, database) = (quote::identifier(self.user)?, quote::identifier(self.database)?);
        Ok(format!(
            "{UNLOGGED};\n\\set password `cat {FILES_DIRECTORY}/user-password`\n\
             CREATE ROLE {user} LOGIN PASSWORD :'password';\n\
             CREATE DATABASE {database} OWNER {user} TEMPLATE template0;\n"
        ))
    }

    fn document(&self) -> Result<String> {
        let mut text = String::new();
        let mut line = |indent: usize, content: &str| {
            writeln!(text, "{:indent$}{content}", "").expect("writing to a String cannot fail");
        };
        let (service, spec) = (&self.instance.name, &self.spec);
        let compose_project = format!("{}-compose", self.instance.compose_project());
        line(
            0,
            &format!(
                "# PostgreSQL 15 with the profile `{}`, as `tfdev up` runs it. Made by `tfdev compose`.",
                spec.profile
            ),
        );
        line(0, &format!("# It needs the files {} beside it:", listed(&self.secrets())));
        line(0, "# `tfdev compose --write FOLDER` makes them, and this one. Then:");
        // Not by a `name:` in the file, which Compose 1 does not know.
        line(0, &format!("#   docker compose -p {compose_project} -f compose.yaml up -d"));
        if self.has_store {
            line(
                0,
                "# This server archives no log: `tfdev backup` is for the one that `tfdev up` runs. As a server of",
            );
            line(0, "# someone else (`TFDEV_ENGINE=external`, `TFDEV_EXTERNAL_URL`) this one can be dumped.");
        }
        line(0, "services:");
        line(2, &format!("{service}:"));
        line(4, &format!("image: {}", scalar(&spec.image)));
        line(4, "entrypoint:");
        line(6, "- \"/bin/sh\"");
        line(6, "- \"-c\"");
        line(6, "- |");
        for script in self.entrypoint()?.lines() {
            line(8, &script.replace('$', "$$"));
        }
        line(6, "- \"tfdev\"");
        line(4, "command:");
        for argument in container::command() {
            line(6, &format!("- {}", scalar(&argument)));
        }
        line(4, "environment:");
        for variable in container::environment(spec.data) {
            let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
            line(6, &format!("{name}: {}", scalar(value)));
        }
        line(4, "secrets:");
        for secret in self.secrets() {
            line(6, &format!("- {secret}"));
        }
        line(4, "ports:");
        line(6, &format!("- {}", scalar(&format!("127.0.0.1:{}:5432", self.port))));
        match spec.data {
            DataPlacement::Volume => {
                line(4, "volumes:");
                line(6, &format!("- {}", scalar(&format!("{service}-data:{DATA_DIRECTORY}"))));
            }
            DataPlacement::Memory => {
                line(4, "tmpfs:");
                let options = container::memory_options(&spec.limits);
                line(6, &format!("- {}", scalar(&format!("{DATA_DIRECTORY}:{options}"))));
            }
        }
        line(4, &format!("mem_limit: {}", spec.limits.memory_bytes));
        if let Some(nano_cpus) = spec.limits.nano_cpus {
            // Thousandths are finer than any limit that people set.
            line(4, &format!("cpus: {}.{:03}", nano_cpus / 1_000_000_000, nano_cpus / 1_000_000 % 1000));
        }
        line(4, &format!("shm_size: {}", spec.limits.shm_bytes));
        line(4, &format!("stop_grace_period: {STOP_TIMEOUT_SECONDS}s"));
        line(4, "healthcheck:");
        line(6, &format!("test: [\"CMD-SHELL\", {}]", scalar(&container::healthcheck_command())));
        for (name, value) in [("interval", "30s"), ("timeout", "5s"), ("retries", "3"), ("start_period", "60s")] {
            line(6, &format!("{name}: {value}"));
        }
        if spec.data == DataPlacement::Volume {
            line(0, "volumes:");
            line(2, &format!("{service}-data:"));
            // By name, because Compose would else name it after the folder that the file stands in.
            line(4, &format!("name: {}", scalar(&format!("{compose_project}-{service}-data"))));
        }
        line(0, "secrets:");
        for secret in self.secrets() {
            line(2, &format!("{secret}:"));
            line(4, &format!("file: ./{secret}"));
        }
        Ok(text)
    }
}

/// `a`, `b` and `c`.
fn listed(names: &[&str]) -> String {
    let quoted: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}

/// A YAML scalar: a JSON string is one, and Compose wants each `$` twice.
fn scalar(text: &str) -> String {
    serde_json::Value::from(text.replace('$', "$$")).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::settings;

    fn rendered(file: &str) -> String {
        let root = tempfile::tempdir().unwrap();
        render(&settings(root.path(), "app", file), &Events::none()).unwrap()
    }

    #[test]
    fn the_file_of_the_repository_is_what_is_rendered() {
        assert_eq!(include_str!("../compose/compose.yaml"), rendered("project = \"taskflow\""));
    }

    #[test]
    fn a_server_of_compose_archives_nothing_and_says_so() {
        let text = rendered("project = \"taskflow\"\n[backup]\nstore = \"file:///backups\"\n");
        assert!(!text.contains("archive_command") && !text.contains("archive_mode"), "{text}");
        assert!(text.contains("# This server archives no log"), "{text}");
        let without = |text: &str| text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert_eq!(without(&text), without(include_str!("../compose/compose.yaml")), "all else is as without a store");
    }

    #[test]
    fn what_can_be_set_is_in_the_file() {
        let file = "project = \"app\"\n[database]\nname = \"shop\"\nuser = \"clerk\"\nport = 6000\n[docker]\nimage = \"example/pg:15\"\n\
                    [profiles.dev]\nwork_mem = \"8MB\"\nlog_line_prefix = \"$ \"\nssl = \"on\"\n";
        let text = rendered(file);
        for part in [
            "image: \"example/pg:15\"",
            "CREATE DATABASE \"shop\" OWNER \"clerk\"",
            "- \"127.0.0.1:6000:5432\"",
            "        work_mem = '8MB'\n",
            // Compose reads one `$` as the begin of a variable.
            "        log_line_prefix = '$$ '\n",
            "        ssl = 'on'\n",
            "        hostssl all all all scram-sha-256\n",
            "  server.key:\n    file: ./server.key\n",
            "name: \"tfdev-app-compose-dev-data\"",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}

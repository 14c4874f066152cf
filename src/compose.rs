//! `compose`: the [`ServerSpec`] as a Compose file.
//!
//! What must hold: the file says what the engine is told, row for row; it holds no secret; and its volume is its own,
//! because two servers on one data folder would destroy it.

use std::fmt::Write;

use crate::config::{EngineChoice, PortChoice, Settings};
use crate::engine::cannot;
use crate::engine::docker::container;
use crate::engine::ports;
use crate::error::Result;
use crate::event::Events;
use crate::image;
use crate::instance::{Instance, InstanceRecord};
use crate::profile::{self, DataPlacement};
use crate::spec::{DATA_DIRECTORY, STOP_TIMEOUT_SECONDS, SUPERUSER, ServerSpec, initdb_arguments};
use crate::up;

/// Renders the Compose file of the settled instance. It needs no engine.
pub fn render(settings: &Settings, events: &Events) -> Result<String> {
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
    if profile.has_short_logins() {
        spec = spec.with_short_logins();
    }
    Ok(document(&instance, &spec, &settings.database.name.value, port))
}

/// A YAML scalar: a JSON string is one, and Compose wants each `$` twice.
fn scalar(text: &str) -> String {
    serde_json::Value::from(text.replace('$', "$$")).to_string()
}

fn document(instance: &Instance, spec: &ServerSpec, database: &str, port: u16) -> String {
    let mut text = String::new();
    let mut line = |indent: usize, content: &str| {
        writeln!(text, "{:indent$}{content}", "").expect("writing to a String cannot fail");
    };
    let service = &instance.name;
    line(
        0,
        &format!(
            "# PostgreSQL 15 with the profile `{}`, as `tfdev up` runs it. Made by `tfdev compose`.",
            spec.profile
        ),
    );
    line(0, "# Put a password of your own into the file `superuser-password` beside this one (chmod 600), then:");
    // Not by a `name:` in the file, which Compose 1 does not know.
    line(0, &format!("#   docker compose -p {}-compose -f compose.yaml up -d", instance.compose_project()));
    line(0, "services:");
    line(2, &format!("{service}:"));
    line(4, &format!("image: {}", scalar(&spec.image)));
    line(4, "command:");
    for argument in spec.command() {
        if argument == "ssl=on" {
            line(
                6,
                "# The profile says `ssl=on`, for which Compose has no certificate: tfdev makes it for its own server.",
            );
            line(6, "- \"ssl=off\"");
        } else if argument.starts_with("hba_file=") {
            line(
                6,
                "# tfdev's own server has a file of rules for short logins here. With Compose those of the image hold.",
            );
        } else {
            line(6, &format!("- {}", scalar(&argument)));
        }
    }
    line(4, "environment:");
    for (name, value) in [
        ("POSTGRES_USER", SUPERUSER),
        ("POSTGRES_DB", database),
        ("POSTGRES_PASSWORD_FILE", "/run/secrets/superuser-password"),
        ("POSTGRES_INITDB_ARGS", &initdb_arguments(spec.data)),
        ("PGDATA", DATA_DIRECTORY),
        ("TZ", container::TIME_ZONE),
    ] {
        line(6, &format!("{name}: {}", scalar(value)));
    }
    line(4, "secrets:");
    line(6, "- superuser-password");
    line(4, "ports:");
    line(6, &format!("- {}", scalar(&format!("127.0.0.1:{port}:5432"))));
    match spec.data {
        DataPlacement::Volume => {
            line(4, "volumes:");
            line(6, &format!("- {}", scalar(&format!("{service}-data:{DATA_DIRECTORY}"))));
        }
        DataPlacement::Memory => {
            line(4, "tmpfs:");
            line(6, &format!("- {}", scalar(&format!("{DATA_DIRECTORY}:size={}", spec.limits.storage_bytes))));
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
        line(4, &format!("name: {}", scalar(&format!("{}-compose-{service}-data", instance.compose_project()))));
    }
    line(0, "secrets:");
    line(2, "superuser-password:");
    line(4, "file: ./superuser-password");
    text
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
    fn what_can_be_set_is_in_the_file() {
        let file = "project = \"app\"\n[database]\nname = \"shop\"\nport = 6000\n[docker]\nimage = \"example/pg:15\"\n\
                    [profiles.dev]\nwork_mem = \"8MB\"\nlog_line_prefix = \"$ \"\nssl = \"on\"\n";
        let text = rendered(file);
        for part in [
            "image: \"example/pg:15\"",
            "POSTGRES_DB: \"shop\"",
            "- \"127.0.0.1:6000:5432\"",
            "- \"work_mem=8MB\"",
            // Compose reads one `$` as the begin of a variable.
            "- \"log_line_prefix=$$ \"",
            "- \"ssl=off\"",
            "name: \"tfdev-app-compose-dev-data\"",
        ] {
            assert!(text.contains(part), "{part} in:\n{text}");
        }
    }
}

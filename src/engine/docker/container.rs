//! The container and volume of a [`ServerSpec`]: pure descriptions for the engine's API.
//!
//! What must hold: the server is published on the address it is told to and on no other; no secret is in a command line,
//! an environment variable or a label; and there is no bind mount, so that a remote daemon works like a local one.

use std::collections::HashMap;

use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, PortBinding, VolumeCreateRequest};
use uuid::Uuid;

use super::{DataVolume, labels};
use crate::health;
use crate::instance::Instance;
use crate::profile::{DataPlacement, Limits};
use crate::spec::{CONFIGURATION_FILE, DATA_DIRECTORY, STOP_TIMEOUT_SECONDS, SUPERUSER, ServerSpec, initdb_arguments};

/// The server's port inside the container, as the engine's API writes it.
pub const SERVER_PORT: &str = "5432/tcp";

/// The superuser's password inside the container.
pub const PASSWORD_FILE: &str = "/etc/tfdev/superuser-password";

const SECOND: i64 = 1_000_000_000;

/// The time zone of the server and its log, which is what images have anyway. Told, because `initdb` otherwise reads every
/// time zone's file to find out, which took 9 s on a slow file system.
pub const TIME_ZONE: &str = "UTC";

/// The environment of the server's container: where the secret is, never the secret.
pub fn environment(data: DataPlacement) -> Vec<String> {
    vec![
        format!("POSTGRES_USER={SUPERUSER}"),
        format!("POSTGRES_DB={SUPERUSER}"),
        format!("POSTGRES_PASSWORD_FILE={PASSWORD_FILE}"),
        format!("POSTGRES_INITDB_ARGS={}", initdb_arguments(data)),
        format!("PGDATA={DATA_DIRECTORY}"),
        format!("TZ={TIME_ZONE}"),
    ]
}

/// The server's command line: its settings are in a file, so that it can read them again while it runs.
pub fn command() -> Vec<String> {
    vec!["postgres".to_owned(), "-c".to_owned(), format!("config_file={CONFIGURATION_FILE}")]
}

/// The settings file of `spec`: ours come after those that the data folder has, and before a person's `ALTER SYSTEM`.
pub fn configuration(spec: &ServerSpec) -> String {
    format!("include = '{DATA_DIRECTORY}/postgresql.conf'\n{}", spec.configuration())
}

/// How data in memory is mounted.
pub fn memory_options(limits: &Limits) -> String {
    format!("rw,nosuid,nodev,size={}", limits.storage_bytes)
}

/// The healthcheck that other tools see: the question of `tfdev health`, asked as the superuser, for whom the server keeps
/// connections. tfdev itself never waits for it: readiness is a login.
pub fn healthcheck_command() -> String {
    // Every half minute a line in the log of all statements would be noise.
    format!(
        "PGOPTIONS='-c log_statement=none -c log_min_duration_statement=-1' \
         psql -XAtqU {SUPERUSER} -d {SUPERUSER} -c \"{}\" | grep -qx t",
        health::CONTAINER_QUERY
    )
}

/// Publishes the server's port on `address`.
fn published_on(address: &str, port: u16) -> HashMap<String, Option<Vec<PortBinding>>> {
    let binding = PortBinding { host_ip: Some(address.to_owned()), host_port: Some(port.to_string()) };
    HashMap::from([(SERVER_PORT.to_owned(), Some(vec![binding]))])
}

/// The container that runs `spec` on the data in `volume`.
pub fn body(
    instance: &Instance,
    id: Uuid,
    spec: &ServerSpec,
    volume: &DataVolume,
    (address, port): (&str, u16),
) -> ContainerCreateBody {
    let limits = &spec.limits;
    let mut host_config = HostConfig {
        port_bindings: Some(published_on(address, port)),
        memory: Some(limits.memory_bytes.cast_signed()),
        nano_cpus: limits.nano_cpus.map(u64::cast_signed),
        shm_size: Some(limits.shm_bytes.cast_signed()),
        ..HostConfig::default()
    };
    match spec.data {
        DataPlacement::Volume => {
            host_config.mounts = Some(vec![volume.mount()]);
        }
        DataPlacement::Memory => {
            host_config.tmpfs = Some(HashMap::from([(DATA_DIRECTORY.to_owned(), memory_options(limits))]));
        }
    }
    ContainerCreateBody {
        image: Some(spec.image_id.clone()),
        cmd: Some(command()),
        env: Some(environment(spec.data)),
        labels: Some(labels::of_container(instance, id, spec)),
        exposed_ports: Some(vec![SERVER_PORT.to_owned()]),
        healthcheck: Some(HealthConfig {
            test: Some(vec!["CMD-SHELL".to_owned(), healthcheck_command()]),
            interval: Some(30 * SECOND),
            timeout: Some(5 * SECOND),
            retries: Some(3),
            start_period: Some(60 * SECOND),
            start_interval: None,
        }),
        stop_timeout: Some(STOP_TIMEOUT_SECONDS),
        host_config: Some(host_config),
        ..ContainerCreateBody::default()
    }
}

/// The volume of that name for the data of `spec`.
pub fn volume(instance: &Instance, id: Uuid, spec: &ServerSpec, name: &str) -> VolumeCreateRequest {
    VolumeCreateRequest {
        name: Some(name.to_owned()),
        labels: Some(labels::of_volume(instance, id, spec)),
        ..VolumeCreateRequest::default()
    }
}

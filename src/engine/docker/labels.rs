//! The labels by which tfdev knows what is its own, and by which other tools show it as a project.
//!
//! What must hold: nothing is stopped, changed or removed whose labels do not name this very project and instance.

use std::collections::HashMap;

use uuid::Uuid;

use crate::instance::Instance;
use crate::spec::ServerSpec;

/// The project's key.
pub const PROJECT: &str = "dev.tfdev.project";
/// The instance's name.
pub const INSTANCE: &str = "dev.tfdev.instance";
/// The instance's identity, which its data carries too.
pub const ID: &str = "dev.tfdev.id";
/// [`ServerSpec::body_hash`]: what the container was made for. Its settings are in a file, and can change.
pub const SPEC_HASH: &str = "dev.tfdev.spec-hash";
/// The tfdev that made it.
pub const VERSION: &str = "dev.tfdev.version";
/// The image as people name it.
pub const IMAGE: &str = "dev.tfdev.image-name";
/// The image's digest when the data was made.
pub const IMAGE_ID: &str = "dev.tfdev.image-id";
/// The key of a cached data folder; on the throw-away container that makes it.
pub const CLUSTER: &str = "dev.tfdev.cluster";

/// A set of labels as the engine has them.
pub type Labels = HashMap<String, String>;

fn identity(instance: &Instance, id: Uuid) -> Labels {
    HashMap::from([
        (PROJECT.to_owned(), instance.project.clone()),
        (INSTANCE.to_owned(), instance.name.clone()),
        (ID.to_owned(), id.to_string()),
        (VERSION.to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ])
}

/// The labels of an instance's container. Compose's own labels make Docker Desktop and `docker compose ls` show it as
/// a project of its own, which no other project's `--remove-orphans` touches.
pub fn of_container(instance: &Instance, id: Uuid, spec: &ServerSpec) -> Labels {
    let mut labels = identity(instance, id);
    labels.extend(
        [
            (SPEC_HASH, spec.body_hash()),
            (IMAGE, spec.image.clone()),
            (IMAGE_ID, spec.image_id.clone()),
            ("com.docker.compose.project", instance.compose_project()),
            ("com.docker.compose.service", instance.name.clone()),
            ("com.docker.compose.container-number", "1".to_owned()),
            ("com.docker.compose.oneoff", "False".to_owned()),
            ("com.docker.compose.config-hash", spec.body_hash()),
            ("com.docker.compose.project.working_dir", instance.project_dir.display().to_string()),
            ("com.docker.compose.project.config_files", String::new()),
            ("com.docker.compose.version", format!("tfdev {}", env!("CARGO_PKG_VERSION"))),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    labels
}

/// The labels of an instance's volume.
pub fn of_volume(instance: &Instance, id: Uuid, spec: &ServerSpec) -> Labels {
    let mut labels = identity(instance, id);
    labels.extend(
        [
            (IMAGE, spec.image.clone()),
            (IMAGE_ID, spec.image_id.clone()),
            ("com.docker.compose.project", instance.compose_project()),
            ("com.docker.compose.volume", format!("{}-data", instance.name)),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    );
    labels
}

/// Whether `labels` name this very project and instance.
pub fn are_ours(labels: Option<&Labels>, instance: &Instance) -> bool {
    labels.is_some_and(|labels| {
        labels.get(PROJECT) == Some(&instance.project) && labels.get(INSTANCE) == Some(&instance.name)
    })
}

/// The identity in `labels`, if there is a valid one.
pub fn id(labels: Option<&Labels>) -> Option<Uuid> {
    labels?.get(ID)?.parse().ok()
}

/// The labels as the engine's filter for lists takes them.
pub fn filter(name: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{name}={value}")])])
}

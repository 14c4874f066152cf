//! Contexts of the docker command line: `config.json` and the folder `contexts` beside it.
//!
//! What must hold: a context that is asked for and cannot be read is an error. Going on to the next choice would
//! silently use another daemon.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Address, address};
use crate::error::{Context as _, Error, ErrorKind, Result};

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(rename = "currentContext")]
    current_context: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    name: String,
    #[serde(default)]
    endpoints: Endpoints,
}

#[derive(Deserialize, Default)]
struct Endpoints {
    docker: Option<DockerEndpoint>,
}

#[derive(Deserialize, Default)]
struct DockerEndpoint {
    #[serde(rename = "Host", default)]
    host: String,
    #[serde(rename = "SkipTLSVerify", default)]
    skip_tls_verify: bool,
}

/// The context that `config.json` in `config_dir` names, and that file.
pub(super) fn current(config_dir: &Path) -> Result<Option<(String, PathBuf)>> {
    let file = config_dir.join("config.json");
    let text = match std::fs::read(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            let message = format!("cannot read `{}`, which may name the Docker context to use", file.display());
            return Err(Error::new(ErrorKind::NoEngine, message)
                .caused_by(error)
                .hint("make it readable for you, or set DOCKER_HOST or DOCKER_CONTEXT"));
        }
    };
    // The docker command line takes an empty file for one without settings.
    if text.trim_ascii().is_empty() {
        return Ok(None);
    }
    let config: ConfigFile = serde_json::from_slice(&text)
        .context(ErrorKind::BadInput, || format!("`{}` is not a configuration of Docker", file.display()))
        .map_err(|error| error.hint("mend the file, or set DOCKER_HOST or DOCKER_CONTEXT"))?;
    Ok(config.current_context.filter(|name| !name.is_empty()).map(|name| (name, file)))
}

/// The address of the context `name`.
pub(super) fn address(name: &str, config_dir: Option<&Path>, chosen_by: &str) -> Result<Address> {
    let store = Store::read(config_dir);
    let Some(context) = store.contexts.iter().find(|context| context.metadata.name == name) else {
        return Err(store.unknown(name, chosen_by));
    };
    let Some(endpoint) = context.metadata.endpoints.docker.as_ref().filter(|endpoint| !endpoint.host.is_empty()) else {
        let message = format!("the Docker {chosen_by} has no Docker endpoint in `{}`", context.file.display());
        return Err(Error::new(ErrorKind::NoEngine, message).hint(STEP_BACK));
    };
    let tls_folder = context.tls_folder.is_dir().then_some(context.tls_folder.as_path());
    if endpoint.skip_tls_verify && endpoint.host.starts_with("tcp://") {
        let message =
            format!("the Docker {chosen_by} skips the check of the daemon's certificate, which tfdev does not do");
        return Err(Error::new(ErrorKind::NoEngine, message).hint(format!(
            "`docker context update {name} --docker host={},ca=ca.pem,cert=cert.pem,key=key.pem`",
            endpoint.host
        )));
    }
    address::parse(&endpoint.host, tls_folder, chosen_by)
}

const STEP_BACK: &str =
    "`docker context ls` lists the contexts; `docker context use default` goes back to this machine's daemon";

/// All contexts of a configuration folder.
#[derive(Default)]
struct Store {
    contexts: Vec<Stored>,
    /// Files that could not be read or understood; one of them may be the context that is looked for.
    unreadable: Vec<PathBuf>,
}

struct Stored {
    metadata: Metadata,
    file: PathBuf,
    tls_folder: PathBuf,
}

impl Store {
    fn read(config_dir: Option<&Path>) -> Self {
        let mut store = Self::default();
        let Some(contexts) = config_dir.map(|folder| folder.join("contexts")) else { return store };
        let Ok(entries) = std::fs::read_dir(contexts.join("meta")) else { return store };
        for entry in entries.flatten() {
            let file = entry.path().join("meta.json");
            let metadata = std::fs::read(&file).ok().and_then(|text| serde_json::from_slice(&text).ok());
            match metadata {
                Some(metadata) => {
                    let tls_folder = contexts.join("tls").join(entry.file_name()).join("docker");
                    store.contexts.push(Stored { metadata, file, tls_folder });
                }
                None => store.unreadable.push(file),
            }
        }
        store
    }

    fn unknown(&self, name: &str, chosen_by: &str) -> Error {
        let mut names: Vec<&str> = self.contexts.iter().map(|context| context.metadata.name.as_str()).collect();
        names.push("default");
        names.sort_unstable();
        let names = names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let message = format!("there is no Docker {chosen_by}; there are {names}");
        let error = Error::new(ErrorKind::NoEngine, message);
        let error = match self.unreadable.first() {
            Some(file) => error.hint(format!("`{}` cannot be read; it may be the context `{name}`", file.display())),
            None => error,
        };
        error.hint(STEP_BACK)
    }
}

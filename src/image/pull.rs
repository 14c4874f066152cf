//! Pulls an image from a registry, telling how far each layer is.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::CreateImageInfo;
use bollard::query_parameters::CreateImageOptionsBuilder;
use futures_util::StreamExt as _;

use super::credentials::{self, Login};
use super::{Image, ImageSource, OFFICIAL, check_reference, find};
use crate::engine::docker::errors::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Event, Events, Progress, Unit};

/// How long the daemon may take to answer at all: it asks the registry, twice and with its own time limits, before it does.
const PULL_TIMEOUT: Duration = Duration::from_mins(5);

/// Pulls `reference`, with the login from `config.json` in `docker_config_dir` if that has one.
///
/// # Errors
///
/// [`ErrorKind::BadInput`] if the registry has no such image; [`ErrorKind::NoEngine`] if the daemon does not answer;
/// [`ErrorKind::Failed`] if no registry can be reached or it refuses.
pub async fn pull(
    docker: &Docker,
    reference: &str,
    docker_config_dir: Option<&Path>,
    events: &Events,
) -> Result<Image> {
    check_reference(reference)?;
    let began = Instant::now();
    events.started(format!("Pulling `{reference}`"));
    let login = credentials::for_image(docker_config_dir, reference);
    let full_name = with_tag(reference);
    let options = CreateImageOptionsBuilder::default().from_image(&full_name).build();
    let patient = docker.clone().with_timeout(PULL_TIMEOUT);
    let mut layers = Layers::default();
    let mut messages = std::pin::pin!(patient.create_image(Some(options), None, login.credentials.clone()));
    while let Some(message) = messages.next().await {
        match message {
            Ok(message) => layers.take(message).into_iter().for_each(|progress| events.send(Event::Progress(progress))),
            Err(error) => {
                layers.abandon().into_iter().for_each(|progress| events.send(Event::Progress(progress)));
                return Err(refused(reference, &login, error));
            }
        }
    }
    layers.abandon().into_iter().for_each(|progress| events.send(Event::Progress(progress)));
    let image = find(docker, reference)
        .await?
        .ok_or_else(|| Error::failed(format!("the pull ended, but the daemon does not know `{reference}`")))?;
    events.finished(format!("Pulled `{reference}` ({} MB)", image.size_bytes / 1_000_000), began.elapsed());
    Ok(Image { source: ImageSource::Pulled, ..image })
}

/// The reference with a tag or digest: with neither, the daemon would pull every tag that there is.
fn with_tag(reference: &str) -> String {
    let name = reference.rsplit('/').next().unwrap_or(reference);
    if name.contains([':', '@']) { reference.to_owned() } else { format!("{reference}:latest") }
}

/// How far each layer is.
#[derive(Debug, Default)]
struct Layers {
    open: BTreeMap<String, Progress>,
}

impl Layers {
    /// Takes one message of the daemon; gives what is worth telling.
    fn take(&mut self, message: CreateImageInfo) -> Option<Progress> {
        let (id, status) = (message.id?, message.status?);
        let (label, done) = match status.as_str() {
            "Pulling fs layer" | "Waiting" => ("Waiting", false),
            "Downloading" => ("Downloading", false),
            "Verifying Checksum" | "Download complete" => ("Downloaded", false),
            "Extracting" => ("Extracting", false),
            "Pull complete" => ("Pulled", true),
            "Already exists" => ("Already there", true),
            // `Pulling from library/postgres`, `Retrying in 5 seconds` and the like: no step of a layer.
            _ => return None,
        };
        let counted = message.progress_detail.unwrap_or_default();
        let number = |count: Option<i64>| count.and_then(|count| u64::try_from(count).ok());
        let before = self.open.remove(&id);
        let known = before.as_ref().and_then(|progress| progress.total);
        let total = number(counted.total).filter(|total| *total > 0).or(known);
        let position = match number(counted.current) {
            Some(current) => current,
            None if done || label == "Downloaded" => total.unwrap_or_default(),
            None => before.map(|progress| progress.position).unwrap_or_default(),
        };
        let progress = Progress { id: id.clone(), label: label.to_owned(), unit: Unit::Bytes, position, total, done };
        if !done {
            self.open.insert(id, progress.clone());
        }
        Some(progress)
    }

    /// The last events for layers that were not finished, so that no bar stays open.
    fn abandon(&mut self) -> Vec<Progress> {
        std::mem::take(&mut self.open).into_values().map(|progress| Progress { done: true, ..progress }).collect()
    }
}

/// Why a pull failed, as far as the daemon's words tell. It has no codes for these: a registry that is not there and one
/// that has no such image differ in the text alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reason {
    NoSuchImage,
    WrongPlatform,
    Denied,
    TooMany,
    Unreachable,
    Other,
}

impl Reason {
    fn of(words: &str) -> Self {
        let words = words.to_lowercase();
        let has = |parts: &[&str]| parts.iter().any(|part| words.contains(part));
        if has(&["toomanyrequests", "too many requests", "rate limit"]) {
            Self::TooMany
        } else if has(&["no matching manifest", "does not match the specified platform"]) {
            Self::WrongPlatform
        } else if has(&["access denied", "unauthorized", "authentication required", "no basic auth", "forbidden"]) {
            Self::Denied
        } else if has(&["manifest unknown", "name unknown", "not found: manifest"]) || words.ends_with(": not found") {
            Self::NoSuchImage
        } else if has(&[
            "dial tcp",
            "no such host",
            "timeout",
            "deadline exceeded",
            "connection refused",
            "connection reset",
            "unreachable",
            "proxyconnect",
            "tls handshake",
            "request canceled",
            "temporary failure in name resolution",
            "eof",
        ]) {
            Self::Unreachable
        } else {
            Self::Other
        }
    }
}

/// Makes the error for a pull that failed.
fn refused(reference: &str, login: &Login, cause: bollard::errors::Error) -> Error {
    let base = failed(&format!("pull `{reference}`"), cause);
    if base.kind() == ErrorKind::NoEngine {
        return base;
    }
    let words = base.causes().join(": ");
    let registry = credentials::registry_of(reference);
    let offline = "`tfdev image build` makes an image from the PostgreSQL 15 of this machine, `tfdev image load FILE` takes \
                   one that `tfdev image save` or `docker save` wrote elsewhere";
    let login_hint = match &login.helper {
        Some(helper) => format!(
            "the login for `{registry}` is kept by `{helper}`, which tfdev does not run: `docker pull {reference}` first"
        ),
        None => format!("`docker login {registry}`, then again"),
    };
    let name_hint = format!("check the name, for example `{OFFICIAL}`");
    match Reason::of(&words) {
        Reason::NoSuchImage => {
            Error::bad_input(format!("cannot pull `{reference}`: the registry has no such image")).hint(name_hint)
        }
        Reason::WrongPlatform => {
            Error::bad_input(format!("cannot pull `{reference}`: it is not made for the daemon's kind of machine"))
                .hint(format!("use an image that is, for example `{OFFICIAL}`"))
        }
        Reason::Denied => {
            Error::failed(format!("cannot pull `{reference}`: `{registry}` has no such image or needs a login"))
                .hint(name_hint)
                .hint(login_hint)
        }
        Reason::TooMany => {
            Error::failed(format!("cannot pull `{reference}`: `{registry}` allows no more pulls for now"))
                .hint(login_hint)
        }
        Reason::Unreachable => {
            Error::failed(format!("cannot pull `{reference}`: the Docker daemon cannot reach `{registry}`"))
                .hint(offline)
        }
        Reason::Other => return base,
    }
    .caused_by(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bollard::models::ProgressDetail;

    fn message(id: &str, status: &str, current: Option<i64>, total: Option<i64>) -> CreateImageInfo {
        CreateImageInfo {
            id: Some(id.to_owned()),
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail { current, total }),
            ..CreateImageInfo::default()
        }
    }

    #[test]
    fn a_layer_is_followed_to_its_end() {
        let mut layers = Layers::default();
        assert_eq!(layers.take(message("15-alpine", "Pulling from library/postgres", None, None)), None);
        let steps = [
            message("a1", "Pulling fs layer", None, None),
            message("a1", "Downloading", Some(10), Some(100)),
            message("a1", "Download complete", None, None),
            message("a1", "Extracting", Some(50), Some(100)),
            message("a1", "Pull complete", None, None),
        ];
        let told: Vec<_> = steps.into_iter().map(|step| layers.take(step).unwrap()).collect();
        let seen: Vec<_> = told.iter().map(|p| (p.label.as_str(), p.position, p.total, p.done)).collect();
        assert_eq!(
            seen,
            [
                ("Waiting", 0, None, false),
                ("Downloading", 10, Some(100), false),
                ("Downloaded", 100, Some(100), false),
                ("Extracting", 50, Some(100), false),
                ("Pulled", 100, Some(100), true),
            ]
        );
        assert!(layers.abandon().is_empty());
    }

    #[test]
    fn layers_that_were_cut_off_get_a_last_event() {
        let mut layers = Layers::default();
        layers.take(message("a1", "Downloading", Some(10), Some(100)));
        layers.take(message("b2", "Already exists", None, None));
        let last = layers.abandon();
        assert_eq!(last.len(), 1);
        assert!(last[0].done && last[0].id == "a1" && last[0].position == 10);
    }

    #[test]
    fn the_words_of_daemons_and_registries_are_understood() {
        for (words, reason) in [
            (
                r#"Get "https://registry-1.docker.io/v2/": dial tcp: lookup registry-1.docker.io on 10.0.0.53:53: no such host"#,
                Reason::Unreachable,
            ),
            (
                "Get https://registry-1.docker.io/v2/: net/http: request canceled while waiting for connection (Client.Timeout exceeded while awaiting headers)",
                Reason::Unreachable,
            ),
            (
                "failed to resolve reference \"docker.io/library/x:1\": docker.io/library/x:1: not found",
                Reason::NoSuchImage,
            ),
            ("manifest for postgres:99 not found: manifest unknown: manifest unknown", Reason::NoSuchImage),
            (
                "pull access denied for nope/nope, repository does not exist or may require 'docker login': denied: requested access to the resource is denied",
                Reason::Denied,
            ),
            ("Head \"https://ghcr.io/v2/a/manifests/1\": unauthorized", Reason::Denied),
            ("toomanyrequests: You have reached your pull rate limit.", Reason::TooMany),
            ("no matching manifest for linux/s390x in the manifest list entries", Reason::WrongPlatform),
            ("write /var/lib/docker/tmp/x: no space left on device", Reason::Other),
        ] {
            assert_eq!(Reason::of(words), reason, "{words}");
        }
    }

    #[test]
    fn a_name_with_no_tag_means_latest_and_nothing_more() {
        assert_eq!(with_tag("postgres"), "postgres:latest");
        assert_eq!(with_tag("localhost:5000/postgres"), "localhost:5000/postgres:latest");
        assert_eq!(with_tag("postgres:15"), "postgres:15");
        assert_eq!(with_tag("postgres@sha256:00"), "postgres@sha256:00");
    }
}

//! The server image: where it comes from, with and without a registry.
//!
//! | function | for | order |
//! |---|---|---|
//! | [`resolve`] | `tfdev up` | official present → offline present → pull official → build offline |
//! | [`ensure`] | `tfdev image ensure` | official present → pull official → offline present → build offline |
//! | [`pull`], [`build`], [`load`], [`save`] | the commands of these names | |
//!
//! The orders differ on purpose. `up` runs many times a day, and asking a registry that does not answer would cost time
//! each time, so an image that is there wins over a better one that is not. `image ensure` is typed by a person who wants
//! the best image that can be had, so it asks the registry before it settles for the offline image.
//!
//! What must hold:
//! - an image that the user names is taken as named: never replaced by another one;
//! - the offline image keeps the official image's contract (`compose/offline-image/entrypoint.sh`);
//! - nothing here needs more memory for a bigger image: layers and archives are streamed.

mod archive;
mod build;
mod credentials;
mod pull;

#[cfg(test)]
mod contract_tests;
#[cfg(test)]
mod docker_tests;
#[cfg(test)]
mod test_support;

use std::fmt;
use std::path::PathBuf;

use bollard::Docker;

pub use archive::{load, save};
pub use build::{BuildOptions, build};
pub use pull::pull;

use crate::config::Settings;
use crate::engine::docker::errors::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::event::Events;

/// The image that tfdev runs if nothing else is asked for (`CON-003-postgres.md` § Deployment).
pub const OFFICIAL: &str = "postgres:15-alpine";

/// The image that [`build`] makes from the PostgreSQL 15 of this machine.
pub const OFFLINE: &str = "tfdev/postgres:15-offline";

/// The label that marks an image as one that [`build`] made.
const OFFLINE_LABEL: &str = "dev.tfdev.image";

/// The label that holds the hash of everything in an offline image.
const CONTENTS_LABEL: &str = "dev.tfdev.image.contents";

/// The label that holds the version of the PostgreSQL in an offline image, for example `15.18`.
const VERSION_LABEL: &str = "dev.tfdev.image.postgres-version";

/// How an image came to be in the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSource {
    /// It was there already.
    Present,
    /// It was pulled from a registry by this call.
    Pulled,
    /// It was built from this machine's PostgreSQL by this call.
    Built,
    /// It was loaded from a file by this call.
    Loaded,
}

/// An image that the daemon has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Image {
    /// The name that it was asked for by, for example `postgres:15-alpine`.
    pub reference: String,
    /// The daemon's identifier: `sha256:` and 64 hexadecimal digits.
    pub id: String,
    /// How it came to be there.
    pub source: ImageSource,
    /// The size of its layers, unpacked, in bytes.
    pub size_bytes: u64,
    /// The registry digests that it is known by (`name@sha256:…`); empty for an image that no registry has seen.
    pub digests: Vec<String>,
    /// When its maker says that it was made, as the daemon writes it (RFC 3339).
    pub created: Option<String>,
    /// The version of PostgreSQL that its configuration names (`PG_VERSION`), for example `15.18`.
    pub postgres_version: Option<String>,
    /// The hash of its contents, if [`build`] made it.
    pub contents: Option<String>,
}

/// What, besides the daemon, images can come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The folder of Docker's `config.json`, for registry logins.
    pub docker_config_dir: Option<PathBuf>,
    /// The folder of the PostgreSQL 15 programs; `None` means the usual places.
    pub bin_dir: Option<PathBuf>,
}

impl Sources {
    /// What the settings say.
    pub fn of(settings: &Settings) -> Self {
        Self {
            docker_config_dir: settings.docker.config_dir.clone(),
            bin_dir: settings.native_bin_dir.as_ref().map(|folder| folder.value.clone()),
        }
    }
}

impl fmt::Display for ImageSource {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Present => "there",
            Self::Pulled => "pulled",
            Self::Built => "built",
            Self::Loaded => "loaded",
        })
    }
}

/// Looks for the image that the daemon knows by `reference`; `None` if it has none.
pub async fn find(docker: &Docker, reference: &str) -> Result<Option<Image>> {
    check_reference(reference)?;
    let inspected = match docker.inspect_image(reference).await {
        Ok(inspected) => inspected,
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
        Err(error) => return Err(failed(&format!("look for the image `{reference}`"), error)),
    };
    let config = inspected.config.unwrap_or_default();
    let version = config.env.iter().flatten().find_map(|variable| variable.strip_prefix("PG_VERSION="));
    Ok(Some(Image {
        reference: reference.to_owned(),
        id: inspected.id.unwrap_or_default(),
        source: ImageSource::Present,
        size_bytes: inspected.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default(),
        digests: inspected.repo_digests.unwrap_or_default(),
        created: inspected.created,
        postgres_version: version.map(str::to_owned),
        contents: config.labels.and_then(|mut labels| labels.remove(CONTENTS_LABEL)),
    }))
}

/// Finds or gets the image for `tfdev up`, as fast as can be: an image that is there wins.
///
/// With `requested`, that image: present, else pulled (or built, if it is [`OFFLINE`]). Without: [`OFFICIAL`] if present,
/// else [`OFFLINE`] if present, else [`OFFICIAL`] pulled, else [`OFFLINE`] built. A note says when it is not the official one.
///
/// # Errors
///
/// [`ErrorKind::NoEngine`] if there is no way to an image; the message says what stood in each way, the hints what opens
/// it. With `requested`, those of [`pull`].
pub async fn resolve(docker: &Docker, requested: Option<&str>, sources: &Sources, events: &Events) -> Result<Image> {
    Search { docker, sources, events, official: OFFICIAL, offline: OFFLINE }.quick(requested).await
}

/// Finds or gets the best image that can be had, for `tfdev image ensure`: the registry is asked before the offline image
/// is settled for.
///
/// With `requested`, as [`resolve`]. Without: [`OFFICIAL`] if present, else pulled, else [`OFFLINE`] if present, else built.
///
/// # Errors
///
/// As [`resolve`].
pub async fn ensure(docker: &Docker, requested: Option<&str>, sources: &Sources, events: &Events) -> Result<Image> {
    Search { docker, sources, events, official: OFFICIAL, offline: OFFLINE }.best(requested).await
}

/// A search for an image. The two names are fixed but in tests, which must not touch the images that people use.
struct Search<'a> {
    docker: &'a Docker,
    sources: &'a Sources,
    events: &'a Events,
    official: &'a str,
    offline: &'a str,
}

impl Search<'_> {
    /// See [`resolve`].
    async fn quick(&self, requested: Option<&str>) -> Result<Image> {
        if let Some(reference) = requested {
            return self.named(reference).await;
        }
        if let Some(image) = find(self.docker, self.official).await? {
            return Ok(image);
        }
        if let Some(image) = find(self.docker, self.offline).await? {
            self.events.note(format!(
                "Using the offline image `{}`: `{}` is not in Docker (`tfdev image ensure` asks the registry for it)",
                self.offline, self.official
            ));
            return Ok(image);
        }
        match self.pull(self.official).await {
            Err(error) if error.kind() != ErrorKind::NoEngine => self.build_instead(&error).await,
            done => done,
        }
    }

    /// See [`ensure`].
    async fn best(&self, requested: Option<&str>) -> Result<Image> {
        if let Some(reference) = requested {
            return self.named(reference).await;
        }
        if let Some(image) = find(self.docker, self.official).await? {
            return Ok(image);
        }
        let refused = match self.pull(self.official).await {
            Err(error) if error.kind() != ErrorKind::NoEngine => error,
            done => return done,
        };
        if let Some(image) = find(self.docker, self.offline).await? {
            self.events.note(format!("Using the offline image `{}`: {}", self.offline, one_line(&refused)));
            return Ok(image);
        }
        self.build_instead(&refused).await
    }

    /// The image that the user named: present, else pulled; the offline image is built instead, as no registry has it.
    async fn named(&self, reference: &str) -> Result<Image> {
        match find(self.docker, reference).await? {
            Some(image) => Ok(image),
            None if reference == self.offline => self.build().await,
            None => self.pull(reference).await,
        }
    }

    /// The last way: builds the offline image because the pull was `refused`, or says what stood in each way.
    async fn build_instead(&self, refused: &Error) -> Result<Image> {
        self.events.note(format!("Building the offline image `{}` instead: {}", self.offline, one_line(refused)));
        self.build().await.map_err(|unbuilt| no_way(refused, &unbuilt))
    }

    async fn pull(&self, reference: &str) -> Result<Image> {
        pull(self.docker, reference, self.sources.docker_config_dir.as_deref(), self.events).await
    }

    async fn build(&self) -> Result<Image> {
        let options = BuildOptions { bin_dir: self.sources.bin_dir.clone(), tag: Some(self.offline.to_owned()) };
        build(self.docker, self.events, options).await
    }
}

/// The error that gives each way to an image, what stood in it and what opens it.
fn no_way(refused: &Error, unbuilt: &Error) -> Error {
    let mut error = Error::new(
        ErrorKind::NoEngine,
        format!(
            "there is no PostgreSQL 15 image: pulling failed ({}), building offline failed ({})",
            one_line(refused),
            one_line(unbuilt)
        ),
    );
    for hint in unbuilt.hints() {
        error = error.hint(hint.clone());
    }
    error
        .hint(format!(
            "with a network, `docker pull {OFFICIAL}`; without, `docker save {OFFICIAL} -o postgres.tar` on another \
             machine and `tfdev image load postgres.tar` here"
        ))
        .hint("an image under another name: `image = \"…\"` in `[docker]` of `tfdev.toml`")
}

/// The message of `error` with its deepest cause, which is the one that names the reason.
fn one_line(error: &Error) -> String {
    match error.causes().pop() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// Refuses what is no image reference, before it becomes part of a request's path.
fn check_reference(reference: &str) -> Result<()> {
    let allowed = |character: char| character.is_ascii_alphanumeric() || "._-/:@".contains(character);
    let starts_well = reference.starts_with(|character: char| character.is_ascii_alphanumeric());
    if starts_well && reference.chars().all(allowed) && !reference.contains("..") && !reference.contains("//") {
        return Ok(());
    }
    Err(Error::bad_input(format!("`{reference}` is no image name"))
        .hint(format!("a name looks like `{OFFICIAL}` or `registry.example.com:5000/team/postgres:15`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_that_would_change_the_request_are_refused() {
        for good in [OFFICIAL, OFFLINE, "localhost:5000/a/b:1", "postgres@sha256:00ff", "sha256:00ff"] {
            check_reference(good).unwrap();
        }
        for bad in ["", " ", "postgres:15 alpine", "../version", "a/../../b", "a?b", "a#b", "/a", "a//b", "ä"] {
            assert_eq!(check_reference(bad).unwrap_err().kind(), ErrorKind::BadInput, "{bad}");
        }
    }

    #[test]
    fn the_last_error_names_both_reasons_and_keeps_the_remedy_of_the_build() {
        let refused = Error::failed("cannot pull `postgres:15-alpine`: no registry answers");
        let unbuilt = Error::bad_input("no PostgreSQL 15 on this machine").hint("apt-get install postgresql-15");
        let error = no_way(&refused, &unbuilt);
        assert_eq!(error.kind(), ErrorKind::NoEngine);
        assert!(error.to_string().contains("no registry answers"), "{error}");
        assert!(error.to_string().contains("no PostgreSQL 15 on this machine"), "{error}");
        assert_eq!(error.hints()[0], "apt-get install postgresql-15");
        assert!(error.hints()[1].contains("tfdev image load"));
    }
}

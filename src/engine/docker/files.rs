//! Files in a container, which need not run: what tfdev uploads, what it reads, and when what was written.
//!
//! What must hold: a file that tfdev uploads is dated by what is in it ([`stamp`]), so that a look at its date, for which
//! the engine needs half a millisecond, tells whether it is still that one: reading it takes the engine some forty. A
//! file that someone else wrote has another date, and is then read or written anew.

use bollard::query_parameters::{
    ContainerArchiveInfoOptionsBuilder, DownloadFromContainerOptionsBuilder, UploadToContainerOptionsBuilder,
};
use bytes::Bytes;
use futures_util::StreamExt;

use super::errors::{failed, is_not_found};
use super::{DockerEngine, container};
use crate::engine::StartRequest;
use crate::engine::cluster::{MARKER, stamp};
use crate::error::{Context, Error, Result};
use crate::instance::Secrets;
use crate::spec::{
    CERTIFICATE_FILE, CONFIGURATION_FILE, DATA_DIRECTORY, FILES_DIRECTORY, HOST_BASED_AUTHENTICATION_FILE, KEY_FILE,
};

/// Who runs the server in every image of the official image's contract.
const SERVER_USER: &str = "postgres";

/// What the server was started with that it cannot change while it runs: [`ServerSpec::hash`](crate::spec::ServerSpec::hash).
const STARTED_WITH_FILE: &str = "/etc/tfdev/started-with";

/// A file inside the container.
pub(super) struct File {
    path: &'static str,
    text: String,
}

/// The server's settings and what they name.
pub(super) struct Files {
    /// What a running server cannot change.
    pub(super) started_with: File,
    others: Vec<File>,
    /// The settings, written last: where they are as they should be, so are those that they name, whose contents they
    /// tell apart.
    pub(super) settings: File,
}

impl DockerEngine {
    /// The files of the server that is asked for.
    pub(super) fn files_of(&self, request: &StartRequest) -> Result<Files> {
        let file = |path, text: &str| File { path, text: text.to_owned() };
        let password = Secrets::of(&self.instance).superuser(&self.events)?;
        let mut others = vec![file(container::PASSWORD_FILE, password.expose())];
        if let Some(certificate) = &request.certificate {
            others.push(file(CERTIFICATE_FILE, &certificate.certificate));
            others.push(file(KEY_FILE, certificate.key.expose()));
        }
        others.extend(request.spec.login_rules().map(|rules| file(HOST_BASED_AUTHENTICATION_FILE, rules)));
        let settings = file(CONFIGURATION_FILE, &container::configuration(&request.spec));
        Ok(Files { started_with: file(STARTED_WITH_FILE, &request.spec.hash()), others, settings })
    }

    /// Whether the file is in the container `name` as it should be.
    pub(super) async fn holds(&self, name: &str, file: &File) -> Result<bool> {
        self.is_dated(name, file.path, stamp(&file.text)).await
    }

    /// Puts the server's settings and what they name into the container.
    pub(super) async fn upload_settings(&self, request: &StartRequest, files: &Files) -> Result<()> {
        let name = self.instance.container_name();
        let owner = match self.file_owner(&request.spec.image_id) {
            Some(owner) => owner,
            None => self.server_user(&name).await?,
        };
        let files = std::iter::once(&files.started_with).chain(&files.others).chain([&files.settings]);
        let files: Vec<_> = files.map(|file| (file.path, file.text.as_str())).collect();
        self.upload_files(&name, &files, owner).await
    }

    /// The number and group of the user who runs the server, as the image's own list of users has them.
    pub(super) async fn server_user(&self, name: &str) -> Result<(u64, u64)> {
        let users = self.read_file(name, "/etc/passwd").await?.unwrap_or_default();
        let number = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        let found = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(SERVER_USER)).then_some(())?;
            Some((number(fields.nth(1))?, number(fields.next())?))
        });
        found.ok_or_else(|| {
            Error::failed(format!("the image of container `{name}` has no user `{SERVER_USER}`"))
                .hint("use an image of the official image's contract, such as `postgres:15-alpine`")
        })
    }

    /// Puts files into the container's folder for what tfdev uploads, readable by the server's user alone.
    pub(super) async fn upload_files(
        &self,
        name: &str,
        files: &[(&str, &str)],
        (user, group): (u64, u64),
    ) -> Result<()> {
        let what = || format!("upload files into container `{name}`");
        let mut builder = tar::Builder::new(Vec::new());
        let mut folder = tar::Header::new_ustar();
        folder.set_entry_type(tar::EntryType::Directory);
        folder.set_mode(0o755);
        folder.set_size(0);
        let relative = |path: &str| path.trim_start_matches('/').to_owned();
        builder.append_data(&mut folder, relative(FILES_DIRECTORY) + "/", std::io::empty()).or_failed(what)?;
        for (path, text) in files {
            let mut header = tar::Header::new_ustar();
            // PostgreSQL refuses a key that others may read.
            header.set_mode(0o400);
            header.set_uid(user);
            header.set_gid(group);
            header.set_size(text.len() as u64);
            header.set_mtime(stamp(text));
            builder.append_data(&mut header, relative(path), text.as_bytes()).or_failed(what)?;
        }
        let tar = builder.into_inner().or_failed(what)?;
        self.upload(name, "/", tar).await.map_err(|error| failed(&what(), error))
    }

    /// Writes the mark of the data folder, which has its owner and time.
    pub(super) async fn upload_mark(
        &self,
        name: &str,
        text: &str,
        (user, group): (u64, u64),
        seconds: u64,
    ) -> Result<()> {
        let what = || format!("upload the data's mark into container `{name}`");
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o600);
        header.set_uid(user);
        header.set_gid(group);
        header.set_size(text.len() as u64);
        header.set_mtime(seconds);
        builder.append_data(&mut header, MARKER, text.as_bytes()).or_failed(what)?;
        let tar = builder.into_inner().or_failed(what)?;
        self.upload(name, DATA_DIRECTORY, tar).await.map_err(|error| failed(&what(), error))
    }

    /// Unpacks an archive in a folder of the container.
    async fn upload(&self, name: &str, folder: &str, tar: Vec<u8>) -> Result<(), bollard::errors::Error> {
        let options = UploadToContainerOptionsBuilder::default().path(folder).build();
        self.docker().upload_to_container(name, Some(options), bollard::body_full(Bytes::from(tar))).await
    }

    /// When a file, of the data folder unless its path is absolute, in the container `name` was written last, as the engine
    /// says it; `None` if there is no such file.
    async fn file_time(&self, name: &str, file: &str) -> Result<Option<String>> {
        let path = absolute(file);
        let options = ContainerArchiveInfoOptionsBuilder::default().path(&path).build();
        match self.docker().get_container_archive_info(name, Some(options)).await {
            Ok(found) => Ok(Some(found.modification_time.unwrap_or_default())),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(failed(&format!("look for `{path}` in container `{name}`"), error)),
        }
    }

    /// Whether there is such a file.
    pub(super) async fn has_file(&self, name: &str, file: &str) -> Result<bool> {
        Ok(self.file_time(name, file).await?.is_some())
    }

    /// Whether there is such a file and it was written last at this time, in seconds since 1970.
    pub(super) async fn is_dated(&self, name: &str, file: &str, seconds: u64) -> Result<bool> {
        let written = self.file_time(name, file).await?.and_then(|at| at.parse::<jiff::Timestamp>().ok());
        Ok(written.is_some_and(|at| u64::try_from(at.as_second()) == Ok(seconds)))
    }

    /// The text of a file, of the data folder unless its path is absolute, in the container `name`, which need not run;
    /// `None` if there is no such file.
    pub(super) async fn read_file(&self, name: &str, file: &str) -> Result<Option<String>> {
        let path = absolute(file);
        let what = || format!("read `{path}` in container `{name}`");
        let options = DownloadFromContainerOptionsBuilder::default().path(&path).build();
        let mut stream = self.docker().download_from_container(name, Some(options));
        let mut tar = Vec::new();
        while let Some(piece) = stream.next().await {
            match piece {
                Err(error) if is_not_found(&error) => return Ok(None),
                piece => tar.extend_from_slice(&piece.map_err(|error| failed(&what(), error))?),
            }
        }
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut text = String::new();
        if let Some(entry) = archive.entries().or_failed(what)?.next() {
            std::io::Read::read_to_string(&mut entry.or_failed(what)?, &mut text).or_failed(what)?;
        }
        Ok(Some(text))
    }
}

/// The path of a file, of the data folder unless it says otherwise.
fn absolute(file: &str) -> String {
    if file.starts_with('/') { file.to_owned() } else { format!("{DATA_DIRECTORY}/{file}") }
}

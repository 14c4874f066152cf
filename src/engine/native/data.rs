//! The data folder: made beside, from a cached one or by initdb, and then given its name; known again by its marker.
//!
//! What must hold: a folder under the name `data` is whole; what a killed run left beside it is removed by the next one;
//! no two servers share a system identifier; and a folder without the instance's marker is never started or removed.

use std::fs::{self, DirBuilder, File};
use std::io::{self, BufReader, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::account::Account;
use super::place::Place;
use super::settings_file;
use crate::channel_reader::ChannelReader;
use crate::engine::cluster::{self, Cluster, MARKER};
use crate::engine::{DataSource, StartRequest};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::{Instance, Password, private_file};
use crate::pg::control::{CONTROL_FILE, ClusterState, ControlFile};
use crate::pg::programs::Programs;
use crate::spec::{INITDB_ARGUMENTS, POSTGRES_MAJOR, SUPERUSER, hexadecimal};

/// The locales to make a data folder with, the first one that this machine knows: text sorted by code point, as in the
/// image, and upper and lower case of all letters with the first.
const LOCALES: [&str; 2] = ["C.UTF-8", "C"];

/// How many pieces of a data folder wait for being written, of some 256 KB each.
const WAITING_PIECES: usize = 16;

/// What is in the marker of a data folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    /// The instance's identity.
    pub(super) id: Uuid,
    project: String,
    pub(super) instance: String,
    /// The programs that it was made with.
    programs: String,
}

/// A data folder that is there and is the instance's own.
#[derive(Debug)]
pub(super) struct DataFolder {
    pub(super) marker: Marker,
    /// Who runs its server.
    pub(super) account: Account,
}

impl DataFolder {
    /// Looks at the data folder; `None` if there is none. Fails if it is someone else's. `former` is another name that the
    /// instance had, which the data may still carry.
    pub(super) fn look(data: &Path, instance: &Instance, former: Option<&str>) -> Result<Option<Self>> {
        let what = || format!("cannot look at the data folder `{}`", data.display());
        let found = match fs::symlink_metadata(data) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.or_failed(what)?,
        };
        if !found.is_dir() {
            return Err(not_made_by_us(data));
        }
        let account = Account::of_owner(data, found.uid(), found.gid())?;
        let bytes = match fs::read(data.join(MARKER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(not_made_by_us(data)),
            bytes => bytes.or_failed(what)?,
        };
        let marker: Marker = serde_json::from_slice(&bytes).map_err(|error| not_made_by_us(data).caused_by(error))?;
        let has_name = marker.instance == instance.name || former == Some(marker.instance.as_str());
        if marker.project != instance.project || !has_name {
            return Err(Error::new(
                ErrorKind::Refused,
                format!(
                    "the data folder `{}` belongs to the instance `{}` of the project `{}`, so tfdev leaves it alone",
                    data.display(),
                    marker.instance,
                    marker.project
                ),
            )
            .hint("move it to where that project looks for it, or away"));
        }
        Ok(Some(Self { marker, account }))
    }

    /// Writes the instance's name into the marker, if that has another one.
    pub(super) fn rename(&self, data: &Path, instance: &Instance) -> Result<()> {
        if self.marker.instance == instance.name {
            return Ok(());
        }
        let (path, partial) = (data.join(MARKER), data.join(format!("{MARKER}.part")));
        let marker = Marker { instance: instance.name.clone(), ..self.marker.clone() };
        let text = serde_json::to_vec(&marker).expect("texts and a number are always JSON");
        let written = write_new(&partial, &text, self.account).and_then(|file| {
            file.sync_all()?;
            fs::rename(&partial, &path)
        });
        written.or_failed(|| format!("cannot write `{}`", path.display()))
    }

    /// Fails unless the data is this major version's.
    pub(super) fn check_version(data: &Path) -> Result<()> {
        let path = data.join("PG_VERSION");
        let version = fs::read_to_string(&path).or_failed(|| format!("cannot read `{}`", path.display()))?;
        let version = version.trim();
        if version == POSTGRES_MAJOR.to_string() {
            return Ok(());
        }
        let folder = data.display();
        Err(Error::new(
            ErrorKind::Refused,
            format!("the data folder `{folder}` holds data of PostgreSQL {version}, and tfdev runs {POSTGRES_MAJOR}"),
        )
        .hint(format!(
            "start it with PostgreSQL {version} (`pg_ctl -D {folder} start`), dump it with `pg_dump`, run \
             `tfdev destroy` and `tfdev up`, and load the dump"
        )))
    }
}

/// Whether the server of a data folder that does not run was stopped in order, as far as its control file tells.
pub(super) fn was_stopped_in_order(data: &Path) -> bool {
    let control = fs::read(data.join(CONTROL_FILE)).ok().and_then(|bytes| ControlFile::parse(&bytes).ok());
    control.is_none_or(|control| control.state == ClusterState::ShutDown)
}

fn not_made_by_us(data: &Path) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("`{}` is not a data folder that tfdev made, so tfdev leaves it alone", data.display()),
    )
    .hint("move it away if it is needed, or remove it")
}

/// Makes data folders.
pub(super) struct Maker {
    pub(super) place: Place,
    pub(super) instance: Instance,
    pub(super) account: Account,
    pub(super) programs: Programs,
    /// Where data folders are kept that were initialised once.
    pub(super) cache: PathBuf,
}

impl Maker {
    /// The name of the cached data folder of these programs.
    pub(super) fn key(&self) -> String {
        let parts = format!("{}\0{INITDB_ARGUMENTS}\0{LOCALES:?}\0{}", self.programs, settings_file::INCLUDE);
        hexadecimal(&Sha256::digest(parts)[..8])
    }

    /// The cached data folder, if there is one.
    pub(super) fn cached(&self) -> Option<Cluster> {
        cluster::find(&self.cache, &self.key())
    }

    /// Makes the data folder from `cached`, or by initdb, which is then cached: the caller holds the cache's lock.
    /// Returns the superuser's password in it.
    pub(super) fn make(&self, request: &StartRequest, cached: Option<Cluster>) -> Result<Password> {
        let (partial, data) = (self.place.partial(), self.place.data());
        remove(&partial)?;
        let made = match cached {
            Some(cluster) => self.copy(&cluster, request),
            None => self.initialise(request),
        };
        let password = match made {
            Ok(password) => password,
            Err(error) => {
                remove(&partial)?;
                return Err(error);
            }
        };
        fs::rename(&partial, &data).or_failed(|| format!("cannot name the data folder `{}`", data.display()))?;
        Ok(password)
    }

    /// Makes the data folder from what `data` hands over.
    pub(super) fn restore(&self, request: &StartRequest, data: DataSource) -> Result<()> {
        let (partial, target) = (self.place.partial(), self.place.data());
        remove(&partial)?;
        let marker = self.marker(request);
        let what = || format!("cannot unpack the data folder `{}`", partial.display());
        let made =
            self.unpack_from(move |send| data(&marker, send)).and_then(|()| flush(&self.place.home).or_failed(what));
        if let Err(error) = made {
            remove(&partial)?;
            return Err(error);
        }
        fs::rename(&partial, &target).or_failed(|| format!("cannot name the data folder `{}`", target.display()))
    }

    fn marker(&self, request: &StartRequest) -> String {
        let marker = Marker {
            id: request.id,
            project: self.instance.project.clone(),
            instance: self.instance.name.clone(),
            programs: self.programs.to_string(),
        };
        serde_json::to_string(&marker).expect("texts and a number are always JSON")
    }

    fn copy(&self, cluster: &Cluster, request: &StartRequest) -> Result<Password> {
        let marker = self.marker(request);
        self.unpack_from(|send| cluster.copy(request.id, &marker, send))?;
        Ok(Password::new(cluster.index.password.clone()))
    }

    /// Unpacks the tar file that `source` hands over in pieces.
    fn unpack_from(&self, source: impl FnOnce(&mut dyn FnMut(Bytes) -> bool) -> Result<()> + Send) -> Result<()> {
        let what = || format!("cannot unpack a data folder to `{}`", self.place.partial().display());
        let (sender, receiver) = tokio::sync::mpsc::channel(WAITING_PIECES);
        std::thread::scope(|scope| {
            let source = scope.spawn(move || source(&mut |piece| sender.blocking_send(piece).is_ok()));
            let unpacked = self
                .unpack(ChannelReader::new(receiver))
                .or_failed(what)
                .map_err(|error| with_room_hint(error, &self.place.home));
            let sent = source.join().unwrap_or_else(|_| Err(Error::failed("reading the data folder was cut off")));
            sent.and(unpacked)
        })
    }

    /// Unpacks a data folder; its entries are folders and files only, each after the folder that it is in.
    fn unpack(&self, source: impl io::Read) -> io::Result<()> {
        let root = self.place.partial();
        let folder = |path: &Path| {
            DirBuilder::new().mode(0o700).create(path)?;
            self.account.give_path(path)
        };
        folder(&root)?;
        let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, source));
        let mut buffer = vec![0; 1 << 18];
        for entry in archive.entries()? {
            let mut entry = entry?;
            let relative = entry.path()?.into_owned();
            if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
                return Err(io::Error::other(format!("the path `{}` leads elsewhere", relative.display())));
            }
            let path = root.join(relative);
            if entry.header().entry_type().is_dir() {
                folder(&path)?;
                continue;
            }
            let mut file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
            // With its own buffer `io::copy` would write 8 KB at once.
            loop {
                let length = entry.read(&mut buffer)?;
                if length == 0 {
                    break;
                }
                file.write_all(&buffer[..length])?;
            }
            self.account.give(&file)?;
        }
        Ok(())
    }

    /// Runs initdb, and keeps the folder for the next instances.
    fn initialise(&self, request: &StartRequest) -> Result<Password> {
        let partial = self.place.partial();
        let password = Password::random()?;
        let password_file = self.place.home.join("first.password");
        self.write(&password_file, password.expose())?;
        let done = self.run_initdb(&partial, &password_file);
        fs::remove_file(&password_file).or_failed(|| format!("cannot remove `{}`", password_file.display()))?;
        done?;
        let configuration = partial.join("postgresql.conf");
        let append = || {
            let mut file = File::options().append(true).open(&configuration)?;
            file.write_all(settings_file::INCLUDE.as_bytes())
        };
        append().or_failed(|| format!("cannot write `{}`", configuration.display()))?;
        self.keep(&partial, &password)?;
        self.write(&partial.join(MARKER), &self.marker(request))?;
        Ok(password)
    }

    /// Writes a new file that only the server's user may read.
    fn write(&self, path: &Path, text: &str) -> Result<()> {
        let written = write_new(path, text.as_bytes(), self.account);
        written.map(drop).or_failed(|| format!("cannot write the file `{}`", path.display()))
    }

    fn run_initdb(&self, partial: &Path, password_file: &Path) -> Result<()> {
        DirBuilder::new()
            .mode(0o700)
            .create(partial)
            .and_then(|()| self.account.give_path(partial))
            .or_failed(|| format!("cannot make the folder `{}`", partial.display()))?;
        let initdb = self.programs.program("initdb");
        let mut last = None;
        for locale in LOCALES {
            let own = [
                "--no-sync".to_owned(),
                format!("--username={SUPERUSER}"),
                "--encoding=UTF8".to_owned(),
                format!("--locale={locale}"),
                format!("--pwfile={}", password_file.display()),
                format!("--pgdata={}", partial.display()),
            ];
            let arguments: Vec<&str> = INITDB_ARGUMENTS.split(' ').chain(own.iter().map(String::as_str)).collect();
            match self.account.run(&initdb, &arguments) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    let unknown_locale = error.causes().iter().any(|cause| cause.contains("invalid locale"));
                    last = Some(error);
                    if !unknown_locale {
                        break;
                    }
                }
            }
        }
        let error = Error::failed("cannot make a new data folder");
        let error = last.map_or(Error::failed("no locale"), |last| {
            let causes = last.causes().join("\n");
            error.caused_by(format!("{last}: {causes}"))
        });
        Err(with_room_hint(error, &self.place.home))
    }

    /// Keeps a copy of a data folder on which no server has run yet.
    fn keep(&self, folder: &Path, password: &Password) -> Result<()> {
        let what = || format!("cannot keep the new data folder under `{}`", self.cache.display());
        private_file::create_folder(&self.cache)?;
        let (reader, writer) = io::pipe().or_failed(what)?;
        std::thread::scope(|scope| {
            let source = scope.spawn(move || {
                let mut builder = tar::Builder::new(writer);
                builder.append_dir_all("data", folder).and_then(|()| builder.finish())
            });
            let kept = cluster::keep(&self.cache, &self.key(), BufReader::new(reader), password.expose());
            let sent = source.join().unwrap_or_else(|_| Err(io::Error::other("reading it was cut off")));
            // A reader that stops early breaks the pipe: then its own reason counts.
            match sent {
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error).or_failed(what),
                _ => kept.map(drop).map_err(|error| with_room_hint(error, &self.cache)),
            }
        })
    }
}

/// Writes a new file, in place of one that is there, that only the server's user may read.
fn write_new(path: &Path, contents: &[u8], account: Account) -> io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(contents)?;
    account.give(&file)?;
    Ok(file)
}

/// Adds what to do if the disk is full.
fn with_room_hint(error: Error, folder: &Path) -> Error {
    let full = std::iter::once(error.to_string()).chain(error.causes()).any(|text| {
        let text = text.to_lowercase();
        text.contains("no space left") || text.contains("quota exceeded")
    });
    let folder = folder.display();
    let hint =
        || format!("free some space below `{folder}`: a new data folder takes about 40 MB, and what it grows to");
    if full { error.hint(hint()) } else { error }
}

/// Removes a folder with all that is in it, if it is there.
pub(super) fn remove(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.or_failed(|| format!("cannot remove the folder `{}`", folder.display())),
    }
}

/// Makes sure that all files of a folder survive a crash of the machine: by one flush of its file system, which takes a
/// tenth of a second where a thousand flushes of files take three.
#[cfg(target_os = "linux")]
pub(super) fn flush(folder: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(File::open(folder)?)?)
}

/// Makes sure that all files of a folder survive a crash of the machine. Files that go away meanwhile need not.
#[cfg(not(target_os = "linux"))]
pub(super) fn flush(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let done = if kind.is_dir() {
            flush(&entry.path())
        } else if kind.is_file() {
            File::open(entry.path()).and_then(|file| file.sync_all())
        } else {
            Ok(())
        };
        match done {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done?,
        }
    }
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance::tests::instance;

    #[test]
    fn a_folder_without_the_instances_marker_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let instance = instance(root.path());
        let data = root.path().join("data");
        assert!(DataFolder::look(&data, &instance, None).unwrap().is_none());
        fs::create_dir(&data).unwrap();
        Account::for_new(None).unwrap().0.give_path(&data).unwrap();
        let refused = |words: &str| {
            let error = DataFolder::look(&data, &instance, None).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(words), "{error}");
        };
        refused("not a data folder that tfdev made");
        fs::write(data.join(MARKER), "{").unwrap();
        refused("not a data folder that tfdev made");
        let id = Uuid::new_v4();
        let marker = |project: &str| {
            let marker =
                Marker { id, project: project.into(), instance: "dev".into(), programs: "PostgreSQL 15".into() };
            fs::write(data.join(MARKER), serde_json::to_vec(&marker).unwrap()).unwrap();
        };
        marker("other");
        refused("belongs to the instance `dev` of the project `other`");
        marker("app");
        assert_eq!(DataFolder::look(&data, &instance, None).unwrap().unwrap().marker.id, id);
        // Under another name it is the instance's own only if it had that.
        let other = Instance { name: "other".into(), ..instance.clone() };
        assert!(DataFolder::look(&data, &other, Some("test")).is_err());
        let folder = DataFolder::look(&data, &other, Some("dev")).unwrap().unwrap();
        folder.rename(&data, &other).unwrap();
        assert_eq!(DataFolder::look(&data, &other, None).unwrap().unwrap().marker.id, id);
        assert!(DataFolder::look(&data, &instance, None).is_err());
    }

    #[test]
    fn data_of_another_major_version_is_refused_with_the_way_out() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("PG_VERSION"), "14\n").unwrap();
        let error = DataFolder::check_version(root.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("PostgreSQL 14") && error.hints()[0].contains("pg_dump"), "{error}");
        fs::write(root.path().join("PG_VERSION"), "15\n").unwrap();
        DataFolder::check_version(root.path()).unwrap();
    }
}

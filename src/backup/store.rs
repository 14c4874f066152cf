//! Where backups are: a folder, or a bucket of S3 and what speaks like it.
//!
//! What must hold: an object is there as a whole or not at all; what this module says is written is on the disk of the
//! folder, or acknowledged by the bucket with its checksum; and an object that is not there is told apart from a store
//! that does not answer.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{BoxStream, try_unfold};
use futures_util::{StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{GetResult, GetResultPayload, ObjectStore, ObjectStoreExt, WriteMultipart};

use super::keys::Keys;
use crate::config::{Setting, Settings};
use crate::error::{Context, Error, ErrorKind, Result};

/// How large the parts of a large object are, in bytes; S3 takes 10 000 of them, so an object may have 80 GB.
const PART_BYTES: usize = 8 << 20;

/// How many parts are on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// How much of a file is read at once, in bytes.
const FILE_PIECE: usize = 512 * 1024;

/// A place for backups.
#[derive(Debug, Clone)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    /// What all names begin with.
    prefix: Path,
    /// The place as it is configured, for messages.
    place: String,
    /// The folder, if it is one.
    folder: Option<PathBuf>,
    /// What encrypts and opens that of the objects which holds data.
    keys: Keys,
}

/// An object as a listing has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Object {
    /// Its name below the store's prefix.
    pub key: String,
    /// Its size.
    pub bytes: u64,
    /// When it was written, as the store tells.
    pub at: jiff::Timestamp,
}

impl Store {
    /// The store that is configured.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if there is none; [`ErrorKind::BadInput`] if it cannot be used; those of [`Keys::of`].
    pub fn of(settings: &Settings) -> Result<Self> {
        let Some(store) = &settings.backup.store else {
            return Err(Error::new(ErrorKind::NotFound, "there is no place for backups")
                .hint("set `store = \"file:///folder\"` or `store = \"s3://bucket/prefix\"` in the section `[backup]` of tfdev.toml, then run `tfdev up`"));
        };
        let keys = Keys::of(settings)?;
        let opened = match store.value.strip_prefix("file://") {
            Some(folder) => Self::folder(folder, store, &settings.project_key())?,
            None => Self::bucket(store, settings)?,
        };
        Ok(Self { keys, ..opened })
    }

    fn folder(folder: &str, store: &Setting<String>, project: &str) -> Result<Self> {
        let path = PathBuf::from(folder);
        let cannot = || format!("cannot use the folder `{folder}` for backups ({})", store.origin);
        crate::instance::private_file::create_folder_once(&path).context(ErrorKind::BadInput, cannot)?;
        let path = path.canonicalize().context(ErrorKind::BadInput, cannot)?;
        // All of a project's objects are in here, closed to others whatever the folder above is.
        crate::instance::private_file::create_folder(&path.join(project))?;
        let local = LocalFileSystem::new_with_prefix(&path).context(ErrorKind::BadInput, cannot)?;
        Ok(Self {
            objects: Arc::new(local.with_fsync(true).with_automatic_cleanup(true)),
            prefix: Path::default(),
            place: store.value.clone(),
            folder: Some(path),
            keys: Keys::default(),
        })
    }

    #[cfg(not(feature = "s3"))]
    fn bucket(store: &Setting<String>, _: &Settings) -> Result<Self> {
        let message = format!("this tfdev was built without S3, and {} says `{}`", store.origin, store.value);
        Err(Error::bad_input(message).hint("build it with the feature `s3`, or name a folder: `file:///folder`"))
    }

    #[cfg(feature = "s3")]
    fn bucket(store: &Setting<String>, settings: &Settings) -> Result<Self> {
        let (objects, prefix) = super::s3::open(store, settings)?;
        let prefix = Path::parse(prefix)
            .context(ErrorKind::BadInput, || format!("{}: the prefix in `{}` is no name", store.origin, store.value))?;
        let place = super::s3::without_parameters(&store.value);
        Ok(Self { objects, prefix, place, folder: None, keys: Keys::default() })
    }

    /// The place, as people know it.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The keys that are configured.
    pub(super) fn keys(&self) -> &Keys {
        &self.keys
    }

    fn path(&self, key: &str) -> Path {
        key.split('/').filter(|part| !part.is_empty()).fold(self.prefix.clone(), Path::join)
    }

    fn failed(&self, what: &str, key: &str, error: object_store::Error) -> Error {
        let message = format!("cannot {what} `{key}` in the backup store {}", self.place);
        let text = error.to_string();
        let is_login =
            matches!(error, object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. })
                || ["ExpiredToken", "401 Unauthorized", "403 Forbidden"].iter().any(|sign| text.contains(sign));
        let told = Error::failed(message).caused_by(error);
        if is_login {
            return told.hint(match &self.folder {
                Some(folder) => format!("let this user write to `{}`", folder.display()),
                None => "the credentials are wrong, have expired or may not do that; look at `AWS_ACCESS_KEY_ID`, \
                         `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`"
                    .to_owned(),
            });
        }
        if let Some(folder) = self.folder.as_ref().filter(|_| text.contains("No space left")) {
            return told.hint(format!("make room for `{}`; nothing is lost meanwhile", folder.display()));
        }
        if text.contains("NoSuchBucket") {
            return told.hint("make the bucket first; tfdev does not");
        }
        told
    }

    /// Writes a small object, in the place of one that is there.
    pub async fn put(&self, key: &str, bytes: Bytes) -> Result<()> {
        let put = self.objects.put(&self.path(key), bytes.into()).await;
        put.map(drop).map_err(|error| self.failed("write", key, error))
    }

    /// Reads a small object; `None` if there is none.
    pub async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let got = match self.objects.get(&self.path(key)).await {
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            got => got.map_err(|error| self.failed("read", key, error))?,
        };
        got.bytes().await.map(Some).map_err(|error| self.failed("read", key, error))
    }

    /// Reads an object piece by piece.
    pub async fn stream(&self, key: &str) -> Result<BoxStream<'static, Result<Bytes>>> {
        let got = match self.objects.get(&self.path(key)).await {
            Err(object_store::Error::NotFound { .. }) => {
                let message = format!("`{key}` is not in the backup store {}", self.place);
                return Err(Error::new(ErrorKind::NotFound, message));
            }
            got => got.map_err(|error| self.failed("read", key, error))?,
        };
        let (store, key) = (self.clone(), key.to_owned());
        let got = match got.payload {
            // By itself object_store hands over 8 KB at once, each read by another thread.
            GetResultPayload::File(file, _) => return Ok(store.pieces(key, file)),
            payload @ GetResultPayload::Stream(_) => GetResult { payload, ..got },
        };
        Ok(got.into_stream().map_err(move |error| store.failed("read", &key, error)).boxed())
    }

    /// The file of an object, piece by piece.
    fn pieces(self, key: String, file: File) -> BoxStream<'static, Result<Bytes>> {
        let read = move |mut file: File| {
            let (store, key) = (self.clone(), key.clone());
            async move {
                let what = || format!("cannot read `{key}` in the backup store {}", store.place);
                let reading = tokio::task::spawn_blocking(move || {
                    let mut piece = Vec::with_capacity(FILE_PIECE);
                    file.by_ref().take(FILE_PIECE as u64).read_to_end(&mut piece).map(|_| (piece, file))
                });
                let (piece, file) = reading.await.or_failed(what)?.or_failed(what)?;
                Ok(if piece.is_empty() { None } else { Some((Bytes::from(piece), file)) })
            }
        };
        try_unfold(file, read).boxed()
    }

    /// The size of an object; `None` if there is none.
    pub async fn size(&self, key: &str) -> Result<Option<u64>> {
        match self.objects.head(&self.path(key)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("look for", key, error)),
        }
    }

    /// All objects below `folder`, in no order.
    pub async fn list(&self, folder: &str) -> Result<Vec<Object>> {
        let path = self.path(folder);
        let skipped = if self.prefix.as_ref().is_empty() { 0 } else { self.prefix.as_ref().len() + 1 };
        let found: std::result::Result<Vec<_>, _> = self.objects.list(Some(&path)).try_collect().await;
        let found = found.map_err(|error| self.failed("list", folder, error))?;
        let objects = found.into_iter().filter_map(|meta| {
            let at = jiff::Timestamp::from_second(meta.last_modified.timestamp()).unwrap_or_default();
            Some(Object { key: meta.location.as_ref().get(skipped..)?.to_owned(), bytes: meta.size, at })
        });
        Ok(objects.collect())
    }

    /// The names of the folders directly below `folder`.
    pub async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let found = self.objects.list_with_delimiter(Some(&self.path(folder))).await;
        let found = found.map_err(|error| self.failed("list", folder, error))?;
        let mut names: Vec<_> =
            found.common_prefixes.iter().filter_map(|path| path.filename().map(str::to_owned)).collect();
        names.sort();
        Ok(names)
    }

    /// Removes an object; one that is not there is no failure.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.objects.delete(&self.path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("remove", key, error)),
        }
    }

    /// Begins to write a large object. It is there when [`Upload::finish`] says so.
    pub async fn upload(&self, key: &str) -> Result<Upload> {
        let begun = self.objects.put_multipart(&self.path(key)).await;
        let begun = begun.map_err(|error| self.failed("write", key, error))?;
        let writer = WriteMultipart::new_with_chunk_size(begun, PART_BYTES);
        Ok(Upload { store: self.clone(), key: key.to_owned(), writer })
    }

    /// Removes what uploads that were killed have left in a folder of this machine; a bucket has a rule for that.
    pub(super) fn remove_partial(&self, folder: &str) {
        let Some(root) = &self.folder else { return };
        for entry in std::fs::read_dir(root.join(folder)).into_iter().flatten().flatten() {
            // The names that object_store gives to what it has not finished.
            let name = entry.file_name();
            let staged = name.to_string_lossy().rsplit_once('#').is_some_and(|(_, tail)| tail.parse::<u32>().is_ok());
            if staged {
                let _ = std::fs::remove_file(entry.path());
            }
        }
        let _ = std::fs::remove_dir(root.join(folder));
    }
}

/// A large object that is being written.
pub struct Upload {
    store: Store,
    key: String,
    writer: WriteMultipart,
}

impl Upload {
    /// Writes the next bytes; waits while the store is slow.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let waited = self.writer.wait_for_capacity(PARTS_AT_ONCE).await;
        waited.map_err(|error| self.store.failed("write", &self.key, error))?;
        self.writer.put(bytes);
        Ok(())
    }

    /// Completes the object, and looks that all of it is there.
    pub async fn finish(self, bytes: u64) -> Result<()> {
        let Self { store, key, writer } = self;
        writer.finish().await.map_err(|error| store.failed("write", &key, error))?;
        match store.size(&key).await? {
            Some(found) if found == bytes => Ok(()),
            found => Err(Error::failed(format!(
                "the backup store {} said that it wrote `{key}`, but has {} of its {bytes} bytes",
                store.place,
                found.unwrap_or(0)
            ))),
        }
    }

    /// Gives up; nothing of the object stays, as far as the store can be reached.
    pub async fn abort(self) {
        let _ = self.writer.abort().await;
    }
}

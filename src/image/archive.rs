//! Moves images as files, in the format of `docker save`.
//!
//! What must hold: a file that [`save`] leaves under its name is whole; a failed or interrupted save leaves what was there
//! before, and no other file.

use std::io::{BufReader, Read as _, Seek as _};
use std::path::Path;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::models::BuildInfo;
use bollard::query_parameters::ImportImageOptionsBuilder;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Image, ImageSource, find};
use crate::engine::docker::errors::{self, failed};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Event, Events, Progress, Unit};
use crate::partial_file::PartialFile;

/// How much of a file is read at once.
const CHUNK: usize = 256 * 1024;

/// How long the daemon may take before it answers: it reads the whole archive first.
const LOAD_TIMEOUT: Duration = Duration::from_mins(30);

/// Loads the images in the file at `path`; `gzip`, `bzip2`, `xz` and `zstd` are undone by the daemon.
///
/// # Errors
///
/// [`ErrorKind::BadInput`] if there is no such file or it is no image archive; the message says what it is.
pub async fn load(docker: &Docker, path: &Path, events: &Events) -> Result<Vec<Image>> {
    let began = Instant::now();
    let shown = path.display().to_string();
    events.started(format!("Loading `{shown}`"));
    let (checked, size) = {
        let path = path.to_owned();
        let check = tokio::task::spawn_blocking(move || check_archive(&path));
        check.await.or_failed(|| "the check of the archive was interrupted")??
    };
    let file = tokio::fs::File::from_std(checked);
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let patient = docker.clone().with_timeout(LOAD_TIMEOUT);
    let mut loaded = Vec::new();
    let mut answers = std::pin::pin!(patient.import_image_stream(options, chunks(file, size, events.clone()), None));
    while let Some(answer) = answers.next().await {
        let answer = answer.map_err(|error| not_taken(&shown, error))?;
        loaded.extend(names_in(&answer));
    }
    let mut images = Vec::new();
    for name in loaded {
        if let Some(image) = find(docker, &name).await? {
            images.push(Image { source: ImageSource::Loaded, ..image });
        }
    }
    if images.is_empty() {
        return Err(
            Error::bad_input(format!("`{shown}` holds no image")).hint("`docker save IMAGE -o FILE` writes one")
        );
    }
    let names: Vec<_> = images.iter().map(|image| format!("`{}`", image.reference)).collect();
    events.finished(format!("Loaded {} from `{shown}`", names.join(", ")), began.elapsed());
    Ok(images)
}

/// Saves the image `reference` as the file `path` and returns its size in bytes. The file is complete and on disk under
/// another name before it takes this one.
///
/// # Errors
///
/// [`ErrorKind::NotFound`] if the daemon has no such image; [`ErrorKind::BadInput`] if `path` is a folder or is in none.
pub async fn save(docker: &Docker, reference: &str, path: &Path, events: &Events) -> Result<u64> {
    let began = Instant::now();
    let image = find(docker, reference).await?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("there is no image `{reference}` in Docker"))
            .hint(format!("`tfdev image ensure` gets one, `docker pull {reference}` this one"))
    })?;
    events.started(format!("Saving `{reference}` as `{}`", path.display()));
    let target = PartialFile::beside(path, "postgres.tar")?;
    let size = fill(&target, docker, &image, path, events).await?;
    target.take_name()?;
    events.finished(format!("Saved `{reference}` as `{}` ({} MB)", path.display(), size / 1_000_000), began.elapsed());
    Ok(size)
}

/// Writes the image to `target`; returns how many bytes that are.
async fn fill(target: &PartialFile, docker: &Docker, image: &Image, path: &Path, events: &Events) -> Result<u64> {
    let unwritable = || format!("cannot write `{}`", path.display());
    let mut file = tokio::fs::File::from_std(target.file()?);
    let mut bytes = std::pin::pin!(docker.export_image(&image.reference));
    let mut written = 0;
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(|error| failed(&format!("save the image `{}`", image.reference), error))?;
        file.write_all(&chunk).await.or_failed(unwritable)?;
        written += chunk.len() as u64;
        events.send(progress("image:save", "Saving", written, Some(image.size_bytes.max(written)), false));
    }
    file.flush().await.or_failed(unwritable)?;
    events.send(progress("image:save", "Saving", written, Some(written), true));
    Ok(written)
}

/// Opens the file at `path` if it can be an image archive; gives its size too.
fn check_archive(path: &Path) -> Result<(std::fs::File, u64)> {
    let shown = path.display();
    let bad = |what: &str| Error::bad_input(format!("`{shown}` {what}"));
    let mut file = std::fs::File::open(path).context(ErrorKind::BadInput, || format!("cannot read `{shown}`"))?;
    let metadata = file.metadata().context(ErrorKind::BadInput, || format!("cannot read `{shown}`"))?;
    if metadata.is_dir() {
        return Err(bad("is a folder, not an image archive"));
    }
    let mut start = Vec::new();
    (&mut file).take(512).read_to_end(&mut start).context(ErrorKind::BadInput, || format!("cannot read `{shown}`"))?;
    match kind_of(&start) {
        Kind::Compressed => {}
        Kind::Tar => check_members(&mut file, path)?,
        Kind::Empty => return Err(bad("is empty")),
        Kind::Other(what) => {
            return Err(bad(&format!("is no image archive but {what}")).hint("`docker save IMAGE -o FILE` writes one"));
        }
    }
    file.rewind().context(ErrorKind::BadInput, || format!("cannot read `{shown}`"))?;
    Ok((file, metadata.len()))
}

#[derive(Debug, PartialEq, Eq)]
enum Kind {
    Tar,
    Compressed,
    Empty,
    Other(String),
}

/// Tells by the first 512 bytes what a file is.
fn kind_of(start: &[u8]) -> Kind {
    const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"];
    if start.is_empty() {
        Kind::Empty
    } else if COMPRESSED.iter().any(|magic| start.starts_with(magic)) {
        Kind::Compressed
    } else if start.get(257..262) == Some(b"ustar") {
        Kind::Tar
    } else if start.starts_with(b"PGDMP") {
        Kind::Other("a dump by `pg_dump`".to_owned())
    } else if start.starts_with(b"PK\x03\x04") {
        Kind::Other("a zip file".to_owned())
    } else if start.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        let text = String::from_utf8_lossy(start);
        let line: String = text.lines().next().unwrap_or_default().chars().take(40).collect();
        Kind::Other(format!("text that begins with `{line}`"))
    } else {
        Kind::Other("a file of another kind".to_owned())
    }
}

/// Makes sure that a tar holds images: a tar of a file system is a common mistake, and the daemon's message for it is a
/// riddle.
fn check_members(file: &mut std::fs::File, path: &Path) -> Result<()> {
    let shown = path.display();
    let broken = || format!("`{shown}` is a broken or cut off archive");
    file.rewind().context(ErrorKind::BadInput, broken)?;
    let length = file.metadata().context(ErrorKind::BadInput, broken)?.len();
    let mut archive = tar::Archive::new(BufReader::new(file));
    for entry in archive.entries_with_seek().context(ErrorKind::BadInput, broken)? {
        let entry = entry.context(ErrorKind::BadInput, broken)?;
        if entry.raw_file_position() + entry.size() > length {
            return Err(Error::bad_input(broken()).hint("copy it again: its end is missing"));
        }
        let name = entry.path().context(ErrorKind::BadInput, broken)?;
        if ["manifest.json", "index.json", "repositories"].iter().any(|known| name == Path::new(known)) {
            return Ok(());
        }
    }
    Err(Error::bad_input(format!("`{shown}` is a tar archive, but holds no image: there is no `manifest.json` in it"))
        .hint("`docker save IMAGE -o FILE` writes an image; a file by `docker export` is a container's file system")
        .hint("`docker import FILE NAME` makes an image from a file system"))
}

/// The file's bytes, with progress.
fn chunks(
    file: tokio::fs::File,
    size: u64,
    events: Events,
) -> impl futures_util::Stream<Item = std::io::Result<Bytes>> + Send {
    stream::unfold((file, 0_u64, events), move |(mut file, mut position, events)| async move {
        let mut buffer = Vec::with_capacity(CHUNK);
        let read = (&mut file).take(CHUNK as u64).read_to_end(&mut buffer).await;
        let chunk = match read {
            Ok(0) => {
                events.send(progress("image:load", "Sending to Docker", position, Some(size), true));
                return None;
            }
            Ok(count) => {
                position += count as u64;
                events.send(progress("image:load", "Sending to Docker", position, Some(size.max(position)), false));
                Ok(Bytes::from(buffer))
            }
            Err(error) => Err(error),
        };
        Some((chunk, (file, position, events)))
    })
}

fn progress(id: &str, label: &str, position: u64, total: Option<u64>, done: bool) -> Event {
    Event::Progress(Progress { id: id.to_owned(), label: label.to_owned(), unit: Unit::Bytes, position, total, done })
}

/// The names in `Loaded image: postgres:15-alpine` and `Loaded image ID: sha256:…`, which is all that the daemon tells.
fn names_in(answer: &BuildInfo) -> Vec<String> {
    let lines = answer.stream.as_deref().unwrap_or_default().lines();
    let names = lines.filter_map(|line| line.strip_prefix("Loaded image: ").or(line.strip_prefix("Loaded image ID: ")));
    names.map(|name| name.trim().to_owned()).collect()
}

/// The daemon understood every other reason than the file itself: the connection and the disk.
fn not_taken(shown: &str, cause: bollard::errors::Error) -> Error {
    let full_disk = errors::words(&cause).to_lowercase().contains("no space left");
    let error = failed(&format!("load the images in `{shown}`"), cause);
    if full_disk || error.kind() == ErrorKind::NoEngine {
        return error;
    }
    Error::bad_input(format!("`{shown}` is a broken or cut off image archive"))
        .hint("`docker save IMAGE -o FILE` writes one; copy it again if it came over a network")
        .caused_by(error.causes().join(": "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_their_first_bytes() {
        assert_eq!(kind_of(b""), Kind::Empty);
        assert_eq!(kind_of(b"\x1f\x8b\x08rest"), Kind::Compressed);
        assert_eq!(kind_of(b"SELECT 1;\n"), Kind::Other("text that begins with `SELECT 1;`".to_owned()));
        assert_eq!(kind_of(b"PGDMP\x01\x0e"), Kind::Other("a dump by `pg_dump`".to_owned()));
        assert_eq!(kind_of(b"\x7fELF\x02"), Kind::Other("a file of another kind".to_owned()));
    }

    fn tar_with(name: &str) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        archive.append_data(&mut header, name, &b"{}"[..]).unwrap();
        archive.into_inner().unwrap()
    }

    #[test]
    fn a_tar_of_a_file_system_is_told_from_images() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, tar_with("etc/passwd")).unwrap();
        let error = check_archive(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("holds no image"), "{error}");

        std::fs::write(&path, tar_with("manifest.json")).unwrap();
        assert_eq!(check_archive(&path).unwrap().1, 2048);
    }

    #[test]
    fn a_cut_off_tar_is_bad_input() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        std::fs::write(&path, &tar_with("etc/passwd")[..513]).unwrap();
        let error = check_archive(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.to_string().contains("cut off"), "{error}");
    }
}

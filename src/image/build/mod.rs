//! Builds the offline image from the PostgreSQL 15 that is installed on this machine.
//!
//! 1. [`installation`] finds PostgreSQL; [`contents`] gathers what it needs into a [`tree`] of paths.
//! 2. The tree is read once for its hash. An image with equal contents is not built again.
//! 3. It is read a second time and streamed to the daemon as an archive ([`package`]), in constant memory.
//!
//! What must hold: the image is the same for the same files; the one that had the name before is replaced only when the new
//! one is whole (the daemon moves the name at the end of a load).

mod contents;
mod installation;
mod libraries;
mod package;
mod tree;

use std::io::{self, BufWriter, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bollard::Docker;
use bollard::query_parameters::{ImportImageOptionsBuilder, RemoveImageOptions};
use bytes::Bytes;
use futures_util::{TryStreamExt as _, future, stream};
use tokio::sync::mpsc;

use self::contents::Contents;
use self::installation::Installation;
use self::package::{Configuration, Description, Layer};
use super::{Image, ImageSource, OFFLINE, check_reference, find};
use crate::engine::docker::errors::{self, failed};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::{Event, Events, Progress, Unit};

/// How much is handed to the connection at once.
const CHUNK: usize = 256 * 1024;

/// How long the daemon may take to unpack before it answers; it says nothing until it has read the whole archive.
const LOAD_TIMEOUT: Duration = Duration::from_mins(30);

/// What [`build`] makes.
#[derive(Debug, Clone, Default)]
pub struct BuildOptions {
    /// The folder of the PostgreSQL 15 programs; `None` means the usual places.
    pub bin_dir: Option<PathBuf>,
    /// The image's name; `None` means [`OFFLINE`].
    pub tag: Option<String>,
}

/// Builds the offline image, unless the daemon has it with equal contents.
///
/// # Errors
///
/// [`ErrorKind::BadInput`] if there is no PostgreSQL 15 on this machine; [`ErrorKind::Failed`] if a tool or library is
/// missing, the daemon runs on another kind of machine, or it does not take the image.
pub async fn build(docker: &Docker, events: &Events, options: BuildOptions) -> Result<Image> {
    let reference = options.tag.unwrap_or_else(|| OFFLINE.to_owned());
    check_reference(&reference)?;
    let began = Instant::now();
    events.started(format!("Building `{reference}` from this machine's PostgreSQL"));
    let architecture = same_machine(docker).await?;
    let prepared = prepare(options.bin_dir, architecture, events.clone()).await?;
    for sentence in &prepared.contents.left_out {
        events.detail(format!("Left out of the image: {sentence}"));
    }

    let before = find(docker, &reference).await?;
    if let Some(image) =
        before.as_ref().filter(|image| image.contents.as_ref() == Some(&prepared.configuration.contents))
    {
        events.finished(format!("`{reference}` is up to date (PostgreSQL {})", prepared.version), began.elapsed());
        return Ok(image.clone());
    }
    let version = prepared.version.clone();
    send(docker, prepared, &reference, events).await?;
    if let Some(old) = before {
        remove_replaced(docker, &old, events).await;
    }
    let image = find(docker, &reference)
        .await?
        .ok_or_else(|| Error::failed(format!("the daemon took the image, but does not know `{reference}`")))?;
    events.finished(
        format!("Built `{reference}`: PostgreSQL {version}, {} MB", image.size_bytes / 1_000_000),
        began.elapsed(),
    );
    Ok(Image { source: ImageSource::Built, ..image })
}

/// Makes sure that programs of this machine run where the daemon is, and returns Docker's name for the processor.
async fn same_machine(docker: &Docker) -> Result<&'static str> {
    let version = docker.version().await.map_err(|error| failed("ask the Docker daemon for its platform", error))?;
    let theirs = format!("{}/{}", version.os.unwrap_or_default(), version.arch.unwrap_or_default());
    let architecture = docker_architecture();
    let ours = format!("{}/{architecture}", std::env::consts::OS);
    if theirs == ours {
        return Ok(architecture);
    }
    Err(Error::failed(format!(
        "the offline image can't be built: this machine is `{ours}`, but the Docker daemon runs containers for `{theirs}`"
    ))
    .hint(format!("build it on a `{theirs}` machine, then `tfdev image save` there and `tfdev image load FILE` here")))
}

/// Docker's (Go's) name for this machine's processor.
fn docker_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "x86" => "386",
        "aarch64" => "arm64",
        "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// All that is known before the first byte goes to the daemon.
struct Prepared {
    version: String,
    contents: Contents,
    layer: Layer,
    configuration: Configuration,
}

/// Gathers and hashes, on a thread that may block.
async fn prepare(bin_dir: Option<PathBuf>, architecture: &'static str, events: Events) -> Result<Prepared> {
    let work = move || {
        let installation = Installation::find(bin_dir.as_deref())?;
        events.detail(format!("PostgreSQL {} in `{}`", installation.version, installation.bin_dir.display()));
        let contents = contents::gather(&installation)?;
        let mut report = Report::new(&events, "Reading", None);
        let layer = package::measure(&contents.tree, &mut |position| report.at(position))
            .or_failed(|| "cannot read the files for the offline image")?;
        report.done();
        let created = created(&installation)?;
        let description = Description { version: &installation.version, architecture, created: &created };
        let configuration = package::configuration(&description, &layer);
        Ok(Prepared { version: installation.version, contents, layer, configuration })
    };
    tokio::task::spawn_blocking(work).await.or_failed(|| "the build was interrupted")?
}

/// The time that the image says it was made: that of the PostgreSQL in it, so that it is the same for the same contents.
fn created(installation: &Installation) -> Result<String> {
    let server = installation.server();
    let unreadable = || format!("cannot read `{}`", server.display());
    let modified = server.metadata().and_then(|metadata| metadata.modified()).or_failed(unreadable)?;
    let time = jiff::Timestamp::try_from(modified).or_failed(unreadable)?;
    Ok(jiff::Timestamp::from_second(time.as_second()).or_failed(unreadable)?.to_string())
}

/// Streams the archive to the daemon and waits until it has it.
async fn send(docker: &Docker, prepared: Prepared, reference: &str, events: &Events) -> Result<()> {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(8);
    let failure: Arc<std::sync::Mutex<Option<String>>> = Arc::default();
    let (name, events, told) = (reference.to_owned(), events.clone(), Arc::clone(&failure));
    let writer = tokio::task::spawn_blocking(move || {
        let report = Report::new(&events, "Sending to Docker", Some(prepared.layer.size));
        let mut output = BufWriter::with_capacity(CHUNK, ChannelWriter { sender: sender.clone(), sent: 0, report });
        let Prepared { contents, layer, configuration, .. } = prepared;
        let result = package::write_archive(&contents.tree, &layer, &configuration, &name, &mut output);
        output.get_mut().report.done();
        // The connection being gone is the daemon's failure; it says its reason itself.
        if let Err(error) = result
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            told.lock().expect("no one panics while holding it").replace(error.to_string());
            // An error in the body makes the daemon drop what it has, instead of taking a cut archive.
            let _ = sender.blocking_send(Err(error));
        }
    });

    let body = stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let patient = docker.clone().with_timeout(LOAD_TIMEOUT);
    // The stream is gone after this line, and with it the connection, so the writer never waits for one that is not read.
    let taken = patient.import_image_stream(options, body, None).try_for_each(|_| future::ready(Ok(()))).await;
    writer.await.or_failed(|| "the build was interrupted")?;
    if let Some(reason) = failure.lock().expect("no one panics while holding it").take() {
        return Err(Error::new(ErrorKind::Failed, format!("cannot build `{reference}`")).caused_by(reason));
    }
    taken.map_err(|error| failed(&format!("load the image `{reference}` into Docker"), error))
}

/// Hands what is written to the connection, which pulls it at its own pace.
struct ChannelWriter<'a> {
    sender: mpsc::Sender<io::Result<Bytes>>,
    sent: u64,
    report: Report<'a>,
}

impl Write for ChannelWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.sender.blocking_send(Ok(Bytes::copy_from_slice(bytes))).map_err(gone)?;
        self.sent += bytes.len() as u64;
        self.report.at(self.sent);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Removes the image that lost its name to the new one. Best effort: one that a container still uses, or that has another
/// name, stays.
async fn remove_replaced(docker: &Docker, old: &Image, events: &Events) {
    let Ok(inspected) = docker.inspect_image(&old.id).await else { return };
    let has_other_name = inspected.repo_tags.is_some_and(|names| !names.is_empty());
    if old.contents.is_none() || has_other_name {
        return;
    }
    match docker.remove_image(&old.id, None::<RemoveImageOptions>, None).await {
        Ok(_) => events.detail(format!("Removed the image that it replaces ({})", old.id)),
        Err(error) => {
            events.detail(format!("The image that it replaces stays ({}): {}", old.id, errors::words(&error)));
        }
    }
}

/// Tells how many bytes are done, about every megabyte.
struct Report<'a> {
    events: &'a Events,
    label: &'static str,
    position: u64,
    told: u64,
    total: Option<u64>,
}

impl<'a> Report<'a> {
    fn new(events: &'a Events, label: &'static str, total: Option<u64>) -> Self {
        Self { events, label, position: 0, told: 0, total }
    }

    fn at(&mut self, position: u64) {
        self.position = position;
        if position - self.told >= 1_000_000 {
            self.told = position;
            self.tell(false);
        }
    }

    fn done(&self) {
        self.tell(true);
    }

    fn tell(&self, done: bool) {
        self.events.send(Event::Progress(Progress {
            id: format!("image:{}", self.label),
            label: self.label.to_owned(),
            unit: Unit::Bytes,
            position: self.position,
            total: self.total,
            done,
        }));
    }
}

#[cfg(test)]
mod tests {
    use bollard::query_parameters::TagImageOptionsBuilder;

    use super::super::test_support::{Name, docker, unique};
    use super::*;

    /// Gives the daemon an older offline image: a tree of one file.
    async fn older_image(docker: &Docker, reference: &str) -> Image {
        let mut contents = Contents { tree: tree::Tree::default(), left_out: Vec::new() };
        contents.tree.bytes("/unique", unique("older"), 0o644);
        let layer = package::measure(&contents.tree, &mut |_| ()).unwrap();
        let description =
            Description { version: "15.0", architecture: docker_architecture(), created: "2022-10-13T00:00:00Z" };
        let configuration = package::configuration(&description, &layer);
        let prepared = Prepared { version: "15.0".to_owned(), contents, layer, configuration };
        send(docker, prepared, reference, &Events::none()).await.unwrap();
        find(docker, reference).await.unwrap().unwrap()
    }

    #[tokio::test]
    async fn the_replaced_image_goes_unless_it_has_another_name() {
        let Some(docker) = docker().await else { return };
        let name = Name::new(&docker, format!("tfdev-test/{}:1", unique("replace")));
        let other = Name::new(&docker, format!("tfdev-test/{}:1", unique("other")));
        let options = || BuildOptions { tag: Some(name.name.clone()), ..BuildOptions::default() };

        let old = older_image(&docker, &name.name).await;
        assert_eq!(build(&docker, &Events::none(), options()).await.unwrap().source, ImageSource::Built);
        assert_eq!(find(&docker, &old.id).await.unwrap(), None, "no nameless image is left to fill the disk");

        let old = older_image(&docker, &name.name).await;
        let (repository, tag) = other.name.split_once(':').unwrap();
        let tagged = TagImageOptionsBuilder::default().repo(repository).tag(tag).build();
        docker.tag_image(&old.id, Some(tagged)).await.unwrap();
        assert_eq!(build(&docker, &Events::none(), options()).await.unwrap().source, ImageSource::Built);
        assert_eq!(find(&docker, &other.name).await.unwrap().unwrap().id, old.id, "another name is the user's");
    }
}

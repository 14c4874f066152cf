//! Building, finding, pulling, loading and saving against a real Docker daemon. The registry is a real one to the daemon:
//! it speaks the registry protocol on loopback, from which daemons pull without TLS.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::test_support::{Name, docker, offline_image, recorded, unique};
use super::*;
use crate::event::Event;

#[tokio::test]
async fn building_twice_changes_nothing_the_second_time() {
    let Some(docker) = docker().await else { return };
    let first = offline_image(&docker).await;
    let (events, seen) = recorded();
    let second = build(&docker, &events, BuildOptions::default()).await.unwrap();
    assert_eq!(second.source, ImageSource::Present);
    assert_eq!((second.id, second.contents), (first.id, first.contents));
    let seen = seen.lock().unwrap();
    assert!(
        seen.iter().any(|event| matches!(event, Event::Finished(text, _) if text.contains("up to date"))),
        "{seen:?}"
    );
    assert!(!seen.iter().any(|event| matches!(event, Event::Progress(progress) if progress.label.contains("Sending"))));
}

#[tokio::test]
async fn an_image_under_another_name_is_the_same_image() {
    let Some(docker) = docker().await else { return };
    let name = Name::new(&docker, format!("tfdev-test/{}:1", unique("build")));
    let options = BuildOptions { tag: Some(name.name.clone()), ..BuildOptions::default() };
    let (events, seen) = recorded();
    let image = build(&docker, &events, options).await.unwrap();
    assert_eq!(image.source, ImageSource::Built);
    assert_eq!(image.id, offline_image(&docker).await.id);
    let seen = seen.lock().unwrap();
    let ends = seen.iter().filter(|event| matches!(event, Event::Progress(progress) if progress.done)).count();
    assert_eq!(ends, 2, "reading and sending each end once");
}

#[tokio::test]
async fn what_is_not_there_is_none_and_no_error() {
    let Some(docker) = docker().await else { return };
    assert_eq!(find(&docker, &format!("tfdev-test/{}:1", unique("none"))).await.unwrap(), None);
}

#[tokio::test]
async fn a_saved_image_loads_again() {
    let Some(docker) = docker().await else { return };
    let original = offline_image(&docker).await;
    let name = Name::new(&docker, format!("tfdev-test/{}:1", unique("save")));
    let options = BuildOptions { tag: Some(name.name.clone()), ..BuildOptions::default() };
    build(&docker, &Events::none(), options).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image.tar");

    let size = save(&docker, &name.name, &path, &Events::none()).await.unwrap();
    assert_eq!(size, path.metadata().unwrap().len());
    assert_eq!(folder.path().read_dir().unwrap().count(), 1, "no partial file is left");

    docker.remove_image(&name.name, None::<bollard::query_parameters::RemoveImageOptions>, None).await.unwrap();
    assert_eq!(find(&docker, &name.name).await.unwrap(), None);
    let images = load(&docker, &path, &Events::none()).await.unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!((images[0].reference.as_str(), images[0].source), (name.name.as_str(), ImageSource::Loaded));
    assert_eq!(images[0].id, original.id);

    // Cut in the middle of the layer, and compressed, so that only the daemon can see it.
    let whole = std::fs::File::options().write(true).open(&path).unwrap();
    whole.set_len(size / 2).unwrap();
    let error = load(&docker, &path, &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}: {:?}", error.causes());
    assert!(std::process::Command::new("gzip").arg("-1").arg(&path).status().unwrap().success());
    let error = load(&docker, &folder.path().join("image.tar.gz"), &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}: {:?}", error.causes());
}

#[tokio::test]
async fn saving_what_is_not_there_leaves_no_file() {
    let Some(docker) = docker().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let name = format!("tfdev-test/{}:1", unique("none"));
    let error = save(&docker, &name, &folder.path().join("a.tar"), &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(folder.path().read_dir().unwrap().count(), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn a_daemon_that_is_not_there_is_no_engine() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("docker.sock");
    std::os::unix::net::UnixListener::bind(&socket).map(drop).unwrap();
    let docker = Docker::connect_with_unix(socket.to_str().unwrap(), 5, bollard::API_DEFAULT_VERSION).unwrap();
    let events = Events::none();
    let sources = Sources::default();
    assert_eq!(find(&docker, OFFICIAL).await.unwrap_err().kind(), ErrorKind::NoEngine);
    assert_eq!(resolve(&docker, None, &sources, &events).await.unwrap_err().kind(), ErrorKind::NoEngine);
    assert_eq!(pull(&docker, OFFICIAL, None, &events).await.unwrap_err().kind(), ErrorKind::NoEngine);
    assert_eq!(build(&docker, &events, BuildOptions::default()).await.unwrap_err().kind(), ErrorKind::NoEngine);
}

#[tokio::test]
async fn a_pull_tells_how_far_each_layer_is() {
    let Some(docker) = docker().await else { return };
    let registry = Registry::start(None);
    let name = Name::new(&docker, registry.image("team/database", "1"));
    let (events, seen) = recorded();
    let image = pull(&docker, &name.name, None, &events).await.unwrap();
    assert_eq!(image.source, ImageSource::Pulled);
    assert!(image.digests[0].contains("@sha256:"), "{image:?}");
    let seen = seen.lock().unwrap();
    let steps: Vec<_> = seen
        .iter()
        .filter_map(|event| match event {
            Event::Progress(progress) => Some(progress),
            _ => None,
        })
        .collect();
    assert!(steps.iter().any(|step| step.label == "Downloading" && step.total.is_some()), "{steps:?}");
    let last = steps.last().unwrap();
    assert!(last.done && last.label == "Pulled", "{last:?}");
    assert_eq!(steps.iter().filter(|step| step.done).count(), 1);
}

#[tokio::test]
async fn a_registry_that_wants_a_login_gets_the_one_in_the_configuration() {
    let Some(docker) = docker().await else { return };
    let registry = Registry::start(Some("Basic YW5uOnM6M2NyZXQ="));
    let name = Name::new(&docker, registry.image("team/database", "1"));
    let folder = tempfile::tempdir().unwrap();

    let error = pull(&docker, &name.name, Some(folder.path()), &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}");
    assert!(error.hints().iter().any(|hint| hint.contains("docker login 127.0.0.1:")), "{error}: {:?}", error.hints());

    let config = format!(r#"{{"auths":{{"{}":{{"auth":"YW5uOnM6M2NyZXQ="}}}}}}"#, registry.address);
    std::fs::write(folder.path().join("config.json"), config).unwrap();
    pull(&docker, &name.name, Some(folder.path()), &Events::none()).await.unwrap();
}

#[tokio::test]
async fn no_such_image_and_no_registry_are_told_apart() {
    let Some(docker) = docker().await else { return };
    let registry = Registry::start(None);
    let error = pull(&docker, &registry.image("team/database", "nope"), None, &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput, "{error}: {:?}", error.causes());
    let error = pull(&docker, "127.0.0.1:1/team/database:1", None, &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed, "{error}: {:?}", error.causes());
    assert!(error.to_string().contains("cannot reach `127.0.0.1:1`"), "{error}");
    assert!(error.hints()[0].contains("tfdev image build"));
}

/// The orders of `resolve` and `ensure`, with names of this test's own.
#[tokio::test]
async fn quick_takes_what_is_there_and_best_asks_the_registry() {
    let Some(docker) = docker().await else { return };
    let registry = Registry::start(None);
    let official = Name::new(&docker, registry.image("team/official", "1"));
    let offline = Name::new(&docker, format!("tfdev-test/{}:1", unique("offline")));
    let unreachable = "127.0.0.1:1/team/official:1";
    let sources = Sources::default();
    let (events, seen) = recorded();
    let search =
        |official| Search { docker: &docker, sources: &sources, events: &events, official, offline: &offline.name };

    // Nothing there, no registry: built, and a note says why.
    let image = search(unreachable).quick(None).await.unwrap();
    assert_eq!((image.reference.as_str(), image.source), (offline.name.as_str(), ImageSource::Built));
    let noted =
        |part: &str| seen.lock().unwrap().iter().any(|event| matches!(event, Event::Note(text) if text.contains(part)));
    assert!(noted("cannot reach `127.0.0.1:1`"));

    // The offline image is there: `quick` asks no registry.
    let began = Instant::now();
    let image = search(&official.name).quick(None).await.unwrap();
    assert_eq!((image.reference.as_str(), image.source), (offline.name.as_str(), ImageSource::Present));
    assert!(noted("is not in Docker"));
    assert!(began.elapsed().as_millis() < 500, "{:?}", began.elapsed());
    // `best` asks, and settles for it if there is no answer.
    let image = search(unreachable).best(None).await.unwrap();
    assert_eq!((image.reference.as_str(), image.source), (offline.name.as_str(), ImageSource::Present));
    let image = search(&official.name).best(None).await.unwrap();
    assert_eq!((image.reference.as_str(), image.source), (official.name.as_str(), ImageSource::Pulled));

    // Both there: the official one.
    let image = search(&official.name).quick(None).await.unwrap();
    assert_eq!((image.reference.as_str(), image.source), (official.name.as_str(), ImageSource::Present));

    // A named image is never replaced by another.
    let error = search(&official.name).quick(Some(unreachable)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Failed);
    let image = search(unreachable).best(Some(&offline.name)).await.unwrap();
    assert_eq!(image.reference, offline.name);
}

#[tokio::test]
async fn with_no_way_to_an_image_the_error_names_each() {
    let Some(docker) = docker().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let sources = Sources { bin_dir: Some(folder.path().to_owned()), ..Sources::default() };
    let offline = format!("tfdev-test/{}:1", unique("never"));
    let events = Events::none();
    let search = Search {
        docker: &docker,
        sources: &sources,
        events: &events,
        official: "127.0.0.1:1/a/b:1",
        offline: &offline,
    };
    for error in [search.quick(None).await.unwrap_err(), search.best(None).await.unwrap_err()] {
        assert_eq!(error.kind(), ErrorKind::NoEngine);
        let text = error.to_string();
        assert!(text.contains("cannot reach `127.0.0.1:1`") && text.contains("no program `postgres`"), "{text}");
        assert!(error.hints().iter().any(|hint| hint.contains("tfdev image load")));
    }
}

#[tokio::test]
async fn a_file_that_is_no_archive_is_bad_input() {
    let Some(docker) = docker().await else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let error = load(&docker, &path, &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.to_string().contains("text that begins with `[package]`"), "{error}");
    let error = load(&docker, Path::new("/no/such/file.tar"), &Events::none()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
}

/// A registry with one image of one layer, tag `1`, under every name.
struct Registry {
    address: String,
}

impl Registry {
    /// Starts it; `authorization` is the header that it wants, if any.
    fn start(authorization: Option<&'static str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let blobs = Blobs::new(&address);
        // Ends with the test's process; one thread for each connection.
        std::thread::spawn(move || {
            let blobs = std::sync::Arc::new(blobs);
            for stream in listener.incoming() {
                let blobs = std::sync::Arc::clone(&blobs);
                std::thread::spawn(move || blobs.answer(stream?, authorization));
            }
        });
        Self { address }
    }

    fn image(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.address)
    }
}

struct Blobs {
    layer: Vec<u8>,
    config: Vec<u8>,
    manifest: Vec<u8>,
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

impl Blobs {
    /// The layer holds the registry's address, so that no daemon has it yet.
    fn new(address: &str) -> Self {
        let mut tar = tar::Builder::new(Vec::new());
        let content = format!("{} {address} ", unique("layer")).repeat(60_000);
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, "file", content.as_bytes()).unwrap();
        let layer = tar.into_inner().unwrap();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": {},
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = config.to_string().into_bytes();
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json", "size": config.len(), "digest": digest(&config),
            },
            "layers": [{
                "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip", "size": layer.len(), "digest": digest(&layer),
            }],
        });
        Self { layer, config, manifest: manifest.to_string().into_bytes() }
    }

    fn answer(&self, mut stream: TcpStream, authorization: Option<&str>) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let request = lines.next().transpose()?.unwrap_or_default();
        let headers: Vec<String> = lines.map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        let path = request.split(' ').nth(1).unwrap_or_default();
        let allowed = authorization.is_none_or(|wanted| headers.iter().any(|header| header.ends_with(wanted)));
        let manifest = "application/vnd.docker.distribution.manifest.v2+json";
        let unknown = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        let (status, kind, body): (&str, &str, &[u8]) = if !allowed {
            ("401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"test\"", "application/json", b"{}")
        } else if path == "/v2/" {
            ("200 OK", "application/json", b"{}")
        } else if path.ends_with("/manifests/1") || path.ends_with(&digest(&self.manifest)) {
            ("200 OK", manifest, &self.manifest)
        } else if path.ends_with(&digest(&self.config)) {
            ("200 OK", "application/octet-stream", &self.config)
        } else if path.ends_with(&digest(&self.layer)) {
            ("200 OK", "application/octet-stream", &self.layer)
        } else {
            ("404 Not Found", "application/json", unknown)
        };
        let digest = digest(body);
        let length = body.len();
        write!(
            stream,
            "HTTP/1.1 {status}\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Type: {kind}\r\n\
             Content-Length: {length}\r\nDocker-Content-Digest: {digest}\r\nConnection: close\r\n\r\n"
        )?;
        if request.starts_with("HEAD") { Ok(()) } else { stream.write_all(body) }
    }
}

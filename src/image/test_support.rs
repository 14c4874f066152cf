//! A real Docker daemon for tests, and containers that do not outlive them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, HostConfig, Mount, MountType, NetworkCreateRequest};
use bollard::query_parameters::{
    LogsOptionsBuilder, RemoveContainerOptionsBuilder, RemoveVolumeOptions, StopContainerOptions,
    UploadToContainerOptionsBuilder,
};
use futures_util::{StreamExt as _, TryStreamExt as _};

use super::*;
use crate::event::Event;

/// How long a test waits for anything.
const PATIENCE: Duration = Duration::from_mins(1);

/// The daemon, or `None` (and a line that says so) if there is none and none is required.
pub(super) async fn docker() -> Option<Docker> {
    Some(crate::engine::docker::testing::docker().await?.docker)
}

/// The offline image of this very source tree, built once for all tests of this process.
pub(super) async fn offline_image(docker: &Docker) -> Image {
    static IMAGE: tokio::sync::OnceCell<Image> = tokio::sync::OnceCell::const_new();
    let built = async { build(docker, &Events::none(), BuildOptions::default()).await.unwrap() };
    IMAGE.get_or_init(|| built).await.clone()
}

/// Events that are kept.
pub(super) fn recorded() -> (Events, Arc<Mutex<Vec<Event>>>) {
    let kept: Arc<Mutex<Vec<Event>>> = Arc::default();
    let keep = Arc::clone(&kept);
    (Events::to(move |event| keep.lock().unwrap().push(event)), kept)
}

/// A name that no other test uses.
pub(super) fn unique(prefix: &str) -> String {
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// A container of the offline image. Removed with its volumes at the end, also of a test that fails.
pub(super) struct Container {
    docker: Docker,
    pub(super) id: String,
}

/// How a container is to be started.
#[derive(Default)]
pub(super) struct Start<'a> {
    pub(super) environment: &'a [&'a str],
    pub(super) arguments: &'a [&'a str],
    pub(super) user: &'a str,
    /// A named volume and where it is mounted.
    pub(super) volume: Option<(&'a str, &'a str)>,
    /// The network that it joins; `None` means loopback alone, so that no test server can be reached from outside.
    pub(super) network: Option<&'a str>,
    /// Path, mode and bytes of files that are there before it starts.
    pub(super) files: &'a [(&'a str, u32, &'a [u8])],
}

impl Container {
    pub(super) async fn start(docker: &Docker, start: Start<'_>) -> Self {
        let image = offline_image(docker).await;
        let mounts = start.volume.map(|(name, target)| {
            vec![Mount {
                target: Some(target.to_owned()),
                source: Some(name.to_owned()),
                typ: Some(MountType::VOLUME),
                ..Mount::default()
            }]
        });
        let network_mode = Some(start.network.unwrap_or("none").to_owned());
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let body = ContainerCreateBody {
            image: Some(image.id),
            env: Some(strings(start.environment)),
            cmd: Some(strings(start.arguments)).filter(|arguments| !arguments.is_empty()),
            user: Some(start.user.to_owned()),
            labels: Some(HashMap::from([("dev.tfdev.test".to_owned(), "1".to_owned())])),
            host_config: Some(HostConfig { mounts, network_mode, ..HostConfig::default() }),
            ..ContainerCreateBody::default()
        };
        let created =
            docker.create_container(None::<bollard::query_parameters::CreateContainerOptions>, body).await.unwrap();
        let container = Self { docker: docker.clone(), id: created.id };
        container.upload(start.files).await;
        docker.start_container(&container.id, None::<bollard::query_parameters::StartContainerOptions>).await.unwrap();
        container
    }

    async fn upload(&self, files: &[(&str, u32, &[u8])]) {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, mode, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(*mode);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path.trim_start_matches('/'), *bytes).unwrap();
        }
        let options = UploadToContainerOptionsBuilder::default().path("/").build();
        let body = bollard::body_full(archive.into_inner().unwrap().into());
        self.docker.upload_to_container(&self.id, Some(options), body).await.unwrap();
    }

    /// Everything that it wrote so far.
    pub(super) async fn logs(&self) -> String {
        let options = LogsOptionsBuilder::default().stdout(true).stderr(true).build();
        let output: Vec<LogOutput> = self.docker.logs(&self.id, Some(options)).try_collect().await.unwrap();
        output.iter().map(ToString::to_string).collect()
    }

    /// Waits for its end; its exit status.
    pub(super) async fn exit_status(&self) -> i64 {
        let ended = async {
            loop {
                let state =
                    self.docker.inspect_container(&self.id, None::<bollard::query_parameters::InspectContainerOptions>);
                let state = state.await.unwrap().state.unwrap();
                if state.running == Some(false) {
                    return state.exit_code.unwrap();
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let status = tokio::time::timeout(PATIENCE, ended).await;
        let logs = if status.is_err() { self.logs().await } else { String::new() };
        status.unwrap_or_else(|_| panic!("the container still runs: {logs}"))
    }

    /// Waits until `text` is in its log.
    pub(super) async fn wait_for_log(&self, text: &str) {
        let seen = async {
            while !self.logs().await.contains(text) {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, seen).await.is_ok();
        assert!(in_time, "no `{text}` in: {}", self.logs().await);
    }

    /// Waits until the real server (not the temporary one) answers.
    pub(super) async fn wait_until_ready(&self) {
        self.wait_for_log("listening on IPv4 address").await;
        let ready = async {
            while self.run("", &["pg_isready", "-q", "-h", "127.0.0.1"]).await.0 != 0 {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let in_time = tokio::time::timeout(PATIENCE, ready).await.is_ok();
        assert!(in_time, "not ready: {}", self.logs().await);
    }

    /// Runs a command inside; its exit status and all that it wrote.
    pub(super) async fn run(&self, user: &str, command: &[&str]) -> (i64, String) {
        let options = CreateExecOptions {
            cmd: Some(command.iter().map(|word| (*word).to_owned()).collect()),
            user: Some(user.to_owned()).filter(|user| !user.is_empty()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..CreateExecOptions::default()
        };
        let exec = self.docker.create_exec(&self.id, options).await.unwrap();
        let mut written = String::new();
        if let StartExecResults::Attached { mut output, .. } = self.docker.start_exec(&exec.id, None).await.unwrap() {
            while let Some(chunk) = output.next().await {
                written.push_str(&chunk.unwrap().to_string());
            }
        }
        let status = self.docker.inspect_exec(&exec.id).await.unwrap().exit_code.unwrap_or(-1);
        (status, written.trim().to_owned())
    }

    /// Runs a shell line inside; what it wrote.
    pub(super) async fn shell(&self, line: &str) -> String {
        let (status, written) = self.run("", &["sh", "-c", line]).await;
        assert_eq!(status, 0, "`{line}`: {written}");
        written
    }

    /// Runs a query as `user` in `database` over the socket; its rows, one a line.
    pub(super) async fn query(&self, user: &str, database: &str, sql: &str) -> String {
        let (status, written) = self.run("", &["psql", "-XAtq", "-U", user, "-d", database, "-c", sql]).await;
        assert_eq!(status, 0, "`{sql}`: {written}\n{}", self.logs().await);
        written
    }

    /// Stops it by the image's own signal, with the engine's usual 10 seconds before a kill.
    pub(super) async fn stop(&self) {
        self.docker.stop_container(&self.id, None::<StopContainerOptions>).await.unwrap();
    }

    pub(super) async fn signal(&self, signal: &str) {
        let options = bollard::query_parameters::KillContainerOptionsBuilder::default().signal(signal).build();
        self.docker.kill_container(&self.id, Some(options)).await.unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let (docker, id) = (self.docker.clone(), self.id.clone());
        in_the_end(async move {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            let _ = docker.remove_container(&id, Some(options)).await;
        });
    }
}

/// A named volume. Declare it before the containers that use it, so that it goes after them.
pub(super) struct Volume {
    docker: Docker,
    pub(super) name: String,
}

impl Volume {
    pub(super) fn new(docker: &Docker) -> Self {
        Self { docker: docker.clone(), name: unique("tfdev-test") }
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let (docker, name) = (self.docker.clone(), self.name.clone());
        in_the_end(async move {
            let _ = docker.remove_volume(&name, None::<RemoveVolumeOptions>).await;
        });
    }
}

/// A network of a test's own. Declare it before the containers that join it, so that it goes after them.
pub(super) struct Network {
    docker: Docker,
    pub(super) name: String,
}

impl Network {
    pub(super) async fn new(docker: &Docker) -> Self {
        let network = Self { docker: docker.clone(), name: unique("tfdev-test") };
        let labels = HashMap::from([("dev.tfdev.test".to_owned(), "1".to_owned())]);
        let request = NetworkCreateRequest {
            name: network.name.clone(),
            labels: Some(labels),
            ..NetworkCreateRequest::default()
        };
        docker.create_network(request).await.unwrap();
        network
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let (docker, name) = (self.docker.clone(), self.name.clone());
        in_the_end(async move {
            let _ = docker.remove_network(&name).await;
        });
    }
}

/// An image name that is taken away again. The image itself stays while it has another name.
pub(super) struct Name {
    docker: Docker,
    pub(super) name: String,
}

impl Name {
    pub(super) fn new(docker: &Docker, name: String) -> Self {
        Self { docker: docker.clone(), name }
    }
}

impl Drop for Name {
    fn drop(&mut self) {
        let (docker, name) = (self.docker.clone(), self.name.clone());
        in_the_end(async move {
            let _ = docker.remove_image(&name, None::<bollard::query_parameters::RemoveImageOptions>, None).await;
        });
    }
}

/// Runs a clean-up from a `drop`, which can't wait, on a thread of its own.
fn in_the_end(work: impl Future<Output = ()> + Send + 'static) {
    let thread = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
    });
    thread.join().unwrap();
}

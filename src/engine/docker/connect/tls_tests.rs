//! TLS against a real `dockerd` that asks for client certificates, started for these tests and stopped by them.

#![cfg(unix)]

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use super::tests::{failure, relay};
use super::*;
use crate::engine::docker::testing::{at, docker, pass_over};

/// Two authorities, and what the first signed; made by the program `openssl`.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    fn make() -> Self {
        let certificates = Self { folder: tempfile::tempdir().unwrap() };
        let folder = certificates.folder.path();
        fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
            .unwrap();
        for authority in ["ours", "other"] {
            openssl(
                folder,
                &format!(
                    "req -x509 {KEY} -keyout {authority}-ca-key.pem -out {authority}-ca.pem -subj /CN={authority} -days 2"
                ),
            );
            for holder in ["server", "client"] {
                let name = format!("{authority}-{holder}");
                openssl(folder, &format!("req {KEY} -keyout {name}-key.pem -out {name}.csr -subj /CN={holder}"));
                openssl(
                    folder,
                    &format!(
                        "x509 -req -in {name}.csr -CA {authority}-ca.pem -CAkey {authority}-ca-key.pem -CAcreateserial -days 2 -extfile names -out {name}-cert.pem"
                    ),
                );
            }
        }
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A folder as DOCKER_CERT_PATH names it.
    fn client_folder(&self, authority: &str, client: Option<&str>) -> PathBuf {
        let folder = self.path(&format!("folder-{authority}-{}", client.unwrap_or("none")));
        fs::create_dir(&folder).unwrap();
        fs::copy(self.path(&format!("{authority}-ca.pem")), folder.join("ca.pem")).unwrap();
        for kind in client.iter().flat_map(|_| ["cert", "key"]) {
            let file = format!("{}-client-{kind}.pem", client.unwrap());
            fs::copy(self.path(&file), folder.join(format!("{kind}.pem"))).unwrap();
        }
        folder
    }
}

const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";

fn openssl(folder: &Path, arguments: &str) {
    let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Passes the standard input on as file descriptor 3.
const HAND_IN: &str = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec dockerd \"$@\"";

/// A `dockerd` with folders and a network of its own.
struct Daemon {
    process: Child,
    folder: tempfile::TempDir,
    port: u16,
}

impl Daemon {
    fn start(certificates: &Certificates) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        // This machine's own settings are not for this daemon.
        fs::write(path("daemon.json"), "{}").unwrap();
        // A daemon takes itself for the only one of its machine: with `--bridge=none` it removes `docker0`, without it
        // takes that over. So this one has a network and mounts of its own, and gets its port handed in as a socket
        // that was opened outside (systemd's protocol: file descriptor 3, and the process that it is meant for).
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let process = Command::new("unshare")
            .args(["--net", "--mount", "--", "sh", "-c", HAND_IN, "dockerd", "--host", "fd://"])
            .arg("--config-file")
            .arg(path("daemon.json"))
            .args(["--tlsverify", "--bridge=none", "--iptables=false", "--storage-driver=vfs"])
            .arg("--tlscacert")
            .arg(certificates.path("ours-ca.pem"))
            .arg("--tlscert")
            .arg(certificates.path("ours-server-cert.pem"))
            .arg("--tlskey")
            .arg(certificates.path("ours-server-key.pem"))
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .stdin(OwnedFd::from(listener))
            .stdout(Stdio::null())
            .stderr(File::create(path("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, folder, port }
    }

    async fn wait_until_it_answers(&mut self, environment: &DockerEnvironment) -> DockerConnection {
        let started = Instant::now();
        loop {
            match connect(environment, Duration::from_secs(5), &Events::none()).await {
                Ok(connection) => return connection,
                Err(error) => {
                    let log = || fs::read_to_string(self.folder.path().join("log")).unwrap();
                    assert!(self.process.try_wait().unwrap().is_none(), "dockerd ended: {}", log());
                    assert!(started.elapsed() < Duration::from_mins(1), "{error}: {:?}: {}", error.causes(), log());
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Asked to end, it stops the containerd that it started; killed, it would leave it behind.
        let id = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

fn with_tls(address: &str, folder: PathBuf) -> DockerEnvironment {
    DockerEnvironment { tls_verify: true, cert_path: Some(folder), ..at(address) }
}

#[tokio::test]
async fn certificates_decide_and_each_mistake_has_its_message() {
    let there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    let openssl_there = Command::new("openssl").arg("version").output().is_ok();
    let namespaces = Command::new("unshare").args(["--net", "--mount", "true"]).status().is_ok_and(|it| it.success());
    if !(rustix::process::geteuid().is_root() && namespaces && there("dockerd") && openssl_there) {
        return pass_over("a second `dockerd` needs root, namespaces, `dockerd` and `openssl`");
    }
    let certificates = Certificates::make();
    let mut daemon = Daemon::start(&certificates);
    let address = format!("tcp://127.0.0.1:{}", daemon.port);
    let ours = certificates.client_folder("ours", Some("ours"));

    let connection = daemon.wait_until_it_answers(&with_tls(&address, ours.clone())).await;
    assert!(matches!(connection.endpoint.address, Address::Tls { .. }));
    assert!(connection.docker.info().await.unwrap().driver.is_some_and(|driver| driver == "vfs"));

    for (environment, message) in [
        (at(&address), "wants TLS and was asked without"),
        (with_tls(&address, certificates.client_folder("other", Some("ours"))), "is not trusted"),
        // The certificate names the address and not this name.
        (with_tls(&address.replace("127.0.0.1", "localhost"), ours), "is not trusted"),
        (with_tls(&address, certificates.client_folder("ours", None)), "does not accept our certificate"),
        (with_tls(&address, certificates.client_folder("ours", Some("other"))), "does not accept our certificate"),
    ] {
        let error = failure(&environment).await;
        assert!(error.to_string().ends_with(message), "{message}: {error}: {:?}", error.causes());
        assert!(error.hints().len() > 1, "{:?}", error.hints());
    }

    drop(daemon);

    // A daemon that speaks plain HTTP, asked with TLS.
    let Some(Address::Unix(socket)) = docker().await.map(|connection| connection.endpoint.address) else { return };
    let plain = relay(Ipv4Addr::LOCALHOST.into(), socket).await;
    let folder = certificates.path("folder-ours-other");
    let error = failure(&with_tls(&format!("tcp://{plain}"), folder)).await;
    assert!(error.to_string().ends_with("does not speak TLS on this port"), "{error}: {:?}", error.causes());
}

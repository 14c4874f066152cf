//! A second Docker daemon, as on another machine: in a network namespace and a mount namespace of its own, reached over
//! TLS and over ssh.
//!
//! What must hold: the daemon never sees the machine's own bridge or firewall, which it would change; one of these at a
//! time, by a lock that ends with its holder; and all of it is ended and removed at the end. What a killed run left is
//! removed by the next.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use tempfile::TempDir;

use super::skipped::skip;
use super::{Outcome, TestEnv, docker, finish, start, until};

const NAMESPACE: &str = "tfdev-remote";
const INTERFACE: &str = "tfdevremote0";
const NEAR: &str = "10.213.7.1/30";
const FAR: &str = "10.213.7.2/30";

/// The other machine's address.
pub(crate) const ADDRESS: &str = "10.213.7.2";

/// What each program needs to be there, and root.
const PROGRAMS: [&str; 5] = ["ip", "nsenter", "unshare", "setpriv", "dockerd"];

/// The other machine.
pub(crate) struct Remote {
    folder: TempDir,
    driver: String,
    daemon: Option<Child>,
    sshd: Option<Child>,
    /// Keeps the namespaces.
    holder: Child,
    _lock: File,
}

impl Remote {
    /// Starts it, with the image that `env` uses; `None`, after one clear line, if this machine cannot.
    pub(crate) fn start(env: &TestEnv) -> Option<Self> {
        if let Some(reason) = missing() {
            skip(&format!("needs a second Docker daemon: {reason}"));
            return None;
        }
        let lock = File::create(std::env::temp_dir().join("tfdev-remote-tests.lock")).unwrap();
        lock.lock().unwrap();
        remove_network();
        let folder = TempDir::new().unwrap();
        make_certificates(&folder.path().join("tls"));
        succeed("ip", &["netns", "add", NAMESPACE]);
        succeed("ip", &["link", "add", INTERFACE, "type", "veth", "peer", "name", "eth0", "netns", NAMESPACE]);
        succeed("ip", &["address", "add", NEAR, "dev", INTERFACE]);
        succeed("ip", &["link", "set", INTERFACE, "up"]);
        succeed("ip", &["-n", NAMESPACE, "address", "add", FAR, "dev", "eth0"]);
        succeed("ip", &["-n", NAMESPACE, "link", "set", "lo", "up"]);
        succeed("ip", &["-n", NAMESPACE, "link", "set", "eth0", "up"]);
        let holder = hold_namespaces();
        let driver = docker::docker(&["info", "--format", "{{.Driver}}"]);
        let mut remote = Self { folder, driver, daemon: None, sshd: None, holder, _lock: lock };
        remote.start_daemon();
        let file = remote.folder.path().join("image.tar");
        env.run(&["image", "save", file.to_str().unwrap()]).ok();
        finish(start(remote.tls(env, &["image", "load", file.to_str().unwrap()]))).ok();
        Some(remote)
    }

    /// A program that runs there. It ends with this process.
    fn program(&self, name: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "nsenter", "--target", &self.holder.id().to_string()]);
        command.args(["--net", "--mount", "--", name]);
        command
    }

    /// Runs a program there; it must succeed.
    pub(crate) fn run(&self, name: &str, arguments: &[&str]) -> Outcome {
        let mut command = self.program(name);
        command.args(arguments);
        finish(start(command)).ok()
    }

    /// Starts the daemon, and waits until it answers.
    pub(crate) fn start_daemon(&mut self) {
        let (root, tls) = (self.folder.path(), self.folder.path().join("tls"));
        // Without a file of its own it would read the machine's.
        std::fs::write(root.join("daemon.json"), "{}").unwrap();
        let mut command = self.program("dockerd");
        command.arg("--config-file").arg(root.join("daemon.json")).arg("--data-root").arg(root.join("data"));
        command.args(["--exec-root", "/run/docker", "--pidfile", "/run/docker.pid", "--storage-driver", &self.driver]);
        command.args(["--host", "unix:///run/docker.sock", "--host", &format!("tcp://{ADDRESS}:2376"), "--tlsverify"]);
        command.arg("--tlscacert").arg(tls.join("ca.pem"));
        command.arg("--tlscert").arg(tls.join("server.pem")).arg("--tlskey").arg(tls.join("server-key.pem"));
        let log = File::options().create(true).append(true).open(root.join("dockerd.log")).unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.daemon = Some(command.spawn().unwrap());
        until("the second Docker daemon", || self.docker_answers().then_some(()));
    }

    fn docker_answers(&self) -> bool {
        let mut command = self.program("docker");
        command.args(["--host", "unix:///run/docker.sock", "version"]);
        finish(start(command)).status.success()
    }

    /// Kills the daemon at once, as a machine's crash does.
    pub(crate) fn kill_daemon(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        // Its containerd goes too. A number in a file would count as alive while nobody has asked how that one ended.
        let end = "kill -KILL $(cat /run/docker/containerd/containerd.pid); \
                   rm -f /run/docker.pid /run/docker/containerd/containerd.pid /run/docker/containerd/*.sock*";
        self.run("sh", &["-c", end]);
    }

    /// What `docker` prints there.
    #[track_caller]
    pub(crate) fn docker(&self, arguments: &[&str]) -> String {
        let arguments = [&["--host", "unix:///run/docker.sock"], arguments].concat();
        self.run("docker", &arguments).stdout.trim().to_owned()
    }

    /// Names of the containers and volumes there.
    pub(crate) fn everything(&self) -> Vec<String> {
        let containers = self.docker(&["ps", "--all", "--format", "{{.Names}}"]);
        let volumes = self.docker(&["volume", "ls", "--format", "{{.Name}}"]);
        containers.lines().chain(volumes.lines()).map(str::to_owned).collect()
    }

    /// The folder of certificates: those of a client in `client`, of one that the daemon does not know in `stranger`, of
    /// one whose time is over in `expired`, and an authority that did not sign the daemon's in `foreign`.
    pub(crate) fn certificates(&self, name: &str) -> PathBuf {
        self.folder.path().join("tls").join(name)
    }

    /// tfdev with `arguments`, set to the daemon by `DOCKER_HOST` over TLS.
    pub(crate) fn tls(&self, env: &TestEnv, arguments: &[&str]) -> Command {
        let mut command = env.command(arguments);
        command.env("TFDEV_ENGINE", "docker").env("DOCKER_HOST", format!("tcp://{ADDRESS}:2376"));
        command.env("DOCKER_TLS_VERIFY", "1").env("DOCKER_CERT_PATH", self.certificates("client"));
        command
    }

    /// Starts an ssh server there; `false`, after one clear line, if there is none.
    pub(crate) fn start_ssh(&mut self) -> bool {
        if !Path::new("/usr/sbin/sshd").exists() {
            skip("needs /usr/sbin/sshd (the package openssh-server)");
            return false;
        }
        let folder = self.folder.path().join("ssh");
        std::fs::create_dir(&folder).unwrap();
        for key in ["host", "client", "stranger"] {
            let path = folder.join(key);
            succeed("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", key, "-f", path.to_str().unwrap()]);
        }
        let path = |name: &str| folder.join(name).display().to_string();
        let configuration = format!(
            "ListenAddress {ADDRESS}:22\nHostKey {}\nAuthorizedKeysFile {}\nPidFile none\nUsePAM no\nStrictModes no\n\
             PermitRootLogin prohibit-password\nPasswordAuthentication no\n",
            path("host"),
            path("client.pub"),
        );
        std::fs::write(folder.join("sshd_config"), configuration).unwrap();
        self.write_ssh("known", "client");
        let mut command = self.program("/usr/sbin/sshd");
        let log = File::create(folder.join("sshd.log")).unwrap();
        command.args(["-D", "-e", "-f", &path("sshd_config")]).stdin(Stdio::null()).stderr(log);
        self.sshd = Some(command.spawn().unwrap());
        until("the ssh server", || std::net::TcpStream::connect((ADDRESS, 22)).ok());
        true
    }

    /// Writes a program `ssh` that knows the other machine as `build`, if `known`, and logs in with `key`. The real one
    /// would read the settings of the person who runs the tests.
    pub(crate) fn write_ssh(&self, known: &str, key: &str) {
        let folder = self.folder.path().join("ssh");
        let host_key = std::fs::read_to_string(folder.join("host.pub")).unwrap();
        std::fs::write(folder.join("known"), format!("{ADDRESS} {host_key}")).unwrap();
        let configuration = format!(
            "Host build\n  HostName {ADDRESS}\n  User root\n  IdentityFile {}\n  IdentitiesOnly yes\n  \
             UserKnownHostsFile {}\n  GlobalKnownHostsFile /dev/null\n",
            folder.join(key).display(),
            folder.join(known).display(),
        );
        std::fs::write(folder.join("config"), configuration).unwrap();
        let program = self.ssh_path().join("ssh");
        std::fs::create_dir_all(self.ssh_path()).unwrap();
        std::fs::write(&program, format!("#!/bin/sh\nexec /usr/bin/ssh -F {}/config \"$@\"\n", folder.display()))
            .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The folder of the program [`Remote::write_ssh`] wrote, to stand first in `PATH`.
    pub(crate) fn ssh_path(&self) -> PathBuf {
        self.folder.path().join("ssh/bin")
    }

    /// tfdev with `arguments`, set to the daemon by `DOCKER_HOST` over ssh.
    pub(crate) fn ssh(&self, env: &TestEnv, arguments: &[&str]) -> Command {
        let mut command = env.command(arguments);
        let path = command.get_envs().find(|(name, _)| *name == "PATH").and_then(|(_, path)| path).unwrap();
        let mut with_ours = self.ssh_path().into_os_string();
        with_ours.push(":");
        with_ours.push(path);
        command.env("PATH", with_ours).env("TFDEV_ENGINE", "docker").env("DOCKER_HOST", "ssh://build");
        command
    }

    /// Ends the ssh server.
    pub(crate) fn stop_ssh(&mut self) {
        end(self.sshd.take());
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.folder.path().join("dockerd.log")).unwrap_or_default();
            let lines: Vec<_> = log.lines().rev().take(20).collect();
            complain(&format!("the second daemon's last lines, newest first:\n{}", lines.join("\n")));
        }
        self.stop_ssh();
        if self.daemon.is_some() {
            let mut command = self.program("sh");
            let remove = "docker --host unix:///run/docker.sock ps --all --quiet \
                          | xargs --no-run-if-empty docker --host unix:///run/docker.sock rm --force";
            command.args(["-c", remove]);
            finish(start(command));
        }
        end(self.daemon.take());
        remove_network();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Asks a program to end, and waits until it has.
fn end(program: Option<Child>) {
    let Some(mut program) = program else { return };
    let id = program.id().to_string();
    let _ = Command::new("kill").args(["-TERM", &id]).status();
    let _ = program.wait();
}

/// Why there can be no second daemon here.
fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("only root may make network namespaces".to_owned());
    }
    let absent = PROGRAMS.iter().find(|name| Command::new(name).arg("--version").output().is_err());
    if let Some(absent) = absent {
        return Some(format!("there is no program `{absent}`"));
    }
    let tried = Command::new("unshare").args(["--net", "--mount", "true"]).output().unwrap();
    (!tried.status.success()).then(|| String::from_utf8_lossy(&tried.stderr).trim().to_owned())
}

/// A process in the network namespace, with a mount namespace in which `/run` is its own.
fn hold_namespaces() -> Child {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "nsenter", &format!("--net=/run/netns/{NAMESPACE}")]);
    // Not by `ip netns exec`, which hides the control groups.
    let script = "mount --make-rprivate / && mount -t tmpfs tmpfs /run && mkdir /run/sshd && echo made && \
                  exec sleep infinity";
    command.args(["unshare", "--mount", "sh", "-c", script]);
    let mut holder = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "made\n");
    holder
}

/// Ends whatever still runs in the namespace, which is ours alone, and removes it with the interface.
fn remove_network() {
    if let Ok(pids) = Command::new("ip").args(["netns", "pids", NAMESPACE]).output() {
        for pid in String::from_utf8_lossy(&pids.stdout).lines() {
            let _ = Command::new("kill").args(["-KILL", pid]).output();
        }
    }
    let _ = Command::new("ip").args(["netns", "delete", NAMESPACE]).output();
    let _ = Command::new("ip").args(["link", "delete", INTERFACE]).output();
}

#[track_caller]
fn succeed(program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(start(command)).ok();
}

/// Writes an authority's certificate, the daemon's, and those that [`Remote::certificates`] names.
fn make_certificates(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let (ours, foreign) = (authority("ours"), authority("foreign"));
    let write = |place: &Path, authority: &Authority, names: [&str; 2], of: &(String, String)| {
        std::fs::create_dir_all(place).unwrap();
        std::fs::write(place.join("ca.pem"), &authority.pem).unwrap();
        std::fs::write(place.join(names[0]), &of.0).unwrap();
        std::fs::write(place.join(names[1]), &of.1).unwrap();
    };
    let usual = ["cert.pem", "key.pem"];
    write(folder, &ours, ["server.pem", "server-key.pem"], &ours.certificate(false));
    write(&folder.join("client"), &ours, usual, &ours.certificate(false));
    write(&folder.join("stranger"), &ours, usual, &foreign.certificate(false));
    write(&folder.join("expired"), &ours, usual, &ours.certificate(true));
    write(&folder.join("foreign"), &foreign, usual, &ours.certificate(false));
}

struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

fn authority(name: &str) -> Authority {
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = parameters.self_signed(&key).unwrap().pem();
    Authority { pem, issuer: Issuer::new(parameters, key) }
}

impl Authority {
    /// A certificate for both sides, and its key.
    fn certificate(&self, expired: bool) -> (String, String) {
        let mut parameters = CertificateParams::new([ADDRESS.to_owned()]).unwrap();
        parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        if expired {
            parameters.not_after = date_time_ymd(2020, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        (parameters.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

/// Adds to what a failed test says.
#[expect(clippy::print_stderr, reason = "standard error is where the test runner shows what a test says")]
fn complain(text: &str) {
    eprintln!("{text}");
}

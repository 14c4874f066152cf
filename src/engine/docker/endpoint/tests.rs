#![cfg(unix)]

use std::fs;
use std::os::unix::net::UnixListener;

use super::*;

const PEM: &str = "-----BEGIN CERTIFICATE-----\n";

/// A temporary `DOCKER_CONFIG` folder, sockets of a pretended machine, and the environment to start from.
struct Machine {
    folder: tempfile::TempDir,
    environment: DockerEnvironment,
}

impl Machine {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("docker")).unwrap();
        let environment =
            DockerEnvironment { config_dir: Some(folder.path().join("docker")), ..DockerEnvironment::default() };
        Self { folder, environment }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn context(&self, id: &str, name: &str, endpoint: &str) {
        let text = format!(r#"{{"Name":"{name}","Metadata":{{}},"Endpoints":{{"docker":{endpoint}}}}}"#);
        self.write(&format!("docker/contexts/meta/{id}/meta.json"), &text);
    }

    fn socket(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        // The file stays when the listener is dropped, which is all that the choice looks at.
        drop(UnixListener::bind(&path).unwrap());
        path
    }

    fn places(&self) -> Places {
        Places {
            rootless: vec![self.path("rootless.sock"), self.path("desktop.sock")],
            platform: Address::Unix(self.path("platform.sock")),
        }
    }

    fn choose(&self) -> Result<Endpoint> {
        Endpoint::choose_among(&self.environment, &self.places())
    }
}

/// Everything at once; each test then takes away the strongest of the rest.
fn machine_with_everything() -> Machine {
    let mut machine = Machine::new();
    machine.context("1", "work", r#"{"Host":"tcp://10.0.0.7:2375"}"#);
    machine.context("2", "home", r#"{"Host":"unix:///home.sock"}"#);
    machine.write("docker/config.json", r#"{"auths":{},"currentContext":"home"}"#);
    machine.socket("rootless.sock");
    machine.socket("platform.sock");
    machine.environment.host = Some("unix:///host.sock".to_owned());
    machine.environment.context = Some("work".to_owned());
    machine
}

#[test]
fn the_strongest_setting_wins_and_is_named() {
    let mut machine = machine_with_everything();
    let endpoint = machine.choose().unwrap();
    assert_eq!(endpoint.address, Address::Unix("/host.sock".into()));
    assert_eq!(endpoint.chosen_by, "DOCKER_HOST, which overrides DOCKER_CONTEXT");

    machine.environment.host = Some(String::new());
    let endpoint = machine.choose().unwrap();
    assert_eq!(endpoint.address, Address::Tcp { host: "10.0.0.7".to_owned(), port: 2375 });
    assert_eq!(endpoint.chosen_by, "context `work` (DOCKER_CONTEXT)");

    machine.environment.context = None;
    let endpoint = machine.choose().unwrap();
    assert_eq!(endpoint.address, Address::Unix("/home.sock".into()));
    let config = machine.path("docker/config.json");
    assert_eq!(endpoint.chosen_by, format!("context `home` (currentContext in {})", config.display()));

    fs::remove_file(config).unwrap();
    let endpoint = machine.choose().unwrap();
    assert_eq!(endpoint.address, Address::Unix(machine.path("rootless.sock")));
    assert_eq!(endpoint.passed_over, Some(machine.path("platform.sock")));
    assert_eq!(endpoint.chosen_by, "a rootless socket that is there");

    fs::remove_file(machine.path("rootless.sock")).unwrap();
    let endpoint = machine.choose().unwrap();
    assert_eq!(endpoint.address, Address::Unix(machine.path("platform.sock")));
    assert_eq!(endpoint.chosen_by, "the platform's socket");
}

#[test]
fn a_plain_file_is_no_rootless_socket() {
    let machine = Machine::new();
    machine.write("rootless.sock", "");
    assert_eq!(machine.choose().unwrap().chosen_by, "the platform's socket");
    machine.socket("desktop.sock");
    assert_eq!(machine.choose().unwrap().address, Address::Unix(machine.path("desktop.sock")));
}

#[test]
fn the_runtime_folder_is_where_a_rootless_socket_is_looked_for_first() {
    let mut machine = Machine::new();
    machine.environment.runtime_dir = Some(machine.path("run"));
    let places = Places::of_this_machine(&machine.environment);
    assert_eq!(places.rootless[0], machine.path("run/docker.sock"));
    assert_eq!(places.rootless[1], machine.path("docker/run/docker.sock"));
    assert_eq!(places.platform, Address::Unix("/var/run/docker.sock".into()));
}

#[test]
fn the_context_default_is_the_platforms_socket() {
    let mut machine = machine_with_everything();
    machine.environment.host = None;
    machine.environment.context = Some("default".to_owned());
    let endpoint = machine.choose().unwrap();
    assert_eq!(endpoint.address, Address::Unix(machine.path("platform.sock")));
    assert_eq!(endpoint.choice, Choice::Context);
}

#[test]
fn an_unknown_context_lists_those_that_exist() {
    let mut machine = machine_with_everything();
    machine.environment.host = None;
    machine.environment.context = Some("wrok".to_owned());
    machine.write("docker/contexts/meta/3/meta.json", "{ half");
    let error = machine.choose().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEngine);
    assert_eq!(
        error.to_string(),
        "there is no Docker context `wrok` (DOCKER_CONTEXT); there are `default`, `home`, `work`"
    );
    assert!(error.hints()[0].contains("meta/3/meta.json"), "{:?}", error.hints());
}

#[test]
fn a_configuration_that_cannot_be_understood_is_an_error_and_not_another_daemon() {
    let machine = Machine::new();
    machine.write("docker/config.json", "{\"currentContext\": ");
    let error = machine.choose().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BadInput);
    assert!(error.to_string().contains("docker/config.json"), "{error}");

    for harmless in ["", "{}", r#"{"currentContext":""}"#] {
        machine.write("docker/config.json", harmless);
        assert_eq!(machine.choose().unwrap().chosen_by, "the platform's socket", "{harmless}");
    }
}

#[test]
fn a_context_without_a_docker_endpoint_or_without_checks_is_refused() {
    let mut machine = Machine::new();
    machine.environment.context = Some("odd".to_owned());
    machine.context("1", "odd", "null");
    assert!(machine.choose().unwrap_err().to_string().contains("has no Docker endpoint"));
    machine.context("1", "odd", r#"{"Host":"tcp://10.0.0.7:2376","SkipTLSVerify":true}"#);
    let error = machine.choose().unwrap_err();
    assert!(error.to_string().contains("skips the check of the daemon's certificate"), "{error}");
    assert_eq!(error.kind(), ErrorKind::NoEngine);
}

#[test]
fn tls_material_of_a_context_is_found_beside_it() {
    let mut machine = Machine::new();
    machine.environment.context = Some("secure".to_owned());
    machine.context("abc", "secure", r#"{"Host":"tcp://build","SkipTLSVerify":false}"#);
    for name in ["ca", "cert", "key"] {
        machine.write(&format!("docker/contexts/tls/abc/docker/{name}.pem"), PEM);
    }
    let folder = machine.path("docker/contexts/tls/abc/docker");
    let expected = Address::Tls { host: "build".to_owned(), port: 2376, folder };
    assert_eq!(machine.choose().unwrap().address, expected);
}

#[test]
fn a_missing_tls_file_is_named() {
    let mut machine = Machine::new();
    machine.environment.host = Some("tcp://build".to_owned());
    machine.environment.tls_verify = true;
    let error = machine.choose().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEngine);
    let ca = machine.path("docker/ca.pem");
    assert!(error.to_string().contains(&format!("`{}`", ca.display())), "{error}");
    assert!(error.to_string().contains("DOCKER_HOST"), "{error}");

    machine.write("certificates/ca.pem", PEM);
    machine.environment.cert_path = Some(machine.path("certificates"));
    let address = machine.choose().unwrap().address;
    assert!(matches!(address, Address::Tls { port: 2376, .. }), "a daemon need not ask for a client certificate");

    machine.write("certificates/cert.pem", PEM);
    let error = machine.choose().unwrap_err();
    assert!(error.to_string().contains("certificates/key.pem"), "{error}");

    machine.write("certificates/key.pem", "oops");
    let error = machine.choose().unwrap_err();
    assert!(error.to_string().contains("certificates/key.pem"), "{error}");
    assert!(error.causes()[0].contains("not a PEM file"), "{:?}", error.causes());
}

#[test]
fn addresses_are_read_as_the_docker_command_line_reads_them() {
    let parse = |text: &str| address::parse(text, None, "DOCKER_HOST").unwrap();
    let tcp = |host: &str, port| Address::Tcp { host: host.to_owned(), port };
    let ssh = |user: Option<&str>, host: &str, port| Address::Ssh {
        user: user.map(str::to_owned),
        host: host.to_owned(),
        port,
    };
    assert_eq!(parse("unix:///run/my docker.sock"), Address::Unix("/run/my docker.sock".into()));
    assert_eq!(parse("npipe:////./pipe/docker_engine"), Address::NamedPipe("//./pipe/docker_engine".to_owned()));
    assert_eq!(parse(r"npipe://\\.\pipe\docker_engine"), Address::NamedPipe("//./pipe/docker_engine".to_owned()));
    assert_eq!(parse("tcp://build"), tcp("build", 2375));
    assert_eq!(parse("tcp://build:99/"), tcp("build", 99));
    assert_eq!(parse("build:99"), tcp("build", 99));
    assert_eq!(parse("tcp://:99"), tcp("127.0.0.1", 99));
    assert_eq!(parse("tcp://[fd00::1]:99"), tcp("fd00::1", 99));
    assert_eq!(parse("ssh://build"), ssh(None, "build", None));
    assert_eq!(parse("ssh://me@build:2222"), ssh(Some("me"), "build", Some(2222)));
    for text in ["unix:///run/docker.sock", "tcp://[fd00::1]:99", "ssh://me@build:2222", "npipe:////./pipe/x"] {
        assert_eq!(parse(text).to_string(), text);
    }
}

#[test]
fn addresses_that_mean_nothing_are_refused_with_what_is_wrong() {
    for (text, expected) in [
        ("/var/run/docker.sock", "has no scheme"),
        ("unix://docker.sock", "not absolute"),
        ("unix://", "not absolute"),
        ("tcp://fd00::1:99", "needs brackets"),
        ("tcp://[fd00::1:99", "`]` is missing"),
        ("tcp://build:port", "`port` is not a port"),
        ("tcp://build:0", "`0` is not a port"),
        ("tcp://build:99/path", "`99/path` is not a port"),
        ("tcp://bu ild:99", "`bu ild` is not a host name"),
        ("ssh://", "names no host"),
        ("ssh://me:secret@build", "holds a password"),
        ("ssh://-oProxyCommand=touch x", "is not a host name"),
        ("ssh://-oProxyCommand@build", "is not a user name"),
        ("ssh://build/run/docker.sock", "is not a host name"),
    ] {
        let error = address::parse(text, None, "DOCKER_HOST").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput, "{text}");
        assert!(error.to_string().contains(expected), "{text}: {error}");
        assert!(error.to_string().contains("chosen by DOCKER_HOST"), "{text}: {error}");
    }
    let error = address::parse("fd://3", None, "DOCKER_HOST").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEngine);
    assert!(error.to_string().contains("scheme `fd`"), "{error}");
}

#[tokio::test]
async fn the_database_is_where_the_daemon_is() {
    let endpoint = |text: &str| {
        let address = address::parse(text, None, "DOCKER_HOST").unwrap();
        Endpoint::new(address, "DOCKER_HOST".to_owned(), Choice::Host)
    };
    let local = [
        "unix:///x",
        "npipe:////./pipe/x",
        "tcp://127.0.0.1:1",
        "tcp://localhost:1",
        "tcp://[::1]:1",
        "tcp://0.0.0.0:1",
        "ssh://LOCALHOST",
    ];
    for text in local {
        assert!(endpoint(text).is_local(), "{text}");
        assert_eq!(endpoint(text).database_host(None), "127.0.0.1", "{text}");
        assert_eq!(endpoint(text).publish_address(None).await.unwrap(), Ipv4Addr::LOCALHOST, "{text}");
    }
    for (text, host) in [("tcp://10.1.2.3:2375", "10.1.2.3"), ("ssh://me@10.1.2.4", "10.1.2.4")] {
        assert!(!endpoint(text).is_local(), "{text}");
        assert_eq!(endpoint(text).database_host(None), host);
        assert_eq!(endpoint(text).publish_address(None).await.unwrap().to_string(), host);
    }
    let version_six = endpoint("tcp://[fd00::1]:2375");
    assert_eq!(version_six.database_host(None), "fd00::1");
    assert_eq!(version_six.publish_address(None).await.unwrap().to_string(), "fd00::1");

    let mut alias = endpoint("ssh://build");
    alias.ssh_host_name = Some("10.1.2.5".to_owned());
    assert_eq!(alias.database_host(None), "10.1.2.5");
    assert_eq!(alias.publish_address(None).await.unwrap().to_string(), "10.1.2.5");

    // `.invalid` never resolves (RFC 6761).
    let error = endpoint("tcp://build.invalid:2375").publish_address(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoEngine);
    assert!(error.to_string().contains("`build.invalid`"), "{error}");
}

#[tokio::test]
async fn a_public_address_is_published_on_only_if_it_is_asked_for() {
    let address = address::parse("tcp://9.9.9.9:2376", None, "DOCKER_HOST").unwrap();
    let endpoint = Endpoint::new(address, "DOCKER_HOST".to_owned(), Choice::Host);
    let error = endpoint.publish_address(None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("public address 9.9.9.9"), "{error}");
    assert!(error.hints()[0].contains("`publish = \"9.9.9.9\"` in the section `[docker]`"), "{:?}", error.hints());
    for (asked, host) in [
        ("9.9.9.9", "9.9.9.9"),
        // Every address, and so the Docker host's own.
        ("0.0.0.0", "9.9.9.9"),
        ("::", "9.9.9.9"),
        // A tunnel of the person's own.
        ("127.0.0.1", "127.0.0.1"),
        ("fd00::1", "fd00::1"),
    ] {
        let asked = Setting::default_value(asked.parse().unwrap());
        assert_eq!(endpoint.publish_address(Some(&asked)).await.unwrap(), asked.value);
        assert_eq!(endpoint.database_host(Some(&asked)), host);
    }
}

#[test]
fn addresses_of_private_networks_are_told_from_public_ones() {
    for private in [
        "10.1.2.3",
        "172.31.0.1",
        "192.168.0.9",
        "169.254.1.1",
        "100.64.0.1",
        "fd00::1",
        "fe80::1",
        "::ffff:10.0.0.1",
        "192.0.2.2",
        "198.19.0.1",
        "2001:db8::1",
    ] {
        assert!(is_private(private.parse().unwrap()), "{private}");
    }
    for public in ["9.9.9.9", "172.32.0.1", "100.128.0.1", "2620:fe::fe", "::ffff:9.9.9.9"] {
        assert!(!is_private(public.parse().unwrap()), "{public}");
    }
}

#[test]
fn only_a_database_on_loopback_is_nothing_to_tell_of() {
    assert_eq!(exposure("127.0.0.1", Ipv4Addr::LOCALHOST.into()), None);
    assert!(exposure("build", "10.1.2.3".parse().unwrap()).unwrap().contains("on 10.1.2.3 of the Docker host"));
    assert!(exposure("127.0.0.1", "0.0.0.0".parse().unwrap()).unwrap().contains("any address of that machine"));
}

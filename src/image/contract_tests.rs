//! The official image's documented contract, each case on a real container of the offline image.

use std::time::{Duration, Instant};

use super::test_support::{Container, Network, Start, Volume, docker, offline_image};

const PASSWORD: &str = "POSTGRES_PASSWORD=a secret";

#[tokio::test]
async fn the_configuration_is_that_of_the_official_image() {
    let Some(docker) = docker().await else { return };
    let image = offline_image(&docker).await;
    let inspected = docker.inspect_image(&image.id).await.unwrap();
    let config = inspected.config.unwrap();
    assert_eq!(config.entrypoint.unwrap(), ["docker-entrypoint.sh"]);
    assert_eq!(config.cmd.unwrap(), ["postgres"]);
    assert_eq!(config.stop_signal.as_deref(), Some("SIGINT"));
    assert!(config.volumes.unwrap().contains(&"/var/lib/postgresql/data".to_owned()));
    assert!(config.exposed_ports.unwrap().contains(&"5432/tcp".to_owned()));
    let environment = config.env.unwrap();
    for variable in ["PGDATA=/var/lib/postgresql/data", "PG_MAJOR=15", "LANG=C.UTF-8"] {
        assert!(environment.iter().any(|have| have == variable), "{variable}: {environment:?}");
    }
    assert!(image.postgres_version.unwrap().starts_with("15."));
    assert!(image.size_bytes < 150_000_000, "{} bytes", image.size_bytes);
}

const SOURCED: &[u8] = b"\
    psql -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c 'CREATE TABLE seen (number serial, what text)'\n\
    psql -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c \"INSERT INTO seen (what) VALUES ('sourced')\"\n\
    kept_by_the_shell=yes\n";

const EXECUTED: &[u8] = b"#!/bin/bash\n\
    [ -z \"$kept_by_the_shell\" ] || exit 9\n\
    psql -v ON_ERROR_STOP=1 -U \"$POSTGRES_USER\" -d \"$POSTGRES_DB\" -c \"INSERT INTO seen (what) VALUES ('executed')\"\n";

/// `INSERT INTO seen (what) VALUES ('gz');` and so on, compressed.
const GZ: &[u8] = include_bytes!("testdata/insert.sql.gz");
const XZ: &[u8] = include_bytes!("testdata/insert.sql.xz");
const ZST: &[u8] = include_bytes!("testdata/insert.sql.zst");

#[tokio::test]
async fn a_first_start_makes_user_database_password_and_runs_scripts_in_order() {
    let Some(docker) = docker().await else { return };
    let volume = Volume::new(&docker);
    let network = Network::new(&docker).await;
    let data = Some((volume.name.as_str(), "/var/lib/postgresql/data"));
    let scripts: &[(&str, u32, &[u8])] = &[
        ("/secret", 0o600, b"from a file\n"),
        ("/docker-entrypoint-initdb.d/10-sourced.sh", 0o644, SOURCED),
        ("/docker-entrypoint-initdb.d/20-executed.sh", 0o755, EXECUTED),
        ("/docker-entrypoint-initdb.d/30.sql", 0o644, b"INSERT INTO seen (what) VALUES ('sql');"),
        ("/docker-entrypoint-initdb.d/40.sql.gz", 0o644, GZ),
        ("/docker-entrypoint-initdb.d/50.sql.xz", 0o644, XZ),
        ("/docker-entrypoint-initdb.d/60.sql.zst", 0o644, ZST),
        ("/docker-entrypoint-initdb.d/70-readme.txt", 0o644, b"not a script"),
    ];
    let first = Container::start(
        &docker,
        Start {
            environment: &["POSTGRES_PASSWORD_FILE=/secret", "POSTGRES_USER=joe", "POSTGRES_DB=my app"],
            arguments: &["-c", "max_connections=33"],
            volume: data,
            network: Some(&network.name),
            files: scripts,
            ..Start::default()
        },
    )
    .await;
    first.wait_until_ready().await;

    assert_eq!(
        first.query("joe", "my app", "SELECT string_agg(what, ' ' ORDER BY number) FROM seen").await,
        "sourced executed sql gz xz zst"
    );
    assert!(first.logs().await.contains("ignoring /docker-entrypoint-initdb.d/70-readme.txt"));
    assert_eq!(
        first.query("joe", "my app", "SELECT string_agg(rolname, ',') FROM pg_roles WHERE rolname !~ '^pg_'").await,
        "joe"
    );
    assert_eq!(first.query("joe", "my app", "SHOW max_connections").await, "33");
    assert_eq!(first.query("joe", "my app", "SHOW TimeZone").await, "UTC");
    assert_eq!(
        first.query("joe", "my app", "SELECT count(*) FROM pg_available_extensions WHERE name = 'pgcrypto'").await,
        "1"
    );
    assert_eq!(first.shell("tail -n 1 $PGDATA/pg_hba.conf").await, "host all all all scram-sha-256");
    assert_eq!(first.shell("stat -c '%u:%g %a' $PGDATA /proc/1").await, "70:70 700\n70:70 555");
    let (status, environment) = first.run("70:70", &["cat", "/proc/1/environ"]).await;
    assert!(status == 0 && environment.contains("POSTGRES_USER=joe"), "{environment}");
    assert!(!environment.contains("from a file"), "the password stays in no environment: {environment}");

    // Loopback is `trust` inside, so only the container's own address proves the password.
    let login =
        |password: &str| format!("PGPASSWORD='{password}' psql -h $(hostname -i) -U joe -d 'my app' -XAtc 'SELECT 1'");
    assert_eq!(first.shell(&login("from a file")).await, "1");
    assert_ne!(first.run("", &["sh", "-c", &login("wrong")]).await.0, 0);

    let stopping = Instant::now();
    first.stop().await;
    assert_eq!(first.exit_status().await, 0);
    assert!(stopping.elapsed() < Duration::from_secs(3), "{:?}", stopping.elapsed());
    assert!(first.logs().await.contains("received fast shutdown request"));

    // A volume that holds a database: no variable counts, not even wrong ones, and no script runs.
    let second = Container::start(
        &docker,
        Start {
            environment: &["POSTGRES_PASSWORD=a", "POSTGRES_PASSWORD_FILE=/missing", "POSTGRES_USER=ann"],
            volume: data,
            files: &[("/docker-entrypoint-initdb.d/10.sql", 0o644, b"CREATE TABLE again ()")],
            ..Start::default()
        },
    )
    .await;
    second.wait_until_ready().await;
    assert!(second.logs().await.contains("Skipping initialization"));
    assert_eq!(second.query("joe", "my app", "SELECT count(*) FROM pg_roles WHERE rolname = 'ann'").await, "0");
    assert_eq!(second.query("joe", "my app", "SELECT to_regclass('again') IS NULL").await, "t");
}

/// Variables, user, files, and what the log must say.
type Refused<'a> = (&'a [&'a str], &'a str, &'a [(&'a str, u32, &'a [u8])], &'a str);

#[tokio::test]
async fn a_start_that_cannot_work_ends_at_once_and_says_why() {
    let Some(docker) = docker().await else { return };
    let both: &[&str] = &["POSTGRES_USER=a", "POSTGRES_USER_FILE=/etc/passwd", PASSWORD];
    let stray: &[(&str, u32, &[u8])] = &[("/var/lib/postgresql/PG_VERSION", 0o644, b"15\n")];
    let cases: [Refused<'_>; 6] = [
        (&[], "", &[], "Set POSTGRES_PASSWORD"),
        (&["POSTGRES_PASSWORD=", "POSTGRES_HOST_AUTH_METHOD=md5"], "", &[], "Set POSTGRES_PASSWORD"),
        (both, "", &[], "both POSTGRES_USER and POSTGRES_USER_FILE are set"),
        (&["POSTGRES_PASSWORD_FILE=/missing"], "", &[], "`/missing` that POSTGRES_PASSWORD_FILE names cannot be read"),
        (&[PASSWORD], "12345:12345", &[], "no entry in /etc/passwd"),
        (&[PASSWORD], "", stray, "data folder in `/var/lib/postgresql`"),
    ];
    for (environment, user, files, expected) in cases {
        let container = Container::start(&docker, Start { environment, user, files, ..Start::default() }).await;
        assert_eq!(container.exit_status().await, 1, "{environment:?}");
        let logs = container.logs().await;
        assert!(logs.contains(expected), "{environment:?}: {logs}");
        assert!(!logs.contains("half made"), "nothing was begun: {logs}");
    }
}

#[tokio::test]
async fn another_data_folder_wal_folder_user_and_initdb_arguments_work() {
    let Some(docker) = docker().await else { return };
    let container = Container::start(
        &docker,
        Start {
            environment: &[
                PASSWORD,
                "PGDATA=/var/lib/postgresql/data/deeper",
                "POSTGRES_INITDB_WALDIR=/var/lib/postgresql/wal",
                "POSTGRES_INITDB_ARGS=--data-checksums --locale='en_US.utf8'",
            ],
            user: "70:70",
            ..Start::default()
        },
    )
    .await;
    container.wait_until_ready().await;
    let query = async |sql: &str| container.query("postgres", "postgres", sql).await;
    assert_eq!(query("SHOW data_directory").await, "/var/lib/postgresql/data/deeper");
    assert_eq!(query("SHOW data_checksums").await, "on");
    assert_eq!(query("SELECT datcollate FROM pg_database WHERE datname = 'postgres'").await, "en_US.utf8");
    assert_eq!(query("SELECT 'a' > 'B'").await, "t", "the official image sorts by code point too");
    assert_eq!(container.shell("readlink $PGDATA/pg_wal").await, "/var/lib/postgresql/wal");
}

#[tokio::test]
async fn the_host_rule_follows_the_password_encryption_or_the_given_method() {
    let Some(docker) = docker().await else { return };
    let md5 = Container::start(
        &docker,
        Start {
            environment: &[PASSWORD],
            arguments: &["postgres", "-c", "password_encryption=md5"],
            ..Start::default()
        },
    )
    .await;
    let network = Network::new(&docker).await;
    let trust = Container::start(
        &docker,
        Start { environment: &["POSTGRES_HOST_AUTH_METHOD=trust"], network: Some(&network.name), ..Start::default() },
    )
    .await;
    md5.wait_until_ready().await;
    assert_eq!(md5.shell("tail -n 1 $PGDATA/pg_hba.conf").await, "host all all all md5");
    trust.wait_until_ready().await;
    assert_eq!(trust.shell("tail -n 1 $PGDATA/pg_hba.conf").await, "host all all all trust");
    assert!(trust.logs().await.contains("warning: POSTGRES_HOST_AUTH_METHOD is `trust`"));
    assert_eq!(trust.shell("psql -w -h $(hostname -i) -U postgres -XAtc 'SELECT 1'").await, "1");
}

#[tokio::test]
async fn other_commands_and_questions_start_no_database() {
    let Some(docker) = docker().await else { return };
    for (arguments, expected) in [
        (&["--version"][..], "postgres (PostgreSQL) 15."),
        (&["postgres", "--help"], "Usage:"),
        (&["sh", "-c", "echo I am $(id -u)"], "I am 0"),
        (&["psql", "--version"], "psql (PostgreSQL) 15."),
    ] {
        let container = Container::start(&docker, Start { arguments, ..Start::default() }).await;
        assert_eq!(container.exit_status().await, 0, "{arguments:?}");
        let logs = container.logs().await;
        assert!(logs.contains(expected), "{arguments:?}: {logs}");
    }
}

#[tokio::test]
async fn a_first_start_that_fails_says_that_the_folder_is_half_made() {
    let Some(docker) = docker().await else { return };
    let bad_setting = Container::start(
        &docker,
        Start { environment: &[PASSWORD], arguments: &["-c", "shared_buffers=12X"], ..Start::default() },
    )
    .await;
    let bad_script = Container::start(
        &docker,
        Start {
            environment: &[PASSWORD],
            files: &[("/docker-entrypoint-initdb.d/10.sql", 0o644, b"SELECT nonsense;")],
            ..Start::default()
        },
    )
    .await;
    for (container, expected) in [(&bad_setting, "shared_buffers"), (&bad_script, "nonsense")] {
        assert_ne!(container.exit_status().await, 0);
        let logs = container.logs().await;
        assert!(logs.contains(expected), "{logs}");
        assert!(logs.contains("is half made"), "{logs}");
    }
}

#[tokio::test]
async fn a_stop_during_the_first_start_is_obeyed_at_once() {
    let Some(docker) = docker().await else { return };
    for file in ["10.sql", "10.sh"] {
        let path = format!("/docker-entrypoint-initdb.d/{file}");
        let script: &[u8] = if file == "10.sql" { b"SELECT pg_sleep(300);" } else { b"#!/bin/sh\nsleep 300\n" };
        let container = Container::start(
            &docker,
            Start { environment: &[PASSWORD], files: &[(&path, 0o755, script)], ..Start::default() },
        )
        .await;
        container.wait_for_log(&format!("running {path}")).await;
        let stopping = Instant::now();
        container.stop().await;
        assert!(stopping.elapsed() < Duration::from_secs(5), "{:?}: {}", stopping.elapsed(), container.logs().await);
        assert_eq!(container.exit_status().await, 130, "by the signal, not killed");
        let logs = container.logs().await;
        assert!(logs.contains("is half made") && logs.contains("database system is shut down"), "{logs}");
    }
}

#[tokio::test]
async fn sigterm_ends_an_idle_server_within_a_second_or_two() {
    let Some(docker) = docker().await else { return };
    let container = Container::start(&docker, Start { environment: &[PASSWORD], ..Start::default() }).await;
    container.wait_until_ready().await;
    let stopping = Instant::now();
    container.signal("SIGTERM").await;
    assert_eq!(container.exit_status().await, 0);
    assert!(stopping.elapsed() < Duration::from_secs(3), "{:?}", stopping.elapsed());
}

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::pg::test_server::{Cluster, command, copy, output, session};

/// Gives the data folder a new identity, as a copy of a seed folder gets it, and says which.
fn re_identify(data: &Path) -> u64 {
    let file = data.join(CONTROL_FILE);
    let bytes = fs::read(&file).unwrap();
    let old = ControlFile::parse(&bytes).unwrap().system_identifier;
    let new = new_system_identifier();
    fs::write(&file, with_system_identifier(&bytes, new).unwrap()).unwrap();
    for entry in fs::read_dir(data.join(WAL_FOLDER)).unwrap() {
        let path = entry.unwrap().path();
        if is_wal_segment(path.file_name().unwrap().to_str().unwrap()) {
            let mut segment = fs::read(&path).unwrap();
            patch_wal_segment(&mut segment, old, new).unwrap();
            fs::write(&path, segment).unwrap();
        }
    }
    new
}

async fn number(connection: &mut sqlx::PgConnection, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(connection).await.unwrap()
}

/// A cluster with a table of 1,000 rows and more than one WAL segment, shut down cleanly.
async fn seed_cluster() -> Option<Cluster> {
    let mut cluster = Cluster::initialise(&["--data-checksums", "--wal-segsize=1"])?;
    cluster.start(&["wal_level=logical"]).await;
    let mut connection = session(&cluster.login).await;
    sqlx::raw_sql("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS id; SELECT pg_switch_wal()")
        .execute(&mut connection)
        .await
        .unwrap();
    drop(connection);
    cluster.stop(true);
    Some(cluster)
}

#[tokio::test]
async fn the_fields_agree_with_pg_controldata() {
    let Some(mut cluster) = seed_cluster().await else { return };
    let read = |cluster: &Cluster| ControlFile::parse(&fs::read(cluster.data().join(CONTROL_FILE)).unwrap()).unwrap();
    let control = read(&cluster);
    let told = output(command("pg_controldata").arg(cluster.data()));
    let value = |label: &str| {
        told.lines().find_map(|line| line.strip_prefix(label)).unwrap_or_else(|| panic!("{label}: {told}")).trim()
    };
    assert_eq!(value("Database system identifier:"), control.system_identifier.to_string());
    assert_eq!(value("pg_control version number:"), control.control_version.to_string());
    assert_eq!(value("Catalog version number:"), control.catalog_version.to_string());
    assert_eq!(value("Database cluster state:"), "shut down");
    assert_eq!(control.state, ClusterState::ShutDown);
    let checkpoint = format!("{:X}/{:X}", control.checkpoint >> 32, control.checkpoint & 0xFFFF_FFFF);
    assert_eq!(value("Latest checkpoint location:"), checkpoint);
    assert_eq!(value("Latest checkpoint's TimeLineID:"), control.timeline.to_string());
    assert_eq!(value("max_connections setting:"), control.max_connections.to_string());
    assert_eq!((value("wal_level setting:"), control.wal_level), ("logical", 2));
    assert_eq!((value("Bytes per WAL segment:"), control.wal_segment_size), ("1048576", 1 << 20));
    assert_eq!((value("Data page checksum version:"), control.data_checksums), ("1", true));

    cluster.start(&[]).await;
    assert_eq!(read(&cluster).state, ClusterState::InProduction);
    let running = fs::read(cluster.data().join(CONTROL_FILE)).unwrap();
    let refused = with_system_identifier(&running, 1).unwrap_err();
    assert_eq!(refused.kind(), crate::ErrorKind::Refused);
}

#[tokio::test]
async fn a_copy_with_a_new_identity_is_a_healthy_server_of_its_own() {
    let Some(mut cluster) = seed_cluster().await else { return };
    let data = cluster.data();
    let old = ControlFile::parse(&fs::read(data.join(CONTROL_FILE)).unwrap()).unwrap().system_identifier;
    let new = re_identify(&data);
    assert_ne!(old, new);

    // The programs that read such folders agree before any start.
    assert!(output(command("pg_controldata").arg(&data)).contains(&new.to_string()));
    let checked = output(command("pg_checksums").args(["--check", "--pgdata"]).arg(&data));
    assert!(checked.contains("Bad checksums:  0"), "{checked}");
    let control = ControlFile::parse(&fs::read(data.join(CONTROL_FILE)).unwrap()).unwrap();
    let start = format!("{:X}/{:X}", control.checkpoint >> 32, control.checkpoint & 0xFFFF_FFFF);
    let wal = output(
        command("pg_waldump").arg("--path").arg(data.join(WAL_FOLDER)).args(["--start", &start, "--limit", "1"]),
    );
    assert!(wal.contains("CHECKPOINT_SHUTDOWN"), "{wal}");

    cluster.start(&["wal_level=logical", "max_wal_senders=4"]).await;
    let mut connection = session(&cluster.login).await;
    let identifier = number(&mut connection, "SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(identifier.cast_unsigned(), new);
    assert_eq!(number(&mut connection, "SELECT count(*) FROM kept").await, 1000);
    let log = cluster.log();
    for complaint in ["not properly shut down", "redo starts", "PANIC", "FATAL:  could not", "invalid"] {
        assert!(!log.contains(complaint), "{complaint}: {log}");
    }

    // A base backup of it restores, with its WAL, under the same identity.
    let backup = data.parent().unwrap().join("backup");
    output(
        command("pg_basebackup")
            .args(["--checkpoint=fast", "--no-sync", "--username=postgres", "--host"])
            .arg(data.parent().unwrap())
            .args(["--port", &cluster.login.port.to_string(), "--pgdata"])
            .arg(&backup),
    );
    let verified = output(command("pg_verifybackup").arg(&backup));
    assert!(verified.contains("successfully verified"), "{verified}");
    let copied = ControlFile::parse(&fs::read(backup.join(CONTROL_FILE)).unwrap()).unwrap();
    assert_eq!(copied.system_identifier, new);

    // Recovery after a crash reads WAL from before and after the change of identity's segment.
    sqlx::raw_sql(
        "INSERT INTO kept SELECT generate_series(1001, 3000); SELECT pg_switch_wal(); INSERT INTO kept VALUES (0)",
    )
    .execute(&mut connection)
    .await
    .unwrap();
    drop(connection);
    cluster.stop(false);
    cluster.start(&["wal_level=logical"]).await;
    let mut connection = session(&cluster.login).await;
    assert_eq!(number(&mut connection, "SELECT count(*) FROM kept").await, 3001);
    assert!(cluster.log().contains("redo done"), "the crash was recovered from: {}", cluster.log());
    let identifier = number(&mut connection, "SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(identifier.cast_unsigned(), new);
}

/// Shows that the WAL headers matter: with the control file alone changed the server refuses.
#[tokio::test]
async fn without_the_wal_headers_the_server_refuses_the_folder() {
    let Some(cluster) = Cluster::initialise(&[]) else { return };
    let data = cluster.data();
    let copied = data.parent().unwrap().join("copied");
    copy(&data, &copied);
    let file = copied.join(CONTROL_FILE);
    fs::write(&file, with_system_identifier(&fs::read(&file).unwrap(), 42).unwrap()).unwrap();
    // A socket of its own: the usual folder need not be there, and another server may have its name in it.
    let sockets = format!("unix_socket_directories={}", copied.display());
    let refused = command("postgres").arg("-D").arg(&copied).args(["-c", "listen_addresses=", "-c", &sockets]).output();
    let refused = refused.unwrap();
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(text.contains("WAL file database system identifier"), "{text}");
    output(Command::new("rm").arg("-rf").arg(copied));
}

#[tokio::test]
async fn damage_is_found() {
    let Some(cluster) = Cluster::initialise(&[]) else { return };
    let bytes = fs::read(cluster.data().join(CONTROL_FILE)).unwrap();
    assert!(ControlFile::parse(&bytes[..512]).is_err(), "cut");
    for position in [0, 16, 40, 253, 287, 289] {
        let mut damaged = bytes.clone();
        damaged[position] ^= 0x40;
        assert!(ControlFile::parse(&damaged).is_err(), "a bit changed at {position}");
    }
    let mut other = bytes.clone();
    other[8..12].copy_from_slice(&1201_u32.to_le_bytes());
    assert!(ControlFile::parse(&other).unwrap_err().to_string().contains("1201"));

    let old = ControlFile::parse(&bytes).unwrap().system_identifier;
    let segment = fs::read(cluster.data().join(WAL_FOLDER).join("000000010000000000000001")).unwrap();
    let patch = |change: &dyn Fn(&mut Vec<u8>), old: u64| {
        let mut page = segment[..8192].to_vec();
        change(&mut page);
        patch_wal_segment(&mut page, old, 7).map(|()| page)
    };
    assert_eq!(u64_at(&patch(&|_| {}, old).unwrap(), WAL_SYSTEM_IDENTIFIER), 7);
    assert!(patch(&|_| {}, old ^ 1).is_err(), "another cluster's");
    assert!(patch(&|page| page[0] = 0x0D, old).is_err(), "another version's");
    assert!(patch(&|page| page[2] = 0, old).is_err(), "a short header");
    assert!(patch(&|page| page.truncate(39), old).is_err(), "cut");
    assert_eq!(patch(&|page| page.fill(0), old).unwrap(), vec![0; 8192], "not used yet");
}

#[test]
fn identifiers_made_at_once_differ_and_carry_the_time() {
    let made: std::collections::HashSet<u64> = (0..1000).map(|_| new_system_identifier()).collect();
    assert_eq!(made.len(), 1000);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!(made.iter().all(|identifier| now - (identifier >> 32) <= 5));
}

#[test]
fn only_segment_files_are_segments() {
    assert!(is_wal_segment("000000010000000000000001"));
    assert!(is_wal_segment("0000000100000000000000AB.partial"));
    for other in ["archive_status", "00000002.history", "00000001000000000000000", "000000010000000000000001.backup"] {
        assert!(!is_wal_segment(other), "{other}");
    }
}

//! What the engine does that no command shows yet, on a real server.

use super::*;
use crate::instance::Password;
use crate::instance::tests::settings;
use crate::pg::test_server;

async fn engine(root: &std::path::Path) -> Option<(ExternalEngine, crate::pg::Login)> {
    let login = test_server::database().await?;
    let file =
        format!("project = \"app\"\n[external]\nurl = \"postgres://postgres@127.0.0.1:{}/postgres\"\n", login.port);
    let mut settings = settings(root, "app", &file);
    settings.passwords.variable = Some(Password::new(login.password.clone()));
    let engine = ExternalEngine::new(Instance::of(&settings), &settings, Events::none()).unwrap();
    Some((engine, login))
}

#[tokio::test]
async fn programs_of_this_machine_run_with_the_server_as_their_target() {
    let root = tempfile::tempdir().unwrap();
    let Some((engine, login)) = engine(root.path()).await else { return };
    let dumped = engine.run(&["pg_dump", "--create", "--dbname", &login.database], b"").await.unwrap();
    let dumped = String::from_utf8(dumped.checked("dump").unwrap().stdout).unwrap();
    assert!(dumped.contains(&format!("CREATE DATABASE {}", login.database)), "{dumped}");
    let asked = engine.run(&["psql", "-XAt", "--dbname", &login.database], b"SELECT 6 * 7").await.unwrap();
    assert_eq!(asked.stdout, b"42\n");
    let failed = engine.run(&["psql", "-XAt", "--dbname", "nothing_of_the_kind"], b"").await.unwrap();
    assert!(failed.checked("ask").unwrap_err().causes()[0].contains("nothing_of_the_kind"));
    let missing = engine.run(&["pg_no_such_program"], b"").await.unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NoEngine);
}

#[tokio::test]
async fn what_is_not_ours_is_not_seen() {
    let root = tempfile::tempdir().unwrap();
    let Some((engine, _)) = engine(root.path()).await else { return };
    assert_eq!(engine.observe().await.unwrap().state, State::Absent);
    assert_eq!(engine.destroy().await.unwrap(), Vec::<String>::new());
}

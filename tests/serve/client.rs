//! The published client for Rust, which knows nothing of tfdev, against the service: alone, and under `tfdev test`.

use std::error::Error;
use std::time::Duration;

use integresql::{ConnectionSettings, DbManager, IntegresqlError};

use super::http::Served;
use super::{exists, instance_url};
use crate::support::{TestEngine, TestEnv, one, query, run_on, until};

/// The client gives up after 6 s by itself; this machine may be busy.
const PATIENT: Duration = Duration::from_mins(1);

#[expect(clippy::needless_pass_by_value, clippy::unnecessary_wraps, reason = "the form that the client wants")]
fn migrate(settings: ConnectionSettings) -> Result<(), Box<dyn Error>> {
    query(&settings.to_libpq_url(), "CREATE TABLE pets (name text)");
    Ok(())
}

/// The whole life: a template made once, databases of it that are private, returned in both ways, and all of it discarded.
fn live(manager: &DbManager) -> Vec<String> {
    let template = manager.get_template_db_sync("pets", migrate).unwrap();
    let again = manager.get_template_db_sync("pets", |_| panic!("it is there already")).unwrap();
    assert_eq!(template.get_template_id(), again.get_template_id());

    let (one_, two) = (template.get_writable_test_db().unwrap(), again.get_writable_test_db().unwrap());
    assert_eq!((one_.id, two.id), (Some(0), Some(1)));
    query(&one_.to_libpq_url(), "INSERT INTO pets VALUES ('Bello')");
    assert_eq!(one(&two.to_libpq_url(), "SELECT count(*) FROM pets"), "0");
    let names = vec![one_.to_libpq_url(), two.to_libpq_url()];
    // Dropped, the client has them made anew.
    drop((one_, two));

    let read_only = template.get_readonly_test_db().unwrap();
    let name = read_only.database.clone();
    // Dropped, the client unlocks it.
    drop(read_only);
    let read_only = template.get_readonly_test_db().unwrap();
    assert_eq!(read_only.database, name);
    assert_eq!(one(&read_only.to_libpq_url(), "SELECT count(*) FROM pets"), "0");
    drop(read_only);

    let failed = manager.get_template_db_sync("broken", |_| Err("no such file".into()));
    assert!(matches!(failed, Err(IntegresqlError::SetupError(_))), "{failed:?}");
    manager.get_template_db_sync("broken", migrate).unwrap().get_writable_test_db().unwrap();

    manager.discard_template("pets").unwrap();
    assert!(matches!(template.get_writable_test_db(), Err(IntegresqlError::NotFound)));
    manager.get_template_db_sync("pets", migrate).unwrap();
    manager.clear_db_tracking().unwrap();
    assert!(matches!(template.get_writable_test_db(), Err(IntegresqlError::NotFound)));
    names
}

#[test]
fn the_published_client_lives_its_whole_life() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let served = Served::start(env);
        let url = format!("http://{}/api", served.address).parse().unwrap();
        let names = live(&DbManager::new(url, PATIENT));
        let instance = instance_url(env, "test");
        for name in names {
            let name = name.trim_end_matches('?');
            until("a returned database to go", || (!exists(&instance, name)).then_some(()));
        }
        assert!(served.end_by("INT").success());
    });
}

#[test]
fn clients_under_a_test_command_find_the_service_by_its_variables() {
    run_on(TestEngine::Native, |env: &TestEnv| {
        let program = std::env::current_exe().unwrap();
        let this = "serve::client::a_suite_of_the_client";
        let suite = [program.to_str().unwrap(), "--exact", this, "--ignored", "--nocapture"];
        let outcome = env.run(&[&["test", "--"], &suite[..]].concat()).ok();
        assert!(outcome.stdout.contains("1 passed"), "{outcome:?}");
        let left = super::fresh_databases(env, |stage| stage != "free");
        assert_eq!(left, Vec::<String>::new());
    });
}

#[test]
#[ignore = "another test starts it as a process of its own"]
fn a_suite_of_the_client() {
    live(&DbManager::from_env());
    #[expect(clippy::disallowed_methods, reason = "the variables of `tfdev test`")]
    let of = |name: &str| std::env::var(name).unwrap();
    assert_eq!(one(&of("DATABASE_URL"), "SELECT count(*) FROM tasks"), "0");
    let api = format!("{}/api", of("TFDEV_SERVE_URL"));
    assert_eq!((of("INTEGRESQL_CLIENT_BASE_URL"), of("INTEGRESQL_CLIENT_API_VERSION")), (api, "v1".to_owned()));
}

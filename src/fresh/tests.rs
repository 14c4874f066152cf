//! Pools on a real server. Two pools of one server are to each other what two processes are: each has sessions of its own.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::*;
use crate::engine::Endpoint;
use crate::error::ErrorKind;
use crate::event::Events;
use crate::instance::{InstanceRecord, Password};
use crate::migrate::Source;
use crate::pg::test_server::{self, Cluster, session};
use crate::pg::{Login, Tls, wait_ready};
use crate::server::{Role, Server, Tenancy};

const USER_PASSWORD: &str = "user-secret";

pub(super) fn options() -> Options {
    Options {
        max_databases: 64,
        storage_bytes: 1 << 32,
        connections: 2,
        workers: 4,
        timeout: Duration::from_mins(1),
        holder: "a test".to_owned(),
        queue: None,
    }
}

/// The role of a test; tests of one process share a server, and each has what belongs to its role.
fn user_of(login: &Login) -> String {
    format!("app_of_{}", login.database)
}

/// A server of the test's own: the database of `login` is where the registry is.
pub(super) async fn server(login: &Login) -> Server {
    let mut admin = session(login).await;
    let user = user_of(login);
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE ROLE {user} LOGIN PASSWORD '{USER_PASSWORD}'")))
        .execute(&mut admin)
        .await
        .unwrap();
    admin.close().await.unwrap();
    let role = |name: &str, password: &str| Role { name: name.to_owned(), password: Password::new(password) };
    Server {
        endpoint: Endpoint { host: login.host.clone(), port: login.port },
        tls: Tls::Disable,
        database: "project".to_owned(),
        user: role(&user, USER_PASSWORD),
        admin: role(&login.user, &login.password),
        registry: login.database.clone(),
        password_file: None,
        tenancy: Tenancy::Whole,
    }
}

pub(super) async fn open(server: &Server, options: Options) -> Pool {
    Pool::open(server.clone(), InstanceRecord::default(), options, &Events::none()).await.unwrap()
}

pub(super) fn recipe() -> Recipe {
    Recipe::of(Source::embedded())
}

/// A recipe whose only content is a function.
fn recipe_with(name: &str, function: TemplateFunction) -> Recipe {
    Recipe { function: Some((name.to_owned(), function)), ..recipe() }
}

pub(super) async fn connect(lease: &Lease) -> PgConnection {
    session(&lease.login()).await
}

async fn count(connection: &mut PgConnection, sql: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(connection).await.unwrap()
}

/// The databases of the test whose names begin with `prefix`.
async fn databases(login: &Login, prefix: &str) -> Vec<String> {
    let mut admin = session(login).await;
    let question = "SELECT datname::text FROM pg_database WHERE datname LIKE $1 || '%' \
                    AND pg_get_userbyid(datdba) = $2 ORDER BY 1";
    let names = sqlx::query_scalar(question).bind(prefix).bind(user_of(login)).fetch_all(&mut admin).await.unwrap();
    admin.close().await.unwrap();
    names
}

/// Waits until there is no fresh database left, of the test's own, that is not ready for the next one.
async fn until_none_left(login: &Login) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let mut left = databases(login, "tfdev_f_").await;
        let mut admin = session(login).await;
        let question = "SELECT database FROM tfdev.fresh_database WHERE stage = 'free'";
        let free: Vec<String> = sqlx::query_scalar(question).fetch_all(&mut admin).await.unwrap();
        admin.close().await.unwrap();
        left.retain(|name| !free.contains(name));
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "{left:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_fresh_database_is_migrated_private_and_soon_gone_when_it_is_given_back() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let (one, two) = (pool.take(&template).await.unwrap(), pool.take(&template).await.unwrap());
    assert_ne!(one.database, two.database);
    let (mut in_one, mut in_two) = (connect(&one).await, connect(&two).await);
    sqlx::raw_sql("INSERT INTO users (email, password_hash) VALUES ('a@example.com', 'x')")
        .execute(&mut in_one)
        .await
        .unwrap();
    assert_eq!(count(&mut in_one, "SELECT count(*) FROM users").await, 1);
    assert_eq!(count(&mut in_two, "SELECT count(*) FROM users").await, 0);
    assert_eq!(count(&mut in_two, "SELECT count(*) FROM _sqlx_migrations").await, 3);
    assert_eq!(pool.list().await.unwrap().iter().filter(|one| one.stage == Stage::Leased && one.held).count(), 2);
    // Open connections keep nothing alive.
    pool.give_back(one).await.unwrap();
    pool.give_back(two).await.unwrap();
    until_none_left(&login).await;
    assert_eq!(pool.list().await.unwrap(), []);
    assert_eq!(databases(&login, "tfdev_t_").await, [template.database]);
}

#[tokio::test]
async fn a_template_is_made_once_however_many_want_it_and_no_two_get_one_database() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let function: TemplateFunction = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(()) })
    });
    let recipe = recipe_with("counted", function);
    let takes = (0..6).map(async |_| {
        let pool = open(&server, options()).await;
        let template = pool.template(&recipe).await.unwrap();
        let mut names = Vec::new();
        for _ in 0..3 {
            names.push(pool.take(&template).await.unwrap().database);
        }
        (pool, names)
    });
    let pools = futures_util::future::join_all(takes).await;
    assert_eq!(made.load(Ordering::SeqCst), 1);
    let names: HashSet<_> = pools.iter().flat_map(|(_, names)| names.clone()).collect();
    assert_eq!(names.len(), 18);
}

#[tokio::test]
async fn what_a_dead_process_had_goes_with_the_next_call_and_the_other_processs_stays() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let (alive, dead) = (open(&server, options()).await, open(&server, options()).await);
    let template = alive.template(&recipe()).await.unwrap();
    let kept = alive.take(&template).await.unwrap();
    let lost = dead.take(&template).await.unwrap();
    let lost_connection = connect(&lost).await;
    // As the system does with the sockets of a killed process.
    dead.0.keeper.lock().await.forget_session();
    drop(dead);
    let next = open(&server, options()).await;
    let deadline = Instant::now() + Duration::from_secs(10);
    while databases(&login, &lost.database).await != Vec::<String>::new() {
        assert!(Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    drop((next, lost_connection));
    let mut connection = connect(&kept).await;
    assert_eq!(count(&mut connection, "SELECT count(*) FROM users").await, 0);
}

#[tokio::test]
async fn everyone_who_waits_for_a_broken_template_gets_its_error_and_the_next_one_tries_again() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let tries = Arc::new(AtomicUsize::new(0));
    let (counted, gate) = (tries.clone(), Arc::new(tokio::sync::Notify::new()));
    let opened = gate.clone();
    let function: TemplateFunction = Arc::new(move |_| {
        let (number, gate) = (counted.fetch_add(1, Ordering::SeqCst), gate.clone());
        Box::pin(async move {
            if number > 0 {
                return Ok(());
            }
            gate.notified().await;
            Err("the tariffs are missing".into())
        })
    });
    let recipe = recipe_with("broken", function);
    let pools = [open(&server, options()).await, open(&server, options()).await, open(&server, options()).await];
    let builds = futures_util::future::join_all(pools.iter().map(|pool| pool.template(&recipe)));
    let open_gate = async {
        // All three have looked: one makes it, the others see that.
        tokio::time::sleep(Duration::from_millis(500)).await;
        opened.notify_one();
    };
    let (built, ()) = tokio::join!(builds, open_gate);
    for error in built.into_iter().map(Result::unwrap_err) {
        assert!(error.to_string().contains("the tariffs are missing"), "{error}");
        assert_eq!(error.kind(), ErrorKind::BadInput);
    }
    assert_eq!(databases(&login, "tfdev_t_").await, Vec::<String>::new());
    let template = pools[1].template(&recipe).await.unwrap();
    assert_eq!((tries.load(Ordering::SeqCst), databases(&login, "tfdev_t_").await), (2, vec![template.database]));
}

#[tokio::test]
async fn a_template_function_that_hangs_is_ended_and_one_that_leaves_a_connection_open_does_no_harm() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, Options { timeout: Duration::from_secs(1), ..options() }).await;
    let hangs: TemplateFunction = Arc::new(|connection| {
        Box::pin(async move { Ok(sqlx::raw_sql("SELECT pg_sleep(1000)").execute(connection).await.map(drop)?) })
    });
    let error = pool.template(&recipe_with("hangs", hangs)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    assert_eq!(databases(&login, "tfdev_t_").await, Vec::<String>::new());

    let pool = open(&server, options()).await;
    let (host, left_open) = (server.clone(), Arc::new(tokio::sync::Mutex::new(Vec::new())));
    let kept = left_open.clone();
    let leaves: TemplateFunction = Arc::new(move |connection| {
        let (host, kept) = (host.clone(), kept.clone());
        Box::pin(async move {
            let database: String = sqlx::query_scalar("SELECT current_database()").fetch_one(&mut *connection).await?;
            let mut other = session(&Login { database, ..host.login() }).await;
            sqlx::raw_sql("BEGIN; CREATE TABLE never (id int)").execute(&mut other).await?;
            kept.lock().await.push(other);
            sqlx::raw_sql("CREATE TABLE tariffs (id int)").execute(connection).await?;
            Ok(())
        })
    });
    let template = pool.template(&recipe_with("leaves", leaves)).await.unwrap();
    let mut connection = connect(&pool.take(&template).await.unwrap()).await;
    let tables = "SELECT count(*) FROM pg_tables WHERE tablename IN ('tariffs', 'never')";
    assert_eq!(count(&mut connection, tables).await, 1);
}

#[tokio::test]
async fn who_comes_when_the_bound_is_reached_waits_for_a_database_to_be_given_back() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let bounded = Options { max_databases: 2, ..options() };
    let pool = open(&server, bounded.clone()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let first = pool.take(&template).await.unwrap();
    let _second = pool.take(&template).await.unwrap();
    let other = open(&server, Options { timeout: Duration::from_secs(5), ..bounded.clone() }).await;
    let error = other.take(&template).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.causes()[0].starts_with("of 2 that may exist there are 2: 2 in use, 0 kept"), "{:?}", error.causes());
    let other = open(&server, bounded).await;
    let give_back = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        pool.give_back(first).await.unwrap();
    };
    let (third, ()) = tokio::join!(other.take(&template), give_back);
    third.unwrap();
    assert!(databases(&login, "tfdev_f_").await.len() <= 2);
}

#[tokio::test]
async fn the_oldest_free_database_of_another_template_makes_room() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, Options { max_databases: 2, ..options() }).await;
    let old = pool.template(&recipe()).await.unwrap();
    pool.replenish(&old, 2).await.unwrap();
    let new = pool.template(&Recipe { scripts: vec!["CREATE TABLE other (id int)".into()], ..recipe() }).await.unwrap();
    let mut connection = connect(&pool.take(&new).await.unwrap()).await;
    assert_eq!(count(&mut connection, "SELECT count(*) FROM other").await, 0);
    assert_eq!(databases(&login, "tfdev_f_").await.len(), 2);
}

#[tokio::test]
async fn a_kept_database_outlives_its_process_and_goes_when_it_expires() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let (soon, later) = (pool.take(&template).await.unwrap(), pool.take(&template).await.unwrap());
    pool.keep(soon, Duration::from_millis(1)).await.unwrap();
    pool.keep(later.clone(), Duration::from_hours(1)).await.unwrap();
    drop(pool);
    let next = open(&server, options()).await;
    next.collect().await.unwrap();
    assert_eq!(databases(&login, "tfdev_f_").await, [later.database.as_str()]);
    assert_eq!(next.list().await.unwrap()[0].stage, Stage::Kept);
    next.drop_named(&[later.database]).await.unwrap();
    assert_eq!(databases(&login, "tfdev_f_").await, Vec::<String>::new());
}

#[tokio::test]
async fn what_a_copy_lacks_is_given_to_it() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let script = "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''7MB''', current_database()); END $$";
    let recipe = Recipe { extensions: vec!["plpgsql".into()], scripts: vec![script.to_owned()], ..recipe() };
    let template = pool.template(&recipe).await.unwrap();
    let mut connection = connect(&pool.take(&template).await.unwrap()).await;
    let setting: String = sqlx::query_scalar("SHOW work_mem").fetch_one(&mut connection).await.unwrap();
    assert_eq!(setting, "7MB");
}

/// A server of its own, which a test may restart or give few connections.
async fn cluster(settings: &[&str]) -> Option<Cluster> {
    let mut cluster = Cluster::initialise(&[])?;
    cluster.start(settings).await;
    Some(cluster)
}

#[tokio::test]
async fn thirty_two_tests_at_once_share_twenty_connections() {
    let Some(cluster) = cluster(&["max_connections=20"]).await else { return };
    let server = server(&cluster.login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let mut tests = tokio::task::JoinSet::new();
    for number in 0..32 {
        let (pool, template) = (pool.clone(), template.clone());
        tests.spawn(async move {
            let lease = pool.take(&template).await.unwrap();
            let options = lease.login().options();
            let connections = [
                PgConnection::connect_with(&options).await.unwrap(),
                PgConnection::connect_with(&options).await.unwrap(),
            ];
            for mut connection in connections {
                let insert =
                    format!("INSERT INTO users (email, password_hash) VALUES ('a{number}@b' || random(), 'x')");
                sqlx::raw_sql(AssertSqlSafe(insert)).execute(&mut connection).await.unwrap();
                connection.close().await.unwrap();
            }
            pool.give_back(lease).await.unwrap();
        });
    }
    while let Some(test) = tests.join_next().await {
        test.unwrap();
    }
    until_none_left(&cluster.login).await;
}

#[tokio::test]
async fn leases_live_through_a_restart_of_the_server() {
    let Some(mut cluster) = cluster(&[]).await else { return };
    let server = server(&cluster.login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let before = pool.take(&template).await.unwrap();
    let port = cluster.login.port;
    cluster.stop(true);
    cluster.start_process(&[&format!("port={port}")]);
    let login = Login { port, ..cluster.login.clone() };
    wait_ready(&login, Instant::now() + Duration::from_secs(30), || async { Ok(()) }).await.unwrap();
    // Another process comes first, and leaves what may be claimed again.
    let other = open(&server, options()).await;
    assert_eq!(other.collect().await.unwrap(), Vec::<String>::new());
    let after = pool.take(&template).await.unwrap();
    assert_ne!(after.database, before.database);
    assert!(other.list().await.unwrap().iter().filter(|one| one.stage == Stage::Leased).all(|one| one.held));
    let mut connection = connect(&before).await;
    assert_eq!(count(&mut connection, "SELECT count(*) FROM users").await, 0);
    drop(connection);
    pool.give_back(before).await.unwrap();
    pool.give_back(after).await.unwrap();
    until_none_left(&login).await;
}

#[tokio::test]
async fn a_database_whose_sessions_will_not_end_keeps_nobody_from_getting_one_and_goes_later() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let (stuck, other) = (pool.take(&template).await.unwrap(), pool.take(&template).await.unwrap());
    dirty(&other).await;
    let mut connection = connect(&stuck).await;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap();
    let backend = Pid::from_raw(backend).unwrap();
    kill_process(backend, Signal::STOP).unwrap();
    pool.give_back(stuck).await.unwrap();
    pool.give_back(other).await.unwrap();
    for _ in 0..3 {
        let next = pool.take(&template).await.unwrap();
        dirty(&next).await;
        pool.give_back(next).await.unwrap();
    }
    assert!(
        databases(&login, "tfdev_f_").await.len() >= 4,
        "the server drops nothing while one of its processes stands"
    );
    kill_process(backend, Signal::CONT).unwrap();
    let deadline = Instant::now() + Duration::from_secs(40);
    while !databases(&login, "tfdev_f_").await.is_empty() {
        assert!(Instant::now() < deadline, "all go once it goes on");
        pool.collect().await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How many leases are taken in a row to see whether memory grows; `TFDEV_SOAK` makes it more.
fn leases_in_a_row() -> usize {
    #[expect(clippy::disallowed_methods, reason = "how long to soak is no setting of tfdev")]
    std::env::var("TFDEV_SOAK").map_or(160, |text| text.parse().unwrap())
}

/// Memory of a process that is its own, in kB.
#[cfg(target_os = "linux")]
fn memory_of(process: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn many_leases_in_a_row_leave_the_memory_as_it_was() {
    let Some(cluster) = cluster(&[]).await else { return };
    let login = cluster.login.clone();
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let leases = leases_in_a_row();
    // Its log is not what is measured here.
    let mut admin = session(&login).await;
    let ours = "SELECT pid::text FROM pg_stat_activity WHERE application_name = 'tfdev fresh'";
    let mut at_first = None;
    for number in 0..leases {
        let lease = pool.take(&template).await.unwrap();
        if number % 4 == 0 {
            dirty(&lease).await;
        }
        pool.give_back(lease).await.unwrap();
        if number + 1 == leases.div_ceil(4) || number + 1 == leases {
            let sessions: Vec<String> = sqlx::query_scalar(ours).fetch_all(&mut admin).await.unwrap();
            let largest = sessions.iter().map(|pid| memory_of(pid)).max().unwrap_or_default();
            let found = (memory_of("self"), largest);
            let (this, sessions) = *at_first.get_or_insert(found);
            assert!(
                found.0 < this + 4096 && found.1 < sessions + 4096,
                "{found:?} kB, after {:?} kB",
                (this, sessions)
            );
        }
    }
    until_none_left(&login).await;
    assert_eq!(databases(&login, "tfdev_t_").await, [template.database]);
}

#[tokio::test]
async fn a_forked_process_gives_nothing_back_that_its_parent_has() {
    let Some(login) = test_server::database().await else { return };
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&recipe()).await.unwrap();
    let lease = pool.take(&template).await.unwrap();
    let parent = super::home::Home::of_process().unwrap();
    let in_child = Fresh::new(parent.as_seen_by_a_child(), pool.clone(), lease.clone(), false, 2);
    drop(in_child);
    let still = pool.list().await.unwrap();
    assert!(still.iter().any(|one| one.id == lease.id && one.stage == Stage::Leased && one.held), "{still:?}");
}

/// Changes the database, so that it does not go back into the pool.
async fn dirty(lease: &Lease) {
    let mut connection = connect(lease).await;
    sqlx::raw_sql("CREATE TABLE dirt (id int)").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

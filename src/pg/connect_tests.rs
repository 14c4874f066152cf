use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;

use super::*;
use crate::pg::test_server::{self, Cluster};

fn within(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

fn login(port: u16) -> Login {
    Login {
        host: "127.0.0.1".into(),
        port,
        database: "none".into(),
        user: "nobody".into(),
        password: "never-shown".into(),
        tls: Tls::Disable,
        application_name: "tfdev-test".into(),
    }
}

/// A listener that gives each connection to `serve`.
async fn listener<F, S>(serve: S) -> u16
where
    S: Fn(tokio::net::TcpStream) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// A listener that reads something, says `answer` and keeps the connection for a while if `linger`.
async fn answering(answer: &'static [u8], linger: bool) -> u16 {
    listener(move |mut stream| async move {
        let mut request = [0; 64];
        let _ = stream.read(&mut request).await;
        let _ = stream.write_all(answer).await;
        if linger {
            let _ = stream.read_to_end(&mut Vec::new()).await;
        }
    })
    .await
}

async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

#[test]
fn no_password_is_shown() {
    let login = login(1);
    assert!(!format!("{login:?} {login}").contains("never-shown"));
    assert!(format!("{login}").contains("nobody@127.0.0.1:1/none"));
}

#[tokio::test]
async fn a_closed_port_is_told_from_a_proxy_with_nothing_behind_it() {
    let closed = connect(&login(free_port().await), within(5)).await;
    assert!(matches!(closed, Err(LoginError::NotListening)), "{closed:?}");
    let proxy = listener(|stream| async move { drop(stream) }).await;
    let proxied = connect(&login(proxy), within(5)).await;
    assert!(matches!(proxied, Err(LoginError::ProxyOnly)), "{proxied:?}");
    let encrypted = Login { tls: Tls::VerifyFull { root_cert: "/nonexistent".into() }, ..login(proxy) };
    let proxied = connect(&encrypted, within(5)).await;
    assert!(matches!(proxied, Err(LoginError::ProxyOnly)), "{proxied:?}");
}

#[tokio::test]
async fn servers_of_another_kind_are_named_as_such() {
    for (name, answer, linger) in [
        ("http", &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], false),
        ("http that keeps the connection", b"HTTP/1.1 400 Bad Request\r\n\r\n", true),
        ("ssh", b"SSH-2.0-OpenSSH_9.2\r\n", true),
        ("redis", b"-ERR unknown command\r\n", true),
        ("mysql", b"J\0\0\0\n8.0.36\0", true),
    ] {
        let result = connect(&login(answering(answer, linger).await), within(1)).await;
        assert!(matches!(result, Err(LoginError::NotPostgres)), "{name}: {result:?}");
    }
    let silent = connect(&login(answering(b"", true).await), within(1)).await;
    assert!(matches!(silent, Err(LoginError::Timeout)), "{silent:?}");
}

#[tokio::test]
async fn the_answers_of_a_real_server_are_told_apart() {
    let Some(login) = test_server::database().await else { return };
    let wrong = Login { password: "wrong".into(), ..login.clone() };
    assert!(matches!(connect(&wrong, within(20)).await, Err(LoginError::WrongPassword(_))));
    let nobody = Login { user: "nobody".into(), ..login.clone() };
    assert!(matches!(connect(&nobody, within(20)).await, Err(LoginError::WrongPassword(_))));
    let nowhere = Login { database: "nowhere".into(), ..login.clone() };
    assert!(matches!(connect(&nowhere, within(20)).await, Err(LoginError::NoDatabase(_))));
    let encrypted = Login { tls: Tls::VerifyFull { root_cert: "/nonexistent".into() }, ..login.clone() };
    assert!(matches!(connect(&encrypted, within(20)).await, Err(LoginError::Tls(_))), "ssl is off there");

    let ready = wait_ready(&wrong, within(20), || async { Ok(()) }).await;
    assert!(matches!(ready, Err(NotReady::Answered(LoginError::WrongPassword(_)))), "{ready:?}");
    let error = ready.unwrap_err().into_error(&wrong);
    assert!(!format!("{error} {:?}", error.causes()).contains("wrong`"), "{error}");
}

#[tokio::test]
async fn the_name_and_database_are_those_of_the_login() {
    let Some(login) = test_server::database().await else { return };
    let mut connection = connect(&login, within(20)).await.unwrap();
    let (database, name): (String, String) =
        sqlx::query_as("SELECT current_database()::text, current_setting('application_name')")
            .fetch_one(&mut connection)
            .await
            .unwrap();
    assert_eq!((database, name), (login.database, "tfdev-test".to_owned()));
}

/// The variables are set for a child process, because changing our own would reach other tests.
#[test]
fn nothing_of_the_environment_leaks_into_a_login() {
    const CHILD: &str = "TFDEV_TEST_LEAK";
    #[expect(clippy::disallowed_methods, reason = "tells the child from the parent")]
    if std::env::var_os(CHILD).is_some() {
        let options = login(5).options();
        assert_eq!(options.get_host(), "127.0.0.1");
        assert_eq!(options.get_port(), 5);
        assert_eq!(options.get_database(), Some("none"));
        assert_eq!(options.get_username(), "nobody");
        assert_eq!(options.get_application_name(), Some("tfdev-test"));
        assert!(matches!(options.get_ssl_mode(), PgSslMode::Disable));
        let shown = format!("{options:?}").replace("/leak.pem", "");
        assert!(shown.contains("never-shown"));
        assert!(!shown.replace("options: Some(\"-c search_path=leaked\")", "").contains("leak"), "{shown}");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(connect(&login(5), within(5)));
        assert!(matches!(result, Err(LoginError::Environment)), "{result:?}");
        return;
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "pg::connect::tests::nothing_of_the_environment_leaks_into_a_login", "--nocapture"]);
    child.env(CHILD, "1");
    for variable in ["PGHOST", "PGHOSTADDR", "PGUSER", "PGPASSWORD", "PGDATABASE", "PGAPPNAME"] {
        child.env(variable, "leaked");
    }
    child.env("PGPORT", "7777").env("PGSSLMODE", "require").env("PGOPTIONS", "-c search_path=leaked");
    child.env("PGSSLCERT", "/leak.pem").env("PGSSLKEY", "/leak.pem");
    let output = child.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
async fn waiting_ends_at_once_when_the_server_is_dead() {
    let asked = AtomicUsize::new(0);
    let port = free_port().await;
    let began = Instant::now();
    let result = wait_ready(&login(port), within(60), || {
        let dead = asked.fetch_add(1, Ordering::Relaxed) == 2;
        async move { if dead { Err(Error::failed("the container exited with 1")) } else { Ok(()) } }
    })
    .await;
    assert!(matches!(&result, Err(NotReady::Dead(error)) if error.to_string().contains("exited")), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "took {:?}", began.elapsed());
    assert!(began.elapsed() >= ALIVE_EVERY * 3, "asked more often than every 100 ms");
}

#[tokio::test]
async fn a_wait_that_runs_out_says_what_the_last_attempt_met() {
    let port = free_port().await;
    let began = Instant::now();
    let deadline = began + Duration::from_millis(400);
    let result = wait_ready(&login(port), deadline, || async { Ok(()) }).await;
    assert!(matches!(result, Err(NotReady::TimedOut(LoginError::NotListening))), "{result:?}");
    assert!(began.elapsed() < Duration::from_secs(3));
    let error = result.unwrap_err().into_error(&login(port));
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().contains("nothing listens there"), "{error}");
}

/// A login that succeeds is not enough: a standby answers, but nothing can be written there.
#[tokio::test]
async fn ready_means_a_login_outside_recovery() {
    let Some(mut standby) = Cluster::initialise(&[]) else { return };
    let signal = standby.data().join("standby.signal");
    std::fs::write(&signal, "").unwrap();
    test_server::own(&signal);
    standby.start_process(&["hot_standby=on"]);
    let recovering = wait_ready(&standby.login, within(3), || async { Ok(()) }).await;
    assert!(matches!(recovering, Err(NotReady::InRecovery)), "{recovering:?}: {}", standby.log());

    let mut admin = connect(&standby.login, within(10)).await.unwrap();
    let promote = async { sqlx::raw_sql("SELECT pg_promote(true)").execute(&mut admin).await.unwrap() };
    let (ready, _) = tokio::join!(wait_ready(&standby.login, within(30), || async { Ok(()) }), promote);
    let mut connection = ready.unwrap();
    sqlx::raw_sql("CREATE TABLE written (id int)").execute(&mut connection).await.unwrap();
}

#[tokio::test]
async fn a_full_server_and_a_stopping_one_are_told_apart() {
    let Some(mut cluster) = Cluster::initialise(&[]) else { return };
    cluster.start(&["max_connections=4", "superuser_reserved_connections=0", "max_wal_senders=0"]).await;
    let mut taken = Vec::new();
    let full = loop {
        match connect(&cluster.login, within(20)).await {
            Ok(connection) => taken.push(connection),
            Err(error) => break error,
        }
        assert!(taken.len() <= 4);
    };
    assert!(matches!(full, LoginError::TooManyConnections(_)), "{full:?}");
    let ready = wait_ready(&cluster.login, within(20), || async { Ok(()) }).await;
    assert!(matches!(ready, Err(NotReady::Answered(LoginError::TooManyConnections(_)))), "{ready:?}");

    // A smart shutdown waits for the sessions that are there and refuses new ones.
    cluster.signal(rustix::process::Signal::TERM);
    let deadline = within(20);
    let stopping = loop {
        match connect(&cluster.login, within(20)).await {
            Err(LoginError::TooManyConnections(_)) if Instant::now() < deadline => {}
            Err(other) => break other,
            Ok(_) => panic!("logged in to a stopping server"),
        }
    };
    assert!(matches!(stopping, LoginError::ShuttingDown(_)), "{stopping:?}");
    for connection in taken {
        connection.close().await.unwrap();
    }
}

#[tokio::test]
async fn an_encrypted_login_proves_the_server() {
    let Some(mut cluster) = Cluster::initialise(&[]) else { return };
    let folder = cluster.data();
    for (name, host) in [("right", "127.0.0.1"), ("other", "127.0.0.9")] {
        let files = folder.join(name);
        test_server::output(
            std::process::Command::new("openssl")
                .args(["req", "-new", "-x509", "-nodes", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
                .args(["-days", "2", "-subj", "/CN=test", "-addext", &format!("subjectAltName=IP:{host}")])
                .args(["-addext", "basicConstraints=critical,CA:FALSE"])
                .arg("-keyout")
                .arg(files.with_extension("key"))
                .arg("-out")
                .arg(files.with_extension("crt")),
        );
    }
    test_server::own(&folder.join("right.key"));
    cluster.start(&["ssl=on", "ssl_cert_file=right.crt", "ssl_key_file=right.key"]).await;
    let encrypted = |name: &str| Login {
        tls: Tls::VerifyFull { root_cert: folder.join(name).with_extension("crt") },
        ..cluster.login.clone()
    };
    let mut connection = connect(&encrypted("right"), within(20)).await.unwrap();
    let (used,): (bool,) = sqlx::query_as("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert!(used);
    for bad in ["other", "missing"] {
        let result = connect(&encrypted(bad), within(20)).await;
        assert!(matches!(result, Err(LoginError::Tls(_))), "{bad}: {result:?}");
    }
    let other_name = Login { host: "localhost".into(), ..encrypted("right") };
    let result = connect(&other_name, within(20)).await;
    assert!(matches!(result, Err(LoginError::Tls(_))), "{result:?}");
}

//! Fresh databases against what people do without them: bare SQL, a database without isolation, stock logins, and the
//! databases of `#[sqlx::test]`.
//!
//! The library is measured in a process of its own, which finds the server by its variables as any test does. Both sides of
//! a row take turns on the same server. The baseline's template is a plain one: migrated, and left as migrations leave it.

use std::path::Path;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::{Map, Value, json};
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgConnection, Postgres};
use sqlx::testing::{TestArgs, TestSupport};
use sqlx::{AssertSqlSafe, Connection};
use tfdev::FreshConfig;

use crate::Outcome;
use crate::report::{Measurement, Target};
use crate::world::{World, succeeded};

/// First argument of this program when it is to be a suite of tests. The second one is the URL of the superuser.
pub(crate) const SUITE: &str = "--fresh-suite";

/// Hand-outs that are timed, and the pause between them, in which the pool makes the next.
const HAND_OUTS: usize = 200;
const PAUSE: Duration = Duration::from_millis(40);

/// Clients at once, and how often each one takes a database in one round.
const CLIENTS: usize = 8;
const TAKES: usize = 25;
const ROUNDS: usize = 3;

/// Times that one client does something alone, in one round.
const ALONE: usize = 40;

/// Tests of the suite, and what each takes by itself.
const TESTS: usize = 500;
const TEST: Duration = Duration::from_millis(5);

const READ: &str = "SELECT count(*) FROM users";
const WRITE: &str = "INSERT INTO users (email, password_hash) VALUES (gen_random_uuid() || '@example.com', 'x')";

/// The plain template, and the database that tests without isolation share.
const PLAIN: &str = "bench_plain";
const SHARED: &str = "bench_shared";

/// A role with a stock password.
const STOCK: (&str, &str) = ("bench_stock", "5tock-password-of-32-letters-0123");

pub(crate) fn fresh(world: &World) -> Outcome<Vec<Measurement>> {
    let mut process = Measurement::new("tfdev fresh, as a process", "ms", Target::AtMost(60.0));
    world.timed(&["fresh", "--ttl", "1h"])?;
    for _ in 0..20 {
        process.tfdev.push_milliseconds(world.timed(&["fresh"])?.0);
        std::thread::sleep(Duration::from_millis(300));
    }
    let (_, list) = world.timed(&["fresh", "list"])?;
    let url = list[0]["url"].as_str().ok_or("`fresh list` named no URL")?;
    let admin = world.superuser_url(url, "test")?;
    let mut suite = world.without_settings(&std::env::current_exe()?.to_string_lossy());
    suite.args([SUITE, &admin]).env("DATABASE_URL", &admin);
    let output = succeeded("the suite", suite.output()?)?;
    let figures: Value = serde_json::from_slice(&output.stdout)?;
    let numbers = |name: &str, side: &str| -> Vec<f64> {
        figures[name][side].as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
    };
    let mut measurements = vec![process];
    for (name, unit, target) in [
        ("hand-out, library, p50", "ms", Target::AtMost(1.0)),
        ("hand-out, library, p99", "ms", Target::AtMost(10.0)),
        ("login, against one with a stock password", "ms", Target::RatioAtMost(0.65)),
        ("take, connect, query, give back: 1 client, against the middle", "ms", Target::RatioAtMost(1.3)),
        ("take, write, give back: 8 clients, against CREATE and DROP", "/s", Target::RatioAtLeast(1.0)),
        ("take, read, give back: 8 clients, against connect and read", "/s", Target::None),
        ("500 tests that read, against no isolation", "ms", Target::RatioAtMost(1.1)),
        ("500 tests that write, against no isolation", "ms", Target::RatioAtMost(1.1)),
        ("a database written to: 8 clients, against sqlx::test", "/s", Target::RatioAtLeast(1.0)),
    ] {
        let mut measurement = Measurement::new(name, unit, target);
        for figure in numbers(name, "tfdev") {
            measurement.tfdev.push(figure);
        }
        for figure in numbers(name, "baseline") {
            measurement.baseline.push(figure);
        }
        measurements.push(measurement);
    }
    Ok(measurements)
}

/// Figures by the name of the row.
#[derive(Default)]
struct Figures(Map<String, Value>);

impl Figures {
    fn push(&mut self, name: &str, side: &str, figure: f64) {
        let row = self.0.entry(name).or_insert_with(|| json!({ "tfdev": [], "baseline": [] }));
        if let Some(figures) = row[side].as_array_mut() {
            figures.push(figure.into());
        }
    }
}

/// Is the suite: prints its figures as JSON.
#[expect(clippy::print_stdout, reason = "the figures are read by the program that started this one")]
pub(crate) fn suite(arguments: &[String]) -> Outcome<bool> {
    let [admin] = arguments else { return Err("expected a URL".into()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(admin))?;
    println!("{}", Value::Object(figures.0));
    Ok(true)
}

async fn measure(admin: &str) -> Outcome<Figures> {
    let mut figures = Figures::default();
    hand_outs(&mut figures).await?;
    let admin: PgConnectOptions = admin.parse()?;
    let migrator = prepare(&admin).await?;
    for round in 0..ROUNDS {
        logins(&mut figures, &admin).await?;
        alone(&mut figures, &admin).await?;
        let plain = admin.clone().database(SHARED);
        let name = "take, write, give back: 8 clients, against CREATE and DROP";
        figures.push(name, "tfdev", rate(try_join_all((0..CLIENTS).map(|_| client(WRITE)))).await?);
        let bare = (0..CLIENTS).map(|number| bare_client(&admin, number));
        figures.push(name, "baseline", rate(try_join_all(bare)).await?);
        let name = "take, read, give back: 8 clients, against connect and read";
        figures.push(name, "tfdev", rate(try_join_all((0..CLIENTS).map(|_| client(READ)))).await?);
        figures.push(name, "baseline", rate(try_join_all((0..CLIENTS).map(|_| reader(&plain)))).await?);
        for (name, statement) in
            [("500 tests that read, against no isolation", READ), ("500 tests that write, against no isolation", WRITE)]
        {
            figures.push(name, "tfdev", tests(None, statement).await?);
            figures.push(name, "baseline", tests(Some(&plain), statement).await?);
        }
        let name = "a database written to: 8 clients, against sqlx::test";
        figures.push(name, "tfdev", rate(try_join_all((0..CLIENTS).map(|_| client(WRITE)))).await?);
        let peers = (0..CLIENTS).map(|number| sqlx_client(migrator, round, number));
        figures.push(name, "baseline", rate(try_join_all(peers)).await?);
    }
    Ok(figures)
}

/// Makes the plain template, the shared database and the role with a stock password.
async fn prepare(admin: &PgConnectOptions) -> Outcome<&'static Migrator> {
    let migrator = Migrator::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations")).await?;
    let mut connection = PgConnection::connect_with(admin).await?;
    let (role, password) = STOCK;
    let role = format!("SET password_encryption = 'scram-sha-256'; CREATE ROLE {role} LOGIN PASSWORD '{password}'");
    sqlx::raw_sql(AssertSqlSafe(role)).execute(&mut connection).await?;
    for database in [PLAIN, SHARED] {
        let create = format!("CREATE DATABASE {database} TEMPLATE template0");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
        let mut inside = PgConnection::connect_with(&admin.clone().database(database)).await?;
        migrator.run_direct(None, &mut inside, false).await?;
        inside.close().await?;
    }
    connection.close().await?;
    Ok(Box::leak(Box::new(migrator)))
}

async fn hand_outs(figures: &mut Figures) -> Outcome<()> {
    let config = FreshConfig::new();
    for _ in 0..3 {
        config.database().await?;
    }
    let mut elapsed = Vec::new();
    for _ in 0..HAND_OUTS {
        tokio::time::sleep(PAUSE).await;
        let begin = Instant::now();
        let db = config.database().await?;
        elapsed.push(milliseconds(begin));
        drop(db);
    }
    elapsed.sort_by(f64::total_cmp);
    for one in &elapsed {
        figures.push("hand-out, library, p50", "tfdev", *one);
    }
    figures.push("hand-out, library, p99", "tfdev", elapsed[elapsed.len() * 99 / 100]);
    Ok(())
}

fn milliseconds(begin: Instant) -> f64 {
    begin.elapsed().as_secs_f64() * 1000.0
}

/// Logs in, with the password as tfdev has it stored and with one as PostgreSQL stores it.
async fn logins(figures: &mut Figures, admin: &PgConnectOptions) -> Outcome<()> {
    let stock = admin.clone().username(STOCK.0).password(STOCK.1).database(SHARED);
    let ours = admin.clone().database(SHARED);
    for _ in 0..ALONE {
        for (side, options) in [("tfdev", &ours), ("baseline", &stock)] {
            let begin = Instant::now();
            let connection = PgConnection::connect_with(options).await?;
            figures.push("login, against one with a stock password", side, milliseconds(begin));
            connection.close().await?;
        }
    }
    Ok(())
}

/// One client, with and without a database of its own.
async fn alone(figures: &mut Figures, admin: &PgConnectOptions) -> Outcome<()> {
    let name = "take, connect, query, give back: 1 client, against the middle";
    let plain = admin.clone().database(SHARED);
    let config = FreshConfig::new();
    for _ in 0..ALONE {
        let begin = Instant::now();
        let db = config.database().await?;
        use_once(&db.connect_options(), READ).await?;
        db.close().await?;
        figures.push(name, "tfdev", milliseconds(begin));
        let begin = Instant::now();
        use_once(&plain, READ).await?;
        figures.push(name, "baseline", milliseconds(begin));
    }
    Ok(())
}

async fn use_once(options: &PgConnectOptions, statement: &'static str) -> Outcome<()> {
    let mut connection = PgConnection::connect_with(options).await?;
    sqlx::raw_sql(statement).execute(&mut connection).await?;
    connection.close().await?;
    Ok(())
}

/// How often a second all clients together did it.
#[expect(clippy::cast_precision_loss, reason = "a few hundred")]
async fn rate(clients: impl Future<Output = Outcome<Vec<()>>>) -> Outcome<f64> {
    let begin = Instant::now();
    clients.await?;
    Ok((CLIENTS * TAKES) as f64 / begin.elapsed().as_secs_f64())
}

async fn client(statement: &'static str) -> Outcome<()> {
    let config = FreshConfig::new();
    for _ in 0..TAKES {
        let db = config.database().await?;
        use_once(&db.connect_options(), statement).await?;
        db.close().await?;
    }
    Ok(())
}

/// Uses the database that all share.
async fn reader(options: &PgConnectOptions) -> Outcome<()> {
    for _ in 0..TAKES {
        use_once(options, READ).await?;
    }
    Ok(())
}

/// Makes and drops databases and does nothing with them.
async fn bare_client(options: &PgConnectOptions, number: usize) -> Outcome<()> {
    let mut connection = PgConnection::connect_with(options).await?;
    for _ in 0..TAKES {
        let create = format!("CREATE DATABASE bare_{number} TEMPLATE {PLAIN} STRATEGY FILE_COPY");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
        let drop = format!("DROP DATABASE bare_{number}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

/// What `#[sqlx::test]` does around a test: a database with migrations, and its end.
async fn sqlx_client(migrator: &'static Migrator, round: usize, number: usize) -> Outcome<()> {
    for take in 0..TAKES {
        let path: &'static str = Box::leak(format!("bench::{round}::{number}::{take}").into_boxed_str());
        let arguments = TestArgs::new(path);
        let context = <Postgres as TestSupport>::test_context(&arguments).await?;
        let mut connection = PgConnection::connect_with(&context.connect_opts).await?;
        migrator.run_direct(None, &mut connection, false).await?;
        sqlx::raw_sql(WRITE).execute(&mut connection).await?;
        connection.close().await?;
        <Postgres as TestSupport>::cleanup_test(&context.db_name).await?;
    }
    Ok(())
}

/// A suite of tests of 5 ms each, 8 at once, each with a connection of its own; on `shared`, or with fresh databases.
/// Returns how long it took, in milliseconds.
async fn tests(shared: Option<&PgConnectOptions>, statement: &'static str) -> Outcome<f64> {
    let config = FreshConfig::new();
    let worker = async || -> Outcome<()> {
        for _ in 0..TESTS.div_ceil(CLIENTS) {
            let db = if shared.is_none() { Some(config.database().await?) } else { None };
            let options = db.as_ref().map(tfdev::Fresh::connect_options).or_else(|| shared.cloned());
            use_once(&options.ok_or("no database")?, statement).await?;
            tokio::time::sleep(TEST).await;
            if let Some(db) = db {
                db.close().await?;
            }
        }
        Ok(())
    };
    let begin = Instant::now();
    try_join_all((0..CLIENTS).map(|_| worker())).await?;
    Ok(milliseconds(begin))
}

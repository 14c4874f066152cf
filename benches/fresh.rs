//! Fresh databases: hand-out, what `tfdev fresh` takes as a process, and a steady state of eight clients against bare SQL.
//!
//! The library is measured in a process of its own, which finds the server by its variables as any test does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection};
use tfdev::FreshConfig;

use crate::Outcome;
use crate::report::{Measurement, Target};
use crate::world::{World, succeeded};

/// First argument of this program when it is to be a suite of tests. The second one is the URL of the superuser, the third
/// one the template.
pub(crate) const SUITE: &str = "--fresh-suite";

/// Hand-outs that are timed, and the pause between them, in which the pool makes the next.
const HAND_OUTS: usize = 200;
const PAUSE: Duration = Duration::from_millis(40);

/// Clients of the steady state, and how often each one takes a database in one round.
const CLIENTS: usize = 8;
const TAKES: usize = 25;
const ROUNDS: usize = 5;

pub(crate) fn fresh(world: &World) -> Outcome<Vec<Measurement>> {
    let mut process = Measurement::new("tfdev fresh, as a process", "ms", Target::AtMost(60.0));
    world.timed(&["fresh", "--ttl", "1h"])?;
    for _ in 0..20 {
        process.tfdev.push_milliseconds(world.timed(&["fresh"])?.0);
        std::thread::sleep(Duration::from_millis(300));
    }
    let (_, list) = world.timed(&["fresh", "list"])?;
    let template = list[0]["template"].as_str().ok_or("`fresh list` named no template")?.to_owned();
    let url = list[0]["url"].as_str().ok_or("`fresh list` named no URL")?;
    let admin = world.superuser_url(url, "test")?;
    let mut suite = world.without_settings(&std::env::current_exe()?.to_string_lossy());
    suite.args([SUITE, &admin, &template]);
    let output = succeeded("the suite", suite.output()?)?;
    let figures: Value = serde_json::from_slice(&output.stdout)?;
    let mut median = Measurement::new("hand-out, library, p50", "ms", Target::AtMost(1.0));
    let mut tail = Measurement::new("hand-out, library, p99", "ms", Target::AtMost(10.0));
    let mut steady = Measurement::new("take, write, give back: 8 clients", "/s", Target::RatioAtLeast(1.0));
    let numbers =
        |name: &str| -> Vec<f64> { figures[name].as_array().into_iter().flatten().filter_map(Value::as_f64).collect() };
    let mut hand_outs = numbers("hand_outs");
    hand_outs.sort_by(f64::total_cmp);
    for elapsed in &hand_outs {
        median.tfdev.push(*elapsed);
    }
    tail.tfdev.push(hand_outs[hand_outs.len() * 99 / 100]);
    for (fresh, bare) in numbers("fresh").into_iter().zip(numbers("bare")) {
        steady.tfdev.push(fresh);
        steady.baseline.push(bare);
    }
    Ok(vec![process, median, tail, steady])
}

/// Is the suite: prints its figures as JSON.
#[expect(clippy::print_stdout, reason = "the figures are read by the program that started this one")]
pub(crate) fn suite(arguments: &[String]) -> Outcome<bool> {
    let [admin, template] = arguments else { return Err("expected a URL and a template".into()) };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(async {
        let hand_outs = hand_outs().await?;
        let (mut fresh, mut bare) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            fresh.push(rate(futures_util::future::try_join_all((0..CLIENTS).map(|_| client()))).await?);
            let options: PgConnectOptions = admin.parse()?;
            let clients = (0..CLIENTS).map(|number| bare_client(&options, template, number));
            bare.push(rate(futures_util::future::try_join_all(clients)).await?);
        }
        Outcome::Ok(json!({ "hand_outs": hand_outs, "fresh": fresh, "bare": bare }))
    })?;
    println!("{figures}");
    Ok(true)
}

async fn hand_outs() -> Outcome<Vec<f64>> {
    let config = FreshConfig::new();
    for _ in 0..3 {
        config.database().await?;
    }
    let mut elapsed = Vec::new();
    for _ in 0..HAND_OUTS {
        tokio::time::sleep(PAUSE).await;
        let begin = Instant::now();
        let db = config.database().await?;
        elapsed.push(begin.elapsed().as_secs_f64() * 1000.0);
        drop(db);
    }
    Ok(elapsed)
}

/// How many databases a second all clients together used.
#[expect(clippy::cast_precision_loss, reason = "a few hundred")]
async fn rate(clients: impl Future<Output = Outcome<Vec<()>>>) -> Outcome<f64> {
    let begin = Instant::now();
    clients.await?;
    Ok((CLIENTS * TAKES) as f64 / begin.elapsed().as_secs_f64())
}

async fn client() -> Outcome<()> {
    let config = FreshConfig::new();
    for _ in 0..TAKES {
        let db = config.database().await?;
        let mut connection = PgConnection::connect_with(&db.connect_options()).await?;
        let insert = "INSERT INTO users (email, password_hash) VALUES ('a@example.com', 'x')";
        sqlx::raw_sql(insert).execute(&mut connection).await?;
        connection.close().await?;
        db.close().await?;
    }
    Ok(())
}

/// Makes and drops databases and does nothing with them.
async fn bare_client(options: &PgConnectOptions, template: &str, number: usize) -> Outcome<()> {
    let mut connection = PgConnection::connect_with(options).await?;
    for _ in 0..TAKES {
        let create = format!("CREATE DATABASE bare_{number} TEMPLATE {template} STRATEGY FILE_COPY");
        sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut connection).await?;
        let drop = format!("DROP DATABASE bare_{number}");
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut connection).await?;
    }
    connection.close().await?;
    Ok(())
}

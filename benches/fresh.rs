//! Fresh databases: hand-out by the library and over HTTP, what `tfdev fresh` takes as a process, and a steady state of eight clients against bare SQL.
//!
//! The library is measured in a process of its own, which finds the server by its variables as any test does.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};
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
    Ok(vec![process, median, tail, hand_out_over_http(world)?, steady])
}

/// Hand-outs by `tfdev serve` out of a warm pool, over one connection that stays open, as clients keep theirs.
fn hand_out_over_http(world: &World) -> Outcome<Measurement> {
    let mut measurement = Measurement::new("hand-out, HTTP, p50", "ms", Target::AtMost(2.0));
    let mut serve = world.without_settings(env!("CARGO_BIN_EXE_tfdev"));
    serve.args(["serve", "--json", "--listen", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut service = serve.spawn()?;
    let taken = take_over_http(&mut service, &mut measurement);
    // What it handed out goes with it.
    service.kill()?;
    service.wait()?;
    taken.map(|()| measurement)
}

fn take_over_http(service: &mut Child, measurement: &mut Measurement) -> Outcome<()> {
    let mut line = String::new();
    BufReader::new(service.stdout.take().ok_or("no standard output")?).read_line(&mut line)?;
    let told: Value = serde_json::from_str(&line)?;
    let address = told["url"].as_str().and_then(|url| url.strip_prefix("http://")).ok_or("the service named no URL")?;
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let mut call = |method: &str, path: &str| -> Outcome<String> {
        stream.write_all(
            format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        )?;
        let (mut answer, mut bytes) = (Vec::new(), [0; 4096]);
        loop {
            let length = stream.read(&mut bytes)?;
            answer.extend_from_slice(&bytes[..length]);
            let text = std::str::from_utf8(&answer)?;
            // The body is one JSON object, or there is none.
            if length == 0 || text.ends_with('}') || (text.starts_with("HTTP/1.1 204") && text.ends_with("\r\n\r\n")) {
                return Ok(text.split_once("\r\n\r\n").ok_or("no answer")?.1.to_owned());
            }
        }
    };
    for number in 0..HAND_OUTS + 3 {
        std::thread::sleep(PAUSE);
        let begin = Instant::now();
        let lease = call("GET", "/fresh")?;
        let elapsed = begin.elapsed();
        let lease: Value = serde_json::from_str(&lease)?;
        let id = lease["id"].as_str().ok_or("the service handed out nothing")?;
        call("DELETE", &format!("/leases/{id}"))?;
        // The first ones are made while they are waited for.
        if number >= 3 {
            measurement.tfdev.push_milliseconds(elapsed);
        }
    }
    Ok(())
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

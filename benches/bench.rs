//! What tfdev promises about time and memory, measured: `make bench`, or a part of it: `make bench ONLY=up-new`.
//!
//! tfdev and what it is compared with take turns in one run on the same machine, so that whatever else the machine does
//! hits both. The release program is run as people run it, against the real daemon. A table goes to standard output and
//! the figures of each round into `benches/results/`. A missed target makes the exit status 1.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a measurement's output is its purpose")]

#[cfg(unix)]
mod backup;
mod export;
mod fresh;
#[cfg(unix)]
mod native;
mod parity;
mod report;
mod snapshot;
mod world;

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection};

use crate::report::{Measurement, Target};
use crate::world::{World, docker};

/// A result whose error is only told to people.
pub(crate) type Outcome<T> = Result<T, Box<dyn Error>>;

/// Something that is measured, by the name that selects it.
struct Case {
    name: &'static str,
    what: &'static str,
    needs_docker: bool,
    run: fn(&World) -> Outcome<Vec<Measurement>>,
}

/// A case whose server is a container.
const fn docker_case(name: &'static str, what: &'static str, run: fn(&World) -> Outcome<Vec<Measurement>>) -> Case {
    Case { name, what, needs_docker: true, run }
}

/// A case that needs no Docker.
const fn case(name: &'static str, what: &'static str, run: fn(&World) -> Outcome<Vec<Measurement>>) -> Case {
    Case { name, what, needs_docker: false, run }
}

const CASES: &[Case] = &[
    case("version", "`tfdev --version`", version),
    docker_case("up-new", "`up` on a new volume, against `docker run` until its first login", up_new),
    docker_case("up-running", "`up` when all is there", up_running),
    docker_case("up-stopped", "`up` on a stopped instance, against `docker start`", up_stopped),
    docker_case("profile", "another profile, against `docker restart`", switch_profile),
    #[cfg(unix)]
    case("native-up-new", "native `up` on a new instance, against initdb, start and login by hand", native::up_new),
    #[cfg(unix)]
    case("native-up-running", "native `up` when all is there", native::up_running),
    docker_case("snapshot", "snapshots, restore and reset on `demo`, against a bare copy", snapshot::small),
    docker_case("snapshot-large", "the same on about 1 GB", snapshot::large),
    docker_case(
        "export",
        "export and import of about 1 GB, against pg_dump, zstd and pg_restore by hand",
        export::large,
    ),
    #[cfg(unix)]
    case("archive", "pgbench with the archive on, against the archive off", backup::archiving),
    #[cfg(unix)]
    case("archive-lag", "how soon a segment is in the store at 20 MB/s of log", backup::lag),
    #[cfg(unix)]
    case("backup", "physical backup and restore of 1 GB, against pg_basebackup and tar by hand", backup::base),
    #[cfg(unix)]
    case("backup-loss", "RPO under load and idle", backup::loss),
    #[cfg(unix)]
    case("backup-recovery", "RTO of a base of 1 GB and 1 GB of log", backup::recovery),
    docker_case("fresh", "fresh databases, against bare CREATE and DROP on as many connections", fresh::fresh),
    docker_case("parity", "`health`, `verify` and `doctor`", parity::parity),
    docker_case("seed", "the data set `load`, against COPY of the same rows from a file", seed),
];

/// Rounds of what takes seconds; of quick things there are more.
const ROUNDS: usize = 7;
const QUICK_ROUNDS: usize = 30;
const SEED_ROUNDS: usize = 3;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        Some((first, rest)) if first == fresh::SUITE => fresh::suite(rest),
        Some((first, rest)) if first == world::MEASURE_MEMORY => world::measure_memory(rest),
        _ => bench(&arguments),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Tells people how far it is.
pub(crate) fn tell(text: &str) {
    eprintln!("{text}");
}

/// Measures what `arguments` select; returns whether all targets were met.
fn bench(arguments: &[String]) -> Outcome<bool> {
    let chosen: Vec<_> = arguments.iter().filter(|argument| *argument != "--bench").collect();
    if let Some(unknown) = chosen.iter().find(|name| !CASES.iter().any(|case| case.name == name.as_str())) {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        return Err(format!("there is no measurement `{unknown}`; there are: {}", names.join(", ")).into());
    }
    let world = World::new()?;
    let is_chosen = |case: &&Case| chosen.is_empty() || chosen.iter().any(|name| *name == case.name);
    let image = if CASES.iter().filter(is_chosen).any(|case| case.needs_docker) {
        let (_, image) = world.timed(&["image", "ensure"])?;
        image[0]["reference"].as_str().unwrap_or_default().to_owned()
    } else {
        String::new()
    };
    let mut measurements = Vec::new();
    for case in CASES.iter().filter(is_chosen) {
        tell(&format!("{}: {}", case.name, case.what));
        measurements.extend((case.run)(&world)?);
    }
    println!("{}", report::table(&measurements));
    println!("kept in {}", report::keep(&measurements, &image)?.display());
    Ok(report::all_met(&measurements))
}

fn version(world: &World) -> Outcome<Vec<Measurement>> {
    let mut time = Measurement::new("tfdev --version", "ms", Target::AtMost(10.0));
    for round in 0..=QUICK_ROUNDS {
        let begin = Instant::now();
        world.tfdev(&["--version"]).stdout(Stdio::null()).status()?;
        // The first one reads the program from the disk.
        if round > 0 {
            time.tfdev.push_milliseconds(begin.elapsed());
        }
    }
    Ok(vec![time])
}

fn up_new(world: &World) -> Outcome<Vec<Measurement>> {
    let mut first = Measurement::new("up, first for an image", "ms", Target::None);
    let mut new = Measurement::new("up on a new volume", "ms", Target::RatioAtMost(1.0));
    world.timed(&["destroy", "--yes"])?;
    let (elapsed, report) = world.timed(&["up", "--dataset", "demo"])?;
    first.tfdev.push_milliseconds(elapsed);
    let container = report["container"].as_str().ok_or("`up` named no container")?;
    let likeness = world::likeness(container)?;
    for _ in 0..ROUNDS {
        world.timed(&["destroy", "--yes"])?;
        let (elapsed, report) = world.timed(&["up", "--dataset", "demo"])?;
        if report["created"] != true || report["seed"]["applied"] != true {
            return Err("`up` after `destroy` did not begin anew".into());
        }
        new.tfdev.push_milliseconds(elapsed);
        // Each of the two runs alone on the machine.
        world.timed(&["destroy", "--yes"])?;
        new.baseline.push_milliseconds(world.run_likeness(&likeness)?);
    }
    Ok(vec![first, new])
}

fn up_running(world: &World) -> Outcome<Vec<Measurement>> {
    let mut time = Measurement::new("up when running", "ms", Target::AtMost(100.0));
    let mut memory = Measurement::new("up when running, memory", "MB", Target::AtMost(30.0));
    world.timed(&["up"])?;
    for _ in 0..QUICK_ROUNDS {
        time.tfdev.push_milliseconds(world.timed(&["up"])?.0);
        memory.tfdev.push(world.peak_memory(&["up", "--json"])?);
    }
    Ok(vec![time, memory])
}

fn up_stopped(world: &World) -> Outcome<Vec<Measurement>> {
    let mut time = Measurement::new("up on a stopped instance", "ms", Target::RatioAtMost(1.2));
    let (_, report) = world.timed(&["up"])?;
    let container = report["container"].as_str().ok_or("`up` named no container")?;
    let login: PgConnectOptions = report["url"].as_str().ok_or("`up` named no URL")?.parse()?;
    for _ in 0..ROUNDS {
        world.timed(&["down"])?;
        time.tfdev.push_milliseconds(world.timed(&["up"])?.0);
        docker(&["stop", container])?;
        let mut start = Command::new("docker");
        start.args(["start", container]);
        time.baseline.push_milliseconds(world.until_login(start, &login)?);
    }
    Ok(vec![time])
}

/// `up` with another profile, both ways, against a bare restart of the same container until its first login.
fn switch_profile(world: &World) -> Outcome<Vec<Measurement>> {
    let mut time = Measurement::new("another profile", "ms", Target::RatioAtMost(1.2));
    let (_, report) = world.timed(&["up"])?;
    let container = report["container"].as_str().ok_or("`up` named no container")?.to_owned();
    let login: PgConnectOptions = report["url"].as_str().ok_or("`up` named no URL")?.parse()?;
    for _ in 0..ROUNDS {
        for profile in ["prod", "dev"] {
            let (elapsed, report) = world.timed(&["up", "--profile", profile])?;
            if report["started"] != true || report["created"] == true {
                return Err("another profile did not restart the server".into());
            }
            time.tfdev.push_milliseconds(elapsed);
        }
        // The server is that of `dev` now, which takes the login without encryption.
        for _ in 0..2 {
            let mut restart = Command::new("docker");
            restart.args(["restart", "--time", "120", &container]);
            time.baseline.push_milliseconds(world.until_login(restart, &login)?);
        }
    }
    Ok(vec![time])
}

fn seed(world: &World) -> Outcome<Vec<Measurement>> {
    let mut rate = Measurement::new("data set load", "rows/s", Target::RatioAtLeast(0.8));
    let mut memory = Measurement::new("data set load, memory", "MB", Target::AtMost(100.0));
    let arguments = ["seed", "--dataset", "load", "--replace", "--yes"];
    let (_, report) = world.timed(&["up"])?;
    let container = report["container"].as_str().ok_or("`up` named no container")?;
    let login: PgConnectOptions = report["url"].as_str().ok_or("`up` named no URL")?.parse()?;
    memory.tfdev.push(world.peak_memory(&arguments)?);
    let copied = world.block_on(write_files(world, &login))?;
    for round in 1..=SEED_ROUNDS {
        checkpoint(container)?;
        let (elapsed, outcome) = world.timed(&arguments)?;
        let rows = outcome["rows"].as_u64().ok_or("`seed` named no number of rows")?;
        if rows != copied {
            return Err(format!("`seed` made {rows} rows, and the files have {copied}").into());
        }
        rate.tfdev.push(per_second(rows, elapsed));
        checkpoint(container)?;
        let elapsed = world.block_on(copy_files(world, &login))?;
        rate.baseline.push(per_second(copied, elapsed));
        tell(&format!("  round {round} of {SEED_ROUNDS}"));
    }
    Ok(vec![rate, memory])
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 rows")]
fn per_second(rows: u64, elapsed: Duration) -> f64 {
    rows as f64 / elapsed.as_secs_f64()
}

/// Has the server write out what it holds, so that neither of the two pays for the other one's pages.
fn checkpoint(container: &str) -> Outcome<()> {
    docker(&["exec", container, "psql", "-q", "-U", "postgres", "-c", "CHECKPOINT"]).map(drop)
}

/// The tables of TaskFlow in the order in which they can be filled.
const TABLES: [&str; 2] = ["users", "tasks"];

/// Writes both tables into files in the binary format; returns the number of rows.
async fn write_files(world: &World, login: &PgConnectOptions) -> Outcome<u64> {
    let mut connection = PgConnection::connect_with(login).await?;
    let mut rows = 0;
    for table in TABLES {
        let mut file = File::create(world.file(table))?;
        let statement = format!("COPY {table} TO STDOUT (FORMAT binary)");
        let mut stream = connection.copy_out_raw(&statement).await?;
        while let Some(piece) = futures_util::TryStreamExt::try_next(&mut stream).await? {
            file.write_all(&piece)?;
        }
        drop(stream);
        let count = format!("SELECT count(*) FROM {table}");
        rows += sqlx::query_scalar::<_, i64>(AssertSqlSafe(count)).fetch_one(&mut connection).await?.unsigned_abs();
    }
    connection.close().await?;
    Ok(rows)
}

/// Copies the files into the emptied tables, in one transaction and without notifications, like tfdev; returns how long
/// that took, with the login.
async fn copy_files(world: &World, login: &PgConnectOptions) -> Outcome<Duration> {
    let begin = Instant::now();
    let mut connection = PgConnection::connect_with(login).await?;
    let mut transaction = connection.begin().await?;
    sqlx::raw_sql("TRUNCATE users, tasks; SET LOCAL taskflow.silent = 'on'").execute(&mut *transaction).await?;
    for table in TABLES {
        copy_file(&mut transaction, table, &world.file(table)).await?;
    }
    transaction.commit().await?;
    connection.close().await?;
    Ok(begin.elapsed())
}

async fn copy_file(connection: &mut PgConnection, table: &str, path: &Path) -> Outcome<()> {
    let mut file = File::open(path)?;
    let mut sink = connection.copy_in_raw(&format!("COPY {table} FROM STDIN (FORMAT binary)")).await?;
    let mut piece = vec![0; 256 * 1024];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            break;
        }
        sink.send(&piece[..length]).await?;
    }
    sink.finish().await?;
    Ok(())
}

//! Snapshots, restore and reset against the server's bare copy, and against DSLR, on `demo` and on about 1 GB.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection};

use crate::report::{Measurement, Target};
use crate::world::{self, World};
use crate::{Outcome, tell};

/// Rounds on the small database, and on the large one.
const SMALL_ROUNDS: usize = 9;
const LARGE_ROUNDS: usize = 3;

/// Fills a table with about a gigabyte.
const LARGE: &str =
    "CREATE TABLE bulk AS SELECT g AS id, repeat(md5(g::text), 30) AS text FROM generate_series(1, 950000) g";

/// How long the server may take to make a ready copy.
const STANDBY_LIMIT: Duration = Duration::from_mins(2);

/// The names of the rows of the table; they are told apart by size.
struct Names {
    create: &'static str,
    restore: &'static str,
    copy: &'static str,
    reset: &'static str,
    dslr_snapshot: &'static str,
    dslr_restore: &'static str,
}

pub(crate) fn small(world: &World) -> Outcome<Vec<Measurement>> {
    let names = Names {
        create: "snapshot create, demo",
        restore: "snapshot restore, demo",
        copy: "snapshot restore with no ready copy, demo",
        reset: "reset, demo",
        dslr_snapshot: "DSLR snapshot, demo",
        dslr_restore: "DSLR restore, demo",
    };
    measure(world, &names, SMALL_ROUNDS, None)
}

pub(crate) fn large(world: &World) -> Outcome<Vec<Measurement>> {
    let names = Names {
        create: "snapshot create, 1 GB",
        restore: "snapshot restore, 1 GB",
        copy: "snapshot restore with no ready copy, 1 GB",
        reset: "reset, 1 GB before",
        dslr_snapshot: "DSLR snapshot, 1 GB",
        dslr_restore: "DSLR restore, 1 GB",
    };
    measure(world, &names, LARGE_ROUNDS, Some(LARGE))
}

fn measure(world: &World, names: &Names, rounds: usize, fill: Option<&str>) -> Outcome<Vec<Measurement>> {
    let mut create = Measurement::new(names.create, "ms", Target::RatioAtMost(1.1));
    let mut restore = Measurement::new(names.restore, "ms", Target::AtMost(150.0));
    let mut copy = Measurement::new(names.copy, "ms", Target::RatioAtMost(1.15));
    let mut reset = Measurement::new(names.reset, "ms", Target::AtMost(150.0));
    world.timed(&["destroy", "--yes"])?;
    let (_, up) = world.timed(&["up", "--dataset", "demo"])?;
    let admin = superuser(world, &up)?;
    if let Some(statement) = fill {
        let own: PgConnectOptions = up["url"].as_str().ok_or("`up` named no URL")?.parse()?;
        world.block_on(run(&own, &[statement]))?;
    }
    // One automatic snapshot is enough here: the large database and three copies of the state before would not fit.
    let with = |standby: bool| {
        let project = world.file("project/tfdev.toml");
        let text = fs::read_to_string(&project)?;
        let head = text.split("\n[snapshots]").next().unwrap_or_default().trim_end();
        fs::write(&project, format!("{head}\n[snapshots]\nauto = 1\nstandby = {standby}\n"))
    };
    with(true)?;
    for round in 1..=rounds {
        create.baseline.push_milliseconds(world.block_on(bare_copy(&admin, "taskflow"))?);
        world.block_on(run(&admin, &["CHECKPOINT"]))?;
        create.tfdev.push_milliseconds(world.timed(&["snapshot", "create", "a"])?.0);
        wait_for_standby(world)?;
        restore.tfdev.push_milliseconds(timed(world, &["snapshot", "restore", "a"], "standby")?);
        wait_for_standby(world)?;
        with(false)?;
        // Takes the ready copy, so that the next one has none.
        timed(world, &["snapshot", "restore", "a"], "standby")?;
        settle(world, &admin)?;
        copy.tfdev.push_milliseconds(timed(world, &["snapshot", "restore", "a"], "copy")?);
        settle(world, &admin)?;
        copy.baseline.push_milliseconds(world.block_on(bare_copy(&admin, "taskflow"))?);
        with(true)?;
        world.timed(&["snapshot", "delete", "a"])?;
        settle(world, &admin)?;
        tell(&format!("  round {round} of {rounds}"));
    }
    let mut measurements = vec![create, restore, copy];
    measurements.extend(dslr(world, names, rounds, &admin, &up)?);
    world.timed(&["reset", "--dataset", "demo", "--yes"])?;
    settle(world, &admin)?;
    for _ in 0..rounds {
        reset.tfdev.push_milliseconds(timed(world, &["reset", "--dataset", "demo", "--yes"], "standby")?);
        settle(world, &admin)?;
    }
    measurements.insert(3, reset);
    Ok(measurements)
}

/// Runs a command that must go the way `way`, and returns how long it took.
fn timed(world: &World, arguments: &[&str], way: &str) -> Outcome<Duration> {
    let (elapsed, report) = world.timed(arguments)?;
    if report["way"] != way {
        return Err(format!("`{}` went the way {} and not {way}", arguments.join(" "), report["way"]).into());
    }
    Ok(elapsed)
}

fn wait_for_standby(world: &World) -> Outcome<()> {
    let begin = Instant::now();
    while world.timed(&["snapshot", "list"])?.1["snapshots"][0]["standby"] != true {
        if begin.elapsed() > STANDBY_LIMIT {
            return Err("the server made no ready copy".into());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Waits until the server does nothing of ours any more, and has written out what it holds.
pub(crate) fn settle(world: &World, admin: &PgConnectOptions) -> Outcome<()> {
    world.block_on(async {
        let mut session = PgConnection::connect_with(admin).await?;
        let question = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'tfdev%'";
        while sqlx::query_scalar::<_, i64>(question).fetch_one(&mut session).await? > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        sqlx::raw_sql("CHECKPOINT").execute(&mut session).await?;
        session.close().await?;
        Ok(())
    })
}

/// The superuser's login.
pub(crate) fn superuser(world: &World, up: &Value) -> Outcome<PgConnectOptions> {
    let folder = world.file("state/projects").join(up["project"].as_str().ok_or("`up` named no project")?);
    let password = fs::read_to_string(folder.join("dev/superuser.password"))?;
    let port = up["port"].as_u64().and_then(|port| u16::try_from(port).ok()).ok_or("`up` named no port")?;
    Ok(world::login("127.0.0.1", port, "postgres", "postgres", password.trim()))
}

pub(crate) async fn run(login: &PgConnectOptions, statements: &[&str]) -> Outcome<()> {
    let mut session = PgConnection::connect_with(login).await?;
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe((*statement).to_owned())).execute(&mut session).await?;
    }
    session.close().await?;
    Ok(())
}

/// Has the server copy a database file by file, and returns how long the statement took.
async fn bare_copy(login: &PgConnectOptions, source: &str) -> Outcome<Duration> {
    let mut session = PgConnection::connect_with(login).await?;
    sqlx::raw_sql("CHECKPOINT").execute(&mut session).await?;
    let begin = Instant::now();
    let copy = format!("CREATE DATABASE bench_copy TEMPLATE {source} STRATEGY FILE_COPY");
    sqlx::raw_sql(AssertSqlSafe(copy)).execute(&mut session).await?;
    let elapsed = begin.elapsed();
    sqlx::raw_sql("DROP DATABASE bench_copy").execute(&mut session).await?;
    session.close().await?;
    Ok(elapsed)
}

/// DSLR on the same database with the same bare copy beside it; nothing, with a word, if it cannot be installed.
fn dslr(
    world: &World,
    names: &Names,
    rounds: usize,
    admin: &PgConnectOptions,
    up: &Value,
) -> Outcome<Vec<Measurement>> {
    let Some(program) = install_dslr() else {
        tell("  DSLR cannot be installed here, so it is not in the table");
        return Ok(Vec::new());
    };
    let mut snapshot = Measurement::new(names.dslr_snapshot, "ms", Target::None);
    let mut restore = Measurement::new(names.dslr_restore, "ms", Target::None);
    let url = format!(
        "postgres://postgres:{}@127.0.0.1:{}/taskflow",
        fs::read_to_string(
            world
                .file("state/projects")
                .join(up["project"].as_str().unwrap_or_default())
                .join("dev/superuser.password")
        )?
        .trim(),
        up["port"]
    );
    let timed = |arguments: &[&str]| -> Outcome<Duration> {
        let mut command = Command::new(&program);
        command.args(arguments).env("DATABASE_URL", &url).stdin(Stdio::null());
        let begin = Instant::now();
        let output = command.output()?;
        let elapsed = begin.elapsed();
        if output.status.success() { Ok(elapsed) } else { Err(String::from_utf8_lossy(&output.stderr).into()) }
    };
    for _ in 0..rounds {
        settle(world, admin)?;
        snapshot.tfdev.push_milliseconds(timed(&["snapshot", "bench"])?);
        let copied = world.block_on(bare_copy(admin, "taskflow"))?;
        snapshot.baseline.push_milliseconds(copied);
        restore.tfdev.push_milliseconds(timed(&["restore", "bench"])?);
        restore.baseline.push_milliseconds(copied);
        timed(&["delete", "bench"])?;
    }
    // It leaves the database to its own role.
    world.block_on(run(admin, &["ALTER DATABASE taskflow OWNER TO taskflow"]))?;
    Ok(vec![snapshot, restore])
}

/// Installs DSLR from PyPI into a folder of the build, once.
fn install_dslr() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dslr");
    let program = folder.join("bin/dslr");
    if program.exists() {
        return Some(program);
    }
    let quiet = |command: &mut Command| {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let made = quiet(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        && quiet(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "DSLR[psycopg2-binary]"]));
    (made && program.exists()).then_some(program)
}

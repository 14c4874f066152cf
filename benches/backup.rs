//! Backups: what the archive costs, how soon the log is in the store, and base backups and restores of about 1 GB against
//! `pg_basebackup` and `tar` by hand on the same disk.
//!
//! What must hold: the store, the data and what is made by hand are on one disk, and what is made by hand is on it at the
//! end, like ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use sqlx::Connection;
use sqlx::postgres::{PgConnectOptions, PgConnection};

use crate::native::programs_of;
use crate::report::{Measurement, Target};
use crate::snapshot::{run, settle};
use crate::world::{World, succeeded};
use crate::{Outcome, tell};

/// The instance of these measurements.
const INSTANCE: &str = "backup";

/// Rounds with and without the archive, and how long each is.
const ARCHIVE_ROUNDS: usize = 6;
const ARCHIVE_SECONDS: &str = "10";

/// How much log is written for the lag, in messages of 1 MB, and how many a second.
const MESSAGES: u32 = 1_000;
const MESSAGES_PER_SECOND: u32 = 20;
const MESSAGE_BYTES: usize = 1 << 20;

const BASE_ROUNDS: usize = 5;
const RECOVERY_ROUNDS: usize = 3;

/// For how long the RPO is watched while a row a second is written, under load, and while nothing is.
const TRICKLE: Duration = Duration::from_secs(140);
const LOAD: Duration = Duration::from_secs(30);
const IDLE: Duration = Duration::from_secs(70);

/// How long the store is waited for.
const STORE_LIMIT: Duration = Duration::from_mins(2);

/// Four tables of about a quarter of a gigabyte, which a third of the bytes would do for, each with two indexes.
const FILL: &str = "DO $$ BEGIN FOR n IN 1..4 LOOP
    EXECUTE format('CREATE TABLE bulk_%s AS SELECT g AS id, md5(g::text) AS hash, \
        (SELECT string_agg(md5(g || ''-'' || n), '''') FROM generate_series(1, 14) n) \
        || repeat(''0123456789abcdef'', 28) AS text FROM generate_series(1, 240000) g', n);
    EXECUTE format('ALTER TABLE bulk_%s ADD PRIMARY KEY (id)', n);
    EXECUTE format('CREATE INDEX ON bulk_%s (hash)', n);
END LOOP; END $$";

/// Writes about a gigabyte of log.
const CHANGE: [&str; 3] = [
    "SET search_path = public; UPDATE bulk_1 SET hash = md5(hash)",
    "SET search_path = public; UPDATE bulk_2 SET hash = md5(hash) WHERE id % 2 = 0",
    "CHECKPOINT",
];

/// A running native instance whose backups go to a folder.
struct Side<'a> {
    world: &'a World,
    /// The superuser.
    admin: PgConnectOptions,
    url: String,
    data: PathBuf,
    programs: PathBuf,
}

impl<'a> Side<'a> {
    /// A new one.
    fn new(world: &'a World) -> Outcome<Self> {
        Self::timed_on(world, &["destroy", "--all", "--yes"])?;
        let _ = fs::remove_dir_all(world.file("store"));
        archive(world, true)?;
        let (_, up) = Self::timed_on(world, &["up", "--dataset", "none"])?;
        let url = up["url"].as_str().ok_or("`up` named no URL")?.to_owned();
        let data = PathBuf::from(up["data_dir"].as_str().ok_or("`up` named no data folder")?);
        let programs = programs_of(&data)?;
        let admin = world.superuser_url(&url, INSTANCE)?.parse()?;
        Ok(Self { world, admin, url, data, programs })
    }

    fn timed_on(world: &World, arguments: &[&str]) -> Outcome<(Duration, Value)> {
        world.timed(&[arguments, &["--engine", "native", "--instance", INSTANCE]].concat())
    }

    fn timed(&self, arguments: &[&str]) -> Outcome<(Duration, Value)> {
        Self::timed_on(self.world, arguments)
    }

    fn peak_memory(&self, arguments: &[&str]) -> Outcome<f64> {
        self.world.peak_memory(&[arguments, &["--engine", "native", "--instance", INSTANCE]].concat())
    }

    fn run(&self, statements: &[&str]) -> Outcome<()> {
        self.world.block_on(run(&self.admin, statements))
    }

    /// The agent, which has made its full backups already.
    fn agent(&self) -> Outcome<Guard> {
        let mut command = self.world.tfdev(&["backup", "agent", "--engine", "native", "--instance", INSTANCE]);
        Ok(Guard(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// `pgbench` on the project's database.
    fn pgbench(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.programs.join("pgbench"));
        command.args(arguments).arg(&self.url).stdin(Stdio::null());
        command
    }

    /// The store, below which all objects are.
    fn store(&self) -> PathBuf {
        self.world.file("store")
    }

    fn destroy(&self, instance: &str) -> Outcome<()> {
        self.world.timed(&["destroy", "--yes", "--engine", "native", "--instance", instance]).map(drop)
    }
}

/// Writes the project's file, with the archive on or off.
fn archive(world: &World, is_on: bool) -> Outcome<()> {
    configure(world, is_on, None)
}

/// The same, with the file of a key that encrypts.
fn configure(world: &World, is_on: bool, key: Option<&Path>) -> Outcome<()> {
    let key = key.map_or_else(String::new, |key| format!("encryption_key_file = \"{}\"\n", key.display()));
    let place = world.file("store");
    let store = if is_on { format!("[backup]\nstore = \"file://{}\"\n{key}", place.display()) } else { String::new() };
    Ok(fs::write(world.file("project/tfdev.toml"), format!("project = \"{}\"\n{store}", world.key()))?)
}

/// Ends a program.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `pgbench` with the archive and its agent, against the same instance without.
pub(crate) fn archiving(world: &World) -> Outcome<Vec<Measurement>> {
    let mut rate = Measurement::new("pgbench with the archive", "tx/s", Target::RatioAtLeast(0.97));
    let side = Side::new(world)?;
    succeeded("pgbench -i", side.pgbench(&["-i", "-q", "-s", "20"]).output()?)?;
    for round in 1..=ARCHIVE_ROUNDS {
        // Whatever drifts with time hits both.
        for is_on in [round % 2 == 0, round % 2 != 0] {
            archive(world, is_on)?;
            side.timed(&["up", "--dataset", "none"])?;
            if is_on {
                // The log has a gap now. The agent makes a new base as soon as it sees that: now, and not while it is measured.
                side.run(&["CHECKPOINT"])?;
                side.timed(&["backup", "mark", &format!("round {round}")])?;
                side.timed(&["backup", "agent", "--once"])?;
            }
            settle(world, &side.admin)?;
            let agent = if is_on { Some(side.agent()?) } else { None };
            let output = side.pgbench(&["-c", "4", "-j", "2", "-n", "-T", ARCHIVE_SECONDS]).output()?;
            drop(agent);
            let output = succeeded("pgbench", output)?;
            let text = String::from_utf8(output.stdout)?;
            let line = text.lines().find_map(|line| line.strip_prefix("tps = ")).ok_or("pgbench told no rate")?;
            let figure: f64 = line.split(' ').next().unwrap_or_default().parse()?;
            if is_on { rate.tfdev.push(figure) } else { rate.baseline.push(figure) }
        }
        tell(&format!("  round {round} of {ARCHIVE_ROUNDS}"));
    }
    Ok(vec![rate])
}

/// How long after its end a segment is in the store, while 20 MB of log are written each second.
pub(crate) fn lag(world: &World) -> Outcome<Vec<Measurement>> {
    let mut each = Measurement::new("a segment in the store, at 20 MB/s", "s", Target::None);
    let mut slowest = Measurement::new("the slowest of them", "s", Target::AtMost(5.0));
    let mut rate = Measurement::new("the log for it", "MB/s", Target::None);
    let side = Side::new(world)?;
    side.timed(&["backup", "agent", "--once"])?;
    let _agent = side.agent()?;
    let is_over = std::sync::atomic::AtomicBool::new(false);
    let (written, watched) = std::thread::scope(|scope| {
        let watching = scope.spawn(|| watch(&side.data, &side.store(), &is_over).map_err(|error| error.to_string()));
        let written = world.block_on(write_log(&side.admin));
        is_over.store(true, std::sync::atomic::Ordering::Relaxed);
        (written, watching.join().expect("it does not panic"))
    });
    rate.tfdev.push(written?);
    let mut worst: f64 = 0.0;
    for lag in watched? {
        each.tfdev.push(lag.as_secs_f64());
        worst = worst.max(lag.as_secs_f64());
    }
    slowest.tfdev.push(worst);
    Ok(vec![rate, each, slowest])
}

/// Writes log at a steady rate; returns the rate in MB/s.
async fn write_log(login: &PgConnectOptions) -> Outcome<f64> {
    let mut session = PgConnection::connect_with(login).await?;
    // Half of it compresses, like rows do.
    let mut state = 0x5eed_u64;
    let mut message = vec![0_u8; MESSAGE_BYTES];
    for byte in &mut message[..MESSAGE_BYTES / 2] {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_be_bytes()[0];
    }
    let begin = Instant::now();
    for number in 0..MESSAGES {
        let due = begin + Duration::from_secs(1) * number / MESSAGES_PER_SECOND;
        tokio::time::sleep_until(due.into()).await;
        message.rotate_left(7919);
        let emit = sqlx::query("SELECT pg_logical_emit_message(false, 'bench', $1)").bind(&message);
        emit.execute(&mut session).await?;
    }
    let elapsed = begin.elapsed();
    session.close().await?;
    Ok(f64::from(MESSAGES) * 1.048_576 / elapsed.as_secs_f64())
}

/// Watches segments be closed and come into the store, until it is over and all have come; returns how long each took.
fn watch(data: &Path, store: &Path, is_over: &std::sync::atomic::AtomicBool) -> Outcome<Vec<Duration>> {
    let begin = SystemTime::now();
    let mut closed: BTreeMap<String, SystemTime> = BTreeMap::new();
    let mut come: BTreeMap<String, SystemTime> = BTreeMap::new();
    let mut last = Instant::now();
    loop {
        for entry in fs::read_dir(data.join("pg_wal/archive_status"))?.flatten() {
            // The file is made when the segment is closed, and only its name changes when it was archived.
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(segment) = name.strip_suffix(".ready").or_else(|| name.strip_suffix(".done")) else { continue };
            let Ok(made) = entry.metadata().and_then(|found| found.modified()) else { continue };
            if segment.len() == 24 && made >= begin {
                closed.entry(segment.to_owned()).or_insert(made);
            }
        }
        let now = SystemTime::now();
        for name in objects(store) {
            come.entry(name).or_insert(now);
        }
        if !is_over.load(std::sync::atomic::Ordering::Relaxed) {
            last = Instant::now();
        } else if closed.keys().all(|segment| come.contains_key(segment)) {
            break;
        } else if last.elapsed() > STORE_LIMIT {
            return Err("not all segments came into the store".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let lags: Result<Vec<_>, _> = closed.iter().map(|(segment, at)| come[segment].duration_since(*at)).collect();
    Ok(lags?)
}

/// The segments in the store, by their names.
fn objects(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "full" {
                found.extend(objects(&path));
            }
        } else if let Some(segment) = name.strip_suffix(".zst").and_then(|name| name.get(..24)) {
            found.push(segment.to_owned());
        }
    }
    found
}

/// A base backup and a restore of about 1 GB.
pub(crate) fn base(world: &World) -> Outcome<Vec<Measurement>> {
    let mut backup = Measurement::new("physical backup, 1 GB", "MB/s", Target::RatioAtLeast(0.8));
    let mut backup_memory = Measurement::new("physical backup, memory", "MB", Target::AtMost(150.0));
    let mut part = Measurement::new("physical backup, part of the size", "%", Target::None);
    let mut restore = Measurement::new("restore, 1 GB: the data folder", "MB/s", Target::RatioAtLeast(0.8));
    let mut whole = Measurement::new("restore, 1 GB: until it takes writes", "MB/s", Target::None);
    let mut restore_memory = Measurement::new("restore, memory", "MB", Target::AtMost(150.0));
    // Compared with the same, not encrypted, of the same round.
    let mut sealed = Measurement::new("physical backup, 1 GB, encrypted", "MB/s", Target::None);
    let mut opened = Measurement::new("restore, 1 GB, encrypted: the data folder", "MB/s", Target::None);
    let side = Side::new(world)?;
    let key = world.file("backup.key");
    let _ = fs::remove_file(&key);
    side.timed(&["backup", "key", &key.display().to_string()])?;
    side.run(&[&format!("SET search_path = public; {FILL}")])?;
    side.timed(&["backup", "mark", "filled"])?;
    let by_hand = world.file("by-hand");
    for round in 1..=BASE_ROUNDS {
        settle(world, &side.admin)?;
        sync(&by_hand)?;
        let (elapsed, made) = side.timed(&["backup", "now", "--only", "physical"])?;
        let bytes = made[0]["bytes"].as_u64().ok_or("the backup named no size")?;
        let stored = made[0]["stored_bytes"].as_u64().ok_or("the backup named no size")?;
        backup.tfdev.push(per_second(bytes, elapsed));
        sealed.baseline.push(per_second(bytes, elapsed));
        part.tfdev.push(per_second(stored, Duration::from_secs(1)) * 100.0 / per_second(bytes, Duration::from_secs(1)));
        settle(world, &side.admin)?;
        sync(&by_hand)?;
        backup.baseline.push(per_second(bytes, copy_by_hand(&side, &by_hand)?));
        let id = made[0]["id"].as_str().ok_or("the backup has no name")?;
        sync(&by_hand)?;
        let (elapsed, restored) = side.timed(&["backup", "restore", id, "--as", "restored"])?;
        let brought = restored["brought_ms"].as_u64().ok_or("the restore named no time")?;
        restore.tfdev.push(per_second(bytes, Duration::from_millis(brought)));
        opened.baseline.push(per_second(bytes, Duration::from_millis(brought)));
        whole.tfdev.push(per_second(bytes, elapsed));
        side.destroy("restored")?;
        sync(&by_hand)?;
        restore.baseline.push(per_second(bytes, unpack_by_hand(&by_hand)?));
        configure(world, true, Some(&key))?;
        settle(world, &side.admin)?;
        sync(&by_hand)?;
        let (elapsed, made) = side.timed(&["backup", "now", "--only", "physical"])?;
        sealed.tfdev.push(per_second(bytes, elapsed));
        sync(&by_hand)?;
        let locked = made[0]["id"].as_str().ok_or("the backup has no name")?;
        let (_, restored) = side.timed(&["backup", "restore", locked, "--as", "restored"])?;
        let brought = restored["brought_ms"].as_u64().ok_or("the restore named no time")?;
        opened.tfdev.push(per_second(bytes, Duration::from_millis(brought)));
        side.destroy("restored")?;
        archive(world, true)?;
        if round == 1 {
            backup_memory.tfdev.push(side.peak_memory(&["backup", "now", "--only", "physical"])?);
            restore_memory.tfdev.push(side.peak_memory(&["backup", "restore", id, "--as", "restored"])?);
            side.destroy("restored")?;
        }
        tell(&format!("  round {round} of {BASE_ROUNDS}"));
    }
    Ok(vec![backup, backup_memory, part, restore, whole, restore_memory, sealed, opened])
}

/// What a person types for a copy of the same; `pg_basebackup` sees to it that it is on the disk at the end.
fn copy_by_hand(side: &Side<'_>, folder: &Path) -> Outcome<Duration> {
    let _ = fs::remove_dir_all(folder);
    let url = side.world.superuser_url(&side.url, INSTANCE)?;
    let mut command = Command::new(side.programs.join("pg_basebackup"));
    command.arg("--dbname").arg(url).arg("--pgdata").arg(folder);
    command.args(["--format=tar", "--wal-method=none", "--checkpoint=fast"]).stdin(Stdio::null());
    let begin = Instant::now();
    succeeded("pg_basebackup", command.output()?)?;
    Ok(begin.elapsed())
}

/// Unpacks it beside, until it is on the disk.
fn unpack_by_hand(folder: &Path) -> Outcome<Duration> {
    let target = folder.join("data");
    fs::create_dir(&target)?;
    let begin = Instant::now();
    let mut command = Command::new("tar");
    command.arg("-xf").arg(folder.join("base.tar")).arg("-C").arg(&target);
    succeeded("tar", command.output()?)?;
    sync(folder)?;
    let elapsed = begin.elapsed();
    fs::remove_dir_all(&target)?;
    Ok(elapsed)
}

/// Waits until the disk has all that was written to the file system of `path`.
fn sync(path: &Path) -> Outcome<()> {
    let place = path.ancestors().find(|place| place.exists()).ok_or("a path without a root")?;
    succeeded("sync", Command::new("sync").arg("-f").arg(place).output()?).map(drop)
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn per_second(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

/// How much would be lost, asked each second: while a row a second is written, under load, and while nothing happens.
pub(crate) fn loss(world: &World) -> Outcome<Vec<Measurement>> {
    let mut measured = Vec::new();
    let side = Side::new(world)?;
    succeeded("pgbench -i", side.pgbench(&["-i", "-q", "-s", "10"]).output()?)?;
    side.timed(&["backup", "agent", "--once"])?;
    let _agent = side.agent()?;
    let seconds = |time: Duration| time.as_secs().to_string();
    let trickle = [("-R", "1"), ("-c", "1"), ("-j", "1")];
    let load = [("-c", "4"), ("-j", "2")];
    for (every, most, time, options) in [
        ("RPO, a transaction a second", "the greatest of these", TRICKLE, Some(&trickle[..])),
        ("RPO, as many as can be", "the greatest of these", LOAD, Some(&load[..])),
        ("RPO, none", "the greatest of these", IDLE, None),
    ] {
        let mut each = Measurement::new(every, "s", Target::None);
        let mut greatest = Measurement::new(most, "s", Target::AtMost(60.0));
        let writing = match options {
            Some(options) => {
                let all: Vec<&str> = options.iter().flat_map(|(name, value)| [*name, *value]).collect();
                let mut command = side.pgbench(&[&all[..], &["-n", "-T", &seconds(time)]].concat());
                Some(Guard(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
            }
            None => None,
        };
        let begin = Instant::now();
        let mut worst: f64 = 0.0;
        while begin.elapsed() < time {
            let mut command =
                world.tfdev(&["backup", "status", "--json", "--engine", "native", "--instance", INSTANCE]);
            // Its exit status tells of alarms, which are none of ours.
            let status: Value = serde_json::from_slice(&command.output()?.stdout)?;
            let rpo = status["rpo_seconds"].as_f64().ok_or("the status told no RPO")?;
            each.tfdev.push(rpo);
            worst = worst.max(rpo);
            std::thread::sleep(Duration::from_secs(1));
        }
        drop(writing);
        greatest.tfdev.push(worst);
        measured.extend([each, greatest]);
    }
    Ok(measured)
}

/// A restore of a base of 1 GB and as much log.
pub(crate) fn recovery(world: &World) -> Outcome<Vec<Measurement>> {
    let mut time = Measurement::new("RTO, base of 1 GB and 1 GB of log", "s", Target::AtMost(3600.0));
    let mut log = Measurement::new("the log for it", "MB", Target::None);
    let side = Side::new(world)?;
    side.run(&[&format!("SET search_path = public; {FILL}")])?;
    side.timed(&["backup", "now", "--only", "physical"])?;
    let before = objects(&side.store()).len();
    side.run(&CHANGE)?;
    side.timed(&["backup", "mark", "changed"])?;
    let segments = objects(&side.store()).len() - before;
    log.tfdev.push(per_second(u64::try_from(segments)? * (16 << 20), Duration::from_secs(1)));
    for round in 1..=RECOVERY_ROUNDS {
        sync(&side.store())?;
        time.tfdev.push(side.timed(&["backup", "restore", "--as", "restored"])?.0.as_secs_f64());
        side.destroy("restored")?;
        tell(&format!("  round {round} of {RECOVERY_ROUNDS}"));
    }
    Ok(vec![log, time])
}

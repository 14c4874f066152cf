//! Exports and imports of about 1 GB against the server's own programs by hand: `pg_dump` through `zstd` at the same level,
//! and `pg_restore` with all cores of a file that was copied beside the server.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sqlx::postgres::PgConnectOptions;

use crate::report::{Measurement, Target};
use crate::snapshot::{run, settle, superuser};
use crate::world::World;
use crate::{Outcome, tell};

const ROUNDS: usize = 5;

/// Four tables of about a quarter of a gigabyte, half of which compresses well, each with two indexes.
const FILL: &str = "DO $$ BEGIN FOR n IN 1..4 LOOP
    EXECUTE format('CREATE TABLE bulk_%s AS SELECT g AS id, md5(g::text) AS hash, repeat(md5(g::text), 14) \
        || repeat(''0123456789abcdef'', 28) AS text FROM generate_series(1, 240000) g', n);
    EXECUTE format('ALTER TABLE bulk_%s ADD PRIMARY KEY (id)', n);
    EXECUTE format('CREATE INDEX ON bulk_%s (hash)', n);
END LOOP; END $$";

pub(crate) fn large(world: &World) -> Outcome<Vec<Measurement>> {
    let mut export = Measurement::new("snapshot export, 1 GB", "MB/s", Target::RatioAtLeast(1.0));
    let mut import = Measurement::new("snapshot import, 1 GB", "MB/s", Target::RatioAtLeast(1.0));
    let mut memory = Measurement::new("snapshot export, memory", "MB", Target::AtMost(100.0));
    world.timed(&["destroy", "--yes"])?;
    fs::write(
        world.file("project/tfdev.toml"),
        format!("project = \"{}\"\n[snapshots]\nstandby = false\n", world.key()),
    )?;
    let (_, up) = world.timed(&["up", "--dataset", "demo"])?;
    let admin = superuser(world, &up)?;
    let own: PgConnectOptions = up["url"].as_str().ok_or("`up` named no URL")?.parse()?;
    world.block_on(run(&own, &[FILL]))?;
    let container = up["container"].as_str().ok_or("`up` named no container")?;
    let (ours, theirs) = (world.file("ours.tfsnap"), world.file("theirs.zst"));
    let ours_text = ours.display().to_string();
    memory.tfdev.push(world.peak_memory(&["snapshot", "export", &ours_text])?);
    for round in 1..=ROUNDS {
        settle(world, &admin)?;
        let (elapsed, report) = world.timed(&["snapshot", "export", &ours_text, "--yes"])?;
        let bytes = report["dump_bytes"].as_u64().ok_or("`export` named no size")?;
        export.tfdev.push(per_second(bytes, elapsed));
        settle(world, &admin)?;
        export.baseline.push(per_second(bytes, dump_by_hand(container, &theirs)?));
        settle(world, &admin)?;
        let (elapsed, _) = world.timed(&["snapshot", "import", &ours_text, "--as", "bench"])?;
        import.tfdev.push(per_second(bytes, elapsed));
        world.timed(&["snapshot", "delete", "bench"])?;
        settle(world, &admin)?;
        world.block_on(run(&admin, &["CREATE DATABASE by_hand OWNER taskflow"]))?;
        import.baseline.push(per_second(bytes, restore_by_hand(container, &theirs)?));
        world.block_on(run(&admin, &["DROP DATABASE by_hand"]))?;
        tell(&format!("  round {round} of {ROUNDS}"));
    }
    Ok(vec![export, memory, import])
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
fn per_second(bytes: u64, elapsed: Duration) -> f64 {
    bytes as f64 / 1e6 / elapsed.as_secs_f64()
}

/// What a person types for an export of the same; like ours it is on the disk at the end.
fn dump_by_hand(container: &str, file: &Path) -> Outcome<Duration> {
    shell(&format!(
        "docker exec {container} pg_dump -U postgres -Fc -Z0 taskflow | zstd -3 -q -f -o {file} && sync {file}",
        file = file.display()
    ))
}

/// What a person types for an import of the same.
fn restore_by_hand(container: &str, file: &Path) -> Outcome<Duration> {
    let cores = std::thread::available_parallelism()?;
    shell(&format!(
        "zstd -dc {file} | docker exec -i {container} sh -c 'cat > /var/tmp/by-hand' && \
         docker exec {container} pg_restore -U taskflow --no-owner --exit-on-error -j {cores} -d by_hand /var/tmp/by-hand && \
         docker exec {container} rm /var/tmp/by-hand",
        file = file.display()
    ))
}

/// Runs a script and returns how long it took.
fn shell(script: &str) -> Outcome<Duration> {
    let begin = Instant::now();
    let mut command = Command::new("bash");
    command.args(["-o", "pipefail", "-c", script]).stdin(Stdio::null());
    let output = command.output()?;
    if output.status.success() {
        return Ok(begin.elapsed());
    }
    Err(format!("`{script}`: {}", String::from_utf8_lossy(&output.stderr)).into())
}

//! § Deployment: image, limits and data, as the engine that runs the server has them.

use std::time::Instant;

use sqlx::Row as _;

use super::source::{DATA_VOLUME, IMAGE, MEMORY_BYTES, NANO_CPUS, STORAGE_BYTES};
use super::{Bench, Row, Section, Verdict};
use crate::engine::{DataMount, EngineKind, Resources};
use crate::error::{Context, Result};
use crate::image;
use crate::profile::{BuiltIn, DataPlacement};
use crate::provision;

const MEBIBYTE: u64 = 1 << 20;

/// Bytes of databases and WAL.
const USED: &str = "SELECT (SELECT sum(pg_database_size(oid)) FROM pg_database)::bigint \
                    + (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir())::bigint, current_setting('data_directory')";

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    let found = bench.running.engine.resources().await;
    let of = |look: &dyn Fn(&Resources) -> Verdict| match &found {
        Ok(found) => look(found),
        Err(error) if bench.is_shared() => Verdict::not_applicable("", "", super::full_text(error)),
        Err(error) => Verdict::fail("", "", super::full_text(error)),
    };
    let section = Section::Deployment;
    let memory = |found: &Resources| {
        let shown = |bytes: Option<u64>| bytes.map_or_else(|| "no limit".to_owned(), megabytes);
        limit(bench, MEMORY_BYTES, bench.base().limits().memory_bytes.into(), found.memory_bytes, shown)
    };
    let processor = |found: &Resources| {
        let shown = |nano: Option<u64>| {
            nano.map_or_else(
                || "all cores".to_owned(),
                |nano| format!("{}.{:02} cores", nano / 1_000_000_000, nano / 10_000_000 % 100),
            )
        };
        limit(bench, NANO_CPUS, bench.base().limits().nano_cpus, found.nano_cpus, shown)
    };
    let (storage, directory) = if bench.is_shared() {
        let because = "the disk is that of a server that someone else runs";
        (Verdict::not_applicable("", "", because), None)
    } else {
        match used(bench).await {
            Ok((used, directory)) => (storage(bench, used), Some(directory)),
            Err(error) => (Verdict::of(Err(error)), None),
        }
    };
    vec![
        of(&|found| running_image(bench, found)).row(section, "Docker image", IMAGE, begin),
        of(&memory).row(section, "Memory", "1GB", begin),
        of(&processor).row(section, "CPU", "1 core", begin),
        storage.row(section, "Storage", "10GB (SSD)", begin),
        of(&|found| mounted(bench, found, directory.as_deref())).row(section, "Data volume", DATA_VOLUME, begin),
        of(&|found| named(bench, found)).row(section, "Named volume", "a named volume", begin),
        Verdict::not_applicable("", "", "this is a machine for development and tests, not a cloud").row(
            section,
            "EBS/Persistent disk",
            "in cloud",
            begin,
        ),
    ]
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes / MEBIBYTE)
}

fn of_engine(bench: &Bench<'_>) -> String {
    format!("the engine {} has no such thing", bench.running.engine.kind())
}

fn running_image(bench: &Bench<'_>, found: &Resources) -> Verdict {
    let Some(image) = &found.image else { return Verdict::not_applicable("", "", of_engine(bench)) };
    let names = if image.names.is_empty() { image.id.clone() } else { image.names.join(", ") };
    let proof = "the names that Docker has for the image of the container";
    if image.names.iter().any(|name| name == IMAGE) {
        return Verdict::pass(names, proof);
    }
    if image.names.iter().any(|name| name == image::OFFLINE) {
        let because = "the image was built from this machine's PostgreSQL 15, with an entrypoint that keeps the official \
                       image's contract: `tfdev image pull` gets the official one where there is a registry";
        return Verdict::not_applicable(names, proof, because);
    }
    Verdict::fail(names, proof, format!("the container runs another image than {IMAGE}"))
}

/// Compares a limit with the source, or with the profile `test` where that has another one on purpose.
fn limit(
    bench: &Bench<'_>,
    source: u64,
    of_profile: Option<u64>,
    found: Option<u64>,
    shown: impl Fn(Option<u64>) -> String,
) -> Verdict {
    let kind = bench.running.engine.kind();
    let proof = if kind == EngineKind::Docker { "docker inspect" } else { "the files of the server's control groups" };
    if !bench.running.observed.limits_enforced {
        let why = bench.running.observed.limits_reason.clone().unwrap_or_else(|| of_engine(bench));
        return Verdict::not_applicable("no limit", proof, why);
    }
    let has = shown(found);
    if found == Some(source) {
        return Verdict::pass(has, proof);
    }
    if bench.base() == BuiltIn::Test && found == of_profile {
        let because = format!("the profile `{}` asks for {}", bench.profile.name, shown(of_profile));
        return Verdict::not_applicable(has, proof, because);
    }
    Verdict::fail(has, proof, "`tfdev up` gives the server the limits of its profile")
}

async fn used(bench: &Bench<'_>) -> Result<(u64, String)> {
    let what = || "cannot measure the server";
    let mut connection = bench.admin().await?;
    let row = sqlx::raw_sql(USED).fetch_one(&mut connection).await.or_failed(what)?;
    provision::close(connection).await;
    Ok((row.try_get::<i64, _>(0).or_failed(what)?.unsigned_abs(), row.try_get(1).or_failed(what)?))
}

/// The limit is tfdev's own to keep (neither engine can bound a folder), so what is used is what can be proven.
fn storage(bench: &Bench<'_>, used: u64) -> Verdict {
    let limit = bench.profile.limits.storage_bytes;
    let has = format!("{} of {} used", megabytes(used), megabytes(limit));
    let proof = "sizes of all databases and the WAL; what the disk is made of cannot be told";
    if used > limit {
        return Verdict::fail(has, proof, "more is used than there may be: `tfdev snapshot list` shows what could go");
    }
    if limit == STORAGE_BYTES {
        return Verdict::pass(has, proof);
    }
    Verdict::not_applicable(has, proof, format!("the profile `{}` has its own limit", bench.profile.name))
}

fn mounted(bench: &Bench<'_>, found: &Resources, directory: Option<&str>) -> Verdict {
    let proof = "the mounts of the container, and SHOW data_directory";
    let said = directory.unwrap_or("not told");
    match &found.data {
        DataMount::Volume { target, .. } | DataMount::Memory { target } => {
            let has = format!("{target}; the server says {said}");
            if target == DATA_VOLUME && directory == Some(DATA_VOLUME) {
                Verdict::pass(has, proof)
            } else {
                Verdict::fail(has, proof, format!("the data is not at {DATA_VOLUME}"))
            }
        }
        DataMount::Folder(folder) if bench.running.engine.kind() == EngineKind::Native => {
            let has = format!("{}; the server says {said}", folder.display());
            // Both may be reached through links.
            let same = |one: &str| folder.canonicalize().ok() == std::path::Path::new(one).canonicalize().ok();
            if directory.is_some_and(same) {
                Verdict::not_applicable(
                    has,
                    "SHOW data_directory",
                    "there is no container: the data is in a folder of this machine",
                )
            } else {
                Verdict::fail(has, "SHOW data_directory", "the server's data is elsewhere")
            }
        }
        DataMount::Folder(folder) => {
            Verdict::fail(folder.display().to_string(), proof, "a folder of this machine is mounted, no volume")
        }
        DataMount::None => Verdict::fail("nothing", proof, format!("nothing is mounted at {DATA_VOLUME}")),
    }
}

fn named(bench: &Bench<'_>, found: &Resources) -> Verdict {
    let proof = "the mounts of the container";
    let wanted = bench.running.instance.volume_name();
    match &found.data {
        DataMount::Volume { name, .. } if *name == wanted => Verdict::pass(name, proof),
        DataMount::Volume { name, .. } => {
            Verdict::fail(name, proof, format!("the instance's own volume is `{wanted}`"))
        }
        DataMount::Memory { .. } if bench.base().data() == DataPlacement::Memory => {
            let because = format!("the profile `{}` has its data in memory", bench.profile.name);
            Verdict::not_applicable("memory", proof, because)
        }
        DataMount::Folder(_) if bench.running.engine.kind() == EngineKind::Native => {
            Verdict::not_applicable("a folder", proof, of_engine(bench))
        }
        DataMount::Memory { .. } | DataMount::Folder(_) | DataMount::None => {
            Verdict::fail("no named volume", proof, "the data goes with the container")
        }
    }
}

//! § Deployment: image, limits and data, as the engine that runs the server has them.

use std::time::Instant;

use sqlx::Row as _;

use super::source::{DATA_VOLUME, IMAGE, MEMORY_BYTES, NANO_CPUS, STORAGE_BYTES};
use super::{Bench, Row, Section, Verdict};
use crate::engine::docker::DataVolume;
use crate::engine::{DataMount, EngineKind, Resources};
use crate::error::{Context, Result};
use crate::image;
use crate::profile::{BuiltIn, DataPlacement};
use crate::provision;

const MEBIBYTE: u64 = 1 << 20;

/// What the rows are compared with.
struct Asked {
    engine: EngineKind,
    base: BuiltIn,
    /// The profile's name.
    profile: String,
    /// The name of the instance's volume.
    volume: String,
    /// Why the engine holds the server to no limits; `None` if it does.
    unlimited: Option<String>,
}

/// Bytes of databases and WAL.
const USED: &str = "SELECT (SELECT sum(pg_database_size(oid)) FROM pg_database)::bigint \
                    + (SELECT coalesce(sum(size), 0) FROM pg_ls_waldir())::bigint, current_setting('data_directory')";

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    let observed = &bench.running.observed;
    let reason = || observed.limits_reason.clone().unwrap_or_else(|| "this engine cannot limit it".to_owned());
    let asked = Asked {
        engine: bench.running.engine.kind(),
        base: bench.base(),
        profile: bench.profile.name.clone(),
        volume: DataVolume::of(&bench.running.instance).name,
        unlimited: (!observed.limits_enforced).then(reason),
    };
    let of = |look: &dyn Fn(&Resources) -> Verdict| match &bench.resources {
        Ok(found) => look(found),
        Err(error) => Verdict::not_applicable("", "", super::full_text(error)),
    };
    let section = Section::Deployment;
    let memory = |found: &Resources| {
        let shown = |bytes: Option<u64>| bytes.map_or_else(|| "no limit".to_owned(), megabytes);
        limit(&asked, MEMORY_BYTES, asked.base.limits().memory_bytes.into(), found.memory_bytes, shown)
    };
    let processor = |found: &Resources| {
        let shown = |nano: Option<u64>| {
            nano.map_or_else(
                || "all cores".to_owned(),
                |nano| format!("{}.{:02} cores", nano / 1_000_000_000, nano / 10_000_000 % 100),
            )
        };
        limit(&asked, NANO_CPUS, asked.base.limits().nano_cpus, found.nano_cpus, shown)
    };
    let (storage, directory) = if bench.is_shared() {
        let because = "the disk is that of a server that someone else runs";
        (Verdict::not_applicable("", "", because), None)
    } else {
        match used(bench).await {
            Ok((used, directory)) => {
                (storage(&asked.profile, bench.profile.limits.storage_bytes, used), Some(directory))
            }
            Err(error) => (Verdict::of(Err(error)), None),
        }
    };
    vec![
        of(&|found| running_image(&asked, found)).row(section, "Docker image", IMAGE, begin),
        of(&memory).row(section, "Memory", "1GB", begin),
        of(&processor).row(section, "CPU", "1 core", begin),
        storage.row(section, "Storage", "10GB (SSD)", begin),
        of(&|found| mounted(&asked, found, directory.as_deref())).row(section, "Data volume", DATA_VOLUME, begin),
        of(&|found| named(&asked, found)).row(section, "Named volume", "a named volume", begin),
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

impl Asked {
    fn of_engine(&self) -> String {
        format!("the engine {} has no such thing", self.engine)
    }
}

fn running_image(asked: &Asked, found: &Resources) -> Verdict {
    let Some(image) = &found.image else { return Verdict::not_applicable("", "", asked.of_engine()) };
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
    asked: &Asked,
    source: u64,
    of_profile: Option<u64>,
    found: Option<u64>,
    shown: impl Fn(Option<u64>) -> String,
) -> Verdict {
    let proof =
        if asked.engine == EngineKind::Docker { "docker inspect" } else { "the files of the server's control groups" };
    if let Some(why) = &asked.unlimited {
        return Verdict::not_applicable("no limit", proof, why);
    }
    let has = shown(found);
    if found == Some(source) {
        return Verdict::pass(has, proof);
    }
    if asked.base == BuiltIn::Test && found == of_profile {
        let because = format!("the profile `{}` asks for {}", asked.profile, shown(of_profile));
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
fn storage(profile: &str, limit: u64, used: u64) -> Verdict {
    let has = format!("{} of {} used", megabytes(used), megabytes(limit));
    let proof = "sizes of all databases and the WAL; what the disk is made of cannot be told";
    if used > limit {
        return Verdict::fail(has, proof, "more is used than there may be: `tfdev snapshot list` shows what could go");
    }
    if limit == STORAGE_BYTES {
        return Verdict::pass(has, proof);
    }
    Verdict::not_applicable(has, proof, format!("the profile `{profile}` has its own limit"))
}

fn mounted(asked: &Asked, found: &Resources, directory: Option<&str>) -> Verdict {
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
        DataMount::Folder(folder) if asked.engine == EngineKind::Native => {
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

fn named(asked: &Asked, found: &Resources) -> Verdict {
    let proof = "the mounts of the container";
    match &found.data {
        DataMount::Volume { name, .. } if *name == asked.volume => Verdict::pass(name, proof),
        DataMount::Volume { name, .. } => {
            Verdict::fail(name, proof, format!("the instance's own volume is `{}`", asked.volume))
        }
        DataMount::Memory { .. } if asked.base.data() == DataPlacement::Memory => {
            let because = format!("the profile `{}` has its data in memory", asked.profile);
            Verdict::not_applicable("memory", proof, because)
        }
        DataMount::Folder(_) if asked.engine == EngineKind::Native => {
            Verdict::not_applicable("a folder", proof, asked.of_engine())
        }
        DataMount::Memory { .. } | DataMount::Folder(_) | DataMount::None => {
            Verdict::fail("no named volume", proof, "the data goes with the container")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::RunningImage;
    use crate::verify::Outcome::{self, Fail, NotApplicable, Pass};

    fn asked(base: BuiltIn) -> Asked {
        Asked {
            engine: EngineKind::Docker,
            base,
            profile: base.name().to_owned(),
            volume: "own-data".into(),
            unlimited: None,
        }
    }

    fn resources(image: &str, data: DataMount) -> Resources {
        let image = RunningImage { id: "sha256:1".into(), names: vec![image.to_owned()] };
        Resources { image: Some(image), memory_bytes: None, nano_cpus: None, data }
    }

    fn volume(name: &str, target: &str) -> DataMount {
        DataMount::Volume { name: name.into(), target: target.into() }
    }

    #[test]
    fn another_image_fails_and_the_offline_one_is_no_pass() {
        let of = |image: &str| running_image(&asked(BuiltIn::Dev), &resources(image, DataMount::None)).outcome;
        assert_eq!([of(IMAGE), of(image::OFFLINE), of("postgres:16-alpine")], [Pass, NotApplicable, Fail]);
    }

    #[test]
    fn data_that_is_elsewhere_fails() {
        let of = |base: BuiltIn, data: DataMount, directory: &str| -> [Outcome; 2] {
            let found = resources(IMAGE, data);
            [mounted(&asked(base), &found, Some(directory)).outcome, named(&asked(base), &found).outcome]
        };
        assert_eq!(of(BuiltIn::Dev, volume("own-data", DATA_VOLUME), DATA_VOLUME), [Pass, Pass]);
        assert_eq!(of(BuiltIn::Dev, volume("other", DATA_VOLUME), DATA_VOLUME), [Pass, Fail]);
        assert_eq!(of(BuiltIn::Dev, volume("own-data", DATA_VOLUME), "/elsewhere"), [Fail, Pass]);
        assert_eq!(of(BuiltIn::Dev, DataMount::None, DATA_VOLUME), [Fail, Fail]);
        assert_eq!(of(BuiltIn::Dev, DataMount::Folder("/srv".into()), DATA_VOLUME), [Fail, Fail]);
        let memory = || DataMount::Memory { target: DATA_VOLUME.into() };
        assert_eq!(of(BuiltIn::Dev, memory(), DATA_VOLUME), [Pass, Fail]);
        assert_eq!(of(BuiltIn::Test, memory(), DATA_VOLUME), [Pass, NotApplicable]);
    }

    #[test]
    fn more_or_less_than_the_limit_fails() {
        let of = |base: BuiltIn, found: Option<u64>| {
            let asked = asked(base);
            let of_profile = Some(asked.base.limits().memory_bytes);
            limit(&asked, MEMORY_BYTES, of_profile, found, |bytes| format!("{bytes:?}")).outcome
        };
        assert_eq!(
            [of(BuiltIn::Dev, Some(1 << 30)), of(BuiltIn::Dev, Some(1 << 29)), of(BuiltIn::Dev, None)],
            [Pass, Fail, Fail]
        );
        assert_eq!([of(BuiltIn::Test, Some(4 << 30)), of(BuiltIn::Test, None)], [NotApplicable, Fail]);
        assert_eq!(storage("dev", 10 << 30, 10 << 30).outcome, Pass);
        assert_eq!(storage("dev", 10 << 30, (10 << 30) + 1).outcome, Fail);
        assert_eq!(storage("test", 3 << 30, 5).outcome, NotApplicable);
    }
}

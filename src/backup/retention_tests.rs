//! Retention, whatever is in the store and whatever the clock says.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;

use super::catalogue::{Catalogue, Log, LogFile};
use super::manifest::{Backup, Kind, Manifest, Payload, Physical, Source, Verification};
use super::plan::{Plan, Target, missing};
use super::position::{Lsn, SEGMENT_BYTES, Segment};
use super::retention::{Keep, decide};
use crate::engine::EngineKind;

fn now() -> Timestamp {
    "2026-06-01T03:00:00Z".parse().unwrap()
}

fn hours_ago(hours: i64) -> Timestamp {
    now() - SignedDuration::from_hours(hours)
}

fn backup(index: usize, kind: Kind, hours: i64, segment: u64, proven: Option<bool>) -> Backup {
    let created = hours_ago(hours);
    let start = Lsn(segment * SEGMENT_BYTES + 40);
    let manifest = Manifest {
        format: 1,
        id: format!("{index:03}-{}", kind.word()),
        kind,
        tfdev: String::new(),
        postgres: "15.1".into(),
        created,
        finished: created,
        source: Source {
            project: "p".into(),
            instance: "dev".into(),
            instance_id: String::new(),
            engine: EngineKind::Native,
            image: String::new(),
            profile: "dev".into(),
            database: "d".into(),
            user: "u".into(),
            system_identifier: None,
        },
        payload: Payload { key: "k".into(), bytes: 1, compressed_bytes: 1, sha256: String::new(), recipient: None },
        sealed: None,
        physical: (kind == Kind::Physical).then(|| Physical {
            timeline: 1,
            start,
            stop: Lsn(start.0 + 100),
            point: None,
            settings: BTreeMap::new(),
        }),
        logical: None,
        fingerprint: None,
        no_fingerprint: None,
    };
    let verified = proven.map(|passed| Verification {
        at: created,
        passed,
        restore_ms: 1,
        tables: 1,
        amcheck: None,
        problems: Vec::new(),
        sealed: None,
    });
    Backup { manifest, verified }
}

fn log(segments: impl Iterator<Item = (u64, i64)>) -> Log {
    let file = |hours: i64| LogFile { key: "k".into(), bytes: 1, sha256: String::new(), at: hours_ago(hours) };
    Log {
        segments: segments.map(|(number, hours)| (Segment { timeline: 1, number }, vec![file(hours)])).collect(),
        ..Log::default()
    }
}

fn catalogue(mut backups: Vec<Backup>, log: Log) -> Catalogue {
    backups.sort_by_key(|backup| backup.manifest.created);
    Catalogue {
        folder: "f".into(),
        backups,
        log,
        marks: BTreeMap::new(),
        coverage: None,
        unfinished: Vec::new(),
        damaged: BTreeMap::new(),
    }
}

/// What is left when the decisions were carried out.
fn after(catalogue: &Catalogue, keep: Keep) -> Catalogue {
    let decisions = decide(catalogue, keep, now());
    let mut left = catalogue.clone();
    left.backups.retain(|backup| decisions.full.iter().any(|one| one.keep && one.what == backup.manifest.id));
    left.log.segments.retain(|segment, _| decisions.wal.iter().any(|one| one.keep && one.what == segment.to_string()));
    left
}

fn a_kind() -> impl Strategy<Value = Kind> {
    prop_oneof![Just(Kind::Logical), Just(Kind::Physical)]
}

prop_compose! {
    /// A history of backups and an unbroken log; some are from a clock that was ahead.
    fn a_catalogue()(
        backups in prop::collection::vec((a_kind(), -48i64..400, prop::option::of(any::<bool>())), 0..12),
        first in 0u64..50,
    ) -> Catalogue {
        // The log goes on with the time: a segment each hour.
        let number = |hours: i64| first + u64::try_from(400 - hours).unwrap();
        let made = backups.iter().enumerate()
            .map(|(index, (kind, hours, proven))| backup(index, *kind, *hours, number(*hours), *proven))
            .collect();
        catalogue(made, log((-48..400).map(|hours| (number(hours), hours))))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn what_must_stay_stays(catalogue in a_catalogue(), full_days in 0u64..16, wal_days in 0u64..16) {
        let left = after(&catalogue, Keep { full_days, wal_days });
        for kind in super::retention::KINDS {
            let newest = |of: &Catalogue| of.of_kind(kind).next_back().map(|backup| backup.manifest.id.clone());
            prop_assert_eq!(newest(&catalogue), newest(&left), "the newest stays");
            let proven =
                |of: &Catalogue| of.of_kind(kind).rfind(|backup| backup.is_proven()).map(|backup| backup.manifest.id.clone());
            prop_assert_eq!(proven(&catalogue), proven(&left), "the last proven one stays");
        }
        for backup in &catalogue.backups {
            let is_young = now().duration_since(backup.manifest.created)
                < SignedDuration::from_hours(i64::try_from(full_days).unwrap() * 24);
            prop_assert!(!is_young || left.backups.contains(backup), "a young one stays");
        }
        for backup in left.of_kind(Kind::Physical) {
            let target = Target::Backup(backup.manifest.id.clone());
            prop_assert!(Plan::of(&left, &target).is_ok(), "what stays can be restored");
            let physical = backup.manifest.physical.as_ref().unwrap();
            let end = catalogue.log.segments.keys().last().unwrap().end();
            prop_assert!(physical.start < end);
        }
        if left.of_kind(Kind::Physical).next().is_some() {
            prop_assert!(Plan::of(&left, &Target::Latest).is_ok(), "the log leads on to the end");
        }
        for (segment, files) in &catalogue.log.segments {
            let limit = SignedDuration::from_hours(i64::try_from(wal_days).unwrap() * 24);
            let is_young = now().duration_since(files[0].at) < limit;
            prop_assert!(!is_young || left.log.segments.contains_key(segment), "a young part of the log stays");
        }
        prop_assert_eq!(after(&left, Keep { full_days, wal_days }), left, "once more changes nothing");
    }
}

#[test]
fn old_things_go_in_the_end_and_the_reason_is_told() {
    let made = (0..60).map(|day: u64| {
        let hours = i64::try_from(59 - day).unwrap() * 24 + 1;
        backup(usize::try_from(day).unwrap(), Kind::Physical, hours, day * 24, Some(true))
    });
    let all = catalogue(made.collect(), log((0..1440).map(|number| (number, 1439 - i64::try_from(number).unwrap()))));
    let keep = Keep { full_days: 7, wal_days: 30 };
    let left = after(&all, keep);
    assert_eq!(left.backups.len(), 7);
    assert_eq!(left.log.segments.len(), 30 * 24);
    let decisions = decide(&all, keep, now());
    assert!(decisions.full[0].why.contains("older than 7 days"), "{:?}", decisions.full[0]);
    assert!(decisions.wal[0].why.contains("older than 30 days"), "{:?}", decisions.wal[0]);
    assert!(decisions.full[59].why.contains("newest"), "{:?}", decisions.full[59]);
}

#[test]
fn a_gap_in_the_log_is_told_and_not_recovered_over() {
    let whole = catalogue(vec![backup(0, Kind::Physical, 48, 10, None)], log((0..40).map(|number| (number, 1))));
    assert_eq!(Plan::of(&whole, &Target::Latest).unwrap().log.len(), 30);
    let mut broken = whole.clone();
    broken.log.segments.remove(&Segment { timeline: 1, number: 20 });
    let error = Plan::of(&broken, &Target::Latest).unwrap_err();
    assert!(error.to_string().contains("000000010000000000000014 of the log is missing"), "{error}");
    // What is before the gap can be had, and the base by itself.
    let before = Plan::of(&broken, &Target::Lsn(Lsn(20 * SEGMENT_BYTES))).unwrap();
    assert_eq!(before.log.len(), 10);
    assert_eq!(Plan::of(&broken, &Target::Backup("000-physical".into())).unwrap().log.len(), 2);
    let error = Plan::of(&broken, &Target::Lsn(Lsn(25 * SEGMENT_BYTES))).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
}

#[test]
fn a_time_around_a_gap_has_the_log_up_to_it_or_a_base_behind_it() {
    let bases = vec![backup(0, Kind::Physical, 48, 10, None), backup(1, Kind::Physical, 20, 30, None)];
    let mut broken = catalogue(bases, log((0..40).map(|number| (number, 1))));
    assert_eq!(missing(&broken), []);
    let missing_one = Segment { timeline: 1, number: 20 };
    broken.log.segments.remove(&missing_one);
    // Only recovery can tell whether the time is before what is missing: it has the log up to there, and no more.
    let plan = Plan::of(&broken, &Target::Time(hours_ago(40))).unwrap();
    let gap = plan.gap.unwrap();
    assert_eq!((plan.log.len(), gap.first), (10, missing_one));
    let behind = broken.backups[1].manifest.finished;
    assert_eq!(gap.until, Some(behind));
    assert!(gap.refused().to_string().ends_with(&format!("up to the position 0/14000000, and from {behind} on")));
    let told = missing(&broken);
    assert_eq!(told.len(), 1);
    assert_eq!((&told[0].segment, told[0].from, told[0].until), (&missing_one.to_string(), hours_ago(1), Some(behind)));
    // The base behind it needs nothing of that.
    let plan = Plan::of(&broken, &Target::Latest).unwrap();
    assert_eq!((plan.log.len(), plan.gap), (10, None));
    // Nor is there a base to begin with if the gap is in the middle of its copy.
    broken.log.segments.remove(&Segment { timeline: 1, number: 10 });
    assert!(Plan::of(&broken, &Target::Time(hours_ago(40))).is_err());
    assert_eq!(missing(&broken)[0].from, broken.backups[0].manifest.finished);
    // What is not there yet is no gap, but for what has come behind it.
    broken.log.segments.remove(&Segment { timeline: 1, number: 39 });
    assert_eq!(missing(&broken).len(), 1);
    broken.log.segments.remove(&Segment { timeline: 1, number: 37 });
    assert_eq!(missing(&broken)[1].until, None);
}

#[test]
fn targets_outside_of_what_is_covered_are_refused_with_the_range() {
    let all = catalogue(vec![backup(0, Kind::Physical, 48, 10, None)], log((0..40).map(|number| (number, 1))));
    for hours in [49, 47] {
        let error = Plan::of(&all, &Target::Time(hours_ago(hours))).unwrap_err();
        assert!(error.to_string().contains("the backups reach from 2026-05-30T03:00:00Z to"), "{error}");
    }
    assert!(Plan::of(&all, &Target::Time(hours_ago(48))).is_ok());
    assert!(Plan::of(&all, &Target::Lsn(Lsn(41 * SEGMENT_BYTES))).is_err());
    assert!(Plan::of(&all, &Target::Lsn(Lsn(0))).is_err());
    assert!(Plan::of(&all, &Target::Name("x".into())).is_err());
}

#[test]
fn recovery_follows_the_newest_timeline_that_comes_from_the_base() {
    let mut all = catalogue(vec![backup(0, Kind::Physical, 48, 10, None)], log((10..15).map(|number| (number, 1))));
    // The second timeline was left at segment 13, and goes on from there.
    let file = all.log.segments.values().next().unwrap()[0].clone();
    for number in 13..18 {
        all.log.segments.insert(Segment { timeline: 2, number }, vec![file.clone()]);
    }
    all.log.histories.insert(2, (file, vec![(1, Lsn(13 * SEGMENT_BYTES + 99))]));
    let plan = Plan::of(&all, &Target::Latest).unwrap();
    let names: Vec<&str> = plan.log.iter().map(|(name, _)| &name[6..]).collect();
    assert_eq!(plan.timeline, 2);
    assert_eq!(names[0], "02.history");
    assert_eq!(names[1], "01000000000000000A");
    assert_eq!(names[4], "02000000000000000D");
    assert_eq!(names.len(), 9);
}

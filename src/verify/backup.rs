//! § Backup & Recovery, by what the store has and what was measured there. Without a store there is nothing to look at, and
//! that is no pass; nor is a backup that nobody has restored.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};

use super::source::BACKUP;
use super::{Bench, Row, Section, Verdict};
use crate::backup::Backups;
use crate::backup::manifest::Kind;
use crate::backup::status::Status;
use crate::error::Result;
use crate::event::Events;

/// What every row is proven by.
const PROOF: &str = "tfdev backup status";

/// How old the newest dump may be: a day, and two hours for making it.
const NEWEST: SignedDuration = SignedDuration::from_hours(26);

/// The source's row "Full backup": 02:00 UTC.
const SCHEDULE: &str = "02:00";

/// The source's row "Retention": 7 days full, 30 days WAL.
const KEPT_DAYS: (u64, u64) = (7, 30);

/// The source's row "RTO": less than an hour, in milliseconds.
const RECOVERY_TIME_MS: u64 = 60 * 60 * 1000;

/// The source's row "RPO": less than five minutes.
const RECOVERY_POINT_SECONDS: u64 = 5 * 60;

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    let status = match &bench.settings.backup.store {
        None => None,
        Some(_) => Some(look(bench).await),
    };
    let verdict = |aspect: &str| match &status {
        None => Verdict::not_set_up("backups have no store yet: set `store` under `[backup]` in tfdev.toml"),
        Some(Err(error)) => Verdict::fail("", PROOF, super::full_text(error)),
        Some(Ok(status)) => verdict(bench, aspect, status),
    };
    let row = |(aspect, strategy): &(&str, &str)| verdict(aspect).row(Section::Backup, *aspect, *strategy, begin);
    BACKUP.iter().map(row).collect()
}

async fn look(bench: &Bench<'_>) -> Result<Status> {
    Backups::of(bench.running, bench.settings, &Events::none())?.status().await
}

/// What there is of one aspect.
fn verdict(bench: &Bench<'_>, aspect: &str, status: &Status) -> Verdict {
    let settings = &bench.settings.backup;
    match aspect {
        "Full backup" => full(status, &settings.schedule.value, Timestamp::now()),
        "Point-in-time" => point_in_time(status),
        "Retention" => retention(settings.keep_full_days.value, settings.keep_wal_days.value),
        "RTO" => recovery_time(status),
        _ => recovery_point(status),
    }
}

fn full(status: &Status, schedule: &str, now: Timestamp) -> Verdict {
    let Some(dump) = status.last_full.iter().find(|backup| backup.kind == Kind::Logical) else {
        return Verdict::fail(
            "no dump",
            PROOF,
            "there is none yet: `tfdev backup now`, or `tfdev backup agent` each day",
        );
    };
    let has = format!("`{}` of {}, daily at {schedule} UTC", dump.id, dump.created);
    if schedule != SCHEDULE {
        return Verdict::fail(has, PROOF, format!("`schedule` under `[backup]` is another one than {SCHEDULE}"));
    }
    if now.duration_since(dump.created) > NEWEST {
        return Verdict::fail(has, PROOF, "the newest dump is more than a day old: does `tfdev backup agent` run?");
    }
    Verdict::pass(has, PROOF)
}

fn point_in_time(status: &Status) -> Verdict {
    let Some(range) = &status.recoverable else {
        return Verdict::fail(
            "",
            PROOF,
            "no moment can be recovered: `tfdev backup now` makes a base for the archived log",
        );
    };
    let has = format!("every second from {} to {}, in {}", range.from, range.until, status.store);
    if status.store.starts_with("s3://") {
        return Verdict::pass(has, PROOF);
    }
    Verdict::not_applicable(has, PROOF, "the log is archived to a folder of this machine, not to S3")
}

fn retention(full_days: u64, log_days: u64) -> Verdict {
    let has = format!("{full_days} days full, {log_days} days WAL");
    let proof = "keep_full_days and keep_wal_days";
    if full_days < KEPT_DAYS.0 || log_days < KEPT_DAYS.1 {
        return Verdict::fail(has, proof, "less is kept than the source asks: see `[backup]` in tfdev.toml");
    }
    Verdict::pass(has, proof)
}

fn recovery_time(status: &Status) -> Verdict {
    let Some(proven) = &status.last_verified else {
        return Verdict::fail(
            "",
            PROOF,
            "no backup was restored yet: `tfdev backup verify` does it and takes the time",
        );
    };
    let has = format!("{:.1} s for `{}`", std::time::Duration::from_millis(proven.rto_ms).as_secs_f64(), proven.id);
    if proven.rto_ms < RECOVERY_TIME_MS {
        return Verdict::pass(has, PROOF);
    }
    Verdict::fail(has, PROOF, "the last restore took an hour or more")
}

fn recovery_point(status: &Status) -> Verdict {
    let Some(seconds) = status.rpo_seconds else {
        return Verdict::fail("", PROOF, "no log is in the store: `tfdev backup agent` brings it there");
    };
    let has = format!("{seconds} s of changes are not in the store");
    if seconds < RECOVERY_POINT_SECONDS {
        return Verdict::pass(has, PROOF);
    }
    Verdict::fail(has, PROOF, "five minutes or more would be lost now: does `tfdev backup agent` run?")
}

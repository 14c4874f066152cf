//! How the reports of `tfdev backup` look.

use std::io::Write;
use std::time::Duration;

use jiff::Timestamp;

use crate::backup::agent::Pass;
use crate::backup::plan::{Missing, Range};
use crate::backup::retention::Decisions;
use crate::backup::status::Status;
use crate::backup::verify::Verified;
use crate::backup::{Listing, Summary};
use crate::cli::Session;
use crate::cli::progress::seconds;
use crate::error::Result;

pub(super) fn moment(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1 << 20))
}

pub(super) fn write_summary(one: &Summary, out: &mut dyn Write) -> std::io::Result<()> {
    let proof = match &one.verified {
        None => "not restored yet".to_owned(),
        Some(verified) if verified.passed => {
            format!("proven in {}", seconds(Duration::from_millis(verified.restore_ms)))
        }
        Some(_) => "DAMAGED".to_owned(),
    };
    let sizes = format!("{} ({} stored)", megabytes(one.bytes), megabytes(one.stored_bytes));
    let encrypted = if one.recipient.is_some() { "  encrypted" } else { "" };
    writeln!(out, "{:<26}  {:<24}  {} tables  {proof}{encrypted}", one.id, sizes, one.tables)
}

fn write_range(range: Option<&Range>, out: &mut dyn Write) -> std::io::Result<()> {
    match range {
        Some(range) => {
            writeln!(out, "every second from {} to {} can be recovered", moment(range.from), moment(range.until))
        }
        None => Ok(()),
    }
}

/// What cannot be recovered, and why.
fn gap_words(gap: &Missing) -> String {
    let until = gap.until.map_or_else(|| "the next physical backup".to_owned(), moment);
    format!("from {} to {until}: the segment {} of the log is missing in the store", moment(gap.from), gap.segment)
}

pub(super) fn write_list(listings: &[Listing], out: &mut dyn Write) -> std::io::Result<()> {
    if listings.iter().all(|listing| listing.backups.is_empty()) {
        return writeln!(out, "there are no backups; `tfdev backup now` makes some");
    }
    for listing in listings {
        if !listing.current {
            writeln!(out, "of an earlier instance ({}):", listing.cluster)?;
        }
        for one in &listing.backups {
            write_summary(one, out)?;
        }
        write_range(listing.recoverable.as_ref(), out)?;
        for gap in &listing.gaps {
            writeln!(out, "but not {}", gap_words(gap))?;
        }
        for damaged in &listing.damaged {
            writeln!(out, "DAMAGED: {damaged}")?;
        }
        for mark in &listing.marks {
            writeln!(out, "point `{}` of {}", mark.name, moment(mark.at))?;
        }
    }
    Ok(())
}

pub(super) fn write_verified(one: &Verified, out: &mut dyn Write) -> std::io::Result<()> {
    let verification = &one.verification;
    if verification.passed {
        let elapsed = seconds(Duration::from_millis(verification.restore_ms));
        return writeln!(out, "{} was restored in {elapsed}; {} tables are as they were", one.id, verification.tables);
    }
    writeln!(out, "{} is not as it should be:", one.id)?;
    verification.problems.iter().try_for_each(|problem| writeln!(out, "  {problem}"))
}

pub(super) fn write_status(status: &Status, out: &mut dyn Write) -> std::io::Result<()> {
    let mut row = |name: &str, value: &str| writeln!(out, "{name:<14}{value}");
    row("store", &format!("{} ({} MB)", status.store, status.stored_bytes.div_ceil(1 << 20)))?;
    for one in &status.last_full {
        row("last full", &format!("{} of {}", one.id, moment(one.created)))?;
    }
    row("next full", &moment(status.next_full))?;
    if let (Some(segment), Some(at)) = (&status.last_wal, status.last_wal_at) {
        row("last log", &format!("{segment} at {}", moment(at)))?;
    }
    if let Some(rpo) = status.rpo_seconds {
        row("lost now", &format!("{rpo} s (RPO: 300 s)"))?;
    }
    if let Some(proof) = &status.last_verified {
        let rto = seconds(Duration::from_millis(proof.rto_ms));
        row("proven", &format!("{} at {}, restored in {rto} (RTO: 3600 s)", proof.id, moment(proof.at)))?;
    }
    if let Some(range) = &status.recoverable {
        row("recoverable", &format!("{} to {}", moment(range.from), moment(range.until)))?;
    }
    for gap in &status.gaps {
        row("but not", &gap_words(gap))?;
    }
    if let Some(spool) = &status.spool {
        row("waiting", &format!("{} files of the log; {} MB are free", spool.files, spool.free_bytes >> 20))?;
    }
    row("agent", if status.agent { "at work" } else { "none: `tfdev backup agent`" })?;
    for alarm in &status.alarms {
        row("ALARM", alarm)?;
    }
    Ok(())
}

/// Tells what a pass of the agent has done. One that goes on says nothing of a pass without news; a single one is a command
/// whose answer someone reads.
pub(super) fn write_pass(pass: &Pass, once: bool, session: &Session) -> Result<()> {
    let is_news = *pass != Pass::default();
    for problem in &pass.problems {
        session.output.warning(problem);
    }
    if session.output.json {
        return if is_news || once { session.output.result(pass, |_| Ok(())) } else { Ok(()) };
    }
    session.output.result(pass, |out| {
        if pass.shipped > 0 {
            writeln!(out, "brought {} files of the log into the store", pass.shipped)?;
        }
        pass.made.iter().try_for_each(|one| write_summary(one, out))?;
        pass.verified.iter().try_for_each(|one| write_verified(one, out))?;
        pass.forgotten.iter().try_for_each(|one| writeln!(out, "forgot {one}"))
    })
}

pub(super) fn write_decisions(decisions: &Decisions, dry_run: bool, out: &mut dyn Write) -> std::io::Result<()> {
    let goes = if dry_run { "would go" } else { "went" };
    for decision in &decisions.full {
        writeln!(out, "{:<8}  {}: {}", if decision.keep { "stays" } else { goes }, decision.what, decision.why)?;
    }
    let gone = decisions.wal.iter().filter(|decision| !decision.keep);
    for decision in gone.chain(decisions.wal.iter().find(|decision| decision.keep)) {
        let fate = if decision.keep { "stays, with all after it" } else { goes };
        writeln!(out, "{fate}  {}: {}", decision.what, decision.why)?;
    }
    Ok(())
}

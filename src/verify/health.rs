//! § Health Checks, by making them.

use std::time::{Duration, Instant};

use super::{Bench, Row, Section, Verdict};
use crate::error::Result;
use crate::health::{self, Check, Readiness};
use crate::provision;

/// How long a check may take.
const DEADLINE: Duration = Duration::from_secs(5);

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    let looked = look(bench).await;
    let of = |look: &dyn Fn(&(Check, Readiness)) -> Verdict| match &looked {
        Ok(found) => look(found),
        Err(error) => Verdict::fail("", "", super::full_text(error)),
    };
    let live = of(&|(live, _)| verdict(live, "an answer".to_owned(), health::LIVENESS));
    let ready = of(&|(_, ready)| {
        let counts = ready.counts.as_ref();
        let has = counts.map(|counts| format!("{} of {} at work", counts.busy, counts.max_connections));
        verdict(&ready.check, has.unwrap_or_default(), "count(*) … WHERE state != 'idle'")
    });
    vec![
        live.row(Section::Health, "Liveness", health::LIVENESS, begin),
        ready.row(Section::Health, "Readiness", "count(*) < 90 % of max_connections", begin),
    ]
}

async fn look(bench: &Bench<'_>) -> Result<(Check, Readiness)> {
    let mut connection = bench.admin().await?;
    let live = health::live(&mut connection, DEADLINE).await.0;
    let ready = health::ready(&mut connection, DEADLINE).await.0;
    provision::close(connection).await;
    Ok((live, ready))
}

fn verdict(check: &Check, has: String, question: &str) -> Verdict {
    let latency = check.latency_ms.map(|latency| format!(" after {latency:.1} ms")).unwrap_or_default();
    let proof = format!("{question}{latency}");
    match &check.reason {
        None => Verdict::pass(has, proof),
        Some(reason) => Verdict::fail(has, proof, reason),
    }
}

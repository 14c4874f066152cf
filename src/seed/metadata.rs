//! The `metadata` of a task, as a client of TaskFlow would keep it.

use super::people::{Locale, Name};
use super::random::RowRandom;
use super::rows::Status;
use super::words::checklist_step;

/// What may stand in a task's `metadata`. Absent parts are left out, so queries meet all shapes.
#[derive(serde::Serialize)]
struct Metadata {
    priority: &'static str,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    labels: Vec<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    estimate_hours: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    assignee: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checklist: Vec<Step>,
    source: &'static str,
}

#[derive(serde::Serialize)]
struct Step {
    text: &'static str,
    done: bool,
}

const LABELS: [&str; 16] = [
    "backend",
    "billing",
    "bug",
    "compliance",
    "customer",
    "design",
    "documentation",
    "feature",
    "frontend",
    "hiring",
    "infrastructure",
    "mobile",
    "performance",
    "quick-win",
    "research",
    "security",
];

/// Draws the metadata of a task in `status` as JSON text; `empty_percent` of them are `{}`.
pub(super) fn draw(random: &mut RowRandom, status: Status, empty_percent: u64, locales: &[(Locale, u64)]) -> Vec<u8> {
    if random.percent(empty_percent) {
        return b"{}".to_vec();
    }
    let metadata = Metadata {
        priority: random.weighted(&[("low", 25), ("normal", 50), ("high", 19), ("urgent", 6)]),
        labels: labels(random),
        estimate_hours: random.percent(60).then(|| random.pick(&[1, 2, 3, 5, 8, 13, 21])),
        assignee: random.percent(50).then(|| Name::draw(random, locales).full()),
        checklist: if random.percent(25) { checklist(random, status) } else { Vec::new() },
        source: random.weighted(&[("web", 60), ("mobile", 22), ("email", 12), ("api", 6)]),
    };
    serde_json::to_vec(&metadata).expect("a struct of texts, numbers and booleans is JSON")
}

/// Draws up to three labels, each at most once.
fn labels(random: &mut RowRandom) -> Vec<&'static str> {
    let mut labels = Vec::new();
    for _ in 0..random.below(4) {
        let label = random.pick(&LABELS);
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    labels
}

/// Draws two to five steps: all done for a task that is done, a beginning of them for one that is not.
fn checklist(random: &mut RowRandom, status: Status) -> Vec<Step> {
    let length = 2 + random.below(4);
    let done = match status {
        Status::Done => length,
        Status::Todo => 0,
        Status::InProgress | Status::Blocked | Status::Cancelled => random.below(length),
    };
    let mut steps: Vec<Step> = Vec::new();
    for position in 0..length {
        let text = checklist_step(random);
        if steps.iter().all(|step| step.text != text) {
            steps.push(Step { text, done: position < done });
        }
    }
    steps
}

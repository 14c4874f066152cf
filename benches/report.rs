//! What was measured: its figures, whether they keep what is promised, and how they look.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use crate::Outcome;

/// What a measurement has to keep.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    /// The median is no more than this.
    AtMost(f64),
    /// The median by that of the baseline is no more than this.
    RatioAtMost(f64),
    /// The median by that of the baseline is no less than this.
    RatioAtLeast(f64),
    /// Nothing is promised; the figure is for people.
    None,
}

/// Figures of equal measurements, one a round.
#[derive(Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Measurement {
    pub(crate) name: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) tfdev: Samples,
    pub(crate) baseline: Samples,
    pub(crate) target: Target,
}

impl Samples {
    pub(crate) fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn push_milliseconds(&mut self, elapsed: Duration) {
        self.push(elapsed.as_secs_f64() * 1000.0);
    }

    /// The median, least and greatest figure; `None` if there are none.
    fn summary(&self) -> Option<(f64, f64, f64)> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[middle - 1], upper) } else { upper };
        Some((median, *sorted.first()?, *sorted.last()?))
    }

    fn median(&self) -> Option<f64> {
        self.summary().map(|(median, _, _)| median)
    }

    fn cell(&self) -> String {
        self.summary().map_or_else(
            || "-".to_owned(),
            |(median, least, greatest)| format!("{} ({}–{})", figure(median), figure(least), figure(greatest)),
        )
    }

    fn json(&self) -> Value {
        self.summary().map_or(
            Value::Null,
            |(median, least, greatest)| json!({ "median": median, "min": least, "max": greatest, "rounds": self.0 }),
        )
    }
}

/// A figure with as many digits as mean something.
fn figure(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

impl Measurement {
    pub(crate) fn new(name: &'static str, unit: &'static str, target: Target) -> Self {
        Self { name, unit, tfdev: Samples::default(), baseline: Samples::default(), target }
    }

    fn ratio(&self) -> Option<f64> {
        Some(self.tfdev.median()? / self.baseline.median()?)
    }

    /// Whether the target is met; `None` if there is none.
    fn passed(&self) -> Option<bool> {
        match self.target {
            Target::AtMost(limit) => Some(self.tfdev.median()? <= limit),
            Target::RatioAtMost(limit) => Some(self.ratio()? <= limit),
            Target::RatioAtLeast(limit) => Some(self.ratio()? >= limit),
            Target::None => None,
        }
    }

    fn target_text(&self) -> String {
        match self.target {
            Target::AtMost(limit) => format!("≤ {limit} {}", self.unit),
            Target::RatioAtMost(limit) => format!("ratio ≤ {limit}"),
            Target::RatioAtLeast(limit) => format!("ratio ≥ {limit}"),
            Target::None => "-".to_owned(),
        }
    }

    fn cells(&self) -> [String; 6] {
        let verdict = match self.passed() {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "-",
        };
        [
            format!("{}, {}", self.name, self.unit),
            self.tfdev.cell(),
            self.baseline.cell(),
            self.ratio().map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            self.target_text(),
            verdict.to_owned(),
        ]
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name, "unit": self.unit, "tfdev": self.tfdev.json(), "baseline": self.baseline.json(),
            "ratio": self.ratio(), "target": self.target_text(), "met": self.passed(),
        })
    }
}

/// Whether every promise is kept.
pub(crate) fn all_met(measurements: &[Measurement]) -> bool {
    measurements.iter().all(|measurement| measurement.passed() != Some(false))
}

/// The measurements as a table.
pub(crate) fn table(measurements: &[Measurement]) -> String {
    let head = ["measurement", "tfdev: median (min–max)", "baseline: median (min–max)", "ratio", "target", ""];
    let rows: Vec<_> =
        std::iter::once(head.map(str::to_owned)).chain(measurements.iter().map(Measurement::cells)).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        for (cell, width) in row.iter().zip(widths) {
            write!(text, "{cell:<width$}  ").expect("writing to a String cannot fail");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Keeps the measurements as JSON and returns the file.
pub(crate) fn keep(measurements: &[Measurement], image: &str) -> Outcome<PathBuf> {
    let now = jiff::Timestamp::now();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/results");
    fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{}.json", now.strftime("%Y-%m-%dT%H-%M-%SZ")));
    let document = json!({
        "date": now.to_string(),
        "tfdev": env!("CARGO_PKG_VERSION"),
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "cores": std::thread::available_parallelism()?.get(),
        "image": image,
        "measurements": measurements.iter().map(Measurement::json).collect::<Vec<_>>(),
    });
    fs::write(&file, serde_json::to_vec_pretty(&document)?)?;
    Ok(file)
}

//! Events as spinners, bars and lines on standard error.
//!
//! What must hold: spinners and bars are drawn on a terminal only, and never with `--quiet` or `--json`.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::output::Output;
use crate::event::{Event, Events, Progress, Unit};

/// Draws events for people.
struct Drawing {
    output: Output,
    bars: MultiProgress,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    step: Option<ProgressBar>,
    bars: HashMap<String, ProgressBar>,
}

/// The receiver of all events of a command.
pub(super) fn events(output: &Output) -> Events {
    if output.json {
        return Events::none();
    }
    let draw = output.terminal && !output.quiet;
    let target = if draw { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let drawing = Drawing {
        output: output.clone(),
        bars: MultiProgress::with_draw_target(target),
        open: Mutex::new(Open::default()),
    };
    Events::to(move |event| drawing.receive(event, draw))
}

impl Drawing {
    fn receive(&self, event: Event, draw: bool) {
        match event {
            Event::Note(text) => self.bars.suspend(|| self.output.note(&text)),
            Event::Warning(text) => self.bars.suspend(|| self.output.warning(&text)),
            Event::Detail(text) => self.bars.suspend(|| self.output.detail(&text)),
            Event::Started(text) if draw => self.start(text),
            Event::Finished(text, elapsed) if draw => self.finish(&text, elapsed),
            Event::Progress(progress) if draw => self.advance(progress),
            Event::Started(text) => self.output.detail(&text),
            Event::Finished(text, elapsed) => self.output.detail(&format!("{text} in {}", seconds(elapsed))),
            Event::Progress(_) => {}
        }
    }

    fn start(&self, text: String) {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_message(text);
        bar.enable_steady_tick(Duration::from_millis(100));
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(before) = open.step.replace(bar) {
            before.finish_and_clear();
        }
    }

    fn finish(&self, text: &str, elapsed: Duration) {
        if let Some(step) = self.open.lock().unwrap_or_else(PoisonError::into_inner).step.take() {
            step.finish_and_clear();
        }
        let line = format!("{text} ({})", seconds(elapsed));
        self.bars.suspend(|| self.output.line("✔", anstyle::AnsiColor::Green.on_default(), &line));
    }

    fn advance(&self, progress: Progress) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let bar = open.bars.entry(progress.id.clone()).or_insert_with(|| {
            let bar = progress.total.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
            bar.set_style(style(progress.unit, progress.total.is_some()));
            self.bars.add(bar)
        });
        if let Some(total) = progress.total {
            bar.set_length(total);
        }
        bar.set_message(progress.label);
        bar.set_position(progress.position);
        if progress.done {
            bar.finish_and_clear();
            open.bars.remove(&progress.id);
        }
    }
}

fn style(unit: Unit, total: bool) -> ProgressStyle {
    let template = match (unit, total) {
        (Unit::Bytes, true) => "{msg:24!} {bar:32} {binary_bytes:>10} of {binary_total_bytes} ({binary_bytes_per_sec})",
        (Unit::Bytes, false) => "{msg:24!} {spinner} {binary_bytes:>10} ({binary_bytes_per_sec})",
        (Unit::Rows, true) => "{msg:24!} {bar:32} {human_pos:>10} of {human_len} rows ({per_sec})",
        (Unit::Rows, false) => "{msg:24!} {spinner} {human_pos:>10} rows ({per_sec})",
    };
    ProgressStyle::with_template(template).expect("the templates above are valid")
}

/// A duration as people say it.
pub(crate) fn seconds(elapsed: Duration) -> String {
    if elapsed < Duration::from_secs(1) {
        format!("{} ms", elapsed.as_millis())
    } else {
        format!("{:.1} s", elapsed.as_secs_f64())
    }
}

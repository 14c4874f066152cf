//! The report in the form that CI servers read: JUnit's XML, one test case for each row.
//!
//! What must hold: what failed is a failure, and what is not applicable or not set up is skipped with its reason, never
//! passed.

use std::fmt::Write;

use super::{Outcome, Row, VerifyReport};

/// Writes `report` as XML.
pub fn xml(report: &VerifyReport) -> String {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let mut line = |content: &str| writeln!(text, "{content}").expect("writing to a String cannot fail");
    let counts = format!(
        "tests=\"{}\" failures=\"{}\" skipped=\"{}\" time=\"{}\"",
        report.rows.len(),
        report.failed,
        report.not_applicable + report.not_set_up,
        seconds(report.elapsed_ms)
    );
    line(&format!("<testsuites name=\"tfdev verify\" {counts}>"));
    line(&format!(
        "  <testsuite name=\"{}\" {counts}>",
        escaped(&format!("{} of {}", report.instance, report.project))
    ));
    for row in &report.rows {
        line(&case(row));
    }
    line("  </testsuite>");
    line("</testsuites>");
    text
}

fn case(row: &Row) -> String {
    let begin = format!(
        "    <testcase classname=\"{}\" name=\"{}\" time=\"{}\"",
        escaped(&format!("CON-003.{}", row.section.heading())),
        escaped(&format!("{}: {}", row.name, row.asks)),
        seconds(row.elapsed_ms)
    );
    let because = escaped(row.because.as_deref().unwrap_or_default());
    let found = escaped(&format!("asks: {}\nhas: {}\nproof: {}", row.asks, row.has, row.proof));
    match row.outcome {
        Outcome::Pass => format!("{begin}><system-out>{found}</system-out></testcase>"),
        Outcome::Fail => format!("{begin}><failure message=\"{because}\">{found}</failure></testcase>"),
        Outcome::NotApplicable => format!("{begin}><skipped message=\"not applicable: {because}\"/></testcase>"),
        Outcome::NotSetUp => format!("{begin}><skipped message=\"not set up: {because}\"/></testcase>"),
    }
}

fn seconds(milliseconds: u64) -> String {
    format!("{}.{:03}", milliseconds / 1000, milliseconds % 1000)
}

/// Text for XML 1.0, which has no way to write most control characters.
fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\n' => escaped.push_str("&#10;"),
            '\t' => escaped.push(' '),
            other if other.is_control() => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::EngineKind;
    use crate::verify::Section;

    fn row(outcome: Outcome, because: &str) -> Row {
        Row {
            section: Section::Backup,
            name: "RTO".into(),
            asks: "< 1 hour".into(),
            has: "\u{1}".into(),
            proof: String::new(),
            outcome,
            because: Some(because.into()),
            elapsed_ms: 1234,
        }
    }

    #[test]
    fn what_did_not_pass_is_a_failure_or_skipped_and_all_text_is_safe() {
        let report = VerifyReport {
            project: "a\"b".into(),
            instance: "dev".into(),
            engine: EngineKind::Native,
            profile: "dev".into(),
            passed: 0,
            failed: 1,
            not_applicable: 1,
            not_set_up: 1,
            elapsed_ms: 20,
            rows: vec![
                row(Outcome::Fail, "a < b & c\nd"),
                row(Outcome::NotApplicable, "x"),
                row(Outcome::NotSetUp, "y"),
            ],
        };
        let text = xml(&report);
        assert!(text.contains("tests=\"3\" failures=\"1\" skipped=\"2\" time=\"0.020\""), "{text}");
        assert!(text.contains("classname=\"CON-003.Backup &amp; Recovery\" name=\"RTO: &lt; 1 hour\" time=\"1.234\""));
        assert!(text.contains("<failure message=\"a &lt; b &amp; c&#10;d\">"), "{text}");
        assert!(text.contains("not applicable: x") && text.contains("not set up: y"));
        assert!(text.contains("dev of a&quot;b") && !text.contains('\u{1}'));
    }
}

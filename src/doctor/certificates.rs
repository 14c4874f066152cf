//! Certificates of servers with TLS: which end soon, and which are damaged or gone.

use jiff::{SignedDuration, Timestamp};

use super::left_over::Project;
use super::{Area, Finding, Level};
use crate::config::Settings;
use crate::tls;

/// How long before its end a certificate is made anew by `up`.
const RENEWED: SignedDuration = SignedDuration::from_hours(30 * 24);

pub(super) fn look(settings: &Settings, projects: &[Project]) -> Vec<Finding> {
    let authority =
        (tls::certificate_file(&settings.state_dir, None), "the authority of this machine".to_owned(), None);
    let of_instances = projects.iter().map(|project| {
        let instance = &project.instance;
        let whose = format!("the instance `{}` of `{}`", instance.name, instance.project);
        (tls::certificate_file(&settings.state_dir, Some(instance)), whose, Some(project))
    });
    let now = Timestamp::now();
    let mut findings = Vec::new();
    for (file, whose, project) in std::iter::once(authority).chain(of_instances) {
        let again = project.map_or_else(
            || "tfdev up".to_owned(),
            |project| {
                let folder = project.instance.project_dir.display();
                format!("tfdev up --project-dir {folder} --instance {}", project.instance.name)
            },
        );
        match tls::good_until(&file) {
            Ok(None) => {}
            Ok(Some(until)) => findings.push(judge(now, until, &whose, &again)),
            Err(error) => {
                let why = "servers with TLS cannot prove who they are";
                findings.push(
                    Finding::of(Area::Certificates, Level::Problem, &error, why)
                        .mend(format!("let tfdev make a new one: `rm {}`, then `{again}`", file.display())),
                );
            }
        }
        if let Some(root) = project.and_then(|project| project.record.root_cert.as_ref()).filter(|root| !root.exists())
        {
            let what = format!("`{}`, which {whose} is checked against, is gone", root.display());
            let why = "no program that checks the server can log in";
            findings.push(
                Finding::new(Area::Certificates, Level::Problem, what, why).mend(format!("write it again: `{again}`")),
            );
        }
    }
    findings
}

fn judge(now: Timestamp, until: Timestamp, whose: &str, again: &str) -> Finding {
    let left = until.duration_since(now);
    let days = left.as_hours() / 24;
    let day = until.to_zoned(jiff::tz::TimeZone::UTC).date();
    if left.is_negative() {
        let what = format!("the certificate of {whose} ended on {day}");
        return Finding::new(Area::Certificates, Level::Problem, what, "no program that checks the server can log in")
            .mend(format!("get a new one: `{again}`"));
    }
    let what = format!("the certificate of {whose} is good until {day} ({days} days)");
    if left < RENEWED {
        return Finding::new(Area::Certificates, Level::Warning, what, "programs that check it will be refused then")
            .mend(format!("get a new one, which restarts the server: `{again}`"));
    }
    Finding::ok(Area::Certificates, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_soon_or_has_ended_is_told() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let level = |days: i64| judge(now, now + SignedDuration::from_hours(24 * days), "x", "tfdev up").level;
        assert_eq!(
            [level(-1), level(1), level(29), level(31)],
            [Level::Problem, Level::Warning, Level::Warning, Level::Ok]
        );
    }
}

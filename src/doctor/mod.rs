//! `doctor`: what of this machine is in the way, why that matters, and the command that mends it.
//!
//! ```text
//! docker       the daemon and its machine      machine       programs, ports, locks, clock, disk
//! left_over    what projects that are gone     certificates  which end soon
//!              have left
//! ```
//!
//! What must hold: looking changes nothing, needs no project and no configuration that is right, and ends within two
//! seconds whatever does not answer. What is cleaned away is listed before, is on record as this user's own, and belongs to
//! a checkout that is gone.

mod certificates;
mod docker;
mod left_over;
mod machine;

use serde::Serialize;

use crate::config::{Origin, Settings};
use crate::error::Error;
use crate::event::Events;

pub use left_over::{LeftOver, Removed, clean};

/// What a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Area {
    /// Files and variables that settle something.
    Configuration,
    /// The Docker daemon and its machine.
    Docker,
    /// PostgreSQL's programs.
    Programs,
    /// The port that people expect.
    Ports,
    /// Folders of tfdev: locks, room, clock.
    Files,
    /// Clocks.
    Clock,
    /// Certificates of servers with TLS.
    Certificates,
    /// What projects that are gone have left.
    LeftOver,
}

impl Area {
    /// The word that people read.
    pub fn word(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Docker => "docker",
            Self::Programs => "programs",
            Self::Ports => "ports",
            Self::Files => "files",
            Self::Clock => "clock",
            Self::Certificates => "certificates",
            Self::LeftOver => "left over",
        }
    }
}

/// How much a finding matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// All is well.
    Ok,
    /// Worth to know.
    Note,
    /// Something may go wrong, or works only in part.
    Warning,
    /// Something does not work until it is mended.
    Problem,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What it is about.
    pub area: Area,
    /// How much it matters.
    pub level: Level,
    /// What was found.
    pub what: String,
    /// Why it matters; `None` if all is well.
    pub why: Option<String>,
    /// What mends it, the best way first; each with the exact command.
    pub mend: Vec<String>,
}

/// A settled value that is not built in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Configured {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// Where it is from.
    pub origin: String,
}

/// What `doctor` found.
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// How many findings are problems.
    pub problems: usize,
    /// How many are warnings.
    pub warnings: usize,
    /// All of them, by area.
    pub findings: Vec<Finding>,
    /// What `--clean` would remove.
    pub left_over: Vec<LeftOver>,
    /// The values that are not built in, with their origin.
    pub configuration: Vec<Configured>,
}

impl Finding {
    fn ok(area: Area, what: impl Into<String>) -> Self {
        Self { area, level: Level::Ok, what: what.into(), why: None, mend: Vec::new() }
    }

    fn new(area: Area, level: Level, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { area, level, what: what.into(), why: Some(why.into()), mend: Vec::new() }
    }

    fn mend(mut self, mend: impl Into<String>) -> Self {
        self.mend.push(mend.into());
        self
    }

    /// A failure as a finding: its message, causes and hints.
    fn of(area: Area, level: Level, error: &Error, why: impl Into<String>) -> Self {
        let what = std::iter::once(error.to_string()).chain(error.causes()).collect::<Vec<_>>().join("; ");
        Self { area, level, what, why: Some(why.into()), mend: error.hints().to_vec() }
    }
}

/// Looks at this machine. `wrong` is what is wrong in the configuration; then `settings` are what is built in.
pub async fn doctor(settings: &Settings, wrong: Option<&Error>, events: &Events) -> DoctorReport {
    let mut findings = vec![configuration(settings, wrong)];
    let programs = machine::programs(settings);
    let docker = docker::look(settings, programs.level == Level::Ok, events).await;
    let projects = left_over::projects(settings);
    let ports = machine::ports(settings, &projects, docker.connection.as_ref()).await;
    let (left_over, of_left_over) = left_over::look(settings, &projects, docker.connection.as_ref(), events).await;
    findings.extend(docker.findings);
    findings.push(programs);
    findings.extend(ports);
    findings.extend(machine::files(settings));
    findings.extend(certificates::look(settings, &projects));
    findings.extend(of_left_over);
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    DoctorReport {
        problems: count(Level::Problem),
        warnings: count(Level::Warning),
        findings,
        left_over,
        configuration: configured(settings),
    }
}

fn configuration(settings: &Settings, wrong: Option<&Error>) -> Finding {
    if let Some(error) = wrong {
        return Finding::of(Area::Configuration, Level::Problem, error, "no other command works until it is mended")
            .mend("`tfdev init --help` says what a right file looks like");
    }
    let given = configured(settings).len();
    Finding::ok(
        Area::Configuration,
        format!("{given} values are not the built-in ones; the project is {}", settings.project_dir.display()),
    )
}

fn configured(settings: &Settings) -> Vec<Configured> {
    let given = settings.listing.iter().filter(|(_, setting)| setting.origin != Origin::Default);
    given
        .map(|(key, setting)| Configured {
            key: key.clone(),
            value: setting.value.clone(),
            origin: setting.origin.to_string(),
        })
        .collect()
}

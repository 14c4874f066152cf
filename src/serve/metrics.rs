//! What the service counts, as Prometheus reads it (its text format, version 0.0.4).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::backup::gauges::Gauges;
use crate::fresh::{FreshDatabase, Stage};

/// The upper ends of the histogram's buckets, in seconds: from a hand-out out of a warm pool to the longest wait.
const BUCKETS: [f64; 13] = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 15.0, 60.0];

/// The stages of a database, with the word for each.
const STAGES: [(Stage, &str); 6] = [
    (Stage::Building, "building"),
    (Stage::Free, "free"),
    (Stage::Leased, "leased"),
    (Stage::Kept, "kept"),
    (Stage::Returned, "returned"),
    (Stage::Dropping, "dropping"),
];

/// Which part of the service handed a database out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Door {
    /// IntegreSQL's interface.
    Integresql,
    /// Leases with an end.
    Leases,
}

/// How long hand-outs of one door took.
#[derive(Default, Clone, Copy)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    seconds: f64,
}

/// What is counted while the service runs.
#[derive(Default)]
pub(super) struct Metrics {
    hand_outs: Mutex<BTreeMap<Door, Histogram>>,
    requests: Mutex<BTreeMap<(String, String, u16), u64>>,
    recycled: AtomicU64,
}

/// What is looked up when somebody asks.
pub(super) struct Now {
    pub(super) databases: Vec<FreshDatabase>,
    pub(super) most: u64,
    pub(super) templates_ready: usize,
    pub(super) templates_filling: usize,
    pub(super) waiting: usize,
    pub(super) taken: usize,
    pub(super) unlocked: usize,
    pub(super) leases: usize,
    /// What this machine remembers of the project's backups.
    pub(super) backups: Vec<Gauges>,
}

impl Metrics {
    pub(super) fn handed_out(&self, door: Door, elapsed: Duration) {
        let mut hand_outs = self.hand_outs.lock().unwrap_or_else(PoisonError::into_inner);
        let histogram = hand_outs.entry(door).or_default();
        let seconds = elapsed.as_secs_f64();
        for (count, end) in histogram.buckets.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= end);
        }
        histogram.count += 1;
        histogram.seconds += seconds;
    }

    pub(super) fn recycled(&self) {
        self.recycled.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an answer; `route` is the pattern and not the path, of which there is no end.
    pub(super) fn answered(&self, method: &str, route: &str, status: u16) {
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((method.to_owned(), route.to_owned(), status)).or_default() += 1;
    }

    pub(super) fn text(&self, now: &Now) -> String {
        let mut text = String::new();
        let mut family = Family(&mut text);
        family.head("tfdev_fresh_databases", "gauge", "Fresh databases of the instance, of all processes, by stage.");
        for (stage, word) in STAGES {
            let count = now.databases.iter().filter(|one| one.stage == stage).count();
            family.value("tfdev_fresh_databases", &format!("stage=\"{word}\""), count);
        }
        family.head("tfdev_fresh_databases_max", "gauge", "How many fresh databases there may be.");
        family.value("tfdev_fresh_databases_max", "", now.most);
        family.head("tfdev_serve_templates", "gauge", "Templates of clients, by stage.");
        family.value("tfdev_serve_templates", "stage=\"ready\"", now.templates_ready);
        family.value("tfdev_serve_templates", "stage=\"filling\"", now.templates_filling);
        family.head("tfdev_serve_databases", "gauge", "Databases of this service, by what became of them.");
        family.value("tfdev_serve_databases", "state=\"taken\"", now.taken);
        family.value("tfdev_serve_databases", "state=\"unlocked\"", now.unlocked);
        family.value("tfdev_serve_databases", "state=\"leased\"", now.leases);
        family.head("tfdev_serve_waiting", "gauge", "Calls that wait for a database.");
        family.value("tfdev_serve_waiting", "", now.waiting);
        family.head("tfdev_serve_recycled_total", "counter", "Databases that clients forgot and that made room.");
        family.value("tfdev_serve_recycled_total", "", self.recycled.load(Ordering::Relaxed));
        self.write_hand_outs(&mut family);
        write_backups(&now.backups, &mut family);
        family.head("tfdev_serve_requests_total", "counter", "Answers, by method, route and status.");
        for ((method, route, status), count) in self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let labels = format!("method=\"{method}\",route=\"{route}\",status=\"{status}\"");
            family.value("tfdev_serve_requests_total", &labels, count);
        }
        text
    }

    fn write_hand_outs(&self, family: &mut Family<'_>) {
        let hand_outs = self.hand_outs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let of = |door| hand_outs.get(&door).copied().unwrap_or_default();
        let doors = [("integresql", of(Door::Integresql)), ("leases", of(Door::Leases))];
        let name = "tfdev_serve_hand_out_seconds";
        family.head(name, "histogram", "From the call to the database, the wait for one included.");
        for (door, histogram) in doors {
            for (count, end) in histogram.buckets.iter().zip(BUCKETS) {
                family.value(&format!("{name}_bucket"), &format!("door=\"{door}\",le=\"{end}\""), count);
            }
            family.value(&format!("{name}_bucket"), &format!("door=\"{door}\",le=\"+Inf\""), histogram.count);
            family.value(&format!("{name}_sum"), &format!("door=\"{door}\""), histogram.seconds);
            family.value(&format!("{name}_count"), &format!("door=\"{door}\""), histogram.count);
        }
    }
}

/// Writes the figures of backups; nothing where there are none.
fn write_backups(backups: &[Gauges], family: &mut Family<'_>) {
    if backups.is_empty() {
        return;
    }
    let mut write = |name: &str, help: &str, value: &dyn Fn(&Gauges) -> Option<f64>| {
        let name = format!("tfdev_backup_{name}");
        family.head(&name, "gauge", help);
        for one in backups {
            if let Some(value) = value(one) {
                family.value(&name, &format!("instance=\"{}\"", one.instance), value);
            }
        }
    };
    write("last_wal_timestamp_seconds", "When the last part of the log came into the store.", &|one| {
        one.last_wal.map(seconds)
    });
    write("rpo_seconds", "How much would be lost now, at most.", &|one| one.rpo_seconds.map(float));
    write("last_verified_timestamp_seconds", "When a restore last proved a backup.", &|one| {
        one.last_verified.as_ref().map(|proof| seconds(proof.at))
    });
    write("rto_seconds", "How long that restore took until the server answered.", &|one| {
        one.last_verified.as_ref().map(|proof| float(proof.rto_ms) / 1000.0)
    });
    write("store_bytes", "What is in the store.", &|one| one.stored_bytes.map(float));
    write("spool_bytes", "What of the log waits for the store.", &|one| one.spool_bytes.map(float));
    write("alarms", "Alarms of `tfdev backup status` when the store was last looked at.", &|one| {
        one.alarms.map(|alarms| float(alarms as u64))
    });
    write("seen_timestamp_seconds", "When the store was last looked at.", &|one| one.seen.map(seconds));
    write("agent", "Whether an agent is at work.", &|one| Some(f64::from(u8::from(one.agent))));
    let name = "tfdev_backup_last_full_timestamp_seconds";
    family.head(name, "gauge", "When the newest full backup was begun, by kind.");
    for one in backups {
        for (kind, at) in &one.last_full {
            let labels = format!("instance=\"{}\",kind=\"{}\"", one.instance, kind.word());
            family.value(name, &labels, seconds(*at));
        }
    }
}

fn seconds(at: jiff::Timestamp) -> f64 {
    float(u64::try_from(at.as_second()).unwrap_or_default())
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers; below 2^53 they are exact")]
fn float(number: u64) -> f64 {
    number as f64
}

/// Writes families of values.
struct Family<'a>(&'a mut String);

impl Family<'_> {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("text takes all");
    }

    fn value(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        let labels = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        writeln!(self.0, "{name}{labels} {value}").expect("text takes all");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::manifest::Kind;
    use crate::backup::status::Proof;

    #[test]
    fn the_text_is_one_that_prometheus_reads() {
        let metrics = Metrics::default();
        metrics.handed_out(Door::Integresql, Duration::from_millis(3));
        metrics.answered("GET", "/fresh", 200);
        let now = Now {
            databases: Vec::new(),
            most: 64,
            templates_ready: 1,
            templates_filling: 0,
            waiting: 0,
            taken: 2,
            unlocked: 0,
            leases: 0,
            backups: Vec::new(),
        };
        assert!(!metrics.text(&now).contains("tfdev_backup"), "nothing without a store");
        let at = jiff::Timestamp::from_second(1_700_000_000).unwrap();
        let backups = Gauges {
            instance: "dev".into(),
            last_full: [(Kind::Physical, at)].into(),
            last_wal: Some(at),
            rpo_seconds: Some(3),
            last_verified: Some(Proof { id: "x".into(), at, rto_ms: 1500 }),
            stored_bytes: Some(1 << 40),
            spool_bytes: None,
            alarms: Some(0),
            seen: Some(at),
            agent: true,
        };
        let text = metrics.text(&Now { backups: vec![backups], ..now });
        assert!(!text.contains("tfdev_backup_spool_bytes{"), "what is not known is left out");
        for line in [
            "tfdev_fresh_databases{stage=\"free\"} 0",
            "tfdev_serve_hand_out_seconds_bucket{door=\"integresql\",le=\"0.002\"} 0",
            "tfdev_serve_hand_out_seconds_bucket{door=\"integresql\",le=\"0.005\"} 1",
            "tfdev_serve_hand_out_seconds_bucket{door=\"integresql\",le=\"+Inf\"} 1",
            "tfdev_serve_hand_out_seconds_count{door=\"integresql\"} 1",
            "tfdev_serve_requests_total{method=\"GET\",route=\"/fresh\",status=\"200\"} 1",
            "tfdev_backup_last_full_timestamp_seconds{instance=\"dev\",kind=\"physical\"} 1700000000",
            "tfdev_backup_rpo_seconds{instance=\"dev\"} 3",
            "tfdev_backup_rto_seconds{instance=\"dev\"} 1.5",
            "tfdev_backup_store_bytes{instance=\"dev\"} 1099511627776",
            "tfdev_backup_agent{instance=\"dev\"} 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is missing in:\n{text}");
        }
        let is_known = |line: &str| line.starts_with("# HELP ") || line.starts_with("# TYPE ");
        assert!(text.lines().all(|line| is_known(line) || line.rsplit_once(' ').unwrap().1.parse::<f64>().is_ok()));
    }
}

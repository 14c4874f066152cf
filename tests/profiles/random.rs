//! Random settings, good and bad: the instance always ends running with either the old or the new ones, and its data.
//!
//! `TFDEV_SETTINGS_CASES` is how many there are, `TFDEV_SETTINGS_SEED` which.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::{on_docker_and_native, ordered, settings, up};
use crate::support::{TestEnv, finish, query, start, tell};

on_docker_and_native!(random_settings_are_taken_whole_or_not_at_all);

/// Settings with values that some server takes and some does not.
const CANDIDATES: &[(&str, &[&str])] = &[
    ("max_connections", &["1", "4", "11", "40", "300000"]),
    ("superuser_reserved_connections", &["0", "3", "10", "39"]),
    ("shared_buffers", &["\"128kB\"", "\"16MB\"", "\"200MB\"", "\"64GB\""]),
    ("work_mem", &["\"64kB\"", "\"5MB\"", "\"1kB\""]),
    ("wal_level", &["\"replica\"", "\"logical\"", "\"minimal\""]),
    ("max_wal_senders", &["0", "5"]),
    ("max_replication_slots", &["0", "20"]),
    ("huge_pages", &["\"on\"", "\"try\"", "\"off\""]),
    ("timezone", &["\"Europe/Berlin\"", "\"Mars/Olympus\""]),
    ("session_preload_libraries", &["\"\"", "\"nope\""]),
    ("shared_preload_libraries", &["\"auto_explain\"", "\"nope\""]),
    ("synchronous_commit", &["\"local\"", "\"remote_apply\"", "\"perhaps\""]),
    ("recovery_prefetch", &["\"on\"", "\"off\"", "\"try\""]),
    ("jit", &["true", "false"]),
    ("bonjour", &["true"]),
    ("log_line_prefix", &["\"it's %m [%p] \"", "\"$1 \\\\ %u \""]),
    ("random_page_cost", &["1.1", "-1"]),
    ("max_worker_processes", &["2", "16"]),
    ("ssl", &["true", "false"]),
    ("app.anything", &["\"a, 'b' \\\" c\""]),
];

/// Where tfdev is killed in some cases.
const POINTS: &[&str] = &["up.change.intent", "up.change.started", "up.change.ready"];

#[expect(clippy::disallowed_methods, reason = "the tests' own surroundings, apart from Settings")]
fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn random_settings_are_taken_whole_or_not_at_all(env: &TestEnv) {
    let seed = number("TFDEV_SETTINGS_SEED", rand::random());
    tell(&format!("TFDEV_SETTINGS_SEED={seed}"));
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    env.up();
    let mut shown = all(env);
    for case in 0..number("TFDEV_SETTINGS_CASES", 6) {
        let mut chosen: Vec<&(&str, &[&str])> = Vec::new();
        for _ in 0..random.random_range(1..=3) {
            let candidate = &CANDIDATES[random.random_range(0..CANDIDATES.len())];
            if !chosen.iter().any(|(name, _)| *name == candidate.0) {
                chosen.push(candidate);
            }
        }
        let lines: Vec<String> = chosen
            .iter()
            .map(|(name, values)| {
                // A name of two parts is quoted: it is no table.
                format!("\"{name}\" = {}\n", values[random.random_range(0..values.len())])
            })
            .collect();
        let lines = lines.concat();
        settings(env, &lines);
        if random.random_range(0..4) == 0 {
            let point = POINTS[random.random_range(0..POINTS.len())];
            finish(start(ordered(env, &format!("{point}=kill"), &[])));
        }
        let outcome = up(env, &[]);
        let what = format!("case {case} of seed {seed}:\n{lines}{}", outcome.stderr);
        tell(&what);
        // What is wrong in the file is told by every command.
        settings(env, if outcome.status.success() { &lines } else { "" });
        let now = all(env);
        if outcome.status.success() {
            let pending = "SELECT name FROM pg_settings WHERE pending_restart \
                           UNION ALL SELECT name FROM pg_file_settings WHERE error IS NOT NULL";
            assert_eq!(query(&superuser(env), pending), Vec::<String>::new(), "{what}");
            shown = now;
        } else {
            assert!([Some(1), Some(8)].contains(&outcome.status.code()), "{what}");
            assert_eq!(now, shown, "{what}");
        }
        assert_eq!((env.state(), env.tasks()), ("running".into(), "50".into()), "{what}");
    }
}

/// All settings that the server has, but for what it finds out itself.
fn all(env: &TestEnv) -> Vec<String> {
    let question = "SELECT name || '=' || setting FROM pg_settings WHERE context <> 'internal' \
                    AND name NOT IN ('application_name', 'client_encoding') ORDER BY name";
    query(&superuser(env), question)
}

fn superuser(env: &TestEnv) -> String {
    let url = env.url();
    let (_, options) = url.split_once('?').unwrap_or((&url, ""));
    format!("{}?{options}", env.superuser_url(&env.status()["port"], "postgres"))
}

//! Backups, the archived log, recovery to any moment of it, and the proof of all that.
//!
//! What must hold: what comes back is exactly what was there at the moment that was asked for; whatever is killed, cut
//! off, damaged or away, no good backup is lost and the error says what is wrong; and the server never waits for its
//! backup.

mod cycle;
mod encryption;
mod external;
mod faults;
mod log;
mod month;
mod recovery;
mod replace;
mod retention;
#[cfg(unix)]
mod s3;
mod store;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Outcome, TestEnv, one, query};

/// A running instance with a store.
pub(crate) struct Side<'a> {
    env: &'a TestEnv,
    store: PathBuf,
}

impl<'a> Side<'a> {
    /// An instance whose backups go to a folder.
    fn up(env: &'a TestEnv) -> Self {
        let store = env.path("store");
        Self::up_with(env, &format!("store = \"file://{}\"\n", store.display()))
    }

    /// An instance with these lines in its section `[backup]`.
    fn up_with(env: &'a TestEnv, lines: &str) -> Self {
        Self::up_as(env, &env.id, lines)
    }

    /// An instance of a project with this key.
    fn up_as(env: &'a TestEnv, project: &str, lines: &str) -> Self {
        env.write(
            "tfdev.toml",
            format!("project = \"{project}\"\n[profiles.tiny]\nmax_connections = 8\n[backup]\n{lines}"),
        );
        env.up();
        let side = Self { env, store: env.path("store") };
        side.sql("CREATE TABLE history (id bigint PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())");
        side
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.env.run(arguments)
    }

    /// `tfdev backup …`, with JSON.
    fn backup(&self, arguments: &[&str]) -> Outcome {
        let mut all = vec!["--json", "backup"];
        all.extend(arguments);
        self.run(&all)
    }

    /// Runs a statement in the project's database.
    #[track_caller]
    fn sql(&self, sql: &str) -> Vec<String> {
        query(&self.env.url(), sql)
    }

    /// A physical backup; its name.
    #[track_caller]
    fn base(&self) -> String {
        let made = self.backup(&["now", "--only", "physical"]).ok().json();
        made[0]["id"].as_str().unwrap().to_owned()
    }

    /// Adds rows to the history, each in a transaction of its own.
    #[track_caller]
    fn add(&self, ids: std::ops::RangeInclusive<u64>) {
        let statements: Vec<String> = ids.map(|id| format!("INSERT INTO history (id) VALUES ({id})")).collect();
        for statement in statements {
            self.sql(&statement);
        }
    }

    /// Adds the next row to the history.
    #[track_caller]
    fn add_next(&self) {
        self.sql("INSERT INTO history (id) SELECT coalesce(max(id), 0) + 1 FROM history");
    }

    /// Closes the segment that is being written, and brings all of the log into the store.
    #[track_caller]
    fn ship(&self) {
        let superuser = self.superuser();
        // A mark goes into the store with all that is before it.
        let name = format!("shipped {}", one(&superuser, "SELECT pg_current_wal_lsn()"));
        self.backup(&["mark", &name]).ok();
    }

    /// The files in the spool.
    fn spooled(&self) -> Vec<String> {
        query(&self.superuser(), "SELECT pg_ls_dir('pg_wal/tfdev_spool', true, false)")
    }

    #[track_caller]
    fn superuser(&self) -> String {
        self.env.superuser_url(&self.env.status()["port"], "postgres")
    }

    /// Restores into a new instance; what it tells.
    #[track_caller]
    fn restore(&self, target: &[&str], instance: &str) -> Value {
        let mut arguments = vec!["restore"];
        arguments.extend(target);
        arguments.extend(["--as", instance]);
        self.backup(&arguments).ok().json()
    }

    /// Removes another instance of the project.
    #[track_caller]
    fn destroy(&self, instance: &str) {
        self.run(&["destroy", "--yes", "--instance", instance]).ok();
    }

    /// The files in the store, by their path below it.
    fn stored(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.store, &mut found);
        let below = |path: PathBuf| path.strip_prefix(&self.store).unwrap().to_string_lossy().into_owned();
        let mut found: Vec<String> = found.into_iter().map(below).collect();
        found.sort();
        found
    }

    /// The one file in the store whose path has these words.
    #[track_caller]
    fn stored_with(&self, words: &[&str]) -> PathBuf {
        let found: Vec<String> =
            self.stored().into_iter().filter(|path| words.iter().all(|word| path.contains(word))).collect();
        assert_eq!(found.len(), 1, "{words:?}: {found:?}");
        self.store.join(&found[0])
    }
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() { walk(&path, found) } else { found.push(path) }
    }
}

/// The history of a server: how many rows, and the last one. Rows come in order, so a prefix has as many as its last.
#[track_caller]
fn history(url: &str) -> (String, String) {
    let row = one(url, "SELECT count(*) || ' ' || coalesce(max(id), 0) FROM history");
    let (count, last) = row.split_once(' ').unwrap();
    (count.to_owned(), last.to_owned())
}

/// Fails unless the history is exactly its first `rows` rows.
#[track_caller]
fn assert_prefix(url: &str, rows: u64) {
    assert_eq!(history(url), (rows.to_string(), rows.to_string()));
}

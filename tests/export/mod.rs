//! Exports and imports: a database in one file, from one engine or machine to another.
//!
//! What must hold: what comes back is what went in, whole; and whatever a file holds, an import that fails has changed
//! nothing.

mod dumps;
mod faults;
mod hostile;
mod round_trip;

pub(crate) use faults::POINTS;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::process::{bin_dir, shell};
use crate::support::{Outcome, Session, TestEngine, TestEnv, docker, native, query};

/// A running instance.
pub(crate) struct Side<'a>(&'a TestEnv);

impl<'a> Side<'a> {
    /// An instance with few rows.
    fn up(env: &'a TestEnv) -> Self {
        env.up();
        Self(env)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        self.0.command(arguments)
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.0.run(arguments)
    }

    fn url(&self) -> String {
        self.0.url()
    }

    /// The superuser's URL to `database`.
    fn superuser(&self, database: &str) -> String {
        self.0.superuser_url(&self.0.status()["port"], database)
    }

    /// A session of the superuser in the database `postgres`, which ends if the server recovers from a crash.
    fn watch(&self) -> Session {
        Session::open(&self.superuser("postgres"))
    }

    /// A file of the test.
    fn file(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn export(&self, file: &Path) -> Outcome {
        self.run(&["snapshot", "export", text(file)])
    }

    fn import(&self, file: &Path, name: &str) -> Outcome {
        self.run(&["snapshot", "import", text(file), "--as", name])
    }

    /// Databases and roles, but for those that the server came with and the project's own.
    fn made(&self) -> Vec<String> {
        let sql = "SELECT datname FROM pg_database WHERE datname NOT IN ('postgres', 'template0', 'template1', 'taskflow') \
                   UNION ALL SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname NOT IN ('postgres', 'taskflow') \
                   ORDER BY 1";
        query(&self.superuser("postgres"), sql)
    }

    /// Files for programs beside the server.
    fn files_beside(&self) -> Vec<String> {
        match self.0.engine() {
            TestEngine::Docker => docker::listed(&["exec", &self.0.container_name(), "ls", "/var/tmp"]),
            TestEngine::Native | TestEngine::NativeUser => {
                let folder = native::data(self.0).parent().unwrap().join("files");
                let listing = std::fs::read_dir(folder).into_iter().flatten().flatten();
                listing.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
            }
            TestEngine::External => panic!("nothing is exported from a server of someone else"),
        }
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a program of this machine's PostgreSQL.
fn postgres(program: &str, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new(bin_dir().unwrap().join(program)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// All that is in a database and belongs to it, as text.
fn fingerprint(url: &str) -> String {
    let dump = String::from_utf8(postgres("pg_dump", &["--dbname", url])).unwrap();
    // Lines that differ from run to run.
    let lines = dump.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    let outside = query(
        url,
        "SELECT format('%s limit %s comment %s', pg_get_userbyid(datdba), datconnlimit, shobj_description(oid, 'pg_database')) \
         FROM pg_database WHERE datname = current_database() \
         UNION ALL SELECT format('%s may %s %s', coalesce(nullif(a.grantee, 0)::regrole::text, 'PUBLIC'), a.privilege_type, a.is_grantable) \
         FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba))) a WHERE datname = current_database() \
         UNION ALL SELECT format('%s has %s', coalesce(nullif(setrole, 0)::regrole::text, 'everybody'), unnest(setconfig)) \
         FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database() \
         ORDER BY 1",
    );
    lines.map(str::to_owned).chain(outside).collect::<Vec<_>>().join("\n")
}

/// Makes `tfsnap` of a dump in `pg_dump`'s custom format, as an enemy would.
fn pack(dump: &[u8], like: &Path, file: &Path) {
    let manifest = tfdev::archive::Reader::open(like).unwrap().manifest().clone();
    let mut writer = tfdev::archive::Writer::create(file, true, manifest).unwrap();
    writer.write(dump).unwrap();
    writer.finish().unwrap();
    shell(&format!("chmod a+r {}", file.display()));
}

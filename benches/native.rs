//! The native engine, against what a person types: `initdb`, a start, a login.
//!
//! What must hold: both servers have the same programs, user, settings and kind of disk.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::report::{Measurement, Target};
use crate::world::{self, World};
use crate::{Outcome, QUICK_ROUNDS, ROUNDS};

/// What makes tfdev use the native engine, for an instance of its own.
const NATIVE: [&str; 4] = ["--engine", "native", "--instance", "native"];

fn timed(world: &World, arguments: &[&str]) -> Outcome<(Duration, Value)> {
    world.timed(&[arguments, &NATIVE].concat())
}

/// `up` on a new instance, whose data folder is a copy of the cached one, against a server that is made by hand.
pub(crate) fn up_new(world: &World) -> Outcome<Vec<Measurement>> {
    let mut first = Measurement::new("native up, first for the programs", "ms", Target::None);
    let mut new = Measurement::new("native up, new, with `demo`", "ms", Target::RatioAtMost(1.1));
    timed(world, &["destroy", "--yes"])?;
    let (elapsed, report) = timed(world, &["up", "--dataset", "demo"])?;
    first.tfdev.push_milliseconds(elapsed);
    let by_hand = ByHand::like(&report)?;
    for _ in 0..ROUNDS {
        timed(world, &["destroy", "--yes"])?;
        let (elapsed, report) = timed(world, &["up", "--dataset", "demo"])?;
        if report["created"] != true || report["seed"]["applied"] != true {
            return Err("`up` after `destroy` did not begin anew".into());
        }
        new.tfdev.push_milliseconds(elapsed);
        // Each of the two runs alone on the machine.
        timed(world, &["destroy", "--yes"])?;
        new.baseline.push_milliseconds(by_hand.run(world)?);
    }
    Ok(vec![first, new])
}

/// `up` when all is there.
pub(crate) fn up_running(world: &World) -> Outcome<Vec<Measurement>> {
    let mut time = Measurement::new("native up when running", "ms", Target::AtMost(50.0));
    timed(world, &["up"])?;
    for _ in 0..QUICK_ROUNDS {
        time.tfdev.push_milliseconds(timed(world, &["up"])?.0);
    }
    timed(world, &["destroy", "--yes"])?;
    Ok(vec![time])
}

/// The folder with the programs of the server that runs on the folder `data`.
pub(crate) fn programs_of(data: &Path) -> Outcome<PathBuf> {
    let pid = fs::read_to_string(data.join("postmaster.pid"))?;
    let pid = pid.lines().next().unwrap_or_default();
    let program = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let program = Path::new(program.split('\0').next().unwrap_or_default());
    Ok(program.parent().ok_or("the server's program is in no folder")?.to_owned())
}

/// A server that is made by hand.
struct ByHand {
    programs: PathBuf,
    /// The user and group who run it: those of tfdev's.
    owner: (u32, u32),
    settings: String,
}

impl ByHand {
    /// One like that of an `up`.
    fn like(report: &Value) -> Outcome<Self> {
        let data = Path::new(report["data_dir"].as_str().ok_or("`up` named no data folder")?);
        let found = fs::metadata(data)?;
        let home = data.parent().ok_or("the data folder is in no folder")?;
        let settings = fs::read_to_string(home.join("tfdev.conf"))?;
        let own = |line: &&str| !line.starts_with("port") && !line.starts_with("unix_socket_directories");
        Ok(Self {
            programs: programs_of(data)?,
            owner: (found.uid(), found.gid()),
            settings: settings.lines().filter(own).flat_map(|line| [line, "\n"]).collect(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.programs.join(program));
        command.env("LC_ALL", "C").current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if fs::metadata("/proc/self").is_ok_and(|own| own.uid() != self.owner.0) {
            command.uid(self.owner.0).gid(self.owner.1);
        }
        command
    }

    /// Makes it, starts it and logs in; returns how long that took. It is stopped and removed again.
    fn run(&self, world: &World) -> Outcome<Duration> {
        let folder = tempfile::tempdir()?;
        let password = folder.path().join("password");
        fs::write(&password, "bench\n")?;
        for path in [folder.path(), &password] {
            chown(path, Some(self.owner.0), Some(self.owner.1))?;
        }
        let data = folder.path().join("data");
        let port = world::free_port()?;
        let begin = Instant::now();
        let mut initdb = self.command("initdb");
        initdb.args(["--data-checksums", "--auth-local=trust", "--auth-host=scram-sha-256", "--username=postgres"]);
        initdb.args(["--encoding=UTF8", "--locale=C.UTF-8"]).arg("--pwfile").arg(&password).arg("--pgdata").arg(&data);
        if !initdb.status()?.success() {
            return Err("initdb by hand failed".into());
        }
        let mut configuration = File::options().append(true).open(data.join("postgresql.conf"))?;
        std::io::Write::write_all(&mut configuration, self.settings.as_bytes())?;
        let sockets = format!("unix_socket_directories={}", folder.path().display());
        let mut server = self.command("postgres");
        server.arg("-D").arg(&data).args(["-c", &sockets, "-p", &port.to_string()]);
        let server = Guard(server.spawn()?);
        let login = world::login("127.0.0.1", port, "postgres", "postgres", "bench");
        world.until_answers(&login)?;
        let elapsed = begin.elapsed();
        drop(server);
        Ok(elapsed)
    }
}

/// Ends a server that was started by hand.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // SIGINT: a fast shutdown.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

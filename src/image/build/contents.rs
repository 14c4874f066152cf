//! What goes into the offline image: PostgreSQL, the libraries it needs, a shell and a few tools, and the accounts and
//! folders that the official image has.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::installation::Installation;
use super::libraries::{self, Needs};
use super::tree::Tree;
use crate::error::{Context, Error, Result};

/// The entrypoint, which keeps the official image's contract.
const ENTRYPOINT: &str = include_str!("../../../compose/offline-image/entrypoint.sh");

/// The uid and the gid of the server, as in the official Alpine image.
pub(super) const SERVER_ID: u32 = 70;

/// Where the official image keeps data.
pub(super) const DATA_FOLDER: &str = "/var/lib/postgresql/data";

/// Where this machine's tools are looked for.
const TOOL_FOLDERS: [&str; 4] = ["/usr/bin", "/bin", "/usr/sbin", "/sbin"];

/// The tools that the entrypoint, scripts in `initdb.d` and archive commands call, by the Debian package that has them.
const REQUIRED_TOOLS: [(&str, &[&str]); 10] = [
    ("bash", &["bash"]),
    ("dash", &["sh"]),
    (
        "coreutils",
        &[
            "basename",
            "cat",
            "chmod",
            "chown",
            "cp",
            "cut",
            "date",
            "dd",
            "df",
            "dirname",
            "du",
            "echo",
            "env",
            "expr",
            "false",
            "head",
            "id",
            "install",
            "ln",
            "ls",
            "mkdir",
            "mktemp",
            "mv",
            "nproc",
            "od",
            "printf",
            "pwd",
            "readlink",
            "realpath",
            "rm",
            "rmdir",
            "seq",
            "sha256sum",
            "sleep",
            "sort",
            "stat",
            "sync",
            "tail",
            "tee",
            "test",
            "timeout",
            "touch",
            "tr",
            "true",
            "uname",
            "uniq",
            "wc",
            "whoami",
        ],
    ),
    ("findutils", &["find", "xargs"]),
    ("grep", &["grep"]),
    ("sed", &["sed"]),
    ("mawk", &["awk"]),
    ("tar", &["tar"]),
    ("gzip", &["gzip", "gunzip", "zcat"]),
    ("util-linux", &["setpriv"]),
];

/// Tools that are taken along where this machine has them.
const OPTIONAL_TOOLS: [&str; 19] = [
    "xz", "unxz", "xzcat", "zstd", "unzstd", "zstdcat", "lz4", "bzip2", "ps", "pgrep", "kill", "less", "flock",
    "getent", "hostname", "base64", "md5sum", "egrep", "[",
];

/// Libraries that programs open by name while they run, so that `ldd` does not list them: account and host look-ups of
/// older C libraries, and thread cancellation.
const LIBRARIES_OPENED_LATE: [&str; 3] = ["libnss_files.so.2", "libnss_dns.so.2", "libgcc_s.so.1"];

/// What was gathered, with what is worth telling about it.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) tree: Tree,
    /// What was left out and why, a sentence each.
    pub(super) left_out: Vec<String>,
}

/// Gathers all that the image holds.
pub(super) fn gather(installation: &Installation) -> Result<Contents> {
    let mut gathering = Gathering { tree: Tree::default(), binaries: Vec::new(), left_out: Vec::new() };
    gathering.add_root_links()?;
    gathering.add_tools()?;
    gathering.add_postgres(installation)?;
    gathering.add_libraries(installation)?;
    gathering.add_time_zones(installation)?;
    gathering.add_locale()?;
    gathering.add_terminals()?;
    gathering.add_accounts_and_folders();
    Ok(Contents { tree: gathering.tree, left_out: gathering.left_out })
}

struct Gathering {
    tree: Tree,
    /// The programs and modules whose libraries are needed, as canonical paths.
    binaries: Vec<PathBuf>,
    left_out: Vec<String>,
}

impl Gathering {
    /// Keeps `/bin`, `/lib` and the like as links into `/usr` where this machine has them so. First, as every other path is
    /// made canonical and so never leads over one of these.
    fn add_root_links(&mut self) -> Result<()> {
        for name in ["/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"].map(Path::new) {
            if name.is_symlink() && name.is_dir() {
                let target = name.canonicalize().or_failed(|| format!("cannot read the link `{}`", name.display()))?;
                self.tree.folder(&target, 0o755, 0);
                self.tree.link(name, target.strip_prefix("/").unwrap_or(&target));
            }
        }
        Ok(())
    }

    fn add_tools(&mut self) -> Result<()> {
        for (package, tools) in REQUIRED_TOOLS {
            for tool in tools {
                let path = find_tool(tool).ok_or_else(|| {
                    Error::failed(format!(
                        "the offline image needs the program `{tool}`, which this machine does not have"
                    ))
                    .hint(format!("install the package `{package}`: `apt-get install {package}`"))
                })?;
                self.add_binary(&path)?;
            }
        }
        let mut missing = Vec::new();
        for tool in OPTIONAL_TOOLS {
            match find_tool(tool) {
                Some(path) => self.add_binary(&path)?,
                None => missing.push(tool),
            }
        }
        if !missing.is_empty() {
            self.left_out.push(format!("not on this machine, so not in the image: {}", missing.join(", ")));
        }
        Ok(())
    }

    fn add_binary(&mut self, path: &Path) -> Result<()> {
        let file = self.tree.file_of_machine(path)?;
        self.binaries.push(file);
        Ok(())
    }

    /// Adds programs, modules and share files, under the paths that are compiled into PostgreSQL.
    fn add_postgres(&mut self, installation: &Installation) -> Result<()> {
        let unreadable = || format!("cannot read the folder `{}`", installation.bin_dir.display());
        for entry in installation.bin_dir.read_dir().or_failed(unreadable)? {
            let path = entry.or_failed(unreadable)?.path();
            let name = path.file_name().unwrap_or_default().to_owned();
            if !path.is_file() {
                continue;
            }
            self.add_binary(&path)?;
            // Where the official image has its programs, and what makes its PATH do here.
            self.tree.link(Path::new("/usr/local/bin").join(name), &path);
        }
        self.add_modules(installation)?;
        self.tree.folder_of_machine(&installation.share_dir, &|path| path.ends_with("man") || path.ends_with("doc"))?;
        let sample = installation.share_dir.join("postgresql.conf.sample");
        let text = std::fs::read_to_string(&sample).or_failed(|| format!("cannot read `{}`", sample.display()))?;
        self.tree.bytes(&sample, listening_everywhere(&text)?, 0o644);
        Ok(())
    }

    fn add_modules(&mut self, installation: &Installation) -> Result<()> {
        let unreadable = || format!("cannot read the folder `{}`", installation.library_dir.display());
        let mut modules = Vec::new();
        for entry in installation.library_dir.read_dir().or_failed(unreadable)? {
            let path = entry.or_failed(unreadable)?.path();
            if path.extension().is_some_and(|extension| extension == "so") && path.is_file() {
                modules.push(path);
            }
        }
        let needs = libraries::needed_by(&modules)?;
        for module in &modules {
            let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if name.starts_with("llvmjit") {
                self.left_out
                    .push("just-in-time compilation (`llvmjit`), as LLVM would double the image's size".to_owned());
                continue;
            }
            match needs.get(module).and_then(|needs| needs.missing.first()) {
                Some(missing) => self.left_out.push(format!("`{name}`, as this machine has no `{missing}` for it")),
                None => self.add_binary(module)?,
            }
        }
        Ok(())
    }

    /// Adds the libraries of all programs, under each name that they are known by.
    fn add_libraries(&mut self, installation: &Installation) -> Result<()> {
        let needs = libraries::needed_by(&self.binaries)?;
        require_found(&needs)?;
        let mut files: BTreeSet<PathBuf> = needs.into_values().flat_map(|needs| needs.found).collect();
        let system = folders_of_c_library(&files);
        for name in LIBRARIES_OPENED_LATE {
            files.extend(system.iter().map(|folder| folder.join(name)).filter(|path| path.is_file()));
        }
        for file in &files {
            let target = self.tree.file_of_machine(file)?;
            if !file.starts_with("/lib")
                && !file.starts_with("/usr/lib")
                && !file.starts_with(&installation.library_dir)
            {
                // The machine finds it by its own `ld.so.conf`; the image has none, but every loader looks here.
                let name = file.file_name().unwrap_or_default();
                self.tree.link(Path::new("/usr/lib").join(name), target);
            }
        }
        Ok(())
    }

    /// Debian's PostgreSQL uses the system's time zones, others bring their own.
    fn add_time_zones(&mut self, installation: &Installation) -> Result<()> {
        let system = Path::new("/usr/share/zoneinfo");
        if system.join("UTC").exists() {
            return self
                .tree
                .folder_of_machine(&system.canonicalize().or_failed(|| "cannot read time zones")?, &|path| {
                    path.ends_with("localtime")
                });
        }
        if installation.share_dir.join("timezone").is_dir() {
            return Ok(());
        }
        Err(Error::failed("this machine has no time zones in `/usr/share/zoneinfo`, which PostgreSQL needs")
            .hint("install the package `tzdata`: `apt-get install tzdata`"))
    }

    /// Adds the locale `C.UTF-8`, and `en_US.utf8` as another name of it.
    ///
    /// The official image sets `en_US.utf8`, but its C library (musl) sorts every locale by code point. So the same order,
    /// under either name, is what `C.UTF-8` gives here, and a data folder made by one image opens in the other.
    fn add_locale(&mut self) -> Result<()> {
        let place = Path::new("/usr/lib/locale");
        let names = ["C.utf8", "C.UTF-8"];
        if let Some(locale) = names.iter().map(|name| place.join(name)).find(|locale| locale.is_dir()) {
            self.tree.folder_of_machine(&locale, &|_| false)?;
            self.tree.link(place.join("en_US.utf8"), locale);
            return Ok(());
        }
        let musl = Path::new("/lib").read_dir().into_iter().flatten().flatten();
        if musl.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("ld-musl-")) {
            return Ok(());
        }
        Err(Error::failed("this machine has no locale `C.UTF-8` in `/usr/lib/locale`")
            .hint("install the package `libc-bin`: `apt-get install libc-bin`"))
    }

    /// Adds the descriptions of common terminals, so that `psql` in the container can edit lines.
    fn add_terminals(&mut self) -> Result<()> {
        for folder in ["/lib/terminfo", "/usr/share/terminfo"].map(Path::new) {
            for terminal in
                ["d/dumb", "l/linux", "s/screen", "s/screen-256color", "t/tmux-256color", "x/xterm", "x/xterm-256color"]
            {
                let path = folder.join(terminal);
                if path.is_file() {
                    self.tree.file_of_machine(&path)?;
                }
            }
        }
        Ok(())
    }

    fn add_accounts_and_folders(&mut self) {
        let tree = &mut self.tree;
        tree.bytes(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/bash\n\
             nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n\
             postgres:x:70:70:PostgreSQL:/var/lib/postgresql:/bin/sh\n",
            0o644,
        );
        tree.bytes("/etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\npostgres:x:70:\n", 0o644);
        tree.bytes("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n", 0o644);
        tree.bytes("/usr/local/bin/docker-entrypoint.sh", ENTRYPOINT, 0o755);
        tree.folder("/docker-entrypoint-initdb.d", 0o755, 0);
        for folder in ["/dev", "/proc", "/sys", "/run", "/usr/sbin"] {
            tree.folder(folder, 0o755, 0);
        }
        tree.folder("/root", 0o700, 0);
        tree.folder("/tmp", 0o1777, 0);
        tree.folder("/var/tmp", 0o1777, 0);
        tree.link("/var/run", "/run");
        // Without it `initdb` reads every time zone's file to find out which one this is, which takes seconds where
        // the image's file system is slow.
        tree.link("/etc/localtime", "/usr/share/zoneinfo/UTC");
        // Modes as in the official image: whoever `--user` names can use them; the entrypoint narrows the data folder.
        tree.folder("/run/postgresql", 0o3777, SERVER_ID);
        tree.folder("/var/lib/postgresql", 0o755, SERVER_ID);
        tree.folder(DATA_FOLDER, 0o1777, SERVER_ID);
    }
}

fn find_tool(name: &str) -> Option<PathBuf> {
    TOOL_FOLDERS.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// The folders of the C library, where libraries that are opened late are.
fn folders_of_c_library(files: &BTreeSet<PathBuf>) -> BTreeSet<PathBuf> {
    let is_libc = |path: &&PathBuf| path.file_name().is_some_and(|name| name == "libc.so.6");
    files.iter().filter(is_libc).filter_map(|path| path.parent().map(Path::to_owned)).collect()
}

fn require_found(needs: &BTreeMap<PathBuf, Needs>) -> Result<()> {
    for (program, needs) in needs {
        if let Some(missing) = needs.missing.first() {
            return Err(Error::failed(format!(
                "`{}` needs `{missing}`, which this machine does not have",
                program.display()
            ))
            .hint("`apt-get install --fix-broken` mends packages that are half installed"));
        }
    }
    Ok(())
}

/// The sample that initdb makes `postgresql.conf` from, changed as the official image does: in a container the server must
/// listen beyond loopback.
fn listening_everywhere(sample: &str) -> Result<String> {
    let mut found = false;
    let mut lines: Vec<&str> = Vec::new();
    for line in sample.lines() {
        if line.trim_start_matches('#').starts_with("listen_addresses") {
            found = true;
            lines.push("listen_addresses = '*'");
        } else {
            lines.push(line);
        }
    }
    if found {
        return Ok(lines.join("\n") + "\n");
    }
    Err(Error::failed("`postgresql.conf.sample` has no line for `listen_addresses`")
        .hint("reinstall the package: `apt-get install --reinstall postgresql-15`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_listens_everywhere_and_keeps_the_rest() {
        let sample = "# top\n#listen_addresses = 'localhost'\t# what IP\n\t\t# comment\n#port = 5432\n";
        let changed = listening_everywhere(sample).unwrap();
        assert_eq!(changed, "# top\nlisten_addresses = '*'\n\t\t# comment\n#port = 5432\n");
        assert!(listening_everywhere("#port = 5432\n").is_err());
    }

    #[test]
    fn required_tools_hold_all_that_the_entrypoint_calls() {
        let have: Vec<&str> = REQUIRED_TOOLS.iter().flat_map(|(_, tools)| tools.iter().copied()).collect();
        for tool in ["bash", "chmod", "chown", "find", "gunzip", "id", "ls", "mkdir", "setpriv"] {
            assert!(ENTRYPOINT.contains(tool), "`{tool}` is no longer called: drop it here");
            assert!(have.contains(&tool), "`{tool}` is called by the entrypoint");
        }
    }
}

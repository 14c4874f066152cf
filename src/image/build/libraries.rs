//! The shared libraries that programs need, as the machine's own dynamic loader finds them (`ldd`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Context, Result};

/// What one program or library needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Needs {
    /// The files, the dynamic loader among them.
    pub(super) found: BTreeSet<PathBuf>,
    /// The names that this machine has no file for.
    pub(super) missing: BTreeSet<String>,
}

/// Asks for the libraries of all `files` at once (one call of `ldd` for 150 files takes under a second). Files that are not
/// ELF, such as shell scripts, need none.
pub(super) fn needed_by(files: &[PathBuf]) -> Result<BTreeMap<PathBuf, Needs>> {
    let mut binaries = Vec::new();
    for file in files {
        if is_elf(file)? {
            binaries.push(file);
        }
    }
    // `ldd` writes the `path:` headings that tell files apart only for two or more.
    let twice = binaries.first().into_iter().chain(&binaries);
    let output = Command::new("ldd")
        .args(twice)
        .env("LC_ALL", "C")
        .output()
        .or_failed(|| "cannot run `ldd`, which lists the libraries of a program (package `libc-bin`)")?;
    Ok(parse(&String::from_utf8_lossy(&output.stdout)))
}

/// Reads what `ldd` prints for two or more files.
fn parse(output: &str) -> BTreeMap<PathBuf, Needs> {
    let mut all: BTreeMap<PathBuf, Needs> = BTreeMap::new();
    let mut current = PathBuf::new();
    for line in output.lines() {
        let Some(line) = line.strip_prefix(['\t', ' ']) else {
            current = PathBuf::from(line.trim_end_matches(':'));
            all.entry(current.clone()).or_default();
            continue;
        };
        let needs = all.entry(current.clone()).or_default();
        let (name, place) = line.trim().split_once(" => ").unwrap_or((line.trim(), line.trim()));
        if place.starts_with("not found") {
            needs.missing.insert(name.to_owned());
        } else if place.starts_with('/') {
            let path = place.rsplit_once(" (0x").map_or(place, |(path, _)| path);
            needs.found.insert(PathBuf::from(path));
        }
    }
    all
}

fn is_elf(file: &Path) -> Result<bool> {
    let mut start = Vec::new();
    File::open(file)
        .and_then(|file| file.take(4).read_to_end(&mut start))
        .or_failed(|| format!("cannot read `{}`", file.display()))?;
    Ok(start == b"\x7fELF")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_the_loader_and_what_is_missing_are_told_apart() {
        let needs = parse(concat!(
            "/usr/bin/a:\n",
            "\tlinux-vdso.so.1 (0x00007f62a585b000)\n",
            "\tlibpq.so.5 => /lib/x86_64-linux-gnu/libpq.so.5 (0x00007f62a57db000)\n",
            "\tlibgone.so.1 => not found\n",
            "\t/lib64/ld-linux-x86-64.so.2 (0x00007f191abdb000)\n",
            "/usr/bin/b:\n",
            "\tstatically linked\n",
            "/usr/bin/c:\n",
            "\tnot a dynamic executable\n",
        ));
        let a = &needs[Path::new("/usr/bin/a")];
        let found: Vec<_> = a.found.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(found, ["/lib/x86_64-linux-gnu/libpq.so.5", "/lib64/ld-linux-x86-64.so.2"]);
        assert_eq!(a.missing.iter().collect::<Vec<_>>(), ["libgone.so.1"]);
        assert_eq!(needs[Path::new("/usr/bin/b")], Needs::default());
        assert_eq!(needs[Path::new("/usr/bin/c")], Needs::default());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_libraries_of_this_very_program_are_files() {
        let program = std::env::current_exe().unwrap();
        let needs = needed_by(std::slice::from_ref(&program)).unwrap();
        let needs = &needs[&program];
        assert!(!needs.found.is_empty());
        assert!(needs.found.iter().all(|library| library.is_file()), "{needs:?}");
    }
}

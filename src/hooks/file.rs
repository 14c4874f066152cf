//! A hook's file, and our block in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, ErrorKind, Result};

const BEGIN: &str = "# >>> tfdev: keeps one database state for each branch; `tfdev hooks remove` takes this out\n";
const END: &str = "# <<< tfdev\n";

/// The first line of a hook that is all ours.
const SHELL: &str = "#!/bin/sh\n";

/// Shells that can run our block.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "ash"];

/// A hook's file as it is to be.
pub(super) struct HookFile {
    path: PathBuf,
    /// `None`: there is to be no file.
    text: Option<String>,
}

impl HookFile {
    pub(super) fn read(path: &Path) -> Result<Self> {
        let shown = path.display();
        match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), text: None });
            }
            Ok(found) if found.is_file() => {}
            Ok(_) => return Err(foreign(path, "it is no file of its own")),
            Err(error) => return Err(error).or_failed(|| format!("cannot read `{shown}`")),
        }
        let bytes = fs::read(path).or_failed(|| format!("cannot read `{shown}`"))?;
        let text = String::from_utf8(bytes).map_err(|_| foreign(path, "it is no text"))?;
        Ok(Self { path: path.to_owned(), text: Some(text) })
    }

    /// Puts our block in, or in the place of an older one; says whether that changed anything. It comes before all else:
    /// other hooks like to end with `exec` or `exit`.
    pub(super) fn add(&mut self, block: &str) -> Result<bool> {
        let before = self.text.clone();
        self.remove();
        let text = self.text.take().unwrap_or_else(|| SHELL.to_owned());
        let (first, rest) = text.split_once('\n').map_or((text.as_str(), ""), |(first, rest)| (first, rest));
        if !is_shell(first) {
            return Err(foreign(&self.path, "it is no shell script"));
        }
        #[cfg(unix)]
        if before.is_some() && !is_executable(&self.path) {
            return Err(foreign(&self.path, "git does not run it, because it is not executable"));
        }
        let text = format!("{first}\n{BEGIN}{block}{END}{rest}");
        let changed = before.as_ref() != Some(&text);
        self.text = Some(text);
        Ok(changed)
    }

    /// Takes our block out; says whether there was one.
    pub(super) fn remove(&mut self) -> bool {
        let Some(text) = &self.text else { return false };
        let Some(begin) = text.find(BEGIN) else { return false };
        let Some(length) = text[begin..].find(END) else { return false };
        let rest = format!("{}{}", &text[..begin], &text[begin + length + END.len()..]);
        self.text = Some(rest).filter(|rest| rest != SHELL);
        true
    }

    /// Whether it has more than our block.
    pub(super) fn is_shared(&self) -> bool {
        let mut rest = Self { path: self.path.clone(), text: self.text.clone() };
        rest.remove();
        rest.text.is_some()
    }

    /// Writes the file, or removes it if nothing is to be in it.
    pub(super) fn write(&self) -> Result<()> {
        let what = || format!("cannot write `{}`", self.path.display());
        let Some(text) = &self.text else { return fs::remove_file(&self.path).or_failed(what) };
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder).or_failed(what)?;
        }
        let is_new = !self.path.exists();
        // Beside it and then renamed: git may want to run it meanwhile.
        let new = self.path.with_extension(format!("tfdev-{}", std::process::id()));
        let written = fs::write(&new, text).and_then(|()| take_mode(&new, &self.path, is_new));
        let named = written.and_then(|()| fs::rename(&new, &self.path));
        if named.is_err() {
            let _ = fs::remove_file(&new);
        }
        named.or_failed(what)
    }
}

/// Gives the new file the mode of the old one, or that of a program.
#[cfg(unix)]
fn take_mode(new: &Path, old: &Path, is_new: bool) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mode = if is_new { fs::Permissions::from_mode(0o755) } else { fs::metadata(old)?.permissions() };
    fs::set_permissions(new, mode)
}

#[cfg(not(unix))]
fn take_mode(_: &Path, _: &Path, _: bool) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o100 != 0)
}

/// Whether a script with this first line is run by a shell.
fn is_shell(first: &str) -> bool {
    let Some(command) = first.trim_end().strip_prefix("#!") else { return false };
    let mut words = command.split_whitespace().map(|word| word.rsplit('/').next().unwrap_or(word));
    let program = words.next().filter(|program| *program != "env").or_else(|| words.next());
    program.is_some_and(|program| SHELLS.contains(&program))
}

fn foreign(path: &Path, why: &str) -> Error {
    Error::new(ErrorKind::Refused, format!("the hook `{}` is left alone: {why}", path.display()))
        .hint("call it from there yourself: `tfdev hooks run post-checkout \"$@\" || :`")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(text: Option<&str>) -> HookFile {
        let path = Path::new("/nowhere/post-checkout").to_owned();
        HookFile { path, text: text.map(str::to_owned) }
    }

    #[test]
    fn the_block_comes_and_goes_and_leaves_the_rest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hooks/post-checkout");
        let mut new = HookFile::read(&path).unwrap();
        assert!(new.add("one\n").unwrap() && !new.is_shared());
        new.write().unwrap();
        let mut again = HookFile::read(&path).unwrap();
        assert!(!again.add("one\n").unwrap() && again.add("two\n").unwrap());
        again.write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap().matches(BEGIN).count(), 1);
        let mut last = HookFile::read(&path).unwrap();
        assert!(last.remove());
        last.write().unwrap();
        assert!(!path.exists());

        let own = "#!/usr/bin/env bash\nset -e\necho mine\nexit 3";
        fs::write(&path, own).unwrap();
        #[cfg(unix)]
        {
            assert!(HookFile::read(&path).unwrap().add("x\n").is_err(), "it is not executable");
            fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        let mut shared = HookFile::read(&path).unwrap();
        assert!(shared.add("x\n").unwrap() && shared.is_shared());
        shared.write().unwrap();
        let mut shared = HookFile::read(&path).unwrap();
        assert!(shared.remove());
        shared.write().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
    }

    #[test]
    fn only_a_shell_script_takes_the_block() {
        for first in ["#!/bin/sh", "#! /usr/bin/env bash", "#!/bin/dash -e", "#!/usr/local/bin/zsh\r"] {
            assert!(is_shell(first), "{first}");
        }
        for first in ["", "echo", "#!/usr/bin/env python3", "#!/usr/bin/node", "#!"] {
            assert!(!is_shell(first), "{first}");
        }
        assert_eq!(hook(Some("#!/usr/bin/python3\n")).add("x\n").unwrap_err().kind(), ErrorKind::Refused);
    }
}

//! Git hooks: one database state for each branch, by a `post-checkout` hook that people install.
//!
//! What must hold: what stands in a hook that is there stays as it is; our part is a block between two marks, and removing
//! it leaves the rest byte by byte. The hook never fails a checkout.

mod branch;
mod file;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use self::file::HookFile;
use crate::error::{Context, Error, ErrorKind, Result};

pub use branch::{Switched, post_checkout};

/// The hook that tells of a checkout.
const POST_CHECKOUT: &str = "post-checkout";

/// What `install` and `remove` found and did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HooksReport {
    /// The hook's file.
    pub file: PathBuf,
    /// Whether it was changed.
    pub changed: bool,
    /// Whether it has other parts than ours.
    pub shared: bool,
}

/// Adds the hook to the repository of `project_dir`. `program` is the tfdev that it calls.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no repository or no git; [`ErrorKind::Refused`] if the hook that is there is no
/// shell script of the repository's own.
pub fn install(project_dir: &Path, program: &Path) -> Result<HooksReport> {
    let program = program.to_str().ok_or_else(|| Error::bad_input("the path of this program is not valid UTF-8"))?;
    let program = shlex::try_quote(program).context(ErrorKind::BadInput, || "the path of this program has a NUL")?;
    let file = hooks_dir(project_dir)?.join(POST_CHECKOUT);
    let mut hook = HookFile::read(&file)?;
    let changed = hook.add(&block(&program))?;
    if changed {
        hook.write()?;
    }
    Ok(HooksReport { file, changed, shared: hook.is_shared() })
}

/// Takes the hook out of the repository of `project_dir`, and its file if nothing else is in it.
pub fn remove(project_dir: &Path) -> Result<HooksReport> {
    let file = hooks_dir(project_dir)?.join(POST_CHECKOUT);
    let mut hook = HookFile::read(&file)?;
    let changed = hook.remove();
    if changed {
        hook.write()?;
    }
    Ok(HooksReport { file, changed, shared: hook.is_shared() })
}

/// Our part of the hook. It reads nothing of what git or the other parts read, and never fails.
fn block(program: &str) -> String {
    format!(
        "if [ -x {program} ]; then\n    {program} hooks run {POST_CHECKOUT} \"$@\" </dev/null || :\nelif command -v tfdev \
         >/dev/null 2>&1; then\n    tfdev hooks run {POST_CHECKOUT} \"$@\" </dev/null || :\nfi\n"
    )
}

/// Where the hooks of the repository are: `core.hooksPath`, or the folder that all its worktrees share.
fn hooks_dir(project_dir: &Path) -> Result<PathBuf> {
    let path = git(project_dir, &["rev-parse", "--git-path", "hooks"])?;
    Ok(project_dir.join(path))
}

/// What git prints on one line.
fn git(project_dir: &Path, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.arg("-C").arg(project_dir).args(arguments).stdin(Stdio::null());
    // Inside a hook these would lead away from the folder.
    for name in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"] {
        command.env_remove(name);
    }
    let output = match command.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::new(ErrorKind::NotFound, "there is no `git` on this machine's PATH"));
        }
        output => output.or_failed(|| "cannot run `git`")?,
    };
    if !output.status.success() {
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::new(ErrorKind::NotFound, format!("git knows nothing of `{}`", project_dir.display()))
            .hint("run it in a checkout of a git repository")
            .caused_by(words));
    }
    let text = String::from_utf8(output.stdout).or_failed(|| "git printed what is not valid UTF-8")?;
    Ok(text.trim_end_matches(['\n', '\r']).to_owned())
}

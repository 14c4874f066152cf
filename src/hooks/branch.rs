//! What the hook does: the state of the branch that is left is kept as a snapshot, that of the branch that is entered is
//! restored if there is one; else the database stays as it is.
//!
//! What must hold: no state is lost, and none is kept under another branch's name. Which branch the present state belongs
//! to is on record, with the number of its database while branches are switched: after a kill the number tells whether
//! the database was swapped already.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::git;
use crate::config::Settings;
use crate::error::{Context, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord, private_file};
use crate::server::Running;
use crate::snapshot::{Snapshots, name};

/// How long a checkout waits for a login, or for another tfdev.
const LONGEST_WAIT: u64 = 15;

/// What the hook did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Switched {
    /// The branch that was left.
    pub from: String,
    /// The branch that was entered.
    pub to: String,
    /// Whether there was a state of the branch that was entered; else it goes on with that of the other one.
    pub restored: bool,
    /// How long it took.
    pub elapsed: Duration,
}

/// Which branch the project's database belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Owner {
    branch: String,
    /// A switch that has begun.
    switching: Option<Switching>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Switching {
    to: String,
    /// The number of the database before.
    oid: i64,
}

/// Does what is due after a checkout; `arguments` are git's: the commit before, the commit after, and `1` if branches
/// were switched. `None` if there is nothing to do: files were checked out, the branch is the same, HEAD is on no branch,
/// or the server does not run.
pub async fn post_checkout(settings: &Settings, arguments: &[String], events: &Events) -> Result<Option<Switched>> {
    let begin = Instant::now();
    if arguments.get(2).is_none_or(|flag| flag != "1") {
        return Ok(None);
    }
    let instance = Instance::of(settings);
    // The cheapest first: most checkouts have no server.
    if InstanceRecord::read(&instance, events)?.is_none() {
        return Ok(None);
    }
    let folder = &settings.project_dir;
    let Ok(to) = git(folder, &["symbolic-ref", "--short", "--quiet", "HEAD"]) else { return Ok(None) };
    let owner = read(&instance).or_else(|| {
        let before = git(folder, &["rev-parse", "--abbrev-ref", "@{-1}"]).ok()?;
        Some(Owner { branch: before, switching: None }).filter(|owner| !owner.branch.is_empty())
    });
    let Some(owner) = owner.filter(|owner| owner.branch != to || owner.switching.is_some()) else { return Ok(None) };
    let running = match Running::find(settings, events).await {
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NoEngine) => return Ok(None),
        running => running?,
    };
    let mut hurried = settings.clone();
    hurried.timeout_seconds.value = settings.timeout_seconds.value.min(LONGEST_WAIT);
    let snapshots = Snapshots::of(&running, &hurried, events)?;
    let branches = Branches { snapshots, instance: &instance };
    let owner = branches.recover(owner).await?;
    if owner.branch == to {
        return Ok(None);
    }
    let restored = branches.switch(&owner.branch, &to).await?;
    Ok(Some(Switched { from: owner.branch, to, restored, elapsed: begin.elapsed() }))
}

/// The states of branches.
struct Branches<'a> {
    snapshots: Snapshots<'a>,
    instance: &'a Instance,
}

impl Branches<'_> {
    /// Keeps the present state for `from`, and goes to that of `to`. Returns whether there was one.
    async fn switch(&self, from: &str, to: &str) -> Result<bool> {
        let known = self.has(&of_branch(to)).await?;
        if !known || !self.snapshots.keeps_automatic() {
            self.keep(from).await?;
        }
        if known {
            let oid = self.snapshots.database_number().await?;
            let switching = Some(Switching { to: to.to_owned(), oid });
            write(self.instance, &Owner { branch: from.to_owned(), switching })?;
            let kept_as = self.snapshots.restore(&of_branch(to)).await?.kept_as;
            if let Some(kept_as) = kept_as {
                self.replace(from, &kept_as).await?;
            }
        }
        write(self.instance, &Owner { branch: to.to_owned(), switching: None })?;
        Ok(known)
    }

    /// Finishes a switch that was cut off.
    async fn recover(&self, owner: Owner) -> Result<Owner> {
        let Some(switching) = &owner.switching else { return Ok(owner) };
        let swapped = self.snapshots.database_number().await? != switching.oid;
        if swapped {
            // The state before is the newest that was kept by itself, unless it has got its name already.
            let kept = self.snapshots.overview().await?.snapshots;
            let newest = kept.iter().filter(|kept| kept.automatic).max_by_key(|kept| kept.created_at);
            let note = restore_note(&switching.to);
            if let Some(newest) = newest.filter(|newest| newest.note.as_deref() == Some(&note)) {
                self.replace(&owner.branch, &newest.name).await?;
            }
        }
        let branch = if swapped { switching.to.clone() } else { owner.branch.clone() };
        let owner = Owner { branch, switching: None };
        write(self.instance, &owner)?;
        Ok(owner)
    }

    async fn has(&self, name: &str) -> Result<bool> {
        Ok(self.snapshots.overview().await?.snapshots.iter().any(|snapshot| snapshot.name == name))
    }

    /// Keeps the present state as that of `branch`.
    async fn keep(&self, branch: &str) -> Result<()> {
        let new = format!("{} (new)", of_branch(branch));
        // Left by a hook that was killed here.
        if self.has(&new).await? {
            self.snapshots.delete(std::slice::from_ref(&new)).await?;
        }
        self.snapshots.create(Some(&new), Some("kept by the git hook")).await?;
        self.replace(branch, &new).await
    }

    /// Makes the snapshot `new` the state of `branch`.
    async fn replace(&self, branch: &str, new: &str) -> Result<()> {
        let name = of_branch(branch);
        if self.has(&name).await? {
            self.snapshots.delete(std::slice::from_ref(&name)).await?;
        }
        self.snapshots.rename(new, &name).await.map(drop)
    }
}

/// The name of a branch's snapshot. A branch's name may be longer than a snapshot's.
fn of_branch(branch: &str) -> String {
    let full = format!("branch {branch}");
    if name::check(&full).is_ok() && full.chars().count() <= 190 {
        return full;
    }
    let hash = crate::spec::hexadecimal(&Sha256::digest(branch)[..8]);
    let begin: String = branch.chars().filter(|letter| !letter.is_control()).take(150).collect();
    format!("branch {begin}… {hash}")
}

/// What `restore` notes of the state before.
fn restore_note(branch: &str) -> String {
    format!("before the restore of `{}`", of_branch(branch))
}

fn path(instance: &Instance) -> PathBuf {
    instance.state_dir.join("branch.json")
}

/// Which branch the database belongs to; `None` if that is not known.
fn read(instance: &Instance) -> Option<Owner> {
    serde_json::from_slice(&std::fs::read::<&Path>(&path(instance)).ok()?).ok()
}

fn write(instance: &Instance, owner: &Owner) -> Result<()> {
    let text = serde_json::to_vec(owner).or_failed(|| "cannot note the branch of the database")?;
    private_file::write(&path(instance), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_branch_has_a_name_of_its_own_for_its_snapshot() {
        assert_eq!(of_branch("feature/ä"), "branch feature/ä");
        let (one, other) = ("x".repeat(240), "x".repeat(241));
        assert!(name::check(&of_branch(&one)).is_ok());
        assert_ne!(of_branch(&one), of_branch(&other));
    }
}

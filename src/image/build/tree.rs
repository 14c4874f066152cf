//! The file tree of an image before it becomes a tar: which paths there are and where the bytes of each come from.
//!
//! What must hold: paths are unique, sorted, and relative to the root; every parent of a path is in the tree before it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// A folder.
    Folder,
    /// A symbolic link to this target.
    Link(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// The bytes of a file of this machine, which had this many when the tree was made.
    File { source: PathBuf, size: u64 },
}

/// A path's content, permissions and owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) content: Content,
    /// The permission bits.
    pub(super) mode: u32,
    /// The user and the group, which are the same number for all that an image holds.
    pub(super) owner: u32,
}

/// The entries by path.
#[derive(Debug, Default)]
pub(super) struct Tree {
    entries: BTreeMap<PathBuf, Entry>,
}

impl Tree {
    /// The entries, parents before children.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&Path, &Entry)> {
        self.entries.iter().map(|(path, entry)| (path.as_path(), entry))
    }

    /// Whether there is something at `path` (absolute, as inside the image).
    pub(super) fn contains(&self, path: &Path) -> bool {
        self.entries.contains_key(relative(path))
    }

    /// Adds a folder with permissions and owner, or changes those of one that is there.
    pub(super) fn folder(&mut self, path: impl AsRef<Path>, mode: u32, owner: u32) {
        self.put(path.as_ref(), Entry { content: Content::Folder, mode, owner });
    }

    /// Adds a file with these bytes, owned by root.
    pub(super) fn bytes(&mut self, path: impl AsRef<Path>, bytes: impl Into<Vec<u8>>, mode: u32) {
        self.put(path.as_ref(), Entry { content: Content::Bytes(bytes.into()), mode, owner: 0 });
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.put(path.as_ref(), Entry { content: Content::Link(target.into()), mode: 0o777, owner: 0 });
    }

    /// Adds a file of this machine under the path that it has here, and, if that path leads over a symbolic link, the link.
    /// Returns the file's canonical path.
    pub(super) fn file_of_machine(&mut self, path: &Path) -> Result<PathBuf> {
        let target = path.canonicalize().or_failed(|| format!("cannot find `{}`", path.display()))?;
        if !self.contains(&target) {
            self.copy(&target, &target)?;
        }
        let name = in_canonical_folder(path)?;
        if name != target && !self.contains(&name) {
            self.link(&name, &target);
        }
        Ok(target)
    }

    /// Adds the bytes of `source`, a file of this machine, at `path`.
    pub(super) fn copy(&mut self, source: &Path, path: &Path) -> Result<()> {
        let metadata = source.metadata().or_failed(|| format!("cannot read `{}`", source.display()))?;
        if !metadata.is_file() {
            return Err(Error::failed(format!("`{}` is no regular file", source.display())));
        }
        let mode = if is_executable(&metadata) { 0o755 } else { 0o644 };
        let content = Content::File { source: source.to_owned(), size: metadata.len() };
        self.put(path, Entry { content, mode, owner: 0 });
        Ok(())
    }

    /// Adds all below the folder `root` of this machine except where `leave_out` says so. Links that stay inside the folder
    /// stay links; the bytes of others are copied; those that lead nowhere are left out.
    pub(super) fn folder_of_machine(&mut self, root: &Path, leave_out: &dyn Fn(&Path) -> bool) -> Result<()> {
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let unreadable = || format!("cannot read the folder `{}`", folder.display());
            for entry in folder.read_dir().or_failed(unreadable)? {
                let path = entry.or_failed(unreadable)?.path();
                if leave_out(&path) {
                    continue;
                }
                let metadata = path.symlink_metadata().or_failed(|| format!("cannot read `{}`", path.display()))?;
                if metadata.is_dir() {
                    folders.push(path);
                } else if metadata.is_symlink() {
                    self.link_or_copy(root, &path)?;
                } else if metadata.is_file() {
                    self.copy(&path, &path)?;
                }
            }
        }
        Ok(())
    }

    fn link_or_copy(&mut self, root: &Path, path: &Path) -> Result<()> {
        let Ok(target) = path.canonicalize() else { return Ok(()) };
        if target.starts_with(root) {
            self.link(path, target);
        } else if target.is_file() {
            self.copy(&target, path)?;
        }
        Ok(())
    }

    fn put(&mut self, path: &Path, entry: Entry) {
        let path = relative(path);
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            let folder = Entry { content: Content::Folder, mode: 0o755, owner: 0 };
            self.entries.entry(parent.to_owned()).or_insert(folder);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

/// The path with its folder canonical and its last name as it is.
fn in_canonical_folder(path: &Path) -> Result<PathBuf> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default();
    Ok(folder.canonicalize().or_failed(|| format!("cannot find `{}`", folder.display()))?.join(name))
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

#[cfg(unix)]
fn is_executable(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0
}

/// Never asked for: no Windows machine has the platform that the image is for.
#[cfg(not(unix))]
fn is_executable(_: &std::fs::Metadata) -> bool {
    true
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn parents_come_before_children_and_a_link_brings_its_file() {
        let machine = tempfile::tempdir().unwrap();
        let root = machine.path().canonicalize().unwrap();
        std::fs::create_dir(root.join("real")).unwrap();
        std::fs::write(root.join("real/library.so.1.2"), "x").unwrap();
        std::os::unix::fs::symlink("library.so.1.2", root.join("real/library.so.1")).unwrap();
        std::os::unix::fs::symlink("real", root.join("merged")).unwrap();

        let mut tree = Tree::default();
        tree.file_of_machine(&root.join("merged/library.so.1")).unwrap();

        let paths: Vec<_> = tree.entries().map(|(path, _)| Path::new("/").join(path)).collect();
        assert!(paths.is_sorted());
        assert!(paths.contains(&root), "the parents are there");
        let link = tree.entries.get(relative(&root.join("real/library.so.1"))).unwrap();
        assert_eq!(link.content, Content::Link(root.join("real/library.so.1.2")));
        assert!(tree.contains(&root.join("real/library.so.1.2")));
        assert!(!tree.contains(&root.join("merged/library.so.1")), "a folder that is a link must not hold entries");
    }

    #[test]
    fn folders_are_copied_with_links_kept_inside_and_followed_outside() {
        let machine = tempfile::tempdir().unwrap();
        let root = machine.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("share/sub")).unwrap();
        std::fs::write(root.join("outside"), "outside").unwrap();
        std::fs::write(root.join("share/sub/file"), "inside").unwrap();
        std::fs::write(root.join("share/skipped"), "").unwrap();
        let link =
            |target: &str, name: &str| std::os::unix::fs::symlink(target, root.join("share").join(name)).unwrap();
        link("sub/file", "inner");
        link("../outside", "outer");
        link("nowhere", "broken");

        let mut tree = Tree::default();
        tree.folder_of_machine(&root.join("share"), &|path| path.ends_with("skipped")).unwrap();

        let content =
            |name: &str| tree.entries.get(relative(&root.join("share").join(name))).map(|e| e.content.clone());
        assert_eq!(content("inner"), Some(Content::Link(root.join("share/sub/file"))));
        assert_eq!(content("outer"), Some(Content::File { source: root.join("outside"), size: 7 }));
        assert_eq!(content("broken"), None);
        assert_eq!(content("skipped"), None);
    }
}

//! The archive that the daemon loads: one layer, the image's configuration and a manifest.
//!
//! The archive is made by us rather than by the daemon's builder (`POST /build`) or import (`POST /images/create`) because
//! then the image is exactly what is written here: the builder is on its way out of newer engines, and import does not take
//! `STOPSIGNAL` in older ones. Every engine, Podman's included, loads archives.
//!
//! What must hold: the same tree gives the same bytes (sorted, one fixed time, root's), hence the same image everywhere.

use std::io::{self, Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::contents::DATA_FOLDER;
use super::tree::{Content, Entry, Tree};
use crate::image::{CONTENTS_LABEL, OFFLINE_LABEL, VERSION_LABEL};

/// What is known about a layer once it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Layer {
    /// SHA-256 of its tar, 64 hexadecimal digits.
    pub(super) digest: String,
    /// The size of its tar in bytes.
    pub(super) size: u64,
}

/// What the configuration is made from.
#[derive(Debug)]
pub(super) struct Description<'a> {
    /// The version of PostgreSQL, for example `15.18`.
    pub(super) version: &'a str,
    /// Docker's name of the processor, for example `amd64`.
    pub(super) architecture: &'a str,
    /// When it was made (RFC 3339). Must be the same for the same contents.
    pub(super) created: &'a str,
}

/// An image's configuration, ready to be written.
#[derive(Debug)]
pub(super) struct Configuration {
    /// The JSON document.
    pub(super) json: Vec<u8>,
    /// The hash over it (before this very label went in) and so over the layer.
    pub(super) contents: String,
}

/// Reads the whole tree once for the layer's digest and size.
pub(super) fn measure(tree: &Tree, progress: &mut dyn FnMut(u64)) -> io::Result<Layer> {
    let mut sink = Measure { hasher: Sha256::new(), size: 0, progress };
    write_layer(tree, &mut sink)?;
    Ok(Layer { digest: hexadecimal(&sink.hasher.finalize()), size: sink.size })
}

struct Measure<'a> {
    hasher: Sha256,
    size: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Write for Measure<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        (self.progress)(self.size);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes the configuration: the official image's contract, with our labels.
pub(super) fn configuration(description: &Description<'_>, layer: &Layer) -> Configuration {
    let document = |contents: &str| {
        serde_json::json!({
            "architecture": description.architecture,
            "os": "linux",
            "created": description.created,
            "config": {
                "Entrypoint": ["docker-entrypoint.sh"],
                "Cmd": ["postgres"],
                "Env": [
                    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                    // Not `en_US.utf8`: few machines have it, and where the C library gives a locale a version (glibc
                    // does, musl does not) the two images would warn about each other's data folders.
                    "LANG=C.UTF-8",
                    "PG_MAJOR=15",
                    format!("PG_VERSION={}", description.version),
                    format!("PGDATA={DATA_FOLDER}"),
                ],
                "Volumes": { DATA_FOLDER: {} },
                "ExposedPorts": { "5432/tcp": {} },
                "StopSignal": "SIGINT",
                "Labels": {
                    OFFLINE_LABEL: "offline",
                    VERSION_LABEL: description.version,
                    CONTENTS_LABEL: contents,
                },
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.digest)] },
            "history": [{ "created": description.created, "created_by": "tfdev image build" }],
        })
    };
    let contents = hexadecimal(&Sha256::digest(document("").to_string()));
    Configuration { json: document(&contents).to_string().into_bytes(), contents }
}

/// Writes the archive. `layer` is what [`measure`] gave for the same tree.
///
/// # Errors
///
/// Those of reading the machine's files and of writing, and one that says so if a file has changed since it was measured.
pub(super) fn write_archive(
    tree: &Tree,
    layer: &Layer,
    configuration: &Configuration,
    reference: &str,
    output: &mut dyn Write,
) -> io::Result<()> {
    let layer_name = format!("{}/layer.tar", layer.digest);
    let configuration_name = format!("{}.json", hexadecimal(&Sha256::digest(&configuration.json)));
    let manifest = serde_json::json!([
        { "Config": configuration_name, "RepoTags": [reference], "Layers": [layer_name] }
    ]);
    let mut archive = tar::Builder::new(output);
    append(&mut archive, &configuration_name, &configuration.json)?;
    append(&mut archive, "manifest.json", manifest.to_string().as_bytes())?;

    // The layer's size is known, so its tar can be written straight into the outer one.
    let mut header = header(0o644, 0, tar::EntryType::Regular);
    header.set_path(&layer_name)?;
    header.set_size(layer.size);
    header.set_cksum();
    let output = archive.get_mut();
    output.write_all(header.as_bytes())?;
    let mut counted = Counted { output, written: 0 };
    write_layer(tree, &mut counted)?;
    if counted.written != layer.size {
        return Err(changed(Path::new("a file of this machine")));
    }
    let padding = usize::try_from((512 - layer.size % 512) % 512).unwrap_or_default();
    archive.get_mut().write_all(&[0; 512][..padding])?;
    archive.finish()?;
    archive.get_mut().flush()
}

struct Counted<'a> {
    output: &'a mut dyn Write,
    written: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.output.write(bytes)?;
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

/// Writes the tree as a tar.
fn write_layer(tree: &Tree, output: &mut dyn Write) -> io::Result<()> {
    let mut layer = tar::Builder::new(output);
    for (path, entry) in tree.entries() {
        write_entry(&mut layer, path, entry)?;
    }
    layer.finish()
}

fn write_entry(layer: &mut tar::Builder<&mut dyn Write>, path: &Path, entry: &Entry) -> io::Result<()> {
    let header = |kind| header(entry.mode, entry.owner, kind);
    match &entry.content {
        Content::Folder => layer.append_data(&mut header(tar::EntryType::Directory), path, io::empty()),
        Content::Link(target) => layer.append_link(&mut header(tar::EntryType::Symlink), path, target),
        Content::Bytes(bytes) => {
            let mut header = header(tar::EntryType::Regular);
            header.set_size(bytes.len() as u64);
            layer.append_data(&mut header, path, bytes.as_slice())
        }
        Content::File { source, size } => {
            let file = std::fs::File::open(source).map_err(|error| {
                io::Error::new(error.kind(), format!("cannot read `{}`: {error}", source.display()))
            })?;
            if file.metadata()?.len() != *size {
                return Err(changed(source));
            }
            let mut header = header(tar::EntryType::Regular);
            header.set_size(*size);
            layer.append_data(&mut header, path, file.take(*size))
        }
    }
}

fn header(mode: u32, owner: u32, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(owner.into());
    header.set_gid(owner.into());
    header.set_mtime(0);
    header.set_size(0);
    header
}

fn append(archive: &mut tar::Builder<&mut dyn Write>, name: &str, bytes: &[u8]) -> io::Result<()> {
    let mut header = header(0o644, 0, tar::EntryType::Regular);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes)
}

fn changed(path: &Path) -> io::Error {
    io::Error::other(format!("`{}` changed while the image was built; run the build again", path.display()))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small_tree() -> Tree {
        let mut tree = Tree::default();
        tree.folder("/data", 0o1777, 70);
        tree.bytes("/etc/passwd", "root", 0o644);
        tree.link("/bin", "usr/bin");
        tree
    }

    fn describe() -> Description<'static> {
        Description { version: "15.18", architecture: "amd64", created: "2026-05-12T00:00:00Z" }
    }

    fn archive_of(tree: &Tree) -> (Layer, Vec<u8>) {
        let layer = measure(tree, &mut |_| ()).unwrap();
        let configuration = configuration(&describe(), &layer);
        let mut archive = Vec::new();
        write_archive(tree, &layer, &configuration, "a/b:c", &mut archive).unwrap();
        (layer, archive)
    }

    #[test]
    fn the_same_tree_gives_the_same_bytes() {
        assert_eq!(archive_of(&small_tree()), archive_of(&small_tree()));
        let mut other = small_tree();
        other.bytes("/etc/passwd", "toor", 0o644);
        assert_ne!(archive_of(&small_tree()).0.digest, archive_of(&other).0.digest);
    }

    #[test]
    fn the_archive_holds_the_layer_that_its_configuration_names() {
        let (layer, archive) = archive_of(&small_tree());
        let mut names = Vec::new();
        for entry in tar::Archive::new(archive.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().to_string_lossy().into_owned();
            if name.ends_with("layer.tar") {
                let mut bytes = Vec::new();
                entry.read_to_end(&mut bytes).unwrap();
                assert_eq!(hexadecimal(&Sha256::digest(&bytes)), layer.digest);
                let mut inner = tar::Archive::new(bytes.as_slice());
                let owners: Vec<_> = inner
                    .entries()
                    .unwrap()
                    .map(|entry| {
                        let entry = entry.unwrap();
                        let header = entry.header();
                        (
                            entry.path().unwrap().to_string_lossy().into_owned(),
                            header.uid().unwrap(),
                            header.mode().unwrap(),
                        )
                    })
                    .collect();
                assert!(owners.contains(&("data".to_owned(), 70, 0o1777)), "{owners:?}");
            }
            names.push(name);
        }
        assert_eq!(names.len(), 3, "{names:?}");
        assert_eq!(names[2], format!("{}/layer.tar", layer.digest));
    }

    #[test]
    fn a_file_that_changes_after_it_was_measured_fails_the_build() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("library.so");
        std::fs::write(&file, "before").unwrap();
        let mut tree = Tree::default();
        tree.copy(&file, Path::new("/library.so")).unwrap();
        let layer = measure(&tree, &mut |_| ()).unwrap();
        std::fs::write(&file, "afterwards").unwrap();
        let error =
            write_archive(&tree, &layer, &configuration(&describe(), &layer), "a", &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("changed while the image was built"), "{error}");
    }

    #[test]
    fn the_contents_hash_follows_the_configuration_too() {
        let layer = measure(&small_tree(), &mut |_| ()).unwrap();
        let one = configuration(&describe(), &layer);
        let two = configuration(&Description { version: "15.19", ..describe() }, &layer);
        assert_ne!(one.contents, two.contents);
        assert!(String::from_utf8(one.json).unwrap().contains(&one.contents));
    }
}

//! Places at which a test can end or stop the program, to see what is left.
//!
//! What must hold: each place is named in [`POINTS`], in the order in which a command comes by; a test compares the list
//! with the code. In a release build a point is nothing at all. In a debug build the variable `TFDEV_FAULT_POINT` orders one:
//! `NAME=kill` ends the process there as `kill -9` would, `NAME=pause:FILE` makes FILE and waits until somebody removes
//! it.

/// All points.
pub const POINTS: &[&str] = &[
    "up.change.intent",
    "up.change.started",
    "up.change.ready",
    "up.change.failed",
    "snapshot.locked",
    "snapshot.sweep.marked",
    "snapshot.create.intent",
    "snapshot.create.closing",
    "clone.working",
    "snapshot.create.copied",
    "snapshot.create.noted",
    "snapshot.base.intent",
    "snapshot.base.made",
    "snapshot.base.migrated",
    "snapshot.base.filled",
    "snapshot.base.ready",
    "snapshot.restore.intent",
    "snapshot.restore.copied",
    "snapshot.restore.checked",
    "snapshot.restore.prepared",
    "snapshot.swap.locked",
    "snapshot.swap.renamed",
    "snapshot.swap.committed",
    "snapshot.undo.begin",
    "snapshot.rename.begin",
    "snapshot.delete.marked",
    "snapshot.delete.dropped",
    "snapshot.export.opened",
    "snapshot.import.intent",
    "snapshot.import.created",
    "snapshot.import.copied",
    "snapshot.import.restored",
    "snapshot.import.adopted",
    "snapshot.background.intent",
    "snapshot.background.sent",
    "fresh.template.intent",
    "fresh.template.made",
    "fresh.template.filled",
    "fresh.template.closed",
    "fresh.make.intent",
    "fresh.make.copied",
    "fresh.sweep.marked",
    "fresh.reuse.closed",
    "fresh.empty.deleted",
    "fresh.empty.vacuumed",
    "fresh.sweep.dropped",
    "backup.ship.put",
    "backup.ship.stored",
    "backup.logical.begun",
    "backup.physical.begun",
    "backup.full.stored",
    "backup.restore.intent",
    "backup.restore.filled",
    "backup.restore.promoted",
    "backup.replace.stopped",
    "backup.replace.prepared",
    "backup.replace.exchanged",
    "backup.verify.restored",
    "backup.agent.made",
    "backup.forget.deleted",
];

/// Does what the test ordered for this place; nothing otherwise.
#[cfg(all(debug_assertions, unix))]
pub(crate) async fn point(name: &'static str) {
    use std::time::Duration;
    debug_assert!(POINTS.contains(&name), "`{name}` is not listed");
    let Some(order) = crate::config::fault_point() else { return };
    let Some((place, what)) = order.split_once('=') else { return };
    if place != name {
        return;
    }
    match what.split_once(':') {
        None if what == "kill" => {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            // The signal is on its way.
            std::future::pending::<()>().await;
        }
        Some(("pause", file)) => {
            let file = std::path::Path::new(file);
            if std::fs::write(file, name).is_ok() {
                while file.exists() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        }
        _ => {}
    }
}

/// A release build has no such places.
#[cfg(not(all(debug_assertions, unix)))]
#[expect(clippy::unused_async, reason = "the other build waits here")]
pub(crate) async fn point(_: &'static str) {}

#[cfg(test)]
mod tests {
    use super::POINTS;
    use std::path::Path;

    fn sources(folder: &Path, found: &mut String) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("fault.rs") {
                found.push_str(&std::fs::read_to_string(path).unwrap());
            }
        }
    }

    #[test]
    fn the_list_names_exactly_the_points_in_the_code() {
        let mut text = String::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut text);
        let mut used: Vec<&str> =
            text.split("fault::point(\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        used.sort_unstable();
        used.dedup();
        let mut listed = POINTS.to_vec();
        listed.sort_unstable();
        assert_eq!(used, listed);
    }
}

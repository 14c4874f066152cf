//! On PostgreSQL 15 of this machine.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::{DANGEROUS, edit_record};
use crate::native::Native;
use crate::support::{one, query};

const ANOTHER: &str = "00000000-0000-4000-8000-000000000000";

/// Starts the instance `other`; gives its URL and its data folder.
fn start_other(native: &Native) -> (String, PathBuf) {
    let other = native.run(&["up", "--json", "--instance", "other", "--profile", "dev", "--dataset", "small"]).ok();
    let other = other.json();
    (other["url"].as_str().unwrap().to_owned(), PathBuf::from(other["data_dir"].as_str().unwrap()))
}

fn swap(one: &Path, two: &Path) {
    let aside = one.with_file_name("aside");
    for (from, to) in [(one, aside.as_path()), (two, one), (&aside, two)] {
        std::fs::rename(from, to).unwrap();
    }
}

#[test]
fn two_instances_whose_data_folders_were_swapped_are_refused_and_neither_is_removed() {
    for native in Native::each() {
        native.up();
        let (_, theirs) = start_other(&native);
        let ours = native.data();
        native.run(&["down", "--all"]).ok();
        swap(&ours, &theirs);
        for command in DANGEROUS {
            native.run(command).exits(5).says("belongs to the instance `other`");
        }
        swap(&ours, &theirs);
        native.up();
        assert_eq!(native.tasks(), "50");
    }
}

#[test]
fn a_record_of_another_identity_stops_every_command() {
    for native in Native::each() {
        let up = native.up();
        let pid = native.pid();
        let folder = native.env.instance_dir();
        let id = std::fs::read_to_string(folder.join("instance.json")).unwrap();
        edit_record(&folder, |record| record["uuid"] = json!(ANOTHER));
        for command in DANGEROUS {
            native.run(command).exits(5).says(ANOTHER).says("instance.json");
        }
        std::fs::write(folder.join("instance.json"), id).unwrap();
        assert_eq!(native.pid(), pid, "it runs on");
        assert_eq!(one(up["url"].as_str().unwrap(), "SELECT coalesce(to_regclass('written')::text, 'none')"), "none");
    }
}

#[test]
fn another_server_on_the_port_is_refused_before_any_write() {
    for native in Native::each() {
        native.up();
        let (url, theirs) = start_other(&native);
        query(&url, "DELETE FROM tasks");
        // The pid file says the other server's port, as if that one had got it.
        let (ours, line) = (native.data().join("postmaster.pid"), 3);
        let port = |file: &Path| std::fs::read_to_string(file).unwrap().lines().nth(line).unwrap().to_owned();
        let (own, other) = (port(&ours), port(&theirs.join("postmaster.pid")));
        let text = std::fs::read_to_string(&ours).unwrap();
        let lines: Vec<_> = text.lines().enumerate().map(|(at, text)| if at == line { &other } else { text }).collect();
        std::fs::write(&ours, lines.join("\n") + "\n").unwrap();
        assert_ne!(own, other);
        for command in &DANGEROUS[1..4] {
            native.run(command).exits(5).says("it is another server").says("nothing was written");
        }
        std::fs::write(&ours, text).unwrap();
        assert_eq!(one(&url, "SELECT count(*) FROM tasks"), "0");
        assert_eq!(one(&url, "SELECT coalesce(to_regclass('written')::text, 'none')"), "none");
        native.run(&["migrate"]).ok();
    }
}

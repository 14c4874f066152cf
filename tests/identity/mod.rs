//! Whose server it is: parts that look like the instance's own and are another's are refused by every command that would
//! write, stop or remove, with what was found; and nothing is changed.

mod docker;
mod native;

use std::path::Path;

use serde_json::Value;

/// Every command that writes to a server, stops it or removes it.
const DANGEROUS: [&[&str]; 6] = [
    &["up", "--dataset", "small"],
    &["migrate"],
    &["seed", "--dataset", "small", "--replace", "--yes"],
    &["psql", "--", "-c", "CREATE TABLE written ()"],
    &["down"],
    &["destroy", "--yes"],
];

/// Changes the record in the folder of an instance.
fn edit_record(folder: &Path, change: impl FnOnce(&mut Value)) {
    let file = folder.join("instance.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(file, record.to_string()).unwrap();
}

/// Takes what names the server out of a record.
fn forget_server(record: &mut Value) {
    record.as_object_mut().unwrap().remove("system_identifier").unwrap();
}

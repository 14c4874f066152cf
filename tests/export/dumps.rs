//! Dumps that no honest export would hold.

use std::path::Path;

use super::{Side, pack, postgres};
use crate::support::query;

/// A dump of what `sql` makes as the superuser in a database of its own.
pub(super) fn dump_of(side: &Side<'_>, sql: &str) -> Vec<u8> {
    query(&side.superuser("postgres"), "CREATE DATABASE enemy");
    query(&side.superuser("enemy"), sql);
    let dump = postgres("pg_dump", &["--format=custom", "--compress=0", "--dbname", &side.superuser("enemy")]);
    query(&side.superuser("postgres"), "DROP DATABASE enemy");
    dump
}

/// A table whose CHECK runs `statement` when a row comes in.
pub(super) fn with_check(side: &Side<'_>, statement: &str) -> Vec<u8> {
    // pg_dump writes the data as it is, so what the function does last is done by an import.
    let sql = format!(
        "CREATE FUNCTION evil(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         CREATE TABLE t (n integer CHECK (evil(n))); INSERT INTO t VALUES (1);
         CREATE OR REPLACE FUNCTION evil(integer) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN {statement}; RETURN true; END'"
    );
    dump_of(side, &sql)
}

/// Replaces the first `before` in a dump by a text of the same length.
pub(super) fn patched(dump: &[u8], before: &str, after: &str) -> Vec<u8> {
    let at = dump.windows(before.len()).position(|window| window == before.as_bytes()).expect("it is in the dump");
    let mut after = after.as_bytes().to_vec();
    assert!(after.len() <= before.len());
    after.resize(before.len(), b' ');
    [&dump[..at], &after, &dump[at + before.len()..]].concat()
}

/// A file whose restore takes for ever.
pub(super) fn slow_restore(side: &Side<'_>, like: &Path, file: &Path) {
    pack(&with_check(side, "PERFORM pg_sleep(4321)"), like, file);
}

//! § Schema Overview: each line of the diagram, against the server's catalog.

use std::collections::BTreeMap;
use std::time::Instant;

use sqlx::{PgConnection, Row as _};

use super::source::{COLUMNS, Column, Key, types};
use super::{Bench, Row, Schema, Section, Verdict};
use crate::error::{Context, Result};
use crate::provision;

/// A column as the server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    kind: String,
    not_null: bool,
    primary: bool,
    unique: bool,
    /// The column that a valid foreign key of this one column names, as `table.column`.
    references: Option<String>,
}

/// The columns by `table.column`.
type Columns = BTreeMap<(String, String), Found>;

/// The columns of the tables that an unqualified name finds, with their keys of one column.
const QUESTION: &str = "\
    SELECT c.relname::text, a.attname::text, format_type(a.atttypid, NULL), a.attnotnull, \
      EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND i.indisvalid \
              AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum), \
      EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indisvalid \
              AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum AND i.indpred IS NULL), \
      (SELECT r.relname || '.' || f.attname FROM pg_constraint k \
       JOIN pg_class r ON r.oid = k.confrelid JOIN pg_attribute f ON f.attrelid = r.oid AND f.attnum = k.confkey[1] \
       WHERE k.conrelid = c.oid AND k.contype = 'f' AND k.convalidated AND k.conkey = ARRAY[a.attnum] LIMIT 1) \
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
    WHERE c.relkind IN ('r', 'p') AND pg_table_is_visible(c.oid) AND c.relname = ANY($1)";

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    let looked = match &bench.schema {
        Schema::TaskFlow => Some(look(bench).await),
        Schema::Own(_) => None,
    };
    let of = |verdict: &dyn Fn(&Columns) -> Verdict| match (&looked, &bench.schema) {
        (Some(Ok(found)), _) => verdict(found),
        (Some(Err(error)), _) => Verdict::fail("", "", super::full_text(error)),
        (None, Schema::Own(place)) => {
            Verdict::not_applicable("", "", format!("the project has a schema of its own ({place})"))
        }
        (None, Schema::TaskFlow) => Verdict::fail("", "", "the schema was not looked at"),
    };
    let mut rows: Vec<Row> = COLUMNS
        .iter()
        .map(|column| {
            let name = format!("{}.{}", column.table, column.name);
            let key = match column.key {
                Key::None => "",
                Key::Primary => " PK",
                Key::Unique => " UK",
                Key::Foreign => " FK",
            };
            of(&|found| verdict(column, found)).row(Section::Schema, name, format!("{}{key}", column.kind), begin)
        })
        .collect();
    rows.push(of(&relation).row(
        Section::Schema,
        "users ||--o{ tasks",
        "each task has one user, each user any number of tasks",
        begin,
    ));
    rows
}

async fn look(bench: &Bench<'_>) -> Result<Columns> {
    let mut connection = bench.user().await?;
    let found = read(&mut connection).await?;
    provision::close(connection).await;
    Ok(found)
}

async fn read(connection: &mut PgConnection) -> Result<Columns> {
    let what = || "cannot read the schema";
    let tables: Vec<&str> = vec!["users", "tasks"];
    let rows = sqlx::query(QUESTION).bind(tables).fetch_all(connection).await.or_failed(what)?;
    let mut found = Columns::new();
    for row in rows {
        let column = Found {
            kind: row.try_get(2).or_failed(what)?,
            not_null: row.try_get(3).or_failed(what)?,
            primary: row.try_get(4).or_failed(what)?,
            unique: row.try_get(5).or_failed(what)?,
            references: row.try_get(6).or_failed(what)?,
        };
        found.insert((row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?), column);
    }
    Ok(found)
}

fn key(table: &str, column: &str) -> (String, String) {
    (table.to_owned(), column.to_owned())
}

fn verdict(column: &Column, all: &Columns) -> Verdict {
    let proof = "pg_attribute, pg_index, pg_constraint";
    let Some(found) = all.get(&key(column.table, column.name)) else {
        let there = all.keys().any(|(table, _)| table == column.table);
        let because = if there { "there is no such column" } else { "there is no such table" };
        return Verdict::fail("nothing", proof, because);
    };
    let has = describe(found);
    if !types(column.kind).contains(&found.kind.as_str()) {
        return Verdict::fail(has, proof, format!("{} is not a {}", found.kind, column.kind));
    }
    let missing = match column.key {
        Key::Primary if !found.primary => Some("it is not the primary key"),
        Key::Unique if !found.unique => Some("no valid unique index is on it alone"),
        Key::Foreign if found.references.as_deref() != Some("users.id") => {
            Some("no validated foreign key leads from it to users.id")
        }
        _ => None,
    };
    match missing {
        Some(because) => Verdict::fail(has, proof, because),
        None => Verdict::pass(has, proof),
    }
}

fn describe(found: &Found) -> String {
    let mut text = found.kind.clone();
    if found.primary {
        text += ", primary key";
    } else if found.unique {
        text += ", unique";
    }
    if let Some(target) = &found.references {
        text = format!("{text}, references {target}");
    }
    text
}

/// Exactly one user for each task, and any number of tasks for each user.
fn relation(all: &Columns) -> Verdict {
    let proof = "pg_attribute, pg_index, pg_constraint";
    let Some(found) = all.get(&key("tasks", "user_id")) else {
        return Verdict::fail("nothing", proof, "there is no column tasks.user_id");
    };
    let has = format!("tasks.user_id {}{}", describe(found), if found.not_null { ", not null" } else { "" });
    let because = if found.references.as_deref() != Some("users.id") {
        "no validated foreign key leads from tasks.user_id to users.id"
    } else if !found.not_null {
        "a task may have no user"
    } else if found.unique {
        "a user may have only one task"
    } else {
        return Verdict::pass(has, proof);
    };
    Verdict::fail(has, proof, because)
}

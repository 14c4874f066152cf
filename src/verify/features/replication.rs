//! WAL logical replication: a slot with `pgoutput` streams an insert, an update and a delete.
//!
//! What must hold: the slot is temporary, so it ends with its session however that ends. The publication is made and
//! dropped by the one transaction whose changes are streamed: the server decodes each change with the catalog as it was
//! then, so nobody else ever sees the publication or the rows.

use sqlx::{AssertSqlSafe, PgConnection, Row as _};

use super::{Task, mark, other_triggers, run};
use crate::error::{Context, Error, Result};
use crate::provision;
use crate::verify::{Bench, Schema, Verdict, full_text};

/// How often it is tried. Another transaction that commits in the moment of ours is streamed too, and knows of no such
/// publication.
const ATTEMPTS: usize = 5;

pub(super) async fn verdict(bench: &Bench<'_>) -> Result<Verdict> {
    let mut connection = bench.admin().await?;
    let verdict = look(bench, &mut connection).await;
    provision::close(connection).await;
    verdict
}

async fn look(bench: &Bench<'_>, connection: &mut PgConnection) -> Result<Verdict> {
    if let Some(because) = impossible(bench, connection).await? {
        return Ok(Verdict::not_applicable("", "SHOW wal_level, pg_roles, pg_publication, pg_trigger", because));
    }
    let mut last = None;
    for _ in 0..ATTEMPTS {
        match stream(bench, connection).await {
            Ok(kinds) => return Ok(judge(&kinds)),
            Err(error) if full_text(&error).contains("does not exist") => last = Some(error),
            Err(error) => return Err(error),
        }
        run(connection, "ROLLBACK".to_owned(), "begin again").await?;
    }
    Err(last.expect("there was an attempt"))
}

/// Why it cannot be tried here.
async fn impossible(bench: &Bench<'_>, connection: &mut PgConnection) -> Result<Option<String>> {
    let what = || "cannot look at what replication needs";
    let profile = &bench.profile;
    let question = "SELECT current_setting('wal_level'), (SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user), \
                    current_user::text, (SELECT min(pubname)::text FROM pg_publication WHERE puballtables), \
                    (SELECT min(evtname)::text FROM pg_event_trigger WHERE evtenabled <> 'D')";
    let row = sqlx::raw_sql(question).fetch_one(&mut *connection).await.or_failed(what)?;
    let level: String = row.try_get(0).or_failed(what)?;
    let may: bool = row.try_get(1).or_failed(what)?;
    let role: String = row.try_get(2).or_failed(what)?;
    let of_all: Option<String> = row.try_get(3).or_failed(what)?;
    let on_events: Option<String> = row.try_get(4).or_failed(what)?;
    let asked = profile.settings.get("wal_level").map(|setting| setting.value.as_str());
    if level != "logical" && asked == Some(level.as_str()) && profile.base == crate::profile::BuiltIn::Test {
        return Ok(Some(format!("the profile `{}` has wal_level = {level}", profile.name)));
    }
    if !may {
        return Ok(Some(format!("the role `{role}` has no REPLICATION attribute, which a slot needs")));
    }
    if let Some(trigger) = on_events {
        return Ok(Some(format!(
            "the event trigger `{trigger}` would see a publication made, and what it does would stay"
        )));
    }
    let triggers = if bench.schema == Schema::TaskFlow { other_triggers(connection).await? } else { Vec::new() };
    if !triggers.is_empty() {
        return Ok(Some(format!(
            "the tables have triggers or rules of the project's own ({}), and what they do in a committed transaction \
             would stay",
            triggers.join(", ")
        )));
    }
    Ok(of_all.filter(|_| bench.schema != Schema::TaskFlow).map(|publication| {
        format!(
            "the publication `{publication}` of all tables would tell its subscribers of a table that they do not have"
        )
    }))
}

/// Streams three changes; gives the kinds of pgoutput's messages.
async fn stream(bench: &Bench<'_>, connection: &mut PgConnection) -> Result<Vec<String>> {
    let mark = mark();
    let what = "make a temporary replication slot with pgoutput";
    let made =
        run(connection, format!("SELECT pg_create_logical_replication_slot('{mark}', 'pgoutput', true)"), what).await;
    if let Err(error) = made {
        return Err(explain(connection, error).await);
    }
    let changes = match bench.schema {
        Schema::TaskFlow => format!(
            "SET LOCAL taskflow.silent = 'on'; CREATE PUBLICATION {mark} FOR TABLE tasks; {}; DROP PUBLICATION {mark}",
            Task::new().come_and_go(&mark)
        ),
        Schema::Own(_) => format!(
            "CREATE TABLE {mark} (id int PRIMARY KEY, title text); CREATE PUBLICATION {mark} FOR TABLE {mark}; \
             INSERT INTO {mark} VALUES (1, 'a'); UPDATE {mark} SET title = 'b'; DELETE FROM {mark}; \
             DROP PUBLICATION {mark}; DROP TABLE {mark}"
        ),
    };
    run(connection, format!("BEGIN; {changes}"), "change rows that are published").await?;
    let begin = position(connection).await?;
    run(connection, "COMMIT".to_owned(), "commit the changes").await?;
    let end = position(connection).await?;
    // What others committed before is none of this publication's.
    run(connection, format!("SELECT pg_replication_slot_advance('{mark}', '{begin}')"), "move the slot on").await?;
    let messages = kinds(connection, &mark, &end).await?;
    run(connection, format!("SELECT pg_drop_replication_slot('{mark}')"), "drop the temporary slot").await?;
    Ok(messages)
}

/// Where the log is written to now.
async fn position(connection: &mut PgConnection) -> Result<String> {
    let what = || "cannot ask where the log is";
    let row = sqlx::raw_sql("SELECT pg_current_wal_insert_lsn()::text").fetch_one(connection).await.or_failed(what)?;
    row.try_get(0).or_failed(what)
}

/// The first letters of the messages (PostgreSQL manual, 55.9): `B`egin, `R`elation, `I`nsert, `U`pdate, `D`elete, `C`ommit.
async fn kinds(connection: &mut PgConnection, mark: &str, end: &str) -> Result<Vec<String>> {
    let what = || "cannot read the changes from the slot";
    let question = format!(
        "SELECT chr(get_byte(data, 0)) FROM pg_logical_slot_get_binary_changes('{mark}', '{end}', NULL, \
         'proto_version', '1', 'publication_names', '{mark}')"
    );
    let rows = sqlx::raw_sql(AssertSqlSafe(question)).fetch_all(connection).await.or_failed(what)?;
    rows.iter().map(|row| row.try_get(0).or_failed(what)).collect()
}

fn judge(kinds: &[String]) -> Verdict {
    let changes: Vec<_> = kinds.iter().map(String::as_str).filter(|kind| ["I", "U", "D"].contains(kind)).collect();
    let proof = "a temporary slot with pgoutput, read while it was there";
    if changes == ["I", "U", "D"] {
        return Verdict::pass("it streamed an insert, an update and a delete", proof);
    }
    Verdict::fail(
        format!("it streamed {}", kinds.join(" ")),
        proof,
        "an insert, an update and a delete must come, in this order",
    )
}

/// A slot begins only when every transaction that writes at that moment has ended: who is in the way is told.
async fn explain(connection: &mut PgConnection, error: Error) -> Error {
    let text = full_text(&error);
    if !text.contains("statement timeout") {
        return error;
    }
    let question = "SELECT string_agg(format('%s (%s, since %s)', pid, coalesce(nullif(application_name, ''), 'no name'), \
                    xact_start::timestamptz(0)), ', ') FROM pg_stat_activity \
                    WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()";
    let row = sqlx::raw_sql(question).fetch_one(connection).await.ok();
    let holders = row.and_then(|row| row.try_get::<Option<String>, _>(0).ok().flatten()).unwrap_or_default();
    Error::failed(format!("a slot waits for the end of transactions that write, and these did not end: {holders}"))
        .caused_by(error)
}

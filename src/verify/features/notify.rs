//! LISTEN/NOTIFY: a change of a task arrives at who listens.
//!
//! What must hold: the server tells listeners only of what is committed, so the transaction is committed; but it takes its
//! own rows away again before that, and nobody ever sees them.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgListener, PgPoolOptions};

use super::{Task, mark, other_triggers, run};
use crate::error::{Context, Error, Result};
use crate::pg;
use crate::provision;
use crate::verify::{Bench, LOGIN_LIMIT, Schema, Verdict};

/// The channel of TaskFlow's trigger.
const CHANNEL: &str = "task_changes";

/// How long a notification may take.
const LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn verdict(bench: &Bench<'_>) -> Result<Verdict> {
    if bench.schema != Schema::TaskFlow {
        return bare(bench).await;
    }
    let mut writer = bench.user().await?;
    let triggers = other_triggers(&mut writer).await?;
    let verdict = if triggers.is_empty() {
        changes(bench, &mut writer).await
    } else {
        let because = format!(
            "the tables have triggers or rules of the project's own ({}), and what they do in a committed transaction \
             would stay",
            triggers.join(", ")
        );
        Ok(Verdict::not_applicable("", "pg_trigger", because))
    };
    provision::close(writer).await;
    verdict
}

/// The three changes of a task that never was.
async fn changes(bench: &Bench<'_>, writer: &mut sqlx::PgConnection) -> Result<Verdict> {
    let mut listener = listen(bench, CHANNEL).await?;
    let task = Task::new();
    let statements = format!("BEGIN; {}; COMMIT", task.come_and_go(&mark()));
    let begin = Instant::now();
    run(writer, statements, "change a task").await?;
    let proof = format!("LISTEN {CHANNEL}, while another session inserts, updates and deletes a task");
    let mut heard = Vec::new();
    while heard.len() < 3 {
        let Some(payload) = next(&mut listener, begin + LIMIT).await? else {
            let has =
                if heard.is_empty() { "nothing arrived".to_owned() } else { format!("only {}", heard.join(", ")) };
            let because = format!("after {} s the trigger on `tasks` has told of no more", LIMIT.as_secs());
            return Ok(Verdict::fail(has, proof, because));
        };
        if payload["id"] == task.id.to_string() {
            heard.push(payload["op"].as_str().unwrap_or_default().to_owned());
        }
    }
    let has = format!("{} arrived after {}", heard.join(", "), shown(begin));
    if heard == ["insert", "update", "delete"] {
        return Ok(Verdict::pass(has, proof));
    }
    Ok(Verdict::fail(has, proof, "they are not insert, update and delete in this order"))
}

/// A notification of our own, for a schema that is not ours to change.
async fn bare(bench: &Bench<'_>) -> Result<Verdict> {
    let channel = mark();
    let mut listener = listen(bench, &channel).await?;
    let mut writer = bench.user().await?;
    let begin = Instant::now();
    run(&mut writer, format!("SELECT pg_notify('{channel}', '{{}}')"), "notify").await?;
    provision::close(writer).await;
    let proof = "LISTEN and pg_notify on a channel of its own: the project has a schema of its own";
    Ok(match next(&mut listener, begin + LIMIT).await? {
        Some(_) => Verdict::pass(format!("it arrived after {}", shown(begin)), proof),
        None => Verdict::fail("nothing arrived", proof, format!("within {} s", LIMIT.as_secs())),
    })
}

fn shown(begin: Instant) -> String {
    format!("{:.1} ms", begin.elapsed().as_secs_f64() * 1000.0)
}

async fn listen(bench: &Bench<'_>, channel: &str) -> Result<PgListener> {
    let what = || format!("cannot listen on `{channel}`");
    let login = bench.running.server.login();
    let deadline = Instant::now() + LOGIN_LIMIT;
    let options = pg::options_that_work(&login, deadline).await.map_err(|error| error.into_error(&login))?;
    let pool = PgPoolOptions::new().max_connections(1).acquire_timeout(LOGIN_LIMIT).connect_lazy_with(options);
    let mut listener = PgListener::connect_with(&pool).await.or_failed(what)?;
    listener.listen(channel).await.or_failed(what)?;
    Ok(listener)
}

/// The next payload; `None` if there is none by `deadline`. Others may say what they like on the channel.
async fn next(listener: &mut PgListener, deadline: Instant) -> Result<Option<serde_json::Value>> {
    match tokio::time::timeout_at(deadline.into(), listener.recv()).await {
        Ok(Ok(heard)) => Ok(Some(serde_json::from_str(heard.payload()).unwrap_or_default())),
        Ok(Err(error)) => Err(Error::failed("the session that listens was lost").caused_by(error)),
        Err(_) => Ok(None),
    }
}

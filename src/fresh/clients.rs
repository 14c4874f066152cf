//! What a service needs that hands out databases to clients of its own: it makes no template itself and knows some only
//! by their names, and its clients seldom give back what they got.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::keeper::{Answer, Order};
use super::pool::Pool;
use super::registry::TEMPLATE_LOCK;
use super::template::{Recipe, Template, find};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::quote;

/// What there is of a template.
#[derive(Debug)]
pub enum TemplateState {
    /// Nothing, or what an attempt has left that nobody goes on with.
    Absent,
    /// Someone is making it.
    InProgress,
    /// It is there.
    Ready(Template),
}

impl Pool {
    /// What there is of the template of that name; nothing is changed.
    pub async fn look_at_template(&self, key: &str) -> Result<TemplateState> {
        let mut worker = self.worker().await?;
        let row = find(&mut worker.admin.connection, &self.server().database, key).await?;
        let state = match row {
            None => TemplateState::Absent,
            Some(row) if row.stage == "ready" => TemplateState::Ready(row.into_template(key)?),
            Some(row) => {
                let question = "SELECT EXISTS (SELECT FROM pg_lock_status() WHERE locktype = 'advisory' AND granted \
                                AND objsubid = 2 AND classid = $1::integer::oid AND objid = $2::integer::oid \
                                AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))";
                let locked: bool = sqlx::query_scalar(question)
                    .bind(TEMPLATE_LOCK)
                    .bind(row.id)
                    .fetch_one(&mut worker.admin.connection)
                    .await
                    .or_failed(|| "cannot look who makes the template")?;
                if locked { TemplateState::InProgress } else { TemplateState::Absent }
            }
        };
        worker.finish();
        Ok(state)
    }

    /// The templates that are ready and whose names begin with `prefix`.
    pub async fn ready_templates(&self, prefix: &str) -> Result<Vec<Template>> {
        let what = || "cannot read which templates there are";
        let question = "SELECT key FROM tfdev.fresh_template WHERE source = $1 AND stage = 'ready' \
                        AND starts_with(key, $2) ORDER BY id";
        let mut worker = self.worker().await?;
        let connection = &mut worker.admin.connection;
        let source = &self.server().database;
        let keys: Vec<String> =
            sqlx::query_scalar(question).bind(source).bind(prefix).fetch_all(&mut *connection).await.or_failed(what)?;
        let mut ready = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(row) = find(connection, source, &key).await?.filter(|row| row.stage == "ready") {
                ready.push(row.into_template(&key)?);
            }
        }
        worker.finish();
        Ok(ready)
    }

    /// The name under which [`Pool::template`] keeps what `recipe` makes.
    pub fn key_of(&self, recipe: &Recipe) -> String {
        recipe.key(&self.server().user.name, self.surroundings())
    }

    /// Those of the databases `names` that somebody is connected to.
    pub async fn connected(&self, names: &[String]) -> Result<HashSet<String>> {
        let question = "SELECT DISTINCT datname::text FROM pg_stat_activity WHERE datname = ANY($1) \
                        AND backend_type = 'client backend'";
        let mut worker = self.worker().await?;
        let found: Vec<String> = sqlx::query_scalar(question)
            .bind(names)
            .fetch_all(&mut worker.admin.connection)
            .await
            .or_failed(|| "cannot look who is connected to fresh databases")?;
        worker.finish();
        Ok(found.into_iter().collect())
    }

    /// Whether a copy of the template can only be handed out when one that is in use comes back, and the hand-out that sets
    /// `served` still waits for that: what could go of itself is gone already.
    pub async fn is_full(&self, template: &Template, served: &AtomicBool) -> Result<bool> {
        let question = format!(
            "SELECT count(*) FILTER (WHERE stage = 'leased') >= {leases} OR (NOT ({room}) AND \
             count(*) FILTER (WHERE stage IN ('building', 'free', 'returned') OR (stage = 'dropping' \
             AND coalesce(tried_at > clock_timestamp() - interval '5 s', true))) = 0) \
             FROM tfdev.fresh_database WHERE source = {source}",
            leases = self.0.max_leases,
            room = self.room_for(template),
            source = quote::literal(&self.server().database)?,
        );
        let deadline = Instant::now() + self.options().timeout;
        let answer = self.in_keeper(deadline, &Order::Ask(question)).await?;
        Ok(matches!(answer, Answer::Is(true)) && !served.load(Ordering::Acquire))
    }

    /// Fails unless the server answers within `limit`, and is the one that the pool was opened with.
    pub async fn check(&self, limit: Duration) -> Result<()> {
        let late =
            || Error::new(ErrorKind::TimedOut, format!("the server did not answer within {} s", limit.as_secs()));
        let asked = self.in_keeper(Instant::now() + limit, &Order::Look);
        // The session itself may hang.
        tokio::time::timeout(limit + limit / 2, asked).await.map_err(|_| late())?.map(drop)
    }

    /// Whether both are pools of one server: at one address, with the same data.
    pub fn is_of_the_server_of(&self, other: &Self) -> bool {
        let (own, others) = (&self.0, &other.0);
        own.server.endpoint == others.server.endpoint
            && own.record.id() == others.record.id()
            && own.record.system_identifier() == others.record.system_identifier()
    }

    /// The parameters of libpq for a login to a server with TLS, such as `sslmode`; none for one without.
    pub fn tls_parameters(&self) -> Vec<(&'static str, String)> {
        self.server().tls_parameters()
    }
}

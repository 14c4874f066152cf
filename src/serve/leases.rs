//! The service's own calls for databases: of the project's migrations and data, in one call, with an end.
//!
//! What must hold: a lease ends at its time, when it is given back, or with the service, whichever is first; what is handed
//! out is a copy of the migrations as they are at that moment.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::connection::Connection;
use super::failure::{Failure, done, json, typed};
use super::input::{Input, read_form};
use super::metrics::Door;
use super::shared::{Shared, WAIT_LIMIT};
use crate::error::{Context, Error, ErrorKind};
use crate::fresh::{Lease, Pool, Recipe, Template, read_lifetime};
use crate::migrate::Source;
use crate::seed::DataSet;

/// How long a database stays if nothing is said: longer than most suites.
const USUAL_LIFETIME: Duration = Duration::from_hours(1);

/// The longest lifetime. What is to stay for longer is no test's.
const LONGEST_LIFETIME: Duration = Duration::from_hours(7 * 24);

/// How many templates are remembered, one for each state of the migrations and data set.
const KNOWN_TEMPLATES: usize = 32;

type Answer = Result<Response, Failure>;

/// A lease that this service holds.
pub(super) struct Held {
    pub(super) lease: Lease,
    pub(super) ends: Instant,
    expires_at: Timestamp,
    config: Connection,
}

/// What kind of database is wanted, and for how long.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wish {
    ttl: Option<String>,
    seed: Option<String>,
}

/// For how much longer a lease is wanted.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Extension {
    ttl: Option<String>,
}

/// A lease as clients see it.
#[derive(Serialize)]
struct Shown<'a> {
    id: &'a str,
    url: String,
    config: &'a Connection,
    expires_at: Timestamp,
}

impl Held {
    fn new(lease: Lease, config: Connection, lifetime: Duration) -> Self {
        let mut held = Self { lease, config, ends: Instant::now(), expires_at: Timestamp::now() };
        held.extend(lifetime);
        held
    }

    /// Lets it end so long from now.
    fn extend(&mut self, lifetime: Duration) {
        self.ends = Instant::now() + lifetime;
        self.expires_at = Timestamp::now() + lifetime;
    }

    fn show(&self) -> Shown<'_> {
        Shown { id: &self.lease.database, url: self.lease.url(), config: &self.config, expires_at: self.expires_at }
    }
}

/// `GET /fresh`. A caller who wants text gets the URL alone.
pub(super) async fn fresh(State(shared): State<Arc<Shared>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Answer {
    let wish = read_form(query.unwrap_or_default().as_bytes())?;
    let wants_text = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let wants_text = wants_text.trim_start().starts_with("text/plain");
    create(shared, wish, StatusCode::OK, wants_text).await
}

/// `POST /leases`.
pub(super) async fn begin(State(shared): State<Arc<Shared>>, input: Input) -> Answer {
    create(shared, input.read_or_default()?, StatusCode::CREATED, false).await
}

/// `GET /leases`.
pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Answer {
    let leases = shared.leases();
    let mut all: Vec<_> = leases.values().collect();
    all.sort_by_key(|held| held.ends);
    Ok(json(StatusCode::OK, &all.into_iter().map(Held::show).collect::<Vec<_>>()))
}

/// `PATCH /leases/{id}`.
pub(super) async fn extend(State(shared): State<Arc<Shared>>, Path(id): Path<String>, input: Input) -> Answer {
    let Extension { ttl } = input.read_or_default()?;
    let lifetime = read_ttl(ttl.as_deref())?;
    let mut leases = shared.leases();
    let held = leases.get_mut(&id).ok_or_else(|| unknown(&id))?;
    held.extend(lifetime);
    shared.work.notify_one();
    Ok(json(StatusCode::OK, &held.show()))
}

/// `DELETE /leases/{id}`.
pub(super) async fn end(State(shared): State<Arc<Shared>>, Path(id): Path<String>) -> Answer {
    let own = shared.clone();
    let ended = async move {
        let held = own.leases().remove(&id).ok_or_else(|| unknown(&id))?;
        own.give_back_all(&own.pools.current(), vec![held.lease]).await;
        Ok(())
    };
    shared.to_the_end(ended, drop).await.map(|()| done())
}

async fn create(shared: Arc<Shared>, wish: Wish, status: StatusCode, wants_text: bool) -> Answer {
    let lifetime = read_ttl(wish.ttl.as_deref())?;
    let (own, undo) = (shared.clone(), shared.clone());
    let taken = async move { own.lease(wish.seed.as_deref(), lifetime).await };
    let unclaimed = move |id: String| {
        if let Some(held) = undo.leases().get_mut(&id) {
            held.ends = Instant::now();
        }
        undo.work.notify_one();
    };
    let id = shared.to_the_end(taken, unclaimed).await?;
    let leases = shared.leases();
    let held = leases.get(&id).ok_or_else(|| unknown(&id))?;
    if wants_text {
        return Ok(typed(status, "text/plain; charset=UTF-8", format!("{}\n", held.lease.url())));
    }
    Ok(json(status, &held.show()))
}

impl Shared {
    /// Takes a database of the project's own and notes until when; gives its id.
    async fn lease(self: &Arc<Self>, seed: Option<&str>, lifetime: Duration) -> Result<String, Failure> {
        let recipe = self.recipe(seed)?;
        let (pool, template) = self.project_template(&recipe).await?;
        let (pool, lease) = match self.take(&pool, &template, Door::Leases).await {
            Ok(lease) => (pool, lease),
            // The template was let go, or the server is another one: once more from the beginning.
            Err(error) if self.pools.suspect(&error) || error.kind() == ErrorKind::NotFound => {
                self.project_templates().clear();
                let (pool, template) = self.project_template(&recipe).await?;
                let lease = self.take(&pool, &template, Door::Leases).await?;
                (pool, lease)
            }
            Err(error) => return Err(error.into()),
        };
        if self.is_closing() {
            self.give_back_all(&pool, vec![lease]).await;
            return Err(Failure::closing());
        }
        let id = lease.database.clone();
        let config = Connection::of(&lease.login(), &pool);
        self.leases().insert(id.clone(), Held::new(lease, config, lifetime));
        self.work.notify_one();
        Ok(id)
    }

    /// The project's migrations as they are now, with a data set.
    fn recipe(&self, seed: Option<&str>) -> Result<Recipe, Failure> {
        let settings = self.pools.settings();
        let dataset = seed.map(|name| DataSet::load(name, &settings.project_dir)).transpose();
        let dataset = dataset.map_err(|error| Failure::bad_request(error.to_string()))?.flatten();
        Ok(Recipe { dataset, ..Recipe::of(Source::of(settings)?) })
    }

    /// The template of a recipe, made if it is not there. Making it goes on when nobody waits any more.
    async fn project_template(self: &Arc<Self>, recipe: &Recipe) -> Result<(Pool, Template), Failure> {
        let pool = self.pool().await?;
        let key = pool.key_of(recipe);
        let known = self.project_templates().get(&key).cloned();
        if let Some(template) = known {
            return Ok((pool, template));
        }
        let (shared, recipe) = (self.clone(), recipe.clone());
        let making = tokio::spawn(async move {
            let (own, recipe) = (shared.clone(), &recipe);
            let work = |pool: Pool| async move {
                let template = pool.template(recipe).await?;
                Ok((pool, template))
            };
            let (pool, template) = own.with_pool(work).await?;
            let mut known = shared.project_templates();
            if known.len() >= KNOWN_TEMPLATES {
                known.clear();
            }
            known.insert(template.key.clone(), template.clone());
            drop(known);
            Ok((pool, template))
        });
        let made = tokio::select! {
            made = tokio::time::timeout(WAIT_LIMIT, making) => made,
            () = self.closed() => return Err(Failure::closing()),
        };
        let late = |_| Failure::unavailable("the template is still being made; ask again in a while");
        let made: Result<_, Error> =
            made.map_err(late)?.or_failed(|| "making the template ended in an unforeseen way")?;
        Ok(made?)
    }
}

fn read_ttl(text: Option<&str>) -> Result<Duration, Failure> {
    let Some(text) = text else { return Ok(USUAL_LIFETIME) };
    match read_lifetime(text) {
        Ok(lifetime) if lifetime <= LONGEST_LIFETIME => Ok(lifetime),
        Ok(_) => Err(Failure::bad_request("`ttl` is 7d at most")),
        Err(wrong) => Err(Failure::bad_request(format!("`ttl`: {wrong}"))),
    }
}

fn unknown(id: &str) -> Failure {
    Failure::not_found(format!("there is no lease `{id}`; it may have ended"))
}

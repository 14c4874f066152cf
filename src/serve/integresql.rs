//! IntegreSQL's calls (its version 1.1.0), for the clients that exist for it.
//!
//! What must hold: paths, statuses and forms are those of `INTEGRESQL_API.md`. The list of templates is the server's, so
//! those that are finished outlive the service. A template is known there by a hash of the client's own hash, which may be
//! of any length and form.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::connection::Connection;
use super::failure::{Failure, done, json};
use super::input::Input;
use super::metrics::Door;
use super::shared::{Shared, WAIT_LIMIT};
use super::template::{Filling, Known, Phase};
use super::upkeep::FORGOTTEN_FILLING;
use crate::error::ErrorKind;
use crate::fresh::{Begun, Pool, Template, TemplateState};

/// What the names of all templates of clients begin with.
pub(super) const PREFIX: &str = "integresql ";

/// The most bytes of a hash. What clients make of migrations is a hundred at most, and an address holds some thousands.
const LONGEST_HASH: usize = 1024;

/// The pause between two looks at a template that another service's client fills.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_millis(50);

type Answer = Result<Response, Failure>;

/// The body of a call that begins a template.
#[derive(Deserialize)]
struct NewTemplate {
    #[serde(default)]
    hash: String,
}

#[derive(Serialize)]
struct Database {
    #[serde(rename = "templateHash")]
    template_hash: String,
    config: Connection,
}

#[derive(Serialize)]
struct OfTemplate {
    database: Database,
}

#[derive(Serialize)]
struct OfTest {
    id: i64,
    database: Database,
}

/// `POST /api/v1/templates`.
pub(super) async fn begin(State(shared): State<Arc<Shared>>, input: Input) -> Answer {
    let NewTemplate { hash } = input.read()?;
    check_hash(&hash)?;
    let (own, wanted) = (shared.clone(), hash.clone());
    let undo = {
        let (shared, hash) = (shared.clone(), hash.clone());
        move |_| drop(tokio::spawn(async move { shared.discard(&hash).await }))
    };
    let config = shared.to_the_end(async move { own.begin(&wanted).await }, undo).await?;
    Ok(json(StatusCode::OK, &OfTemplate { database: Database { template_hash: hash, config } }))
}

/// `PUT /api/v1/templates/{hash}`.
pub(super) async fn finalize(State(shared): State<Arc<Shared>>, Path(hash): Path<String>, _: Input) -> Answer {
    let own = shared.clone();
    shared.to_the_end(async move { own.finalize(&hash).await }, drop).await.map(|()| done())
}

/// `DELETE /api/v1/templates/{hash}`.
pub(super) async fn discard(State(shared): State<Arc<Shared>>, Path(hash): Path<String>) -> Answer {
    let own = shared.clone();
    shared.to_the_end(async move { own.discard(&hash).await }, drop).await.map(|()| done())
}

/// `DELETE /api/v1/admin/templates`.
pub(super) async fn discard_all(State(shared): State<Arc<Shared>>) -> Answer {
    let own = shared.clone();
    shared.to_the_end(async move { own.discard_all().await }, drop).await.map(|()| done())
}

/// `GET /api/v1/templates/{hash}/tests`.
pub(super) async fn hand_out(State(shared): State<Arc<Shared>>, Path(hash): Path<String>) -> Answer {
    let (own, wanted) = (shared.clone(), hash.clone());
    let undo = {
        let (shared, hash) = (shared.clone(), hash.clone());
        // Nobody has seen it, so it is as good as new.
        move |(id, _): (i64, Connection)| {
            if let Some(entry) = shared.templates().get(&hash) {
                entry.unlock(id);
            }
        }
    };
    let (id, config) = shared.to_the_end(async move { own.hand_out(&wanted).await }, undo).await?;
    Ok(json(StatusCode::OK, &OfTest { id, database: Database { template_hash: hash, config } }))
}

/// `POST /api/v1/templates/{hash}/tests/{id}/unlock`, and `DELETE /api/v1/templates/{hash}/tests/{id}`.
pub(super) async fn unlock(
    State(shared): State<Arc<Shared>>,
    Path((hash, id)): Path<(String, String)>,
    _: Input,
) -> Answer {
    let id = read_id(&id)?;
    shared.find(&hash).await?;
    let known = shared.templates().get(&hash).map_or(Known::Unknown, |entry| entry.unlock(id));
    match known {
        Known::Taken(()) | Known::Returned => Ok(done()),
        Known::Unknown => Err(unknown_test(id)),
    }
}

/// `POST /api/v1/templates/{hash}/tests/{id}/recreate`.
pub(super) async fn recreate(
    State(shared): State<Arc<Shared>>,
    Path((hash, id)): Path<(String, String)>,
    _: Input,
) -> Answer {
    let id = read_id(&id)?;
    shared.find(&hash).await?;
    let known = shared.templates().get(&hash).map_or(Known::Unknown, |entry| entry.take_back(id));
    match known {
        Known::Taken(lease) => {
            shared.returning().push((lease, Instant::now()));
            shared.work.notify_one();
            Ok(done())
        }
        Known::Returned => Ok(done()),
        Known::Unknown => Err(unknown_test(id)),
    }
}

impl Shared {
    /// Begins a template that the client fills.
    async fn begin(&self, hash: &str) -> Result<Connection, Failure> {
        let phase = self.templates().get(hash).map(|entry| entry.phase());
        if let Some(Phase::Filling | Phase::Ending) = phase {
            return Err(locked("the template is being made; GET its tests, which waits for it"));
        }
        let Ok(place) = self.filling.clone().try_acquire_owned() else {
            return Err(Failure::unavailable(format!(
                "too many templates are being filled at once; one that is not finished within {} minutes goes",
                FORGOTTEN_FILLING.as_secs() / 60
            )));
        };
        let key = key_of(hash);
        let (pool, begun) = self
            .with_pool(async |pool: Pool| {
                let begun = pool.begin_template(&key).await?;
                Ok((pool, begun))
            })
            .await?;
        let old = match begun {
            Begun::Draft(draft) if self.is_closing() => {
                draft.discard().await?;
                return Err(Failure::closing());
            }
            Begun::Draft(draft) => {
                let config = Connection::of(&draft.login(), &pool);
                let old = self.templates().begin(hash, Filling { draft, _place: place });
                self.give_back_all(&pool, old).await;
                return Ok(config);
            }
            Begun::InProgress => return Err(locked("the template is being made by another client")),
            Begun::Ready(template) => self.templates().adopt(hash, template),
        };
        self.give_back_all(&pool, old).await;
        Err(locked("the template exists already"))
    }

    /// Finishes a template. One that is finished already is left as it is.
    async fn finalize(&self, hash: &str) -> Result<(), Failure> {
        let (filling, phase) = match self.templates().get(hash) {
            Some(entry) => (entry.end_filling(), Some(entry.watch())),
            None => (None, None),
        };
        let Some(filling) = filling else {
            return match phase {
                Some(mut phase) => match settled(&mut phase).await {
                    Phase::Ready(_) => Ok(()),
                    _ => Err(unknown_template()),
                },
                None => self.find(hash).await.map(drop),
            };
        };
        match filling.draft.finish().await {
            Ok(template) => {
                if let Some(entry) = self.templates().get(hash) {
                    entry.finish(template.clone());
                }
                self.make_first(template);
                Ok(())
            }
            Err(error) => {
                drop(self.templates().remove(hash));
                Err(error.into())
            }
        }
    }

    /// Makes the first copies, one for each processor as IntegreSQL does, and lets old templates go.
    fn make_first(&self, template: Template) {
        let (pool, events) = (self.pools.current(), self.pools.events().clone());
        tokio::spawn(async move {
            let cores = std::thread::available_parallelism().map_or(2, usize::from);
            let made = async {
                pool.replenish(&template, cores).await?;
                pool.collect().await.map(drop)
            };
            if let Err(error) = made.await {
                events.detail(format!("no database is made ahead: {error}"));
            }
        });
    }

    /// Lets a template go with its databases, and tells those who wait for it.
    pub(super) async fn discard(&self, hash: &str) -> Result<(), Failure> {
        let filling = self.templates().get(hash).and_then(super::template::Entry::end_filling);
        if let Some(filling) = filling {
            let discarded = filling.draft.discard().await;
            drop(self.templates().remove(hash));
            return Ok(discarded?);
        }
        let template = self.find(hash).await?;
        let pool = self.pool().await?;
        let leases = self.templates().remove(hash);
        self.give_back_all(&pool, leases).await;
        Ok(pool.discard_template(&template).await?)
    }

    /// Lets all templates of clients go.
    async fn discard_all(&self) -> Result<(), Failure> {
        let hashes = self.templates().hashes();
        for hash in hashes {
            match self.discard(&hash).await {
                Err(failure) if !failure.is_unknown() => return Err(failure),
                _ => {}
            }
        }
        // Those that no client of this service has asked for.
        self.with_pool(async |pool: Pool| {
            for template in pool.ready_templates(PREFIX).await? {
                pool.discard_template(&template).await?;
            }
            Ok(())
        })
        .await?;
        Ok(())
    }

    /// The template, if it is ready; 404 if there is none, and 423 while it is filled.
    async fn find(&self, hash: &str) -> Result<Template, Failure> {
        let watch = self.templates().get(hash).map(|entry| entry.watch());
        match watch {
            Some(watch) if matches!(*watch.borrow(), Phase::Filling) => {
                return Err(locked("the template is not finished yet"));
            }
            Some(mut watch) => {
                if let Phase::Ready(template) = settled(&mut watch).await {
                    return Ok(template);
                }
            }
            None => {}
        }
        match self.look(hash).await? {
            TemplateState::Ready(template) => Ok(template),
            TemplateState::InProgress => Err(locked("the template is being made by another client")),
            TemplateState::Absent => Err(unknown_template()),
        }
    }

    /// Looks for the template in the server, and knows it from then on.
    async fn look(&self, hash: &str) -> Result<TemplateState, Failure> {
        let key = key_of(hash);
        let state = self.with_pool(async |pool: Pool| pool.look_at_template(&key).await).await?;
        if let TemplateState::Ready(template) = &state {
            let old = self.templates().adopt(hash, template.clone());
            self.give_back_all(&self.pools.current(), old).await;
        }
        Ok(state)
    }

    /// The template; waits until it is finished.
    async fn wait_for(&self, hash: &str) -> Result<Template, Failure> {
        let mut was_there = false;
        let waiting = async {
            loop {
                let watch = self.templates().get(hash).map(|entry| entry.watch());
                if let Some(mut watch) = watch {
                    let phase = watch.wait_for(|phase| matches!(phase, Phase::Ready(_) | Phase::Gone)).await;
                    return match phase.as_deref() {
                        Ok(Phase::Ready(template)) => Ok(template.clone()),
                        _ => Err(discarded()),
                    };
                }
                match self.look(hash).await? {
                    TemplateState::Ready(template) => return Ok(template),
                    TemplateState::Absent if was_there => return Err(discarded()),
                    TemplateState::Absent => return Err(unknown_template()),
                    TemplateState::InProgress => was_there = true,
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        let late = || Failure::unavailable(format!("the template was not finished within {} s", WAIT_LIMIT.as_secs()));
        tokio::select! {
            waited = tokio::time::timeout(WAIT_LIMIT, waiting) => waited.unwrap_or_else(|_| Err(late())),
            () = self.closed() => Err(Failure::closing()),
        }
    }

    /// Hands out a database of the template.
    async fn hand_out(self: &Arc<Self>, hash: &str) -> Result<(i64, Connection), Failure> {
        let template = self.wait_for(hash).await?;
        let pool = self.pool().await?;
        let begin = Instant::now();
        let reused = self.templates().ready(hash, template.id).and_then(super::template::Entry::reuse);
        if let Some((id, lease)) = reused {
            self.metrics.handed_out(Door::Integresql, begin.elapsed());
            return Ok((id, Connection::of(&lease.login(), &pool)));
        }
        let (pool, lease) = match self.take(&pool, &template, Door::Integresql).await {
            Ok(lease) => (pool, lease),
            Err(error) => {
                self.is_still_there(hash, &template, error).await?;
                let pool = self.pool().await?;
                let lease = self.take(&pool, &template, Door::Integresql).await?;
                (pool, lease)
            }
        };
        if self.is_closing() {
            self.give_back_all(&pool, vec![lease]).await;
            return Err(Failure::closing());
        }
        let config = Connection::of(&lease.login(), &pool);
        let noted = match self.templates().ready(hash, template.id) {
            Some(entry) => Ok(entry.hand_out(lease)),
            None => Err(lease),
        };
        match noted {
            Ok(id) => Ok((id, config)),
            Err(lease) => {
                self.give_back_all(&pool, vec![lease]).await;
                Err(discarded())
            }
        }
    }

    /// Whether a hand-out that failed may be tried again: the server may have been away, with the template or without it. A
    /// template that another process has let go is forgotten.
    async fn is_still_there(&self, hash: &str, template: &Template, error: crate::error::Error) -> Result<(), Failure> {
        if error.kind() != ErrorKind::NotFound && !self.pools.suspect(&error) {
            return Err(error.into());
        }
        match self.look(hash).await? {
            TemplateState::Ready(found) if found.id == template.id => Ok(()),
            _ => {
                let lost = self.templates().remove(hash);
                self.give_back_all(&self.pools.current(), lost).await;
                Err(unknown_template())
            }
        }
    }
}

/// Waits while a template is being ended, which takes some milliseconds.
async fn settled(phase: &mut tokio::sync::watch::Receiver<Phase>) -> Phase {
    let settled = phase.wait_for(|phase| !matches!(phase, Phase::Ending)).await;
    settled.map_or(Phase::Gone, |phase| phase.clone())
}

/// The name of a template in the server.
fn key_of(hash: &str) -> String {
    format!("{PREFIX}{}", crate::spec::hexadecimal(&Sha256::digest(hash)))
}

fn check_hash(hash: &str) -> Result<(), Failure> {
    if hash.is_empty() {
        return Err(Failure::bad_request("the hash is empty or missing"));
    }
    if hash.len() > LONGEST_HASH {
        return Err(Failure::bad_request(format!("the hash has {} bytes, and {LONGEST_HASH} at most", hash.len())));
    }
    if hash.chars().any(|letter| letter.is_control() || matches!(letter, '"' | '\'' | '`' | '\\')) {
        return Err(Failure::bad_request("the hash has a quote, a backslash or a control character"));
    }
    Ok(())
}

fn read_id(text: &str) -> Result<i64, Failure> {
    text.parse().map_err(|_| Failure::bad_request("the test database's id must be a whole number"))
}

fn locked(message: &str) -> Failure {
    Failure::new(StatusCode::LOCKED, message)
}

fn unknown_template() -> Failure {
    Failure::not_found("there is no template with this hash")
}

fn unknown_test(id: i64) -> Failure {
    Failure::not_found(format!("no test database of this template has the id {id}"))
}

fn discarded() -> Failure {
    Failure::new(StatusCode::GONE, "the template was discarded")
}

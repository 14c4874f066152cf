//! What all calls share, and how one runs: to its end, whoever goes away meanwhile.
//!
//! What must hold: a database is always someone's. A client that went away while it waited gets nothing, and what was
//! taken for it is free again.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use tokio::sync::{Notify, Semaphore, oneshot, watch};
use tokio::task::JoinHandle;

use super::failure::Failure;
use super::guard::Guard;
use super::leases::Held;
use super::metrics::{Door, Metrics};
use super::pools::Pools;
use super::template::Templates;
use crate::error::{Context, Result};
use crate::fresh::{Lease, Pool, Template};

/// Calls at once; more are refused. A suite that waits for databases with more threads than this helps nobody.
const CALLS: usize = 512;

/// Templates at once that clients fill; each has a session with the server.
const FILLING: usize = 16;

/// How long a call waits for a template to be finished, and then for a database (IntegreSQL's figure).
pub(super) const WAIT_LIMIT: Duration = Duration::from_mins(1);

/// How long a hand-out waits before it looks whether a forgotten database must make room, and then between two looks.
const RECYCLE_EVERY: Duration = Duration::from_millis(20);

/// See the module's documentation.
pub(super) struct Shared {
    pub(super) pools: Pools,
    pub(super) guard: Guard,
    pub(super) metrics: Metrics,
    templates: Mutex<Templates>,
    leases: Mutex<HashMap<String, Held>>,
    /// Templates of the project's own, by what they are made of.
    project_templates: Mutex<HashMap<String, Template>>,
    /// What clients want made anew, and since when.
    returning: Mutex<Vec<(Lease, Instant)>>,
    /// There is something to return, or another lease with an end.
    pub(super) work: Notify,
    pub(super) filling: Arc<Semaphore>,
    calls: Arc<Semaphore>,
    recycling: tokio::sync::Mutex<()>,
    waiting: AtomicUsize,
    closing: watch::Sender<bool>,
}

/// Counts one who waits for a database.
struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    pub(super) fn new(pools: Pools, guard: Guard) -> Self {
        Self {
            pools,
            guard,
            metrics: Metrics::default(),
            templates: Mutex::default(),
            leases: Mutex::default(),
            project_templates: Mutex::default(),
            returning: Mutex::default(),
            work: Notify::new(),
            filling: Arc::new(Semaphore::new(FILLING)),
            calls: Arc::new(Semaphore::new(CALLS)),
            recycling: tokio::sync::Mutex::new(()),
            waiting: AtomicUsize::new(0),
            closing: watch::Sender::new(false),
        }
    }

    pub(super) fn templates(&self) -> MutexGuard<'_, Templates> {
        self.templates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn leases(&self) -> MutexGuard<'_, HashMap<String, Held>> {
        self.leases.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn project_templates(&self) -> MutexGuard<'_, HashMap<String, Template>> {
        self.project_templates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn returning(&self) -> MutexGuard<'_, Vec<(Lease, Instant)>> {
        self.returning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many calls wait for a database.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// The pool. When it was opened anew, what was known of the old one is forgotten.
    pub(super) async fn pool(&self) -> Result<Pool> {
        let (pool, is_new) = self.pools.usable().await?;
        if is_new {
            self.templates().forget();
            self.leases().clear();
            self.project_templates().clear();
            self.returning().clear();
        }
        Ok(pool)
    }

    /// Does something with the pool, and once more with another one if the server turns out to be gone. What is begun is
    /// then dropped.
    pub(super) async fn with_pool<T, F>(&self, work: impl Fn(Pool) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let begun = work(self.pool().await?);
        let done = tokio::select! {
            done = begun => done,
            lost = self.pools.lost() => Err(lost),
        };
        match done {
            Err(error) if self.pools.suspect(&error) => work(self.pool().await?).await,
            other => other,
        }
    }

    /// Runs `work` to its end, also if the client goes away; then `unclaimed` gets what came of it.
    pub(super) async fn to_the_end<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        unclaimed: impl FnOnce(T) + Send + 'static,
    ) -> Result<T, Failure> {
        let Ok(call) = self.calls.clone().try_acquire_owned() else {
            return Err(Failure::unavailable(format!("more than {CALLS} calls at once")));
        };
        let (send, receive) = oneshot::channel();
        tokio::spawn(async move {
            if let Err(Ok(value)) = send.send(work.await) {
                unclaimed(value);
            }
            drop(call);
        });
        let panicked = |_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the call failed in an unforeseen way");
        receive.await.map_err(panicked)?
    }

    /// A copy of the template; waits for one if there may be no more, and lets forgotten ones go for it.
    pub(super) async fn take(self: &Arc<Self>, pool: &Pool, template: &Template, door: Door) -> Result<Lease> {
        let begin = Instant::now();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.waiting);
        let (goes_on, gone) = oneshot::channel::<()>();
        let served = Arc::new(AtomicBool::new(false));
        let recycler = {
            let (shared, pool, template, served) = (self.clone(), pool.clone(), template.clone(), served.clone());
            async move { shared.recycle_for(&pool, &template, &served, gone).await }
        };
        tokio::spawn(recycler);
        let mut taking = {
            let (pool, template) = (pool.clone(), template.clone());
            tokio::spawn(async move { pool.take_by(&template, begin + WAIT_LIMIT, &served).await })
        };
        let taken = tokio::select! {
            taken = &mut taking => taken.or_failed(|| "the hand-out ended in an unforeseen way").flatten(),
            lost = self.pools.lost() => {
                self.give_back_later(pool.clone(), taking);
                Err(lost)
            }
        };
        drop((goes_on, waiting));
        if taken.is_ok() {
            self.metrics.handed_out(door, begin.elapsed());
        }
        taken
    }

    /// Gives back what a hand-out may still come to that nobody waits for any more.
    fn give_back_later(self: &Arc<Self>, pool: Pool, taking: JoinHandle<Result<Lease>>) {
        let shared = self.clone();
        tokio::spawn(async move {
            if let Ok(Ok(lease)) = taking.await {
                shared.give_back_all(&pool, vec![lease]).await;
            }
        });
    }

    /// While somebody waits, and the pool is full, lets the database go that was handed out longest ago and that nobody is
    /// connected to. Clients of IntegreSQL count on that: many never give one back.
    async fn recycle_for(
        &self,
        pool: &Pool,
        template: &Template,
        served: &AtomicBool,
        mut gone: oneshot::Receiver<()>,
    ) {
        let is_over = |gone: &mut oneshot::Receiver<()>| gone.try_recv() != Err(oneshot::error::TryRecvError::Empty);
        loop {
            if tokio::time::timeout(RECYCLE_EVERY, &mut gone).await.is_ok() {
                return;
            }
            let _turn = self.recycling.lock().await;
            if is_over(&mut gone) {
                return;
            }
            if let Err(error) = self.recycle_one(pool, template, served).await {
                self.pools.events().detail(format!("no forgotten database makes room: {error}"));
            }
        }
    }

    async fn recycle_one(&self, pool: &Pool, template: &Template, served: &AtomicBool) -> Result<()> {
        if !pool.is_full(template, served).await? {
            return Ok(());
        }
        let spare = self.templates().spare(template.id);
        if let Some(lease) = spare {
            self.give_back_all(pool, vec![lease]).await;
            return Ok(());
        }
        let oldest = self.templates().oldest();
        let names: Vec<String> = oldest.iter().map(|(_, _, name)| name.clone()).collect();
        let connected = pool.connected(&names).await?;
        let Some((hash, id, _)) = oldest.into_iter().find(|(_, _, name)| !connected.contains(name)) else {
            return Ok(());
        };
        if served.load(Ordering::Acquire) {
            return Ok(());
        }
        let lease = self.templates().get(&hash).map(|entry| entry.take_back(id));
        if let Some(super::template::Known::Taken(lease)) = lease {
            self.metrics.recycled();
            self.give_back_all(pool, vec![lease]).await;
        }
        Ok(())
    }

    /// Gives databases back that no client has any more; what cannot be now is tried again later.
    pub(super) async fn give_back_all(&self, pool: &Pool, leases: Vec<Lease>) {
        for lease in leases {
            if let Err(error) = pool.give_back(lease.clone()).await {
                self.pools.events().detail(format!("a database is given back later: {error}"));
                self.returning().push((lease, Instant::now()));
            }
        }
    }

    /// Begins the end: calls that wait are answered.
    pub(super) fn close(&self) {
        self.closing.send_replace(true);
        self.work.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        *self.closing.borrow()
    }

    /// Waits until the service is to end.
    pub(super) async fn closed(&self) {
        let mut closing = self.closing.subscribe();
        // The sender lives as long as this.
        let _ = closing.wait_for(|closing| *closing).await;
    }

    /// Whether there is nothing to give back, because the server went first.
    pub(super) async fn is_server_gone(&self) -> bool {
        !self.pools.look().await && !self.pools.look().await
    }

    /// Ends what clients have begun and gives back what they have, once the calls that are under way are answered.
    pub(super) async fn end(&self) -> Result<()> {
        let pool = self.pools.current();
        pool.make_ahead(0);
        // What is given back now makes room for those who wait for room.
        self.give_back_known(&pool).await;
        let all = u32::try_from(CALLS).expect("a few hundred");
        let _ = self.calls.acquire_many(all).await;
        self.give_back_known(&pool).await;
        pool.settle().await
    }

    async fn give_back_known(&self, pool: &Pool) {
        let mut leases: Vec<Lease> = self.leases().drain().map(|(_, held)| held.lease).collect();
        leases.extend(self.returning().drain(..).map(|(lease, _)| lease));
        let hashes = self.templates().hashes();
        for hash in hashes {
            let filling = self.templates().get(&hash).and_then(super::template::Entry::end_filling);
            if let Some(filling) = filling
                && let Err(error) = filling.draft.discard().await
            {
                self.pools.events().detail(format!("a template is left to the next call: {error}"));
            }
            leases.extend(self.templates().remove(&hash));
        }
        self.give_back_all(pool, leases).await;
    }
}

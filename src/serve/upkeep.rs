//! What the service does by itself: gives back what clients want made anew, ends leases, lets go of templates that nobody
//! goes on with, and looks after the server.
//!
//! What must hold: a database is not made anew under a client that is still connected, unless that goes on for long.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::integresql::PREFIX;
use super::shared::Shared;
use crate::error::Result;
use crate::fresh::{Lease, Pool};

/// The first pause before another look whether clients have left a database; each is twice as long as the one before, up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// See [`FIRST_PAUSE`].
const LONGEST_PAUSE: Duration = Duration::from_millis(200);

/// How long clients may stay connected to what is to be made anew. Then their sessions are ended.
const PATIENCE: Duration = Duration::from_mins(1);

/// How long a template may be filled with nobody connected before it counts as forgotten.
pub(super) const FORGOTTEN_FILLING: Duration = Duration::from_mins(10);

/// How often the server and the templates are looked after.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How often what is left of templates that nobody uses goes.
const COLLECT_EVERY: Duration = Duration::from_mins(1);

/// Does all of it until the service ends.
pub(super) async fn run(shared: Arc<Shared>) {
    tokio::join!(give_back(&shared), look_after(&shared));
}

/// Gives back what is to be made anew and what has come to its end, as soon as it can be.
async fn give_back(shared: &Shared) {
    let mut pause = FIRST_PAUSE;
    while !shared.is_closing() {
        let pool = shared.pools.current();
        end_leases(shared, &pool).await;
        match return_left(shared, &pool).await {
            Ok(0) => {}
            Ok(_) => pause = FIRST_PAUSE,
            Err(error) => shared.pools.events().detail(format!("databases are given back later: {error}")),
        }
        let is_waiting = !shared.returning().is_empty();
        let next_end = shared.leases().values().map(|held| held.ends).min();
        let ends_in = next_end.map_or(LOOK_EVERY, |end| end.saturating_duration_since(Instant::now()).max(FIRST_PAUSE));
        let sleep = if is_waiting { pause.min(ends_in) } else { ends_in };
        pause = if is_waiting { (pause * 2).min(LONGEST_PAUSE) } else { FIRST_PAUSE };
        let _ = tokio::time::timeout(sleep, shared.work.notified()).await;
    }
}

/// Gives back what no client is connected to any more. Returns how many that were.
async fn return_left(shared: &Shared, pool: &Pool) -> Result<usize> {
    let names: Vec<String> = shared.returning().iter().map(|(lease, _)| lease.database.clone()).collect();
    if names.is_empty() {
        return Ok(0);
    }
    let connected = pool.connected(&names).await?;
    let is_left = |lease: &Lease, since: &Instant| {
        names.contains(&lease.database) && (!connected.contains(&lease.database) || since.elapsed() > PATIENCE)
    };
    let left: Vec<_> = shared.returning().extract_if(.., |(lease, since)| is_left(lease, since)).collect();
    let count = left.len();
    shared.give_back_all(pool, left.into_iter().map(|(lease, _)| lease).collect()).await;
    Ok(count)
}

/// Ends the leases whose time has come.
async fn end_leases(shared: &Shared, pool: &Pool) {
    let ended: Vec<_> = shared.leases().extract_if(|_, held| held.ends <= Instant::now()).collect();
    shared.give_back_all(pool, ended.into_iter().map(|(_, held)| held.lease).collect()).await;
}

/// Looks after the server, and after templates that clients have begun and forgotten.
async fn look_after(shared: &Shared) {
    let mut collected = Instant::now();
    while !shared.is_closing() {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shared.closed() => return,
        }
        if !shared.pools.look().await {
            continue;
        }
        let mut looked_after = forget(shared).await;
        if looked_after.is_ok() && collected.elapsed() >= COLLECT_EVERY {
            collected = Instant::now();
            looked_after = shared.pools.current().collect().await.map(drop);
        }
        if let Err(error) = looked_after {
            shared.pools.events().detail(format!("templates are looked after later: {error}"));
        }
    }
}

/// Lets go of what was begun long ago by clients that are gone, and forgets what other processes have let go.
async fn forget(shared: &Shared) -> Result<()> {
    let pool = shared.pools.current();
    let old = shared.templates().filling_since(FORGOTTEN_FILLING);
    if !old.is_empty() {
        let names: Vec<String> = old.iter().map(|(_, database)| database.clone()).collect();
        let connected = pool.connected(&names).await?;
        for (hash, _) in old.iter().filter(|(_, database)| !connected.contains(database)) {
            // Whoever comes next begins it anew.
            let _ = shared.discard(hash).await;
        }
    }
    let known = shared.templates().all_ready();
    let ready: HashSet<i64> = pool.ready_templates(PREFIX).await?.into_iter().map(|template| template.id).collect();
    for (id, hash) in known.into_iter().filter(|(id, _)| !ready.contains(id)) {
        let is_same = shared.templates().ready(&hash, id).is_some();
        let lost = if is_same { shared.templates().remove(&hash) } else { Vec::new() };
        shared.give_back_all(&pool, lost).await;
    }
    Ok(())
}

//! Connection pooling: as many clients as the source's backend has, through a pool of the profile's size.
//!
//! What must hold: no connection is taken that others may need at that moment. sqlx's own pool is not used, because it
//! tries again where the server refuses, and a refusal is what is looked for.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use futures_util::future::{join_all, try_join_all};
use sqlx::{PgConnection, Row as _};
use tokio::sync::Semaphore;

use crate::error::{Context, Result};
use crate::health::Counts;
use crate::pg;
use crate::provision;
use crate::verify::source::{POOL, POOL_OF};
use crate::verify::{Bench, LOGIN_LIMIT, Verdict, full_text};

pub(super) async fn verdict(bench: &Bench<'_>) -> Result<Verdict> {
    let mut admin = bench.admin().await?;
    let counts = Counts::read(&mut admin).await?;
    provision::close(admin).await;
    let wanted = (counts.max_connections * POOL / POOL_OF).clamp(1, POOL);
    let free = counts.ordinary() - counts.open;
    // One is left for whoever comes meanwhile.
    let size = if free >= wanted { wanted } else { free - 1 };
    let open = format!("{} of {} connections are open already", counts.open, counts.ordinary());
    if size < 1 {
        return Ok(Verdict::fail(open, "pg_stat_activity", format!("a pool of {wanted} cannot be opened")));
    }
    let begin = Instant::now();
    let login = bench.running.server.login();
    let opened = join_all((0..size).map(|_| pg::connect(&login, begin + LOGIN_LIMIT))).await;
    let mut pool = Vec::new();
    let mut refused = None;
    for outcome in opened {
        match outcome {
            Ok(connection) => pool.push(connection),
            Err(error) => refused = Some(error.into_error(&login)),
        }
    }
    let proof = format!("{POOL} clients, a query each, through a pool of {size}");
    let verdict = if let Some(error) = refused {
        Verdict::fail(format!("{} connections of {size}", pool.len()), proof, full_text(&error))
    } else {
        let connections = serve(&mut pool).await?;
        let has = format!("{connections} connections served them in {} ms, none refused", begin.elapsed().as_millis());
        if size < wanted {
            Verdict::not_applicable(has, proof, format!("the profile's pool has {wanted}, but {open}"))
        } else {
            Verdict::pass(has, proof)
        }
    };
    join_all(pool.into_iter().map(provision::close)).await;
    Ok(verdict)
}

/// Lets all clients ask once. Returns how many of the server's processes served them.
async fn serve(pool: &mut Vec<PgConnection>) -> Result<usize> {
    let what = || "a client of the pool was not served";
    let permits = Semaphore::new(pool.len());
    let idle = Mutex::new(std::mem::take(pool));
    let take = || idle.lock().unwrap_or_else(PoisonError::into_inner);
    let client = || async {
        let _permit = permits.acquire().await.or_failed(what)?;
        let mut connection = take().pop().expect("there is one for each permit");
        let answer = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(&mut connection).await;
        take().push(connection);
        answer.or_failed(what)?.try_get::<i32, _>(0).or_failed(what)
    };
    let served = try_join_all((0..POOL).map(|_| client())).await;
    *pool = idle.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(served?.into_iter().collect::<HashSet<_>>().len())
}

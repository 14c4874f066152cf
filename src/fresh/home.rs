//! The thread of a process that keeps its sessions with servers, so that a lease does not depend on the runtime of a test.
//!
//! What must hold: one thread for a process; a process that was forked has a thread of its own and leaves the sessions of
//! its parent alone; nobody in here waits for the thread of a test.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use tokio::runtime::{Builder, Handle};

use super::config::{self, FreshConfig};
use super::guard::Fresh;
use super::pool::{Lease, Pool};
use super::session;
use super::template::Template;
use crate::error::{Context, Error, ErrorKind, Result};

/// How many databases are kept ready for a process that has asked for more than one.
const AHEAD: usize = 4;

static HOME: Mutex<Option<Arc<Home>>> = Mutex::new(None);

/// The thread, and what is open.
pub(super) struct Home {
    /// The process that it belongs to.
    pub(super) process: u32,
    pub(super) runtime: Handle,
    open: tokio::sync::Mutex<Open>,
}

#[derive(Default)]
struct Open {
    pools: HashMap<String, Pool>,
    templates: HashMap<String, (Template, bool)>,
    /// How often each was asked for.
    takes: HashMap<String, u64>,
}

impl Home {
    /// That of this process.
    pub(super) fn of_process() -> Result<Arc<Self>> {
        let mut home = HOME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(home) = home.as_ref().filter(|home| home.process == std::process::id()) {
            return Ok(home.clone());
        }
        let new = Arc::new(Self {
            process: std::process::id(),
            runtime: start_thread()?,
            open: tokio::sync::Mutex::default(),
        });
        // That of a parent process is left as it is: its sockets, and what the system watches of them, are shared.
        std::mem::forget(home.replace(new.clone()));
        Ok(new)
    }

    /// As a process finds it that was forked from this one.
    #[cfg(test)]
    pub(super) fn as_seen_by_a_child(&self) -> Arc<Self> {
        Arc::new(Self { process: self.process + 1, runtime: self.runtime.clone(), open: tokio::sync::Mutex::default() })
    }

    pub(super) async fn fresh(self: Arc<Self>, config: FreshConfig) -> Result<Fresh> {
        let (send, receive) = tokio::sync::oneshot::channel();
        let home = self.clone();
        // A caller who went away gives back by dropping the guard.
        self.runtime.spawn(async move { drop(send.send(home.take(config).await)) });
        receive.await.or_failed(|| "the thread for fresh databases has ended")?
    }

    pub(super) fn fresh_blocking(self: Arc<Self>, config: FreshConfig) -> Result<Fresh> {
        let (send, receive) = mpsc::channel();
        let home = self.clone();
        self.runtime.spawn(async move { drop(send.send(home.take(config).await)) });
        receive.recv().or_failed(|| "the thread for fresh databases has ended")?
    }

    async fn take(self: Arc<Self>, config: FreshConfig) -> Result<Fresh> {
        let identity = config.identity();
        let (pool, lease, keep) = match self.lease(&config, &identity).await {
            Err(error) if is_stale(&error) => {
                // The server was made anew, or the template went: once more from the beginning.
                let mut open = self.open.lock().await;
                open.templates.remove(&identity);
                open.pools.remove(&config.pool_identity());
                drop(open);
                self.lease(&config, &identity).await?
            }
            other => other?,
        };
        let takes = self.count(identity).await;
        if takes == 2 {
            pool.make_ahead(AHEAD);
        }
        let keep = config.keep_on_failure.unwrap_or(keep);
        Ok(Fresh::new(self, pool, lease, keep, config.connections_wanted()))
    }

    async fn lease(&self, config: &FreshConfig, identity: &str) -> Result<(Pool, Lease, bool)> {
        let (pool, template, keep) = self.prepare(config, identity).await?;
        let lease = pool.take(&template).await?;
        Ok((pool, lease, keep))
    }

    /// Opens what is not open. Who comes second waits for the first.
    async fn prepare(&self, config: &FreshConfig, identity: &str) -> Result<(Pool, Template, bool)> {
        let mut open = self.open.lock().await;
        let pool_identity = config.pool_identity();
        if let (Some(pool), Some((template, keep))) = (open.pools.get(&pool_identity), open.templates.get(identity)) {
            return Ok((pool.clone(), template.clone(), *keep));
        }
        let settings = config.settings()?;
        let recipe = config.recipe(&settings)?;
        let pool = match open.pools.get(&pool_identity) {
            Some(pool) => pool.clone(),
            None => config::open(&settings, Some(config.connections_wanted()), holder_name(), &config.events).await?,
        };
        open.pools.insert(pool_identity, pool.clone());
        let template = pool.template(&recipe).await?;
        let keep = settings.fresh.keep_on_failure.value;
        open.templates.insert(identity.to_owned(), (template.clone(), keep));
        Ok((pool, template, keep))
    }

    async fn count(&self, identity: String) -> u64 {
        let mut open = self.open.lock().await;
        let takes = open.takes.entry(identity).or_default();
        *takes += 1;
        *takes
    }
}

fn start_thread() -> Result<Handle> {
    let what = || "cannot start the thread for fresh databases";
    let runtime = Builder::new_current_thread().enable_all().build().or_failed(what)?;
    let handle = runtime.handle().clone();
    let thread = thread::Builder::new().name("tfdev-fresh".to_owned());
    thread.spawn(move || runtime.block_on(std::future::pending::<()>())).or_failed(what)?;
    Ok(handle)
}

/// How the list names this process.
pub fn holder_name() -> String {
    let program = std::env::current_exe().ok();
    let name = program.as_deref().and_then(|path| path.file_name()).map(|name| name.to_string_lossy().into_owned());
    format!("{} (process {})", name.unwrap_or_else(|| "a program".to_owned()), std::process::id())
}

/// Whether the server is no longer the one that the pool was opened with, or lacks what was made there.
fn is_stale(error: &Error) -> bool {
    let is_missing_table = error.causes().iter().any(|cause| cause.contains("tfdev.fresh_"));
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Refused)
        || is_missing_table
        || session::is_lost(error)
        || session::is_turned_away(error)
}

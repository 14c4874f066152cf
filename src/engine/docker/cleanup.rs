//! Removing what must not outlive its use, also when the work on it is dropped in the middle (Ctrl-C, a time limit).
//!
//! What must hold: the removal of a dropped guard is under way at once, and [`settle`] waits for it before the process
//! ends. A process that is killed cannot do that; whoever needs the name next removes what was left.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bollard::Docker;
use bollard::query_parameters::RemoveContainerOptionsBuilder;
use tokio::task::JoinHandle;

/// Removals that are under way.
static PENDING: Mutex<Vec<JoinHandle<()>>> = Mutex::new(Vec::new());

/// Removes a container, with its unnamed volumes, when it is dropped.
pub(super) struct RemoveOnDrop {
    docker: Docker,
    name: String,
}

impl RemoveOnDrop {
    /// Guards the container `name`, which need not exist yet.
    pub(super) fn new(docker: &Docker, name: &str) -> Self {
        Self { docker: docker.clone(), name: name.to_owned() }
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let (docker, name) = (self.docker.clone(), std::mem::take(&mut self.name));
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let removal = runtime.spawn(async move {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            // There is nobody to tell; what stays is removed by whoever needs the name next.
            let _ = docker.remove_container(&name, Some(options)).await;
        });
        PENDING.lock().unwrap_or_else(PoisonError::into_inner).push(removal);
    }
}

/// Waits, for at most `limit`, until everything that was dropped is removed.
pub async fn settle(limit: Duration) {
    let pending = std::mem::take(&mut *PENDING.lock().unwrap_or_else(PoisonError::into_inner));
    let all = futures_util::future::join_all(pending);
    // What is not done in time is removed by whoever needs the name next.
    let _ = tokio::time::timeout(limit, all).await;
}

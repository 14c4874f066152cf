//! What tells of the service itself.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use super::failure::{Failure, json, typed};
use super::integresql::PREFIX;
use super::metrics::Now;
use super::shared::Shared;

/// The description of all calls, for programs that make clients of it; a test holds it to the routes.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

/// How long the server may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// `GET /healthz`: whether databases can be had.
pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    if shared.is_closing() {
        return Err(Failure::closing());
    }
    shared.pools.current().check(ANSWER_LIMIT).await.map_err(|error| Failure::unavailable(error.to_string()))?;
    Ok(json(StatusCode::OK, &serde_json::json!({ "status": "ok" })))
}

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<Response, Failure> {
    let pool = shared.pools.current();
    let (databases, ready) = (pool.list().await?, pool.ready_templates(PREFIX).await?);
    let (taken, unlocked) = shared.templates().counts();
    let now = Now {
        databases,
        most: shared.pools.settings().fresh.max_databases.value,
        templates_ready: ready.len(),
        templates_filling: shared.templates().count_filling(),
        waiting: shared.waiting(),
        taken,
        unlocked,
        leases: shared.leases().len(),
        backups: crate::backup::gauges::read(shared.pools.settings())?,
    };
    Ok(typed(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", shared.metrics.text(&now)))
}

/// `GET /openapi.json`.
pub(super) async fn openapi() -> Response {
    typed(StatusCode::OK, "application/json", OPENAPI)
}

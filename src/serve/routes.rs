//! Which call goes where, and what is done with all of them: the guard, a number for each, the form of errors.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, patch, post, put};

use super::failure::Failure;
use super::shared::Shared;
use super::{integresql, leases, own};

/// The header by which a client finds its call in a log.
const REQUEST_ID: &str = "x-request-id";

/// The longest number of a call that is taken from a client.
const LONGEST_REQUEST_ID: usize = 200;

/// All calls: method, path, what answers.
fn routes() -> Vec<(&'static str, &'static str, MethodRouter<Arc<Shared>>)> {
    vec![
        ("POST", "/api/v1/templates", post(integresql::begin)),
        ("PUT", "/api/v1/templates/{hash}", put(integresql::finalize)),
        ("DELETE", "/api/v1/templates/{hash}", delete(integresql::discard)),
        ("GET", "/api/v1/templates/{hash}/tests", get(integresql::hand_out)),
        ("POST", "/api/v1/templates/{hash}/tests/{id}/unlock", post(integresql::unlock)),
        ("DELETE", "/api/v1/templates/{hash}/tests/{id}", delete(integresql::unlock)),
        ("POST", "/api/v1/templates/{hash}/tests/{id}/recreate", post(integresql::recreate)),
        ("DELETE", "/api/v1/admin/templates", delete(integresql::discard_all)),
        ("GET", "/fresh", get(leases::fresh)),
        ("GET", "/leases", get(leases::list)),
        ("POST", "/leases", post(leases::begin)),
        ("PATCH", "/leases/{id}", patch(leases::extend)),
        ("DELETE", "/leases/{id}", delete(leases::end)),
        ("GET", "/healthz", get(own::health)),
        ("GET", "/metrics", get(own::metrics)),
        ("GET", "/openapi.json", get(own::openapi)),
    ]
}

/// The service as axum runs it.
pub(super) fn router(shared: Arc<Shared>) -> Router {
    let mut router = Router::new();
    for (_, path, answer) in routes() {
        // A slash at the end changes nothing.
        router = router.route(path, answer.clone()).route(&format!("{path}/"), answer);
    }
    let not_found = || async { Failure::not_found("there is no such call; GET /openapi.json lists them") };
    let not_allowed = || async { Failure::new(StatusCode::METHOD_NOT_ALLOWED, "the method is not one of this path") };
    router
        .fallback(not_found)
        .method_not_allowed_fallback(not_allowed)
        .layer(middleware::from_fn_with_state(shared.clone(), about_every_call))
        .with_state(shared)
}

/// Guards, counts and numbers a call.
async fn about_every_call(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let (method, route) = (known_method(&request), route.trim_end_matches('/').to_owned());
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
    let mut response = match shared.guard.check(host, request.headers(), route == "/healthz") {
        Ok(()) => next.run(request).await,
        Err(failure) => failure.into_response(),
    };
    if response.status() == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    // The axum's own refusals of a path that is not text, and the like, are plain text.
    if response.status().is_client_error() && !is_json(&response) {
        let status = response.status();
        response = Failure::new(status, status.canonical_reason().unwrap_or("refused")).into_response();
    }
    shared.metrics.answered(method, &route, response.status().as_u16());
    response.headers_mut().insert(REQUEST_ID, id);
    // What is answered has passwords in it.
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// The client's own number of the call, else a new one.
fn request_id(request: &Request) -> HeaderValue {
    let given = request.headers().get(REQUEST_ID).filter(|id| (1..=LONGEST_REQUEST_ID).contains(&id.len()));
    given.cloned().unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().simple().to_string();
        HeaderValue::from_str(&id).expect("hexadecimal digits")
    })
}

/// The method, or one word for all others: clients can make up as many as they like.
fn known_method(request: &Request) -> &'static str {
    const KNOWN: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    KNOWN.into_iter().find(|known| *known == request.method().as_str()).unwrap_or("other")
}

fn is_json(response: &Response) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    content_type.is_some_and(|content_type| content_type.starts_with("application/json"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_openapi_file_lists_every_call_and_no_other() {
        let file: serde_json::Value = serde_json::from_str(own::OPENAPI).unwrap();
        assert_eq!(file["info"]["version"], env!("CARGO_PKG_VERSION"));
        let mut listed = BTreeSet::new();
        for (path, operations) in file["paths"].as_object().unwrap() {
            let parameters = path.matches('{').count();
            for (method, operation) in operations.as_object().unwrap().iter().filter(|(key, _)| *key != "parameters") {
                listed.insert((method.to_uppercase(), path.clone()));
                let own = operation["parameters"].as_array().into_iter().flatten();
                let common = operations["parameters"].as_array().into_iter().flatten();
                let in_path = own.chain(common).filter(|parameter| parameter["in"] == "path").count();
                assert_eq!(in_path, parameters, "{method} {path}");
                assert!(operation["summary"].is_string() && operation["responses"].is_object(), "{method} {path}");
            }
        }
        let there = routes().into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
        assert_eq!(listed, there);
    }
}

//! What a call that failed is answered with: a status and `{"message":…}`, the form of IntegreSQL.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::error::{Error, ErrorKind};

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(super) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(super) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// Whether what the call is about is not there, or is someone else's to end.
    pub(super) fn is_unknown(&self) -> bool {
        matches!(self.status, StatusCode::NOT_FOUND | StatusCode::LOCKED)
    }

    #[cfg(test)]
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    pub(super) fn closing() -> Self {
        Self::unavailable("the service is ending")
    }
}

impl From<Error> for Failure {
    /// What the server of the instance, or the way to it, has failed with. None of it is the client's fault.
    fn from(error: Error) -> Self {
        let is_out_of_reach = crate::fresh::is_lost(&error)
            || matches!(
                error.kind(),
                ErrorKind::NotFound
                    | ErrorKind::TimedOut
                    | ErrorKind::NoEngine
                    | ErrorKind::Conflict
                    | ErrorKind::Refused
            );
        let status = if is_out_of_reach { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::INTERNAL_SERVER_ERROR };
        let causes = error.causes().into_iter().fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        let message = error.hints().iter().fold(causes, |text, hint| format!("{text}; {hint}"));
        Self { status, message }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        json(self.status, &serde_json::json!({ "message": self.message }))
    }
}

/// An answer with a JSON document.
pub(super) fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    let text = serde_json::to_string(value).expect("answers have text as keys");
    typed(status, "application/json; charset=UTF-8", text)
}

/// An answer with text of a type.
pub(super) fn typed(status: StatusCode, content_type: &'static str, text: impl Into<Body>) -> Response {
    let mut response = Response::new(text.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The answer to what is done and has nothing to tell.
pub(super) fn done() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

//! What clients send: JSON or a form, read whole and bounded.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use serde::de::DeserializeOwned;

use super::failure::Failure;

/// The most bytes of a body. All that is of use has some hundreds; the rest of a longer one is read, so that the client
/// hears what is wrong with it.
pub(super) const LONGEST_BODY: usize = 2 << 20;

/// How long the body may take to arrive.
const BODY_LIMIT: std::time::Duration = std::time::Duration::from_secs(10);

/// The body of a call.
#[derive(Debug)]
pub(super) struct Input {
    bytes: Bytes,
    is_form: bool,
}

impl<S: Sync> FromRequest<S> for Input {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let is_form = is_form(request.headers());
        Ok(Self { bytes: read_body(request.into_body()).await?, is_form })
    }
}

impl Input {
    /// The body as what it should be.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let looks_like_json = self.bytes.trim_ascii_start().starts_with(b"{");
        if self.is_form && !looks_like_json {
            return read_form(&self.bytes);
        }
        serde_json::from_slice(&self.bytes)
            .map_err(|error| Failure::bad_request(format!("the body is not the JSON that is expected: {error}")))
    }

    /// As [`Input::read`]; nothing at all counts as an object without members.
    pub(super) fn read_or_default<T: DeserializeOwned + Default>(&self) -> Result<T, Failure> {
        if matches!(self.bytes.trim_ascii(), b"" | b"null" | b"\"\"") { Ok(T::default()) } else { self.read() }
    }
}

/// Reads `name=value` pairs, as in forms and after the question mark of an address.
pub(super) fn read_form<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let pairs = form_urlencoded::parse(bytes);
    let pairs = pairs.map(|(name, value)| (name.into_owned(), serde_json::Value::String(value.into_owned())));
    let object = serde_json::Value::Object(pairs.collect());
    serde_json::from_value(object).map_err(|error| Failure::bad_request(format!("the parameters are wrong: {error}")))
}

fn is_form(headers: &HeaderMap) -> bool {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/x-www-form-urlencoded")
}

/// Reads a body to its end.
pub(super) async fn read_body(body: Body) -> Result<Bytes, Failure> {
    let read = tokio::time::timeout(BODY_LIMIT, axum::body::to_bytes(body, LONGEST_BODY)).await;
    let late = |_| Failure::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
    read.map_err(late)?.map_err(|_| {
        Failure::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {LONGEST_BODY} bytes, or broke off"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Wanted {
        hash: Option<String>,
    }

    fn read(text: &str, is_form: bool) -> Result<Wanted, u16> {
        let input = Input { bytes: Bytes::copy_from_slice(text.as_bytes()), is_form };
        input.read_or_default().map_err(|failure| failure.status().as_u16())
    }

    #[test]
    fn bodies_are_json_or_forms_and_nothing_at_all_is_an_empty_one() {
        let hash = Ok(Wanted { hash: Some("a b".to_owned()) });
        assert_eq!(read(r#"{"hash":"a b"}"#, false), hash);
        // A client that says form and sends JSON, as the defaults of curl do.
        assert_eq!(read(r#" {"hash":"a b"}"#, true), hash);
        assert_eq!(read("hash=a+b", true), hash);
        for nothing in ["", "null", "\"\"", " "] {
            assert_eq!(read(nothing, false), Ok(Wanted::default()), "{nothing}");
        }
        for wrong in ["{", "[]", "1", r#"{"hash":1}"#, r#"{"other":"x"}"#, "hash=x"] {
            assert_eq!(read(wrong, false), Err(400), "{wrong}");
        }
        assert_eq!(read("other=x", true), Err(400));
    }
}

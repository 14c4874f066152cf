//! Who may call: programs that reach the address, and no page in a browser.
//!
//! What must hold: a page of another site can neither call the service (its browser names the page in `Origin` or
//! `Sec-Fetch-Site`) nor pass for a page of the service by a name that resolves to this machine (its `Host` is that name,
//! and none that the user has allowed). An address that is not loopback wants a token.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use axum::http::{HeaderMap, StatusCode, header, uri::Authority};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::failure::Failure;
use crate::error::{Context, Error, ErrorKind, Result};

/// The fewest characters of a token: with random ones, more than anybody can try.
const SHORTEST_TOKEN: usize = 16;

/// A token, as a hash: the comparison then takes the same time however much of it is right.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Token")
    }
}

impl Token {
    /// A token of at least 16 printable characters.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if it has fewer, or others.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.len() < SHORTEST_TOKEN || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let message = format!("the token must have {SHORTEST_TOKEN} printable characters or more");
            return Err(Error::bad_input(message).hint("`openssl rand -hex 32` makes one"));
        }
        Ok(Self::hash(text))
    }

    /// The token in a file.
    pub fn read(file: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(file)
            .context(ErrorKind::BadInput, || format!("cannot read the token in {}", file.display()))?;
        Self::new(&text)
    }

    fn hash(text: &str) -> Self {
        Self(Sha256::digest(text).into())
    }

    fn is(&self, given: &str) -> bool {
        self.0 == Self::hash(given).0
    }
}

/// Decides on calls.
#[derive(Debug)]
pub(super) struct Guard {
    listen: SocketAddr,
    token: Option<Token>,
    /// Names by which the user's programs call the service.
    names: Vec<String>,
}

impl Guard {
    /// `names` are those that count beside the addresses of this machine.
    ///
    /// Fails with [`ErrorKind::Refused`] if the address can be reached from other machines and there is no token, and with
    /// [`ErrorKind::Usage`] if a name is none.
    pub(super) fn new(listen: SocketAddr, token: Option<Token>, names: &[String]) -> Result<Self> {
        if !listen.ip().is_loopback() && token.is_none() {
            return Err(Error::new(
                ErrorKind::Refused,
                format!("{listen} can be reached from other machines, and there is no token"),
            )
            .hint("write one into a file: `openssl rand -hex 32 > token`, then `tfdev serve --token-file token`")
            .hint("or listen on 127.0.0.1, as without `--listen`"));
        }
        if let Some(wrong) = names.iter().find(|name| !is_name(name)) {
            return Err(Error::new(ErrorKind::Usage, format!("`{wrong}` is not the name of a host"))
                .hint("without a scheme and a port: `--allow-host integresql`"));
        }
        Ok(Self { listen, token, names: names.to_vec() })
    }

    /// Whether a call with these headers may go on; `open` is for what tells nothing but that the service lives.
    pub(super) fn check(&self, host: Option<&str>, headers: &HeaderMap, open: bool) -> Result<(), Failure> {
        let forbidden = |message: &str| Err(Failure::new(StatusCode::FORBIDDEN, message));
        let Some(host) = host.and_then(|host| host.parse::<Authority>().ok()) else {
            return Err(Failure::bad_request("the header `Host` is missing or wrong"));
        };
        let authorized = self.is_authorized(headers);
        // Another name than ours: some site's that resolves to this machine. With the token it is no browser's doing.
        let has_token = self.token.is_some() && (authorized || open);
        if !(self.is_ours(&host) || has_token) {
            let name = host.host();
            return forbidden(&format!(
                "the header `Host` names `{name}`, which any web site can make a name of this machine; \
                 `tfdev serve --allow-host {name}` allows it"
            ));
        }
        if let Some(origin) = headers.get(header::ORIGIN)
            && origin.to_str().ok().and_then(|origin| origin.strip_prefix("http://")) != Some(host.as_str())
        {
            return forbidden("calls from pages of other sites are refused (`Origin`)");
        }
        if let Some(site) = headers.get("sec-fetch-site")
            && site != "same-origin"
            && site != "none"
        {
            return forbidden("calls from pages of other sites are refused (`Sec-Fetch-Site`)");
        }
        if !authorized && !open {
            return Err(Failure::new(
                StatusCode::UNAUTHORIZED,
                "the token is missing or wrong: `Authorization: Bearer TOKEN`, or as the password of the URL",
            ));
        }
        Ok(())
    }

    /// Whether a host is this machine by a name that no other site can have.
    fn is_ours(&self, host: &Authority) -> bool {
        let name = host.host();
        let address = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            Ok(address) => address.is_loopback() || address == self.listen.ip(),
            Err(_) => ["localhost"]
                .into_iter()
                .chain(self.names.iter().map(String::as_str))
                .any(|own| name.eq_ignore_ascii_case(own)),
        }
    }

    /// Whether the token is there, as a bearer's or, for clients that know URLs alone, as the password in the URL.
    fn is_authorized(&self, headers: &HeaderMap) -> bool {
        let Some(token) = &self.token else { return true };
        let Some(given) = headers.get(header::AUTHORIZATION).and_then(|given| given.to_str().ok()) else {
            return false;
        };
        let Some((scheme, rest)) = given.split_once(' ') else { return false };
        if scheme.eq_ignore_ascii_case("bearer") {
            return token.is(rest.trim());
        }
        let basic = scheme.eq_ignore_ascii_case("basic").then(|| STANDARD.decode(rest.trim()).ok()).flatten();
        let basic = basic.and_then(|text| String::from_utf8(text).ok());
        basic.and_then(|text| text.split_once(':').map(|(_, password)| token.is(password))).unwrap_or(false)
    }
}

/// Whether a text is the name of a host and nothing else.
fn is_name(text: &str) -> bool {
    text.parse::<Authority>().is_ok_and(|authority| authority.host() == text && !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn status(guard: &Guard, host: Option<&str>, pairs: &[(&'static str, &str)]) -> u16 {
        guard.check(host, &headers(pairs), false).map_or_else(|failure| failure.status().as_u16(), |()| 200)
    }

    #[test]
    fn programs_may_call_and_pages_may_not() {
        let guard = Guard::new("127.0.0.1:5000".parse().unwrap(), None, &[]).unwrap();
        for host in ["127.0.0.1:5000", "localhost:5000", "LOCALHOST", "[::1]:5000", "127.1.2.3"] {
            assert_eq!(status(&guard, Some(host), &[]), 200, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:5000", "192.168.0.7:5000", "127.0.0.1.evil.example"] {
            assert_eq!(status(&guard, Some(host), &[]), 403, "{host}");
        }
        assert_eq!(status(&guard, None, &[]), 400);
        assert_eq!(status(&guard, Some("a b"), &[]), 400);
        let own = Some("127.0.0.1:5000");
        assert_eq!(status(&guard, own, &[("origin", "http://127.0.0.1:5000")]), 200);
        assert_eq!(status(&guard, own, &[("sec-fetch-site", "none")]), 200);
        for origin in ["http://evil.example", "null", "https://127.0.0.1:5000", "http://127.0.0.1:8080"] {
            assert_eq!(status(&guard, own, &[("origin", origin)]), 403, "{origin}");
        }
        assert_eq!(status(&guard, own, &[("sec-fetch-site", "cross-site")]), 403);
        assert_eq!(status(&guard, own, &[("sec-fetch-site", "same-site")]), 403);
    }

    #[test]
    fn a_name_that_the_user_allows_is_one_of_ours() {
        let guard = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            Guard::new("127.0.0.1:5000".parse().unwrap(), None, &names)
        };
        let allowing = guard(&["integresql", "db.test"]).unwrap();
        for host in ["integresql:5000", "IntegreSQL", "db.test:80", "localhost"] {
            assert_eq!(status(&allowing, Some(host), &[]), 200, "{host}");
        }
        assert_eq!(status(&allowing, Some("integresql.evil.example:5000"), &[]), 403);
        assert_eq!(status(&allowing, Some("integresql:5000"), &[("origin", "http://evil.example")]), 403);
        for wrong in ["", "http://integresql", "integresql:5000", "user@integresql", "a b"] {
            assert_eq!(guard(&[wrong]).unwrap_err().kind(), ErrorKind::Usage, "{wrong}");
        }
    }

    #[test]
    fn an_address_that_others_reach_wants_a_token() {
        let listen: SocketAddr = "0.0.0.0:5000".parse().unwrap();
        assert_eq!(Guard::new(listen, None, &[]).unwrap_err().kind(), ErrorKind::Refused);
        let token = "0123456789abcdef";
        assert!(Token::new("0123456789abcde").is_err() && Token::new("0123456789 abcdef").is_err());
        let guard = Guard::new(listen, Some(Token::new(&format!("{token}\n")).unwrap()), &[]).unwrap();
        let host = Some("ci.example:5000");
        assert_eq!(status(&guard, host, &[("authorization", &format!("Bearer {token}"))]), 200);
        let basic = format!("Basic {}", STANDARD.encode(format!("user:{token}")));
        assert_eq!(status(&guard, host, &[("authorization", &basic)]), 200);
        assert_eq!(status(&guard, host, &[]), 403);
        for wrong in ["Bearer 0123456789abcdeg", "Bearer", "Basic !", "Digest x"] {
            assert_eq!(status(&guard, Some("127.0.0.1"), &[("authorization", wrong)]), 401, "{wrong}");
        }
        // A probe of the machine's health has neither.
        assert!(guard.check(host, &HeaderMap::new(), true).is_ok());
        assert_eq!(format!("{guard:?}").matches(token).count(), 0);
    }
}

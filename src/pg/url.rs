//! The URL of a server of someone else, as libpq reads it, without a password.
//!
//! What must hold: no message repeats a value of the URL, because what stands in the wrong place may be a password.

use std::path::PathBuf;

use percent_encoding::percent_decode_str;

/// PostgreSQL's own port.
const DEFAULT_PORT: u16 = 5432;

/// The parameters of the URL that are understood.
const PARAMETERS: [&str; 5] = ["host", "sslmode", "sslrootcert", "sslcert", "sslkey"];

/// libpq's TLS modes (PostgreSQL 15 § 34.19.1, SSL Mode Descriptions).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    /// Never.
    Disable,
    /// Only if the server wants it.
    Allow,
    /// If the server can: libpq's default.
    Prefer,
    /// Always.
    Require,
    /// Always, with a certificate of a known authority.
    VerifyCa,
    /// Always, with a certificate of a known authority for the very host.
    VerifyFull,
}

impl TlsMode {
    const ALL: [(Self, &str); 6] = [
        (Self::Disable, "disable"),
        (Self::Allow, "allow"),
        (Self::Prefer, "prefer"),
        (Self::Require, "require"),
        (Self::VerifyCa, "verify-ca"),
        (Self::VerifyFull, "verify-full"),
    ];

    /// libpq's word for it.
    pub fn word(self) -> &'static str {
        Self::ALL.iter().find(|(mode, _)| *mode == self).expect("every mode is in the table").1
    }
}

/// The parts of a server's URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUrl {
    /// A host name, an address, or the folder of a Unix socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The role.
    pub user: Option<String>,
    /// The database to log in to before tfdev's own are there.
    pub database: Option<String>,
    /// `sslmode`, if it is there.
    pub tls_mode: Option<TlsMode>,
    /// `sslrootcert`: the certificate authority's certificate.
    pub root_cert: Option<PathBuf>,
    /// `sslcert`: the client's certificate.
    pub client_cert: Option<PathBuf>,
    /// `sslkey`: the key of the client's certificate.
    pub client_key: Option<PathBuf>,
}

impl ServerUrl {
    /// Reads a URL. The error is a predicate: it follows the name of the key that holds the URL.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = || "must be a URL such as \"postgres://user@host:5432/database\"".to_owned();
        let rest = text.strip_prefix("postgres://").or_else(|| text.strip_prefix("postgresql://")).ok_or_else(shape)?;
        let (address, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) = address.split_once('/').unwrap_or((address, ""));
        let (user, place) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (host, port) = match place.strip_prefix('[') {
            Some(rest) => rest.split_once(']').ok_or_else(shape)?,
            None => place.find(':').map_or((place, ""), |colon| place.split_at(colon)),
        };
        let port = match port.strip_prefix(':') {
            None | Some("") => DEFAULT_PORT,
            Some(port) => port.parse().map_err(|_| shape())?,
        };
        let mut url = Self {
            host: decoded(host).ok_or_else(shape)?,
            port,
            user: Some(decoded(user).ok_or_else(shape)?).filter(|user| !user.is_empty()),
            database: Some(decoded(database).ok_or_else(shape)?).filter(|database| !database.is_empty()),
            tls_mode: None,
            root_cert: None,
            client_cert: None,
            client_key: None,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            url.set(name, decoded(value).ok_or_else(shape)?)?;
        }
        if url.host.is_empty() {
            "localhost".clone_into(&mut url.host);
        }
        Ok(url)
    }

    fn set(&mut self, name: &str, value: String) -> Result<(), String> {
        let path = || Some(PathBuf::from(&value)).filter(|path| !value.is_empty() && path.is_absolute());
        let absolute = || path().ok_or_else(|| format!("must give `{name}` as an absolute path"));
        match name {
            "host" if value.starts_with('/') && self.host.is_empty() => self.host = value,
            "host" => {
                return Err("must hold the host in front of the database; only a socket's folder may stand in \
                                  `host=`"
                    .to_owned());
            }
            "sslmode" => self.tls_mode = Some(tls_mode(&value)?),
            "sslrootcert" => self.root_cert = Some(absolute()?),
            "sslcert" => self.client_cert = Some(absolute()?),
            "sslkey" => self.client_key = Some(absolute()?),
            _ => {
                let known = PARAMETERS.map(|known| format!("`{known}`")).join(", ");
                return Err(format!("must have no parameters but {known}"));
            }
        }
        Ok(())
    }
}

fn tls_mode(word: &str) -> Result<TlsMode, String> {
    let known = || TlsMode::ALL.map(|(_, word)| format!("`{word}`")).join(", ");
    let mode = TlsMode::ALL.iter().find(|(_, known)| *known == word).map(|(mode, _)| *mode);
    mode.ok_or_else(|| format!("must have one of {} as its `sslmode`", known()))
}

fn decoded(text: &str) -> Option<String> {
    let text = percent_decode_str(text).decode_utf8().ok()?;
    (!text.chars().any(char::is_control)).then(|| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_are_read_as_libpq_reads_them() {
        let url = ServerUrl::parse("postgres://me%40home@db.example:6000/shop?sslmode=verify-full&sslrootcert=/a%20b");
        let url = url.unwrap();
        assert_eq!((url.host.as_str(), url.port), ("db.example", 6000));
        assert_eq!((url.user.as_deref(), url.database.as_deref()), (Some("me@home"), Some("shop")));
        assert_eq!((url.tls_mode, url.root_cert), (Some(TlsMode::VerifyFull), Some(PathBuf::from("/a b"))));
        let url = ServerUrl::parse("postgresql://[::1]").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.user, url.database), ("::1", 5432, None, None));
        assert_eq!(ServerUrl::parse("postgres:///db?host=/run/postgresql").unwrap().host, "/run/postgresql");
        assert_eq!(ServerUrl::parse("postgres://%2Frun%2Fpg:6000/db").unwrap().host, "/run/pg");
        assert_eq!(ServerUrl::parse("postgres:///db").unwrap().host, "localhost");
    }

    #[test]
    fn what_is_not_understood_is_refused_and_not_repeated() {
        for (url, says) in [
            ("postgres://h/db?sslmode=s3cret", "`verify-ca`"),
            ("postgres://h/db?options=s3cret", "no parameters but"),
            ("postgres://h/db?sslrootcert=s3cret", "absolute path"),
            ("postgres://h/db?host=s3cret", "socket's folder"),
            ("postgres://h:s3cret/db", "must be a URL"),
        ] {
            let error = ServerUrl::parse(url).unwrap_err();
            assert!(error.contains(says) && !error.contains("s3cret"), "{error}");
        }
    }
}

//! Whether and how a login is encrypted.
//!
//! What must hold: this machine's own list of authorities is read only for a server whose certificate is to be checked
//! against it. Reading it takes a tenth of a second, and sqlx, left to itself, would do so at each login.

use std::path::PathBuf;
use std::sync::OnceLock;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::url::TlsMode;

/// Whether and how a login is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Not at all: for loopback.
    Disable,
    /// Encrypted, and the server proves with a certificate that `root_cert` signed that it is the host we asked for.
    VerifyFull {
        /// The certificate authority's certificate, a PEM file.
        root_cert: PathBuf,
    },
    /// As the URL of someone else's server says.
    AsGiven(TlsParameters),
}

/// libpq's parameters of encryption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsParameters {
    /// `sslmode`.
    pub mode: TlsMode,
    /// `sslrootcert`.
    pub root_cert: Option<PathBuf>,
    /// `sslcert`.
    pub client_cert: Option<PathBuf>,
    /// `sslkey`.
    pub client_key: Option<PathBuf>,
}

impl TlsParameters {
    /// The modes of sqlx in the order in which libpq would try them: sqlx has no `allow`, tries no plain connection
    /// where `prefer` was refused, and does not take a root certificate as a wish to check.
    pub(super) fn attempts(&self) -> Vec<PgSslMode> {
        match self.mode {
            TlsMode::Disable => vec![PgSslMode::Disable],
            TlsMode::Allow => vec![PgSslMode::Disable, PgSslMode::Require],
            TlsMode::Prefer => vec![PgSslMode::Prefer, PgSslMode::Disable],
            TlsMode::Require if self.root_cert.is_some() => vec![PgSslMode::VerifyCa],
            TlsMode::Require => vec![PgSslMode::Require],
            TlsMode::VerifyCa => vec![PgSslMode::VerifyCa],
            TlsMode::VerifyFull => vec![PgSslMode::VerifyFull],
        }
    }

    pub(super) fn apply(&self, mode: PgSslMode, options: PgConnectOptions) -> PgConnectOptions {
        let options = options.ssl_mode(mode);
        let is_checked = matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull);
        let options = match &self.root_cert {
            Some(root_cert) => options.ssl_root_cert(root_cert),
            None if is_checked => options.ssl_root_cert_from_pem(system_authorities().to_vec()),
            None => options,
        };
        let options = self.client_cert.iter().fold(options, PgConnectOptions::ssl_client_cert);
        self.client_key.iter().fold(options, PgConnectOptions::ssl_client_key)
    }
}

/// The authorities that this machine trusts, as PEM, read once. Those that cannot be read are left out: a certificate of
/// theirs is then refused.
fn system_authorities() -> &'static [u8] {
    static AUTHORITIES: OnceLock<Vec<u8>> = OnceLock::new();
    AUTHORITIES.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs().certs;
        let found: Vec<_> = found.iter().map(|der| pem::Pem::new("CERTIFICATE", der.as_ref())).collect();
        pem::encode_many(&found).into_bytes()
    })
}

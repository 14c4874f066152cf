//! Certificates for servers with `ssl = on`: a certificate authority for each machine, a certificate for each instance.
//!
//! What must hold: the authority's key never leaves the state folder; keys are in files of mode 0600; a certificate is
//! made anew before it expires and when the host under which the server is reached changes; and nothing here is trusted
//! by anything but a connection that names the authority's file.

use std::path::{Path, PathBuf};

use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};
use crate::instance::{Instance, private_file};
use crate::spec::hexadecimal;

/// How long the authority is valid, in days: about ten years.
const AUTHORITY_DAYS: i64 = 3650;
/// How long a server's certificate is valid, in days; the longest that common clients take.
const SERVER_DAYS: i64 = 397;
/// How long before its end a certificate is made anew, in days.
const RENEW_DAYS: i64 = 30;

/// A server's certificate and key.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    /// The certificate, PEM.
    pub certificate: String,
    /// Its private key, PEM.
    pub key: PrivateKey,
    /// The file of the authority that signed it, for `sslrootcert`.
    pub root_cert: PathBuf,
}

/// A private key; it never shows itself.
#[derive(Clone, Serialize, Deserialize)]
pub struct PrivateKey(String);

/// What is kept of a certificate.
#[derive(Serialize, Deserialize)]
struct Kept {
    certificate: String,
    key: PrivateKey,
    not_after: Timestamp,
    /// What it is valid for; for a server its host names, for the authority nothing.
    names: Vec<String>,
    /// Which authority signed it.
    authority: Option<String>,
}

impl ServerCertificate {
    /// The certificate of `instance`, reached under `host`; made now if there is none that is valid long enough.
    ///
    /// The caller holds the instance's lock.
    pub fn of(instance: &Instance, state_dir: &Path, host: &str) -> Result<Self> {
        let now = Timestamp::now();
        let folder = state_dir.join("authority");
        let root_cert = folder.join("root.crt");
        let authority = Kept::or_make(&folder.join("authority.json"), now, &[], None, || authority(now))?;
        if std::fs::read_to_string(&root_cert).ok().as_deref() != Some(&authority.certificate) {
            private_file::write(&root_cert, authority.certificate.as_bytes())?;
        }
        let mut names = vec![host.to_owned()];
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned).into_iter().filter(|name| name != host));
        let fingerprint = hexadecimal(&Sha256::digest(&authority.certificate));
        let path = instance.state_dir.join("certificate.json");
        let kept = Kept::or_make(&path, now, &names, Some(&fingerprint), || server(now, &names, &authority))?;
        Ok(Self { certificate: kept.certificate, key: kept.key, root_cert })
    }

    /// Tells this certificate from others, for the spec's hash.
    pub fn fingerprint(&self) -> String {
        hexadecimal(&Sha256::digest(&self.certificate)[..8])
    }
}

/// The files of certificates below the state folder: of the authority, and of an instance if one is given.
pub fn certificate_file(state_dir: &Path, instance: Option<&Instance>) -> PathBuf {
    instance.map_or_else(
        || state_dir.join("authority/authority.json"),
        |instance| instance.state_dir.join("certificate.json"),
    )
}

/// Until when the certificate in such a file is good; `None` if there is no such file.
///
/// Fails if the file cannot be read or holds no certificate.
pub fn good_until(file: &Path) -> Result<Option<Timestamp>> {
    let what = || format!("the certificate `{}` cannot be read", file.display());
    match std::fs::read(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        bytes => {
            let kept: Kept = serde_json::from_slice(&bytes.or_failed(what)?).or_failed(what)?;
            Ok(Some(kept.not_after))
        }
    }
}

impl PrivateKey {
    /// The key itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for PrivateKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("***")
    }
}

impl Kept {
    /// What is kept at `path`, if it is for these names, of this authority and valid for long enough; else a new one.
    fn or_make(
        path: &Path,
        now: Timestamp,
        names: &[String],
        authority: Option<&str>,
        make: impl FnOnce() -> Result<(String, PrivateKey, Timestamp), rcgen::Error>,
    ) -> Result<Self> {
        let read = || std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Self>(&bytes).ok());
        let good = |kept: &Self| {
            kept.names == names && kept.authority.as_deref() == authority && kept.not_after >= days(now, RENEW_DAYS)
        };
        if let Some(kept) = read().filter(good) {
            return Ok(kept);
        }
        let what = || format!("cannot make the certificate `{}`", path.display());
        let (certificate, key, not_after) = make().or_failed(what)?;
        let kept = Self { certificate, key, not_after, names: names.to_vec(), authority: authority.map(str::to_owned) };
        let text = serde_json::to_vec_pretty(&kept).or_failed(what)?;
        private_file::create_folder(path.parent().ok_or_else(|| Error::failed(what()))?)?;
        private_file::write(path, &text)?;
        // Another process may have made one at the same time: what stands in the file counts.
        Ok(read().filter(good).unwrap_or(kept))
    }
}

fn days(from: Timestamp, days: i64) -> Timestamp {
    from.checked_add(Span::new().hours(days * 24)).unwrap_or(Timestamp::MAX)
}

/// The parameters that every certificate of tfdev has.
fn parameters(now: Timestamp, valid_days: i64, name: &str) -> (CertificateParams, Timestamp) {
    let mut parameters = CertificateParams::default();
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    parameters.distinguished_name = distinguished;
    let day = |at: Timestamp| {
        let date = at.to_zoned(TimeZone::UTC).date();
        date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    // A day earlier, because clocks differ; the end is the beginning of its day.
    let end = days(now, valid_days);
    parameters.not_before = day(days(now, -1));
    parameters.not_after = day(end);
    (parameters, days(end, -1))
}

fn authority_parameters(now: Timestamp) -> (CertificateParams, Timestamp) {
    let (mut parameters, end) = parameters(now, AUTHORITY_DAYS, "tfdev local authority");
    parameters.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (parameters, end)
}

fn authority(now: Timestamp) -> Result<(String, PrivateKey, Timestamp), rcgen::Error> {
    let (parameters, end) = authority_parameters(now);
    let key = KeyPair::generate()?;
    Ok((parameters.self_signed(&key)?.pem(), PrivateKey(key.serialize_pem()), end))
}

fn server(now: Timestamp, names: &[String], authority: &Kept) -> Result<(String, PrivateKey, Timestamp), rcgen::Error> {
    let (mut parameters, end) = parameters(now, SERVER_DAYS, &names[0]);
    parameters.subject_alt_names = CertificateParams::new(names)?.subject_alt_names;
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.use_authority_key_identifier_extension = true;
    // The issuer's name and key are all that signing needs, so the authority's certificate is not parsed.
    let (issuer, _) = authority_parameters(now);
    let issuer = Issuer::new(issuer, KeyPair::from_pem(authority.key.expose())?);
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, &issuer)?;
    Ok((certificate.pem(), PrivateKey(key.serialize_pem()), end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_kept_until_its_host_or_authority_changes() {
        let root = tempfile::tempdir().unwrap();
        let instance = crate::instance::tests::instance(root.path());
        let state = root.path().join("state");
        let first = ServerCertificate::of(&instance, &state, "127.0.0.1").unwrap();
        let again = ServerCertificate::of(&instance, &state, "127.0.0.1").unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        let moved = ServerCertificate::of(&instance, &state, "db.example").unwrap();
        assert_ne!(first.fingerprint(), moved.fingerprint());
        std::fs::remove_dir_all(state.join("authority")).unwrap();
        let renewed = ServerCertificate::of(&instance, &state, "db.example").unwrap();
        assert_ne!(moved.fingerprint(), renewed.fingerprint());
        assert!(!format!("{renewed:?}").contains("PRIVATE KEY"));
    }

    #[test]
    fn one_that_ends_soon_is_made_anew() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("c.json");
        let now = Timestamp::now();
        let make = |text: &'static str, valid_days| {
            move || Ok((text.to_owned(), PrivateKey(String::new()), days(now, valid_days)))
        };
        assert_eq!(Kept::or_make(&path, now, &[], None, make("first", 40)).unwrap().certificate, "first");
        assert_eq!(Kept::or_make(&path, now, &[], None, make("second", 40)).unwrap().certificate, "first");
        let later = days(now, 11);
        assert_eq!(Kept::or_make(&path, later, &[], None, make("second", 400)).unwrap().certificate, "second");
    }
}

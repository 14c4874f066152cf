//! A bucket of S3, or of what speaks like it.
//!
//! Who logs in, and where, comes from the usual places: the variables `AWS_…`, else the file of credentials that
//! `AWS_SHARED_CREDENTIALS_FILE` names or `~/.aws/credentials`, else what a machine or container in the cloud is given.
//! `?endpoint=…&region=…` behind the URL says where another store than Amazon's is; buckets are then part of the path.

use std::sync::{Arc, Once};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, Checksum};
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use percent_encoding::percent_decode_str;

use crate::config::{Setting, Settings};
use crate::error::{Context, Error, ErrorKind, Result};

/// How long one request may take: a part of 8 MB at 70 kB/s.
const REQUEST_LIMIT: Duration = Duration::from_mins(2);

/// How long a store that refuses or does not answer is asked again.
const RETRY_LIMIT: Duration = Duration::from_secs(30);

/// The URL without what stands behind `?`.
pub(super) fn without_parameters(url: &str) -> String {
    url.split('?').next().unwrap_or_default().to_owned()
}

/// The bucket, and the prefix in it.
pub(super) fn open(store: &Setting<String>, settings: &Settings) -> Result<(Arc<dyn ObjectStore>, String)> {
    static PROVIDER: Once = Once::new();
    // The HTTP client has no cryptography of its own; that of the sessions with PostgreSQL is there anyway. Another one
    // that a program has installed is as good.
    PROVIDER.call_once(|| drop(rustls::crypto::ring::default_provider().install_default()));
    let url = without_parameters(&store.value);
    let rest = url.strip_prefix("s3://").unwrap_or_default();
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let options = ClientOptions::new().with_timeout(REQUEST_LIMIT).with_connect_timeout(Duration::from_secs(5));
    let retry = RetryConfig { max_retries: 8, retry_timeout: RETRY_LIMIT, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::new()
        .with_client_options(options)
        .with_retry(retry)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_region("us-east-1");
    let mut endpoint = None;
    for (name, value) in &settings.backup.variables.0 {
        let Ok(key) = name.to_ascii_lowercase().parse() else { continue };
        if name.starts_with("AWS_ENDPOINT_URL") && !name.ends_with("_STS") || name == "AWS_ENDPOINT" {
            endpoint = Some(value.clone());
        }
        builder = builder.with_config(key, value);
    }
    for (name, value) in parameters(&store.value, store)? {
        match name.as_str() {
            "endpoint" => {
                builder = builder.with_endpoint(&value);
                endpoint = Some(value);
            }
            "region" => builder = builder.with_region(value),
            _ => {
                return Err(Error::bad_input(format!("{}: `{name}` is no parameter of a store", store.origin))
                    .hint("the parameters are `endpoint` and `region`"));
            }
        }
    }
    if endpoint.is_some_and(|endpoint| is_loopback(&endpoint)) {
        // What does not leave the machine needs no encryption.
        builder = builder.with_allow_http(true);
    }
    let built = builder.with_bucket_name(bucket).build();
    let objects = built.context(ErrorKind::BadInput, || format!("cannot use the store {url} ({})", store.origin))?;
    Ok((Arc::new(objects), prefix.trim_matches('/').to_owned()))
}

/// What stands behind `?`.
fn parameters(url: &str, store: &Setting<String>) -> Result<Vec<(String, String)>> {
    let Some((_, query)) = url.split_once('?') else { return Ok(Vec::new()) };
    let read = |pair: &str| {
        let (name, value) = pair.split_once('=')?;
        Some((name.to_owned(), percent_decode_str(value).decode_utf8().ok()?.into_owned()))
    };
    let pairs: Option<Vec<_>> = query.split('&').map(read).collect();
    pairs.ok_or_else(|| {
        Error::bad_input(format!("{}: what stands behind `?` cannot be read", store.origin))
            .hint("for example `s3://bucket/prefix?endpoint=https://minio.example.org&region=eu-1`")
    })
}

fn is_loopback(endpoint: &str) -> bool {
    let host = endpoint.strip_prefix("http://").map(|rest| rest.split('/').next().unwrap_or_default());
    host.is_some_and(|host| {
        ["127.0.0.1", "localhost", "[::1]"]
            .iter()
            .any(|own| host.strip_prefix(own).is_some_and(|port| port.is_empty() || port.starts_with(':')))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_goes_without_encryption() {
        for own in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:1/x"] {
            assert!(is_loopback(own), "{own}");
        }
        for other in ["http://127.0.0.1.evil.org", "https://127.0.0.1", "http://10.0.0.1", "http://localhostx"] {
            assert!(!is_loopback(other), "{other}");
        }
    }

    #[test]
    fn parameters_stand_behind_the_url() {
        let store = |url: &str| Setting::default_value(url.to_owned());
        let url = "s3://bucket/prefix?endpoint=http%3A%2F%2F127.0.0.1:9000&region=eu";
        let read = parameters(url, &store(url)).unwrap();
        assert_eq!(read, [("endpoint".into(), "http://127.0.0.1:9000".into()), ("region".into(), "eu".into())]);
        assert_eq!(without_parameters(url), "s3://bucket/prefix");
        assert!(parameters("s3://bucket?nonsense", &store("x")).is_err());
    }
}

//! What server an instance is to have: pure data made from a profile and an image, with no effect on any machine.
//!
//! What must hold: equal specs have equal hashes on every machine, and whatever changes the running server changes the
//! hash. A spec can be printed, compared and tested with no server; the Compose file is one more rendering of it.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use crate::config::PortChoice;
use crate::pg::scram::StoredForm;
use crate::profile::{DataPlacement, Limits, Profile};

/// The major version that everything here is made for (CON-003 § Engine).
pub const POSTGRES_MAJOR: u32 = 15;

/// Where the data folder is inside the container (CON-003 § Deployment, Persistence).
pub const DATA_DIRECTORY: &str = "/var/lib/postgresql/data";

/// The superuser, as the official image names it unless told otherwise.
pub const SUPERUSER: &str = "postgres";

/// The folder inside the container that holds what tfdev uploads.
pub const FILES_DIRECTORY: &str = "/etc/tfdev";

/// The server's certificate inside the container.
pub const CERTIFICATE_FILE: &str = "/etc/tfdev/server.crt";

/// The key of the server's certificate inside the container.
pub const KEY_FILE: &str = "/etc/tfdev/server.key";

/// Who may log in how, inside the container, for a server with `ssl = on`.
pub const HOST_BASED_AUTHENTICATION_FILE: &str = "/etc/tfdev/pg_hba.conf";

/// The rules of a server with `ssl = on`: passwords for all, TLS for all that comes over the network.
pub const TLS_ONLY_RULES: &str = "local all all trust\nlocal replication all trust\n\
                                  hostssl all all all scram-sha-256\nhostssl replication all all scram-sha-256\n";

/// The rules of a server whose profile is `test` or made from it: passwords for all. The method `md5` takes a password in
/// either stored form, by its own kind of login.
pub const SHORT_LOGIN_RULES: &str = "local all all trust\nlocal replication all trust\n\
                                     host all all all md5\nhost replication all all md5\n";

/// How long a stop may take before the server is killed: a server that writes out its buffers needs more than Docker's
/// ten seconds.
pub const STOP_TIMEOUT_SECONDS: i64 = 120;

/// Arguments of `initdb`: page checksums so that a damaged page is found, and passwords for every TCP login.
pub const INITDB_ARGUMENTS: &str = "--data-checksums --auth-local=trust --auth-host=scram-sha-256";

/// Arguments of `initdb` for data that is placed so: what is in memory need not be written to a disk.
pub fn initdb_arguments(data: DataPlacement) -> String {
    match data {
        DataPlacement::Volume => INITDB_ARGUMENTS.to_owned(),
        DataPlacement::Memory => format!("{INITDB_ARGUMENTS} --no-sync"),
    }
}

/// Counts up when the container's layout changes, so that an older container is made anew.
const LAYOUT: u32 = 2;

/// The server that an instance is to have.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerSpec {
    /// The image as people name it.
    pub image: String,
    /// The image's content digest, which tells two builds of one name apart.
    pub image_id: String,
    /// The profile's name.
    pub profile: String,
    /// Server settings by name.
    pub settings: BTreeMap<String, String>,
    /// Memory, processor and storage limits.
    pub limits: Limits,
    /// Where the data lives.
    pub data: DataPlacement,
    /// The port that was asked for.
    pub port: PortChoice,
    /// The fingerprint of the server's certificate, if it has `ssl = on`.
    pub certificate: Option<String>,
    /// In which form it keeps passwords.
    pub stored: StoredForm,
}

impl ServerSpec {
    /// Makes the spec of `profile` on an image.
    pub fn new(profile: &Profile, image: &str, image_id: &str, port: PortChoice) -> Self {
        Self {
            image: image.to_owned(),
            image_id: image_id.to_owned(),
            profile: profile.name.clone(),
            settings: profile.settings.iter().map(|(name, value)| (name.clone(), value.value.clone())).collect(),
            limits: profile.limits,
            data: profile.data,
            port,
            certificate: None,
            stored: StoredForm::Scram,
        }
    }

    /// Lets the server take TLS connections only, with the certificate of this fingerprint.
    #[must_use]
    pub fn with_certificate(mut self, fingerprint: String) -> Self {
        self.certificate = Some(fingerprint);
        let files = [
            ("ssl_cert_file", CERTIFICATE_FILE),
            ("ssl_key_file", KEY_FILE),
            ("hba_file", HOST_BASED_AUTHENTICATION_FILE),
        ];
        self.settings.extend(files.map(|(name, path)| (name.to_owned(), path.to_owned())));
        self
    }

    /// Lets the server archive its log for `tfdev backup`.
    #[must_use]
    pub fn with_archive(mut self) -> Self {
        let settings = crate::backup::wal::settings(self.limits.storage_bytes);
        self.settings.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        self
    }

    /// Makes logins short: for servers with data that is thrown away.
    #[must_use]
    pub fn with_short_logins(mut self) -> Self {
        self.stored = StoredForm::Md5;
        self.settings.insert("hba_file".to_owned(), HOST_BASED_AUTHENTICATION_FILE.to_owned());
        self
    }

    /// The rules of login that stand in a file of ours; `None` if those of the data folder hold.
    pub fn login_rules(&self) -> Option<&'static str> {
        match self.stored {
            _ if self.certificate.is_some() => Some(TLS_ONLY_RULES),
            StoredForm::Md5 => Some(SHORT_LOGIN_RULES),
            StoredForm::Scram => None,
        }
    }

    /// The server's command line: `postgres -c name=value …`, in the order of the names.
    pub fn command(&self) -> Vec<String> {
        let arguments = self.settings.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]);
        std::iter::once("postgres".to_owned()).chain(arguments).collect()
    }

    /// A digest of everything that makes the running server what it is; 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut digest = Sha256::new();
        let port = match self.port {
            PortChoice::Auto => "auto".to_owned(),
            PortChoice::Fixed(port) => port.to_string(),
        };
        for part in [&LAYOUT.to_string(), &self.image_id, &self.profile, &port] {
            digest.update(part);
            digest.update([0]);
        }
        digest.update(format!("{:?} {:?} {:?}", self.limits, self.data, self.certificate));
        for (name, value) in &self.settings {
            digest.update(format!("\0{name}={value}"));
        }
        hexadecimal(&digest.finalize()[..8])
    }
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a String cannot fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ServerSpec {
        let profile = crate::profile::resolve("dev", &BTreeMap::new()).unwrap();
        ServerSpec::new(&profile, "postgres:15-alpine", "sha256:1", PortChoice::Auto)
    }

    #[test]
    fn the_command_names_every_setting() {
        let command = spec().command();
        assert_eq!(command[0], "postgres");
        for setting in ["max_connections=20", "shared_buffers=128MB", "wal_level=logical", "log_statement=all"] {
            assert!(command.contains(&setting.to_owned()), "{setting} in {command:?}");
        }
    }

    #[test]
    fn the_hash_changes_with_whatever_changes_the_server() {
        let base = spec();
        assert_eq!(base.hash(), spec().hash());
        let mut other = spec();
        other.settings.insert("work_mem".into(), "8MB".into());
        assert_ne!(base.hash(), other.hash());
        let image = ServerSpec { image_id: "sha256:2".into(), ..spec() };
        assert_ne!(base.hash(), image.hash());
        let port = ServerSpec { port: PortChoice::Fixed(6000), ..spec() };
        assert_ne!(base.hash(), port.hash());
        assert_ne!(base.hash(), spec().with_short_logins().hash());
        let mut limits = spec();
        limits.limits.memory_bytes += 1;
        assert_ne!(base.hash(), limits.hash());
    }
}

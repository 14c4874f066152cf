//! What server an instance is to have: pure data made from a profile and an image, with no effect on any machine.
//!
//! What must hold: equal specs have equal hashes on every machine, and whatever a running server cannot take changes the
//! hash; whatever its container cannot take changes the body's hash, too. The rest, settings that a server reads again when it is told to and the certificate, is in its settings file
//! ([`ServerSpec::configuration`]), which both engines compare as text. A spec can be printed, compared and tested with
//! no server; the Compose file is one more rendering of it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use sha2::{Digest, Sha256};

use crate::config::{PortChoice, needs_restart};
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

/// The server's settings inside the container.
pub const CONFIGURATION_FILE: &str = "/etc/tfdev/postgresql.conf";

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
const LAYOUT: u32 = 3;

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
            settings: profile.values(),
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

    /// The settings as lines of a `postgresql.conf`, after comments that say what they are.
    pub fn configuration(&self) -> String {
        let mut text = format!("# Made anew by `tfdev up`.\n# profile: {}\n", self.profile);
        if let Some(fingerprint) = &self.certificate {
            // Its file keeps its name, so that a new one is seen here alone.
            writeln!(text, "# certificate: {fingerprint}").expect("writing to a String cannot fail");
        }
        for (name, value) in &self.settings {
            setting_line(&mut text, name, value);
        }
        text
    }

    /// A digest of everything that a stop and a start cannot change, but for what runs the server; 16 hexadecimal digits.
    pub fn body_hash(&self) -> String {
        hexadecimal(&self.body_digest().finalize()[..8])
    }

    /// A digest of everything that cannot be changed while the server runs; 16 hexadecimal digits.
    pub fn hash(&self) -> String {
        let mut digest = self.body_digest();
        for (name, value) in self.settings.iter().filter(|(name, _)| needs_restart(name)) {
            digest.update(format!("\0{name}={value}"));
        }
        hexadecimal(&digest.finalize()[..8])
    }

    fn body_digest(&self) -> Sha256 {
        let mut digest = Sha256::new();
        let port = match self.port {
            PortChoice::Auto => "auto".to_owned(),
            PortChoice::Fixed(port) => port.to_string(),
        };
        for part in [&LAYOUT.to_string(), &self.image_id, &port] {
            digest.update(part);
            digest.update([0]);
        }
        digest.update(format!("{:?} {:?}", self.limits, self.data));
        digest
    }
}

/// Adds a line to a `postgresql.conf`.
pub(crate) fn setting_line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "{name} = {}", quoted(value)).expect("writing to a String cannot fail");
}

/// A value as `guc-file.l` reads it back: one string, whatever is in it.
fn quoted(value: &str) -> String {
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    for character in value.chars() {
        match character {
            '\'' => quoted.push_str("''"),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            other => quoted.push(other),
        }
    }
    quoted.push('\'');
    quoted
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hexadecimal(bytes: &[u8]) -> String {
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
    fn the_configuration_names_every_setting() {
        let text = spec().configuration();
        for line in ["max_connections = '20'\n", "shared_buffers = '128MB'\n", "wal_level = 'logical'\n"] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn what_a_running_server_can_take_is_in_the_file_alone() {
        let base = spec();
        let mut other = spec();
        other.settings.insert("work_mem".into(), "8MB".into());
        assert_eq!(base.hash(), other.hash());
        assert_ne!(base.configuration(), other.configuration());
        let (one, two) = (spec().with_certificate("1".into()), spec().with_certificate("2".into()));
        assert_eq!(one.hash(), two.hash());
        assert_ne!(one.configuration(), two.configuration());
        // Who may log in is in a file that a server looks for at its start only.
        assert_ne!(base.hash(), one.hash());
    }

    #[tokio::test]
    async fn postgresql_reads_back_what_was_quoted() {
        let Some(mut cluster) = crate::pg::test_server::Cluster::initialise(&[]) else { return };
        let odd = "it's \\n a \"path\"\\\\ with # and =\tand ünïcode\nand a line";
        let mut spec = spec();
        spec.settings = [("app.odd".to_owned(), odd.to_owned())].into();
        let path = cluster.data().join("odd.conf");
        std::fs::write(&path, spec.configuration()).unwrap();
        crate::pg::test_server::own(&path);
        let configuration = cluster.data().join("postgresql.conf");
        let all = std::fs::read_to_string(&configuration).unwrap() + "include = 'odd.conf'\n";
        std::fs::write(&configuration, all).unwrap();
        cluster.start(&[]).await;
        let mut connection = crate::pg::test_server::session(&cluster.login).await;
        let row = sqlx::raw_sql("SHOW app.odd").fetch_one(&mut connection).await.unwrap();
        assert_eq!(sqlx::Row::get::<String, _>(&row, 0), odd);
    }

    #[test]
    fn the_hash_changes_with_whatever_needs_a_new_server() {
        let base = spec();
        assert_eq!(base.hash(), spec().hash());
        let mut other = spec();
        other.settings.insert("max_connections".into(), "21".into());
        assert_ne!(base.hash(), other.hash());
        assert_eq!(base.body_hash(), other.body_hash());
        let image = ServerSpec { image_id: "sha256:2".into(), ..spec() };
        assert_ne!(base.hash(), image.hash());
        assert_ne!(base.body_hash(), image.body_hash());
        let port = ServerSpec { port: PortChoice::Fixed(6000), ..spec() };
        assert_ne!(base.hash(), port.hash());
        assert_ne!(base.hash(), spec().with_short_logins().hash());
        let mut limits = spec();
        limits.limits.memory_bytes += 1;
        assert_ne!(base.hash(), limits.hash());
    }
}

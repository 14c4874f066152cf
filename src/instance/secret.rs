//! Passwords of an instance and the files that hold them.
//!
//! What must hold: a password is random, in a file of mode 0600 and nowhere else: it has no `Display`, and its `Debug`
//! shows stars. Made once and then read, also when two processes make it at the same moment.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rand::TryRng;
use rand::rngs::SysRng;

use super::{Instance, cannot, private_file};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;

/// Letters of a password: none of them means anything in a URL, in a pgpass file, in SQL or in a shell.
const ALPHABET: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
/// Length of a password: 32 of 62 letters are 190 bits, and 128 are enough.
const LENGTH: usize = 32;

/// A password, which no message shows by accident.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl Password {
    /// Takes a password from elsewhere.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Makes a random one from the operating system's source.
    pub fn random() -> Result<Self> {
        // A byte at or above this is drawn again, so that no letter comes up more often than another.
        let limit = u8::MAX - u8::MAX % 62;
        let mut password = String::with_capacity(LENGTH);
        while password.len() < LENGTH {
            let mut bytes = [0; LENGTH];
            SysRng.try_fill_bytes(&mut bytes).or_failed(|| "the operating system gives no random numbers")?;
            let letters = bytes.iter().filter(|byte| **byte < limit).map(|byte| ALPHABET[usize::from(byte % 62)]);
            password.extend(letters.take(LENGTH - password.len()).map(char::from));
        }
        Ok(Self(password))
    }

    /// The password itself, for a login or a file. Never for a message, an argument or an environment.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("***")
    }
}

/// One line of a pgpass file.
#[derive(Debug, Clone)]
pub struct PgpassEntry<'a> {
    /// The host as clients name it.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The database, or `*` for all.
    pub database: &'a str,
    /// The role.
    pub user: &'a str,
    /// Its password.
    pub password: &'a Password,
}

impl PgpassEntry<'_> {
    /// Writes a file with this entry alone, readable for its owner, that is removed when it is dropped.
    pub fn write_temporary(&self) -> Result<tempfile::NamedTempFile> {
        let what = || "cannot write a password file for PostgreSQL's programs";
        let mut file = tempfile::Builder::new().prefix("tfdev-").tempfile().or_failed(what)?;
        file.write_all(self.line().as_bytes()).or_failed(what)?;
        file.flush().or_failed(what)?;
        Ok(file)
    }

    /// The line as libpq reads it: `:` and `\` have a backslash in front, and a lone `*` means all.
    fn line(&self) -> String {
        let escape = |text: &str| text.replace('\\', r"\\").replace(':', r"\:");
        let (host, database, user) = (escape(self.host), escape(self.database), escape(self.user));
        format!("{host}:{}:{database}:{user}:{}\n", self.port, escape(self.password.expose()))
    }
}

/// The files with an instance's passwords.
#[derive(Debug, Clone)]
pub struct Secrets {
    folder: PathBuf,
}

impl Secrets {
    /// The secrets of an instance.
    pub fn of(instance: &Instance) -> Self {
        Self { folder: instance.state_dir.clone() }
    }

    /// The file with the superuser's password.
    pub fn superuser_file(&self) -> PathBuf {
        self.folder.join("superuser.password")
    }

    /// The file with the ordinary role's password.
    pub fn user_file(&self) -> PathBuf {
        self.folder.join("user.password")
    }

    /// The file for `PGPASSFILE`.
    pub fn pgpass_file(&self) -> PathBuf {
        self.folder.join("pgpass")
    }

    /// The superuser's password, made if there is none yet.
    pub fn superuser(&self, events: &Events) -> Result<Password> {
        read_or_make(&self.superuser_file(), events)
    }

    /// The ordinary role's password, made if there is none yet.
    pub fn user(&self, events: &Events) -> Result<Password> {
        read_or_make(&self.user_file(), events)
    }

    /// The superuser's password, if one was made.
    pub fn existing_superuser(&self, events: &Events) -> Result<Option<Password>> {
        read(&self.superuser_file(), events)
    }

    /// The ordinary role's password, if one was made.
    pub fn existing_user(&self, events: &Events) -> Result<Option<Password>> {
        read(&self.user_file(), events)
    }

    /// Takes over the passwords that another instance has.
    pub(crate) fn take_over(&self, other: &Self, events: &Events) -> Result<()> {
        private_file::create_folder(&self.folder)?;
        for (own, file) in [(self.superuser_file(), other.superuser_file()), (self.user_file(), other.user_file())] {
            if let Some(password) = read(&file, events)? {
                private_file::write(&own, format!("{}\n", password.expose()).as_bytes())?;
            }
        }
        Ok(())
    }

    /// Writes the pgpass file with these lines in place of what it had.
    pub fn write_pgpass(&self, entries: &[PgpassEntry<'_>]) -> Result<PathBuf> {
        let path = self.pgpass_file();
        private_file::create_folder(&self.folder)?;
        private_file::write(&path, entries.iter().map(PgpassEntry::line).collect::<String>().as_bytes())?;
        Ok(path)
    }
}

fn read_or_make(path: &Path, events: &Events) -> Result<Password> {
    if let Some(password) = read(path, events)? {
        return Ok(password);
    }
    if let Some(folder) = path.parent() {
        private_file::create_folder(folder)?;
    }
    let password = Password::random()?;
    if private_file::write_new(path, format!("{}\n", password.expose()).as_bytes())? {
        return Ok(password);
    }
    // Another process was faster, and its password counts.
    read(path, events)?.ok_or_else(|| Error::new(ErrorKind::Conflict, format!("`{}` comes and goes", path.display())))
}

fn read(path: &Path, events: &Events) -> Result<Option<Password>> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        text => text.or_failed(|| cannot("read the password in", path))?,
    };
    let was_open = private_file::close_to_others(path, 0o600).or_failed(|| cannot("close to other users", path))?;
    if was_open {
        events.warning(format!("`{}` could be read by others; its mode is now 0600", path.display()));
    }
    let password = text.trim_end_matches(['\r', '\n']);
    if password.is_empty() || password.chars().any(char::is_control) {
        let what = if password.is_empty() { "is empty" } else { "holds more than one line" };
        return Err(Error::bad_input(format!("the password file `{}` {what}", path.display()))
            .hint(format!("remove it, and `tfdev up` makes a new password: rm '{}'", path.display())));
    }
    Ok(Some(Password::new(password)))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::{Arc, Mutex};

    use super::super::tests::instance;
    use super::*;
    use crate::event::Event;

    #[test]
    fn passwords_are_random_and_safe_everywhere() {
        let all: HashSet<_> = (0..100).map(|_| Password::random().unwrap().expose().to_owned()).collect();
        assert_eq!(all.len(), 100);
        assert!(all.iter().all(|text| text.len() == LENGTH && text.bytes().all(|byte| byte.is_ascii_alphanumeric())));
        let letters: HashSet<_> = all.iter().flat_map(|text| text.bytes()).collect();
        assert_eq!(letters.len(), ALPHABET.len(), "3,200 letters without one of 62 would be a wonder");
    }

    #[test]
    fn debug_shows_no_password() {
        let password = Password::new("s3cret");
        let entry = PgpassEntry { host: "h", port: 1, database: "d", user: "u", password: &password };
        assert_eq!(format!("{password:?}"), "***");
        assert!(!format!("{entry:?}").contains("s3cret"));
    }

    #[test]
    fn a_password_is_made_once_and_then_read() {
        let root = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(&instance(root.path()));
        assert_eq!(secrets.existing_superuser(&Events::none()).unwrap(), None);
        let first = std::thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(|| secrets.superuser(&Events::none()).unwrap())).collect();
            let all: Vec<_> = all.into_iter().map(|one| one.join().unwrap()).collect();
            assert!(all.windows(2).all(|two| two[0] == two[1]));
            all[0].clone()
        });
        assert_eq!(secrets.existing_superuser(&Events::none()).unwrap(), Some(first.clone()));
        assert_ne!(secrets.user(&Events::none()).unwrap(), first);
    }

    #[cfg(unix)]
    #[test]
    fn a_file_open_to_others_is_closed_with_a_warning() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(&instance(root.path()));
        let warnings = Arc::new(Mutex::new(Vec::new()));
        let seen = warnings.clone();
        let events = Events::to(move |event| seen.lock().unwrap().push(event));
        let password = secrets.user(&events).unwrap();
        fs::set_permissions(secrets.user_file(), fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(secrets.user(&events).unwrap(), password);
        assert_eq!(fs::metadata(secrets.user_file()).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(secrets.user(&events).unwrap(), password);
        let warnings = warnings.lock().unwrap();
        assert!(
            matches!(&warnings[..], [Event::Warning(text)] if text.contains("could be read by others")),
            "{warnings:?}"
        );
    }

    #[test]
    fn an_empty_password_file_is_told() {
        let root = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(&instance(root.path()));
        secrets.user(&Events::none()).unwrap();
        for (content, message) in [("\n", "is empty"), ("a\nb\n", "more than one line")] {
            fs::write(secrets.user_file(), content).unwrap();
            let error = secrets.user(&Events::none()).unwrap_err();
            assert!(error.to_string().contains(message) && error.kind() == ErrorKind::BadInput, "{error}");
        }
    }

    #[test]
    fn pgpass_lines_are_escaped() {
        let root = tempfile::tempdir().unwrap();
        let secrets = Secrets::of(&instance(root.path()));
        let password = Password::new(r"a:b\c");
        let entry = |host| PgpassEntry { host, port: 5432, database: "*", user: "task:flow", password: &password };
        let path = secrets.write_pgpass(&[entry("127.0.0.1"), entry("::1")]).unwrap();
        let expected = "127.0.0.1:5432:*:task\\:flow:a\\:b\\\\c\n\\:\\:1:5432:*:task\\:flow:a\\:b\\\\c\n";
        assert_eq!(fs::read_to_string(path).unwrap(), expected);
    }
}

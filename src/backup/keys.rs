//! The keys of backups: what is encrypted before it leaves this machine, and opened when it comes back.
//!
//! The file that `backup.encryption_key_file` names holds secret keys as `age-keygen` writes them, one a line. The first
//! one encrypts all that is new, and any of them opens; so a new key goes on top and the old ones stay for as long as
//! there are backups of theirs. What is encrypted is a file in the format of age, which `age --decrypt` opens without tfdev.
//!
//! What must hold: nothing is written in the clear where keys are configured, or where the cluster's folder already holds
//! what is encrypted; a key that is missing is told apart from an object that is damaged, because the object may be the
//! only good one; and a secret key is in no message.

use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::age::{Closed, Identity, Reader, Writer};
use crate::config::{Origin, Setting, Settings};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::private_file;

/// What the names of encrypted objects end in.
pub(super) const EXTENSION: &str = ".age";

/// The largest file of keys that is believed, in bytes.
const LARGEST: u64 = 1 << 20;

/// What an error says of what no key here opens.
const LOCKED: &str = "is encrypted, and no key here opens it";

/// The lines around what is encrypted as text.
const BEGIN: &str = "-----BEGIN AGE ENCRYPTED FILE-----";
const END: &str = "-----END AGE ENCRYPTED FILE-----";

/// The keys that there are; none if backups are not encrypted.
#[derive(Clone, Default)]
pub struct Keys {
    identities: Arc<[Identity]>,
    /// Where they are, and where that is said.
    file: Option<(PathBuf, Origin)>,
}

impl fmt::Debug for Keys {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let public: Vec<String> = self.identities.iter().map(Identity::recipient).collect();
        formatter.debug_struct("Keys").field("public", &public).field("file", &self.file).finish()
    }
}

/// A new key.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct NewKey {
    /// The file that it is in, alone.
    pub file: PathBuf,
    /// Its public half.
    pub public_key: String,
}

/// Writes a new key into a new file that its owner alone may read.
///
/// # Errors
/// [`ErrorKind::Conflict`] if there is such a file: what it opens would be lost with it.
pub fn create(file: &Path) -> Result<NewKey> {
    check_built(&Origin::Default)?;
    let file = &std::path::absolute(file).or_failed(|| format!("cannot use `{}`", file.display()))?;
    if let Some(folder) = file.parent().filter(|folder| !folder.is_dir()) {
        return Err(Error::bad_input(format!("there is no folder `{}`", folder.display())).hint("make it first"));
    }
    let identity = Identity::generate().or_failed(|| "cannot make a key")?;
    let public_key = identity.recipient();
    let text = format!(
        "# made by tfdev at {}\n# public key: {public_key}\n{}\n",
        Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ"),
        identity.secret()
    );
    if private_file::write_new(file, text.as_bytes())? {
        return Ok(NewKey { file: file.to_owned(), public_key });
    }
    Err(Error::new(ErrorKind::Conflict, format!("there is a file `{}` already", file.display()))
        .hint("a key is never written over, because nothing else opens its backups; name another file")
        .hint("to go on with a new key, put its line above the old ones in the same file"))
}

/// Fails in a build that cannot encrypt.
fn check_built(origin: &Origin) -> Result<()> {
    if cfg!(feature = "encryption") {
        return Ok(());
    }
    let message = format!("this tfdev was built without encryption of backups ({origin})");
    Err(Error::bad_input(message).hint("build it with the feature `encryption`"))
}

impl Keys {
    /// Reads the keys that are configured.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] if the file is not there, [`ErrorKind::Refused`] if others may read it,
    /// [`ErrorKind::BadInput`] if something else is in it.
    pub fn of(settings: &Settings) -> Result<Self> {
        let Some(Setting { value: path, origin }) = &settings.backup.encryption_key_file else {
            return Ok(Self::default());
        };
        check_built(origin)?;
        let text = read(path, origin)?;
        let identities = parse(&text, path)?;
        Ok(Self { identities: identities.into(), file: Some((path.clone(), origin.clone())) })
    }

    /// The public key for which what is new is encrypted; `None` if it is not.
    pub fn recipient(&self) -> Option<String> {
        self.identities.first().map(Identity::recipient)
    }

    /// What the names of new objects end in.
    pub(super) fn extension(&self) -> &'static str {
        if self.identities.is_empty() { "" } else { EXTENSION }
    }

    /// Passes on to `output` what is written, encrypted if there are keys.
    pub(super) fn seal<W: Write>(&self, output: W) -> io::Result<Sealing<W>> {
        match self.identities.first() {
            Some(first) => Writer::new(output, first).map(|writer| Sealing::Encrypted(Box::new(writer))),
            None => Ok(Sealing::Plain(output)),
        }
    }

    /// Passes on what `input` gives, decrypted if the name says that it is encrypted.
    ///
    /// # Errors
    /// [`ErrorKind::BadInput`] if it is damaged; [`ErrorKind::NotFound`], for which [`is_locked`] holds, if no key fits.
    pub(super) fn open<R: Read>(&self, input: R, name: &str) -> Result<Opening<R>> {
        if !name.ends_with(EXTENSION) {
            return Ok(Opening::Plain(input));
        }
        match Reader::new(input, &self.identities) {
            Ok(reader) => Ok(Opening::Encrypted(Box::new(reader))),
            Err(closed) => Err(self.closed(closed, name)),
        }
    }

    /// Encrypts something small as text; `None` if there are no keys.
    pub(super) fn seal_text(&self, contents: &[u8]) -> Result<Option<String>> {
        let what = || "cannot encrypt what is known of the backup";
        let Some(first) = self.identities.first() else { return Ok(None) };
        let mut writer = Writer::new(Vec::new(), first).or_failed(what)?;
        writer.write_all(contents).or_failed(what)?;
        Ok(Some(armoured(&writer.finish().or_failed(what)?)))
    }

    /// Decrypts what [`Keys::seal_text`] made; `name` is for errors, which are those of [`Keys::open`].
    pub(super) fn open_text(&self, text: &str, name: &str) -> Result<Vec<u8>> {
        let damaged = |why: &str| Error::bad_input(format!("the encrypted part of `{name}` is damaged: {why}"));
        let bytes = unarmoured(text).ok_or_else(|| damaged("it cannot be read"))?;
        let mut reader = Reader::new(bytes.as_slice(), &self.identities).map_err(|closed| self.closed(closed, name))?;
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).map_err(|error| damaged(&error.to_string()))?;
        Ok(contents)
    }

    fn closed(&self, closed: Closed, name: &str) -> Error {
        match closed {
            Closed::Damaged(why) => Error::bad_input(format!("`{name}` in the backup store is damaged: {why}"))
                .hint("`tfdev backup list` shows the others"),
            Closed::NoKey(recipient) => self.locked(name, recipient.as_deref()),
        }
    }

    /// The error for what is encrypted for `recipient`, which is not among the keys.
    pub(super) fn locked(&self, name: &str, recipient: Option<&str>) -> Error {
        let wanted = recipient.map(|key| format!(": it is for {key}")).unwrap_or_default();
        let error = Error::new(ErrorKind::NotFound, format!("`{name}` {LOCKED}{wanted}"));
        let wanted = recipient.map_or_else(|| "that key".to_owned(), |key| format!("the secret key of {key}"));
        match &self.file {
            Some((file, origin)) => error.hint(format!(
                "add {wanted} to `{}` ({origin}), in a line behind the first, which encrypts what is new",
                file.display()
            )),
            None => error.hint(format!(
                "name the file with {wanted} in `encryption_key_file` in the section `[backup]` of tfdev.toml"
            )),
        }
        .hint("without its key nobody can open it; nothing was changed or removed")
    }

    /// Fails if something would be written in the clear beside what is encrypted.
    pub(super) fn check_no_clear_text<'k>(&self, mut there: impl Iterator<Item = &'k str>) -> Result<()> {
        let Some(encrypted) = there.find(|name| name.ends_with(EXTENSION)).filter(|_| self.identities.is_empty())
        else {
            return Ok(());
        };
        Err(Error::new(
            ErrorKind::Refused,
            format!("the backups of this instance are encrypted (`{encrypted}`), and no key is named for new ones"),
        )
        .hint("set `encryption_key_file` in the section `[backup]` of tfdev.toml")
        .hint("backups that are not to be encrypted go to another place: set another `store`"))
    }
}

/// Whether the error is that of something which is encrypted for a key that is not here. It says nothing of whether that
/// something is good.
pub(super) fn is_locked(error: &Error) -> bool {
    error.to_string().contains(LOCKED) || error.causes().iter().any(|cause| cause.contains(LOCKED))
}

fn read(path: &Path, origin: &Origin) -> Result<String> {
    let shown = path.display();
    let what = || format!("cannot read the key file `{shown}` ({origin})");
    let metadata = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::new(ErrorKind::NotFound, format!("there is no key file `{shown}` ({origin})"))
                .hint(format!("for a first key: `tfdev backup key {shown}`"))
                .hint("if backups are encrypted already, bring their key back from where you keep its copy"));
        }
        metadata => metadata.or_failed(what)?,
    };
    if !metadata.is_file() || metadata.len() > LARGEST {
        return Err(Error::bad_input(format!("`{shown}` is no file with keys ({origin})")));
    }
    if private_file::is_open_to_others(&metadata) {
        return Err(Error::new(ErrorKind::Refused, format!("the key file `{shown}` can be read by others ({origin})"))
            .hint(format!("close it: `chmod 600 '{shown}'`"))
            .hint("whoever has read it can open the backups: if that may be, make a new key for what is to come"));
    }
    let bytes = std::fs::read(path).or_failed(what)?;
    String::from_utf8(bytes).map_err(|_| Error::bad_input(format!("the key file `{shown}` is no text ({origin})")))
}

/// Reads a file of keys. No message repeats a line: it may hold a secret.
fn parse(text: &str, path: &Path) -> Result<Vec<Identity>> {
    let mut identities = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        identities.push(Identity::parse(line).ok_or_else(|| {
            let what = if line.starts_with("age1") { "a public key, which opens nothing" } else { "no secret key" };
            Error::bad_input(format!("{}:{}: this is {what}", path.display(), index + 1))
                .hint("a line is empty, begins with `#`, or is a key as `tfdev backup key FILE` and `age-keygen` make it: AGE-SECRET-KEY-1…")
        })?);
    }
    if identities.is_empty() {
        return Err(Error::bad_input(format!("there is no key in `{}`", path.display()))
            .hint("`tfdev backup key FILE` writes one into a new file"));
    }
    Ok(identities)
}

/// Bytes as text, in lines, as age's own programs read them.
fn armoured(bytes: &[u8]) -> String {
    let text = encoded(bytes);
    let mut lines = format!("{BEGIN}\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, behind) = rest.split_at(rest.len().min(64));
        lines.extend([line, "\n"]);
        rest = behind;
    }
    lines.push_str(END);
    lines.push('\n');
    lines
}

fn unarmoured(text: &str) -> Option<Vec<u8>> {
    let body = text.trim().strip_prefix(BEGIN)?.strip_suffix(END)?;
    decoded(&body.split_ascii_whitespace().collect::<String>())
}

#[cfg(feature = "encryption")]
fn encoded(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

#[cfg(feature = "encryption")]
fn decoded(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

#[cfg(not(feature = "encryption"))]
fn encoded(_: &[u8]) -> String {
    String::new()
}

#[cfg(not(feature = "encryption"))]
fn decoded(text: &str) -> Option<Vec<u8>> {
    // Nothing opens it anyway, and says so.
    text.is_ascii().then(Vec::new)
}

/// What is on its way into the store.
pub(super) enum Sealing<W> {
    /// As it is.
    Plain(W),
    /// Encrypted.
    Encrypted(Box<Writer<W>>),
}

impl<W: Write> Sealing<W> {
    /// Ends what was written.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(output) => Ok(output),
            Self::Encrypted(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Sealing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(output) => output.write(bytes),
            Self::Encrypted(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(output) => output.flush(),
            Self::Encrypted(writer) => writer.flush(),
        }
    }
}

/// What comes out of the store.
pub(super) enum Opening<R> {
    /// As it is.
    Plain(R),
    /// Decrypted.
    Encrypted(Box<Reader<R>>),
}

impl<R: Read> Opening<R> {
    /// The source.
    pub(super) fn into_inner(self) -> R {
        match self {
            Self::Plain(input) => input,
            Self::Encrypted(reader) => reader.into_inner(),
        }
    }
}

impl<R: Read> Read for Opening<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Encrypted(reader) => reader.read(buffer),
        }
    }
}

#[cfg(all(test, unix, feature = "encryption"))]
pub(super) mod tests {
    use super::*;

    /// Keys of these identities.
    pub(in crate::backup) fn keys(identities: impl IntoIterator<Item = Identity>) -> Keys {
        Keys { identities: identities.into_iter().collect(), file: Some(("keys".into(), Origin::Default)) }
    }

    fn read_keys(path: &Path) -> Result<Vec<Identity>> {
        parse(&read(path, &Origin::Default)?, path)
    }

    #[test]
    fn a_new_key_is_private_and_never_written_over() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("backup.key");
        assert_eq!(read_keys(&file).err().unwrap().kind(), ErrorKind::NotFound);
        let made = create(&file).unwrap();
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read_keys(&file).unwrap()[0].recipient(), made.public_key);
        let before = std::fs::read(&file).unwrap();
        assert_eq!(create(&file).unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(std::fs::read(&file).unwrap(), before);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let open = read_keys(&file).err().unwrap();
        assert_eq!(open.kind(), ErrorKind::Refused);
        assert!(open.hints()[0].contains("chmod 600"), "{open:?}");
    }

    #[test]
    fn what_is_no_key_is_told_by_its_line_and_not_shown() {
        let key = Identity::generate().unwrap();
        let path = Path::new("keys");
        let told = |text: &str| parse(text, path).err().unwrap().to_string();
        assert_eq!(parse(&format!("# a\n\n{}\n", key.secret()), path).unwrap().len(), 1);
        let wrong = key.secret().replace('1', "2");
        let error = told(&format!("# a\n{wrong}"));
        assert!(error.contains("keys:2: this is no secret key") && !error.contains(&wrong), "{error}");
        assert!(told(&key.recipient()).contains("a public key"));
        assert!(told("# nothing").contains("there is no key"));
    }

    #[test]
    fn what_is_small_is_encrypted_as_text_and_the_missing_key_is_named() {
        let [old, new] = [Identity::generate().unwrap(), Identity::generate().unwrap()];
        let recipient = old.recipient();
        let old = keys([old]);
        let text = old.seal_text(b"a secret").unwrap().unwrap();
        assert!(text.starts_with(BEGIN) && text.lines().all(|line| line.len() <= 64) && !text.contains("a secret"));
        assert_eq!(old.open_text(&text, "x").unwrap(), b"a secret");
        let error = keys([new]).open_text(&text, "the backup").unwrap_err();
        assert!(is_locked(&error) && error.to_string().contains(&recipient), "{error}");
        assert!(error.hints()[0].contains("`keys`"), "{error:?}");
        let none = Keys::default().open_text(&text, "the backup").unwrap_err();
        assert!(is_locked(&none) && none.hints()[0].contains("encryption_key_file"), "{none:?}");
        let damaged = old.open_text(&text.replacen('\n', "\nAAAA", 1), "x").unwrap_err();
        assert!(!is_locked(&damaged) && damaged.kind() == ErrorKind::BadInput, "{damaged}");
    }

    #[test]
    fn nothing_goes_in_the_clear_to_where_the_rest_is_encrypted() {
        let names = ["a.zst", "b.zst.age"];
        let error = Keys::default().check_no_clear_text(names.into_iter()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Refused);
        Keys::default().check_no_clear_text(names[..1].iter().copied()).unwrap();
        keys([Identity::generate().unwrap()]).check_no_clear_text(names.into_iter()).unwrap();
    }
}

//! The format of age, version 1 (<https://age-encryption.org/v1>), as far as backups need it: contents that one key of
//! X25519 opens, as they come and without an end that is known beforehand.
//!
//! ```text
//! age-encryption.org/v1
//! -> X25519 <a share of a key made for this file>
//! <the file's own key, encrypted>
//! -> tfdev-recipient <the public key that opens it>
//!
//! --- <code of all lines before, made with the file's own key>
//! <16 random bytes><pieces of 64 KiB, each with 16 bytes that prove it, its number and whether it is the last>
//! ```
//!
//! The stanza `tfdev-recipient` is passed over by others, as the format demands; it lets an error name the key that is
//! missing. The cryptography is `ring`'s and `x25519-dalek`'s; only the form is made here, because age's own crate brings
//! 86 others.
//!
//! What must hold: no byte is handed on that was not proven; what was cut off, lengthened, changed or put in another order
//! is an error; and a secret key is in no message.

use std::io::{self, BufRead, BufReader, Read, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use bech32::primitives::decode::CheckedHrpstring;
use bech32::{Bech32, Hrp};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{hkdf, hmac};
use x25519_dalek::{PublicKey, StaticSecret};

/// The first line of every file.
const VERSION: &str = "age-encryption.org/v1";
/// What a line with the begin of a stanza begins with.
const STANZA: &str = "-> ";
/// What the last line of the header begins with.
const MAC: &str = "---";
/// The stanza of a key of X25519.
const X25519: &str = "X25519";
/// What the file's own key is encrypted under.
const X25519_INFO: &[u8] = b"age-encryption.org/v1/X25519";
/// The stanza that names who can open the file.
const RECIPIENT: &str = "tfdev-recipient";
/// The begin of a public key as text.
const PUBLIC: Hrp = Hrp::parse_unchecked("age");
/// The begin of a secret key as text.
const SECRET: Hrp = Hrp::parse_unchecked("age-secret-key-");
/// How many bytes are encrypted at once.
const PIECE: usize = 64 * 1024;
/// How many bytes prove a piece.
const TAG: usize = 16;
/// The length of the file's own key.
const FILE_KEY: usize = 16;
/// The length of what makes the key of the pieces another one for each file.
const NONCE: usize = 16;
/// The longest header that is believed, in bytes.
const LONGEST_HEADER: u64 = 64 * 1024;

/// A key: its secret half, and its public one.
pub(super) struct Identity {
    secret: StaticSecret,
    public: PublicKey,
}

/// Why something could not be opened.
#[derive(Debug)]
pub(super) enum Closed {
    /// It is for another key, which is named if the file says so.
    NoKey(Option<String>),
    /// It is none of ours, or was changed; why.
    Damaged(String),
}

impl Identity {
    /// A new key.
    pub(super) fn generate() -> io::Result<Self> {
        Ok(Self::of(random()?))
    }

    fn of(secret: [u8; 32]) -> Self {
        let secret = StaticSecret::from(secret);
        Self { public: PublicKey::from(&secret), secret }
    }

    /// Reads a secret key as text: `AGE-SECRET-KEY-1…`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let read = CheckedHrpstring::new::<Bech32>(text).ok().filter(|read| read.hrp() == SECRET)?;
        Some(Self::of(read.byte_iter().collect::<Vec<u8>>().try_into().ok()?))
    }

    /// The secret key as text. It opens everything: for the key's own file alone.
    pub(super) fn secret(&self) -> String {
        bech32::encode_upper::<Bech32>(SECRET, self.secret.as_bytes()).expect("32 bytes are short enough")
    }

    /// The public key as text: `age1…`.
    pub(super) fn recipient(&self) -> String {
        bech32::encode_lower::<Bech32>(PUBLIC, self.public.as_bytes()).expect("32 bytes are short enough")
    }

    /// The file's own key, if `share` and `body` are for this identity.
    fn unwrap(&self, share: &[u8; 32], body: &[u8]) -> Option<[u8; FILE_KEY]> {
        let shared = self.secret.diffie_hellman(&PublicKey::from(*share));
        if !shared.was_contributory() {
            return None;
        }
        let key = wrapping_key(shared.as_bytes(), share, self.public.as_bytes());
        let mut body = body.to_vec();
        let opened = sealing_key(&key).open_in_place(nonce([0; 12]), Aad::empty(), &mut body).ok()?;
        (*opened).try_into().ok()
    }
}

fn random<const LENGTH: usize>() -> io::Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    SystemRandom::new().fill(&mut bytes).map_err(|_| io::Error::other("the system gives no random bytes"))?;
    Ok(bytes)
}

/// Makes a key of 32 bytes out of another.
fn derive(salt: &[u8], key: &[u8], info: &[u8]) -> [u8; 32] {
    let mut derived = [0; 32];
    let key = hkdf::Salt::new(hkdf::HKDF_SHA256, salt).extract(key);
    key.expand(&[info], hkdf::HKDF_SHA256)
        .and_then(|output| output.fill(&mut derived))
        .expect("a hash makes as many bytes as it has");
    derived
}

fn wrapping_key(shared: &[u8], share: &[u8], public: &[u8]) -> [u8; 32] {
    derive(&[share, public].concat(), shared, X25519_INFO)
}

fn sealing_key(key: &[u8; 32]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("it has 32 bytes"))
}

fn nonce(bytes: [u8; 12]) -> Nonce {
    Nonce::assume_unique_for_key(bytes)
}

/// Numbers the pieces of a file, so that none can take another's place.
struct Count {
    key: LessSafeKey,
    next: u64,
}

impl Count {
    fn new(file_key: &[u8], salt: &[u8]) -> Self {
        Self { key: sealing_key(&derive(salt, file_key, b"payload")), next: 0 }
    }

    /// The number of the next piece: no two of a file are alike, and the last one is marked.
    fn nonce(&mut self, is_last: bool) -> Nonce {
        let mut bytes = [0; 12];
        bytes[3..11].copy_from_slice(&self.next.to_be_bytes());
        bytes[11] = u8::from(is_last);
        self.next += 1;
        nonce(bytes)
    }
}

fn header_code(file_key: &[u8], header: &str) -> hmac::Tag {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &derive(&[], file_key, b"header"));
    hmac::sign(&key, header.as_bytes())
}

/// Encrypts what is written to it.
pub(super) struct Writer<W> {
    output: W,
    count: Count,
    piece: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Begins a file that `identity` opens.
    pub(super) fn new(mut output: W, identity: &Identity) -> io::Result<Self> {
        let file_key: [u8; FILE_KEY] = random()?;
        let ephemeral = StaticSecret::from(random::<32>()?);
        let share = PublicKey::from(&ephemeral);
        let shared = ephemeral.diffie_hellman(&identity.public);
        let key = wrapping_key(shared.as_bytes(), share.as_bytes(), identity.public.as_bytes());
        let mut wrapped = file_key.to_vec();
        sealing_key(&key)
            .seal_in_place_append_tag(nonce([0; 12]), Aad::empty(), &mut wrapped)
            .map_err(|_| io::Error::other("the key of the file cannot be encrypted"))?;
        let header = format!(
            "{VERSION}\n{STANZA}{X25519} {}\n{}\n{STANZA}{RECIPIENT} {}\n\n{MAC}",
            BASE64.encode(share.as_bytes()),
            BASE64.encode(wrapped),
            identity.recipient()
        );
        let code = BASE64.encode(header_code(&file_key, &header));
        let salt: [u8; NONCE] = random()?;
        output.write_all(format!("{header} {code}\n").as_bytes())?;
        output.write_all(&salt)?;
        Ok(Self { output, count: Count::new(&file_key, &salt), piece: Vec::with_capacity(PIECE + TAG) })
    }

    fn write_piece(&mut self, is_last: bool) -> io::Result<()> {
        let nonce = self.count.nonce(is_last);
        self.count
            .key
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut self.piece)
            .map_err(|_| io::Error::other("a piece cannot be encrypted"))?;
        self.output.write_all(&self.piece)?;
        self.piece.clear();
        Ok(())
    }

    /// Ends the file. Without this it counts as cut off.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.write_piece(true)?;
        Ok(self.output)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whether a full piece is the last one is known when there is more.
        if self.piece.len() == PIECE && !bytes.is_empty() {
            self.write_piece(false)?;
        }
        let taken = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Decrypts what it reads.
pub(super) struct Reader<R> {
    input: BufReader<R>,
    count: Count,
    piece: Vec<u8>,
    /// How much of the piece was handed on.
    taken: usize,
    is_over: bool,
}

impl<R: Read> Reader<R> {
    /// Opens a file with the identity that fits.
    pub(super) fn new(input: R, identities: &[Identity]) -> Result<Self, Closed> {
        let mut input = BufReader::with_capacity(PIECE + TAG, input);
        let header = Header::read(&mut input)?;
        let file_key = header.open(identities)?;
        let mut salt = [0; NONCE];
        input.read_exact(&mut salt).map_err(|error| cut_off(&error))?;
        Ok(Self { input, count: Count::new(&file_key, &salt), piece: Vec::new(), taken: 0, is_over: false })
    }

    /// The source, of which nothing is left.
    pub(super) fn into_inner(self) -> R {
        self.input.into_inner()
    }

    fn read_piece(&mut self) -> io::Result<()> {
        self.piece.clear();
        self.taken = 0;
        (&mut self.input).take((PIECE + TAG) as u64).read_to_end(&mut self.piece)?;
        let is_last = self.input.fill_buf()?.is_empty();
        if self.piece.len() < TAG || self.piece.len() == TAG && self.count.next > 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it was cut off"));
        }
        let nonce = self.count.nonce(is_last);
        let opened = self.count.key.open_in_place(nonce, Aad::empty(), &mut self.piece);
        let length = opened.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it was changed or cut off"))?.len();
        self.piece.truncate(length);
        self.is_over = is_last;
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.piece.len() {
            if self.is_over {
                return Ok(0);
            }
            self.read_piece()?;
        }
        let length = buffer.len().min(self.piece.len() - self.taken);
        buffer[..length].copy_from_slice(&self.piece[self.taken..][..length]);
        self.taken += length;
        Ok(length)
    }
}

fn cut_off(error: &io::Error) -> Closed {
    Closed::Damaged(format!("its begin cannot be read: {error}"))
}

/// What stands before the contents.
struct Header {
    /// All that its code is made of.
    text: String,
    code: Vec<u8>,
    /// The shares and encrypted keys of its stanzas of X25519.
    wrapped: Vec<([u8; 32], Vec<u8>)>,
    recipient: Option<String>,
}

impl Header {
    fn read(input: &mut impl BufRead) -> Result<Self, Closed> {
        let damaged = |why: &str| Closed::Damaged(why.to_owned());
        let mut left = input.take(LONGEST_HEADER);
        let mut line = move || {
            let mut line = String::new();
            left.read_line(&mut line).map_err(|error| cut_off(&error))?;
            let text = line.strip_suffix('\n').ok_or_else(|| damaged("it ends within its header"))?;
            Ok::<_, Closed>(text.to_owned())
        };
        let first = line()?;
        if first != VERSION {
            return Err(damaged("it is not encrypted in the format of age"));
        }
        let mut header = Self { text: format!("{first}\n"), code: Vec::new(), wrapped: Vec::new(), recipient: None };
        loop {
            let begin = line()?;
            if let Some(code) = begin.strip_prefix(MAC) {
                header.text.push_str(MAC);
                header.code = decoded(code.trim_start())?;
                return Ok(header);
            }
            let words = begin.strip_prefix(STANZA).ok_or_else(|| damaged("its header cannot be read"))?;
            header.text.extend([begin.as_str(), "\n"]);
            let mut body = String::new();
            loop {
                let part = line()?;
                header.text.extend([part.as_str(), "\n"]);
                body.push_str(&part);
                // A full line has 64 characters; a shorter one is the last.
                if part.len() < 64 {
                    break;
                }
            }
            header.add(words, &body)?;
        }
    }

    fn add(&mut self, words: &str, body: &str) -> Result<(), Closed> {
        match words.split(' ').collect::<Vec<_>>()[..] {
            [X25519, share] => {
                let share = decoded(share)?.try_into();
                let share = share.map_err(|_| Closed::Damaged("its header cannot be read".to_owned()))?;
                self.wrapped.push((share, decoded(body)?));
            }
            [RECIPIENT, name] => self.recipient = Some(name.to_owned()),
            _ => {}
        }
        Ok(())
    }

    fn open(self, identities: &[Identity]) -> Result<[u8; FILE_KEY], Closed> {
        let mut tried = identities.iter().flat_map(|identity| self.wrapped.iter().map(move |one| (identity, one)));
        let key = tried.find_map(|(identity, (share, body))| identity.unwrap(share, body));
        let Some(key) = key else { return Err(Closed::NoKey(self.recipient)) };
        // Not in constant time: whoever could measure that has the file.
        if header_code(&key, &self.text).as_ref() == self.code {
            Ok(key)
        } else {
            Err(Closed::Damaged("its header was changed".to_owned()))
        }
    }
}

fn decoded(text: &str) -> Result<Vec<u8>, Closed> {
    BASE64.decode(text).map_err(|_| Closed::Damaged("its header cannot be read".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(contents: &[u8], identity: &Identity) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new(), identity).unwrap();
        writer.write_all(contents).unwrap();
        writer.finish().unwrap()
    }

    fn opened(sealed: &[u8], identities: &[Identity]) -> Result<Vec<u8>, String> {
        let mut reader = Reader::new(sealed, identities).map_err(|closed| format!("{closed:?}"))?;
        let mut contents = Vec::new();
        reader.read_to_end(&mut contents).map_err(|error| error.to_string())?;
        assert!(reader.into_inner().is_empty(), "all of it was read");
        Ok(contents)
    }

    fn contents(length: usize) -> Vec<u8> {
        (0..length).map(|index| u8::try_from(index % 251).unwrap()).collect()
    }

    #[test]
    fn contents_of_every_length_come_back() {
        let keys = [Identity::generate().unwrap(), Identity::generate().unwrap()];
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE, 3 * PIECE + 17] {
            let contents = contents(length);
            assert_eq!(opened(&sealed(&contents, &keys[1]), &keys).unwrap(), contents, "{length}");
        }
    }

    #[test]
    fn whatever_is_changed_cut_off_or_added_is_noticed() {
        let keys = [Identity::generate().unwrap()];
        let whole = sealed(&contents(2 * PIECE + 100), &keys[0]);
        let mut step = 0;
        while step < whole.len() {
            let mut changed = whole.clone();
            changed[step] ^= 1;
            assert!(opened(&changed, &keys).is_err(), "the byte {step}");
            assert!(opened(&whole[..step], &keys).is_err(), "cut off at {step}");
            // Each byte of the header, and some of each piece.
            step += if step < 400 { 1 } else { 9973 };
        }
        let pieces = whole.len() - 2 * (PIECE + TAG) - 100 - TAG;
        // Cut off exactly between two pieces; and two that changed places.
        assert!(opened(&whole[..pieces + PIECE + TAG], &keys).is_err());
        let (first, rest) = whole[pieces..].split_at(PIECE + TAG);
        let (second, last) = rest.split_at(PIECE + TAG);
        assert!(opened(&[&whole[..pieces], second, first, last].concat(), &keys).is_err());
        assert!(opened(&[whole.as_slice(), b"x"].concat(), &keys).is_err());
    }

    #[test]
    fn another_key_opens_nothing_and_the_right_one_is_named() {
        let (own, other) = (Identity::generate().unwrap(), Identity::generate().unwrap());
        let error = opened(&sealed(b"x", &own), &[other]).unwrap_err();
        assert!(error.contains("NoKey") && error.contains(&own.recipient()), "{error}");
        assert!(!error.contains("SECRET"));
    }

    #[test]
    fn keys_are_written_as_age_writes_them() {
        // Made by `age-keygen`.
        let identity =
            Identity::parse("AGE-SECRET-KEY-193EWZQ8TLDMF3CG76X87SY2MMJ208QQPKEFWVVZVST3SPRAH4DAQQM09UL").unwrap();
        assert_eq!(identity.recipient(), "age1j20zznta6w5q5ckrmmkrl5h85rh78gj2mz0wq6glyqwcrjcwd43stm49s3");
        assert_eq!(identity.secret(), "AGE-SECRET-KEY-193EWZQ8TLDMF3CG76X87SY2MMJ208QQPKEFWVVZVST3SPRAH4DAQQM09UL");
        assert!(Identity::parse("AGE-SECRET-KEY-1QQQ").is_none());
        assert!(Identity::parse(&identity.recipient()).is_none());
        // Made by `age`, for that key and another, with a line that it adds to keep others honest.
        let file = BASE64
            .decode(concat!(
                "YWdlLWVuY3J5cHRpb24ub3JnL3YxCi0+IFgyNTUxOSA5U1NLSDFJZGFlVysvWlorODltTWdmVnpvalBmN0c3Q1cvbjU0dE04eUh3",
                "CnFLV3VsbllMN1ZWK0dGTlVzQWJ4VTg2U1ZJWUJ0K2lVYmlwc0JKWDNPRTAKLT4gWDI1NTE5IHY5VE9Cb3NpOGM2Yjg0Ump1TDhS",
                "K3J5cngzZkxrZ3I4VnFDeENiQUtjbXcKWW5CbTdsMFFJY3JIZU5KYWJvd1E5ekVFbVdTSG5zZHZubFk3UmZ1aU9VUQotLS0gSTlw",
                "RGU1T0FVUUE1eTl5OFhUeUpWYjZMeDN4NzdwQ3R3TzJQcHRFV2gvQQrZfwA/nS9dEL3JrchiR+9Rl4aJ2fXfr7JAXwxn9Hva1Wkz",
                "2Q7nvfqv54mutQ"
            ))
            .unwrap();
        assert_eq!(opened(&file, &[identity]).unwrap(), b"made by age\n");
    }
}

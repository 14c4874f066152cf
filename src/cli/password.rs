//! Asking for a password at the terminal, without showing it.

use std::io::{self, BufRead, IsTerminal, Write};

use crate::config::AskPassword;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::instance::Password;

/// The way to ask, if someone sits at a terminal.
pub(super) fn way_to_ask(json: bool) -> Option<AskPassword> {
    (!json && io::stdin().is_terminal() && io::stderr().is_terminal()).then_some(ask as AskPassword)
}

/// Shows `question` and reads one line. No line at all is no password.
fn ask(question: &str) -> Result<Option<Password>> {
    let what = || "cannot ask for the password";
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question}").and_then(|()| stderr.flush()).or_failed(what)?;
    let typed = Silence::new().and_then(|_silence| read_line(io::BufReader::new(io::stdin().lock()))).or_failed(what);
    // The line's end was not shown either.
    writeln!(stderr).or_failed(what)?;
    match typed? {
        Typed::Line(line) => Ok(Some(Password::new(line))),
        Typed::Nothing => Ok(None),
        Typed::Interrupt => Err(Error::new(ErrorKind::Interrupted, "interrupted")),
    }
}

/// What was typed.
#[derive(Debug, PartialEq, Eq)]
enum Typed {
    Line(String),
    Nothing,
    Interrupt,
}

/// Reads a line from a terminal that hands out each key: a blocked read would else not see Ctrl-C.
fn read_line(input: impl BufRead) -> io::Result<Typed> {
    let mut line = Vec::new();
    for byte in input.bytes() {
        match byte? {
            b'\r' | b'\n' => return Ok(Typed::Line(String::from_utf8_lossy(&line).into_owned())),
            // Ctrl-C.
            3 => return Ok(Typed::Interrupt),
            // Ctrl-D ends an empty line only.
            4 if line.is_empty() => return Ok(Typed::Nothing),
            // Backspace takes a whole character away; Ctrl-U all of them.
            8 | 127 => while line.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {},
            21 => line.clear(),
            other => line.push(other),
        }
    }
    Ok(Typed::Nothing)
}

/// While it lives, the terminal shows nothing of what is typed.
#[cfg(unix)]
struct Silence(rustix::termios::Termios);

#[cfg(unix)]
impl Silence {
    fn new() -> io::Result<Self> {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let before = tcgetattr(io::stdin())?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        tcsetattr(io::stdin(), OptionalActions::Flush, &silent)?;
        Ok(Self(before))
    }
}

#[cfg(unix)]
impl Drop for Silence {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Flush, &self.0);
    }
}

/// Other platforms show what is typed.
#[cfg(not(unix))]
struct Silence;

#[cfg(not(unix))]
impl Silence {
    fn new() -> io::Result<Self> {
        Err(io::Error::new(io::ErrorKind::Unsupported, "a password cannot be typed unseen here; set `PGPASSWORD`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_become_a_line() {
        let read = |keys: &str| read_line(keys.as_bytes()).unwrap();
        assert_eq!(read("s3cret\nmore"), Typed::Line("s3cret".into()));
        assert_eq!(read("sx\u{7f}3\u{e9}\u{8}c\r"), Typed::Line("s3c".into()));
        assert_eq!(read("wrong\u{15}right\n"), Typed::Line("right".into()));
        assert_eq!(read("s3\u{3}"), Typed::Interrupt);
        assert_eq!((read("\u{4}"), read("")), (Typed::Nothing, Typed::Nothing));
    }
}

//! What stands in for the format of age in a build without it: there are no keys, so nothing is opened or closed.

use std::convert::Infallible;
use std::io::{self, Read, Write};

/// A key, of which there is none.
pub(super) struct Identity(Infallible);

/// Why something could not be opened.
#[derive(Debug)]
pub(super) enum Closed {
    /// It is for a key, which is named if the file says so.
    NoKey(Option<String>),
    /// It is none of ours, or was changed; why.
    #[expect(dead_code, reason = "nothing is looked into without the format")]
    Damaged(String),
}

impl Identity {
    /// Fails.
    pub(super) fn generate() -> io::Result<Self> {
        Err(io::Error::other("this tfdev was built without the feature `encryption`"))
    }

    /// Nothing is a key.
    pub(super) fn parse(_: &str) -> Option<Self> {
        None
    }

    pub(super) fn secret(&self) -> String {
        match self.0 {}
    }

    pub(super) fn recipient(&self) -> String {
        match self.0 {}
    }
}

/// Encrypts nothing.
pub(super) struct Writer<W>(Infallible, W);

impl<W: Write> Writer<W> {
    pub(super) fn new(_: W, identity: &Identity) -> io::Result<Self> {
        match identity.0 {}
    }

    pub(super) fn finish(self) -> io::Result<W> {
        match self.0 {}
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        match self.0 {}
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0 {}
    }
}

/// Decrypts nothing.
pub(super) struct Reader<R>(Infallible, R);

impl<R: Read> Reader<R> {
    pub(super) fn new(_: R, _: &[Identity]) -> Result<Self, Closed> {
        Err(Closed::NoKey(None))
    }

    pub(super) fn into_inner(self) -> R {
        self.1
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        match self.0 {}
    }
}

//! Logging in to a server of someone else: as whom, with which password, to which database.
//!
//! What must hold: the password comes from libpq's places or from whoever sits at the terminal, and is kept nowhere; every
//! way in which the server refuses has words of its own.

use std::path::PathBuf;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use sqlx::PgConnection;

use super::ExternalEngine;
use super::password_file::{self, Lookup, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::instance::Password;
use crate::pg::connect::server_error;
use crate::pg::url::TlsMode;
use crate::pg::{self, Login, LoginError, Tls, TlsParameters};
use crate::server::APPLICATION_NAME;

/// How long a login may take.
const LOGIN_LIMIT: Duration = Duration::from_secs(15);

/// Databases to which every role may log in on a server that nobody changed.
const USUAL_DATABASES: [&str; 2] = ["postgres", "template1"];

/// libpq's usual file with the certificate authority's certificate, below the home folder.
const USUAL_ROOT_CERT: &str = ".postgresql/root.crt";

/// The password, and whether it is from the user's password file by a line for the project's database.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) password: Password,
    pub(super) file: Option<PathBuf>,
    /// Whether it was found anywhere, and not just left out.
    found: bool,
    /// Why the password file was not used.
    unusable: Option<String>,
}

/// A session, and the login that it was made with.
pub(super) struct Session {
    pub(super) connection: PgConnection,
    pub(super) login: Login,
}

/// What became of one login.
type Attempt = Result<Session, (Login, LoginError)>;

async fn attempt(login: Login) -> Attempt {
    match pg::connect(&login, Instant::now() + LOGIN_LIMIT).await {
        Ok(connection) => Ok(Session { connection, login }),
        Err(error) => Err((login, error)),
    }
}

impl ExternalEngine {
    /// How the URL wants connections encrypted.
    pub(super) fn tls(&self) -> Result<Tls> {
        let url = &self.url;
        let mode = url.tls_mode.unwrap_or(TlsMode::Prefer);
        let usual = self.home_dir.as_ref().map(|home| home.join(USUAL_ROOT_CERT)).filter(|file| file.is_file());
        let root_cert = match mode {
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => url.root_cert.clone().or(usual),
            TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer => None,
        };
        if matches!(mode, TlsMode::VerifyCa | TlsMode::VerifyFull) && root_cert.is_none() {
            let message = format!("`sslmode={}` of `external.url` needs a certificate to check with", mode.word());
            return Err(Error::bad_input(message)
                .hint("add `sslrootcert=/path/to/ca.pem` to the URL, or put the file at `~/.postgresql/root.crt`")
                .hint("for a certificate of a public authority: `sslrootcert=/etc/ssl/certs/ca-certificates.crt`"));
        }
        let (client_cert, client_key) = (url.client_cert.clone(), url.client_key.clone());
        Ok(Tls::AsGiven(TlsParameters { mode, root_cert, client_cert, client_key }))
    }

    /// A session in one of `databases` or, if there is none of them, in one that every server has.
    pub(super) async fn open(&self, databases: &[&str]) -> Result<Session> {
        let entrance = self.entrance();
        let usual = self.url.database.as_deref().into_iter().chain(USUAL_DATABASES);
        let candidates = databases.iter().copied().chain(entrance.as_deref()).chain(usual);
        let mut tried = Vec::new();
        let mut first_refusal = None;
        for database in candidates {
            if tried.contains(&database) {
                continue;
            }
            tried.push(database);
            let login = self.login(database)?;
            match self.log_in(login).await? {
                Ok(session) => {
                    if !databases.contains(&database) {
                        self.set_entrance(database);
                    }
                    return Ok(session);
                }
                Err((login, error)) if is_about_the_database(&error) => {
                    // What is wrong with a database that is certain to be there tells more.
                    if first_refusal.is_none() || !matches!(error, LoginError::NoDatabase(_)) {
                        first_refusal = Some((login, error));
                    }
                }
                Err((login, error)) => return Err(self.refused(&login, error)),
            }
        }
        let (login, error) = first_refusal.expect("there is one database at least to try");
        Err(self.refused(&login, error))
    }

    /// Logs in, and asks for the password if the server wants one that is not to be found.
    async fn log_in(&self, login: Login) -> Result<Attempt> {
        match attempt(login).await {
            Err((login, error)) if wants_password(&error) && !self.is_password_found() => {
                let question = format!("Password of the role `{}` on {}: ", login.user, self.place());
                let asked = self.passwords.ask.map(|ask| ask(&question)).transpose()?.flatten();
                let Some(password) = asked else { return Ok(Err((login, error))) };
                let login = Login { password: password.expose().to_owned(), ..login };
                self.remember(Known { password, file: None, found: true, unusable: None });
                Ok(attempt(login).await)
            }
            outcome => Ok(outcome),
        }
    }

    /// The URL's role, in `database`.
    fn login(&self, database: &str) -> Result<Login> {
        Ok(Login {
            host: self.url.host.clone(),
            port: self.url.port,
            database: database.to_owned(),
            user: self.user.clone(),
            password: self.known()?.password.expose().to_owned(),
            tls: self.tls()?,
            application_name: APPLICATION_NAME.to_owned(),
        })
    }

    /// The password, from `PGPASSWORD` or from the password file; empty if it is in neither.
    pub(super) fn known(&self) -> Result<Known> {
        if let Some(known) = self.remembered() {
            return Ok(known);
        }
        let known = match &self.passwords.variable {
            Some(password) => Known { password: password.clone(), file: None, found: true, unusable: None },
            None => self.in_file()?,
        };
        self.remember(known.clone());
        Ok(known)
    }

    /// The password from the password file: for the project's database, else for one that we log in to first.
    fn in_file(&self) -> Result<Known> {
        let mut unknown = Known { password: Password::new(""), file: None, found: false, unusable: None };
        let Some(file) = &self.passwords.file else { return Ok(unknown) };
        let others = self.url.database.as_deref().into_iter().chain(USUAL_DATABASES);
        for database in std::iter::once(self.database.as_str()).chain(others) {
            let wanted = Wanted { host: &self.url.host, port: self.url.port, database, user: &self.user };
            match password_file::find(file, wanted)? {
                Lookup::Password(password) => {
                    let lasting = (database == self.database).then(|| file.clone());
                    return Ok(Known { password, file: lasting, found: true, unusable: None });
                }
                Lookup::Nothing => {}
                Lookup::Unusable(why) => {
                    self.events.warning(why.clone());
                    unknown.unusable = Some(why);
                    break;
                }
            }
        }
        Ok(unknown)
    }

    fn entrance(&self) -> Option<String> {
        self.entrance.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_entrance(&self, database: &str) {
        *self.entrance.lock().unwrap_or_else(PoisonError::into_inner) = Some(database.to_owned());
    }

    fn is_password_found(&self) -> bool {
        self.remembered().is_some_and(|known| known.found)
    }

    /// Says why the server let nobody in.
    fn refused(&self, login: &Login, error: LoginError) -> Error {
        let text = cause_text(&error);
        let at = format!("the server of `external.url` ({})", self.place());
        let (message, hint) = match &error {
            LoginError::NotListening | LoginError::ProxyOnly => (
                format!("{at} does not answer: {error}"),
                "start it, or mend `external.url`: tfdev never starts a server of someone else".to_owned(),
            ),
            LoginError::WrongPassword(_) if text.contains("no encryption") => (
                format!("{at} takes encrypted connections only"),
                "add `sslmode=require`, or better `verify-full` with `sslrootcert=…`, to `external.url`".to_owned(),
            ),
            LoginError::WrongPassword(_) if wants_password(&error) && !self.is_password_found() => (
                format!("{at} wants a password for the role `{}`, and there is none", login.user),
                self.how_to_give_a_password(login),
            ),
            LoginError::WrongPassword(_) if wants_password(&error) => (
                format!("{at} does not accept the password of the role `{}`", login.user),
                self.how_to_give_a_password(login),
            ),
            LoginError::WrongPassword(_) => (
                format!("{at} does not let in the role `{}`", login.user),
                "ask whoever runs it for a line in its `pg_hba.conf`".to_owned(),
            ),
            LoginError::Tls(_) if text.contains("does not support TLS") => (
                format!("{at} has no encryption, and `sslmode` wants it"),
                "turn on `ssl` on the server, or write `sslmode=prefer` or `disable`".to_owned(),
            ),
            LoginError::Tls(_) => (
                format!("the certificate of {at} was not accepted"),
                "`sslrootcert=…` must name the authority that signed it, and `verify-full` wants the host's very name"
                    .to_owned(),
            ),
            LoginError::TooManyConnections(_) => {
                (format!("{at} has no connection left"), "close clients of it".to_owned())
            }
            LoginError::Environment => return error.into_error(login),
            _ => (
                format!("cannot log in to {at}: {error}"),
                format!("try it by hand: `psql --host {} --port {} --username {}`", login.host, login.port, login.user),
            ),
        };
        let refused = Error::new(ErrorKind::NoEngine, message);
        let refused = match self.remembered().and_then(|known| known.unusable) {
            Some(why) => refused.hint(why),
            None => refused,
        };
        let refused = refused.hint(hint);
        if text.is_empty() { refused } else { refused.caused_by(text) }
    }

    fn how_to_give_a_password(&self, login: &Login) -> String {
        let file = self.passwords.file.as_ref();
        let file = file.map_or_else(|| "the file of `PGPASSFILE`".to_owned(), |file| format!("`{}`", file.display()));
        let (host, port, user) = (&login.host, login.port, &login.user);
        format!(
            "put the line `{host}:{port}:*:{user}:PASSWORD` into {file} (mode 0600), set `PGPASSWORD`, or run tfdev at a \
             terminal, where it asks"
        )
    }
}

/// What the server said, or whoever else knows why.
fn cause_text(error: &LoginError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Whether the server asked for a password and did not get the right one.
fn wants_password(error: &LoginError) -> bool {
    matches!(error, LoginError::WrongPassword(error) if server_error(error).is_some_and(|error| error.code() == "28P01"))
}

/// Whether another database of the same server may let us in.
fn is_about_the_database(error: &LoginError) -> bool {
    match error {
        LoginError::NoDatabase(_) => true,
        // The role has no CONNECT there, or pg_hba.conf lets it in elsewhere only.
        LoginError::Other(cause) | LoginError::WrongPassword(cause) => {
            server_error(cause).is_some_and(|error| {
                // A pooler hands on the server's words under a code of its own.
                ["42501", "28000"].contains(&error.code()) || error.message().contains("permission denied for database")
            })
        }
        _ => false,
    }
}

//! Logging in, telling apart what a failed login means, and waiting until a server is ready.
//!
//! What must hold: a login goes exactly where [`Login`] says. sqlx fills every option that is not set from the user's
//! `PG…` variables, so all of them are set here; the three that sqlx gives no way to clear are
//! [`UNWANTED_VARIABLES`]. Ready means that a login over the published endpoint succeeded, that a SELECT was answered and
//! that the server is not in recovery: neither an open port nor a line of the log nor `pg_isready` proves that.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgSslMode};
use sqlx::{ConnectOptions, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout, timeout_at};

use super::tls::Tls;
use crate::error::{Error, ErrorKind};

/// Variables that sqlx reads into every login with no way for us to clear them. `PGOPTIONS` would change our sessions,
/// so [`connect`] refuses it; the other two matter only with TLS. A binary starts itself again without them.
pub const UNWANTED_VARIABLES: [&str; 3] = ["PGOPTIONS", "PGSSLCERT", "PGSSLKEY"];

/// How often [`wait_ready`] asks whether the server is still alive, at most.
const ALIVE_EVERY: Duration = Duration::from_millis(100);

/// The limit for the first attempt of [`wait_ready`]; each that times out doubles it, up to [`LONGEST_ATTEMPT`]. A port
/// whose packets are dropped must not take the whole time, and a loaded server must get its chance.
const FIRST_ATTEMPT: Duration = Duration::from_secs(2);

/// See [`FIRST_ATTEMPT`].
const LONGEST_ATTEMPT: Duration = Duration::from_secs(15);

/// Where to log in and as whom.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// An address, a host name, or the folder of a Unix socket if it begins with `/`.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database.
    pub database: String,
    /// The role.
    pub user: String,
    /// The role's password; empty where the server wants none.
    pub password: String,
    /// Whether the connection is encrypted.
    pub tls: Tls,
    /// What `pg_stat_activity` shows, so that a person sees who holds a lock.
    pub application_name: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Login({self}, {:?}, {})", self.tls, self.application_name)
    }
}

impl fmt::Display for Login {
    /// The database's place and the role, without the password.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl Login {
    /// The options for sqlx, with nothing from the user's environment except [`UNWANTED_VARIABLES`]. Statements are not
    /// logged.
    pub fn options(&self) -> PgConnectOptions {
        self.attempts().swap_remove(0)
    }

    /// The options for sqlx, one for each attempt that the wish for encryption allows.
    fn attempts(&self) -> Vec<PgConnectOptions> {
        let options = self.plain_options();
        match &self.tls {
            Tls::Disable => vec![options],
            Tls::VerifyFull { root_cert } => {
                vec![options.ssl_mode(PgSslMode::VerifyFull).ssl_root_cert(root_cert)]
            }
            // As with libpq, a socket of this machine is never encrypted.
            Tls::AsGiven(_) if self.host.starts_with('/') => vec![options],
            Tls::AsGiven(parameters) => {
                parameters.attempts().into_iter().map(|mode| parameters.apply(mode, options.clone())).collect()
            }
        }
    }

    fn plain_options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host(&self.host)
            .port(self.port)
            .username(&self.user)
            .password(&self.password)
            .database(&self.database)
            .application_name(&self.application_name)
            // A pooler knows no such parameter of a login, and PostgreSQL 12 and later need none for exact numbers.
            .extra_float_digits(None)
            .ssl_mode(PgSslMode::Disable)
            .disable_statement_logging()
    }
}

/// Why a login failed.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// Nothing listens at the address.
    #[error("nothing listens there")]
    NotListening,
    /// The connection was accepted and closed before the server said anything: a port proxy whose server does not listen
    /// yet, or a server that died.
    #[error("the connection was accepted and closed without an answer")]
    ProxyOnly,
    /// The server is starting or recovers (57P03).
    #[error("the server is starting up")]
    StartingUp(#[source] sqlx::Error),
    /// The server is stopping (57P01, 57P02, 57P03).
    #[error("the server is shutting down")]
    ShuttingDown(#[source] sqlx::Error),
    /// The role or its password is not accepted (28P01, 28000).
    #[error("the server does not accept the role or its password")]
    WrongPassword(#[source] sqlx::Error),
    /// There is no such database (3D000).
    #[error("there is no such database")]
    NoDatabase(#[source] sqlx::Error),
    /// All connections are taken (53300).
    #[error("the server has no connection left")]
    TooManyConnections(#[source] sqlx::Error),
    /// Something listens that does not speak PostgreSQL's protocol.
    #[error("what listens there is not a PostgreSQL server")]
    NotPostgres,
    /// No encrypted connection could be made.
    #[error("the connection could not be encrypted")]
    Tls(#[source] sqlx::Error),
    /// The time passed.
    #[error("no answer in time")]
    Timeout,
    /// `PGOPTIONS` is set, which would change what our sessions do.
    #[error("the variable `PGOPTIONS` is set and would change how tfdev's own sessions behave")]
    Environment,
    /// Anything else.
    #[error("the login failed")]
    Other(#[source] sqlx::Error),
}

impl LoginError {
    /// Whether a server that is still coming up may cause this, so that another attempt makes sense.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotListening
            | Self::ProxyOnly
            | Self::StartingUp(_)
            | Self::ShuttingDown(_)
            | Self::Timeout
            | Self::Other(sqlx::Error::Io(_)) => true,
            Self::WrongPassword(_)
            | Self::NoDatabase(_)
            | Self::TooManyConnections(_)
            | Self::NotPostgres
            | Self::Tls(_)
            | Self::Environment
            | Self::Other(_) => false,
        }
    }

    /// Whether the server may take the login with, or without, encryption.
    fn may_pass_with_other_encryption(&self) -> bool {
        match self {
            Self::Tls(_) => true,
            Self::WrongPassword(error) => server_error(error).is_some_and(|error| error.code() == "28000"),
            _ => false,
        }
    }

    /// Turns this into the library's error, naming where the login went.
    pub fn into_error(self, login: &Login) -> Error {
        let (kind, hint) = match &self {
            Self::NotListening | Self::ProxyOnly => (ErrorKind::NotFound, Some("start the server with `tfdev up`")),
            Self::StartingUp(_) => {
                (ErrorKind::NotFound, Some("try again in a moment; `tfdev logs` shows what it does"))
            }
            Self::ShuttingDown(_) => (ErrorKind::NotFound, Some("start it again with `tfdev up`")),
            Self::WrongPassword(_) => (ErrorKind::Failed, Some("`tfdev up` sets the passwords of its own server anew")),
            Self::NoDatabase(_) => (ErrorKind::NotFound, Some("`tfdev up` creates the project's database")),
            Self::TooManyConnections(_) => (
                ErrorKind::Conflict,
                Some("close clients, or raise `max_connections` under `[profiles.…]` in `tfdev.toml`"),
            ),
            Self::NotPostgres => (ErrorKind::Conflict, Some("choose another port: `database.port` in `tfdev.toml`")),
            Self::Timeout => (ErrorKind::TimedOut, Some("`tfdev logs` shows what the server does")),
            Self::Environment => (ErrorKind::Usage, Some("run `unset PGOPTIONS` first")),
            Self::Tls(_) if matches!(login.tls, Tls::VerifyFull { .. }) => (
                ErrorKind::Failed,
                Some("`tfdev up` makes a certificate that has expired, or whose authority's file is gone, anew"),
            ),
            Self::Tls(_) | Self::Other(_) => (ErrorKind::Failed, None),
        };
        let error = Error::new(kind, format!("cannot log in to `{login}`: {self}"));
        let error = match hint {
            Some(hint) => error.hint(hint),
            None => error,
        };
        match self {
            Self::StartingUp(cause)
            | Self::ShuttingDown(cause)
            | Self::WrongPassword(cause)
            | Self::NoDatabase(cause)
            | Self::TooManyConnections(cause)
            | Self::Tls(cause)
            | Self::Other(cause) => error.caused_by(cause),
            Self::NotListening | Self::ProxyOnly | Self::NotPostgres | Self::Timeout | Self::Environment => error,
        }
    }
}

/// Logs in once, by `deadline`; a second time where the first way of encryption is refused and another one is allowed.
pub async fn connect(login: &Login, deadline: Instant) -> Result<PgConnection, LoginError> {
    let mut attempts = login.attempts().into_iter();
    let mut outcome = connect_by(login, attempts.next().expect("there is one at least"), deadline).await;
    for options in attempts {
        if !outcome.as_ref().is_err_and(LoginError::may_pass_with_other_encryption) {
            break;
        }
        outcome = connect_by(login, options, deadline).await;
    }
    outcome
}

/// The options for sqlx with which a login succeeds: for what logs in by itself, and knows one way of encryption only.
pub async fn options_that_work(login: &Login, deadline: Instant) -> Result<PgConnectOptions, LoginError> {
    let mut attempts = login.attempts();
    while attempts.len() > 1 {
        let options = attempts.remove(0);
        match connect_by(login, options.clone(), deadline).await {
            Ok(connection) => {
                // The farewell is a courtesy.
                let _ = connection.close().await;
                return Ok(options);
            }
            Err(error) if error.may_pass_with_other_encryption() => {}
            Err(error) => return Err(error),
        }
    }
    let last = attempts.swap_remove(0);
    if last.get_options().is_some() { Err(LoginError::Environment) } else { Ok(last) }
}

async fn connect_by(login: &Login, options: PgConnectOptions, deadline: Instant) -> Result<PgConnection, LoginError> {
    if options.get_options().is_some() {
        return Err(LoginError::Environment);
    }
    match timeout_at(deadline.into(), options.connect()).await {
        Ok(Ok(connection)) => Ok(connection),
        Ok(Err(error)) => Err(classify(login, error).await),
        // A server of another kind may just keep quiet, or wait for the rest of what looks like a long message.
        Err(_) => match first_answer(login).await {
            FirstAnswer::Foreign => Err(LoginError::NotPostgres),
            FirstAnswer::Postgres | FirstAnswer::None => Err(LoginError::Timeout),
        },
    }
}

/// Says what `error` means for a login.
async fn classify(login: &Login, error: sqlx::Error) -> LoginError {
    match error {
        sqlx::Error::Database(ref database) => match database.code().as_deref() {
            Some("57P03") if database.message().contains("shutting down") => LoginError::ShuttingDown(error),
            Some("57P03") => LoginError::StartingUp(error),
            Some("57P01" | "57P02") => LoginError::ShuttingDown(error),
            Some("28P01" | "28000") => LoginError::WrongPassword(error),
            Some("3D000") => LoginError::NoDatabase(error),
            // PgBouncer's words.
            Some("08P01") if database.message().starts_with("no such database") => LoginError::NoDatabase(error),
            Some("53300") => LoginError::TooManyConnections(error),
            _ => LoginError::Other(error),
        },
        sqlx::Error::Io(ref cause) => match cause.kind() {
            io::ErrorKind::ConnectionRefused => LoginError::NotListening,
            // The socket of a server that has not made it yet.
            io::ErrorKind::NotFound if login.host.starts_with('/') => LoginError::NotListening,
            // rustls refuses a certificate with InvalidData; NotFound is that of a root certificate that is not there.
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound if login.tls != Tls::Disable => LoginError::Tls(error),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                closed_early(login).await
            }
            _ => LoginError::Other(error),
        },
        // sqlx reads the end of the stream as a zero byte where it waits for the answer to its wish for TLS.
        sqlx::Error::Protocol(ref message) if message.contains("SSLRequest: 0x00") => closed_early(login).await,
        sqlx::Error::Protocol(_) => match first_answer(login).await {
            FirstAnswer::Foreign => LoginError::NotPostgres,
            FirstAnswer::Postgres | FirstAnswer::None => LoginError::Other(error),
        },
        sqlx::Error::Tls(_) => LoginError::Tls(error),
        _ => LoginError::Other(error),
    }
}

/// Tells a proxy with nothing behind it from a server of another kind: HTTP's first letter looks like a message of
/// PostgreSQL's protocol that never ends.
async fn closed_early(login: &Login) -> LoginError {
    match first_answer(login).await {
        FirstAnswer::Foreign => LoginError::NotPostgres,
        FirstAnswer::Postgres | FirstAnswer::None => LoginError::ProxyOnly,
    }
}

/// What a server says first.
enum FirstAnswer {
    /// `S`, `N` or `E` and nothing else, as PostgreSQL answers the wish for TLS.
    Postgres,
    /// Something else.
    Foreign,
    /// Nothing, or it could not be asked.
    None,
}

/// Asks for TLS, which every PostgreSQL server answers with one letter and every other server with something else.
async fn first_answer(login: &Login) -> FirstAnswer {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    if login.host.starts_with('/') {
        return FirstAnswer::None;
    }
    let ask = async {
        let mut stream = tokio::net::TcpStream::connect((login.host.as_str(), login.port)).await?;
        stream.write_all(&SSL_REQUEST).await?;
        let mut answer = [0; 2];
        let length = stream.read(&mut answer).await?;
        io::Result::Ok(match answer[..length] {
            [] => FirstAnswer::None,
            // An old or busy server may send a whole error message.
            [b'S' | b'N' | b'E'] | [b'E', 0] => FirstAnswer::Postgres,
            _ => FirstAnswer::Foreign,
        })
    };
    timeout(Duration::from_millis(500), ask).await.ok().and_then(io::Result::ok).unwrap_or(FirstAnswer::None)
}

/// Why a server did not become ready.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    /// The server lives, but its answer will not change by waiting: for example [`LoginError::WrongPassword`] or
    /// [`LoginError::TooManyConnections`].
    #[error("the server answers, but refuses the login: {0}")]
    Answered(#[source] LoginError),
    /// What should run the server says that it does not run any more.
    #[error("{0}")]
    Dead(#[source] Error),
    /// The time passed; what the last attempt met, if it was not still waiting for an answer.
    #[error("the server was not ready in time: {0}")]
    TimedOut(#[source] LoginError),
    /// The time passed while the server answered that it is in recovery.
    #[error("the server was not ready in time: it is still in recovery")]
    InRecovery,
}

impl NotReady {
    /// Turns this into the library's error, naming where the login went.
    pub fn into_error(self, login: &Login) -> Error {
        let hint = "`tfdev logs` shows what it does; `--timeout SECONDS` gives it longer";
        match self {
            Self::Answered(error) => error.into_error(login),
            Self::Dead(error) => error,
            Self::TimedOut(last) => {
                Error::new(ErrorKind::TimedOut, format!("the server at `{login}` was not ready in time: {last}"))
                    .hint(hint)
                    .caused_by(last)
            }
            Self::InRecovery => Error::new(
                ErrorKind::TimedOut,
                format!("the server at `{login}` was not ready in time: it is still in recovery"),
            )
            .hint(hint),
        }
    }
}

/// The longest pause between two attempts of [`wait_ready`]: one costs about a millisecond, and people wait.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

/// Waits until the server is ready and gives the connection that proved it.
///
/// After failed attempts, at most every 100 ms, `still_alive` is asked; its error (the container exited) ends the wait at
/// once. Nothing here ever waits for a fixed long time: the first attempts are 5 ms apart, later ones `LONGEST_PAUSE`.
pub async fn wait_ready<Alive, Answer>(
    login: &Login,
    deadline: Instant,
    mut still_alive: Alive,
) -> Result<PgConnection, NotReady>
where
    Alive: FnMut() -> Answer,
    Answer: Future<Output = crate::Result<()>>,
{
    let mut pause = Duration::from_millis(5);
    let mut attempt_limit = FIRST_ATTEMPT;
    let mut asked = Instant::now();
    let mut last = None;
    loop {
        let mut failure = match attempt(login, deadline.min(Instant::now() + attempt_limit)).await {
            Ok(connection) => return Ok(connection),
            Err(failure) => failure,
        };
        match &failure {
            Failure::Login(LoginError::Timeout) => attempt_limit = (attempt_limit * 2).min(LONGEST_ATTEMPT),
            Failure::Login(error) if !error.may_pass() => return Err(failure.into()),
            Failure::Login(_) | Failure::InRecovery => {}
        }
        if asked.elapsed() >= ALIVE_EVERY {
            still_alive().await.map_err(NotReady::Dead)?;
            asked = Instant::now();
        }
        if Instant::now() + pause >= deadline {
            // That the last attempt was cut off says less than what the one before it met.
            if matches!(failure, Failure::Login(LoginError::Timeout)) {
                failure = last.unwrap_or(failure);
            }
            return Err(failure.into());
        }
        last = Some(failure);
        sleep(pause).await;
        pause = (pause + pause / 4).min(LONGEST_PAUSE);
    }
}

/// Why one attempt did not find the server ready.
enum Failure {
    Login(LoginError),
    InRecovery,
}

impl From<Failure> for NotReady {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Login(error) if error.may_pass() => Self::TimedOut(error),
            Failure::Login(error) => Self::Answered(error),
            Failure::InRecovery => Self::InRecovery,
        }
    }
}

async fn attempt(login: &Login, deadline: Instant) -> Result<PgConnection, Failure> {
    let mut connection = connect(login, deadline).await.map_err(Failure::Login)?;
    let question = sqlx::raw_sql("SELECT pg_is_in_recovery()").fetch_one(&mut connection);
    let answer = match timeout_at(deadline.into(), question).await {
        Ok(Ok(row)) => sqlx::Row::try_get::<bool, _>(&row, 0),
        Ok(Err(error)) => Err(error),
        Err(_) => return Err(Failure::Login(LoginError::Timeout)),
    };
    match answer {
        Ok(false) => Ok(connection),
        Ok(true) => {
            // Without the farewell the server would log an unexpected end for each attempt.
            let _ = timeout_at(deadline.into(), connection.close()).await;
            Err(Failure::InRecovery)
        }
        Err(error) => Err(Failure::Login(classify(login, error).await)),
    }
}

/// The server's own error inside `error`, if it is one.
pub(crate) fn server_error(error: &sqlx::Error) -> Option<&PgDatabaseError> {
    error.as_database_error()?.try_downcast_ref()
}

#[cfg(test)]
#[path = "connect_tests.rs"]
mod tests;

//! Passwords on the server's side.
//!
//! What must hold: the server, and so its log (the dev profile logs every statement), never sees a password in plain
//! text, only the SCRAM verifier that it would store anyway; and where we may, not even the verifier is logged.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::error::{Context, Error, Result};
use crate::pg::quote;

/// In which form a server keeps the passwords that tfdev makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StoredForm {
    /// SCRAM-SHA-256: whoever has read it cannot log in with it, and guessing a short password from it takes long.
    #[default]
    Scram,
    /// One round of MD5, for which every driver has a login: for servers with data that is thrown away. It spares a login
    /// 4,096 rounds and a round trip. The password behind it has 190 random bits ([`crate::instance::Password::random`]), so nobody guesses
    /// it, but whoever reads the catalog `pg_authid` can log in with what stands there.
    Md5,
}

impl StoredForm {
    /// What the server is to keep for `password` of `role`.
    pub fn verifier(self, role: &str, password: &str) -> String {
        match self {
            Self::Scram => verifier(password),
            Self::Md5 => postgres_protocol::password::md5(password.as_bytes(), role),
        }
    }
}

/// Makes the SCRAM-SHA-256 verifier that PostgreSQL stores for `password`, with a new random salt and 4096 iterations
/// (the server's own default).
pub fn verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// Sets the password of `role` to `password`; all or nothing.
///
/// `connection` must be logged in as a superuser, as a role that may create roles, or as `role` itself.
pub async fn set_password(connection: &mut PgConnection, role: &str, password: &str) -> Result<()> {
    if password.is_empty() {
        // The server takes an empty password as "no password" and only notes it.
        return Err(Error::bad_input(format!("the password for the role `{role}` is empty")));
    }
    let statement =
        format!("ALTER ROLE {} PASSWORD {}", quote::identifier(role)?, quote::literal(&verifier(password))?);
    change_unlogged(connection, statement).await.or_failed(|| format!("cannot set the password of the role `{role}`"))
}

/// Runs `statement` without a trace in the server's log, as far as the session may turn logging off.
async fn change_unlogged(connection: &mut PgConnection, statement: String) -> sqlx::Result<()> {
    let mut transaction = connection.begin().await?;
    let superuser: bool =
        sqlx::query_scalar("SELECT current_setting('is_superuser')::boolean").fetch_one(&mut *transaction).await?;
    if superuser {
        // A message of its own, because a message's text is logged before any of it runs. LOCAL ends with the
        // transaction. The other two would log the statement when it fails or is slow.
        sqlx::raw_sql(
            "SET LOCAL log_statement = 'none'; SET LOCAL log_min_duration_statement = -1; \
             SET LOCAL log_min_error_statement = 'panic'",
        )
        .execute(&mut *transaction)
        .await?;
    }
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *transaction).await?;
    transaction.commit().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{Login, LoginError, connect, test_server};
    use std::time::{Duration, Instant};

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[tokio::test]
    async fn the_new_password_works_the_old_one_does_not_and_the_log_has_neither() {
        let Some(login) = test_server::database().await else { return };
        let mut connection = connect(&login, soon()).await.unwrap();
        sqlx::raw_sql("CREATE ROLE \"odd \"\" role\" LOGIN").execute(&mut connection).await.unwrap();
        for password in ["first-Pässword'\\", "second-password"] {
            set_password(&mut connection, "odd \" role", password).await.unwrap();
            let role = Login { user: "odd \" role".into(), password: password.into(), ..login.clone() };
            connect(&role, soon()).await.unwrap().close().await.unwrap();
        }
        let old = Login { user: "odd \" role".into(), password: "first-Pässword'\\".into(), ..login.clone() };
        assert!(matches!(connect(&old, soon()).await, Err(LoginError::WrongPassword(_))));

        let log = test_server::log(&login);
        assert!(log.contains("CREATE ROLE"), "the server logs statements");
        assert!(!log.contains("first-") && !log.contains("second-"), "plain text in the log");
        assert!(!log.contains("SCRAM-SHA-256$"), "a verifier in the log");
        let logging: String = sqlx::query_scalar("SHOW log_statement").fetch_one(&mut connection).await.unwrap();
        assert_eq!(logging, "all", "logging is back on");
        connection.close().await.unwrap();
    }

    #[tokio::test]
    async fn an_ordinary_role_changes_its_own_password_without_plain_text() {
        let Some(login) = test_server::database().await else { return };
        let mut admin = connect(&login, soon()).await.unwrap();
        sqlx::raw_sql("CREATE ROLE own LOGIN").execute(&mut admin).await.unwrap();
        set_password(&mut admin, "own", "third-password").await.unwrap();
        let own = Login { user: "own".into(), password: "third-password".into(), ..login.clone() };
        let mut connection = connect(&own, soon()).await.unwrap();
        set_password(&mut connection, "own", "fourth-password").await.unwrap();
        assert!(set_password(&mut connection, "postgres", "fifth-password").await.is_err(), "not its own");
        let own = Login { password: "fourth-password".into(), ..own };
        connect(&own, soon()).await.unwrap().close().await.unwrap();
        assert!(!test_server::log(&login).contains("-password"));
    }

    #[tokio::test]
    async fn a_failed_change_logs_no_verifier_and_an_empty_password_is_refused() {
        let Some(login) = test_server::database().await else { return };
        let mut connection = connect(&login, soon()).await.unwrap();
        assert!(set_password(&mut connection, "no_such_role", "sixth-password").await.is_err());
        assert!(set_password(&mut connection, "postgres", "").await.is_err());
        let log = test_server::log(&login);
        assert!(log.contains("no_such_role"), "the error itself is logged");
        assert!(!log.contains("SCRAM-SHA-256$") && !log.contains("sixth-password"));
    }
}

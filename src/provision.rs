//! What tfdev makes in a server that is new: its marker, passwords of its own, the ordinary role and its database.
//!
//! What must hold: every part can be there already, so a run that was killed half-way is simply finished by the next; no
//! password and no verifier reaches the server's log; and a server whose marker names another instance is refused
//! before anything is written.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};
use uuid::Uuid;

use crate::error::{Context, Error, Result};
use crate::identity::Claim;
use crate::instance::{Instance, Password};
use crate::pg::scram::StoredForm;
use crate::pg::{self, quote};
use crate::server::{Role, Server, Tenancy};
use crate::spec::SUPERUSER;

/// What a new server is to get.
#[derive(Debug)]
pub struct Provision<'a> {
    /// The instance it belongs to.
    pub instance: &'a Instance,
    /// The instance's identity.
    pub id: Uuid,
    /// The server, with the roles and databases that it is to have.
    pub server: &'a Server,
    /// In which form the server is to keep the passwords.
    pub stored: StoredForm,
}

/// What is sent before any statement that holds a verifier. A message of its own: a message's text is logged before any
/// of it runs. The session is closed afterwards.
const UNLOGGED: &str =
    "SET log_statement = 'none'; SET log_min_duration_statement = -1; SET log_min_error_statement = 'panic'";

/// The key of the advisory lock, in the database `postgres`, of the session that makes what is missing. The number is
/// `tfdev` as bytes.
const LOCK: i64 = 0x74_66_64_65_76;

/// The script that sets the superuser's password from a psql beside the server.
pub fn superuser_password_script(password: &Password, stored: StoredForm) -> Result<String> {
    let verifier = quote::literal(&stored.verifier(SUPERUSER, password.expose()))?;
    Ok(format!("{UNLOGGED};\nALTER ROLE {} PASSWORD {verifier};\n", quote::identifier(SUPERUSER)?))
}

/// Makes what is missing. `connection` is that of [`Server::admin_login`]. Returns the server's system
/// identifier, if that may be read.
pub async fn provision(connection: &mut PgConnection, wanted: &Provision<'_>) -> Result<Option<u64>> {
    let what = || "cannot set up the new server";
    if wanted.server.tenancy == Tenancy::Whole {
        sqlx::raw_sql(UNLOGGED).execute(&mut *connection).await.or_failed(what)?;
    }
    // The instance's file lock dies with its holder, and its session may still be making the database.
    sqlx::raw_sql(AssertSqlSafe(format!("SET lock_timeout = '1min'; SELECT pg_advisory_lock({LOCK})")))
        .execute(&mut *connection)
        .await
        .or_failed(|| "cannot set up the new server: a session of a tfdev that was killed is still at it")?;
    let identifier = pg::system_identifier(&mut *connection).await?;
    if let Some(claim) = Claim::read(connection, identifier).await? {
        claim.check(wanted.id)?;
    }
    sqlx::raw_sql(AssertSqlSafe(script(wanted, identifier)?)).execute(&mut *connection).await.or_failed(what)?;
    let exists = "SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)";
    let exists = sqlx::query(exists).bind(&wanted.server.database).fetch_one(&mut *connection).await.or_failed(what)?;
    if !exists.try_get::<bool, _>(0).or_failed(what)? {
        if wanted.server.tenancy == Tenancy::Shared {
            // Whoever made it marked it; what is made here would be nobody's.
            let message = format!("the database `{}` was dropped while it was being set up", wanted.server.database);
            return Err(Error::failed(message).hint("run the command again"));
        }
        let create = format!(
            "CREATE DATABASE {} OWNER {} TEMPLATE template0",
            quote::identifier(&wanted.server.database)?,
            quote::identifier(&wanted.server.user.name)?
        );
        sqlx::raw_sql(AssertSqlSafe(create))
            .execute(&mut *connection)
            .await
            .or_failed(|| format!("cannot create the database `{}`", wanted.server.database))?;
    }
    Ok(identifier)
}

/// One transaction: marker, passwords and role. A plain `DO` body has no parameters, so everything is quoted.
fn script(wanted: &Provision<'_>, identifier: Option<u64>) -> Result<String> {
    Ok(format!(
        "BEGIN;
         CREATE SCHEMA IF NOT EXISTS tfdev;
         CREATE TABLE IF NOT EXISTS tfdev.instance (
             id uuid PRIMARY KEY,
             project text NOT NULL,
             instance text NOT NULL,
             created_at timestamptz NOT NULL DEFAULT now()
         );
         ALTER TABLE tfdev.instance ADD COLUMN IF NOT EXISTS system_identifier bigint;
         INSERT INTO tfdev.instance (id, project, instance, system_identifier)
             VALUES ({id}, {project}, {name}, {identifier}) ON CONFLICT DO NOTHING;
         {roles}
         COMMIT",
        id = quote::literal(&wanted.id.to_string())?,
        project = quote::literal(&wanted.instance.project)?,
        name = quote::literal(&wanted.instance.name)?,
        // A whole number; unknown where the role may not read it.
        identifier = identifier.map_or_else(|| "NULL".to_owned(), |identifier| identifier.cast_signed().to_string()),
        roles = match wanted.server.tenancy {
            Tenancy::Whole => roles_script(wanted.server, wanted.stored)?,
            Tenancy::Shared => String::new(),
        },
    ))
}

/// Makes the ordinary role and sets both passwords.
fn roles_script(server: &Server, stored: StoredForm) -> Result<String> {
    let user = quote::identifier(&server.user.name)?;
    let verifier = |role: &Role| quote::literal(&stored.verifier(&role.name, role.password.expose()));
    Ok(format!(
        "DO $role$ BEGIN
             IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {user_text}) THEN CREATE ROLE {user}; END IF;
         END $role$;
         ALTER ROLE {user} LOGIN PASSWORD {user_verifier};
         ALTER ROLE {admin} PASSWORD {admin_verifier};",
        user_text = quote::literal(&server.user.name)?,
        user_verifier = verifier(&server.user)?,
        admin = quote::identifier(&server.admin.name)?,
        admin_verifier = verifier(&server.admin)?,
    ))
}

/// Ends a session in order, so that the server's log shows no lost connection.
pub async fn close(connection: PgConnection) {
    // The farewell is a courtesy: the work of the session is done.
    let _ = connection.close().await;
}

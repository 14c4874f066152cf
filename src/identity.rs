//! Whose server it is: what the record, the engine's labels or data folder, and the server itself say must agree.
//!
//! An instance's identity is a UUID. The record of this machine has it, the container and the volume are labelled with
//! it, the data folder has it in a file, and the server in its table `tfdev.instance`, beside the system identifier that
//! the server had when that row was made. PostgreSQL gives each server that it initialises a system identifier of its
//! own, so a row that came into another server by a dump is known as a copy.
//!
//! What must hold: nothing is written to a server, and no server is stopped or removed, where two of these disagree; and
//! the error says what was found. Every login of ours is to the one server whose system identifier is on record, which
//! was put there only after that server's own row was read.

use serde::Deserialize;
use sqlx::{PgConnection, Row};
use uuid::Uuid;

use crate::engine::{Engine, Observed, Parts, State};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord};
use crate::pg::{Login, LoginError};
use crate::profile::DataPlacement;

/// The rows of the server's marker, as JSON.
macro_rules! markers {
    () => {
        "(SELECT coalesce(jsonb_agg(to_jsonb(marker)), '[]') FROM tfdev.instance marker)"
    };
}

/// Reads what a server says of itself, as one line of JSON that [`Claim::parse`] reads.
macro_rules! claim {
    () => {
        concat!(
            "SELECT jsonb_build_object('system_identifier', (SELECT system_identifier FROM pg_control_system()), 'markers', ",
            markers!(),
            ")::text"
        )
    };
}

/// Asks a psql beside the server for what [`Claim::parse`] reads; prints nothing if the server has no marker.
pub const PSQL_SCRIPT: &str = concat!(
    "SELECT to_regclass('tfdev.instance') IS NOT NULL AS marked \\gset\n\\if :marked\n",
    claim!(),
    ";\n\\endif\n"
);

/// What a server says of itself.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Claim {
    /// The system identifier of the server that answers, if the role may read it.
    system_identifier: Option<i64>,
    markers: Vec<Marker>,
}

/// A row of the table `tfdev.instance`.
#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Marker {
    id: Uuid,
    project: String,
    instance: String,
    /// The system identifier of the server in which the row was made.
    system_identifier: Option<i64>,
}

impl Claim {
    /// Reads the claim of the server; `None` if it has no marker. `connection` is to the database with the marker.
    /// `identifier` is the server's system identifier, if the role may read it.
    pub async fn read(connection: &mut PgConnection, identifier: Option<u64>) -> Result<Option<Self>> {
        let what = || "cannot read the server's identity";
        let row = sqlx::raw_sql("SELECT to_regclass('tfdev.instance') IS NOT NULL").fetch_one(&mut *connection).await;
        if !row.or_failed(what)?.try_get::<bool, _>(0).or_failed(what)? {
            return Ok(None);
        }
        let markers = concat!("SELECT ", markers!(), "::text");
        let row = sqlx::raw_sql(markers).fetch_one(connection).await.or_failed(what)?;
        let markers = serde_json::from_str(row.try_get(0).or_failed(what)?).or_failed(what)?;
        Ok(Some(Self { system_identifier: identifier.map(u64::cast_signed), markers }))
    }

    /// Reads what [`PSQL_SCRIPT`] printed.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        serde_json::from_str(text).map(Some).or_failed(|| "cannot understand the server's identity")
    }

    /// Fails unless the server is that of the instance `id`. A server without a marker was never set up.
    pub fn check(&self, id: Uuid) -> Result<()> {
        for marker in &self.markers {
            if marker.id != id {
                return Err(refused(format!(
                    "the server that answers carries the identity {} (instance `{}` of the project `{}`), \
                     and this instance is {id}",
                    marker.id, marker.instance, marker.project
                ))
                .hint("look at what else is on the port: `docker ps`, or `lsof -i :PORT`"));
            }
            if let (Some(made_in), Some(own)) = (marker.system_identifier, self.system_identifier)
                && made_in != own
            {
                return Err(refused(format!(
                    "the server that answers is a copy: its identity was made in the server with the system identifier \
                     {}, and its own is {}",
                    made_in.cast_unsigned(),
                    own.cast_unsigned()
                ))
                .hint("load a dump of the project's database alone (`pg_dump`, then `tfdev psql`), not of the whole server")
                .hint("or remove the mark in it with `DROP SCHEMA tfdev CASCADE` in its database `postgres`, then `tfdev up`"));
            }
        }
        Ok(())
    }
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::Refused, message).hint("nothing was written")
}

/// Fails if the engine has the instance under another identity than the one on record.
pub fn check_record(instance: &Instance, record: Option<&InstanceRecord>, observed: &Observed) -> Result<()> {
    match (record.and_then(InstanceRecord::id), observed.id) {
        (Some(on_record), Some(seen)) if on_record != seen => Err(Error::new(
            ErrorKind::Refused,
            format!(
                "the data of `{}` carries the identity {seen}, and the record of this machine names {on_record}",
                instance.container_name()
            ),
        )
        .hint(format!(
            "if what is there is the right one, remove the record `{}` and run the command again",
            instance.record_file().display()
        ))),
        _ => Ok(()),
    }
}

/// As [`check_record`], for a command that is about to stop or remove what `engine` has.
pub async fn check(instance: &Instance, engine: &dyn Engine, events: &Events) -> Result<()> {
    match InstanceRecord::read(instance, events)? {
        Some(record) => check_record(instance, Some(&record), &engine.observe().await?),
        None => Ok(()),
    }
}

/// Whether the data of a server that has it in `data` was there before. If not, the system identifier on record is that of
/// a server that is no more.
pub fn data_stays(observed: &Observed, data: DataPlacement) -> bool {
    match data {
        // A server that runs from nothing we know of is one that someone else keeps.
        DataPlacement::Volume => {
            let is_elsewhere = observed.state == State::Starting && observed.parts == Parts::default();
            observed.parts.has_data() || is_elsewhere
        }
        // Unless the engine has to start it anew, which it says then.
        DataPlacement::Memory => observed.state == State::Starting,
    }
}

/// The error for an instance whose server is not known yet: its first `up` was cut off.
pub fn unknown(instance: &Instance) -> Error {
    Error::new(
        ErrorKind::Refused,
        format!("the instance `{}` of the project `{}` was never set up to its end", instance.name, instance.project),
    )
    .hint("`tfdev up` goes on where it stopped")
}

/// The error for a login that failed, to a server that is to be the instance's own.
pub fn login_failed(error: LoginError, login: &Login) -> Error {
    let LoginError::WrongPassword(cause) = error else { return error.into_error(login) };
    refused(format!(
        "the server that answers at `{login}` does not accept this instance's password: it is another server, or its \
         password was changed"
    ))
    .caused_by(cause)
    .hint("`tfdev up` looks at the instance's own server: it sets the password anew, or says that another one answers")
}

/// The error for an endpoint at which another server answers than the one that the engine runs.
pub fn another_answers(login: &Login) -> Error {
    refused(format!(
        "another server answers at {}:{} than the one of this instance: the password that was set in that one is not \
         accepted",
        login.host, login.port
    ))
    .hint("look at what else is on the port: `docker ps`, or `lsof -i :PORT`; a tunnel or a forwarded port may lead elsewhere")
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: Uuid = Uuid::from_u128(1);

    fn claim(id: u128, made_in: &str) -> Claim {
        let id = Uuid::from_u128(id);
        let text = format!(
            r#"{{"system_identifier": 7, "markers": [
                {{"id": "{id}", "project": "p", "instance": "dev", "system_identifier": {made_in}, "created_at": "x"}}]}}"#
        );
        Claim::parse(&text).unwrap().unwrap()
    }

    #[test]
    fn only_the_instances_own_server_is_accepted() {
        claim(1, "7").check(OURS).unwrap();
        claim(1, "null").check(OURS).unwrap();
        for (claim, words) in [(claim(2, "7"), "instance `dev` of the project `p`"), (claim(1, "8"), "is a copy")] {
            let error = claim.check(OURS).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!(error.hints()[0], "nothing was written");
        }
    }

    #[test]
    fn a_server_that_says_nothing_has_no_claim() {
        assert_eq!(Claim::parse(" \n").unwrap(), None);
        Claim::parse("00000000-0000-0000-0000-000000000001").unwrap_err();
        Claim::parse(r#"{"system_identifier": 7, "markers": []}"#).unwrap().unwrap().check(OURS).unwrap();
    }
}

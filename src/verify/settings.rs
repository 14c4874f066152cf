//! § Engine, § Configuration and § Development vs Production: settings as an application's session has them.

use std::collections::BTreeMap;
use std::time::Instant;

use sqlx::{PgConnection, Row as _};

use super::source::{CONFIGURATION, DEVELOPMENT_VS_PRODUCTION};
use super::{Bench, LOGIN_LIMIT, Row, Section, Verdict};
use crate::config::{Origin, same_setting};
use crate::error::{Context, Result};
use crate::pg::{self, Login, LoginError, Tls};
use crate::profile::BuiltIn;
use crate::provision;
use crate::spec::POSTGRES_MAJOR;

/// A setting as the server tells it.
struct Found {
    /// In the setting's own unit.
    value: String,
    /// As people write it.
    shown: String,
    /// Where the server has it from, in its own words.
    source: String,
}

/// All settings of a session.
type All = BTreeMap<String, Found>;

pub(super) async fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    let looked = look(bench).await;
    let of = |look: &dyn Fn(&All) -> Verdict| match &looked {
        Ok(all) => look(all),
        Err(error) => Verdict::fail("", "", super::full_text(error)),
    };
    let mut rows = vec![of(&version).row(Section::Engine, "PostgreSQL", format!("PostgreSQL {POSTGRES_MAJOR}"), begin)];
    let production = bench.base() == BuiltIn::Prod;
    for setting in &CONFIGURATION {
        let other = DEVELOPMENT_VS_PRODUCTION.iter().find(|row| row.name == setting.name && !production);
        let asked = other.map_or(setting.value, |row| row.development);
        let why = if other.is_some() { "in development" } else { setting.why };
        let verdict = of(&|all| compare(bench, all, setting.name, asked));
        rows.push(verdict.row(Section::Configuration, setting.name, format!("{asked} ({why})"), begin));
    }
    for row in &DEVELOPMENT_VS_PRODUCTION {
        let (asked, column) =
            if production { (row.production, "production") } else { (row.development, "development") };
        let mut verdict = of(&|all| compare(bench, all, row.name, asked));
        if row.name == "ssl" && asked == "on" && verdict.because.is_none() {
            verdict = Verdict::of(encrypted(bench).await);
        }
        rows.push(verdict.row(Section::DevelopmentVsProduction, row.name, format!("{asked} ({column})"), begin));
    }
    rows
}

async fn look(bench: &Bench<'_>) -> Result<All> {
    let mut connection = bench.user().await?;
    let all = read(&mut connection).await?;
    provision::close(connection).await;
    Ok(all)
}

async fn read(connection: &mut PgConnection) -> Result<All> {
    let what = || "cannot read the server's settings";
    let question = "SELECT name, setting, current_setting(name), source FROM pg_settings \
                    WHERE name = ANY($1) OR name = 'server_version'";
    let names = CONFIGURATION.iter().map(|row| row.name).chain(DEVELOPMENT_VS_PRODUCTION.iter().map(|row| row.name));
    let names: Vec<&str> = names.collect();
    let rows = sqlx::query(question).bind(names).fetch_all(connection).await.or_failed(what)?;
    let mut all = All::new();
    for row in rows {
        let text = |index: usize| row.try_get::<String, _>(index).or_failed(what);
        all.insert(text(0)?, Found { value: text(1)?, shown: text(2)?, source: text(3)? });
    }
    Ok(all)
}

fn version(all: &All) -> Verdict {
    let found = all.get("server_version").map(|found| found.shown.clone()).unwrap_or_default();
    let proof = "SHOW server_version";
    // Debian writes what it packaged behind the number.
    if found.split(['.', ' ']).next() == Some(&POSTGRES_MAJOR.to_string()) {
        return Verdict::pass(found, proof);
    }
    Verdict::fail(found, proof, format!("it is not PostgreSQL {POSTGRES_MAJOR}"))
}

/// Compares a setting with what the source asks in the column of the profile.
fn compare(bench: &Bench<'_>, all: &All, name: &str, asked: &str) -> Verdict {
    let proof = format!("SHOW {name} as `{}` in `{}`", bench.running.server.user.name, bench.running.server.database);
    let Some(found) = all.get(name) else {
        return Verdict::fail("", proof, "the server knows no such setting");
    };
    if same_setting(name, asked, &found.value) {
        return Verdict::pass(&found.shown, proof);
    }
    let own = BuiltIn::Test.settings().iter().find(|(own, _)| *own == name).map(|(_, value)| *value);
    if let (BuiltIn::Test, Some(own)) = (bench.base(), own)
        && same_setting(name, own, &found.value)
    {
        let because =
            format!("the profile `{}` is for data that is thrown away, and asks for {own}", bench.profile.name);
        return Verdict::not_applicable(&found.shown, proof, because);
    }
    Verdict::fail(&found.shown, proof, origin(bench, name, found))
}

/// Where a setting that differs is from, and how it is taken back.
fn origin(bench: &Bench<'_>, name: &str, found: &Found) -> String {
    let server = &bench.running.server;
    let (database, role) = (&server.database, &server.user.name);
    let of_profile = bench.profile.settings.get(name);
    match found.source.as_str() {
        "database" => format!("the database has it: `ALTER DATABASE {database} RESET {name}`"),
        "user" => format!("the role has it: `ALTER ROLE {role} RESET {name}`"),
        "database user" => {
            format!("the role has it in this database: `ALTER ROLE {role} IN DATABASE {database} RESET {name}`")
        }
        _ if bench.is_shared() => "the server is run by someone else".to_owned(),
        _ => match of_profile {
            Some(setting) if same_setting(name, &setting.value, &found.value) => match &setting.origin {
                Origin::Default => format!("the profile `{}` has it", bench.profile.name),
                origin => format!("the project sets it: {origin}"),
            },
            _ if bench.running.record.profile_name().is_some_and(|name| name != bench.profile.name) => format!(
                "the server runs with the profile `{}`",
                bench.running.record.profile_name().unwrap_or_default()
            ),
            _ => format!(
                "neither the source nor the profile `{}` has it (from: {}); `tfdev up` starts the server with the \
                 profile's settings",
                bench.profile.name, found.source
            ),
        },
    }
}

/// Proves that sessions are encrypted and that one that is not is refused.
async fn encrypted(bench: &Bench<'_>) -> Result<Verdict> {
    let what = || "cannot ask how the session is encrypted";
    let mut connection = bench.user().await?;
    let question = "SELECT ssl, coalesce(version, '') FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let row = sqlx::raw_sql(question).fetch_one(&mut connection).await.or_failed(what)?;
    let (ssl, version): (bool, String) = (row.try_get(0).or_failed(what)?, row.try_get(1).or_failed(what)?);
    provision::close(connection).await;
    if !ssl {
        return Ok(Verdict::fail("on", "pg_stat_ssl", "tfdev's own session is not encrypted"));
    }
    if bench.is_shared() {
        return Ok(Verdict::pass(format!("on, {version}"), "pg_stat_ssl of an own session"));
    }
    let proof = "pg_stat_ssl of an own session, and a login without TLS";
    let plain = Login { tls: Tls::Disable, ..bench.running.server.login() };
    match pg::connect(&plain, Instant::now() + LOGIN_LIMIT).await {
        Ok(connection) => {
            provision::close(connection).await;
            Ok(Verdict::fail(format!("on, {version}"), proof, "a login without TLS is let in"))
        }
        Err(LoginError::WrongPassword(_)) => {
            Ok(Verdict::pass(format!("on, {version}; a login without TLS is refused"), proof))
        }
        Err(other) => Err(other.into_error(&plain)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::Outcome;

    #[test]
    fn another_major_version_fails() {
        let of = |shown: &str| {
            let found = Found { value: shown.into(), shown: shown.into(), source: "default".into() };
            version(&All::from([("server_version".to_owned(), found)])).outcome
        };
        assert_eq!(of("15.18 (Debian 15.18-0+deb12u1)"), Outcome::Pass);
        assert_eq!(of("15.17"), Outcome::Pass);
        assert_eq!((of("16.2"), of("150.1")), (Outcome::Fail, Outcome::Fail));
        assert_eq!(version(&All::new()).outcome, Outcome::Fail);
    }
}

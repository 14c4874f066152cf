//! What belongs to a database and is not copied with it: owner, privileges, settings, connection limit, comment.
//!
//! What must hold: what was read and then applied to a fresh copy reads back equal. A role that is gone since is left out
//! and told.

use serde::{Deserialize, Serialize};
use sqlx::{AssertSqlSafe, PgConnection, Row};

pub use super::privileges::Privilege;

use super::privileges;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::pg::quote;

/// Settings whose value is a list of quoted names (`GUC_LIST_QUOTE` in PostgreSQL 15's `guc.c`, as pg_dump knows them): one
/// literal would be one name.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

/// What belongs to a database beside its contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Properties {
    /// Its owner.
    pub owner: String,
    /// Privileges; `None` means those that every new database has.
    pub privileges: Option<Vec<Privilege>>,
    /// How many sessions it may have; -1 means any number.
    pub connection_limit: i32,
    /// What `COMMENT ON DATABASE` says.
    pub comment: Option<String>,
    /// `ALTER DATABASE … SET` and `ALTER ROLE … IN DATABASE … SET`.
    pub settings: Vec<DatabaseSetting>,
}

/// A setting that holds in a database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DatabaseSetting {
    /// For this role only; `None` for all.
    pub role: Option<String>,
    /// Its name.
    pub name: String,
    /// Its value as the server keeps it.
    pub value: String,
}

impl Properties {
    /// Reads those of `database`.
    pub async fn read(connection: &mut PgConnection, database: &str) -> Result<Self> {
        let what = || format!("cannot read the properties of the database `{database}`");
        let question = "SELECT pg_get_userbyid(datdba)::text, datacl IS NOT NULL, datconnlimit, \
                        shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1";
        let row = sqlx::query(question).bind(database).fetch_optional(&mut *connection).await.or_failed(what)?;
        let row = row.ok_or_else(|| Error::new(ErrorKind::NotFound, format!("there is no database `{database}`")))?;
        let has_privileges: bool = row.try_get(1).or_failed(what)?;
        Ok(Self {
            owner: row.try_get(0).or_failed(what)?,
            privileges: if has_privileges { Some(read_privileges(connection, database).await?) } else { None },
            connection_limit: row.try_get(2).or_failed(what)?,
            comment: row.try_get(3).or_failed(what)?,
            settings: read_settings(connection, database).await?,
        })
    }

    /// Gives them to `database`, a fresh copy, within the transaction of `connection`. Returns the names of roles that
    /// are gone.
    pub async fn apply(&self, connection: &mut PgConnection, database: &str) -> Result<Vec<String>> {
        let (wanted, gone) = self.without_missing_roles(connection).await?;
        for statement in wanted.statements(database)? {
            let ran = sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *connection).await;
            ran.map_err(|error| cannot_apply(&statement, error))?;
        }
        Ok(gone)
    }

    fn statements(&self, database: &str) -> Result<Vec<String>> {
        let target = quote::identifier(database)?;
        let mut statements = vec![format!("ALTER DATABASE {target} OWNER TO {}", quote::identifier(&self.owner)?)];
        if let Some(privileges) = &self.privileges {
            statements.extend(privileges::statements(database, &self.owner, privileges)?);
        }
        if self.connection_limit >= 0 {
            statements.push(format!("ALTER DATABASE {target} CONNECTION LIMIT {}", self.connection_limit));
        }
        if let Some(comment) = &self.comment {
            statements.push(format!("COMMENT ON DATABASE {target} IS {}", quote::literal(comment)?));
        }
        for setting in &self.settings {
            let whose = match &setting.role {
                Some(role) => format!("ROLE {} IN DATABASE {target}", quote::identifier(role)?),
                None => format!("DATABASE {target}"),
            };
            statements.push(format!("ALTER {whose} SET {} TO {}", setting_name(&setting.name)?, setting.sql_value()?));
        }
        Ok(statements)
    }

    /// The same without what names a role that is gone, and the names of these roles.
    async fn without_missing_roles(&self, connection: &mut PgConnection) -> Result<(Self, Vec<String>)> {
        let what = || "cannot look for the roles of the database's properties";
        let mut named: Vec<String> = self.settings.iter().filter_map(|setting| setting.role.clone()).collect();
        named.push(self.owner.clone());
        for privilege in self.privileges.iter().flatten() {
            named.push(privilege.grantor.clone());
            named.extend(privilege.grantee.clone());
        }
        named.sort();
        named.dedup();
        let question = "SELECT n FROM unnest($1::text[]) n WHERE NOT EXISTS \
                        (SELECT FROM pg_roles WHERE rolname = n)";
        let gone: Vec<String> =
            sqlx::query_scalar(question).bind(&named).fetch_all(connection).await.or_failed(what)?;
        if gone.contains(&self.owner) {
            return Err(Error::failed(format!("the role `{}`, which owned the database, is gone", self.owner))
                .hint("create the role again, then try again"));
        }
        let is_there = |role: &Option<String>| role.as_ref().is_none_or(|role| !gone.contains(role));
        let mut wanted = self.clone();
        wanted.settings.retain(|setting| is_there(&setting.role));
        if let Some(privileges) = &mut wanted.privileges {
            privileges.retain(|privilege| is_there(&privilege.grantee) && !gone.contains(&privilege.grantor));
        }
        Ok((wanted, gone))
    }
}

impl DatabaseSetting {
    fn sql_value(&self) -> Result<String> {
        if !LISTS.contains(&self.name.to_lowercase().as_str()) {
            return quote::literal(&self.value);
        }
        let names: Vec<_> = split_list(&self.value).iter().map(|name| quote::literal(name)).collect::<Result<_>>()?;
        Ok(if names.is_empty() { "''".to_owned() } else { names.join(", ") })
    }
}

/// An ordinary role may not do what a superuser did to the source. A copy without it would be another state.
fn cannot_apply(statement: &str, error: sqlx::Error) -> Error {
    let denied = crate::pg::connect::server_error(&error).is_some_and(|error| error.code() == "42501");
    let message = format!("cannot give the copy the properties of its source: `{statement}`");
    if denied {
        return Error::new(ErrorKind::Refused, format!("{message}: the role may not"))
            .hint("take that property from the project's database, or give tfdev's role the right to set it")
            .caused_by(error);
    }
    Error::failed(message).caused_by(error)
}

/// Quotes a setting's name, whose parts stand around a dot.
fn setting_name(name: &str) -> Result<String> {
    Ok(name.split('.').map(quote::identifier).collect::<Result<Vec<_>>>()?.join("."))
}

/// The names in a list such as `"$user", public`, as `SplitGUCList` in PostgreSQL reads it.
fn split_list(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut name = String::new();
    let (mut quoted, mut any) = (false, false);
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => {
                letters.next();
                name.push('"');
            }
            '"' => {
                quoted = !quoted;
                any = true;
            }
            ',' if !quoted => {
                names.push(std::mem::take(&mut name));
                any = false;
            }
            letter if letter.is_whitespace() && !quoted => {}
            letter => {
                name.push(letter);
                any = true;
            }
        }
    }
    if any || !names.is_empty() {
        names.push(name);
    }
    names
}

async fn read_privileges(connection: &mut PgConnection, database: &str) -> Result<Vec<Privilege>> {
    let what = || format!("cannot read the privileges on the database `{database}`");
    let question = "SELECT pg_get_userbyid(a.grantor)::text, \
                    CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, \
                    a.privilege_type, a.is_grantable \
                    FROM pg_database, aclexplode(datacl) a WHERE datname = $1 ORDER BY 1, 2, 3";
    let rows = sqlx::query(question).bind(database).fetch_all(connection).await.or_failed(what)?;
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(Privilege {
            grantor: row.try_get(0)?,
            grantee: row.try_get(1)?,
            privilege: row.try_get(2)?,
            grantable: row.try_get(3)?,
        })
    };
    rows.iter().map(read).collect::<sqlx::Result<_>>().or_failed(what)
}

async fn read_settings(connection: &mut PgConnection, database: &str) -> Result<Vec<DatabaseSetting>> {
    let what = || format!("cannot read the settings of the database `{database}`");
    let question = "SELECT CASE WHEN setrole <> 0 THEN pg_get_userbyid(setrole)::text END, \
                    split_part(c, '=', 1), substr(c, strpos(c, '=') + 1) \
                    FROM pg_db_role_setting JOIN pg_database d ON d.oid = setdatabase, \
                    unnest(setconfig) WITH ORDINALITY u (c, i) WHERE datname = $1 ORDER BY 1 NULLS FIRST, i";
    let rows = sqlx::query(question).bind(database).fetch_all(connection).await.or_failed(what)?;
    let read = |row: &sqlx::postgres::PgRow| {
        Ok(DatabaseSetting { role: row.try_get(0)?, name: row.try_get(1)?, value: row.try_get(2)? })
    };
    rows.iter().map(read).collect::<sqlx::Result<_>>().or_failed(what)
}

#[cfg(test)]
mod tests {
    use super::split_list;

    #[test]
    fn a_list_of_names_is_read_as_the_server_reads_it() {
        assert_eq!(split_list("\"$user\", public"), ["$user", "public"]);
        assert_eq!(split_list("\"a, \"\"b\"\"\",c"), ["a, \"b\"", "c"]);
        assert_eq!(split_list("\"\""), [""]);
        assert!(split_list("").is_empty());
    }
}

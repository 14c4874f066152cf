//! What a dump of one database omits, or what only its owner may set: read for an export, given back after an import.
//!
//! What must hold: what comes out of a file is applied in the name of the ordinary role that is to own the database,
//! never of a superuser, and one by one: what that role may not do is left out and told.

use sqlx::{AssertSqlSafe, Connection, PgConnection, Row};

use crate::archive::{Database, DefaultPrivileges, Grant};
use crate::error::{Context, Error, Result};
use crate::pg::clone::Properties;
use crate::pg::quote;

/// Kinds of objects in `pg_default_acl`, and their words.
const KINDS: [(&str, &str); 5] =
    [("r", "TABLES"), ("S", "SEQUENCES"), ("f", "FUNCTIONS"), ("T", "TYPES"), ("n", "SCHEMAS")];

/// Privileges that a file may name. They are written into statements as they are.
const PRIVILEGES: [&str; 12] = [
    "CONNECT",
    "CREATE",
    "DELETE",
    "EXECUTE",
    "INSERT",
    "REFERENCES",
    "SELECT",
    "TEMPORARY",
    "TRIGGER",
    "TRUNCATE",
    "UPDATE",
    "USAGE",
];

/// Reads what is outside of a dump. `connection` is in the database.
pub(super) async fn read(connection: &mut PgConnection) -> Result<Database> {
    let what = || "cannot read what a dump of the database omits";
    sqlx::raw_sql("SET search_path = pg_catalog").execute(&mut *connection).await.or_failed(what)?;
    let row = sqlx::raw_sql(
        "SELECT datname::text, pg_encoding_to_char(encoding)::text, datcollate::text, pg_database_size(oid), \
         ARRAY(SELECT DISTINCT rolname::text FROM pg_shdepend JOIN pg_roles r ON r.oid = refobjid \
               WHERE dbid = d.oid AND refclassid = 'pg_authid'::regclass AND deptype IN ('a', 'r') \
               AND r.oid <> datdba ORDER BY 1), \
         ARRAY(SELECT extname::text FROM pg_extension WHERE extname <> 'plpgsql' ORDER BY 1) \
         FROM pg_database d WHERE datname = current_database()",
    )
    .fetch_one(&mut *connection)
    .await
    .or_failed(what)?;
    let name: String = row.try_get(0).or_failed(what)?;
    let size: i64 = row.try_get(3).or_failed(what)?;
    Ok(Database {
        encoding: row.try_get(1).or_failed(what)?,
        collation: row.try_get(2).or_failed(what)?,
        size_bytes: size.unsigned_abs(),
        properties: Properties::read(&mut *connection, &name).await?,
        default_privileges: read_default_privileges(connection).await.or_failed(what)?,
        roles: row.try_get(4).or_failed(what)?,
        extensions: row.try_get(5).or_failed(what)?,
    })
}

async fn read_default_privileges(connection: &mut PgConnection) -> sqlx::Result<Vec<DefaultPrivileges>> {
    let question = "SELECT pg_get_userbyid(defaclrole)::text, n.nspname::text, defaclobjtype::text, \
                    CASE WHEN a.grantee <> 0 THEN pg_get_userbyid(a.grantee)::text END, a.privilege_type, a.is_grantable \
                    FROM pg_default_acl d LEFT JOIN pg_namespace n ON n.oid = defaclnamespace \
                    LEFT JOIN LATERAL aclexplode(defaclacl) a ON true ORDER BY d.oid, 4, 5";
    let mut found: Vec<DefaultPrivileges> = Vec::new();
    for row in sqlx::raw_sql(question).fetch_all(connection).await? {
        let (role, schema, kind) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let next = DefaultPrivileges { role, schema, kind, grants: Vec::new() };
        let same = |last: &&mut DefaultPrivileges| {
            (&last.role, &last.schema, &last.kind) == (&next.role, &next.schema, &next.kind)
        };
        let grant = match row.try_get::<Option<String>, _>(4)? {
            Some(privilege) => Some(Grant { role: row.try_get(3)?, privilege, grantable: row.try_get(5)? }),
            None => None,
        };
        match found.last_mut().filter(same) {
            Some(last) => last.grants.extend(grant),
            None => found.push(DefaultPrivileges { grants: grant.into_iter().collect(), ..next }),
        }
    }
    Ok(found)
}

/// Gives the database `name`, in which `connection` is as the ordinary role `owner` that owns it, what a file says of it.
/// What was its owner's there is this owner's here. Returns what was left out, in words.
pub(super) async fn apply(
    connection: &mut PgConnection,
    name: &str,
    owner: &str,
    wanted: &Database,
) -> Result<Vec<String>> {
    let what = || "cannot set what belongs to the database";
    sqlx::raw_sql("SET search_path = pg_catalog").execute(&mut *connection).await.or_failed(what)?;
    let mut left_out = Vec::new();
    let wanted = owned_by(owner, wanted);
    let empty = Properties {
        privileges: None,
        connection_limit: -1,
        comment: None,
        settings: Vec::new(),
        ..wanted.properties.clone()
    };
    let privileges = Properties { settings: Vec::new(), ..wanted.properties.clone() };
    let are_known = privileges.privileges.iter().flatten().all(|one| PRIVILEGES.contains(&one.privilege.as_str()));
    if !are_known {
        return Err(Error::bad_input("the file grants a privilege on its database that there is none of"));
    }
    try_properties(
        connection,
        name,
        &privileges,
        "privileges on the database, its connection limit and comment",
        &mut left_out,
    )
    .await?;
    for setting in &wanted.properties.settings {
        let whose = setting.role.as_ref().map(|role| format!(" of the role `{role}`")).unwrap_or_default();
        let words = format!("the setting `{}`{whose}", setting.name);
        let one = Properties { settings: vec![setting.clone()], ..empty.clone() };
        try_properties(connection, name, &one, &words, &mut left_out).await?;
    }
    for defaults in &wanted.default_privileges {
        let statements = default_privileges(defaults)?;
        let words = format!("default privileges of the role `{}`", defaults.role);
        match run(connection, &statements).await {
            Ok(()) => {}
            Err(error) => left_out.push(format!("{words}: {error}")),
        }
    }
    Ok(left_out)
}

/// The same, with `owner` in the place of who owned the database.
fn owned_by(owner: &str, wanted: &Database) -> Database {
    let mut wanted = wanted.clone();
    let before = std::mem::replace(&mut wanted.properties.owner, owner.to_owned());
    let rename = |role: &mut String| {
        if *role == before {
            owner.clone_into(role);
        }
    };
    for privilege in wanted.properties.privileges.iter_mut().flatten() {
        rename(&mut privilege.grantor);
        privilege.grantee.iter_mut().for_each(rename);
    }
    for setting in &mut wanted.properties.settings {
        setting.role.iter_mut().for_each(rename);
    }
    for defaults in &mut wanted.default_privileges {
        rename(&mut defaults.role);
        defaults.grants.iter_mut().flat_map(|grant| &mut grant.role).for_each(rename);
    }
    wanted
}

async fn try_properties(
    connection: &mut PgConnection,
    name: &str,
    properties: &Properties,
    words: &str,
    left_out: &mut Vec<String>,
) -> Result<()> {
    let what = || "cannot set what belongs to the database";
    let mut transaction = connection.begin().await.or_failed(what)?;
    match properties.apply(&mut transaction, name).await {
        Ok(gone) => {
            transaction.commit().await.or_failed(what)?;
            if !gone.is_empty() {
                let roles = gone.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ");
                left_out.push(format!("{words}: there is no role {roles} here"));
            }
        }
        Err(error) => {
            transaction.rollback().await.or_failed(what)?;
            left_out.push(format!("{words}: {}", error.causes().first().cloned().unwrap_or_else(|| error.to_string())));
        }
    }
    Ok(())
}

async fn run(connection: &mut PgConnection, statements: &[String]) -> sqlx::Result<()> {
    let mut transaction = connection.begin().await?;
    for statement in statements {
        sqlx::raw_sql(AssertSqlSafe(statement.clone())).execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// Statements that set default privileges as they were read.
fn default_privileges(wanted: &DefaultPrivileges) -> Result<Vec<String>> {
    let kind = KINDS.iter().find(|(letter, _)| *letter == wanted.kind).map(|(_, words)| words);
    let kind = kind.ok_or_else(|| Error::bad_input("the file has default privileges on what there is none of"))?;
    let role = quote::identifier(&wanted.role)?;
    let schema = match &wanted.schema {
        Some(schema) => format!(" IN SCHEMA {}", quote::identifier(schema)?),
        None => String::new(),
    };
    let alter = format!("ALTER DEFAULT PRIVILEGES FOR ROLE {role}{schema}");
    let mut statements = Vec::new();
    if wanted.schema.is_none() {
        // Those for all schemas take the place of what everybody has anyway; those for a schema add to it.
        statements.push(format!("{alter} REVOKE ALL ON {kind} FROM PUBLIC, {role}"));
    }
    for grant in &wanted.grants {
        if !PRIVILEGES.contains(&grant.privilege.as_str()) {
            return Err(Error::bad_input("the file has default privileges that there are none of"));
        }
        let to = grant.role.as_deref().map_or_else(|| Ok("PUBLIC".to_owned()), quote::identifier)?;
        let option = if grant.grantable { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("{alter} GRANT {} ON {kind} TO {to}{option}", grant.privilege));
    }
    Ok(statements)
}

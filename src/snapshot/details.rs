//! What is noted of a state: its size, migrations and schema, and where the checkout stood.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use sqlx::{PgConnection, Row};

use super::registry::Details;
use crate::error::{Context, Result};
use crate::pg::Login;
use crate::pg::clone::Admin;

/// How long git may take to say where the checkout stands.
const GIT_LIMIT: Duration = Duration::from_secs(2);

/// A hash of what the schema consists of: relations, columns, constraints, indexes, functions, triggers, types, rules,
/// policies, extensions and publications, by name. Two databases of one server version with equal schemas have equal
/// ones.
const FINGERPRINT: &str = "
    WITH spaces AS (
        SELECT oid, nspname FROM pg_namespace
        WHERE nspname <> 'information_schema' AND nspname !~ '^pg_(catalog|toast|temp_|toast_temp_)'
    ), relations AS (
        SELECT format('%I.%I', nspname, relname) AS relation, c.*
        FROM pg_class c JOIN spaces s ON s.oid = relnamespace
    ), lines (line) AS (
        SELECT format('schema %s', nspname) FROM spaces
        UNION ALL SELECT format('relation %s %s %s %s', relation, relkind, relpersistence, reloptions) FROM relations
        UNION ALL SELECT format('column %s %s %s %s %s %s', relation, attnum, attname,
                format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid))
            FROM relations r JOIN pg_attribute a ON a.attrelid = r.oid AND attnum > 0 AND NOT attisdropped
            LEFT JOIN pg_attrdef d ON d.adrelid = r.oid AND d.adnum = a.attnum
        UNION ALL SELECT format('constraint %s %s', relation, pg_get_constraintdef(k.oid))
            FROM relations r JOIN pg_constraint k ON k.conrelid = r.oid
        UNION ALL SELECT format('index %s', pg_get_indexdef(i.indexrelid))
            FROM relations r JOIN pg_index i ON i.indrelid = r.oid
        UNION ALL SELECT format('view %s %s', relation, pg_get_viewdef(r.oid)) FROM relations r WHERE relkind IN ('v', 'm')
        UNION ALL SELECT format('trigger %s', pg_get_triggerdef(t.oid))
            FROM relations r JOIN pg_trigger t ON t.tgrelid = r.oid AND NOT tgisinternal
        UNION ALL SELECT format('policy %s %s %s %s %s', relation, polname, polcmd,
                pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
            FROM relations r JOIN pg_policy p ON p.polrelid = r.oid
        UNION ALL SELECT format('sequence %s %s %s %s', relation, seqincrement, seqmin, seqmax)
            FROM relations r JOIN pg_sequence q ON q.seqrelid = r.oid
        UNION ALL SELECT format('function %s.%s(%s) %s %s', nspname, proname,
                pg_get_function_identity_arguments(p.oid), prosrc, probin)
            FROM pg_proc p JOIN spaces s ON s.oid = pronamespace
        UNION ALL SELECT format('type %s.%s %s %s', nspname, typname, typtype,
                (SELECT string_agg(enumlabel, ',' ORDER BY enumsortorder) FROM pg_enum WHERE enumtypid = t.oid))
            FROM pg_type t JOIN spaces s ON s.oid = typnamespace
        UNION ALL SELECT format('extension %s %s', extname, extversion) FROM pg_extension
        UNION ALL SELECT format('publication %s %s', pubname, puballtables) FROM pg_publication
    )
    SELECT md5(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\")) FROM lines";

/// Reads what can be told of the database `database` from inside. A database that our role may not enter tells nothing.
pub(super) async fn read(admin: &Login, database: &str, limit: Duration) -> Result<Details> {
    let login = Login { database: database.to_owned(), ..admin.clone() };
    let mut session = Admin::open(&login, limit).await?;
    let details = read_in(&mut session.connection).await;
    crate::provision::close(session.connection).await;
    details
}

async fn read_in(connection: &mut PgConnection) -> Result<Details> {
    let details = read_without_schema(connection).await?;
    Ok(Details { fingerprint: Some(fingerprint(connection).await?), ..details })
}

/// The hash of the schema of the session's database.
pub(super) async fn fingerprint(connection: &mut PgConnection) -> Result<String> {
    let what = || "cannot read the schema of the database";
    sqlx::raw_sql("SET search_path = pg_catalog").execute(&mut *connection).await.or_failed(what)?;
    let row = sqlx::raw_sql(FINGERPRINT).fetch_one(connection).await;
    row.and_then(|row| row.try_get(0)).or_failed(what)
}

/// Reads what can be told in a session in the database without a look at every table, which would wait for each that
/// somebody has locked.
pub(super) async fn read_without_schema(connection: &mut PgConnection) -> Result<Details> {
    let what = || "cannot look at the database";
    // A function of the database's own could else stand in for one of the server's, and would run as our role.
    sqlx::raw_sql("SET search_path = pg_catalog").execute(&mut *connection).await.or_failed(what)?;
    let row = sqlx::raw_sql(
        "SELECT pg_database_size(oid), current_setting('server_version_num')::integer, \
         (SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace \
          WHERE relname = '_sqlx_migrations' AND relkind = 'r' ORDER BY nspname <> 'public', nspname LIMIT 1) \
         FROM pg_database WHERE datname = current_database()",
    )
    .fetch_one(&mut *connection)
    .await
    .or_failed(what)?;
    let size: i64 = row.try_get(0).or_failed(what)?;
    let migration = match row.try_get::<Option<String>, _>(2).or_failed(what)? {
        Some(table) => last_migration(connection, &table).await,
        None => None,
    };
    let server_version = row.try_get(1).or_failed(what)?;
    Ok(Details { size: size.unsigned_abs(), migration, server_version, ..Details::default() })
}

/// The last migration that was applied; `None` also if the table is not sqlx's after all.
async fn last_migration(connection: &mut PgConnection, table: &str) -> Option<i64> {
    let question = sqlx::AssertSqlSafe(format!("SELECT max(version) FROM {table} WHERE success"));
    sqlx::raw_sql(question).fetch_one(connection).await.ok()?.try_get(0).ok()
}

/// The branch and commit of the checkout `folder`; `None` where there is no such thing, or no git.
pub(super) async fn git(folder: Option<&Path>) -> (Option<String>, Option<String>) {
    let Some(folder) = folder else { return (None, None) };
    let mut command = tokio::process::Command::new("git");
    command.arg("-C").arg(folder).args(["rev-parse", "HEAD", "--abbrev-ref", "HEAD"]);
    // Inside a hook these would lead to the repository of the hook.
    command.env_remove("GIT_DIR").env_remove("GIT_WORK_TREE").env_remove("GIT_INDEX_FILE");
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(GIT_LIMIT, command.output()).await else { return (None, None) };
    if !output.status.success() {
        return (None, None);
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().map(str::to_owned);
    let commit = lines.next();
    (lines.next().filter(|branch| branch != "HEAD"), commit)
}

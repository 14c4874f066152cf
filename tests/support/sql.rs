//! SQL over TCP with sqlx: an ordinary client, as an application would be.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row, ValueRef};

/// The first column of all rows, as text; the login and the statement must succeed.
#[track_caller]
pub(crate) fn query(url: &str, sql: &str) -> Vec<String> {
    try_query(url, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
}

/// The one value that `sql` gives, as text.
#[track_caller]
pub(crate) fn one(url: &str, sql: &str) -> String {
    let mut rows = query(url, sql);
    assert_eq!(rows.len(), 1, "{sql}");
    rows.remove(0)
}

/// The first column of all rows, as text; `NULL` for what is null.
pub(crate) fn try_query(url: &str, sql: &str) -> Result<Vec<String>, sqlx::Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut connection = PgConnection::connect(url).await?;
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut connection).await?;
        connection.close().await?;
        let texts = rows.iter().map(|row| {
            let value = row.try_get_raw(0)?;
            Ok(if value.is_null() { "NULL".to_owned() } else { value.as_str().unwrap().to_owned() })
        });
        texts.collect()
    })
}

/// A session that stays open, for what one session does while others do something else.
pub(crate) struct Session {
    runtime: tokio::runtime::Runtime,
    connection: PgConnection,
}

impl Session {
    /// Logs in.
    pub(crate) fn open(url: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let connection = runtime.block_on(PgConnection::connect(url)).unwrap();
        Self { runtime, connection }
    }

    /// Runs statements.
    pub(crate) fn run(&mut self, sql: &str) {
        let statements = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut self.connection);
        self.runtime.block_on(statements).unwrap();
    }

    /// The one number that a query gives.
    pub(crate) fn number(&mut self, sql: &str) -> i64 {
        let row = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_one(&mut self.connection);
        let row = self.runtime.block_on(row).unwrap();
        row.try_get_raw(0).unwrap().as_str().unwrap().parse().unwrap()
    }
}

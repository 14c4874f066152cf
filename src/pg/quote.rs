//! Quoting of names and text for SQL that takes no parameters, such as `CREATE DATABASE`.
//!
//! What must hold: whatever the text, the server reads back exactly that text and nothing of it as SQL. Text that the
//! server could not hold unchanged is refused here, because the server would cut it or stop in the middle.

use crate::error::{Error, Result};

/// The longest name that PostgreSQL keeps, in bytes (`NAMEDATALEN` − 1). The server cuts longer ones without an error,
/// and two that differ only after the cut would be one.
pub const MAX_NAME_BYTES: usize = 63;

/// Quotes `name` as an identifier: a database, role, schema, table or the like.
///
/// Refuses an empty name, one with a NUL character and one of more than [`MAX_NAME_BYTES`] bytes.
pub fn identifier(name: &str) -> Result<String> {
    if name.is_empty() {
        return Err(Error::bad_input("a name in the database must not be empty"));
    }
    if name.contains('\0') {
        return Err(Error::bad_input(format!("the name `{}` contains a NUL character", name.escape_debug())));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(Error::bad_input(format!(
            "the name `{name}` has {} bytes, but PostgreSQL keeps only {MAX_NAME_BYTES}",
            name.len()
        ))
        .hint("choose a shorter name; letters outside ASCII take two to four bytes"));
    }
    Ok(format!("\"{}\"", name.replace('"', "\"\"")))
}

/// Quotes `text` as a string literal that means the same whatever `standard_conforming_strings` is.
///
/// Refuses a NUL character, which PostgreSQL's text cannot hold.
pub fn literal(text: &str) -> Result<String> {
    if text.contains('\0') {
        return Err(Error::bad_input(format!("the text `{}` contains a NUL character", text.escape_debug())));
    }
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        // The space keeps a keyword in front of it from swallowing the E.
        return Ok(format!(" E'{}'", quoted.replace('\\', "\\\\")));
    }
    Ok(format!("'{quoted}'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pg::{connect, test_server};
    use proptest::prelude::*;
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    use sqlx::{AssertSqlSafe, Connection, Row};
    use std::time::{Duration, Instant};

    #[test]
    fn what_the_server_would_cut_or_cannot_hold_is_refused() {
        assert!(identifier("").is_err());
        assert!(identifier("a\0b").is_err());
        assert!(literal("a\0b").is_err());
        assert!(identifier(&"ä".repeat(31)).is_ok());
        assert!(identifier(&"ä".repeat(32)).is_err(), "64 bytes in 32 characters");
    }

    #[test]
    fn quotes_are_doubled() {
        assert_eq!(identifier("a\"; DROP").unwrap(), "\"a\"\"; DROP\"");
        assert_eq!(literal("it's").unwrap(), "'it''s'");
        assert_eq!(literal("\\'").unwrap(), " E'\\\\'''");
    }

    /// The server itself reads back names and text exactly, with both settings of `standard_conforming_strings`.
    #[tokio::test]
    async fn a_real_server_reads_back_the_same_text() {
        let Some(login) = test_server::database().await else { return };
        let mut connection = connect(&login, Instant::now() + Duration::from_secs(20)).await.unwrap();
        let text = proptest::collection::vec(
            prop_oneof![
                Just('\''),
                Just('"'),
                Just('\\'),
                Just('$'),
                Just('\n'),
                Just('\r'),
                Just(';'),
                Just('E'),
                any::<char>().prop_filter("PostgreSQL has no NUL", |c| *c != '\0')
            ],
            1..14,
        );
        let mut runner = TestRunner::deterministic();
        for conforming in ["on", "off"] {
            let setting = AssertSqlSafe(format!(
                "SET standard_conforming_strings = {conforming}; SET escape_string_warning = off"
            ));
            sqlx::raw_sql(setting).execute(&mut connection).await.unwrap();
            for _ in 0..200 {
                let text: String = text.new_tree(&mut runner).unwrap().current().into_iter().collect();
                let statement = format!("SELECT{} AS {}", literal(&text).unwrap(), identifier(&text).unwrap());
                let row = sqlx::raw_sql(AssertSqlSafe(statement)).fetch_one(&mut connection).await.unwrap();
                assert_eq!(row.get::<String, _>(0), text);
                assert_eq!(sqlx::Column::name(row.column(0)), text);
            }
        }
        connection.close().await.unwrap();
    }
}

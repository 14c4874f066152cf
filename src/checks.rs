//! What `up` looks at once a server answers, and warns of: nothing here changes or refuses anything.

use jiff::{SignedDuration, Timestamp};
use sqlx::{PgConnection, Row};

use crate::error::{Context, Result};
use crate::event::Events;

/// How far the server's clock may be off before it is worth a word. A virtual machine that slept is off by minutes.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(10);

/// Warns if the server's clock and this machine's differ: time-outs, tokens and `created_at` would be wrong.
pub async fn clock(connection: &mut PgConnection, events: &Events) -> Result<()> {
    let what = || "cannot read the server's clock";
    let before = Timestamp::now();
    let row =
        sqlx::raw_sql("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint").fetch_one(connection).await;
    let server: i64 = row.or_failed(what)?.try_get(0).or_failed(what)?;
    let server = Timestamp::from_millisecond(server).or_failed(what)?;
    if let Some(warning) = clock_warning(before, server) {
        events.warning(warning);
    }
    Ok(())
}

fn clock_warning(here: Timestamp, server: Timestamp) -> Option<String> {
    let difference = server.duration_since(here);
    if difference.abs() <= CLOCK_TOLERANCE {
        return None;
    }
    let direction = if difference.is_positive() { "ahead of" } else { "behind" };
    Some(format!(
        "the server's clock is {} s {direction} this machine's; restart Docker (its virtual machine) to set it",
        difference.abs().as_secs()
    ))
}

/// Warns of databases whose text was sorted by another version of the C library or ICU than the server has now: their
/// indexes may miss rows.
pub async fn collations(connection: &mut PgConnection, events: &Events) -> Result<()> {
    let what = || "cannot compare collation versions";
    let rows = sqlx::raw_sql(
        "SELECT datname, datcollversion, pg_database_collation_actual_version(oid) FROM pg_database \
         WHERE datallowconn AND datcollversion IS DISTINCT FROM pg_database_collation_actual_version(oid) \
         AND pg_database_collation_actual_version(oid) IS NOT NULL ORDER BY datname",
    )
    .fetch_all(connection)
    .await
    .or_failed(what)?;
    for row in rows {
        let name: String = row.try_get(0).or_failed(what)?;
        let made: Option<String> = row.try_get(1).or_failed(what)?;
        let now: String = row.try_get(2).or_failed(what)?;
        events.warning(format!(
            "the text in database `{name}` was sorted by collation version {}, and this image has {now}: run \
             `REINDEX DATABASE` in it, then `ALTER DATABASE {name} REFRESH COLLATION VERSION`",
            made.as_deref().unwrap_or("unknown")
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_is_told_with_its_direction() {
        let here = Timestamp::from_second(1_000_000).unwrap();
        let at = |seconds: i64| Timestamp::from_second(1_000_000 + seconds).unwrap();
        assert_eq!(clock_warning(here, at(10)), None);
        assert!(clock_warning(here, at(11)).unwrap().contains("11 s ahead of"));
        assert!(clock_warning(here, at(-3600)).unwrap().contains("3600 s behind"));
    }

    #[tokio::test]
    async fn a_text_sorted_by_another_version_is_told() {
        use std::sync::{Arc, Mutex};
        let Some(mut cluster) = crate::pg::test_server::Cluster::initialise(&["--locale=C.UTF-8"]) else { return };
        cluster.start(&[]).await;
        let mut connection = crate::pg::test_server::session(&cluster.login).await;
        let heard = Arc::new(Mutex::new(Vec::new()));
        let sink = heard.clone();
        let events = Events::to(move |event| sink.lock().unwrap().push(format!("{event:?}")));
        collations(&mut connection, &events).await.unwrap();
        assert!(heard.lock().unwrap().is_empty(), "{heard:?}");
        // ICU has versions on every machine; the C library's locale has none.
        let made = "CREATE DATABASE sorted TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8'";
        sqlx::raw_sql(made).execute(&mut connection).await.unwrap();
        let stale = "UPDATE pg_database SET datcollversion = '1.2' WHERE datname = 'sorted'";
        sqlx::raw_sql(stale).execute(&mut connection).await.unwrap();
        collations(&mut connection, &events).await.unwrap();
        clock(&mut connection, &Events::none()).await.unwrap();
        let heard = heard.lock().unwrap();
        assert!(heard.len() == 1 && heard[0].contains("`sorted`") && heard[0].contains("1.2"), "{heard:?}");
    }
}

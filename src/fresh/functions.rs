//! What is done for each hand-out and each return, as functions in the server: one round trip each, planned once for a
//! session. Sent as statements they took eight round trips, and parsing and planning them took half of the time.
//!
//! What must hold: each statement of a function sees what was committed before that statement; a function is one
//! transaction, and the advisory locks that it takes for a session outlive it.

use super::registry::{COUNT_LOCK, DATABASE_LOCK};
use super::{reap, untouched};

/// How long taking a database out of reach may take.
pub(super) const CLOSE_LIMIT: &str = "2s";

/// The statements that make the functions, or make them anew. A function that gives other columns than it did must go first.
pub(super) fn script() -> String {
    let old = "DROP FUNCTION IF EXISTS tfdev.fresh_claim(text, boolean, bigint), \
               tfdev.fresh_close(bigint[], text[], text[]), \
               tfdev.fresh_hand_out(text, bigint, text, text, bigint);\n";
    [old, &hand_out(), &claim(), &close()].concat()
}

/// Notes and locks a free database of the template, unless `most` are in use: the one that was used last, of which the server
/// has most in its memory. One row in any case, which also tells how many are left.
fn hand_out() -> String {
    let changes = untouched::changes("d.oid");
    format!(
        "CREATE OR REPLACE FUNCTION tfdev.fresh_hand_out(
             of_source text, of_template bigint, by_holder text, in_life text, most bigint
         ) RETURNS TABLE (number bigint, name text, locked boolean, free bigint, returned bigint)
         LANGUAGE plpgsql AS $function$
         DECLARE
             in_use bigint;
         BEGIN
             IF most IS NOT NULL THEN
                 -- Who counts, counts alone.
                 PERFORM pg_advisory_xact_lock({COUNT_LOCK});
             END IF;
             SELECT count(*) FILTER (WHERE stage = 'leased'),
                    count(*) FILTER (WHERE template = of_template AND stage = 'free'),
                    count(*) FILTER (WHERE template = of_template AND stage = 'returned')
                    INTO in_use, free, returned FROM tfdev.fresh_database WHERE source = of_source;
             IF free > 0 AND (most IS NULL OR in_use < most) THEN
                 UPDATE tfdev.fresh_database SET stage = 'leased', leased_at = clock_timestamp(),
                     holder = by_holder, clean_from = pg_current_wal_insert_lsn(), life = in_life,
                     changes = (SELECT {changes} FROM pg_database d WHERE d.datname = database)
                     WHERE id = (SELECT id FROM tfdev.fresh_database WHERE template = of_template AND stage = 'free'
                                 ORDER BY freed_at DESC NULLS LAST, id FOR UPDATE SKIP LOCKED LIMIT 1)
                     RETURNING id, database, pg_try_advisory_lock({DATABASE_LOCK}, id) INTO number, name, locked;
                 free := free - 1;
             END IF;
             RETURN NEXT;
         END $function$;\n"
    )
}

/// Locks up to `most` rows that may be swept, and marks those that still may under their locks. A row that may not any more
/// has no name. Time for what comes next is short, until it is said otherwise.
fn claim() -> String {
    let candidates = reap::candidates();
    format!(
        "CREATE OR REPLACE FUNCTION tfdev.fresh_claim(of_source text, again boolean, most bigint)
             RETURNS TABLE (number bigint, name text, returned boolean, template bigint) LANGUAGE plpgsql AS $function$
         #variable_conflict use_column
         DECLARE
             claimed integer[];
         BEGIN
             claimed := ARRAY(
                 WITH c AS MATERIALIZED (
                     SELECT id FROM tfdev.fresh_database WHERE source = of_source AND {candidates}
                     AND (again OR coalesce(tried_at < clock_timestamp() - interval '5 s', true))
                     ORDER BY tried_at NULLS FIRST, id
                 ) SELECT id FROM c WHERE pg_try_advisory_lock({DATABASE_LOCK}, id) LIMIT most);
             IF cardinality(claimed) = 0 THEN
                 RETURN;
             END IF;
             PERFORM set_config('statement_timeout', '{CLOSE_LIMIT}', false);
             -- Looked at again: it may have been given back and taken by someone else before we had the lock.
             RETURN QUERY WITH marked AS (
                 UPDATE tfdev.fresh_database SET tried_at = clock_timestamp(),
                 stage = CASE stage WHEN 'returned' THEN stage ELSE 'dropping' END
                 WHERE id = ANY(claimed) AND {candidates} RETURNING id, database, stage = 'returned' AS is_returned, template
             ) SELECT c::bigint, marked.database, marked.is_returned, marked.template::bigint
             FROM unnest(claimed) c LEFT JOIN marked ON id = c;
         END $function$;\n"
    )
}

/// Gives databases new names, which keeps everyone out, and notes them in the same transaction; tells for each one whether
/// somebody is in it, and if nobody is, what is to be read of the log and whether what belongs to the database is what it
/// was. One of which the counters show that more rows were changed than its part of `most` says keeps its name.
fn close() -> String {
    let (traits, changes) = (untouched::traits("new_names[i]"), untouched::changes("d.oid"));
    let life = untouched::LIFE_QUESTION;
    format!(
        "CREATE OR REPLACE FUNCTION tfdev.fresh_close(numbers bigint[], names text[], new_names text[], most bigint[])
             RETURNS TABLE (number bigint, busy boolean, closed boolean, problem text, oid bigint, clean_from text,
                            same boolean, until text, file text) LANGUAGE plpgsql AS $function$
         #variable_conflict use_column
         DECLARE
             i integer;
             changed boolean;
             -- A session is in one life only.
             this_life text := ({life});
         BEGIN
             -- The commit writes the log up to its own end, which is behind all that is to be read.
             PERFORM set_config('synchronous_commit', 'on', true);
             FOR i IN 1 .. cardinality(numbers) LOOP
                 number := numbers[i]; closed := false; problem := NULL;
                 SELECT d.oid, pg_stat_get_db_numbackends(d.oid) > 0,
                        {changes} - coalesce((SELECT f.changes FROM tfdev.fresh_database f WHERE f.id = numbers[i]), 0) > most[i]
                        INTO oid, busy, changed FROM pg_database d WHERE d.datname = names[i];
                 IF NOT busy AND NOT changed THEN
                     BEGIN
                         EXECUTE format('ALTER DATABASE %I RENAME TO %I', names[i], new_names[i]);
                         UPDATE tfdev.fresh_database f SET database = new_names[i] WHERE f.id = numbers[i]
                             RETURNING f.clean_from::text, f.traits = {traits} AND f.life = this_life
                             INTO clean_from, same;
                         until := pg_current_wal_insert_lsn()::text;
                         file := pg_walfile_name(until::pg_lsn);
                         closed := true;
                     EXCEPTION WHEN OTHERS THEN
                         problem := SQLERRM;
                     END;
                 END IF;
                 RETURN NEXT;
             END LOOP;
         END $function$;\n"
    )
}

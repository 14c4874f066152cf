//! Whatever is done to a database: if it goes back into the pool, it is what it was.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::tests::{connect, open, options, recipe, server};
use super::{FreshDatabase, Lease, Pool, Recipe, Stage};
use crate::pg::Login;
use crate::pg::test_server::{self, session};

/// How many leases are tried.
const LEASES: usize = 120;

/// Objects of many kinds, with a sequence that was used, rows, and a large object.
const OBJECTS: &str = "CREATE SEQUENCE numbers; SELECT nextval('numbers'); SELECT setval('numbers', 30); \
     CREATE TABLE things (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text, note text DEFAULT 'none'); \
     INSERT INTO things (name) SELECT 'thing ' || n FROM generate_series(1, 300) n; \
     CREATE INDEX things_name ON things (name); CREATE MATERIALIZED VIEW names AS SELECT name FROM things; \
     SELECT lo_from_bytea(4711, 'content'); ANALYZE things";

/// What only reads, or touches nothing that outlives a session.
const READS: &[&str] = &[
    "SELECT count(*) FROM things",
    "SELECT * FROM things WHERE name = 'thing 7'",
    "SELECT * FROM names, users",
    "SELECT last_value FROM numbers",
    "SELECT count(*) FROM pg_class, pg_attribute",
    "SELECT * FROM information_schema.columns",
    "SELECT lo_get(4711)",
    "BEGIN; SELECT 1; ROLLBACK",
    "EXPLAIN (ANALYZE) SELECT count(*) FROM things t JOIN things o USING (id)",
    "LISTEN news; NOTIFY news; UNLISTEN *",
    "SELECT pg_advisory_lock(7)",
    "SET work_mem = '8MB'; SET search_path = public",
    "BEGIN; DECLARE c CURSOR FOR SELECT * FROM things; FETCH 3 FROM c; COMMIT",
    "DELETE FROM things WHERE false",
    "SELECT no_such_column FROM things",
    "DO $$ BEGIN PERFORM 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END $$",
];

/// What may leave a trace.
const WRITES: &[&str] = &[
    "INSERT INTO things (name) VALUES ('new')",
    "BEGIN; INSERT INTO things (name) VALUES ('new'); ROLLBACK",
    "DO $$ BEGIN INSERT INTO things (name) VALUES ('x'); RAISE 'no'; EXCEPTION WHEN others THEN NULL; END $$",
    "UPDATE things SET note = note WHERE id = 3",
    "DELETE FROM things WHERE id = 4",
    "SELECT nextval('numbers')",
    "BEGIN; SELECT nextval('numbers'); ROLLBACK",
    "SELECT setval('numbers', 30)",
    "SELECT setval('numbers', 77, false)",
    "ALTER SEQUENCE numbers RESTART",
    "SELECT * FROM things WHERE id = 5 FOR UPDATE",
    "BEGIN; SELECT * FROM things WHERE id = 6 FOR SHARE; ROLLBACK",
    "TRUNCATE things",
    "BEGIN; TRUNCATE things RESTART IDENTITY; ROLLBACK",
    "VACUUM things",
    "VACUUM users",
    "VACUUM (FULL) things",
    "ANALYZE",
    "ANALYZE users",
    "CLUSTER things USING things_name",
    "REINDEX TABLE things",
    "REFRESH MATERIALIZED VIEW names",
    "CREATE TEMP TABLE own (id int)",
    "CREATE TEMP TABLE own ON COMMIT DROP AS SELECT 1",
    "CREATE TABLE more (id int)",
    "CREATE UNLOGGED TABLE more AS SELECT 1",
    "CREATE SCHEMA other; DROP SCHEMA other",
    "BEGIN; CREATE TABLE more (id int); ROLLBACK",
    "DROP INDEX things_name",
    "ALTER TABLE things ALTER name SET STATISTICS 7",
    "ALTER TABLE things SET (fillfactor = 90)",
    "COMMENT ON TABLE things IS 'things'",
    "GRANT SELECT ON things TO public",
    "CREATE FUNCTION one() RETURNS int LANGUAGE sql RETURN 1",
    "SELECT lo_create(0)",
    "SELECT lo_put(4711, 2, 'new')",
    "SELECT lo_unlink(4711)",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''9MB''', current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 7', current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('ALTER ROLE %I IN DATABASE %I SET jit = off', current_user, current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS ''mine''', current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO public', current_database()); END $$",
];

/// Of these the ones that the server's counters of changed rows do not show, and that only the log, or a look at what belongs to
/// the database, can tell.
const UNCOUNTED: &[&str] = &[
    "VACUUM users",
    "ANALYZE things",
    "SELECT * FROM things WHERE id = 5 FOR UPDATE",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET work_mem = ''9MB''', current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I CONNECTION LIMIT 7', current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('COMMENT ON DATABASE %I IS ''mine''', current_database()); END $$",
    "DO $$ BEGIN EXECUTE format('GRANT CREATE ON DATABASE %I TO public', current_database()); END $$",
];

/// Rows of a relation that say something of this database, without what emptying may change.
///
/// Autovacuum looks after the catalogs that all databases share from within any of them, even one that nobody uses, and leaves
/// its estimates of them there.
fn own_rows(relation: &str, kind: &str) -> String {
    match relation {
        "pg_class" => "(SELECT to_jsonb(c) - '{relfrozenxid,relminmxid}'::text[] \
                       - CASE relkind WHEN 'i' THEN 'relpages' ELSE '' END FROM pg_class c WHERE NOT relisshared)"
            .to_owned(),
        "pg_statistic" => "(SELECT * FROM pg_statistic \
                           WHERE starelid NOT IN (SELECT oid FROM pg_class WHERE relisshared))"
            .to_owned(),
        _ if kind == "S" => format!("(SELECT last_value, is_called FROM {relation})"),
        _ => format!("(SELECT * FROM {relation})"),
    }
}

/// All that a database keeps, as a hash: every row of every relation, system catalogs and sequences among them, and what
/// belongs to the database itself.
pub(super) async fn fingerprint(admin: &Login, database: &str) -> String {
    let mut connection = session(&Login { database: database.to_owned(), ..admin.clone() }).await;
    let question = "SELECT oid::regclass::text, relkind::text FROM pg_class \
                    WHERE relkind IN ('r', 'm', 'S') AND NOT relisshared";
    let relations: Vec<(String, String)> = sqlx::query_as(question).fetch_all(&mut connection).await.unwrap();
    let of_one = |(relation, kind): &(String, String)| {
        let rows = own_rows(relation, kind);
        format!(
            "SELECT '{relation}' || md5(coalesce(string_agg(t::text, ',' ORDER BY t::text COLLATE \"C\"), '')) FROM {rows} t"
        )
    };
    let all: Vec<_> = relations.iter().map(of_one).collect();
    let whole = format!("SELECT string_agg(line, '\n' ORDER BY line) FROM ({}) l (line)", all.join(" UNION ALL "));
    let contents: String = sqlx::query_scalar(AssertSqlSafe(whole)).fetch_one(&mut connection).await.unwrap();
    let question = "SELECT concat_ws(' ', datdba, encoding, datcollate, datallowconn, datistemplate, datconnlimit, datacl, \
                    shobj_description(oid, 'pg_database'), (SELECT string_agg(setrole || array_to_string(setconfig, ','), ' ') \
                    FROM pg_db_role_setting WHERE setdatabase = d.oid)) FROM pg_database d WHERE datname = current_database()";
    let own: String = sqlx::query_scalar(question).fetch_one(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    format!("{contents}\n{own}")
}

/// The rows of relations in which two databases are different.
async fn different(admin: &Login, one: &str, other: &str) -> Vec<String> {
    let (one_by_one, of_other) = (fingerprint(admin, one).await, fingerprint(admin, other).await);
    let differing = one_by_one.lines().filter(|line| !of_other.lines().any(|other| other == *line));
    let mut rows = Vec::new();
    for relation in differing.map(|line| &line[..line.len().saturating_sub(32)]) {
        let mut sides = Vec::new();
        for database in [one, other] {
            let mut connection = session(&Login { database: database.to_owned(), ..admin.clone() }).await;
            let question = AssertSqlSafe(format!("SELECT t::text FROM {} t", own_rows(relation, "")));
            let side: Vec<String> = sqlx::query_scalar(question).fetch_all(&mut connection).await.unwrap_or_default();
            sides.push(side);
        }
        let only = |here: &[String], there: &[String]| -> Vec<String> {
            here.iter().filter(|row| !there.contains(row)).map(|row| format!("{relation}: {row}")).collect()
        };
        rows.extend(only(&sides[0], &sides[1]));
        rows.extend(only(&sides[1], &sides[0]));
    }
    rows
}

/// Fails, and shows how they differ, unless the contents of `database` are `expected`, which are those of `untouched`.
pub(super) async fn assert_same(admin: &Login, database: &str, untouched: &str, expected: &str, after: &str) {
    if fingerprint(admin, database).await != expected {
        let different = different(admin, database, untouched).await;
        panic!("after {after}: {different:#?}");
    }
}

/// Gives the database back, waits until it is looked at, and gives its new name if it is free again.
pub(super) async fn give_back(pool: &Pool, lease: Lease) -> Option<String> {
    let id = lease.id;
    pool.give_back(lease).await.unwrap();
    loop {
        // Sessions may have been lost with the server.
        let (Ok(_), Ok(all)) = (pool.collect().await, pool.list().await) else { continue };
        match all.into_iter().find(|one| one.id == id) {
            None => return None,
            Some(one) if one.stage == Stage::Free => return Some(one.database),
            Some(_) => tokio::time::sleep(std::time::Duration::from_millis(2)).await,
        }
    }
}

fn with_objects(more: &str) -> Recipe {
    Recipe { scripts: vec![OBJECTS.to_owned(), more.to_owned()], ..recipe() }
}

/// Runs statements and waits until the server's process for them has ended, however busy the machine is.
pub(super) async fn run(admin: &Login, lease: &Lease, statements: &[&str]) {
    let mut connection = connect(lease).await;
    for statement in statements {
        // What fails is part of it.
        let _ = sqlx::raw_sql(AssertSqlSafe((*statement).to_owned())).execute(&mut connection).await;
    }
    let _ = connection.close().await;
    let mut admin = session(admin).await;
    let question =
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend')";
    while sqlx::query_scalar::<_, bool>(question).bind(&lease.database).fetch_one(&mut admin).await.unwrap() {
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    admin.close().await.unwrap();
}

#[tokio::test]
async fn a_database_goes_back_into_the_pool_only_as_it_was() {
    let Some(mut cluster) = test_server::Cluster::initialise(&["--data-checksums"]) else { return };
    cluster.start(&["full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum_naptime=1s"]).await;
    let login = cluster.login.clone();
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&with_objects("")).await.unwrap();
    let first = pool.take(&template).await.unwrap();
    let expected = fingerprint(&login, &first.database).await;
    let seed = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let (mut read_only, mut reused) = (0, 0);
    for _ in 0..LEASES {
        let lease = pool.take(&template).await.unwrap();
        let writes = random.random_range(0..3_usize).saturating_sub(1);
        let mut statements: Vec<&str> =
            (0..random.random_range(0..4)).map(|_| READS[random.random_range(0..READS.len())]).collect();
        for _ in 0..writes {
            statements.insert(random.random_range(0..=statements.len()), WRITES[random.random_range(0..WRITES.len())]);
        }
        run(&login, &lease, &statements).await;
        read_only += usize::from(writes == 0);
        if let Some(name) = give_back(&pool, lease).await {
            reused += usize::from(writes == 0);
            let what = format!("{statements:?}, seed {seed}");
            assert_same(&login, &name, &first.database, &expected, &what).await;
        }
    }
    // Autovacuum may come to any of them.
    assert!(reused > 0, "none of {read_only} that were only read went back");
}

#[tokio::test]
async fn each_kind_of_write_is_noticed() {
    let Some(mut cluster) = test_server::Cluster::initialise(&["--data-checksums"]) else { return };
    cluster.start(&["full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum=off"]).await;
    let login = cluster.login.clone();
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&with_objects("")).await.unwrap();
    for statement in READS {
        let lease = pool.take(&template).await.unwrap();
        run(&login, &lease, &[statement]).await;
        assert!(give_back(&pool, lease).await.is_some(), "{statement}");
    }
    let first = pool.take(&template).await.unwrap();
    let expected = fingerprint(&login, &first.database).await;
    for statement in WRITES {
        let lease = pool.take(&template).await.unwrap();
        run(&login, &lease, &[statement]).await;
        if let Some(name) = give_back(&pool, lease).await {
            // It may have come to nothing, or could be taken back.
            assert_same(&login, &name, &first.database, &expected, statement).await;
        }
    }
    for statement in UNCOUNTED {
        let lease = pool.take(&template).await.unwrap();
        run(&login, &lease, &[statement]).await;
        assert_eq!(give_back(&pool, lease).await, None, "{statement}");
    }
    // Not the ordinary role, and not in a session of the database.
    let lease = pool.take(&template).await.unwrap();
    let mut admin = session(&login).await;
    let statement = format!("ALTER DATABASE {} SET work_mem = '9MB'", lease.database);
    sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut admin).await.unwrap();
    assert_eq!(give_back(&pool, lease).await, None);
}

#[tokio::test]
async fn a_doubt_means_that_a_database_is_made_anew() {
    let Some(mut cluster) = test_server::Cluster::initialise(&[]) else { return };
    cluster.start(&["max_prepared_transactions=2", "autovacuum=off"]).await;
    let login = cluster.login.clone();
    let server = server(&login).await;
    let pool = open(&server, options()).await;
    let template = pool.template(&with_objects("")).await.unwrap();

    // Whoever still knows the old name finds nothing.
    let lease = pool.take(&template).await.unwrap();
    let old = lease.login();
    let name = give_back(&pool, lease).await.unwrap();
    assert_ne!(name, old.database);
    PgConnection::connect_with(&old.options()).await.unwrap_err();

    // A session that does not end, though it has only read.
    let lease = pool.take(&template).await.unwrap();
    assert_eq!(lease.database, name, "the oldest one is handed out first");
    let stays = connect(&lease).await;
    assert_eq!(give_back(&pool, lease).await, None);
    drop(stays);

    // A transaction that waits for its second phase.
    let lease = pool.take(&template).await.unwrap();
    run(&login, &lease, &["BEGIN; INSERT INTO things (name) VALUES ('new'); PREPARE TRANSACTION 'waits'"]).await;
    let rollback = Login { database: lease.database.clone(), ..login.clone() };
    pool.give_back(lease.clone()).await.unwrap();
    pool.collect().await.unwrap();
    let free = |all: Vec<FreshDatabase>| all.into_iter().any(|one| one.id == lease.id && one.stage == Stage::Free);
    assert!(!free(pool.list().await.unwrap()));
    let prepared: String = {
        let mut admin = session(&login).await;
        sqlx::query_scalar("SELECT database::text FROM pg_prepared_xacts").fetch_one(&mut admin).await.unwrap()
    };
    let mut inside = session(&Login { database: prepared, ..rollback }).await;
    sqlx::raw_sql("ROLLBACK PREPARED 'waits'").execute(&mut inside).await.unwrap();
    inside.close().await.unwrap();
    assert!(!free(pool.list().await.unwrap()));

    // A life of the server later. All processes of the server are new, and the log may have lost its end.
    let lease = pool.take(&template).await.unwrap();
    let mut killed = session(&login).await;
    let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut killed).await.unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(backend).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let name = lease.database.clone();
    assert_eq!(give_back(&pool, lease).await, None, "{name}");

    // Tables whose changes are not logged.
    let unlogged = pool.template(&with_objects("CREATE UNLOGGED TABLE own (id int)")).await.unwrap();
    let lease = pool.take(&unlogged).await.unwrap();
    assert_eq!(give_back(&pool, lease).await, None);
}

//! What a test wrote where the template is empty is taken back, and nothing tells the database from a new copy.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::tests::{open, options, recipe, server};
use super::untouched_tests::{assert_same, fingerprint, give_back, run};
use super::{Lease, Pool, Recipe};
use crate::pg::Login;
use crate::pg::test_server::{self, session};

/// How many leases are tried.
const LEASES: usize = 50;

/// Tables of many kinds, most of them empty.
const OBJECTS: &str = r#"
    CREATE TABLE notes (id serial PRIMARY KEY, parent int REFERENCES notes ON DELETE CASCADE, words text, span int4range,
        at timestamptz DEFAULT now(), EXCLUDE USING gist (span WITH &&));
    CREATE SCHEMA "odd Names"; CREATE TABLE "odd Names"."a ""b"" C" (id int GENERATED ALWAYS AS IDENTITY, note text);
    CREATE TABLE parts (id bigserial, region text) PARTITION BY LIST (region);
    CREATE TABLE parts_north PARTITION OF parts FOR VALUES IN ('north');
    CREATE TABLE parts_rest PARTITION OF parts DEFAULT; CREATE INDEX ON parts (region);
    CREATE TABLE filled (id serial PRIMARY KEY, word text); INSERT INTO filled (word) SELECT 'w' || n FROM generate_series(1, 9) n;
    CREATE TABLE documents (id int PRIMARY KEY, body jsonb); CREATE INDEX ON documents USING gin (body);
    CREATE TABLE log (what text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO log VALUES (TG_OP); RETURN coalesce(NEW, OLD); END $$;
    CREATE TRIGGER notes_log AFTER INSERT OR DELETE ON notes FOR EACH ROW EXECUTE FUNCTION note();
    CREATE TABLE kept (id int); CREATE RULE kept_stay AS ON DELETE TO kept DO INSTEAD NOTHING;
    CREATE TABLE watched (id int);
    CREATE TRIGGER watched_log BEFORE DELETE ON watched FOR EACH ROW EXECUTE FUNCTION note();
    ALTER TABLE watched ENABLE ALWAYS TRIGGER watched_log;
    CREATE TABLE guarded (id int); ALTER TABLE guarded ENABLE ROW LEVEL SECURITY; ALTER TABLE guarded FORCE ROW LEVEL SECURITY;
    CREATE POLICY guarded_none ON guarded FOR SELECT USING (id < 0); CREATE POLICY guarded_in ON guarded FOR INSERT WITH CHECK (true);
    CREATE SEQUENCE numbers START 5; SELECT nextval('numbers'); CREATE SEQUENCE later; SELECT setval('later', 40, false)"#;

/// What can be taken back.
const TAKEN_BACK: &[&str] = &[
    "INSERT INTO users (email, password_hash) VALUES ('a@example.com', 'x')",
    "INSERT INTO users (email, password_hash) SELECT n || '@example.com', 'x' FROM generate_series(1, 90) n",
    "BEGIN; INSERT INTO users (email, password_hash) VALUES ('a@example.com', 'x'); ROLLBACK",
    "INSERT INTO users (email, password_hash) VALUES ('b@example.com', 'x'); UPDATE users SET password_hash = 'y'",
    "INSERT INTO users (email, password_hash) VALUES ('c@example.com', 'x'); DELETE FROM users",
    "INSERT INTO users (email, password_hash) VALUES ('d@example.com', 'x'); \
     INSERT INTO tasks (user_id, title, status) SELECT id, 'a task', 'pending' FROM users",
    "INSERT INTO users (email, password_hash) VALUES ('e@example.com', repeat(gen_random_uuid()::text, 2000))",
    "INSERT INTO notes (words) VALUES ('one'); INSERT INTO notes (parent, words) SELECT id, 'two' FROM notes",
    "INSERT INTO notes (span) VALUES ('[1,4)'), ('[4,9)')",
    "INSERT INTO notes (words) SELECT repeat(md5(n::text), 300) FROM generate_series(1, 12) n",
    r#"INSERT INTO "odd Names"."a ""b"" C" (note) VALUES ('odd')"#,
    "INSERT INTO parts (region) VALUES ('north'), ('south')",
    "INSERT INTO kept VALUES (1)",
    "INSERT INTO guarded VALUES (1)",
    "DO $$ BEGIN INSERT INTO log VALUES ('x'); RAISE 'no'; EXCEPTION WHEN others THEN NULL; END $$",
    "COPY log FROM PROGRAM 'no such program'",
    "SELECT nextval('numbers')",
    "SELECT setval('numbers', 77, false)",
    "SELECT nextval('later') FROM generate_series(1, 40)",
    "BEGIN; SELECT nextval('numbers'); ROLLBACK",
    "BEGIN; INSERT INTO log VALUES ('x'); SELECT * FROM log FOR UPDATE; COMMIT",
];

/// What cannot.
const KEPT: &[&str] = &[
    "INSERT INTO filled (word) VALUES ('new')",
    "UPDATE filled SET word = word WHERE id = 3",
    "INSERT INTO documents VALUES (1, '{\"a\": 1}')",
    "INSERT INTO watched VALUES (1)",
    "INSERT INTO users (email, password_hash) SELECT n || '@example.com', 'x' FROM generate_series(1, 1500) n",
    "INSERT INTO users (email, password_hash) SELECT n || '@example.com', 'x' FROM generate_series(1, 30000) n",
    "TRUNCATE log",
    "VACUUM log",
    "INSERT INTO log SELECT 'x' FROM generate_series(1, 100); ANALYZE log",
    "ALTER SEQUENCE numbers RESTART",
    "INSERT INTO log VALUES ('x'); CREATE TEMP TABLE own (id int)",
    "ALTER TABLE log ADD more int",
    "ALTER TABLE notes DISABLE TRIGGER notes_log",
];

async fn pool_with_objects(login: &Login) -> (Pool, Recipe) {
    let server = server(login).await;
    let pool = open(&server, options()).await;
    (pool, Recipe { scripts: vec![OBJECTS.to_owned()], ..recipe() })
}

/// All lines that the questions give, in their order.
async fn answers(connection: &mut PgConnection, questions: &[&'static str]) -> Vec<String> {
    let mut told = Vec::new();
    for question in questions {
        let lines: Vec<String> = sqlx::query_scalar(*question).fetch_all(&mut *connection).await.unwrap();
        told.extend(lines);
    }
    told
}

/// What rows that are written next look like: where they come to lie, what numbers they get, and how they are found.
async fn next_rows(admin: &Login, lease: &Lease) -> Vec<String> {
    let mut connection = session(&Login { database: lease.database.clone(), ..admin.clone() }).await;
    let write = "BEGIN; INSERT INTO notes (words, at) SELECT n::text, 'epoch' FROM generate_series(1, 3) n; \
                 INSERT INTO users (id, email, password_hash, created_at) \
                 SELECT md5(n::text)::uuid, n || '@example.com', 'x', 'epoch' FROM generate_series(1, 50) n; \
                 INSERT INTO parts (region) VALUES ('north'), ('west')";
    sqlx::raw_sql(write).execute(&mut connection).await.unwrap();
    let told = answers(
        &mut connection,
        &[
        "SELECT ctid || ' ' || t::text FROM notes t",
        "SELECT ctid || ' ' || t::text FROM users t",
        "SELECT tableoid::regclass || ' ' || ctid || ' ' || t::text FROM parts t",
        "SELECT nextval('numbers') || ' ' || nextval('later')",
        "EXPLAIN SELECT * FROM users WHERE email = '7@example.com'",
        "EXPLAIN SELECT * FROM users JOIN tasks ON tasks.user_id = users.id WHERE tasks.status = 'pending' ORDER BY tasks.id",
        "EXPLAIN SELECT * FROM notes WHERE span && '[2,3)'",
        "SELECT relname::text FROM pg_class",
        ],
    )
    .await;
    sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
    told
}

/// How queries on empty tables are planned.
async fn plans(admin: &Login, lease: &Lease) -> Vec<String> {
    let mut connection = session(&Login { database: lease.database.clone(), ..admin.clone() }).await;
    let told = answers(
        &mut connection,
        &[
            "EXPLAIN SELECT * FROM users WHERE email = '7@example.com'",
            "EXPLAIN SELECT * FROM users JOIN tasks ON tasks.user_id = users.id WHERE tasks.status = 'pending'",
            "EXPLAIN SELECT * FROM notes WHERE span && '[2,3)' ORDER BY id",
            "EXPLAIN SELECT * FROM parts WHERE region = 'north'",
        ],
    )
    .await;
    connection.close().await.unwrap();
    told
}

#[tokio::test]
async fn what_was_written_to_empty_tables_is_taken_back() {
    let Some(mut cluster) = test_server::Cluster::initialise(&["--data-checksums"]) else { return };
    cluster.start(&["full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum=off"]).await;
    let login = cluster.login.clone();
    let (pool, recipe) = pool_with_objects(&login).await;
    let template = pool.template(&recipe).await.unwrap();
    let untouched = pool.take(&template).await.unwrap();
    let expected = fingerprint(&login, &untouched.database).await;
    let expected_plans = plans(&login, &untouched).await;
    let expected_rows = next_rows(&login, &pool.take(&template).await.unwrap()).await;
    for statement in TAKEN_BACK {
        let lease = pool.take(&template).await.unwrap();
        let id = lease.id;
        run(&login, &lease, &[statement]).await;
        let name = give_back(&pool, lease).await.unwrap_or_else(|| panic!("not taken back: {statement}"));
        assert_same(&login, &name, &untouched.database, &expected, statement).await;
        let again = pool.take(&template).await.unwrap();
        assert_eq!(again.id, id, "the oldest one is handed out first");
        assert_eq!(plans(&login, &again).await, expected_plans, "{statement}");
        assert_eq!(next_rows(&login, &again).await, expected_rows, "{statement}");
        // It was written to and rolled back, which is taken back as well.
        assert!(give_back(&pool, again).await.is_some(), "{statement}");
    }
    for statement in KEPT {
        let lease = pool.take(&template).await.unwrap();
        run(&login, &lease, &[statement]).await;
        assert_eq!(give_back(&pool, lease).await, None, "{statement}");
    }
}

#[tokio::test]
async fn a_database_that_is_used_again_and_again_stays_what_it_was() {
    let Some(mut cluster) = test_server::Cluster::initialise(&[]) else { return };
    cluster.start(&["full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum_naptime=1s"]).await;
    let login = cluster.login.clone();
    let (pool, recipe) = pool_with_objects(&login).await;
    let template = pool.template(&recipe).await.unwrap();
    let untouched = pool.take(&template).await.unwrap();
    let expected = fingerprint(&login, &untouched.database).await;
    let seed = rand::random();
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut reused = 0;
    for _ in 0..LEASES {
        let lease = pool.take(&template).await.unwrap();
        let statements: Vec<&str> = (0..random.random_range(1..5))
            .map(|_| {
                if random.random_ratio(1, 20) {
                    KEPT[random.random_range(0..KEPT.len())]
                } else {
                    TAKEN_BACK[random.random_range(0..TAKEN_BACK.len())]
                }
            })
            .collect();
        run(&login, &lease, &statements).await;
        if let Some(name) = give_back(&pool, lease).await {
            reused += 1;
            let what = format!("{statements:?}, seed {seed}");
            assert_same(&login, &name, &untouched.database, &expected, &what).await;
        }
    }
    assert!(reused > LEASES / 4, "{reused} of {LEASES} went back");
}

/// What the counters of the server say of a database that was emptied is what they say of a new one.
#[tokio::test]
async fn the_counters_of_an_emptied_database_begin_again() {
    let Some(mut cluster) = test_server::Cluster::initialise(&[]) else { return };
    cluster.start(&["full_page_writes=off", "wal_level=minimal", "max_wal_senders=0", "autovacuum=off"]).await;
    let login = cluster.login.clone();
    let (pool, recipe) = pool_with_objects(&login).await;
    let template = pool.template(&recipe).await.unwrap();
    for _ in 0..3 {
        let lease = pool.take(&template).await.unwrap();
        // Together more than what a database may have that is looked at.
        let many = "INSERT INTO log SELECT 'x' FROM generate_series(1, 900)";
        run(&login, &lease, &[many]).await;
        let name = give_back(&pool, lease).await.expect("it is taken back");
        let mut connection = session(&Login { database: name, ..login.clone() }).await;
        let question = "SELECT coalesce(n_tup_ins, 0) + coalesce(n_dead_tup, 0) + coalesce(vacuum_count, 0) \
                        FROM pg_stat_user_tables WHERE relname = 'log'";
        let counted: i64 = sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(&mut connection).await.unwrap();
        assert_eq!(counted, 0);
        connection.close().await.unwrap();
    }
}

//! Random sequences of writes, snapshots, restores, undos, renames, deletes and resets, compared with a model after each
//! step by fingerprints of the whole database.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::{Options, Snapshots};
use crate::ErrorKind;
use crate::engine::Endpoint;
use crate::event::Events;
use crate::instance::{InstanceRecord, Password};
use crate::marker::{self, Marker};
use crate::migrate::Source;
use crate::pg::clone::Properties;
use crate::pg::{Login, test_server};
use crate::seed::DataSet;
use crate::server::{Role, Server, Tenancy};

/// How long the sequences go on.
const TIME: Duration = Duration::from_secs(15);

/// How many steps are taken at least.
const LEAST_STEPS: usize = 20;

/// How many automatic snapshots are kept.
const AUTO: usize = 3;

/// The names that are used; two differ by case alone.
const NAMES: [&str; 6] = ["a", "A", "'; DROP DATABASE postgres; --", "../x", "日本語", "with space "];

/// A state of the database: what is in it, and what belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct State {
    contents: String,
    properties: Properties,
}

/// What ought to be.
struct Model {
    now: State,
    kept: BTreeMap<String, State>,
    automatic: Vec<(String, State)>,
    base: Option<String>,
}

/// The server of a login of the tests, as an instance's.
pub(super) fn server(login: &Login) -> Server {
    let role = Role { name: login.user.clone(), password: Password::new(login.password.clone()) };
    Server {
        endpoint: Endpoint { host: login.host.clone(), port: login.port },
        tls: login.tls.clone(),
        database: login.database.clone(),
        user: role.clone(),
        admin: role,
        registry: "postgres".to_owned(),
        tenancy: Tenancy::Whole,
        password_file: None,
    }
}

/// How the tests keep snapshots.
pub(super) fn options() -> Options {
    Options {
        auto: AUTO as u64,
        standby: true,
        limit_bytes: 20 * 1024 * 1024 * 1024,
        timeout: Duration::from_secs(30),
        project_dir: None,
    }
}

struct World {
    login: Login,
    server: Server,
    record: InstanceRecord,
    events: Events,
    random: ChaCha8Rng,
    model: Model,
    log: Vec<String>,
}

impl World {
    fn snapshots(&self) -> Snapshots<'_> {
        let standby = !self.log.len().is_multiple_of(3);
        Snapshots::new(&self.server, &self.record, Options { standby, ..options() }, &self.events)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.random.next_u64() % limit as u64).unwrap()
    }

    fn name(&mut self) -> String {
        let pick = self.below(NAMES.len() + 2);
        let automatic = self.model.automatic.last().map(|(name, _)| name.clone());
        NAMES.get(pick).map_or_else(|| automatic.unwrap_or_else(|| "none".to_owned()), |name| (*name).to_owned())
    }

    async fn step(&mut self) {
        let step = self.below(20);
        match step {
            0..6 => self.write().await,
            6..10 => self.create().await,
            10..14 => self.restore().await,
            14 | 15 => self.undo().await,
            16 => self.rename().await,
            17 | 18 => self.delete().await,
            _ => self.reset().await,
        }
        let mut session = test_server::session(&self.login).await;
        let now = state(&mut session, &self.login.database).await;
        session.close().await.unwrap();
        assert_eq!(now, self.model.now, "{:#?}", self.log);
        let overview = self.snapshots().overview().await.unwrap();
        let mut names: Vec<_> = overview.snapshots.into_iter().map(|snapshot| snapshot.name).collect();
        names.sort();
        let automatic = self.model.automatic.iter().map(|(name, _)| name.clone());
        let mut expected: Vec<_> = self.model.kept.keys().cloned().chain(automatic).collect();
        expected.sort();
        assert_eq!(names, expected, "{:#?}", self.log);
    }

    async fn write(&mut self) {
        let number = self.random.next_u32();
        let database = self.login.database.clone();
        let role = self.login.user.clone();
        let statement = match number % 9 {
            0 => format!(
                "INSERT INTO tasks (user_id, title, status) SELECT id, 'new {number}', 'todo' FROM users LIMIT 3"
            ),
            1 => "DELETE FROM tasks WHERE id IN (SELECT id FROM tasks ORDER BY id LIMIT 2)".to_owned(),
            2 => format!("UPDATE users SET password_hash = 'h{number}'"),
            3 => format!(
                "CREATE TABLE t{number} (id serial PRIMARY KEY, x text); INSERT INTO t{number} (x) VALUES ('a')"
            ),
            4 => "CREATE SEQUENCE IF NOT EXISTS counter; SELECT nextval('counter')".to_owned(),
            5 => format!("SELECT lo_from_bytea(0, 'object {number}'::bytea)"),
            6 => format!("ALTER DATABASE {database} SET search_path TO \"$user\", public, \"s {number}\""),
            // The comment is the marker, and privileges for a system role are a superuser's to give, where others are.
            7 if self.server.tenancy == Tenancy::Shared => {
                format!("GRANT CREATE ON DATABASE {database} TO public; ALTER DATABASE {database} CONNECTION LIMIT 50")
            }
            7 => format!(
                "GRANT CREATE ON DATABASE {database} TO pg_monitor; COMMENT ON DATABASE {database} IS 'c{number}'"
            ),
            _ => format!("ALTER ROLE {role} IN DATABASE {database} SET work_mem TO '{}kB'", 64 + number % 1000),
        };
        self.log.push(format!("write {statement}"));
        let mut session = test_server::session(&self.login).await;
        sqlx::raw_sql("SET search_path TO public").execute(&mut session).await.unwrap();
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
        self.model.now = state(&mut session, &self.login.database).await;
        session.close().await.unwrap();
    }

    async fn create(&mut self) {
        let name = self.name();
        self.log.push(format!("create {name}"));
        let taken = self.model.kept.contains_key(&name) || self.model.automatic.iter().any(|(other, _)| *other == name);
        let created = self.snapshots().create(Some(&name), None).await;
        if taken {
            assert_eq!(created.unwrap_err().kind(), ErrorKind::Conflict);
        } else {
            assert_eq!(created.unwrap().snapshot.name, name);
            self.model.kept.insert(name, self.model.now.clone());
        }
    }

    async fn restore(&mut self) {
        let name = self.name();
        self.log.push(format!("restore {name}"));
        let automatic = self.model.automatic.iter().find(|(other, _)| *other == name).map(|(_, state)| state);
        let wanted = self.model.kept.get(&name).or(automatic).cloned();
        let restored = self.snapshots().restore(&name).await;
        let Some(wanted) = wanted else {
            assert_eq!(restored.unwrap_err().kind(), ErrorKind::NotFound);
            return;
        };
        self.keep_present(restored.unwrap().kept_as.unwrap());
        self.model.now = wanted;
    }

    fn keep_present(&mut self, name: String) {
        self.model.automatic.push((name, self.model.now.clone()));
        let excess = self.model.automatic.len().saturating_sub(AUTO);
        self.model.automatic.drain(..excess);
    }

    async fn undo(&mut self) {
        self.log.push("undo".to_owned());
        let undone = self.snapshots().undo().await;
        let Some((_, wanted)) = self.model.automatic.pop() else {
            assert_eq!(undone.unwrap_err().kind(), ErrorKind::NotFound);
            return;
        };
        self.keep_present(undone.unwrap().kept_as.unwrap());
        self.model.now = wanted;
    }

    async fn rename(&mut self) {
        let (from, to) = (self.name(), self.name());
        self.log.push(format!("rename {from} to {to}"));
        let is_there = |name: &str| {
            self.model.kept.contains_key(name) || self.model.automatic.iter().any(|(other, _)| other == name)
        };
        let (exists, taken) = (is_there(&from), from != to && is_there(&to));
        let renamed = self.snapshots().rename(&from, &to).await;
        match (exists, taken) {
            (false, _) => assert_eq!(renamed.unwrap_err().kind(), ErrorKind::NotFound),
            (true, true) => assert_eq!(renamed.unwrap_err().kind(), ErrorKind::Conflict),
            (true, false) => {
                renamed.unwrap();
                let state = self.take(&from);
                self.model.kept.insert(to, state);
            }
        }
    }

    fn take(&mut self, name: &str) -> State {
        if let Some(state) = self.model.kept.remove(name) {
            return state;
        }
        let index = self.model.automatic.iter().position(|(other, _)| other == name).unwrap();
        self.model.automatic.remove(index).1
    }

    async fn delete(&mut self) {
        let name = self.name();
        self.log.push(format!("delete {name}"));
        let exists =
            self.model.kept.contains_key(&name) || self.model.automatic.iter().any(|(other, _)| *other == name);
        let deleted = self.snapshots().delete(std::slice::from_ref(&name)).await;
        if exists {
            deleted.unwrap();
            self.take(&name);
        } else {
            assert_eq!(deleted.unwrap_err().kind(), ErrorKind::NotFound);
        }
    }

    async fn reset(&mut self) {
        self.log.push("reset".to_owned());
        let dataset = DataSet::load("small", std::path::Path::new("/nowhere")).unwrap();
        let reset = self.snapshots().reset(&Source::embedded(), dataset.as_ref()).await.unwrap();
        assert_eq!(reset.base_built, self.model.base.is_none(), "the base is made once: {:#?}", self.log);
        let mut session = test_server::session(&self.login).await;
        let contents = state(&mut session, &self.login.database).await.contents;
        session.close().await.unwrap();
        assert_eq!(*self.model.base.get_or_insert(contents.clone()), contents, "{:#?}", self.log);
        let properties = self.model.now.properties.clone();
        self.keep_present(reset.kept_as.unwrap());
        self.model.now = State { contents, properties };
    }
}

/// All rows of all tables, sequences and large objects, the schema, and what belongs to the database.
async fn state(session: &mut PgConnection, database: &str) -> State {
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables WHERE schemaname NOT IN \
         ('pg_catalog', 'information_schema') UNION ALL SELECT format('%I.%I', schemaname, sequencename) \
         FROM pg_sequences ORDER BY 1",
    )
    .fetch_all(&mut *session)
    .await
    .unwrap();
    let parts = tables.iter().map(|table| {
        format!(
            "SELECT {} || md5(coalesce(string_agg(ROW(t.*)::text, ',' ORDER BY ROW(t.*)::text), '')) FROM {table} t",
            crate::pg::quote::literal(table).unwrap()
        )
    });
    let objects = "SELECT 'objects ' || md5(coalesce(string_agg(o::text, ',' ORDER BY o::text), '')) \
         FROM (SELECT oid, lo_get(oid) FROM pg_largeobject_metadata) o";
    let all: Vec<_> = parts.chain([objects.to_owned()]).collect();
    let lines: Vec<String> =
        sqlx::query_scalar(AssertSqlSafe(all.join(" UNION ALL "))).fetch_all(&mut *session).await.unwrap();
    let schema = super::details::fingerprint(session).await.unwrap();
    State {
        contents: format!("{schema} {}", lines.join(" ")),
        properties: Properties::read(session, database).await.unwrap(),
    }
}

#[tokio::test]
async fn any_sequence_of_changes_keeps_every_state_whole() {
    let Some(login) = test_server::database().await else { return };
    Box::pin(play(server(&login), InstanceRecord::default())).await;
}

/// On a server where others have databases too, with a role that may make databases and do nothing else.
#[tokio::test]
async fn any_sequence_of_changes_by_an_ordinary_role_keeps_every_state_whole() {
    let Some(superuser) = test_server::database().await else { return };
    let id = uuid::Uuid::new_v4();
    let marker = Marker { id, project: "p".into(), instance: "dev".into(), made_in: "here".into() };
    let (registry, database) = (marker::registry_name(id), format!("project_{}", id.simple()));
    let role = format!("ordinary_{}", id.simple());
    let mut session = test_server::session(&superuser).await;
    let comment = marker.comment();
    for statement in [
        format!("CREATE ROLE {role} LOGIN CREATEDB PASSWORD 'secret'"),
        format!("CREATE DATABASE {registry} OWNER {role}"),
        format!("COMMENT ON DATABASE {registry} IS '{comment}'"),
        format!("CREATE DATABASE {database} OWNER {role} TEMPLATE template0 ENCODING 'UTF8'"),
        format!("COMMENT ON DATABASE {database} IS '{comment}'"),
    ] {
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut session).await.unwrap();
    }
    session.close().await.unwrap();
    let login = Login { user: role, password: "secret".into(), database: database.clone(), ..superuser };
    let shared = Server { registry, tenancy: Tenancy::Shared, ..server(&login) };
    let record = InstanceRecord { uuid: Some(id.to_string()), ..InstanceRecord::default() };
    Box::pin(play(shared, record)).await;
    let mut session = test_server::session(&login).await;
    assert_eq!(Properties::read(&mut session, &database).await.unwrap().comment, Some(comment));
    session.close().await.unwrap();
}

/// Changes the project's database of `server`, which is empty, in random ways for a while.
async fn play(server: Server, record: InstanceRecord) {
    let login = server.login();
    let options = crate::migrate::Options::default();
    crate::migrate::run(&login, &Source::embedded(), &options, &Events::none()).await.unwrap();
    let mut session = test_server::session(&login).await;
    let dataset = DataSet::load("small", std::path::Path::new("/nowhere")).unwrap().unwrap();
    crate::seed::apply(&mut session, &dataset, crate::seed::Mode::OnlyIfEmpty, &Events::none()).await.unwrap();
    let now = state(&mut session, &login.database).await;
    session.close().await.unwrap();
    let seed = u64::from(std::process::id());
    let mut world = World {
        server,
        login,
        record,
        events: Events::none(),
        random: ChaCha8Rng::seed_from_u64(seed),
        model: Model { now, kept: BTreeMap::new(), automatic: Vec::new(), base: None },
        log: vec![format!("seed {seed}")],
    };
    let end = Instant::now() + TIME;
    // On a machine that is busy with other tests it takes longer to come so far.
    while Instant::now() < end || world.log.len() <= LEAST_STEPS {
        world.step().await;
    }
    // Each state that is kept is still what it was.
    let names: Vec<String> = world.model.kept.keys().cloned().collect();
    for name in names {
        world.log.push(format!("last restore of {name}"));
        world.snapshots().restore(&name).await.unwrap();
        let mut session = test_server::session(&world.login).await;
        let now = state(&mut session, &world.login.database).await;
        session.close().await.unwrap();
        assert_eq!(now, world.model.kept[&name], "{:#?}", world.log);
    }
}

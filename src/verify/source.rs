//! The tables of the source document, written down a second time on purpose: what is compared with the server must not come
//! from what the server was made of (`crate::profile`).

/// A row of § Configuration.
pub(super) struct Setting {
    pub(super) name: &'static str,
    pub(super) value: &'static str,
    pub(super) why: &'static str,
}

/// § Configuration.
pub(super) const CONFIGURATION: [Setting; 7] = [
    Setting { name: "max_connections", value: "100", why: "Support pooling from backend (50) + headroom" },
    Setting { name: "shared_buffers", value: "256MB", why: "25% of container memory" },
    Setting { name: "work_mem", value: "4MB", why: "Per-operation memory for sorting" },
    Setting { name: "maintenance_work_mem", value: "64MB", why: "For VACUUM, CREATE INDEX" },
    Setting { name: "wal_level", value: "logical", why: "Enable event streaming (future)" },
    Setting { name: "log_statement", value: "ddl", why: "Log schema changes" },
    Setting { name: "log_min_duration_statement", value: "1000", why: "Log slow queries (>1s)" },
];

/// A row of § Development vs Production.
pub(super) struct Difference {
    pub(super) name: &'static str,
    pub(super) development: &'static str,
    pub(super) production: &'static str,
}

/// § Development vs Production.
pub(super) const DEVELOPMENT_VS_PRODUCTION: [Difference; 4] = [
    Difference { name: "max_connections", development: "20", production: "100" },
    Difference { name: "shared_buffers", development: "128MB", production: "256MB" },
    Difference { name: "log_statement", development: "all", production: "ddl" },
    Difference { name: "ssl", development: "off", production: "on" },
];

/// The pool of the source's backend, which is half of its 100 connections, and as many clients: § Configuration.
pub(super) const POOL: i64 = 50;

/// § Configuration: the connections of which the pool has half.
pub(super) const POOL_OF: i64 = 100;

/// How a column of the diagram is a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    None,
    Primary,
    Unique,
    /// It names a row of `users`.
    Foreign,
}

/// A line of § Schema Overview.
pub(super) struct Column {
    pub(super) table: &'static str,
    pub(super) name: &'static str,
    /// The diagram's word for the type.
    pub(super) kind: &'static str,
    pub(super) key: Key,
}

const fn column(table: &'static str, name: &'static str, kind: &'static str, key: Key) -> Column {
    Column { table, name, kind, key }
}

/// § Schema Overview.
pub(super) const COLUMNS: [Column; 12] = [
    column("users", "id", "uuid", Key::Primary),
    column("users", "email", "string", Key::Unique),
    column("users", "password_hash", "string", Key::None),
    column("users", "created_at", "timestamp", Key::None),
    column("tasks", "id", "uuid", Key::Primary),
    column("tasks", "user_id", "uuid", Key::Foreign),
    column("tasks", "title", "string", Key::None),
    column("tasks", "description", "text", Key::None),
    column("tasks", "status", "string", Key::None),
    column("tasks", "due_date", "timestamp", Key::None),
    column("tasks", "metadata", "jsonb", Key::None),
    column("tasks", "created_at", "timestamp", Key::None),
];

/// PostgreSQL's names of the types that one word of the diagram may mean.
pub(super) fn types(kind: &str) -> &'static [&'static str] {
    match kind {
        "uuid" => &["uuid"],
        "string" => &["text", "character varying"],
        "text" => &["text"],
        "timestamp" => &["timestamp with time zone", "timestamp without time zone"],
        "jsonb" => &["jsonb"],
        _ => &[],
    }
}

/// § Backup & Recovery: aspect and strategy.
pub(super) const BACKUP: [(&str, &str); 5] = [
    ("Full backup", "Daily pg_dump at 02:00 UTC"),
    ("Point-in-time", "WAL archiving to S3"),
    ("Retention", "7 days full, 30 days WAL"),
    ("RTO", "< 1 hour"),
    ("RPO", "< 5 minutes"),
];

/// § Deployment: the image.
pub(super) const IMAGE: &str = "postgres:15-alpine";
/// § Deployment, Resource limits: Memory 1GB.
pub(super) const MEMORY_BYTES: u64 = 1 << 30;
/// § Deployment, Resource limits: CPU 1 core, in billionths.
pub(super) const NANO_CPUS: u64 = 1_000_000_000;
/// § Deployment, Resource limits: Storage 10GB.
pub(super) const STORAGE_BYTES: u64 = 10 << 30;
/// § Deployment, Persistence.
pub(super) const DATA_VOLUME: &str = "/var/lib/postgresql/data";

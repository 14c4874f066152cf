//! Where migrations come from: the schema that is built in, or a project's own folder.
//!
//! What must hold: names, order, checksums and the `-- no-transaction` mark mean exactly what they mean to sqlx, so that
//! `sqlx migrate info` and the application's own migrator agree with us; and whatever sqlx would skip without a word, or
//! the server would only refuse in the middle, is an error here, before anything starts.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256, Sha384};
use sqlx::migrate::{Migration, MigrationType};
use sqlx::{AssertSqlSafe, SqlSafeStr};

use crate::config::Settings;
use crate::error::{Error, ErrorKind, Result};

/// The files of the built-in schema, oldest first; a test compares the list with the folder.
macro_rules! embedded {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../../migrations/", $name)))),*] };
}

/// The TaskFlow schema: file names and contents.
const EMBEDDED: &[(&str, &str)] =
    embedded!["20260101000001_users.sql", "20260101000002_tasks.sql", "20260101000003_task_notifications.sql",];

/// One migration file that goes up.
#[derive(Debug, Clone)]
pub(super) struct MigrationFile {
    /// How a person finds the file: its path in backticks, with a word added if it is built in.
    pub(super) place: String,
    /// What sqlx knows of it.
    pub(super) migration: Migration,
}

impl MigrationFile {
    /// The file's text.
    pub(super) fn text(&self) -> &str {
        self.migration.sql.as_str()
    }

    /// Whether `checksum` is that of this file with other line endings: all LF or all CR LF.
    pub(super) fn has_checksum_with_other_line_endings(&self, checksum: &[u8]) -> bool {
        let unix = self.text().replace("\r\n", "\n");
        let windows = unix.replace('\n', "\r\n");
        [unix, windows].iter().any(|text| Sha384::digest(text.as_bytes()).as_slice() == checksum)
    }
}

/// A set of migrations, read and checked, ordered by version.
#[derive(Debug, Clone)]
pub struct Source {
    place: String,
    files: Vec<MigrationFile>,
}

impl Source {
    /// What the settings name: the project's own folder, else the TaskFlow schema that is built in.
    pub fn of(settings: &Settings) -> Result<Self> {
        settings.migrations_dir.as_ref().map_or_else(|| Ok(Self::embedded()), |folder| Self::folder(&folder.value))
    }

    /// The TaskFlow schema that is built in.
    pub fn embedded() -> Self {
        let files = EMBEDDED.iter().map(|(name, text)| {
            let name = Name::parse(name).expect("a test parses the names of all built-in files");
            name.into_file((*text).to_owned(), |file| format!("`migrations/{file}` (built in)"))
        });
        Self { place: "the built-in schema".into(), files: files.collect() }
    }

    /// Reads the migrations in `folder`: files named `<VERSION>_<DESCRIPTION>.sql`, or pairs that end in `.up.sql` and
    /// `.down.sql`. Folders and files that are not `.sql` are ignored, and an empty folder means no migrations.
    pub fn folder(folder: &Path) -> Result<Self> {
        let mut seen: Vec<Name> = Vec::new();
        let mut files = Vec::new();
        for file in sql_files(folder)? {
            let place = folder.join(&file).display().to_string();
            let name = Name::parse(&file).map_err(|reason| unusable_name(&place, reason))?;
            if let Some(other) = seen.iter().find(|other| other.collides_with(&name)) {
                return Err(duplicate(folder, other, &name));
            }
            if name.kind.is_up_migration() {
                files.push(name.clone().into_file(read(&folder.join(&file))?, |_| format!("`{place}`")));
            }
            seen.push(name);
        }
        if let Some(alone) = seen.iter().find(|name| name.lacks_its_up_file(&seen)) {
            return Err(Error::bad_input(format!(
                "`{}` has no `.up.sql` beside it, so there is nothing that it could undo",
                folder.join(&alone.file).display()
            ))
            .hint("add the `.up.sql` file of the same version, or remove this one"));
        }
        files.sort_by_key(|file| file.migration.version);
        Ok(Self { place: format!("`{}`", folder.display()), files })
    }

    /// Where the migrations come from, for messages: the folder in backticks, or words for the built-in schema.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// How many migrations there are.
    pub fn len(&self) -> usize {
        self.files.len()
    }

    /// Whether there are no migrations.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether all of the TaskFlow schema that is built in is in here, with whatever a project added to it.
    pub fn has_built_in(&self) -> bool {
        // Line endings may differ.
        let text = |file: &MigrationFile| file.text().replace('\r', "");
        let has = |built_in: &MigrationFile| {
            self.find(built_in.migration.version).is_some_and(|own| text(own) == text(built_in))
        };
        Self::embedded().files.iter().all(has)
    }

    pub(super) fn files(&self) -> &[MigrationFile] {
        &self.files
    }

    pub(super) fn find(&self, version: i64) -> Option<&MigrationFile> {
        self.files.iter().find(|file| file.migration.version == version)
    }
}

/// Makes the SHA-256, as hexadecimal digits, of what `source` would do to an empty database: versions, names and
/// contents, whatever the line endings.
pub fn fingerprint(source: &Source) -> String {
    let mut hash = Sha256::new();
    for file in source.files() {
        let text = file.text().replace('\r', "");
        // Lengths keep the end of one part from passing for the beginning of the next.
        for part in [file.migration.version.to_string().as_str(), &file.migration.description, &text] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part.as_bytes());
        }
    }
    hash.finalize().iter().fold(String::with_capacity(64), |mut digits, byte| {
        write!(digits, "{byte:02x}").expect("a String takes all");
        digits
    })
}

/// A parsed file name.
#[derive(Debug, Clone)]
pub(super) struct Name {
    file: String,
    pub(super) version: i64,
    description: String,
    kind: MigrationType,
}

impl Name {
    /// Parses `<VERSION>_<DESCRIPTION>.sql` as sqlx does; the error says what is wrong.
    pub(super) fn parse(file: &str) -> Result<Self, &'static str> {
        let (version, rest) = file.split_once('_').ok_or("it has no `_` after a version")?;
        if version.is_empty() || !version.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err("it does not begin with a version in digits");
        }
        let version: i64 = version.parse().map_err(|_| "its version is too large: 19 digits at most")?;
        if version == 0 {
            return Err("its version must be greater than zero");
        }
        if !rest.ends_with(MigrationType::Simple.suffix()) {
            return Err("sqlx only takes names that end in `.sql` in lower case");
        }
        let kind = MigrationType::from_filename(rest);
        let description = rest.trim_end_matches(kind.suffix()).replace('_', " ");
        Ok(Self { file: file.to_owned(), version, description, kind })
    }

    fn into_file(self, text: String, place: impl FnOnce(String) -> String) -> MigrationFile {
        let no_transaction = text.starts_with("-- no-transaction");
        let sql = AssertSqlSafe(text).into_sql_str();
        let migration = Migration::new(self.version, self.description.into(), self.kind, sql, no_transaction);
        MigrationFile { place: place(self.file), migration }
    }

    /// Whether both would be applied, or both reverted, as one version. An `.up.sql` and its `.down.sql` are one.
    fn collides_with(&self, other: &Self) -> bool {
        self.version == other.version && self.kind.is_up_migration() == other.kind.is_up_migration()
    }

    fn lacks_its_up_file(&self, all: &[Self]) -> bool {
        self.kind.is_down_migration()
            && !all.iter().any(|name| name.version == self.version && name.kind == MigrationType::ReversibleUp)
    }
}

/// Lists the names of the `.sql` files in `folder`, in the order of the names.
pub(super) fn sql_files(folder: &Path) -> Result<Vec<String>> {
    let unreadable = |error: io::Error| {
        let path = folder.display();
        if error.kind() == io::ErrorKind::NotFound {
            Error::bad_input(format!("the folder of the migrations `{path}` does not exist"))
                .hint("make the first one with `tfdev migrate new NAME`, or correct `migrations.dir` in `tfdev.toml`")
        } else {
            Error::bad_input(format!("cannot read the folder of the migrations `{path}`: {error}")).caused_by(error)
        }
    };
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let is_sql = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("sql"));
        if !is_sql || path.is_dir() {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        names.push(name.ok_or_else(|| unusable_name(&path.display().to_string(), "it is not UTF-8"))?.to_owned());
    }
    names.sort();
    Ok(names)
}

/// Reads a migration and refuses what the server could not take.
fn read(path: &PathBuf) -> Result<String> {
    let bytes = fs::read(path).map_err(|error| {
        Error::bad_input(format!("cannot read the migration `{}`: {error}", path.display())).caused_by(error)
    })?;
    let refuse = |at: usize, what: &str| {
        let line = bytes[..at].split(|byte| *byte == b'\n').count();
        Error::bad_input(format!("the migration `{}` {what} in line {line} (byte {})", path.display(), at + 1))
    };
    if bytes.starts_with(b"\xEF\xBB\xBF") {
        // The server would call the first word a syntax error and show nothing wrong.
        return Err(refuse(0, "begins with a byte order mark, which PostgreSQL refuses,")
            .hint("save the file as UTF-8 without a byte order mark"));
    }
    if let Some(at) = bytes.iter().position(|byte| *byte == 0) {
        return Err(refuse(at, "contains a NUL character").hint("save the file as UTF-8"));
    }
    match std::str::from_utf8(&bytes) {
        Ok(_) => Ok(String::from_utf8(bytes).expect("just checked")),
        Err(error) => Err(refuse(error.valid_up_to(), "is not UTF-8").hint("save the file as UTF-8")),
    }
}

fn unusable_name(place: &str, reason: &str) -> Error {
    Error::bad_input(format!("the name of the migration `{place}` cannot be used: {reason}"))
        .hint("name it `<VERSION>_<DESCRIPTION>.sql`, for example `20260131120000_add_tags.sql`, or move it elsewhere")
}

fn duplicate(folder: &Path, one: &Name, other: &Name) -> Error {
    let path = |name: &Name| folder.join(&name.file).display().to_string();
    Error::new(
        ErrorKind::BadInput,
        format!("the migrations `{}` and `{}` have the same version {}", path(one), path(other), one.version),
    )
    .hint("give the one that no database has yet a later version: rename its file")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    fn refusal(files: &[(&str, &[u8])]) -> String {
        let folder = folder(files);
        let error = Source::folder(folder.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(!error.hints().is_empty(), "{error}");
        error.to_string()
    }

    #[test]
    fn the_built_in_list_is_the_folder() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
        let listed: Vec<&str> = EMBEDDED.iter().map(|(name, _)| *name).collect();
        assert_eq!(listed, sql_files(&path).unwrap());
        assert_eq!(fingerprint(&Source::embedded()), fingerprint(&Source::folder(&path).unwrap()));
        assert!(EMBEDDED.iter().all(|(_, text)| !text.contains('\r')), "built from a checkout with CR LF");
    }

    #[test]
    fn a_project_may_add_to_the_built_in_schema_and_change_nothing_of_it() {
        let files: Vec<(&str, Vec<u8>)> =
            EMBEDDED.iter().map(|(name, text)| (*name, text.replace('\n', "\r\n").into_bytes())).collect();
        let mut files: Vec<(&str, &[u8])> = files.iter().map(|(name, text)| (*name, text.as_slice())).collect();
        let has = |files: &[(&str, &[u8])]| Source::folder(folder(files).path()).unwrap().has_built_in();
        assert!(Source::embedded().has_built_in() && has(&files));
        files.push(("20270101000000_more.sql", b"SELECT 1;"));
        assert!(has(&files));
        assert!(!has(&files[1..]));
        files[0].1 = b"SELECT 1;";
        assert!(!has(&files));
    }

    #[tokio::test]
    async fn names_order_marks_and_checksums_are_those_of_sqlx() {
        let folder = folder(&[
            ("2_b_c.up.sql", b"SELECT 2"),
            ("2_b_c.down.sql", b"SELECT -2"),
            ("10_last_one.sql", b"-- no-transaction\r\nSELECT 10\r\n"),
            ("1_first.sql.sql", b"SELECT 1 -- \xC3\xA4"),
            ("README.md", b"not a migration"),
        ]);
        fs::create_dir(folder.path().join("old.sql")).unwrap();
        let ours = Source::folder(folder.path()).unwrap();
        let theirs = sqlx::migrate::Migrator::new(folder.path()).await.unwrap();
        let theirs: Vec<&Migration> = theirs.iter().filter(|one| one.migration_type.is_up_migration()).collect();
        assert_eq!(ours.len(), 3);
        assert_eq!(theirs.len(), 3);
        for (ours, theirs) in ours.files().iter().zip(theirs) {
            let ours = &ours.migration;
            assert_eq!((ours.version, &ours.description), (theirs.version, &theirs.description));
            assert_eq!((&ours.checksum, ours.no_tx), (&theirs.checksum, theirs.no_tx));
        }
    }

    #[test]
    fn an_empty_folder_has_no_migrations_and_a_missing_one_says_how_to_begin() {
        assert!(Source::folder(folder(&[]).path()).unwrap().is_empty());
        let error = Source::folder(Path::new("/nonexistent/migrations")).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        assert!(error.hints()[0].contains("tfdev migrate new"));
    }

    #[test]
    fn two_files_of_one_version_are_both_named() {
        let text = refusal(&[("7_a.sql", b""), ("07_b.sql", b"")]);
        assert!(text.contains("7_a.sql") && text.contains("07_b.sql") && text.contains("version 7"), "{text}");
        refusal(&[("7_a.sql", b""), ("7_a.up.sql", b"")]);
        refusal(&[("7_a.down.sql", b"")]);
    }

    #[test]
    fn names_that_sqlx_would_skip_are_refused() {
        for name in ["users.sql", "_users.sql", "-1_users.sql", "+1_users.sql", "0_a.sql", "1_a.SQL", "v1_a.sql"] {
            assert!(refusal(&[(name, b"")]).contains(name), "{name}");
        }
        assert!(refusal(&[("99999999999999999999_a.sql", b"")]).contains("too large"));
    }

    #[test]
    fn text_that_the_server_could_not_take_is_refused_with_its_line() {
        let text = refusal(&[("1_a.sql", b"SELECT 1;\n-- \xFF\n")]);
        assert!(text.contains("is not UTF-8 in line 2 (byte 14)"), "{text}");
        assert!(refusal(&[("1_a.sql", b"\n\n\0")]).contains("NUL character in line 3"));
        assert!(refusal(&[("1_a.sql", b"\xEF\xBB\xBFSELECT 1")]).contains("byte order mark"));
    }

    #[test]
    #[cfg(unix)]
    fn an_unreadable_file_is_refused() {
        let folder = folder(&[]);
        std::os::unix::fs::symlink("/nonexistent", folder.path().join("1_a.sql")).unwrap();
        let error = Source::folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains("cannot read the migration"), "{error}");
    }

    #[test]
    fn the_fingerprint_sees_versions_names_and_contents_but_not_line_endings() {
        let print = |files: &[(&str, &[u8])]| fingerprint(&Source::folder(folder(files).path()).unwrap());
        let first = print(&[("1_a.sql", b"SELECT 1;\nSELECT 2;\n")]);
        assert_eq!(first, print(&[("1_a.sql", b"SELECT 1;\r\nSELECT 2;\r\n")]));
        let others = [
            print(&[("2_a.sql", b"SELECT 1;\nSELECT 2;\n")]),
            print(&[("1_b.sql", b"SELECT 1;\nSELECT 2;\n")]),
            print(&[("1_a.sql", b"SELECT 1;\nSELECT 3;\n")]),
            print(&[("1_a.sql", b"SELECT 1;\n"), ("2_a.sql", b"SELECT 2;\n")]),
        ];
        assert!(!others.contains(&first));
    }
}

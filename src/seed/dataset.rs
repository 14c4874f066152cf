//! Data sets by name: the built-in ones and those of a project's `seeds` folder.
//!
//! What must hold: nothing outside the project's `seeds` folder is read, whatever the name, `..` or a link says; a
//! project's own data set goes before a built-in one of the same name.

use std::fmt::Write as _;
use std::fs;
use std::path::{Component, Path, PathBuf};

use sha2::{Digest, Sha256};

use super::plan::Plan;
use super::plan_file::{self, MAX_ROWS, nearest};
use super::rows::GENERATOR_VERSION;
use super::script::Script;
use crate::error::{Context as _, Error, ErrorKind, Result};

/// The data sets that are part of tfdev: name and file.
const BUILT_IN: [(&str, &str); 3] = [
    ("small", include_str!("../../seeds/small.toml")),
    ("demo", include_str!("../../seeds/demo.toml")),
    ("load", include_str!("../../seeds/load.toml")),
];

/// Bytes of a generated user with its part of the indexes, as the data set `load` takes them.
const USER_BYTES: u64 = 300;

/// Bytes of a generated task with its part of the indexes, as the data set `load` takes them.
const TASK_BYTES: u64 = 640;

/// The folder of a project's own data sets.
const FOLDER: &str = "seeds";

/// Rows to put into a database: generated ones for the TaskFlow schema, or SQL files for any other.
#[derive(Debug, Clone)]
pub struct DataSet {
    name: String,
    content: Content,
}

/// What a data set is made of.
#[derive(Debug, Clone)]
pub(super) enum Content {
    /// Rows of `users` and `tasks`, by plan.
    Generated(Plan),
    /// SQL files, in the order in which they run.
    Scripts(Vec<Script>),
}

impl DataSet {
    /// Finds the data set `name_or_path` of the project in `project_dir`; `none` is no data set at all.
    ///
    /// It is looked for in the project's `seeds` folder (`NAME.toml`, `NAME.sql`, or a folder `NAME` of `.sql` files that
    /// run in the order of their names), then among the built-in ones: `small`, `demo`, `load`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] lists the data sets that exist; [`ErrorKind::BadInput`] names file and line of a broken
    /// one, or says that the path leads out of the `seeds` folder.
    pub fn load(name_or_path: &str, project_dir: &Path) -> Result<Option<Self>> {
        if name_or_path == "none" {
            return Ok(None);
        }
        let folder = project_dir.join(FOLDER);
        let name = name_in_folder(name_or_path, project_dir)?;
        if let Some(path) = find_own(&name, &folder)? {
            let content = read_own(&path, &folder)?;
            return Ok(Some(Self { name, content }));
        }
        match BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            Some((_, text)) => {
                let plan = plan_file::parse(text, &format!("{name} (built in)"))?;
                Ok(Some(Self { name, content: Content::Generated(plan) }))
            }
            None => Err(not_found(&name, &folder)),
        }
    }

    /// The name under which it was found.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How many users it has; 0 for SQL files, whose rows are known only once they ran.
    pub fn users(&self) -> u64 {
        self.plan().map_or(0, |plan| plan.users)
    }

    /// How many tasks it has; 0 for SQL files, whose rows are known only once they ran.
    pub fn tasks(&self) -> u64 {
        self.plan().map_or(0, |plan| plan.tasks)
    }

    /// About how many bytes its rows and their indexes take in the database: of generated ones as measured, of SQL files
    /// at least their own.
    pub fn estimated_bytes(&self) -> u64 {
        match &self.content {
            Content::Generated(plan) => plan.users * USER_BYTES + plan.tasks * TASK_BYTES,
            Content::Scripts(scripts) => scripts.iter().map(Script::length).sum(),
        }
    }

    /// Changes the number of users, of tasks, or both.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it is made of SQL files, or if there would be tasks and no user.
    pub fn with_counts(mut self, users: Option<u64>, tasks: Option<u64>) -> Result<Self> {
        let name = self.name.clone();
        let plan = self.plan_mut("number of rows")?;
        plan.users = users.unwrap_or(plan.users);
        plan.tasks = tasks.unwrap_or(plan.tasks);
        if plan.tasks > 0 && plan.users == 0 {
            return Err(Error::new(ErrorKind::Usage, format!("the data set `{name}` would have tasks but no users"))
                .hint("ask for at least one user, or for no tasks: `--users 0 --tasks 0`"));
        }
        if plan.users.max(plan.tasks) > MAX_ROWS {
            return Err(Error::new(ErrorKind::Usage, format!("a table of a data set has at most {MAX_ROWS} rows")));
        }
        Ok(self)
    }

    /// Changes the start of the random sequence.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] if it is made of SQL files.
    pub fn with_rng(mut self, rng: u64) -> Result<Self> {
        self.plan_mut("random sequence")?.rng = rng;
        Ok(self)
    }

    /// A SHA-256, in hexadecimal, of all that decides the rows. Equal fingerprints mean equal rows.
    pub fn fingerprint(&self) -> String {
        let mut hash = Sha256::new();
        match &self.content {
            Content::Generated(plan) => {
                hash.update(format!("generated {GENERATOR_VERSION}\n"));
                hash.update(serde_json::to_vec(plan).expect("a struct of numbers and names is JSON"));
            }
            Content::Scripts(scripts) => {
                hash.update("scripts\n");
                for script in scripts {
                    // Names count, because they decide the order; lengths keep one file's end from being another's start.
                    hash.update(format!("{}\n{}\n", script.file(), script.text().len()));
                    hash.update(script.text());
                }
            }
        }
        hexadecimal(&hash.finalize())
    }

    pub(super) fn content(&self) -> &Content {
        &self.content
    }

    fn plan(&self) -> Option<&Plan> {
        match &self.content {
            Content::Generated(plan) => Some(plan),
            Content::Scripts(_) => None,
        }
    }

    fn plan_mut(&mut self, what: &str) -> Result<&mut Plan> {
        match &mut self.content {
            Content::Generated(plan) => Ok(plan),
            Content::Scripts(_) => {
                let message = format!("the data set `{}` is made of SQL files; it has no {what} to set", self.name);
                Err(Error::new(ErrorKind::Usage, message).hint("leave out `--users`, `--tasks` and `--rng`"))
            }
        }
    }
}

/// Writes `bytes` in hexadecimal.
pub(super) fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes all text");
        text
    })
}

/// Reduces a name or path to what it is called inside the project's `seeds` folder.
fn name_in_folder(name_or_path: &str, project_dir: &Path) -> Result<String> {
    let outside = || {
        Error::bad_input(format!("the data set `{name_or_path}` is not inside the project's `{FOLDER}` folder"))
            .hint(format!("name a file or folder under `{}`", project_dir.join(FOLDER).display()))
    };
    let path = Path::new(name_or_path);
    let inside = if path.is_absolute() {
        path.strip_prefix(project_dir.join(FOLDER)).map_err(|_| outside())?
    } else {
        let path = path.strip_prefix(".").unwrap_or(path);
        path.strip_prefix(FOLDER).unwrap_or(path)
    };
    if inside.as_os_str().is_empty() {
        return Err(Error::bad_input("the name of the data set is empty")
            .hint("name one, such as `demo`, or `none` to leave the database empty"));
    }
    let plain = inside.components().all(|component| matches!(component, Component::Normal(_)));
    match inside.to_str() {
        Some(name) if plain => Ok(name.replace('\\', "/")),
        _ => Err(outside()),
    }
}

/// Finds the project's own data set `name`: a file or folder of exactly that name, or one with an extension left out.
fn find_own(name: &str, folder: &Path) -> Result<Option<PathBuf>> {
    let candidates = [name.to_owned(), format!("{name}.toml"), format!("{name}.sql")];
    let mut found = candidates.iter().map(|candidate| folder.join(candidate)).filter(|path| path.exists());
    let Some(first) = found.next() else { return Ok(None) };
    if let Some(second) = found.next() {
        let message = format!("`{}` and `{}` are both called `{name}`", shown(&first, folder), shown(&second, folder));
        return Err(Error::bad_input(message).hint("name the data set with its extension, or rename one of them"));
    }
    Ok(Some(first))
}

fn read_own(path: &Path, folder: &Path) -> Result<Content> {
    let file = shown(path, folder);
    if path.is_dir() {
        return read_folder(path, folder);
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("toml") => Ok(Content::Generated(plan_file::parse(&read_text(path, folder)?, &file)?)),
        Some("sql") => Ok(Content::Scripts(vec![read_script(path, folder)?])),
        _ => Err(Error::bad_input(format!("`{file}` is not a data set"))
            .hint("a data set is a `.toml` file, a `.sql` file or a folder of `.sql` files")),
    }
}

/// Reads the `.sql` files of a folder in the order of their names.
fn read_folder(path: &Path, folder: &Path) -> Result<Content> {
    let unreadable = || format!("cannot list the folder `{}`", shown(path, folder));
    let mut files = Vec::new();
    for entry in fs::read_dir(path).context(ErrorKind::BadInput, unreadable)? {
        let file = entry.context(ErrorKind::BadInput, unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "sql") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(Error::bad_input(format!("the data set `{}` holds no `.sql` file", shown(path, folder)))
            .hint("add files such as `01_countries.sql`; they run in the order of their names"));
    }
    Ok(Content::Scripts(files.iter().map(|file| read_script(file, folder)).collect::<Result<_>>()?))
}

fn read_script(path: &Path, folder: &Path) -> Result<Script> {
    Script::parse(shown(path, folder), read_text(path, folder)?)
}

/// Reads a text file that must really be inside `folder`, links followed.
fn read_text(path: &Path, folder: &Path) -> Result<String> {
    let file = shown(path, folder);
    let unreadable = || format!("cannot read `{file}`");
    let real = path.canonicalize().context(ErrorKind::BadInput, unreadable)?;
    if !real.starts_with(folder.canonicalize().context(ErrorKind::BadInput, unreadable)?) {
        return Err(Error::bad_input(format!("`{file}` is a link that leads out of the `{FOLDER}` folder"))
            .hint("put the file itself into the folder"));
    }
    let bytes = fs::read(&real).context(ErrorKind::BadInput, unreadable)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|byte| *byte == b'\n').count();
        Error::bad_input(format!("`{file}:{line}`: not UTF-8 text")).hint("save the file as UTF-8")
    })?;
    Ok(text.strip_prefix('\u{feff}').map_or_else(|| text.clone(), str::to_owned))
}

/// `path` as a person of the project would write it.
fn shown(path: &Path, folder: &Path) -> String {
    let inside = path.strip_prefix(folder).unwrap_or(path);
    format!("{FOLDER}/{}", inside.display().to_string().replace('\\', "/"))
}

fn not_found(name: &str, folder: &Path) -> Error {
    let mut known: Vec<String> = BUILT_IN.iter().map(|(name, _)| (*name).to_owned()).collect();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_set =
            path.is_dir() || path.extension().is_some_and(|extension| extension == "toml" || extension == "sql");
        if let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()).filter(|_| is_set) {
            known.push(stem.to_owned());
        }
    }
    known.push("none".to_owned());
    known[BUILT_IN.len()..].sort();
    let error = Error::new(ErrorKind::NotFound, format!("there is no data set `{name}`"));
    let error = match nearest(name, known.iter().map(String::as_str)) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    };
    error.hint(format!("there are `{}`", known.join("`, `")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn project() -> tempfile::TempDir {
        let project = tempfile::tempdir().unwrap();
        fs::create_dir_all(project.path().join("seeds/shop")).unwrap();
        project
    }

    fn write(project: &tempfile::TempDir, path: &str, text: &str) {
        fs::write(project.path().join(path), text).unwrap();
    }

    fn load(project: &tempfile::TempDir, name: &str) -> Result<DataSet> {
        DataSet::load(name, project.path()).map(Option::unwrap)
    }

    fn error(project: &tempfile::TempDir, name: &str) -> Error {
        DataSet::load(name, project.path()).unwrap_err()
    }

    #[test]
    fn built_in_data_sets_have_their_documented_sizes() {
        let project = tempfile::tempdir().unwrap();
        for (name, users, tasks) in [("small", 10, 50), ("demo", 100, 1_000), ("load", 100_000, 1_000_000)] {
            let set = load(&project, name).unwrap();
            assert_eq!((set.name(), set.users(), set.tasks()), (name, users, tasks));
        }
        assert!(DataSet::load("none", project.path()).unwrap().is_none());
    }

    #[test]
    fn a_projects_own_data_set_goes_before_a_built_in_one() {
        let project = project();
        write(&project, "seeds/demo.toml", "users = 1\ntasks = 2");
        for name in ["demo", "demo.toml", "seeds/demo.toml", "./seeds/demo"] {
            assert_eq!(load(&project, name).unwrap().tasks(), 2, "{name}");
        }
        let absolute = project.path().join("seeds/demo.toml");
        assert_eq!(load(&project, absolute.to_str().unwrap()).unwrap().tasks(), 2);
    }

    #[test]
    fn a_folder_runs_in_the_order_of_names() {
        let project = project();
        write(&project, "seeds/shop/02_b.sql", "SELECT 2");
        write(&project, "seeds/shop/01_a.sql", "SELECT 1");
        write(&project, "seeds/shop/README.md", "not SQL");
        let set = load(&project, "shop").unwrap();
        let Content::Scripts(scripts) = set.content() else { panic!("scripts") };
        let files: Vec<&str> = scripts.iter().map(Script::file).collect();
        assert_eq!(files, ["seeds/shop/01_a.sql", "seeds/shop/02_b.sql"]);
        assert_eq!(set.with_rng(1).unwrap_err().kind(), ErrorKind::Usage);
    }

    #[test]
    fn nothing_outside_the_seeds_folder_is_read() {
        let project = project();
        write(&project, "secret.sql", "SELECT 1");
        for name in ["../secret.sql", "seeds/../secret.sql", "shop/../../secret", "/etc/passwd", "..", ""] {
            assert_eq!(error(&project, name).kind(), ErrorKind::BadInput, "{name}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_link_out_of_the_seeds_folder_is_refused() {
        let project = project();
        write(&project, "secret.sql", "SELECT 1");
        for link in ["seeds/link.sql", "seeds/shop/link.sql"] {
            std::os::unix::fs::symlink(project.path().join("secret.sql"), project.path().join(link)).unwrap();
        }
        for name in ["link", "shop"] {
            let error = error(&project, name);
            assert!(error.to_string().contains("leads out of the `seeds` folder"), "{error}");
        }
    }

    #[test]
    fn a_missing_data_set_lists_those_that_exist() {
        let project = project();
        write(&project, "seeds/mine.sql", "SELECT 1");
        let error = error(&project, "dmeo");
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let hints = ["did you mean `demo`?", "there are `small`, `demo`, `load`, `mine`, `none`, `shop`"];
        assert_eq!(error.hints(), hints);
    }

    #[test]
    fn broken_files_are_bad_input() {
        let project = project();
        write(&project, "seeds/a.toml", "users = 1");
        write(&project, "seeds/a.sql", "SELECT 1");
        fs::write(project.path().join("seeds/latin.sql"), b"SELECT 1;\nSELECT '\xe9'").unwrap();
        assert!(error(&project, "a").to_string().contains("both called `a`"));
        assert!(error(&project, "shop").to_string().contains("holds no `.sql` file"));
        assert_eq!(error(&project, "latin").to_string(), "`seeds/latin.sql:2`: not UTF-8 text");
    }

    #[test]
    fn all_that_decides_the_rows_changes_the_fingerprint() {
        let project = project();
        write(&project, "seeds/same.toml", "users = 10\ntasks = 50");
        write(&project, "seeds/other.toml", "users = 10\ntasks = 50\ndue_percent = 69");
        write(&project, "seeds/shop/1.sql", "SELECT 1");
        let fingerprint = |name: &str| load(&project, name).unwrap().fingerprint();
        let small = fingerprint("small");
        assert_eq!(small.len(), 64);
        assert_eq!(small, fingerprint("same"));
        assert_ne!(small, fingerprint("other"));
        assert_ne!(small, load(&project, "small").unwrap().with_rng(1).unwrap().fingerprint());
        assert_ne!(small, load(&project, "small").unwrap().with_counts(None, Some(51)).unwrap().fingerprint());
        let before = fingerprint("shop");
        fs::rename(project.path().join("seeds/shop/1.sql"), project.path().join("seeds/shop/2.sql")).unwrap();
        assert_ne!(before, fingerprint("shop"));
    }

    #[test]
    fn tasks_need_a_user() {
        let project = project();
        let error = load(&project, "small").unwrap().with_counts(Some(0), None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
    }
}

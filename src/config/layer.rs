//! One layer of the configuration: the text of a TOML file, checked key by key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::problem::{Fault, Problem};
use super::raw::Raw;
use super::reference::{self, Key, PROFILES, Place};
use super::{Origin, ProfileSection, Setting, names, server_setting};

/// Which file a text is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source<'a> {
    /// The built-in defaults.
    Defaults,
    /// The user's file, for all projects.
    UserFile(&'a Path),
    /// The project's file.
    ProjectFile(&'a Path),
}

/// The checked values of one or more layers.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    /// Values by key, each as text that was checked.
    pub(super) values: BTreeMap<&'static str, Setting<String>>,
    /// The profiles.
    pub(super) profiles: BTreeMap<String, ProfileSection>,
}

impl Layer {
    /// Puts `stronger` on top of this layer.
    pub(super) fn overlay(&mut self, stronger: Self) {
        self.values.extend(stronger.values);
        for (name, section) in stronger.profiles {
            let under = self.profiles.entry(name).or_default();
            under.settings.extend(section.settings);
            under.extends = section.extends.or(under.extends.take());
        }
    }
}

/// Reads the text of a file. What is wrong with it is added to `problems`, and the rest is read all the same.
pub(super) fn read(text: &str, source: Source<'_>, problems: &mut Vec<Problem>) -> Layer {
    let mut reader = Reader { text, source, layer: Layer::default(), problems };
    match DeTable::parse(text) {
        Ok(document) => reader.section(None, document.get_ref()),
        Err(error) => reader.syntax_error(&error),
    }
    reader.layer
}

struct Reader<'a> {
    text: &'a str,
    source: Source<'a>,
    layer: Layer,
    problems: &'a mut Vec<Problem>,
}

impl Reader<'_> {
    fn origin(&self, offset: usize) -> Origin {
        match self.source {
            Source::Defaults => Origin::Default,
            Source::UserFile(path) | Source::ProjectFile(path) => {
                Origin::File { path: path.to_owned(), line: line_and_column(self.text, offset).0 }
            }
        }
    }

    fn folder(&self) -> PathBuf {
        match self.source {
            Source::Defaults => PathBuf::new(),
            Source::UserFile(path) | Source::ProjectFile(path) => path.parent().map(Path::to_owned).unwrap_or_default(),
        }
    }

    fn syntax_error(&mut self, error: &toml::de::Error) {
        let offset = error.span().map_or(self.text.len(), |span| span.start);
        let (line, column) = line_and_column(self.text, offset);
        let message = error.message().lines().collect::<Vec<_>>().join(": ");
        let path = match self.source {
            Source::Defaults => Path::new("default.toml"),
            Source::UserFile(path) | Source::ProjectFile(path) => path,
        };
        let says = format!("{}:{line}:{column}: not valid TOML: {message}", path.display());
        self.problems.push(Problem::at(&Origin::Default, says));
    }

    fn fault(&mut self, offset: usize, key: &str, fault: Fault) {
        let problem = Problem::of_value(&self.origin(offset), key, fault);
        self.problems.push(problem);
    }

    /// Reads the keys of one section, or of the top level, in the order in which they are written.
    fn section(&mut self, section: Option<&str>, table: &DeTable<'_>) {
        for (name, value) in in_order(table) {
            let offset = name.span().start;
            let path =
                section.map_or_else(|| name.get_ref().to_string(), |section| format!("{section}.{}", name.get_ref()));
            match (reference::find(&path), value.get_ref()) {
                // `[profile.dev]` is a slip of `[profiles.dev]`, not the flag of that name.
                (Some(Key { place: Place::Flag(_), .. }), value @ DeValue::Table(_)) => {
                    self.unknown(section, &path, offset, value);
                }
                (Some(key), value) => self.value(key, offset, value),
                (None, DeValue::Table(profiles)) if path == PROFILES => self.profiles(profiles),
                (None, DeValue::Table(table)) if reference::is_section(&path) => self.section(Some(&path), table),
                (None, value) if reference::is_section(&path) => {
                    let says = format!("must be a section `[{path}]`, found {}", Raw::from_toml(value));
                    self.fault(offset, &path, Fault::new(says));
                }
                (None, value) => self.unknown(section, &path, offset, value),
            }
        }
    }

    fn value(&mut self, key: &'static Key, offset: usize, value: &DeValue<'_>) {
        let misplaced = match (key.place, self.source) {
            (Place::Flag(flag), _) => {
                let variable = format!("TFDEV_{}", flag.trim_start_matches('-').to_uppercase());
                Some(Fault::new(format!("cannot be set in a file; use `{flag}` or the variable `{variable}`")))
            }
            (Place::ProjectFile, Source::UserFile(_)) => {
                let says = "cannot be set in the user's file: all projects would share one key and so one server";
                Some(Fault::new(says).hint("set it in the project's `tfdev.toml`"))
            }
            _ => None,
        };
        let checked = misplaced.map_or_else(|| key.kind.check(&Raw::from_toml(value), &self.folder()), Err);
        match checked {
            Ok(value) => {
                let setting = Setting { value, origin: self.origin(offset) };
                self.layer.values.insert(key.path, setting);
            }
            Err(fault) => self.fault(offset, key.path, fault),
        }
    }

    fn unknown(&mut self, section: Option<&str>, path: &str, offset: usize, value: &DeValue<'_>) {
        let what = if matches!(value, DeValue::Table(_)) { "section" } else { "key" };
        let origin = self.origin(offset);
        let problem = if let Some(nearest) = reference::nearest_key(path) {
            Problem::at(&origin, format_args!("unknown {what} `{path}`; did you mean `{nearest}`?"))
        } else {
            let known = reference::keys_of(section).join(", ");
            let place = section.map_or_else(|| "at the top".to_owned(), |section| format!("in `[{section}]`"));
            Problem::at(&origin, format_args!("unknown {what} `{path}`")).hint(format!("known {place}: {known}"))
        };
        self.problems.push(problem);
    }

    fn profiles(&mut self, table: &DeTable<'_>) {
        for (name, value) in in_order(table) {
            let offset = name.span().start;
            let path = format!("{PROFILES}.{}", name.get_ref());
            if let Err(fault) = names::profile(name.get_ref()) {
                self.fault(
                    offset,
                    &path,
                    Fault { says: format!("is not the name of a profile, which {}", fault.says), ..fault },
                );
                continue;
            }
            let DeValue::Table(settings) = value.get_ref() else {
                let says = format!("must be a section `[{path}]`, found {}", Raw::from_toml(value.get_ref()));
                self.fault(offset, &path, Fault::new(says));
                continue;
            };
            let mut section = ProfileSection::default();
            self.profile(&mut section, "", settings);
            self.layer.profiles.insert(name.get_ref().to_string(), section);
        }
    }

    /// Reads the server settings of a profile. A name with a dot is a table to TOML: `prefix` is what came before.
    fn profile(&mut self, section: &mut ProfileSection, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in in_order(table) {
            let offset = name.span().start;
            let name = format!("{prefix}{}", name.get_ref());
            if let DeValue::Table(table) = value.get_ref() {
                self.profile(section, &format!("{name}."), table);
                continue;
            }
            let raw = Raw::from_toml(value.get_ref());
            let checked = match (name.as_str(), &raw) {
                ("extends", Raw::Text(base)) => names::profile(base).map(|()| base.clone()),
                ("extends", _) => Err(Fault::expected("the name of a profile in quotes", &raw)),
                _ => server_setting::check(&name, &raw),
            };
            match checked {
                Ok(value) => {
                    let setting = Setting { value, origin: self.origin(offset) };
                    if name == "extends" {
                        section.extends = Some(setting);
                    } else {
                        section.settings.insert(name, setting);
                    }
                }
                Err(fault) => self.fault(offset, &name, fault),
            }
        }
    }
}

/// The entries of a table as they are written, so that mistakes are told from top to bottom.
fn in_order<'a, 'i>(table: &'a DeTable<'i>) -> Vec<(&'a Spanned<DeString<'i>>, &'a Spanned<DeValue<'i>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

/// The line and the column of a byte in a text, both counted from 1; columns count characters.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

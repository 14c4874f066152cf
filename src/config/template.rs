//! The project file that `tfdev init` writes.

use super::names;

/// Every key, its default and its documentation: one file for people, for the resolver and for `tfdev init`.
pub(super) const DEFAULTS: &str = include_str!("default.toml");

/// A commented `tfdev.toml` in which every key is commented out, so that defaults stay defaults. With `project_name` the
/// key of the project is set to the valid key nearest to it.
pub fn template(project_name: Option<&str>) -> String {
    let line = |line: &str| match project_name {
        Some(name) if line.starts_with("# project = ") => format!("project = \"{}\"\n", names::valid_key(name)),
        _ if line.is_empty() || line.starts_with(['#', '[']) => format!("{line}\n"),
        _ => format!("# {line}\n"),
    };
    DEFAULTS.lines().map(line).collect::<Vec<_>>().concat()
}

//! Who logs in to a store of backups in the cloud: the variables `AWS_…`, else the file that AWS's own tools keep.
//!
//! What must hold: a secret stays in here until it is used; [`std::fmt::Debug`] shows names only.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// The keys of the file that mean something here.
const KEYS: [&str; 3] = ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"];

/// Variables by name.
#[derive(Clone, Default)]
pub struct CloudEnvironment(pub BTreeMap<String, String>);

impl fmt::Debug for CloudEnvironment {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_set().entries(self.0.keys()).finish()
    }
}

impl CloudEnvironment {
    /// Reads the variables, and the file if they name nobody.
    pub(super) fn read(home: Option<&Path>) -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables = std::env::vars_os().filter_map(text);
        let mut found: BTreeMap<String, String> =
            variables.filter(|(name, value)| name.starts_with("AWS_") && !value.is_empty()).collect();
        if found.contains_key("AWS_ACCESS_KEY_ID") {
            return Self(found);
        }
        let named = found.get("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        let file = named.or_else(|| home.map(|home| home.join(".aws/credentials")));
        let profile = found.get("AWS_PROFILE").map_or("default", String::as_str);
        let text = file.and_then(|file| std::fs::read_to_string(file).ok()).unwrap_or_default();
        found.extend(credentials(&text, profile));
        Self(found)
    }
}

/// The credentials of a profile, as variables.
fn credentials(text: &str, profile: &str) -> BTreeMap<String, String> {
    let mut section = "";
    let mut found = BTreeMap::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            section = name.trim();
        } else if let Some((name, value)) = line.split_once('=').filter(|_| section == profile)
            && KEYS.contains(&name.trim())
        {
            found.insert(name.trim().to_uppercase(), value.trim().to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_of_credentials_is_read_by_its_profile() {
        let text = "[default]\naws_access_key_id = one\nregion = eu\n[ other ]\naws_access_key_id=two\naws_secret_access_key = s=3\n";
        assert_eq!(credentials(text, "default"), [("AWS_ACCESS_KEY_ID".into(), "one".into())].into());
        let other = credentials(text, "other");
        assert_eq!((other["AWS_ACCESS_KEY_ID"].as_str(), other["AWS_SECRET_ACCESS_KEY"].as_str()), ("two", "s=3"));
        let shown = format!("{:?}", CloudEnvironment(other));
        assert!(shown.contains("AWS_SECRET_ACCESS_KEY") && !shown.contains("s=3"));
    }
}

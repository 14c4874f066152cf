//! The marker of a database on a server where others have databases too: its comment (`COMMENT ON DATABASE`), which every
//! role can read from any database, and which is not copied with the database.
//!
//! What must hold: a database without the marker of the very instance is never written to, and never dropped.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::config::Settings;
use crate::instance::Instance;
use crate::spec::hexadecimal;
use sha2::{Digest, Sha256};

/// What the comment begins with; what follows is JSON.
const PREFIX: &str = "tfdev ";

/// What is known of a database from its comment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// The instance's identity.
    pub id: Uuid,
    /// The project's key.
    pub project: String,
    /// The instance's name.
    pub instance: String,
    /// The machine and the checkout that it was made from.
    pub made_in: String,
}

impl Marker {
    /// The marker of the databases of `instance`.
    pub fn of(settings: &Settings, instance: &Instance, id: Uuid) -> Self {
        Self {
            id,
            project: instance.project.clone(),
            instance: instance.name.clone(),
            made_in: format!("{}:{}", settings.machine, instance.project_dir.display()),
        }
    }

    /// Reads a comment; `None` if it is no marker.
    pub fn read(comment: &str) -> Option<Self> {
        serde_json::from_str(comment.strip_prefix(PREFIX)?).ok()
    }

    /// The comment.
    pub fn comment(&self) -> String {
        format!("{PREFIX}{}", serde_json::to_string(self).expect("texts and an identity are JSON"))
    }

    /// Whether this is the same instance of the same checkout, whatever its identity.
    pub fn is_of_same_checkout(&self, other: &Self) -> bool {
        (&self.project, &self.instance, &self.made_in) == (&other.project, &other.instance, &other.made_in)
    }
}

/// The name of the database in which an instance keeps its own records: `tfdev_` and 16 hexadecimal digits.
pub fn registry_name(id: Uuid) -> String {
    format!("tfdev_{}", hexadecimal(&Sha256::digest(id.as_bytes())[..8]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_marker_is_read_from_its_comment_and_from_nothing_else() {
        let marker = Marker {
            id: Uuid::new_v4(),
            project: "app".into(),
            instance: "dev".into(),
            made_in: "host:/src/it's \"app\"".into(),
        };
        assert_eq!(Marker::read(&marker.comment()), Some(marker.clone()));
        assert_eq!(Marker::read("default administrative connection database"), None);
        assert_eq!(Marker::read("tfdev {}"), None);
        assert_ne!(registry_name(marker.id), registry_name(Uuid::new_v4()));
        assert_eq!(registry_name(marker.id).len(), 22);
    }
}

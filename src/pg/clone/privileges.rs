//! The privileges on a database, in the order in which they can be granted again.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::pg::quote;

/// One privilege of one role on a database.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Privilege {
    /// Who granted it.
    pub grantor: String,
    /// Who has it; `None` is everybody.
    pub grantee: Option<String>,
    /// `CONNECT`, `CREATE` or `TEMPORARY`.
    pub privilege: String,
    /// Whether it may be granted on.
    pub grantable: bool,
}

/// Statements that give a database of `owner`, which has the default privileges, exactly `wanted`.
///
/// A superuser's grant counts as the owner's. What somebody else granted is granted in that role's name, once it has the
/// privilege itself.
pub(super) fn statements(database: &str, owner: &str, wanted: &[Privilege]) -> Result<Vec<String>> {
    let target = quote::identifier(database)?;
    let mut statements = vec![format!("REVOKE ALL ON DATABASE {target} FROM PUBLIC, {}", quote::identifier(owner)?)];
    let mut able: BTreeSet<(String, String)> = BTreeSet::new();
    let mut left: Vec<&Privilege> = wanted.iter().collect();
    while !left.is_empty() {
        let count = left.len();
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(|privilege| {
            privilege.grantor == owner || able.contains(&(privilege.grantor.clone(), privilege.privilege.clone()))
        });
        for privilege in now {
            statements.extend(grant(&target, owner, privilege)?);
            if let (Some(grantee), true) = (&privilege.grantee, privilege.grantable) {
                able.insert((grantee.clone(), privilege.privilege.clone()));
            }
        }
        if later.len() == count {
            // Nothing that the server wrote looks like this.
            break;
        }
        left = later;
    }
    Ok(statements)
}

fn grant(target: &str, owner: &str, privilege: &Privilege) -> Result<Vec<String>> {
    let grantee = privilege.grantee.as_deref().map_or_else(|| Ok("PUBLIC".to_owned()), quote::identifier)?;
    let option = if privilege.grantable { " WITH GRANT OPTION" } else { "" };
    let grant = format!("GRANT {} ON DATABASE {target} TO {grantee}{option}", privilege.privilege);
    if privilege.grantor == owner {
        return Ok(vec![grant]);
    }
    let grantor = quote::identifier(&privilege.grantor)?;
    Ok(vec![format!("SET LOCAL ROLE {grantor}"), grant, "RESET ROLE".to_owned()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn privilege(grantor: &str, grantee: Option<&str>, grantable: bool) -> Privilege {
        let text = str::to_owned;
        Privilege { grantor: text(grantor), grantee: grantee.map(text), privilege: text("CONNECT"), grantable }
    }

    #[test]
    fn a_grant_of_a_grantee_comes_after_the_grant_that_allows_it() {
        let wanted =
            [privilege("b", Some("c"), false), privilege("a", Some("b"), true), privilege("o", Some("a"), true)];
        let made = statements("d", "o", &wanted).unwrap();
        let order: Vec<_> = made.iter().filter(|statement| statement.starts_with("GRANT")).collect();
        assert!(order[0].contains("TO \"a\"") && order[1].contains("TO \"b\"") && order[2].contains("TO \"c\""));
        assert!(made.contains(&"SET LOCAL ROLE \"b\"".to_owned()), "{made:?}");
    }
}

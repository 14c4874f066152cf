//! Reads the TOML file of a data set.
//!
//! What must hold: each error names the file, the line, what was expected, and for a wrong key the nearest right one.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::people::Locale;
use super::plan::Plan;
use super::rows::Status;
use crate::error::{Error, Result};

const KEYS: [&str; 9] = [
    "users",
    "tasks",
    "rng",
    "history_days",
    "ownership_skew",
    "due_percent",
    "empty_metadata_percent",
    "locales",
    "status",
];

/// More rows than any development machine takes; a larger number is a slip of the finger.
pub(super) const MAX_ROWS: u64 = 1_000_000_000;
const MAX_WEIGHT: u64 = 1_000_000;

/// Reads the plan in `text`. `file` is the file's name in errors.
pub(super) fn parse(text: &str, file: &str) -> Result<Plan> {
    let reader = Reader { text, file };
    let table = DeTable::parse(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        reader.error(&span, format!("not valid TOML: {}", error.message().lines().next().unwrap_or("unreadable")))
    })?;
    reader.plan(table.get_ref())
}

/// The text that is read, for the lines of errors.
struct Reader<'a> {
    text: &'a str,
    file: &'a str,
}

type Value<'a> = Spanned<DeValue<'a>>;

impl Reader<'_> {
    fn plan(&self, table: &DeTable<'_>) -> Result<Plan> {
        let mut plan = Plan::new(0, 0);
        let (mut users, mut tasks) = (None, None);
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            match name {
                "users" => users = Some(self.number(name, value, 0..=MAX_ROWS)?),
                "tasks" => tasks = Some(self.number(name, value, 0..=MAX_ROWS)?),
                "rng" => plan.rng = self.number(name, value, 0..=u64::MAX)?,
                "history_days" => plan.history_days = self.number(name, value, 1..=36_500)?,
                "ownership_skew" => plan.ownership_skew = self.number(name, value, 1..=8)?,
                "due_percent" => plan.due_percent = self.number(name, value, 0..=100)?,
                "empty_metadata_percent" => plan.empty_metadata_percent = self.number(name, value, 0..=100)?,
                "locales" => plan.locales = self.weights(name, value, &Locale::ALL)?,
                "status" => plan.status = self.weights(name, value, &Status::ALL)?,
                _ => return Err(self.unknown_key(&key.span(), name, &KEYS)),
            }
        }
        let missing = |key: &str| {
            Error::bad_input(format!("`{}`: the key `{key}` is missing", self.file))
                .hint(format!("add a line such as `{key} = 100`"))
        };
        plan.users = users.ok_or_else(|| missing("users"))?;
        plan.tasks = tasks.ok_or_else(|| missing("tasks"))?;
        if plan.tasks > 0 && plan.users == 0 {
            return Err(Error::bad_input(format!("`{}`: there are tasks but no users to own them", self.file))
                .hint("set `users` to 1 or more"));
        }
        Ok(plan)
    }

    /// Reads a whole number within `range`.
    fn number(&self, key: &str, value: &Value<'_>, range: std::ops::RangeInclusive<u64>) -> Result<u64> {
        let number = value
            .get_ref()
            .as_integer()
            .and_then(|integer| u64::from_str_radix(integer.as_str(), integer.radix()).ok())
            .filter(|number| range.contains(number));
        number.ok_or_else(|| {
            let written = self.text.get(value.span()).unwrap_or_default();
            let (start, end) = range.into_inner();
            self.error(&value.span(), format!("`{key}` must be a whole number from {start} to {end}, not `{written}`"))
        })
    }

    /// Reads a table of weights whose keys are those of `choices`; a choice that is left out has the weight 0.
    fn weights<T: Copy>(&self, key: &str, value: &Value<'_>, choices: &[(&str, T)]) -> Result<Vec<(T, u64)>> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let Some(table) = value.get_ref().as_table() else {
            let message = format!("`{key}` must be a table of weights, such as `{{ {} = 1 }}`", names[0]);
            return Err(self.error(&value.span(), message));
        };
        for (name, _) in table {
            if !names.contains(&name.get_ref().as_ref()) {
                return Err(self.unknown_key(&name.span(), name.get_ref(), &names));
            }
        }
        let mut weights = Vec::new();
        for (name, choice) in choices {
            if let Some(weight) = table.get(*name) {
                weights.push((*choice, self.number(name, weight, 0..=MAX_WEIGHT)?));
            }
        }
        if weights.iter().all(|(_, weight)| *weight == 0) {
            return Err(self.error(&value.span(), format!("`{key}` needs at least one weight above 0")));
        }
        Ok(weights)
    }

    fn unknown_key(&self, span: &Range<usize>, key: &str, known: &[&str]) -> Error {
        let error = self.error(span, format!("unknown key `{key}`"));
        match nearest(key, known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error.hint(format!("known keys are `{}`", known.join("`, `"))),
        }
    }

    fn error(&self, span: &Range<usize>, message: impl std::fmt::Display) -> Error {
        let line = 1 + self.text.get(..span.start).unwrap_or_default().matches('\n').count();
        Error::bad_input(format!("`{}:{line}`: {message}", self.file))
    }
}

/// The one of `known` that `word` is most likely meant to be, if any is near.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(similarity, _)| *similarity > 0.75)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn error(text: &str) -> String {
        let error = parse(text, "seeds/x.toml").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::BadInput);
        format!("{error} | {}", error.hints().join(" "))
    }

    #[test]
    fn the_reference_file_spells_out_the_defaults() {
        let demo = parse(include_str!("../../seeds/demo.toml"), "demo").unwrap();
        assert_eq!(demo, Plan::new(100, 1_000));
    }

    #[test]
    fn a_file_may_change_counts_and_distributions() {
        let plan = parse("users = 3\ntasks = 0x10\nlocales = { ja_jp = 1 }\n[status]\ndone = 2\n", "x").unwrap();
        assert_eq!((plan.users, plan.tasks), (3, 16));
        assert_eq!(plan.locales, [(Locale::JaJp, 1)]);
        assert_eq!(plan.status, [(Status::Done, 2)]);
    }

    #[test]
    fn errors_name_line_expectation_and_nearest_key() {
        assert_eq!(error("\nusers = 1\ntaks = 5\n"), "`seeds/x.toml:3`: unknown key `taks` | did you mean `tasks`?");
        assert_eq!(
            error("users = \"12X\"\ntasks = 1"),
            "`seeds/x.toml:1`: `users` must be a whole number from 0 to 1000000000, not `\"12X\"` | "
        );
        assert_eq!(
            error("users = 1\ntasks = 1\n[locales]\nen = 1\nfr = -1"),
            "`seeds/x.toml:5`: unknown key `fr` | did you mean `fr_fr`?"
        );
        assert_eq!(
            error("users = 1\ntasks = 1\n[status]\ndone = 0"),
            "`seeds/x.toml:3`: `status` needs at least one weight above 0 | "
        );
        assert!(error("users = 1\nusers = 2").starts_with("`seeds/x.toml:2`: not valid TOML: duplicate key"));
        assert_eq!(error("tasks = 1"), "`seeds/x.toml`: the key `users` is missing | add a line such as `users = 100`");
        assert!(error("users = 0\ntasks = 1").contains("no users to own them"));
        assert!(error("users = 1\ntasks = 1\ndue_percent = 101").contains("from 0 to 100, not `101`"));
    }
}

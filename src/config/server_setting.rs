//! Server settings of `[profiles.NAME]`, checked before anything starts: a bad `-c` argument would otherwise leave a
//! half-made volume behind.
//!
//! What must hold: what PostgreSQL 15 takes is taken; the table `server_settings.tsv` is its own `pg_settings`. A name
//! that is not in the table is refused only if it looks like a slip, so that settings of a newer minor version or of an
//! extension pass. A server that runs is asked for its own table ([`Definitions::of_server`]), which knows every name.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::Setting;
use super::names;
use super::problem::{Fault, Problem, refuse_if_any};
use super::raw::Raw;
use crate::error::Result as FallibleResult;

/// One line of the table.
#[derive(Debug, Clone)]
struct Definition {
    /// `bool`, `integer`, `real`, `enum`, `string`, or `internal` for what can't be set.
    kind: String,
    /// The unit of a number without one, empty if it is a mere number.
    unit: String,
    smallest: f64,
    largest: f64,
    words: String,
    /// When the server takes a change: `postmaster` is only at its start.
    context: String,
}

/// The settings that a server has, by name.
#[derive(Debug)]
pub(crate) struct Definitions(BTreeMap<String, Definition>);

/// Those of PostgreSQL 15, for as long as there is no server to ask.
static TABLE: LazyLock<Definitions> = LazyLock::new(|| Definitions::read(include_str!("server_settings.tsv")));

impl Definitions {
    /// Asks a server for its table, in the form of [`Definitions::of_server`].
    pub(crate) const QUESTION: &str = "\
        SELECT coalesce(string_agg(concat_ws(E'\\t', lower(name), \
                   CASE WHEN context = 'internal' THEN 'internal' ELSE vartype END, coalesce(unit, ''), \
                   coalesce(min_val, ''), coalesce(max_val, ''), coalesce(array_to_string(enumvals, ','), ''), context), \
               E'\\n'), '') FROM pg_settings";

    /// The table that a server gave for [`Definitions::QUESTION`].
    pub(crate) fn of_server(text: &str) -> Self {
        Self::read(text)
    }

    fn read(text: &str) -> Self {
        Self(text.lines().filter(|line| !line.starts_with('#')).filter_map(read_definition).collect())
    }

    fn get(&self, name: &str) -> Option<&Definition> {
        self.0.get(name)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// When this server takes a change of the setting (`pg_settings.context`); `None` if it has no such setting.
    pub(crate) fn context(&self, name: &str) -> Option<&str> {
        self.get(name).map(|definition| definition.context.as_str())
    }

    /// Fails, with all mistakes and their lines, unless this server would take `settings`, whose values went through
    /// [`check`] before. A name of two parts may be anybody's.
    pub(crate) fn refuse_wrong(&self, settings: &BTreeMap<String, Setting<String>>) -> FallibleResult<()> {
        let problem = |(name, setting): (&String, &Setting<String>)| {
            let raw = Raw::Text(setting.value.clone());
            let fault = match self.get(name) {
                Some(definition) => check_value(definition, &raw).err()?,
                None if name.contains('.') => return None,
                None => not_a_setting(name, self.names()),
            };
            Some(Problem::of_value(&setting.origin, name, fault))
        };
        refuse_if_any(settings.iter().filter_map(problem).collect())
    }
}

fn read_definition(line: &str) -> Option<(String, Definition)> {
    let mut fields = line.split('\t').map(str::to_owned);
    let (name, kind, unit) = (fields.next()?, fields.next()?, fields.next()?);
    let (smallest, largest) = (fields.next()?, fields.next()?);
    let smallest = smallest.parse().unwrap_or(f64::NEG_INFINITY);
    let largest = largest.parse().unwrap_or(f64::INFINITY);
    Some((name, Definition { kind, unit, smallest, largest, words: fields.next()?, context: fields.next()? }))
}

/// Whether a change of the setting needs a restart of the server. What is not known may be an extension's.
pub(crate) fn needs_restart(name: &str) -> bool {
    TABLE.context(name).is_none_or(|context| context == "postmaster")
}

/// Units of memory with their bytes, as PostgreSQL spells them.
const MEMORY: &[(&str, f64)] =
    &[("B", 1.0), ("kB", 1024.0), ("MB", 1_048_576.0), ("GB", 1_073_741_824.0), ("TB", 1_099_511_627_776.0)];
/// Units of time with their microseconds, as PostgreSQL spells them.
const TIME: &[(&str, f64)] = &[("us", 1.0), ("ms", 1e3), ("s", 1e6), ("min", 6e7), ("h", 3.6e9), ("d", 8.64e10)];

/// Settings that tfdev decides on, with the reason. A name that ends in `*` stands for all that begin so.
const OWNED: &[(&str, &str)] = &[
    ("port", "the port is `database.port`"),
    ("listen_addresses", "the server is reached through the port that tfdev publishes on 127.0.0.1"),
    ("unix_socket_*", "tfdev looks for the socket in its usual place"),
    ("data_directory", "the data stands in the volume that tfdev made for it"),
    ("config_file", "the settings come from the profile"),
    ("hba_file", "tfdev writes the rules of login"),
    ("ident_file", "tfdev writes the rules of login"),
    ("external_pid_file", "tfdev watches the server itself"),
    ("ssl_cert_file", "tfdev makes the certificate; `ssl = true` turns it on"),
    ("ssl_key_file", "tfdev makes the key; `ssl = true` turns it on"),
    ("ssl_ca_file", "tfdev makes the certificate; `ssl = true` turns it on"),
    ("ssl_crl_*", "tfdev makes the certificate; `ssl = true` turns it on"),
    ("ssl_passphrase_*", "the key that tfdev makes has no passphrase"),
    ("logging_collector", "`tfdev logs` reads what the server writes to its standard error"),
    ("log_destination", "`tfdev logs` reads what the server writes to its standard error"),
    ("archive_mode", "the archive belongs to `tfdev backup`"),
    ("archive_command", "the archive belongs to `tfdev backup`"),
    ("archive_library", "the archive belongs to `tfdev backup`"),
    ("restore_command", "recovery belongs to `tfdev backup restore`"),
    ("archive_cleanup_command", "recovery belongs to `tfdev backup restore`"),
    ("recovery_end_command", "recovery belongs to `tfdev backup restore`"),
    ("recovery_target*", "recovery belongs to `tfdev backup restore`"),
    ("primary_conninfo", "an instance is never the standby of another server"),
    ("primary_slot_name", "an instance is never the standby of another server"),
    ("promote_trigger_file", "an instance is never the standby of another server"),
];

/// Checks one server setting and gives its value as it stands in postgresql.conf.
pub(super) fn check(name: &str, raw: &Raw) -> Result<String, Fault> {
    check_name(name)?;
    TABLE.get(name).map_or_else(|| check_unknown(name, raw), |definition| check_value(definition, raw))
}

fn check_value(definition: &Definition, raw: &Raw) -> Result<String, Fault> {
    match definition.kind.as_str() {
        "internal" => Err(Fault::new("cannot be set: PostgreSQL only shows it")),
        "bool" => truth(raw).map(on_or_off).ok_or_else(|| Fault::expected("true or false (on or off)", raw)),
        "enum" => check_words(definition, raw),
        "string" => check_string(raw),
        _ => check_number(definition, raw),
    }
}

fn check_name(name: &str) -> Result<(), Fault> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let part_fits =
        |part: &str| part.chars().all(fits) && !part.is_empty() && !part.starts_with(|c: char| c.is_ascii_digit());
    if !name.split('.').all(part_fits) {
        let fault = Fault::new("is not the name of a server setting");
        let lower = name.to_lowercase();
        return Err(if TABLE.get(&lower).is_some() { fault.hint(format!("write `{lower}`")) } else { fault });
    }
    let owner = OWNED.iter().find(|(owned, _)| match owned.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *owned,
    });
    match owner {
        Some((_, reason)) => {
            Err(Fault::new(format!("cannot be set in a profile: {reason}"))
                .hint(format!("remove the line with `{name}`")))
        }
        None => Ok(()),
    }
}

fn check_unknown(name: &str, raw: &Raw) -> Result<String, Fault> {
    match names::nearest(name, TABLE.names().chain(["extends"])) {
        Some(_) if !name.contains('.') => Err(not_a_setting(name, TABLE.names().chain(["extends"]))),
        _ => match raw {
            Raw::Bool(value) => Ok(on_or_off(*value)),
            _ => check_string(raw),
        },
    }
}

fn not_a_setting<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Fault {
    let guess = names::nearest(name, known).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    Fault::new(format!("is not a setting of PostgreSQL 15{guess}"))
}

fn check_string(raw: &Raw) -> Result<String, Fault> {
    match raw {
        Raw::Text(text) if !text.chars().any(char::is_control) => Ok(text.clone()),
        Raw::Integer(number) => Ok(number.to_string()),
        Raw::Float(number) => Ok(number.clone()),
        _ => Err(Fault::expected("a string in quotes, without line breaks", raw)),
    }
}

fn check_words(definition: &Definition, raw: &Raw) -> Result<String, Fault> {
    let words: Vec<_> = definition.words.split(',').collect();
    let text = match raw {
        Raw::Text(text) => text.to_lowercase(),
        _ => truth(raw).map(on_or_off).unwrap_or_default(),
    };
    match words.iter().find(|word| word.to_lowercase() == text) {
        Some(word) if !matches!(raw, Raw::Other(_)) => Ok((*word).to_owned()),
        _ if words.contains(&"on") && truth(raw).is_some() => Ok(truth(raw).map(on_or_off).unwrap_or_default()),
        _ => {
            let words: Vec<_> = words.iter().map(|word| format!("{word:?}")).collect();
            Err(Fault::expected(&format!("one of {}", words.join(", ")), raw))
        }
    }
}

fn check_number(definition: &Definition, raw: &Raw) -> Result<String, Fault> {
    let text = match raw {
        Raw::Text(text) => text.trim().to_owned(),
        Raw::Integer(number) => number.to_string(),
        Raw::Float(number) => number.clone(),
        Raw::Bool(_) | Raw::Other(_) => return Err(Fault::expected(&shape_of(definition), raw)),
    };
    let amount = amount(&text, &definition.unit).ok_or_else(|| Fault::expected(&shape_of(definition), raw))?;
    let amount = if definition.kind == "integer" { amount.round_ties_even() } else { amount };
    if (definition.smallest..=definition.largest).contains(&amount) {
        return Ok(text);
    }
    let unit = match definition.unit.as_str() {
        "" => String::new(),
        unit => format!(" (in units of {unit})"),
    };
    let range = format!("from {} to {}{unit}", definition.smallest, definition.largest);
    Err(Fault::expected(&range, raw))
}

/// What a number of this kind looks like, for a message.
fn shape_of(definition: &Definition) -> String {
    let base = definition.unit.as_str();
    match units_of(base) {
        Some((MEMORY, _)) => "a size such as \"128MB\" (units B, kB, MB, GB, TB)".to_owned(),
        Some(_) => format!("a time such as \"500ms\" or \"10s\" (units us, ms, s, min, h, d), or a number of {base}"),
        None if definition.kind == "integer" => "a whole number".to_owned(),
        None => "a number".to_owned(),
    }
}

/// The family of a setting's own unit, and how many of the family's smallest units it is.
fn units_of(base: &str) -> Option<(&'static [(&'static str, f64)], f64)> {
    let (count, word) = base.strip_prefix('8').map_or((1.0, base), |word| (8.0, word));
    [MEMORY, TIME]
        .into_iter()
        .find_map(|family| family.iter().find(|(unit, _)| *unit == word).map(|(_, size)| (family, count * size)))
}

/// Reads a number with or without a unit as an amount of the setting's own unit.
fn amount(text: &str, base: &str) -> Option<f64> {
    let (number, unit) = number_and_unit(text)?;
    if unit.is_empty() {
        return Some(number);
    }
    let (family, base_size) = units_of(base)?;
    let (_, size) = family.iter().find(|(name, _)| *name == unit)?;
    Some(number * size / base_size)
}

/// Takes a number apart as PostgreSQL does: sign, decimal, hexadecimal or octal digits, fraction, exponent, blanks, unit.
fn number_and_unit(text: &str) -> Option<(f64, &str)> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    let radix = if digits.starts_with("0x") { 16 } else { 8 };
    let whole = if radix == 16 { digits.get(2..)? } else { digits };
    if digits.len() > 1 && digits.starts_with('0') && whole.chars().all(|c| c.is_digit(radix)) {
        let number = u32::from_str_radix(whole, radix).ok()?;
        return Some((sign * f64::from(number), ""));
    }
    let mut end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
    if let Some(exponent) = digits[end..].strip_prefix(['e', 'E']) {
        let signless = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let length = signless.find(|c: char| !c.is_ascii_digit()).unwrap_or(signless.len());
        if length > 0 {
            end = digits.len() - signless.len() + length;
        }
    }
    Some((sign * digits[..end].parse::<f64>().ok()?, digits[end..].trim_start()))
}

/// Reads a truth value as PostgreSQL does, except that a word must be written out.
fn truth(raw: &Raw) -> Option<bool> {
    match raw {
        Raw::Bool(value) => Some(*value),
        Raw::Integer(1) => Some(true),
        Raw::Integer(0) => Some(false),
        Raw::Text(text) => match text.to_lowercase().as_str() {
            "on" | "true" | "yes" | "1" => Some(true),
            "off" | "false" | "no" | "0" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

fn on_or_off(value: bool) -> String {
    if value { "on" } else { "off" }.to_owned()
}

/// Says whether the checked value of a truth setting is on.
pub(crate) fn is_on(value: &str) -> bool {
    truth(&Raw::Text(value.to_owned())) == Some(true)
}

/// Says whether the checked value of a setting is what the server shows in `pg_settings.setting`, which has no units.
pub(crate) fn same_setting(name: &str, checked: &str, shown: &str) -> bool {
    let unit = TABLE.get(name).map_or("", |definition| &definition.unit);
    match (amount(checked, unit), amount(shown, unit)) {
        (Some(checked), Some(shown)) => (checked - shown).abs() < 1e-9,
        _ => checked == shown,
    }
}

/// The bytes of a checked value of a size setting; `None` if the setting is no size.
pub(crate) fn size_in_bytes(name: &str, value: &str) -> Option<u64> {
    let definition = TABLE.get(name)?;
    let (family, base) = units_of(&definition.unit)?;
    let bytes = amount(value, &definition.unit)? * base;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and sizes end far below 2^64"
    )]
    (family == MEMORY && bytes >= 0.0).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Raw {
        Raw::Text(text.to_owned())
    }

    fn refusal(name: &str, raw: &Raw) -> String {
        format!("`{name}` {}", check(name, raw).unwrap_err().says)
    }

    #[test]
    fn the_table_is_whole() {
        assert_eq!(TABLE.0.len(), 354);
        for (name, definition) in &TABLE.0 {
            let kinds = ["bool", "integer", "real", "enum", "string", "internal"];
            assert!(kinds.contains(&definition.kind.as_str()), "{name}");
            assert!(definition.unit.is_empty() || units_of(&definition.unit).is_some(), "{name}");
        }
    }

    #[test]
    fn what_needs_a_restart_is_known() {
        for name in ["max_connections", "shared_buffers", "wal_level", "hba_file", "pg_stat_statements.max"] {
            assert!(needs_restart(name), "{name}");
        }
        for name in ["work_mem", "log_statement", "ssl_cert_file", "jit", "checkpoint_timeout"] {
            assert!(!needs_restart(name), "{name}");
        }
    }

    #[test]
    fn a_servers_own_table_knows_every_name_and_range() {
        let server = Definitions::of_server(
            "work_mem\tinteger\tkB\t64\t2147483647\t\tuser\nsample.limit\tinteger\t\t1\t9\t\tuser",
        );
        let refusal = |name: &str, value: &str| {
            let setting = Setting::default_value(value.to_owned());
            server.refuse_wrong(&[(name.to_owned(), setting)].into()).map_err(|error| error.to_string())
        };
        refusal("work_mem", "8MB").unwrap();
        refusal("sample.limit", "9").unwrap();
        refusal("other.thing", "x").unwrap();
        assert_eq!(refusal("sample.limit", "10").unwrap_err(), "`sample.limit` must be from 1 to 9, found \"10\"");
        let unknown = refusal("work_men", "8MB").unwrap_err();
        assert_eq!(unknown, "`work_men` is not a setting of PostgreSQL 15; did you mean `work_mem`?");
        assert!(refusal("neon_something", "on").unwrap_err().ends_with("is not a setting of PostgreSQL 15"));
    }

    #[test]
    fn a_bad_size_tells_the_units() {
        let expected = "`shared_buffers` must be a size such as \"128MB\" (units B, kB, MB, GB, TB), found \"12X\"";
        assert_eq!(refusal("shared_buffers", &text("12X")), expected);
        for bad in ["", "MB", "128mb", "128 M B", "1..5MB", "128ms", "0x", "x"] {
            assert!(check("shared_buffers", &text(bad)).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_postgresql_takes_is_taken() {
        for (name, raw) in [
            ("shared_buffers", text("128MB")),
            ("shared_buffers", text("1.5 GB")),
            ("shared_buffers", Raw::Integer(16_384)),
            ("wal_buffers", Raw::Integer(-1)),
            ("log_min_duration_statement", Raw::Integer(-1)),
            ("log_min_duration_statement", text("1s")),
            ("statement_timeout", text("2min")),
            ("statement_timeout", Raw::Integer(0)),
            ("vacuum_cost_delay", text("500us")),
            ("random_page_cost", Raw::Float("1.1".to_owned())),
            ("random_page_cost", text("1e1")),
            ("log_file_mode", text("0600")),
            ("timezone", text("Europe/Berlin")),
            ("wal_level", text("Logical")),
            ("pg_stat_statements.max", Raw::Integer(1000)),
            ("default_transaction_isolation", text("repeatable read")),
        ] {
            assert!(check(name, &raw).is_ok(), "{name} = {raw}: {:?}", check(name, &raw));
        }
    }

    #[test]
    fn truth_values_become_on_and_off() {
        assert_eq!(check("jit", &Raw::Bool(false)).unwrap(), "off");
        assert_eq!(check("synchronous_commit", &Raw::Bool(true)).unwrap(), "on");
        assert_eq!(check("synchronous_commit", &text("Remote_Apply")).unwrap(), "remote_apply");
        assert!(refusal("jit", &text("maybe")).contains("true or false"));
    }

    #[test]
    fn values_out_of_range_and_out_of_words_are_refused() {
        assert_eq!(refusal("max_connections", &Raw::Integer(0)), "`max_connections` must be from 1 to 262143, found 0");
        assert!(refusal("shared_buffers", &text("12kB")).contains("from 16 to"));
        assert!(refusal("wal_level", &text("full")).contains("\"minimal\", \"replica\", \"logical\""));
        assert!(refusal("wal_level", &Raw::Other("an array")).contains("found an array"));
        assert!(refusal("search_path", &text("a\nb")).contains("line breaks"));
    }

    #[test]
    fn settings_that_are_not_the_users_are_refused_with_the_reason() {
        for name in ["port", "listen_addresses", "data_directory", "hba_file", "ident_file", "config_file"] {
            assert!(refusal(name, &text("x")).contains("cannot be set in a profile: "), "{name}");
        }
        for name in ["unix_socket_directories", "ssl_cert_file", "ssl_key_file", "recovery_target_time"] {
            assert!(refusal(name, &text("x")).contains("cannot be set in a profile: "), "{name}");
        }
        assert!(refusal("block_size", &Raw::Integer(8192)).contains("only shows it"));
    }

    #[test]
    fn slips_in_names_are_told() {
        assert!(refusal("work_memm", &text("8MB")).contains("did you mean `work_mem`?"));
        assert!(refusal("extend", &text("prod")).contains("did you mean `extends`?"));
        assert!(check("Work_Mem", &text("8MB")).unwrap_err().hint.unwrap().contains("`work_mem`"));
        assert!(refusal("a b; c", &text("8MB")).contains("not the name"));
        assert_eq!(check("neon_something_of_their_own", &Raw::Bool(true)).unwrap(), "on");
    }

    #[test]
    fn a_value_is_compared_with_what_the_server_shows() {
        assert!(same_setting("shared_buffers", "128MB", "16384") && !same_setting("shared_buffers", "128MB", "128"));
        assert!(
            same_setting("log_min_duration_statement", "1s", "1000") && same_setting("log_statement", "all", "all")
        );
        assert!(!same_setting("log_statement", "all", "none") && same_setting("max_connections", "20", "20"));
    }

    #[test]
    fn sizes_are_read_as_bytes() {
        assert_eq!(size_in_bytes("shared_buffers", "128MB"), Some(134_217_728));
        assert_eq!(size_in_bytes("shared_buffers", "16384"), Some(134_217_728));
        assert_eq!(size_in_bytes("statement_timeout", "1s"), None);
    }
}

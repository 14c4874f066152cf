//! A value as written, before anyone has looked at what it should be.

use std::fmt;

use toml::de::DeValue;

/// How many characters of a wrong text an error repeats.
const LONGEST_QUOTE: usize = 60;

/// A value as written in a file or given by a flag.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Raw {
    /// A string.
    Text(String),
    /// A whole number.
    Integer(i64),
    /// A number with a fraction or an exponent, as written.
    Float(String),
    /// `true` or `false`.
    Bool(bool),
    /// Something that no key takes: what it is, with its article.
    Other(&'static str),
}

impl Raw {
    /// The value of a TOML document.
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map_or(Self::Other("a number that is too large"), Self::Integer),
            DeValue::Float(number) => Self::Float(number.as_str().to_owned()),
            DeValue::Boolean(value) => Self::Bool(*value),
            DeValue::Datetime(_) => Self::Other("a date or time without quotes"),
            DeValue::Array(_) => Self::Other("an array"),
            DeValue::Table(_) => Self::Other("a table"),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) if text.chars().count() > LONGEST_QUOTE => {
                let start: String = text.chars().take(LONGEST_QUOTE).collect();
                write!(formatter, "{start:?}…")
            }
            Self::Text(text) => write!(formatter, "{text:?}"),
            Self::Integer(number) => write!(formatter, "{number}"),
            Self::Float(number) => formatter.write_str(number),
            Self::Bool(value) => write!(formatter, "{value}"),
            Self::Other(kind) => formatter.write_str(kind),
        }
    }
}

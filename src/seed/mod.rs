//! Data sets, and how they get into a database.
//!
//! ```text
//! dataset    finds a data set by name or path: built in, a TOML file, a `.sql` file, a folder of them
//! plan       what a TOML data set says: counts and distributions; plan_file reads it
//! random     the random sequence of one row
//! people, words, metadata, password, rows   from a row's random sequence to its values
//! copy_format, blocks   rows as blocks of binary COPY, made by threads in constant memory
//! load       one transaction that locks, looks whether there is data, and fills the tables
//! script, run_script    SQL files: cut into statements, run with the line of each error
//! ```
//!
//! What must hold:
//! - The same data set gives the same rows on every machine, however many threads make them. Each row's values come from
//!   (random seed, table, index of the row) alone: from no clock, locale, hash order or floating-point function.
//! - Applying a data set is one transaction. A process that is killed leaves the database as it was.
//! - Processes that seed the same database at once come one after the other, and [`Mode::OnlyIfEmpty`] adds rows once.

mod blocks;
mod copy_format;
mod dataset;
mod load;
mod metadata;
mod password;
mod people;
mod plan;
mod plan_file;
mod random;
mod rows;
mod run_script;
mod script;
mod words;

#[cfg(test)]
mod server_tests;

pub use dataset::DataSet;
pub use load::{Mode, SeedOutcome, apply};
pub use password::DEVELOPMENT_PASSWORD;

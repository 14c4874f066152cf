//! Fresh databases for tests: each test gets a private copy of a migrated template, and nothing of it remains.
//!
//! ```text
//! registry   which templates and databases there are, and what they are doing: in the server itself
//! template   migrations, data and own code → a closed database, made once for all processes
//! pool       copies of templates, counted, handed out in one round trip
//! make       template → copies, made when asked for or ahead
//! functions  what each hand-out and each return is in the server
//! keeper     the session whose locks are the leases: it ends with the process, and so do they
//! untouched  what was given back and is proven to be as it was goes back into the pool
//! emptied    so does what was only written to where the template is empty, once that is empty again
//! reap       what else was given back, and what dead processes have left, is dropped
//! config     what is wanted, and the server that it is wanted of; home, guard: the library's door
//! clients    what a service needs whose clients fill templates and forget to give back
//! holder     a process that holds a lease for a shell
//! idle       stops the server when nobody uses it
//! session    logging in where connections are few
//! ```
//!
//! In a test:
//!
//! ```no_run
//! # async fn test() -> tfdev::Result<()> {
//! let db = tfdev::fresh().await?;
//! let pool = db.pool_options().connect_with(db.connect_options()).await.unwrap();
//! // … test with `pool`, or give `db.url()` to the application; the database goes when `db` does.
//! # Ok(())
//! # }
//! ```
//!
//! No macro is needed: `tfdev::fresh()` works in `#[tokio::test]` as it does in every other runtime, because the sessions with
//! the server are kept by a thread of the process's own, and in a plain `#[test]` it is [`blocking::fresh`]:
//!
//! ```no_run
//! # fn test() -> tfdev::Result<()> {
//! let db = tfdev::blocking::fresh()?;
//! // … give `db.url()` to the application.
//! # Ok(())
//! # }
//! ```
//!
//! A test that ends by a panic unwinds, and so gives its database back, too; with
//! [`FreshConfig::keep_on_failure`] the database stays for a day.
//!
//! What must hold:
//! - A lease belongs to a process and dies with it, because it is a lock of that process's session with the server. No
//!   time-out and no process number decides whether a database is still in use.
//! - What a dead process had is removed by the next one that comes, and nothing else.
//! - Nobody is refused because the server has few connections or the pool is at its bound: who comes too late waits.

mod clients;
mod config;
mod emptied;
#[cfg(test)]
mod emptied_tests;
mod functions;
mod guard;
#[cfg(unix)]
pub mod holder;
mod home;
pub mod idle;
mod keeper;
mod lifetime;
mod make;
mod pool;
mod reap;
pub mod registry;
mod session;
mod template;
#[cfg(test)]
mod tests;
mod untouched;
#[cfg(test)]
mod untouched_tests;

pub use clients::TemplateState;
pub use config::{FreshConfig, TEST_INSTANCE, lease, of_running, open};
pub use guard::Fresh;
pub use home::holder_name;
pub use lifetime::read_lifetime;
pub use pool::{Lease, Options, Pool};
pub use registry::{FreshDatabase, Stage};
pub use session::is_lost;
pub use template::{Begun, Draft, Recipe, Template, TemplateFunction, TemplateFunctionError};

use crate::error::Result;

/// A fresh database of the project's instance `test`, which is started if it does not run: migrated, without rows, and gone
/// when the value is dropped. [`FreshConfig`] says more exactly what is wanted.
pub async fn fresh() -> Result<Fresh> {
    FreshConfig::new().database().await
}

/// The same for tests that are not asynchronous.
pub mod blocking {
    use super::{Fresh, FreshConfig};
    use crate::error::Result;

    /// As [`crate::fresh()`], inside or outside of a runtime.
    pub fn fresh() -> Result<Fresh> {
        FreshConfig::new().database_blocking()
    }
}

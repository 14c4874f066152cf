//! Understanding what a server wrote into its log: entries instead of lines, slow statements, errors, counts.
//!
//! ```text
//! prefix     what stands in front of each line (`log_line_prefix`)
//! entry      lines into entries, whatever the pieces in which they come
//! statement  texts of statements into groups
//! report     what is slow, what failed, what was run
//! ```
//!
//! What must hold: the log is the same text on every engine, so nothing here knows which one wrote it; what is no entry of
//! the server (the entrypoint of an image has a word, too) is passed over, and no line makes the reader stop. Read are logs
//! in English, which is what a server of tfdev writes (`lc_messages`).

mod entry;
mod prefix;
mod report;
mod statement;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::config::Settings;
use crate::engine;
use crate::error::Result;
use crate::event::Events;
use crate::instance::{Instance, InstanceRecord};
use crate::{profile, up};

pub use entry::{Entry, Kind, Reader, Severity};
pub use prefix::Prefix;
pub use report::{Errors, Failure, Slow, SlowGroup, StatementGroup, Statements};
pub use statement::normalised;

/// How long an entry may be without more lines until it counts as whole, while the log is followed.
const QUIET: Duration = Duration::from_millis(100);

/// Hands each entry of the log of the settled instance to `receive`, from the last `tail` lines on (all if `None`), and goes
/// on with new ones if `follow`. Fails as [`crate::engine::Engine::logs`] does, and if `receive` fails.
pub async fn read(
    settings: &Settings,
    tail: Option<u32>,
    follow: bool,
    events: &Events,
    receive: &mut (dyn FnMut(Entry) -> Result<()> + Send),
) -> Result<()> {
    let instance = Instance::of(settings);
    let engine = engine::choose(settings, &instance, events).await?.engine;
    let record = InstanceRecord::read(&instance, events)?;
    let profile = profile::resolve(up::profile_name(settings, record.as_ref()), &settings.profiles)?;
    let format = profile.settings.get("log_line_prefix").map_or(prefix::DEFAULT, |setting| setting.value.as_str());
    let state = Mutex::new((Reader::new(Prefix::parse(format)), Instant::now(), receive));
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    let mut take = |bytes: &[u8]| {
        let (reader, last, receive) = &mut *lock();
        *last = Instant::now();
        reader.push(bytes).into_iter().try_for_each(&mut **receive)
    };
    let all = engine.logs(tail, follow, &mut take);
    let flushing = async {
        loop {
            tokio::time::sleep(QUIET).await;
            let (reader, last, receive) = &mut *lock();
            if last.elapsed() >= QUIET {
                reader.flush().into_iter().try_for_each(&mut **receive)?;
            }
        }
    };
    tokio::select! {
        result = all => result?,
        failed = flushing, if follow => return failed,
    }
    let (reader, _, receive) = &mut *lock();
    reader.finish().into_iter().try_for_each(&mut **receive)
}

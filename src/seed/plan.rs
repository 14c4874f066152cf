//! What a generated data set is made of: how many rows, and how their values are distributed.

use super::people::Locale;
use super::rows::Status;

/// Counts and distributions. The defaults are explained in `seeds/demo.toml`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Plan {
    /// Rows of `users`.
    pub(super) users: u64,
    /// Rows of `tasks`.
    pub(super) tasks: u64,
    /// Start of the random sequence.
    pub(super) rng: u64,
    /// Days before the reference date in which the rows were created.
    pub(super) history_days: u64,
    /// How unevenly tasks are owned; 1 is even.
    pub(super) ownership_skew: u64,
    /// Percent of the tasks that have a due date.
    pub(super) due_percent: u64,
    /// Percent of the tasks whose metadata is `{}`.
    pub(super) empty_metadata_percent: u64,
    /// Weights of the locales of names.
    pub(super) locales: Vec<(Locale, u64)>,
    /// Weights of the statuses of a new task.
    pub(super) status: Vec<(Status, u64)>,
}

impl Plan {
    /// The defaults for `users` and `tasks` rows.
    pub(super) fn new(users: u64, tasks: u64) -> Self {
        use Locale::{ArSa, DeDe, En, FrFr, ItIt, JaJp, NlNl, PtBr, TrTr, ZhCn};
        Self {
            users,
            tasks,
            rng: 42,
            history_days: 730,
            ownership_skew: 3,
            due_percent: 70,
            empty_metadata_percent: 12,
            locales: vec![
                (En, 40),
                (FrFr, 10),
                (DeDe, 10),
                (ItIt, 8),
                (PtBr, 8),
                (NlNl, 6),
                (TrTr, 6),
                (JaJp, 6),
                (ZhCn, 4),
                (ArSa, 2),
            ],
            status: vec![
                (Status::Todo, 45),
                (Status::InProgress, 25),
                (Status::Blocked, 6),
                (Status::Done, 20),
                (Status::Cancelled, 4),
            ],
        }
    }
}

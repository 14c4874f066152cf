//! § Backup & Recovery. Without a store there is nothing to look at, and that is no pass.

use std::time::Instant;

use super::source::BACKUP;
use super::{Bench, Row, Section, Verdict};

pub(super) fn rows(bench: &Bench<'_>) -> Vec<Row> {
    let begin = Instant::now();
    BACKUP
        .iter()
        .map(|(aspect, strategy)| verdict(bench, aspect).row(Section::Backup, *aspect, *strategy, begin))
        .collect()
}

/// What there is of one aspect of § Backup & Recovery.
fn verdict(bench: &Bench<'_>, _aspect: &str) -> Verdict {
    Verdict::not_set_up(match &bench.settings.backup.store {
        None => "backups have no store yet: set `store` under `[backup]` in tfdev.toml".to_owned(),
        Some(store) => format!("nothing is known of backups in `{}` ({})", store.value, store.origin),
    })
}

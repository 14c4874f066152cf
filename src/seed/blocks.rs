//! Blocks of rows, made by threads while the connection sends the ones before.
//!
//! What must hold: blocks come in the order of their rows, and memory is bounded: each thread is at most one block ahead
//! of what the channel holds. Threads end when the receiver is dropped.

use std::sync::Arc;
use std::thread;

use tokio::sync::mpsc;

use super::copy_format::{write_task, write_user};
use super::rows::Rows;
use crate::error::{Context as _, Error, Result};

/// Rows in a block: some 190 KiB of tasks, enough that handing it over costs nothing.
pub(super) const BLOCK_ROWS: u64 = 512;
/// Threads that make rows. One makes them some twenty times as fast as a server with indexes takes them; the second
/// evens out pauses.
pub(super) const THREADS: usize = 2;
/// Blocks that wait in each thread's channel.
const WAITING_BLOCKS: usize = 2;

/// Which table's rows a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Table {
    Users,
    Tasks,
}

impl Table {
    /// The table's name.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Users => "users",
            Self::Tasks => "tasks",
        }
    }
}

/// Rows in the binary format of COPY, with neither header nor trailer.
pub(super) struct Block {
    pub(super) rows: u64,
    pub(super) bytes: Vec<u8>,
}

/// The blocks of a table, in order.
pub(super) struct Blocks {
    receivers: Vec<mpsc::Receiver<Block>>,
    taken: u64,
    count: u64,
}

impl Blocks {
    /// Starts `threads` threads that make `table`'s rows in blocks of `block_rows`.
    pub(super) fn start(rows: &Arc<Rows>, table: Table, threads: usize, block_rows: u64) -> Result<Self> {
        let total = match table {
            Table::Users => rows.plan().users,
            Table::Tasks => rows.plan().tasks,
        };
        let count = total.div_ceil(block_rows);
        let mut receivers = Vec::with_capacity(threads);
        for thread in 0..threads {
            let (sender, receiver) = mpsc::channel(WAITING_BLOCKS);
            let rows = Arc::clone(rows);
            // Thread 0 of 2 makes blocks 0, 2, 4, …: turn by turn is the order of the table.
            let work = move || {
                for block in (thread as u64..count).step_by(threads) {
                    let start = block * block_rows;
                    let made = make_block(&rows, table, start, (start + block_rows).min(total));
                    if sender.blocking_send(made).is_err() {
                        return;
                    }
                }
            };
            thread::Builder::new()
                .name(format!("rows of {} {thread}", table.name()))
                .spawn(work)
                .or_failed(|| "cannot start a thread that makes rows")?;
            receivers.push(receiver);
        }
        Ok(Self { receivers, taken: 0, count })
    }

    /// Waits for the next block; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Block>> {
        if self.taken == self.count {
            return Ok(None);
        }
        let turn = usize::try_from(self.taken % self.receivers.len() as u64).expect("it is below a length");
        let block = self.receivers[turn].recv().await;
        self.taken += 1;
        block.map(Some).ok_or_else(|| Error::failed("a thread that makes rows stopped before its last row"))
    }
}

fn make_block(rows: &Rows, table: Table, start: u64, end: u64) -> Block {
    let mut bytes = Vec::new();
    for index in start..end {
        match table {
            Table::Users => write_user(&mut bytes, &rows.user(index)),
            Table::Tasks => write_task(&mut bytes, &rows.task(index)),
        }
    }
    Block { rows: end - start, bytes }
}

#[cfg(test)]
mod tests {
    use sha2::{Digest, Sha256};

    use super::*;
    use crate::seed::dataset::hexadecimal;
    use crate::seed::plan::Plan;

    /// The SHA-256 of 300 users and 2,000 tasks. If it changes, the rows of all data sets changed: see
    /// [`GENERATOR_VERSION`](crate::seed::rows::GENERATOR_VERSION).
    const STREAM: &str = "4d4a362e5211a59a04e07cc5825be27ad1056fd53a2a8f5a1c2935fb247af03c";

    async fn stream_hash(threads: usize, block_rows: u64) -> String {
        let rows = Arc::new(Rows::new(Plan::new(300, 2_000), 0));
        let mut hash = Sha256::new();
        for (table, total) in [(Table::Users, 300), (Table::Tasks, 2_000)] {
            let mut blocks = Blocks::start(&rows, table, threads, block_rows).unwrap();
            let mut count = 0;
            while let Some(block) = blocks.next().await.unwrap() {
                hash.update(&block.bytes);
                count += block.rows;
            }
            assert_eq!(count, total);
        }
        hexadecimal(&hash.finalize())
    }

    #[tokio::test]
    async fn rows_are_the_same_for_any_number_of_threads_and_any_block() {
        for (threads, block_rows) in [(1, 512), (2, 512), (7, 512), (2, 1), (3, 199), (1, 5_000)] {
            assert_eq!(stream_hash(threads, block_rows).await, STREAM, "{threads} threads, blocks of {block_rows}");
        }
    }

    #[tokio::test]
    async fn threads_end_when_nobody_takes_their_rows() {
        let rows = Arc::new(Rows::new(Plan::new(10, 100_000), 0));
        let mut blocks = Blocks::start(&rows, Table::Tasks, 2, 10).unwrap();
        blocks.next().await.unwrap();
        drop(blocks);
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while Arc::strong_count(&rows) > 1 {
            assert!(std::time::Instant::now() < deadline, "a thread goes on");
            thread::yield_now();
        }
    }
}

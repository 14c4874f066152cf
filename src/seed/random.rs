//! The random sequence of one row.
//!
//! What must hold: a row's sequence depends on its [`Key`] and index alone, and each helper draws the same values on
//! every machine, so there is integer arithmetic only.

use std::convert::Infallible;

use rand::rngs::ChaCha8Rng;
use rand::{Rng, SeedableRng, TryRng};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// What tells the sequences of one table from those of another table or another seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Key([u8; 32]);

impl Key {
    /// Makes the key of `table` under the data set's `seed`. `part` tells parts of the table that are made separately.
    pub(super) fn new(seed: u64, table: &str, part: u64) -> Self {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(part.to_le_bytes());
        hash.update(table.as_bytes());
        Self(hash.finalize().into())
    }

    /// Starts the sequence of row `index`.
    pub(super) fn row(&self, index: u64) -> RowRandom {
        let mut generator = ChaCha8Rng::from_seed(self.0);
        generator.set_stream(index);
        RowRandom(generator)
    }
}

/// Random values for one row.
pub(super) struct RowRandom(ChaCha8Rng);

impl RowRandom {
    /// Draws a number below `limit`, which must be positive. Its bias is below `limit` / 2⁶⁴.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        debug_assert!(limit > 0, "there is no number below 0");
        let product = u128::from(self.0.next_u64()) * u128::from(limit);
        u64::try_from(product >> 64).expect("the upper half of a product of two u64 is a u64")
    }

    /// Is true in `percent` of 100 cases.
    pub(super) fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Draws one of `choices`, which must not be empty.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.below(choices.len() as u64);
        choices[usize::try_from(index).expect("an index below a length is a usize")]
    }

    /// Draws one of `choices` with the likelihood of its weight. Their sum must be positive.
    pub(super) fn weighted<T: Copy>(&mut self, choices: &[(T, u64)]) -> T {
        let mut rest = self.below(choices.iter().map(|(_, weight)| weight).sum());
        for (choice, weight) in choices {
            if rest < *weight {
                return *choice;
            }
            rest -= weight;
        }
        unreachable!("a number below the sum of the weights falls into one of them")
    }

    /// Draws a number below `limit` that is the likelier the lower it is: the smallest tenth gets 0.1^(1/`skew`) of all.
    ///
    /// With `skew` 1 all are equally likely. Multiplication alone keeps it equal on every machine, which `powf` is not.
    pub(super) fn skewed_below(&mut self, limit: u64, skew: u64) -> u64 {
        let unit = u128::from(self.0.next_u64());
        let mut power = unit;
        for _ in 1..skew {
            power = (power * unit) >> 64;
        }
        u64::try_from((power * u128::from(limit)) >> 64).expect("the upper half of a product of two u64 is a u64")
    }

    /// Draws a version 4 UUID.
    pub(super) fn uuid(&mut self) -> Uuid {
        let mut bytes = [0; 16];
        self.0.fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

// Lets `fake` draw from the row's sequence.
impl TryRng for RowRandom {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_its_own_repeatable_sequence() {
        let key = Key::new(42, "tasks", 0);
        let draw = |key: &Key, index| key.row(index).next_u64();
        assert_eq!(draw(&key, 7), draw(&key, 7));
        assert_ne!(draw(&key, 7), draw(&key, 8));
        assert_ne!(draw(&key, 7), draw(&Key::new(43, "tasks", 0), 7));
        assert_ne!(draw(&key, 7), draw(&Key::new(42, "users", 0), 7));
        assert_ne!(draw(&key, 7), draw(&Key::new(42, "tasks", 1), 7));
    }

    #[test]
    fn weights_decide_how_often_a_choice_is_drawn() {
        let mut random = Key::new(1, "test", 0).row(0);
        let mut counts = [0_u32; 3];
        for _ in 0..10_000 {
            counts[random.weighted(&[(0, 70), (1, 0), (2, 30)])] += 1;
        }
        assert!((6_700..7_300).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[1], 0);
    }

    #[test]
    fn skew_gives_the_lowest_tenth_its_share() {
        for (skew, expected) in [(1, 0.1_f64), (2, 0.316), (3, 0.464)] {
            let mut random = Key::new(1, "test", 0).row(0);
            let low = (0..20_000).filter(|_| random.skewed_below(1_000, skew) < 100).count();
            let share = f64::from(u32::try_from(low).unwrap()) / 20_000.0;
            assert!((share - expected).abs() < 0.02, "skew {skew}: {share}");
        }
    }
}

//! The best scores of a stream, in memory for the best alone.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use grass_core::parallel::Workers;

use crate::error::Result;
use crate::sink::Sink;

/// A score and its training example. Greater is better: by score, and of equal scores the smaller id.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Entry {
    value: f32,
    id: u64,
}

impl Eq for Entry {}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Ordering {
        // Scores are finite; adding zero makes -0 equal to 0.
        let by_value = (self.value + 0.0).total_cmp(&(other.value + 0.0));
        by_value.then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The `k` best of the scores pushed so far.
#[derive(Debug)]
pub(crate) struct TopK {
    k: usize,
    /// The worst of the kept on top.
    kept: BinaryHeap<Reverse<Entry>>,
}

impl TopK {
    /// Keeps `k` scores, at least one.
    pub(crate) fn new(k: usize) -> Self {
        Self {
            k: k.max(1),
            kept: BinaryHeap::new(),
        }
    }

    pub(crate) fn push(&mut self, value: f32, id: u64) {
        let entry = Reverse(Entry { value, id });
        if self.kept.len() < self.k {
            self.kept.push(entry);
        } else if let Some(mut worst) = self.kept.peek_mut()
            && entry < *worst
        {
            *worst = entry;
        }
    }

    /// The score that a row needs at least to be among the best.
    fn least(&self) -> f32 {
        match self.kept.peek() {
            Some(Reverse(worst)) if self.kept.len() == self.k => worst.value,
            _ => f32::NEG_INFINITY,
        }
    }

    /// Ids and scores, best first.
    pub(crate) fn into_sorted(self) -> impl Iterator<Item = (u64, f32)> {
        let sorted = self.kept.into_sorted_vec().into_iter();
        sorted.map(|Reverse(entry)| (entry.id, entry.value))
    }
}

/// The best rows of every query. Which they are does not depend on the order in which they come.
pub(crate) struct BestScores {
    queries: Vec<Best>,
}

/// The best rows of one query.
struct Best {
    /// The bits of what a score must reach to be among them, or of less: most rows cost one compare with it.
    least: AtomicU32,
    top: Mutex<TopK>,
}

impl BestScores {
    /// Keeps `k` rows of each query, at least one.
    pub(crate) fn new(queries: usize, k: usize) -> Self {
        let queries = (0..queries).map(|_| Best {
            least: AtomicU32::new(f32::NEG_INFINITY.to_bits()),
            top: Mutex::new(TopK::new(k)),
        });
        Self {
            queries: queries.collect(),
        }
    }

    /// Ids and scores, (queries, k) row-major each, best first.
    ///
    /// # Errors
    /// [`crate::Error::Core`] when cancelled.
    pub(crate) fn into_ids_and_values(self, workers: &Workers) -> Result<(Vec<u64>, Vec<f32>)> {
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        for best in self.queries {
            workers.check()?;
            let top = best
                .top
                .into_inner()
                .unwrap_or_else(PoisonError::into_inner);
            for (id, value) in top.into_sorted() {
                ids.push(id);
                values.push(value);
            }
        }
        Ok((ids, values))
    }
}

/// Rows whose scores are compared together.
const COMPARED: usize = 64;

impl Sink for BestScores {
    fn put(&self, _rows: Range<u64>, ids: &[u64], values: &[f32]) -> Result<()> {
        for (best, values) in self.queries.iter().zip(values.chunks_exact(ids.len())) {
            for (ids, values) in ids.chunks(COMPARED).zip(values.chunks(COMPARED)) {
                let least = f32::from_bits(best.least.load(Relaxed));
                // An equal score may win by its id. No branch a score, so that the compiler makes vectors of it.
                if !values
                    .iter()
                    .fold(false, |any, &value| any | (value >= least))
                {
                    continue;
                }
                let mut top = best.top.lock().unwrap_or_else(PoisonError::into_inner);
                for (&value, &id) in values.iter().zip(ids) {
                    top.push(value, id);
                }
                best.least.store(top.least().to_bits(), Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn equals_a_sorted_list(values in proptest::collection::vec(-3i8..4, 1..60), k in 1usize..70) {
            let mut top = TopK::new(k);
            let mut plain: Vec<(f32, u64)> = Vec::new();
            for (index, &value) in values.iter().enumerate() {
                let value = if value == 3 { -0.0 } else { f32::from(value) };
                let id = (index as u64 * 37) % 101;
                top.push(value, id);
                plain.push((value, id));
            }
            plain.sort_by(|left, right| right.0.partial_cmp(&left.0).unwrap().then(left.1.cmp(&right.1)));
            plain.truncate(k);
            let sorted: Vec<(f32, u64)> = top.into_sorted().map(|(id, value)| (value, id)).collect();
            prop_assert_eq!(sorted, plain);
        }
    }
}

//! The best scores of a stream, in memory for the best alone.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

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

    /// Ids and scores, best first.
    pub(crate) fn into_sorted(self) -> impl Iterator<Item = (u64, f32)> {
        let sorted = self.kept.into_sorted_vec().into_iter();
        sorted.map(|Reverse(entry)| (entry.id, entry.value))
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

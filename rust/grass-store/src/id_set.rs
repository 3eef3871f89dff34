//! Which ids a store has, in memory that does not grow while ids follow one another.

use std::collections::BTreeMap;

/// A set of ids as runs of consecutive ones.
#[derive(Debug, Default)]
pub(crate) struct IdSet {
    /// First id of each run, with its last. Runs neither touch nor overlap.
    runs: BTreeMap<u64, u64>,
}

impl IdSet {
    pub(crate) fn contains(&self, id: u64) -> bool {
        let run = self.runs.range(..=id).next_back();
        run.is_some_and(|(_, &last)| id <= last)
    }

    /// Adds an id; false if it was there.
    pub(crate) fn insert(&mut self, id: u64) -> bool {
        if self.contains(id) {
            return false;
        }
        let next = id.checked_add(1).and_then(|next| self.runs.remove(&next));
        let last = next.unwrap_or(id);
        match self.runs.range_mut(..id).next_back() {
            Some((_, end)) if end.checked_add(1) == Some(id) => *end = last,
            _ => {
                self.runs.insert(id, last);
            }
        }
        true
    }
}

/// The first id that is there more than once, of ids in ascending order.
pub(crate) fn repeated(sorted: &[u64]) -> Option<u64> {
    let mut pairs = sorted.windows(2);
    pairs.find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn consecutive_ids_are_one_run_in_any_order() {
        let mut ids = IdSet::default();
        for id in [3, 1, 0, 2, 4, u64::MAX] {
            assert!(ids.insert(id));
        }
        assert_eq!(ids.runs.len(), 2);
        assert!(!ids.insert(u64::MAX));
    }

    proptest! {
        #[test]
        fn agrees_with_a_hash_set(ids in proptest::collection::vec(0u64..60, 0..120)) {
            let (mut runs, mut plain) = (IdSet::default(), HashSet::new());
            for id in ids {
                prop_assert_eq!(runs.contains(id), plain.contains(&id));
                prop_assert_eq!(runs.insert(id), plain.insert(id));
            }
        }
    }
}

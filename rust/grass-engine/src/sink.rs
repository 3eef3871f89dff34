//! Where scores go as they are made.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use crate::chunks::zeros;
use crate::error::Result;

/// Where the scores of some rows go. Called from several threads, in any order of rows, once a range.
pub(crate) trait Sink: Sync {
    /// Ids of the rows, and their scores, (queries, rows) row-major; called only after the checksums of the rows held.
    fn put(&self, rows: Range<u64>, ids: &[u64], values: &[f32]) -> Result<()>;
}

/// All scores, in memory.
pub(crate) struct AllScores {
    rows: usize,
    /// One a row, and (queries, rows) row-major.
    scores: Mutex<(Vec<u64>, Vec<f32>)>,
}

impl AllScores {
    /// Room for the scores of rows 0 to `rows`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    pub(crate) fn new(queries: usize, rows: usize) -> Result<Self> {
        let values = zeros(
            (queries, rows),
            || format!("all scores of {queries} queries and {rows} rows"),
            "keep only the best with top_k, or give fewer queries at once",
        )?;
        let values = values.into_raw_vec_and_offset().0;
        Ok(Self {
            rows,
            scores: Mutex::new((vec![0; rows], values)),
        })
    }

    pub(crate) fn into_ids_and_values(self) -> (Vec<u64>, Vec<f32>) {
        self.scores
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink for AllScores {
    fn put(&self, rows: Range<u64>, ids: &[u64], values: &[f32]) -> Result<()> {
        let (first, end) = (rows.start as usize, rows.end as usize);
        let mut scores = self.scores.lock().unwrap_or_else(PoisonError::into_inner);
        let (all_ids, all_values) = &mut *scores;
        all_ids[first..end].copy_from_slice(ids);
        let all = all_values.chunks_exact_mut(self.rows);
        for (all, values) in all.zip(values.chunks_exact(ids.len())) {
            all[first..end].copy_from_slice(values);
        }
        Ok(())
    }
}

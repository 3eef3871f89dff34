//! Which columns of a store count in scores, and how much.

use std::ops::Range;

use grass_store::StoreReader;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// A store, and what of its rows counts in scores. A plain store converts to all of its columns, each with weight 1 and a
/// Fisher matrix of its own.
#[derive(Debug, Clone)]
pub struct Chosen<'a> {
    pub(crate) store: &'a StoreReader,
    /// One a column.
    weights: Vec<f64>,
    /// Numbers of the columns of each block of the Fisher matrix.
    blocks: Vec<Range<usize>>,
    /// Numbers of the columns that weigh rows.
    row_weights: Vec<usize>,
}

impl<'a> From<&'a StoreReader> for Chosen<'a> {
    fn from(store: &'a StoreReader) -> Self {
        let columns = store.layout().columns().len();
        Self {
            store,
            weights: vec![1.0; columns],
            blocks: (0..columns).map(|column| column..column + 1).collect(),
            row_weights: Vec::new(),
        }
    }
}

impl<'a> Chosen<'a> {
    /// Columns are named by their numbers.
    ///
    /// - `weights`, one a column: scores are sums over columns of weight times the column's part; columns of weight 0 are
    ///   left out, of the lengths of [`crate::Method::GradCos`] too, where queries are multiplied by the weights and rows are not.
    /// - `blocks`: neighbouring columns of one weight that share a block of the Fisher matrix, for [`crate::Method::Influence`],
    ///   to which columns outside all blocks add nothing.
    /// - `row_weights`: columns of width 1, by whose mean the scores of a row are multiplied; none for 1.
    ///
    /// # Errors
    /// [`Error::Columns`] where these are not such.
    pub fn new(
        store: &'a StoreReader,
        weights: Vec<f64>,
        blocks: Vec<Range<usize>>,
        row_weights: Vec<usize>,
    ) -> Result<Self> {
        let layout = store.layout();
        let columns = layout.columns().len();
        if weights.len() != columns || !weights.iter().all(|weight| weight.is_finite()) {
            let expected = format!("{columns} finite weights, one a column");
            let got = format!("{weights:?}");
            return Err(Error::Columns { expected, got });
        }
        let mut end = 0;
        for block in &blocks {
            let fits = end <= block.start && block.start < block.end && block.end <= columns;
            let alike = |weights: &[f64]| weights.iter().all(|weight| *weight == weights[0]);
            if !fits || !alike(&weights[block.clone()]) {
                let expected = format!("blocks of some of {columns} columns of one weight, apart");
                let got = format!("{blocks:?}");
                return Err(Error::Columns { expected, got });
            }
            end = block.end;
        }
        let single = |&column: &usize| column < columns && layout.coordinates(column).len() == 1;
        if !row_weights.iter().all(single) {
            let expected = "columns of width 1 as weights of rows".to_owned();
            let got = format!("{row_weights:?}");
            return Err(Error::Columns { expected, got });
        }
        Ok(Self {
            store,
            weights,
            blocks,
            row_weights,
        })
    }

    /// The blocks of the Fisher matrix that count, and their weights.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Range<usize>, f64)> {
        let blocks = self.blocks.iter();
        let blocks = blocks.map(|block| (block.clone(), self.weights[block.start]));
        blocks.filter(|(_, weight)| *weight != 0.0)
    }

    /// The coordinates of neighbouring columns.
    pub(crate) fn coordinates(&self, columns: &Range<usize>) -> Range<usize> {
        let layout = self.store.layout();
        layout.coordinates(columns.start).start..layout.coordinates(columns.end - 1).end
    }

    /// The coordinates of columns that are not left out, in stretches that are apart.
    pub(crate) fn counted(&self) -> Vec<Range<usize>> {
        let mut counted: Vec<Range<usize>> = Vec::new();
        for (column, _) in (0..)
            .zip(&self.weights)
            .filter(|(_, weight)| **weight != 0.0)
        {
            let coordinates = self.store.layout().coordinates(column);
            match counted.last_mut() {
                Some(last) if last.end == coordinates.start => last.end = coordinates.end,
                _ => counted.push(coordinates),
            }
        }
        counted
    }

    /// The coordinates that weigh rows.
    pub(crate) fn row_weights(&self) -> Vec<usize> {
        let layout = self.store.layout();
        let columns = self.row_weights.iter();
        columns
            .map(|&column| layout.coordinates(column).start)
            .collect()
    }

    /// Queries times the weights, (n, width) row-major; `None` where that changes nothing.
    pub(crate) fn weighted(&self, queries: &[f32]) -> Option<Vec<f32>> {
        let layout = self.store.layout();
        if self.weights.iter().all(|weight| *weight == 1.0) {
            return None;
        }
        let mut weighted = Vec::with_capacity(queries.len());
        for query in queries.chunks_exact(layout.width()) {
            for (column, weight) in self.weights.iter().enumerate() {
                let part = &query[layout.coordinates(column)];
                weighted.extend(part.iter().map(|value| (f64::from(*value) * weight) as f32));
            }
        }
        Some(weighted)
    }

    /// Adds to a digest what tells this choice from others.
    pub(crate) fn digest(&self, digest: &mut Sha256) {
        for weight in &self.weights {
            digest.update(weight.to_le_bytes());
        }
        let blocks = self.blocks.iter();
        let blocks: Vec<usize> = blocks.flat_map(|block| [block.start, block.end]).collect();
        for numbers in [&blocks, &self.row_weights] {
            digest.update((numbers.len() as u64).to_le_bytes());
            for &number in numbers {
                digest.update((number as u64).to_le_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use grass_core::parallel::Workers;
    use grass_store::{Column, Dtype, StoreSpec, StoreWriter, WriterOptions};

    use super::*;

    fn with_store(check: impl FnOnce(&StoreReader)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let columns = [("a", 2), ("b", 3), ("c", 1), ("d", 1)];
        let spec = StoreSpec {
            dtype: Dtype::Float32,
            columns: columns
                .map(|(name, width)| Column::new(name, width, "{}").unwrap())
                .to_vec(),
            fingerprints: BTreeMap::new(),
        };
        let mut writer = StoreWriter::create(&path, spec, WriterOptions::default()).unwrap();
        writer.append(&[1.0; 7], &[0], &Workers::serial()).unwrap();
        writer.finish(&[]).unwrap();
        check(&StoreReader::open(path).unwrap());
    }

    #[test]
    fn columns_that_count_are_stretches_and_blocks_that_do_not_are_none() {
        with_store(|store| {
            let blocks = vec![0..1, 1..2, 2..3];
            let chosen = Chosen::new(store, vec![0.5, 0.0, 2.0, 1.0], blocks, vec![3]).unwrap();
            assert_eq!(chosen.counted(), [0..2, 5..7]);
            let blocks: Vec<_> = chosen.blocks().collect();
            assert_eq!(blocks, [(0..1, 0.5), (2..3, 2.0)]);
            assert_eq!(chosen.coordinates(&(1..3)), 2..6);
            assert_eq!(chosen.row_weights(), [6]);
            let weighted = chosen.weighted(&[1.0; 7]).unwrap();
            assert_eq!(weighted, [0.5, 0.5, 0.0, 0.0, 0.0, 2.0, 1.0]);
            assert!(Chosen::from(store).weighted(&[1.0; 7]).is_none());
        });
    }

    #[test]
    fn what_fits_no_store_is_refused() {
        with_store(|store| {
            let ones = || vec![1.0; 4];
            let new = |weights, blocks, rows| Chosen::new(store, weights, blocks, rows).err();
            for error in [
                new(vec![1.0; 3], vec![], vec![]),
                new(vec![1.0, 1.0, 1.0, f64::NAN], vec![], vec![]),
                new(ones(), std::iter::once(3..5).collect(), vec![]),
                new(ones(), vec![1..1, 2..3], vec![]),
                new(ones(), vec![0..2, 1..3], vec![]),
                new(vec![1.0, 2.0, 1.0, 1.0], vec![0..2, 2..3], vec![]),
                new(ones(), vec![], vec![4]),
                new(ones(), vec![], vec![1]),
            ] {
                assert!(matches!(error, Some(Error::Columns { .. })), "{error:?}");
            }
        });
    }

    #[test]
    fn every_choice_has_a_digest_of_its_own() {
        with_store(|store| {
            let ones = || vec![1.0; 4];
            let chosen = [
                Chosen::new(store, ones(), vec![0..1, 1..2], vec![]),
                Chosen::new(store, ones(), std::iter::once(0..2).collect(), vec![]),
                Chosen::new(store, ones(), vec![0..1, 1..2], vec![2]),
                Chosen::new(store, ones(), vec![0..1, 1..2], vec![2, 3]),
                Chosen::new(store, vec![1.0, 1.0, 1.0, 0.5], vec![0..1, 1..2], vec![]),
                Ok(Chosen::from(store)),
            ];
            let digests: std::collections::BTreeSet<[u8; 32]> = chosen
                .iter()
                .map(|chosen| {
                    let mut digest = Sha256::new();
                    chosen.as_ref().unwrap().digest(&mut digest);
                    digest.finalize().into()
                })
                .collect();
            assert_eq!(digests.len(), chosen.len());
        });
    }
}

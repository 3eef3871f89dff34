//! The inverse of the damped empirical Fisher matrix, applied to queries, block by block.
//!
//! For each column (a block of the plan) with rows g_1 .. g_n: F = (1/n) sum g g^T,
//! lambda = damping * tr(F) / n, and a query q becomes (F + lambda I)^-1 q. Everything up to the
//! scores is in double precision, as F + lambda I has condition numbers up to n / damping, which
//! single precision does not solve to the 1e-4 that the tests hold.

use std::ops::Range;

use grass_core::parallel::Workers;
use grass_store::StoreReader;
use ndarray::{Array2, Axis};

use crate::cholesky::{Cholesky, SymmetricTiles};
use crate::error::{Error, Result};
use crate::{dual, primal};

/// Memory for Fisher matrices and the rows that go into them, unless the caller says otherwise.
pub const DEFAULT_MEMORY: usize = 512 << 20;

/// Queries solved by one task.
const QUERIES_A_TASK: usize = 16;

/// One column of the store, as a block of the Fisher matrix.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    pub(crate) name: String,
    pub(crate) coordinates: Range<usize>,
}

/// What all blocks of one call share.
pub(crate) struct Task<'a> {
    pub(crate) store: &'a StoreReader,
    /// How many rows the store has.
    pub(crate) rows: usize,
    pub(crate) damping: f64,
    pub(crate) memory: usize,
    pub(crate) workers: &'a Workers,
}

/// Replaces queries, (n, width of the store), by (F + lambda I)^-1 times them.
///
/// The store is read as often as its Fisher matrices fill `memory` bytes, a block at least at a
/// time. A block with more coordinates than the store has rows is solved through the rows' inner
/// products instead, which is as exact and takes memory by rows.
///
/// # Errors
/// [`Error::Singular`], [`Error::NonFiniteRows`], [`Error::Memory`], [`Error::Store`],
/// [`Error::Core`] when cancelled.
///
/// # Panics
/// If the queries have another width than the store.
pub fn precondition(
    store: &StoreReader,
    queries: &mut Array2<f64>,
    damping: f64,
    memory: usize,
    workers: &Workers,
) -> Result<()> {
    let layout = store.layout();
    assert_eq!(
        queries.ncols(),
        layout.width(),
        "queries have the store's width"
    );
    let task = Task {
        store,
        rows: store.rows() as usize,
        damping,
        memory,
        workers,
    };
    let columns = layout.columns().iter().enumerate();
    let blocks = columns.map(|(index, column)| Block {
        name: column.name.clone(),
        coordinates: layout.coordinates(index),
    });
    let (wide, narrow): (Vec<Block>, Vec<Block>) =
        blocks.partition(|block| block.coordinates.len() > task.rows);
    for group in groups(narrow, memory, |block| {
        primal::bytes(block.coordinates.len())
    }) {
        primal::precondition(&task, &group, queries)?;
    }
    for group in groups(wide, memory, |block| {
        dual::bytes(task.rows, block.coordinates.len())
    }) {
        dual::precondition(&task, &group, queries)?;
    }
    Ok(())
}

/// Cuts blocks into groups that fit the memory, each of at least one block.
fn groups(blocks: Vec<Block>, memory: usize, bytes: impl Fn(&Block) -> usize) -> Vec<Vec<Block>> {
    let mut groups: Vec<Vec<Block>> = Vec::new();
    let mut left = 0;
    for block in blocks {
        let needed = bytes(&block);
        match groups.last_mut() {
            Some(group) if needed <= left => {
                left -= needed;
                group.push(block);
            }
            _ => {
                left = memory.saturating_sub(needed);
                groups.push(vec![block]);
            }
        }
    }
    groups
}

impl Task<'_> {
    /// The factor of `gram` + n lambda I, for gram = sum g g^T or the rows' inner products, which
    /// have one trace, and n lambda; `None` where all rows are zero in this block.
    pub(crate) fn factor(
        &self,
        gram: SymmetricTiles,
        block: &Block,
    ) -> Result<Option<(Cholesky, f64)>> {
        let trace = gram.trace();
        if !trace.is_finite() {
            return Err(Error::NonFiniteRows {
                column: block.name.clone(),
            });
        }
        if trace == 0.0 {
            return Ok(None);
        }
        let ridge = self.damping * trace / self.rows as f64;
        if !ridge.is_finite() {
            let got = format!("{:e}, too large for column {:?}", self.damping, block.name);
            return Err(Error::Damping { got });
        }
        let factor = gram.factor(ridge, self.workers)?;
        match factor {
            Some(factor) => Ok(Some((factor, ridge))),
            None => Err(self.singular(block)),
        }
    }

    pub(crate) fn singular(&self, block: &Block) -> Error {
        Error::Singular {
            column: block.name.clone(),
            damping: self.damping,
        }
    }
}

/// Hands every group of a few queries' values to `work`, on all threads.
pub(crate) fn for_query_groups(
    queries: &mut Array2<f64>,
    workers: &Workers,
    work: impl Fn(usize, ndarray::ArrayViewMut2<'_, f64>) -> Result<()> + Sync,
) -> Result<()> {
    let groups = queries.axis_chunks_iter_mut(Axis(0), QUERIES_A_TASK);
    workers.for_each(groups.enumerate(), |(index, group)| {
        work(index * QUERIES_A_TASK, group)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_fill_the_memory_and_keep_the_order() {
        let block = |width| Block {
            name: String::new(),
            coordinates: 0..width,
        };
        let blocks = [3, 4, 3, 20, 1, 9].map(block).to_vec();
        let groups = groups(blocks, 10, |block| block.coordinates.len());
        let widths: Vec<Vec<usize>> = groups
            .iter()
            .map(|group| group.iter().map(|block| block.coordinates.len()).collect())
            .collect();
        assert_eq!(widths, [vec![3, 4, 3], vec![20], vec![1, 9]]);
    }
}

//! Blocks with no more coordinates than rows: F itself is gathered and decomposed.

use ndarray::{Array2, ArrayView2, Axis, s};

use crate::error::{Error, Result};
use crate::gram::{gather, packed_bytes};
use crate::inverse::batches;
use crate::preconditioner::{Block, QUERIES_A_TASK, Task, by_damping};
use crate::tiles::SymmetricTiles;

/// Memory that a block takes.
pub(crate) fn bytes(block: &Block) -> usize {
    let width = block.coordinates.len();
    SymmetricTiles::bytes(width).saturating_add(packed_bytes(width))
}

/// sum g g^T of every block: saved ones, and the others in one pass over the store.
pub(crate) fn grams(task: &Task<'_>, blocks: &[Block]) -> Result<Vec<SymmetricTiles>> {
    let mut grams = Vec::new();
    for block in blocks {
        let size = block.coordinates.len();
        grams.push(task.saved.load(block, size, task.workers)?);
    }
    let missing = grams.iter_mut().zip(blocks);
    let (mut slots, missing): (Vec<_>, Vec<&Block>) =
        missing.filter(|(gram, _)| gram.is_none()).unzip();
    let gathered = gather(task, &missing)?;
    for ((slot, block), gram) in slots.iter_mut().zip(missing).zip(gathered) {
        task.saved.save(block, &gram, task.workers)?;
        **slot = Some(gram);
    }
    Ok(grams.into_iter().flatten().collect())
}

/// Applies the inverses to the queries, for some blocks in one pass over the store.
pub(crate) fn precondition(
    task: &Task<'_>,
    blocks: &[Block],
    queries: ArrayView2<'_, f32>,
    out: &mut Array2<f32>,
) -> Result<()> {
    let workers = task.workers;
    let scale = task.rows as f64;
    for (block, gram) in blocks.iter().zip(grams(task, blocks)?) {
        // Where all rows are zero, whatever the query has, its score is zero: so is the result.
        let Some(damped) = task.decompose(gram, block)? else {
            continue;
        };
        let queries = queries.slice(s![.., block.coordinates.clone()]);
        let mut out = by_damping(out, task.dampings.len(), block.coordinates.clone());
        for batch in batches(task.dampings.len()) {
            let inverses = damped.inverses(batch.clone(), workers)?;
            let mut out = out.slice_mut(s![batch, .., ..]);
            let tasks = out.axis_chunks_iter_mut(Axis(1), QUERIES_A_TASK);
            let tasks = tasks.zip(queries.axis_chunks_iter(Axis(0), QUERIES_A_TASK));
            workers.for_each(tasks, |(mut out, queries)| {
                inverses.solve(queries.mapv(f64::from), workers, |index, solved| {
                    // F + lambda I = (gram + n lambda I) / n.
                    let mut out = out.index_axis_mut(Axis(0), index);
                    out.zip_mut_with(&solved, |out, value| *out = (scale * value) as f32);
                })?;
                Ok::<(), Error>(())
            })?;
        }
    }
    Ok(())
}

//! Blocks with no more coordinates than rows: F itself is gathered and decomposed.

use ndarray::{Array2, ArrayView2, ArrayViewMut3, Axis, s};

use crate::chunks::zeros;
use crate::error::{Error, Result};
use crate::gram::{gather, gather_double, packed_bytes};
use crate::inverse::{Inverses, batches};
use crate::preconditioner::{Block, DoubleQueries, Precision, QUERIES_A_TASK, Task, by_damping};
use crate::tiles::SymmetricTiles;

/// Memory that a block takes.
pub(crate) fn bytes(block: &Block) -> usize {
    let width = block.coordinates.len();
    SymmetricTiles::bytes(width).saturating_add(packed_bytes(width))
}

/// sum g g^T of every block: saved ones, and the others in one pass over the store.
pub(crate) fn grams(
    task: &Task<'_>,
    blocks: &[&Block],
    precision: Precision,
) -> Result<Vec<SymmetricTiles>> {
    let mut grams = Vec::new();
    for block in blocks {
        let size = block.coordinates.len();
        grams.push(task.saved.load(block, precision, size, task.workers)?);
    }
    let missing = grams.iter_mut().zip(blocks);
    let (mut slots, missing): (Vec<_>, Vec<&Block>) =
        missing.filter(|(gram, _)| gram.is_none()).unzip();
    let gathered = match precision {
        Precision::Single => gather(task, &missing)?,
        Precision::Double => gather_double(task, &missing)?,
    };
    for ((slot, block), gram) in slots.iter_mut().zip(missing).zip(gathered) {
        task.saved.save(block, precision, &gram, task.workers)?;
        **slot = Some(gram);
    }
    Ok(grams.into_iter().flatten().collect())
}

/// Applies the inverses to the queries, for some blocks in one pass over the store: into `out`, (dampings * queries,
/// width of the store), or into `double`, after one more pass if that was not saved, where single precision does not suffice.
pub(crate) fn precondition(
    task: &Task<'_>,
    blocks: &[Block],
    queries: ArrayView2<'_, f32>,
    out: &mut Array2<f32>,
    double: &mut Vec<DoubleQueries>,
) -> Result<()> {
    let mut left = Vec::new();
    let all: Vec<&Block> = blocks.iter().collect();
    for (block, gram) in blocks.iter().zip(grams(task, &all, Precision::Single)?) {
        // Where all rows are zero, whatever the query has, its score is zero: so is the result.
        let Some(damped) = task.decompose(gram, block, Precision::Single)? else {
            continue;
        };
        let queries = queries.slice(s![.., block.coordinates.clone()]);
        let mut missing = Vec::new();
        for batch in batches(task.dampings.len()) {
            let (inverses, singular) = damped.inverses(&batch, task.workers)?;
            missing.extend(singular);
            let out = by_damping(out, task.dampings.len(), block.coordinates.clone());
            // F + lambda I = (gram + n lambda I) / n.
            let scale = task.rows as f64 * block.weight;
            let convert = |value| (scale * value) as f32;
            solve(task, &inverses, queries, out, 0, convert)?;
        }
        if !missing.is_empty() {
            left.push((block, missing));
        }
    }
    let blocks: Vec<&Block> = left.iter().map(|(block, _)| *block).collect();
    for ((block, numbers), gram) in left.iter().zip(grams(task, &blocks, Precision::Double)?) {
        let Some(damped) = task.decompose(gram, block, Precision::Double)? else {
            continue;
        };
        let queries = queries.slice(s![.., block.coordinates.clone()]);
        let scale = task.rows as f64 * block.weight;
        for &number in numbers {
            let (inverses, singular) = damped.inverses(&[number], task.workers)?;
            task.refuse(block, &singular)?;
            let mut solved = zeros(
                queries.dim(),
                || format!("the preconditioned queries of column {:?}", block.name),
                "give fewer queries or dampings at once",
            )?;
            let (count, width) = queries.dim();
            let out = by_damping(&mut solved, 1, 0..width);
            solve(task, &inverses, queries, out, number, |value| scale * value)?;
            double.push(DoubleQueries {
                coordinates: block.coordinates.clone(),
                first: number * count,
                values: solved.into_raw_vec_and_offset().0,
            });
        }
    }
    Ok(())
}

/// Writes what the inverses make of the queries, (n, coordinates), into `out`, (dampings from `first` on, n, coordinates).
fn solve<T: Send>(
    task: &Task<'_>,
    inverses: &Inverses<'_>,
    queries: ArrayView2<'_, f32>,
    mut out: ArrayViewMut3<'_, T>,
    first: usize,
    convert: impl Fn(f64) -> T + Sync,
) -> Result<()> {
    let tasks = out.axis_chunks_iter_mut(Axis(1), QUERIES_A_TASK);
    let tasks = tasks.zip(queries.axis_chunks_iter(Axis(0), QUERIES_A_TASK));
    task.workers.for_each(tasks, |(mut out, queries)| {
        inverses.solve(queries.mapv(f64::from), task.workers, |number, solved| {
            let mut out = out.index_axis_mut(Axis(0), number - first);
            out.zip_mut_with(&solved, |out, &value| *out = convert(value));
        })?;
        Ok::<(), Error>(())
    })
}

//! Blocks with more coordinates than rows: F has at most n non-zero eigenvalues, so the inverse is
//! applied through the n inner products of the rows. With the rows G, (n, width),
//!
//! (F + lambda I)^-1 q = (q - G^T (n lambda I + G G^T)^-1 G q) / lambda.

use std::ops::Range;

use ndarray::{Array2, CowArray, Ix2, s};

use crate::cholesky::SymmetricTiles;
use crate::chunks::{RowWindow, zeros};
use crate::error::Result;
use crate::gemm::{DEPTH, add_long_product};
use crate::preconditioner::{Block, Task, for_query_groups};

/// Memory that a block takes when all of its coordinates are held at once.
pub(crate) fn bytes(rows: usize, width: usize) -> usize {
    rows.saturating_mul(width).saturating_mul(size_of::<f64>())
}

/// Applies the inverse to the queries, for some blocks that are held at once, or for one that is
/// read in panels of coordinates, twice.
pub(crate) fn precondition(
    task: &Task<'_>,
    blocks: &[Block],
    queries: &mut Array2<f64>,
) -> Result<()> {
    if let [block] = blocks
        && bytes(task.rows, block.coordinates.len()) > task.memory
    {
        let fitting = task.memory / (task.rows * size_of::<f64>());
        // Whole sums at a time, so that their bits do not depend on the memory.
        let width = (fitting / DEPTH).max(1) * DEPTH;
        let starts = block.coordinates.clone().step_by(width);
        let panels: Vec<Range<usize>> = starts
            .map(|start| start..block.coordinates.end.min(start + width))
            .collect();
        return one(task, block, queries, &panels, |panel| {
            Ok(read(task, std::slice::from_ref(panel))?
                .swap_remove(0)
                .into())
        });
    }
    let coordinates: Vec<Range<usize>> = blocks
        .iter()
        .map(|block| block.coordinates.clone())
        .collect();
    let rows = read(task, &coordinates)?;
    for (block, rows) in blocks.iter().zip(&rows) {
        let whole = std::slice::from_ref(&block.coordinates);
        one(task, block, queries, whole, |_| Ok(rows.into()))?;
    }
    Ok(())
}

/// Some coordinates of all rows, in one pass over the store.
fn read(task: &Task<'_>, coordinates: &[Range<usize>]) -> Result<Vec<Array2<f64>>> {
    let mut held = Vec::new();
    for coordinates in coordinates {
        let shape = (task.rows, coordinates.len());
        held.push(zeros(
            shape,
            || format!("a block of {} rows by {} coordinates", shape.0, shape.1),
            "compress this column to fewer dimensions",
        )?);
    }
    let mut window = RowWindow::new(task.store);
    for step in RowWindow::steps(task.store, 0..task.rows as u64, 1) {
        window.cover(step.clone(), task.workers)?;
        let part = step.start as usize..step.end as usize;
        let targets = coordinates
            .iter()
            .zip(&mut held)
            .map(|(coordinates, held)| (coordinates.clone(), held.slice_mut(s![part.clone(), ..])));
        window.decode(step.start, targets.collect(), task.workers)?;
    }
    Ok(held)
}

/// Applies the inverse for one block, whose rows `panel` gives a range of coordinates at a time.
fn one<'a>(
    task: &Task<'_>,
    block: &Block,
    queries: &mut Array2<f64>,
    panels: &[Range<usize>],
    panel: impl Fn(&Range<usize>) -> Result<CowArray<'a, f64, Ix2>>,
) -> Result<()> {
    let mut gram = SymmetricTiles::zeros(task.rows, &block.name, task.workers)?;
    // G q for every query, one a row.
    let mut products = Array2::zeros((queries.nrows(), task.rows));
    for coordinates in panels {
        let rows = panel(coordinates)?;
        let tasks = gram.gram_tasks(rows.view());
        task.workers
            .for_each(tasks, |tile| tile.run(task.workers))?;
        for_query_groups(&mut products, task.workers, |first, group| {
            let queries = queries.slice(s![first..first + group.nrows(), coordinates.clone()]);
            add_long_product(group, 1.0, queries, rows.t(), task.workers)
        })?;
    }
    let Some((factor, ridge)) = task.factor(gram, block)? else {
        queries
            .slice_mut(s![.., block.coordinates.clone()])
            .fill(0.0);
        return Ok(());
    };
    // The ridge is all that F has in most directions here.
    if task.damping <= task.rows as f64 * f64::EPSILON {
        return Err(task.singular(block));
    }
    for_query_groups(&mut products, task.workers, |_, group| {
        factor.solve(group, task.workers)
    })?;
    let inverse_lambda = task.rows as f64 / ridge;
    for coordinates in panels {
        let rows = panel(coordinates)?;
        for_query_groups(queries, task.workers, |first, mut group| {
            let products = products.slice(s![first..first + group.nrows(), ..]);
            let mut part = group.slice_mut(s![.., coordinates.clone()]);
            add_long_product(part.view_mut(), -1.0, products, rows.view(), task.workers)?;
            part *= inverse_lambda;
            Ok(())
        })?;
    }
    Ok(())
}

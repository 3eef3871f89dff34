//! Blocks with no more coordinates than rows: F itself is gathered and factored.

use ndarray::{Array2, s};

use crate::cholesky::SymmetricTiles;
use crate::chunks::RowWindow;
use crate::error::Result;
use crate::preconditioner::{Block, Task, for_query_groups};

/// Rows whose outer products are summed at once, counted from the store's first row.
const ROWS: usize = 256;

/// Memory that a block of this width takes.
pub(crate) fn bytes(width: usize) -> usize {
    SymmetricTiles::bytes(width).saturating_add(ROWS * width * size_of::<f64>())
}

/// Applies the inverse to the queries, for some blocks in one pass over the store.
pub(crate) fn precondition(
    task: &Task<'_>,
    blocks: &[Block],
    queries: &mut Array2<f64>,
) -> Result<()> {
    for (block, gram) in blocks.iter().zip(gather(task, blocks)?) {
        let columns = block.coordinates.clone();
        let scale = task.rows as f64;
        match task.factor(gram, block)? {
            // F + lambda I = (gram + n lambda I) / n.
            Some((factor, _)) => for_query_groups(queries, task.workers, |_, mut group| {
                let mut part = group.slice_mut(s![.., columns.clone()]);
                factor.solve(part.view_mut(), task.workers)?;
                part *= scale;
                Ok(())
            })?,
            // All rows are zero here, so whatever the query has, its score is zero.
            None => queries.slice_mut(s![.., columns]).fill(0.0),
        }
    }
    Ok(())
}

/// sum g g^T of every block.
fn gather(task: &Task<'_>, blocks: &[Block]) -> Result<Vec<SymmetricTiles>> {
    let widths = || blocks.iter().map(|block| block.coordinates.len());
    let mut grams = Vec::new();
    for block in blocks {
        let width = block.coordinates.len();
        grams.push(SymmetricTiles::zeros(width, &block.name, task.workers)?);
    }
    let mut buffers: Vec<Array2<f64>> =
        widths().map(|width| Array2::zeros((ROWS, width))).collect();
    let mut window = RowWindow::new(task.store);
    let rows = task.rows as u64;
    for start in (0..rows).step_by(ROWS) {
        let end = rows.min(start + ROWS as u64);
        for step in RowWindow::steps(task.store, start..end, 1) {
            window.cover(step.clone(), task.workers)?;
            let part = (step.start - start) as usize..(step.end - start) as usize;
            let targets = blocks.iter().zip(&mut buffers).map(|(block, buffer)| {
                (
                    block.coordinates.clone(),
                    buffer.slice_mut(s![part.clone(), ..]),
                )
            });
            window.decode(step.start, targets.collect(), task.workers)?;
        }
        let filled = (end - start) as usize;
        let filled_rows = buffers.iter().map(|buffer| buffer.slice(s![..filled, ..]));
        let tasks = grams.iter_mut().zip(filled_rows);
        let tasks = tasks.flat_map(|(gram, rows)| gram.gram_tasks(rows.reversed_axes()));
        task.workers
            .for_each(tasks, |tile| tile.run(task.workers))?;
    }
    Ok(grams)
}

//! Blocks with more coordinates than rows, through the n inner products of the rows.
//!
//! (F + lambda I)^-1 q of such a block has a part outside the span of the rows, divided by lambda alone: with little
//! damping by far the most of it. No score sees it, yet rounded to single precision it would cost every score up to
//! 2^-24 / damping of itself. So this vector is never made. With the rows G, (n, width), and F = G^T G / n, the block's
//! scores of all stored rows are
//!
//! G (F + lambda I)^-1 q = n (G G^T + n lambda I)^-1 G q,
//!
//! n numbers a query, fewer than it has coordinates here, which [`crate::score`] adds to the products of the other blocks.
//!
//! **Error.** All of it is in double precision. The condition number of G G^T + n lambda I is at most 1 + n / damping
//! whatever the rows are: repeated ones and zeros too. So the list of a query's scores is off by a small multiple of
//! 2^-53 n / damping of its length and, from rounding G q, by 2^-53 |q| max|g| / lambda for each of its numbers: for ten
//! thousand rows and a damping of 1e-3 this is still below the rounding of the scores to single precision. Where the
//! matrix is nearer to a singular one than [`crate::precondition`] tells, it is refused.

use std::ops::Range;

use ndarray::{Array2, ArrayView2, Axis, CowArray, Ix2, s};

use crate::chunks::{RowWindow, zeros};
use crate::error::{Error, Result};
use crate::gemm::{DEPTH, add_long_product};
use crate::inverse::batches;
use crate::preconditioner::{Block, Precision, QUERIES_A_TASK, Task, by_damping};
use crate::tiles::SymmetricTiles;

/// Coordinates that are worked on at once: whole sums, so that bits do not depend on the memory.
const PANEL: usize = 16 * DEPTH;

/// Memory for the products of queries with all rows.
const PRODUCT_BYTES: usize = 64 << 20;

/// Memory that a block takes when all of its coordinates are held at once.
pub(crate) fn bytes(rows: usize, block: &Block) -> usize {
    let held = held_bytes(rows, block);
    held.saturating_add(SymmetricTiles::bytes(rows))
}

fn held_bytes(rows: usize, block: &Block) -> usize {
    let numbers = rows.saturating_mul(block.coordinates.len());
    numbers.saturating_mul(size_of::<f64>())
}

/// The rows of a block, a range of coordinates at a time.
pub(crate) struct BlockRows<'a> {
    task: &'a Task<'a>,
    coordinates: Range<usize>,
    /// All of them, where there is memory for that.
    held: Option<Array2<f64>>,
    /// Coordinates of a panel.
    width: usize,
}

impl<'a> BlockRows<'a> {
    /// The rows of some blocks, held for all or for none.
    pub(crate) fn new(task: &'a Task<'a>, blocks: &[Block]) -> Result<Vec<Self>> {
        let needed: usize = blocks
            .iter()
            .map(|block| held_bytes(task.rows, block))
            .sum();
        let ranges: Vec<Range<usize>> = blocks
            .iter()
            .map(|block| block.coordinates.clone())
            .collect();
        let fitting = task.memory / (task.rows * size_of::<f64>()) / DEPTH * DEPTH;
        let held: Vec<Option<Array2<f64>>> = match needed <= task.memory {
            true => read(task, &ranges)?.into_iter().map(Some).collect(),
            false => ranges.iter().map(|_| None).collect(),
        };
        let rows = ranges.into_iter().zip(held);
        Ok(rows
            .map(|(coordinates, held)| Self {
                task,
                coordinates,
                width: match held {
                    Some(_) => PANEL,
                    None => fitting.clamp(DEPTH, PANEL),
                },
                held,
            })
            .collect())
    }

    /// Ranges of coordinates, counted in the block.
    fn panels(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (end, width) = (self.coordinates.len(), self.width);
        let starts = (0..end).step_by(width);
        starts.map(move |start| start..end.min(start + width))
    }

    /// All rows' coordinates of a panel.
    fn panel(&self, panel: Range<usize>) -> Result<CowArray<'_, f64, Ix2>> {
        if let Some(held) = &self.held {
            return Ok(held.slice(s![.., panel]).into());
        }
        let first = self.coordinates.start;
        let range = first + panel.start..first + panel.end;
        let mut read = read(self.task, &[range])?;
        Ok(read.swap_remove(0).into())
    }

    /// The inner products of all rows: saved ones, or gathered and saved.
    pub(crate) fn gram(&self, block: &Block) -> Result<SymmetricTiles> {
        let Task {
            rows,
            saved,
            workers,
            ..
        } = self.task;
        if let Some(gram) = saved.load(block, Precision::Double, *rows, workers)? {
            return Ok(gram);
        }
        let mut gram = SymmetricTiles::zeros(*rows, &block.name, workers)?;
        for panel in self.panels() {
            let rows = self.panel(panel)?;
            let tasks = gram.gram_tasks(rows.view());
            workers.for_each(tasks, |tile| tile.run(workers))?;
        }
        saved.save(block, Precision::Double, &gram, workers)?;
        Ok(gram)
    }
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
    let row_bytes = task.store.layout().row_bytes() as u64;
    let progress = task.workers.progress();
    progress.add_total(task.rows as u64 * row_bytes);
    let mut window = RowWindow::new(task.store, coordinates, &task.checked);
    for step in window.steps(0..task.rows as u64) {
        window.cover(step.clone(), task.workers)?;
        let part = step.start as usize..step.end as usize;
        let targets = coordinates
            .iter()
            .zip(&mut held)
            .map(|(coordinates, held)| (coordinates.clone(), held.slice_mut(s![part.clone(), ..])));
        window.decode(step.start, targets.collect(), task.workers)?;
        progress.add_done((step.end - step.start) * row_bytes);
    }
    Ok(held)
}

/// Refuses dampings with which F + lambda I is singular here: lambda is all that it has in most directions.
pub(crate) fn check_dampings(task: &Task<'_>, block: &Block) -> Result<()> {
    let smallest = task.rows as f64 * f64::EPSILON;
    let mut dampings = task.dampings.iter();
    let singular = dampings.position(|damping| *damping <= smallest);
    task.refuse(block, singular.as_slice())
}

/// Adds the scores of all stored rows, (dampings * queries, rows), for some blocks that are held at once, or for one
/// that is read in panels of coordinates.
pub(crate) fn add_scores(
    task: &Task<'_>,
    blocks: &[Block],
    queries: ArrayView2<'_, f32>,
    scores: &mut Array2<f64>,
) -> Result<()> {
    for (block, rows) in blocks.iter().zip(BlockRows::new(task, blocks)?) {
        add_block(task, block, &rows, queries, scores)?;
    }
    Ok(())
}

/// Writes (F + lambda I)^-1 q = (n q - G^T s) / (n lambda) times the block's weight, where s are the scores of all stored
/// rows, for such blocks and the first damping, into `out`, (queries, width of the store).
pub(crate) fn precondition(
    task: &Task<'_>,
    blocks: &[Block],
    queries: ArrayView2<'_, f32>,
    out: &mut Array2<f32>,
) -> Result<()> {
    for (block, rows) in blocks.iter().zip(BlockRows::new(task, blocks)?) {
        let mut scores = task.scores(queries.nrows())?;
        let ridges = add_block(task, block, &rows, queries, &mut scores)?;
        let Some(ridge) = ridges.first() else {
            continue;
        };
        for panel in rows.panels() {
            let values = rows.panel(panel.clone())?;
            let first = block.coordinates.start;
            let panel = first + panel.start..first + panel.end;
            let queries = queries.slice(s![.., panel.clone()]);
            let mut out = out.slice_mut(s![.., panel]);
            let tasks = out.axis_chunks_iter_mut(Axis(0), QUERIES_A_TASK);
            let tasks = tasks.zip(queries.axis_chunks_iter(Axis(0), QUERIES_A_TASK));
            let tasks = tasks.zip(scores.axis_chunks_iter(Axis(0), QUERIES_A_TASK));
            task.workers
                .for_each(tasks, |((mut out, queries), scores)| {
                    let scale = task.rows as f64 * block.weight;
                    let mut sums = queries.mapv(|value| f64::from(value) * scale);
                    let (sums_out, rows) = (sums.view_mut(), values.view());
                    add_long_product(sums_out, -1.0, scores, rows, task.workers)?;
                    out.zip_mut_with(&sums, |out, sum| *out = (sum / ridge) as f32);
                    Ok::<(), Error>(())
                })?;
        }
    }
    Ok(())
}

/// Adds the scores of one block, and returns the ridges n lambda of all dampings, none where all rows are zero.
fn add_block(
    task: &Task<'_>,
    block: &Block,
    rows: &BlockRows<'_>,
    queries: ArrayView2<'_, f32>,
    scores: &mut Array2<f64>,
) -> Result<Vec<f64>> {
    let workers = task.workers;
    let dampings = task.dampings.len();
    // Where all rows are zero, so is every score.
    let Some(damped) = task.decompose(rows.gram(block)?, block, Precision::Double)? else {
        return Ok(Vec::new());
    };
    check_dampings(task, block)?;
    let scale = task.rows as f64 * block.weight;
    let queries = queries.slice(s![.., block.coordinates.clone()]);
    let mut scores = by_damping(scores, dampings, 0..task.rows);
    let group = (PRODUCT_BYTES / (task.rows * size_of::<f64>())).max(1);
    for (queries, mut scores) in queries
        .axis_chunks_iter(Axis(0), group)
        .zip(scores.axis_chunks_iter_mut(Axis(1), group))
    {
        let products = products(rows, queries)?;
        for batch in batches(dampings) {
            let (inverses, singular) = damped.inverses(&batch, workers)?;
            task.refuse(block, &singular)?;
            let tasks = scores.axis_chunks_iter_mut(Axis(1), QUERIES_A_TASK);
            let tasks = tasks.zip(products.axis_chunks_iter(Axis(0), QUERIES_A_TASK));
            workers.for_each(tasks, |(mut scores, products)| {
                inverses.solve(products.to_owned(), workers, |number, solved| {
                    let mut scores = scores.index_axis_mut(Axis(0), number);
                    scores.scaled_add(scale, &solved);
                })?;
                Ok::<(), Error>(())
            })?;
        }
    }
    Ok(damped.ridges)
}

/// G q of every query, one a row.
fn products(rows: &BlockRows<'_>, queries: ArrayView2<'_, f32>) -> Result<Array2<f64>> {
    let workers = rows.task.workers;
    let mut products = Array2::zeros((queries.nrows(), rows.task.rows));
    for panel in rows.panels() {
        let values = rows.panel(panel.clone())?;
        let tasks = products.axis_chunks_iter_mut(Axis(0), QUERIES_A_TASK);
        let queries = queries.slice(s![.., panel]);
        let tasks = tasks.zip(queries.axis_chunks_iter(Axis(0), QUERIES_A_TASK));
        workers.for_each(tasks, |(out, queries)| {
            let queries = queries.mapv(f64::from);
            add_long_product(out, 1.0, queries.view(), values.t(), workers)
        })?;
    }
    Ok(products)
}

//! The influence of every stored row on itself.

use std::ops::Range;

use grass_core::parallel::Workers;
use ndarray::{Array2, Axis, s};

use crate::chosen::Chosen;
use crate::chunks::{RowWindow, zeros};
use crate::dual::{self, BlockRows, check_dampings};
use crate::error::{Error, Result};
use crate::inverse::{Inverses, batches};
use crate::preconditioner::{Block, DEFAULT_MEMORY, Precision, Task, groups};
use crate::primal;
use crate::tiles::SymmetricTiles;

/// Most rows solved by one task.
const ROWS_A_TASK: usize = 64;

/// g^T (F + lambda I)^-1 g of every stored row g, summed over blocks times their weights: a list of the store's rows for each damping.
///
/// For one column it lies between 0 and the number of rows n, as F holds g g^T / n; rows alone in their direction come near n.
/// The store is read once for the Fisher matrices that are not saved (see [`crate::precondition`]) and once for the rows,
/// for every group of columns that fits [`DEFAULT_MEMORY`]. A column wider than the store has rows goes through their
/// inner products K = G G^T instead: entry i is n e_i^T K (K + n lambda I)^-1 e_i.
///
/// Solved in double precision, with the same bits for any number of threads. A Fisher matrix that is summed in single
/// precision is gathered again in double where [`crate::precondition`] would do so.
///
/// # Errors
/// [`Error::Damping`], [`Error::Unfinished`], [`Error::Empty`], [`Error::Singular`], [`Error::NonFiniteRows`],
/// [`Error::Memory`], [`Error::Store`], [`Error::Core`] when cancelled.
pub fn self_influence<'a>(
    store: impl Into<Chosen<'a>>,
    dampings: &[f64],
    workers: &Workers,
) -> Result<Vec<Vec<f32>>> {
    let chosen = store.into();
    let task = Task::new(&chosen, dampings, DEFAULT_MEMORY, workers)?;
    let mut sums = zeros(
        (dampings.len(), task.rows),
        || format!("the self-influence of {} rows", task.rows),
        "ask for fewer dampings at once",
    )?;
    let (wide, narrow) = task.blocks();
    for group in groups(narrow, task.memory, primal::bytes) {
        add_narrow(&task, &group, &mut sums)?;
    }
    for group in groups(wide, task.memory, |block| dual::bytes(task.rows, block)) {
        for (block, rows) in group.iter().zip(BlockRows::new(&task, &group)?) {
            add_wide(&task, block, &rows, &mut sums)?;
        }
    }
    let lists = sums.rows().into_iter();
    Ok(lists
        .map(|values| values.iter().map(|&value| value as f32).collect())
        .collect())
}

/// Adds the part of some blocks whose own matrices are decomposed.
fn add_narrow(task: &Task<'_>, blocks: &[Block], sums: &mut Array2<f64>) -> Result<()> {
    let all: Vec<usize> = (0..task.dampings.len()).collect();
    let parts = blocks.iter().map(|block| (block, all.clone())).collect();
    let whole: Vec<&Block> = blocks.iter().collect();
    let grams = primal::grams(task, &whole, Precision::Single)?;
    let left = add_parts(task, parts, grams, Precision::Single, sums)?;
    let blocks: Vec<&Block> = left.iter().map(|(block, _)| *block).collect();
    let grams = primal::grams(task, &blocks, Precision::Double)?;
    for (block, singular) in add_parts(task, left, grams, Precision::Double, sums)? {
        task.refuse(block, &singular)?;
    }
    Ok(())
}

/// Adds the part of some blocks for the dampings given with each, and returns those for which the precision does not suffice.
fn add_parts<'a>(
    task: &Task<'_>,
    parts: Vec<(&'a Block, Vec<usize>)>,
    grams: Vec<SymmetricTiles>,
    precision: Precision,
    sums: &mut Array2<f64>,
) -> Result<Vec<(&'a Block, Vec<usize>)>> {
    let mut damped = Vec::new();
    for ((block, numbers), gram) in parts.into_iter().zip(grams) {
        if let Some(inverse) = task.decompose(gram, block, precision)? {
            damped.push((block, numbers, inverse));
        }
    }
    let mut left: Vec<_> = damped
        .iter()
        .map(|(block, ..)| (*block, Vec::new()))
        .collect();
    for batch in batches(task.dampings.len()) {
        let mut inverses = Vec::new();
        for ((block, numbers, damped), (_, left)) in damped.iter().zip(&mut left) {
            let numbers = batch.iter().filter(|number| numbers.contains(number));
            let numbers: Vec<usize> = numbers.copied().collect();
            let (inverse, missing) = damped.inverses(&numbers, task.workers)?;
            left.extend(missing);
            if !inverse.numbers().is_empty() {
                inverses.push((*block, inverse));
            }
        }
        if !inverses.is_empty() {
            add_rows(task, &inverses, sums)?;
        }
    }
    left.retain(|(_, numbers)| !numbers.is_empty());
    Ok(left)
}

/// Adds |L^-1 g|^2 of every row and block, in one pass over the store.
fn add_rows(
    task: &Task<'_>,
    blocks: &[(&Block, Inverses<'_>)],
    sums: &mut Array2<f64>,
) -> Result<()> {
    let workers = task.workers;
    let row_bytes = task.store.layout().row_bytes() as u64;
    workers.progress().add_total(task.rows as u64 * row_bytes);
    let coordinates: Vec<Range<usize>> = blocks
        .iter()
        .map(|(block, _)| block.coordinates.clone())
        .collect();
    let mut window = RowWindow::new(task.store, &coordinates, &task.checked);
    for step in window.steps(0..task.rows as u64) {
        window.cover(step.clone(), workers)?;
        let rows = (step.end - step.start) as usize;
        let mut sums = sums.slice_mut(s![.., step.start as usize..step.end as usize]);
        let length = rows.div_ceil(workers.threads()).min(ROWS_A_TASK);
        let tasks = sums.axis_chunks_iter_mut(Axis(1), length);
        let tasks = tasks.zip((step.start..).step_by(length));
        workers.for_each(tasks, |(mut sums, first)| {
            for (block, inverses) in blocks {
                let scale = task.rows as f64 * block.weight;
                let mut rows = Array2::zeros((sums.ncols(), block.coordinates.len()));
                window.decode_here(first, block.coordinates.clone(), rows.view_mut());
                inverses.squares(rows, workers, |index, squares| {
                    for (sum, square) in sums.row_mut(index).iter_mut().zip(squares) {
                        *sum += scale * square;
                    }
                })?;
            }
            Ok::<(), Error>(())
        })?;
        workers.progress().add_done(rows as u64 * row_bytes);
    }
    Ok(())
}

/// Adds the part of a block with more coordinates than rows.
fn add_wide(
    task: &Task<'_>,
    block: &Block,
    rows: &BlockRows<'_>,
    sums: &mut Array2<f64>,
) -> Result<()> {
    let workers = task.workers;
    let gram = rows.gram(block)?;
    let copy = gram.try_clone(&block.name, workers)?;
    let Some(damped) = task.decompose(copy, block, Precision::Double)? else {
        return Ok(());
    };
    check_dampings(task, block)?;
    let scale = task.rows as f64 * block.weight;
    for batch in batches(task.dampings.len()) {
        let (inverses, singular) = damped.inverses(&batch, workers)?;
        task.refuse(block, &singular)?;
        let tasks = sums.axis_chunks_iter_mut(Axis(1), ROWS_A_TASK);
        let tasks = tasks.zip((0..).step_by(ROWS_A_TASK));
        workers.for_each(tasks, |(mut sums, first)| {
            let mut products = Array2::zeros((sums.ncols(), task.rows));
            for (index, mut row) in products.rows_mut().into_iter().enumerate() {
                gram.copy_row(first + index, &mut row);
            }
            let mut units = Array2::zeros(products.dim());
            units.slice_mut(s![.., first..]).diag_mut().fill(1.0);
            inverses.solve(units, workers, |index, solved| {
                let pairs = products.rows().into_iter().zip(solved.rows());
                for (sum, (products, solved)) in sums.row_mut(index).iter_mut().zip(pairs) {
                    *sum += scale * products.dot(&solved);
                }
            })?;
            Ok::<(), Error>(())
        })?;
    }
    Ok(())
}

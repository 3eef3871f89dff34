//! The Fisher matrix of a column while it is summed: F n = sum g g^T over the stored rows.
//!
//! Products are made in `f32` with fused multiply-add inside runs of [`RUN_ROWS`] rows and added in `f64` across runs,
//! where a run begins at every [`RUN_ROWS`]-th row of the store. So an entry has the same bits for any number of threads,
//! any memory, and any cut of the store into chunks and shards.
//!
//! A run is first multiplied by the power of two that brings its largest magnitude to [1, 2), which rounds nothing, and
//! its sums by the square of the inverse: no row that `f32` holds is too long or too short for products in `f32`.
//!
//! **Error.** With u = 2^-24, R = [`RUN_ROWS`] and n rows, the error E of F = (1/n) sum g g^T has
//!
//! |E_ij| <= R u (1/n) sum_t |g_ti g_tj| <= R u sqrt(F_ii F_jj),
//!
//! small beside the diagonal whatever the scales of the coordinates. Roundings are not of one sign: a run of positive terms
//! is off by about R u / 3 of its sum at random, so F_ii by R u / (3 sqrt(n)), and entries of mixed signs by less. Now
//! F + lambda I has no eigenvalue below lambda = damping tr(F) / n. So in the direction where that matters most a damped
//! inverse is off by R u sqrt(n) / (3 damping) of itself if the roundings of all entries conspire, and by 2 / sqrt(width) of that
//! if they are independent: 1e-4 for a million rows of 4096 coordinates at the default damping of 0.4, 1e-5 for ten thousand.
//!
//! Where rows that hardly span a column and little damping would make it more, [`gather_double`] sums everything in `f64`:
//! see [`crate::precondition`].

use std::ops::Range;

use grass_core::gram::{PANEL, Panel, add_gram};
use grass_core::simd::Path;
use ndarray::{Array2, Array3, ArrayViewMut3, Axis, s};

use crate::chunks::RowWindow;
use crate::error::{Error, Result};
use crate::preconditioner::{Block, Task};
use crate::tiles::{SymmetricTiles, TILE, tile};

/// Rows whose products are summed in single precision.
const RUN_ROWS: usize = 64;

/// Rows that are packed before their products are made: few enough that two tiles' panels stay in the second-level cache.
const PACKED_ROWS: usize = 512;

/// Rows that are held in double precision: they take as much memory as those that are packed.
const DOUBLE_ROWS: usize = PACKED_ROWS / 2;

/// Rows packed by one task.
const TASK_ROWS: usize = 16;

const _: () = assert!(PACKED_ROWS.is_multiple_of(RUN_ROWS) && TILE.is_multiple_of(PANEL));

/// Memory that the packed rows of a column of this width take.
pub(crate) fn packed_bytes(width: usize) -> usize {
    let bytes = PACKED_ROWS * size_of::<f32>();
    width.next_multiple_of(PANEL).saturating_mul(bytes)
}

/// Some rows of a column in panels, and what their runs were multiplied by.
struct Packed {
    coordinates: Range<usize>,
    /// (panels, [`PACKED_ROWS`], [`PANEL`]).
    panels: Array3<f32>,
    /// By what the products of a run must be multiplied.
    scales: [f64; PACKED_ROWS / RUN_ROWS],
}

impl Packed {
    fn new(coordinates: Range<usize>) -> Self {
        let panels = coordinates.len().div_ceil(PANEL);
        Self {
            coordinates,
            panels: Array3::zeros((panels, PACKED_ROWS, PANEL)),
            scales: [1.0; PACKED_ROWS / RUN_ROWS],
        }
    }

    /// Rows `rows` of panel `panel`.
    fn panel(&self, panel: usize, rows: Range<usize>) -> &Panel {
        let values = self.panels.as_slice().unwrap_or_default();
        let first = panel * PACKED_ROWS;
        &values.as_chunks::<PANEL>().0[first + rows.start..first + rows.end]
    }
}

/// sum g g^T of every block, in one pass over the store.
///
/// # Errors
/// [`Error::NonFiniteRows`], [`Error::Memory`], [`Error::Store`], [`Error::Core`] when cancelled.
pub(crate) fn gather(task: &Task<'_>, blocks: &[&Block]) -> Result<Vec<SymmetricTiles>> {
    let workers = task.workers;
    let mut grams = Vec::new();
    for block in blocks {
        let width = block.coordinates.len();
        grams.push(SymmetricTiles::zeros(width, &block.name, workers)?);
    }
    if blocks.is_empty() {
        return Ok(grams);
    }
    let path = Path::current();
    let rows = task.rows as u64;
    let row_bytes = task.store.layout().row_bytes() as u64;
    workers.progress().add_total(rows * row_bytes);
    let coordinates: Vec<Range<usize>> = blocks
        .iter()
        .map(|block| block.coordinates.clone())
        .collect();
    let mut window = RowWindow::new(task.store, &coordinates, &task.checked);
    let mut columns: Vec<Packed> = coordinates.into_iter().map(Packed::new).collect();
    for start in (0..rows).step_by(PACKED_ROWS) {
        let end = rows.min(start + PACKED_ROWS as u64);
        for step in window.steps(start..end) {
            window.cover(step.clone(), workers)?;
            let part = (step.start - start) as usize..(step.end - start) as usize;
            let tasks = columns.iter_mut().flat_map(|column| {
                let coordinates = column.coordinates.clone();
                let part = column.panels.slice_mut(s![.., part.clone(), ..]);
                let starts = (step.start..).step_by(TASK_ROWS);
                let tasks = parts(part).into_iter().zip(starts);
                tasks.map(move |(panels, first)| (panels, first, coordinates.clone()))
            });
            let tasks: Vec<_> = tasks.collect();
            workers.for_each(tasks, |(panels, first, coordinates)| {
                pack(&window, first, coordinates, panels);
                Ok::<(), Error>(())
            })?;
            workers
                .progress()
                .add_done((step.end - step.start) * row_bytes);
        }
        let filled = (end - start) as usize;
        scale_runs(&mut columns, blocks, filled, task)?;
        let tasks = grams.iter_mut().zip(&columns);
        let tasks = tasks.flat_map(|(gram, column)| {
            let size = gram.size;
            gram.tiles_mut()
                .map(move |(out, place)| (out, place, size, column))
        });
        workers.for_each(tasks, |(out, (i, j), size, column)| {
            let Some(out) = out.as_slice_mut() else {
                unreachable!("tiles lie in one piece");
            };
            add_tile(path, column, filled, tile(i, size), tile(j, size), out);
            Ok::<(), Error>(())
        })?;
    }
    Ok(grams)
}

/// The same in double precision, rounded as if summed in one go, for any number of threads, any memory and any cut.
pub(crate) fn gather_double(task: &Task<'_>, blocks: &[&Block]) -> Result<Vec<SymmetricTiles>> {
    let workers = task.workers;
    let (mut grams, mut columns) = (Vec::new(), Vec::new());
    for block in blocks {
        let width = block.coordinates.len();
        grams.push(SymmetricTiles::zeros(width, &block.name, workers)?);
        columns.push(Array2::<f64>::zeros((DOUBLE_ROWS, width)));
    }
    if blocks.is_empty() {
        return Ok(grams);
    }
    let rows = task.rows as u64;
    let row_bytes = task.store.layout().row_bytes() as u64;
    workers.progress().add_total(rows * row_bytes);
    let coordinates: Vec<Range<usize>> = blocks
        .iter()
        .map(|block| block.coordinates.clone())
        .collect();
    let mut window = RowWindow::new(task.store, &coordinates, &task.checked);
    for start in (0..rows).step_by(DOUBLE_ROWS) {
        let end = rows.min(start + DOUBLE_ROWS as u64);
        for step in window.steps(start..end) {
            window.cover(step.clone(), workers)?;
            let part = (step.start - start) as usize..(step.end - start) as usize;
            let targets = coordinates.iter().cloned().zip(
                columns
                    .iter_mut()
                    .map(|column| column.slice_mut(s![part.clone(), ..])),
            );
            window.decode(step.start, targets.collect(), workers)?;
            workers
                .progress()
                .add_done((step.end - step.start) * row_bytes);
        }
        let filled = (end - start) as usize;
        let tasks = grams.iter_mut().zip(&columns).flat_map(|(gram, column)| {
            let rows = column.slice(s![..filled, ..]);
            gram.gram_tasks(rows.reversed_axes())
        });
        let tasks: Vec<_> = tasks.collect();
        workers.for_each(tasks, |task| task.run(workers))?;
    }
    Ok(grams)
}

/// Cuts panels into parts of a few rows.
fn parts(mut rest: ArrayViewMut3<'_, f32>) -> Vec<ArrayViewMut3<'_, f32>> {
    let mut parts = Vec::new();
    while rest.len_of(Axis(1)) > 0 {
        let count = rest.len_of(Axis(1)).min(TASK_ROWS);
        let (part, after) = rest.split_at(Axis(1), count);
        parts.push(part);
        rest = after;
    }
    parts
}

/// Decodes some coordinates of rows from `first` on into panels.
fn pack(
    window: &RowWindow<'_>,
    first: u64,
    coordinates: Range<usize>,
    mut panels: ArrayViewMut3<'_, f32>,
) {
    let starts = coordinates.clone().step_by(PANEL);
    for (start, mut panel) in starts.zip(panels.outer_iter_mut()) {
        let part = start..coordinates.end.min(start + PANEL);
        let values = panel.slice_mut(s![.., ..part.len()]);
        window.decode_here(first, part, values);
    }
}

/// Brings the runs of the first `filled` rows to a common size.
fn scale_runs(
    columns: &mut [Packed],
    blocks: &[&Block],
    filled: usize,
    task: &Task<'_>,
) -> Result<()> {
    let runs = columns.iter_mut().zip(blocks).flat_map(|(column, block)| {
        let runs = column.panels.axis_chunks_iter_mut(Axis(1), RUN_ROWS);
        let lengths = (0..filled).step_by(RUN_ROWS);
        let lengths = lengths.map(move |start| RUN_ROWS.min(filled - start));
        runs.zip(&mut column.scales)
            .zip(lengths)
            .map(move |((run, scale), length)| (run, scale, length, *block))
    });
    let runs: Vec<_> = runs.collect();
    task.workers
        .for_each(runs, |(mut run, scale, length, block)| {
            let mut run = run.slice_mut(s![.., ..length, ..]);
            // Magnitudes are ordered like their bits, and those of NaN come last.
            let mut largest = 0;
            for panel in run.outer_iter() {
                for value in panel.as_slice().unwrap_or_default() {
                    largest = largest.max(value.abs().to_bits());
                }
            }
            let largest = f32::from_bits(largest);
            if !largest.is_finite() {
                return Err(Error::NonFiniteRows {
                    column: block.name.clone(),
                });
            }
            let exponent = exponent(largest);
            *scale = 2f64.powi(2 * exponent);
            let factor = 2f32.powi(-exponent);
            for mut panel in run.outer_iter_mut() {
                for value in panel.as_slice_mut().unwrap_or_default() {
                    *value *= factor;
                }
            }
            Ok(())
        })
}

/// The power of two below a magnitude, as far as the inverse is a normal number, which is far enough.
fn exponent(magnitude: f32) -> i32 {
    let biased = (magnitude.to_bits() >> 23) as i32;
    match magnitude == 0.0 {
        true => 0,
        false => (biased - 127).clamp(-100, 100),
    }
}

/// Adds the products of some coordinates with some others, `out (rows, columns)`, as far as they lie below the diagonal.
fn add_tile(
    path: Path,
    packed: &Packed,
    filled: usize,
    rows: Range<usize>,
    columns: Range<usize>,
    out: &mut [f64],
) {
    let stride = columns.len();
    for row in rows.clone().step_by(PANEL) {
        for column in columns
            .clone()
            .step_by(PANEL)
            .filter(|&column| column <= row)
        {
            let (height, width) = (PANEL.min(rows.end - row), PANEL.min(columns.end - column));
            let first = (row - rows.start) * stride + column - columns.start;
            if (height, width) == (PANEL, PANEL) {
                let last = first + (PANEL - 1) * stride + PANEL;
                add_runs(
                    path,
                    packed,
                    filled,
                    (row, column),
                    &mut out[first..last],
                    stride,
                );
                continue;
            }
            let mut block = [[0f64; PANEL]; PANEL];
            let part = |i: usize| first + i * stride..first + i * stride + width;
            for (i, values) in block[..height].iter_mut().enumerate() {
                values[..width].copy_from_slice(&out[part(i)]);
            }
            add_runs(
                path,
                packed,
                filled,
                (row, column),
                block.as_flattened_mut(),
                PANEL,
            );
            for (i, values) in block[..height].iter().enumerate() {
                out[part(i)].copy_from_slice(&values[..width]);
            }
        }
    }
}

/// Adds the products of two panels, run after run.
fn add_runs(
    path: Path,
    packed: &Packed,
    filled: usize,
    (row, column): (usize, usize),
    out: &mut [f64],
    stride: usize,
) {
    for (start, &scale) in (0..filled).step_by(RUN_ROWS).zip(&packed.scales) {
        let rows = start..filled.min(start + RUN_ROWS);
        let left = packed.panel(row / PANEL, rows.clone());
        let right = packed.panel(column / PANEL, rows);
        add_gram(path, left, right, scale, out, stride);
    }
}

//! Rows of a store, streamed through a window of checked chunks.

use std::ops::Range;

use grass_core::parallel::Workers;
use grass_store::{Chunk, StoreReader};
use ndarray::{Array2, ArrayViewMut2, Axis, s};

use crate::error::{Error, Result};

/// Bytes of rows that are mapped at once, and a few chunks more where they are cut elsewhere.
const WINDOW_BYTES: u64 = 32 << 20;

/// Rows decoded by one task.
const TASK_ROWS: usize = 32;

/// The chunks around the rows that are being worked on. Each was compared with its checksum when
/// it came in; chunks that have been passed are let go.
pub(crate) struct RowWindow<'a> {
    store: &'a StoreReader,
    chunks: Vec<Chunk>,
}

impl<'a> RowWindow<'a> {
    pub(crate) fn new(store: &'a StoreReader) -> Self {
        Self {
            store,
            chunks: Vec::new(),
        }
    }

    /// Cuts rows into ranges that may be covered at once, each of a multiple of `unit` rows but the last.
    pub(crate) fn steps(store: &StoreReader, rows: Range<u64>, unit: u64) -> Vec<Range<u64>> {
        let fitting = WINDOW_BYTES / store.layout().row_bytes() as u64;
        let step = unit * (fitting / unit).max(1);
        let starts = (rows.start..rows.end).step_by(step as usize);
        starts
            .map(|start| start..rows.end.min(start + step))
            .collect()
    }

    /// Maps and checks what is missing for `rows`, which must not go back.
    pub(crate) fn cover(&mut self, rows: Range<u64>, workers: &Workers) -> Result<()> {
        self.chunks.retain(|chunk| chunk.rows().end > rows.start);
        let covered = self
            .chunks
            .last()
            .map_or(rows.start, |chunk| chunk.rows().end);
        let missing = self.store.chunks(covered..rows.end);
        let mut mapped: Vec<Option<Chunk>> = missing.iter().map(|_| None).collect();
        workers.for_each(missing.iter().zip(&mut mapped), |(span, slot)| {
            *slot = Some(self.store.checked_chunk(span, workers)?);
            Ok::<(), Error>(())
        })?;
        self.chunks.extend(mapped.into_iter().flatten());
        Ok(())
    }

    /// Decodes some coordinates of covered rows from `first` on, as many rows as `out` has.
    pub(crate) fn decode_here<T: From<f32>>(
        &self,
        first: u64,
        coordinates: Range<usize>,
        mut out: ArrayViewMut2<'_, T>,
    ) {
        let mut index = self
            .chunks
            .partition_point(|chunk| chunk.rows().end <= first);
        for (row, mut values) in (first..).zip(out.rows_mut()) {
            index += usize::from(row >= self.chunks[index].rows().end);
            let Some(values) = values.as_slice_mut() else {
                unreachable!("rows of an output lie in one piece");
            };
            let stored = self.chunks[index].row(row);
            self.store
                .layout()
                .decode(stored, coordinates.clone(), values);
        }
    }

    /// Decodes covered rows from `first` on, on all threads: each target takes a range of coordinates
    /// of as many rows as it has.
    pub(crate) fn decode<T: From<f32> + Send>(
        &self,
        first: u64,
        targets: Vec<(Range<usize>, ArrayViewMut2<'_, T>)>,
        workers: &Workers,
    ) -> Result<()> {
        let mut tasks = Vec::new();
        for (coordinates, target) in targets {
            let mut start = first;
            let mut rest = target;
            while rest.nrows() > 0 {
                let count = rest.nrows().min(TASK_ROWS);
                let (rows, after) = rest.split_at(Axis(0), count);
                tasks.push((start, coordinates.clone(), rows));
                start += count as u64;
                rest = after;
            }
        }
        workers.for_each(tasks, |(start, coordinates, mut rows)| {
            self.decode_here(start, coordinates, rows.view_mut());
            Ok::<(), Error>(())
        })
    }
}

/// All rows of a store, (n, width) row-major, compared with their checksums: the queries of
/// [`crate::score`] when they come as a store.
///
/// # Errors
/// [`Error::Unfinished`], [`Error::Empty`], [`Error::Memory`], [`Error::Store`], [`Error::Core`] when cancelled.
pub fn query_rows(store: &StoreReader, workers: &Workers) -> Result<Vec<f32>> {
    check_scorable(store)?;
    let width = store.layout().width();
    let shape = (store.rows() as usize, width);
    let what = || "the queries, read from a store,".to_owned();
    let mut rows = zeros(shape, what, "give fewer queries at once")?;
    let mut window = RowWindow::new(store);
    for step in RowWindow::steps(store, 0..store.rows(), 1) {
        window.cover(step.clone(), workers)?;
        let part = rows.slice_mut(s![step.start as usize..step.end as usize, ..]);
        window.decode(step.start, vec![(0..width, part)], workers)?;
    }
    Ok(rows.into_raw_vec_and_offset().0)
}

/// Refuses a store that has no rows or not yet all of them.
pub(crate) fn check_scorable(store: &StoreReader) -> Result<()> {
    let path = store.path().to_path_buf();
    match (store.complete(), store.rows()) {
        (false, _) => Err(Error::Unfinished { path }),
        (true, 0) => Err(Error::Empty { path }),
        _ => Ok(()),
    }
}

/// A matrix of zeros, or an error where the memory for it cannot be had.
pub(crate) fn zeros<T: Clone + Default>(
    shape: (usize, usize),
    what: impl Fn() -> String,
    hint: &'static str,
) -> Result<Array2<T>> {
    let mut values = Vec::new();
    let length = shape.0.saturating_mul(shape.1);
    values
        .try_reserve_exact(length)
        .map_err(|_| Error::Memory {
            what: what(),
            bytes: length as u128 * size_of::<T>() as u128,
            hint,
        })?;
    values.resize(length, T::default());
    match Array2::from_shape_vec(shape, values) {
        Ok(matrix) => Ok(matrix),
        Err(_) => unreachable!("as many numbers as the shape says"),
    }
}

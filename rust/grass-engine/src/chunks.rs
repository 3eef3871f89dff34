//! Rows of a store, streamed through a window of checked chunks.

use std::iter;
use std::ops::Range;
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use grass_core::parallel::Workers;
use grass_store::{ChunkSpan, Layout, StoreReader};
use ndarray::{Array2, ArrayViewMut2, Axis, s};

use crate::error::{Error, Result};

/// Bytes of rows that are held at once, and a few chunks more where they are cut elsewhere.
const WINDOW_BYTES: usize = 32 << 20;

/// Of rows of more bytes, each a chunk of its own, only the coordinates that are asked for are held.
const LONG_ROW_BYTES: usize = 1 << 20;

/// Most long rows that are covered at once, if there is room for them.
const LONG_ROWS: usize = 16;

/// Bytes of a long row that are read and compared at once.
const PIECE_BYTES: usize = 1 << 20;

/// Rows decoded by one task.
const TASK_ROWS: usize = 32;

/// Coordinates of queries that are decoded in one pass: of longer rows, several passes are made.
const QUERY_COORDINATES: usize = 1 << 20;

/// The chunks around the rows that are being worked on. Each was compared with its checksum when
/// it came in; chunks that have been passed are let go.
///
/// The first window over a store that shares a `checked` flag compares all of every row. Later ones read, of long rows,
/// only what they hold, so that a column may be gone through in many passes at the cost of one.
pub(crate) struct RowWindow<'a> {
    store: &'a StoreReader,
    /// Set when all rows have been compared.
    checked: &'a AtomicBool,
    parts: RowParts,
    chunks: Vec<Held>,
    /// Memory of chunks that have been passed.
    spare: Vec<Vec<u8>>,
}

/// The bytes of a row that are held.
struct RowParts {
    /// In order and apart, with the place of each in what is held of a row: all of it, or the scales and some numbers.
    parts: Vec<(Range<usize>, usize)>,
    /// Bytes that are held of a row.
    length: usize,
}

/// What is held of a chunk.
struct Held {
    rows: Range<u64>,
    bytes: Vec<u8>,
}

impl RowParts {
    fn new(store: &StoreReader, coordinates: &[Range<usize>]) -> Self {
        let layout = store.layout();
        let ranges: Vec<Range<usize>> = match layout.row_bytes() > LONG_ROW_BYTES {
            false => iter::once(0..layout.row_bytes()).collect(),
            true => {
                let mut coordinates: Vec<_> = coordinates.to_vec();
                coordinates.sort_by_key(|part| part.start);
                let numbers = coordinates
                    .into_iter()
                    .map(|part| layout.number_bytes(part));
                iter::once(0..layout.scale_bytes()).chain(numbers).collect()
            }
        };
        let mut length = 0;
        let places = ranges.into_iter().map(|range| {
            let place = length;
            length += range.len();
            (range, place)
        });
        Self {
            parts: places.collect(),
            length,
        }
    }

    /// Where bytes of a row, which lie in one part, are in what is held of it.
    fn place(&self, bytes: Range<usize>) -> Range<usize> {
        let next = self
            .parts
            .partition_point(|(part, _)| part.start <= bytes.start);
        let (part, place) = &self.parts[next - 1];
        let start = place + bytes.start - part.start;
        start..start + bytes.len()
    }

    /// Copies what is held of some bytes of a row.
    fn copy(&self, bytes: &[u8], first: usize, held: &mut [u8]) {
        let end = first + bytes.len();
        let before = self.parts.partition_point(|(part, _)| part.end <= first);
        let parts = self.parts[before..].iter();
        for (part, place) in parts.take_while(|(part, _)| part.start < end) {
            let common = part.start.max(first)..part.end.min(end);
            let place = place + common.start - part.start;
            held[place..place + common.len()]
                .copy_from_slice(&bytes[common.start - first..common.end - first]);
        }
    }
}

impl<'a> RowWindow<'a> {
    /// A window from the first row on, for some ranges of coordinates that do not overlap.
    pub(crate) fn new(
        store: &'a StoreReader,
        coordinates: &[Range<usize>],
        checked: &'a AtomicBool,
    ) -> Self {
        Self {
            store,
            checked,
            parts: RowParts::new(store, coordinates),
            chunks: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Cuts rows into ranges that may be covered at once.
    pub(crate) fn steps(&self, rows: Range<u64>) -> Vec<Range<u64>> {
        let whole = WINDOW_BYTES / self.store.layout().row_bytes();
        let held = WINDOW_BYTES / self.parts.length.max(1);
        let step = whole.max(held.min(LONG_ROWS)).max(1);
        let starts = (rows.start..rows.end).step_by(step);
        starts
            .map(|start| start..rows.end.min(start + step as u64))
            .collect()
    }

    /// Reads and checks what is missing for `rows`, which must follow those that were covered before, or be among them.
    pub(crate) fn cover(&mut self, rows: Range<u64>, workers: &Workers) -> Result<()> {
        let passed = self
            .chunks
            .partition_point(|chunk| chunk.rows.end <= rows.start);
        let passed = self.chunks.drain(..passed).map(|chunk| chunk.bytes);
        self.spare.extend(passed);
        let covered = self
            .chunks
            .last()
            .map_or(rows.start, |chunk| chunk.rows.end);
        let missing: Vec<_> = self.store.chunks(covered..rows.end).collect();
        let mut read: Vec<Option<Held>> = missing.iter().map(|_| None).collect();
        let mut spare = std::mem::take(&mut self.spare).into_iter();
        let buffers = iter::repeat_with(move || spare.next().unwrap_or_default());
        let tasks = missing.iter().zip(buffers).zip(&mut read);
        workers.for_each(tasks, |((span, buffer), slot)| {
            let bytes = match self.store.layout().row_bytes() > LONG_ROW_BYTES {
                true => self.read_long_row(span, buffer, workers)?,
                false => self
                    .store
                    .checked_chunk(span, buffer, workers)?
                    .into_buffer(),
            };
            let rows = span.rows.clone();
            *slot = Some(Held { rows, bytes });
            Ok::<(), Error>(())
        })?;
        self.chunks.extend(read.into_iter().flatten());
        if rows.end == self.store.rows() {
            self.checked.store(true, Relaxed);
        }
        Ok(())
    }

    /// The parts of a long row, compared with its checksum unless an earlier pass has.
    fn read_long_row(
        &self,
        span: &ChunkSpan,
        mut held: Vec<u8>,
        workers: &Workers,
    ) -> Result<Vec<u8>> {
        held.resize(self.parts.length, 0);
        let mut reader = self.store.chunk_reader(span);
        if self.checked.load(Relaxed) {
            for (part, place) in &self.parts.parts {
                workers.check()?;
                let bytes = &mut held[*place..place + part.len()];
                reader.read_again(part.start as u64, bytes)?;
            }
            return Ok(held);
        }
        let mut piece = vec![0; PIECE_BYTES];
        let row_bytes = self.store.layout().row_bytes();
        for first in (0..row_bytes).step_by(PIECE_BYTES) {
            workers.check()?;
            let bytes = &mut piece[..PIECE_BYTES.min(row_bytes - first)];
            reader.read(bytes)?;
            reader.compare(bytes);
            self.parts.copy(bytes, first, &mut held);
        }
        reader.finish()?;
        Ok(held)
    }

    /// Decodes some coordinates of covered rows from `first` on, as many rows as `out` has.
    pub(crate) fn decode_here<T: From<f32>>(
        &self,
        first: u64,
        coordinates: Range<usize>,
        mut out: ArrayViewMut2<'_, T>,
    ) {
        let layout = self.store.layout();
        let numbers = self.parts.place(layout.number_bytes(coordinates.clone()));
        let mut index = self.chunks.partition_point(|chunk| chunk.rows.end <= first);
        for (row, mut values) in (first..).zip(out.rows_mut()) {
            index += usize::from(row >= self.chunks[index].rows.end);
            let Some(values) = values.as_slice_mut() else {
                unreachable!("rows of an output lie in one piece");
            };
            let chunk = &self.chunks[index];
            let before = (row - chunk.rows.start) as usize * self.parts.length;
            let stored = &chunk.bytes[before..][..self.parts.length];
            layout.decode(
                stored,
                &stored[numbers.clone()],
                coordinates.clone(),
                values,
            );
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
    let checked = AtomicBool::new(false);
    for start in (0..width).step_by(QUERY_COORDINATES) {
        let part = start..width.min(start + QUERY_COORDINATES);
        let mut window = RowWindow::new(store, slice::from_ref(&part), &checked);
        for step in window.steps(0..store.rows()) {
            window.cover(step.clone(), workers)?;
            let lines = step.start as usize..step.end as usize;
            let target = rows.slice_mut(s![lines, part.clone()]);
            window.decode(step.start, vec![(part.clone(), target)], workers)?;
        }
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

/// Refuses queries of another shape, and those that are not finite.
pub(crate) fn check_queries(layout: &Layout, queries: &[f32], workers: &Workers) -> Result<()> {
    let width = layout.width();
    if queries.is_empty() || !queries.len().is_multiple_of(width) {
        let got = format!("{} numbers", queries.len());
        return Err(Error::Queries { width, got });
    }
    for (query, row) in queries.chunks_exact(width).enumerate() {
        workers.check()?;
        if let Some(coordinate) = row.iter().position(|value| !value.is_finite()) {
            let mut columns = layout.columns().iter().enumerate();
            let holding = columns
                .find(|(index, _)| layout.coordinates(*index).contains(&coordinate))
                .map(|(_, column)| column.name.clone());
            return Err(Error::NonFiniteQuery {
                query,
                column: holding.unwrap_or_default(),
                value: row[coordinate],
            });
        }
    }
    Ok(())
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

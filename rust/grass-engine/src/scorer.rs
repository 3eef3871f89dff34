//! Scores of all stored rows for some queries, in one pass over the store.
//!
//! A chunk is a task: a thread reads it into its own buffer, compares the checksum and multiplies while the bytes are in
//! cache, and hands the scores on only when the checksum has held.

use std::ops::Range;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use grass_core::dot::{Checksum, TILE};
use grass_core::parallel::Workers;
use grass_store::{ChunkReader, ChunkSpan, StoreReader};

use crate::chosen::Chosen;
use crate::chunks::check_scorable;
use crate::error::{Error, Result};
use crate::queries::{Prepared, Scratch};
use crate::sink::{AllScores, Sink};
use crate::stored_rows::StoredRows;
use crate::topk::BestScores;

/// How a query is compared with a stored row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// q^T (F + lambda I)^-1 g, summed over blocks: see [`crate::precondition`].
    Influence,
    /// q^T g, summed over columns.
    GradDot,
    /// The cosine of the columns that count, side by side; 0 where one of the two is zero.
    GradCos,
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "influence" => Ok(Self::Influence),
            "graddot" => Ok(Self::GradDot),
            "gradcos" => Ok(Self::GradCos),
            _ => Err(Error::Method {
                got: name.to_owned(),
            }),
        }
    }
}

/// Scores of training examples for queries.
#[derive(Debug, Clone, PartialEq)]
pub enum Scores {
    /// All of them.
    All {
        /// One a row of the store, in its order.
        ids: Vec<u64>,
        /// (queries, rows) row-major.
        values: Vec<f32>,
    },
    /// The best of each query, best first, equal ones by smaller id; both (queries, k) row-major.
    Top {
        /// The training examples.
        ids: Vec<u64>,
        /// Their scores.
        values: Vec<f32>,
    },
}

/// Bytes of a chunk that a thread holds: longer rows are read in parts.
const BUFFER_BYTES: usize = 1 << 20;

/// Bytes of rows whose checksum and products with a few queries are computed together, so that they come from a core's
/// own caches, and many enough that beginning counts for nothing; and how many queries are few.
const FUSED: (usize, usize) = (64 << 10, 8);

/// Bytes of rows that are multiplied with many queries at a time, so that they stay in the second-level cache.
const CACHED_BYTES: usize = 256 << 10;

/// Bytes of scores that all threads together hold until they hand them on.
const VALUE_BYTES: usize = 64 << 20;

/// Most sums that a thread keeps, in double precision, and most rows at a time.
const SUMS: (usize, usize) = (1 << 15, 1024);

/// Scores every row of `store`, or [what is chosen](Chosen) of it, for queries of shape (n, width) row-major; one result for every damping of
/// [`Method::Influence`], one for the other methods, which take none.
///
/// Rows of floats: the score equals the formula to single precision, |error| <= 1e-6 |q| |g| + w 2^-149 for rows of w
/// numbers (the second term is all that holds where products are subnormal, below 2^-126), where the q of
/// [`Method::Influence`] is (F + lambda I)^-1 times the query, without the columns that have more coordinates than the
/// store has rows: their part of a score is in double precision until it is rounded. Of int8 rows, for the other methods, the
/// query is rounded to 8 bits a column too, with a standard deviation of the error of about max|q| |g| / 440 a column of at least 128
/// coordinates. The bits of a score depend on its row and its query alone: neither on the other queries, nor on the
/// number of threads, nor on how the store is cut.
///
/// # Errors
/// [`Error::Queries`], [`Error::NonFiniteQuery`], [`Error::Damping`], [`Error::TopK`],
/// [`Error::Unfinished`], [`Error::Empty`], [`Error::NonFiniteScore`], [`Error::Memory`], those of
/// [`crate::precondition`], and [`Error::Store`] with the damaged chunk, as each is compared with its checksum.
pub fn score<'a>(
    store: impl Into<Chosen<'a>>,
    queries: &[f32],
    method: Method,
    dampings: &[f64],
    top_k: Option<usize>,
    workers: &Workers,
) -> Result<Vec<Scores>> {
    let chosen = store.into();
    let store = chosen.store;
    check_scorable(store)?;
    let rows = store.rows() as usize;
    if let Some(k) = top_k.filter(|k| !(1..=rows).contains(k)) {
        let got = k.to_string();
        return Err(Error::TopK { rows, got });
    }
    let queries = Prepared::new(&chosen, queries, method, dampings, workers)?;
    if queries.count() == 0 {
        return Ok(Vec::new());
    }
    let all = 0..store.rows();
    let split = |values: Vec<f32>, length: usize| -> Vec<Vec<f32>> {
        // A copy only where there are several.
        match queries.count() == queries.given_count() {
            true => vec![values],
            false => values.chunks_exact(length).map(<[f32]>::to_vec).collect(),
        }
    };
    if let Some(k) = top_k {
        let best = BestScores::new(queries.count(), k);
        stream(store, &queries, all, &best, workers)?;
        let (ids, values) = best.into_ids_and_values(workers)?;
        let length = queries.given_count() * k;
        let ids = ids.chunks_exact(length).map(<[u64]>::to_vec);
        let scores = ids.zip(split(values, length));
        return Ok(scores
            .map(|(ids, values)| Scores::Top { ids, values })
            .collect());
    }
    let scores = AllScores::new(queries.count(), rows)?;
    stream(store, &queries, all, &scores, workers)?;
    let (ids, values) = scores.into_ids_and_values();
    let scores = split(values, queries.given_count() * rows).into_iter();
    Ok(scores
        .map(|values| Scores::All {
            ids: ids.clone(),
            values,
        })
        .collect())
}

/// Streams rows `rows` of the store (a multiple of whole chunks, or everything) through the kernels into the sink.
///
/// # Errors
/// [`Error::NonFiniteScore`], [`Error::Store`] with the damaged chunk, [`Error::Core`] when cancelled, and the sink's.
pub(crate) fn stream(
    store: &StoreReader,
    queries: &Prepared<'_>,
    rows: Range<u64>,
    sink: &impl Sink,
    workers: &Workers,
) -> Result<()> {
    let progress = workers.progress();
    let row_bytes = store.layout().row_bytes() as u64;
    progress.add_total((rows.end - rows.start) * row_bytes);
    let threads = Mutex::new(Vec::new());
    let lock = || threads.lock().unwrap_or_else(PoisonError::into_inner);
    workers.for_each(store.chunks(rows), |span| {
        let mut thread = lock().pop().unwrap_or_else(|| Thread {
            store,
            queries,
            sink,
            workers,
            buffer: Buffer::default(),
            scratch: Scratch::default(),
            sums: Vec::new(),
            squares: Vec::new(),
            row_weights: Vec::new(),
            values: Vec::new(),
        });
        thread.score(&span)?;
        progress.add_done((span.rows.end - span.rows.start) * row_bytes);
        lock().push(thread);
        Ok(())
    })
}

/// Memory for stored bytes that begins at a cache line.
#[derive(Default)]
struct Buffer {
    bytes: Vec<u8>,
}

impl Buffer {
    const LINE: usize = 64;

    fn take(&mut self, length: usize) -> &mut [u8] {
        if self.bytes.len() < length + Self::LINE {
            self.bytes.resize(length + Self::LINE, 0);
        }
        let first = self.bytes.as_ptr().align_offset(Self::LINE).min(Self::LINE);
        &mut self.bytes[first..first + length]
    }
}

/// One thread of a pass over the store, and its memory.
struct Thread<'a, S> {
    store: &'a StoreReader,
    queries: &'a Prepared<'a>,
    sink: &'a S,
    workers: &'a Workers,
    buffer: Buffer,
    scratch: Scratch,
    sums: Vec<f64>,
    squares: Vec<f64>,
    /// One a row of `values`, where rows have weights.
    row_weights: Vec<f64>,
    /// (queries, rows) row-major.
    values: Vec<f32>,
}

impl<S: Sink> Thread<'_, S> {
    /// Scores a chunk.
    fn score(&mut self, span: &ChunkSpan) -> Result<()> {
        let mut reader = self.store.chunk_reader(span);
        if self.store.layout().row_bytes() > BUFFER_BYTES {
            return self.score_long_row(span, reader);
        }
        let mut buffer = std::mem::take(&mut self.buffer);
        let bytes = buffer.take(reader.length() as usize);
        reader.read(bytes)?;
        match self.queries.count() <= FUSED.1 {
            true => self.score_fused(span, reader, bytes)?,
            false => self.score_compared(span, reader, bytes)?,
        }
        self.buffer = buffer;
        Ok(())
    }

    /// Scores a chunk for a few queries: the products are memory-bound, so each piece is compared and multiplied at once,
    /// in the same loop where that is possible.
    fn score_fused(
        &mut self,
        span: &ChunkSpan,
        mut reader: ChunkReader<'_>,
        bytes: &[u8],
    ) -> Result<()> {
        let row_bytes = self.store.layout().row_bytes();
        let count = bytes.len() / row_bytes;
        // A multiple of the rows that the kernels take at once.
        let step = (FUSED.0 / row_bytes).clamp(4, SUMS.1) / 4 * 4;
        self.values.resize(self.queries.count() * count, 0.0);
        let mut checksum = match reader.has_one_checksum() {
            true => self.queries.checksum(bytes),
            false => None,
        };
        for (index, piece) in bytes.chunks(step * row_bytes).enumerate() {
            if checksum.is_none() {
                reader.compare(piece);
            }
            self.multiply(piece, index * step, count, checksum.as_mut())?;
        }
        if let Some(checksum) = checksum {
            reader.compare_whole(checksum.finish());
        }
        reader.finish()?;
        let ids = self.store.chunk_ids(span)?;
        self.put(span.rows.start, &ids)
    }

    /// Scores a chunk for many queries, as many rows at a time as there is room for their scores.
    fn score_compared(
        &mut self,
        span: &ChunkSpan,
        mut reader: ChunkReader<'_>,
        bytes: &[u8],
    ) -> Result<()> {
        reader.compare(bytes);
        reader.finish()?;
        let ids = self.store.chunk_ids(span)?;
        let row_bytes = self.store.layout().row_bytes();
        let room = VALUE_BYTES / self.workers.threads() / size_of::<f32>() / self.queries.count();
        let group = room.clamp(1, ids.len());
        let mut first = span.rows.start;
        for (ids, bytes) in ids.chunks(group).zip(bytes.chunks(group * row_bytes)) {
            self.values.resize(self.queries.count() * ids.len(), 0.0);
            let step = (CACHED_BYTES / row_bytes).clamp(4, SUMS.1) / 4 * 4;
            for (index, piece) in bytes.chunks(step * row_bytes).enumerate() {
                self.multiply(piece, index * step, ids.len(), None)?;
            }
            self.put(first, ids)?;
            first += ids.len() as u64;
        }
        Ok(())
    }

    /// Scores whole rows into the values, of `count` rows, from row `first` of them on; a checksum goes on beside.
    fn multiply(
        &mut self,
        bytes: &[u8],
        first: usize,
        count: usize,
        mut checksum: Option<&mut Checksum<'_>>,
    ) -> Result<()> {
        let layout = self.store.layout();
        let rows = StoredRows {
            scales: bytes,
            numbers: &bytes[layout.scale_bytes()..],
            first: 0,
            stride: layout.row_bytes(),
            count: bytes.len() / layout.row_bytes(),
        };
        self.squares.clear();
        self.squares.resize(rows.count, 0.0);
        let coordinates = 0..layout.width();
        if self.queries.are_cosines() {
            let squares = &mut self.squares;
            self.queries
                .add_squares(rows, coordinates.clone(), squares, &mut self.scratch);
        }
        if self.queries.weigh_rows() {
            self.row_weights.resize(count, 0.0);
            let weights = &mut self.row_weights[first..first + rows.count];
            weights.fill(0.0);
            self.queries
                .add_row_weights(rows, &coordinates, weights, &mut self.scratch);
        }
        let together = (SUMS.0 / rows.count).next_multiple_of(TILE);
        for start in (0..self.queries.count()).step_by(together) {
            let queries = start..self.queries.count().min(start + together);
            self.sums.clear();
            self.sums.resize(queries.len() * rows.count, 0.0);
            let (sums, scratch) = (&mut self.sums, &mut self.scratch);
            let coordinates = coordinates.clone();
            self.queries.multiply(
                rows,
                coordinates,
                queries.clone(),
                sums,
                (scratch, checksum.as_deref_mut()),
                self.workers,
            )?;
            self.keep(queries, first, count);
        }
        Ok(())
    }

    /// Turns the sums of some rows and queries into scores, from row `first` of `count` on.
    fn keep(&mut self, queries: Range<usize>, first: usize, count: usize) {
        let rows = self.squares.len();
        let end = queries.end;
        for query in queries.clone() {
            // The sums of a tile are (rows, queries of the tile).
            let tile = (query - queries.start) / TILE * TILE;
            let width = TILE.min(end - queries.start - tile);
            let sums = &self.sums[tile * rows..(tile + width) * rows];
            let sums = sums[query - queries.start - tile..].iter().step_by(width);
            let values = &mut self.values[query * count + first..][..rows];
            for ((value, &sum), &squares) in values.iter_mut().zip(sums).zip(&self.squares) {
                *value = self.queries.score(query, sum, squares);
            }
        }
    }

    /// Scores a row that is longer than the buffer, in parts.
    fn score_long_row(&mut self, span: &ChunkSpan, mut reader: ChunkReader<'_>) -> Result<()> {
        let layout = self.store.layout();
        let queries = 0..self.queries.count();
        let mut scales = vec![0; layout.scale_bytes()];
        reader.read(&mut scales)?;
        reader.compare(&scales);
        self.squares = vec![0.0];
        self.row_weights = vec![0.0];
        self.sums.clear();
        self.sums.resize(queries.len(), 0.0);
        for coordinates in self.queries.runs().parts(layout, BUFFER_BYTES) {
            let length = layout.number_bytes(coordinates.clone()).len();
            let bytes = self.buffer.take(length);
            reader.read(bytes)?;
            reader.compare(bytes);
            let rows = StoredRows {
                scales: &scales,
                numbers: bytes,
                first: coordinates.start,
                stride: 0,
                count: 1,
            };
            let scratch = &mut self.scratch;
            if self.queries.are_cosines() {
                let squares = &mut self.squares;
                self.queries
                    .add_squares(rows, coordinates.clone(), squares, scratch);
            }
            let weights = &mut self.row_weights;
            self.queries
                .add_row_weights(rows, &coordinates, weights, scratch);
            let (queries, sums) = (queries.clone(), &mut self.sums);
            self.queries.multiply(
                rows,
                coordinates,
                queries,
                sums,
                (scratch, None),
                self.workers,
            )?;
        }
        let rest = layout.row_bytes() - layout.number_bytes(0..layout.width()).end;
        let bytes = self.buffer.take(rest);
        reader.read(bytes)?;
        reader.compare(bytes);
        reader.finish()?;
        let ids = self.store.chunk_ids(span)?;
        self.values.resize(queries.len(), 0.0);
        self.keep(queries, 0, 1);
        self.put(span.rows.start, &ids)
    }

    /// Hands the scores of rows from `first` on to the sink.
    fn put(&mut self, first: u64, ids: &[u64]) -> Result<()> {
        self.queries
            .add_wide_scores(first, ids.len(), &mut self.values);
        if self.queries.weigh_rows() {
            for values in self.values.chunks_exact_mut(ids.len()) {
                for (value, weight) in values.iter_mut().zip(&self.row_weights) {
                    *value = (f64::from(*value) * weight) as f32;
                }
            }
        }
        // No branch a score, so that the compiler makes vectors of it.
        let finite = |values: &[f32]| {
            values
                .iter()
                .fold(true, |all, value| all & value.is_finite())
        };
        let per_query = self.values.chunks_exact(ids.len());
        if let Some((query, values)) = per_query.enumerate().find(|(_, values)| !finite(values)) {
            let mut scores = (first..).zip(ids).zip(values);
            if let Some(((row, &id), &value)) = scores.find(|(_, value)| !value.is_finite()) {
                let stored = self.store.read_rows(&[row], self.workers)?;
                return Err(Error::NonFiniteScore {
                    id,
                    query: self.queries.given(query),
                    value,
                    reason: match finite(&stored) {
                        true => {
                            "query and row are finite, but it or a number on its way exceeds float32 \
                             (3.4e38): scale the query down"
                        }
                        false => {
                            "the stored row is not finite: cache again and leave the example out"
                        }
                    },
                });
            }
        }
        let rows = first..first + ids.len() as u64;
        self.sink.put(rows, ids, &self.values)
    }
}

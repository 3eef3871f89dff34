//! Dense projections: normal numbers or random signs, generated straight into packed panels and never kept.

mod normal;

use std::ops::Range;

use crate::dtype::Rows;
use crate::error::Result;
use crate::panels::{LEFT, RIGHT, add_product, pack_rows, pack_token, packed_len};
use crate::parallel::Workers;
use crate::philox::{Philox, Stream};
use crate::project::{Projection, parts, project};
use crate::signs::Signed;
use crate::simd::{Path, prefetch};
use crate::spec::{GaussianKind, Spec, check_count, check_range};
use crate::workspace::with_f32;
use normal::{LANES, fill_pairs};

/// Coordinates a segment: the unit that threads share.
const SEGMENT: usize = 1024;

/// Coordinates that are summed at once, a divisor of [`SEGMENT`]: a panel stays in the first-level cache.
const DEPTH: usize = 128;

/// Entries in panels at a time, 512 KiB: they stay in the second-level cache for all rows of a block.
const PANEL_ENTRIES: usize = 1 << 17;

/// The most outputs in panels at a time, for [`DEPTH`] coordinates.
const COLUMNS: usize = PANEL_ENTRIES / DEPTH;

/// Rows in panels at a time: they stay in the second-level cache for all outputs.
const ROWS: usize = 64;

/// Random numbers generated at a time, if they follow one another.
const NUMBERS: usize = 2048;

/// What a buffer must hold beside the numbers asked for: generated are whole blocks of words, and whole vectors.
const SPARE: usize = 4 * LANES;

/// Double words generated at a time.
const WORDS: usize = 256;

/// Values a cache line.
const LINE: usize = 16;

const ONES: [f32; NUMBERS] = [1.0; NUMBERS];

const ZEROS: [f32; DEPTH] = [0.0; DEPTH];

/// A seeded dense projection; entry (coordinate i, output j) is random number `i k + j`.
#[derive(Debug, Clone)]
pub struct Gaussian {
    input_dim: usize,
    output_dim: usize,
    seed: u64,
    kind: GaussianKind,
    philox: Philox,
}

impl Gaussian {
    /// The dense projection `R^input_dim -> R^output_dim` of `seed`.
    ///
    /// # Errors
    /// [`crate::Error::Spec`] for a zero dimension.
    pub fn new(input_dim: usize, output_dim: usize, seed: u64, kind: GaussianKind) -> Result<Self> {
        check_count("gaussian", "input_dim", input_dim)?;
        check_count("gaussian", "output_dim", output_dim)?;
        check_range("gaussian", "output_dim", &[input_dim, output_dim, 2])?;
        Ok(Self {
            input_dim,
            output_dim,
            seed,
            kind,
            philox: Philox::new(seed),
        })
    }

    /// Coordinates of the input.
    pub fn input_dim(&self) -> usize {
        self.input_dim
    }

    /// Coordinates of the output.
    pub fn output_dim(&self) -> usize {
        self.output_dim
    }

    /// The factor that makes the projection unbiased: `1 / sqrt(k)`.
    pub fn scale(&self) -> f64 {
        1.0 / (self.output_dim as f64).sqrt()
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec::Gaussian {
            input_dim: self.input_dim,
            output_dim: self.output_dim,
            seed: self.seed,
            kind: self.kind,
        }
    }

    pub(crate) fn compress(
        &self,
        rows: &dyn Rows,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        self.compress_to(0..self.output_dim, rows, out, workers)
    }

    /// `out (n, columns.len())`: the coordinates `columns` of the output, scaled as all of it.
    pub(crate) fn compress_to(
        &self,
        columns: Range<usize>,
        rows: &dyn Rows,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let part = Part {
            gaussian: self,
            columns,
        };
        project(&part, rows, self.scale() as f32, out, workers)
    }

    /// Arithmetic operations a row.
    pub(crate) fn operations(&self) -> usize {
        self.input_dim.saturating_mul(self.output_dim)
    }

    /// Unscaled entries of `coordinate`, for all outputs.
    pub(crate) fn fill_entries(&self, coordinate: usize, entries: &mut [f32]) {
        let mut buffer = [0.0; NUMBERS + SPARE];
        let mut number = coordinate * self.output_dim;
        for entries in entries.chunks_mut(NUMBERS) {
            entries.copy_from_slice(self.numbers(number, entries.len(), &mut buffer));
            number += entries.len();
        }
    }

    /// `len` random numbers from number `first` on, at most [`NUMBERS`], in `buffer`.
    fn numbers<'a>(&self, first: usize, len: usize, buffer: &'a mut [f32]) -> &'a [f32] {
        let path = Path::current();
        let lead = match self.kind {
            GaussianKind::Normal => {
                let lead = first % 4;
                let pairs = &mut buffer[..(lead + len).next_multiple_of(2 * LANES)];
                let pairs = pairs.as_chunks_mut().0.as_chunks_mut().0;
                let mut words = [[0; LANES]; WORDS / LANES];
                let mut word = (first / 4 * 2) as u64;
                for pairs in pairs.chunks_mut(words.len()) {
                    let words = &mut words[..pairs.len()];
                    let flat = words.as_flattened_mut();
                    self.philox.fill_double_words(Stream::Gaussian, word, flat);
                    word += flat.len() as u64;
                    fill_pairs(path, pairs, words);
                }
                lead
            }
            GaussianKind::Rademacher => {
                let mut words = [0; NUMBERS / 64 + 2];
                let (word, bit) = ((first / 64) as u64, first % 64);
                let words = &mut words[..(bit + len).div_ceil(64) + 1];
                self.philox
                    .fill_double_words(Stream::Rademacher, word, words);
                buffer[..len].fill(0.0);
                f32::add_signed(path, buffer, 0, &ONES[..len], &[], words, bit);
                0
            }
        };
        &buffer[lead..lead + len]
    }

    /// Packs the entries of `coordinates` for the outputs `columns` into right panels.
    fn fill_panels(
        &self,
        coordinates: Range<usize>,
        columns: Range<usize>,
        panels: &mut [f32],
        buffer: &mut [f32],
    ) {
        let (depth, width) = (coordinates.len(), columns.len());
        // The numbers of one coordinate follow those of the one before.
        let step = if width == self.output_dim {
            NUMBERS / width
        } else {
            1
        };
        for start in (0..depth).step_by(step) {
            let number = (coordinates.start + start) * self.output_dim + columns.start;
            let count = step.min(depth - start);
            let numbers = self.numbers(number, count * width, buffer);
            for (offset, entries) in numbers.chunks_exact(width).enumerate() {
                pack_token::<RIGHT>(entries, start + offset, depth, panels);
            }
        }
    }
}

/// The projection to some coordinates of the output.
struct Part<'a> {
    gaussian: &'a Gaussian,
    columns: Range<usize>,
}

impl Projection for Part<'_> {
    fn input_dim(&self) -> usize {
        self.gaussian.input_dim
    }

    fn output_dim(&self) -> usize {
        self.columns.len()
    }

    fn segment(&self) -> usize {
        SEGMENT
    }

    fn row_block(&self) -> usize {
        usize::MAX
    }

    fn shared_rows(&self) -> usize {
        ROWS
    }

    fn operations(&self) -> usize {
        self.gaussian.input_dim.saturating_mul(self.columns.len())
    }

    fn accumulate(
        &self,
        rows: &dyn Rows,
        first: usize,
        start: usize,
        end: usize,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let path = Path::current();
        let k = self.columns.len();
        let count = out.len() / k;
        // Parts of about the same width, so that the last one is not much too narrow for what is generated at once.
        let width = k.div_ceil(k.div_ceil(COLUMNS)).next_multiple_of(RIGHT);
        let height = (PANEL_ENTRIES / (width * DEPTH) * DEPTH).min(end - start);
        let lengths = [
            packed_len::<RIGHT>(width, height),
            packed_len::<LEFT>(count.min(ROWS), DEPTH),
            LEFT * DEPTH,
            NUMBERS + SPARE,
        ];
        with_f32(lengths.iter().sum(), |scratch| {
            let (entries, scratch) = scratch.split_at_mut(lengths[0]);
            let (left, scratch) = scratch.split_at_mut(lengths[1]);
            let (tiles, numbers) = scratch.split_at_mut(lengths[2]);
            for coordinates in parts(start..end, height) {
                for columns in parts(self.columns.clone(), width) {
                    let panels_len = packed_len::<RIGHT>(columns.len(), DEPTH);
                    let slices = || parts(coordinates.clone(), DEPTH);
                    for (slice, right) in slices().zip(entries.chunks_mut(panels_len)) {
                        workers.check()?;
                        let columns = columns.clone();
                        self.gaussian.fill_panels(slice, columns, right, numbers);
                    }
                    let column = columns.start - self.columns.start;
                    let blocks = parts(first..first + count, ROWS);
                    for (block, out) in blocks.zip(out.chunks_mut(ROWS * k)) {
                        workers.check()?;
                        let shape = (block.len(), columns.len());
                        for (slice, right) in slices().zip(entries.chunks(panels_len)) {
                            let depth = slice.len();
                            let left = &mut left[..packed_len::<LEFT>(shape.0, depth)];
                            let right = &right[..packed_len::<RIGHT>(shape.1, depth)];
                            // What is packed next: the same rows further on, or the next ones from the start.
                            let ahead = if slice.end < coordinates.end {
                                (block.clone(), slice.end..coordinates.end)
                            } else {
                                (block.end..first + count, coordinates.clone())
                            };
                            pack_left(path, rows, (block.clone(), slice), ahead, tiles, left);
                            add_product(path, (left, right), depth, &mut out[column..], k, shape);
                        }
                    }
                }
            }
            Ok(())
        })
    }
}

/// Packs `slice` of the rows `block` into left panels. Meanwhile as much as that of the rows and coordinates of `ahead`, or
/// what there is, is brought near.
fn pack_left(
    path: Path,
    rows: &dyn Rows,
    (block, slice): (Range<usize>, Range<usize>),
    (mut rows_ahead, ahead): (Range<usize>, Range<usize>),
    tiles: &mut [f32],
    panels: &mut [f32],
) {
    let depth = slice.len();
    let panels = panels.chunks_exact_mut(LEFT * depth);
    for (some, panel) in parts(block, LEFT).zip(panels) {
        for row in rows_ahead.by_ref().take(LEFT) {
            let values = rows.in_place(row, ahead.start, ahead.len().min(DEPTH));
            values.iter().step_by(LINE).for_each(prefetch);
        }
        let mut values = [&ZEROS[..depth]; LEFT];
        let tiles = tiles.chunks_exact_mut(depth);
        for (values, (row, tile)) in values.iter_mut().zip(some.zip(tiles)) {
            *values = rows.tile(row, slice.start, tile);
        }
        pack_rows(path, values, panel);
    }
}

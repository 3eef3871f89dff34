//! SJLT: each coordinate goes to `nnz` of k buckets with random signs.
//!
//! `nnz = s` means s independent sketches ("draws") of width `w = k / s`, one after the other in the
//! output. The iid kind draws a bucket for each coordinate. The cyclic kind cuts the coordinates
//! into pages of w and turns each page by one random rotation:
//! `out[d w + (j + r) mod w] += sign * x[b w + j] / sqrt(s)` for page b and draw d. Two coordinates of
//! one page never collide, two of different pages collide with probability 1 / w.

use crate::dtype::Rows;
use crate::error::{Error, Result};
use crate::parallel::Workers;
use crate::philox::{Philox, Stream, scale_word};
use crate::project::{Projection, project};
use crate::signs::{add_signed, fill_masks};
use crate::simd::Path;
use crate::spec::{SjltKind, Spec, check_count, check_range};

/// Coordinates read at a time: values, signs and buckets stay in the first-level cache. Their sign bits are what the
/// lanes of the generator give at once.
const TILE: usize = 2048;

/// Words for the sign bits of a tile that is cut into padded pages and does not begin at one, and one more.
const SIGN_WORDS: usize = 2 * TILE / 32 + 8;

/// Coordinates a segment, at least: long enough that adding its k partial sums is cheap.
const SEGMENT: usize = 1 << 18;

/// Page starts in the sign stream are multiples of this many bits: one Philox block.
const SIGN_ALIGNMENT: usize = 128;

/// A seeded sparse Johnson-Lindenstrauss transform.
#[derive(Debug, Clone)]
pub struct Sjlt {
    input_dim: usize,
    output_dim: usize,
    seed: u64,
    nnz: usize,
    kind: SjltKind,
    philox: Philox,
}

/// Neighbouring coordinates that go to neighbouring buckets.
struct Run {
    /// The first coordinate.
    start: usize,
    len: usize,
    /// Bucket of the first one.
    bucket: usize,
    /// Number of its sign bit in the stream.
    bit: usize,
}

impl Sjlt {
    /// The SJLT `R^input_dim -> R^output_dim` of `seed`.
    ///
    /// # Errors
    /// [`Error::Spec`] for a zero dimension, or an `nnz` that does not divide `output_dim`.
    pub fn new(
        input_dim: usize,
        output_dim: usize,
        seed: u64,
        nnz: usize,
        kind: SjltKind,
    ) -> Result<Self> {
        check_count("sjlt", "input_dim", input_dim)?;
        check_count("sjlt", "output_dim", output_dim)?;
        check_count("sjlt", "nnz", nnz)?;
        if !output_dim.is_multiple_of(nnz) {
            return Err(Error::spec(
                "sjlt",
                "nnz",
                format!("a divisor of output_dim={output_dim}"),
                nnz,
            ));
        }
        let width = output_dim / nnz;
        check_range("sjlt", "output_dim", &[output_dim])?;
        check_range("sjlt", "input_dim", &[input_dim])?;
        let padded = width.next_multiple_of(SIGN_ALIGNMENT);
        let pages = input_dim.div_ceil(width);
        check_range("sjlt", "input_dim", &[nnz, pages, padded])?;
        check_range(
            "sjlt",
            "input_dim",
            &[nnz, input_dim.next_multiple_of(SIGN_ALIGNMENT)],
        )?;
        Ok(Self {
            input_dim,
            output_dim,
            seed,
            nnz,
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

    /// The factor that makes the SJLT unbiased: `1 / sqrt(nnz)`.
    pub fn scale(&self) -> f64 {
        1.0 / (self.nnz as f64).sqrt()
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec::Sjlt {
            input_dim: self.input_dim,
            output_dim: self.output_dim,
            seed: self.seed,
            nnz: self.nnz,
            kind: self.kind,
        }
    }

    /// `out = scale * extra_scale * S rows`.
    pub(crate) fn compress(
        &self,
        rows: &dyn Rows,
        extra_scale: f64,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        project(
            self,
            rows,
            (self.scale() * extra_scale) as f32,
            out,
            workers,
        )
    }

    /// Calls `visit(bucket, sign)` for each of the `nnz` non-zeros of a coordinate's column.
    pub(crate) fn for_each_entry(&self, coordinate: usize, mut visit: impl FnMut(usize, f64)) {
        let sign = |bit: usize| {
            let word = self.philox.word(Stream::Sign, bit as u64 / 32);
            if word >> (bit % 32) & 1 == 0 {
                1.0
            } else {
                -1.0
            }
        };
        for draw in 0..self.nnz {
            match self.kind {
                SjltKind::Iid => {
                    let mut bucket = [0];
                    let number = self.iid_number(draw, coordinate);
                    self.fill_buckets(draw, number, &mut bucket);
                    visit(bucket[0], sign(number));
                }
                SjltKind::Cyclic => self.for_each_run(draw, coordinate, coordinate + 1, |run| {
                    visit(run.bucket, sign(run.bit));
                }),
            }
        }
    }

    fn width(&self) -> usize {
        self.output_dim / self.nnz
    }

    /// Number of a coordinate's bucket and sign in one draw of the iid kind.
    fn iid_number(&self, draw: usize, coordinate: usize) -> usize {
        draw * self.input_dim.next_multiple_of(SIGN_ALIGNMENT) + coordinate
    }

    /// Buckets number `first..` of the iid kind, which are of one draw.
    fn fill_buckets(&self, draw: usize, first: usize, buckets: &mut [usize]) {
        let width = self.width();
        if width as u64 > 1 << 32 {
            for (number, bucket) in (first as u64..).zip(buckets) {
                let drawn = self.philox.draw_wide(Stream::Bucket, width as u64, number);
                *bucket = draw * width + drawn as usize;
            }
            return;
        }
        let mut words = [0; TILE];
        let words = &mut words[..buckets.len()];
        self.philox.fill_words(Stream::Bucket, first as u64, words);
        for (bucket, &word) in buckets.iter_mut().zip(&*words) {
            *bucket = draw * width + scale_word(word, width as u64) as usize;
        }
    }

    /// Sign words that hold the bits `first..=last`, from the block of the first on. Returns that block's first bit.
    fn fill_signs(&self, first: usize, last: usize, words: &mut [u32; SIGN_WORDS]) -> usize {
        let base = first - first % SIGN_ALIGNMENT;
        let count = (last - base) / 32 + 1;
        let first_word = base as u64 / 32;
        self.philox
            .fill_words(Stream::Sign, first_word, &mut words[..count]);
        base
    }

    /// The end of the cyclic kind's tile that begins at `start`: inside a page where pages are long, after some whole
    /// pages where they are short, so that tiles begin at whole blocks of sign bits.
    fn tile_end(&self, start: usize, end: usize) -> usize {
        let width = self.width();
        let (page, within) = (start / width, start % width);
        let tile_end = if width >= TILE {
            page * width + width.min((within / TILE + 1) * TILE)
        } else {
            let pages = (TILE / width.next_multiple_of(SIGN_ALIGNMENT)).max(1);
            (page / pages + 1) * pages * width
        };
        tile_end.min(end)
    }

    /// Number of a coordinate's sign bit in one draw of the cyclic kind.
    fn sign_bit(&self, draw: usize, coordinate: usize) -> usize {
        let width = self.width();
        let page = draw * self.input_dim.div_ceil(width) + coordinate / width;
        page * width.next_multiple_of(SIGN_ALIGNMENT) + coordinate % width
    }

    /// Cuts the coordinates `start..end` at the ends of pages and where the rotation wraps, in one draw of the cyclic
    /// kind.
    fn for_each_run(&self, draw: usize, start: usize, end: usize, mut visit: impl FnMut(Run)) {
        let width = self.width();
        let pages = self.input_dim.div_ceil(width);
        let mut position = start;
        while position < end {
            let (page, within) = (position / width, position % width);
            let number = (draw * pages + page) as u64;
            let rotation = self.philox.draw(Stream::Rotation, width as u64, number) as usize;
            let turned = within + rotation;
            let bucket = if turned < width {
                turned
            } else {
                turned - width
            };
            let len = (width - within).min(end - position).min(width - bucket);
            visit(Run {
                start: position,
                len,
                bucket: draw * width + bucket,
                bit: self.sign_bit(draw, position),
            });
            position += len;
        }
    }

    fn accumulate_cyclic(
        &self,
        rows: &dyn Rows,
        first: usize,
        (start, end): (usize, usize),
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let path = Path::current();
        let mut values = [0.0; TILE];
        let mut words = [0; SIGN_WORDS];
        let mut tile_start = start;
        while tile_start < end {
            workers.check()?;
            let tile_end = self.tile_end(tile_start, end);
            for draw in 0..self.nnz {
                let first_bit = self.sign_bit(draw, tile_start);
                let last_bit = self.sign_bit(draw, tile_end - 1);
                let base = self.fill_signs(first_bit, last_bit, &mut words);
                self.for_each_run(draw, tile_start, tile_end, |run| {
                    for (row, out) in out.chunks_mut(self.output_dim).enumerate() {
                        let values = rows.tile(first + row, run.start, &mut values[..run.len]);
                        let out = &mut out[run.bucket..run.bucket + run.len];
                        add_signed(path, out, values, &words, run.bit - base);
                    }
                });
            }
            tile_start = tile_end;
        }
        Ok(())
    }

    fn accumulate_iid(
        &self,
        rows: &dyn Rows,
        first: usize,
        (start, end): (usize, usize),
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let path = Path::current();
        let mut values = [0.0; TILE];
        let mut words = [0; SIGN_WORDS];
        let mut masks = [0; TILE];
        let mut buckets = [0; TILE];
        for start in (start..end).step_by(TILE) {
            workers.check()?;
            let len = TILE.min(end - start);
            let (masks, buckets) = (&mut masks[..len], &mut buckets[..len]);
            for draw in 0..self.nnz {
                let number = self.iid_number(draw, start);
                self.fill_buckets(draw, number, buckets);
                let base = self.fill_signs(number, number + len - 1, &mut words);
                fill_masks(path, masks, &words, number - base);
                for (row, out) in out.chunks_mut(self.output_dim).enumerate() {
                    let values = rows.tile(first + row, start, &mut values[..len]);
                    for ((&value, &mask), &bucket) in values.iter().zip(&*masks).zip(&*buckets) {
                        out[bucket] += f32::from_bits(value.to_bits() ^ mask);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Projection for Sjlt {
    fn input_dim(&self) -> usize {
        self.input_dim
    }

    fn output_dim(&self) -> usize {
        self.output_dim
    }

    fn segment(&self) -> usize {
        SEGMENT.max(self.output_dim.saturating_mul(8))
    }

    fn row_block(&self) -> usize {
        32
    }

    fn operations(&self) -> usize {
        self.input_dim.saturating_mul(4 * self.nnz)
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
        match self.kind {
            SjltKind::Cyclic => self.accumulate_cyclic(rows, first, (start, end), out, workers),
            SjltKind::Iid => self.accumulate_iid(rows, first, (start, end), out, workers),
        }
    }
}

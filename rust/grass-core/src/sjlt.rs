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
use crate::spec::{SjltKind, Spec, check_count, check_range};

/// Coordinates read at a time: values, signs and buckets stay in the first-level cache.
const TILE: usize = 1024;

/// Coordinates a segment, at least: long enough that adding its k partial sums is cheap.
const SEGMENT: usize = 1 << 18;

/// Page starts in the sign stream are multiples of this many bits: one Philox block.
const SIGN_ALIGNMENT: u64 = 128;

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

/// Neighbouring coordinates of a tile that go to neighbouring buckets.
struct Run {
    /// Place in the tile.
    offset: usize,
    len: usize,
    /// Bucket of the first one.
    bucket: usize,
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
        let padded = width.next_multiple_of(SIGN_ALIGNMENT as usize);
        let pages = input_dim.div_ceil(width);
        check_range("sjlt", "input_dim", &[nnz, pages, padded])?;
        check_range("sjlt", "input_dim", &[nnz, input_dim.next_multiple_of(128)])?;
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
        for draw in 0..self.nnz {
            let mut mask = [0];
            match self.kind {
                SjltKind::Iid => {
                    let mut bucket = [0];
                    self.fill_iid(draw, coordinate, &mut bucket, &mut mask);
                    visit(bucket[0], sign_of(mask[0]));
                }
                SjltKind::Cyclic => self.for_each_run(draw, coordinate, &mut mask, |run, mask| {
                    visit(run.bucket, sign_of(mask[0]));
                }),
            }
        }
    }

    fn width(&self) -> usize {
        self.output_dim / self.nnz
    }

    /// Buckets and sign masks of the coordinates from `start` on, in one draw of the iid kind.
    fn fill_iid(&self, draw: usize, start: usize, buckets: &mut [usize], masks: &mut [u32]) {
        let width = self.width();
        let first = (draw * self.input_dim.next_multiple_of(128) + start) as u64;
        self.philox.fill_sign_masks(Stream::Sign, first, masks);
        if width as u64 > 1 << 32 {
            for (index, bucket) in buckets.iter_mut().enumerate() {
                let drawn =
                    self.philox
                        .draw_wide(Stream::Bucket, width as u64, first + index as u64);
                *bucket = draw * width + drawn as usize;
            }
            return;
        }
        let mut words = [0; TILE];
        let words = &mut words[..buckets.len()];
        self.philox.fill_words(Stream::Bucket, first, words);
        for (bucket, &word) in buckets.iter_mut().zip(&*words) {
            *bucket = draw * width + scale_word(word, width as u64) as usize;
        }
    }

    /// Cuts the coordinates from `start` on, as many as `masks` is long, at the ends of pages and where the rotation
    /// wraps. Calls `visit` with each run and its sign masks, in one draw of the cyclic kind.
    fn for_each_run(
        &self,
        draw: usize,
        start: usize,
        masks: &mut [u32],
        mut visit: impl FnMut(Run, &[u32]),
    ) {
        let width = self.width();
        let pages = self.input_dim.div_ceil(width);
        let padded = (width as u64).next_multiple_of(SIGN_ALIGNMENT);
        let len = masks.len();
        let mut offset = 0;
        while offset < len {
            let (page, within) = ((start + offset) / width, (start + offset) % width);
            let number = (draw * pages + page) as u64;
            let rotation = self.philox.draw(Stream::Rotation, width as u64, number) as usize;
            let page_len = (width - within).min(len - offset);
            let masks = &mut masks[offset..offset + page_len];
            self.philox
                .fill_sign_masks(Stream::Sign, number * padded + within as u64, masks);
            let turned = within as u128 + rotation as u128;
            let bucket = (turned % width as u128) as usize;
            let before_wrap = page_len.min(width - bucket);
            let base = draw * width;
            let run = |from: usize, to: usize, bucket: usize| Run {
                offset: offset + from,
                len: to - from,
                bucket: base + bucket,
            };
            visit(run(0, before_wrap, bucket), &masks[..before_wrap]);
            if before_wrap < page_len {
                visit(run(before_wrap, page_len, 0), &masks[before_wrap..]);
            }
            offset += page_len;
        }
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
        let mut values = [0.0; TILE];
        let mut masks = [0; TILE];
        let mut buckets = [0; TILE];
        for start in (start..end).step_by(TILE) {
            workers.check()?;
            let len = TILE.min(end - start);
            let masks = &mut masks[..len];
            for draw in 0..self.nnz {
                match self.kind {
                    SjltKind::Iid => {
                        let buckets = &mut buckets[..len];
                        self.fill_iid(draw, start, buckets, masks);
                        for (row, out) in out.chunks_mut(self.output_dim).enumerate() {
                            let values = rows.tile(first + row, start, &mut values[..len]);
                            for ((&value, &mask), &bucket) in
                                values.iter().zip(&*masks).zip(&*buckets)
                            {
                                out[bucket] += signed(value, mask);
                            }
                        }
                    }
                    SjltKind::Cyclic => {
                        self.for_each_run(draw, start, masks, |run, masks| {
                            for (row, out) in out.chunks_mut(self.output_dim).enumerate() {
                                let values = rows.tile(
                                    first + row,
                                    start + run.offset,
                                    &mut values[..run.len],
                                );
                                let out = &mut out[run.bucket..run.bucket + run.len];
                                for ((total, &value), &mask) in
                                    out.iter_mut().zip(values).zip(masks)
                                {
                                    *total += signed(value, mask);
                                }
                            }
                        });
                    }
                }
            }
        }
        Ok(())
    }
}

/// `value`, negated where `mask` has the sign bit of an f32 set.
#[inline]
fn signed(value: f32, mask: u32) -> f32 {
    f32::from_bits(value.to_bits() ^ mask)
}

fn sign_of(mask: u32) -> f64 {
    if mask == 0 { 1.0 } else { -1.0 }
}

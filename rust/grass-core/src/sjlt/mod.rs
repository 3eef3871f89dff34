//! SJLT: each coordinate goes to `nnz` of k buckets with random signs.
//!
//! `nnz = s` means s independent sketches ("draws") of width `w = k / s`, one after the other in the
//! output. The iid kind draws a bucket for each coordinate. The cyclic kind cuts the coordinates
//! into pages of w and turns each page by one random rotation:
//! `out[d w + (j + r) mod w] += sign * x[b w + j] / sqrt(s)` for page b and draw d. Two coordinates of
//! one page never collide, two of different pages collide with probability 1 / w.

mod cyclic;
mod iid;
#[cfg(test)]
mod plain;

use crate::dtype::Rows;
use crate::error::{Error, Result};
use crate::parallel::Workers;
use crate::philox::{Philox, Stream};
use crate::project::{Projection, project};
use crate::simd::Path;
use crate::spec::{SjltKind, Spec, check_count, check_range};

/// Coordinates a segment, at least: long enough that adding its k partial sums is cheap.
const SEGMENT: usize = 1 << 18;

/// The most rows that share what is drawn.
const ROWS: usize = 32;

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
        for draw in 0..self.nnz {
            let (bucket, bit) = match self.kind {
                SjltKind::Cyclic => cyclic::entry(self, draw, coordinate),
                SjltKind::Iid => iid::entry(self, draw, coordinate),
            };
            let minus = self.philox.bit(Stream::Sign, bit as u64);
            visit(draw * self.width() + bucket, if minus { -1.0 } else { 1.0 });
        }
    }

    fn width(&self) -> usize {
        self.output_dim / self.nnz
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
        ROWS
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
        let accumulate = match self.kind {
            SjltKind::Cyclic => cyclic::accumulate,
            SjltKind::Iid => iid::accumulate,
        };
        let path = Path::current();
        accumulate(self, path, rows, first, (start, end), out, workers)
    }
}

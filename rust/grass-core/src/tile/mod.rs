//! Tile sketch: the whole gradient of a linear layer, sketched as it is computed and never written.
//!
//! The gradient `G = sum_t g_t a_t^T` (d_out x d_in) is cut into tiles of h x w, `h w = k` the most square factorisation
//! with `h <= w`. Each tile is turned by one toroidal shift and gets signs a row and signs a column, drawn afresh:
//! `out[(i + r) mod h, (j + c) mod w] += alpha_i beta_j G_tile[i, j]`. Two coordinates of one tile never collide, two of
//! different tiles collide with probability 1 / k, and the product of two coordinates' signs has mean zero, so the sketch
//! is unbiased and its variance at most that of the iid SJLT.
//!
//! Beside inputs and outputs a thread takes 6 MiB at most: panels of both factors, and the sums of a sketch, unless k is
//! so large that they are those of the output.

mod fast;
#[cfg(test)]
mod plain;
mod tiles;

use crate::dtype::Factor;
use crate::error::{Error, Result};
use crate::parallel::Workers;
use crate::philox::{Philox, Stream, scale_word};
use crate::project::MOST_SUMS;
use crate::simd::Path;
use crate::spec::{Spec, check_count, check_range};
use crate::workspace::with_f32;

use fast::{BLOCK_COLUMNS, Sketcher};

/// The most coordinates of an output: its sides are found by trial division.
const MOST_OUTPUTS: usize = 1 << 32;

/// The most examples that a thread takes at a time.
const EXAMPLES: usize = 32;

/// The seeded sketch of a linear layer's gradient, a tile at a time.
#[derive(Debug, Clone)]
pub struct TileSketch {
    in_features: usize,
    out_features: usize,
    /// Rows of a tile, h.
    height: usize,
    /// Columns of a tile, w.
    width: usize,
    seed: u64,
    philox: Philox,
}

impl TileSketch {
    /// The tile sketch of `seed` for a layer of these widths.
    ///
    /// # Errors
    /// [`Error::Spec`] for a zero dimension, or an `output_dim` above 2^32.
    pub fn new(
        in_features: usize,
        out_features: usize,
        output_dim: usize,
        seed: u64,
    ) -> Result<Self> {
        check_count("tile", "in_features", in_features)?;
        check_count("tile", "out_features", out_features)?;
        check_count("tile", "output_dim", output_dim)?;
        if output_dim > MOST_OUTPUTS {
            return Err(Error::spec(
                "tile",
                "output_dim",
                format!("at most {MOST_OUTPUTS}"),
                output_dim,
            ));
        }
        let height = (1..=output_dim.isqrt())
            .rev()
            .find(|&height| output_dim.is_multiple_of(height))
            .unwrap_or(1);
        let width = output_dim / height;
        check_range("tile", "in_features", &[in_features, out_features])?;
        let tiles = [in_features.div_ceil(width), out_features.div_ceil(height)];
        check_range("tile", "in_features", &[tiles[0], tiles[1], 2 * width])?;
        Ok(Self {
            in_features,
            out_features,
            height,
            width,
            seed,
            philox: Philox::new(seed),
        })
    }

    /// Inputs and outputs of the layer.
    pub fn features(&self) -> (usize, usize) {
        (self.in_features, self.out_features)
    }

    /// Coordinates of the output, k.
    pub fn output_dim(&self) -> usize {
        self.height * self.width
    }

    pub(crate) fn spec(&self) -> Spec {
        Spec::Tile {
            in_features: self.in_features,
            out_features: self.out_features,
            output_dim: self.output_dim(),
            seed: self.seed,
        }
    }

    /// Arithmetic operations an example of `tokens` tokens.
    pub(crate) fn operations(&self, tokens: usize) -> usize {
        (self.in_features * self.out_features).saturating_mul(tokens.saturating_add(4))
    }

    /// Bucket and sign of the gradient's coordinate of one output and one input of the layer.
    pub(crate) fn entry(&self, output: usize, input: usize) -> (usize, f64) {
        let (i, j) = (output % self.height, input % self.width);
        let tile = output / self.height * self.tile_columns() + input / self.width;
        let (row_shift, column_shift) = self.shift([0, 1].map(|draw| {
            self.philox
                .word(Stream::TileShift, (2 * tile + draw) as u64)
        }));
        let row = (i + row_shift) % self.height;
        let column = (j + column_shift) % self.width;
        let minus = |stream, bit: usize| self.philox.bit(stream, bit as u64);
        let negative = minus(Stream::TileRowSign, tile * self.height + i)
            != minus(Stream::TileColumnSign, tile * self.width + j);
        (row * self.width + column, if negative { -1.0 } else { 1.0 })
    }

    /// Tiles side by side.
    fn tile_columns(&self) -> usize {
        self.in_features.div_ceil(self.width)
    }

    /// The shift of a tile's rows and columns, from its two words.
    fn shift(&self, words: [u32; 2]) -> (usize, usize) {
        (
            scale_word(words[0], self.height as u64) as usize,
            scale_word(words[1], self.width as u64) as usize,
        )
    }

    /// Rows of the gradient whose sketch is summed on its own: a function of the structure alone, so that a result has
    /// the same bits however many threads share an example. So many that adding the k partial sums is cheap.
    fn segment(&self) -> usize {
        let rows = (16 * self.output_dim()).div_ceil(self.in_features);
        rows.next_multiple_of(fast::PACKED_COLUMNS)
    }

    pub(crate) fn compress(
        &self,
        inputs: &Factor,
        grad_outputs: &Factor,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()> {
        let (n, tokens) = (inputs.shape()[0], inputs.shape()[1]);
        let k = self.output_dim();
        let workers = workers.for_operations(self.operations(tokens).saturating_mul(n));
        let sketcher = Sketcher {
            sketch: self,
            tokens,
            inputs,
            grad_outputs,
            workers: &workers,
            path: Path::current(),
        };
        if k > MOST_SUMS {
            return workers.for_each_chunk(out, k, |example, out| {
                sketcher.sketch(example, 0..self.out_features, out)
            });
        }
        let segment = self.segment();
        let segments = self.out_features.div_ceil(segment);
        let rows = |index: usize| index * segment..self.out_features.min((index + 1) * segment);
        let len = self.height * self.stride();
        if segments == 1 || n >= workers.threads() {
            let group = n.div_ceil(workers.threads()).clamp(1, EXAMPLES);
            return workers.for_each_chunk(out, group * k, |index, out| {
                with_f32(len, |sums| {
                    for (example, out) in (index * group..).zip(out.chunks_exact_mut(k)) {
                        out.fill(0.0);
                        for segment in 0..segments {
                            sketcher.sketch(example, rows(segment), sums)?;
                            self.fold(sums, out);
                        }
                    }
                    Ok(())
                })
            });
        }
        let wave = workers.threads().min(segments);
        with_f32(wave * len, |sums| {
            for (example, out) in out.chunks_exact_mut(k).enumerate() {
                out.fill(0.0);
                for first in (0..segments).step_by(wave) {
                    let sums = &mut sums[..wave.min(segments - first) * len];
                    workers.for_each_chunk(sums, len, |offset, sums| {
                        sketcher.sketch(example, rows(first + offset), sums)
                    })?;
                    for sums in sums.chunks_exact(len) {
                        self.fold(sums, out);
                    }
                }
            }
            Ok(())
        })
    }

    /// Sums a row of a sketch in the making: so many that what a shift moves past a tile's width need not be cut.
    fn stride(&self) -> usize {
        self.width + self.width.min(BLOCK_COLUMNS)
    }

    /// Adds rows of sums to `out (k,)`: those past a tile's width to its first columns.
    fn fold(&self, sums: &[f32], out: &mut [f32]) {
        let sums = sums.chunks_exact(sums.len() / self.height);
        for (out, sums) in out.chunks_exact_mut(self.width).zip(sums) {
            let (within, past) = sums.split_at(self.width);
            for (total, sum) in out.iter_mut().zip(within) {
                *total += sum;
            }
            for (total, sum) in out.iter_mut().zip(past) {
                *total += sum;
            }
        }
    }
}

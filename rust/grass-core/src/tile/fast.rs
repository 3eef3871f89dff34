//! The tile sketch through panels: blocks of the gradient are multiplied into the first-level cache, and from there
//! added with their signs, a tile's part at a time.

use std::ops::Range;

use super::TileSketch;
use super::tiles::{Tiles, cut};
use crate::dtype::Rows;
use crate::error::Result;
use crate::panels::{LEFT, RIGHT, add_product, pack_token, packed_len};
use crate::parallel::Workers;
use crate::signs::with_sign;
use crate::simd::{Path, for_each_path};
use crate::workspace::with_f32;

/// Tokens multiplied at a time.
const TOKENS: usize = 128;

/// Columns of a factor packed at a time: 256 KiB of each factor, which stay in the second-level cache.
pub(super) const PACKED_COLUMNS: usize = 512;

/// Rows and columns of the gradient computed at a time.
pub(super) const BLOCK_ROWS: usize = 64;
pub(super) const BLOCK_COLUMNS: usize = 128;

/// Sketches a range of an example's gradient rows at a time.
pub(super) struct Sketcher<'a> {
    pub(super) sketch: &'a TileSketch,
    /// Tokens of an example.
    pub(super) tokens: usize,
    /// The factors, a row a token, one example after another.
    pub(super) inputs: &'a dyn Rows,
    pub(super) grad_outputs: &'a dyn Rows,
    pub(super) workers: &'a Workers,
    pub(super) path: Path,
}

/// Rows of sums, one a row of a tile; what a shift moves past a tile's width and still fits is to be folded back.
struct Sums<'a> {
    values: &'a mut [f32],
    stride: usize,
}

impl Sketcher<'_> {
    /// Writes the sketch of `rows` of an example's gradient to `sums`, as many rows as a tile has.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    pub(super) fn sketch(
        &self,
        example: usize,
        rows: Range<usize>,
        sums: &mut [f32],
    ) -> Result<()> {
        sums.fill(0.0);
        let mut sums = Sums {
            stride: sums.len() / self.sketch.height,
            values: sums,
        };
        let tokens = example * self.tokens..(example + 1) * self.tokens;
        if tokens.len() == 1 {
            return self.add_outer_product(tokens.start, rows, &mut sums);
        }
        let held = tokens.len().min(TOKENS);
        let [most_rows, most_columns] =
            [rows.len(), self.sketch.in_features].map(|len| len.min(PACKED_COLUMNS));
        let lens = [
            packed_len::<RIGHT>(most_columns, held),
            packed_len::<LEFT>(most_rows, held),
        ];
        let product_len = BLOCK_ROWS * BLOCK_COLUMNS;
        let masks_len = Tiles::buffer_len(self.sketch);
        with_f32(product_len + lens[0] + lens[1] + masks_len, |buffer| {
            let (product, buffer) = buffer.split_at_mut(product_len);
            let (right, buffer) = buffer.split_at_mut(lens[0]);
            let (left, masks) = buffer.split_at_mut(lens[1]);
            let mut scratch = Scratch {
                left,
                right,
                product,
                tiles: Tiles::new(self.sketch, self.path, masks),
            };
            for rows in cut(rows, PACKED_COLUMNS) {
                for first in tokens.clone().step_by(TOKENS) {
                    let tokens = first..tokens.end.min(first + TOKENS);
                    self.add_products(tokens, rows.clone(), &mut scratch, &mut sums)?;
                }
            }
            Ok(())
        })
    }

    /// Adds the products of some tokens' factors.
    fn add_products(
        &self,
        tokens: Range<usize>,
        rows: Range<usize>,
        scratch: &mut Scratch,
        sums: &mut Sums,
    ) -> Result<()> {
        let count = tokens.len();
        let Scratch {
            left,
            right,
            product,
            tiles,
        } = scratch;
        pack::<LEFT>(self.grad_outputs, tokens.clone(), rows.clone(), left);
        for columns in cut(0..self.sketch.in_features, PACKED_COLUMNS) {
            pack::<RIGHT>(self.inputs, tokens.clone(), columns.clone(), right);
            for block_rows in cut(rows.clone(), BLOCK_ROWS) {
                self.workers.check()?;
                tiles.draw(block_rows.clone(), columns.clone());
                let left = &left[(block_rows.start - rows.start) * count..];
                for block_columns in cut(columns.clone(), BLOCK_COLUMNS) {
                    let right = &right[(block_columns.start - columns.start) * count..];
                    product.fill(0.0);
                    add_product(
                        self.path,
                        (left, right),
                        count,
                        product,
                        BLOCK_COLUMNS,
                        (block_rows.len(), block_columns.len()),
                    );
                    tiles.for_each_run(block_columns.clone(), sums.stride, |run| {
                        let row = run.rows.start - block_rows.start;
                        let column = run.columns.start - block_columns.start;
                        add_signed_rows(
                            self.path,
                            &mut sums.values[run.row * sums.stride + run.column..],
                            sums.stride,
                            &product[row * BLOCK_COLUMNS + column..],
                            run.row_masks,
                            run.column_masks,
                        );
                    });
                }
            }
        }
        Ok(())
    }

    /// Adds the product of one token's factors, of which each entry is but one multiplication.
    fn add_outer_product(&self, token: usize, rows: Range<usize>, sums: &mut Sums) -> Result<()> {
        let (mut left, mut right) = ([0.0; BLOCK_ROWS], [0.0; PACKED_COLUMNS]);
        with_f32(Tiles::buffer_len(self.sketch), |masks| {
            let mut tiles = Tiles::new(self.sketch, self.path, masks);
            for columns in cut(0..self.sketch.in_features, PACKED_COLUMNS) {
                let right = &mut right[..columns.len()];
                let inputs = self.inputs.tile(token, columns.start, right);
                for rows in cut(rows.clone(), BLOCK_ROWS) {
                    self.workers.check()?;
                    let left = &mut left[..rows.len()];
                    let grad_outputs = self.grad_outputs.tile(token, rows.start, left);
                    tiles.draw(rows.clone(), columns.clone());
                    tiles.for_each_run(columns.clone(), sums.stride, |run| {
                        add_signed_outer_product(
                            self.path,
                            &mut sums.values[run.row * sums.stride + run.column..],
                            sums.stride,
                            &grad_outputs[run.rows.start - rows.start..],
                            &inputs[run.columns.start - columns.start..],
                            run.row_masks,
                            run.column_masks,
                        );
                    });
                }
            }
            Ok(())
        })
    }
}

/// What the products of some tokens' factors go through.
struct Scratch<'a> {
    /// Panels of the output gradients, and of the inputs.
    left: &'a mut [f32],
    right: &'a mut [f32],
    /// A block of the gradient.
    product: &'a mut [f32],
    tiles: Tiles<'a>,
}

/// Packs columns of some tokens into panels, some tokens of a panel at a time: they lie side by side.
fn pack<const WIDTH: usize>(
    factor: &dyn Rows,
    tokens: Range<usize>,
    columns: Range<usize>,
    panels: &mut [f32],
) {
    const TOGETHER: usize = 8;
    let mut buffers = [[0.0; PACKED_COLUMNS]; TOGETHER];
    let (width, count) = (columns.len(), tokens.len());
    for first in (0..count).step_by(TOGETHER) {
        let mut rows: [&[f32]; TOGETHER] = [&[]; TOGETHER];
        let rows = &mut rows[..TOGETHER.min(count - first)];
        for ((row, buffer), token) in rows.iter_mut().zip(&mut buffers).zip(first..) {
            *row = factor.tile(tokens.start + token, columns.start, &mut buffer[..width]);
        }
        for column in (0..width).step_by(WIDTH) {
            let panel = &mut panels[column * count..];
            for (row, token) in rows.iter().zip(first..) {
                let values = &row[column..width.min(column + WIDTH)];
                pack_token::<WIDTH>(values, token, count, panel);
            }
        }
    }
}

/// Runs a body for every 32 columns, for every 8 of the rest, then for every one: numbers that the compiler knows.
macro_rules! for_lanes {
    ($masks:expr, |$column:ident, $lanes:ident| $body:block) => {
        let mut $column = 0;
        for_lanes!(@ 32, $masks, $column, $lanes, $body);
        for_lanes!(@ 8, $masks, $column, $lanes, $body);
        for_lanes!(@ 1, $masks, $column, $lanes, $body);
    };
    (@ $width:literal, $masks:expr, $column:ident, $lanes:ident, $body:block) => {
        for $lanes in $masks[$column..].as_chunks::<$width>().0 {
            $body
            $column += $width;
        }
    };
}

for_each_path! {
    /// Adds `values`, rows of `BLOCK_COLUMNS`, to rows of `out`, the signs of each row and column changed by its mask.
    fn add_signed_rows(
        out: &mut [f32],
        stride: usize,
        values: &[f32],
        row_masks: &[f32],
        column_masks: &[f32],
    ) = add_signed_rows_body
}

for_each_path! {
    /// Adds `left right^T` to rows of `out`, the signs of each row and column changed by its mask.
    fn add_signed_outer_product(
        out: &mut [f32],
        stride: usize,
        left: &[f32],
        right: &[f32],
        row_masks: &[f32],
        column_masks: &[f32],
    ) = add_signed_outer_product_body
}

#[inline(always)]
fn add_signed_rows_body(
    out: &mut [f32],
    stride: usize,
    values: &[f32],
    row_masks: &[f32],
    column_masks: &[f32],
) {
    for_lanes!(column_masks, |column, masks| {
        for (row, &row_mask) in row_masks.iter().enumerate() {
            let values = &values[row * BLOCK_COLUMNS + column..][..masks.len()];
            let out = &mut out[row * stride + column..][..masks.len()];
            for lane in 0..masks.len() {
                out[lane] += with_sign(values[lane], with_sign(masks[lane], row_mask));
            }
        }
    });
}

#[inline(always)]
fn add_signed_outer_product_body(
    out: &mut [f32],
    stride: usize,
    left: &[f32],
    right: &[f32],
    row_masks: &[f32],
    column_masks: &[f32],
) {
    for_lanes!(column_masks, |column, masks| {
        let signed = with_signs(&right[column..], masks);
        for (row, (&row_mask, &factor)) in row_masks.iter().zip(left).enumerate() {
            let factor = with_sign(factor, row_mask);
            let out = &mut out[row * stride + column..][..masks.len()];
            for lane in 0..masks.len() {
                out[lane] += factor * signed[lane];
            }
        }
    });
}

/// `values`, each with its sign changed by its mask.
#[inline(always)]
fn with_signs<const N: usize>(values: &[f32], masks: &[f32; N]) -> [f32; N] {
    let mut signed = [0.0; N];
    for (signed, (&value, &mask)) in signed.iter_mut().zip(values.iter().zip(masks)) {
        *signed = with_sign(value, mask);
    }
    signed
}

#[cfg(test)]
mod tests {
    use ndarray::Array3;

    use super::super::plain;
    use super::*;
    use crate::dtype::{Array, Factor};
    use crate::philox::{Philox, Stream};

    fn factor(shape: (usize, usize, usize), seed: u64) -> Array3<f32> {
        let philox = Philox::new(seed);
        let mut number = 0;
        Array3::from_shape_simple_fn(shape, || {
            number += 1;
            philox.word(Stream::Gaussian, number) as f32 / (1u64 << 31) as f32 - 1.0
        })
    }

    #[test]
    fn every_path_sketches_as_the_plain_version_does() {
        for (d_in, d_out, k) in [
            (130, 70, 64),
            (129, 65, 12),
            (150, 530, 4096),
            (300, 150, 70 * 75),
            (520, 90, 24),
            (530, 70, 1000),
            (200, 70, 127),
            (33, 40, 1),
            (3, 5, 24),
            (140, 9, 40_000),
        ] {
            let sketch = TileSketch::new(d_in, d_out, k, 7).unwrap();
            for tokens in [0, 1, 2, 130] {
                let inputs = factor((2, tokens, d_in), 1);
                let grad_outputs = factor((2, tokens, d_out), 2);
                let expected = plain::compress(&sketch, &inputs, &grad_outputs);
                let views =
                    [&inputs, &grad_outputs].map(|factor| Factor::from(Array::F32(factor.view())));
                let workers = Workers::serial();
                for (path, stride) in Path::available()
                    .into_iter()
                    .flat_map(|path| [(path, sketch.width), (path, sketch.stride())])
                {
                    let sketcher = Sketcher {
                        sketch: &sketch,
                        tokens,
                        inputs: &views[0],
                        grad_outputs: &views[1],
                        workers: &workers,
                        path,
                    };
                    let mut sums = vec![f32::NAN; sketch.height * stride];
                    let mut out = vec![0.0; 2 * k];
                    for (example, out) in out.chunks_exact_mut(k).enumerate() {
                        for rows in cut(0..d_out, PACKED_COLUMNS) {
                            sketcher.sketch(example, rows, &mut sums).unwrap();
                            sketch.fold(&sums, out);
                        }
                    }
                    for (&got, &(sum, unit)) in out.iter().zip(&expected) {
                        let error = (f64::from(got) - sum).abs();
                        assert!(
                            error <= 1e-6 * unit,
                            "{got} is not {sum}: {path:?}, {d_in} x {d_out} -> {k}, {stride} sums a row, {tokens} tokens"
                        );
                    }
                }
            }
        }
    }
}

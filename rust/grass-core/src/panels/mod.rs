//! The small matrix products behind factorised and dense projections, from packed panels.
//!
//! A factor `(t, m)` is packed into panels of [`LEFT`] or [`RIGHT`] columns: panel q holds columns `q W..q W + W` of all
//! t tokens, token after token, zeros where the factor has no column. So the product reads both factors in order.
//! Each entry of the product is summed over t in order, then added to the output.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::simd::{Path, for_path};

/// Columns a panel of the left factor: rows of the product that are summed together.
pub(crate) const LEFT: usize = 8;

/// Columns a panel of the right factor: columns of the product that are summed together.
pub(crate) const RIGHT: usize = 32;

/// The product of a left and a right panel.
type Block = [[f32; RIGHT]; LEFT];

/// Length of the panels that hold `columns` columns of `tokens` tokens.
pub(crate) const fn packed_len<const WIDTH: usize>(columns: usize, tokens: usize) -> usize {
    columns.next_multiple_of(WIDTH) * tokens
}

/// Packs the columns of token number `token` of `tokens`, zeros after the last one.
pub(crate) fn pack_token<const WIDTH: usize>(
    values: &[f32],
    token: usize,
    tokens: usize,
    panels: &mut [f32],
) {
    let (whole, rest) = values.as_chunks::<WIDTH>();
    let (panels, _) = panels.as_chunks_mut::<WIDTH>();
    for (panel, values) in whole.iter().enumerate() {
        panels[panel * tokens + token] = *values;
    }
    if !rest.is_empty() {
        let last = &mut panels[whole.len() * tokens + token];
        last[..rest.len()].copy_from_slice(rest);
        last[rest.len()..].fill(0.0);
    }
}

/// Packs rows as the columns of one left panel: `panel[t] = (rows[0][t], .., rows[LEFT - 1][t])`.
pub(crate) fn pack_rows(path: Path, rows: [&[f32]; LEFT], panel: &mut [f32]) {
    let panel = panel.as_chunks_mut::<LEFT>().0;
    for_path!(path, pack_rows(rows, panel))
}

/// `out[i stride + j] += sum_t left[t][i] right[t][j]` for `i < rows`, `j < columns`, from the panels of both factors.
pub(crate) fn add_product(
    path: Path,
    (left, right): (&[f32], &[f32]),
    tokens: usize,
    out: &mut [f32],
    stride: usize,
    (rows, columns): (usize, usize),
) {
    if tokens == 0 {
        return;
    }
    let (left, right) = (left.as_chunks::<LEFT>().0, right.as_chunks::<RIGHT>().0);
    for (right, column) in right.chunks_exact(tokens).zip((0..columns).step_by(RIGHT)) {
        for (left, row) in left.chunks_exact(tokens).zip((0..rows).step_by(LEFT)) {
            let (height, width) = (LEFT.min(rows - row), RIGHT.min(columns - column));
            let first = row * stride + column;
            if height == LEFT && width == RIGHT {
                let last = first + (LEFT - 1) * stride + RIGHT;
                add_block(path, left, right, &mut out[first..last], stride);
                continue;
            }
            let mut block: Block = [[0.0; RIGHT]; LEFT];
            add_block(path, left, right, block.as_flattened_mut(), RIGHT);
            for (i, sums) in block[..height].iter().enumerate() {
                let out = &mut out[first + i * stride..][..width];
                for (total, sum) in out.iter_mut().zip(sums) {
                    *total += sum;
                }
            }
        }
    }
}

/// Adds the product of one left and one right panel to a whole block of `out`.
fn add_block(
    path: Path,
    left: &[[f32; LEFT]],
    right: &[[f32; RIGHT]],
    out: &mut [f32],
    stride: usize,
) {
    for_path!(path, add_block(left, right, out, stride))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed<const WIDTH: usize>(factor: &[f32], columns: usize, tokens: usize) -> Vec<f32> {
        let mut panels = vec![f32::NAN; packed_len::<WIDTH>(columns, tokens)];
        for (token, values) in factor.chunks_exact(columns).enumerate() {
            pack_token::<WIDTH>(values, token, tokens, &mut panels);
        }
        panels
    }

    #[test]
    fn every_path_packs_rows_of_any_length() {
        for path in Path::available() {
            for tokens in [0, 1, 7, 8, 9, 130] {
                let values: Vec<f32> = (0..LEFT * tokens).map(|i| i as f32).collect();
                let rows = std::array::from_fn(|row| &values[row * tokens..(row + 1) * tokens]);
                let mut panel = vec![f32::NAN; values.len()];
                pack_rows(path, rows, &mut panel);
                for (index, &value) in panel.iter().enumerate() {
                    let (token, row) = (index / LEFT, index % LEFT);
                    assert_eq!(value, values[row * tokens + token], "{path:?} {tokens}");
                }
            }
        }
    }

    #[test]
    fn every_path_adds_the_product_of_any_shape() {
        for (rows, columns, tokens) in [
            (1, 1, 1),
            (8, 32, 3),
            (9, 33, 1),
            (16, 64, 200),
            (7, 95, 5),
            (23, 40, 0),
        ] {
            let left: Vec<f32> = (0..rows * tokens).map(|i| (i % 13) as f32 - 6.0).collect();
            let right: Vec<f32> = (0..columns * tokens)
                .map(|i| (i % 7) as f32 - 3.0)
                .collect();
            let panels = (
                packed::<LEFT>(&left, rows, tokens),
                packed::<RIGHT>(&right, columns, tokens),
            );
            let stride = columns + 3;
            for path in Path::available() {
                let mut out = vec![0.5; rows * stride];
                add_product(
                    path,
                    (&panels.0, &panels.1),
                    tokens,
                    &mut out,
                    stride,
                    (rows, columns),
                );
                for (index, &value) in out.iter().enumerate() {
                    let (i, j) = (index / stride, index % stride);
                    // Small whole numbers: every sum is exact.
                    let product: f32 = (0..tokens)
                        .filter(|_| j < columns)
                        .map(|t| left[t * rows + i] * right[t * columns + j])
                        .sum();
                    assert_eq!(
                        value,
                        0.5 + product,
                        "{path:?} {rows} {columns} {tokens} {i} {j}"
                    );
                }
            }
        }
    }
}

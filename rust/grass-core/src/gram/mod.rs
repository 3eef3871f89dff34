//! Sums of outer products of rows, from packed panels: products in `f32`, their sums over runs of rows in `f64`.
//!
//! A panel holds [`PANEL`] neighbouring coordinates of some rows, row after row, zeros where the rows have no
//! coordinate. One layout serves as left and as right factor, so each row is packed once.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::simd::{Path, for_path};

/// Coordinates a panel.
pub const PANEL: usize = 32;

/// Some rows of one panel.
pub type Panel = [[f32; PANEL]];

/// `out[i stride + j] += scale * sum_t left[t][i] right[t][j]` for all `i` and `j` below [`PANEL`].
///
/// The sum over t is made in order in `f32`, with one rounding a term where the instructions allow it; it is then
/// multiplied by `scale` and added in `f64`, in one rounding where `scale` is a power of two.
///
/// # Panics
/// If the panels have different numbers of rows, or `out` is shorter than `(PANEL - 1) * stride + PANEL`.
pub fn add_gram(
    path: Path,
    left: &Panel,
    right: &Panel,
    scale: f64,
    out: &mut [f64],
    stride: usize,
) {
    assert_eq!(left.len(), right.len(), "both panels are of the same rows");
    assert!(
        out.len() >= (PANEL - 1) * stride + PANEL,
        "the output holds a whole block"
    );
    for_path!(path, add_gram(left, right, scale, out, stride))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(rows: usize, seed: usize) -> Vec<[f32; PANEL]> {
        let value = |t: usize, i: usize| ((t * 7919 + i * 104_729 + seed) % 1009) as f32 - 504.0;
        (0..rows)
            .map(|t| std::array::from_fn(|i| value(t, i)))
            .collect()
    }

    #[test]
    fn every_path_adds_the_outer_products_of_any_number_of_rows() {
        for rows in [0, 1, 2, 7, 64] {
            let (left, right) = (panel(rows, 3), panel(rows, 400));
            let stride = PANEL + 5;
            for path in Path::available() {
                let mut out = vec![0.5; PANEL * stride];
                add_gram(path, &left, &right, 0.25, &mut out, stride);
                for (index, &value) in out.iter().enumerate() {
                    let (i, j) = (index / stride, index % stride);
                    // Whole numbers below 2^24: every sum is exact.
                    let sum: f32 = match j < PANEL {
                        true => left.iter().zip(&right).map(|(l, r)| l[i] * r[j]).sum(),
                        false => 0.0,
                    };
                    assert_eq!(
                        value,
                        0.5 + 0.25 * f64::from(sum),
                        "{path:?} {rows} {i} {j}"
                    );
                }
            }
        }
    }

    /// What keeps a small sum beside a large one: runs are added in double precision.
    #[test]
    fn every_path_adds_runs_in_double_precision() {
        let (large, small) = ([[4096.0; PANEL]], [[0.5; PANEL]]);
        for path in Path::available() {
            let mut out = vec![0.0; PANEL * PANEL];
            add_gram(path, &large, &large, 1.0, &mut out, PANEL);
            add_gram(path, &small, &small, 1.0, &mut out, PANEL);
            assert!(out.iter().all(|&value| value == 16_777_216.25));
        }
    }
}

//! Products of small matrices in double precision, with the same bits however work was cut.

use grass_core::parallel::Workers;
use ndarray::linalg::general_mat_mul;
use ndarray::{ArrayView2, ArrayViewMut2, Axis};

use crate::error::Result;

/// Terms summed at once. Sums of a multiple of this many terms may be cut into several calls
/// without changing a bit.
pub(crate) const DEPTH: usize = 512;

/// Rows and columns of the part of a long product that is done between two looks at the cancel flag.
const EDGE: usize = 2048;

/// `out += factor * left * right`, for (m, k) times (k, n).
pub(crate) fn add_product(
    mut out: ArrayViewMut2<'_, f64>,
    factor: f64,
    left: ArrayView2<'_, f64>,
    right: ArrayView2<'_, f64>,
) {
    let left = left.axis_chunks_iter(Axis(1), DEPTH);
    let right = right.axis_chunks_iter(Axis(0), DEPTH);
    for (left, right) in left.zip(right) {
        general_mat_mul(factor, &left, &right, 1.0, &mut out);
    }
}

/// The same for products that may be large: looks at the cancel flag between parts of them.
///
/// # Errors
/// [`crate::Error::Core`] when cancelled.
pub(crate) fn add_long_product(
    mut out: ArrayViewMut2<'_, f64>,
    factor: f64,
    left: ArrayView2<'_, f64>,
    right: ArrayView2<'_, f64>,
    workers: &Workers,
) -> Result<()> {
    let lefts = left.axis_chunks_iter(Axis(0), EDGE);
    for (mut out, left) in out.axis_chunks_iter_mut(Axis(0), EDGE).zip(lefts) {
        let rights = right.axis_chunks_iter(Axis(1), EDGE);
        for (mut out, right) in out.axis_chunks_iter_mut(Axis(1), EDGE).zip(rights) {
            let terms = right.axis_chunks_iter(Axis(0), DEPTH);
            for (left, right) in left.axis_chunks_iter(Axis(1), DEPTH).zip(terms) {
                workers.check()?;
                add_product(out.view_mut(), factor, left, right);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, s};
    use proptest::prelude::*;

    fn matrix(rows: usize, columns: usize, seed: usize) -> Array2<f64> {
        Array2::from_shape_fn((rows, columns), |(row, column)| {
            ((row * 7919 + column * 104_729 + seed * 31) % 10_007) as f64 / 3.7 - 1352.0
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        /// What makes scores independent of how many queries or rows are scored together.
        #[test]
        fn an_entry_has_the_same_bits_in_a_product_of_any_size(m in 1usize..40, n in 1usize..70, k in 1usize..1100) {
            let (left, right) = (matrix(m, k, 1), matrix(k, n, 2));
            let mut whole = Array2::zeros((m, n));
            add_product(whole.view_mut(), 1.0, left.view(), right.view());
            for (row, column) in [(0, 0), (m - 1, n - 1), (m / 2, n / 3)] {
                let mut alone = Array2::zeros((1, 1));
                add_product(alone.view_mut(), 1.0, left.slice(s![row..=row, ..]), right.slice(s![.., column..=column]));
                prop_assert_eq!(alone[[0, 0]].to_bits(), whole[[row, column]].to_bits());
                let exact: f64 = (0..k).map(|term| left[[row, term]] * right[[term, column]]).sum();
                prop_assert!((alone[[0, 0]] - exact).abs() < 1e-12 * 1e6 * k as f64);
            }
        }

        #[test]
        fn a_long_product_has_the_same_bits(m in 1usize..5000, n in 1usize..20, k in 1usize..600) {
            let (left, right) = (matrix(m, k, 1), matrix(k, n, 2));
            let (mut tall, mut wide) = (Array2::zeros((m, n)), Array2::zeros((n, m)));
            add_product(tall.view_mut(), -1.0, left.view(), right.view());
            add_product(wide.view_mut(), -1.0, right.t(), left.t());
            let (mut long_tall, mut long_wide) = (Array2::zeros((m, n)), Array2::zeros((n, m)));
            let workers = Workers::serial();
            add_long_product(long_tall.view_mut(), -1.0, left.view(), right.view(), &workers).unwrap();
            add_long_product(long_wide.view_mut(), -1.0, right.t(), left.t(), &workers).unwrap();
            prop_assert!(tall == long_tall && wide == long_wide);
        }

        #[test]
        fn a_sum_cut_at_a_multiple_of_the_depth_has_the_same_bits(m in 1usize..20, n in 1usize..20, k in 1usize..1500) {
            let (left, right) = (matrix(m, k, 3), matrix(k, n, 4));
            let mut whole = Array2::zeros((m, n));
            add_product(whole.view_mut(), -1.0, left.view(), right.view());
            let cut = DEPTH.min(k);
            let mut parts = Array2::zeros((m, n));
            add_product(parts.view_mut(), -1.0, left.slice(s![.., ..cut]), right.slice(s![..cut, ..]));
            add_product(parts.view_mut(), -1.0, left.slice(s![.., cut..]), right.slice(s![cut.., ..]));
            prop_assert_eq!(whole, parts);
        }
    }
}

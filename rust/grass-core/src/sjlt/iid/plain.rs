//! Rows side by side in plain loops, for any machine and for what is left of whole vectors.

use super::{LANES, Sums};
use crate::signs::with_sign;

/// Adds a tile of rows side by side.
pub(super) fn add_side_by_side(
    sums: &mut [Sums],
    rows: &[&[f32]; LANES],
    buckets: &[usize],
    signs: &[f32],
) {
    add_from(0, sums, rows, buckets, signs);
}

/// Adds the coordinates from number `from` on.
pub(super) fn add_from(
    from: usize,
    sums: &mut [Sums],
    rows: &[&[f32]; LANES],
    buckets: &[usize],
    signs: &[f32],
) {
    for (i, (&bucket, &sign)) in buckets.iter().zip(signs).enumerate().skip(from) {
        for (sum, row) in sums[bucket].iter_mut().zip(rows) {
            *sum += with_sign(row[i], sign);
        }
    }
}

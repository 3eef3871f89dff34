//! Rows side by side in plain loops, for any machine and for what is left of whole vectors.

use super::{Sums, Tiles};
use crate::signs::with_sign;

/// Adds the coordinates from number `from` on.
pub(super) fn add_tiles(
    sums: &mut [Sums],
    tiles: &Tiles,
    from: usize,
    buckets: &[usize],
    signs: &[f32],
) {
    for (i, (&bucket, &sign)) in buckets.iter().zip(signs).enumerate().skip(from) {
        for (sum, tile) in sums[bucket].iter_mut().zip(tiles) {
            *sum += with_sign(tile[i], sign);
        }
    }
}

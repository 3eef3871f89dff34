//! The small matrix product behind factorised projections.

/// `out (m, n) += sum_t left_t right_t^T`, everything row-major, for `left (t, m)` and `right (t, n)`.
///
/// Each coordinate is summed over t in order, so it has the same bits however the tokens are cut into calls.
pub(crate) fn add_outer_products(left: &[f32], right: &[f32], n: usize, out: &mut [f32]) {
    let m = out.len() / n;
    for (row, out) in out.chunks_exact_mut(n).enumerate() {
        for (left, right) in left.chunks_exact(m).zip(right.chunks_exact(n)) {
            let factor = left[row];
            for (total, &value) in out.iter_mut().zip(right) {
                *total += factor * value;
            }
        }
    }
}

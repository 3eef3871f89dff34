//! The small matrix product behind factorised projections.

/// Coordinates `start..` of `sum_t left_t right_t^T`, row-major, as many as `out` is long.
///
/// `left` is `(t, m)`, `right` is `(t, n)`, both row-major. Every coordinate is summed over t in order, so it has
/// the same bits whatever range it is computed in.
pub(crate) fn outer_sum(left: &[f32], right: &[f32], n: usize, start: usize, out: &mut [f32]) {
    let tokens = right.len() / n;
    let Some(m) = left.len().checked_div(tokens) else {
        out.fill(0.0);
        return;
    };
    let mut position = start;
    let mut rest = out;
    while !rest.is_empty() {
        let (row, column) = (position / n, position % n);
        let count = rest.len().min(n - column);
        let (head, tail) = rest.split_at_mut(count);
        head.fill(0.0);
        for (left, right) in left.chunks_exact(m).zip(right.chunks_exact(n)) {
            let factor = left[row];
            for (total, &value) in head.iter_mut().zip(&right[column..column + count]) {
                *total += factor * value;
            }
        }
        rest = tail;
        position += count;
    }
}

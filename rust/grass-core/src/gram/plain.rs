//! Sums of outer products in plain loops for any machine.

use super::{PANEL, Panel};

/// Rows and columns that are summed together: as many sums as the vector registers of 64-bit ARM hold.
const HEIGHT: usize = 4;
const WIDTH: usize = 16;

/// Adds the outer products of two panels to a block of `out`.
pub(super) fn add_gram(left: &Panel, right: &Panel, scale: f64, out: &mut [f64], stride: usize) {
    for row in (0..PANEL).step_by(HEIGHT) {
        for column in (0..PANEL).step_by(WIDTH) {
            let mut sums = [[0f32; WIDTH]; HEIGHT];
            for (left, right) in left.iter().zip(right) {
                for (sums, &factor) in sums.iter_mut().zip(&left[row..row + HEIGHT]) {
                    for (sum, &value) in sums.iter_mut().zip(&right[column..column + WIDTH]) {
                        *sum = multiply_add(factor, value, *sum);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let out = &mut out[(row + i) * stride + column..][..WIDTH];
                for (total, &sum) in out.iter_mut().zip(sums) {
                    *total += scale * f64::from(sum);
                }
            }
        }
    }
}

/// `a b + c`, in one rounding where every machine of the architecture has the instruction.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

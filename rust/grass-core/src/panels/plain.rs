//! The product of two panels, and the packing of rows, in plain loops for any machine.

use super::{LEFT, RIGHT};

/// Rows and columns that are summed together: as many sums as the vector registers of 64-bit ARM hold.
const HEIGHT: usize = 4;
const WIDTH: usize = 16;

/// Packs rows as the columns of a panel.
pub(super) fn pack_rows(rows: [&[f32]; LEFT], panel: &mut [[f32; LEFT]]) {
    for (lane, row) in rows.into_iter().enumerate() {
        for (token, &value) in panel.iter_mut().zip(row) {
            token[lane] = value;
        }
    }
}

/// Adds the product of a left and a right panel to a block of `out`.
pub(super) fn add_block(
    left: &[[f32; LEFT]],
    right: &[[f32; RIGHT]],
    out: &mut [f32],
    stride: usize,
) {
    for row in (0..LEFT).step_by(HEIGHT) {
        for column in (0..RIGHT).step_by(WIDTH) {
            let mut sums = [[0.0; WIDTH]; HEIGHT];
            for (left, right) in left.iter().zip(right) {
                for (sums, &factor) in sums.iter_mut().zip(&left[row..row + HEIGHT]) {
                    for (sum, &value) in sums.iter_mut().zip(&right[column..column + WIDTH]) {
                        *sum = multiply_add(factor, value, *sum);
                    }
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                let out = &mut out[(row + i) * stride + column..][..WIDTH];
                for (total, sum) in out.iter_mut().zip(sums) {
                    *total += sum;
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

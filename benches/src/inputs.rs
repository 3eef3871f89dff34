//! Inputs of the benches, and what is called on them.

use grass_core::Compressor;
use grass_core::dtype::{Array, Factor, Matrix};
use grass_core::parallel::Workers;
use ndarray::{ArrayView2, ArrayView3, ShapeBuilder};

/// `n` values of about 1, none of them zero or denormal, without structure.
pub fn values(n: usize) -> Vec<f32> {
    (0..n as u32)
        .map(|i| 0.5 + (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
        .collect()
}

/// `n` values so small that f32 holds them as denormal numbers.
pub fn denormals(n: usize) -> Vec<f32> {
    values(n).iter().map(|value| value * 1e-39).collect()
}

/// `data` as `(n, p)` rows that begin `stride` values apart.
///
/// # Panics
/// If `data` is too short.
pub fn rows(data: &[f32], (n, p): (usize, usize), stride: usize) -> Matrix<'_> {
    let shape = (n, p).strides((stride, 1));
    Array::F32(ArrayView2::from_shape(shape, data).expect("enough values for the rows"))
}

/// `data` as a factor `(n, t, d)`.
///
/// # Panics
/// If `data` is of another length.
pub fn factor(data: &[f32], shape: (usize, usize, usize)) -> Factor<'_> {
    let view = ArrayView3::from_shape(shape, data).expect("as many values as the shape has");
    Factor::from(Array::F32(view))
}

/// A call of `compressor` on `rows` by one thread, with the output allocated beforehand.
///
/// # Panics
/// The call, if the rows are not as wide as the compressor's input.
pub fn call<'a>(compressor: &'a Compressor, rows: &'a Matrix<'_>) -> impl FnMut() + 'a {
    let mut out = vec![0.0; rows.shape()[0] * compressor.output_dim()];
    move || {
        compressor
            .compress(rows, &mut out, &Workers::serial())
            .expect("rows that the compressor takes");
    }
}

/// A call of `compressor` on factors by one thread, with the output allocated beforehand.
///
/// # Panics
/// The call, if the factors are not as wide as the compressor's.
pub fn call_factors<'a>(
    compressor: &'a Compressor,
    inputs: &'a Factor<'_>,
    grad_outputs: &'a Factor<'_>,
) -> impl FnMut() + 'a {
    let mut out = vec![0.0; inputs.shape()[0] * compressor.output_dim()];
    move || {
        compressor
            .compress_factors(inputs, grad_outputs, &mut out, &Workers::serial())
            .expect("factors that the compressor takes");
    }
}

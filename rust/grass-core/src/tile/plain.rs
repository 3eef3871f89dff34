//! The tile sketch coordinate by coordinate: what the fast version is held to.

use ndarray::Array3;

use super::TileSketch;

/// The sketches `(n, k)` of the gradients of factors `(n, t, d_in)` and `(n, t, d_out)`, in double precision, and the sums
/// of absolute values, the unit of rounding errors.
pub(super) fn compress(
    sketch: &TileSketch,
    inputs: &Array3<f32>,
    grad_outputs: &Array3<f32>,
) -> Vec<(f64, f64)> {
    let (n, tokens, d_in) = inputs.dim();
    let k = sketch.output_dim();
    let mut out = vec![(0.0, 0.0); n * k];
    for output in 0..grad_outputs.dim().2 {
        for input in 0..d_in {
            let (bucket, sign) = sketch.entry(output, input);
            for (example, out) in out.chunks_exact_mut(k).enumerate() {
                for token in 0..tokens {
                    let value = f64::from(grad_outputs[(example, token, output)])
                        * f64::from(inputs[(example, token, input)]);
                    out[bucket].0 += sign * value;
                    out[bucket].1 += value.abs();
                }
            }
        }
    }
    out
}

//! Inputs that the benches share.

use grass_core::Compressor;
use grass_core::spec::Spec;

/// The compressor of a spec in JSON.
///
/// # Panics
/// If the spec is not one.
pub fn compressor(spec: &str) -> Compressor {
    Spec::from_json(spec)
        .and_then(Compressor::from_spec)
        .expect("the bench's spec is valid")
}

/// `n` values without structure, none of them zero or denormal.
pub fn values(n: usize) -> Vec<f32> {
    (0..n as u32)
        .map(|i| 0.5 + (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 24) as f32)
        .collect()
}

//! Benches of the kernels.

//! Seeded compressors for per-example gradients: sparsification and sparse projection.
//!
//! A compressor is a seeded linear map `R^p -> R^k`. Given the same spec it is the same map, bit
//! for bit, on every machine: all randomness is read from [`philox`] by position. The method is
//! GraSS / FactGraSS (arXiv 2505.18976).
//!
//! This crate is arithmetic only. It opens no files and knows no Python.

pub mod compressor;
pub mod convert;
pub mod dot;
pub mod dtype;
pub mod error;
pub mod factgrass;
pub mod gaussian;
pub mod gram;
pub mod grass;
pub mod logra;
pub mod mask;
mod panels;
pub mod parallel;
pub mod philox;
mod processors;
pub mod progress;
mod project;
mod signs;
pub mod simd;
pub mod sjlt;
pub mod spec;
pub mod tile;
mod workspace;

pub use compressor::Compressor;
pub use error::{Error, Result};

//! Python bindings: convert, detach the GIL, call, wrap.

mod arrays;
mod compressor;
mod detached;
mod error;
mod repair;
mod scoring;
mod store;
mod threads;

use pyo3::prelude::*;

/// Rust core of `grass_rs`.
#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    compressor::register(module)?;
    store::register(module)?;
    repair::register(module)?;
    scoring::register(module)?;
    threads::register(module)
}

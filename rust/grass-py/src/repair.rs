//! `_native.repair_store`: dropping what is damaged in a store.

use std::path::PathBuf;

use grass_store::SystemDisk;
use numpy::PyArray1;
use pyo3::prelude::*;

use crate::detached::detached;

/// Kept rows, dropped rows, lost ids, and rows whose ids are lost too.
type RepairedTuple<'py> = (u64, u64, Bound<'py, PyArray1<u64>>, u64);

/// Drop what is damaged in the store at path and keep the rest.
#[pyfunction]
fn repair_store(py: Python<'_>, path: PathBuf) -> PyResult<RepairedTuple<'_>> {
    let repaired = detached(py, usize::MAX, |workers| {
        grass_store::repair(&path, &SystemDisk, workers)
    })?;
    Ok((
        repaired.kept_rows,
        repaired.dropped_rows,
        PyArray1::from_vec(py, repaired.lost_ids),
        repaired.unknown_ids,
    ))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(repair_store, module)?)
}

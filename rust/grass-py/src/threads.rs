//! How many threads heavy calls use, and what build this is.

use std::ffi::CString;

use grass_core::parallel::{self, MOST_THREADS};
use grass_core::simd::Path;
use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::PyRuntimeWarning;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict};

use crate::error::exception;

const VARIABLE: &str = "GRASS_NUM_THREADS";

/// Set how many threads heavy calls use from now on, at least one.
///
/// The environment variable GRASS_NUM_THREADS sets the number at import; without it, all cores are used.
#[pyfunction]
fn set_num_threads(threads: &Bound<'_, PyAny>) -> PyResult<()> {
    match threads.extract::<usize>() {
        Ok(number @ 1..=MOST_THREADS) if !threads.is_instance_of::<PyBool>() => {
            parallel::set_num_threads(number);
            Ok(())
        }
        _ => Err(exception(
            "SpecError",
            format!(
                "set_num_threads expects a whole number from 1 to {MOST_THREADS}, got {}",
                threads.repr()?
            ),
        )),
    }
}

/// How many threads heavy calls use.
#[pyfunction]
fn num_threads() -> usize {
    parallel::num_threads()
}

/// Version, profile and target of this build, and the vector instructions in use (GRASS_SIMD forces others).
#[pyfunction]
fn build_info(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let info = PyDict::new(py);
    info.set_item("version", env!("CARGO_PKG_VERSION"))?;
    let profile = if cfg!(debug_assertions) {
        "debug"
    } else {
        "release"
    };
    info.set_item("profile", profile)?;
    info.set_item("architecture", std::env::consts::ARCH)?;
    info.set_item("system", std::env::consts::OS)?;
    info.set_item("simd", Path::current().name())?;
    Ok(info)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    if let Ok(value) = std::env::var(VARIABLE) {
        match value.parse() {
            Ok(threads @ 1..=MOST_THREADS) => parallel::set_num_threads(threads),
            _ => {
                let message = CString::new(format!(
                    "{VARIABLE} expects a whole number from 1 to {MOST_THREADS}, got '{value}': all cores are used"
                ))?;
                let category = module.py().get_type::<PyRuntimeWarning>();
                PyErr::warn(module.py(), &category, &message, 1)?;
            }
        }
    }
    // What the first call would take half a millisecond for: asking the system, and NumPy's functions.
    parallel::num_threads();
    Path::current();
    drop(PyArray1::<f32>::zeros(module.py(), 0, false).try_readwrite()?);
    module.add_function(wrap_pyfunction!(set_num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(num_threads, module)?)?;
    module.add_function(wrap_pyfunction!(build_info, module)?)
}

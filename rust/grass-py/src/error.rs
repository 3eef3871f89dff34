//! One place where errors of the crates become the exceptions of `grass_rs.errors`.

use pyo3::prelude::*;
use pyo3::types::PyType;

/// An error of any crate on its way to Python.
pub enum PyError {
    /// Of the core.
    Core(grass_core::Error),
    /// A Python exception already.
    Python(PyErr),
}

impl From<grass_core::Error> for PyError {
    fn from(error: grass_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<PyErr> for PyError {
    fn from(error: PyErr) -> Self {
        Self::Python(error)
    }
}

impl From<PyError> for PyErr {
    fn from(error: PyError) -> Self {
        match error {
            PyError::Python(error) => error,
            PyError::Core(error) => exception(core_class(&error), error.to_string()),
        }
    }
}

fn core_class(error: &grass_core::Error) -> &'static str {
    match error {
        grass_core::Error::Shape { .. } => "ShapeError",
        grass_core::Error::Spec { .. } | grass_core::Error::Bytes { .. } => "SpecError",
        grass_core::Error::Interrupted => "GrassError",
    }
}

/// The exception `class` of `grass_rs.errors` with `message`.
pub fn exception(class: &str, message: String) -> PyErr {
    Python::attach(|py| {
        let class = py
            .import("grass_rs.errors")
            .and_then(|errors| errors.getattr(class))
            .and_then(|class| Ok(class.cast_into::<PyType>()?));
        match class {
            Ok(class) => PyErr::from_type(class, message),
            Err(error) => error,
        }
    })
}

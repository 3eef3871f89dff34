//! One place where errors of the crates become the exceptions of `grass_rs.errors`.

use std::io::ErrorKind;

use pyo3::prelude::*;
use pyo3::types::PyType;

/// An error of any crate on its way to Python.
pub enum PyError {
    /// Of the core.
    Core(grass_core::Error),
    /// Of the store.
    Store(grass_store::Error),
    /// Of the engine.
    Engine(grass_engine::Error),
    /// A Python exception already.
    Python(PyErr),
}

impl From<grass_core::Error> for PyError {
    fn from(error: grass_core::Error) -> Self {
        Self::Core(error)
    }
}

impl From<grass_store::Error> for PyError {
    fn from(error: grass_store::Error) -> Self {
        Self::Store(error)
    }
}

impl From<grass_engine::Error> for PyError {
    fn from(error: grass_engine::Error) -> Self {
        Self::Engine(error)
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
            PyError::Core(error) => exception(core_class(&error), error.to_string()),
            PyError::Store(error) => {
                let raised = exception(store_class(&error), error.to_string());
                match error.errno() {
                    Some(errno) => with_errno(raised, errno),
                    None => raised,
                }
            }
            PyError::Engine(error) => match error {
                grass_engine::Error::Store(error) => PyError::Store(error).into(),
                error => {
                    let raised = exception(engine_class(&error), error.to_string());
                    match error.errno() {
                        Some(errno) => with_errno(raised, errno),
                        None => raised,
                    }
                }
            },
            PyError::Python(error) => error,
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

fn store_class(error: &grass_store::Error) -> &'static str {
    use grass_store::Error;
    match error {
        Error::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound => "StoreNotFoundError",
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "StorePermissionError",
            _ => "StoreError",
        },
        Error::NotFound { .. } => "StoreNotFoundError",
        Error::Exists { .. } => "StoreExistsError",
        Error::Locked { .. } => "StoreLockedError",
        Error::Mismatch { .. } => "StoreMismatchError",
        Error::Corrupt { .. } | Error::Repair { .. } => "CorruptStoreError",
        Error::Format { .. }
        | Error::Broken { .. }
        | Error::Merge { .. }
        | Error::TooManyShards { .. } => "StoreError",
        Error::Columns { .. } | Error::Dtype { .. } | Error::Writers { .. } => "SpecError",
        Error::NonFinite { .. } => "NonFiniteError",
        Error::Shape { .. } | Error::OutOfRange { .. } => "ShapeError",
        Error::RepeatedId { .. } | Error::Overflow { .. } => "DataError",
        Error::Core(error) => core_class(error),
    }
}

fn engine_class(error: &grass_engine::Error) -> &'static str {
    use grass_engine::Error;
    match error {
        Error::Store(error) => store_class(error),
        Error::Core(error) => core_class(error),
        Error::Unfinished { .. } | Error::Empty { .. } => "StoreError",
        Error::Queries { .. } | Error::TopK { .. } => "ShapeError",
        Error::NonFiniteQuery { .. }
        | Error::NonFiniteRows { .. }
        | Error::NonFiniteScore { .. } => "NonFiniteError",
        Error::Columns { .. }
        | Error::Damping { .. }
        | Error::Method { .. }
        | Error::Singular { .. } => "SpecError",
        Error::File { .. } | Error::OtherFile { .. } | Error::BusyFile { .. } => "ScoresFileError",
        Error::Memory { .. } => "GrassError",
    }
}

/// `error` with the system's error number, as an `OSError` has it.
fn with_errno(error: PyErr, errno: i32) -> PyErr {
    Python::attach(|py| match error.value(py).setattr("errno", errno) {
        Ok(()) => error,
        Err(other) => other,
    })
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

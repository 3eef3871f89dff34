//! `_native.StoreWriter` and `_native.StoreReader`: stores of rows on disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use grass_core::parallel::Workers;
use grass_store::{Column, Dtype, Fingerprints, StoreSpec, SystemDisk, WriterOptions};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2};
use pyo3::prelude::*;

use crate::detached::detached;
use crate::error::{PyError, exception};

/// Operations of a call that runs to its end once begun: what makes rows safe is never left half done, and opening
/// reads no rows.
const UNSTOPPABLE: usize = 0;

/// What a disk reads at least.
const PAGE_BYTES: usize = 4096;

/// Name, width and spec in JSON of one column.
type ColumnTuple = (String, u64, String);

fn columns(tuples: Vec<ColumnTuple>) -> Result<Vec<Column>, PyError> {
    let columns = tuples.into_iter();
    let columns = columns.map(|(name, width, spec)| Column::new(name, width, &spec));
    Ok(columns.collect::<grass_store::Result<_>>()?)
}

/// The elements of a C-contiguous array; `what` names it in the error.
pub(crate) fn elements<'a, T: numpy::Element, D: ndarray::Dimension>(
    array: &'a numpy::PyReadonlyArray<'_, T, D>,
    what: &str,
) -> PyResult<&'a [T]> {
    array.as_slice().map_err(|_| {
        exception(
            "ShapeError",
            format!("{what} expects a C-contiguous array, got a strided one: pass numpy.ascontiguousarray of it"),
        )
    })
}

/// A writer of a store, alone or one of several.
#[pyclass(frozen, weakref, module = "grass_rs._native")]
struct StoreWriter {
    path: PathBuf,
    width: usize,
    /// None once closed.
    inner: Mutex<Option<grass_store::StoreWriter>>,
}

impl StoreWriter {
    fn lock(&self) -> MutexGuard<'_, Option<grass_store::StoreWriter>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a call of the open writer without the GIL.
    fn with<T: Send>(
        &self,
        py: Python<'_>,
        operations: usize,
        call: impl FnOnce(&mut grass_store::StoreWriter, &Workers) -> grass_store::Result<T> + Send,
    ) -> PyResult<T> {
        detached(py, operations, |workers| match self.lock().as_mut() {
            Some(writer) => Ok(call(writer, workers)?),
            None => Err(PyError::Python(exception(
                "StoreError",
                format!(
                    "the writer of {} is closed: open the store again with resume=True",
                    self.path.display()
                ),
            ))),
        })
    }
}

#[pymethods]
impl StoreWriter {
    /// Create a store, or open it again when resume is true.
    #[new]
    #[expect(clippy::too_many_arguments, reason = "what a store is made of")]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        columns: Vec<ColumnTuple>,
        dtype: &str,
        fingerprints: BTreeMap<String, String>,
        resume: bool,
        commit_bytes: u64,
        commit_seconds: f64,
        writer: u32,
        writers: u32,
    ) -> PyResult<Self> {
        let dtype: Dtype = dtype.parse().map_err(PyError::Store)?;
        let spec = StoreSpec {
            dtype,
            columns: self::columns(columns)?,
            fingerprints,
        };
        let options = WriterOptions {
            commit_bytes,
            commit_interval: interval(commit_seconds)?,
            writer,
            writers,
            ..WriterOptions::default()
        };
        // Resuming reads all ids, from a disk that may be slow.
        let operations = if resume { usize::MAX } else { UNSTOPPABLE };
        let writer = detached(py, operations, |workers| match resume {
            true => grass_store::StoreWriter::resume(&path, spec, options, workers),
            false => grass_store::StoreWriter::create(&path, spec, options),
        })?;
        Ok(Self {
            path: writer.path().to_path_buf(),
            width: writer.layout().width(),
            inner: Mutex::new(Some(writer)),
        })
    }

    /// Numbers in a row.
    #[getter]
    fn width(&self) -> usize {
        self.width
    }

    /// Ids of the committed rows, in their order.
    fn committed_ids<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let ids = self.with(py, usize::MAX, |writer, workers| {
            writer.committed_ids(workers)
        })?;
        Ok(PyArray1::from_vec(py, ids))
    }

    /// Add finite rows (n, width), one id each.
    fn append(
        &self,
        py: Python<'_>,
        rows: PyReadonlyArray2<'_, f32>,
        ids: PyReadonlyArray1<'_, u64>,
    ) -> PyResult<()> {
        let (rows, ids) = (elements(&rows, "append")?, elements(&ids, "append")?);
        self.with(py, rows.len(), |writer, workers| {
            writer.append_finite(rows, ids, workers)
        })
    }

    /// Make what was appended survive a crash.
    fn commit(&self, py: Python<'_>) -> PyResult<()> {
        self.with(py, UNSTOPPABLE, |writer, _| writer.commit())
    }

    /// Commit, mark the store complete, and close it.
    fn finish(&self, py: Python<'_>, skipped_ids: PyReadonlyArray1<'_, u64>) -> PyResult<()> {
        let skipped = elements(&skipped_ids, "finish")?;
        self.with(py, UNSTOPPABLE, |writer, _| writer.finish(skipped))?;
        self.close(py)
    }

    /// Let go of the store without writing anything, as a forked child must: else it would hold the lock when its
    /// parent has died.
    fn abandon(&self) {
        if let Ok(mut writer) = self.inner.try_lock() {
            writer.take();
        }
    }

    /// Commit what was appended, unless a write has failed before, and let others write.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, UNSTOPPABLE, |_| match self.lock().take() {
            Some(mut writer) if !writer.broken() => writer.commit(),
            _ => Ok(()),
        })
    }
}

fn interval(seconds: f64) -> PyResult<Duration> {
    match seconds.is_nan() || seconds < 0.0 {
        true => Err(exception(
            "SpecError",
            format!("commit_seconds must be at least 0, got {seconds}: the default is 30"),
        )),
        // Longer than any wait, as infinity is.
        false => Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)),
    }
}

/// The committed rows of a store.
#[pyclass(frozen, module = "grass_rs._native")]
pub(crate) struct StoreReader {
    pub(crate) inner: grass_store::StoreReader,
}

#[pymethods]
impl StoreReader {
    /// Open the store in a folder.
    #[new]
    fn new(py: Python<'_>, path: PathBuf) -> PyResult<Self> {
        let inner = detached(py, UNSTOPPABLE, |_| grass_store::StoreReader::open(path))?;
        Ok(Self { inner })
    }

    /// Number of committed rows.
    fn __len__(&self) -> usize {
        self.inner.rows() as usize
    }

    /// Numbers in a row.
    #[getter]
    fn width(&self) -> usize {
        self.inner.layout().width()
    }

    /// Type of the stored numbers.
    #[getter]
    fn dtype(&self) -> &'static str {
        self.inner.layout().dtype().name()
    }

    /// Whether the store is finished.
    #[getter]
    fn complete(&self) -> bool {
        self.inner.complete()
    }

    /// Name, width and spec in JSON of every column.
    #[getter]
    fn columns(&self) -> Vec<ColumnTuple> {
        let columns = self.inner.layout().columns().iter();
        columns
            .map(|column| (column.name.clone(), column.width, column.spec.to_string()))
            .collect()
    }

    /// What tells the plan and the model apart from others.
    #[getter]
    fn fingerprints(&self) -> Fingerprints {
        self.inner.fingerprints().clone()
    }

    /// Ids that were left out on purpose, ascending.
    #[getter]
    fn skipped_ids<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<u64>> {
        PyArray1::from_slice(py, self.inner.skipped_ids())
    }

    /// Ids of all rows, in their order, compared with their checksums.
    fn ids<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyArray1<u64>>> {
        let operations = self.__len__() * size_of::<u64>();
        let ids = detached(py, operations, |workers| self.inner.ids(workers))?;
        Ok(PyArray1::from_vec(py, ids))
    }

    /// Values (n, width) of the rows of these numbers.
    fn read_rows<'py>(
        &self,
        py: Python<'py>,
        rows: PyReadonlyArray1<'_, u64>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = elements(&rows, "read_rows")?;
        let shape = [rows.len(), self.width()];
        // However short, a row takes a page from the disk.
        let row_bytes = self.inner.layout().row_bytes().max(PAGE_BYTES);
        let operations = rows.len().saturating_mul(row_bytes);
        let values = detached(py, operations, |workers| {
            self.inner.read_rows(rows, workers)
        })?;
        PyArray1::from_vec(py, values).reshape(shape)
    }

    /// Compare every checksum; raise with all damage found.
    fn verify(&self, py: Python<'_>) -> PyResult<()> {
        detached(py, usize::MAX, |workers| self.inner.verify(workers))
    }
}

/// Compare every checksum of the store at path, however damaged it is; raise with all damage found.
#[pyfunction]
fn verify_store(py: Python<'_>, path: PathBuf) -> PyResult<()> {
    detached(py, usize::MAX, |workers| {
        grass_store::verify(&path, workers)
    })
}

/// Merge finished stores into the one at path.
#[pyfunction]
fn merge_stores(py: Python<'_>, sources: Vec<PathBuf>, path: PathBuf) -> PyResult<()> {
    detached(py, usize::MAX, |workers| {
        grass_store::merge(&sources, &path, &SystemDisk, workers)
    })
}

/// Refuse columns other than those that the store at path has.
#[pyfunction]
fn check_same_columns(
    path: PathBuf,
    stored: Vec<ColumnTuple>,
    given: Vec<ColumnTuple>,
) -> Result<(), PyError> {
    Ok(grass_store::check_same_columns(
        &path,
        &columns(stored)?,
        &columns(given)?,
    )?)
}

/// Refuse fingerprints other than those that the store at path has.
#[pyfunction]
fn check_same_fingerprints(
    path: PathBuf,
    stored: Fingerprints,
    given: Fingerprints,
) -> Result<(), PyError> {
    Ok(grass_store::check_same_fingerprints(
        &path, &stored, &given,
    )?)
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<StoreWriter>()?;
    module.add_class::<StoreReader>()?;
    module.add_function(wrap_pyfunction!(verify_store, module)?)?;
    module.add_function(wrap_pyfunction!(merge_stores, module)?)?;
    module.add_function(wrap_pyfunction!(check_same_columns, module)?)?;
    module.add_function(wrap_pyfunction!(check_same_fingerprints, module)?)
}

//! `_native.score_store`, `_native.score_to_file`, `_native.precondition` and `_native.self_influence`: scores of stored
//! rows.

use std::path::PathBuf;
use std::time::Duration;

use grass_core::parallel::Workers;
use grass_engine::{
    Chosen, Error, Method, Scores, precondition_queries, query_rows, score,
    score_to_file as write_scores, self_influence as self_influences,
};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;
use pyo3::types::PyBool;

use crate::detached::detached_with_progress;
use crate::error::PyError;
use crate::store::{StoreReader, elements};

/// Ids (n,) and scores (queries, n), or both (queries, k) of the best k.
type IdsAndScores<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray2<f32>>);

/// What counts in scores, as it comes from Python: a weight a column, the first and last (exclusive) columns of each Fisher
/// block, and the columns that weigh rows.
type NativeChosen = (Vec<f64>, Vec<(usize, usize)>, Vec<usize>);

fn chosen(
    (weights, blocks, row_weights): NativeChosen,
    store: &StoreReader,
) -> PyResult<Chosen<'_>> {
    let blocks = blocks.into_iter().map(|(first, end)| first..end).collect();
    let chosen = Chosen::new(&store.inner, weights, blocks, row_weights);
    Ok(chosen.map_err(PyError::Engine)?)
}

/// Queries as they come from Python.
#[derive(FromPyObject)]
enum Queries<'py> {
    Store(PyRef<'py, StoreReader>),
    Rows(PyReadonlyArray2<'py, f32>),
}

/// What the engine takes as queries.
enum Source<'a> {
    Store(&'a grass_store::StoreReader),
    Rows(&'a [f32]),
}

impl Queries<'_> {
    fn source(&self) -> PyResult<Source<'_>> {
        Ok(match self {
            Self::Store(store) => Source::Store(&store.inner),
            Self::Rows(rows) => Source::Rows(elements(rows, "score")?),
        })
    }
}

impl Source<'_> {
    /// Hands the rows to `call`.
    fn with<T>(
        &self,
        workers: &Workers,
        call: impl FnOnce(&[f32]) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self {
            Self::Store(store) => call(&query_rows(store, workers)?),
            Self::Rows(rows) => call(rows),
        }
    }
}

/// A number, or what came in its place in words.
fn number<'py, T: FromPyObjectOwned<'py>>(got: &Bound<'py, PyAny>) -> PyResult<Result<T, String>> {
    if !is_disguised(got)?
        && let Ok(number) = got.extract()
    {
        return Ok(Ok(number));
    }
    // Numbers of thousands of digits have no words.
    let Ok(words) = got.repr() else {
        return Ok(Err(format!("a {}", got.get_type().name()?)));
    };
    // In one line, as arrays are not.
    let words = words.to_string();
    let words: Vec<&str> = words.split_whitespace().collect();
    Ok(Err(words.join(" ")))
}

/// Whether Python takes this as a number although it is none: True, False, a NumPy array or torch tensor of them, or one
/// with axes.
fn is_disguised(got: &Bound<'_, PyAny>) -> PyResult<bool> {
    let truths = match got.getattr_opt("dtype")? {
        Some(dtype) => dtype.str()?.to_string().ends_with("bool"),
        None => got.is_instance_of::<PyBool>(),
    };
    let axes = got.getattr_opt("ndim")?.map(|axes| axes.extract::<usize>());
    Ok(truths
        || axes
            .transpose()
            .unwrap_or_default()
            .is_some_and(|axes| axes > 0))
}

fn damping(got: &Bound<'_, PyAny>) -> PyResult<f64> {
    number(got)?.map_err(|got| PyError::Engine(Error::Damping { got }).into())
}

fn dampings(got: &[Bound<'_, PyAny>]) -> PyResult<Vec<f64>> {
    got.iter().map(damping).collect()
}

/// Score every row of a store for queries, rows (n, width) or another store, once a damping, or once.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "those of Store.score")]
fn score_store<'py>(
    py: Python<'py>,
    store: &StoreReader,
    chosen: NativeChosen,
    queries: Queries<'_>,
    method: &str,
    dampings: Vec<Bound<'_, PyAny>>,
    top_k: Option<&Bound<'_, PyAny>>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<IdsAndScores<'py>>> {
    let chosen = self::chosen(chosen, store)?;
    let method: Method = method.parse().map_err(PyError::Engine)?;
    let rows = store.inner.rows() as usize;
    let dampings = self::dampings(&dampings)?;
    let refuse = |got| PyError::Engine(Error::TopK { rows, got });
    let top_k: Option<usize> = match top_k.map(number).transpose()? {
        None => None,
        Some(top_k) => Some(top_k.map_err(refuse)?),
    };
    let source = queries.source()?;
    let scores = detached_with_progress(py, progress, |workers| {
        source.with(workers, |rows| {
            score(chosen, rows, method, &dampings, top_k, workers)
        })
    })?;
    let per_query = top_k.unwrap_or(rows);
    let arrays = scores.into_iter().map(|scores| {
        let (ids, values, every_query) = match scores {
            Scores::All { ids, values } => (ids, values, true),
            Scores::Top { ids, values } => (ids, values, false),
        };
        let shape = [values.len() / per_query, per_query];
        let values = PyArray1::from_vec(py, values).reshape(shape)?;
        let ids = PyArray1::from_vec(py, ids);
        let ids = match every_query {
            true => ids.into_any(),
            false => ids.reshape(shape)?.into_any(),
        };
        Ok((ids, values))
    });
    arrays.collect()
}

/// Write the scores of every row of a store to a .npy file as they are made, or go on with one.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "those of Store.score")]
fn score_to_file(
    py: Python<'_>,
    store: &StoreReader,
    chosen: NativeChosen,
    queries: Queries<'_>,
    method: &str,
    damping: &Bound<'_, PyAny>,
    path: PathBuf,
    sync_seconds: f64,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let chosen = self::chosen(chosen, store)?;
    let method: Method = method.parse().map_err(PyError::Engine)?;
    let damping = self::damping(damping)?;
    let every = Duration::try_from_secs_f64(sync_seconds).unwrap_or(Duration::MAX);
    let source = queries.source()?;
    detached_with_progress(py, progress, |workers| {
        source.with(workers, |rows| {
            write_scores(chosen, rows, method, damping, &path, every, workers)
        })
    })
}

/// (F + lambda I)^-1 q of queries, rows (n, width) or another store: (n, width).
#[pyfunction]
fn precondition<'py>(
    py: Python<'py>,
    store: &StoreReader,
    chosen: NativeChosen,
    queries: Queries<'_>,
    damping: &Bound<'_, PyAny>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Bound<'py, PyArray2<f32>>> {
    let width = store.inner.layout().width();
    let chosen = self::chosen(chosen, store)?;
    let damping = self::damping(damping)?;
    let source = queries.source()?;
    let values = detached_with_progress(py, progress, |workers| {
        source.with(workers, |rows| {
            precondition_queries(chosen, rows, damping, workers)
        })
    })?;
    let shape = [values.len() / width, width];
    PyArray1::from_vec(py, values).reshape(shape)
}

/// The influence of every row on itself, (n,), once a damping.
#[pyfunction]
fn self_influence<'py>(
    py: Python<'py>,
    store: &StoreReader,
    chosen: NativeChosen,
    dampings: Vec<Bound<'_, PyAny>>,
    progress: Option<&Bound<'_, PyAny>>,
) -> PyResult<Vec<Bound<'py, PyArray1<f32>>>> {
    let chosen = self::chosen(chosen, store)?;
    let dampings = self::dampings(&dampings)?;
    let values = detached_with_progress(py, progress, |workers| {
        self_influences(chosen, &dampings, workers)
    })?;
    let arrays = values.into_iter();
    Ok(arrays
        .map(|values| PyArray1::from_vec(py, values))
        .collect())
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(score_store, module)?)?;
    module.add_function(wrap_pyfunction!(score_to_file, module)?)?;
    module.add_function(wrap_pyfunction!(precondition, module)?)?;
    module.add_function(wrap_pyfunction!(self_influence, module)?)
}

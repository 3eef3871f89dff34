//! `_native.score_store`: scores of stored rows.

use grass_engine::{DEFAULT_MEMORY, Error, Method, Scores, query_rows, score};
use numpy::{PyArray1, PyArray2, PyArrayMethods, PyReadonlyArray2};
use pyo3::prelude::*;

use crate::detached::detached;
use crate::error::PyError;
use crate::store::{StoreReader, elements};

/// Ids (n,) and scores (queries, n), or both (queries, k) of the best k.
type IdsAndScores<'py> = (Bound<'py, PyAny>, Bound<'py, PyArray2<f32>>);

/// Queries as they come from Python.
#[derive(FromPyObject)]
enum Queries<'py> {
    Store(PyRef<'py, StoreReader>),
    Rows(PyReadonlyArray2<'py, f32>),
}

/// Score every row of a store for queries: rows (n, width) or another store.
#[pyfunction]
fn score_store<'py>(
    py: Python<'py>,
    store: &StoreReader,
    queries: Queries<'_>,
    method: &str,
    damping: &Bound<'_, PyAny>,
    top_k: Option<&Bound<'_, PyAny>>,
) -> PyResult<IdsAndScores<'py>> {
    let store = &store.inner;
    let method: Method = method.parse().map_err(PyError::Engine)?;
    let rows = store.rows() as usize;
    let words = |got: &Bound<'_, PyAny>| got.repr().map(|words| words.to_string());
    let damping: f64 = match damping.extract() {
        Ok(damping) => damping,
        Err(_) => {
            let got = words(damping)?;
            return Err(PyError::Engine(Error::Damping { got }).into());
        }
    };
    let top_k: Option<usize> = match top_k.map(|got| (got, got.extract())) {
        None => None,
        Some((_, Ok(top_k))) => Some(top_k),
        Some((got, Err(_))) => {
            let got = words(got)?;
            return Err(PyError::Engine(Error::TopK { rows, got }).into());
        }
    };
    // Cheap calls too read a whole store from disk, which a signal must be able to stop.
    let scored = |rows: &[f32]| {
        detached(py, usize::MAX, |workers| {
            score(store, rows, method, damping, top_k, DEFAULT_MEMORY, workers)
        })
    };
    let scores = match queries {
        Queries::Rows(rows) => scored(elements(&rows, "score")?)?,
        Queries::Store(queries) => {
            let queries = &queries.inner;
            scored(&detached(py, usize::MAX, |workers| {
                query_rows(queries, workers)
            })?)?
        }
    };
    let per_query = top_k.unwrap_or(rows);
    match scores {
        Scores::All { ids, values } => {
            let count = values.len() / per_query;
            let values = PyArray1::from_vec(py, values).reshape([count, per_query])?;
            Ok((PyArray1::from_vec(py, ids).into_any(), values))
        }
        Scores::Top { ids, values } => {
            let shape = [values.len() / per_query, per_query];
            let values = PyArray1::from_vec(py, values).reshape(shape)?;
            let ids = PyArray1::from_vec(py, ids).reshape(shape)?;
            Ok((ids.into_any(), values))
        }
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(score_store, module)?)
}

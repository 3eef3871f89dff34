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
    damping: f64,
    top_k: Option<i64>,
) -> PyResult<IdsAndScores<'py>> {
    let store = &store.inner;
    let method: Method = method.parse().map_err(PyError::Engine)?;
    let rows = store.rows() as usize;
    let top_k = top_k.map(|got| usize::try_from(got).map_err(|_| Error::TopK { rows, got }));
    let top_k = top_k.transpose().map_err(PyError::Engine)?;
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

//! What the tests of the engine share: small stores, and the dense formulas in double precision.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    reason = "helpers of tests: every test file compiles its own copy and uses a part of it"
)]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use grass_core::parallel::Workers;
use grass_engine::{Error, Method, Scores, score};
use grass_store::{Column, Dtype, StoreReader, StoreSpec, StoreWriter, WriterOptions};
use ndarray::{Array2, ArrayView2, Axis, s};

/// How a store is written: none of it may change a score.
#[derive(Clone, Copy)]
pub struct Cut {
    pub rows_a_commit: usize,
    pub shard_bytes: u64,
}

pub const ONE_COMMIT: Cut = Cut {
    rows_a_commit: usize::MAX,
    shard_bytes: 4 << 30,
};

/// Numbers without a pattern, the same every time, from -1 to 1.
pub fn numbers(rows: usize, columns: usize, seed: u64) -> Array2<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    Array2::from_shape_simple_fn((rows, columns), || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    })
}

pub fn spec(dtype: Dtype, widths: &[usize]) -> StoreSpec {
    let columns = widths.iter().enumerate();
    StoreSpec {
        dtype,
        columns: columns
            .map(|(index, &width)| {
                Column::new(format!("layer{index}"), width as u64, "{}").unwrap()
            })
            .collect(),
        fingerprints: BTreeMap::new(),
    }
}

/// Id of a row: neither sorted nor dense.
pub fn id(row: usize) -> u64 {
    (row as u64 ^ 21) + 1000
}

pub fn write(
    path: &Path,
    dtype: Dtype,
    widths: &[usize],
    rows: &Array2<f32>,
    cut: Cut,
) -> StoreReader {
    let options = WriterOptions {
        commit_bytes: u64::MAX,
        commit_interval: Duration::MAX,
        shard_bytes: cut.shard_bytes,
        ..WriterOptions::default()
    };
    let mut writer = StoreWriter::create(path, spec(dtype, widths), options).unwrap();
    let mut first = 0;
    for part in rows.axis_chunks_iter(Axis(0), cut.rows_a_commit.min(rows.nrows().max(1))) {
        let ids: Vec<u64> = (first..first + part.nrows()).map(id).collect();
        writer
            .append(part.as_slice().unwrap(), &ids, &Workers::serial())
            .unwrap();
        writer.commit().unwrap();
        first += part.nrows();
    }
    writer.finish(&[]).unwrap();
    StoreReader::open(path).unwrap()
}

/// A float32 store in a folder of its own.
pub fn store(widths: &[usize], rows: &Array2<f32>) -> (tempfile::TempDir, StoreReader) {
    let folder = tempfile::tempdir().unwrap();
    let store = write(
        &folder.path().join("store"),
        Dtype::Float32,
        widths,
        rows,
        ONE_COMMIT,
    );
    (folder, store)
}

/// Removes the Fisher matrices that an earlier call saved, so that the next one gathers them.
pub fn forget_fisher(store: &StoreReader) {
    let mut folder = store.path().as_os_str().to_owned();
    folder.push(".fisher");
    std::fs::remove_dir_all(folder).unwrap();
}

/// All scores, by two threads.
pub fn all_scores(
    store: &StoreReader,
    queries: &Array2<f32>,
    method: Method,
    damping: f64,
) -> Result<Array2<f32>, Error> {
    scores_with(store, queries, method, damping, 2)
}

pub fn scores_with(
    store: &StoreReader,
    queries: &Array2<f32>,
    method: Method,
    damping: f64,
    threads: usize,
) -> Result<Array2<f32>, Error> {
    let workers = Workers::with_threads(threads);
    let values = queries.as_slice().unwrap();
    let mut scores = score(store, values, method, &[damping], None, &workers)?;
    assert_eq!(scores.len(), 1);
    match scores.remove(0) {
        Scores::All { ids, values } => {
            assert_eq!(ids, store.ids(&Workers::serial()).unwrap());
            Ok(Array2::from_shape_vec((queries.nrows(), ids.len()), values).unwrap())
        }
        Scores::Top { .. } => panic!("asked for all scores"),
    }
}

/// Dot products in double precision.
pub fn exact(queries: &Array2<f32>, rows: &Array2<f32>) -> Array2<f64> {
    queries.mapv(f64::from).dot(&rows.mapv(f64::from).t())
}

/// The rows of a store as it keeps them.
pub fn kept_rows(store: &StoreReader, queries: &Array2<f32>) -> Array2<f32> {
    let rows: Vec<u64> = (0..store.rows()).collect();
    let values = store.read_rows(&rows, &Workers::serial()).unwrap();
    Array2::from_shape_vec((rows.len(), queries.ncols()), values).unwrap()
}

/// The formula of the influence scores, dense and in double precision.
pub fn dense_influence(
    rows: &Array2<f32>,
    queries: &Array2<f32>,
    widths: &[usize],
    damping: f64,
) -> Array2<f64> {
    let (rows, queries) = (rows.mapv(f64::from), queries.mapv(f64::from));
    let n = rows.nrows() as f64;
    let mut scores = Array2::zeros((queries.nrows(), rows.nrows()));
    let mut start = 0;
    for &width in widths {
        let g = rows.slice(s![.., start..start + width]);
        let q = queries.slice(s![.., start..start + width]);
        let mut fisher = g.t().dot(&g) / n;
        let lambda = damping * fisher.diag().sum() / n;
        fisher.diag_mut().mapv_inplace(|value| value + lambda);
        scores += &q.dot(&solved(fisher, &g.t()));
        start += width;
    }
    scores
}

/// A^-1 B by Gaussian elimination with partial pivoting; rows of zeros are left out.
fn solved(mut a: Array2<f64>, b: &ArrayView2<'_, f64>) -> Array2<f64> {
    let mut x = b.to_owned();
    let size = a.nrows();
    for k in 0..size {
        let pivot = (k..size)
            .max_by(|&i, &j| a[[i, k]].abs().total_cmp(&a[[j, k]].abs()))
            .unwrap();
        for column in 0..size {
            a.swap([k, column], [pivot, column]);
        }
        for column in 0..x.ncols() {
            x.swap([k, column], [pivot, column]);
        }
        for i in (0..size).filter(|&i| i != k) {
            let factor = a[[i, k]] / a[[k, k]];
            if factor != 0.0 {
                let (from, mut to) = a.multi_slice_mut((s![k, k..], s![i, k..]));
                to.scaled_add(-factor, &from);
                let (from, mut to) = x.multi_slice_mut((s![k, ..], s![i, ..]));
                to.scaled_add(-factor, &from);
            }
        }
    }
    for (k, mut row) in x.rows_mut().into_iter().enumerate() {
        row /= a[[k, k]];
    }
    x
}

/// The largest difference over the largest score of the same query.
pub fn relative_error(got: &Array2<f32>, want: &Array2<f64>) -> f64 {
    let rows = got.rows().into_iter().zip(want.rows());
    rows.map(|(got, want)| {
        let largest = want
            .iter()
            .fold(f64::MIN_POSITIVE, |largest, value| largest.max(value.abs()));
        let worst = got.iter().zip(want).fold(0.0, |worst: f64, (got, want)| {
            worst.max((f64::from(*got) - want).abs())
        });
        worst / largest
    })
    .fold(0.0, f64::max)
}

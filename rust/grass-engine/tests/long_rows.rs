//! Rows longer than a buffer, of which a pass holds some coordinates only, give what short rows give.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs::{read, write as write_file};

use common::{ONE_COMMIT, numbers, write};
use grass_core::parallel::Workers;
use grass_engine::{DEFAULT_MEMORY, Error, precondition, query_rows, self_influence};
use grass_store::{Dtype, StoreReader};
use ndarray::{Array2, s};

const ROWS: usize = 12;

/// Coordinates that are zero in every row and query, in the middle of the wide column.
const ZEROS: usize = 1_200_000;

const WIDTHS: [usize; 4] = [7, 1, 300, 9];

fn with_zeros(rows: &Array2<f32>) -> Array2<f32> {
    let mut long = Array2::zeros((rows.nrows(), rows.ncols() + ZEROS));
    long.slice_mut(s![.., ..150])
        .assign(&rows.slice(s![.., ..150]));
    long.slice_mut(s![.., 150 + ZEROS..])
        .assign(&rows.slice(s![.., 150..]));
    long
}

fn stores(folder: &std::path::Path, dtype: Dtype) -> (StoreReader, StoreReader) {
    let rows = numbers(ROWS, WIDTHS.iter().sum(), 1);
    let short = write(&folder.join("short"), dtype, &WIDTHS, &rows, ONE_COMMIT);
    let mut widths = WIDTHS;
    widths[2] += ZEROS;
    let rows = with_zeros(&rows);
    let long = write(&folder.join("long"), dtype, &widths, &rows, ONE_COMMIT);
    (short, long)
}

#[test]
fn long_rows_precondition_like_short_ones() {
    let folder = tempfile::tempdir().unwrap();
    let workers = Workers::with_threads(2);
    for dtype in [Dtype::Float32, Dtype::Int8] {
        let folder = folder.path().join(dtype.name());
        std::fs::create_dir(&folder).unwrap();
        let (short, long) = stores(&folder, dtype);
        let queries = numbers(2, WIDTHS.iter().sum(), 2);
        let solved = |store, queries: &Array2<f32>, memory| {
            let values = queries.as_slice().unwrap();
            precondition(store, values, &[0.4, 1e-3], memory, &workers).unwrap()
        };
        let want = solved(&short, &queries, DEFAULT_MEMORY);
        let most = want
            .wide_scores
            .iter()
            .fold(0f64, |most, score| most.max(score.abs()));
        // Held at once, then in panels, of which all but the first are read without the rest of the row.
        for memory in [1 << 30, 1 << 20] {
            let got = solved(&long, &with_zeros(&queries), memory);
            let width = want.queries.len() / 4;
            for (got, want) in got
                .queries
                .chunks(width + ZEROS)
                .zip(want.queries.chunks(width))
            {
                assert!(got[..150] == want[..150] && got[150 + ZEROS..] == want[150..]);
            }
            let pairs = got.wide_scores.iter().zip(&want.wide_scores);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 1e-11 * most));
            common::forget_fisher(&long);
        }
        let [got, want] =
            [&long, &short].map(|store| self_influence(store, &[0.4], &workers).unwrap());
        let pairs = got[0].iter().zip(&want[0]);
        assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= 1e-6 * b));
        let values = query_rows(&long, &workers).unwrap();
        let values = Array2::from_shape_vec((ROWS, values.len() / ROWS), values).unwrap();
        let indices: Vec<u64> = (0..ROWS as u64).collect();
        let kept = long.read_rows(&indices, &workers).unwrap();
        assert!(values.as_slice().unwrap() == kept);
        assert!(
            values
                .slice(s![.., 150..150 + ZEROS])
                .iter()
                .all(|value| *value == 0.0)
        );
    }
}

/// A bit far from every coordinate that the first pass holds.
#[test]
fn damage_anywhere_in_a_long_row_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let (_, long) = stores(folder.path(), Dtype::Float32);
    let path = long.path().join("shard-00000.rows");
    let mut bytes = read(&path).unwrap();
    let at = bytes.len() - 3_000_000;
    bytes[at] ^= 4;
    write_file(&path, bytes).unwrap();
    let workers = Workers::with_threads(2);
    let queries = vec![1.0; WIDTHS.iter().sum::<usize>() + ZEROS];
    let place = "rows chunk 11 rows 11:12 (the checksum differs)";
    let errors = [
        precondition(&long, &queries, &[0.4], 1 << 20, &workers).unwrap_err(),
        self_influence(&long, &[0.4], &workers).unwrap_err(),
        query_rows(&long, &workers).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::Store(_)), "{error}");
        assert!(error.to_string().contains(place), "{error}");
    }
}

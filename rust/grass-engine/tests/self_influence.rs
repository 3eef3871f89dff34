//! Self-influence equals the diagonal of the dense scores of the rows for themselves.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use common::{Cut, dense_influence, forget_fisher, numbers, store, write};
use grass_core::parallel::Workers;
use grass_engine::{Error, self_influence};
use grass_store::Dtype;
use ndarray::{Array2, s};

#[track_caller]
fn assert_close(rows: &Array2<f32>, widths: &[usize], dampings: &[f64]) {
    let (_folder, store) = store(widths, rows);
    let got = self_influence(&store, dampings, &Workers::with_threads(2)).unwrap();
    assert_eq!(got.len(), dampings.len());
    for (got, &damping) in got.iter().zip(dampings) {
        let dense = dense_influence(rows, rows, widths, damping);
        assert_eq!(got.len(), rows.nrows());
        for (&got, &want) in got.iter().zip(dense.diag()) {
            let error = (f64::from(got) - want).abs() / want;
            assert!(error < 3e-6, "{got} for {want} at damping {damping}");
        }
    }
}

#[test]
fn every_row_equals_the_dense_formula() {
    for dampings in [[0.4].as_slice(), &[0.4, 1e-2, 30.0]] {
        assert_close(&numbers(500, 130, 1), &[100, 1, 29], dampings);
        assert_close(&numbers(70, 300, 1), &[200, 100], dampings);
        assert_close(&numbers(80, 200, 1), &[20, 180], dampings);
        assert_close(&numbers(1, 7, 1), &[1, 6], dampings);
        assert_close(&numbers(400, 290, 1), &[290], dampings);
    }
}

#[test]
fn more_dampings_than_are_factored_at_once() {
    let dampings: Vec<f64> = (1..20).map(|index| f64::from(index) / 7.0).collect();
    assert_close(&numbers(60, 75, 1), &[20, 55], &dampings[..2]);
    assert_close(&numbers(60, 95, 1), &[20, 75], &dampings);
}

/// n g^T F^-1 g / n of rows alone in their direction, and nothing for a row of zeros.
#[test]
fn rows_of_one_coordinate_each() {
    let mut rows = Array2::zeros((4, 3));
    (rows[[0, 0]], rows[[1, 1]], rows[[3, 1]]) = (2.0, 3.0, -1.0);
    rows[[0, 2]] = 1e-3;
    for widths in [[3].as_slice(), &[1, 2]] {
        let (_folder, store) = store(widths, &rows);
        let got = self_influence(&store, &[0.4], &Workers::serial()).unwrap();
        let want = dense_influence(&rows, &rows, widths, 0.4);
        for (&got, &want) in got[0].iter().zip(want.diag()) {
            assert!((f64::from(got) - want).abs() <= 1e-6 * want);
        }
        assert_eq!(got[0][2], 0.0);
    }
}

#[test]
fn a_zero_row_of_a_wide_column_has_none() {
    let mut rows = numbers(9, 40, 1);
    rows.row_mut(4).fill(0.0);
    let (_folder, store) = store(&[40], &rows);
    for dampings in [[0.4].as_slice(), &[0.4, 1.0]] {
        for list in self_influence(&store, dampings, &Workers::serial()).unwrap() {
            assert_eq!(list[4], 0.0);
        }
    }
}

#[test]
fn a_column_without_any_gradient_adds_nothing() {
    for n in [30, 4] {
        let mut rows = numbers(n, 12, 1);
        rows.slice_mut(s![.., 6..]).fill(0.0);
        let (_folder, both) = store(&[6, 6], &rows);
        let (_folder, one) = store(&[6], &rows.slice(s![.., ..6]).to_owned());
        let run = |store| self_influence(store, &[0.4, 1.0], &Workers::serial()).unwrap();
        assert_eq!(run(&both), run(&one));
    }
}

#[test]
fn bits_depend_on_neither_threads_nor_shards() {
    let widths = [300, 700, 64];
    let rows = numbers(400, 1064, 1);
    let folder = tempfile::tempdir().unwrap();
    let whole = Cut {
        rows_a_commit: usize::MAX,
        shard_bytes: 4 << 30,
    };
    let small = Cut {
        rows_a_commit: 37,
        shard_bytes: 1 << 20,
    };
    let plain = write(
        &folder.path().join("a"),
        Dtype::Float32,
        &widths,
        &rows,
        whole,
    );
    let shards = write(
        &folder.path().join("b"),
        Dtype::Float32,
        &widths,
        &rows,
        small,
    );
    for dampings in [[0.4].as_slice(), &[0.4, 1.0]] {
        let run = |store, threads| {
            self_influence(store, dampings, &Workers::with_threads(threads)).unwrap()
        };
        let want = run(&plain, 1);
        forget_fisher(&plain);
        assert!(run(&plain, 7) == want);
        assert!(run(&shards, 2) == want);
        forget_fisher(&plain);
        forget_fisher(&shards);
    }
}

#[test]
fn what_precondition_refuses_is_refused_here() {
    let (_folder, store) = store(&[12], &numbers(9, 12, 1));
    let run = |dampings: &[f64]| self_influence(&store, dampings, &Workers::serial()).unwrap_err();
    assert!(matches!(run(&[]), Error::Damping { .. }));
    assert!(matches!(run(&[-1.0]), Error::Damping { .. }));
    assert!(matches!(run(&[0.0]), Error::Singular { .. }));
    assert!(matches!(run(&[0.4, 0.0]), Error::Singular { .. }));
}

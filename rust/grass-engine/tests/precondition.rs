//! Preconditioned queries for one damping and for many, from one decomposition.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::sync::atomic::Ordering;

use common::{dense_influence, exact, forget_fisher, numbers, relative_error, store};
use grass_core::parallel::Workers;
use grass_engine::{DEFAULT_MEMORY, Error, Preconditioned, precondition};
use grass_store::StoreReader;
use ndarray::{Array2, s};

fn solved(
    store: &StoreReader,
    queries: &Array2<f32>,
    dampings: &[f64],
    threads: usize,
) -> Result<Preconditioned, Error> {
    let workers = Workers::with_threads(threads);
    let values = queries.as_slice().unwrap();
    precondition(store, values, dampings, DEFAULT_MEMORY, &workers)
}

/// What the results say of rows, (results, n), in double precision.
fn scores(solved: &Preconditioned, rows: &Array2<f32>) -> Array2<f64> {
    let (n, width) = rows.dim();
    let shape = (solved.queries.len() / width, width);
    let queries = Array2::from_shape_vec(shape, solved.queries.clone()).unwrap();
    let scores = exact(&queries, rows);
    if solved.wide_scores.is_empty() {
        return scores;
    }
    scores + Array2::from_shape_vec((shape.0, n), solved.wide_scores.clone()).unwrap()
}

fn largest<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    let values = values.iter().map(|&value| value.into().abs());
    values.fold(0.0, f64::max)
}

#[test]
fn a_sweep_equals_the_dense_formula_and_single_dampings() {
    for (n, widths) in [
        (90, vec![1, 30, 59]),
        (700, vec![130, 300, 64, 65]),
        (30, vec![40, 20, 200]),
        (300, vec![500, 301]),
    ] {
        let width = widths.iter().sum();
        let (rows, queries) = (numbers(n, width, 1), numbers(18, width, 2));
        let (_folder, store) = store(&widths, &rows);
        let dampings = [0.4, 1e-2, 100.0];
        let sweep = solved(&store, &queries, &dampings, 2).unwrap();
        let all = scores(&sweep, &rows);
        for (index, &damping) in dampings.iter().enumerate() {
            let got = all.slice(s![index * 18..(index + 1) * 18, ..]);
            let dense = dense_influence(&rows, &queries, &widths, damping);
            let error = relative_error(&got.mapv(|x| x as f32), &dense);
            assert!(error < 1e-6, "{error:e} at {damping}, {widths:?}");
            let alone = solved(&store, &queries, &[damping], 1).unwrap();
            let part = &sweep.queries[index * 18 * width..(index + 1) * 18 * width];
            // Both are right to the last bit or two of float32, and of wide columns to more.
            let pairs = part.iter().zip(&alone.queries);
            let most = 2e-7 * largest(part);
            assert!(
                pairs
                    .into_iter()
                    .all(|(a, b)| f64::from((a - b).abs()) <= most)
            );
            let scored = alone.wide_scores.len();
            let part = &sweep.wide_scores[index * scored..(index + 1) * scored];
            let pairs = part.iter().zip(&alone.wide_scores);
            let most = 1e-11 * largest(part);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= most));
        }
    }
}

#[test]
fn wide_columns_have_scores_and_the_others_queries() {
    let (rows, queries) = (numbers(40, 170, 1), numbers(3, 170, 2));
    let (_folder, store) = store(&[39, 41, 40, 50], &rows);
    let got = solved(&store, &queries, &[0.4, 1.0], 1).unwrap();
    assert_eq!(got.queries.len(), 6 * 170);
    for query in got.queries.chunks(170) {
        for (coordinates, wide) in [
            (0..39, false),
            (39..80, true),
            (80..120, false),
            (120..170, true),
        ] {
            assert!(query[coordinates].iter().all(|x| (*x == 0.0) == wide));
        }
    }
    assert_eq!(got.wide_scores.len(), 6 * 40);
    let (_folder, narrow) = common::store(&[39, 40], &numbers(40, 79, 1));
    let got = solved(&narrow, &numbers(3, 79, 2), &[0.4], 1).unwrap();
    assert!(got.wide_scores.is_empty());
}

#[test]
fn bits_depend_on_neither_threads_nor_other_queries_nor_other_dampings() {
    let widths = [300, 90, 500];
    let (rows, queries) = (numbers(400, 890, 1), numbers(21, 890, 2));
    let (_folder, store) = store(&widths, &rows);
    // More than are factored at once.
    let dampings: Vec<f64> = (1..20).map(|index| f64::from(index) / 7.0).collect();
    let want = solved(&store, &queries, &dampings, 1).unwrap();
    forget_fisher(&store);
    assert!(solved(&store, &queries, &dampings, 5).unwrap() == want);
    let one = queries.slice(s![17..18, ..]).to_owned();
    let part = solved(&store, &one, &dampings[15..18], 2).unwrap();
    for (index, damping) in (15..18).enumerate() {
        let place = damping * 21 + 17;
        let query =
            |solved: &Preconditioned, place: usize| solved.queries[place * 890..][..890].to_vec();
        assert!(query(&part, index) == query(&want, place));
        let wide = |solved: &Preconditioned, place: usize| {
            solved.wide_scores[place * 400..][..400].to_vec()
        };
        assert!(wide(&part, index) == wide(&want, place));
    }
}

/// Squares of these numbers do not fit single precision, in which products are made.
#[test]
fn rows_of_any_size_lose_nothing() {
    for widths in [[20, 30], [60, 90]] {
        let width = widths.iter().sum();
        let (rows, queries) = (numbers(55, width, 1), numbers(3, width, 2));
        let (_folder, plain) = store(&widths, &rows);
        let want = solved(&plain, &queries, &[0.4], 2).unwrap();
        for factor in [2f32.powi(90), 2f32.powi(-90)] {
            let (_folder, store) = store(&widths, &(&rows * factor));
            let mut got = solved(&store, &(&queries * factor), &[0.4], 2).unwrap();
            got.queries.iter_mut().for_each(|value| *value *= factor);
            assert!(got == want, "{factor:e}");
        }
    }
}

/// Rows of very different lengths: what is short does not vanish beside what is long.
#[test]
fn runs_of_different_size_are_added_rightly() {
    let mut rows = numbers(600, 30, 1);
    rows.slice_mut(s![..300, ..]).mapv_inplace(|x| x * 1e-4);
    rows.slice_mut(s![300.., ..4]).fill(0.0);
    rows.slice_mut(s![140..150, ..]).fill(0.0);
    let queries = numbers(4, 30, 2);
    let (_folder, store) = store(&[30], &rows);
    let got = solved(&store, &queries, &[1e-3], 2).unwrap();
    let scores = scores(&got, &rows).mapv(|x| x as f32);
    let dense = dense_influence(&rows, &queries, &[30], 1e-3);
    assert!(relative_error(&scores, &dense) < 1e-5);
}

#[test]
fn a_damping_that_is_none_is_refused() {
    let rows = numbers(9, 3, 1).mapv(|value| value * 1e5);
    let (_folder, store) = store(&[3], &rows);
    for (dampings, got) in [
        (vec![], "an empty list"),
        (vec![0.4, -1.0], "-1"),
        (vec![f64::NAN], "NaN"),
        (vec![1.0, f64::INFINITY], "inf"),
        (vec![1.0, 1e308], "1e308, too large for column \"layer0\""),
    ] {
        let error = solved(&store, &numbers(1, 3, 2), &dampings, 1).unwrap_err();
        assert!(matches!(error, Error::Damping { .. }));
        assert!(error.to_string().contains(got), "{error}");
    }
}

#[test]
fn queries_of_another_width_are_refused() {
    let (_folder, store) = store(&[3], &numbers(9, 3, 1));
    for count in [0, 2, 4] {
        let workers = Workers::serial();
        let queries = vec![1.0; count];
        let error = precondition(&store, &queries, &[0.4], DEFAULT_MEMORY, &workers).unwrap_err();
        assert!(matches!(error, Error::Queries { width: 3, .. }), "{error}");
    }
}

#[test]
fn the_damping_that_leaves_a_matrix_singular_is_named() {
    for widths in [[12], [30]] {
        // Fewer directions than coordinates, and than rows.
        let mut rows = numbers(20, widths[0], 1);
        for row in 5..20 {
            let same = rows.row(row % 5).to_owned();
            rows.row_mut(row).assign(&same);
        }
        let (_folder, store) = store(&widths, &rows);
        for dampings in [vec![0.0], vec![0.4, 0.0], vec![1.0, 1e-3, 0.0, 0.0]] {
            let error = solved(&store, &numbers(2, widths[0], 2), &dampings, 2).unwrap_err();
            let words = "column \"layer0\" with damping 0e0 is singular";
            assert!(error.to_string().contains(words), "{error}");
        }
        assert!(solved(&store, &numbers(2, widths[0], 2), &[0.4, 1e-3], 2).is_ok());
    }
}

#[test]
fn progress_counts_the_bytes_of_every_pass() {
    let rows = numbers(300, 40, 1);
    let (_folder, store) = store(&[30, 10], &rows);
    let workers = Workers::with_threads(2);
    let queries = numbers(1, 40, 2);
    let values = queries.as_slice().unwrap();
    precondition(&store, values, &[0.4], DEFAULT_MEMORY, &workers).unwrap();
    let bytes = 300 * 40 * 4;
    assert_eq!(workers.progress().get(), (bytes, bytes));
}

#[test]
fn a_cancelled_call_stops_and_the_next_one_works() {
    let rows = numbers(300, 900, 1);
    let (_folder, store) = store(&[200, 700], &rows);
    let queries = numbers(2, 900, 2);
    for dampings in [[0.4].as_slice(), &[0.4, 1.0]] {
        // With nothing saved, and with all of it.
        for _ in 0..2 {
            let workers = Workers::with_threads(2);
            workers.cancel_flag().store(true, Ordering::Relaxed);
            let values = queries.as_slice().unwrap();
            let error = precondition(&store, values, dampings, DEFAULT_MEMORY, &workers);
            let interrupted = grass_core::Error::Interrupted;
            assert!(matches!(error, Err(Error::Core(got)) if got == interrupted));
            assert!(solved(&store, &queries, dampings, 2).is_ok());
        }
    }
}

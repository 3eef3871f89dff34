//! Influence scores equal the dense formula in double precision, however they are computed.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use common::{
    Cut, ONE_COMMIT, all_scores, dense_influence, forget_fisher, numbers, relative_error,
    scores_with, store, write,
};
use grass_core::parallel::Workers;
use grass_engine::{DEFAULT_MEMORY, Error, Method, precondition};
use grass_store::Dtype;
use ndarray::{Array2, s};
use proptest::prelude::*;

const INFLUENCE: Method = Method::Influence;

#[track_caller]
fn assert_close(
    rows: &Array2<f32>,
    queries: &Array2<f32>,
    widths: &[usize],
    damping: f64,
    tolerance: f64,
) {
    let (_folder, store) = store(widths, rows);
    let got = all_scores(&store, queries, INFLUENCE, damping).unwrap();
    let error = relative_error(&got, &dense_influence(rows, queries, widths, damping));
    assert!(error < tolerance, "{error:e} at damping {damping:e}");
}

#[test]
fn more_rows_than_coordinates() {
    let (rows, queries) = (numbers(700, 60, 1), numbers(5, 60, 2));
    for damping in [0.0, 1e-3, 0.4, 100.0] {
        assert_close(&rows, &queries, &[1, 19, 40], damping, 1e-6);
    }
}

#[test]
fn more_coordinates_than_rows() {
    let (rows, queries) = (numbers(40, 900, 1), numbers(5, 900, 2));
    for damping in [1e-6, 1e-3, 0.4, 100.0] {
        assert_close(&rows, &queries, &[600, 300], damping, 1e-6);
    }
}

/// Inner products of rows that are singular, or nearly so, and queries that lie almost wholly outside the rows' span.
#[test]
fn repeated_and_zero_and_nearly_equal_rows_of_many_coordinates() {
    let mut rows = numbers(60, 400, 1);
    rows.slice_mut(s![.., 300..]).fill(0.0);
    for row in 20..40 {
        let same = rows.row(row - 20).to_owned();
        rows.row_mut(row).assign(&same);
    }
    for row in 40..50 {
        let near = rows.row(row - 40).mapv(|value| value * (1.0 + 1e-6));
        rows.row_mut(row).assign(&near);
        rows[[row, row]] += 1e-4;
    }
    rows.slice_mut(s![50..53, ..]).fill(0.0);
    let mut queries = numbers(5, 400, 2);
    queries
        .slice_mut(s![.., ..300])
        .mapv_inplace(|value| value * 1e-3);
    for damping in [1e-6, 1e-3, 0.4] {
        assert_close(&rows, &queries, &[400], damping, 1e-6);
        assert_close(&rows, &queries, &[150, 250], damping, 1e-6);
    }
}

#[test]
fn as_many_coordinates_as_rows_and_both_kinds_of_blocks() {
    let (rows, queries) = (numbers(50, 150, 1), numbers(3, 150, 2));
    assert_close(&rows, &queries, &[50, 20, 51, 29], 0.4, 1e-6);
}

#[test]
fn one_row_and_one_coordinate() {
    assert_close(&numbers(1, 9, 1), &numbers(2, 9, 2), &[9], 0.4, 1e-6);
    assert_close(&numbers(9, 1, 1), &numbers(2, 1, 2), &[1], 0.4, 1e-6);
    assert_close(&numbers(1, 1, 1), &numbers(1, 1, 2), &[1], 0.4, 1e-6);
}

#[test]
fn blocks_larger_than_a_tile() {
    let (rows, queries) = (numbers(620, 530, 1), numbers(17, 530, 2));
    assert_close(&rows, &queries, &[530], 0.4, 1e-6);
    let (rows, queries) = (numbers(270, 1100, 1), numbers(17, 1100, 2));
    assert_close(&rows, &queries, &[1100], 0.4, 1e-6);
}

/// Most of the rows' length in one direction, and little damping: a condition number of 1e10.
#[test]
fn badly_conditioned_rows() {
    for (n, widths) in [(3000, [30]), (60, [200])] {
        let spread = |(row, column): (usize, usize)| {
            numbers(1, 1, (row * 999 + column + 1) as u64)[[0, 0]] * 0.6f32.powi(column as i32 % 40)
        };
        let mut rows = Array2::from_shape_fn((n, widths[0]), spread);
        rows.column_mut(0).fill(30.0);
        let queries = numbers(4, widths[0], 7);
        for damping in [1e-5, 1e-2, 0.4] {
            assert_close(&rows, &queries, &widths, damping, 1e-4);
        }
    }
}

/// What single precision would get wrong: the queries lie almost wholly outside the rows' span.
#[test]
fn queries_outside_the_span_of_the_rows() {
    let mut rows = numbers(2000, 20, 1);
    rows.slice_mut(s![.., 10..])
        .mapv_inplace(|value| value * 1e-6);
    let mut queries = numbers(3, 20, 2);
    queries
        .slice_mut(s![.., ..10])
        .mapv_inplace(|value| value * 1e-3);
    assert_close(&rows, &queries, &[20], 1e-4, 1e-6);
}

#[test]
fn every_score_is_close_for_well_conditioned_rows() {
    let (rows, queries) = (numbers(400, 24, 1), numbers(6, 24, 2));
    let (_folder, store) = store(&[24], &rows);
    let got = all_scores(&store, &queries, INFLUENCE, 0.4).unwrap();
    let want = dense_influence(&rows, &queries, &[24], 0.4);
    let workers = Workers::serial();
    let values = queries.as_slice().unwrap();
    let solved = precondition(&store, values, &[0.4], DEFAULT_MEMORY, &workers).unwrap();
    for ((solved, got), want) in solved.queries.chunks(24).zip(got.rows()).zip(want.rows()) {
        for ((row, got), want) in rows.rows().into_iter().zip(got).zip(want) {
            // Single precision rounds terms, which may cancel in a score.
            let unit = length(solved) * length(row.as_slice().unwrap());
            let error = (f64::from(*got) - want).abs();
            assert!(error <= 2f64.powi(-22) * unit, "{got} for {want}");
        }
    }
}

#[test]
fn scores_are_of_the_numbers_that_the_dtype_kept() {
    let folder = tempfile::tempdir().unwrap();
    let (rows, queries) = (numbers(300, 450, 1), numbers(4, 450, 2));
    for dtype in [Dtype::Float16, Dtype::Bfloat16, Dtype::Int8] {
        let store = write(
            &folder.path().join(dtype.name()),
            dtype,
            &[31, 19, 400],
            &rows,
            ONE_COMMIT,
        );
        let indices: Vec<u64> = (0..300).collect();
        let kept = Array2::from_shape_vec(
            (300, 450),
            store.read_rows(&indices, &Workers::serial()).unwrap(),
        )
        .unwrap();
        let got = all_scores(&store, &queries, INFLUENCE, 0.4).unwrap();
        assert!(
            relative_error(&got, &dense_influence(&kept, &queries, &[31, 19, 400], 0.4)) < 1e-6
        );
    }
}

#[test]
fn coordinates_that_are_always_zero_do_not_matter() {
    let mut rows = numbers(100, 12, 1);
    rows.slice_mut(s![.., 3..5]).fill(0.0);
    assert_close(&rows, &numbers(3, 12, 2), &[12], 0.4, 1e-6);
}

#[test]
fn a_block_without_any_gradient_adds_nothing() {
    for n in [100, 4] {
        let mut rows = numbers(n, 12, 1);
        rows.slice_mut(s![.., 6..]).fill(0.0);
        let queries = numbers(3, 12, 2);
        let (_folder, both) = store(&[6, 6], &rows);
        let (_folder, one) = store(&[6], &rows.slice(s![.., ..6]).to_owned());
        let got = all_scores(&both, &queries, INFLUENCE, 0.4).unwrap();
        let want =
            all_scores(&one, &queries.slice(s![.., ..6]).to_owned(), INFLUENCE, 0.4).unwrap();
        assert_eq!(got, want);
    }
}

#[test]
fn a_fisher_matrix_without_inverse_asks_for_damping() {
    let mut dead = numbers(100, 12, 1);
    dead.slice_mut(s![.., 7]).fill(0.0);
    for rows in [dead, numbers(11, 12, 1)] {
        let (_folder, store) = store(&[12], &rows);
        let error = all_scores(&store, &numbers(1, 12, 2), INFLUENCE, 0.0).unwrap_err();
        assert!(matches!(error, Error::Singular { .. }), "{error}");
        assert!(
            error
                .to_string()
                .contains("column \"layer0\" with damping 0e0 is singular"),
            "{error}"
        );
        assert!(error.to_string().contains("raise damping"), "{error}");
    }
}

#[test]
fn rows_with_a_nan_name_the_column() {
    for n in [100, 4] {
        let mut rows = numbers(n, 12, 1);
        rows[[2, 8]] = f32::NAN;
        let (_folder, store) = store(&[6, 6], &rows);
        let error = all_scores(&store, &numbers(1, 12, 2), INFLUENCE, 0.4).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("column \"layer1\" of the store holds NaN"),
            "{error}"
        );
    }
}

#[test]
fn much_damping_turns_influence_into_scaled_dot_products() {
    let (rows, queries) = (numbers(200, 8, 1), numbers(2, 8, 2));
    let (_folder, store) = store(&[8], &rows);
    let damping = 1e9;
    let trace: f64 = rows
        .iter()
        .map(|value| f64::from(*value).powi(2))
        .sum::<f64>()
        / 200.0;
    let influence = all_scores(&store, &queries, INFLUENCE, damping).unwrap();
    let dot = all_scores(&store, &queries, Method::GradDot, 0.0).unwrap();
    let scaled = dot.mapv(|value| f64::from(value) / (damping * trace / 200.0));
    assert!(relative_error(&influence, &scaled) < 1e-6);
}

/// Rows of 256 KiB (16 a chunk) in blocks of both kinds, and what must not change a bit.
#[test]
fn bits_depend_on_neither_threads_nor_memory_nor_commits_nor_shards() {
    let mut widths = vec![40; 100];
    widths.extend([700, 3000, 65_536 - 4000 - 3700]);
    let width: usize = widths.iter().sum();
    let (rows, queries) = (numbers(75, width, 1), numbers(18, width, 2));
    let folder = tempfile::tempdir().unwrap();
    let plain = write(
        &folder.path().join("plain"),
        Dtype::Float32,
        &widths,
        &rows,
        ONE_COMMIT,
    );
    let want = scores_with(&plain, &queries, INFLUENCE, 0.4, 1).unwrap();
    for threads in [2, 5] {
        forget_fisher(&plain);
        assert!(scores_with(&plain, &queries, INFLUENCE, 0.4, threads).unwrap() == want);
    }
    let solved = |memory| {
        forget_fisher(&plain);
        let queries = queries.as_slice().unwrap();
        precondition(&plain, queries, &[0.4], memory, &Workers::with_threads(3)).unwrap()
    };
    for memory in [1 << 20, 1] {
        assert!(solved(memory) == solved(DEFAULT_MEMORY));
    }
    for (index, cut) in [(7, 4 << 30), (20, 8 << 20), (75, 4 << 20)]
        .into_iter()
        .enumerate()
    {
        let cut = Cut {
            rows_a_commit: cut.0,
            shard_bytes: cut.1,
        };
        let store = write(
            &folder.path().join(index.to_string()),
            Dtype::Float32,
            &widths,
            &rows,
            cut,
        );
        assert!(all_scores(&store, &queries, INFLUENCE, 0.4).unwrap() == want);
    }
    for query in [0, 7, 17] {
        let alone = queries.slice(s![query..=query, ..]).to_owned();
        forget_fisher(&plain);
        assert!(all_scores(&plain, &alone, INFLUENCE, 0.4).unwrap().row(0) == want.row(query));
    }
}

fn length(values: &[f32]) -> f64 {
    let squares = values.iter().map(|&value| f64::from(value).powi(2));
    squares.sum::<f64>().sqrt()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn any_shape_and_damping(
        n in 1usize..80, widths in proptest::collection::vec(1usize..60, 1..5), count in 1usize..20,
        log_damping in -4.0..2.0f64, seed in any::<u64>(),
    ) {
        let width: usize = widths.iter().sum();
        let (rows, queries) = (numbers(n, width, seed), numbers(count, width, seed ^ 1));
        let damping = 10f64.powf(log_damping);
        let (_folder, store) = store(&widths, &rows);
        let got = all_scores(&store, &queries, INFLUENCE, damping).unwrap();
        let want = dense_influence(&rows, &queries, &widths, damping);
        // The unit of the roundings in columns with no more coordinates than rows: lengths of x = (F + lambda I)^-1 q there
        // and of the row, whose product may cancel in the score. The other columns' part of a score is only rounded itself.
        let workers = Workers::serial();
        let solved = precondition(&store, queries.as_slice().unwrap(), &[damping], DEFAULT_MEMORY, &workers).unwrap();
        for ((solved, got), want) in solved.queries.chunks(width).zip(got.rows()).zip(want.rows()) {
            for ((row, &got), want) in rows.rows().into_iter().zip(got).zip(want) {
                let unit = length(solved) * length(row.as_slice().unwrap());
                let error = (f64::from(got) - want).abs();
                prop_assert!(error <= 1e-6 * unit + 1e-7 * want.abs(), "{error:e} of {unit:e} at {damping:e}");
            }
        }
    }
}

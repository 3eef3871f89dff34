//! Rows of int8: scored by queries of 8 bits, with the error that the documentation states.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use common::{ONE_COMMIT, all_scores, exact, kept_rows, numbers, relative_error, write};
use grass_engine::Method;
use grass_store::Dtype;
use ndarray::{Array2, s};

fn length(values: ndarray::ArrayView1<'_, f32>) -> f64 {
    values
        .iter()
        .map(|&value| f64::from(value).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Wide columns, narrow ones side by side, and one that is cut into several runs.
const INT8_WIDTHS: [usize; 7] = [500, 3, 1, 90, 128, 40_000, 60];

/// The queries with every column of at least 128 coordinates rounded to 8 bits.
fn rounded(queries: &Array2<f32>) -> Array2<f64> {
    let mut rounded = queries.mapv(f64::from);
    let mut start = 0;
    for width in INT8_WIDTHS {
        for mut query in rounded.rows_mut() {
            let mut part = query.slice_mut(s![start..start + width]);
            let largest = part
                .iter()
                .fold(0f64, |largest, value| largest.max(value.abs()));
            if width >= 128 && largest > 0.0 {
                part.mapv_inplace(|value| (value * 127.0 / largest).round() * largest / 127.0);
            }
        }
        start += width;
    }
    rounded
}

#[test]
fn int8_rows_meet_queries_of_8_bits_and_err_as_stated() {
    let width = INT8_WIDTHS.iter().sum();
    let (rows, mut queries) = (numbers(40, width, 1), numbers(10, width, 2));
    // Columns of very different size, and one without any gradient.
    queries
        .slice_mut(s![.., ..500])
        .mapv_inplace(|value| value * 1e-20);
    queries.slice_mut(s![3, 594..722]).fill(0.0);
    let folder = tempfile::tempdir().unwrap();
    let store = write(
        &folder.path().join("s"),
        Dtype::Int8,
        &INT8_WIDTHS,
        &rows,
        ONE_COMMIT,
    );
    let kept = kept_rows(&store, &queries);
    let got = all_scores(&store, &queries, Method::GradDot, 0.0).unwrap();
    let eight_bits = rounded(&queries).dot(&kept.mapv(f64::from).t());
    assert!(relative_error(&got, &eight_bits) < 1e-6);
    let want = exact(&queries, &kept);
    let mut sum = 0.0;
    for ((query, row), &got) in got.indexed_iter() {
        let (mut start, mut most, mut variance) = (0, 0.0, 0.0);
        for width in INT8_WIDTHS {
            let columns = s![start..start + width];
            let q = queries.row(query);
            let largest = q
                .slice(columns)
                .iter()
                .fold(0f32, |most, value| most.max(value.abs()));
            let scale = f64::from(largest) / 127.0;
            let g = kept.row(row);
            let g = g.slice(columns);
            if width >= 128 {
                most += scale / 2.0 * g.iter().map(|&value| f64::from(value.abs())).sum::<f64>();
                variance += (scale * length(g)).powi(2) / 12.0;
            }
            start += width;
        }
        let error = (f64::from(got) - want[[query, row]]).abs();
        assert!(error <= most + 1e-6 * want[[query, row]].abs());
        sum += error.powi(2) / variance;
    }
    // Of 400 scores, the error's square is the stated variance, give or take four of its own standard deviations.
    let mean = sum / 400.0;
    assert!((0.7..1.3).contains(&mean), "{mean}");
}

#[test]
fn int8_rows_longer_than_the_buffer_score_like_short_ones() {
    let width = 1_200_003;
    let (rows, queries) = (numbers(3, width, 1), numbers(9, width, 2));
    let folder = tempfile::tempdir().unwrap();
    let widths = [1_000_000, 50, 199_953];
    let store = write(
        &folder.path().join("s"),
        Dtype::Int8,
        &widths,
        &rows,
        ONE_COMMIT,
    );
    let kept = kept_rows(&store, &queries);
    for method in [Method::GradDot, Method::GradCos] {
        let got = all_scores(&store, &queries, method, 0.0).unwrap();
        let want = exact(&queries, &kept);
        for ((query, row), &got) in got.indexed_iter() {
            let lengths = length(queries.row(query)) * length(kept.row(row));
            let (want, unit) = match method {
                Method::GradCos => (want[[query, row]] / lengths, 1.0),
                _ => (want[[query, row]], lengths),
            };
            // Five standard deviations of rounding the query.
            assert!(
                (f64::from(got) - want).abs() < 5.0 * 0.01 / 1.7 * unit / (width as f64).sqrt()
            );
        }
    }
}

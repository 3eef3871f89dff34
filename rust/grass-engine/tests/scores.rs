//! Dot products, cosines, the best k, and what the scorer refuses.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs;
use std::sync::atomic::Ordering;

use common::{
    ONE_COMMIT, all_scores, exact, id, kept_rows, numbers, relative_error, scores_with, spec,
    store, write,
};
use grass_core::parallel::Workers;
use grass_engine::{Error, Method, Scores, query_rows, score};
use grass_store::{Dtype, StoreReader, StoreWriter, WriterOptions};
use ndarray::{Array2, s};
use proptest::prelude::*;

fn top(
    store: &StoreReader,
    queries: &Array2<f32>,
    method: Method,
    k: usize,
) -> Result<Scores, Error> {
    let workers = Workers::with_threads(2);
    let queries = queries.as_slice().unwrap();
    let mut scores = score(store, queries, method, &[0.4], Some(k), &workers)?;
    assert_eq!(scores.len(), 1);
    Ok(scores.remove(0))
}

#[test]
fn dot_products_equal_the_plain_ones() {
    let (rows, queries) = (numbers(300, 1200, 1), numbers(9, 1200, 2));
    let (_folder, store) = store(&[700, 500], &rows);
    let got = all_scores(&store, &queries, Method::GradDot, f64::NAN).unwrap();
    let want = queries.mapv(f64::from).dot(&rows.mapv(f64::from).t());
    assert!(relative_error(&got, &want) < 1e-6);
}

#[test]
fn cosines_equal_the_plain_ones_and_zero_rows_score_zero() {
    let (mut rows, mut queries) = (numbers(300, 1200, 1), numbers(4, 1200, 2));
    rows.slice_mut(s![5, ..]).fill(0.0);
    queries.slice_mut(s![2, ..]).fill(0.0);
    let (_folder, store) = store(&[700, 500], &rows);
    let got = all_scores(&store, &queries, Method::GradCos, 0.0).unwrap();
    let (rows, queries) = (rows.mapv(f64::from), queries.mapv(f64::from));
    for ((query, row), &got) in got.indexed_iter() {
        let (left, right) = (queries.row(query), rows.row(row));
        let want = match query == 2 || row == 5 {
            true => 0.0,
            false => left.dot(&right) / (left.dot(&left) * right.dot(&right)).sqrt(),
        };
        assert!((f64::from(got) - want).abs() < 1e-7, "{got} for {want}");
    }
}

#[test]
fn a_row_has_cosine_one_with_itself_however_long_it_is() {
    for scale in [1e-18, 1.0, 1e18] {
        let rows = numbers(10, 40, 1) * scale;
        let (_folder, store) = store(&[40], &rows);
        let got = all_scores(&store, &rows, Method::GradCos, 0.0).unwrap();
        assert!(
            got.diag().iter().all(|cosine| (cosine - 1.0).abs() < 1e-6),
            "{got}"
        );
    }
}

#[test]
fn the_best_k_are_those_of_all_scores_for_every_method() {
    let (rows, queries) = (numbers(500, 30, 1), numbers(7, 30, 2));
    let (_folder, store) = store(&[10, 20], &rows);
    for method in [Method::Influence, Method::GradDot, Method::GradCos] {
        let all = all_scores(&store, &queries, method, 0.4).unwrap();
        let Scores::Top { ids, values } = top(&store, &queries, method, 13).unwrap() else {
            panic!("asked for the best");
        };
        for (query, scores) in all.rows().into_iter().enumerate() {
            let mut order: Vec<usize> = (0..500).collect();
            order.sort_by(|&i, &j| scores[j].total_cmp(&scores[i]).then(id(i).cmp(&id(j))));
            let best = &order[..13];
            let part = query * 13..(query + 1) * 13;
            assert!(
                ids[part.clone()]
                    .iter()
                    .copied()
                    .eq(best.iter().map(|&row| id(row)))
            );
            assert!(
                values[part]
                    .iter()
                    .copied()
                    .eq(best.iter().map(|&row| scores[row]))
            );
        }
    }
}

#[test]
fn equal_scores_are_ranked_by_smaller_id() {
    let rows = Array2::from_elem((30, 2), 1.0);
    let (_folder, store) = store(&[2], &rows);
    let Scores::Top { ids, .. } = top(&store, &numbers(1, 2, 1), Method::GradDot, 30).unwrap()
    else {
        panic!("asked for the best");
    };
    assert!(ids.is_sorted());
}

#[test]
fn rows_of_halves_are_multiplied_as_stored() {
    let (rows, queries) = (numbers(70, 1300, 1), numbers(9, 1300, 2));
    for dtype in [Dtype::Float16, Dtype::Bfloat16] {
        let folder = tempfile::tempdir().unwrap();
        let store = write(
            &folder.path().join("s"),
            dtype,
            &[700, 600],
            &rows,
            ONE_COMMIT,
        );
        let kept = kept_rows(&store, &queries);
        let got = all_scores(&store, &queries, Method::GradDot, 0.0).unwrap();
        assert!(relative_error(&got, &exact(&queries, &kept)) < 1e-6);
        let cosines = all_scores(&store, &kept, Method::GradCos, 0.0).unwrap();
        assert!(
            cosines
                .diag()
                .iter()
                .all(|cosine| (cosine - 1.0).abs() < 1e-6)
        );
    }
}

#[test]
fn huge_and_tiny_queries_lose_nothing() {
    let (rows, queries) = (numbers(20, 300, 1), numbers(3, 300, 2));
    for (size, inverse) in [(1e30f32, 1e-30f32), (1e-30, 1e30)] {
        let (_folder, store) = store(&[300], &(&rows * size));
        let scaled = &queries * inverse;
        let got = all_scores(&store, &scaled, Method::GradDot, 0.0).unwrap();
        assert!(relative_error(&got, &exact(&scaled, &(&rows * size))) < 1e-6);
    }
}

/// More queries than are laid out ahead, and more scores of a chunk than are held at once.
#[test]
fn many_queries_score_as_few_do() {
    for (dtype, count, width) in [
        (Dtype::Float32, 20_000, 850),
        (Dtype::Int8, 30_000, 2300),
        (Dtype::Float32, 3000, 2),
    ] {
        let rows = numbers(if width == 2 { 9000 } else { 5 }, width, 1);
        let queries = numbers(count, width, 2);
        let folder = tempfile::tempdir().unwrap();
        let store = write(&folder.path().join("s"), dtype, &[width], &rows, ONE_COMMIT);
        let got = all_scores(&store, &queries, Method::GradDot, 0.0).unwrap();
        let few = queries.slice(s![count - 7.., ..]).to_owned();
        let want = all_scores(&store, &few, Method::GradDot, 0.0).unwrap();
        assert!(
            got.slice(s![count - 7.., ..]) == want,
            "{dtype} {count} {width}"
        );
    }
}

#[test]
fn several_dampings_give_one_result_each() {
    let (rows, queries) = (numbers(60, 30, 1), numbers(4, 30, 2));
    let (_folder, store) = store(&[10, 20], &rows);
    let dampings = [0.1, 1.0, 0.4];
    let values = queries.as_slice().unwrap();
    for top_k in [None, Some(5)] {
        let scores_for = |dampings: &[f64]| {
            let workers = Workers::with_threads(2);
            score(&store, values, Method::Influence, dampings, top_k, &workers).unwrap()
        };
        let together = scores_for(&dampings);
        let alone: Vec<Scores> = dampings
            .iter()
            .flat_map(|&one| scores_for(&[one]))
            .collect();
        assert_eq!(together, alone);
    }
}

#[test]
fn progress_counts_the_bytes_of_the_rows() {
    let (_folder, store) = store(&[1000], &numbers(700, 1000, 1));
    let workers = Workers::with_threads(2);
    score(
        &store,
        &[1.0; 1000],
        Method::GradDot,
        &[],
        Some(3),
        &workers,
    )
    .unwrap();
    assert_eq!(workers.progress().get(), (2_800_000, 2_800_000));
}

/// Long rows, where the window moves several times, and short ones in one chunk.
#[test]
fn long_and_short_rows_stream_alike() {
    for (count, width) in [(30, 1 << 20), (150_000, 3)] {
        let (rows, queries) = (numbers(count, width, 1), numbers(2, width, 2));
        let (_folder, store) = store(&[width], &rows);
        let got = scores_with(&store, &queries, Method::GradDot, 0.0, 3).unwrap();
        let want = queries.mapv(f64::from).dot(&rows.mapv(f64::from).t());
        assert!(relative_error(&got, &want) < 1e-6);
        assert!(
            query_rows(&store, &Workers::with_threads(2)).unwrap()
                == rows.into_raw_vec_and_offset().0
        );
    }
}

#[test]
fn a_damaged_chunk_is_found_with_its_rows() {
    let (_folder, store) = store(&[65_536], &numbers(40, 65_536, 1));
    let path = store.path().join("shard-00000.rows");
    let mut bytes = fs::read(&path).unwrap();
    bytes[4096 + 20 * 262_144 + 5] ^= 4;
    fs::write(&path, bytes).unwrap();
    let store = StoreReader::open(store.path()).unwrap();
    let queries = numbers(1, 65_536, 2);
    for method in [Method::Influence, Method::GradDot] {
        let error = all_scores(&store, &queries, method, 0.4).unwrap_err();
        let place = "shard 0 rows chunk 5 rows 20:24 (the checksum differs)";
        assert!(error.to_string().contains(place), "{error}");
    }
    assert!(query_rows(&store, &Workers::serial()).is_err());
}

#[test]
fn queries_that_do_not_fit_are_refused() {
    let (_folder, store) = store(&[4, 6], &numbers(12, 10, 1));
    for count in [0, 9, 11] {
        let outcome = score(
            &store,
            &vec![0.0; count],
            Method::GradDot,
            &[],
            None,
            &Workers::serial(),
        );
        assert!(matches!(outcome, Err(Error::Queries { width: 10, .. })));
    }
    for bad in [f32::NAN, f32::INFINITY] {
        let mut queries = numbers(3, 10, 2);
        queries[[1, 4]] = bad;
        let error = all_scores(&store, &queries, Method::GradDot, 0.0).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with(&format!("query 1 has {bad} in column \"layer1\"")),
            "{error}"
        );
    }
}

#[test]
fn a_damping_that_is_no_number_from_zero_on_is_refused() {
    let (_folder, store) = store(&[4], &numbers(12, 4, 1));
    for damping in [-0.1, f64::NAN, f64::INFINITY] {
        let outcome = all_scores(&store, &numbers(1, 4, 2), Method::Influence, damping);
        assert!(matches!(outcome, Err(Error::Damping { .. })));
    }
}

#[test]
fn a_top_k_out_of_range_is_refused() {
    let (_folder, store) = store(&[4], &numbers(12, 4, 1));
    for k in [0, 13] {
        let outcome = top(&store, &numbers(1, 4, 2), Method::GradDot, k);
        assert!(matches!(outcome, Err(Error::TopK { rows: 12, .. })));
    }
    assert!(top(&store, &numbers(1, 4, 2), Method::GradDot, 12).is_ok());
}

#[test]
fn an_unknown_method_is_refused() {
    assert!(matches!(
        "gradsin".parse::<Method>(),
        Err(Error::Method { .. })
    ));
    assert_eq!("influence".parse::<Method>().unwrap(), Method::Influence);
}

#[test]
fn unfinished_and_empty_stores_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer =
        StoreWriter::create(&path, spec(Dtype::Float32, &[2]), WriterOptions::default()).unwrap();
    writer
        .append(&[1.0, 2.0], &[1], &Workers::serial())
        .unwrap();
    writer.commit().unwrap();
    let unfinished = StoreReader::open(&path).unwrap();
    let queries = numbers(1, 2, 1);
    assert!(matches!(
        all_scores(&unfinished, &queries, Method::GradDot, 0.0),
        Err(Error::Unfinished { .. })
    ));
    let empty = write(
        &folder.path().join("empty"),
        Dtype::Float32,
        &[2],
        &Array2::zeros((0, 2)),
        ONE_COMMIT,
    );
    assert!(matches!(
        all_scores(&empty, &queries, Method::GradDot, 0.0),
        Err(Error::Empty { .. })
    ));
    assert!(matches!(
        query_rows(&empty, &Workers::serial()),
        Err(Error::Empty { .. })
    ));
}

#[test]
fn a_score_that_is_not_finite_names_the_example() {
    let mut rows = numbers(100, 3, 1);
    rows[[70, 1]] = f32::NAN;
    let (_folder, with_nan) = store(&[3], &rows);
    let error = all_scores(&with_nan, &numbers(2, 3, 2), Method::Influence, 0.4).unwrap_err();
    assert!(matches!(error, Error::NonFiniteRows { .. }), "{error}");
    let (_folder, huge) = store(&[1], &Array2::from_elem((1, 1), 1e30));
    let error = all_scores(&with_nan, &numbers(2, 3, 2), Method::GradDot, 0.0).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with(&format!("the score of id {} for query 0 is NaN", id(70))),
        "{error}"
    );
    assert!(
        error
            .to_string()
            .ends_with("the stored row is not finite: cache again and leave the example out"),
        "{error}"
    );
    let mut queries = Array2::from_elem((3, 1), 1.0);
    queries[[1, 0]] = 1e30;
    let error = all_scores(&huge, &queries, Method::GradDot, 0.0).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the score of id {} for query 1 is inf: query and row are finite, but it or a number on its way exceeds float32 (3.4e38): scale the query down",
            id(0)
        )
    );
}

#[test]
fn a_cancelled_call_says_so() {
    let (_folder, store) = store(&[4], &numbers(12, 4, 1));
    let workers = Workers::with_threads(2);
    workers.cancel_flag().store(true, Ordering::Relaxed);
    for method in [Method::Influence, Method::GradCos] {
        let outcome = score(&store, &[0.0; 4], method, &[0.4], None, &workers);
        assert!(matches!(
            outcome,
            Err(Error::Core(grass_core::Error::Interrupted))
        ));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(25))]

    #[test]
    fn a_query_scores_the_same_alone_and_among_others(n in 1usize..200, width in 1usize..1100, count in 1usize..40, seed in any::<u64>()) {
        let (rows, queries) = (numbers(n, width, seed), numbers(count, width, seed ^ 1));
        let (_folder, store) = store(&[width], &rows);
        for method in [Method::GradDot, Method::GradCos] {
            let together = scores_with(&store, &queries, method, 0.0, 2).unwrap();
            let query = seed as usize % count;
            let alone = scores_with(&store, &queries.slice(s![query..=query, ..]).to_owned(), method, 0.0, 1).unwrap();
            prop_assert!(alone.row(0) == together.row(query));
        }
    }
}

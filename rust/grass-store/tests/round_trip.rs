//! What is read is what was written, to the precision of the dtype.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use common::{
    DTYPES, NARROW, WIDE, append, assert_same_files, files, finished, ids, manual, rows, spec,
    width,
};
use grass_core::parallel::Workers;
use grass_store::{Dtype, Error, StoreReader, StoreWriter, WriterOptions};
use half::{bf16, f16};
use proptest::prelude::*;

fn all_rows(store: &StoreReader) -> Vec<f32> {
    let rows: Vec<u64> = (0..store.rows()).collect();
    store.read_rows(&rows, &Workers::serial()).unwrap()
}

/// Writes one row and reads it back.
fn through(dtype: Dtype, row: &[f32; 8]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(dtype, &NARROW), manual()).unwrap();
    writer.append(row, &[7], &Workers::serial()).unwrap();
    writer.finish(&[]).unwrap();
    all_rows(&StoreReader::open(&path).unwrap())
}

#[test]
fn rows_ids_and_columns_come_back_for_every_dtype() {
    for dtype in DTYPES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let spec = spec(dtype, &NARROW);
        finished(&path, spec.clone(), 21);
        let store = StoreReader::open(&path).unwrap();
        assert!(store.complete());
        assert_eq!(store.rows(), 21);
        assert_eq!(store.ids(&Workers::serial()).unwrap(), ids(0, 21));
        assert_eq!(store.layout().columns(), spec.columns);
        assert_eq!(store.fingerprints(), &spec.fingerprints);
        let expected = rows(0, 21, width(&spec));
        for (got, want) in all_rows(&store).iter().zip(&expected) {
            let tolerance = if dtype == Dtype::Int8 { 0.5 } else { 0.0 };
            assert!((got - want).abs() <= tolerance, "{dtype}: {got} for {want}");
        }
    }
}

#[test]
fn rows_are_read_in_the_order_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    finished(&path, spec(Dtype::Float32, &common::WIDE), 40);
    let store = StoreReader::open(&path).unwrap();
    let width = store.layout().width();
    let asked = [39, 0, 17, 17, 16, 3];
    let expected: Vec<f32> = asked.iter().flat_map(|&row| rows(row, 1, width)).collect();
    assert!(
        store
            .read_rows(&asked.map(|row| row as u64), &Workers::serial())
            .unwrap()
            == expected
    );
    assert!(store.read_rows(&[], &Workers::serial()).unwrap().is_empty());
    assert!(matches!(
        store.read_rows(&[40], &Workers::serial()),
        Err(Error::OutOfRange { row: 40, rows: 40 })
    ));
}

#[test]
fn an_int8_row_is_scales_then_numbers_then_padding() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer =
        StoreWriter::create(&path, spec(Dtype::Int8, &[("a", 2), ("b", 3)]), manual()).unwrap();
    writer
        .append(&[254.0, -3.0, 0.0, 0.0, 0.0], &[1], &Workers::serial())
        .unwrap();
    writer.finish(&[]).unwrap();
    let bytes = &files(&path)["shard-00000.rows"][4096..];
    assert_eq!(bytes[0..4], 2f32.to_le_bytes());
    assert_eq!(bytes[4..8], 0f32.to_le_bytes());
    // -1.5 steps is halfway: to even.
    assert_eq!(bytes[8..], [127, (-2i8).cast_unsigned(), 0, 0, 0, 0, 0, 0]);
}

#[test]
fn an_int8_column_with_a_nan_or_infinity_comes_back_as_nan_and_the_others_whole() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let row = through(Dtype::Int8, &[1.0, bad, 3.0, 127.0, 0.0, 1.0, -127.0, 5.0]);
        assert!(row[..3].iter().all(|value| value.is_nan()));
        assert_eq!(row[3..], [127.0, 0.0, 1.0, -127.0, 5.0]);
    }
}

#[test]
fn int8_keeps_the_smallest_numbers_finite() {
    let tiny = f32::from_bits(1);
    let row = through(
        Dtype::Int8,
        &[tiny, -tiny, 0.0, 1e-38, 1e-38, 0.0, 0.0, f32::MAX],
    );
    assert!(row.iter().all(|value| value.is_finite()));
    assert!(row[7] > 0.999_999 * f32::MAX);
}

#[test]
fn a_value_too_large_for_the_dtype_is_refused_with_its_place() {
    for (dtype, limit) in [
        (Dtype::Float16, 65520.0),
        (Dtype::Bfloat16, f32::from_bits(0x7F7F_8000)),
    ] {
        assert!(
            through(dtype, &[limit.next_down(); 8])
                .iter()
                .all(|value| value.is_finite())
        );
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let mut writer = StoreWriter::create(&path, spec(dtype, &NARROW), manual()).unwrap();
        let mut row = [0.0; 16];
        row[8 + 4] = -limit;
        let error = writer
            .append(&row, &[7, 8], &Workers::serial())
            .unwrap_err();
        assert!(
            error.to_string().starts_with("the row of id 8 has -"),
            "{error}"
        );
        assert!(error.to_string().contains("in column \"fc2\""), "{error}");
        // Nothing of the refused call was taken.
        writer
            .append(&[0.0; 16], &[7, 8], &Workers::serial())
            .unwrap();
    }
}

#[test]
fn nothing_is_stored_of_rows_that_are_refused_together_however_many_commits_they_need() {
    // 12 rows of 64 KiB are waiting, a shard has 32; of 30 more, written by three threads, the last
    // but one is refused, and one of another chunk before it.
    let folder = tempfile::tempdir().unwrap();
    let workers = Workers::with_threads(3);
    for (number, (dtype, bad)) in [
        (Dtype::Float32, f32::NAN),
        (Dtype::Bfloat16, f32::MAX),
        (Dtype::Int8, f32::NEG_INFINITY),
    ]
    .into_iter()
    .enumerate()
    {
        let spec = spec(dtype, &WIDE);
        let expected = folder.path().join(format!("expected {number}"));
        finished(&expected, spec.clone(), 14);
        for commit_bytes in [1, 20 << 16, u64::MAX] {
            let path = folder.path().join(format!("store {number} {commit_bytes}"));
            let options = WriterOptions {
                commit_bytes,
                ..manual()
            };
            let mut writer = StoreWriter::create(&path, spec.clone(), options).unwrap();
            append(&mut writer, 0, 12);
            let committed = writer.committed_ids(&workers).unwrap();
            let mut refused = rows(12, 30, width(&spec));
            for row in [28, 7] {
                refused[row * width(&spec) + 9_000] = bad;
            }
            for _ in 0..2 {
                let error = writer.append_finite(&refused, &ids(12, 30), &workers);
                let first = ids(12, 30)[7];
                assert!(
                    matches!(error, Err(Error::NonFinite { id } | Error::Overflow { id, .. }) if id == first),
                    "{error:?}"
                );
            }
            assert_eq!(writer.committed_ids(&workers).unwrap(), committed);
            append(&mut writer, 12, 2);
            writer.finish(&[]).unwrap();
            assert_same_files(&path, &expected);
        }
    }
}

#[test]
fn an_empty_store_can_be_finished_and_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), manual()).unwrap();
    writer.append(&[], &[], &Workers::serial()).unwrap();
    writer.finish(&[4, 3, 4]).unwrap();
    let store = StoreReader::open(&path).unwrap();
    assert_eq!((store.rows(), store.complete()), (0, true));
    assert_eq!(store.skipped_ids(), [3, 4]);
    // The manifest and its copy.
    assert_eq!(files(&path).len(), 2);
}

#[test]
fn rows_of_another_width_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), manual()).unwrap();
    assert!(matches!(
        writer.append(&[0.0; 15], &[1, 2], &Workers::serial()),
        Err(Error::Shape { .. })
    ));
}

#[test]
fn an_id_given_twice_is_refused_and_nothing_of_the_call_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), manual()).unwrap();
    append(&mut writer, 0, 3);
    let seen = ids(2, 1)[0];
    for (repeated, words) in [
        ([9, seen], "in the store already"),
        ([9, 9], "twice among the new ids"),
    ] {
        let error = writer
            .append(&[0.0; 16], &repeated, &Workers::serial())
            .unwrap_err();
        assert!(matches!(error, Error::RepeatedId { .. }));
        assert!(error.to_string().contains(words), "{error}");
    }
    writer
        .append(&[0.0; 16], &[9, u64::MAX], &Workers::serial())
        .unwrap();
    let error = writer.finish(&[9]).unwrap_err();
    assert!(
        error.to_string().contains("although it was skipped"),
        "{error}"
    );
    writer.finish(&[10]).unwrap();
}

#[test]
fn unusual_columns_are_refused() {
    let problems: [(&[(&str, u64)], &str); 4] = [
        (&[], "there is none"),
        (&[("a", 1), ("a", 2)], "\"a\" is there twice"),
        (&[("a", 1), ("b", 0)], "\"b\" has width 0"),
        (&[("a", 1 << 62), ("b", u64::MAX)], "bytes long"),
    ];
    for (columns, words) in problems {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let error =
            StoreWriter::create(&path, spec(Dtype::Float32, columns), manual()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(!path.exists(), "a refused store leaves nothing");
    }
    assert!("float64".parse::<Dtype>().is_err());
    assert!(grass_store::Column::new("a", 1, "[1]").is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn values_round_as_the_dtype_does(row in proptest::array::uniform8(-6e4f32..6e4)) {
        prop_assert_eq!(through(Dtype::Float32, &row), row.to_vec());
        prop_assert_eq!(through(Dtype::Float16, &row), row.map(|value| f32::from(f16::from_f32(value))).to_vec());
        prop_assert_eq!(through(Dtype::Bfloat16, &row), row.map(|value| f32::from(bf16::from_f32(value))).to_vec());
        let stored = through(Dtype::Int8, &row);
        for column in [0..3, 3..8] {
            let largest = row[column.clone()].iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for place in column {
                prop_assert!((stored[place] - row[place]).abs() <= largest / 127.0 * 0.5001);
            }
        }
    }

    #[test]
    fn any_bits_survive_float32(bits in proptest::array::uniform8(any::<u32>())) {
        let row = bits.map(f32::from_bits);
        let back = through(Dtype::Float32, &row);
        prop_assert!(back.iter().zip(&row).all(|(got, want)| got.to_bits() == want.to_bits() || want.is_nan()));
    }
}

fn cancelled() -> Workers {
    let workers = Workers::serial();
    workers
        .cancel_flag()
        .store(true, std::sync::atomic::Ordering::Relaxed);
    workers
}

fn assert_interrupted<T: std::fmt::Debug>(outcome: Result<T, Error>) {
    assert!(
        matches!(outcome, Err(Error::Core(grass_core::Error::Interrupted))),
        "{outcome:?}"
    );
}

#[test]
fn cancelled_reads_say_so_and_break_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    finished(&path, spec(Dtype::Float32, &NARROW), 5);
    let store = StoreReader::open(&path).unwrap();
    assert_interrupted(store.ids(&cancelled()));
    assert_interrupted(store.read_rows(&[1, 2], &cancelled()));
    let span = store.chunks(0..1).next().unwrap();
    assert_interrupted(store.checked_chunk(&span, Vec::new(), &cancelled()));
    let resumed = StoreWriter::resume(&path, spec(Dtype::Float32, &NARROW), manual(), &cancelled());
    assert_interrupted(resumed.map(|_| ()));
    assert_eq!(store.ids(&Workers::serial()).unwrap(), ids(0, 5));
    assert_eq!(
        store.read_rows(&[1, 2], &Workers::serial()).unwrap(),
        rows(1, 2, 8)
    );
}

#[test]
fn a_cancelled_append_takes_none_of_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("store"), folder.path().join("plain"));
    let mut writer = StoreWriter::create(&path, spec(Dtype::Int8, &NARROW), manual()).unwrap();
    append(&mut writer, 0, 3);
    assert_interrupted(writer.append(&rows(3, 4, 8), &ids(3, 4), &cancelled()));
    // Its ids are free, and the writer goes on.
    append(&mut writer, 3, 4);
    writer.finish(&[]).unwrap();
    finished(&plain, spec(Dtype::Int8, &NARROW), 7);
    assert_same_files(&path, &plain);
}

#[test]
fn an_append_that_is_cancelled_after_its_first_commit_takes_all_of_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let options = WriterOptions {
        commit_bytes: 320,
        ..manual()
    };
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), options).unwrap();
    let workers = Workers::serial();
    let flag = workers.cancel_flag();
    let log = path.join("shard-00000.log");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while std::fs::metadata(&log).map_or(0, |log| log.len()) == 0 {
                std::thread::yield_now();
            }
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
        });
        writer
            .append(&rows(0, 1000, 8), &ids(0, 1000), &workers)
            .unwrap();
    });
    assert!(workers.check().is_err());
    writer.commit().unwrap();
    let store = StoreReader::open(&path).unwrap();
    assert_eq!(store.ids(&Workers::serial()).unwrap(), ids(0, 1000));
}

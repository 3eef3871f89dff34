//! One test for every lie that the manifest of a store can tell.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs;

use common::forge::forge;
use common::{changed, files, opening, store, unfinished};
use grass_core::parallel::Workers;
use grass_store::{Error, StoreReader};
use serde_json::{Value, json};

/// What opening reports after the manifest told a lie.
fn forged(change: impl FnOnce(&mut Value)) -> String {
    let (_folder, path) = store();
    forge(&path, change);
    let reports = opening(&path);
    reports.join("; ")
}

#[test]
fn an_honest_forgery_is_accepted() {
    let (_folder, path) = store();
    let before = files(&path);
    forge(&path, |_| {});
    assert!(files(&path) == before);
    StoreReader::open(&path)
        .unwrap()
        .verify(&Workers::serial())
        .unwrap();
}

#[test]
fn no_manifest() {
    let (folder, path) = store();
    fs::remove_file(path.join("manifest.json")).unwrap();
    let error = StoreReader::open(&path).unwrap_err();
    assert!(matches!(error, Error::Repair { .. }));
    let words = format!(
        "copy manifest.copy.json is there: run grass-rs repair {}",
        path.display()
    );
    assert!(error.to_string().ends_with(&words), "{error}");
    fs::remove_file(path.join("manifest.copy.json")).unwrap();
    for (path, words) in [
        (path.clone(), "a folder without one"),
        (folder.path().join("nowhere"), "found nothing"),
        (path.join("shard-00000.ids"), "found a file"),
    ] {
        let error = StoreReader::open(path).unwrap_err();
        assert!(matches!(error, Error::NotFound { .. }));
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn a_manifest_that_is_not_json() {
    assert!(changed("manifest.json", |bytes| bytes.truncate(30))[0].contains("expected JSON"));
    assert!(changed("manifest.json", |bytes| bytes.clear())[0].contains("expected JSON"));
    assert!(
        changed("manifest.json", |bytes| *bytes = b"[1]".to_vec())[0]
            .contains("expected a JSON object")
    );
}

#[test]
fn a_manifest_nested_without_end() {
    let deep = changed("manifest.json", |bytes| *bytes = vec![b'['; 1 << 20]);
    assert!(deep[0].contains("expected JSON"), "{deep:?}");
}

#[test]
fn a_manifest_with_one_changed_digit_or_space() {
    let seed = |bytes: &mut Vec<u8>| {
        let place = bytes
            .windows(8)
            .position(|window| window == b"\"seed\":1")
            .unwrap();
        bytes[place + 7] = b'2';
    };
    assert_eq!(
        changed("manifest.json", seed),
        ["manifest (the checksum differs)"]
    );
    assert_eq!(
        changed("manifest.json", |bytes| bytes.push(b' ')),
        ["manifest (the checksum differs)"]
    );
}

#[test]
fn a_manifest_of_a_later_format() {
    let (_folder, path) = store();
    forge(&path, |value| value["format"] = 2.into());
    let error = StoreReader::open(&path).unwrap_err();
    assert!(matches!(error, Error::Format { found: 2, .. }));
    // Whatever else is in it.
    fs::write(
        path.join("manifest.json"),
        r#"{"columns": 7.5, "format": 3}"#,
    )
    .unwrap();
    let error = StoreReader::open(&path).unwrap_err();
    assert!(matches!(error, Error::Format { found: 3, .. }));
}

#[test]
fn a_manifest_longer_than_any() {
    let (_folder, path) = store();
    let file = fs::File::options()
        .write(true)
        .open(path.join("manifest.json"))
        .unwrap();
    file.set_len((1 << 30) + 1).unwrap();
    assert_eq!(
        opening(&path),
        ["manifest (expected at most 1073741824 bytes, got 1073741825)"]
    );
}

#[test]
fn a_manifest_without_a_format() {
    assert!(forged(|value| value["format"] = "1".into()).contains("format number"));
}

#[test]
fn a_manifest_with_a_field_missing_or_unknown() {
    assert!(
        forged(|value| drop(value.as_object_mut().unwrap().remove("columns"))).contains("columns")
    );
    assert!(forged(|value| value["colour"] = "red".into()).contains("colour"));
}

#[test]
fn an_unknown_dtype() {
    assert!(forged(|value| value["dtype"] = "float8".into()).contains("got \"float8\""));
}

#[test]
fn an_absurd_width() {
    for width in [1u64 << 32, 1 << 62, u64::MAX] {
        let report = forged(|value| value["columns"][1]["width"] = width.into());
        assert!(report.contains("bytes long"), "{report}");
    }
}

#[test]
fn a_negative_or_fractional_width() {
    assert!(forged(|value| value["columns"][0]["width"] = (-1).into()).contains("manifest"));
    assert!(forged(|value| value["columns"][0]["width"] = json!(1.5)).contains("manifest"));
}

#[test]
fn columns_with_gaps() {
    let report = forged(|value| value["columns"][1]["offset"] = 25_537.into());
    assert!(
        report.contains("\"fc\" expected offset 6384, got 25537"),
        "{report}"
    );
}

#[test]
fn columns_that_are_none_empty_or_twice() {
    assert!(forged(|value| value["columns"] = json!([])).contains("there is none"));
    assert!(forged(|value| value["columns"][0]["width"] = 0.into()).contains("width 0"));
    assert!(forged(|value| value["columns"][1]["name"] = "conv".into()).contains("twice"));
}

#[test]
fn a_width_other_than_the_rows_have() {
    let report = forged(|value| value["columns"][1]["width"] = 40_001.into());
    assert!(report.contains("shard 0 rows (expected"), "{report}");
}

#[test]
fn a_dtype_other_than_the_rows_have() {
    let report = forged(|value| value["dtype"] = "bfloat16".into());
    assert!(
        report.contains("shard 0 rows (expected") && report.contains("shard 1 rows"),
        "{report}"
    );
}

#[test]
fn more_rows_than_there_are() {
    let report = forged(|value| value["shards"][0]["rows"] = 33.into());
    assert!(report.starts_with("shard 0 rows (expected"), "{report}");
}

#[test]
fn an_absurd_number_of_rows() {
    // With the 5 rows of the other shard, the first are 2^62 bytes.
    for rows in [(1u64 << 46) - 5, 1 << 50, 1 << 62, u64::MAX] {
        let report = forged(|value| value["shards"][0]["rows"] = rows.into());
        assert!(report.contains("longer than any disk"), "{report}");
    }
    let report = forged(|value| value["shards"][0]["rows"] = ((1u64 << 46) - 6).into());
    assert!(
        report.starts_with("shard 0 rows (expected 4611"),
        "{report}"
    );
}

#[test]
fn a_shard_without_rows() {
    assert!(
        forged(|value| value["shards"][1]["rows"] = 0.into())
            .contains("expected rows in shard 1, got 0")
    );
}

#[test]
fn a_shard_that_is_not_there() {
    let report = forged(|value| {
        value["shards"]
            .as_array_mut()
            .unwrap()
            .push(json!({"log_crc32": 1, "number": 2, "rows": 3}))
    });
    assert_eq!(
        report,
        "shard 2 rows (the file is missing); shard 2 ids (the file is missing); shard 2 log (the file is missing)"
    );
}

#[test]
fn shards_that_are_twice_or_in_another_order() {
    for numbers in [[0, 0], [1, 0]] {
        let report = forged(|value| {
            for (place, number) in numbers.into_iter().enumerate() {
                value["shards"][place]["number"] = number.into();
            }
        });
        assert!(report.contains("ascending shard numbers"), "{report}");
    }
}

#[test]
fn writers_that_finished_but_are_none() {
    for finished in [json!([0]), json!([1]), json!([0, 0]), json!([-1])] {
        let report = forged(|value| value["finished_writers"] = finished.clone());
        assert!(report.starts_with("manifest ("), "{report}");
    }
}

#[test]
fn no_writer_or_skipped_ids_in_another_order() {
    assert!(forged(|value| value["writers"] = 0.into()).contains("at least 1 writer"));
    for skipped in [json!([3, 2]), json!([3, 3])] {
        let report = forged(|value| value["skipped_ids"] = skipped);
        assert!(report.contains("ascending skipped ids"), "{report}");
    }
}

#[test]
fn a_log_that_is_not_the_listed_one() {
    let report = forged(|value| value["shards"][1]["log_crc32"] = 7.into());
    assert_eq!(
        report,
        "shard 1 log (it is not the log that the manifest lists)"
    );
}

#[test]
fn an_absurd_number_of_shards() {
    let report = forged(|value| {
        let shard = |number| json!({"log_crc32": 1, "number": number, "rows": 1});
        value["shards"] = (0..100_001).map(shard).collect::<Vec<Value>>().into();
    });
    assert!(
        report.contains("ascending shard numbers to 99999"),
        "{report}"
    );
}

#[test]
fn a_finished_store_said_to_be_unfinished_is_read_as_such() {
    let (_folder, path) = store();
    forge(&path, |value| value["complete"] = false.into());
    assert!(!StoreReader::open(&path).unwrap().complete());
}

#[test]
fn an_unfinished_store_said_to_be_complete() {
    let (_folder, path) = unfinished();
    forge(&path, |value| {
        value["complete"] = true.into();
        value["shards"] = json!([{"log_crc32": 1, "number": 0, "rows": 5}]);
    });
    assert_eq!(
        opening(&path),
        ["shard 0 log (expected 20 bytes for 5 rows, got 100)"]
    );
}

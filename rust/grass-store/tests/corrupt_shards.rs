//! One test for every lie that the files of a shard can tell.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs;
use std::path::Path;

use common::forge::forge;
use common::{
    CHUNK, NARROW, WIDE, changed, copy_store, damage, edit, files, finished, manual, opening, spec,
    store, unfinished,
};
use grass_core::parallel::Workers;
use grass_store::{Dtype, Error, StoreReader, StoreWriter};
use proptest::prelude::*;
use serde_json::json;

fn verify(path: &Path) -> Vec<String> {
    damage(
        StoreReader::open(path)
            .unwrap()
            .verify(&Workers::with_threads(2)),
    )
}

#[test]
fn missing_files() {
    for (kind, part) in [("rows", "rows"), ("ids", "ids"), ("log", "log")] {
        let (_folder, path) = store();
        fs::remove_file(path.join(format!("shard-00001.{kind}"))).unwrap();
        assert_eq!(
            opening(&path),
            [format!("shard 1 {part} (the file is missing)")]
        );
    }
}

#[test]
fn all_damaged_shards_are_reported_together() {
    let (_folder, path) = store();
    fs::remove_file(path.join("shard-00000.ids")).unwrap();
    edit(&path.join("shard-00001.rows"), |bytes| bytes[0] ^= 1);
    let reports = opening(&path);
    assert_eq!(reports.len(), 2, "{reports:?}");
    assert!(reports[1].contains("shard 1 header (expected the magic bytes"));
}

#[test]
fn all_damaged_files_of_a_shard_are_reported_together() {
    let (_folder, path) = store();
    for (kind, length) in [("rows", 5000), ("ids", 9), ("log", 1)] {
        let name = path.join(format!("shard-00000.{kind}"));
        edit(&name, |bytes| bytes.truncate(length));
    }
    edit(&path.join("shard-00000.rows"), |bytes| bytes[0] ^= 1);
    fs::remove_file(path.join("shard-00001.ids")).unwrap();
    edit(&path.join("shard-00001.log"), |bytes| bytes[3] ^= 1);
    let expected = [
        "shard 0 header (expected the magic bytes GRASSROW at the start)",
        "shard 0 rows (expected 2101248 bytes for 32 rows, got 5000)",
        "shard 0 ids (expected 256 bytes for 32 rows, got 9)",
        "shard 0 log (expected 40 bytes for 32 rows, got 1)",
        "shard 1 ids (the file is missing)",
        "shard 1 log (expected 1 valid records, one a chunk, got 0)",
    ];
    assert_eq!(opening(&path), expected);
    assert_eq!(
        damage(grass_store::verify(&path, &Workers::serial())),
        expected
    );
}

#[test]
fn all_damaged_files_of_an_unfinished_shard_are_reported_together() {
    let (_folder, path) = unfinished();
    edit(&path.join("shard-00000.rows"), |bytes| {
        bytes.truncate(4096 + 4 * 65_536);
        bytes[0] ^= 1;
        bytes[4096] ^= 1;
    });
    edit(&path.join("shard-00000.ids"), |bytes| {
        bytes.truncate(24);
        bytes[8] ^= 1;
    });
    let lengths = [
        "shard 0 header (expected the magic bytes GRASSROW at the start)",
        "shard 0 rows (expected 5 committed rows, got 4)",
        "shard 0 ids (expected 5 committed rows, got 3)",
    ];
    assert_eq!(opening(&path), lengths);
    fs::remove_file(path.join("shard-00000.ids")).unwrap();
    let reports = opening(&path);
    assert_eq!(reports[..2], lengths[..2]);
    assert_eq!(reports[2], "shard 0 ids (the file is missing)");
}

#[test]
fn what_a_damaged_store_still_holds_is_verified() {
    let (_folder, path) = store();
    // Shard 0 loses the rows of its second chunk and all of its ids; the rest can still be compared.
    edit(&path.join("shard-00000.rows"), |bytes| {
        bytes.truncate(4096 + 20 * 65_536);
        bytes[4096 + 3 * 65_536] ^= 1;
    });
    fs::remove_file(path.join("shard-00000.ids")).unwrap();
    edit(&path.join("shard-00001.rows"), |bytes| bytes[5000] ^= 1);
    edit(&path.join("shard-00001.ids"), |bytes| bytes[39] ^= 1);
    let structure = [
        "shard 0 rows (expected 2101248 bytes for 32 rows, got 1314816)",
        "shard 0 ids (the file is missing)",
    ];
    assert_eq!(opening(&path), structure);
    let chunks = [
        "shard 0 rows chunk 0 rows 0:16 (the checksum differs)",
        "shard 1 rows chunk 0 rows 32:37 (the checksum differs)",
        "shard 1 ids chunk 0 rows 32:37 (the checksum differs)",
    ];
    for threads in [1, 3] {
        let found = damage(grass_store::verify(&path, &Workers::with_threads(threads)));
        assert_eq!(found, [&structure[..], &chunks].concat());
    }
}

#[test]
fn a_message_names_twenty_places_and_how_many_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    finished(&path, spec(Dtype::Int8, &NARROW), 3);
    forge(&path, |value| {
        let absent = |number| json!({"log_crc32": 1, "number": number, "rows": 3});
        let shards = value["shards"].as_array_mut().unwrap();
        shards.extend((1..30).map(absent));
    });
    let error = StoreReader::open(&path).unwrap_err();
    let message = error.to_string();
    assert!(message.contains("damaged in 87 places: "), "{message}");
    assert_eq!(message.matches("the file is missing").count(), 20);
    assert!(message.contains("; and 67 more: restore"), "{message}");
}

#[test]
fn rows_ids_or_log_too_short_or_too_long() {
    for name in ["shard-00001.rows", "shard-00001.ids", "shard-00001.log"] {
        for change in [
            |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 1),
            |bytes: &mut Vec<u8>| bytes.push(0),
        ] {
            let reports = changed(name, change);
            assert!(reports[0].starts_with("shard 1"), "{reports:?}");
            assert!(reports[0].contains("for 5 rows, got"), "{reports:?}");
        }
    }
    assert!(!changed("shard-00000.rows", |bytes| bytes.truncate(100)).is_empty());
}

#[test]
fn a_header_of_another_shard() {
    let (_folder, path) = store();
    let first = fs::read(path.join("shard-00000.rows")).unwrap();
    edit(&path.join("shard-00001.rows"), |bytes| {
        bytes[..4096].copy_from_slice(&first[..4096])
    });
    assert_eq!(
        opening(&path),
        ["shard 1 header (expected shard number 1, got 0)"]
    );
}

#[test]
fn a_changed_bit_of_a_finished_log() {
    for place in [0, 9, 13, 17, 25] {
        let reports = changed("shard-00000.log", |bytes| bytes[place] ^= 0x10);
        assert!(reports[0].starts_with("shard 0 log ("), "{reports:?}");
    }
}

#[test]
fn a_log_of_valid_records_that_are_not_one_a_chunk() {
    let (_folder, path) = store();
    let (_other_folder, other) = unfinished();
    let parts = fs::read(other.join("shard-00000.log")).unwrap();
    edit(&path.join("shard-00001.log"), |bytes| {
        bytes.copy_from_slice(&parts[..20])
    });
    assert_eq!(
        opening(&path),
        ["shard 1 log (it is not the log that the manifest lists)"]
    );
    // Even if the manifest lists it.
    forge(&path, |value| {
        value["shards"][1]["log_crc32"] = crc32fast::hash(&parts[..16]).into();
    });
    assert_eq!(
        opening(&path),
        ["shard 1 log (expected 1 valid records, one a chunk, got 1)"]
    );
}

#[test]
fn a_changed_bit_in_the_middle_of_an_unfinished_log_loses_nothing() {
    let (_folder, path) = unfinished();
    edit(&path.join("shard-00000.log"), |bytes| bytes[45] ^= 1);
    assert_eq!(
        opening(&path),
        ["shard 0 log (the checksum of record 2 differs)"]
    );
    let before = files(&path);
    let outcome = StoreWriter::resume(
        &path,
        spec(Dtype::Float32, &WIDE),
        manual(),
        &Workers::serial(),
    );
    assert!(matches!(outcome, Err(Error::Corrupt { .. })));
    assert!(files(&path) == before, "a refused store stays as it is");
}

#[test]
fn committed_rows_of_an_unfinished_store_that_are_gone() {
    for (name, keep, part) in [
        ("shard-00000.rows", 4096 + 4 * 65_536, "rows"),
        ("shard-00000.ids", 32, "ids"),
    ] {
        let (_folder, path) = unfinished();
        edit(&path.join(name), |bytes| bytes.truncate(keep));
        assert_eq!(
            opening(&path),
            [format!("shard 0 {part} (expected 5 committed rows, got 4)")]
        );
        let outcome = StoreWriter::resume(
            &path,
            spec(Dtype::Float32, &WIDE),
            manual(),
            &Workers::serial(),
        );
        assert!(matches!(outcome, Err(Error::Corrupt { .. })));
    }
}

#[test]
fn an_unfinished_log_longer_than_its_rows_allow() {
    let (_folder, path) = unfinished();
    edit(&path.join("shard-00000.log"), |bytes| {
        bytes.resize(1 << 20, 0)
    });
    let reports = opening(&path);
    assert!(
        reports[0].contains("expected at most 120 bytes for 5 rows"),
        "{reports:?}"
    );
}

#[test]
fn an_unfinished_store_whose_log_is_missing() {
    let (_folder, path) = unfinished();
    fs::remove_file(path.join("shard-00000.log")).unwrap();
    assert_eq!(opening(&path), ["shard 0 log (the file is missing)"]);
}

#[test]
fn a_repeated_id_in_a_store_that_is_resumed() {
    let (_folder, path) = unfinished();
    let ids = fs::read(path.join("shard-00000.ids")).unwrap();
    edit(&path.join("shard-00000.ids"), |bytes| {
        bytes.copy_within(0..8, 8)
    });
    edit(&path.join("shard-00000.log"), |bytes| {
        let checksum = crc32fast::hash(&ids[..8]).to_le_bytes();
        bytes[20 + 12..20 + 16].copy_from_slice(&checksum);
        let own = crc32fast::hash(&bytes[20..36]).to_le_bytes();
        bytes[36..40].copy_from_slice(&own);
    });
    let error = StoreWriter::resume(
        &path,
        spec(Dtype::Float32, &WIDE),
        manual(),
        &Workers::serial(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("is there twice"), "{error}");
}

#[test]
fn verify_finds_all_damage_with_shard_chunk_and_rows() {
    let (_folder, path) = store();
    let row = 65_536;
    edit(&path.join("shard-00000.rows"), |bytes| {
        bytes[4096 + 3 * row + 7] ^= 0x80;
        bytes[4096 + (CHUNK + 2) * row] ^= 1;
    });
    edit(&path.join("shard-00001.ids"), |bytes| bytes[39] ^= 1);
    let expected = [
        "shard 0 rows chunk 0 rows 0:16 (the checksum differs)",
        "shard 0 rows chunk 1 rows 16:32 (the checksum differs)",
        "shard 1 ids chunk 0 rows 32:37 (the checksum differs)",
    ];
    assert_eq!(verify(&path), expected);
    let store = StoreReader::open(&path).unwrap();
    let chunks: Vec<_> = store.chunks(0..store.rows()).collect();
    assert!(
        store
            .checked_chunk(&chunks[0], Vec::new(), &Workers::serial())
            .is_err()
    );
    assert!(
        store
            .checked_chunk(&chunks[2], Vec::new(), &Workers::serial())
            .is_ok()
    );
    assert_eq!(
        damage(store.ids(&Workers::serial()).map(|_| ())),
        &expected[2..]
    );
}

#[test]
fn verify_names_the_rows_of_each_commit_of_an_unfinished_store() {
    let (_folder, path) = unfinished();
    edit(&path.join("shard-00000.rows"), |bytes| {
        bytes[4096 + 2 * 65_536] ^= 1
    });
    assert_eq!(
        verify(&path),
        ["shard 0 rows chunk 0 rows 2:3 (the checksum differs)"]
    );
}

#[test]
fn verify_finds_what_was_damaged_after_the_store_was_opened() {
    let (_folder, path) = store();
    let store = StoreReader::open(&path).unwrap();
    edit(&path.join("shard-00001.rows"), |bytes| bytes.truncate(5000));
    edit(&path.join("manifest.json"), |bytes| bytes[0] = b'[');
    let found = damage(store.verify(&Workers::serial()));
    assert!(found[0].starts_with("manifest (expected JSON"), "{found:?}");
    assert_eq!(
        found[1..],
        ["shard 1 rows (expected 5 committed rows, got 0)"]
    );
}

#[test]
fn a_cancelled_verify_says_so() {
    let (_folder, path) = store();
    let workers = Workers::serial();
    workers
        .cancel_flag()
        .store(true, std::sync::atomic::Ordering::Relaxed);
    for outcome in [
        StoreReader::open(&path).unwrap().verify(&workers),
        grass_store::verify(&path, &workers),
    ] {
        assert!(matches!(
            outcome,
            Err(Error::Core(grass_core::Error::Interrupted))
        ));
    }
}

/// The files of a store but for the copy of the manifest, which counts only when the manifest is gone.
fn checked_files(path: &Path) -> Vec<String> {
    let names = files(path).into_keys();
    names.filter(|name| name != "manifest.copy.json").collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn no_flipped_bit_of_a_finished_store_goes_unnoticed(file in 0usize..7, place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let folder = tempfile::tempdir().unwrap();
        let (good, path) = (folder.path().join("good"), folder.path().join("bad"));
        finished(&good, spec(Dtype::Int8, &WIDE[..1]), 9);
        copy_store(&good, &path);
        let names = checked_files(&path);
        edit(&path.join(&names[file % names.len()]), |bytes| {
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
        });
        let opened = StoreReader::open(&path).and_then(|store| store.verify(&Workers::serial()));
        for outcome in [opened, grass_store::verify(&path, &Workers::serial())] {
            prop_assert!(matches!(outcome, Err(Error::Corrupt { .. } | Error::Format { .. })), "{outcome:?}");
        }
    }

    #[test]
    fn any_bytes_in_any_file_are_found(file in 0usize..4, bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        finished(&path, spec(Dtype::Float32, &NARROW), 9);
        let names = checked_files(&path);
        fs::write(path.join(&names[file]), bytes).unwrap();
        // Other ids of the same length are told by their checksum alone.
        let outcome = StoreReader::open(&path).and_then(|reader| reader.verify(&Workers::serial()));
        prop_assert!(matches!(outcome, Err(Error::Corrupt { .. })), "{outcome:?}");
    }
}

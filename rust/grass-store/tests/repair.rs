//! Repair drops what is damaged and keeps everything else.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use common::forge::forge;
use common::{
    CHUNK, NARROW, WIDE, append, assert_same_files, edit, files, finished, ids, manual, spec,
    store, unfinished,
};
use grass_core::parallel::Workers;
use grass_store::{Dtype, Error, Repaired, StoreReader, StoreWriter, SystemDisk, repair, verify};

/// Bytes of a row of [`WIDE`].
const ROW: usize = 65_536;

fn repaired(path: &Path) -> Repaired {
    repair(path, &SystemDisk, &Workers::with_threads(2)).unwrap()
}

/// Ids and values of all rows, in their order.
fn content(path: &Path) -> Vec<(u64, Vec<f32>)> {
    let workers = Workers::serial();
    let reader = StoreReader::open(path).unwrap();
    reader.verify(&workers).unwrap();
    verify(path, &workers).unwrap();
    let numbers: Vec<u64> = (0..reader.rows()).collect();
    let values = reader.read_rows(&numbers, &workers).unwrap();
    let width = reader.layout().width();
    let ids = reader.ids(&workers).unwrap().into_iter();
    ids.zip(values.chunks(width).map(<[f32]>::to_vec)).collect()
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

/// What a damaged store of 37 rows is after its repair: rows that are still there, lost ids, rows of unknown ids.
fn check(path: &Path, kept: impl IntoIterator<Item = usize>, lost: Vec<u64>, unknown: u64) {
    let (_folder, whole) = store();
    let whole = content(&whole);
    let kept: Vec<_> = kept.into_iter().map(|row| whole[row].clone()).collect();
    let done = repaired(path);
    let expected = Repaired {
        kept_rows: kept.len() as u64,
        dropped_rows: 37 - kept.len() as u64,
        lost_ids: sorted(lost),
        unknown_ids: unknown,
    };
    assert_eq!(done, expected);
    assert!(content(path) == kept);
    assert_eq!(
        StoreReader::open(path).unwrap().complete(),
        kept.len() == 37
    );
    let names: Vec<String> = files(path).into_keys().collect();
    assert!(
        names.iter().all(|name| !name.contains("repair")),
        "{names:?}"
    );
}

/// Damages a finished store of 2 shards with chunks of 16, 16 and 5 rows.
fn damaged(
    change: impl FnOnce(&Path),
    kept: impl IntoIterator<Item = usize>,
    lost: Vec<u64>,
    unknown: u64,
) {
    let (_folder, path) = store();
    change(&path);
    check(&path, kept, lost, unknown);
}

fn flip(path: &Path, name: &str, place: usize) {
    edit(&path.join(name), |bytes| bytes[place] ^= 0x10);
}

#[test]
fn a_whole_store_stays_as_it_is() {
    let narrow = || spec(Dtype::Int8, &NARROW);
    let (folder, path) = store();
    let (_other, begun) = unfinished();
    let empty = folder.path().join("empty");
    StoreWriter::create(&empty, narrow(), manual()).unwrap();
    for (path, rows) in [(path, 37), (begun, 5), (empty, 0)] {
        let before = files(&path);
        let done = repaired(&path);
        let kept = Repaired {
            kept_rows: rows,
            ..Repaired::default()
        };
        assert_eq!(done, kept);
        assert!(files(&path) == before);
    }
}

#[test]
fn bytes_after_the_committed_part_are_no_damage() {
    let (_folder, path) = unfinished();
    for name in ["shard-00000.rows", "shard-00000.ids", "shard-00000.log"] {
        edit(&path.join(name), |bytes| bytes.extend([9; 15]));
    }
    let before = files(&path);
    assert_eq!(repaired(&path).kept_rows, 5);
    assert!(files(&path) == before);
}

#[test]
fn a_chunk_with_wrong_rows_or_ids() {
    let rows_of_a_chunk = |path: &Path| flip(path, "shard-00000.rows", 4096 + 3 * ROW + 5);
    damaged(rows_of_a_chunk, 16..37, ids(0, 16), 0);
    damaged(
        |path| flip(path, "shard-00000.ids", 17 * 8),
        (0..16).chain(32..37),
        vec![],
        16,
    );
    damaged(
        |path| flip(path, "shard-00001.rows", 4096),
        0..32,
        ids(32, 5),
        0,
    );
    let several = |path: &Path| {
        flip(path, "shard-00000.rows", 4096 + 20 * ROW);
        flip(path, "shard-00000.ids", 20 * 8);
        flip(path, "shard-00001.ids", 0);
    };
    damaged(several, 0..16, vec![], 21);
}

#[test]
fn what_is_known_from_the_rest_is_written_again() {
    let (_folder, good) = store();
    let changes: [&dyn Fn(&Path); 9] = [
        &|path| flip(path, "shard-00000.rows", 60),
        &|path| edit(&path.join("shard-00001.rows"), |bytes| bytes.push(0)),
        &|path| edit(&path.join("shard-00000.ids"), |bytes| bytes.extend([1; 99])),
        &|path| flip(path, "shard-00000.log", 25),
        &|path| fs::remove_file(path.join("shard-00000.log")).unwrap(),
        &|path| edit(&path.join("shard-00001.log"), |bytes| bytes.truncate(3)),
        &|path| fs::remove_file(path.join("manifest.json")).unwrap(),
        &|path| edit(&path.join("manifest.copy.json"), Vec::clear),
        &|path| fs::write(path.join("shard-00007.log"), [0; 40]).unwrap(),
    ];
    for (case, change) in changes.iter().enumerate() {
        let (_folder, path) = store();
        change(&path);
        assert_eq!(
            repaired(&path),
            Repaired {
                kept_rows: 37,
                ..Repaired::default()
            },
            "{case}"
        );
        assert_same_files(&path, &good);
    }
}

#[test]
fn temporary_files_are_removed() {
    let (_folder, path) = store();
    let before = files(&path);
    for name in [
        "manifest.json.tmp",
        "shard-00001.log.tmp",
        "shard-00000.rows.repair",
        "repair.json.tmp",
    ] {
        fs::write(path.join(name), "half").unwrap();
    }
    fs::write(path.join("notes.tmp"), "of somebody").unwrap();
    assert_eq!(repaired(&path).kept_rows, 37);
    let mut after = files(&path);
    assert!(after.remove("notes.tmp").is_some());
    assert!(after == before);
}

#[test]
fn files_that_are_gone_or_cut() {
    let remove = |name: &'static str| move |path: &Path| fs::remove_file(path.join(name)).unwrap();
    damaged(remove("shard-00000.rows"), 32..37, ids(0, 32), 0);
    damaged(remove("shard-00000.ids"), 32..37, vec![], 32);
    let cut_rows = |path: &Path| {
        edit(&path.join("shard-00000.rows"), |bytes| {
            bytes.truncate(4096 + 17 * ROW)
        })
    };
    damaged(cut_rows, (0..16).chain(32..37), ids(16, 16), 0);
    let cut_ids = |path: &Path| {
        edit(&path.join("shard-00000.ids"), |bytes| {
            bytes.truncate(16 * 8)
        })
    };
    damaged(cut_ids, (0..16).chain(32..37), vec![], 16);
    let whole_shard = |path: &Path| {
        for kind in ["rows", "ids", "log"] {
            fs::remove_file(path.join(format!("shard-00000.{kind}"))).unwrap();
        }
    };
    damaged(whole_shard, 32..37, vec![], 32);
}

#[test]
fn a_damaged_log_beside_damaged_rows_costs_the_rows_that_it_proved() {
    let second_record = |path: &Path| {
        flip(path, "shard-00000.log", 25);
        flip(path, "shard-00000.rows", 4096 + 20 * ROW);
    };
    damaged(second_record, (0..16).chain(32..37), vec![], 16);
    let log_gone = |path: &Path| {
        fs::remove_file(path.join("shard-00000.log")).unwrap();
        flip(path, "shard-00000.rows", 4096);
    };
    damaged(log_gone, 32..37, vec![], 32);
}

#[test]
fn shards_of_another_store_go() {
    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other");
    let mut plan = spec(Dtype::Float32, &WIDE);
    let mut writer = StoreWriter::create(&other, plan.clone(), manual()).unwrap();
    append(&mut writer, 500, 37);
    writer.finish(&[]).unwrap();
    let take = |from: u32, to: u32| {
        let other = &other;
        move |path: &Path| {
            for kind in ["rows", "ids", "log"] {
                let from = other.join(format!("shard-{from:05}.{kind}"));
                fs::copy(from, path.join(format!("shard-{to:05}.{kind}"))).unwrap();
            }
        }
    };
    damaged(take(0, 0), 32..37, vec![], 32);
    damaged(take(1, 0), 32..37, vec![], 32);
    // One that the manifest of a finished store does not list is no part of it.
    damaged(take(1, 2), 0..37, vec![], 0);
    // In an unfinished store, a shard of another plan is told by its header.
    plan.fingerprints.insert("plan".to_owned(), "p1".to_owned());
    let third = folder.path().join("third");
    finished(&third, plan, 37);
    let (_folder, begun) = unfinished();
    for kind in ["rows", "ids", "log"] {
        let name = format!("shard-00001.{kind}");
        fs::copy(third.join(&name), begun.join(&name)).unwrap();
    }
    let done = repaired(&begun);
    assert_eq!(
        (done.kept_rows, done.dropped_rows, done.unknown_ids),
        (5, 5, 5)
    );
    assert_eq!(content(&begun).len(), 5);
}

#[test]
fn records_of_a_shard_that_is_being_written() {
    let commits = |change: &dyn Fn(&Path), kept: &[usize], lost: Vec<u64>, unknown: u64| {
        let (_folder, path) = unfinished();
        let whole = content(&path);
        change(&path);
        let done = repaired(&path);
        assert_eq!((done.lost_ids, done.unknown_ids), (sorted(lost), unknown));
        assert_eq!(done.dropped_rows as usize, 5 - kept.len());
        let kept: Vec<_> = kept.iter().map(|&row| whole[row].clone()).collect();
        assert!(content(&path) == kept);
        assert!(!StoreReader::open(&path).unwrap().complete());
    };
    commits(
        &|path| flip(path, "shard-00000.rows", 4096 + 2 * ROW),
        &[0, 1, 3, 4],
        ids(2, 1),
        0,
    );
    commits(
        &|path| flip(path, "shard-00000.rows", 0),
        &[0, 1, 2, 3, 4],
        vec![],
        0,
    );
    // A checksum of the record of row 1, then its count, where row 2 begins.
    commits(
        &|path| flip(path, "shard-00000.log", 20 + 9),
        &[0, 2, 3, 4],
        vec![],
        1,
    );
    commits(
        &|path| flip(path, "shard-00000.log", 20 + 1),
        &[0, 3, 4],
        vec![],
        2,
    );
    commits(
        &|path| fs::remove_file(path.join("shard-00000.log")).unwrap(),
        &[],
        vec![],
        5,
    );
    let cut = |path: &Path| {
        edit(&path.join("shard-00000.rows"), |bytes| {
            bytes.truncate(4096 + 3 * ROW)
        })
    };
    commits(&cut, &[0, 1, 2], ids(3, 2), 0);
}

#[test]
fn rows_of_one_example_are_kept_once() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one", "two"].map(|name| folder.path().join(name));
    for path in &paths {
        let mut writer = StoreWriter::create(path, spec(Dtype::Int8, &NARROW), manual()).unwrap();
        append(&mut writer, 0, 3);
        writer.finish(&[]).unwrap();
    }
    // Appended in a shard 1 of its own: the second store has an id of the first there.
    for (path, first) in [(&paths[0], 3), (&paths[1], 1)] {
        let spec = spec(Dtype::Int8, &NARROW);
        if first == 1 {
            fs::remove_dir_all(path).unwrap();
            let mut writer = StoreWriter::create(path, spec.clone(), manual()).unwrap();
            append(&mut writer, 9, 1);
            writer.finish(&[]).unwrap();
        }
        let mut writer = StoreWriter::resume(path, spec, manual(), &Workers::serial()).unwrap();
        append(&mut writer, first, 3);
        writer.commit().unwrap();
    }
    for kind in ["rows", "ids", "log"] {
        let name = format!("shard-00001.{kind}");
        fs::copy(paths[1].join(&name), paths[0].join(&name)).unwrap();
    }
    let done = repaired(&paths[0]);
    assert_eq!(
        (done.kept_rows, done.dropped_rows, done.unknown_ids),
        (4, 2, 0)
    );
    assert!(done.lost_ids.is_empty());
    let kept: Vec<u64> = content(&paths[0]).into_iter().map(|(id, _)| id).collect();
    assert_eq!(kept, ids(0, 4));
}

#[test]
fn a_repaired_store_takes_what_it_lost() {
    let (_folder, path) = store();
    flip(&path, "shard-00000.rows", 4096 + 3 * ROW);
    repaired(&path);
    let spec = spec(Dtype::Float32, &WIDE);
    let mut writer = StoreWriter::resume(&path, spec, manual(), &Workers::serial()).unwrap();
    append(&mut writer, 0, CHUNK);
    writer.finish(&[]).unwrap();
    let (_other, good) = store();
    let mut left = content(&path);
    let mut right = content(&good);
    left.sort_by_key(|(id, _)| *id);
    right.sort_by_key(|(id, _)| *id);
    assert!(left == right);
}

#[test]
fn the_copy_of_the_manifest_may_be_older_than_the_last_shards() {
    let (_folder, path) = store();
    let old = fs::read(path.join("manifest.copy.json")).unwrap();
    let spec = spec(Dtype::Float32, &WIDE);
    let mut writer = StoreWriter::resume(&path, spec, manual(), &Workers::serial()).unwrap();
    append(&mut writer, 37, 3);
    writer.finish(&[]).unwrap();
    drop(writer);
    let rows = content(&path);
    fs::write(path.join("manifest.copy.json"), old).unwrap();
    fs::remove_file(path.join("manifest.json")).unwrap();
    assert_eq!(
        repaired(&path),
        Repaired {
            kept_rows: 40,
            ..Repaired::default()
        }
    );
    assert!(content(&path) == rows);
    assert!(!StoreReader::open(&path).unwrap().complete());
}

#[test]
fn nothing_is_repaired_without_a_manifest_a_store_or_the_lock() {
    let (folder, path) = store();
    for name in ["manifest.json", "manifest.copy.json"] {
        edit(&path.join(name), |bytes| bytes[20] ^= 1);
    }
    let before = files(&path);
    let fails = |path: &Path| {
        repair(path, &SystemDisk, &Workers::serial())
            .unwrap_err()
            .to_string()
    };
    let error = fails(&path);
    assert!(
        error.contains("neither manifest.json nor manifest.copy.json can be read: restore one"),
        "{error}"
    );
    assert!(files(&path) == before);
    for name in ["manifest.json", "manifest.copy.json"] {
        fs::remove_file(path.join(name)).unwrap();
    }
    assert!(fails(&path).contains("is there: restore one of them"));
    assert!(fails(&folder.path().join("nowhere")).contains("found nothing"));
    let (_other, path) = unfinished();
    let spec = spec(Dtype::Float32, &WIDE);
    let writer = StoreWriter::resume(&path, spec, manual(), &Workers::serial()).unwrap();
    let outcome = repair(&path, &SystemDisk, &Workers::serial());
    assert!(matches!(outcome, Err(Error::Locked { .. })), "{outcome:?}");
    drop(writer);
    assert_eq!(repaired(&path).kept_rows, 5);
}

#[test]
fn what_a_later_format_says_is_left_to_its_version() {
    let refused = |path: &Path| {
        let before = files(path);
        let error = repair(path, &SystemDisk, &Workers::serial()).unwrap_err();
        assert!(matches!(error, Error::Format { found: 2, .. }), "{error}");
        assert!(error.to_string().ends_with("install a newer grass_rs"));
        assert!(files(path) == before);
    };
    let (_folder, path) = store();
    forge(&path, |manifest| {
        manifest["format"] = 2.into();
        manifest["codec"] = "zstd".into();
    });
    fs::write(path.join("shard-00000.rows.tmp"), b"its own").unwrap();
    let later = fs::read(path.join("manifest.json")).unwrap();
    refused(&path);

    let (_folder, path) = store();
    fs::write(path.join("manifest.copy.json"), &later).unwrap();
    flip(&path, "manifest.json", 20);
    refused(&path);

    let (_folder, path) = store();
    let mut journal = serde_json::json!({"manifest": String::from_utf8_lossy(&later)});
    journal["crc32"] = crc32fast::hash(journal.to_string().as_bytes()).into();
    fs::write(path.join("repair.json"), format!("{journal}\n")).unwrap();
    refused(&path);
}

#[test]
fn a_damaged_format_number_is_no_later_format() {
    let (_folder, path) = store();
    let before = files(&path);
    edit(&path.join("manifest.json"), |bytes| {
        let text = String::from_utf8(bytes.clone()).unwrap();
        *bytes = text.replace("\"format\":1", "\"format\":3").into_bytes();
    });
    assert!(files(&path) != before);
    assert_eq!(repaired(&path).dropped_rows, 0);
    assert!(files(&path) == before);
}

#[test]
fn a_cancelled_repair_changes_nothing() {
    let (_folder, path) = store();
    flip(&path, "shard-00000.rows", 4096);
    let before = files(&path);
    let workers = Workers::serial();
    workers.cancel_flag().store(true, Relaxed);
    let outcome = repair(&path, &SystemDisk, &workers);
    assert!(matches!(
        outcome,
        Err(Error::Core(grass_core::Error::Interrupted))
    ));
    assert!(files(&path) == before);
}

//! The bytes of a finished store depend on rows, ids and plan, never on commits, kills or resumes.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use common::{
    CHUNK, NARROW, WIDE, append, assert_same_files, copy_store, edit, files, finished, ids, manual,
    rows, spec,
};
use grass_core::parallel::Workers;
use grass_store::{Dtype, Error, StoreReader, StoreWriter, WriterOptions};
use proptest::prelude::*;

fn resume(path: &Path) -> StoreWriter {
    StoreWriter::resume(
        path,
        spec(Dtype::Float32, &WIDE),
        manual(),
        &Workers::serial(),
    )
    .unwrap()
}

fn committed(path: &Path) -> u64 {
    StoreReader::open(path).unwrap().rows()
}

/// Appends what is missing of `count` rows, and finishes.
fn complete(path: &Path, count: usize) {
    let mut writer = resume(path);
    let done = writer.committed_ids(&Workers::serial()).unwrap();
    assert_eq!(
        done,
        ids(0, done.len()),
        "committed rows are the first ones"
    );
    append(&mut writer, done.len(), count - done.len());
    writer.finish(&[]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn commits_and_resumes_leave_no_trace(steps in proptest::collection::vec((1usize..12, 0u8..3), 1..9)) {
        let folder = tempfile::tempdir().unwrap();
        let (path, plain) = (folder.path().join("pieces"), folder.path().join("plain"));
        let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
        let mut count = 0;
        for (more, then) in steps {
            append(&mut writer, count, more);
            count += more;
            if then > 0 {
                writer.commit().unwrap();
            }
            if then > 1 {
                drop(writer);
                writer = resume(&path);
                count = committed(&path) as usize;
            }
        }
        writer.finish(&[]).unwrap();
        finished(&plain, spec(Dtype::Float32, &WIDE), count);
        assert_same_files(&path, &plain);
    }
}

#[test]
fn a_finished_shard_has_one_record_a_chunk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    finished(&path, spec(Dtype::Float32, &WIDE), 2 * CHUNK + CHUNK + 3);
    let files = files(&path);
    let records = |name: &str| files[name].len() / 20;
    assert_eq!(records("shard-00000.log"), 2);
    assert_eq!(records("shard-00001.log"), 2);
    assert_eq!(files.len(), 8);
}

#[test]
fn the_writer_commits_by_itself_when_enough_bytes_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let options = WriterOptions {
        commit_bytes: 64,
        ..manual()
    };
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), options).unwrap();
    append(&mut writer, 0, 1);
    assert_eq!(committed(&path), 0);
    append(&mut writer, 1, 4);
    assert_eq!(committed(&path), 4);
}

#[test]
fn the_writer_commits_by_itself_when_the_time_has_passed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let options = WriterOptions {
        commit_interval: Duration::ZERO,
        ..manual()
    };
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), options).unwrap();
    append(&mut writer, 0, 3);
    assert_eq!(committed(&path), 3);
}

#[test]
fn dropping_the_writer_keeps_what_was_committed_and_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
    append(&mut writer, 0, 5);
    writer.commit().unwrap();
    append(&mut writer, 5, 5);
    drop(writer);
    let store = StoreReader::open(&path).unwrap();
    assert_eq!((store.rows(), store.complete()), (5, false));
    assert_eq!(store.ids(&Workers::serial()).unwrap(), ids(0, 5));
}

/// A store of `count` committed rows, as a killed process leaves it.
fn killed(path: &Path, count: usize) {
    let mut writer = StoreWriter::create(path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
    append(&mut writer, 0, count);
    writer.commit().unwrap();
}

#[test]
fn whatever_a_crash_tears_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let (before, after, plain) = (
        folder.path().join("before"),
        folder.path().join("after"),
        folder.path().join("plain"),
    );
    finished(&plain, spec(Dtype::Float32, &WIDE), 27);
    killed(&before, 9);
    copy_store(&before, &after);
    complete(&after, 20);
    let row = 4 * 16_384;
    // Bytes of rows, ids and log that reached the disk after the last commit that returned.
    for (rows, ids, log) in [
        (0, 0, 0),
        (1, 0, 0),
        (row, 7, 0),
        (3 * row + 5, 24, 1),
        (11 * row, 88, 19),
    ] {
        let torn = folder.path().join(format!("torn-{rows}"));
        copy_store(&before, &torn);
        for (kind, extra) in [("rows", rows), ("ids", ids), ("log", log)] {
            let name = format!("shard-00000.{kind}");
            let written = fs::read(after.join(&name)).unwrap();
            let mut file = OpenOptions::new()
                .append(true)
                .open(torn.join(&name))
                .unwrap();
            let length = file.metadata().unwrap().len() as usize;
            let from = length.min(written.len() - extra);
            file.write_all(&written[from..from + extra]).unwrap();
        }
        assert_eq!(committed(&torn), 9);
        complete(&torn, 27);
        assert_same_files(&torn, &plain);
    }
}

#[test]
fn a_log_that_grew_without_its_bytes_is_cut_off() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("store"), folder.path().join("plain"));
    killed(&path, 9);
    edit(&path.join("shard-00000.log"), |bytes| {
        bytes.extend([0; 130])
    });
    assert_eq!(committed(&path), 9);
    complete(&path, 20);
    finished(&plain, spec(Dtype::Float32, &WIDE), 20);
    assert_same_files(&path, &plain);
}

#[test]
fn a_crash_between_any_two_steps_of_finishing_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("store"), folder.path().join("plain"));
    finished(&plain, spec(Dtype::Float32, &WIDE), 20);
    killed(&path, 9);
    let mut writer = resume(&path);
    append(&mut writer, 9, 11);
    writer.commit().unwrap();
    drop(writer);
    // The new log is written but not renamed; the manifest likewise.
    for name in ["shard-00000.log.tmp", "manifest.json.tmp"] {
        let torn = folder.path().join(name);
        copy_store(&path, &torn);
        fs::write(torn.join(name), b"half of a fi").unwrap();
        complete(&torn, 20);
        assert_same_files(&torn, &plain);
    }
    // The log is replaced, the manifest is not.
    let torn = folder.path().join("compacted");
    copy_store(&path, &torn);
    fs::copy(plain.join("shard-00000.log"), torn.join("shard-00000.log")).unwrap();
    assert_eq!(committed(&torn), 20);
    complete(&torn, 20);
    assert_same_files(&torn, &plain);
}

#[test]
fn a_crash_while_a_shard_is_made_is_mended() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("plain");
    let made = ["shard-00000.rows", "shard-00000.ids", "shard-00000.log"];
    finished(&plain, spec(Dtype::Float32, &WIDE), 3);
    for count in 0..=made.len() {
        let path = folder.path().join(format!("made-{count}"));
        drop(StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap());
        for name in &made[..count] {
            fs::write(path.join(name), []).unwrap();
        }
        assert_eq!(committed(&path), 0);
        complete(&path, 3);
        assert_same_files(&path, &plain);
    }
}

#[test]
fn a_crash_before_the_first_manifest_leaves_a_place_for_a_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    fs::create_dir(&path).unwrap();
    fs::write(path.join(".lock"), "123\n").unwrap();
    fs::write(path.join("manifest.json.tmp"), "{").unwrap();
    drop(StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap());
    assert_eq!(files(&path).len(), 2);
}

#[test]
fn a_finished_store_takes_more_rows_in_shards_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    // The last shard full, and with room.
    for count in [2 * CHUNK, 2 * CHUNK + 5] {
        let (path, more) = (
            folder.path().join(format!("a{count}")),
            folder.path().join(format!("b{count}")),
        );
        let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
        append(&mut writer, 0, count);
        writer.finish(&[7, ids(count + 1, 1)[0]]).unwrap();
        drop(writer);
        let before = files(&path);
        let mut writer = resume(&path);
        assert!(files(&path) == before, "opening it changes nothing");
        append(&mut writer, count, 4);
        assert_eq!(
            committed(&path),
            count as u64 + 4,
            "its first rows are committed at once"
        );
        assert!(!StoreReader::open(&path).unwrap().complete());
        writer.finish(&[3]).unwrap();
        let store = StoreReader::open(&path).unwrap();
        assert!(store.complete());
        assert_eq!(
            store.skipped_ids(),
            [3, 7],
            "what got a row is not skipped any more"
        );
        store.verify(&Workers::serial()).unwrap();
        // The old shards are untouched, and the new one does not depend on when it was committed.
        let after = files(&path);
        for (name, bytes) in before.iter().filter(|(name, _)| name.starts_with("shard")) {
            assert!(after[name] == *bytes, "{name}");
        }
        finished(&more, spec(Dtype::Float32, &WIDE), count);
        let mut writer = resume(&more);
        for row in count..count + 4 {
            append(&mut writer, row, 1);
            writer.commit().unwrap();
            drop(writer);
            writer = resume(&more);
        }
        writer.finish(&[7, 3]).unwrap();
        assert_same_files(&path, &more);
    }
}

#[test]
fn readers_see_the_committed_rows_of_a_store_that_is_being_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
    append(&mut writer, 0, 2 * CHUNK + 3);
    writer.commit().unwrap();
    let early = StoreReader::open(&path).unwrap();
    append(&mut writer, 2 * CHUNK + 3, 20);
    writer.finish(&[]).unwrap();
    assert_eq!(
        (early.rows(), early.complete()),
        (2 * CHUNK as u64 + 3, false)
    );
    early
        .verify(&grass_core::parallel::Workers::serial())
        .unwrap();
    assert_eq!(committed(&path), 2 * CHUNK as u64 + 23);
}

#[test]
fn a_second_writer_is_refused_with_the_holder() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let writer = StoreWriter::create(&path, spec(Dtype::Float32, &NARROW), manual()).unwrap();
    let error = StoreWriter::resume(
        &path,
        spec(Dtype::Float32, &NARROW),
        manual(),
        &Workers::serial(),
    )
    .unwrap_err();
    assert!(matches!(error, Error::Locked { .. }));
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(writer);
    assert!(
        StoreWriter::resume(
            &path,
            spec(Dtype::Float32, &NARROW),
            manual(),
            &Workers::serial()
        )
        .is_ok()
    );
}

#[test]
fn a_store_is_never_created_over_anything() {
    let folder = tempfile::tempdir().unwrap();
    let create = |path: &Path| StoreWriter::create(path, spec(Dtype::Float32, &NARROW), manual());
    let (store, file, full) = (
        folder.path().join("store"),
        folder.path().join("file"),
        folder.path().join("full"),
    );
    finished(&store, spec(Dtype::Float32, &NARROW), 1);
    fs::write(&file, "x").unwrap();
    fs::create_dir(&full).unwrap();
    fs::write(full.join("thesis.tex"), "x").unwrap();
    for (path, words) in [
        (&store, "a store is already there"),
        (&file, "a file is"),
        (&full, "not empty"),
    ] {
        let error = create(path).unwrap_err();
        assert!(matches!(error, Error::Exists { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    }
    assert_eq!(
        fs::read_dir(&full).unwrap().count(),
        1,
        "a foreign folder stays as it is"
    );
    let error = create(&folder.path().join("no/such/folder")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.errno().is_some());
}

#[test]
fn resuming_with_something_else_names_the_first_difference() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    finished(&path, spec(Dtype::Float32, &NARROW), 1);
    let refused = |change: &dyn Fn(&mut grass_store::StoreSpec), words: &str| {
        let mut spec = spec(Dtype::Float32, &NARROW);
        change(&mut spec);
        let error = StoreWriter::resume(&path, spec, manual(), &Workers::serial()).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
    };
    refused(
        &|spec| spec.dtype = Dtype::Int8,
        "dtype float32 in the store, int8 given",
    );
    refused(
        &|spec| spec.columns[1].name = "fc3".into(),
        "column 1: \"fc2\" in the store, \"fc3\" given",
    );
    refused(
        &|spec| spec.columns[1].width = 6,
        "column \"fc2\": width 5 in the store, 6 given",
    );
    refused(
        &|spec| spec.columns[0].spec["seed"] = 9.into(),
        "column \"fc1\": seed 0 in the store, 9 given",
    );
    refused(
        &|spec| spec.columns[0].spec["mask"] = serde_json::json!({"seed": 1}),
        "column \"fc1\": mask null in the store, {\"seed\":1} given",
    );
    refused(
        &|spec| spec.columns.truncate(1),
        "2 columns in the store, 1 given, the first without a partner is \"fc2\"",
    );
    refused(
        &|spec| drop(spec.fingerprints.insert("model".into(), "m1".into())),
        "fingerprint \"model\": m0 in the store, m1 given",
    );
    refused(
        &|spec| drop(spec.fingerprints.remove("plan")),
        "fingerprint \"plan\": p0 in the store, none given",
    );
}

#[test]
fn a_failed_write_stops_the_writer_and_keeps_what_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    killed(&path, 2 * CHUNK);
    let mut writer = resume(&path);
    // The next shard cannot be made: a folder has its name.
    fs::create_dir(path.join("shard-00001.rows")).unwrap();
    let width = writer.layout().width();
    let error = writer
        .append(
            &rows(2 * CHUNK, 1, width),
            &ids(2 * CHUNK, 1),
            &Workers::serial(),
        )
        .unwrap_err();
    assert!(error.errno().is_some(), "{error}");
    for error in [
        writer.commit().unwrap_err(),
        writer.append(&[], &[], &Workers::serial()).unwrap_err(),
        writer.finish(&[]).unwrap_err(),
    ] {
        assert!(matches!(error, Error::Broken { .. }), "{error}");
    }
    drop(writer);
    fs::remove_dir(path.join("shard-00001.rows")).unwrap();
    complete(&path, 2 * CHUNK + 1);
    let plain = folder.path().join("plain");
    finished(&plain, spec(Dtype::Float32, &WIDE), 2 * CHUNK + 1);
    assert_same_files(&path, &plain);
}

//! Several writers of one store: each writes shards of its own, and the last to finish completes it.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::fs;
use std::path::Path;
use std::thread;

use common::{CHUNK, WIDE, append, assert_same_files, files, ids, manual, rows, spec, width};
use grass_core::parallel::Workers;
use grass_store::{Dtype, Error, StoreReader, StoreWriter, WriterOptions};

/// Writer `writer` of `writers`, going on with the store.
fn open(path: &Path, writer: u32, writers: u32) -> Result<StoreWriter, Error> {
    let options = WriterOptions {
        writer,
        writers,
        ..manual()
    };
    StoreWriter::resume(
        path,
        spec(Dtype::Float32, &WIDE),
        options,
        &Workers::serial(),
    )
}

fn holder(outcome: Result<StoreWriter, Error>) -> String {
    match outcome {
        Err(Error::Locked { holder, .. }) => holder,
        other => panic!("expected a lock, got {other:?}"),
    }
}

fn this_process() -> String {
    format!("process {}", std::process::id())
}

/// All rows with their ids, by id.
fn contents(path: &Path) -> Vec<(u64, Vec<f32>)> {
    let store = StoreReader::open(path).unwrap();
    store.verify(&Workers::serial()).unwrap();
    let numbers: Vec<u64> = (0..store.rows()).collect();
    let values = store.read_rows(&numbers, &Workers::serial()).unwrap();
    let rows = values.chunks(store.layout().width()).map(<[f32]>::to_vec);
    let ids = store.ids(&Workers::serial()).unwrap();
    let mut contents: Vec<_> = ids.into_iter().zip(rows).collect();
    contents.sort_by_key(|(id, _)| *id);
    contents
}

/// What a store of the first `count` rows has, by id.
fn expected(count: usize) -> Vec<(u64, Vec<f32>)> {
    let width = width(&spec(Dtype::Float32, &WIDE));
    let mut rows: Vec<_> = (0..count)
        .map(|row| (ids(row, 1)[0], rows(row, 1, width)))
        .collect();
    rows.sort_by_key(|(id, _)| *id);
    rows
}

/// Writes every third row, the rows of writer `writer` of three, from `first` on.
fn append_own(writer: &mut StoreWriter, number: usize, first: usize, end: usize) {
    for row in (first..end).filter(|row| row % 3 == number) {
        append(writer, row, 1);
        if row % 4 == 0 {
            writer.commit().unwrap();
        }
    }
}

/// Rows of each test's store: two shards for each of three writers.
const COUNT: usize = 3 * (2 * CHUNK + 7);

#[test]
fn bytes_do_not_depend_on_which_writer_was_first_or_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (plain, other) = (folder.path().join("plain"), folder.path().join("other"));
    for number in 0..3 {
        let mut writer = open(&plain, number, 3).unwrap();
        append_own(&mut writer, number as usize, 0, COUNT);
        writer.finish(&[u64::from(number)]).unwrap();
        assert_eq!(StoreReader::open(&plain).unwrap().complete(), number == 2);
    }
    // All open at once, interleaved, one dropped amid its rows, finished the other way round.
    let mut writers: Vec<_> = (0..3)
        .map(|number| open(&other, number, 3).unwrap())
        .collect();
    for (number, writer) in writers.iter_mut().enumerate() {
        append_own(writer, number, 0, 30);
    }
    drop(writers.remove(1));
    let mut second = open(&other, 1, 3).unwrap();
    let committed = second.committed_ids(&Workers::serial()).unwrap();
    let missing = (0..30).filter(|&row| row % 3 == 1 && !committed.contains(&ids(row, 1)[0]));
    for row in missing {
        append(&mut second, row, 1);
    }
    writers.insert(1, second);
    for (number, writer) in writers.iter_mut().enumerate().rev() {
        append_own(writer, number, 30, COUNT);
        writer.finish(&[number as u64]).unwrap();
    }
    assert_same_files(&other, &plain);
    let store = StoreReader::open(&plain).unwrap();
    assert!(store.complete());
    assert_eq!(store.skipped_ids(), [0, 1, 2]);
    assert!(contents(&plain) == expected(COUNT));
    let shards = files(&plain)
        .into_keys()
        .filter(|name| name.ends_with(".rows"));
    assert_eq!(
        shards.collect::<Vec<_>>(),
        (0..6)
            .map(|shard| format!("shard-{shard:05}.rows"))
            .collect::<Vec<_>>()
    );
}

#[test]
fn all_writers_create_the_store_at_once() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..8 {
        let path = folder.path().join(format!("{round}"));
        thread::scope(|scope| {
            for number in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let mut writer = open(path, number, 4).unwrap();
                    append(&mut writer, number as usize, 1);
                    writer.finish(&[]).unwrap();
                });
            }
        });
        assert!(StoreReader::open(&path).unwrap().complete());
        assert!(contents(&path) == expected(4));
    }
}

#[test]
fn readers_see_no_damage_while_shards_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    drop(open(&path, 0, 2).unwrap());
    thread::scope(|scope| {
        let writing: Vec<_> = (0..2)
            .map(|number: usize| {
                let path = &path;
                scope.spawn(move || {
                    let mut writer = open(path, number as u32, 2).unwrap();
                    for row in (0..8 * CHUNK).filter(|row| row % 2 == number) {
                        append(&mut writer, row, 1);
                        writer.commit().unwrap();
                    }
                    writer.finish(&[]).unwrap();
                    // Unfinished again, and finished once more.
                    append(&mut writer, 8 * CHUNK + number, 1);
                    writer.finish(&[]).unwrap();
                })
            })
            .collect();
        let mut seen = 0;
        while writing.iter().any(|thread| !thread.is_finished()) {
            let store = StoreReader::open(&path).unwrap();
            assert!(store.rows() >= seen, "committed rows stay");
            seen = store.rows();
            store.ids(&Workers::serial()).unwrap();
        }
    });
    assert!(contents(&path) == expected(8 * CHUNK + 2));
}

#[test]
fn a_number_is_taken_once_and_groups_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let first = open(&path, 1, 3).unwrap();
    let second = open(&path, 2, 3).unwrap();
    assert_eq!(holder(open(&path, 1, 3)), this_process());
    assert_eq!(holder(open(&path, 0, 1)), this_process());
    assert_eq!(holder(open(&path, 0, 2)), this_process());
    let before = files(&path);
    drop(first);
    assert_eq!(holder(open(&path, 0, 2)), this_process());
    assert!(files(&path) == before, "refused writers change nothing");
    drop(open(&path, 1, 3).unwrap());
    drop(second);
    let alone = open(&path, 0, 1).unwrap();
    assert_eq!(holder(open(&path, 1, 3)), this_process());
    drop(alone);
    for (writer, writers) in [(0, 0), (3, 3), (1, 1), (0, 100_001)] {
        let refused = open(&path, writer, writers);
        assert!(matches!(refused, Err(Error::Writers { .. })), "{refused:?}");
    }
}

#[test]
fn another_number_of_writers_goes_on_with_all_open_shards() {
    let folder = tempfile::tempdir().unwrap();
    for (before, after) in [(3, 1), (3, 2), (1, 3), (2, 3)] {
        let path = folder.path().join(format!("{before}-{after}"));
        for number in 0..before {
            let mut writer = open(&path, number, before).unwrap();
            append_own(&mut writer, number as usize, 0, COUNT / 2);
            writer.commit().unwrap();
            if number > 0 {
                writer.finish(&[]).unwrap();
            }
        }
        let mut done = StoreReader::open(&path)
            .unwrap()
            .ids(&Workers::serial())
            .unwrap();
        done.sort_unstable();
        for number in 0..after {
            let mut writer = open(&path, number, after).unwrap();
            let missing = (0..COUNT).filter(|&row| done.binary_search(&ids(row, 1)[0]).is_err());
            for row in missing.filter(|row| row % after as usize == number as usize) {
                append(&mut writer, row, 1);
            }
            writer.finish(&[]).unwrap();
        }
        let store = StoreReader::open(&path).unwrap();
        assert!(store.complete(), "{before} then {after}");
        assert!(contents(&path) == expected(COUNT), "{before} then {after}");
    }
}

#[test]
fn an_id_of_two_writers_keeps_the_store_unfinished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut first = open(&path, 0, 2).unwrap();
    let mut second = open(&path, 1, 2).unwrap();
    append(&mut first, 0, 3);
    append(&mut second, 2, 3);
    first.finish(&[]).unwrap();
    let error = second.finish(&[]).unwrap_err();
    let repeated = ids(2, 1)[0];
    assert!(
        matches!(error, Error::RepeatedId { id, .. } if id == repeated),
        "{error}"
    );
    assert!(error.to_string().contains("two writers"), "{error}");
    let store = StoreReader::open(&path).unwrap();
    assert_eq!((store.rows(), store.complete()), (6, false));
    // Whoever finishes again is told the same.
    assert!(matches!(first.finish(&[]), Err(Error::RepeatedId { .. })));
    drop((first, second));
    assert!(open(&path, 0, 1).is_err());
}

#[test]
fn a_skipped_id_with_a_row_of_another_writer_is_not_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut first = open(&path, 0, 2).unwrap();
    let mut second = open(&path, 1, 2).unwrap();
    append(&mut second, 0, 1);
    first.finish(&[5, ids(0, 1)[0]]).unwrap();
    second.finish(&[9]).unwrap();
    assert_eq!(StoreReader::open(&path).unwrap().skipped_ids(), [5, 9]);
}

#[test]
fn a_writer_that_had_finished_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let complete = || StoreReader::open(&path).unwrap().complete();
    let mut first = open(&path, 0, 2).unwrap();
    let mut second = open(&path, 1, 2).unwrap();
    append(&mut first, 0, 1);
    first.finish(&[]).unwrap();
    // One that is listed as finished takes itself off the list.
    append(&mut first, 1, 1);
    second.finish(&[]).unwrap();
    assert!(!complete());
    first.finish(&[]).unwrap();
    assert!(complete());
    // In a finished store, the others stay finished.
    append(&mut second, 2, 1);
    assert!(!complete());
    drop(second);
    first.finish(&[]).unwrap();
    assert!(!complete());
    open(&path, 1, 2).unwrap().finish(&[]).unwrap();
    assert!(complete());
    assert!(contents(&path) == expected(3));
}

#[test]
fn a_shard_without_rows_is_not_in_the_finished_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = open(&path, 0, 1).unwrap();
    append(&mut writer, 0, 2);
    // Killed before the first commit: the shard has rows that do not count.
    drop(writer);
    fs::write(path.join("shard-00000.log"), [1; 50]).unwrap();
    assert_eq!(StoreReader::open(&path).unwrap().rows(), 0);
    open(&path, 0, 1).unwrap().finish(&[]).unwrap();
    let store = StoreReader::open(&path).unwrap();
    assert!(store.complete());
    assert_eq!(files(&path).len(), 2);
}

#[test]
fn a_cancelled_append_leaves_no_bytes_in_a_finished_store() {
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("store"), folder.path().join("plain"));
    let mut writer = open(&path, 0, 1).unwrap();
    append(&mut writer, 0, 3);
    // As if a cancelled call had written one row more.
    let rows_file = path.join("shard-00000.rows");
    common::edit(&rows_file, |bytes| bytes.extend([7; 65_536]));
    writer.finish(&[]).unwrap();
    common::finished(&plain, spec(Dtype::Float32, &WIDE), 3);
    assert_same_files(&path, &plain);
}

#[test]
fn the_clock_is_not_asked_for_the_time_of_day() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut looked_at = 0;
    for entry in fs::read_dir(sources).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for word in ["SystemTime", "UNIX_EPOCH", ".modified()"] {
                assert!(!text.contains(word), "{word} in {}", path.display());
            }
            looked_at += 1;
        }
    }
    assert!(looked_at > 15);
}

#[test]
fn an_id_that_another_writer_gave_a_row_is_not_skipped_in_a_finished_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut alone = open(&path, 0, 1).unwrap();
    append(&mut alone, 0, 1);
    alone.finish(&[]).unwrap();
    drop(alone);
    let (mut first, mut second) = (open(&path, 0, 2).unwrap(), open(&path, 1, 2).unwrap());
    append(&mut second, 100, 1);
    second.finish(&[]).unwrap();
    // It opened the store before that row was there.
    first.finish(&[ids(100, 1)[0], 7]).unwrap();
    let store = StoreReader::open(&path).unwrap();
    store.verify(&Workers::serial()).unwrap();
    assert!(store.complete());
    assert_eq!(store.skipped_ids(), [7]);
}

//! Writers that meet others, or what others left: nothing is lost, and nothing is changed too early.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;
mod disks;

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{
    CHUNK, NARROW, append, assert_same_files, edit, files, finished, ids, manual, rows, spec, width,
};
use disks::folder;
use grass_core::parallel::Workers;
use grass_store::{
    Disk, DiskFile, Dtype, Error, StoreReader, StoreWriter, SystemDisk, WriterOptions, merge,
};

/// The system's disk, which waits for no lock, and once does something just before a lock is taken.
struct Meeting {
    lock: &'static str,
    before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl fmt::Debug for Meeting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meeting before {}", self.lock)
    }
}

impl Meeting {
    fn before(lock: &'static str, action: impl FnOnce() + Send + 'static) -> Arc<Self> {
        Arc::new(Self {
            lock,
            before: Mutex::new(Some(Box::new(action))),
        })
    }

    fn impatient() -> Arc<Self> {
        Self::before("no lock", || ())
    }
}

impl Disk for Meeting {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        SystemDisk.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        SystemDisk.open(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.sync_folder(path)
    }

    fn open_lock(&self, path: &Path) -> io::Result<File> {
        if path.file_name().unwrap() == self.lock
            && let Some(action) = self.before.lock().unwrap().take()
        {
            action();
        }
        SystemDisk.open_lock(path)
    }

    fn lock_wait(&self) -> Duration {
        Duration::ZERO
    }
}

/// Opens the store as writer `writer` of `writers`.
fn open_on(
    disk: Arc<dyn Disk>,
    path: &Path,
    writer: u32,
    writers: u32,
) -> Result<StoreWriter, Error> {
    let options = WriterOptions {
        writer,
        writers,
        disk,
        ..manual()
    };
    let spec = spec(Dtype::Float32, &common::WIDE);
    StoreWriter::resume(path, spec, options, &Workers::serial())
}

fn open(path: &Path, writer: u32, writers: u32) -> StoreWriter {
    open_on(disks::faulty::quick_disk(), path, writer, writers).unwrap()
}

fn stored_ids(path: &Path) -> Vec<u64> {
    let store = StoreReader::open(path).unwrap();
    store.ids(&Workers::serial()).unwrap()
}

fn shard_numbers(path: &Path) -> Vec<u32> {
    let names = files(path).into_keys();
    let rows = names.filter_map(|name| {
        name.strip_suffix(".rows")?
            .strip_prefix("shard-")?
            .parse()
            .ok()
    });
    rows.collect()
}

#[test]
fn a_resume_sees_what_another_commits_just_before_it_lets_go() {
    for (lock, writer, writers) in [(".lock", 0, 1), (".writer-00001.lock", 1, 2)] {
        let folder = folder();
        let path = folder.path().join("store");
        let mut first = open(&path, writer, writers);
        append(&mut first, 0, 1);
        first.commit().unwrap();
        append(&mut first, 1, 2);
        let ending = Meeting::before(lock, move || first.commit().unwrap());
        let mut second = open_on(ending, &path, writer, writers).unwrap();
        assert_eq!(stored_ids(&path), ids(0, 3));
        append(&mut second, 3, 1);
        second.commit().unwrap();
        let store = StoreReader::open(&path).unwrap();
        store.verify(&Workers::serial()).unwrap();
        assert_eq!(stored_ids(&path), ids(0, 4));
    }
}

/// Rows that fill a shard.
const SHARD: usize = 2 * CHUNK;

/// A finished store of two writers, of which the first has shards 0, 2 and 4, the other only 1.
fn uneven(path: &Path) -> Vec<u64> {
    let (mut first, mut second) = (open(path, 0, 2), open(path, 1, 2));
    append(&mut first, 0, 2 * SHARD + 1);
    append(&mut second, 100, 3);
    first.finish(&[]).unwrap();
    second.finish(&[]).unwrap();
    assert_eq!(shard_numbers(path), [0, 1, 2, 4]);
    stored_ids(path)
}

#[test]
fn rows_of_a_finished_store_keep_their_numbers_whoever_appends() {
    let folder = folder();
    let store = folder.path().join("store");
    let before = uneven(&store);
    for writers in 1..=5 {
        let first_new: Vec<u32> = (0..writers)
            .map(|writer| (5..).find(|number| number % writers == writer).unwrap())
            .collect();
        let ways: [Vec<u32>; 2] = [(0..writers).collect(), (0..writers).rev().collect()];
        let mut ends = Vec::new();
        for (way, order) in ways.iter().enumerate() {
            let path = folder.path().join(format!("{writers}-{way}"));
            common::copy_store(&store, &path);
            for &writer in order {
                let first = 200 + 100 * writer as usize;
                let mut opened = open(&path, writer, writers);
                append(&mut opened, first, 1);
                opened.commit().unwrap();
                append(&mut opened, first + 50, 1);
                // Killed here, and gone on with when the others have begun too.
            }
            for &writer in order {
                let first = 200 + 100 * writer as usize;
                let mut opened = open(&path, writer, writers);
                append(&mut opened, first + 1, SHARD);
                opened.finish(&[]).unwrap();
                assert!(
                    stored_ids(&path).starts_with(&before),
                    "{writers}, {order:?}"
                );
            }
            let store = StoreReader::open(&path).unwrap();
            assert!(store.complete());
            store.verify(&Workers::serial()).unwrap();
            let mut expected = vec![0, 1, 2, 4];
            expected.extend(first_new.iter().flat_map(|&first| [first, first + writers]));
            expected.sort_unstable();
            assert_eq!(shard_numbers(&path), expected, "{writers}, {order:?}");
            ends.push(path);
        }
        assert_same_files(&ends[0], &ends[1]);
        // One alone, as the others have nothing to add.
        for writer in 0..writers {
            let path = folder.path().join(format!("{writers}-alone-{writer}"));
            common::copy_store(&store, &path);
            let mut opened = open(&path, writer, writers);
            append(&mut opened, 200, 1);
            opened.finish(&[]).unwrap();
            assert!(StoreReader::open(&path).unwrap().complete());
            assert_eq!(
                shard_numbers(&path),
                [0, 1, 2, 4, first_new[writer as usize]]
            );
            assert_eq!(stored_ids(&path), [before.clone(), ids(200, 1)].concat());
        }
    }
}

#[test]
fn an_append_killed_at_any_call_keeps_the_numbers_of_rows() {
    let folder = folder();
    let (store, plain) = (folder.path().join("store"), folder.path().join("plain"));
    let before = uneven(&store);
    let go_on = |path: &Path| {
        for (writer, row) in [(1, 200), (0, 300)] {
            let mut opened = open(path, writer, 2);
            if !stored_ids(path).contains(&ids(row, 1)[0]) {
                append(&mut opened, row, 1);
            }
            opened.finish(&[]).unwrap();
        }
    };
    common::copy_store(&store, &plain);
    go_on(&plain);
    for number in 0.. {
        let path = folder.path().join(format!("{number}"));
        common::copy_store(&store, &path);
        let disk =
            disks::faulty::failing_once(disks::faulty::quick_disk(), number, disks::faulty::EIO);
        let width = width(&spec(Dtype::Float32, &common::WIDE));
        let killed = open_on(disk.shared(), &path, 1, 2).and_then(|mut writer| {
            writer.append(&rows(200, 1, width), &ids(200, 1), &Workers::serial())?;
            writer.finish(&[])
        });
        let last = killed.is_ok();
        assert!(stored_ids(&path).starts_with(&before), "{number}");
        if number % 2 == 0 {
            go_on(&path);
            assert_same_files(&path, &plain);
        } else {
            // Others, and of another number.
            for writer in 0..3 {
                let mut opened = open(&path, writer, 3);
                append(&mut opened, 400 + writer as usize, 1);
                opened.finish(&[]).unwrap();
                assert!(stored_ids(&path).starts_with(&before), "{number}, {writer}");
            }
            assert!(StoreReader::open(&path).unwrap().complete());
        }
        fs::remove_dir_all(&path).unwrap();
        if last {
            assert!(number > 15, "{number} calls");
            break;
        }
    }
}

#[test]
fn a_group_that_goes_on_with_a_killed_merge_keeps_the_numbers_of_rows() {
    let folder = folder();
    let (store, source) = (folder.path().join("store"), folder.path().join("source"));
    let before = uneven(&store);
    finished(&source, spec(Dtype::Float32, &common::WIDE), 0);
    let mut writer = open(&source, 0, 1);
    append(&mut writer, 300, 1);
    writer.finish(&[]).unwrap();
    drop(writer);
    let mut interrupted = 0;
    for number in 0.. {
        let path: PathBuf = folder.path().join(format!("{number}"));
        common::copy_store(&store, &path);
        let disk =
            disks::faulty::failing_once(disks::faulty::quick_disk(), number, disks::faulty::EIO);
        let outcome = merge(
            std::slice::from_ref(&source),
            &path,
            &disk,
            &Workers::serial(),
        );
        interrupted += usize::from(!StoreReader::open(&path).unwrap().complete());
        for writer in 0..2 {
            let mut opened = open(&path, writer, 2);
            append(&mut opened, 400 + writer as usize, 1);
            opened.finish(&[]).unwrap();
            assert!(stored_ids(&path).starts_with(&before), "{number}, {writer}");
        }
        assert!(StoreReader::open(&path).unwrap().complete());
        fs::remove_dir_all(&path).unwrap();
        if outcome.is_ok() {
            break;
        }
    }
    assert!(interrupted > 5, "{interrupted} unfinished stores");
}

/// Holds the manifest of a store, as another process does.
fn hold_manifest(path: &Path) -> File {
    let mut file = SystemDisk.open_lock(&path.join(".manifest.lock")).unwrap();
    file.lock().unwrap();
    writeln!(file, "4242 1").unwrap();
    file
}

fn refused_by_holder<T: fmt::Debug>(outcome: Result<T, Error>) {
    let error = outcome.unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    let message = error.to_string();
    for words in ["process 4242", "make the same call again"] {
        assert!(message.contains(words), "{message}");
    }
}

#[test]
fn a_writer_goes_on_after_another_kept_the_manifest() {
    let folder = folder();
    let (path, plain) = (folder.path().join("store"), folder.path().join("plain"));
    let workers = Workers::serial();
    let mut undisturbed = open(&plain, 0, 1);
    append(&mut undisturbed, 0, 2 * SHARD + 3);
    undisturbed.finish(&[5]).unwrap();
    append(&mut undisturbed, 200, 2);
    undisturbed.finish(&[]).unwrap();

    let mut writer = open_on(Meeting::impatient(), &path, 0, 1).unwrap();
    let held = hold_manifest(&path);
    refused_by_holder(open_on(Meeting::impatient(), &path, 0, 1));
    // Shards get full meanwhile, and rows are safe.
    append(&mut writer, 0, 2 * SHARD + 3);
    writer.commit().unwrap();
    assert_eq!(stored_ids(&path), ids(0, 2 * SHARD + 3));
    for _ in 0..2 {
        refused_by_holder(writer.finish(&[5]));
        assert!(!writer.broken());
    }
    assert!(!StoreReader::open(&path).unwrap().complete());
    drop(held);
    writer.finish(&[5]).unwrap();
    assert!(StoreReader::open(&path).unwrap().complete());

    let held = hold_manifest(&path);
    let more = rows(200, 2, writer.layout().width());
    for _ in 0..2 {
        refused_by_holder(writer.append(&more, &ids(200, 2), &workers));
        assert!(!writer.broken());
    }
    drop(held);
    writer.append(&more, &ids(200, 2), &workers).unwrap();
    writer.finish(&[]).unwrap();
    assert_same_files(&path, &plain);
    assert_eq!(
        StoreReader::open(&path).unwrap().rows(),
        (2 * SHARD + 5) as u64
    );
}

#[test]
fn the_last_writer_of_a_group_finishes_after_another_kept_the_manifest() {
    let folder = folder();
    let path = folder.path().join("store");
    let mut first = open_on(Meeting::impatient(), &path, 0, 2).unwrap();
    let mut second = open_on(Meeting::impatient(), &path, 1, 2).unwrap();
    append(&mut first, 0, 1);
    append(&mut second, 1, 1);
    first.finish(&[]).unwrap();
    let held = hold_manifest(&path);
    refused_by_holder(second.finish(&[]));
    drop(held);
    second.finish(&[]).unwrap();
    let store = StoreReader::open(&path).unwrap();
    assert_eq!((store.rows(), store.complete()), (2, true));
}

fn holder_is_this(outcome: Result<StoreWriter, Error>) {
    let this = format!("process {}", std::process::id());
    assert!(
        matches!(&outcome, Err(Error::Locked { holder, .. }) if *holder == this),
        "{outcome:?}"
    );
}

#[test]
fn only_rows_make_a_finished_store_one_of_another_number_of_writers() {
    let folder = folder();
    let path = folder.path().join("store");
    uneven(&path);
    let before = files(&path);
    let try_open = |writer, writers| open_on(Meeting::impatient(), &path, writer, writers);
    let mut first = try_open(0, 3).unwrap();
    let mut third = try_open(2, 3).unwrap();
    // The manifest still has two writers, but three are at it.
    for (writer, writers) in [(0, 1), (0, 2), (1, 2), (3, 4), (2, 3)] {
        holder_is_this(try_open(writer, writers));
    }
    first.finish(&[]).unwrap();
    drop(first);
    third.finish(&[]).unwrap();
    assert!(files(&path) == before, "nothing was added");
    append(&mut third, 200, 1);
    assert!(files(&path)["manifest.json"] != before["manifest.json"]);
    holder_is_this(try_open(0, 2));
    let mut first = try_open(0, 3).unwrap();
    append(&mut first, 300, 1);
    third.finish(&[]).unwrap();
    assert!(!StoreReader::open(&path).unwrap().complete());
    first.finish(&[]).unwrap();
    assert!(StoreReader::open(&path).unwrap().complete());
    drop((first, third));
    // Other groups may come when this one has left.
    open(&path, 1, 2).finish(&[]).unwrap();
    open(&path, 0, 1).finish(&[]).unwrap();
}

#[test]
fn a_resume_that_is_refused_changes_nothing() {
    let (_folder, path) = common::unfinished();
    // Rows that were not committed, a manifest that was not written to its end, a torn record.
    for (name, more) in [
        ("shard-00000.rows", 70_000),
        ("shard-00000.ids", 8),
        ("shard-00000.log", 7),
    ] {
        edit(&path.join(name), |bytes| {
            bytes.resize(bytes.len() + more, 1)
        });
    }
    fs::write(path.join("manifest.json.tmp"), "x").unwrap();
    fs::remove_file(path.join("manifest.copy.json")).unwrap();
    let whole = files(&path);
    let resume = |writers, workers: &Workers| {
        let options = WriterOptions {
            writers,
            ..manual()
        };
        let spec = spec(Dtype::Float32, &common::WIDE);
        StoreWriter::resume(&path, spec, options, workers).map(drop)
    };
    let cancelled = Workers::serial();
    cancelled.cancel_flag().store(true, Ordering::Relaxed);
    for writers in [1, 3] {
        let outcome = resume(writers, &cancelled);
        assert!(matches!(outcome, Err(Error::Core(_))), "{outcome:?}");
        assert!(files(&path) == whole, "{writers} writers, cancelled");
        edit(&path.join("shard-00000.ids"), |bytes| bytes[9] ^= 1);
        let damaged = files(&path);
        let places = common::damage(resume(writers, &Workers::serial()));
        assert_eq!(
            places,
            ["shard 0 ids chunk 0 rows 1:2 (the checksum differs)"]
        );
        assert!(files(&path) == damaged, "{writers} writers, damaged");
        edit(&path.join("shard-00000.ids"), |bytes| bytes[9] ^= 1);
        let other = StoreWriter::resume(
            &path,
            spec(Dtype::Float32, &NARROW),
            manual(),
            &Workers::serial(),
        );
        assert!(matches!(other, Err(Error::Mismatch { .. })), "{other:?}");
        assert!(files(&path) == whole, "of other columns");
    }
    resume(1, &Workers::serial()).unwrap();
    assert!(files(&path) != whole);
    assert_eq!(stored_ids(&path), ids(0, 5));
}

#[test]
fn an_id_that_is_there_twice_is_told_before_anything_is_changed() {
    let folder = folder();
    let path = folder.path().join("store");
    let (mut first, mut second) = (open(&path, 0, 2), open(&path, 1, 2));
    for writer in [&mut first, &mut second] {
        append(writer, 0, 1);
        writer.commit().unwrap();
        append(writer, 7, 1);
    }
    drop((first, second));
    let before = files(&path);
    let error = open_on(Meeting::impatient(), &path, 0, 1).unwrap_err();
    let twice = format!("id {} is there twice", ids(0, 1)[0]);
    assert!(error.to_string().contains(&twice), "{error}");
    assert!(files(&path) == before);
}

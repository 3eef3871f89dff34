//! A merge is the union of its sources, and one killed anywhere is finished by the same call.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{
    CHUNK, NARROW, WIDE, append, assert_same_files, copy_store, edit, files, finished, ids, manual,
    rows, spec,
};
use grass_core::parallel::Workers;
use grass_store::{
    Dtype, Error, StoreReader, StoreSpec, StoreWriter, SystemDisk, WriterOptions, merge,
};
use tempfile::TempDir;

/// A disk on which nothing works any more from some call on; the first such call does half of a write.
#[derive(Debug, Clone)]
struct Dying {
    left: Arc<AtomicUsize>,
}

impl Dying {
    fn after(calls: usize) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(calls + 1)),
        }
    }

    /// How many calls are left, this one counted; an error where there is none.
    fn call(&self) -> io::Result<usize> {
        let fewer = |left: usize| left.checked_sub(1);
        let left = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
        match left.unwrap_or(0) {
            0 | 1 => Err(io::Error::other("the disk has died")),
            left => Ok(left - 1),
        }
    }
}

#[derive(Debug)]
struct DyingFile {
    disk: Dying,
    file: Box<dyn grass_store::DiskFile>,
}

impl grass_store::Disk for Dying {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        SystemDisk.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn grass_store::DiskFile>> {
        self.call()?;
        let (disk, file) = (self.clone(), SystemDisk.create(path)?);
        Ok(Box::new(DyingFile { disk, file }))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn grass_store::DiskFile>> {
        self.call()?;
        let (disk, file) = (self.clone(), SystemDisk.open(path)?);
        Ok(Box::new(DyingFile { disk, file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call()?;
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        SystemDisk.remove(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.call()?;
        SystemDisk.sync_folder(path)
    }
}

impl grass_store::DiskFile for DyingFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        match self.disk.call() {
            Ok(_) => self.file.write_at(bytes, offset),
            Err(error) => {
                self.file.write_at(&bytes[..bytes.len() / 2], offset)?;
                Err(error)
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        self.disk.call()?;
        self.file.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.disk.call()?;
        self.file.set_length(length)
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.call()?;
        self.file.sync()
    }
}

fn merged(sources: &[&Path], path: &Path) -> Result<(), Error> {
    let sources: Vec<PathBuf> = sources.iter().map(|path| path.to_path_buf()).collect();
    merge(&sources, path, &SystemDisk, &Workers::serial())
}

/// A finished store of rows `first..first + count`, two chunks a shard.
fn source(path: &Path, first: usize, count: usize, skipped: &[u64]) {
    let mut writer = StoreWriter::create(path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
    append(&mut writer, first, count);
    writer.finish(skipped).unwrap();
}

/// Sources of 2, 1 and 0 shards.
struct Sources {
    folder: TempDir,
    first: PathBuf,
    second: PathBuf,
    empty: PathBuf,
}

impl Sources {
    fn new() -> Self {
        Self::of(2 * CHUNK + 5)
    }

    /// The first with so many rows.
    fn of(rows: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = |name| folder.path().join(name);
        let (first, second, empty) = (place("first"), place("second"), place("empty"));
        source(&first, 0, rows, &[1, 2]);
        source(&second, 100, 3, &[2, ids(4, 1)[0]]);
        source(&empty, 0, 0, &[7]);
        Self {
            folder,
            first,
            second,
            empty,
        }
    }

    fn place(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

/// The names of files beside what is in them.
type Files = BTreeMap<String, Vec<u8>>;

fn shard(files: &Files, number: usize, kind: &str) -> Vec<u8> {
    files[&format!("shard-{number:05}.{kind}")].clone()
}

#[test]
fn a_merge_is_the_union_and_copies_shards_whole() {
    let sources = Sources::new();
    let path = sources.place("merged");
    let before = [&sources.first, &sources.second, &sources.empty].map(|path| files(path));
    let all = [&*sources.first, &sources.second, &sources.empty];
    merged(&all, &path).unwrap();
    assert!(before == all.map(files), "sources are only read");

    let store = StoreReader::open(&path).unwrap();
    store.verify(&Workers::serial()).unwrap();
    assert!(store.complete());
    // An id that was skipped in one store and has a row in another is not skipped.
    assert_eq!(store.skipped_ids(), [1, 2, 7]);
    let expected: Vec<usize> = (0..2 * CHUNK + 5).chain(100..103).collect();
    let expected_ids: Vec<u64> = expected.iter().map(|&row| ids(row, 1)[0]).collect();
    assert_eq!(store.ids(&Workers::serial()).unwrap(), expected_ids);
    let width = store.layout().width();
    let numbers: Vec<u64> = (0..store.rows()).collect();
    let values = store.read_rows(&numbers, &Workers::serial()).unwrap();
    let expected: Vec<f32> = expected
        .iter()
        .flat_map(|&row| rows(row, 1, width))
        .collect();
    assert!(values == expected);

    let merged_files = files(&path);
    let [first, second, _] = before;
    for (number, (source, theirs)) in [(&first, 0), (&first, 1), (&second, 0)].iter().enumerate() {
        for kind in ["ids", "log"] {
            assert!(shard(&merged_files, number, kind) == shard(source, *theirs, kind));
        }
        let (ours, theirs) = (
            shard(&merged_files, number, "rows"),
            shard(source, *theirs, "rows"),
        );
        assert!(ours[4096..] == theirs[4096..]);
        // The number of the shard, and the checksum of the header.
        assert!(ours[..24] == theirs[..24] && ours[28..4092] == theirs[28..4092]);
    }
    // The same call again changes nothing.
    merged(&all, &path).unwrap();
    assert!(files(&path) == merged_files);
}

#[test]
fn a_merge_appends_to_a_finished_store_and_takes_more_rows_itself() {
    let sources = Sources::new();
    let path = sources.place("target");
    source(&path, 200, CHUNK + 1, &[5, ids(101, 1)[0]]);
    let before = files(&path);
    merged(&[&sources.first, &sources.second], &path).unwrap();
    let after = files(&path);
    for (name, bytes) in before.iter().filter(|(name, _)| name.starts_with("shard")) {
        assert!(after[name] == *bytes, "{name}");
    }
    let store = StoreReader::open(&path).unwrap();
    store.verify(&Workers::serial()).unwrap();
    assert_eq!(store.skipped_ids(), [1, 2, 5]);
    assert_eq!(store.rows(), (3 * CHUNK + 9) as u64);
    let mut writer = StoreWriter::resume(
        &path,
        spec(Dtype::Float32, &WIDE),
        manual(),
        &Workers::serial(),
    )
    .unwrap();
    append(&mut writer, 300, 2);
    writer.finish(&[]).unwrap();
    assert_eq!(
        StoreReader::open(&path).unwrap().rows(),
        (3 * CHUNK + 11) as u64
    );
}

/// Kills a merge at every call, and continues each; all end in the same files.
fn killed_everywhere(sources: &Sources, target: Option<&Path>) {
    let inputs = [sources.first.clone(), sources.second.clone()];
    let begin = |name: String| {
        let path = sources.place(&name);
        if let Some(target) = target {
            copy_store(target, &path);
        }
        path
    };
    let plain = begin("plain".to_owned());
    merge(&inputs, &plain, &SystemDisk, &Workers::serial()).unwrap();
    let mut calls = 0;
    loop {
        let path = begin(format!("killed-{calls}"));
        let disk = Dying::after(calls);
        let outcome = merge(&inputs, &path, &disk, &Workers::serial());
        let died = outcome.is_err();
        assert!(
            matches!(outcome, Ok(()) | Err(Error::Io { .. })),
            "{outcome:?}"
        );
        if let Some(target) = target {
            // What was there is there, whatever else is.
            let had = StoreReader::open(target).unwrap();
            let store = StoreReader::open(&path).unwrap();
            store.verify(&Workers::serial()).unwrap();
            let ids = store.ids(&Workers::serial()).unwrap();
            let before = had.ids(&Workers::serial()).unwrap();
            assert!(ids.starts_with(&before));
            assert!(store.complete() || ids.len() >= before.len());
        } else {
            match StoreReader::open(&path) {
                Ok(store) => store.verify(&Workers::serial()).unwrap(),
                Err(Error::NotFound { .. }) => {}
                Err(error) => panic!("after {calls} calls: {error}"),
            }
        }
        merge(&inputs, &path, &SystemDisk, &Workers::serial()).unwrap();
        assert_same_files(&path, &plain);
        fs::remove_dir_all(&path).unwrap();
        if !died {
            break;
        }
        calls += 1;
    }
    assert!(calls > 30, "{calls} calls");
}

#[test]
fn a_merge_killed_at_any_call_is_finished_by_the_same_call() {
    killed_everywhere(&Sources::of(5), None);
}

#[test]
fn a_merge_into_a_finished_store_killed_at_any_call_keeps_it() {
    let sources = Sources::of(5);
    let target = sources.place("target");
    source(&target, 200, 2, &[5]);
    killed_everywhere(&sources, Some(&target));
}

#[test]
fn what_another_merge_left_is_not_taken_for_a_copy() {
    let sources = Sources::new();
    let (path, plain) = (sources.place("merged"), sources.place("plain"));
    merged(&[&sources.second, &sources.empty], &plain).unwrap();
    // Whole copies of the first source, then half of one of the second, then the second again.
    for (source, calls) in [(&sources.first, 30), (&sources.second, 6)] {
        let sources = [source.clone()];
        let outcome = merge(&sources, &path, &Dying::after(calls), &Workers::serial());
        assert!(outcome.is_err());
    }
    merged(&[&sources.second, &sources.empty], &path).unwrap();
    assert_same_files(&path, &plain);
}

#[test]
fn a_cancelled_merge_goes_on_where_it_stopped() {
    let sources = Sources::new();
    let path = sources.place("merged");
    let inputs = [sources.first.clone()];
    let cancelled = Workers::serial();
    cancelled.cancel_flag().store(true, Ordering::Relaxed);
    let outcome = merge(&inputs, &path, &SystemDisk, &cancelled);
    assert!(matches!(outcome, Err(Error::Core(_))), "{outcome:?}");
    let workers = Workers::serial();
    merge(&inputs, &path, &SystemDisk, &workers).unwrap();
    let (done, total) = workers.progress().get();
    let bytes: u64 = ["shard-00000", "shard-00001"]
        .iter()
        .flat_map(|name| ["rows", "ids"].map(|kind| format!("{name}.{kind}")))
        .map(|name| fs::metadata(path.join(name)).unwrap().len())
        .sum();
    assert_eq!((done, total), (bytes, bytes));
}

fn refused(sources: &[&Path], path: &Path) -> String {
    merged(sources, path).unwrap_err().to_string()
}

#[test]
fn stores_that_do_not_fit_are_refused_and_left_alone() {
    let sources = Sources::new();
    let path = sources.place("merged");
    let made = |name: &str, spec: StoreSpec| {
        let path = sources.place(name);
        finished(&path, spec, 1);
        path
    };
    let narrow = made("narrow", spec(Dtype::Float32, &NARROW));
    let int8 = made("int8", spec(Dtype::Int8, &WIDE));
    let mut other_model = spec(Dtype::Float32, &WIDE);
    other_model.fingerprints.insert("model".into(), "m1".into());
    let other_model = made("model", other_model);
    for (store, words) in [
        (&narrow, "column 0: \"fc1\" in the store, \"conv\" given"),
        (&int8, "dtype int8 in the store, float32 given"),
        (
            &other_model,
            "fingerprint \"model\": m1 in the store, m0 given",
        ),
    ] {
        let error = merged(&[&sources.first, store], &path).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
        assert!(error.to_string().contains(words), "{error}");
        let error = merged(&[&sources.first], store).unwrap_err();
        assert!(matches!(error, Error::Mismatch { .. }), "{error}");
    }
    assert!(!path.exists());

    let again = sources.place("again");
    source(&again, 2, 1, &[]);
    let error = merged(&[&sources.first, &again], &path).unwrap_err();
    let id = ids(2, 1)[0];
    assert!(
        matches!(error, Error::RepeatedId { id: found, .. } if found == id),
        "{error}"
    );
    let before = files(&again);
    let error = merged(&[&sources.first], &again).unwrap_err();
    assert!(matches!(error, Error::RepeatedId { .. }), "{error}");
    assert!(files(&again) == before);

    assert!(refused(&[], &path).contains("there is no source"));
    assert!(refused(&[&sources.first], &sources.first).contains("it is a source too"));
    let link = sources.place("link");
    std::os::unix::fs::symlink(&sources.first, &link).unwrap();
    assert!(refused(&[&sources.first], &link).contains("it is a source too"));

    let unfinished = sources.place("unfinished");
    let mut writer =
        StoreWriter::create(&unfinished, spec(Dtype::Float32, &WIDE), manual()).unwrap();
    append(&mut writer, 500, 1);
    let locked = merged(&[&sources.first], &unfinished).unwrap_err();
    assert!(matches!(locked, Error::Locked { .. }), "{locked}");
    writer.commit().unwrap();
    drop(writer);
    let before = files(&unfinished);
    for error in [
        refused(&[&sources.first, &unfinished], &path),
        refused(&[&sources.first], &unfinished),
    ] {
        assert!(error.contains("unfinished: finish it first"), "{error}");
    }
    assert!(files(&unfinished) == before);

    let foreign = sources.place("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("shard-00000.rows"), "x").unwrap();
    assert!(refused(&[&sources.first], &foreign).contains("not empty"));
}

#[test]
fn a_damaged_source_is_named_and_not_copied() {
    let sources = Sources::new();
    let path = sources.place("merged");
    edit(&sources.first.join("shard-00001.rows"), |bytes| {
        bytes[5000] ^= 1
    });
    let error = merged(&[&sources.second, &sources.first], &path)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("shard 1 rows chunk 0 rows 32:37 (the checksum differs)"),
        "{error}"
    );
    assert!(
        error.contains(&sources.first.display().to_string()),
        "{error}"
    );
    assert!(StoreReader::open(&path).is_err());
}

#[test]
fn a_merge_of_a_group_keeps_every_shard() {
    let folder = tempfile::tempdir().unwrap();
    let (group, path) = (folder.path().join("group"), folder.path().join("merged"));
    for writer in 0..2 {
        let options = WriterOptions {
            writer,
            writers: 2,
            ..manual()
        };
        let spec = spec(Dtype::Float32, &WIDE);
        let mut opened = StoreWriter::resume(&group, spec, options, &Workers::serial()).unwrap();
        append(&mut opened, 50 * writer as usize, 40);
        opened.finish(&[]).unwrap();
    }
    merged(&[&group], &path).unwrap();
    let (ours, theirs) = (
        StoreReader::open(&path).unwrap(),
        StoreReader::open(&group).unwrap(),
    );
    assert_eq!(
        ours.ids(&Workers::serial()).unwrap(),
        theirs.ids(&Workers::serial()).unwrap()
    );
}

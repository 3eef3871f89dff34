//! Files of scores equal the scores in memory, whenever and however a call before was stopped.

mod failed_sync;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use grass_core::parallel::Workers;
use grass_store::{
    Column, Disk, DiskFile, Dtype, StoreReader, StoreSpec, StoreWriter, SystemDisk, WriterOptions,
};

use super::{Call, Pace};
use crate::error::Error;
use crate::scorer::{Method, Scores, score};

/// Two rows a chunk.
const WIDTH: usize = 131_072;
const ROWS: usize = 5;
const COUNT: usize = 3;

/// A chunk a band, and a sync after each.
const EAGER: Pace = Pace {
    every: Duration::ZERO,
    band_bytes: u64::MAX,
    band_row_bytes: 8 * WIDTH as u64,
};

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let values = (0..count as u32).map(|index| {
        let word = (index ^ seed).wrapping_mul(2_654_435_761).rotate_left(13);
        (word.wrapping_mul(2_246_822_519) >> 8) as f32 / (1 << 23) as f32 - 1.0
    });
    values.collect()
}

/// A store of `ROWS` rows, scores for `COUNT` queries of which go to a file in its folder.
struct Case {
    folder: tempfile::TempDir,
    store: StoreReader,
    queries: Vec<f32>,
}

impl Case {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("store");
        let spec = StoreSpec {
            dtype: Dtype::Float32,
            columns: vec![Column::new("layer", WIDTH as u64, "{}").unwrap()],
            fingerprints: BTreeMap::new(),
        };
        let mut writer = StoreWriter::create(&path, spec, WriterOptions::default()).unwrap();
        let ids = [7, 3, 1 << 40, 0, 5];
        writer
            .append(&numbers(ROWS * WIDTH, 1), &ids, &Workers::serial())
            .unwrap();
        writer.finish(&[]).unwrap();
        Self {
            store: StoreReader::open(path).unwrap(),
            folder,
            queries: numbers(COUNT * WIDTH, 2),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("scores.npy")
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("scores.npy.part")
    }

    fn journal(&self) -> PathBuf {
        self.folder.path().join("scores.npy.progress")
    }

    fn call(&self) -> Call<'_> {
        Call {
            chosen: (&self.store).into(),
            queries: &self.queries,
            method: Method::GradDot,
            damping: 0.0,
        }
    }

    fn run(&self, disk: &dyn Disk) -> Result<(), Error> {
        self.call()
            .write(&self.path(), EAGER, disk, &Workers::serial())
    }

    /// The bytes of the numbers of both files.
    fn expected(&self) -> (Vec<u8>, Vec<u8>) {
        let scores = score(
            &self.store,
            &self.queries,
            Method::GradDot,
            &[],
            None,
            &Workers::serial(),
        );
        match scores.unwrap().remove(0) {
            Scores::All { ids, values } => (
                values
                    .iter()
                    .flat_map(|value| value.to_le_bytes())
                    .collect(),
                ids.iter().flat_map(|id| id.to_le_bytes()).collect(),
            ),
            Scores::Top { .. } => panic!("asked for all scores"),
        }
    }

    /// Only the finished files are there, and they hold these numbers. Then they are removed.
    fn assert_finished(&self, expected: &(Vec<u8>, Vec<u8>), context: &str) {
        let mut names: Vec<_> = fs::read_dir(self.folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(
            names,
            ["scores.ids.npy", "scores.npy", "store"],
            "{context}"
        );
        self.assert_written(expected, context);
        fs::remove_file(self.path()).unwrap();
        fs::remove_file(self.folder.path().join("scores.ids.npy")).unwrap();
    }

    /// The finished files are there, and they hold these numbers.
    fn assert_written(&self, expected: &(Vec<u8>, Vec<u8>), context: &str) {
        for (name, numbers) in [("scores.npy", &expected.0), ("scores.ids.npy", &expected.1)] {
            let bytes = fs::read(self.folder.path().join(name)).unwrap();
            assert!(bytes.starts_with(b"\x93NUMPY"), "{name}, {context}");
            assert!(bytes.ends_with(numbers), "{name}, {context}");
        }
    }

    /// What an interrupted call leaves, with the first chunk or two durable.
    fn stop_halfway(&self) {
        let disk = TestDisk::new(usize::MAX, false);
        let workers = Workers::serial();
        *disk.cancel.lock().unwrap() = Some((3, workers.cancel_flag()));
        let outcome = self.call().write(&self.path(), EAGER, &disk, &workers);
        assert!(matches!(
            outcome,
            Err(Error::Core(grass_core::Error::Interrupted))
        ));
    }
}

/// After so many more syncs, the flag is set.
type Cancel = Arc<Mutex<Option<(usize, Arc<AtomicBool>)>>>;

/// A disk that fails every call after some, like one that is full, and, if it is `lossy`, keeps what was not synced in
/// memory only, where a power cut leaves it.
#[derive(Debug)]
struct TestDisk {
    left: Arc<AtomicUsize>,
    lossy: bool,
    cancel: Cancel,
}

#[derive(Debug)]
struct TestFile {
    inner: Box<dyn DiskFile>,
    left: Arc<AtomicUsize>,
    lossy: bool,
    waiting: Mutex<Vec<Change>>,
    cancel: Cancel,
}

#[derive(Debug)]
enum Change {
    Bytes(Vec<u8>, u64),
    Length(u64),
}

fn count_down(left: &AtomicUsize) -> io::Result<()> {
    let counted = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(1)
    });
    match counted {
        Ok(_) => Ok(()),
        Err(_) => Err(io::ErrorKind::StorageFull.into()),
    }
}

impl TestDisk {
    fn new(calls: usize, lossy: bool) -> Self {
        Self {
            left: Arc::new(AtomicUsize::new(calls)),
            lossy,
            cancel: Arc::default(),
        }
    }

    fn wrap(&self, inner: Box<dyn DiskFile>) -> Box<dyn DiskFile> {
        Box::new(TestFile {
            inner,
            left: Arc::clone(&self.left),
            lossy: self.lossy,
            waiting: Mutex::default(),
            cancel: Arc::clone(&self.cancel),
        })
    }
}

impl Disk for TestDisk {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        SystemDisk.create_folder(path)
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        count_down(&self.left)?;
        Ok(self.wrap(SystemDisk.create(path)?))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        count_down(&self.left)?;
        Ok(self.wrap(SystemDisk.open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        count_down(&self.left)?;
        SystemDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        count_down(&self.left)?;
        SystemDisk.remove(path)
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        count_down(&self.left)?;
        SystemDisk.sync_folder(path)
    }
}

impl TestFile {
    fn change(&self, change: Change) -> io::Result<()> {
        match change {
            change if self.lossy => self.waiting.lock().unwrap().push(change),
            Change::Bytes(bytes, offset) => self.inner.write_all_at(&bytes, offset)?,
            Change::Length(length) => self.inner.set_length(length)?,
        }
        Ok(())
    }
}

impl DiskFile for TestFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        count_down(&self.left)?;
        // Short, as a disk may be.
        let short = bytes.len().div_ceil(2);
        self.change(Change::Bytes(bytes[..short].to_vec(), offset))?;
        Ok(short)
    }

    fn length(&self) -> io::Result<u64> {
        self.inner.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        count_down(&self.left)?;
        self.change(Change::Length(length))
    }

    fn sync(&self) -> io::Result<()> {
        count_down(&self.left)?;
        for change in self.waiting.lock().unwrap().drain(..) {
            match change {
                Change::Bytes(bytes, offset) => self.inner.write_all_at(&bytes, offset)?,
                Change::Length(length) => self.inner.set_length(length)?,
            }
        }
        if let Some((syncs, flag)) = &mut *self.cancel.lock().unwrap() {
            *syncs = syncs.saturating_sub(1);
            flag.fetch_or(*syncs == 0, Ordering::Relaxed);
        }
        self.inner.sync()
    }
}

#[test]
fn a_call_stopped_at_any_write_is_continued() {
    let case = Case::new();
    let expected = case.expected();
    let mut continued = 0;
    for lossy in [false, true] {
        for calls in 0.. {
            let context = format!("{calls} calls, lossy {lossy}");
            let stopped = match case.run(&TestDisk::new(calls, lossy)) {
                Ok(()) => break,
                Err(error) => error,
            };
            assert!(
                matches!(&stopped, Error::File { source, .. } if source.kind() == io::ErrorKind::StorageFull),
                "{context}: {stopped}"
            );
            let workers = Workers::serial();
            case.call()
                .write(&case.path(), EAGER, &SystemDisk, &workers)
                .unwrap();
            let all = case.store.rows() * case.store.layout().row_bytes() as u64;
            continued += usize::from(workers.progress().get().1 < all);
            case.assert_finished(&expected, &context);
        }
        case.assert_finished(&expected, "the last, which was not stopped");
    }
    assert!(continued > 10, "{continued}");
}

#[test]
fn an_interrupted_call_goes_on_with_the_rows_that_are_missing() {
    let case = Case::new();
    case.stop_halfway();
    let workers = Workers::with_threads(3);
    case.call()
        .write(&case.path(), EAGER, &SystemDisk, &workers)
        .unwrap();
    let (done, total) = workers.progress().get();
    let row = case.store.layout().row_bytes() as u64;
    assert!(done == total && [row, 3 * row].contains(&total), "{total}");
    case.assert_finished(&case.expected(), "interrupted");
}

#[test]
fn bands_of_any_length_give_the_same_file() {
    let case = Case::new();
    let expected = case.expected();
    let row = 4 * WIDTH as u64;
    for (band_row_bytes, threads) in [(row, 1), (3 * row, 2), (4 * row, 3), (u64::MAX, 2)] {
        let pace = Pace {
            band_row_bytes,
            ..EAGER
        };
        let workers = Workers::with_threads(threads);
        case.call()
            .write(&case.path(), pace, &SystemDisk, &workers)
            .unwrap();
        case.assert_finished(&expected, &format!("{band_row_bytes} bytes a band"));
    }
}

#[test]
fn a_damaged_journal_proves_less_and_never_too_much() {
    let case = Case::new();
    let expected = case.expected();
    case.stop_halfway();
    let kept: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(case.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    let restore = |journal: &[u8]| {
        for (path, bytes) in &kept {
            fs::write(path, bytes).unwrap();
        }
        fs::write(case.journal(), journal).unwrap();
    };
    let whole = fs::read(case.journal()).unwrap();
    assert!(whole.len() > 44 && kept.len() == 3);
    for length in 0..whole.len() {
        restore(&whole[..length]);
        case.run(&SystemDisk).unwrap();
        case.assert_finished(&expected, &format!("{length} bytes"));
        let mut flipped = whole.clone();
        flipped[length] ^= 1 << (length % 8);
        restore(&flipped);
        case.run(&SystemDisk).unwrap();
        case.assert_finished(&expected, &format!("byte {length} flipped"));
    }
}

#[test]
fn a_part_file_of_another_length_proves_nothing_whenever_the_next_call_stops() {
    let case = Case::new();
    let expected = case.expected();
    for name in ["scores.npy.part", "scores.ids.npy.part"] {
        // Beginning anew takes some of the first calls.
        for calls in 0..12 {
            case.stop_halfway();
            let path = case.folder.path().join(name);
            let file = fs::File::options().write(true).open(&path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 1).unwrap();
            case.run(&TestDisk::new(calls, calls % 2 == 0)).unwrap_err();
            case.run(&SystemDisk).unwrap();
            case.assert_finished(&expected, &format!("{name}, {calls} calls"));
        }
    }
}

#[test]
fn the_unfinished_file_of_another_call_is_kept_until_it_is_deleted() {
    let case = Case::new();
    case.stop_halfway();
    let left = fs::read(case.part()).unwrap();
    let mut other = case.queries.clone();
    other[WIDTH] += 0.5;
    let others = [
        Call {
            queries: &other,
            ..case.call()
        },
        Call {
            method: Method::GradCos,
            ..case.call()
        },
        Call {
            queries: &case.queries[WIDTH..],
            ..case.call()
        },
    ];
    for other in &others {
        let outcome = other.write(&case.path(), EAGER, &SystemDisk, &Workers::serial());
        assert!(matches!(outcome, Err(Error::OtherFile { path }) if path == case.part()));
    }
    assert_eq!(fs::read(case.part()).unwrap(), left);
    fs::remove_file(case.part()).unwrap();
    others[0]
        .write(&case.path(), EAGER, &SystemDisk, &Workers::serial())
        .unwrap();
    case.run(&SystemDisk).unwrap();
    case.assert_finished(&case.expected(), "after the other's was replaced");
}

#[test]
fn older_files_are_not_taken_for_those_of_a_call_whose_parts_were_deleted() {
    let case = Case::new();
    let expected = case.expected();
    let mut other = case.queries.clone();
    other[WIDTH] += 0.5;
    let older = Call {
        queries: &other,
        ..case.call()
    };
    let mut stopped = 0;
    for calls in 0.. {
        older
            .write(&case.path(), EAGER, &SystemDisk, &Workers::serial())
            .unwrap();
        let outcome = case.run(&TestDisk::new(calls, false));
        for name in ["scores.npy.part", "scores.ids.npy.part"] {
            let path = case.folder.path().join(name);
            if path.exists() {
                fs::remove_file(path).unwrap();
            }
        }
        case.run(&SystemDisk).unwrap();
        case.assert_finished(&expected, &format!("{calls} calls"));
        if outcome.is_ok() {
            break;
        }
        stopped += 1;
    }
    assert!(stopped > 10, "{stopped}");
}

#[test]
fn a_call_that_fails_before_any_score_leaves_no_file() {
    let case = Case::new();
    let mut queries = case.queries.clone();
    queries[5] = f32::NAN;
    let call = Call {
        queries: &queries,
        ..case.call()
    };
    let outcome = call.write(&case.path(), EAGER, &SystemDisk, &Workers::serial());
    assert!(matches!(outcome, Err(Error::NonFiniteQuery { .. })));
    assert_eq!(fs::read_dir(case.folder.path()).unwrap().count(), 1);
}

#[test]
fn a_file_that_is_being_written_is_left_alone() {
    let case = Case::new();
    let other = fs::File::create(case.journal()).unwrap();
    other.lock().unwrap();
    assert!(matches!(case.run(&SystemDisk), Err(Error::BusyFile { .. })));
    drop(other);
    case.run(&SystemDisk).unwrap();
    fs::create_dir(case.folder.path().join("a.npy")).unwrap();
    let path = case.folder.path().join("a.npy");
    let outcome = case
        .call()
        .write(&path, EAGER, &SystemDisk, &Workers::serial());
    assert!(matches!(outcome, Err(Error::File { .. })));
}

//! A repair that is stopped at any call to the disk leaves the store as it was, or is ended by the next one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use common::{NARROW, assert_same_files, copy_store, edit, files, ids, manual, much_damaged, spec};
use grass_core::parallel::Workers;
use grass_store::{
    Disk, DiskFile, Dtype, Error, Repaired, StoreReader, StoreWriter, SystemDisk, repair, verify,
};

fn repaired(path: &Path) -> Repaired {
    repair(path, &SystemDisk, &Workers::serial()).unwrap()
}

fn sorted(mut ids: Vec<u64>) -> Vec<u64> {
    ids.sort_unstable();
    ids
}

/// A disk that stops working at a call, whose bytes it writes by half.
#[derive(Debug, Clone)]
struct Dying {
    calls: Arc<AtomicUsize>,
    last: usize,
}

impl Dying {
    fn after(last: usize) -> Self {
        Self {
            calls: Arc::default(),
            last,
        }
    }

    fn call(&self) -> io::Result<()> {
        match self.calls.fetch_add(1, Relaxed) < self.last {
            true => Ok(()),
            false => Err(io::ErrorKind::StorageFull.into()),
        }
    }
}

#[derive(Debug)]
struct DyingFile(Box<dyn DiskFile>, Dying);

impl Disk for Dying {
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.call().and_then(|()| SystemDisk.create_folder(path))
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.call()?;
        Ok(Box::new(DyingFile(SystemDisk.create(path)?, self.clone())))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.call()?;
        Ok(Box::new(DyingFile(SystemDisk.open(path)?, self.clone())))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.call().and_then(|()| SystemDisk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.call().and_then(|()| SystemDisk.remove(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.call().and_then(|()| SystemDisk.sync_folder(path))
    }
}

impl DiskFile for DyingFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        if let Err(error) = self.1.call() {
            self.0.write_at(&bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        self.0.write_at(bytes, offset)
    }

    fn length(&self) -> io::Result<u64> {
        self.0.length()
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.1.call().and_then(|()| self.0.set_length(length))
    }

    fn sync(&self) -> io::Result<()> {
        self.1.call().and_then(|()| self.0.sync())
    }
}

#[test]
fn a_repair_that_dies_at_any_call_is_ended_by_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let path = much_damaged(folder.path());
    let before = files(&path);
    let whole = folder.path().join("whole");
    copy_store(&path, &whole);
    let expected = repaired(&whole);
    assert_eq!(
        (
            expected.kept_rows,
            expected.dropped_rows,
            expected.unknown_ids
        ),
        (3, 5, 2)
    );
    assert_eq!(expected.lost_ids, sorted(ids(3, 3)));
    let (mut untouched, mut decided) = (0, 0);
    for last in 0.. {
        let at = folder.path().join(last.to_string());
        copy_store(&path, &at);
        let outcome = repair(&at, &Dying::after(last), &Workers::serial());
        if let Ok(done) = outcome {
            assert_eq!(done, expected);
            assert_same_files(&at, &whole);
            break;
        }
        assert!(matches!(outcome, Err(Error::Io { .. })), "{outcome:?}");
        let mut left = files(&at);
        match left.contains_key("repair.json") {
            false if left == files(&whole) => decided += 1,
            false => {
                left.retain(|name, _| !name.ends_with(".repair") && !name.ends_with(".tmp"));
                assert!(left == before, "call {last}");
                untouched += 1;
            }
            true => {
                let words = "cannot be used: a repair was interrupted: run grass-rs repair again";
                let error = StoreReader::open(&at).unwrap_err().to_string();
                assert!(error.ends_with(words), "{error}");
                assert!(verify(&at, &Workers::serial()).is_err());
                let narrow = spec(Dtype::Int8, &NARROW);
                let writer = StoreWriter::resume(&at, narrow.clone(), manual(), &Workers::serial());
                assert!(matches!(writer, Err(Error::Repair { .. })));
                let writer = StoreWriter::create(&at, narrow, manual());
                assert!(writer.is_err());
                decided += 1;
            }
        }
        let again = repaired(&at);
        // Dead between the removal of the journal and its end, the repair was done.
        assert!(again == expected || left == files(&whole), "call {last}");
        assert_same_files(&at, &whole);
        fs::remove_dir_all(&at).unwrap();
    }
    assert!(untouched > 10 && decided > 10, "{untouched} {decided}");
}

#[test]
fn a_damaged_journal_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = much_damaged(folder.path());
    for last in 0.. {
        let _ = repair(&path, &Dying::after(last), &Workers::serial());
        if path.join("repair.json").exists() {
            break;
        }
    }
    edit(&path.join("repair.json"), |bytes| bytes[40] ^= 1);
    let before = files(&path);
    let error = repair(&path, &SystemDisk, &Workers::serial())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("its journal repair.json is damaged: restore the store"),
        "{error}"
    );
    assert!(files(&path) == before);
}

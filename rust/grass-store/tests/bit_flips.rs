//! Every bit and every length of a small store: found, or harmless by construction.
//!
//! A case is found if opening the store fails, or if `verify` and a full read of checked chunks and ids
//! both do. What is read without complaint must be right to the last byte. Harmless are
//! - the copy of the manifest while the manifest is whole, and the file of the lock;
//! - of a shard that an unfinished store is writing: bytes after the committed part, and the end of the log,
//!   for a last record that is not whole is what a crash leaves. Then its rows are not there, and are cached again.
//!
//! GRASS_TEST_LONG=1 flips every bit of the headers, too, and repairs after every case.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use common::forge::forge;
use common::{NARROW, append, assert_same_files, copy_store, files, manual, spec};
use grass_core::parallel::Workers;
use grass_store::{Dtype, Error, StoreReader, StoreSpec, StoreWriter, SystemDisk, repair, verify};
use serde_json::json;
use tempfile::TempDir;

/// What a reader may take at once whatever the files: a piece of a chunk and the text of an error.
const MOST_BYTES: usize = 2 << 20;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, which remembers the largest block that a thread asked for.
struct Watching;

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: every call goes to the system's allocator unchanged; watching allocates nothing.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's layout, as the caller must give it.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LARGEST.set(LARGEST.get().max(size));
        // SAFETY: the block came from this allocator, hence from the system's.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as in `realloc`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

fn long() -> bool {
    std::env::var_os("GRASS_TEST_LONG").is_some()
}

/// In memory where there is such a place: stores are written by the thousand.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").unwrap_or_else(|_| tempfile::tempdir().unwrap())
}

fn narrow() -> StoreSpec {
    spec(Dtype::Int8, &NARROW)
}

/// Two columns; shard 0 with 3 rows, shard 1 with 2 commits of a row, skipped ids if it is finished.
fn make(path: &Path, spec: StoreSpec, first: usize, finish: bool) {
    let mut writer = StoreWriter::create(path, spec.clone(), manual()).unwrap();
    append(&mut writer, first, 3);
    writer.finish(&[]).unwrap();
    drop(writer);
    // A finished store goes on in a new shard.
    let mut writer = StoreWriter::resume(path, spec, manual(), &Workers::serial()).unwrap();
    for row in [3, 4] {
        append(&mut writer, first + row, 1);
        writer.commit().unwrap();
    }
    if finish {
        writer.finish(&[7, 8]).unwrap();
    }
}

/// What a store holds: ids and values of its rows in order, and what else its manifest says.
#[derive(Debug, Clone, PartialEq)]
struct Content {
    rows: Vec<(u64, Vec<f32>)>,
    complete: bool,
    skipped_ids: Vec<u64>,
}

impl Content {
    fn first(&self, rows: usize) -> Self {
        Self {
            rows: self.rows[..rows].to_vec(),
            ..self.clone()
        }
    }
}

/// Reads all of a store as scoring does: every chunk and the ids with their checksums.
fn read(path: &Path) -> Result<Content, Error> {
    let workers = Workers::serial();
    let reader = StoreReader::open(path)?;
    for chunk in reader.chunks(0..reader.rows()) {
        reader.checked_chunk(&chunk, Vec::new(), &workers)?;
    }
    let ids = reader.ids(&workers)?;
    let numbers: Vec<u64> = (0..reader.rows()).collect();
    let values = reader.read_rows(&numbers, &workers)?;
    let width = reader.layout().width();
    let rows = ids
        .into_iter()
        .zip(values.chunks(width).map(<[f32]>::to_vec));
    Ok(Content {
        rows: rows.collect(),
        complete: reader.complete(),
        skipped_ids: reader.skipped_ids().to_vec(),
    })
}

/// What opening, reading and verifying say together: what was read, or where the damage is.
fn judge(path: &Path, case: &str) -> Result<Content, String> {
    let size: usize = fs::read_dir(path)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len() as usize)
        .sum();
    LARGEST.set(0);
    let verified = verify(path, &Workers::serial());
    let read = read(path);
    let largest = LARGEST.get();
    assert!(
        largest <= 2 * size + MOST_BYTES,
        "{case}: a block of {largest} bytes for {size}"
    );
    assert_eq!(
        verified.is_ok(),
        read.is_ok(),
        "{case}: {verified:?}, {read:?}"
    );
    read.map_err(|error| {
        let loud = matches!(
            error,
            Error::Corrupt { .. }
                | Error::Format { .. }
                | Error::NotFound { .. }
                | Error::Repair { .. }
        );
        assert!(loud, "{case}: {error}");
        error.to_string()
    })
}

/// A store, an untouched copy of it, and others to take files from.
struct Stores {
    folder: TempDir,
    path: PathBuf,
    truth: Content,
    bytes: BTreeMap<String, Vec<u8>>,
    finished: bool,
}

impl Stores {
    fn new(finished: bool) -> Self {
        let folder = folder();
        let path = folder.path().join("store");
        make(&path, narrow(), 0, finished);
        copy_store(&path, &folder.path().join("good"));
        make(&folder.path().join("same plan"), narrow(), 100, finished);
        let mut other = narrow();
        other
            .fingerprints
            .insert("plan".to_owned(), "p1".to_owned());
        make(&folder.path().join("other plan"), other, 200, finished);
        let truth = read(&path).unwrap();
        assert_eq!(truth.rows.len(), 5);
        let bytes = files(&path);
        Self {
            folder,
            path,
            truth,
            bytes,
            finished,
        }
    }

    fn good(&self) -> PathBuf {
        self.folder.path().join("good")
    }

    fn restore(&self) {
        for name in files(&self.path).keys() {
            fs::remove_file(self.path.join(name)).unwrap();
        }
        for (name, bytes) in &self.bytes {
            fs::write(self.path.join(name), bytes).unwrap();
        }
    }

    /// Whether a file is of the shard that the store is writing.
    fn open(&self, name: &str) -> bool {
        !self.finished && name.starts_with("shard-00001")
    }

    /// The rows that may be read from a store in which `name` differs from byte `place` on;
    /// `None` if it must be found.
    fn harmless(&self, name: &str, place: usize) -> Option<usize> {
        if name == "manifest.copy.json" {
            return Some(5);
        }
        if !self.open(name) {
            return None;
        }
        let committed = self.bytes[name].len();
        match name.ends_with(".log") {
            // Records whose bytes are all before it are there; a later record tells of this one.
            true if place >= committed => Some(5),
            true if place >= committed - 20 => Some(4),
            true => None,
            false => (place >= committed).then_some(5),
        }
    }

    /// Checks a case, and what a repair makes of it.
    fn check(&self, case: &str, harmless: Option<usize>, repaired: bool) {
        match (judge(&self.path, case), harmless) {
            (Ok(content), Some(rows)) => assert_eq!(content, self.truth.first(rows), "{case}"),
            (Err(_), None) => {}
            (Ok(_), None) => panic!("{case}: not found"),
            (Err(error), Some(_)) => panic!("{case}: {error}"),
        }
        if repaired {
            self.check_repair(case);
        }
    }

    /// Only right rows are left after a repair, in their order, and the lost ones are told.
    fn check_repair(&self, case: &str) {
        let done = repair(&self.path, &SystemDisk, &Workers::serial());
        let done = done.unwrap_or_else(|error| panic!("{case}: {error}"));
        let left = judge(&self.path, case).unwrap();
        let mut truth = self.truth.rows.iter();
        for row in &left.rows {
            assert!(truth.any(|right| right == row), "{case}: {row:?}");
        }
        let kept: Vec<u64> = left.rows.iter().map(|(id, _)| *id).collect();
        assert_eq!(done.kept_rows as usize, kept.len(), "{case}");
        for id in &done.lost_ids {
            assert!(
                self.truth.rows.iter().any(|(right, _)| right == id),
                "{case}: id {id}"
            );
            assert!(!kept.contains(id), "{case}: id {id}");
        }
        let known = done.lost_ids.len() as u64 + done.unknown_ids;
        assert_eq!(known, done.dropped_rows, "{case}");
        assert_eq!(
            left.complete,
            self.finished && done.dropped_rows == 0,
            "{case}"
        );
        let files_left = files(&self.path);
        let again = repair(&self.path, &SystemDisk, &Workers::serial()).unwrap();
        assert_eq!(
            (again.kept_rows, again.dropped_rows),
            (done.kept_rows, 0),
            "{case}"
        );
        assert!(files(&self.path) == files_left, "{case}");
    }
}

fn flip(path: &Path, place: usize, bit: u8) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, place as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 1 << bit], place as u64)
        .unwrap();
}

/// Places of a file that the short run flips: of a header its fields, its checksum, and some of the zeros between.
fn places(name: &str, length: usize) -> Vec<usize> {
    let of_header = |place: &usize| {
        long()
            || !name.ends_with(".rows")
            || *place < 60
            || *place >= 4092
            || place.is_multiple_of(97)
    };
    (0..length).filter(of_header).collect()
}

#[test]
fn every_bit() {
    let start = Instant::now();
    let mut flips = 0;
    let mut repairs = 0;
    for finished in [true, false] {
        let stores = Stores::new(finished);
        for (name, bytes) in &stores.bytes {
            let path = stores.path.join(name);
            for place in places(name, bytes.len()) {
                for bit in 0..8 {
                    let case = format!("bit {bit} of byte {place} of {name}, finished: {finished}");
                    flip(&path, place, bit);
                    flips += 1;
                    let repaired = long() || (place + usize::from(bit)) % 16 == 3;
                    let harmless = stores.harmless(name, place);
                    stores.check(&case, harmless, repaired);
                    if !repaired {
                        flip(&path, place, bit);
                        continue;
                    }
                    repairs += 1;
                    // All but rows and ids is known from the rest.
                    let known = finished
                        && !(name.ends_with(".ids") || name.ends_with(".rows") && place >= 4096);
                    if known {
                        assert_same_files(&stores.path, &stores.good());
                    }
                    stores.restore();
                }
            }
        }
        assert_same_files(&stores.path, &stores.good());
    }
    assert!(flips > 10_000, "{flips}");
    if long() {
        let line = json!({"name": "bit_flips", "seconds": start.elapsed().as_secs_f64(), "flips": flips, "repairs": repairs});
        eprintln!("GRASS-LONG {line}");
    }
}

#[test]
fn a_flipped_bit_of_a_chunk_is_named_with_shard_chunk_and_rows() {
    let stores = Stores::new(false);
    for (name, place, part, rows) in [
        ("shard-00000.rows", 4096, "shard 0 rows chunk 0", "0:3"),
        ("shard-00000.ids", 17, "shard 0 ids chunk 0", "0:3"),
        ("shard-00001.rows", 4096 + 20, "shard 1 rows chunk 0", "4:5"),
        ("shard-00001.ids", 3, "shard 1 ids chunk 0", "3:4"),
    ] {
        flip(&stores.path.join(name), place, 5);
        let error = judge(&stores.path, name).unwrap_err();
        assert!(
            error.contains(&format!("{part} rows {rows} (the checksum differs)")),
            "{error}"
        );
        stores.restore();
    }
}

#[test]
fn every_length() {
    for finished in [true, false] {
        let stores = Stores::new(finished);
        for (name, bytes) in &stores.bytes {
            let path = stores.path.join(name);
            for length in places(name, bytes.len()) {
                let case = format!("{name} cut to {length} bytes, finished: {finished}");
                fs::write(&path, &bytes[..length]).unwrap();
                // As if the records after it had never been committed.
                let log = stores.open(name) && name.ends_with(".log");
                let harmless = match log {
                    true => Some(3 + length / 20),
                    false => stores.harmless(name, length),
                };
                let repaired = long() || length % 8 == 3;
                stores.check(&case, harmless, repaired);
                match repaired {
                    true => stores.restore(),
                    false => fs::write(&path, bytes).unwrap(),
                }
            }
            for (added, what) in [(vec![b'x'], "a byte"), (vec![0; 4096], "zeros")] {
                let case = format!("{name} with {what} more, finished: {finished}");
                fs::write(&path, [&bytes[..], &added].concat()).unwrap();
                // More bytes of log than its rows can have records are no crash's.
                let records = stores.open(name) && name.ends_with(".log") && added.len() > 20;
                let harmless = stores.harmless(name, bytes.len()).filter(|_| !records);
                stores.check(&case, harmless, true);
                stores.restore();
            }
        }
    }
}

#[test]
fn every_file_removed() {
    for finished in [true, false] {
        let stores = Stores::new(finished);
        for name in stores.bytes.keys() {
            let harmless = (name == "manifest.copy.json").then_some(5);
            fs::remove_file(stores.path.join(name)).unwrap();
            stores.check(
                &format!("{name} removed, finished: {finished}"),
                harmless,
                true,
            );
            stores.restore();
        }
        // A crash may leave anything in the lock's file, and nothing reads more of it than a number.
        fs::write(stores.path.join(".lock"), [0xff; 100]).unwrap();
        stores.check("a lock's file with other bytes", Some(5), true);
    }
}

#[test]
fn every_file_swapped_with_that_of_another_store() {
    for finished in [true, false] {
        let stores = Stores::new(finished);
        for other in ["same plan", "other plan"] {
            for name in stores.bytes.keys() {
                let case = format!("{name} of {other}, finished: {finished}");
                let harmless = (name == "manifest.copy.json").then_some(5);
                let theirs = stores.folder.path().join(other).join(name);
                fs::copy(theirs, stores.path.join(name)).unwrap();
                stores.check(&case, harmless, true);
                if name.starts_with("manifest") {
                    assert_same_files(&stores.path, &stores.good());
                }
                stores.restore();
            }
            // All files of a shard that the manifest lists.
            for kind in ["rows", "ids", "log"] {
                let name = format!("shard-00000.{kind}");
                let theirs = stores.folder.path().join(other).join(&name);
                fs::copy(theirs, stores.path.join(&name)).unwrap();
            }
            stores.check(&format!("shard 0 of {other}"), None, true);
            let left = read(&stores.path).unwrap();
            assert_eq!(left.rows, stores.truth.rows[3..], "{other}");
            stores.restore();
        }
    }
}

#[test]
fn a_shard_under_another_number() {
    for finished in [true, false] {
        let stores = Stores::new(finished);
        let kinds = ["rows", "ids", "log"];
        for moved in [&kinds[..], &kinds[..1], &kinds[1..2], &kinds[2..]] {
            for kind in moved {
                let from = stores.path.join(format!("shard-00001.{kind}"));
                fs::rename(from, stores.path.join(format!("shard-00002.{kind}"))).unwrap();
            }
            let case = format!("{moved:?} of shard 1 named 2, finished: {finished}");
            stores.check(&case, None, true);
            stores.restore();
        }
    }
}

#[test]
fn no_count_takes_more_memory_than_the_files_have() {
    let huge = [1u64 << 20, 1 << 32, 1 << 40, 1 << 55, 1 << 61, u64::MAX];
    for count in huge {
        for finished in [true, false] {
            let stores = Stores::new(finished);
            for field in ["rows", "log_crc32", "number"] {
                forge(&stores.path, |value| {
                    value["shards"][0][field] = count.into()
                });
                stores.check(&format!("{field} {count}"), None, false);
                stores.restore();
            }
            forge(&stores.path, |value| {
                value["columns"][1]["width"] = count.into()
            });
            stores.check(&format!("width {count}"), None, false);
            stores.restore();
            let mut record = [0; 20];
            record[..8].copy_from_slice(&count.to_le_bytes());
            let checksum = crc32fast::hash(&record[..16]);
            record[16..].copy_from_slice(&checksum.to_le_bytes());
            fs::write(stores.path.join("shard-00001.log"), record).unwrap();
            stores.check(&format!("a record of {count} rows"), None, false);
        }
    }
}

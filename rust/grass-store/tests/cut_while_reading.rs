//! A file that is cut short while a reader has it open is an error, never a signal.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{damage, store};
use grass_core::parallel::Workers;
use grass_store::{Error, StoreReader};

fn set_length(path: &Path, name: &str, length: u64) {
    let file = OpenOptions::new()
        .write(true)
        .open(path.join(name))
        .unwrap();
    file.set_len(length).unwrap();
}

#[test]
fn between_opening_and_reading() {
    let (_folder, path) = store();
    let reader = StoreReader::open(&path).unwrap();
    let workers = Workers::serial();
    let chunks: Vec<_> = reader.chunks(0..reader.rows()).collect();
    let held = reader
        .checked_chunk(&chunks[1], Vec::new(), &workers)
        .unwrap();
    // In the middle of the second chunk, in the header, and to nothing.
    for (length, whole) in [(4096 + 20 * 65_536, 1), (100, 0), (0, 0)] {
        set_length(&path, "shard-00000.rows", length);
        for (number, chunk) in chunks[..2].iter().enumerate() {
            let read = reader.checked_chunk(chunk, Vec::new(), &workers);
            assert_eq!(read.is_ok(), number < whole, "{length} {number}");
            if let Err(error) = read {
                let found = damage(Err(error));
                let rows = format!(
                    "shard 0 rows chunk {number} rows {}:{}",
                    16 * number,
                    16 * number + 16
                );
                assert!(found[0].starts_with(&rows), "{found:?}");
            }
        }
        assert!(matches!(
            reader.read_rows(&[25], &workers),
            Err(Error::Corrupt { .. })
        ));
        assert!(!damage(reader.verify(&workers)).is_empty());
    }
    // What was read before the cut is still what it was.
    assert!(held.row(31).iter().any(|&byte| byte != 0));
    set_length(&path, "shard-00001.ids", 8);
    let found = damage(reader.ids(&workers).map(|_| ()));
    assert!(
        found[0].starts_with("shard 1 ids chunk 0 rows 32:37"),
        "{found:?}"
    );
}

#[test]
fn by_another_thread_while_chunks_are_read() {
    let (_folder, path) = store();
    let reader = StoreReader::open(&path).unwrap();
    let workers = Workers::serial();
    let chunks: Vec<_> = reader.chunks(0..reader.rows()).collect();
    let (cut, read) = (AtomicBool::new(false), AtomicBool::new(false));
    let found = thread::scope(|scope| {
        scope.spawn(|| {
            // Not before a chunk was read whole.
            while !read.load(Ordering::Acquire) {
                thread::yield_now();
            }
            for length in (0..4096 + 32 * 65_536).rev().step_by(9_973) {
                set_length(&path, "shard-00000.rows", length);
            }
            cut.store(true, Ordering::Release);
        });
        let mut found = Vec::new();
        loop {
            let last = cut.load(Ordering::Acquire);
            for chunk in &chunks {
                match reader.checked_chunk(chunk, Vec::new(), &workers) {
                    Ok(chunk) => {
                        // Before anything that may fail: the other thread waits for it.
                        read.store(true, Ordering::Release);
                        let mut rows = chunk.rows();
                        assert!(rows.all(|row| chunk.row(row).iter().any(|&byte| byte != 0)));
                    }
                    Err(error) => found.extend(damage(Err(error))),
                }
            }
            if last {
                return found;
            }
        }
    });
    assert!(found.len() >= 2, "{found:?}");
    assert!(
        found
            .iter()
            .all(|place| place.starts_with("shard 0 rows chunk")),
        "{found:?}"
    );
}

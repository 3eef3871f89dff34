//! What holds for any bytes that a store's readers are given, for fuzzing and for property tests.
//!
//! Each function panics where something does not hold. Checksums keep random bytes out of the
//! readers behind them, so each also tries the same bytes with checksums that fit, as a liar would write them.

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use grass_core::parallel::Workers;
use serde_json::Value;

use crate::checksum::crc32;
use crate::commit_log::{self, RECORD_BYTES, Record};
use crate::dtype::Dtype;
use crate::error::Error;
use crate::header::{self, HEADER_BYTES, Header};
use crate::layout::{Column, Layout};
use crate::manifest::{self, CHECKSUM_KEY, ClosedShard, Manifest, with_checksum};
use crate::paths::{self, ShardPaths};
use crate::{StoreReader, SystemDisk, repair, repair_journal, verify};

const DTYPES: [Dtype; 4] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16, Dtype::Int8];

/// A header is accepted only if it is, to the last byte, the one that its fields make.
///
/// # Panics
/// If that does not hold.
pub fn header(bytes: &[u8]) {
    let mut header = [0; HEADER_BYTES];
    let length = bytes.len().min(HEADER_BYTES);
    header[..length].copy_from_slice(&bytes[..length]);
    check_header(&header);
    let checksum = crc32(&header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    check_header(&header);
}

fn check_header(bytes: &[u8; HEADER_BYTES]) {
    let mut row_bytes = [0; 8];
    row_bytes.copy_from_slice(&bytes[16..24]);
    let mut shard = [0; 4];
    shard.copy_from_slice(&bytes[24..28]);
    let mut identity = [0; 32];
    identity.copy_from_slice(&bytes[28..60]);
    for dtype in DTYPES {
        let expected = Header {
            dtype,
            row_bytes: u64::from_le_bytes(row_bytes),
            shard: u32::from_le_bytes(shard),
            identity,
        };
        let same = expected.to_bytes() == *bytes;
        assert_eq!(expected.check(bytes).is_ok(), same);
        assert!(header::is_whole(bytes) || !same);
    }
}

/// A manifest that is read is written as the same bytes, and all that it says can be counted.
///
/// # Panics
/// If that does not hold.
pub fn manifest(bytes: &[u8]) {
    check_manifest(bytes);
    if let Some(signed) = signed(bytes) {
        check_manifest(&signed);
    }
    // The journal of a repair is read the same way.
    for bytes in [Some(bytes.to_vec()), signed(bytes)].into_iter().flatten() {
        if let Some(journal) = repair_journal::parse(&bytes, Path::new("store")) {
            check_manifest(journal.manifest.as_bytes());
        }
    }
}

/// A JSON object in canonical form with a checksum that fits.
fn signed(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(bytes).ok()?;
    value.as_object_mut()?.remove(CHECKSUM_KEY);
    Some(with_checksum(value))
}

fn check_manifest(bytes: &[u8]) {
    let Ok(manifest) = manifest::parse(bytes, Path::new("store")) else {
        return;
    };
    assert_eq!(manifest.to_bytes().expect("it was JSON"), bytes);
    let mut numbers = manifest.shards.iter().map(|shard| shard.number);
    assert!(numbers.clone().is_sorted_by(|left, right| left < right));
    assert!(numbers.all(|number| number <= manifest::MAX_SHARD));
    let row_bytes = manifest.layout.row_bytes() as u64;
    let sizes = manifest.shards.iter().map(|shard| {
        assert!(shard.rows > 0);
        shard.rows.checked_mul(row_bytes.max(8)).expect("a bound")
    });
    sizes
        .reduce(|left, right| left.checked_add(right).expect("a bound"))
        .unwrap_or_default();
    assert!(manifest.layout.chunk_rows().is_power_of_two());
}

/// Records that are read are the first bytes of the log, ascend, and keep to their chunks, also
/// when they are compacted. The first byte is the power of two of rows in a chunk.
///
/// # Panics
/// If that does not hold.
pub fn commit_log(bytes: &[u8]) {
    let Some((power, bytes)) = bytes.split_first() else {
        return;
    };
    // Rows of a byte are the most.
    let chunk_rows = 1 << (power % 21);
    check_log(bytes, chunk_rows);
    check_log(&signed_log(bytes), chunk_rows);
}

/// A log whose records have checksums of their own that fit.
fn signed_log(bytes: &[u8]) -> Vec<u8> {
    let mut signed = bytes.to_vec();
    let (records, _) = signed.as_chunks_mut::<RECORD_BYTES>();
    for record in records {
        let checksum = crc32(&record[..RECORD_BYTES - 4]);
        record[RECORD_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
    }
    signed
}

fn check_log(bytes: &[u8], chunk_rows: u64) {
    let Ok(records) = commit_log::parse(bytes, chunk_rows) else {
        return;
    };
    assert!(bytes.starts_with(&commit_log::to_bytes(&records)));
    let mut rows = 0;
    for record in &records {
        assert!(record.rows > rows && rows / chunk_rows == (record.rows - 1) / chunk_rows);
        rows = record.rows;
    }
    let compact = commit_log::compacted(&records, 3, chunk_rows);
    assert_eq!(compact.last().map_or(0, |record| record.rows), rows);
    assert_eq!(compact.len() as u64, rows.div_ceil(chunk_rows));
    let written = commit_log::to_bytes(&compact);
    assert_eq!(commit_log::parse(&written, chunk_rows), Ok(compact));
}

/// A whole store of one shard from bytes: a byte of switches, the lengths of manifest, log and ids
/// as u16, and then these files one after the other; what is left are the rows. The files are
/// made in `folder`, which must be there and is emptied. Opening, verifying, reading and repairing agree with one another.
///
/// # Panics
/// If that does not hold, or the folder cannot be written.
pub fn store(folder: &Path, bytes: &[u8]) {
    let Some((&switches, rest)) = bytes.split_first() else {
        return;
    };
    let on = |bit: u32| switches >> bit & 1 == 1;
    let (lengths, mut rest) = rest.split_at(rest.len().min(6));
    let mut take = |place: usize| {
        let length = lengths.get(2 * place..2 * place + 2);
        let length = length.map_or(0, |bytes| {
            usize::from(bytes[0]) | usize::from(bytes[1]) << 8
        });
        let (part, left) = rest.split_at(rest.len().min(length));
        rest = left;
        part.to_vec()
    };
    let (mut text, mut log, ids) = (take(0), take(1), take(2));
    let rows = rest;
    let mut known = Manifest::new(narrow().clone(), [("plan".into(), "p".into())].into());
    if on(0) {
        log = fitting_log(&log, rows, &ids, narrow().row_bytes());
    }
    if on(1) {
        log = signed_log(&log);
    }
    if on(2) {
        let count = log.len() / RECORD_BYTES * RECORD_BYTES;
        let (whole, _) = log[..count].as_chunks();
        let records: Vec<Record> = whole.iter().filter_map(Record::from_bytes).collect();
        known.shards.extend(records.last().map(|last| ClosedShard {
            log_crc32: commit_log::checksum(&records),
            number: 0,
            rows: last.rows.clamp(1, 1 << 40),
        }));
        known.complete = on(3);
    }
    if on(4) {
        text = known.to_bytes().expect("plain columns");
    } else if on(5) {
        text = signed(&text).unwrap_or(text);
    }
    let mut row_file = known.header(0).to_bytes().to_vec();
    if on(6) {
        row_file.clear();
    }
    row_file.extend_from_slice(rows);
    for entry in fs::read_dir(folder).expect("a folder") {
        fs::remove_file(entry.expect("an entry").path()).expect("a file");
    }
    let paths = ShardPaths::new(folder, 0);
    for (path, bytes) in [
        (&paths::manifest(folder), &text),
        (&paths.log, &log),
        (&paths.ids, &ids),
        (&paths.rows, &row_file),
    ] {
        fs::write(path, bytes).expect("a folder that can be written");
    }
    if on(7) {
        fs::write(paths::manifest_copy(folder), &text).expect("a folder that can be written");
    }
    check_store(folder);
}

/// Rows of 8 numbers in 16 bytes.
fn narrow() -> &'static Layout {
    static NARROW: OnceLock<Layout> = OnceLock::new();
    NARROW.get_or_init(|| {
        let column = |name, width| Column::new(name, width, "{}").expect("an object");
        let columns = vec![column("fc1", 3), column("fc2", 5)];
        Layout::new(Dtype::Int8, columns).expect("short rows")
    })
}

/// A log with the counts of another, and checksums of the rows and ids that are there.
fn fitting_log(log: &[u8], rows: &[u8], ids: &[u8], row_bytes: usize) -> Vec<u8> {
    let mut start = 0;
    let (counts, _) = log.as_chunks::<RECORD_BYTES>();
    let fitting = counts.iter().map(|record| {
        // Small steps: most counts would be absurd, which the log's own target covers.
        let end = start + usize::from(record[0] % 8);
        let part = |bytes: &[u8], each: usize| {
            let (first, last) = (start * each, end * each);
            crc32(bytes.get(first..last).unwrap_or_default())
        };
        let made = Record {
            rows: end as u64,
            rows_crc: part(rows, row_bytes),
            ids_crc: part(ids, 8),
        };
        start = end;
        made
    });
    commit_log::to_bytes(&fitting.collect::<Vec<Record>>())
}

fn check_store(folder: &Path) {
    let workers = Workers::serial();
    let whole = verify(folder, &workers).is_ok();
    let opened = StoreReader::open(folder);
    assert!(opened.is_ok() || !whole);
    if let Ok(reader) = &opened {
        let ids = reader.ids(&workers);
        let read = reader
            .chunks(0..reader.rows())
            .all(|chunk| reader.checked_chunk(&chunk, Vec::new(), &workers).is_ok());
        let distinct = ids.as_ref().is_ok_and(|ids| {
            let mut seen: HashSet<u64> = ids.iter().copied().collect();
            let all =
                seen.len() == ids.len() || (!reader.complete() && reader.manifest().writers > 1);
            let mut skipped = reader.skipped_ids().iter();
            all && (!reader.complete() || skipped.all(|&id| seen.insert(id)))
        });
        assert_eq!(whole, read && distinct);
        if let Ok(ids) = ids {
            assert_eq!(ids.len() as u64, reader.rows());
        }
        let numbers: Vec<u64> = (0..reader.rows()).collect();
        let values = reader
            .read_rows(&numbers, &workers)
            .expect("rows that are there");
        assert_eq!(values.len(), numbers.len() * reader.layout().width());
    }
    drop(opened);
    let before = bytes_of(folder);
    let repaired = match repair(folder, &SystemDisk, &workers) {
        Ok(repaired) => repaired,
        Err(error) => {
            assert!(
                matches!(
                    error,
                    Error::Repair { .. } | Error::Format { .. } | Error::NotFound { .. }
                ),
                "{error}"
            );
            assert!(!whole);
            return;
        }
    };
    verify(folder, &workers).expect("a repaired store is whole");
    let reader = StoreReader::open(folder).expect("a repaired store opens");
    assert_eq!(reader.rows(), repaired.kept_rows);
    let mut ids = reader.ids(&workers).expect("ids that were verified");
    ids.sort_unstable();
    assert!(ids.is_sorted_by(|left, right| left < right));
    assert!(repaired.lost_ids.is_sorted_by(|left, right| left < right));
    assert!(
        repaired
            .lost_ids
            .iter()
            .all(|id| ids.binary_search(id).is_err())
    );
    let known = repaired.lost_ids.len() as u64;
    assert!(known.saturating_add(repaired.unknown_ids) <= repaired.dropped_rows);
    let after = bytes_of(folder);
    if whole && repaired.dropped_rows == 0 {
        let files = |files: &[(String, Vec<u8>)]| {
            let mut files = files.to_vec();
            files.retain(|(name, _)| name != "manifest.copy.json");
            files
        };
        assert_eq!(files(&before), files(&after));
    }
    let again = repair(folder, &SystemDisk, &workers).expect("a repaired store");
    assert_eq!(
        (again.kept_rows, again.dropped_rows),
        (repaired.kept_rows, 0)
    );
    assert_eq!(bytes_of(folder), after);
}

/// The files of a store by name, but for the lock.
fn bytes_of(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    let mut files: Vec<(String, Vec<u8>)> = paths
        .filter(|path| path.extension().is_none_or(|kind| kind != "lock"))
        .filter(|path| *path != paths::lock(folder))
        .map(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            (name.into_owned(), fs::read(&path).expect("a file"))
        })
        .collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests;

//! Which scores of an unfinished file are there for good.
//!
//! ```text
//! header   0 magic "GRASSCOR" | 8 key of the call, 32 bytes | 40 CRC-32 of the 40 bytes before
//! records  0 first row u64 | 8 row after the last u64 | 16 CRC-32 of the 16 bytes before
//! ```
//!
//! Little endian. A record is written after the scores of its rows were synced, so a whole record is
//! true, and a torn one is no record. The record of the empty range at the end says that all is
//! written and only names are left to be changed.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use grass_store::{Disk, DiskFile};

use crate::error::{Error, Result};

const MAGIC: [u8; 8] = *b"GRASSCOR";
const HEADER_BYTES: usize = 44;
const RECORD_BYTES: usize = 20;

/// The open journal of one file of scores. Only one call has it at a time.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: Box<dyn DiskFile>,
    /// Keeps the lock until it is dropped, or its process dies.
    _lock: File,
    /// Where the next record goes.
    end: u64,
    /// The call that began it, where the header is whole.
    pub(super) key: Option<[u8; 32]>,
    /// What its records say is durable, sorted and merged.
    pub(super) durable: Vec<Range<u64>>,
    /// Whether all is durable and the files are being renamed.
    pub(super) finished: bool,
    /// Whether a sync has failed: then nothing more is recorded.
    pub(super) closed: bool,
}

impl Journal {
    /// Opens the journal at `path`, made empty if there is none, for scores of `rows` rows that will be at `scores`.
    ///
    /// # Errors
    /// [`Error::BusyFile`] if another call has it open, [`Error::File`].
    pub(super) fn open(path: PathBuf, scores: &Path, rows: u64, disk: &dyn Disk) -> Result<Self> {
        let mut lock = locked(&path, scores)?;
        let mut bytes = Vec::new();
        lock.read_to_end(&mut bytes)
            .map_err(Error::file("read", &path))?;
        let file = disk.open(&path).map_err(Error::file("open", &path))?;
        let key = header_key(&bytes);
        let mut journal = Self {
            path,
            file,
            _lock: lock,
            end: HEADER_BYTES as u64,
            key,
            durable: Vec::new(),
            finished: false,
            closed: false,
        };
        if key.is_some() {
            let (records, _) = bytes[HEADER_BYTES..].as_chunks::<RECORD_BYTES>();
            journal.end += (records.len() * RECORD_BYTES) as u64;
            for range in records.iter().filter_map(|record| from_bytes(record, rows)) {
                journal.finished |= range.is_empty();
                journal.durable.push(range);
            }
            merge(&mut journal.durable);
        }
        Ok(journal)
    }

    /// Forgets everything, before anything that it tells of changes.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.file
            .set_length(0)
            .and_then(|()| self.file.sync())
            .map_err(Error::file("write", &self.path))?;
        self.durable.clear();
        self.key = None;
        self.finished = false;
        self.end = HEADER_BYTES as u64;
        Ok(())
    }

    /// Begins with the key of a call, after [`Self::clear`].
    pub(super) fn begin(&mut self, key: [u8; 32]) -> Result<()> {
        let mut header = [MAGIC.as_slice(), &key].concat();
        header.extend(crc32fast::hash(&header).to_le_bytes());
        self.file
            .write_all_at(&header, 0)
            .and_then(|()| self.file.sync())
            .map_err(Error::file("write", &self.path))?;
        self.key = Some(key);
        Ok(())
    }

    /// Records that the scores of these rows are durable, which they must be.
    pub(super) fn record(&mut self, ranges: &[Range<u64>]) -> Result<()> {
        let bytes: Vec<u8> = ranges.iter().flat_map(to_bytes).collect();
        self.file
            .write_all_at(&bytes, self.end)
            .and_then(|()| self.file.sync())
            .map_err(Error::file("write", &self.path))?;
        self.end += bytes.len() as u64;
        self.durable.extend_from_slice(ranges);
        merge(&mut self.durable);
        Ok(())
    }

    /// Records that all `rows` are durable.
    pub(super) fn finish(&mut self, rows: u64) -> Result<()> {
        self.record(std::slice::from_ref(&(rows..rows)))
    }

    /// Removes the file, and with it the lock.
    pub(super) fn remove(self, disk: &dyn Disk) -> Result<()> {
        disk.remove(&self.path)
            .map_err(Error::file("remove", &self.path))
    }
}

/// The file at `path`, made if there is none, with the lock of it.
fn locked(path: &Path, scores: &Path) -> Result<File> {
    loop {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(Error::file("create", path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::BusyFile {
                    path: scores.to_path_buf(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", path)(error)),
        }
        let held = file.metadata().map_err(Error::file("read", path))?;
        // Another call may have finished, and removed the file, between its opening and its locking.
        if fs::metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (held.dev(), held.ino()))
        {
            return Ok(file);
        }
    }
}

/// The key of a whole header.
fn header_key(bytes: &[u8]) -> Option<[u8; 32]> {
    let (signed, checksum) = bytes.get(..HEADER_BYTES)?.split_last_chunk::<4>()?;
    let (magic, key) = signed.split_first_chunk::<8>()?;
    let whole = *magic == MAGIC && crc32fast::hash(signed).to_le_bytes() == *checksum;
    key.try_into().ok().filter(|_| whole)
}

fn to_bytes(range: &Range<u64>) -> Vec<u8> {
    let mut bytes = [range.start.to_le_bytes(), range.end.to_le_bytes()].concat();
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// The rows of a whole record.
fn from_bytes(bytes: &[u8; RECORD_BYTES], rows: u64) -> Option<Range<u64>> {
    let (numbers, checksum) = bytes.split_last_chunk::<4>()?;
    let (numbers, _) = numbers.as_chunks::<8>();
    let [start, end] = [0, 1].map(|index: usize| u64::from_le_bytes(numbers[index]));
    let whole = crc32fast::hash(&bytes[..16]).to_le_bytes() == *checksum;
    let sound = start < end && end <= rows || start == rows && end == rows;
    (whole && sound).then_some(start..end)
}

/// Sorts ranges, and joins those that touch.
pub(super) fn merge(ranges: &mut Vec<Range<u64>>) {
    ranges.sort_by_key(|range| range.start);
    ranges.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
}

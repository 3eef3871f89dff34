//! One shard that a writer is adding rows to.
//!
//! Rows go to their file as they are appended, so that they are encoded, summed up and written
//! while they are in the cache; they count from the commit that syncs and logs them.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use grass_core::parallel::Workers;

use crate::checksum::{crc32, joined};
use crate::commit_log::{self, RECORD_BYTES, Record};
use crate::disk::{Disk, DiskFile};
use crate::encoding::Numbers;
use crate::error::{Error, Result};
use crate::header::HEADER_BYTES;
use crate::layout::Layout;
use crate::manifest::{ClosedShard, Manifest};
use crate::paths::{self, ShardPaths};
use crate::shard::Shard;

/// Encoded bytes that are summed up while they are in a core's own cache. They are written a chunk
/// at once: the system keeps a file in larger pages, and faster, the more of it comes in one call.
const PIECE_BYTES: usize = 128 << 10;

/// Memory for encoded chunks, used again by every append.
#[derive(Debug, Default)]
pub(crate) struct Buffers {
    free: Mutex<Vec<Vec<u8>>>,
}

impl Buffers {
    fn with<T>(&self, length: usize, task: impl FnOnce(&mut [u8]) -> T) -> T {
        let lock = || self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = lock().pop().unwrap_or_default();
        if buffer.len() < length {
            buffer = vec![0; length];
        }
        let outcome = task(&mut buffer[..length]);
        lock().push(buffer);
        outcome
    }
}

/// Rows of one chunk that are written and not committed.
#[derive(Debug, Clone, Copy)]
struct Written {
    /// Rows of the shard up to and with these.
    rows: u64,
    rows_crc: u32,
}

#[derive(Debug)]
pub(crate) struct ShardWriter {
    number: u32,
    paths: ShardPaths,
    rows_file: Box<dyn DiskFile>,
    ids_file: Box<dyn DiskFile>,
    log_file: Box<dyn DiskFile>,
    records: Vec<Record>,
    /// After the committed rows, one a chunk.
    written: Vec<Written>,
    /// The ids of the written rows.
    ids: Vec<u8>,
}

impl ShardWriter {
    /// Makes the files of a shard without rows, in place of any that have none committed.
    pub(crate) fn create(
        disk: &dyn Disk,
        store: &Path,
        number: u32,
        manifest: &Manifest,
    ) -> Result<Self> {
        let paths = ShardPaths::new(store, number);
        empty_log(disk, &paths)?;
        let make = |path: &Path| disk.create(path).map_err(Error::io("create", path));
        let rows_file = make(&paths.rows)?;
        let ids_file = make(&paths.ids)?;
        rows_file
            .write_all_at(&manifest.header(number).to_bytes(), 0)
            .and_then(|()| rows_file.sync())
            .map_err(Error::io("write", &paths.rows))?;
        ids_file.sync().map_err(Error::io("sync", &paths.ids))?;
        // Last, so that a shard with a log has its other files too.
        let log_file = make(&paths.log)?;
        log_file.sync().map_err(Error::io("sync", &paths.log))?;
        paths::sync_folder(disk, store)?;
        Ok(Self {
            number,
            paths,
            rows_file,
            ids_file,
            log_file,
            records: Vec::new(),
            written: Vec::new(),
            ids: Vec::new(),
        })
    }

    /// Goes on with a shard, after cutting off what was written but not committed.
    pub(crate) fn reopen(disk: &dyn Disk, shard: Shard, layout: &Layout) -> Result<Self> {
        let rows = shard.rows();
        let Shard {
            number,
            records,
            paths,
            ..
        } = shard;
        paths::remove_temporary(disk, &paths.log)?;
        let cut = |path: &Path, length: u64| {
            let open = || {
                let file = disk.open(path)?;
                cut(&*file, length)?;
                Ok(file)
            };
            open().map_err(Error::io("open for writing", path))
        };
        // The log first: it must never promise more than the other files hold.
        let log_file = cut(&paths.log, (records.len() * RECORD_BYTES) as u64)?;
        // Its last records may be in memory alone, where the writer was killed, and the system may
        // take them for durable, where their sync failed: only writing them again makes them so.
        log_file
            .write_all_at(&commit_log::to_bytes(&records), 0)
            .and_then(|()| log_file.sync())
            .map_err(Error::io("write", &paths.log))?;
        let rows_file = cut(&paths.rows, rows_end(rows, layout))?;
        let ids_file = cut(&paths.ids, rows * 8)?;
        Ok(Self {
            number,
            paths,
            rows_file,
            ids_file,
            log_file,
            records,
            written: Vec::new(),
            ids: Vec::new(),
        })
    }

    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// How many rows are committed.
    fn committed(&self) -> u64 {
        self.records.last().map_or(0, |record| record.rows)
    }

    /// How many rows are committed or written.
    pub(crate) fn rows(&self) -> u64 {
        let written = self.written.last().map(|written| written.rows);
        written.unwrap_or_else(|| self.committed())
    }

    /// How many rows wait to be committed.
    pub(crate) fn waiting(&self) -> u64 {
        self.rows() - self.committed()
    }

    /// Writes rows, (n, width) row-major, after the others; a commit makes them count. A call that
    /// fails has written none, as far as later calls and commits are concerned.
    ///
    /// # Errors
    /// Those of [`Layout::check_rows`], [`Error::Io`].
    pub(crate) fn write(
        &mut self,
        rows: &[f32],
        ids: &[u64],
        numbers: Numbers,
        layout: &Layout,
        buffers: &Buffers,
        workers: &Workers,
    ) -> Result<()> {
        let first = self.rows();
        let end = first + ids.len() as u64;
        let chunk_rows = layout.chunk_rows();
        let (width, row_bytes) = (layout.width(), layout.row_bytes());
        let piece_rows = (PIECE_BYTES / row_bytes).max(1);
        let mut parts = Vec::new();
        let mut start = first;
        while start < end {
            let stop = end.min((start / chunk_rows + 1) * chunk_rows);
            parts.push((start..stop, 0));
            start = stop;
        }
        let written = workers.for_each(parts.iter_mut(), |(part, crc)| {
            let (start, stop) = ((part.start - first) as usize, (part.end - first) as usize);
            let (rows, ids) = (&rows[start * width..stop * width], &ids[start..stop]);
            let length = ids.len() * row_bytes;
            *crc = buffers.with(length, |encoded| {
                let mut hasher = crc32fast::Hasher::new();
                let mut rows = rows.chunks_exact(width).zip(ids);
                for bytes in encoded.chunks_mut(piece_rows * row_bytes) {
                    workers.check()?;
                    let stored = bytes.chunks_exact_mut(row_bytes);
                    for (bytes, (row, &id)) in stored.zip(rows.by_ref()) {
                        layout.check_row(row, id, numbers)?;
                        layout.encode(row, bytes);
                    }
                    hasher.update(bytes);
                }
                self.rows_file
                    .write_all_at(encoded, rows_end(part.start, layout))
                    .map_err(Error::io("write", &self.paths.rows))?;
                Ok::<u32, Error>(hasher.finalize())
            })?;
            Ok::<(), Error>(())
        });
        if let Err(Error::NonFinite { .. } | Error::Overflow { .. }) = written {
            // Another thread may have met another row than the first of those to refuse.
            layout.check_rows(rows, ids, numbers, workers)?;
        }
        written?;
        let begin = rows_end(first, layout);
        self.rows_file
            .begin_sync(begin, rows_end(end, layout) - begin);
        for (part, rows_crc) in parts {
            match self.written.last_mut() {
                Some(last) if part.start % chunk_rows != 0 => {
                    let bytes = (part.end - part.start) * row_bytes as u64;
                    last.rows_crc = joined(last.rows_crc, rows_crc, bytes);
                    last.rows = part.end;
                }
                _ => self.written.push(Written {
                    rows: part.end,
                    rows_crc,
                }),
            }
        }
        self.ids.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        Ok(())
    }

    /// Makes the written rows count: when this returns, they survive a killed process and a power loss.
    pub(crate) fn commit(&mut self) -> Result<()> {
        if self.written.is_empty() {
            return Ok(());
        }
        self.rows_file
            .sync()
            .map_err(Error::io("write", &self.paths.rows))?;
        let first = self.committed();
        self.ids_file
            .write_all_at(&self.ids, first * 8)
            .and_then(|()| self.ids_file.sync())
            .map_err(Error::io("write", &self.paths.ids))?;
        let mut start = first;
        let records: Vec<Record> = self
            .written
            .iter()
            .map(|&Written { rows, rows_crc }| {
                let ids = (start - first) as usize * 8..(rows - first) as usize * 8;
                start = rows;
                Record {
                    rows,
                    rows_crc,
                    ids_crc: crc32(&self.ids[ids]),
                }
            })
            .collect();
        let offset = (self.records.len() * RECORD_BYTES) as u64;
        commit_log::append(&*self.log_file, offset, &records)
            .map_err(Error::io("write", &self.paths.log))?;
        self.records.extend(records);
        self.written.clear();
        self.ids.clear();
        Ok(())
    }

    /// Commits, leaves the shard with one record a chunk, and returns what the manifest lists of it.
    pub(crate) fn close(mut self, disk: &dyn Disk, layout: &Layout) -> Result<ClosedShard> {
        self.commit()?;
        // A call that was cancelled, or given rows that were refused, may have written more.
        let (file, end) = (&*self.rows_file, rows_end(self.rows(), layout));
        let cut_longer = || match file.length()? == end {
            true => Ok(()),
            false => cut(file, end),
        };
        cut_longer().map_err(Error::io("cut", &self.paths.rows))?;
        let compact = commit_log::compacted(&self.records, layout.row_bytes(), layout.chunk_rows());
        if compact != self.records {
            paths::replace(disk, &self.paths.log, &commit_log::to_bytes(&compact))?;
        }
        Ok(ClosedShard {
            number: self.number,
            rows: self.rows(),
            log_crc32: commit_log::checksum(&compact),
        })
    }
}

/// Removes the files of a shard in which nothing is committed, so that a crash at any time leaves
/// such a shard or none.
pub(crate) fn remove(disk: &dyn Disk, store: &Path, number: u32) -> Result<()> {
    let paths = ShardPaths::new(store, number);
    empty_log(disk, &paths)?;
    for part in [&[&paths.rows, &paths.ids][..], &[&paths.log]] {
        for path in part {
            paths::remove_if_there(disk, path)?;
        }
        // Rows without a log would be rows that lost it.
        paths::sync_folder(disk, store)?;
    }
    Ok(())
}

/// Cuts what a crash left in a log without a whole record, while the rows that it may speak of are there.
fn empty_log(disk: &dyn Disk, paths: &ShardPaths) -> Result<()> {
    let emptied = match disk.open(&paths.log) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(file) => cut(&*file, 0),
    };
    emptied.map_err(Error::io("empty", &paths.log))
}

/// Gives a file this length, for good. Also where it has it: a writer that was killed amid this, or
/// whose sync failed, may have given it that in memory alone.
fn cut(file: &dyn DiskFile, length: u64) -> io::Result<()> {
    file.set_length(length)?;
    file.sync()
}

/// Where the rows of a shard's first rows end in its file.
fn rows_end(rows: u64, layout: &Layout) -> u64 {
    HEADER_BYTES as u64 + rows * layout.row_bytes() as u64
}

//! What of a damaged shard can be proven, and its rows written anew.
//!
//! A row is proven by a record whose own checksum holds and whose checksums of rows and ids hold
//! over the bytes that are there. The log of a closed shard is itself proven by the manifest; one
//! that is not can be made again from whole rows and ids. Nothing of another store is taken over.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use grass_core::parallel::Workers;

use crate::checksum::crc32;
use crate::commit_log::{self, RECORD_BYTES, Record};
use crate::disk::{Disk, DiskFile};
use crate::error::{Error, Result};
use crate::header::{self, HEADER_BYTES};
use crate::id_set::IdSet;
use crate::layout::Layout;
use crate::manifest::{ClosedShard, Manifest};
use crate::paths::{self, ShardPaths};

/// What became of the rows of a damaged shard.
#[derive(Debug, Default)]
pub(crate) struct Salvaged {
    /// The shard as it is written anew; `None` if nothing of it is kept.
    pub(crate) closed: Option<ClosedShard>,
    pub(crate) dropped_rows: u64,
    /// Ids of dropped rows, as far as they are known.
    pub(crate) lost_ids: Vec<u64>,
    /// Dropped rows whose ids are not known.
    pub(crate) unknown_ids: u64,
}

/// Rows that a record commits, counted in the shard.
type Proof = (Range<u64>, Record);

/// The files of a damaged shard, as far as they are there.
struct Wreck<'a> {
    layout: &'a Layout,
    paths: ShardPaths,
    rows: Option<File>,
    ids: Option<File>,
    log: Option<File>,
    rows_held: u64,
    ids_held: u64,
    /// Whether the header says whole and clear that the rows are not of this shard.
    foreign: bool,
}

/// Writes what can be proven of shard `number` to new files beside the old ones. `kept` are the ids of rows kept
/// so far; a row of one of them is dropped.
///
/// # Errors
/// [`Error::Io`], [`Error::Core`] when cancelled.
pub(crate) fn salvage(
    disk: &dyn Disk,
    store: &Path,
    number: u32,
    manifest: &Manifest,
    kept: &mut IdSet,
    workers: &Workers,
) -> Result<Salvaged> {
    let wreck = Wreck::open(store, number, manifest)?;
    let listed = manifest.shards.iter().find(|shard| shard.number == number);
    let (proofs, rows) = match listed {
        Some(closed) => (wreck.closed_proofs(closed, workers)?, closed.rows),
        None => wreck.open_proofs()?,
    };
    let mut salvaged = Salvaged::default();
    let mut copy = None;
    let mut repeated = 0;
    for (range, record) in proofs {
        workers.check()?;
        let row_bytes = wreck.layout.row_bytes();
        let row_part = wreck.read_rows(&range)?;
        let row_part = row_part.filter(|bytes| crc32(bytes) == record.rows_crc);
        if row_part.is_some() && wreck.foreign && listed.is_none() {
            // Its log is not of this store either, nor are its ids.
            continue;
        }
        let id_part = wreck.read_ids(&range)?;
        let Some(id_part) = id_part.filter(|bytes| crc32(bytes) == record.ids_crc) else {
            continue;
        };
        let (ids, _) = id_part.as_chunks::<8>();
        let Some(row_part) = row_part else {
            salvaged
                .lost_ids
                .extend(ids.iter().map(|&id| u64::from_le_bytes(id)));
            continue;
        };
        for (row, id) in row_part.chunks_exact(row_bytes).zip(ids) {
            if !kept.insert(u64::from_le_bytes(*id)) {
                repeated += 1;
                continue;
            }
            let copy = match &mut copy {
                Some(copy) => copy,
                None => copy.insert(Copy::create(disk, number, &wreck.paths, manifest)?),
            };
            copy.push(row, id)?;
        }
    }
    salvaged.closed = copy.map(Copy::close).transpose()?;
    let kept_rows = salvaged.closed.map_or(0, |closed| closed.rows);
    salvaged.dropped_rows = rows.saturating_sub(kept_rows);
    let known = repeated + salvaged.lost_ids.len() as u64;
    salvaged.unknown_ids = salvaged.dropped_rows.saturating_sub(known);
    Ok(salvaged)
}

fn open(path: &Path) -> Result<(Option<File>, u64)> {
    let Some(file) = paths::open_file(path)? else {
        return Ok((None, 0));
    };
    let length = file.metadata().map_err(Error::io("read", path))?.len();
    Ok((Some(file), length))
}

impl<'a> Wreck<'a> {
    fn open(store: &Path, number: u32, manifest: &'a Manifest) -> Result<Self> {
        let layout = &manifest.layout;
        let paths = ShardPaths::new(store, number);
        let (rows, row_file_bytes) = open(&paths.rows)?;
        let (ids, id_bytes) = open(&paths.ids)?;
        let (log, _) = open(&paths.log)?;
        let mut wreck = Self {
            layout,
            paths,
            rows,
            ids,
            log,
            rows_held: row_file_bytes.saturating_sub(HEADER_BYTES as u64)
                / layout.row_bytes() as u64,
            ids_held: id_bytes / 8,
            foreign: false,
        };
        let mut bytes = [0; HEADER_BYTES];
        if let Some(file) = &wreck.rows
            && row_file_bytes >= HEADER_BYTES as u64
        {
            file.read_exact_at(&mut bytes, 0)
                .map_err(Error::io("read", &wreck.paths.rows))?;
            let expected = manifest.header(number);
            wreck.foreign = header::is_whole(&bytes) && expected.check(&bytes).is_err();
        }
        Ok(wreck)
    }

    /// The bytes of some rows; `None` if the file does not hold them.
    fn read_rows(&self, rows: &Range<u64>) -> Result<Option<Vec<u8>>> {
        let held = rows.end <= self.rows_held;
        let place = (HEADER_BYTES as u64, self.layout.row_bytes() as u64);
        read_part(
            self.rows.as_ref().filter(|_| held),
            &self.paths.rows,
            place,
            rows,
        )
    }

    fn read_ids(&self, rows: &Range<u64>) -> Result<Option<Vec<u8>>> {
        let held = rows.end <= self.ids_held;
        read_part(
            self.ids.as_ref().filter(|_| held),
            &self.paths.ids,
            (0, 8),
            rows,
        )
    }

    /// The log as it stands, record by record, damaged or not, at most `most` of them.
    fn raw_records(&self, most: u64) -> Result<Vec<[u8; RECORD_BYTES]>> {
        let Some(file) = &self.log else {
            return Ok(Vec::new());
        };
        let mut reader = BufReader::new(file).take(most.saturating_mul(RECORD_BYTES as u64));
        let mut records = Vec::new();
        let mut bytes = [0; RECORD_BYTES];
        loop {
            match reader.read_exact(&mut bytes) {
                Ok(()) => records.push(bytes),
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(records),
                Err(error) => return Err(Error::io("read", &self.paths.log)(error)),
            }
        }
    }

    /// What proves rows of a closed shard: the log that the manifest lists, read or made again;
    /// without it, the records of a damaged log that are themselves whole.
    fn closed_proofs(&self, closed: &ClosedShard, workers: &Workers) -> Result<Vec<Proof>> {
        let chunk_rows = self.layout.chunk_rows();
        let chunks = closed.rows.div_ceil(chunk_rows);
        let range = |chunk: u64| {
            let start = chunk * chunk_rows;
            start..closed.rows.min(start + chunk_rows)
        };
        let stored: Vec<Option<Record>> = (0..)
            .zip(self.raw_records(chunks)?)
            .map(|(chunk, bytes)| {
                Record::from_bytes(&bytes).filter(|record| record.rows == range(chunk).end)
            })
            .collect();
        let proven = |records: &[Option<Record>]| {
            let records: Option<Vec<Record>> = records.iter().copied().collect();
            records.filter(|records| {
                records.len() as u64 == chunks && commit_log::checksum(records) == closed.log_crc32
            })
        };
        let proofs = |records: &[Option<Record>]| {
            let placed = (0..).zip(records);
            let proofs = placed.filter_map(|(chunk, record)| Some((range(chunk), (*record)?)));
            proofs.collect()
        };
        if proven(&stored).is_some() {
            return Ok(proofs(&stored));
        }
        let made = self.made_records((0..chunks).map(range), workers)?;
        let patched: Vec<Option<Record>> = (0..made.len().max(stored.len()))
            .map(|chunk| {
                let stored = stored.get(chunk).copied().flatten();
                stored.or_else(|| made.get(chunk).copied().flatten())
            })
            .collect();
        for records in [patched, made] {
            if proven(&records).is_some() {
                return Ok(proofs(&records));
            }
        }
        // A whole log that is not the listed one is of another store.
        let whole = stored.len() as u64 == chunks && stored.iter().all(Option::is_some);
        match whole || self.foreign {
            true => Ok(Vec::new()),
            false => Ok(proofs(&stored)),
        }
    }

    /// The records that rows and ids, as they are, would have, up to the first chunk of which a file holds nothing.
    fn made_records(
        &self,
        ranges: impl Iterator<Item = Range<u64>>,
        workers: &Workers,
    ) -> Result<Vec<Option<Record>>> {
        let held = ranges.take_while(|range| range.start < self.rows_held.min(self.ids_held));
        held.map(|range| {
            workers.check()?;
            let parts = (self.read_rows(&range)?, self.read_ids(&range)?);
            Ok(match parts {
                (Some(rows), Some(ids)) => Some(Record {
                    rows: range.end,
                    rows_crc: crc32(&rows),
                    ids_crc: crc32(&ids),
                }),
                _ => None,
            })
        })
        .collect()
    }

    /// What proves rows of an open shard, and how many rows were committed as far as that is
    /// known. The count of a damaged record tells where the rows of the next one may begin: they
    /// do if its checksums hold from there.
    fn open_proofs(&self) -> Result<(Vec<Proof>, u64)> {
        let chunk_rows = self.layout.chunk_rows();
        // Every record commits a row, so more of them than rows and one that is torn cannot be whole.
        let most = self.rows_held.max(self.ids_held).saturating_add(1);
        let (mut proofs, mut done, mut start) = (Vec::new(), 0, 0);
        let mut committed = 0;
        for bytes in self.raw_records(most)? {
            let mut count = [0; 8];
            count.copy_from_slice(&bytes[..8]);
            let end = u64::from_le_bytes(count);
            if let Some(record) = Record::from_bytes(&bytes) {
                committed = committed.max(end);
                if start < end && start >= done && start / chunk_rows == (end - 1) / chunk_rows {
                    proofs.push((start..end, record));
                    done = end;
                }
            }
            start = end;
        }
        if self.log.is_none() {
            committed = self.rows_held.max(self.ids_held);
        }
        Ok((proofs, committed))
    }
}

/// The bytes of some entries of a file that has `place.1` bytes an entry after `place.0` others.
fn read_part(
    file: Option<&File>,
    path: &Path,
    place: (u64, u64),
    entries: &Range<u64>,
) -> Result<Option<Vec<u8>>> {
    let Some(file) = file else {
        return Ok(None);
    };
    let (first, bytes) = place;
    let mut part = vec![0; ((entries.end - entries.start) * bytes) as usize];
    match file.read_exact_at(&mut part, first + entries.start * bytes) {
        Ok(()) => Ok(Some(part)),
        // Cut short since its length was asked for.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
    }
}

/// The new files of a shard, filled row by row and written chunk by chunk.
struct Copy<'a> {
    number: u32,
    layout: &'a Layout,
    paths: ShardPaths,
    rows_file: Box<dyn DiskFile>,
    ids_file: Box<dyn DiskFile>,
    log_file: Box<dyn DiskFile>,
    records: Vec<Record>,
    rows: Vec<u8>,
    ids: Vec<u8>,
}

impl<'a> Copy<'a> {
    fn create(
        disk: &dyn Disk,
        number: u32,
        old: &ShardPaths,
        manifest: &'a Manifest,
    ) -> Result<Self> {
        let paths = ShardPaths {
            rows: paths::repaired(&old.rows),
            ids: paths::repaired(&old.ids),
            log: paths::repaired(&old.log),
        };
        let make = |path: &PathBuf| disk.create(path).map_err(Error::io("create", path));
        let rows_file = make(&paths.rows)?;
        rows_file
            .write_all_at(&manifest.header(number).to_bytes(), 0)
            .map_err(Error::io("write", &paths.rows))?;
        Ok(Self {
            number,
            layout: &manifest.layout,
            rows_file,
            ids_file: make(&paths.ids)?,
            log_file: make(&paths.log)?,
            paths,
            records: Vec::new(),
            rows: Vec::new(),
            ids: Vec::new(),
        })
    }

    fn done(&self) -> u64 {
        self.records.last().map_or(0, |record| record.rows)
    }

    fn push(&mut self, row: &[u8], id: &[u8; 8]) -> Result<()> {
        self.rows.extend_from_slice(row);
        self.ids.extend_from_slice(id);
        match self.ids.len() as u64 / 8 == self.layout.chunk_rows() {
            true => self.write_chunk(),
            false => Ok(()),
        }
    }

    fn write_chunk(&mut self) -> Result<()> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let done = self.done();
        let row_bytes = self.layout.row_bytes();
        let offset = HEADER_BYTES as u64 + done * row_bytes as u64;
        self.rows_file
            .write_all_at(&self.rows, offset)
            .map_err(Error::io("write", &self.paths.rows))?;
        self.ids_file
            .write_all_at(&self.ids, done * 8)
            .map_err(Error::io("write", &self.paths.ids))?;
        self.records.push(Record {
            rows: done + self.ids.len() as u64 / 8,
            rows_crc: crc32(&self.rows),
            ids_crc: crc32(&self.ids),
        });
        self.rows.clear();
        self.ids.clear();
        Ok(())
    }

    /// Makes the files durable.
    fn close(mut self) -> Result<ClosedShard> {
        self.write_chunk()?;
        let bytes = commit_log::to_bytes(&self.records);
        self.log_file
            .write_all_at(&bytes, 0)
            .map_err(Error::io("write", &self.paths.log))?;
        let Self { paths, .. } = &self;
        for (file, path) in [
            (&self.rows_file, &paths.rows),
            (&self.ids_file, &paths.ids),
            (&self.log_file, &paths.log),
        ] {
            file.sync().map_err(Error::io("sync", path))?;
        }
        Ok(ClosedShard {
            number: self.number,
            rows: self.done(),
            log_crc32: commit_log::checksum(&self.records),
        })
    }
}

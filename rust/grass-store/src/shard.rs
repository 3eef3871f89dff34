//! One shard as a reader sees it: its files opened, and all that can be compared without reading rows.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::checksum::crc32;
use crate::commit_log::{self, RECORD_BYTES, Record};
use crate::error::{Damage, Error, Part, Result};
use crate::header::HEADER_BYTES;
use crate::layout::Layout;
use crate::manifest::{ClosedShard, Manifest};
use crate::paths::{self, ShardPaths};
use crate::stored_file::{MISSING, StoredFile};

/// The committed rows of one shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) number: u32,
    /// Its first row, counted over the whole store.
    pub(crate) first_row: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) paths: ShardPaths,
    /// None only in a damaged store, which nothing but verifying opens.
    rows_file: Option<StoredFile>,
    ids_file: Option<StoredFile>,
}

/// What opening a shard found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// The shard, where its log tells what it holds. With damage, its other files may lack some of that.
    pub(crate) shard: Option<Shard>,
    pub(crate) damage: Vec<Damage>,
}

impl Found {
    /// A shard in a complete store whose manifest does not list it.
    pub(crate) fn unlisted(number: u32) -> Self {
        let problem = "the manifest of the complete store does not list this shard";
        Self {
            shard: None,
            damage: vec![Damage::shard(number, Part::Rows, problem)],
        }
    }
}

/// A part of a shard that cannot be read: damage to report with that of others, or a real failure.
pub(crate) enum Refusal {
    Damaged(Damage),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

pub(crate) type Opened<T> = std::result::Result<T, Refusal>;

fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(Error::io("read", path))?.len())
}

/// The files of one shard, and what is wrong with them.
struct Opening<'a> {
    number: u32,
    manifest: &'a Manifest,
    paths: ShardPaths,
    rows_file: Option<StoredFile>,
    ids_file: Option<StoredFile>,
    damage: Vec<Damage>,
}

impl<'a> Opening<'a> {
    fn new(store: &Path, number: u32, manifest: &'a Manifest) -> Self {
        Self {
            number,
            manifest,
            paths: ShardPaths::new(store, number),
            rows_file: None,
            ids_file: None,
            damage: Vec::new(),
        }
    }

    fn note(&mut self, part: Part, problem: impl Into<String>) {
        self.damage.push(Damage::shard(self.number, part, problem));
    }

    /// Opens a file that must be there.
    fn open(&mut self, part: Part) -> Result<Option<Arc<File>>> {
        let path = self.paths.of(part);
        let slot = match part {
            Part::Ids => &mut self.ids_file,
            _ => &mut self.rows_file,
        };
        let opened = StoredFile::open(path)?;
        let file = opened.map(|(stored, file)| {
            *slot = Some(stored);
            file
        });
        if file.is_none() {
            self.note(part, MISSING);
        }
        Ok(file)
    }

    /// Notes a file that is not as long as its rows take.
    fn check_length(&mut self, part: Part, file: &File, expected: u64, rows: u64) -> Result<bool> {
        let got = length(file, self.paths.of(part))?;
        if got != expected {
            let problem = format!("expected {expected} bytes for {rows} rows, got {got}");
            self.note(part, problem);
        }
        Ok(got == expected)
    }

    /// Compares the header, unless the file ends inside it: its length says so already.
    fn check_header(&mut self, rows_file: &File) -> Result<()> {
        let problem = wrong_header(rows_file, &self.paths.rows, self.number, self.manifest)?;
        self.damage.extend(problem);
        Ok(())
    }

    fn log(&self, log_file: &File, length: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length as usize];
        log_file
            .read_exact_at(&mut bytes, 0)
            .map_err(Error::io("read", &self.paths.log))?;
        Ok(bytes)
    }

    /// The records of a log of this length, which must be the one that the manifest lists.
    fn closed_records(
        &mut self,
        log_file: &File,
        length: u64,
        log_crc32: u32,
    ) -> Result<Option<Vec<Record>>> {
        let bytes = self.log(log_file, length)?;
        let records = self.records(&bytes);
        // Bytes that are no whole records are told by their number.
        let other = |records: &Vec<Record>| {
            records.len() * RECORD_BYTES == bytes.len()
                && commit_log::checksum(records) != log_crc32
        };
        if records.as_ref().is_some_and(other) {
            self.note(Part::Log, "it is not the log that the manifest lists");
            return Ok(None);
        }
        Ok(records)
    }

    /// The records in these first bytes of the log.
    fn records(&mut self, bytes: &[u8]) -> Option<Vec<Record>> {
        match commit_log::parse(bytes, self.manifest.layout.chunk_rows()) {
            Ok(records) => Some(records),
            Err(problem) => {
                self.note(Part::Log, problem);
                None
            }
        }
    }

    fn found(self, first_row: u64, records: Option<Vec<Record>>) -> Found {
        let shard = records.map(|records| Shard {
            number: self.number,
            first_row,
            records,
            paths: self.paths,
            rows_file: self.rows_file,
            ids_file: self.ids_file,
        });
        Found {
            shard,
            damage: self.damage,
        }
    }
}

fn wrong_header(
    rows_file: &File,
    path: &Path,
    number: u32,
    manifest: &Manifest,
) -> Result<Option<Damage>> {
    let mut bytes = [0; HEADER_BYTES];
    match rows_file.read_exact_at(&mut bytes, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(Error::io("read", path)(error)),
        Ok(()) => {
            let problem = manifest.header(number).check(&bytes).err();
            Ok(problem.map(|problem| Damage::shard(number, Part::Header, problem)))
        }
    }
}

impl Shard {
    /// Opens a closed shard of `rows` rows: every length must be exact.
    pub(crate) fn open_closed(
        store: &Path,
        closed: ClosedShard,
        first_row: u64,
        manifest: &Manifest,
    ) -> Result<Found> {
        let ClosedShard { number, rows, .. } = closed;
        let layout = &manifest.layout;
        let mut opening = Opening::new(store, number, manifest);
        let chunks = rows.div_ceil(layout.chunk_rows());
        let log_bytes = chunks * RECORD_BYTES as u64;
        let rows_bytes = HEADER_BYTES as u64 + rows * layout.row_bytes() as u64;
        let rows_file = opening.open(Part::Rows)?;
        if let Some(file) = &rows_file {
            opening.check_length(Part::Rows, file, rows_bytes, rows)?;
        }
        if let Some(file) = opening.open(Part::Ids)? {
            opening.check_length(Part::Ids, &file, rows * 8, rows)?;
        }
        let log_file = paths::open_file(&opening.paths.log)?;
        let log_whole = match &log_file {
            Some(file) => opening.check_length(Part::Log, file, log_bytes, rows)?,
            None => {
                opening.note(Part::Log, MISSING);
                false
            }
        };
        if let Some(file) = &rows_file {
            opening.check_header(file)?;
        }
        // A log of another length is not read at all.
        let records = match log_file.filter(|_| log_whole) {
            Some(file) => opening.closed_records(&file, log_bytes, closed.log_crc32)?,
            None => None,
        };
        let full = |(index, record): (usize, &Record)| {
            record.rows == rows.min((index as u64 + 1) * layout.chunk_rows())
        };
        let records = records.filter(|records| {
            let whole = records.len() as u64 == chunks && records.iter().enumerate().all(full);
            if !whole {
                let got = records.len();
                let problem = format!("expected {chunks} valid records, one a chunk, got {got}");
                opening.note(Part::Log, problem);
            }
            whole
        });
        Ok(opening.found(first_row, records))
    }

    /// Opens the shard that an unfinished store was writing; none if nothing is committed in it.
    /// Its files may go on after the committed part.
    pub(crate) fn open_unfinished(
        store: &Path,
        number: u32,
        first_row: u64,
        manifest: &Manifest,
    ) -> Result<Found> {
        let layout = &manifest.layout;
        let mut opening = Opening::new(store, number, manifest);
        let Some(log_file) = paths::open_file(&opening.paths.log)? else {
            // The log is made before the first row is written, so rows without it lost it.
            let rows = opening.paths.rows.metadata();
            if rows.is_ok_and(|rows| rows.len() > HEADER_BYTES as u64) {
                opening.note(Part::Log, MISSING);
            }
            return Ok(opening.found(first_row, None));
        };
        let log_bytes = length(&log_file, &opening.paths.log)?;
        if log_bytes < RECORD_BYTES as u64 {
            return Ok(Found::default());
        }
        let (rows_file, ids_file) = (opening.open(Part::Rows)?, opening.open(Part::Ids)?);
        let Some(rows_file) = rows_file else {
            return Ok(opening.found(first_row, None));
        };
        let row_bytes = layout.row_bytes() as u64;
        let written = length(&rows_file, &opening.paths.rows)?.saturating_sub(HEADER_BYTES as u64)
            / row_bytes;
        // A record commits at least one row that was written before it.
        let longest = (written + 1).saturating_mul(RECORD_BYTES as u64);
        if log_bytes > longest {
            let problem =
                format!("expected at most {longest} bytes for {written} rows, got {log_bytes}");
            opening.note(Part::Log, problem);
            opening.check_header(&rows_file)?;
            return Ok(opening.found(first_row, None));
        }
        let bytes = opening.log(&log_file, log_bytes)?;
        let records = opening.records(&bytes);
        let committed = match &records {
            Some(records) => match records.last() {
                Some(last) => last.rows,
                None => return Ok(Found::default()),
            },
            None => 0,
        };
        let written_ids = match &ids_file {
            Some(file) => length(file, &opening.paths.ids)? / 8,
            None => committed,
        };
        for (part, written) in [(Part::Rows, written), (Part::Ids, written_ids)] {
            if written < committed {
                let problem = format!("expected {committed} committed rows, got {written}");
                opening.note(part, problem);
            }
        }
        opening.check_header(&rows_file)?;
        Ok(opening.found(first_row, records))
    }

    /// How many rows are committed.
    pub(crate) fn rows(&self) -> u64 {
        self.records.last().map_or(0, |record| record.rows)
    }

    /// The rows of chunk `chunk`, counted in the shard.
    pub(crate) fn chunk(&self, chunk: u64, layout: &Layout) -> Range<u64> {
        let start = chunk * layout.chunk_rows();
        start..self.rows().min(start + layout.chunk_rows())
    }

    /// The records that commit rows of the chunk, each with the rows it commits, counted in the shard.
    fn parts(&self, chunk: &Range<u64>) -> impl Iterator<Item = (Range<u64>, Record)> {
        let first = self
            .records
            .partition_point(|record| record.rows <= chunk.start);
        let end = chunk.end;
        let mut start = chunk.start;
        self.records[first..]
            .iter()
            .take_while(move |record| record.rows <= end)
            .map(move |&record| {
                let rows = start..record.rows;
                start = record.rows;
                (rows, record)
            })
    }

    pub(crate) fn damage(&self, part: Part, chunk: u64, rows: Range<u64>, problem: &str) -> Damage {
        Damage {
            shard: Some(self.number),
            part,
            chunk: Some(chunk),
            rows: Some(self.first_row + rows.start..self.first_row + rows.end),
            problem: problem.to_owned(),
        }
    }

    /// The record that commits a row of the chunk, with the rows of the chunk that it commits, counted in the shard.
    pub(crate) fn part(&self, chunk: &Range<u64>, row: u64) -> (Range<u64>, Record) {
        let index = self.records.partition_point(|record| record.rows <= row);
        let before = index
            .checked_sub(1)
            .map_or(0, |index| self.records[index].rows);
        let record = self.records[index];
        (before.max(chunk.start)..record.rows, record)
    }

    /// Reads bytes of a chunk's rows, from byte `offset` of them on.
    pub(crate) fn read_rows(
        &self,
        chunk: u64,
        layout: &Layout,
        offset: u64,
        bytes: &mut [u8],
    ) -> Opened<()> {
        let rows = self.chunk(chunk, layout);
        let start = HEADER_BYTES as u64 + rows.start * layout.row_bytes() as u64 + offset;
        let file = self.file(Part::Rows)?;
        self.read_exact(&file, start, bytes, (Part::Rows, chunk, rows))
    }

    /// Reads bytes that a part of the chunk must have.
    fn read_exact(
        &self,
        file: &File,
        offset: u64,
        bytes: &mut [u8],
        (part, chunk, rows): (Part, u64, Range<u64>),
    ) -> Opened<()> {
        file.read_exact_at(bytes, offset)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => {
                    Refusal::Damaged(self.damage(part, chunk, rows, "the file is too short"))
                }
                _ => Refusal::Failed(Error::io("read", self.paths.of(part))(error)),
            })
    }

    /// The ids of a chunk, and what is wrong with them.
    pub(crate) fn read_ids(&self, chunk: u64, layout: &Layout) -> Opened<(Vec<u64>, Vec<Damage>)> {
        let rows = self.chunk(chunk, layout);
        let mut bytes = vec![0; (rows.end - rows.start) as usize * 8];
        let file = self.file(Part::Ids)?;
        let place = (Part::Ids, chunk, rows.clone());
        self.read_exact(&file, rows.start * 8, &mut bytes, place)?;
        let wrong = self.parts(&rows).filter(|(part, record)| {
            let (start, end) = (
                (part.start - rows.start) as usize,
                (part.end - rows.start) as usize,
            );
            crc32(&bytes[start * 8..end * 8]) != record.ids_crc
        });
        let damage = wrong
            .map(|(part, _)| self.damage(Part::Ids, chunk, part, "the checksum differs"))
            .collect();
        let ids = bytes.as_chunks().0.iter().map(|&id| u64::from_le_bytes(id));
        Ok((ids.collect(), damage))
    }

    /// The file of the rows or of the ids, open.
    fn file(&self, part: Part) -> Opened<Arc<File>> {
        let stored = match part {
            Part::Ids => &self.ids_file,
            _ => &self.rows_file,
        };
        let file = match stored {
            Some(stored) => stored.get()?,
            None => Err(MISSING),
        };
        file.map_err(|problem| Refusal::Damaged(Damage::shard(self.number, part, problem)))
    }

    /// How many whole rows or ids a file holds as it is now.
    fn held_in(&self, part: Part, file: &File, layout: &Layout) -> Result<u64> {
        let bytes = length(file, self.paths.of(part))?;
        Ok(match part {
            Part::Ids => bytes / 8,
            _ => bytes.saturating_sub(HEADER_BYTES as u64) / layout.row_bytes() as u64,
        })
    }

    /// How many whole rows, and how many ids, the files hold as they are now.
    pub(crate) fn held(&self, layout: &Layout) -> Result<(u64, u64)> {
        let held = |part| match self.file(part) {
            Ok(file) => self.held_in(part, &file, layout),
            Err(Refusal::Damaged(_)) => Ok(0),
            Err(Refusal::Failed(error)) => Err(error),
        };
        Ok((held(Part::Rows)?, held(Part::Ids)?))
    }

    /// Compares the lengths and the header of an open shard again, as they are now.
    pub(crate) fn check_files(&self, manifest: &Manifest) -> Result<Vec<Damage>> {
        let mut damage = Vec::new();
        for part in [Part::Rows, Part::Ids] {
            let file = match self.file(part) {
                Ok(file) => file,
                Err(Refusal::Damaged(found)) => {
                    damage.push(found);
                    continue;
                }
                Err(Refusal::Failed(error)) => return Err(error),
            };
            let held = self.held_in(part, &file, &manifest.layout)?;
            if held < self.rows() {
                let problem = format!("expected {} committed rows, got {held}", self.rows());
                damage.push(Damage::shard(self.number, part, problem));
            }
            if part == Part::Rows {
                let path = &self.paths.rows;
                damage.extend(wrong_header(&file, path, self.number, manifest)?);
            }
        }
        Ok(damage)
    }
}

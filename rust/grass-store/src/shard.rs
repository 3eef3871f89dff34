//! One shard as a reader sees it: its files opened, and all that can be compared without reading rows.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::checksum::crc32;
use crate::commit_log::{self, RECORD_BYTES, Record};
use crate::error::{Damage, Error, Part, Result};
use crate::header::{HEADER_BYTES, Header};
use crate::layout::Layout;
use crate::mmap::Window;
use crate::paths::ShardPaths;

/// The committed rows of one shard.
#[derive(Debug)]
pub(crate) struct Shard {
    pub(crate) number: u32,
    /// Its first row, counted over the whole store.
    pub(crate) first_row: u64,
    pub(crate) records: Vec<Record>,
    pub(crate) paths: ShardPaths,
    rows_file: File,
    ids_file: File,
}

/// A shard that cannot be opened: damage to report with that of the others, or a real failure.
pub(crate) enum Refusal {
    Damaged(Damage),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

type Opened<T> = std::result::Result<T, Refusal>;

/// Opens a file that must be there.
fn open(path: &Path, number: u32, part: Part) -> Opened<File> {
    File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Refusal::Damaged(Damage::shard(number, part, "the file is missing"))
        }
        _ => Refusal::Failed(Error::io("open", path)(error)),
    })
}

fn length(file: &File, path: &Path) -> Result<u64> {
    Ok(file.metadata().map_err(Error::io("read", path))?.len())
}

impl Shard {
    /// Opens a closed shard of `rows` rows: every length must be exact.
    pub(crate) fn open_closed(
        store: &Path,
        number: u32,
        first_row: u64,
        rows: u64,
        layout: &Layout,
    ) -> Opened<Self> {
        let paths = ShardPaths::new(store, number);
        let rows_file = open(&paths.rows, number, Part::Rows)?;
        let ids_file = open(&paths.ids, number, Part::Ids)?;
        let log_file = open(&paths.log, number, Part::Log)?;
        let chunks = rows.div_ceil(layout.chunk_rows());
        let lengths = [
            (
                Part::Rows,
                &rows_file,
                &paths.rows,
                HEADER_BYTES as u64 + rows * layout.row_bytes() as u64,
            ),
            (Part::Ids, &ids_file, &paths.ids, rows * 8),
            (
                Part::Log,
                &log_file,
                &paths.log,
                chunks * RECORD_BYTES as u64,
            ),
        ];
        for (part, file, path, expected) in lengths {
            let got = length(file, path)?;
            if got != expected {
                let problem = format!("expected {expected} bytes for {rows} rows, got {got}");
                return Err(Refusal::Damaged(Damage::shard(number, part, problem)));
            }
        }
        let records = read_log(
            &log_file,
            &paths.log,
            number,
            chunks * RECORD_BYTES as u64,
            layout,
        )?;
        let full = |(index, record): (usize, &Record)| {
            record.rows == rows.min((index as u64 + 1) * layout.chunk_rows())
        };
        if records.len() as u64 != chunks || !records.iter().enumerate().all(full) {
            let problem = format!(
                "expected {chunks} valid records, one a chunk, got {}",
                records.len()
            );
            return Err(Refusal::Damaged(Damage::shard(number, Part::Log, problem)));
        }
        let shard = Self {
            number,
            first_row,
            records,
            paths,
            rows_file,
            ids_file,
        };
        shard.check_header(layout)?;
        Ok(shard)
    }

    /// Opens the shard that an unfinished store was writing; `None` if nothing is committed in it.
    /// Its files may go on after the committed part.
    pub(crate) fn open_unfinished(
        store: &Path,
        number: u32,
        first_row: u64,
        layout: &Layout,
    ) -> Opened<Option<Self>> {
        let paths = ShardPaths::new(store, number);
        let log_file = match File::open(&paths.log) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // The log is made before the first row is written, so rows without it lost it.
                return match paths.rows.metadata() {
                    Ok(rows) if rows.len() > HEADER_BYTES as u64 => Err(Refusal::Damaged(
                        Damage::shard(number, Part::Log, "the file is missing"),
                    )),
                    _ => Ok(None),
                };
            }
            Err(error) => return Err(Error::io("open", &paths.log)(error).into()),
        };
        let log_bytes = length(&log_file, &paths.log)?;
        if log_bytes < RECORD_BYTES as u64 {
            return Ok(None);
        }
        let rows_file = open(&paths.rows, number, Part::Rows)?;
        let ids_file = open(&paths.ids, number, Part::Ids)?;
        let row_bytes = layout.row_bytes() as u64;
        let written =
            length(&rows_file, &paths.rows)?.saturating_sub(HEADER_BYTES as u64) / row_bytes;
        // A record commits at least one row that was written before it.
        let longest = (written + 1).saturating_mul(RECORD_BYTES as u64);
        if log_bytes > longest {
            let problem =
                format!("expected at most {longest} bytes for {written} rows, got {log_bytes}");
            return Err(Refusal::Damaged(Damage::shard(number, Part::Log, problem)));
        }
        let records = read_log(&log_file, &paths.log, number, log_bytes, layout)?;
        let Some(last) = records.last() else {
            return Ok(None);
        };
        let written_ids = length(&ids_file, &paths.ids)? / 8;
        for (part, written) in [(Part::Rows, written), (Part::Ids, written_ids)] {
            if written < last.rows {
                let problem = format!("expected {} committed rows, got {written}", last.rows);
                return Err(Refusal::Damaged(Damage::shard(number, part, problem)));
            }
        }
        let shard = Self {
            number,
            first_row,
            records,
            paths,
            rows_file,
            ids_file,
        };
        shard.check_header(layout)?;
        Ok(Some(shard))
    }

    fn check_header(&self, layout: &Layout) -> Opened<()> {
        let mut bytes = [0; HEADER_BYTES];
        self.rows_file
            .read_exact_at(&mut bytes, 0)
            .map_err(Error::io("read", &self.paths.rows))?;
        header(self.number, layout)
            .check(&bytes)
            .map_err(|problem| Refusal::Damaged(Damage::shard(self.number, Part::Header, problem)))
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

    fn damage(&self, part: Part, chunk: u64, rows: Range<u64>, problem: &str) -> Damage {
        Damage {
            shard: Some(self.number),
            part,
            chunk: Some(chunk),
            rows: Some(self.first_row + rows.start..self.first_row + rows.end),
            problem: problem.to_owned(),
        }
    }

    /// Maps the rows of a chunk.
    pub(crate) fn map(&self, chunk: u64, layout: &Layout) -> Opened<Window> {
        let rows = self.chunk(chunk, layout);
        let row_bytes = layout.row_bytes();
        let offset = HEADER_BYTES as u64 + rows.start * row_bytes as u64;
        let length = (rows.end - rows.start) as usize * row_bytes;
        Window::map(&self.rows_file, offset, length)
            .map_err(Error::io("map", &self.paths.rows))?
            .ok_or_else(|| {
                Refusal::Damaged(self.damage(Part::Rows, chunk, rows, "the file is too short"))
            })
    }

    /// What is wrong with the rows of a mapped chunk.
    pub(crate) fn check_rows(&self, chunk: u64, window: &Window, layout: &Layout) -> Vec<Damage> {
        let rows = self.chunk(chunk, layout);
        let row_bytes = layout.row_bytes();
        let wrong = self.parts(&rows).filter(|(part, record)| {
            let start = (part.start - rows.start) as usize * row_bytes;
            let end = (part.end - rows.start) as usize * row_bytes;
            crc32(&window.bytes()[start..end]) != record.rows_crc
        });
        wrong
            .map(|(part, _)| self.damage(Part::Rows, chunk, part, "the checksum differs"))
            .collect()
    }

    /// The ids of a chunk, and what is wrong with them.
    pub(crate) fn read_ids(&self, chunk: u64, layout: &Layout) -> Opened<(Vec<u64>, Vec<Damage>)> {
        let rows = self.chunk(chunk, layout);
        let mut bytes = vec![0; (rows.end - rows.start) as usize * 8];
        self.ids_file
            .read_exact_at(&mut bytes, rows.start * 8)
            .map_err(|error| match error.kind() {
                io::ErrorKind::UnexpectedEof => Refusal::Damaged(self.damage(
                    Part::Ids,
                    chunk,
                    rows.clone(),
                    "the file is too short",
                )),
                _ => Refusal::Failed(Error::io("read", &self.paths.ids)(error)),
            })?;
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

    /// Compares lengths and header again, as they are now.
    pub(crate) fn check_files(&self, layout: &Layout) -> Opened<()> {
        let expected = HEADER_BYTES as u64 + self.rows() * layout.row_bytes() as u64;
        let got = length(&self.rows_file, &self.paths.rows)?;
        if got < expected {
            let problem = format!("expected {expected} bytes, got {got}");
            return Err(Refusal::Damaged(Damage::shard(
                self.number,
                Part::Rows,
                problem,
            )));
        }
        self.check_header(layout)
    }
}

/// The header that shard `number` must have.
pub(crate) fn header(number: u32, layout: &Layout) -> Header {
    Header {
        dtype: layout.dtype(),
        row_bytes: layout.row_bytes() as u64,
        shard: number,
    }
}

fn read_log(
    file: &File,
    path: &Path,
    number: u32,
    length: u64,
    layout: &Layout,
) -> Opened<Vec<Record>> {
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, 0)
        .map_err(Error::io("read", path))?;
    commit_log::parse(&bytes, layout.chunk_rows())
        .map_err(|problem| Refusal::Damaged(Damage::shard(number, Part::Log, problem)))
}

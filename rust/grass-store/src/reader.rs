//! Reading a store: any number of readers, also while it is being written.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::fingerprints::Fingerprints;
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::mmap::Window;
use crate::shard::{Refusal, Shard};

/// The committed rows of a store.
#[derive(Debug)]
pub struct StoreReader {
    path: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
}

/// One chunk of a store, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSpan {
    shard: usize,
    chunk: u64,
    /// Its rows, counted over the whole store.
    pub rows: Range<u64>,
}

/// The stored rows of one chunk, mapped.
#[derive(Debug)]
pub struct Chunk {
    rows: Range<u64>,
    row_bytes: usize,
    window: Window,
}

impl Chunk {
    /// Its rows, counted over the whole store.
    pub fn rows(&self) -> Range<u64> {
        self.rows.clone()
    }

    /// The bytes of a row, counted over the whole store.
    ///
    /// # Panics
    /// If the row is not in the chunk.
    pub fn row(&self, row: u64) -> &[u8] {
        assert!(
            self.rows.contains(&row),
            "row {row} is not in {:?}",
            self.rows
        );
        let index = (row - self.rows.start) as usize;
        &self.window.bytes()[index * self.row_bytes..][..self.row_bytes]
    }
}

/// The shards of a store, closed and open, and everything that keeps one from being read.
pub(crate) fn open_shards(path: &Path, manifest: &Manifest) -> Result<Vec<Shard>> {
    let mut shards = Vec::new();
    let mut damage = Vec::new();
    let mut first_row = 0;
    let mut keep = |outcome: std::result::Result<Option<Shard>, Refusal>| match outcome {
        Ok(shard) => {
            shards.extend(shard);
            Ok(())
        }
        Err(Refusal::Damaged(found)) => {
            damage.push(found);
            Ok(())
        }
        Err(Refusal::Failed(error)) => Err(error),
    };
    for (number, &rows) in (0..).zip(&manifest.shards) {
        keep(Shard::open_closed(path, number, first_row, rows, &manifest.layout).map(Some))?;
        first_row += rows;
    }
    if !manifest.complete {
        let number = manifest.shards.len() as u32;
        keep(Shard::open_unfinished(
            path,
            number,
            first_row,
            &manifest.layout,
        ))?;
    }
    if damage.is_empty() {
        return Ok(shards);
    }
    Err(Error::Corrupt {
        path: path.to_path_buf(),
        damage,
    })
}

impl StoreReader {
    /// Opens a store, finished or not; of an unfinished one, the committed rows.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Format`], [`Error::Corrupt`] with everything that does not
    /// fit, [`Error::Io`]. Checksums of rows and ids are not compared yet.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let manifest = Manifest::read(&path)?;
        let shards = open_shards(&path, &manifest)?;
        Ok(Self {
            path,
            manifest,
            shards,
        })
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How its rows are laid out.
    pub fn layout(&self) -> &Layout {
        &self.manifest.layout
    }

    /// Whether the writer has finished it.
    pub fn complete(&self) -> bool {
        self.manifest.complete
    }

    /// What tells its plan and model apart from others.
    pub fn fingerprints(&self) -> &Fingerprints {
        &self.manifest.fingerprints
    }

    /// Ids that were left out on purpose, ascending.
    pub fn skipped_ids(&self) -> &[u64] {
        &self.manifest.skipped_ids
    }

    /// How many rows there are.
    pub fn rows(&self) -> u64 {
        self.shards
            .last()
            .map_or(0, |shard| shard.first_row + shard.rows())
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// The ids of all rows, in their order.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with everything wrong in the ids, [`Error::Io`].
    pub fn ids(&self) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        let mut damage = Vec::new();
        for span in self.chunks(0..self.rows()) {
            let (shard, chunk) = self.locate(&span);
            match shard.read_ids(chunk, self.layout()) {
                Ok((read, found)) => {
                    ids.extend(read);
                    damage.extend(found);
                }
                Err(refusal) => return Err(self.refused(refusal)),
            }
        }
        match damage.is_empty() {
            true => Ok(ids),
            false => Err(Error::Corrupt {
                path: self.path.clone(),
                damage,
            }),
        }
    }

    /// The chunks that hold these rows, in order.
    pub fn chunks(&self, rows: Range<u64>) -> Vec<ChunkSpan> {
        let chunk_rows = self.layout().chunk_rows();
        let mut spans = Vec::new();
        for (index, shard) in self.shards.iter().enumerate() {
            let first = shard.first_row;
            let start = rows.start.saturating_sub(first);
            let end = rows.end.saturating_sub(first).min(shard.rows());
            if start >= end {
                continue;
            }
            spans.extend((start / chunk_rows..end.div_ceil(chunk_rows)).map(|chunk| {
                let rows = shard.chunk(chunk, self.layout());
                ChunkSpan {
                    shard: index,
                    chunk,
                    rows: first + rows.start..first + rows.end,
                }
            }));
        }
        spans
    }

    pub(crate) fn locate(&self, span: &ChunkSpan) -> (&Shard, u64) {
        (&self.shards[span.shard], span.chunk)
    }

    fn refused(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Damaged(damage) => Error::corrupt(&self.path, damage),
            Refusal::Failed(error) => error,
        }
    }

    fn map(&self, span: &ChunkSpan) -> Result<Chunk> {
        let (shard, chunk) = self.locate(span);
        let window = shard
            .map(chunk, self.layout())
            .map_err(|refusal| self.refused(refusal))?;
        Ok(Chunk {
            rows: span.rows.clone(),
            row_bytes: self.layout().row_bytes(),
            window,
        })
    }

    /// Maps a chunk and compares its checksums.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the damaged row ranges, [`Error::Io`].
    pub fn checked_chunk(&self, span: &ChunkSpan) -> Result<Chunk> {
        let chunk = self.map(span)?;
        let (shard, number) = self.locate(span);
        let damage = shard.check_rows(number, &chunk.window, self.layout());
        match damage.is_empty() {
            true => Ok(chunk),
            false => Err(Error::Corrupt {
                path: self.path.clone(),
                damage,
            }),
        }
    }

    /// The values of some rows, in the order asked for. Only those rows are read, so checksums,
    /// which cover chunks, are not compared: see [`StoreReader::verify`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Corrupt`] if a file has become too short, [`Error::Io`].
    pub fn read_rows(&self, rows: &[u64]) -> Result<Vec<f32>> {
        let width = self.layout().width();
        if let Some(&row) = rows.iter().find(|&&row| row >= self.rows()) {
            return Err(Error::OutOfRange {
                row,
                rows: self.rows(),
            });
        }
        let mut values = Vec::new();
        let length = rows.len().saturating_mul(width);
        values.try_reserve_exact(length).map_err(|_| Error::Io {
            action: "take memory for rows of",
            path: self.path.clone(),
            source: io::ErrorKind::OutOfMemory.into(),
            hint: "read fewer rows at once",
        })?;
        values.resize(length, 0f32);
        let mut mapped: Option<Chunk> = None;
        for (&row, out) in rows.iter().zip(values.chunks_exact_mut(width)) {
            let chunk = match mapped.take() {
                Some(chunk) if chunk.rows.contains(&row) => chunk,
                _ => self.map(&self.chunks(row..row + 1)[0])?,
            };
            self.layout().decode(chunk.row(row), 0..width, out);
            mapped = Some(chunk);
        }
        Ok(values)
    }
}

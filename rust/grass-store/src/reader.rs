//! Reading a store: any number of readers, also while it is being written.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use grass_core::parallel::Workers;

use crate::error::{Damage, Error, Result};
use crate::fingerprints::Fingerprints;
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::mmap::Window;
use crate::shard::{Found, Refusal, Shard};

/// Numbers of a row that are decoded between two looks at the cancel flag.
const PIECE: usize = 1 << 20;

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
pub(crate) fn find_shards(path: &Path, manifest: &Manifest) -> Result<(Vec<Shard>, Vec<Damage>)> {
    let (mut shards, mut damage) = (Vec::new(), Vec::new());
    let mut keep = |found: Found| {
        shards.extend(found.shard);
        damage.extend(found.damage);
    };
    let mut first_row = 0;
    for (number, &rows) in (0..).zip(&manifest.shards) {
        keep(Shard::open_closed(
            path,
            number,
            first_row,
            rows,
            &manifest.layout,
        )?);
        first_row += rows;
    }
    if !manifest.complete {
        let number = manifest.shards.len() as u32;
        keep(Shard::open_unfinished(
            path,
            number,
            first_row,
            &manifest.layout,
        )?);
    }
    Ok((shards, damage))
}

/// The shards of a store that has no damage that opening it finds.
pub(crate) fn open_shards(path: &Path, manifest: &Manifest) -> Result<Vec<Shard>> {
    let (shards, damage) = find_shards(path, manifest)?;
    Error::unless_whole(path, damage)?;
    Ok(shards)
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
    /// [`Error::Corrupt`] with everything wrong in the ids, [`Error::Io`], [`Error::Core`] when cancelled.
    pub fn ids(&self, workers: &Workers) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        let mut damage = Vec::new();
        for span in self.chunks(0..self.rows()) {
            workers.check()?;
            let (shard, chunk) = self.locate(&span);
            match shard.read_ids(chunk, self.layout()) {
                Ok((read, found)) => {
                    ids.extend(read);
                    damage.extend(found);
                }
                Err(refusal) => return Err(self.refused(refusal)),
            }
        }
        Error::unless_whole(&self.path, damage)?;
        Ok(ids)
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
    /// [`Error::Corrupt`] with the damaged row ranges, [`Error::Io`], [`Error::Core`] when cancelled.
    pub fn checked_chunk(&self, span: &ChunkSpan, workers: &Workers) -> Result<Chunk> {
        let chunk = self.map(span)?;
        let (shard, number) = self.locate(span);
        let damage = shard.check_rows(number, &chunk.window, self.layout(), workers)?;
        Error::unless_whole(&self.path, damage)?;
        Ok(chunk)
    }

    /// The values of some rows, in the order asked for. Only those rows are read, so checksums,
    /// which cover chunks, are not compared: see [`StoreReader::verify`].
    ///
    /// # Errors
    /// [`Error::OutOfRange`], [`Error::Corrupt`] if a file has become too short, [`Error::Io`],
    /// [`Error::Core`] when cancelled.
    pub fn read_rows(&self, rows: &[u64], workers: &Workers) -> Result<Vec<f32>> {
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
        let mut mapped: Option<Chunk> = None;
        for &row in rows {
            let chunk = match mapped.take() {
                Some(chunk) if chunk.rows.contains(&row) => chunk,
                _ => self.map(&self.chunks(row..row + 1)[0])?,
            };
            for start in (0..width).step_by(PIECE) {
                workers.check()?;
                let coordinates = start..width.min(start + PIECE);
                // Filled as they come: clearing all of the memory first could itself take seconds.
                let done = values.len();
                values.resize(done + coordinates.len(), 0f32);
                self.layout()
                    .decode(chunk.row(row), coordinates, &mut values[done..]);
            }
            mapped = Some(chunk);
        }
        Ok(values)
    }
}

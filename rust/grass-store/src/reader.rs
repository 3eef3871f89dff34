//! Reading a store: any number of readers, also while it is being written.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use grass_core::parallel::Workers;
use sha2::{Digest, Sha256};

use crate::chunk::{Chunk, ChunkReader, ChunkSpan};
use crate::commit_log;
use crate::error::{Damage, Error, Result};
use crate::fingerprints::Fingerprints;
use crate::layout::Layout;
use crate::manifest::{ClosedShard, Manifest};
use crate::paths::{self, ShardPaths};
use crate::shard::{Found, Refusal, Shard};

/// Numbers of a row that are read and decoded between two looks at the cancel flag.
const PIECE: usize = 1 << 18;

/// Bytes of a chunk that are read at once.
pub(crate) const PIECE_BYTES: u64 = 1 << 20;

/// The committed rows of a store.
#[derive(Debug)]
pub struct StoreReader {
    path: PathBuf,
    manifest: Manifest,
    shards: Vec<Shard>,
}

/// The shards of a store, closed and open, and everything that keeps one from being read.
pub(crate) fn find_shards(path: &Path, manifest: &Manifest) -> Result<(Vec<Shard>, Vec<Damage>)> {
    let (mut shards, mut damage) = (Vec::new(), Vec::new());
    let closed = manifest
        .shards
        .iter()
        .map(|shard| (shard.number, Some(*shard)));
    let mut numbers: BTreeMap<u32, Option<ClosedShard>> = closed.collect();
    for number in paths::shard_numbers(path)? {
        numbers.entry(number).or_default();
    }
    for (number, closed) in numbers {
        let first_row = shards
            .last()
            .map_or(0, |shard: &Shard| shard.first_row + shard.rows());
        if closed.is_none() {
            ShardPaths::new(path, number).check_are_files()?;
        }
        let found = match closed {
            Some(closed) => Shard::open_closed(path, closed, first_row, manifest)?,
            None if manifest.complete => Found::unlisted(number),
            None => Shard::open_unfinished(path, number, first_row, manifest)?,
        };
        shards.extend(found.shard);
        damage.extend(found.damage);
    }
    Ok((shards, damage))
}

/// Looks at a store that is being written until it stands still: one look at files of which some
/// were changed since the others were looked at could take that for damage.
const LOOKS: usize = 16;

/// The manifest and the shards of a store, closed and open, and everything that keeps one from
/// being read.
pub(crate) fn look(path: &Path) -> Result<(Manifest, Vec<Shard>, Vec<Damage>)> {
    let mut manifest = Manifest::read(path)?;
    let (mut shards, mut damage) = find_shards(path, &manifest)?;
    for _ in 1..LOOKS {
        if damage.is_empty() {
            break;
        }
        let before = (manifest, damage);
        manifest = Manifest::read(path)?;
        (shards, damage) = find_shards(path, &manifest)?;
        if (&manifest, &damage) == (&before.0, &before.1) {
            break;
        }
    }
    Ok((manifest, shards, damage))
}

impl StoreReader {
    /// Opens a store, finished or not; of an unfinished one, the committed rows.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Format`], [`Error::Corrupt`] with everything that does not
    /// fit, [`Error::Io`]. Checksums of rows and ids are not compared yet.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        let (manifest, shards, damage) = look(&path)?;
        Error::unless_whole(&path, damage)?;
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

    /// SHA-256 of the manifest and the commit logs, and so of every row and id as far as their
    /// checksums tell: what is derived from the store is kept under it.
    ///
    /// # Errors
    /// [`Error::Columns`] if the specs cannot be written as JSON.
    pub fn fingerprint(&self) -> Result<[u8; 32]> {
        let mut digest = Sha256::new_with_prefix(self.manifest.to_bytes()?);
        for shard in &self.shards {
            digest.update(commit_log::to_bytes(&shard.records));
        }
        Ok(digest.finalize().into())
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

    pub(crate) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(crate) fn shards(&self) -> &[Shard] {
        &self.shards
    }

    pub(crate) fn into_shards(self) -> Vec<Shard> {
        self.shards
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
    pub fn chunks(&self, rows: Range<u64>) -> impl Iterator<Item = ChunkSpan> + Send {
        let layout = self.layout();
        let chunk_rows = layout.chunk_rows();
        self.shards
            .iter()
            .enumerate()
            .flat_map(move |(index, shard)| {
                let first = shard.first_row;
                let start = rows.start.saturating_sub(first).min(shard.rows());
                let end = rows.end.saturating_sub(first).min(shard.rows());
                let chunks = start / chunk_rows..end.div_ceil(chunk_rows);
                let none = start >= end;
                chunks.filter(move |_| !none).map(move |chunk| {
                    let rows = shard.chunk(chunk, layout);
                    ChunkSpan {
                        shard: index,
                        chunk,
                        rows: first + rows.start..first + rows.end,
                    }
                })
            })
    }

    /// The chunk of a row that the store has.
    fn chunk_of(&self, row: u64) -> ChunkSpan {
        let shard = self.shards.partition_point(|shard| shard.first_row <= row) - 1;
        let found = &self.shards[shard];
        let chunk = (row - found.first_row) / self.layout().chunk_rows();
        let rows = found.chunk(chunk, self.layout());
        ChunkSpan {
            shard,
            chunk,
            rows: found.first_row + rows.start..found.first_row + rows.end,
        }
    }

    pub(crate) fn locate(&self, span: &ChunkSpan) -> (&Shard, u64) {
        (&self.shards[span.shard], span.chunk)
    }

    pub(crate) fn refused(&self, refusal: Refusal) -> Error {
        match refusal {
            Refusal::Damaged(damage) => Error::corrupt(&self.path, damage),
            Refusal::Failed(error) => error,
        }
    }

    /// Begins to read the rows of a chunk.
    pub fn chunk_reader(&self, span: &ChunkSpan) -> ChunkReader<'_> {
        ChunkReader::new(self, span)
    }

    /// The ids of a chunk's rows, equal to their checksums.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the damaged row ranges, [`Error::Io`].
    pub fn chunk_ids(&self, span: &ChunkSpan) -> Result<Vec<u64>> {
        let (shard, chunk) = self.locate(span);
        let (ids, damage) = shard
            .read_ids(chunk, self.layout())
            .map_err(|refusal| self.refused(refusal))?;
        Error::unless_whole(&self.path, damage)?;
        Ok(ids)
    }

    /// Reads a chunk into memory, that of `buffer` if it is enough, and compares its checksums.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the damaged row ranges, [`Error::Io`], [`Error::Core`] when cancelled.
    pub fn checked_chunk(
        &self,
        span: &ChunkSpan,
        mut buffer: Vec<u8>,
        workers: &Workers,
    ) -> Result<Chunk> {
        let mut reader = self.chunk_reader(span);
        buffer.clear();
        self.reserve(&mut buffer, reader.length())?;
        while (buffer.len() as u64) < reader.length() {
            workers.check()?;
            let (start, left) = (buffer.len(), reader.length() - buffer.len() as u64);
            // Filled as they come: clearing a long row first could itself take seconds.
            buffer.resize(start + left.min(PIECE_BYTES) as usize, 0);
            reader.read(&mut buffer[start..])?;
            reader.compare(&buffer[start..]);
        }
        reader.finish()?;
        Ok(Chunk {
            rows: span.rows.clone(),
            row_bytes: self.layout().row_bytes(),
            bytes: buffer,
        })
    }

    /// Room for `length` values, or an error where it cannot be had.
    fn reserve<T>(&self, values: &mut Vec<T>, length: u64) -> Result<()> {
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        values.try_reserve_exact(length).map_err(|_| Error::Io {
            action: "take memory for rows of",
            path: self.path.clone(),
            source: io::ErrorKind::OutOfMemory.into(),
            hint: "read fewer rows at once",
        })
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
        self.reserve(&mut values, length as u64)?;
        let layout = self.layout();
        let scales = layout.scale_bytes();
        // Of a long row: its scales, then some of its numbers at a time.
        let mut stored = Vec::new();
        let mut found: Option<ChunkSpan> = None;
        for &row in rows {
            let span = match found.take() {
                Some(span) if span.rows.contains(&row) => span,
                _ => self.chunk_of(row),
            };
            let (shard, chunk) = self.locate(&span);
            let first = (row - span.rows.start) * layout.row_bytes() as u64;
            let read = |offset: usize, bytes: &mut [u8]| {
                shard
                    .read_rows(chunk, layout, first + offset as u64, bytes)
                    .map_err(|refusal| self.refused(refusal))
            };
            stored.resize(scales, 0);
            read(0, &mut stored)?;
            for start in (0..width).step_by(PIECE) {
                workers.check()?;
                let coordinates = start..width.min(start + PIECE);
                let bytes = layout.number_bytes(coordinates.clone());
                stored.resize(scales + bytes.len(), 0);
                read(bytes.start, &mut stored[scales..])?;
                // Filled as they come: clearing all of the memory first could itself take seconds.
                let done = values.len();
                values.resize(done + coordinates.len(), 0f32);
                let (scales, numbers) = stored.split_at(scales);
                layout.decode(scales, numbers, coordinates, &mut values[done..]);
            }
            found = Some(span);
        }
        Ok(values)
    }
}

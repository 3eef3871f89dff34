//! The rows of one chunk, read into memory and compared with their checksums on the way.

use std::ops::Range;

use crate::error::{Damage, Error, Part, Result};
use crate::layout::Layout;
use crate::reader::StoreReader;
use crate::shard::{Opened, Shard};

/// One chunk of a store, not yet read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSpan {
    pub(crate) shard: usize,
    pub(crate) chunk: u64,
    /// Its rows, counted over the whole store.
    pub rows: Range<u64>,
}

/// The stored rows of one chunk, in memory, equal to their checksums.
#[derive(Debug)]
pub struct Chunk {
    pub(crate) rows: Range<u64>,
    pub(crate) row_bytes: usize,
    pub(crate) bytes: Vec<u8>,
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
        &self.bytes[index * self.row_bytes..][..self.row_bytes]
    }

    /// Its memory, to read another chunk into.
    pub fn into_buffer(self) -> Vec<u8> {
        self.bytes
    }
}

/// Reads the rows of one chunk, a run of bytes after the other.
///
/// What [`ChunkReader::read`] gives is not yet compared: hand every byte to [`ChunkReader::compare`], in order, or the
/// CRC-32 of all to [`ChunkReader::compare_whole`], and keep no result of them before [`ChunkReader::finish`] has returned.
#[derive(Debug)]
pub struct ChunkReader<'a> {
    store: &'a StoreReader,
    rows: ChunkRows<'a>,
}

impl<'a> ChunkReader<'a> {
    pub(crate) fn new(store: &'a StoreReader, span: &ChunkSpan) -> Self {
        let (shard, chunk) = store.locate(span);
        Self {
            store,
            rows: ChunkRows::new(shard, chunk, store.layout()),
        }
    }

    /// Bytes of all rows of the chunk.
    pub fn length(&self) -> u64 {
        self.rows.length()
    }

    /// Reads the next bytes.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the file has become too short, [`Error::Io`].
    ///
    /// # Panics
    /// If that is more than the chunk has.
    pub fn read(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.rows
            .read(bytes)
            .map_err(|refusal| self.store.refused(refusal))
    }

    /// Reads bytes from `offset` on of a chunk that an earlier reader has compared: they are not compared again.
    ///
    /// # Errors
    /// As [`ChunkReader::read`].
    ///
    /// # Panics
    /// If that is more than the chunk has.
    pub fn read_again(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        self.rows
            .read_at(offset, bytes)
            .map_err(|refusal| self.store.refused(refusal))
    }

    /// Takes bytes that were read into the checksums.
    pub fn compare(&mut self, bytes: &[u8]) {
        self.rows.compare(bytes);
    }

    /// Whether one checksum covers all of the chunk, as in a finished store.
    pub fn has_one_checksum(&self) -> bool {
        self.rows.has_one_checksum()
    }

    /// Takes a CRC-32 of all bytes of the chunk in place of [`ChunkReader::compare`].
    ///
    /// # Panics
    /// If the chunk has several checksums, or bytes were compared before.
    pub fn compare_whole(&mut self, crc32: u32) {
        self.rows.compare_whole(crc32);
    }

    /// Tells whether all that was read is what was written.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the damaged rows.
    ///
    /// # Panics
    /// If not every byte of the chunk was compared.
    pub fn finish(self) -> Result<()> {
        Error::unless_whole(self.store.path(), self.rows.finish())
    }
}

/// The rows of one chunk of a shard, read and compared piece by piece.
#[derive(Debug)]
pub(crate) struct ChunkRows<'a> {
    shard: &'a Shard,
    chunk: u64,
    layout: &'a Layout,
    /// Bytes that were read and that were compared.
    read: u64,
    compared: u64,
    hasher: crc32fast::Hasher,
    damage: Vec<Damage>,
}

impl<'a> ChunkRows<'a> {
    pub(crate) fn new(shard: &'a Shard, chunk: u64, layout: &'a Layout) -> Self {
        Self {
            shard,
            chunk,
            layout,
            read: 0,
            compared: 0,
            hasher: crc32fast::Hasher::new(),
            damage: Vec::new(),
        }
    }

    pub(crate) fn length(&self) -> u64 {
        let rows = self.shard.chunk(self.chunk, self.layout);
        (rows.end - rows.start) * self.layout.row_bytes() as u64
    }

    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> Opened<()> {
        self.read_at(self.read, bytes)?;
        self.read += bytes.len() as u64;
        Ok(())
    }

    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Opened<()> {
        let end = offset + bytes.len() as u64;
        assert!(end <= self.length(), "a chunk has {} bytes", self.length());
        self.shard.read_rows(self.chunk, self.layout, offset, bytes)
    }

    pub(crate) fn compare(&mut self, mut bytes: &[u8]) {
        let row_bytes = self.layout.row_bytes() as u64;
        let chunk = self.shard.chunk(self.chunk, self.layout);
        while !bytes.is_empty() {
            // The record that commits the row of the next byte.
            let row = chunk.start + self.compared / row_bytes;
            let (rows, record) = self.shard.part(&chunk, row);
            let end = (rows.end - chunk.start) * row_bytes;
            let length = usize::try_from(end - self.compared)
                .map_or(bytes.len(), |left| left.min(bytes.len()));
            let (now, later) = bytes.split_at(length);
            self.hasher.update(now);
            self.compared += length as u64;
            bytes = later;
            if self.compared == end {
                let crc32 = std::mem::take(&mut self.hasher).finalize();
                self.hold_against(rows, record.rows_crc, crc32);
            }
        }
    }

    pub(crate) fn has_one_checksum(&self) -> bool {
        let chunk = self.shard.chunk(self.chunk, self.layout);
        self.shard.part(&chunk, chunk.start).0 == chunk
    }

    pub(crate) fn compare_whole(&mut self, crc32: u32) {
        let chunk = self.shard.chunk(self.chunk, self.layout);
        let (rows, record) = self.shard.part(&chunk, chunk.start);
        assert!(
            rows == chunk && self.compared == 0,
            "one checksum of a whole chunk"
        );
        self.compared = self.length();
        self.hold_against(rows, record.rows_crc, crc32);
    }

    fn hold_against(&mut self, rows: Range<u64>, written: u32, read: u32) {
        if read != written {
            let problem = "the checksum differs";
            let damage = self.shard.damage(Part::Rows, self.chunk, rows, problem);
            self.damage.push(damage);
        }
    }

    pub(crate) fn finish(self) -> Vec<Damage> {
        assert_eq!(
            self.compared,
            self.length(),
            "every byte of a chunk is compared"
        );
        self.damage
    }
}

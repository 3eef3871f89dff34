//! Fisher matrices kept beside a store, so that later calls need not read its rows to gather them.
//!
//! The folder `<store>.fisher`, next to the store's and never inside it, has a file a column, `column-00000.fisher`, by the
//! column's number; one whose products were summed in double precision is `column-00000.double.fisher`, and one of
//! neighbouring columns together, by the first and last number, `columns-00000-00003.fisher`. All numbers are little endian:
//!
//! ```text
//! 0 "GRASSFSH", of products in double precision "GRASSFSD" | 8 version u32 | 12 (first) column u32 | 16 size u64
//! 24 the store's fingerprint, 32 bytes (of several columns the SHA-256 of it and, u64, of the number after the last) | 56 CRC-32 of the bytes before u32
//! 60 the lower triangle of sum g g^T, or of the rows' inner products where the column has more coordinates than the store
//!    has rows: row after row up to the diagonal, f64, in blocks of 131072 numbers (the last one shorter), after each its CRC-32 u32
//! ```
//!
//! So a column takes `size^2 * 4` bytes of disk: 64 MiB for 4096 coordinates. The folder can be deleted at any time.
//!
//! A file is believed only where its length, header and checksums are right and its fingerprint is the store's, which pins
//! every row; else the matrix is gathered again and the file replaced. So files are renamed into place but not synced, which
//! for hundreds of small columns would take seconds: what a power loss tears is gathered again. A folder that cannot be read or written costs time
//! and nothing else. Saved numbers are the gathered ones, bit for bit, so scores are the same with and without (on machines
//! of one set of vector instructions: others round the products of single precision differently).

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::PathBuf;

use grass_core::parallel::Workers;
use grass_store::StoreReader;
use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::preconditioner::{Block, Precision};
use crate::tiles::SymmetricTiles;

/// Also of the way in which the matrix is summed: another way needs another number.
const VERSION: u32 = 1;

const HEADER_BYTES: usize = 60;

/// Numbers of a block.
const BLOCK_VALUES: usize = 1 << 17;

/// The saved matrices of one store.
pub(crate) struct SavedFisher {
    /// `None` where the store's folder has no name to put another one beside.
    folder: Option<PathBuf>,
    fingerprint: [u8; 32],
}

impl SavedFisher {
    /// Those of a store, which need not be there.
    ///
    /// # Errors
    /// [`crate::Error::Store`].
    pub(crate) fn new(store: &StoreReader) -> Result<Self> {
        let folder = fs::canonicalize(store.path()).ok().and_then(|path| {
            let mut name = OsString::from(path.file_name()?);
            name.push(".fisher");
            let folder = path.with_file_name(name);
            // Another store may have that name.
            (!folder.join("manifest.json").exists()).then_some(folder)
        });
        let fingerprint = store.fingerprint()?;
        Ok(Self {
            folder,
            fingerprint,
        })
    }

    /// Of the store, and of the columns where they are several.
    fn fingerprint(&self, block: &Block) -> [u8; 32] {
        if block.columns.len() == 1 {
            return self.fingerprint;
        }
        let mut digest = Sha256::new_with_prefix(self.fingerprint);
        digest.update((block.columns.end as u64).to_le_bytes());
        digest.finalize().into()
    }

    fn header(&self, block: &Block, precision: Precision, size: usize) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        header[..8].copy_from_slice(match precision {
            Precision::Single => b"GRASSFSH",
            Precision::Double => b"GRASSFSD",
        });
        header[8..12].copy_from_slice(&VERSION.to_le_bytes());
        header[12..16].copy_from_slice(&(block.columns.start as u32).to_le_bytes());
        header[16..24].copy_from_slice(&(size as u64).to_le_bytes());
        header[24..56].copy_from_slice(&self.fingerprint(block));
        let checksum = crc32fast::hash(&header[..56]);
        header[56..].copy_from_slice(&checksum.to_le_bytes());
        header
    }

    /// The saved matrix of a column, if there is one to be believed.
    ///
    /// # Errors
    /// [`crate::Error::Memory`], [`crate::Error::Core`] when cancelled.
    pub(crate) fn load(
        &self,
        block: &Block,
        precision: Precision,
        size: usize,
        workers: &Workers,
    ) -> Result<Option<SymmetricTiles>> {
        let Some(mut reader) = self.open(block, precision, size) else {
            return Ok(None);
        };
        let mut matrix = SymmetricTiles::zeros(size, &block.name, workers)?;
        for row in 0..size {
            workers.check()?;
            for values in matrix.lower_row_mut(row) {
                if !reader.fill(values) {
                    return Ok(None);
                }
            }
        }
        Ok(Some(matrix))
    }

    /// The blocks of a file whose length and header are right.
    fn open(&self, block: &Block, precision: Precision, size: usize) -> Option<BlockReader> {
        let folder = self.folder.as_ref()?;
        let mut file = File::open(folder.join(name(block, precision))).ok()?;
        let mut header = [0; HEADER_BYTES];
        let left = values(size);
        if file.metadata().ok()?.len() != file_bytes(left) {
            return None;
        }
        file.read_exact(&mut header).ok()?;
        (header == self.header(block, precision, size)).then_some(BlockReader {
            file,
            left,
            block: Vec::new(),
            used: 0,
        })
    }

    /// Keeps the matrix of a column, where the disk lets it.
    ///
    /// # Errors
    /// [`crate::Error::Core`] when cancelled.
    pub(crate) fn save(
        &self,
        block: &Block,
        precision: Precision,
        matrix: &SymmetricTiles,
        workers: &Workers,
    ) -> Result<()> {
        let Some(folder) = &self.folder else {
            return Ok(());
        };
        let name = name(block, precision);
        let path = folder.join(&name);
        let temporary = folder.join(format!("{name}.tmp"));
        // One writer at a time: another one is about to save the same numbers.
        let lock = fs::create_dir_all(folder).and_then(|()| File::create(folder.join(".lock")));
        let Ok(lock) = lock else {
            return Ok(());
        };
        if lock.try_lock().is_err() {
            return Ok(());
        }
        let written = File::create(&temporary).and_then(|file| {
            let header = self.header(block, precision, matrix.size);
            let whole = write(file, &header, matrix, workers)?;
            if whole {
                fs::rename(&temporary, &path)?;
            }
            Ok(whole)
        });
        if !matches!(written, Ok(true)) {
            // What is left behind is never read, and replaced by the next one.
            let _ = fs::remove_file(&temporary);
        }
        Ok(workers.check()?)
    }
}

fn name(block: &Block, precision: Precision) -> String {
    let kind = match precision {
        Precision::Single => "fisher",
        Precision::Double => "double.fisher",
    };
    let (first, last) = (block.columns.start, block.columns.end - 1);
    match first == last {
        true => format!("column-{first:05}.{kind}"),
        false => format!("columns-{first:05}-{last:05}.{kind}"),
    }
}

/// Numbers in the lower triangle of a matrix.
fn values(size: usize) -> u64 {
    let size = size as u64;
    size * (size + 1) / 2
}

fn file_bytes(values: u64) -> u64 {
    HEADER_BYTES as u64 + values * 8 + values.div_ceil(BLOCK_VALUES as u64) * 4
}

/// Writes a whole file; false when cancelled before that.
fn write(
    mut file: File,
    header: &[u8; HEADER_BYTES],
    matrix: &SymmetricTiles,
    workers: &Workers,
) -> io::Result<bool> {
    file.write_all(header)?;
    let mut block = Vec::with_capacity(BLOCK_VALUES * 8 + 4);
    for row in 0..matrix.size {
        if workers.check().is_err() {
            return Ok(false);
        }
        for mut values in matrix.lower_row(row) {
            while !values.is_empty() {
                let room = BLOCK_VALUES - block.len() / 8;
                let (now, later) = values.split_at(room.min(values.len()));
                block.extend(now.iter().flat_map(|value| value.to_le_bytes()));
                values = later;
                if block.len() == BLOCK_VALUES * 8 {
                    write_block(&mut file, &mut block)?;
                }
            }
        }
    }
    write_block(&mut file, &mut block)?;
    Ok(true)
}

/// Writes a block, unless it is empty, and empties it.
fn write_block(file: &mut File, block: &mut Vec<u8>) -> io::Result<()> {
    if block.is_empty() {
        return Ok(());
    }
    let checksum = crc32fast::hash(block);
    block.extend(checksum.to_le_bytes());
    file.write_all(block)?;
    block.clear();
    Ok(())
}

/// The numbers of a file, whose blocks are compared with their checksums before any of them is handed out.
struct BlockReader {
    file: File,
    /// Numbers that are not read yet.
    left: u64,
    block: Vec<u8>,
    /// Bytes of the block that were handed out.
    used: usize,
}

impl BlockReader {
    /// Fills in the next numbers; false where they cannot be believed.
    fn fill(&mut self, mut out: &mut [f64]) -> bool {
        while !out.is_empty() {
            if self.used == self.block.len() && self.next().is_none() {
                return false;
            }
            let ready = self.block[self.used..].as_chunks::<8>().0;
            let count = ready.len().min(out.len());
            let (now, later) = out.split_at_mut(count);
            for (value, bytes) in now.iter_mut().zip(ready) {
                *value = f64::from_le_bytes(*bytes);
            }
            self.used += count * 8;
            out = later;
        }
        true
    }

    fn next(&mut self) -> Option<()> {
        let count = self.left.min(BLOCK_VALUES as u64);
        if count == 0 {
            return None;
        }
        self.block.resize(count as usize * 8, 0);
        self.file.read_exact(&mut self.block).ok()?;
        let mut checksum = [0; 4];
        self.file.read_exact(&mut checksum).ok()?;
        self.left -= count;
        self.used = 0;
        (u32::from_le_bytes(checksum) == crc32fast::hash(&self.block)).then_some(())
    }
}

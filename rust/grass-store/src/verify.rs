//! Reads every byte of a store and lists everything that is wrong with it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use grass_core::parallel::Workers;

use crate::chunk::ChunkRows;
use crate::error::{Damage, Error, Result};
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::reader::{PIECE_BYTES, StoreReader, look};
use crate::shard::{Opened, Refusal, Shard};

/// Compares every checksum of the store in a folder, also of one too damaged to be opened: all
/// that its manifest and the logs of its shards still tell of.
///
/// # Errors
/// [`Error::Corrupt`] with all damage found, each with shard, chunk and row range;
/// [`Error::NotFound`], [`Error::Format`], [`Error::Io`]; [`Error::Core`] when cancelled.
pub fn verify(path: &Path, workers: &Workers) -> Result<()> {
    let (manifest, shards, mut damage) = look(path)?;
    damage.extend(damaged_chunks(&shards, &manifest.layout, workers)?);
    Error::unless_whole(path, damage)
}

impl StoreReader {
    /// Compares every checksum of the rows that this reader has: manifest, headers, rows and ids.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with all damage found, each with shard, chunk and row range;
    /// [`Error::Io`]; [`Error::Core`] when cancelled.
    pub fn verify(&self, workers: &Workers) -> Result<()> {
        let mut damage = match Manifest::read(self.path()) {
            Ok(_) => Vec::new(),
            Err(Error::Corrupt { damage, .. }) => damage,
            Err(error) => return Err(error),
        };
        for shard in self.shards() {
            damage.extend(shard.check_files(self.manifest())?);
        }
        damage.extend(damaged_chunks(self.shards(), self.layout(), workers)?);
        Error::unless_whole(self.path(), damage)
    }
}

/// What is wrong with the rows and ids that the files of these shards hold. What they lack is
/// known from their lengths.
pub(crate) fn damaged_chunks(
    shards: &[Shard],
    layout: &Layout,
    workers: &Workers,
) -> Result<Vec<Damage>> {
    let mut tasks = Vec::new();
    for shard in shards {
        let held = shard.held(layout)?;
        let chunks = shard.rows().div_ceil(layout.chunk_rows());
        tasks.extend((0..chunks).map(|chunk| (shard, held, chunk)));
    }
    let (found, buffers) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    workers.for_each(tasks, |(shard, (rows, ids), chunk)| {
        let end = shard.chunk(chunk, layout).end;
        let mut damage = Vec::new();
        if end <= rows {
            let mut buffer = lock(&buffers).pop().unwrap_or_default();
            let outcome = damaged_rows(ChunkRows::new(shard, chunk, layout), &mut buffer, workers);
            lock(&buffers).push(buffer);
            damage.extend(damage_of(outcome)?);
        }
        if end <= ids {
            let read = shard.read_ids(chunk, layout);
            damage.extend(damage_of(read.map(|(_, damage)| damage))?);
        }
        lock(&found).extend(damage);
        Ok::<(), Error>(())
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is wrong with the rows of a chunk, read through a buffer.
fn damaged_rows(
    mut rows: ChunkRows<'_>,
    buffer: &mut Vec<u8>,
    workers: &Workers,
) -> Opened<Vec<Damage>> {
    let mut left = rows.length();
    while left > 0 {
        workers.check().map_err(Error::from)?;
        let length = left.min(PIECE_BYTES);
        buffer.resize(length as usize, 0);
        rows.read(buffer)?;
        rows.compare(buffer);
        left -= length;
    }
    Ok(rows.finish())
}

/// Damage found, with that which kept a part from being looked at.
fn damage_of(outcome: Opened<Vec<Damage>>) -> Result<Vec<Damage>> {
    match outcome {
        Ok(damage) => Ok(damage),
        Err(Refusal::Damaged(damage)) => Ok(vec![damage]),
        Err(Refusal::Failed(error)) => Err(error),
    }
}

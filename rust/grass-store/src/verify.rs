//! Reads every byte of a store and lists everything that is wrong with it.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use grass_core::parallel::Workers;

use crate::error::{Damage, Error, Result};
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::reader::{StoreReader, find_shards};
use crate::shard::{Refusal, Shard};

/// Compares every checksum of the store in a folder, also of one too damaged to be opened: all
/// that its manifest and the logs of its shards still tell of.
///
/// # Errors
/// [`Error::Corrupt`] with all damage found, each with shard, chunk and row range;
/// [`Error::NotFound`], [`Error::Format`], [`Error::Io`]; [`Error::Core`] when cancelled.
pub fn verify(path: &Path, workers: &Workers) -> Result<()> {
    let manifest = Manifest::read(path)?;
    let (shards, mut damage) = find_shards(path, &manifest)?;
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
            damage.extend(shard.check_files(self.layout())?);
        }
        damage.extend(damaged_chunks(self.shards(), self.layout(), workers)?);
        Error::unless_whole(self.path(), damage)
    }
}

/// What is wrong with the rows and ids that the files of these shards hold. What they lack is
/// known from their lengths.
fn damaged_chunks(shards: &[Shard], layout: &Layout, workers: &Workers) -> Result<Vec<Damage>> {
    let mut tasks = Vec::new();
    for shard in shards {
        let held = shard.held(layout)?;
        let chunks = shard.rows().div_ceil(layout.chunk_rows());
        tasks.extend((0..chunks).map(|chunk| (shard, held, chunk)));
    }
    let found = Mutex::new(Vec::new());
    workers.for_each(tasks, |(shard, (rows, ids), chunk)| {
        let end = shard.chunk(chunk, layout).end;
        let mut damage = Vec::new();
        if end <= rows {
            damage.extend(damage_of(shard.map(chunk, layout).and_then(|window| {
                Ok(shard.check_rows(chunk, &window, layout, workers)?)
            }))?);
        }
        if end <= ids {
            let read = shard.read_ids(chunk, layout);
            damage.extend(damage_of(read.map(|(_, damage)| damage))?);
        }
        found
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(damage);
        Ok::<(), Error>(())
    })?;
    Ok(found.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Damage found, with that which kept a part from being looked at.
fn damage_of(outcome: std::result::Result<Vec<Damage>, Refusal>) -> Result<Vec<Damage>> {
    match outcome {
        Ok(damage) => Ok(damage),
        Err(Refusal::Damaged(damage)) => Ok(vec![damage]),
        Err(Refusal::Failed(error)) => Err(error),
    }
}

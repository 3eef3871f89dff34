//! Reads every byte of a store and lists everything that is wrong with it.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use grass_core::parallel::Workers;

use crate::chunk::ChunkRows;
use crate::error::{Damage, Error, Part, Result};
use crate::layout::Layout;
use crate::manifest::Manifest;
use crate::reader::{PIECE_BYTES, StoreReader, look};
use crate::shard::{Opened, Refusal, Shard};

/// Compares every checksum of the store in a folder, also of one too damaged to be opened: all
/// that its manifest and the logs of its shards still tell of. Then looks for ids that more than
/// one row has, and for skipped ids that have one, which takes 8 bytes of memory a row.
///
/// # Errors
/// [`Error::Corrupt`] with all damage found, each with shard, chunk and row range;
/// [`Error::NotFound`], [`Error::Format`], [`Error::Io`]; [`Error::Core`] when cancelled.
pub fn verify(path: &Path, workers: &Workers) -> Result<()> {
    let (manifest, shards, mut damage) = look(path)?;
    damage.extend(damaged_chunks(&shards, &manifest.layout, workers)?);
    damage.extend(wrong_ids(&manifest, &shards, workers)?);
    Error::unless_whole(path, damage)
}

impl StoreReader {
    /// Compares every checksum of the rows that this reader has, manifest, headers, rows and ids,
    /// and looks for ids that are there twice, as [`verify`].
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
        damage.extend(wrong_ids(self.manifest(), self.shards(), workers)?);
        Error::unless_whole(self.path(), damage)
    }
}

/// An id that more than one row has, or that has a row although it is skipped.
struct WrongId {
    id: u64,
    skipped: bool,
    /// Its first row, once that is known.
    first_row: Option<u64>,
}

/// Rows whose id an earlier row has, or the manifest lists as skipped. Ids that do not equal their
/// checksum are passed over. Memory is 8 bytes a row, and 32 a wrong id.
fn wrong_ids(manifest: &Manifest, shards: &[Shard], workers: &Workers) -> Result<Vec<Damage>> {
    let complete = manifest.complete;
    if !complete && manifest.writers > 1 {
        // Writers of a group learn only when the last of them finishes that two have one id.
        return Ok(Vec::new());
    }
    // The list of an unfinished store may be older than its rows.
    let skipped: &[u64] = if complete { &manifest.skipped_ids } else { &[] };
    let mut ids = Vec::new();
    for_whole_ids(shards, &manifest.layout, workers, |_, _, read| {
        ids.extend(read);
    })?;
    ids.sort_unstable();
    let mut wrong = Vec::new();
    for equal in ids.chunk_by(|left, right| left == right) {
        let (id, first_row) = (equal[0], None);
        let skipped = skipped.binary_search(&id).is_ok();
        if skipped || equal.len() > 1 {
            wrong.push(WrongId {
                id,
                skipped,
                first_row,
            });
        }
    }
    drop(ids);
    let mut damage = Vec::new();
    if wrong.is_empty() {
        return Ok(damage);
    }
    for_whole_ids(shards, &manifest.layout, workers, |shard, chunk, ids| {
        let first = shard.chunk(chunk, &manifest.layout).start;
        damage.extend(wrong_in_chunk(shard, chunk, first, &ids, &mut wrong));
    })?;
    Ok(damage)
}

/// Calls `visit` with the ids of every chunk that equal their checksums, in order.
fn for_whole_ids(
    shards: &[Shard],
    layout: &Layout,
    workers: &Workers,
    mut visit: impl FnMut(&Shard, u64, Vec<u64>),
) -> Result<()> {
    for shard in shards {
        for chunk in 0..shard.rows().div_ceil(layout.chunk_rows()) {
            workers.check()?;
            match shard.read_ids(chunk, layout) {
                Ok((ids, damage)) if damage.is_empty() => visit(shard, chunk, ids),
                Ok(_) | Err(Refusal::Damaged(_)) => {}
                Err(Refusal::Failed(error)) => return Err(error),
            }
        }
    }
    Ok(())
}

/// What is wrong with the ids of a chunk, of which `first` is the first row, counted in the shard:
/// one place for all of them, however many.
fn wrong_in_chunk(
    shard: &Shard,
    chunk: u64,
    first: u64,
    ids: &[u64],
    wrong: &mut [WrongId],
) -> Option<Damage> {
    let mut count = 0;
    let mut found: Option<(u64, u64, String)> = None;
    for (row, &id) in (first..).zip(ids) {
        let Ok(place) = wrong.binary_search_by_key(&id, |wrong| wrong.id) else {
            continue;
        };
        let stored = shard.first_row + row;
        let before = wrong[place].first_row;
        wrong[place].first_row.get_or_insert(stored);
        let problem = match (wrong[place].skipped, before) {
            (true, _) => format!("id {id} of row {stored} is one of the skipped ids"),
            (false, Some(before)) => format!("id {id} of row {stored} is that of row {before} too"),
            (false, None) => continue,
        };
        count += 1;
        found = match found {
            Some((start, _, problem)) => Some((start, row + 1, problem)),
            None => Some((row, row + 1, problem)),
        };
    }
    let (start, end, mut problem) = found?;
    if count > 1 {
        problem += &format!(", and {} more ids are wrong", count - 1);
    }
    Some(shard.damage(Part::Ids, chunk, start..end, &problem))
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

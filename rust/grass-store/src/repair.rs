//! Dropping what is damaged and keeping everything else.
//!
//! The good rows of a damaged shard are written to new files beside the old ones, all durable
//! before `repair.json` says what is to be done. From then on the repair is decided: it is carried
//! out now, or by the next repair, to the same end. Before, nothing of the store has changed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use grass_core::parallel::Workers;
use serde::{Deserialize, Serialize};

use crate::disk::Disk;
use crate::error::{Error, Part, Result};
use crate::id_set::IdSet;
use crate::lock::{ManifestLock, WriterLock};
use crate::manifest::{ClosedShard, Manifest};
use crate::paths::{self, ShardPaths};
use crate::reader::find_shards;
use crate::repair_journal::{Journal, without_checksum};
use crate::salvage::{Salvaged, salvage};
use crate::shard::{Refusal, Shard};
use crate::verify::damaged_chunks;

/// What a repair kept and dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repaired {
    /// Rows that the store has now.
    pub kept_rows: u64,
    /// Rows that it had besides, as far as its manifest and logs tell.
    pub dropped_rows: u64,
    /// Ids of dropped rows, ascending: those that are to be cached again.
    pub lost_ids: Vec<u64>,
    /// How many of the dropped rows had ids that are lost, too.
    pub unknown_ids: u64,
}

/// Repairs the store in a folder: drops every row that its checksums do not prove, keeps all others in
/// their order, and writes headers, logs and manifests again that are known from the rest. If rows
/// were dropped the store is unfinished, so that a writer adds just the missing ones; a store
/// without damage stays as it is. An interrupted repair leaves the store as it was, or is ended
/// by the next one. The new files of damaged shards take room beside the old ones.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Locked`] while a writer has the store; [`Error::Repair`] if neither
/// the manifest nor its copy can be read; [`Error::Format`] where one of another format is whole;
/// [`Error::Io`]; [`Error::Core`] when cancelled.
pub fn repair(path: &Path, disk: &dyn Disk, workers: &Workers) -> Result<Repaired> {
    check_store(path)?;
    let _changing = ManifestLock::take(disk, path)?;
    let _lock = WriterLock::take(disk, path, 0, 1)?;
    // The names that an interrupted repair gave and took, its journal's too, may be in memory alone.
    paths::sync_folder(disk, path)?;
    if let Some(journal) = Journal::read(path)? {
        return journal.roll_forward(disk, path);
    }
    let (manifest, manifests_whole) = read_manifest(path)?;
    for leftover in paths::leftovers(path)? {
        paths::remove_if_there(disk, &leftover)?;
    }
    let mut plan = Plan::new(path, disk, manifest);
    let outcome = plan.salvage_shards(workers).and_then(|()| {
        if plan.touched.is_empty() && manifests_whole && !plan.unskipped {
            return Ok(plan.repaired.clone());
        }
        // The names of the new files; their bytes are durable already.
        paths::sync_folder(disk, path)?;
        let journal = plan.journal()?;
        journal.write(disk, path)?;
        journal.roll_forward(disk, path)
    });
    if outcome.is_err() && !paths::repair_journal(path).exists() {
        // Undecided: give the room back. What cannot be removed now goes with the next repair.
        for leftover in paths::leftovers(path).unwrap_or_default() {
            let _ = disk.remove(&leftover);
        }
    }
    outcome
}

/// Refuses a folder in which there is nothing to repair, before a lock is put there.
fn check_store(path: &Path) -> Result<()> {
    let begun = [
        paths::manifest(path),
        paths::manifest_copy(path),
        paths::repair_journal(path),
    ];
    if begun.iter().any(|file| file.exists()) {
        return Ok(());
    }
    match paths::shard_numbers(path) {
        Ok(numbers) if !numbers.is_empty() => Err(no_manifest(path, "is there")),
        _ => Manifest::read(path).map(drop),
    }
}

fn no_manifest(path: &Path, problem: &str) -> Error {
    Error::Repair {
        path: path.to_path_buf(),
        problem: format!("neither manifest.json nor manifest.copy.json {problem}"),
        hint: "restore one of them, from a copy or from a store of the same plan and model that \
               has the same shards"
            .to_owned(),
    }
}

/// The manifest, or else its copy, and whether both are as they should be.
fn read_manifest(path: &Path) -> Result<(Manifest, bool)> {
    let copy = Manifest::read_file(path, &paths::manifest_copy(path));
    match (Manifest::read(path), copy) {
        (Ok(manifest), Ok(copy)) if copy != manifest => {
            let known = match only_copy_fits(path, &manifest, &copy)? {
                true => copy,
                false => manifest,
            };
            Ok((known, false))
        }
        (Ok(manifest), copy) => Ok((manifest, copy.is_ok())),
        (Err(error @ Error::Io { .. }), _) | (_, Err(error @ Error::Io { .. })) => Err(error),
        (Err(error @ Error::Format { .. }), Err(Error::Format { .. })) => Err(error),
        // No damage: what it means is for the version that wrote it to know.
        (Err(error @ Error::Format { .. }), _) if has_checksum(&paths::manifest(path)) => {
            Err(error)
        }
        (_, Err(error @ Error::Format { .. })) if has_checksum(&paths::manifest_copy(path)) => {
            Err(error)
        }
        (Err(_), Ok(mut manifest)) => {
            // The copy may be older than shards that were added since.
            let listed: BTreeSet<u32> = manifest.shards.iter().map(|shard| shard.number).collect();
            if !paths::shard_numbers(path)?.is_subset(&listed) {
                manifest.unfinish();
            }
            Ok((manifest, false))
        }
        (Err(_), Err(_)) => Err(no_manifest(path, "can be read")),
    }
}

/// Whether a file is the canonical JSON of an object with its own checksum, as the manifests of every
/// format are: a format number that a flipped bit made is not.
fn has_checksum(path: &Path) -> bool {
    fs::read(path).is_ok_and(|bytes| without_checksum(&bytes).is_some())
}

/// Whether a manifest is of another store while its copy is of this one: of the shards that it
/// lists none is whole, and of those of the copy every one.
fn only_copy_fits(path: &Path, manifest: &Manifest, copy: &Manifest) -> Result<bool> {
    let (_, damage) = find_shards(path, manifest)?;
    let damaged: BTreeSet<Option<u32>> = damage.iter().map(|damage| damage.shard).collect();
    let mut listed = manifest.shards.iter();
    let none = listed.all(|shard| damaged.contains(&Some(shard.number)));
    Ok(none && !damage.is_empty() && find_shards(path, copy)?.1.is_empty())
}

/// What a repair is about to decide.
struct Plan<'a> {
    path: &'a Path,
    disk: &'a dyn Disk,
    manifest: Manifest,
    repaired: Repaired,
    /// Damaged shards, with what takes their place.
    touched: BTreeMap<u32, Option<ClosedShard>>,
    /// Whether ids were taken off the list of skipped ones because they have rows.
    unskipped: bool,
}

impl<'a> Plan<'a> {
    fn new(path: &'a Path, disk: &'a dyn Disk, manifest: Manifest) -> Self {
        Self {
            path,
            disk,
            manifest,
            repaired: Repaired::default(),
            touched: BTreeMap::new(),
            unskipped: false,
        }
    }

    fn salvage_shards(&mut self, workers: &Workers) -> Result<()> {
        let (shards, mut damage) = find_shards(self.path, &self.manifest)?;
        damage.extend(damaged_chunks(&shards, &self.manifest.layout, workers)?);
        let mut damaged: BTreeSet<u32> = damage.iter().filter_map(|damage| damage.shard).collect();
        let mut kept = IdSet::default();
        for shard in &shards {
            if damaged.contains(&shard.number) {
                continue;
            }
            match add_ids(shard, &self.manifest, &mut kept, workers)? {
                true => self.repaired.kept_rows += shard.rows(),
                // Two rows of one example: as damage of this shard, it loses its rows of that.
                false => {
                    damaged.insert(shard.number);
                }
            }
        }
        for number in damaged {
            // In a complete store, such a shard is of another one: it goes, and its rows are no loss.
            let salvaged = match self.manifest.complete && !self.listed(number) {
                true => Salvaged::default(),
                false => salvage(
                    self.disk,
                    self.path,
                    number,
                    &self.manifest,
                    &mut kept,
                    workers,
                )?,
            };
            let repaired = &mut self.repaired;
            repaired.kept_rows += salvaged.closed.map_or(0, |closed| closed.rows);
            repaired.dropped_rows = repaired.dropped_rows.saturating_add(salvaged.dropped_rows);
            repaired.unknown_ids = repaired.unknown_ids.saturating_add(salvaged.unknown_ids);
            repaired.lost_ids.extend(salvaged.lost_ids);
            self.touched.insert(number, salvaged.closed);
        }
        let lost = &mut self.repaired.lost_ids;
        lost.sort_unstable();
        lost.dedup();
        lost.retain(|&id| !kept.contains(id));
        // In an unfinished store, the last writer does this.
        if self.manifest.complete {
            let skipped = self.manifest.skipped_ids.len();
            self.manifest.skipped_ids.retain(|&id| !kept.contains(id));
            self.unskipped = self.manifest.skipped_ids.len() < skipped;
        }
        Ok(())
    }

    fn listed(&self, number: u32) -> bool {
        self.manifest
            .shards
            .iter()
            .any(|shard| shard.number == number)
    }

    /// What is to be done now that every new file is written.
    fn journal(&mut self) -> Result<Journal> {
        if self.repaired.dropped_rows > 0 {
            self.manifest.unfinish();
        }
        let shards = &mut self.manifest.shards;
        shards.retain(|shard| !self.touched.contains_key(&shard.number));
        shards.extend(self.touched.values().flatten());
        shards.sort_by_key(|shard| shard.number);
        let (mut replaced, mut removed) = (Vec::new(), Vec::new());
        for (&number, closed) in &self.touched {
            let paths = ShardPaths::new(self.path, number);
            let names = match closed {
                Some(_) => &mut replaced,
                None => &mut removed,
            };
            for part in [Part::Rows, Part::Ids, Part::Log] {
                let name = paths.of(part).file_name().unwrap_or_default();
                names.push(name.to_string_lossy().into_owned());
            }
        }
        let text = self.manifest.to_bytes()?;
        Ok(Journal {
            repaired: self.repaired.clone(),
            manifest: String::from_utf8_lossy(&text).into_owned(),
            replaced,
            removed,
        })
    }
}

/// Adds the ids of a shard to those kept; false, and adds none, if one of them is there twice.
fn add_ids(
    shard: &Shard,
    manifest: &Manifest,
    kept: &mut IdSet,
    workers: &Workers,
) -> Result<bool> {
    let layout = &manifest.layout;
    let mut ids = Vec::new();
    for chunk in 0..shard.rows().div_ceil(layout.chunk_rows()) {
        workers.check()?;
        match shard.read_ids(chunk, layout) {
            Ok((read, damage)) if damage.is_empty() => ids.extend(read),
            // Damaged since it was found whole.
            Ok(_) | Err(Refusal::Damaged(_)) => return Ok(false),
            Err(Refusal::Failed(error)) => return Err(error),
        }
    }
    let mut own = IdSet::default();
    let mut fresh = |id: &u64| !kept.contains(*id) && own.insert(*id);
    if !ids.iter().all(&mut fresh) {
        return Ok(false);
    }
    for id in ids {
        kept.insert(id);
    }
    Ok(true)
}

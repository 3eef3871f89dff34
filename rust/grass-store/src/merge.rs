//! Merging finished stores: their shards are copied whole under new numbers.
//!
//! Copies are made under temporary names, and take their places when all of them are whole. So the
//! store that is merged into stays as it was until then, and a merge that was interrupted is
//! continued by the same call: a copy whose log is there is whole, because it was written last.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use grass_core::parallel::Workers;

use crate::commit_log::{self, RECORD_BYTES};
use crate::disk::{Disk, DiskFile};
use crate::error::{Damage, Error, Part, Result};
use crate::header::HEADER_BYTES;
use crate::id_set::repeated;
use crate::lock::{ManifestLock, WriterLock};
use crate::manifest::{ClosedShard, MAX_SHARD, Manifest};
use crate::options::check_same;
use crate::paths::{self, ShardPaths};
use crate::reader::{StoreReader, look};
use crate::shard::Shard;

/// Bytes that are read, compared and written at once.
const PIECE_BYTES: usize = 1 << 20;

/// Merges finished stores into the one at `path`: a new one, or a finished one that is added to.
/// Rows keep their ids, shards their rows; `skipped_ids` are united. Sources are only read, and
/// every checksum is compared. Progress counts bytes. An interrupted merge is continued by the
/// same call; one that had ended already is left as it is.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference if columns, dtype or fingerprints differ;
/// [`Error::RepeatedId`] if two rows have one id; [`Error::Merge`] if a store is unfinished, or a
/// source the target; [`Error::Corrupt`] if a source is damaged; [`Error::Exists`] if anything but
/// a store is at the path; [`Error::TooManyShards`], [`Error::Locked`], [`Error::Io`], [`Error::Core`] when cancelled.
pub fn merge(sources: &[PathBuf], path: &Path, disk: &dyn Disk, workers: &Workers) -> Result<()> {
    let refuse = |problem: String, hint| {
        Err(Error::Merge {
            path: path.to_path_buf(),
            problem,
            hint,
        })
    };
    let mut stores = Vec::new();
    for source in sources {
        let store = StoreReader::open(source)?;
        let same = |path: &Path| fs::canonicalize(path).ok();
        if same(source).is_some_and(|source| same(path) == Some(source)) {
            let problem = format!("it is a source too ({})", source.display());
            return refuse(problem, "choose another path, or leave the source out");
        }
        if !store.complete() {
            let problem = format!("the source {} is unfinished", source.display());
            return refuse(problem, "finish it first");
        }
        stores.push(store);
    }
    let Some(first) = stores.first().map(StoreReader::manifest) else {
        return refuse("there is no source".to_owned(), "give at least one store");
    };
    for store in &stores {
        check_same(
            store.path(),
            store.manifest(),
            &first.layout,
            &first.fingerprints,
        )?;
    }
    let new = !paths::manifest(path).exists();
    if new {
        paths::make_folder(disk, path)?;
        paths::refuse_foreign_files(path, is_copy)?;
    }
    let _changing = ManifestLock::take(disk, path)?;
    if new {
        paths::refuse_foreign_files(path, is_copy)?;
    }
    let (target, damage) = match new {
        true => (
            Manifest::new(first.layout.clone(), first.fingerprints.clone()),
            vec![],
        ),
        false => {
            let (manifest, _, damage) = look(path)?;
            check_same(path, &manifest, &first.layout, &first.fingerprints)?;
            (manifest, damage)
        }
    };
    let _lock = WriterLock::take(disk, path, 0, 1)?;
    Error::unless_whole(path, damage)?;
    let merge = Merge {
        disk,
        path,
        workers,
        copies: plan(&stores, path, &target)?,
        skipped: stores
            .iter()
            .flat_map(StoreReader::skipped_ids)
            .copied()
            .collect(),
        target,
    };
    if merge.ended()? {
        merge.remove_leftovers()?;
        return merge.target.mend(disk, path);
    }
    if !new && !merge.target.complete && !merge.all_copied()? {
        let problem = "it is unfinished".to_owned();
        return refuse(problem, "finish it first");
    }
    let ids = merge.ids(&stores)?;
    let bytes = merge.copies.iter().map(|copy| copy.bytes(&merge.target));
    workers.progress().add_total(bytes.sum());
    for copy in &merge.copies {
        merge.make(copy)?;
    }
    merge.put_in_place(new, &ids)
}

/// A shard of a source, and the number that it gets.
struct Copy<'a> {
    source: &'a Path,
    shard: &'a Shard,
    closed: ClosedShard,
}

struct Merge<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    workers: &'a Workers,
    /// As it was before the merge, but for `complete`.
    target: Manifest,
    copies: Vec<Copy<'a>>,
    skipped: Vec<u64>,
}

/// Which shards are copied, with their numbers: after those that the target has.
fn plan<'a>(stores: &'a [StoreReader], path: &Path, target: &Manifest) -> Result<Vec<Copy<'a>>> {
    let listed = stores.iter().flat_map(|store| {
        let shards = store.shards().iter();
        let shards = shards.zip(&store.manifest().shards);
        shards.map(|(shard, closed)| (store.path(), shard, *closed))
    });
    let first = target.shards.last().map_or(0, |last| last.number + 1);
    let copies = listed
        .zip(first..)
        .map(|((source, shard, closed), number)| {
            if number > MAX_SHARD {
                return Err(Error::TooManyShards {
                    path: path.to_path_buf(),
                });
            }
            let closed = ClosedShard { number, ..closed };
            Ok(Copy {
                source,
                shard,
                closed,
            })
        });
    copies.collect()
}

/// Whether a file is the copy of a shard that waits to take its place.
fn is_copy(name: &OsStr) -> bool {
    let name = name.to_str().and_then(|name| name.strip_suffix(".tmp"));
    name.is_some_and(|name| paths::shard_number(name).is_some())
}

fn length(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.len())
}

impl Copy<'_> {
    fn log(&self) -> Vec<u8> {
        commit_log::to_bytes(&self.shard.records)
    }

    /// Length of its rows and ids.
    fn bytes(&self, target: &Manifest) -> u64 {
        self.rows_bytes(target) + self.closed.rows * 8
    }

    fn rows_bytes(&self, target: &Manifest) -> u64 {
        HEADER_BYTES as u64 + self.closed.rows * target.layout.row_bytes() as u64
    }

    /// Whether these files, of which the log was made last, are the whole shard.
    fn is_whole(&self, [rows, ids, log]: [&Path; 3], target: &Manifest) -> Result<bool> {
        let log_bytes = self.shard.records.len() * RECORD_BYTES;
        let lengths = [length(rows), length(ids), length(log)];
        let expected = [
            self.rows_bytes(target),
            self.closed.rows * 8,
            log_bytes as u64,
        ];
        if lengths != expected.map(Some) {
            return Ok(false);
        }
        let mut header = [0; HEADER_BYTES];
        File::open(rows)
            .and_then(|file| file.read_exact_at(&mut header, 0))
            .map_err(Error::io("read", rows))?;
        let found = fs::read(log).map_err(Error::io("read", log))?;
        let header_fits = target.header(self.closed.number).check(&header).is_ok();
        Ok(header_fits && found == self.log())
    }
}

impl Merge<'_> {
    /// Whether the target has all of this already.
    fn ended(&self) -> Result<bool> {
        let (had, merged) = (&self.target.shards, &self.copies);
        let tail = had
            .len()
            .checked_sub(merged.len())
            .map(|start| &had[start..]);
        let same = |(had, copy): (&ClosedShard, &Copy<'_>)| {
            (had.rows, had.log_crc32) == (copy.closed.rows, copy.closed.log_crc32)
        };
        let has_rows = tail.is_some_and(|tail| tail.iter().zip(merged).all(same));
        if !self.target.complete || !has_rows || merged.is_empty() {
            return Ok(false);
        }
        let mut ids = StoreReader::open(self.path)?.ids(self.workers)?;
        ids.sort_unstable();
        let known = |id| [&ids, &self.target.skipped_ids].map(|ids| ids.binary_search(id).is_ok());
        Ok(self.skipped.iter().all(|id| known(id).contains(&true)))
    }

    fn files(&self, copy: &Copy<'_>) -> [(PathBuf, PathBuf); 3] {
        let ShardPaths { rows, ids, log } = ShardPaths::new(self.path, copy.closed.number);
        [rows, ids, log].map(|path| (paths::temporary(&path), path))
    }

    /// Whether every copy is whole, each file under either of its names: the target is then one
    /// that a merge had made unfinished.
    fn all_copied(&self) -> Result<bool> {
        for copy in &self.copies {
            if !self.is_copied(copy)? {
                return Ok(false);
            }
        }
        Ok(!self.copies.is_empty())
    }

    fn is_copied(&self, copy: &Copy<'_>) -> Result<bool> {
        let files = self.files(copy);
        let found = files
            .each_ref()
            .map(|(temporary, place)| match temporary.exists() {
                true => temporary.as_path(),
                false => place,
            });
        copy.is_whole(found, &self.target)
    }

    /// The ids of all rows, ascending, after checking that no two are alike.
    fn ids(&self, stores: &[StoreReader]) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        if !self.target.shards.is_empty() {
            let mut before = StoreReader::open(self.path)?.ids(self.workers)?;
            let rows: u64 = self.target.shards.iter().map(|shard| shard.rows).sum();
            // Those after them are of this merge, where it was interrupted late.
            before.truncate(rows as usize);
            ids.extend(before);
        }
        for store in stores {
            ids.extend(store.ids(self.workers)?);
        }
        ids.sort_unstable();
        match repeated(&ids) {
            Some(id) => Err(Error::RepeatedId {
                id,
                place: "in two of the stores",
            }),
            None => Ok(ids),
        }
    }

    /// Copies a shard under temporary names, unless that is done.
    fn make(&self, copy: &Copy<'_>) -> Result<()> {
        let [rows, ids, log] = self.files(copy).map(|(temporary, _)| temporary);
        let write = |file: io::Result<Box<dyn DiskFile>>| {
            let written = file.and_then(|file| {
                file.write_all_at(&copy.log(), 0)?;
                file.sync()
            });
            written.map_err(Error::io("write", &log))?;
            paths::sync_folder(self.disk, self.path)
        };
        if self.is_copied(copy)? {
            let bytes = copy.bytes(&self.target);
            self.workers.progress().add_done(bytes);
            // The log vouches for rows and ids, which were synced before it was made. It may itself
            // be in memory alone, where a merge was killed then, or its sync failed.
            return match log.exists() {
                true => write(self.disk.open(&log)),
                false => Ok(()),
            };
        }
        // What another merge left must not vouch for these files.
        paths::remove_if_there(self.disk, &log)?;
        paths::sync_folder(self.disk, self.path)?;
        self.copy_part(copy, Part::Rows, &rows)?;
        self.copy_part(copy, Part::Ids, &ids)?;
        write(self.disk.create(&log))
    }

    /// Copies rows or ids, chunk by chunk, and compares each with its checksum.
    fn copy_part(&self, copy: &Copy<'_>, part: Part, to: &Path) -> Result<()> {
        let from = copy.shard.paths.of(part);
        let source = File::open(from).map_err(Error::io("open", from))?;
        let target = self.disk.create(to).map_err(Error::io("create", to))?;
        let (mut offset, row_bytes) = match part {
            Part::Rows => (HEADER_BYTES as u64, self.target.layout.row_bytes() as u64),
            _ => (0, 8),
        };
        if part == Part::Rows {
            let header = self.target.header(copy.closed.number).to_bytes();
            target
                .write_all_at(&header, 0)
                .map_err(Error::io("write", to))?;
            self.workers.progress().add_done(HEADER_BYTES as u64);
        }
        let mut buffer = vec![0; PIECE_BYTES];
        let mut first = 0;
        for (chunk, record) in copy.shard.records.iter().enumerate() {
            let damaged = |problem: &str| {
                let rows = copy.shard.first_row + first..copy.shard.first_row + record.rows;
                let damage = Damage {
                    chunk: Some(chunk as u64),
                    rows: Some(rows),
                    ..Damage::shard(copy.shard.number, part, problem)
                };
                Error::corrupt(copy.source, damage)
            };
            let mut hasher = crc32fast::Hasher::new();
            let mut left = (record.rows - first) * row_bytes;
            while left > 0 {
                self.workers.check()?;
                let piece = &mut buffer[..left.min(PIECE_BYTES as u64) as usize];
                source
                    .read_exact_at(piece, offset)
                    .map_err(|error| match error.kind() {
                        io::ErrorKind::UnexpectedEof => damaged("the file is too short"),
                        _ => Error::io("read", from)(error),
                    })?;
                hasher.update(piece);
                target
                    .write_all_at(piece, offset)
                    .map_err(Error::io("write", to))?;
                offset += piece.len() as u64;
                left -= piece.len() as u64;
                self.workers.progress().add_done(piece.len() as u64);
            }
            let expected = match part {
                Part::Rows => record.rows_crc,
                _ => record.ids_crc,
            };
            if hasher.finalize() != expected {
                return Err(damaged("the checksum differs"));
            }
            first = record.rows;
        }
        target.sync().map_err(Error::io("write", to))
    }

    /// Gives the copies their names, and lists them. The store is unfinished meanwhile, and a shard
    /// has no rows until its log takes its place.
    fn put_in_place(&self, new: bool, ids: &[u64]) -> Result<()> {
        let mut manifest = self.target.clone();
        if !self.copies.is_empty() {
            // As a lone writer: a group that goes on with what was interrupted begins above all shards.
            manifest.writers = 1;
        }
        if !self.copies.is_empty() && (new || manifest.complete) {
            manifest.complete = false;
            manifest.write(self.disk, self.path)?;
        }
        for copy in &self.copies {
            let [_, _, (_, log)] = self.files(copy);
            if !log.exists() {
                let empty = self.disk.create(&log).and_then(|file| file.sync());
                empty.map_err(Error::io("create", &log))?;
            }
        }
        paths::sync_folder(self.disk, self.path)?;
        for parts in [0..2, 2..3] {
            for copy in &self.copies {
                for (temporary, place) in &self.files(copy)[parts.clone()] {
                    if temporary.exists() {
                        self.disk
                            .rename(temporary, place)
                            .map_err(Error::io("rename", temporary))?;
                    }
                }
            }
            paths::sync_folder(self.disk, self.path)?;
        }
        let closed: Vec<ClosedShard> = self.copies.iter().map(|copy| copy.closed).collect();
        manifest.list(&closed);
        manifest.skip(&self.skipped);
        manifest
            .skipped_ids
            .retain(|id| ids.binary_search(id).is_err());
        manifest.complete = true;
        manifest.finished_writers.clear();
        self.remove_leftovers()?;
        manifest.write(self.disk, self.path)
    }

    /// Removes copies of shards that another merge left.
    fn remove_leftovers(&self) -> Result<()> {
        for entry in fs::read_dir(self.path).map_err(Error::io("read", self.path))? {
            let entry = entry.map_err(Error::io("read", self.path))?;
            if is_copy(&entry.file_name()) {
                paths::remove_if_there(self.disk, &entry.path())?;
            }
        }
        Ok(())
    }
}

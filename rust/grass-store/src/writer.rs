//! Writing a store: append, commit, finish, and resume after whatever happened.

use std::path::{Path, PathBuf};
use std::time::Instant;

use grass_core::parallel::Workers;

use crate::encoding::Numbers;
use crate::error::{Damage, Error, Result};
use crate::id_set::{IdSet, repeated};
use crate::layout::Layout;
use crate::lock::{ManifestLock, WriterLock};
use crate::manifest::Manifest;
use crate::numbering::{self, ShardNumbers};
use crate::options::{StoreSpec, WriterOptions, check_same};
use crate::own_shards::OwnShards;
use crate::paths;
use crate::reader::StoreReader;
use crate::shard::Shard;
use crate::shard_writer::Buffers;

/// A writer of a store, alone or one of several. Dropping it leaves what was committed, like a
/// killed process.
#[derive(Debug)]
pub struct StoreWriter {
    path: PathBuf,
    /// As this writer last read or wrote it: others of the group may have changed it since.
    manifest: Manifest,
    options: WriterOptions,
    shards: OwnShards,
    /// Those of this writer's rows, and of all that were committed when it opened the store.
    ids: IdSet,
    buffers: Buffers,
    last_commit: Instant,
    /// The error that stopped the writer.
    broken: Option<String>,
    _lock: WriterLock,
}

impl StoreWriter {
    /// Creates a store in a new or empty folder.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is anything at the path, [`Error::Locked`], [`Error::Columns`],
    /// [`Error::Writers`], [`Error::Io`].
    pub fn create(
        path: impl Into<PathBuf>,
        spec: StoreSpec,
        options: WriterOptions,
    ) -> Result<Self> {
        Self::open(path.into(), spec, options, None)
    }

    /// Opens a store to go on writing it, after cutting off what this writer had not committed;
    /// creates it where there is none, also where all writers of a group do so at once. A finished
    /// store may be opened too, and gets unfinished by the first commit of more rows. A store may
    /// be resumed by another number of writers, once nobody is writing it. Nothing in the folder
    /// is changed, but for locks, before everything that can refuse the store was looked at.
    ///
    /// # Errors
    /// [`Error::Mismatch`] if it was made for something else, [`Error::Corrupt`], [`Error::Core`]
    /// when cancelled, and those of [`StoreWriter::create`].
    pub fn resume(
        path: impl Into<PathBuf>,
        spec: StoreSpec,
        options: WriterOptions,
        workers: &Workers,
    ) -> Result<Self> {
        Self::open(path.into(), spec, options, Some(workers))
    }

    /// Opens or creates; `resume` has the workers that read the ids of a store that is there.
    fn open(
        path: PathBuf,
        spec: StoreSpec,
        options: WriterOptions,
        resume: Option<&Workers>,
    ) -> Result<Self> {
        options.check()?;
        let layout = Layout::new(spec.dtype, spec.columns)?;
        let disk = &*options.disk;
        let (writer, writers) = (options.writer, options.writers);
        if resume.is_none() || is_absent(&path)? {
            paths::make_folder(disk, &path)?;
            // Before there is a lock file: a foreign folder stays as it is.
            match paths::refuse_foreign_files(&path, |_| false) {
                Err(_) if resume.is_some() && !is_absent(&path)? => {}
                outcome => outcome?,
            }
        }
        let changing = ManifestLock::take(disk, &path)?;
        let new = is_absent(&path)?;
        if new || resume.is_none() {
            // Once more, now that nobody else can be creating it.
            paths::refuse_foreign_files(&path, |_| false)?;
        }
        if !new {
            check_same(&path, &Manifest::read(&path)?, &layout, &spec.fingerprints)?;
        }
        let lock = WriterLock::take(disk, &path, writer, writers)?;
        let (shards, ids) = match resume {
            Some(workers) if !new => {
                // Not before: until now the writer before this one may have committed more.
                let store = StoreReader::open(&path)?;
                // Others may change the manifest while ids are read, which may take long.
                drop(changing);
                let ids = known_ids(&store, writers, workers)?;
                (store.into_shards(), ids)
            }
            _ => {
                let mut manifest = Manifest::new(layout, spec.fingerprints);
                manifest.writers = writers;
                manifest.write(disk, &path)?;
                drop(changing);
                (Vec::new(), IdSet::default())
            }
        };
        let manifest = begin(&path, &options, &shards)?;
        Ok(Self {
            shards: OwnShards::reopen(shards, &manifest, &options)?,
            path,
            manifest,
            options,
            ids,
            buffers: Buffers::default(),
            last_commit: Instant::now(),
            broken: None,
            _lock: lock,
        })
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How rows are laid out.
    pub fn layout(&self) -> &Layout {
        &self.manifest.layout
    }

    /// The ids of the committed rows of all writers, in their order, as the files have them.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`], [`Error::Core`] when cancelled.
    pub fn committed_ids(&self, workers: &Workers) -> Result<Vec<u64>> {
        StoreReader::open(&self.path)?.ids(workers)
    }

    /// Adds rows, (n, width) row-major, one id each, and commits when enough are waiting; the first
    /// rows of a store that was finished are committed at once. All of them are refused together,
    /// and a call that is cancelled takes none, or all of them once it has committed some.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::RepeatedId`], [`Error::Overflow`], [`Error::Core`] when cancelled;
    /// [`Error::Locked`] if another keeps the manifest of a finished store, and the same call can be
    /// made again; [`Error::Io`] from writing, after which the writer is [`Error::Broken`].
    pub fn append(&mut self, rows: &[f32], ids: &[u64], workers: &Workers) -> Result<()> {
        self.append_of(rows, ids, Numbers::Any, workers)
    }

    /// Adds rows like [`StoreWriter::append`], but none with a NaN or an infinity, which a store
    /// does not refuse but training does.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the first such row's id, those of [`StoreWriter::append`].
    pub fn append_finite(&mut self, rows: &[f32], ids: &[u64], workers: &Workers) -> Result<()> {
        self.append_of(rows, ids, Numbers::Finite, workers)
    }

    fn append_of(
        &mut self,
        rows: &[f32],
        ids: &[u64],
        numbers: Numbers,
        workers: &Workers,
    ) -> Result<()> {
        self.check_whole()?;
        let width = self.layout().width();
        if rows.len() != ids.len() * width {
            return Err(Error::Shape {
                expected: format!("({}, {width}), one row an id", ids.len()),
                got: format!("{} numbers", rows.len()),
                hint: "give one row of the store's width for every id",
            });
        }
        self.check_ids(ids)?;
        if self.next_run() < ids.len() as u64 {
            // Once the first rows are committed, or a shard is begun for them, it is too late to
            // refuse others. Rows of one run are checked as they are encoded.
            self.layout().check_rows(rows, ids, numbers, workers)?;
        }
        let unstoppable = Workers::with_threads(workers.threads());
        let mut done = 0;
        while done < ids.len() {
            // What ends a run of rows is a commit.
            let workers = if done == 0 { workers } else { &unstoppable };
            let (rows, ids) = (&rows[done * width..], &ids[done..]);
            done += self.guarded(|writer| writer.write_run(rows, ids, numbers, workers))?;
        }
        for &id in ids {
            self.ids.insert(id);
        }
        if self.last_commit.elapsed() >= self.options.commit_interval {
            self.commit()?;
        }
        Ok(())
    }

    /// Writes the first of these rows, as many as fit in the shard and are committed together, and
    /// says how many.
    fn write_run(
        &mut self,
        rows: &[f32],
        ids: &[u64],
        numbers: Numbers,
        workers: &Workers,
    ) -> Result<usize> {
        let finished = self.finished();
        if finished {
            self.unfinish()?;
        }
        if self.next_run() == 0 {
            self.begin_next_shard()?;
        }
        let count = self.next_run().min(ids.len() as u64) as usize;
        let layout = &self.manifest.layout;
        if let Some(shard) = self.shards.current() {
            let rows = &rows[..count * layout.width()];
            shard.write(rows, &ids[..count], numbers, layout, &self.buffers, workers)?;
        }
        if finished || self.shards.waiting() >= self.commit_rows() {
            self.commit_waiting()?;
        }
        Ok(count)
    }

    /// How many rows are committed together.
    fn commit_rows(&self) -> u64 {
        let row_bytes = self.layout().row_bytes() as u64;
        self.options.commit_bytes.div_ceil(row_bytes).max(1)
    }

    /// The most rows of the next run; none where it needs a new shard.
    fn next_run(&self) -> u64 {
        let left = self.commit_rows().saturating_sub(self.shards.waiting());
        let full = self.options.shard_rows(self.layout());
        left.max(1).min(self.shards.room(full))
    }

    fn check_ids(&self, ids: &[u64]) -> Result<()> {
        if let Some(&id) = ids.iter().find(|&&id| self.ids.contains(id)) {
            let place = "in the store already";
            return Err(Error::RepeatedId { id, place });
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        match repeated(&sorted) {
            Some(id) => Err(Error::RepeatedId {
                id,
                place: "twice among the new ids",
            }),
            None => Ok(()),
        }
    }

    /// Whether an earlier error has stopped the writer.
    pub fn broken(&self) -> bool {
        self.broken.is_some()
    }

    fn check_whole(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(reason) => Err(Error::Broken {
                path: self.path.clone(),
                reason: reason.clone(),
            }),
        }
    }

    /// Makes all appended rows survive a killed process and a power loss.
    ///
    /// # Errors
    /// [`Error::Io`], after which the writer is [`Error::Broken`]: what a failed sync left on
    /// the disk is unknown, so nothing more is written until the store is opened again.
    pub fn commit(&mut self) -> Result<()> {
        self.guarded(Self::commit_waiting)
    }

    fn commit_waiting(&mut self) -> Result<()> {
        self.last_commit = Instant::now();
        self.shards.commit()
    }

    /// Commits, closes this writer's shards, and lists it as finished; the last writer of a group
    /// to do so makes the store complete. `skipped_ids` are recorded as left out on purpose, beside
    /// those that are recorded already; an id that has got a row is taken off.
    ///
    /// # Errors
    /// [`Error::RepeatedId`] if a skipped id has a row, or if two writers wrote rows of one id: the
    /// store then stays unfinished. [`Error::Locked`] if another keeps the manifest: the writer goes
    /// on as before, and the same call can be made again. Those of [`StoreWriter::commit`].
    pub fn finish(&mut self, skipped_ids: &[u64]) -> Result<()> {
        self.check_whole()?;
        if let Some(&id) = skipped_ids.iter().find(|&&id| self.ids.contains(id)) {
            let place = "in the store although it was skipped";
            return Err(Error::RepeatedId { id, place });
        }
        self.guarded(|writer| {
            writer.commit_waiting()?;
            writer.list_finished(skipped_ids)
        })?;
        while !self.manifest.complete && self.manifest.all_finished() {
            self.complete_checked()?;
        }
        Ok(())
    }

    /// Lists what this writer has, and it as finished. Alone, that makes the store complete.
    fn list_finished(&mut self, skipped_ids: &[u64]) -> Result<()> {
        let (writer, group, ids) = (self.options.writer, self.options.writers > 1, &self.ids);
        let (disk, path, shards) = (&*self.options.disk, &self.path, &mut self.shards);
        self.manifest = Manifest::edit(disk, path, |manifest| {
            shards.close_all(disk, &manifest.layout)?;
            manifest.list(shards.closed());
            let before = manifest.skipped_ids.clone();
            manifest.skip(skipped_ids);
            manifest.skipped_ids.retain(|&id| !ids.contains(id));
            if manifest.complete {
                if group && manifest.skipped_ids != before {
                    // Others may have given some of them rows since this writer opened the store.
                    let mut with_rows = StoreReader::open(path)?.ids(&Workers::current())?;
                    with_rows.sort_unstable();
                    let has_row = |id: &u64| with_rows.binary_search(id).is_ok();
                    manifest.skipped_ids.retain(|id| !has_row(id));
                }
                return Ok(());
            }
            if manifest.writers == 1 {
                ShardNumbers::find(path, manifest, [])?.remove_empty(disk)?;
                manifest.complete = true;
            } else if let Err(place) = manifest.finished_writers.binary_search(&writer) {
                manifest.finished_writers.insert(place, writer);
            }
            Ok(())
        })?;
        self.shards.listed();
        Ok(())
    }

    /// Makes a store complete whose writers have all finished, unless an id is in it twice. Ids are
    /// read without keeping others from the manifest: if they go on meanwhile, nothing is changed.
    fn complete_checked(&mut self) -> Result<()> {
        let seen = StoreReader::open(&self.path)?;
        let mut with_rows = seen.ids(&Workers::current())?;
        with_rows.sort_unstable();
        if let Some(id) = repeated(&with_rows) {
            let place = "in the rows of two writers";
            return Err(Error::RepeatedId { id, place });
        }
        self.guarded(|writer| {
            let (disk, path) = (&*writer.options.disk, &writer.path);
            writer.manifest = Manifest::edit(disk, path, |manifest| {
                if manifest.all_finished() && manifest == seen.manifest() {
                    let has_row = |id: &u64| with_rows.binary_search(id).is_ok();
                    manifest.skipped_ids.retain(|id| !has_row(id));
                    ShardNumbers::find(path, manifest, [])?.remove_empty(disk)?;
                    manifest.complete = true;
                    manifest.finished_writers.clear();
                }
                Ok(())
            })?;
            Ok(())
        })
    }

    /// Runs a step that writes; an error stops the writer for good. But being cancelled does not, nor
    /// does waiting in vain for the manifest, nor being given rows that are refused: what was there
    /// is as it was then.
    fn guarded<T>(&mut self, step: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        self.check_whole()?;
        step(self).inspect_err(|error| {
            let harmless = matches!(
                error,
                Error::Core(_)
                    | Error::Locked { .. }
                    | Error::NonFinite { .. }
                    | Error::Overflow { .. }
            );
            if !harmless {
                self.broken = Some(error.to_string());
            }
        })
    }

    /// Closes a full shard, and makes the next.
    fn begin_next_shard(&mut self) -> Result<()> {
        let disk = &*self.options.disk;
        if self.shards.close_current(disk, &self.manifest.layout)? {
            self.last_commit = Instant::now();
        }
        if !self.shards.closed().is_empty() {
            let listed = Manifest::edit(disk, &self.path, |manifest| {
                manifest.list(self.shards.closed());
                Ok(())
            });
            match listed {
                Ok(manifest) => {
                    self.manifest = manifest;
                    self.shards.listed();
                }
                // The next time will do: rows are taken already, so the call must not fail now.
                Err(Error::Locked { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.shards
            .begin_next(&self.path, &self.manifest, &self.options)?;
        Ok(())
    }

    /// Whether the store is complete, or waits for other writers only.
    fn finished(&self) -> bool {
        let finished = &self.manifest.finished_writers;
        self.manifest.complete || finished.binary_search(&self.options.writer).is_ok()
    }

    /// Makes a finished store unfinished for this writer's sake: its shards stay as they are, and
    /// more come after them, also those of other writers.
    fn unfinish(&mut self) -> Result<()> {
        let (writer, writers) = (self.options.writer, self.options.writers);
        let (disk, path) = (&*self.options.disk, &self.path);
        self.manifest = Manifest::edit(disk, path, |manifest| {
            // All have finished without it being complete where this was interrupted before.
            if manifest.complete || manifest.all_finished() {
                let kept = ShardNumbers::find(path, manifest, [])?.to_keep(manifest, writers)?;
                manifest.complete = false;
                manifest.writers = writers;
                manifest.finished_writers = (0..writers).collect();
                if !kept.is_empty() {
                    // First: in a complete store, such a file is damage.
                    manifest.write(disk, path)?;
                    numbering::keep(disk, path, &kept)?;
                }
            }
            manifest
                .finished_writers
                .retain(|&finished| finished != writer);
            Ok(())
        })?;
        Ok(())
    }
}

/// The ids of a store that is opened for writing.
fn known_ids(store: &StoreReader, writers: u32, workers: &Workers) -> Result<IdSet> {
    let mut known = IdSet::default();
    for id in store.ids(workers)? {
        workers.check()?;
        // Several writers learn of it when the last of them finishes.
        if !known.insert(id) && writers == 1 {
            let problem = format!("id {id} is there twice");
            return Err(Error::corrupt(store.path(), Damage::manifest(problem)));
        }
    }
    Ok(known)
}

/// Makes the manifest ready for a writer, and returns it. An unfinished store is from now on one of
/// this number of writers, a finished one when they add rows.
fn begin(path: &Path, options: &WriterOptions, shards: &[Shard]) -> Result<Manifest> {
    let (disk, writers) = (&*options.disk, options.writers);
    let _changing = ManifestLock::take(disk, path)?;
    let mut manifest = Manifest::read(path)?;
    if !manifest.complete && manifest.writers != writers {
        let with_rows = shards.iter().map(|shard| shard.number);
        let numbers = ShardNumbers::find(path, &manifest, with_rows)?;
        numbering::keep(disk, path, &numbers.to_keep(&manifest, writers)?)?;
        manifest.writers = writers;
        manifest.finished_writers.clear();
        manifest.write(disk, path)?;
    }
    manifest.mend(disk, path)?;
    Ok(manifest)
}

/// Whether there is no store at the path.
fn is_absent(path: &Path) -> Result<bool> {
    match Manifest::read(path) {
        Ok(_) => Ok(false),
        Err(Error::NotFound { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

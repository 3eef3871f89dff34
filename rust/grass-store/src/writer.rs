//! Writing a store: append, commit, finish, and resume after whatever happened.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use grass_core::parallel::Workers;

use crate::dtype::Dtype;
use crate::error::{Damage, Error, Result};
use crate::fingerprints::{self, Fingerprints, check_same_columns, check_same_fingerprints};
use crate::id_set::IdSet;
use crate::layout::{Column, Layout};
use crate::lock::WriterLock;
use crate::manifest::{MAX_SHARDS, Manifest};
use crate::paths;
use crate::reader::{StoreReader, open_shards};
use crate::shard_writer::ShardWriter;

/// What a store is made for; a store is resumed only with the same.
#[derive(Debug, Clone)]
pub struct StoreSpec {
    /// The type of the stored numbers.
    pub dtype: Dtype,
    /// The blocks of the plan, in the order of a row.
    pub columns: Vec<Column>,
    /// What tells the plan and the model apart from others.
    pub fingerprints: Fingerprints,
}

/// When a writer commits and starts a new shard.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Commit when this many bytes of rows are waiting.
    pub commit_bytes: u64,
    /// Commit when this long has passed since the last commit and rows are waiting.
    pub commit_interval: Duration,
    /// Close a shard when its rows reach this many bytes, rounded down to whole chunks. It is
    /// part of what makes the bytes of a store, so it must be the same when a store is resumed.
    pub shard_bytes: u64,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            commit_bytes: 64 << 20,
            commit_interval: Duration::from_secs(30),
            // Large stores stay a handful of files; none is too large to copy or to mend.
            shard_bytes: 4 << 30,
        }
    }
}

/// Rows that were appended but not committed.
#[derive(Debug, Default)]
struct Pending {
    rows: Vec<u8>,
    ids: Vec<u8>,
}

/// The one writer of a store. Dropping it leaves what was committed, like a killed process.
#[derive(Debug)]
pub struct StoreWriter {
    path: PathBuf,
    manifest: Manifest,
    options: WriterOptions,
    /// The open shard; `None` before the first row and between shards.
    shard: Option<ShardWriter>,
    ids: IdSet,
    pending: Pending,
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
    /// [`Error::Io`].
    pub fn create(
        path: impl Into<PathBuf>,
        spec: StoreSpec,
        options: WriterOptions,
    ) -> Result<Self> {
        let path = path.into();
        let layout = Layout::new(spec.dtype, spec.columns)?;
        make_folder(&path)?;
        refuse_foreign_files(&path)?;
        let lock = WriterLock::take(&path)?;
        // Once more, now that nobody else can be creating it.
        refuse_foreign_files(&path)?;
        let manifest = Manifest {
            layout,
            fingerprints: spec.fingerprints,
            shards: Vec::new(),
            complete: false,
            skipped_ids: Vec::new(),
        };
        manifest.write(&path)?;
        Ok(Self::new(path, manifest, options, lock))
    }

    /// Opens a store to go on writing it, after cutting off what was not committed; creates it
    /// where there is none. A finished store may be opened too, and gets unfinished by the first
    /// commit of more rows.
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
        let path = path.into();
        match Manifest::read(&path) {
            Err(Error::NotFound { .. }) => return Self::create(path, spec, options),
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        let lock = WriterLock::take(&path)?;
        // Read again, now that nobody else can be changing it.
        let manifest = Manifest::read(&path)?;
        let layout = Layout::new(spec.dtype, spec.columns)?;
        let stored = manifest.layout.dtype();
        let dtypes = format!("dtype {stored} in the store, {} given", spec.dtype);
        fingerprints::same(&path, (stored != spec.dtype).then_some(dtypes))?;
        check_same_columns(&path, manifest.layout.columns(), layout.columns())?;
        check_same_fingerprints(&path, &manifest.fingerprints, &spec.fingerprints)?;
        let mut writer = Self::new(path, manifest, options, lock);
        writer.read_ids(workers)?;
        paths::remove_temporary(&paths::manifest(&writer.path))?;
        if !writer.manifest.complete {
            writer.reopen_shard()?;
        }
        Ok(writer)
    }

    fn new(path: PathBuf, manifest: Manifest, options: WriterOptions, lock: WriterLock) -> Self {
        Self {
            path,
            manifest,
            options,
            shard: None,
            ids: IdSet::default(),
            pending: Pending::default(),
            last_commit: Instant::now(),
            broken: None,
            _lock: lock,
        }
    }

    fn read_ids(&mut self, workers: &Workers) -> Result<()> {
        for id in self.committed_ids(workers)? {
            workers.check()?;
            if !self.ids.insert(id) {
                let problem = format!("id {id} is there twice");
                return Err(Error::corrupt(&self.path, Damage::manifest(problem)));
            }
        }
        Ok(())
    }

    /// Opens the shard after the closed ones, where rows of it are committed.
    fn reopen_shard(&mut self) -> Result<()> {
        let mut shards = open_shards(&self.path, &self.manifest)?;
        if let Some(shard) =
            shards.pop_if(|shard| shard.number as usize == self.manifest.shards.len())
        {
            self.shard = Some(ShardWriter::reopen(shard, &self.manifest.layout)?);
        }
        Ok(())
    }

    /// The store's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How rows are laid out.
    pub fn layout(&self) -> &Layout {
        &self.manifest.layout
    }

    /// The ids of the committed rows, in their order, as the files have them.
    ///
    /// # Errors
    /// [`Error::Corrupt`], [`Error::Io`], [`Error::Core`] when cancelled.
    pub fn committed_ids(&self, workers: &Workers) -> Result<Vec<u64>> {
        StoreReader::open(&self.path)?.ids(workers)
    }

    /// Adds rows, (n, width) row-major, one id each, and commits when enough are waiting. All of
    /// them are refused together, and a call that is cancelled takes none, or all of them once it
    /// has committed some.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::RepeatedId`], [`Error::Overflow`], [`Error::Core`] when cancelled;
    /// [`Error::Io`] from a commit, after which the writer is [`Error::Broken`].
    pub fn append(&mut self, rows: &[f32], ids: &[u64], workers: &Workers) -> Result<()> {
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
        self.layout().check_range(rows, ids, workers)?;
        let before = (self.pending.rows.len(), self.pending.ids.len());
        let mut committed = false;
        for (row, id) in rows.chunks_exact(width).zip(ids) {
            if !committed && let Err(cancelled) = workers.check() {
                self.pending.rows.truncate(before.0);
                self.pending.ids.truncate(before.1);
                return Err(cancelled.into());
            }
            self.manifest.layout.encode(row, &mut self.pending.rows);
            self.pending.ids.extend(id.to_le_bytes());
            if self.pending.rows.len() as u64 >= self.options.commit_bytes {
                self.commit()?;
                committed = true;
            }
        }
        for &id in ids {
            self.ids.insert(id);
        }
        if self.last_commit.elapsed() >= self.options.commit_interval {
            self.commit()?;
        }
        Ok(())
    }

    fn check_ids(&self, ids: &[u64]) -> Result<()> {
        if let Some(&id) = ids.iter().find(|&&id| self.ids.contains(id)) {
            let place = "in the store already";
            return Err(Error::RepeatedId { id, place });
        }
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        match sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(Error::RepeatedId {
                id: pair[0],
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
        self.guarded(Self::write_pending)
    }

    /// Commits, closes the last shard, and marks the store complete. `skipped_ids` are recorded
    /// as left out on purpose.
    ///
    /// # Errors
    /// [`Error::RepeatedId`] if a skipped id has a row; those of [`StoreWriter::commit`].
    pub fn finish(&mut self, skipped_ids: &[u64]) -> Result<()> {
        self.check_whole()?;
        if let Some(&id) = skipped_ids.iter().find(|&&id| self.ids.contains(id)) {
            let place = "in the store although it was skipped";
            return Err(Error::RepeatedId { id, place });
        }
        let mut skipped = skipped_ids.to_vec();
        skipped.sort_unstable();
        skipped.dedup();
        self.guarded(|writer| {
            writer.write_pending()?;
            writer.close_shard()?;
            if !writer.manifest.complete || writer.manifest.skipped_ids != skipped {
                writer.manifest.complete = true;
                writer.manifest.skipped_ids = skipped;
                writer.manifest.write(&writer.path)?;
            }
            Ok(())
        })
    }

    /// Runs a step that writes; an error stops the writer for good.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.check_whole()?;
        step(self).inspect_err(|error| self.broken = Some(error.to_string()))
    }

    fn shard_rows(&self) -> u64 {
        let layout = self.layout();
        let chunk_bytes = layout.chunk_rows() * layout.row_bytes() as u64;
        layout.chunk_rows() * (self.options.shard_bytes / chunk_bytes).max(1)
    }

    fn write_pending(&mut self) -> Result<()> {
        self.last_commit = Instant::now();
        let pending = std::mem::take(&mut self.pending);
        let row_bytes = self.layout().row_bytes();
        let count = pending.ids.len() / 8;
        if count > 0 && self.manifest.complete {
            self.unfinish()?;
        }
        let mut done = 0;
        while done < count {
            let mut shard = self.take_shard_with_room()?;
            let room = self.shard_rows() - shard.rows();
            let end = done + room.min((count - done) as u64) as usize;
            let rows = &pending.rows[done * row_bytes..end * row_bytes];
            shard.commit(rows, &pending.ids[done * 8..end * 8], self.layout())?;
            self.shard = Some(shard);
            done = end;
        }
        Ok(())
    }

    /// The open shard, after closing a full one and making the next.
    fn take_shard_with_room(&mut self) -> Result<ShardWriter> {
        let full = self.shard_rows();
        if self
            .shard
            .as_ref()
            .is_some_and(|shard| shard.rows() >= full)
        {
            self.close_shard()?;
            self.manifest.write(&self.path)?;
        }
        let number = self.manifest.shards.len();
        if number >= MAX_SHARDS {
            return Err(Error::Columns {
                problem: format!("the rows need more than {MAX_SHARDS} shards"),
                expected: "fewer rows a store: split the data",
            });
        }
        match self.shard.take() {
            Some(shard) => Ok(shard),
            None => ShardWriter::create(&self.path, number as u32, self.layout()),
        }
    }

    /// Closes the open shard; the manifest that says so is written by the caller.
    fn close_shard(&mut self) -> Result<()> {
        if let Some(shard) = self.shard.take() {
            let rows = shard.close(&self.manifest.layout)?;
            self.manifest.shards.push(rows);
        }
        Ok(())
    }

    /// Opens a finished store's last shard again, when it has room.
    fn unfinish(&mut self) -> Result<()> {
        let full = self.shard_rows();
        self.manifest.complete = false;
        self.manifest.skipped_ids.clear();
        self.manifest.shards.pop_if(|rows| *rows < full);
        self.manifest.write(&self.path)?;
        self.reopen_shard()
    }
}

/// Makes the store's folder, its name durable; an existing folder is fine.
fn make_folder(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Ok(()) => {
            let parent = path
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            paths::sync_folder(parent.unwrap_or(Path::new(".")))
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match path.is_dir() {
            true => Ok(()),
            false => Err(Error::Exists {
                path: path.to_path_buf(),
                found: "a file",
                hint: "choose another path",
            }),
        },
        Err(error) => Err(Error::io("create", path)(error)),
    }
}

/// A new store may be made only where there is nothing, or what a crash before its first manifest left.
fn refuse_foreign_files(path: &Path) -> Result<()> {
    let refuse = |found, hint| {
        Err(Error::Exists {
            path: path.to_path_buf(),
            found,
            hint,
        })
    };
    if paths::manifest(path).exists() {
        return refuse(
            "a store",
            "open it with resume to go on with it, or choose another path",
        );
    }
    let left = [paths::lock(path), paths::temporary(&paths::manifest(path))];
    for entry in fs::read_dir(path).map_err(Error::io("read", path))? {
        let entry = entry.map_err(Error::io("read", path))?;
        if !left.contains(&entry.path()) {
            return refuse("a folder that is not empty", "choose another path");
        }
    }
    Ok(())
}

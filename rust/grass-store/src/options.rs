//! What a store is made for, and how it is written.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::disk::{Disk, SystemDisk};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::fingerprints::{self, Fingerprints, check_same_columns, check_same_fingerprints};
use crate::layout::{Column, Layout};
use crate::manifest::{MAX_SHARD, Manifest};

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

/// The store at `path` must be one of rows laid out like this, with these fingerprints.
///
/// # Errors
/// [`Error::Mismatch`] with the first difference.
pub(crate) fn check_same(
    path: &Path,
    stored: &Manifest,
    layout: &Layout,
    fingerprints: &Fingerprints,
) -> Result<()> {
    let (had, given) = (stored.layout.dtype(), layout.dtype());
    let dtypes = format!("dtype {had} in the store, {given} given");
    fingerprints::same(path, (had != given).then_some(dtypes))?;
    check_same_columns(path, stored.layout.columns(), layout.columns())?;
    check_same_fingerprints(path, &stored.fingerprints, fingerprints)
}

/// Which shards a writer writes, when it commits, and when it starts a new one.
#[derive(Debug, Clone)]
pub struct WriterOptions {
    /// Which of the writers this one is, from 0.
    pub writer: u32,
    /// How many write the store, each rows of its own: writer `w` writes shards `w`,
    /// `w + writers`, `w + 2 * writers` and so on.
    pub writers: u32,
    /// Commit when this many bytes of rows are waiting.
    pub commit_bytes: u64,
    /// Commit when this long has passed since the last commit and rows are waiting.
    pub commit_interval: Duration,
    /// Close a shard when its rows reach this many bytes, rounded down to whole chunks. It is
    /// part of what makes the bytes of a store, so it must be the same when a store is resumed.
    pub shard_bytes: u64,
    /// Where the files are written.
    pub disk: Arc<dyn Disk>,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self {
            writer: 0,
            writers: 1,
            commit_bytes: 64 << 20,
            commit_interval: Duration::from_secs(30),
            // Large stores stay a handful of files; none is too large to copy or to mend.
            shard_bytes: 4 << 30,
            disk: Arc::new(SystemDisk),
        }
    }
}

impl WriterOptions {
    pub(crate) fn check(&self) -> Result<()> {
        let (writer, writers) = (self.writer, self.writers);
        match writer < writers && writers <= MAX_SHARD + 1 {
            true => Ok(()),
            false => Err(Error::Writers { writer, writers }),
        }
    }

    /// Whether a shard belongs to this writer.
    pub(crate) fn owns(&self, shard: u32) -> bool {
        shard % self.writers == self.writer
    }

    /// How many rows a shard has before it is full.
    pub(crate) fn shard_rows(&self, layout: &Layout) -> u64 {
        let chunk_bytes = layout.chunk_rows() * layout.row_bytes() as u64;
        layout.chunk_rows() * (self.shard_bytes / chunk_bytes).max(1)
    }
}

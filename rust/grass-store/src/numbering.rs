//! Which number the next shard of a writer gets.
//!
//! The rows of a store are in the order of their shards' numbers. So that a store that was complete
//! keeps its rows where they are, every later shard gets a number above all that it had. A writer
//! counts on from its own last shard; where that number is not above those of the others, a log
//! without records keeps the first one that is, for a writer that may come much later.

use std::collections::BTreeSet;
use std::path::Path;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::manifest::{MAX_SHARD, Manifest};
use crate::paths::{self, ShardPaths};
use crate::shard_writer;

/// The numbers that are in use.
#[derive(Debug)]
pub(crate) struct ShardNumbers<'a> {
    store: &'a Path,
    with_rows: BTreeSet<u32>,
    /// Of shards that are there by name only.
    empty: BTreeSet<u32>,
}

impl<'a> ShardNumbers<'a> {
    /// Those of a store that has rows in the shards that its manifest lists and in `open` ones.
    pub(crate) fn find(
        store: &'a Path,
        manifest: &Manifest,
        open: impl IntoIterator<Item = u32>,
    ) -> Result<Self> {
        let listed = manifest.shards.iter().map(|shard| shard.number);
        let with_rows: BTreeSet<u32> = listed.chain(open).collect();
        let mut empty = paths::shard_numbers(store)?;
        empty.retain(|number| !with_rows.contains(number));
        Ok(Self {
            store,
            with_rows,
            empty,
        })
    }

    /// The number of the shard that a writer makes next.
    ///
    /// # Errors
    /// [`Error::TooManyShards`] if there is none.
    pub(crate) fn next(&self, writer: u32, writers: u32) -> Result<u32> {
        self.available(self.after_own(writer, writers))
    }

    fn after_own(&self, writer: u32, writers: u32) -> u32 {
        let last = |numbers: &BTreeSet<u32>| {
            let mut descending = numbers.iter().rev();
            descending
                .find(|&number| number % writers == writer)
                .copied()
        };
        let next = last(&self.with_rows).map_or(writer, |last| last + writers);
        last(&self.empty).map_or(next, |kept| kept.max(next))
    }

    /// The numbers to be kept for the writers whose next shard would come before one that the
    /// manifest lists.
    ///
    /// # Errors
    /// [`Error::TooManyShards`] if there are none.
    pub(crate) fn to_keep(&self, manifest: &Manifest, writers: u32) -> Result<Vec<u32>> {
        let Some(last) = manifest.shards.last().map(|shard| shard.number) else {
            return Ok(Vec::new());
        };
        let behind = (0..writers).filter(|&writer| self.after_own(writer, writers) <= last);
        let above = last + 1;
        behind
            .map(|writer| above + (writer + writers - above % writers) % writers)
            .map(|number| self.available(number))
            .collect()
    }

    /// Removes what keeps numbers, and shards without rows, before the store becomes complete.
    pub(crate) fn remove_empty(&self, disk: &dyn Disk) -> Result<()> {
        for &number in &self.empty {
            shard_writer::remove(disk, self.store, number)?;
        }
        Ok(())
    }

    fn available(&self, number: u32) -> Result<u32> {
        match number <= MAX_SHARD {
            true => Ok(number),
            false => Err(Error::TooManyShards {
                path: self.store.to_path_buf(),
            }),
        }
    }
}

/// Keeps numbers for shards that are made later.
pub(crate) fn keep(disk: &dyn Disk, store: &Path, numbers: &[u32]) -> Result<()> {
    for &number in numbers {
        let log = ShardPaths::new(store, number).log;
        let make = || disk.create(&log)?.sync();
        make().map_err(Error::io("create", &log))?;
    }
    match numbers.is_empty() {
        true => Ok(()),
        false => paths::sync_folder(disk, store),
    }
}

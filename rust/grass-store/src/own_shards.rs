//! The shards that a writer has open: the one it adds rows to, and those that it only closes.

use std::path::Path;

use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::manifest::{ClosedShard, MAX_SHARD, Manifest};
use crate::options::WriterOptions;
use crate::paths;
use crate::shard::Shard;
use crate::shard_writer::{self, ShardWriter};

#[derive(Debug, Default)]
pub(crate) struct OwnShards {
    /// Where rows are added; `None` before the first row and between shards.
    current: Option<ShardWriter>,
    /// Others that a store has open for this writer, where another number of writers began them.
    others: Vec<ShardWriter>,
}

impl OwnShards {
    /// Goes on with all open shards of the writer, after cutting off what was not committed.
    pub(crate) fn reopen(
        shards: Vec<Shard>,
        manifest: &Manifest,
        options: &WriterOptions,
    ) -> Result<Self> {
        let mut own = Self::default();
        let open = shards
            .into_iter()
            .filter(|shard| options.owns(shard.number) && !manifest.lists(shard.number));
        for shard in open {
            let shard = ShardWriter::reopen(&*options.disk, shard, &manifest.layout)?;
            let room = shard.rows() < options.shard_rows(&manifest.layout);
            // By number: the last one with room is where rows are added.
            let closing = match room {
                true => own.current.replace(shard),
                false => Some(shard),
            };
            own.others.extend(closing);
        }
        Ok(own)
    }

    /// How many rows wait to be committed.
    pub(crate) fn waiting(&self) -> u64 {
        self.current.as_ref().map_or(0, ShardWriter::waiting)
    }

    pub(crate) fn commit(&mut self) -> Result<()> {
        self.current.as_mut().map_or(Ok(()), ShardWriter::commit)
    }

    /// The shard that rows are added to.
    pub(crate) fn current(&mut self) -> Option<&mut ShardWriter> {
        self.current.as_mut()
    }

    /// How many rows fit in it yet; none where there is no such shard.
    pub(crate) fn room(&self, full: u64) -> u64 {
        let rows = self.current.as_ref().map_or(full, ShardWriter::rows);
        full.saturating_sub(rows)
    }

    /// Makes the next shard, which rows are added to from now on. A full one was closed before.
    pub(crate) fn begin_next(
        &mut self,
        store: &Path,
        manifest: &Manifest,
        options: &WriterOptions,
    ) -> Result<()> {
        let listed = manifest.shards.iter().map(|shard| shard.number);
        let open = self.others.iter().map(ShardWriter::number);
        let last = listed
            .chain(open)
            .filter(|&number| options.owns(number))
            .max();
        let number = last.map_or(options.writer, |last| last + options.writers);
        if number > MAX_SHARD {
            return Err(Error::TooManyShards {
                path: store.to_path_buf(),
            });
        }
        let shard = ShardWriter::create(&*options.disk, store, number, manifest)?;
        self.current = Some(shard);
        Ok(())
    }

    /// Closes the shard that rows are added to, and returns what the manifest is to list of it.
    pub(crate) fn close_current(
        &mut self,
        disk: &dyn Disk,
        manifest: &Manifest,
    ) -> Result<Option<ClosedShard>> {
        // One without rows, which a cancelled call leaves, is no shard yet.
        let current = self.current.take().filter(|shard| shard.rows() > 0);
        let closed = current.map(|shard| shard.close(disk, &manifest.layout));
        closed.transpose()
    }

    /// Closes all shards, removes files of shards without rows, and returns what the manifest is
    /// to list.
    pub(crate) fn close_all(
        &mut self,
        store: &Path,
        manifest: &Manifest,
        options: &WriterOptions,
    ) -> Result<Vec<ClosedShard>> {
        let disk = &*options.disk;
        let others = std::mem::take(&mut self.others).into_iter();
        let mut closed = others
            .map(|shard| shard.close(disk, &manifest.layout))
            .collect::<Result<Vec<_>>>()?;
        closed.extend(self.close_current(disk, manifest)?);
        for number in paths::shard_numbers(store)? {
            let known = manifest.lists(number) || closed.iter().any(|shard| shard.number == number);
            if options.owns(number) && !known {
                shard_writer::remove(disk, store, number)?;
            }
        }
        Ok(closed)
    }
}

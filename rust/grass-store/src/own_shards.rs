//! The shards that a writer has open: the one it adds rows to, and those that it only closes.

use std::path::Path;

use crate::disk::Disk;
use crate::error::Result;
use crate::layout::Layout;
use crate::manifest::{ClosedShard, Manifest};
use crate::numbering::ShardNumbers;
use crate::options::WriterOptions;
use crate::shard::Shard;
use crate::shard_writer::ShardWriter;

#[derive(Debug, Default)]
pub(crate) struct OwnShards {
    /// Where rows are added; `None` before the first row and between shards.
    current: Option<ShardWriter>,
    /// Others that a store has open for this writer, where another number of writers began them.
    others: Vec<ShardWriter>,
    /// Closed ones that the manifest does not list yet: until then they are as good as open.
    closed: Vec<ClosedShard>,
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
        let others = self.others.iter().map(ShardWriter::number);
        let closed = self.closed.iter().map(|shard| shard.number);
        let numbers = ShardNumbers::find(store, manifest, others.chain(closed))?;
        let number = numbers.next(options.writer, options.writers)?;
        let shard = ShardWriter::create(&*options.disk, store, number, manifest)?;
        self.current = Some(shard);
        Ok(())
    }

    /// Closes the shard that rows are added to, and says whether there was one.
    pub(crate) fn close_current(&mut self, disk: &dyn Disk, layout: &Layout) -> Result<bool> {
        // One without rows, which a cancelled call leaves, is no shard yet.
        let Some(current) = self.current.take().filter(|shard| shard.rows() > 0) else {
            return Ok(false);
        };
        self.closed.push(current.close(disk, layout)?);
        Ok(true)
    }

    /// Closes all shards.
    pub(crate) fn close_all(&mut self, disk: &dyn Disk, layout: &Layout) -> Result<()> {
        for shard in std::mem::take(&mut self.others) {
            self.closed.push(shard.close(disk, layout)?);
        }
        self.close_current(disk, layout)?;
        Ok(())
    }

    /// The closed shards that the manifest is to list.
    pub(crate) fn closed(&self) -> &[ClosedShard] {
        &self.closed
    }

    /// Takes the closed shards for listed.
    pub(crate) fn listed(&mut self) {
        self.closed.clear();
    }
}

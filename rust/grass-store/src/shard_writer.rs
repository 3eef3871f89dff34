//! The one shard that a writer is adding rows to.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::commit_log::{self, RECORD_BYTES, Record};
use crate::error::{Error, Result};
use crate::header::HEADER_BYTES;
use crate::layout::Layout;
use crate::paths::{self, ShardPaths};
use crate::shard::{self, Shard};

#[derive(Debug)]
pub(crate) struct ShardWriter {
    paths: ShardPaths,
    rows_file: File,
    ids_file: File,
    log_file: File,
    records: Vec<Record>,
}

impl ShardWriter {
    /// Makes the files of a shard without rows, in place of any that have none committed.
    pub(crate) fn create(store: &Path, number: u32, layout: &Layout) -> Result<Self> {
        let paths = ShardPaths::new(store, number);
        let make = |path: &Path| File::create(path).map_err(Error::io("create", path));
        let rows_file = make(&paths.rows)?;
        let ids_file = make(&paths.ids)?;
        rows_file
            .write_all_at(&shard::header(number, layout).to_bytes(), 0)
            .and_then(|()| rows_file.sync_all())
            .map_err(Error::io("write", &paths.rows))?;
        ids_file.sync_all().map_err(Error::io("sync", &paths.ids))?;
        // Last, so that a shard with a log has its other files too.
        let log_file = make(&paths.log)?;
        log_file.sync_all().map_err(Error::io("sync", &paths.log))?;
        paths::sync_folder(store)?;
        Ok(Self {
            paths,
            rows_file,
            ids_file,
            log_file,
            records: Vec::new(),
        })
    }

    /// Goes on with a shard, after cutting off what was written but not committed.
    pub(crate) fn reopen(shard: Shard, layout: &Layout) -> Result<Self> {
        let rows = shard.rows();
        let Shard { records, paths, .. } = shard;
        paths::remove_temporary(&paths.log)?;
        let cut = |path: &Path, length: u64| {
            let open = || {
                let file = OpenOptions::new().write(true).open(path)?;
                if file.metadata()?.len() != length {
                    file.set_len(length)?;
                    file.sync_all()?;
                }
                Ok(file)
            };
            open().map_err(Error::io("open for writing", path))
        };
        // The log first: it must never promise more than the other files hold.
        let log_file = cut(&paths.log, (records.len() * RECORD_BYTES) as u64)?;
        let rows_file = cut(
            &paths.rows,
            HEADER_BYTES as u64 + rows * layout.row_bytes() as u64,
        )?;
        let ids_file = cut(&paths.ids, rows * 8)?;
        Ok(Self {
            paths,
            rows_file,
            ids_file,
            log_file,
            records,
        })
    }

    /// How many rows are committed.
    pub(crate) fn rows(&self) -> u64 {
        self.records.last().map_or(0, |record| record.rows)
    }

    /// Adds rows for good: when this returns, they survive a killed process and a power loss.
    pub(crate) fn commit(&mut self, rows: &[u8], ids: &[u8], layout: &Layout) -> Result<()> {
        let first = self.rows();
        let row_bytes = layout.row_bytes();
        let files = [
            (
                &self.rows_file,
                &self.paths.rows,
                rows,
                HEADER_BYTES as u64 + first * row_bytes as u64,
            ),
            (&self.ids_file, &self.paths.ids, ids, first * 8),
        ];
        for (file, path, bytes, offset) in files {
            file.write_all_at(bytes, offset)
                .and_then(|()| file.sync_data())
                .map_err(Error::io("write", path))?;
        }
        let records = commit_log::records(rows, ids, row_bytes, first, layout.chunk_rows());
        let offset = (self.records.len() * RECORD_BYTES) as u64;
        commit_log::append(&self.log_file, offset, &records)
            .map_err(Error::io("write", &self.paths.log))?;
        self.records.extend(records);
        Ok(())
    }

    /// Leaves the shard with one record a chunk, and returns its number of rows.
    pub(crate) fn close(self, layout: &Layout) -> Result<u64> {
        let compact = commit_log::compacted(&self.records, layout.row_bytes(), layout.chunk_rows());
        if compact != self.records {
            paths::replace(&self.paths.log, &commit_log::to_bytes(&compact))?;
        }
        Ok(self.rows())
    }
}

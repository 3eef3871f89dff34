//! Rows of compressed gradients on disk, format 1.
//!
//! A store is a folder. Rows have a fixed width, are little endian and example-major (a row holds
//! all columns side by side), so that `numpy.memmap` reads them without this library.
//!
//! ```text
//! manifest.json      format, dtype, columns, fingerprints, number, rows and log checksum of each
//!                    closed shard, complete, writers, those that have finished, skipped ids and
//!                    its own CRC-32, as one line of canonical JSON
//! manifest.copy.json the same, for repair
//! shard-00000.rows   +--------------------+-------+-------+-----
//!                    | header, 4096 bytes | row 0 | row 1 | ...
//!                    +--------------------+-------+-------+-----
//! shard-00000.ids    one u64 a row
//! shard-00000.log    20-byte records: rows so far u64, CRC-32 of the rows and of the ids that the
//!                    record commits, CRC-32 of the record's first 16 bytes
//! .lock and others   held by writers while they are open; no part of the store
//! repair.json        what an interrupted repair has decided; nothing but a repair opens such a store
//! ```
//!
//! A chunk is a fixed number of rows, from the row's bytes alone ([`Layout::chunk_rows`]). A
//! record never reaches past the end of a chunk. A closed shard has exactly one record a chunk, so
//! the bytes of a finished store depend on its rows, ids and plan, and on which writer wrote which
//! rows, never on when it was committed. Its `log_crc32` in the manifest is the CRC-32 of the first
//! 16 bytes of all its records.
//!
//! Rows are written as they are appended. A commit syncs them, writes and syncs their ids, appends
//! records, and syncs those. What `commit`
//! returned for survives a killed process and a power loss; what it did not is cut off when the
//! store is next opened for writing. Readers trust nothing: lengths, counts and checksums are
//! compared before a byte is used or memory is taken for it.

mod checksum;
mod chunk;
mod commit_log;
mod disk;
mod dtype;
mod encoding;
mod error;
mod fingerprints;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod header;
mod id_set;
mod layout;
mod lock;
mod manifest;
mod merge;
mod numbering;
mod options;
mod own_shards;
mod paths;
mod reader;
mod repair;
mod repair_journal;
mod salvage;
mod shard;
mod shard_writer;
mod stored_file;
mod verify;
mod writer;

pub use chunk::{Chunk, ChunkReader, ChunkSpan};
pub use disk::{Disk, DiskFile, SystemDisk};
pub use dtype::Dtype;
pub use error::{Damage, Error, Part, Result};
pub use fingerprints::{Fingerprints, check_same_columns, check_same_fingerprints};
pub use layout::{Column, Layout};
pub use merge::merge;
pub use options::{StoreSpec, WriterOptions};
pub use reader::StoreReader;
pub use repair::{Repaired, repair};
pub use verify::verify;
pub use writer::StoreWriter;

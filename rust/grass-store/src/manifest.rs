//! `manifest.json`: what a store holds, as one line of canonical JSON (sorted keys, no spaces).

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::checksum::crc32;
use crate::disk::Disk;
use crate::dtype::Dtype;
use crate::error::{Damage, Error, Result};
use crate::fingerprints::Fingerprints;
use crate::header::{FORMAT, Header};
use crate::layout::{Column, Layout};
use crate::lock::ManifestLock;
use crate::paths;

/// Explicit masks can make specs long; beyond this a manifest is not believed.
const MAX_BYTES: u64 = 1 << 30;

/// Shards are numbered with five digits.
pub(crate) const MAX_SHARD: u32 = 99_999;

/// The checksum of the manifest's other fields.
pub(crate) const CHECKSUM_KEY: &str = "crc32";

/// What a store holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) layout: Layout,
    pub(crate) fingerprints: Fingerprints,
    /// The closed shards by number. An unfinished store may have open ones more.
    pub(crate) shards: Vec<ClosedShard>,
    pub(crate) complete: bool,
    /// Ids that were left out on purpose, ascending.
    pub(crate) skipped_ids: Vec<u64>,
    /// How many writers share the store, or did when it was finished.
    pub(crate) writers: u32,
    /// Those that have finished while others have not, ascending.
    pub(crate) finished_writers: Vec<u32>,
    /// SHA-256 of what every shard shares: columns, dtype and fingerprints.
    identity: [u8; 32],
}

/// A shard whose files never change again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ClosedShard {
    /// That of its log (`commit_log::checksum`), which has the checksums of everything else.
    pub(crate) log_crc32: u32,
    pub(crate) number: u32,
    pub(crate) rows: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    columns: Vec<ColumnFields>,
    complete: bool,
    dtype: String,
    fingerprints: Fingerprints,
    finished_writers: Vec<u32>,
    format: u32,
    shards: Vec<ClosedShard>,
    skipped_ids: Vec<u64>,
    writers: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ColumnFields {
    name: String,
    offset: u64,
    spec: Value,
    width: u64,
}

impl Manifest {
    /// The manifest of an unfinished store without rows, for one writer.
    pub(crate) fn new(layout: Layout, fingerprints: Fingerprints) -> Self {
        let shared = json!({
            "columns": column_fields(&layout),
            "dtype": layout.dtype().name(),
            "fingerprints": fingerprints,
        });
        Self {
            layout,
            fingerprints,
            shards: Vec::new(),
            complete: false,
            skipped_ids: Vec::new(),
            writers: 1,
            finished_writers: Vec::new(),
            identity: Sha256::digest(shared.to_string()).into(),
        }
    }

    /// The bytes of the file.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let fields = Fields {
            columns: column_fields(&self.layout),
            complete: self.complete,
            dtype: self.layout.dtype().name().to_owned(),
            fingerprints: self.fingerprints.clone(),
            finished_writers: self.finished_writers.clone(),
            format: FORMAT,
            shards: self.shards.clone(),
            skipped_ids: self.skipped_ids.clone(),
            writers: self.writers,
        };
        // Every field is a string, a number, or comes from JSON, so this cannot fail but for memory.
        let value = serde_json::to_value(fields).map_err(|error| Error::Columns {
            problem: format!("they cannot be written as JSON ({error})"),
            expected: "specs of JSON values",
        })?;
        Ok(with_checksum(value))
    }

    /// The header that shard `number` must have.
    pub(crate) fn header(&self, number: u32) -> Header {
        Header {
            dtype: self.layout.dtype(),
            row_bytes: self.layout.row_bytes() as u64,
            shard: number,
            identity: self.identity,
        }
    }

    /// Whether all writers have finished, which a complete store is not told of any more.
    pub(crate) fn all_finished(&self) -> bool {
        self.finished_writers.len() == self.writers as usize
    }

    /// Makes a finished store unfinished: more rows are to come.
    pub(crate) fn unfinish(&mut self) {
        self.complete = false;
        self.finished_writers.clear();
    }

    /// Writes the manifest of the store in `folder`, then its copy; a crash leaves the old one or
    /// the new one of each.
    pub(crate) fn write(&self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        let bytes = self.to_bytes()?;
        paths::replace(disk, &paths::manifest(folder), &bytes)?;
        paths::replace(disk, &paths::manifest_copy(folder), &bytes)
    }

    /// Reads, changes and replaces the manifest of the store in `folder`, so that no other writer's
    /// change is lost, and returns it.
    ///
    /// # Errors
    /// [`Error::Locked`] if another keeps its lock for long: `change` was not called then; those of
    /// reading, changing and writing.
    pub(crate) fn edit(
        disk: &dyn Disk,
        folder: &Path,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<Self> {
        let _lock = ManifestLock::take(disk, folder)?;
        let stored = Self::read(folder)?;
        let mut manifest = stored.clone();
        change(&mut manifest)?;
        if manifest != stored {
            manifest.write(disk, folder)?;
        }
        Ok(manifest)
    }

    /// Does what a crash amid writing the manifest has left to do. The manifest's lock is held.
    pub(crate) fn mend(&self, disk: &dyn Disk, folder: &Path) -> Result<()> {
        let copy = paths::manifest_copy(folder);
        for path in [&paths::manifest(folder), &copy] {
            paths::remove_temporary(disk, path)?;
        }
        // A killed writer may have left names in memory alone.
        paths::sync_folder(disk, folder)?;
        let bytes = self.to_bytes()?;
        match paths::read_file(&copy) {
            Ok(Some(copied)) if copied == bytes => Ok(()),
            // One that cannot be read is as good as none.
            _ => paths::replace(disk, &copy, &bytes),
        }
    }

    /// Whether a shard is closed.
    pub(crate) fn lists(&self, shard: u32) -> bool {
        self.closed(shard).is_some()
    }

    /// What is listed of a shard, if it is closed.
    pub(crate) fn closed(&self, shard: u32) -> Option<ClosedShard> {
        let place = self
            .shards
            .binary_search_by_key(&shard, |closed| closed.number);
        place.ok().map(|place| self.shards[place])
    }

    /// Adds closed shards.
    pub(crate) fn list(&mut self, closed: &[ClosedShard]) {
        self.shards.extend(closed);
        self.shards.sort_unstable_by_key(|shard| shard.number);
    }

    /// Adds ids that were left out on purpose.
    pub(crate) fn skip(&mut self, ids: &[u64]) {
        self.skipped_ids.extend(ids);
        self.skipped_ids.sort_unstable();
        self.skipped_ids.dedup();
    }

    /// Reads the manifest of the store in `folder`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Format`], [`Error::Corrupt`], [`Error::Io`];
    /// [`Error::Repair`] after an interrupted repair, or if only the copy is there.
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        if paths::repair_journal(folder).exists() {
            return Err(Error::repair_interrupted(folder));
        }
        Self::read_file(folder, &paths::manifest(folder))
    }

    /// Reads the manifest, or its copy, from `path` in the store's folder.
    pub(crate) fn read_file(folder: &Path, path: &Path) -> Result<Self> {
        let Some(mut file) = paths::open_file(path)? else {
            return Err(absent(folder));
        };
        let length = file.metadata().map_err(Error::io("read", path))?.len();
        if length > MAX_BYTES {
            let problem = format!("expected at most {MAX_BYTES} bytes, got {length}");
            return Err(Error::corrupt(folder, Damage::manifest(problem)));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(Error::io("read", path))?;
        parse(&bytes, folder)
    }
}

fn column_fields(layout: &Layout) -> Vec<ColumnFields> {
    let columns = layout.columns().iter().enumerate();
    columns
        .map(|(index, column)| ColumnFields {
            name: column.name.clone(),
            offset: layout.coordinates(index).start as u64,
            spec: column.spec.clone(),
            width: column.width,
        })
        .collect()
}

fn absent(folder: &Path) -> Error {
    if paths::manifest_copy(folder).exists() {
        return Error::manifest_lost(folder);
    }
    Error::NotFound {
        path: folder.to_path_buf(),
        found: match folder.metadata() {
            Ok(kind) if kind.is_dir() => "a folder without one",
            Ok(_) => "a file",
            Err(_) => "nothing",
        },
    }
}

/// The canonical line of a JSON object with its checksum added.
pub(crate) fn with_checksum(mut value: Value) -> Vec<u8> {
    let checksum = crc32(value.to_string().as_bytes());
    if let Value::Object(fields) = &mut value {
        fields.insert(CHECKSUM_KEY.to_owned(), checksum.into());
    }
    format!("{value}\n").into_bytes()
}

/// The manifest in these bytes, which come from the store in `folder`.
pub(crate) fn parse(bytes: &[u8], folder: &Path) -> Result<Manifest> {
    let damaged = |problem: String| Error::corrupt(folder, Damage::manifest(problem));
    let mut value: Value = serde_json::from_slice(bytes)
        .map_err(|error| damaged(format!("expected JSON, got an error: {error}")))?;
    let Value::Object(object) = &mut value else {
        return Err(damaged("expected a JSON object".to_owned()));
    };
    match object.get("format").and_then(Value::as_u64) {
        Some(format) if format == u64::from(FORMAT) => {}
        Some(found) => {
            return Err(Error::Format {
                path: folder.to_path_buf(),
                found,
            });
        }
        None => return Err(damaged("expected a format number".to_owned())),
    }
    object.remove(CHECKSUM_KEY);
    // Compared byte for byte, so that no change goes unnoticed, not even one of a space.
    if with_checksum(value.clone()) != bytes {
        return Err(damaged("the checksum differs".to_owned()));
    }
    let fields: Fields =
        serde_json::from_value(value).map_err(|error| damaged(error.to_string()))?;
    let dtype: Dtype = fields
        .dtype
        .parse()
        .map_err(|error: Error| damaged(error.to_string()))?;
    let offsets: Vec<u64> = fields.columns.iter().map(|column| column.offset).collect();
    let columns = fields.columns.into_iter().map(|column| Column {
        name: column.name,
        width: column.width,
        spec: column.spec,
    });
    let layout =
        Layout::new(dtype, columns.collect()).map_err(|error| damaged(error.to_string()))?;
    for (index, (&offset, column)) in offsets.iter().zip(layout.columns()).enumerate() {
        let expected = layout.coordinates(index).start as u64;
        if offset != expected {
            let problem = format!(
                "column {:?} expected offset {expected}, got {offset}",
                column.name
            );
            return Err(damaged(problem));
        }
    }
    let shards = fields.shards;
    if let Some(empty) = shards.iter().find(|shard| shard.rows == 0) {
        return Err(damaged(format!(
            "expected rows in shard {}, got 0",
            empty.number
        )));
    }
    let ascending = shards
        .windows(2)
        .all(|pair| pair[0].number < pair[1].number);
    if !ascending || shards.last().is_some_and(|last| last.number > MAX_SHARD) {
        return Err(damaged(format!(
            "expected ascending shard numbers to {MAX_SHARD}"
        )));
    }
    let ascending = fields.skipped_ids.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending {
        return Err(damaged("expected ascending skipped ids".to_owned()));
    }
    let finished = &fields.finished_writers;
    if fields.complete && !finished.is_empty() {
        return Err(damaged(
            "expected no finished writers in a finished store".to_owned(),
        ));
    }
    if fields.writers == 0 {
        return Err(damaged("expected at least 1 writer, got 0".to_owned()));
    }
    let ascending = finished.windows(2).all(|pair| pair[0] < pair[1]);
    if !ascending || finished.last().is_some_and(|&last| last >= fields.writers) {
        return Err(damaged(format!(
            "expected ascending numbers of finished writers below {}",
            fields.writers
        )));
    }
    // A bound that no real store reaches: later sums of rows and bytes cannot overflow.
    let bytes = shards
        .iter()
        .map(|shard| u128::from(shard.rows) * layout.row_bytes().max(8) as u128);
    if bytes.sum::<u128>() > u128::from(u64::MAX >> 2) {
        return Err(damaged(format!(
            "the rows of {} shards are longer than any disk",
            shards.len()
        )));
    }
    Ok(Manifest {
        shards,
        complete: fields.complete,
        skipped_ids: fields.skipped_ids,
        writers: fields.writers,
        finished_writers: fields.finished_writers,
        ..Manifest::new(layout, fields.fingerprints)
    })
}

//! `manifest.json`: what a store holds, as one line of canonical JSON (sorted keys, no spaces).

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::checksum::crc32;
use crate::dtype::Dtype;
use crate::error::{Damage, Error, Result};
use crate::fingerprints::Fingerprints;
use crate::header::FORMAT;
use crate::layout::{Column, Layout};
use crate::paths;

/// Explicit masks can make specs long; beyond this a manifest is not believed.
const MAX_BYTES: u64 = 1 << 30;

/// Shards are numbered with five digits.
pub(crate) const MAX_SHARDS: usize = 100_000;

/// The checksum of the manifest's other fields.
const CHECKSUM_KEY: &str = "crc32";

/// What a store holds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Manifest {
    pub(crate) layout: Layout,
    pub(crate) fingerprints: Fingerprints,
    /// Rows of each closed shard. An unfinished store may have one open shard more.
    pub(crate) shards: Vec<u64>,
    pub(crate) complete: bool,
    /// Ids that were left out on purpose, ascending.
    pub(crate) skipped_ids: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    columns: Vec<ColumnFields>,
    complete: bool,
    dtype: String,
    fingerprints: Fingerprints,
    format: u32,
    shards: Vec<ShardFields>,
    skipped_ids: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ColumnFields {
    name: String,
    offset: u64,
    spec: Value,
    width: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardFields {
    rows: u64,
}

impl Manifest {
    /// The bytes of the file.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let columns = self.layout.columns().iter().enumerate();
        let fields = Fields {
            columns: columns
                .map(|(index, column)| ColumnFields {
                    name: column.name.clone(),
                    offset: self.layout.coordinates(index).start as u64,
                    spec: column.spec.clone(),
                    width: column.width,
                })
                .collect(),
            complete: self.complete,
            dtype: self.layout.dtype().name().to_owned(),
            fingerprints: self.fingerprints.clone(),
            format: FORMAT,
            shards: self
                .shards
                .iter()
                .map(|&rows| ShardFields { rows })
                .collect(),
            skipped_ids: self.skipped_ids.clone(),
        };
        // Every field is a string, a number, or comes from JSON, so this cannot fail but for memory.
        let value = serde_json::to_value(fields).map_err(|error| Error::Columns {
            problem: format!("they cannot be written as JSON ({error})"),
            expected: "specs of JSON values",
        })?;
        Ok(with_checksum(value))
    }

    /// Writes the manifest of the store in `folder`; a crash leaves the old one or the new one.
    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        paths::replace(&paths::manifest(folder), &self.to_bytes()?)
    }

    /// Reads the manifest of the store in `folder`.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Format`], [`Error::Corrupt`], [`Error::Io`].
    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = paths::manifest(folder);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => return Err(absent(folder, error)),
        };
        let length = file.metadata().map_err(Error::io("read", &path))?.len();
        if length > MAX_BYTES {
            let problem = format!("expected at most {MAX_BYTES} bytes, got {length}");
            return Err(Error::corrupt(folder, Damage::manifest(problem)));
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)
            .map_err(Error::io("read", &path))?;
        parse(&bytes, folder)
    }
}

fn absent(folder: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Error::NotFound {
            path: folder.to_path_buf(),
            found: match folder.metadata() {
                Ok(kind) if kind.is_dir() => "a folder without one",
                Ok(_) => "a file",
                Err(_) => "nothing",
            },
        },
        _ => Error::io("read", &paths::manifest(folder))(error),
    }
}

/// The canonical line of a JSON object with its checksum added.
fn with_checksum(mut value: Value) -> Vec<u8> {
    let checksum = crc32(value.to_string().as_bytes());
    if let Value::Object(fields) = &mut value {
        fields.insert(CHECKSUM_KEY.to_owned(), checksum.into());
    }
    format!("{value}\n").into_bytes()
}

fn parse(bytes: &[u8], folder: &Path) -> Result<Manifest> {
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
    let shards: Vec<u64> = fields.shards.iter().map(|shard| shard.rows).collect();
    if shards.len() > MAX_SHARDS {
        return Err(damaged(format!(
            "expected at most {MAX_SHARDS} shards, got {}",
            shards.len()
        )));
    }
    if let Some(empty) = shards.iter().position(|&rows| rows == 0) {
        return Err(damaged(format!("expected rows in shard {empty}, got 0")));
    }
    // A bound that no real store reaches: later sums of rows and bytes cannot overflow.
    let bytes = shards
        .iter()
        .map(|&rows| u128::from(rows) * layout.row_bytes().max(8) as u128);
    if bytes.sum::<u128>() > u128::from(u64::MAX >> 2) {
        return Err(damaged(format!(
            "the rows of {} shards are longer than any disk",
            shards.len()
        )));
    }
    Ok(Manifest {
        layout,
        fingerprints: fields.fingerprints,
        shards,
        complete: fields.complete,
        skipped_ids: fields.skipped_ids,
    })
}

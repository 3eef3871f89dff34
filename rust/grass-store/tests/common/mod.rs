//! What the tests of the store share: small specs, rows that tell their place, folders as bytes.
#![allow(
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    reason = "helpers of tests: every test file compiles its own copy and uses a part of it"
)]

pub mod forge;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use grass_core::parallel::Workers;
use grass_store::{
    Column, Dtype, Error, StoreReader, StoreSpec, StoreWriter, SystemDisk, WriterOptions,
};
use tempfile::TempDir;

pub const DTYPES: [Dtype; 4] = [Dtype::Float32, Dtype::Float16, Dtype::Bfloat16, Dtype::Int8];

/// Columns whose float32 rows are 64 KiB: 16 rows a chunk.
pub const WIDE: [(&str, u64); 2] = [("conv", 6_384), ("fc", 10_000)];
/// Rows of [`WIDE`] in a chunk.
pub const CHUNK: usize = 16;
/// Columns of a row of 8 numbers.
pub const NARROW: [(&str, u64); 2] = [("fc1", 3), ("fc2", 5)];

pub fn spec(dtype: Dtype, columns: &[(&str, u64)]) -> StoreSpec {
    let columns = columns.iter().enumerate();
    StoreSpec {
        dtype,
        columns: columns
            .map(|(seed, (name, width))| {
                let spec = format!(r#"{{"type":"sjlt","seed":{seed},"output_dim":{width}}}"#);
                Column::new(*name, *width, &spec).unwrap()
            })
            .collect(),
        fingerprints: BTreeMap::from([
            ("model".to_owned(), "m0".to_owned()),
            ("plan".to_owned(), "p0".to_owned()),
        ]),
    }
}

pub fn width(spec: &StoreSpec) -> usize {
    spec.columns
        .iter()
        .map(|column| column.width as usize)
        .sum()
}

/// Never commits by itself; two chunks of [`WIDE`] a shard.
pub fn manual() -> WriterOptions {
    WriterOptions {
        commit_bytes: u64::MAX,
        commit_interval: Duration::MAX,
        shard_bytes: 2 << 20,
        disk: Arc::new(SystemDisk),
        ..WriterOptions::default()
    }
}

/// Values of rows `first..first + count`, each telling its row and place, small enough for any dtype.
pub fn rows(first: usize, count: usize, width: usize) -> Vec<f32> {
    let value = |row: usize, place: usize| ((row * 31 + place * 7) % 201) as f32 - 100.0;
    (first..first + count)
        .flat_map(|row| (0..width).map(move |place| value(row, place)))
        .collect()
}

/// Ids of rows `first..first + count`: neither sorted nor dense.
pub fn ids(first: usize, count: usize) -> Vec<u64> {
    (first..first + count)
        .map(|row| (row as u64) ^ 5 | 1 << 40)
        .collect()
}

/// Appends rows `first..first + count` in one call.
pub fn append(writer: &mut StoreWriter, first: usize, count: usize) {
    let width = writer.layout().width();
    writer
        .append(
            &rows(first, count, width),
            &ids(first, count),
            &Workers::serial(),
        )
        .unwrap();
}

/// A finished store of `count` rows, written in one commit.
pub fn finished(path: &Path, spec: StoreSpec, count: usize) {
    let mut writer = StoreWriter::create(path, spec, manual()).unwrap();
    append(&mut writer, 0, count);
    writer.finish(&[]).unwrap();
}

/// Every file of a store with its bytes, but for locks.
pub fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(path).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| {
            (
                entry.file_name().into_string().unwrap(),
                fs::read(entry.path()).unwrap(),
            )
        })
        .filter(|(name, _)| !name.starts_with('.'))
        .collect()
}

/// Says where two stores differ without printing megabytes.
pub fn assert_same_files(left: &Path, right: &Path) {
    let (left, right) = (files(left), files(right));
    assert!(
        left.keys().eq(right.keys()),
        "{:?} against {:?}",
        left.keys(),
        right.keys()
    );
    for (name, bytes) in &left {
        let other = &right[name];
        assert_eq!(bytes.len(), other.len(), "length of {name}");
        let place = bytes
            .iter()
            .zip(other)
            .position(|(left, right)| left != right);
        assert_eq!(place, None, "first difference of {name}");
    }
}

pub fn copy_store(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

/// Changes a file in place.
pub fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// The places that an opened or verified store is reported to be damaged in.
pub fn damage(outcome: Result<(), Error>) -> Vec<String> {
    match outcome {
        Err(Error::Corrupt { damage, .. }) => damage.iter().map(ToString::to_string).collect(),
        other => panic!("expected damage, got {other:?}"),
    }
}

/// What opening a store reports as damage.
pub fn opening(path: &Path) -> Vec<String> {
    damage(StoreReader::open(path).map(|_| ()))
}

/// A finished store of 2 shards with 2 and 1 chunks.
pub fn store() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    finished(&path, spec(Dtype::Float32, &WIDE), 2 * CHUNK + 5);
    (folder, path)
}

/// A store with 5 rows committed, not finished.
pub fn unfinished() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut writer = StoreWriter::create(&path, spec(Dtype::Float32, &WIDE), manual()).unwrap();
    for row in 0..5 {
        append(&mut writer, row, 1);
        writer.commit().unwrap();
    }
    (folder, path)
}

/// What opening reports after a file was changed.
pub fn changed(name: &str, change: impl FnOnce(&mut Vec<u8>)) -> Vec<String> {
    let (_folder, path) = store();
    edit(&path.join(name), change);
    opening(&path)
}

/// A store of 8 narrow rows in 3 shards: the first with a wrong header, the second with wrong rows, the third gone but
/// for its rows.
pub fn much_damaged(folder: &Path) -> PathBuf {
    let path = folder.join("damaged");
    let narrow = || spec(Dtype::Int8, &NARROW);
    let workers = Workers::serial();
    for (first, count) in [(0, 3), (3, 3), (6, 2)] {
        let mut writer = StoreWriter::resume(&path, narrow(), manual(), &workers).unwrap();
        append(&mut writer, first, count);
        writer.finish(&[]).unwrap();
    }
    edit(&path.join("shard-00000.rows"), |bytes| bytes[13] ^= 1);
    edit(&path.join("shard-00001.rows"), |bytes| bytes[4100] ^= 1);
    fs::remove_file(path.join("shard-00002.ids")).unwrap();
    path
}

//! Stores of format 1 as it was published are read for ever, and written the same byte for byte.
#![allow(
    clippy::unwrap_used,
    reason = "helpers of tests fail like the tests themselves"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{DTYPES, assert_same_files};
use grass_core::parallel::Workers;
use grass_store::{Column, Dtype, StoreReader, StoreSpec, StoreWriter, WriterOptions, verify};
use serde::Deserialize;
use tempfile::TempDir;

/// What `tests/golden/make_store.py` put into the stores.
#[derive(Deserialize)]
struct Holds {
    columns: Vec<Block>,
    fingerprints: BTreeMap<String, String>,
    ids: Vec<u64>,
    skipped_ids: Vec<u64>,
    /// Rows of each shard.
    shards: Vec<usize>,
    rows: Vec<Vec<f32>>,
    /// By dtype, the rows as they read back.
    stored: BTreeMap<String, Vec<Vec<f32>>>,
}

#[derive(Deserialize)]
struct Block {
    name: String,
    width: u64,
    spec: serde_json::Value,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden/store-v1")
}

fn holds() -> Holds {
    serde_json::from_slice(&fs::read(folder().join("holds.json")).unwrap()).unwrap()
}

fn spec(holds: &Holds, dtype: Dtype) -> StoreSpec {
    let column = |block: &Block| Column::new(&block.name, block.width, &block.spec.to_string());
    StoreSpec {
        dtype,
        columns: holds.columns.iter().map(|b| column(b).unwrap()).collect(),
        fingerprints: holds.fingerprints.clone(),
    }
}

/// So that a negative zero is no zero.
fn bits(rows: &[f32]) -> Vec<u32> {
    rows.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn golden_stores_hold_what_was_put_into_them() {
    let holds = holds();
    for dtype in DTYPES {
        let path = folder().join(dtype.name());
        let workers = Workers::serial();
        verify(&path, &workers).unwrap();
        let store = StoreReader::open(&path).unwrap();
        assert!(store.complete());
        assert_eq!(store.layout().dtype(), dtype);
        assert_eq!(store.layout().columns(), spec(&holds, dtype).columns);
        assert_eq!(*store.fingerprints(), holds.fingerprints);
        assert_eq!(store.skipped_ids(), holds.skipped_ids);
        assert_eq!(store.ids(&workers).unwrap(), holds.ids);
        let all: Vec<u64> = (0..holds.ids.len() as u64).collect();
        let rows = store.read_rows(&all, &workers).unwrap();
        assert_eq!(
            bits(&rows),
            bits(&holds.stored[dtype.name()].concat()),
            "{dtype}"
        );
    }
}

#[test]
fn todays_writer_makes_the_same_bytes() {
    let holds = holds();
    assert!(holds.shards.len() > 1);
    for dtype in DTYPES {
        let root = TempDir::new().unwrap();
        let path = root.path().join("store");
        let workers = Workers::serial();
        let mut done = 0;
        for &count in &holds.shards {
            let spec = spec(&holds, dtype);
            let mut writer =
                StoreWriter::resume(&path, spec, WriterOptions::default(), &workers).unwrap();
            let part = done..done + count;
            let rows = holds.rows[part.clone()].concat();
            writer.append(&rows, &holds.ids[part], &workers).unwrap();
            writer.finish(&holds.skipped_ids).unwrap();
            done += count;
        }
        assert_eq!(done, holds.ids.len());
        assert_same_files(&folder().join(dtype.name()), &path);
    }
}

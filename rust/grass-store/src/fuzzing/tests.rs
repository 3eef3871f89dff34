//! The seeds of the fuzz targets, and the same targets over random and mutated bytes.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use grass_core::spec::Spec;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::{StoreSpec, StoreWriter, WriterOptions};

type Seeds = BTreeMap<(&'static str, &'static str), Vec<u8>>;

fn folder_of_seeds() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/seeds"))
}

/// The files of a small store: with 3 and 2 rows committed, finished or not.
fn files(complete: bool) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let spec = StoreSpec {
        dtype: Dtype::Int8,
        columns: narrow().columns().to_vec(),
        fingerprints: [("plan".into(), "p".into())].into(),
    };
    let mut writer = StoreWriter::create(&path, spec, WriterOptions::default()).unwrap();
    for (first, count) in [(0u64, 3usize), (3, 2)] {
        let rows: Vec<f32> = (0..count * 8).map(|place| place as f32 - 7.0).collect();
        let ids: Vec<u64> = (first..).take(count).collect();
        writer.append(&rows, &ids, &Workers::serial()).unwrap();
        writer.commit().unwrap();
    }
    if complete {
        writer.finish(&[9, 11]).unwrap();
    }
    bytes_of(&path).into_iter().collect()
}

/// The input of [`store`] that makes these files.
fn store_input(switches: u8, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut input = vec![switches];
    let parts = ["manifest.json", "shard-00000.log", "shard-00000.ids"].map(|name| &files[name]);
    for part in parts {
        input.extend((part.len() as u16).to_le_bytes());
    }
    input.extend(parts.into_iter().flatten());
    input.extend(&files["shard-00000.rows"][HEADER_BYTES..]);
    input
}

fn specs() -> [(&'static str, &'static str); 7] {
    [
        ("mask", r#"{"type":"mask","indices":[1,3],"input_dim":5}"#),
        (
            "random_mask",
            r#"{"type":"random_mask","input_dim":40,"output_dim":8,"seed":1,"block":4}"#,
        ),
        (
            "sjlt",
            r#"{"type":"sjlt","input_dim":40,"output_dim":8,"seed":2,"nnz":2,"kind":"cyclic"}"#,
        ),
        (
            "gaussian",
            r#"{"type":"gaussian","input_dim":9,"output_dim":4,"seed":3,"kind":"normal"}"#,
        ),
        (
            "grass",
            r#"{"type":"grass","input_dim":5,"output_dim":2,"seed":4,"mask_dim":2,"mask":{"type":"mask","indices":[1,3],"input_dim":5},"kind":"iid"}"#,
        ),
        (
            "logra",
            r#"{"type":"logra","in_features":5,"out_features":4,"rank_in":2,"rank_out":2,"seed":5}"#,
        ),
        (
            "tile",
            r#"{"type":"tile","in_features":5,"out_features":4,"output_dim":8,"seed":7}"#,
        ),
    ]
}

fn seeds() -> Seeds {
    let (finished, unfinished) = (files(true), files(false));
    let log = |power: u8, files: &BTreeMap<String, Vec<u8>>| {
        [&[power], &files["shard-00000.log"][..]].concat()
    };
    let mut header = finished["shard-00000.rows"][..HEADER_BYTES].to_vec();
    let mut seeds = Seeds::new();
    seeds.insert(("header", "whole"), header.clone());
    header[28] ^= 1;
    header.truncate(60);
    seeds.insert(("header", "other_identity"), header);
    seeds.insert(("manifest", "finished"), finished["manifest.json"].clone());
    seeds.insert(
        ("manifest", "unfinished"),
        unfinished["manifest.json"].clone(),
    );
    seeds.insert(("commit_log", "finished"), log(16, &finished));
    seeds.insert(("commit_log", "unfinished"), log(16, &unfinished));
    seeds.insert(("commit_log", "crossing"), log(2, &unfinished));
    seeds.insert(("store", "finished"), store_input(0, &finished));
    seeds.insert(("store", "unfinished"), store_input(0, &unfinished));
    seeds.insert(("store", "fitting"), store_input(0b0001_1101, &finished));
    seeds.insert(("store", "headless"), store_input(0b1100_0000, &finished));
    for (name, json) in specs() {
        let spec = Spec::from_json(json).unwrap();
        seeds.insert(("compressor_bytes", name), spec.to_bytes());
    }
    seeds
}

/// GRASS_SEEDS=write writes them.
#[test]
fn the_seeds_are_those_of_this_format() {
    let folder = folder_of_seeds();
    let write = std::env::var_os("GRASS_SEEDS").is_some();
    let mut expected = 0;
    for ((target, name), bytes) in seeds() {
        let path = folder.join(target).join(name);
        if write {
            fs::create_dir_all(folder.join(target)).unwrap();
            fs::write(&path, &bytes).unwrap();
        }
        assert!(fs::read(&path).unwrap() == bytes, "{target}/{name}");
        expected += 1;
    }
    let committed = [
        "header",
        "manifest",
        "commit_log",
        "compressor_bytes",
        "store",
    ]
    .map(|target| fs::read_dir(folder.join(target)).unwrap().count());
    assert_eq!(committed.iter().sum::<usize>(), expected);
}

#[test]
fn the_seeds_of_stores_are_whole_as_they_say() {
    let folder = tempfile::tempdir().unwrap();
    for (name, whole) in [
        ("finished", true),
        ("unfinished", true),
        ("fitting", true),
        ("headless", false),
    ] {
        // The files of `store` stay as its repair leaves them, so only what was dropped tells.
        store(folder.path(), &seeds()[&("store", name)]);
        let rows = StoreReader::open(folder.path()).unwrap().rows();
        assert_eq!(rows > 0, whole, "{name}");
    }
}

/// Bytes near valid ones: some changed, the end cut off or gone on with.
fn mutated(target: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let seeds: Vec<Vec<u8>> = seeds()
        .into_iter()
        .filter(|((of, _), _)| *of == target)
        .map(|(_, bytes)| bytes)
        .collect();
    let changes = prop::collection::vec((any::<Index>(), any::<u8>()), 0..6);
    let tail = prop::collection::vec(any::<u8>(), 0..40);
    (
        prop::sample::select(seeds),
        changes,
        any::<Index>(),
        tail,
        0u8..3,
    )
        .prop_map(|(mut bytes, changes, cut, tail, kind)| {
            for (place, value) in changes {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            match kind {
                0 => bytes.truncate(cut.index(bytes.len() + 1)),
                1 => bytes.extend(tail),
                _ => {}
            }
            bytes
        })
}

fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..400)
}

proptest! {
    #[test]
    fn any_header(bytes in prop_oneof![any_bytes(), mutated("header")]) {
        header(&bytes);
    }

    #[test]
    fn any_manifest(bytes in prop_oneof![any_bytes(), mutated("manifest")]) {
        manifest(&bytes);
    }

    #[test]
    fn any_commit_log(bytes in prop_oneof![any_bytes(), mutated("commit_log")]) {
        commit_log(&bytes);
    }

    #[test]
    fn any_store(bytes in prop_oneof![any_bytes(), mutated("store")], switches in any::<u8>(), change in any::<bool>()) {
        let folder = tempfile::tempdir().unwrap();
        let mut bytes = bytes;
        if let (true, Some(first)) = (change, bytes.first_mut()) {
            *first = switches;
        }
        store(folder.path(), &bytes);
    }
}

//! Compressors of the benches, by name and size.

use grass_core::Compressor;
use grass_core::spec::Spec;
use serde_json::{Value, json};

fn build(spec: &Value) -> Compressor {
    Spec::from_json(&spec.to_string())
        .and_then(Compressor::from_spec)
        .expect("the bench's spec is valid")
}

fn random_mask(p: usize, kept: usize, seed: u64) -> Value {
    json!({"type": "random_mask", "input_dim": p, "output_dim": kept, "seed": seed, "block": 1})
}

/// SJLT of `kind` "cyclic" or "iid" with one non-zero a column.
///
/// # Panics
/// If the sizes are refused, as every function here.
pub fn sjlt(kind: &str, p: usize, k: usize) -> Compressor {
    build(
        &json!({"type": "sjlt", "input_dim": p, "output_dim": k, "seed": 1, "nnz": 1, "kind": kind}),
    )
}

/// Random mask of `kept` coordinates.
pub fn mask(p: usize, kept: usize) -> Compressor {
    build(&random_mask(p, kept, 1))
}

/// GraSS: a mask of `kept` coordinates, then a cyclic SJLT.
pub fn grass(p: usize, kept: usize, k: usize) -> Compressor {
    build(
        &json!({"type": "grass", "input_dim": p, "output_dim": k, "seed": 1, "kind": "cyclic", "mask_dim": kept,
            "mask": random_mask(p, kept, 2)}),
    )
}

/// Dense projection of `kind` "normal" or "rademacher".
pub fn dense(kind: &str, p: usize, k: usize) -> Compressor {
    build(&json!({"type": "gaussian", "input_dim": p, "output_dim": k, "seed": 1, "kind": kind}))
}

/// FactGraSS of a square layer: masks of `kept` features on both sides, then a cyclic SJLT.
pub fn factgrass(d: usize, kept: usize, k: usize) -> Compressor {
    build(
        &json!({"type": "factgrass", "in_features": d, "out_features": d, "output_dim": k, "seed": 1, "kind": "cyclic",
            "mask_in": random_mask(d, kept, 2), "mask_out": random_mask(d, kept, 3)}),
    )
}

/// LoGra of a square layer, `rank` on both sides.
pub fn logra(d: usize, rank: usize) -> Compressor {
    build(
        &json!({"type": "logra", "in_features": d, "out_features": d, "rank_in": rank, "rank_out": rank, "seed": 1}),
    )
}

/// Tile sketch of a square layer.
pub fn tile(d: usize, k: usize) -> Compressor {
    build(&json!({"type": "tile", "in_features": d, "out_features": d, "output_dim": k, "seed": 1}))
}

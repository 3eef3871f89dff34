//! The known answers in `tests/golden`, written by the slow NumPy twins; Python and GPU tests read the same files.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use grass_core::Compressor;
use grass_core::mask::Mask;
use grass_core::parallel::Workers;
use grass_core::philox::{Philox, Stream, derive, philox4x32_10};
use grass_core::spec::Spec;
use serde_json::Value;

fn golden(name: &str) -> Vec<Value> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden")
        .join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert!(!cases.is_empty(), "{name} holds no case");
    cases
}

fn number(case: &Value, key: &str) -> u64 {
    case[key].as_u64().unwrap()
}

fn words<const N: usize>(case: &Value, key: &str) -> [u32; N] {
    std::array::from_fn(|index| case[key][index].as_u64().unwrap() as u32)
}

/// The streams that this crate draws from.
fn stream(case: &Value) -> Option<Stream> {
    [
        Stream::Mask,
        Stream::Bucket,
        Stream::Sign,
        Stream::Rotation,
        Stream::Gaussian,
        Stream::TileShift,
        Stream::TileRowSign,
        Stream::TileColumnSign,
        Stream::Rademacher,
    ]
    .into_iter()
    .find(|&stream| stream as u64 == number(case, "stream"))
}

#[test]
fn philox_gives_random123s_known_answers() {
    for case in golden("philox.json") {
        let output = philox4x32_10(words(&case, "key"), words(&case, "counter"));
        assert_eq!(output, words(&case, "output"), "{case}");
    }
}

#[test]
fn words_bits_and_draws_are_the_known_ones() {
    let mut seen = 0;
    for case in golden("words.json") {
        let Some(stream) = stream(&case) else {
            continue;
        };
        let philox = Philox::new(number(&case, "seed"));
        let word = philox.word(stream, number(&case, "n"));
        assert_eq!(u64::from(word), number(&case, "word"), "{case}");
        seen += 1;
    }
    for case in golden("bits.json") {
        let Some(stream) = stream(&case) else {
            continue;
        };
        let bit = Philox::new(number(&case, "seed")).bit(stream, number(&case, "n"));
        assert_eq!(u64::from(bit), number(&case, "bit"), "{case}");
        seen += 1;
    }
    for case in golden("draws.json") {
        let Some(stream) = stream(&case) else {
            continue;
        };
        let philox = Philox::new(number(&case, "seed"));
        let (range, n) = (number(&case, "range"), number(&case, "n"));
        let drawn = if stream == Stream::Mask {
            philox.draw_wide(stream, range, n)
        } else {
            philox.draw(stream, range, n)
        };
        assert_eq!(drawn, number(&case, "draw"), "{case}");
        seen += 1;
    }
    assert!(seen > 300, "only {seen} cases were for streams in use");
}

#[test]
fn derived_seeds_are_the_known_ones() {
    for case in golden("derive.json") {
        let label = case["label"].as_str().unwrap();
        assert_eq!(
            derive(number(&case, "seed"), label),
            number(&case, "derived"),
            "{case}"
        );
    }
}

#[test]
fn random_masks_keep_the_known_coordinates() {
    for case in golden("masks.json") {
        let spec = &case["spec"];
        let dim = |key| number(spec, key) as usize;
        let mask = Mask::random(
            dim("input_dim"),
            dim("output_dim"),
            number(spec, "seed"),
            dim("block"),
        )
        .unwrap();
        let indices: Vec<u64> = serde_json::from_value(case["indices"].clone()).unwrap();
        assert_eq!(mask.indices(&Workers::serial()).unwrap(), indices, "{spec}");
    }
}

#[test]
fn compressors_are_the_known_matrices() {
    for case in golden("compressors.json") {
        let spec = Spec::from_json(&case["spec"].to_string()).unwrap();
        assert_eq!(spec.fingerprint(), case["fingerprint"].as_str().unwrap());
        let hex: String = spec.to_bytes().iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, case["bytes"].as_str().unwrap());
        let compressor = Compressor::from_spec(spec).unwrap();
        let mut dense = vec![f32::NAN; compressor.output_dim() * compressor.input_dim()];
        compressor
            .write_dense(&mut dense, &Workers::serial())
            .unwrap();
        let expected: Vec<Vec<f64>> = serde_json::from_value(case["dense"].clone()).unwrap();
        assert_eq!(expected.len(), compressor.output_dim());
        for (got, expected) in dense.iter().zip(expected.into_iter().flatten()) {
            let error = (f64::from(*got) - expected).abs();
            assert!(
                error <= 1e-6 * expected.abs().max(1.0),
                "{got} is not {expected}: {}",
                case["spec"]
            );
        }
    }
}

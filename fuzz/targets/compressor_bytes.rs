#![no_main]

use grass_core::Compressor;
use grass_core::parallel::Workers;
use grass_core::spec::Spec;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

/// Numbers in the dense matrix of a compressor that is built.
const MOST: usize = 1 << 16;

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // The same content with a length and a checksum that fit.
    if let Some(json) = bytes.get(16..bytes.len().saturating_sub(4))
        && let Ok(json) = std::str::from_utf8(json)
        && let Ok(spec) = Spec::from_json(json)
    {
        check(&spec.to_bytes());
    }
});

fn check(bytes: &[u8]) {
    let Ok(spec) = Spec::from_bytes(bytes) else {
        return;
    };
    assert_eq!(spec.to_bytes(), bytes);
    assert_eq!(Spec::from_json(&spec.to_json()).as_ref(), Ok(&spec));
    let value = serde_json::from_str(&spec.to_json()).expect("JSON");
    if !small(&value) {
        return;
    }
    let Ok(compressor) = Compressor::from_spec(spec.clone()) else {
        return;
    };
    assert_eq!(compressor.spec(), &spec);
    assert_eq!(compressor.spec().to_bytes(), bytes);
    let (input, output) = (compressor.input_dim(), compressor.output_dim());
    if input.saturating_mul(output) <= MOST {
        let mut dense = vec![0f32; input * output];
        let written = compressor.write_dense(&mut dense, &Workers::serial());
        written.expect("a matrix of the compressor's size");
        assert!(dense.iter().all(|value| value.is_finite()));
    }
}

/// Whether building it takes little memory: tables are as long as a dimension.
fn small(spec: &Value) -> bool {
    match spec {
        Value::Object(fields) => fields
            .iter()
            .all(|(key, value)| key == "seed" || small(value)),
        Value::Array(values) => values.iter().all(small),
        Value::Number(number) => number.as_u64().is_some_and(|number| number <= MOST as u64),
        _ => true,
    }
}

//! From what size on two threads pay: two rows, each compressed by the calling thread, shared by two threads or not.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use grass_benches::inputs::{rows, values};
use grass_benches::pair::{Pair, configured, write_row};
use grass_benches::specs;
use grass_core::parallel::{PARALLEL_THRESHOLD, Workers};
use serde_json::json;

fn sweep(criterion: &mut Criterion) {
    let (mut paying, mut tried) = (None, None);
    for exponent in 10..=21 {
        let p = 1 << exponent;
        let data = values(2 * p);
        let sjlt = specs::sjlt("cyclic", p, 256);
        let halves = [0, 1].map(|half| rows(&data[half * p..], (1, p), p));
        let call = |threads: usize| {
            let mut out = vec![0.0; 2 * sjlt.output_dim()];
            let (workers, serial) = (Workers::with_threads(threads), Workers::serial());
            let (halves, sjlt) = (&halves, &sjlt);
            move || {
                let tasks = halves.iter().zip(out.chunks_mut(sjlt.output_dim()));
                workers
                    .for_each(tasks, |(half, out)| {
                        sjlt.compress(black_box(half), out, &serial)
                    })
                    .expect("rows that the compressor takes");
            }
        };
        let operations = sjlt.operations(2, 1);
        let pair = Pair {
            what: &format!("2 threads, call of {operations} operations"),
            against: "1 thread",
            bytes: size_of_val(data.as_slice()),
            operations,
        };
        let Some((shared, serial)) = pair.measure(criterion, call(2), call(1)) else {
            continue;
        };
        tried = Some(operations);
        if paying.is_none() && shared < serial {
            paying = tried;
        }
    }
    // Where none of the sizes pays, the smallest that does is at least twice the largest.
    if let Some(operations) = paying.or(tried.map(|largest| 2 * largest)) {
        write_row(&json!({
            "what": "smallest call that 2 threads speed up", "against": "threshold of serial calls",
            "value": operations, "its_value": PARALLEL_THRESHOLD, "unit": "operations",
        }));
    }
}

criterion_group! {
    name = benches;
    config = configured();
    targets = sweep
}
criterion_main!(benches);

//! Compressors of a linear layer's factors, one thread, beside reading the factors and beside the multiply-adds.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use grass_benches::inputs::{call_factors, denormals, factor, values};
use grass_benches::limits::{multiply_add, read_f32};
use grass_benches::pair::{Pair, configured};
use grass_benches::specs;
use grass_core::Compressor;

/// Multiplications and additions of an `a x b` product of `terms` terms each.
const fn product(a: usize, b: usize, terms: usize) -> usize {
    2 * a * b * terms
}

fn against_multiply_adds(
    criterion: &mut Criterion,
    what: &str,
    compressor: &Compressor,
    (n, t, d): (usize, usize, usize),
    operations: usize,
) {
    let data = values(n * t * d);
    let factor = factor(&data, (n, t, d));
    let pair = Pair {
        what,
        against: "its multiply-adds",
        bytes: 2 * size_of_val(data.as_slice()),
        operations,
    };
    pair.measure(
        criterion,
        call_factors(compressor, &factor, &factor),
        || {
            black_box(multiply_add(operations));
        },
    );
}

fn factgrass(criterion: &mut Criterion) {
    let (n, t, d) = (8, 512, 2048);
    let factgrass = specs::factgrass(d, 128, 4096);
    let data = [values(n * t * d), values(n * t * d), denormals(n * t * d)];
    let [inputs, grad_outputs, small] = [0, 1, 2].map(|which| factor(&data[which], (n, t, d)));
    let pair = |what, against| Pair {
        what,
        against,
        bytes: 2 * size_of_val(data[0].as_slice()),
        operations: product(128, 128, n * t),
    };
    pair("FactGraSS 8 x 512 x 2048", "reading both factors").measure(
        criterion,
        call_factors(&factgrass, &inputs, &grad_outputs),
        || _ = black_box(read_f32(black_box(&data[0])) + read_f32(black_box(&data[1]))),
    );
    pair("FactGraSS, denormal inputs", "normal inputs").measure(
        criterion,
        call_factors(&factgrass, &small, &grad_outputs),
        call_factors(&factgrass, &inputs, &grad_outputs),
    );
}

fn products(criterion: &mut Criterion) {
    let factgrass = specs::factgrass(2048, 128, 4096);
    let shape = (8, 512, 2048);
    let operations = product(128, 128, 8 * 512);
    against_multiply_adds(
        criterion,
        "FactGraSS 8 x 512 x 2048",
        &factgrass,
        shape,
        operations,
    );
    let logra = specs::logra(2048, 64);
    let operations = product(2048, 2 * 64, 8 * 512) + product(64, 64, 8 * 512);
    against_multiply_adds(criterion, "LoGra 8 x 512 x 2048", &logra, shape, operations);
    for (n, t, d) in [(4, 512, 1024), (2, 128, 2048)] {
        let tile = specs::tile(d, 4096);
        let what = format!("tile {n} x {t} x {d}");
        against_multiply_adds(criterion, &what, &tile, (n, t, d), product(d, d, n * t));
    }
}

criterion_group! {
    name = benches;
    config = configured();
    targets = factgrass, products
}
criterion_main!(benches);

//! One thread, f32: each compressor beside `read`, the sum of the same input, its limit where all of it is read.
//! Throughput counts the coordinates of rows that are read, and the tokens of factors.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use grass_benches::{compressor, values};
use grass_core::dtype::{Array, Factor};
use grass_core::parallel::Workers;
use ndarray::{ArrayView2, ArrayView3};

/// Many running sums, so that the additions do not wait for one another.
fn read(values: &[f32]) -> f32 {
    let mut sums = [0.0f32; 32];
    for chunk in values.chunks_exact(32) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value;
        }
    }
    sums.iter().sum()
}

fn rows(criterion: &mut Criterion) {
    let (n, p) = (4, 1 << 20);
    let data = values(n * p);
    let rows = Array::F32(ArrayView2::from_shape((n, p), &data).expect("n * p values"));
    let workers = Workers::serial();
    let mut group = criterion.benchmark_group("rows 4 x 2^20");
    group.throughput(Throughput::Elements(data.len() as u64));
    group.bench_function("read", |bencher| bencher.iter(|| read(black_box(&data))));
    // Name, coordinates of a row that are read, spec.
    let cases = [
        (
            "sjlt cyclic 4096",
            p,
            r#"{"type":"sjlt","input_dim":1048576,"output_dim":4096,"seed":1,"nnz":1,"kind":"cyclic"}"#,
        ),
        (
            "sjlt iid 4096",
            p,
            r#"{"type":"sjlt","input_dim":1048576,"output_dim":4096,"seed":1,"nnz":1,"kind":"iid"}"#,
        ),
        (
            "mask 16384",
            16384,
            r#"{"type":"random_mask","input_dim":1048576,"output_dim":16384,"seed":1,"block":1}"#,
        ),
        (
            "grass 16384 to 4096",
            16384,
            r#"{"type":"grass","input_dim":1048576,"output_dim":4096,"seed":1,"mask_dim":16384,"kind":"cyclic","mask":{"type":"random_mask","input_dim":1048576,"output_dim":16384,"seed":2,"block":1}}"#,
        ),
    ];
    for (name, read, spec) in cases {
        let compressor = compressor(spec);
        let mut out = vec![0.0; n * compressor.output_dim()];
        group.throughput(Throughput::Elements((n * read) as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| compressor.compress(black_box(&rows), &mut out, &workers));
        });
    }
    group.finish();
}

fn factors(criterion: &mut Criterion) {
    let (n, t, d) = (2, 256, 2048);
    let data = [values(n * t * d), values(n * t * d)];
    let [inputs, grad_outputs] = [0, 1].map(|which| {
        let view = ArrayView3::from_shape((n, t, d), &data[which]).expect("n * t * d values");
        Factor::from(Array::F32(view))
    });
    let workers = Workers::serial();
    let mut group = criterion.benchmark_group("factors 2 x 256 x 2048");
    group.throughput(Throughput::Elements((n * t) as u64));
    group.bench_function("read", |bencher| {
        bencher.iter(|| read(black_box(&data[0])) + read(black_box(&data[1])));
    });
    for (name, spec) in [
        (
            "factgrass 128 x 128 to 4096",
            r#"{"type":"factgrass","in_features":2048,"out_features":2048,"output_dim":4096,"seed":1,"kind":"cyclic","mask_in":{"type":"random_mask","input_dim":2048,"output_dim":128,"seed":2,"block":1},"mask_out":{"type":"random_mask","input_dim":2048,"output_dim":128,"seed":3,"block":1}}"#,
        ),
        (
            "logra 64 x 64",
            r#"{"type":"logra","in_features":2048,"out_features":2048,"rank_in":64,"rank_out":64,"seed":1}"#,
        ),
    ] {
        let compressor = compressor(spec);
        let mut out = vec![0.0; n * compressor.output_dim()];
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                compressor.compress_factors(
                    black_box(&inputs),
                    black_box(&grad_outputs),
                    &mut out,
                    &workers,
                )
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = rows, factors
}
criterion_main!(benches);

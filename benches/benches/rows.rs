//! Compressors of whole gradients, one thread, beside the time of reading the same rows.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use grass_benches::inputs::{call, denormals, rows, values};
use grass_benches::limits::{multiply_add, read_bf16, read_f16, read_f32, read_in_parts};
use grass_benches::pair::{Pair, configured};
use grass_benches::specs;
use grass_core::Compressor;
use grass_core::dtype::Array;
use grass_core::simd::Path;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use ndarray::ArrayView2;

const LONG: usize = 1 << 24;
const WIDE: usize = 1 << 20;
const MOST_ROWS: usize = 32;

/// A call on f32 rows beside reading them.
fn against_reading(
    criterion: &mut Criterion,
    what: &str,
    compressor: &Compressor,
    data: &[f32],
    n: usize,
) {
    let data = &data[..n * compressor.input_dim()];
    let pair = Pair {
        what,
        against: "reading x",
        bytes: size_of_val(data),
        operations: 0,
    };
    let rows = rows(data, (n, compressor.input_dim()), compressor.input_dim());
    pair.measure(criterion, call(compressor, black_box(&rows)), || {
        black_box(read_f32(black_box(data)));
    });
}

fn one_row(criterion: &mut Criterion) {
    let data = values(LONG);
    let in_parts = Pair {
        what: "reading x in 8 parts, 2^24 f32",
        against: "reading x",
        bytes: size_of_val(data.as_slice()),
        operations: 0,
    };
    in_parts.measure(
        criterion,
        || _ = black_box(read_in_parts(black_box(&data))),
        || _ = black_box(read_f32(black_box(&data))),
    );
    for k in [4096, 512] {
        let sjlt = specs::sjlt("cyclic", LONG, k);
        against_reading(
            criterion,
            &format!("cyclic n=1 2^24 to {k}, {}", Path::current().name()),
            &sjlt,
            &data,
            1,
        );
    }
    for (name, p) in [("2^24", LONG), ("2^20", WIDE)] {
        let sjlt = specs::sjlt("iid", p, 4096);
        against_reading(
            criterion,
            &format!("iid n=1 {name} to 4096"),
            &sjlt,
            &data,
            1,
        );
    }
    masked_row(criterion, &data);
}

/// Compressors that read what a mask keeps, beside reading all of x.
fn masked_row(criterion: &mut Criterion, data: &[f32]) {
    let kept = 16384;
    let rows = rows(data, (1, LONG), LONG);
    for (what, compressor) in [
        ("mask n=1 2^24 to 16384", specs::mask(LONG, kept)),
        (
            "GraSS n=1 2^24 to 16384 to 4096",
            specs::grass(LONG, kept, 4096),
        ),
    ] {
        let pair = Pair {
            what,
            against: "reading x",
            bytes: 4 * kept,
            operations: 0,
        };
        pair.measure(criterion, call(&compressor, &rows), || {
            black_box(read_f32(black_box(data)));
        });
    }
}

fn batches(criterion: &mut Criterion) {
    let data = values(MOST_ROWS * WIDE);
    let cyclic = specs::sjlt("cyclic", WIDE, 4096);
    against_reading(
        criterion,
        "cyclic n=32 2^20 to 4096",
        &cyclic,
        &data,
        MOST_ROWS,
    );
    for k in [512, 4096] {
        let iid = specs::sjlt("iid", WIDE, k);
        for n in [16, MOST_ROWS] {
            against_reading(criterion, &format!("iid n={n} 2^20 to {k}"), &iid, &data, n);
        }
    }
}

fn half_precision(criterion: &mut Criterion) {
    let (data, shape) = (values(MOST_ROWS * WIDE), (MOST_ROWS, WIDE));
    let cyclic = specs::sjlt("cyclic", WIDE, 4096);
    let pair = |what| Pair {
        what,
        against: "reading x",
        bytes: 2 * data.len(),
        operations: 0,
    };
    let mut values = vec![bf16::ZERO; data.len()];
    values.convert_from_f32_slice(&data);
    let rows = Array::Bf16(ArrayView2::from_shape(shape, &values).expect("n * p values"));
    pair("cyclic bf16 n=32 2^20 to 4096").measure(criterion, call(&cyclic, &rows), || {
        black_box(read_bf16(black_box(&values)));
    });
    let mut values = vec![f16::ZERO; data.len()];
    values.convert_from_f32_slice(&data);
    let rows = Array::F16(ArrayView2::from_shape(shape, &values).expect("n * p values"));
    pair("cyclic f16 n=32 2^20 to 4096").measure(criterion, call(&cyclic, &rows), || {
        black_box(read_f16(black_box(&values)));
    });
}

/// Inputs that must not be slower than others of their size.
fn hard_inputs(criterion: &mut Criterion) {
    let odd = WIDE + 1040;
    let data = values(MOST_ROWS * odd);
    for kind in ["cyclic", "iid"] {
        let sjlt = specs::sjlt(kind, WIDE, 4096);
        let (even_rows, odd_rows) = (
            rows(&data, (MOST_ROWS, WIDE), WIDE),
            rows(&data, (MOST_ROWS, WIDE), odd),
        );
        let pair = Pair {
            what: &format!("{kind} n=32 2^20, rows 2^20 apart"),
            against: "rows 2^20 + 1040 apart",
            bytes: 4 * MOST_ROWS * WIDE,
            operations: 0,
        };
        pair.measure(criterion, call(&sjlt, &even_rows), call(&sjlt, &odd_rows));
    }
    let small = denormals(LONG);
    let sjlt = specs::sjlt("cyclic", LONG, 4096);
    let (small_rows, normal_rows) = (rows(&small, (1, LONG), LONG), rows(&data, (1, LONG), LONG));
    let pair = Pair {
        what: "cyclic n=1 2^24, denormal x",
        against: "normal x",
        bytes: 4 * LONG,
        operations: 0,
    };
    pair.measure(
        criterion,
        call(&sjlt, &small_rows),
        call(&sjlt, &normal_rows),
    );
}

/// Dense projections: their limit is the multiply-adds.
fn dense(criterion: &mut Criterion) {
    let (n, p, k) = (MOST_ROWS, 1 << 14, 512);
    let data = values(n * p);
    let rows = rows(&data, (n, p), p);
    for (name, kind) in [("Gaussian", "normal"), ("Rademacher", "rademacher")] {
        let projection = specs::dense(kind, p, k);
        let pair = Pair {
            what: &format!("{name} n=32 2^14 to 512"),
            against: "its multiply-adds",
            bytes: 4 * n * p,
            operations: 2 * n * p * k,
        };
        pair.measure(criterion, call(&projection, &rows), || {
            black_box(multiply_add(pair.operations));
        });
    }
}

criterion_group! {
    name = benches;
    config = configured();
    targets = one_row, batches, half_precision, hard_inputs, dense
}
criterion_main!(benches);

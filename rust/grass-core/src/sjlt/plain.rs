//! The SJLT a coordinate at a time: the twin that the fast kernels equal, bit for bit, on every path.

use ndarray::{Array2, ShapeBuilder};

use super::{Sjlt, cyclic, iid};
use crate::dtype::{Array, Matrix, Rows};
use crate::parallel::Workers;
use crate::philox::{Philox, Stream};
use crate::simd::Path;
use crate::spec::SjltKind;

/// Adds coordinates `start..end` of `rows` to `out`, each bucket's in their order.
fn accumulate(sjlt: &Sjlt, rows: &Matrix, (start, end): (usize, usize), out: &mut [f32]) {
    for (row, out) in out.chunks_exact_mut(sjlt.output_dim).enumerate() {
        for coordinate in start..end {
            let mut buffer = [0.0];
            let value = rows.tile(row, coordinate, &mut buffer);
            sjlt.for_each_entry(coordinate, |bucket, sign| {
                out[bucket] += sign as f32 * value[0];
            });
        }
    }
}

/// Numbers of many magnitudes, whose sums depend on the order.
fn numbers(n: usize, p: usize) -> Array2<f32> {
    let philox = Philox::new(11);
    Array2::from_shape_fn((n, p), |(row, coordinate)| {
        let word = philox.word(Stream::Gaussian, (row * p + coordinate) as u64);
        f32::from_bits(word & 0x83ff_ffff | 0x3c00_0000)
    })
}

fn assert_equal(sjlt: &Sjlt, rows: &Matrix, (start, end): (usize, usize)) {
    let mut expected = vec![0.0; rows.shape()[0] * sjlt.output_dim];
    accumulate(sjlt, rows, (start, end), &mut expected);
    let fast = match sjlt.kind {
        SjltKind::Cyclic => cyclic::accumulate,
        SjltKind::Iid => iid::accumulate,
    };
    for path in Path::available() {
        let mut out = vec![0.0; expected.len()];
        fast(
            sjlt,
            path,
            rows,
            0,
            (start, end),
            &mut out,
            &Workers::serial(),
        )
        .unwrap();
        assert!(
            out.iter()
                .zip(&expected)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{path:?} {sjlt:?} {:?} {start}..{end}",
            rows.shape()
        );
    }
}

#[test]
fn every_path_adds_in_the_order_of_the_coordinates() {
    for kind in [SjltKind::Cyclic, SjltKind::Iid] {
        for (p, k, nnz) in [
            (1, 1, 1),
            (300, 7, 1),
            (5000, 96, 3),
            (5000, 100, 1),
            (6000, 512, 1),
            (20_000, 2048, 2),
            (9000, 2500, 1),
            (300, 1000, 1),
        ] {
            let sjlt = Sjlt::new(p, k, 5, nnz, kind).unwrap();
            for n in [1, 2, 5, 16, 23] {
                let values = numbers(n, p);
                assert_equal(&sjlt, &Array::F32(values.view()), (0, p));
            }
            let values = numbers(3, p);
            let rows = Array::F32(values.view());
            assert_equal(&sjlt, &rows, (p / 3, p - p / 5));
        }
    }
}

#[test]
fn every_path_reads_every_type_and_any_strides() {
    let (n, p) = (17, 3000);
    let values = numbers(n, p);
    let (doubles, halves) = (values.mapv(f64::from), values.mapv(half::f16::from_f32));
    let brains = values.mapv(half::bf16::from_f32);
    let columns = Array2::from_shape_fn((n, p).f(), |index| values[index]);
    for kind in [SjltKind::Cyclic, SjltKind::Iid] {
        let sjlt = Sjlt::new(p, 700, 3, 1, kind).unwrap();
        for rows in [
            Array::F64(doubles.view()),
            Array::F16(halves.view()),
            Array::Bf16(brains.view()),
            Array::F32(columns.view()),
        ] {
            assert_equal(&sjlt, &rows, (0, p));
        }
    }
}

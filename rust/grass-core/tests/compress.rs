//! Compressing equals multiplying by the dense matrix, whatever the threads, the batch and the strides.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use grass_core::dtype::{Array, Factor, Tokens};
use grass_core::parallel::Workers;
use grass_core::philox::derive;
use grass_core::spec::Spec;
use grass_core::{Compressor, Error};
use half::{bf16, f16};
use ndarray::{Array2, Array3, ArrayView3, Axis, concatenate, s};
use proptest::prelude::*;

fn build(json: &str) -> Compressor {
    Compressor::from_spec(Spec::from_json(json).unwrap()).unwrap()
}

fn values(n: usize, seed: u64) -> impl Iterator<Item = f32> {
    let philox = grass_core::philox::Philox::new(seed);
    (0..n as u64).map(move |i| {
        let word = philox.word(grass_core::philox::Stream::Gaussian, i);
        (f64::from(word) / f64::from(u32::MAX) - 0.5) as f32
    })
}

fn rows(n: usize, p: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_vec((n, p), values(n * p, seed).collect()).unwrap()
}

fn compress(compressor: &Compressor, rows: &Array2<f32>, threads: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; rows.nrows() * compressor.output_dim()];
    compressor
        .compress(
            &Array::F32(rows.view()),
            &mut out,
            &Workers::with_threads(threads),
        )
        .unwrap();
    out
}

fn assert_is_dense_product(compressor: &Compressor, rows: &Array2<f32>, out: &[f32]) {
    let (k, p) = (compressor.output_dim(), compressor.input_dim());
    let mut dense = vec![0.0; k * p];
    compressor
        .write_dense(&mut dense, &Workers::serial())
        .unwrap();
    for (row, out) in rows.rows().into_iter().zip(out.chunks(k)) {
        for (dense, &got) in dense.chunks(p).zip(out) {
            let terms = dense
                .iter()
                .zip(row)
                .map(|(&a, &b)| f64::from(a) * f64::from(b));
            let (expected, size) = terms.fold((0.0, 0.0), |(sum, size), term| {
                (sum + term, size + term.abs())
            });
            assert!(
                (f64::from(got) - expected).abs() <= 1e-5 * size.max(1e-3),
                "{got} is not {expected}"
            );
        }
    }
}

const ROW_SPECS: [&str; 6] = [
    r#"{"type":"random_mask","input_dim":600,"output_dim":24,"seed":1,"block":4}"#,
    r#"{"type":"sjlt","input_dim":600,"output_dim":36,"seed":2,"nnz":3,"kind":"cyclic"}"#,
    r#"{"type":"sjlt","input_dim":600,"output_dim":36,"seed":2,"nnz":3,"kind":"iid"}"#,
    r#"{"type":"gaussian","input_dim":600,"output_dim":20,"seed":3,"kind":"normal"}"#,
    r#"{"type":"gaussian","input_dim":600,"output_dim":20,"seed":3,"kind":"rademacher"}"#,
    r#"{"type":"grass","input_dim":600,"output_dim":16,"seed":4,"mask_dim":64,"kind":"cyclic","mask":{"type":"random_mask","input_dim":600,"output_dim":64,"seed":9,"block":1}}"#,
];

#[test]
fn compressing_is_multiplying_by_the_dense_matrix() {
    let rows = rows(5, 600, 11);
    for spec in ROW_SPECS {
        let compressor = build(spec);
        assert_is_dense_product(&compressor, &rows, &compress(&compressor, &rows, 1));
    }
}

#[test]
fn neither_threads_nor_batch_change_a_bit() {
    // Past the parallel threshold, with more than one segment of coordinates and a ragged last one.
    let specs = [
        r#"{"type":"sjlt","input_dim":600001,"output_dim":500,"seed":2,"nnz":2,"kind":"cyclic"}"#,
        r#"{"type":"sjlt","input_dim":600001,"output_dim":500,"seed":2,"nnz":1,"kind":"iid"}"#,
    ];
    let dense = [
        r#"{"type":"gaussian","input_dim":3001,"output_dim":40,"seed":3,"kind":"normal"}"#,
        r#"{"type":"gaussian","input_dim":3001,"output_dim":40,"seed":3,"kind":"rademacher"}"#,
    ];
    for (specs, n, p) in [
        (&specs[..], 3, 600_001),
        (&dense, 3, 3001),
        (&dense, 130, 3001),
        (&ROW_SPECS[3..4], 70, 600),
    ] {
        let rows = rows(n, p, 12);
        for spec in specs {
            let compressor = build(spec);
            let whole = compress(&compressor, &rows, 1);
            for threads in [2, 3, 7] {
                assert_eq!(
                    compress(&compressor, &rows, threads),
                    whole,
                    "{threads} threads: {spec}"
                );
            }
            let single: Vec<f32> = rows
                .axis_iter(Axis(0))
                .flat_map(|row| compress(&compressor, &row.to_owned().insert_axis(Axis(0)), 2))
                .collect();
            assert_eq!(single, whole, "row by row: {spec}");
        }
    }
}

#[test]
fn strides_do_not_matter() {
    let wide = rows(8, 1200, 13);
    let strided = wide.slice(s![..;-2, ..;2]);
    let copied = strided.to_owned();
    for spec in ROW_SPECS {
        let compressor = build(spec);
        let mut out = vec![f32::NAN; 4 * compressor.output_dim()];
        compressor
            .compress(&Array::F32(strided), &mut out, &Workers::serial())
            .unwrap();
        assert_eq!(out, compress(&compressor, &copied, 1), "{spec}");
    }
}

#[test]
fn factors_are_compressed_as_their_product() {
    let (n, t, d_in, d_out) = (3, 4, 10, 7);
    let inputs = Array3::from_shape_vec((n, t, d_in), values(n * t * d_in, 1).collect()).unwrap();
    let grads = Array3::from_shape_vec((n, t, d_out), values(n * t * d_out, 2).collect()).unwrap();
    let mut gradients = Array2::<f32>::zeros((n, d_out * d_in));
    for ((example, token, o), g) in grads.indexed_iter() {
        for i in 0..d_in {
            gradients[(example, o * d_in + i)] += g * inputs[(example, token, i)];
        }
    }
    let specs = [
        r#"{"type":"logra","in_features":10,"out_features":7,"rank_in":3,"rank_out":2,"seed":5}"#,
        r#"{"type":"factgrass","in_features":10,"out_features":7,"output_dim":9,"seed":5,"kind":"iid","mask_in":{"type":"random_mask","input_dim":10,"output_dim":6,"seed":1,"block":2},"mask_out":{"type":"mask","indices":[0,3,6],"input_dim":7}}"#,
    ];
    for spec in specs {
        let compressor = build(spec);
        let mut out = vec![f32::NAN; n * compressor.output_dim()];
        compressor
            .compress_factors(
                &Array::F32(inputs.view()).into(),
                &Array::F32(grads.view()).into(),
                &mut out,
                &Workers::with_threads(2),
            )
            .unwrap();
        assert_is_dense_product(&compressor, &gradients, &out);
    }
}

const FACTOR_SPECS: [&str; 5] = [
    r#"{"type":"logra","in_features":4200,"out_features":7,"rank_in":3,"rank_out":2,"seed":5}"#,
    r#"{"type":"logra","in_features":1,"out_features":7,"rank_in":2,"rank_out":2,"seed":5}"#,
    r#"{"type":"factgrass","in_features":4200,"out_features":7,"output_dim":9,"seed":5,"kind":"cyclic","mask_in":{"type":"mask","indices":[0,7,4199],"input_dim":4200},"mask_out":{"type":"random_mask","input_dim":7,"output_dim":5,"seed":1,"block":1}}"#,
    r#"{"type":"factgrass","in_features":4200,"out_features":7,"output_dim":9,"seed":5,"kind":"iid","mask_in":{"type":"mask","indices":[0,7,4198],"input_dim":4200},"mask_out":{"type":"random_mask","input_dim":7,"output_dim":5,"seed":1,"block":1}}"#,
    r#"{"type":"factgrass","in_features":129,"out_features":7,"output_dim":9,"seed":5,"kind":"cyclic","mask_in":{"type":"random_mask","input_dim":129,"output_dim":129,"seed":1,"block":1},"mask_out":{"type":"mask","indices":[6],"input_dim":7}}"#,
];

/// Compresses the factors held as `T`, both with every second token of twice as many.
fn compress_as<T: Copy>(
    compressor: &Compressor,
    (inputs, ones): (&Array3<f32>, bool),
    grads: &Array3<f32>,
    convert: fn(f32) -> T,
    view: for<'a> fn(ArrayView3<'a, T>) -> Tokens<'a>,
) -> Vec<f32> {
    let (inputs, grads) = (inputs.mapv(convert), grads.mapv(convert));
    let every_second = s![.., ..;2, ..];
    let mut out = vec![f32::NAN; inputs.shape()[0] * compressor.output_dim()];
    let values = view(inputs.slice(every_second));
    compressor
        .compress_factors(
            &Factor { values, ones },
            &view(grads.slice(every_second)).into(),
            &mut out,
            &Workers::with_threads(2),
        )
        .unwrap();
    out
}

#[test]
fn a_column_of_ones_that_is_not_held_is_the_one_that_is() {
    for spec in FACTOR_SPECS {
        let compressor = build(spec);
        let (d_in, d_out) = compressor.features().unwrap();
        for (n, t) in [(3, 6), (0, 6), (3, 0), (1, 1)] {
            let held: Vec<f32> = values(n * t * (d_in - 1), 1).collect();
            let held = Array3::from_shape_vec((n, t, d_in - 1), held).unwrap();
            let column = Array3::from_elem((n, t, 1), 1.0);
            let whole = concatenate(Axis(2), &[held.view(), column.view()]).unwrap();
            let grads: Vec<f32> = values(n * t * d_out, 2).collect();
            let grads = Array3::from_shape_vec((n, t, d_out), grads).unwrap();
            let both = |ones, inputs| {
                let inputs = (inputs, ones);
                [
                    compress_as(&compressor, inputs, &grads, f64::from, |v| Array::F64(v)),
                    compress_as(&compressor, inputs, &grads, |x| x, |v| Array::F32(v)),
                    compress_as(&compressor, inputs, &grads, f16::from_f32, |v| {
                        Array::F16(v)
                    }),
                    compress_as(&compressor, inputs, &grads, bf16::from_f32, |v| {
                        Array::Bf16(v)
                    }),
                ]
            };
            let (got, expected) = (both(true, &held), both(false, &whole));
            assert_eq!(got, expected, "n={n}, t={t}: {spec}");
            assert!(n * t == 0 || got[0].iter().any(|&value| value != 0.0));
        }
    }
}

#[test]
fn a_wide_layer_whose_product_is_cut_is_compressed_as_one() {
    let (d_in, d_out) = (300_001, 3);
    let masks = format!(
        r#""mask_in":{{"type":"random_mask","input_dim":{d_in},"output_dim":{d_in},"seed":1,"block":1}},"mask_out":{{"type":"random_mask","input_dim":{d_out},"output_dim":{d_out},"seed":1,"block":1}}"#
    );
    // Small whole numbers: every sum is exact.
    let inputs = Array3::from_shape_fn((2, 2, d_in), |(n, t, i)| ((n + t + i) % 7) as f32 - 3.0);
    let grads = Array3::from_shape_fn((2, 2, d_out), |(n, t, o)| (n + 2 * t + o) as f32 - 2.0);
    let gradients = Array2::from_shape_fn((2, d_out * d_in), |(n, index)| {
        (0..2)
            .map(|t| grads[(n, t, index / d_in)] * inputs[(n, t, index % d_in)])
            .sum()
    });
    for kind in ["cyclic", "iid"] {
        let factgrass = build(&format!(
            r#"{{"type":"factgrass","in_features":{d_in},"out_features":{d_out},"output_dim":50,"seed":8,"kind":"{kind}",{masks}}}"#
        ));
        let sjlt = build(&format!(
            r#"{{"type":"sjlt","input_dim":{},"output_dim":50,"seed":{},"nnz":1,"kind":"{kind}"}}"#,
            d_in * d_out,
            derive(8, "sjlt")
        ));
        let mut out = vec![f32::NAN; 2 * 50];
        factgrass
            .compress_factors(
                &Array::F32(inputs.view()).into(),
                &Array::F32(grads.view()).into(),
                &mut out,
                &Workers::with_threads(2),
            )
            .unwrap();
        assert_eq!(out, compress(&sjlt, &gradients, 1), "{kind}");
    }
}

#[test]
fn a_column_of_ones_counts_in_the_width() {
    let compressor = build(FACTOR_SPECS[1]);
    let grads = Array3::zeros((2, 3, 7));
    for (width, ones) in [(0, false), (1, true), (2, false), (2, true)] {
        let inputs = Array3::zeros((2, 3, width));
        let values = Array::F32(inputs.view());
        let outcome = compressor.compress_factors(
            &Factor { values, ones },
            &Array::F32(grads.view()).into(),
            &mut [0.0; 8],
            &Workers::serial(),
        );
        assert!(
            matches!(outcome, Err(Error::Shape { .. })),
            "{width} {ones}"
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sjlt_is_its_dense_matrix(
        p in 1usize..400,
        width in 1usize..140,
        nnz in 1usize..4,
        seed: u64,
        cyclic: bool,
    ) {
        let kind = if cyclic { "cyclic" } else { "iid" };
        let compressor = build(&format!(
            r#"{{"type":"sjlt","input_dim":{p},"output_dim":{},"seed":{seed},"nnz":{nnz},"kind":"{kind}"}}"#,
            width * nnz
        ));
        let rows = rows(2, p, seed);
        assert_is_dense_product(&compressor, &rows, &compress(&compressor, &rows, 1));
    }

    #[test]
    fn no_bytes_crash_the_reader(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(Spec::from_bytes(&bytes).is_err());
    }
}

#[test]
fn every_flipped_bit_and_truncation_of_a_structure_is_refused() {
    let bytes = build(ROW_SPECS[5]).spec().to_bytes();
    for length in 0..bytes.len() {
        assert!(Spec::from_bytes(&bytes[..length]).is_err());
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(Spec::from_bytes(&damaged).is_err(), "bit {bit}");
    }
}

//! Every path against the formula in double precision, and the vector paths against each other, bit for bit.

use half::{bf16, f16};

use super::*;
use crate::simd::Instructions;

/// Numbers without a pattern from -1 to 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let next = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32) / (1u64 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn stored(float: Float, values: &[f32]) -> Vec<u8> {
    let bytes = |&value: &f32| match float {
        Float::Float32 => value.to_le_bytes().to_vec(),
        Float::Float16 => f16::from_f32(value).to_le_bytes().to_vec(),
        Float::Bfloat16 => bf16::from_f32(value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

fn read_back(float: Float, value: f32) -> f64 {
    f64::from(match float {
        Float::Float32 => value,
        Float::Float16 => f16::from_f32(value).to_f32(),
        Float::Bfloat16 => bf16::from_f32(value).to_f32(),
    })
}

fn float_tile(queries: &[f32], length: usize) -> Vec<Lanes> {
    let count = queries.len() / length;
    // What lies in the memory before must not matter.
    let mut tile = vec![Lanes([f32::NAN; LANES]); length.div_ceil(LANES) * count];
    for (query, values) in queries.chunks_exact(length).enumerate() {
        lay_out_floats(values, 1.0, (query, count), &mut tile);
    }
    tile
}

/// Rows that begin at any byte, with something else between them.
fn apart(rows: &[u8], row_bytes: usize) -> (Vec<u8>, usize) {
    let stride = row_bytes + 3;
    let mut bytes = vec![0xFF];
    for row in rows.chunks_exact(row_bytes) {
        bytes.extend_from_slice(row);
        bytes.extend([0xFF; 3]);
    }
    // Nothing after the last row.
    bytes.truncate(bytes.len() - 3);
    (bytes, stride)
}

#[test]
fn every_path_sums_floats_of_every_format_and_length() {
    for float in [Float::Float32, Float::Float16, Float::Bfloat16] {
        for (count, queries, length) in [
            (1, 1, 1),
            (4, 6, 16),
            (5, 5, 17),
            (9, 4, 31),
            (3, 3, 100),
            (8, 2, 512),
            (6, 6, 1023),
            (7, 1, FLOAT_RUN),
        ] {
            let rows = numbers(count * length, 1);
            let query_values = numbers(queries * length, 2);
            let (bytes, stride) = apart(&stored(float, &rows), length * float.bytes());
            let view = Rows {
                bytes: &bytes[1..],
                stride,
                count,
            };
            let tile = float_tile(&query_values, length);
            let sums = |path| {
                let mut sums = vec![1.0; count * queries];
                add_float_products(path, float, view, length, &tile, &mut sums, None);
                sums
            };
            let of_paths: Vec<(Path, Vec<f64>)> = Path::available()
                .into_iter()
                .map(|path| (path, sums(path)))
                .collect();
            for (path, sums) in &of_paths {
                for (index, &sum) in sums.iter().enumerate() {
                    let (row, query) = (index / queries, index % queries);
                    let pairs = rows[row * length..(row + 1) * length]
                        .iter()
                        .zip(&query_values[query * length..]);
                    let (mut exact, mut lengths) = (1.0, 1.0);
                    for (&left, &right) in pairs {
                        let product = read_back(float, left) * f64::from(right);
                        exact += product;
                        lengths += product.abs();
                    }
                    assert!(
                        (sum - exact).abs() <= 1e-6 * lengths,
                        "{path:?} {float:?} {length}: {sum} for {exact}"
                    );
                }
            }
            let fused = of_paths
                .iter()
                .filter(|(path, _)| path.instructions != Instructions::Portable);
            let fused: Vec<_> = fused.map(|(_, sums)| sums).collect();
            assert!(fused.windows(2).all(|pair| pair[0] == pair[1]));
        }
    }
}

#[test]
fn a_sum_has_the_same_bits_in_a_tile_of_any_shape() {
    let (count, queries, length) = (11, 6, 700);
    let rows = stored(Float::Float32, &numbers(count * length, 1));
    let query_values = numbers(queries * length, 2);
    for path in Path::available() {
        let mut together = vec![0.0; count * queries];
        let view = Rows {
            bytes: &rows,
            stride: 4 * length,
            count,
        };
        let tile = float_tile(&query_values, length);
        add_float_products(
            path,
            Float::Float32,
            view,
            length,
            &tile,
            &mut together,
            None,
        );
        for (index, &sum) in together.iter().enumerate() {
            let (row, query) = (index / queries, index % queries);
            let view = Rows {
                bytes: &rows[row * 4 * length..],
                count: 1,
                ..view
            };
            let tile = float_tile(&query_values[query * length..(query + 1) * length], length);
            let mut alone = [0.0];
            add_float_products(path, Float::Float32, view, length, &tile, &mut alone, None);
            assert_eq!(alone[0].to_bits(), sum.to_bits(), "{path:?}");
        }
    }
}

#[test]
fn a_checksum_beside_products_changes_neither() {
    for float in [Float::Float32, Float::Float16, Float::Bfloat16] {
        for (count, queries, length) in [(1, 1, 200), (4, 1, 512), (9, 3, 1023), (18, 6, 77)] {
            let rows = stored(float, &numbers(count * length, 6));
            let view = Rows {
                bytes: &rows,
                stride: length * float.bytes(),
                count,
            };
            let tile = float_tile(&numbers(queries * length, 7), length);
            for path in Path::available() {
                let Some(mut checksum) = Checksum::beside_products(path, &rows) else {
                    continue;
                };
                let plain = crc32fast::hash(&rows);
                assert_eq!(checksum.clone().finish(), plain, "nothing is folded");
                let mut sums = [vec![1.0; count * queries], vec![1.0; count * queries]];
                let [alone, beside] = &mut sums;
                add_float_products(path, float, view, length, &tile, alone, None);
                let before = checksum.left.len();
                let given = Some(&mut checksum);
                add_float_products(path, float, view, length, &tile, beside, given);
                assert_eq!(alone, beside, "{path:?} {float:?}");
                assert!(checksum.left.len() < before || before == 0);
                assert_eq!(
                    checksum.finish(),
                    plain,
                    "{path:?} {float:?} {count} {length}"
                );
            }
        }
    }
}

#[test]
fn every_path_multiplies_whole_numbers_exactly() {
    for (count, queries, length) in [
        (1, 1, 1),
        (4, 6, 64),
        (5, 5, 65),
        (9, 4, 127),
        (17, 3, 1000),
        (3, 2, INT8_RUN),
    ] {
        let whole = |values: Vec<f32>| -> Vec<i8> {
            values.iter().map(|value| (value * 127.0) as i8).collect()
        };
        let mut rows = whole(numbers(count * length, 3));
        let mut query_values = whole(numbers(queries * length, 4));
        // The largest sums there are, and the one byte that has no opposite.
        rows[..length].fill(-128);
        query_values[..length].fill(-127);
        let bytes: Vec<u8> = rows.iter().map(|value| value.cast_unsigned()).collect();
        let (bytes, stride) = apart(&bytes, length);
        let mut numbers = vec![Numbers([77; NUMBERS]); length.div_ceil(NUMBERS) * queries];
        let mut number_sums = Vec::new();
        for (query, values) in query_values.chunks_exact(length).enumerate() {
            let halves: Vec<f32> = values.iter().map(|&value| f32::from(value) / 2.0).collect();
            number_sums.push(lay_out_int8(&halves, 2.0, (query, queries), &mut numbers));
        }
        let tile = Int8Tile {
            numbers: &numbers,
            sums: &number_sums,
        };
        let view = Rows {
            bytes: &bytes[1..],
            stride,
            count,
        };
        let row_scales: Vec<f64> = (0..count).map(|row| 0.5 + row as f64).collect();
        let query_scales: Vec<f64> = (0..queries).map(|query| 3.0 - query as f64).collect();
        for path in Path::available() {
            let mut sums = vec![7.0; count * queries];
            let scales = (row_scales.as_slice(), query_scales.as_slice());
            add_int8_products(path, view, length, tile, scales, &mut sums);
            for (index, &sum) in sums.iter().enumerate() {
                let (row, query) = (index / queries, index % queries);
                let exact: i64 = rows[row * length..(row + 1) * length]
                    .iter()
                    .zip(&query_values[query * length..])
                    .map(|(&left, &right)| i64::from(left) * i64::from(right))
                    .sum();
                let scale = row_scales[row] * query_scales[query];
                assert_eq!(sum, 7.0 + exact as f64 * scale, "{path:?} {length}");
            }
        }
    }
}

#[test]
fn squares_are_the_same_on_every_path() {
    for length in [0, 1, 16, 100, 1024] {
        let values = numbers(length, 5);
        let exact: f64 = values.iter().map(|&value| f64::from(value).powi(2)).sum();
        let of_paths = Path::available()
            .into_iter()
            .map(|path| squares(path, &values));
        let of_paths: Vec<f64> = of_paths.collect();
        assert!(
            of_paths
                .iter()
                .all(|&sum| (sum - exact).abs() <= 1e-12 * exact)
        );
        assert!(of_paths.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

#[test]
fn a_query_is_rounded_to_the_nearest_whole_number_and_summed() {
    let mut tile = [Numbers::default(); 2];
    let sum = lay_out_int8(&[0.5, 1.5, -2.4, 200.0], 1.0, (1, 2), &mut tile);
    assert_eq!(tile[0], Numbers::default());
    assert_eq!(tile[1].0[..5], [0, 2, -2, 127, 0]);
    assert_eq!(sum, 127);
}

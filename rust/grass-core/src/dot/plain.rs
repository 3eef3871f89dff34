//! Inner products in plain loops for any machine.

use super::{
    Bfloat16, Checksum, Float, Float16, Float32, Format, Int8Tile, LANES, Lanes, NUMBERS, Rows,
    for_format_and_queries, number,
};

/// Adds the products of rows and the queries of a tile.
pub(super) fn add_float_products(
    float: Float,
    rows: Rows<'_>,
    length: usize,
    tile: &[Lanes],
    sums: &mut [f64],
    _checksum: Option<&mut Checksum<'_>>,
) {
    let queries = tile.len() / length.div_ceil(LANES);
    for_format_and_queries!(float, queries, add_tile(float, rows, length, tile, sums));
}

fn add_tile<F: Format, const Q: usize>(
    float: Float,
    rows: Rows<'_>,
    length: usize,
    tile: &[Lanes],
    sums: &mut [f64],
) {
    let (tile, _) = tile.as_chunks::<Q>();
    for (row, sums) in sums.chunks_exact_mut(Q).enumerate() {
        let [row] = rows.take(row, length * float.bytes());
        let (blocks, rest) = F::blocks(row);
        let last = (!rest.is_empty()).then(|| F::padded(rest));
        for (query, sum) in sums.iter_mut().enumerate() {
            let mut lanes = [0f32; LANES];
            for (block, tile) in blocks.iter().chain(&last).zip(tile) {
                for (lane, (total, &value)) in lanes.iter_mut().zip(&tile[query].0).enumerate() {
                    *total = multiply_add(number::<F>(block, lane), value, *total);
                }
            }
            *sum += f64::from(sum_lanes(lanes));
        }
    }
}

/// Lanes half the length apart are added until one is left.
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

/// `a b + c`, in one rounding where every machine of the architecture has the instruction.
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(target_arch = "aarch64") {
        a.mul_add(b, c)
    } else {
        a * b + c
    }
}

/// The products of rows and the queries of a tile, (rows, queries) row-major.
pub(super) fn int8_products(
    rows: Rows<'_>,
    length: usize,
    tile: Int8Tile<'_>,
    products: &mut [i32],
) {
    let queries = tile.sums.len();
    for (row, products) in products.chunks_exact_mut(queries).enumerate() {
        let [row] = rows.take(row, length);
        for (query, product) in products.iter_mut().enumerate() {
            let blocks = row
                .chunks(NUMBERS)
                .zip(tile.numbers[query..].iter().step_by(queries));
            *product = blocks
                .map(|(row, query)| {
                    let pairs = row.iter().zip(&query.0);
                    pairs
                        .map(|(&left, &right)| i32::from(left.cast_signed()) * i32::from(right))
                        .sum::<i32>()
                })
                .sum();
        }
    }
}

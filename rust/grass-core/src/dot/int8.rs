//! Inner products of whole numbers: exact, and scaled afterwards.

use super::plain;
#[cfg(target_arch = "x86_64")]
use super::x86;
use super::{Rows, TILE, checked_tile};
use crate::simd::{Path, for_each_path, for_path};

/// Coordinates that are multiplied side by side.
pub const NUMBERS: usize = 64;

/// Most coordinates of a run of whole numbers: the products of so many fit 32 bits, whatever the numbers are.
pub const INT8_RUN: usize = 32_768;

/// Rows whose products are held before they are scaled.
const ROWS: usize = 16;

/// Some numbers of a query.
#[repr(align(64))]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numbers(pub [i8; NUMBERS]);

impl Default for Numbers {
    fn default() -> Self {
        Self([0; NUMBERS])
    }
}

/// The whole numbers of some queries in one run, side by side.
#[derive(Debug, Clone, Copy)]
pub struct Int8Tile<'a> {
    /// The first [`NUMBERS`] of each query, then the next ones; zeros after the last ones.
    pub numbers: &'a [Numbers],
    /// The sum of each query's numbers.
    pub sums: &'a [i32],
}

/// Rounds a query's values times `inverse_scale` to whole numbers and lays them as query number `query` of `queries` into a
/// tile; returns their sum. The scale must make them at most 127.
///
/// # Panics
/// If the tile has another length than the values need.
pub fn lay_out_int8(
    values: &[f32],
    inverse_scale: f64,
    (query, queries): (usize, usize),
    tile: &mut [Numbers],
) -> i32 {
    assert_eq!(
        tile.len(),
        values.len().div_ceil(NUMBERS) * queries,
        "numbers for the values of each query"
    );
    let slots = tile[query..].iter_mut().step_by(queries);
    let mut sum = 0;
    for (slot, values) in slots.zip(values.chunks(NUMBERS)) {
        *slot = Numbers::default();
        for (number, &value) in slot.0.iter_mut().zip(values) {
            *number = (f64::from(value) * inverse_scale)
                .round_ties_even()
                .clamp(-127.0, 127.0) as i8;
            sum += i32::from(*number);
        }
    }
    sum
}

/// `sums[row, query] += row_scale query_scale sum_i row[i] query[i]` over one run of `length` signed bytes, for the
/// queries of `tile`; `sums` is (rows, queries) row-major. The inner sums are exact.
///
/// # Panics
/// If the run is empty or longer than [`INT8_RUN`], or rows, tile, scales and sums do not fit each other.
pub fn add_int8_products(
    path: Path,
    rows: Rows<'_>,
    length: usize,
    tile: Int8Tile<'_>,
    (row_scales, query_scales): (&[f64], &[f64]),
    sums: &mut [f64],
) {
    assert!(
        (1..=INT8_RUN).contains(&length),
        "a run has 1 to {INT8_RUN} numbers"
    );
    let queries = checked_tile(tile.numbers.len(), length.div_ceil(NUMBERS));
    assert!(
        tile.sums.len() == queries && query_scales.len() == queries,
        "one sum and one scale a query"
    );
    assert!(
        row_scales.len() == rows.count && sums.len() == rows.count * queries,
        "one scale a row, one sum a row and a query"
    );
    let mut products = [0; ROWS * TILE];
    let parts = row_scales.chunks(ROWS).zip(sums.chunks_mut(ROWS * queries));
    for (index, (row_scales, sums)) in parts.enumerate() {
        let products = &mut products[..sums.len()];
        let part = Rows {
            bytes: &rows.bytes[index * ROWS * rows.stride..],
            stride: rows.stride,
            count: row_scales.len(),
        };
        int8_products(path, part, length, tile, products);
        add_scaled(path, products, (row_scales, query_scales), sums);
    }
}

for_each_path! {
    /// `sums[row, query] += row_scale query_scale product[row, query]`.
    fn add_scaled(products: &[i32], scales: (&[f64], &[f64]), sums: &mut [f64]) = add_scaled_body
}

#[inline(always)]
fn add_scaled_body(products: &[i32], scales: (&[f64], &[f64]), sums: &mut [f64]) {
    match scales.1.len() {
        1 => add_scaled_tile::<1>(products, scales, sums),
        2 => add_scaled_tile::<2>(products, scales, sums),
        3 => add_scaled_tile::<3>(products, scales, sums),
        4 => add_scaled_tile::<4>(products, scales, sums),
        5 => add_scaled_tile::<5>(products, scales, sums),
        _ => add_scaled_tile::<6>(products, scales, sums),
    }
}

#[inline(always)]
fn add_scaled_tile<const Q: usize>(
    products: &[i32],
    (row_scales, query_scales): (&[f64], &[f64]),
    sums: &mut [f64],
) {
    let (products, sums) = (products.as_chunks::<Q>().0, sums.as_chunks_mut::<Q>().0);
    let query_scales = query_scales.as_chunks::<Q>().0[0];
    for ((sums, products), row_scale) in sums.iter_mut().zip(products).zip(row_scales) {
        for query in 0..Q {
            sums[query] += f64::from(products[query]) * (row_scale * query_scales[query]);
        }
    }
}

/// The products of rows and the queries of a tile, (rows, queries) row-major.
pub(super) fn int8_products(
    path: Path,
    rows: Rows<'_>,
    length: usize,
    tile: Int8Tile<'_>,
    products: &mut [i32],
) {
    for_path!(path, int8_products(rows, length, tile, products));
}

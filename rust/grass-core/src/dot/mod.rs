//! Inner products of stored rows with queries, straight from the bytes of the rows.
//!
//! A row is cut into runs of coordinates, floats into runs of at most [`FLOAT_RUN`], whole numbers into runs of at most
//! [`INT8_RUN`]; every run adds one number in double precision to the sum of each row and query. In a run of floats, lane
//! l of [`LANES`] sums the coordinates l, l + 16, .. in single precision, and the lanes are added in a fixed order. So the
//! bits of a sum depend on its row and its query alone, and are the same with AVX-512 and AVX2, where a multiply-add
//! rounds once; machines without such an instruction round twice. Products of whole numbers are exact everywhere.
//!
//! The queries of a run are laid out in tiles of up to [`TILE`]: the first lanes of each, then the next ones.

mod checksum;
mod int8;
mod plain;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub use checksum::Checksum;
pub use int8::{INT8_RUN, Int8Tile, NUMBERS, Numbers, add_int8_products, lay_out_int8};

use half::{bf16, f16};

use crate::simd::{Path, for_each_path, for_path};

/// Queries that are multiplied together.
pub const TILE: usize = 6;

/// Coordinates that are summed side by side.
pub const LANES: usize = 16;

/// Most coordinates of a run of floats.
pub const FLOAT_RUN: usize = 1024;

/// One value of each lane.
#[repr(align(64))]
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Lanes(pub [f32; LANES]);

/// How the floats of a row are stored, little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Float {
    /// IEEE single precision.
    Float32,
    /// IEEE half precision.
    Float16,
    /// The upper half of single precision.
    Bfloat16,
}

impl Float {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float16 | Self::Bfloat16 => 2,
        }
    }
}

/// The bytes of one run of coordinates in some rows.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// From the run's first number in the first row on.
    pub bytes: &'a [u8],
    /// Bytes from a row to the next one.
    pub stride: usize,
    /// How many rows there are.
    pub count: usize,
}

impl<'a> Rows<'a> {
    /// The first `length` bytes of the run in `R` rows from `first` on.
    #[inline(always)]
    fn take<const R: usize>(&self, first: usize, length: usize) -> [&'a [u8]; R] {
        // A loop: what is given to functions of the library, compiled for any machine, is not inlined into kernels.
        let mut rows = [[].as_slice(); R];
        for (index, row) in rows.iter_mut().enumerate() {
            *row = &self.bytes[(first + index) * self.stride..][..length];
        }
        rows
    }
}

/// A kind of stored floats, for the kernels.
trait Format {
    const FLOAT: Float;

    /// The bytes of one number a lane.
    type Block: Copy + AsRef<[u8]>;

    /// The blocks of a row, and the bytes after the last whole one.
    fn blocks(row: &[u8]) -> (&[Self::Block], &[u8]);

    /// The bytes after the last whole block, with zeros after them.
    fn padded(rest: &[u8]) -> Self::Block;
}

macro_rules! define_format {
    ($name:ident, $bytes:literal) => {
        struct $name;

        impl Format for $name {
            const FLOAT: Float = Float::$name;

            type Block = [u8; $bytes * LANES];

            fn blocks(row: &[u8]) -> (&[Self::Block], &[u8]) {
                row.as_chunks()
            }

            fn padded(rest: &[u8]) -> Self::Block {
                let mut block = [0; $bytes * LANES];
                block[..rest.len()].copy_from_slice(rest);
                block
            }
        }
    };
}

define_format!(Float32, 4);
define_format!(Float16, 2);
define_format!(Bfloat16, 2);

/// Lays a query's values in one run, times `factor`, as query number `query` of `queries` into a tile, zeros after the
/// last one.
///
/// # Panics
/// If the tile has another length than the values need.
pub fn lay_out_floats(
    values: &[f32],
    factor: f32,
    (query, queries): (usize, usize),
    tile: &mut [Lanes],
) {
    assert_eq!(
        tile.len(),
        values.len().div_ceil(LANES) * queries,
        "lanes for the values of each query"
    );
    let slots = tile[query..].iter_mut().step_by(queries);
    for (slot, values) in slots.zip(values.chunks(LANES)) {
        *slot = Lanes::default();
        for (lane, &value) in slot.0.iter_mut().zip(values) {
            *lane = value * factor;
        }
    }
}

/// `sums[row, query] += sum_i row[i] query[i]` over one run of `length` floats, for the queries of `tile`, as laid out by
/// [`lay_out_floats`]; `sums` is (rows, queries) row-major. A `checksum` goes on by about as many bytes as are multiplied,
/// which only costs nothing for few queries.
///
/// # Panics
/// If the run is empty or longer than [`FLOAT_RUN`], or rows, tile and sums do not fit each other.
pub fn add_float_products(
    path: Path,
    float: Float,
    rows: Rows<'_>,
    length: usize,
    tile: &[Lanes],
    sums: &mut [f64],
    checksum: Option<&mut Checksum<'_>>,
) {
    assert!(
        (1..=FLOAT_RUN).contains(&length),
        "a run has 1 to {FLOAT_RUN} floats"
    );
    let queries = checked_tile(tile.len(), length.div_ceil(LANES));
    assert_eq!(
        sums.len(),
        rows.count * queries,
        "one sum a row and a query"
    );
    for_path!(
        path,
        add_float_products(float, rows, length, tile, sums, checksum)
    );
}

/// How many queries a tile of so many blocks has, for `blocks` of each query.
fn checked_tile(length: usize, blocks: usize) -> usize {
    let queries = length / blocks;
    assert!(
        (1..=TILE).contains(&queries) && queries * blocks == length,
        "a tile has 1 to {TILE} queries"
    );
    queries
}

/// Calls `$kernel::<$format, Q>` for the format and the number of queries at hand.
macro_rules! for_format_and_queries {
    ($float:expr, $queries:expr, $kernel:ident($($argument:expr),*)) => {
        match $float {
            Float::Float32 => for_format_and_queries!(@ Float32, $queries, $kernel($($argument),*)),
            Float::Float16 => for_format_and_queries!(@ Float16, $queries, $kernel($($argument),*)),
            Float::Bfloat16 => for_format_and_queries!(@ Bfloat16, $queries, $kernel($($argument),*)),
        }
    };
    (@ $format:ident, $queries:expr, $kernel:ident($($argument:expr),*)) => {
        match $queries {
            1 => $kernel::<$format, 1>($($argument),*),
            2 => $kernel::<$format, 2>($($argument),*),
            3 => $kernel::<$format, 3>($($argument),*),
            4 => $kernel::<$format, 4>($($argument),*),
            5 => $kernel::<$format, 5>($($argument),*),
            _ => $kernel::<$format, 6>($($argument),*),
        }
    };
}

use for_format_and_queries;

/// The sum of the squares of some values, in double precision, the same on every machine.
pub fn squares(path: Path, values: &[f32]) -> f64 {
    let mut sum = 0.0;
    add_squares(path, values, &mut sum);
    sum
}

for_each_path! {
    fn add_squares(values: &[f32], sum: &mut f64) = add_squares_body
}

#[inline(always)]
fn add_squares_body(values: &[f32], sum: &mut f64) {
    let (whole, rest) = values.as_chunks::<LANES>();
    let mut lanes = [0f64; LANES];
    for values in whole {
        for (lane, &value) in lanes.iter_mut().zip(values) {
            *lane += f64::from(value) * f64::from(value);
        }
    }
    let rest = rest
        .iter()
        .map(|&value| f64::from(value) * f64::from(value));
    *sum = lanes.into_iter().chain(rest).sum();
}

/// The number that a block has for a lane.
fn number<F: Format>(block: &F::Block, lane: usize) -> f32 {
    let bytes = block.as_ref();
    let half = || [bytes[2 * lane], bytes[2 * lane + 1]];
    match F::FLOAT {
        Float::Float32 => f32::from_le_bytes(bytes.as_chunks().0[lane]),
        Float::Float16 => f16::from_le_bytes(half()).to_f32(),
        Float::Bfloat16 => bf16::from_le_bytes(half()).to_f32(),
    }
}

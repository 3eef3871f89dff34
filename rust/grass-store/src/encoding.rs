//! Between `f32` values and the bytes of a stored row.
//!
//! An int8 row holds the `f32` scale of every column, then all the numbers, then zeros up to a
//! multiple of 4 bytes; the other dtypes hold the numbers and nothing else.

use std::ops::Range;

use grass_core::parallel::Workers;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::layout::{Layout, SCALE_BYTES};

/// The smallest magnitude that rounds to infinity in half precision.
const F16_OVERFLOW: f32 = 65520.0;
/// The same for bfloat16: halfway from its largest number to the next power of two.
const BF16_OVERFLOW: f32 = f32::from_bits(0x7F7F_8000);
/// The largest whole number of an int8 column; -128 is not used, so that the range is symmetric.
const INT8_MAX: f32 = 127.0;
/// Half-precision numbers converted at once: the conversion is fast on slices only.
const HALF_RUN: usize = 64;

impl Layout {
    /// Checks that the dtype can hold every finite value of `rows`.
    ///
    /// # Errors
    /// [`Error::Overflow`] with the row's id and column, [`Error::Core`] when cancelled.
    pub(crate) fn check_range(&self, rows: &[f32], ids: &[u64], workers: &Workers) -> Result<()> {
        let (overflow, largest) = match self.dtype() {
            Dtype::Float16 => (F16_OVERFLOW, f32::from(f16::MAX)),
            Dtype::Bfloat16 => (BF16_OVERFLOW, f32::from(bf16::MAX)),
            Dtype::Float32 | Dtype::Int8 => return Ok(()),
        };
        for (row, &id) in rows.chunks_exact(self.width()).zip(ids) {
            workers.check()?;
            let too_large = |value: &f32| value.is_finite() && value.abs() >= overflow;
            if let Some(coordinate) = row.iter().position(too_large) {
                return Err(Error::Overflow {
                    id,
                    column: self.columns()[self.column_of(coordinate)].name.clone(),
                    value: row[coordinate],
                    dtype: self.dtype(),
                    largest,
                });
            }
        }
        Ok(())
    }

    /// Appends the bytes of one row of values. NaN and infinity are kept as what they are, in an
    /// int8 column by a scale that makes all of its values NaN.
    pub(crate) fn encode(&self, values: &[f32], out: &mut Vec<u8>) {
        let end = out.len() + self.row_bytes();
        match self.dtype() {
            Dtype::Float32 => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
            Dtype::Float16 => {
                let mut run = [f16::ZERO; HALF_RUN];
                for values in values.chunks(HALF_RUN) {
                    let run = &mut run[..values.len()];
                    run.convert_from_f32_slice(values);
                    out.extend(run.iter().flat_map(|value| value.to_le_bytes()));
                }
            }
            Dtype::Bfloat16 => {
                let bytes = values
                    .iter()
                    .map(|&value| bf16::from_f32(value).to_le_bytes());
                out.extend(bytes.flatten());
            }
            Dtype::Int8 => {
                let columns =
                    (0..self.columns().len()).map(|index| &values[self.coordinates(index)]);
                let scales: Vec<f32> = columns.clone().map(int8_scale).collect();
                out.extend(scales.iter().flat_map(|scale| scale.to_le_bytes()));
                for (column, &scale) in columns.zip(&scales) {
                    let bytes = column
                        .iter()
                        .map(|&value| int8_number(value, scale).cast_unsigned());
                    out.extend(bytes);
                }
                out.resize(end, 0);
            }
        }
        debug_assert_eq!(out.len(), end);
    }

    /// Reads some coordinates of a stored row.
    ///
    /// # Panics
    /// If `row` is not [`Layout::row_bytes`] long, `coordinates` reach past the row, or `out` has
    /// another length.
    pub fn decode<T: From<f32>>(&self, row: &[u8], coordinates: Range<usize>, out: &mut [T]) {
        assert_eq!(row.len(), self.row_bytes(), "a row has a fixed length");
        assert_eq!(out.len(), coordinates.len(), "one slot a coordinate");
        let bytes = self.dtype().bytes() as usize;
        let stored = &row[coordinates.start * bytes..];
        match self.dtype() {
            Dtype::Float32 => {
                for (slot, bytes) in out.iter_mut().zip(stored.as_chunks().0) {
                    *slot = T::from(f32::from_le_bytes(*bytes));
                }
            }
            Dtype::Float16 => {
                let mut halves = [f16::ZERO; HALF_RUN];
                let mut singles = [0f32; HALF_RUN];
                for (slots, stored) in out.chunks_mut(HALF_RUN).zip(stored.chunks(2 * HALF_RUN)) {
                    for (half, bytes) in halves.iter_mut().zip(stored.as_chunks().0) {
                        *half = f16::from_le_bytes(*bytes);
                    }
                    halves.convert_to_f32_slice(&mut singles);
                    for (slot, &single) in slots.iter_mut().zip(&singles) {
                        *slot = T::from(single);
                    }
                }
            }
            Dtype::Bfloat16 => {
                for (slot, bytes) in out.iter_mut().zip(stored.as_chunks().0) {
                    *slot = T::from(f32::from(bf16::from_le_bytes(*bytes)));
                }
            }
            Dtype::Int8 => self.decode_int8(row, coordinates, out),
        }
    }

    fn decode_int8<T: From<f32>>(&self, row: &[u8], coordinates: Range<usize>, out: &mut [T]) {
        let (scales, numbers) = row.split_at(self.columns().len() * SCALE_BYTES);
        let (scales, _) = scales.as_chunks();
        let mut coordinate = coordinates.start;
        while coordinate < coordinates.end {
            let column = self.column_of(coordinate);
            let end = self.coordinates(column).end.min(coordinates.end);
            let scale = f32::from_le_bytes(scales[column]);
            let slots = &mut out[coordinate - coordinates.start..end - coordinates.start];
            for (slot, &number) in slots.iter_mut().zip(&numbers[coordinate..end]) {
                *slot = T::from(f32::from(number.cast_signed()) * scale);
            }
            coordinate = end;
        }
    }
}

/// The value of one step of an int8 column: its largest magnitude over 127, NaN if it has no such.
fn int8_scale(column: &[f32]) -> f32 {
    if column.iter().any(|value| !value.is_finite()) {
        return f32::NAN;
    }
    let largest = column
        .iter()
        .fold(0f32, |largest, value| largest.max(value.abs()));
    // A subnormal scale would lose the precision that the division of the values needs.
    let scale = (largest / INT8_MAX).max(f32::MIN_POSITIVE);
    match largest {
        0.0 => 0.0,
        // Rounded up, the scale of the largest numbers would read back as infinity.
        _ if (scale * INT8_MAX).is_infinite() => scale.next_down(),
        _ => scale,
    }
}

fn int8_number(value: f32, scale: f32) -> i8 {
    // 0 / 0 is NaN, which the cast makes 0; a NaN scale makes every number 0.
    (value / scale).round_ties_even().clamp(-INT8_MAX, INT8_MAX) as i8
}

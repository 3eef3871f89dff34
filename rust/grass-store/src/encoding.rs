//! Between `f32` values and the bytes of a stored row.
//!
//! An int8 row holds the `f32` scale of every column, then all the numbers, then zeros up to a
//! multiple of 4 bytes; the other dtypes hold the numbers and nothing else.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use grass_core::convert;
use grass_core::parallel::Workers;
use grass_core::simd::Path;
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::layout::Layout;

/// The smallest magnitude that rounds to infinity in half precision.
const F16_OVERFLOW: f32 = 65520.0;
/// The same for bfloat16: halfway from its largest number to the next power of two.
const BF16_OVERFLOW: f32 = f32::from_bits(0x7F7F_8000);
/// Half-precision numbers converted at once: the conversion is fast on slices only.
const HALF_RUN: usize = 64;

/// Numbers looked at between two looks at the cancel flag.
const CHECKED: usize = 1 << 18;

/// The first row that has a number whose magnitude, as bits, is at least `limit`.
fn first_row_reaching(
    limit: u32,
    rows: &[f32],
    width: usize,
    workers: &Workers,
) -> Result<Option<usize>> {
    let first = AtomicUsize::new(usize::MAX);
    let reached = |values: &[f32]| convert::any_reaches(Path::current(), limit, values);
    workers.for_each(rows.chunks(CHECKED).enumerate(), |(piece, values)| {
        if reached(values) {
            let place = values.iter().position(|value| reached(&[*value]));
            let place = piece * CHECKED + place.unwrap_or_default();
            first.fetch_min(place / width, Ordering::Relaxed);
        }
        Ok::<(), Error>(())
    })?;
    let first = first.into_inner();
    Ok((first != usize::MAX).then_some(first))
}

impl Layout {
    /// Checks that rows, (n, width) row-major, are finite, which a store does not demand of its
    /// rows but training does.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the first such row's id, [`Error::Core`] when cancelled.
    pub fn check_finite(&self, rows: &[f32], ids: &[u64], workers: &Workers) -> Result<()> {
        let first = first_row_reaching(f32::INFINITY.to_bits(), rows, self.width(), workers)?;
        match first.and_then(|row| ids.get(row)) {
            Some(&id) => Err(Error::NonFinite { id }),
            None => Ok(()),
        }
    }

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
        let width = self.width();
        let Some(first) = first_row_reaching(overflow.to_bits(), rows, width, workers)? else {
            return Ok(());
        };
        // From here on with care: infinities and NaNs are kept.
        for (row, &id) in rows.chunks_exact(width).zip(ids).skip(first) {
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

    /// Writes the bytes of one row of values. NaN and infinity are kept as what they are, in an
    /// int8 column by a scale that makes all of its values NaN.
    ///
    /// # Panics
    /// If `values` is not [`Layout::width`] long or `out` not [`Layout::row_bytes`].
    pub(crate) fn encode(&self, values: &[f32], out: &mut [u8]) {
        assert_eq!(values.len(), self.width(), "one value a coordinate");
        assert_eq!(out.len(), self.row_bytes(), "a row has a fixed length");
        let path = Path::current();
        match self.dtype() {
            Dtype::Float32 => {
                for (bytes, value) in out.as_chunks_mut().0.iter_mut().zip(values) {
                    *bytes = value.to_le_bytes();
                }
            }
            Dtype::Float16 => convert::f32_to_f16(path, values, out),
            Dtype::Bfloat16 => convert::f32_to_bf16(path, values, out),
            Dtype::Int8 => {
                let (scales, numbers) = out.split_at_mut(self.scale_bytes());
                for (index, bytes) in scales.as_chunks_mut().0.iter_mut().enumerate() {
                    let coordinates = self.coordinates(index);
                    let column = &values[coordinates.clone()];
                    let scale = convert::int8_scale(path, column);
                    *bytes = scale.to_le_bytes();
                    convert::f32_to_int8(path, column, scale, &mut numbers[coordinates]);
                }
                numbers[values.len()..].fill(0);
            }
        }
    }

    /// Where some numbers lie in a row.
    pub fn number_bytes(&self, coordinates: Range<usize>) -> Range<usize> {
        let (first, bytes) = (self.scale_bytes(), self.dtype().bytes() as usize);
        first + coordinates.start * bytes..first + coordinates.end * bytes
    }

    /// Reads some coordinates of a stored row, from its first [`Layout::scale_bytes`] and the
    /// bytes of [`Layout::number_bytes`].
    ///
    /// # Panics
    /// If `numbers` or `out` have another length, or the coordinates reach past the row.
    pub fn decode<T: From<f32>>(
        &self,
        scales: &[u8],
        stored: &[u8],
        coordinates: Range<usize>,
        out: &mut [T],
    ) {
        assert_eq!(out.len(), coordinates.len(), "one slot a coordinate");
        let bytes = self.number_bytes(coordinates.clone()).len();
        assert_eq!(stored.len(), bytes, "the bytes of the coordinates");
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
            Dtype::Int8 => self.decode_int8(scales, stored, coordinates, out),
        }
    }

    fn decode_int8<T: From<f32>>(
        &self,
        scales: &[u8],
        stored: &[u8],
        coordinates: Range<usize>,
        out: &mut [T],
    ) {
        let mut coordinate = coordinates.start;
        let mut column = self.column_of(coordinate);
        while coordinate < coordinates.end {
            let end = self.coordinates(column).end.min(coordinates.end);
            let scale = self.scale(scales, column);
            let part = coordinate - coordinates.start..end - coordinates.start;
            for (slot, &number) in out[part.clone()].iter_mut().zip(&stored[part]) {
                *slot = T::from(f32::from(number.cast_signed()) * scale);
            }
            coordinate = end;
            column += 1;
        }
    }

    /// The scale of an int8 column, from the first [`Layout::scale_bytes`] of a row.
    ///
    /// # Panics
    /// If there is no such column.
    pub fn scale(&self, scales: &[u8], column: usize) -> f32 {
        f32::from_le_bytes(scales.as_chunks().0[column])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_reach_a_limit_are_found_by_any_number_of_threads() {
        let column = crate::layout::Column::new("a", 256, "{}").unwrap();
        let layout = Layout::new(Dtype::Float32, vec![column]).unwrap();
        let mut rows = vec![1f32; 3 * CHECKED];
        let ids: Vec<u64> = (0..3 * 1024).collect();
        for threads in [1, 3] {
            let workers = Workers::with_threads(threads);
            assert!(layout.check_finite(&rows, &ids, &workers).is_ok());
            for (place, bad) in [
                (3 * CHECKED - 1, f32::NEG_INFINITY),
                (CHECKED + 700, f32::NAN),
            ] {
                let good = std::mem::replace(&mut rows[place], bad);
                rows[3 * CHECKED - 1] = f32::NAN;
                let found = layout.check_finite(&rows, &ids, &workers);
                let row = (place / 256) as u64;
                assert!(
                    matches!(found, Err(Error::NonFinite { id }) if id == row),
                    "{found:?}"
                );
                rows[place] = good;
                rows[3 * CHECKED - 1] = 1.0;
            }
        }
        assert!(layout.check_finite(&[], &[], &Workers::serial()).is_ok());
    }
}

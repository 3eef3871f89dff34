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

/// Which numbers rows may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Numbers {
    /// All but finite ones that the dtype cannot hold.
    Any,
    /// Finite ones that the dtype can hold.
    Finite,
}

impl Layout {
    /// The smallest finite magnitude that rounds to infinity, and the largest number; `None` where
    /// every finite number has a place.
    fn overflow(&self) -> Option<(f32, f32)> {
        match self.dtype() {
            Dtype::Float16 => Some((F16_OVERFLOW, f32::from(f16::MAX))),
            Dtype::Bfloat16 => Some((BF16_OVERFLOW, f32::from(bf16::MAX))),
            Dtype::Float32 | Dtype::Int8 => None,
        }
    }

    /// Checks that a row, while it is in the cache, has such numbers alone.
    ///
    /// # Errors
    /// [`Error::NonFinite`] with the row's id, [`Error::Overflow`] with its id and column.
    pub(crate) fn check_row(&self, row: &[f32], id: u64, numbers: Numbers) -> Result<()> {
        let overflow = self.overflow();
        let limit = match (overflow, numbers) {
            (Some((overflow, _)), _) => overflow,
            (None, Numbers::Finite) => f32::INFINITY,
            (None, Numbers::Any) => return Ok(()),
        };
        if !convert::any_reaches(Path::current(), limit.to_bits(), row) {
            return Ok(());
        }
        if numbers == Numbers::Finite && !row.iter().all(|value| value.is_finite()) {
            return Err(Error::NonFinite { id });
        }
        let too_large = |value: &f32| value.is_finite() && value.abs() >= limit;
        match (overflow, row.iter().position(too_large)) {
            (Some((_, largest)), Some(coordinate)) => Err(Error::Overflow {
                id,
                column: self.columns()[self.column_of(coordinate)].name.clone(),
                value: row[coordinate],
                dtype: self.dtype(),
                largest,
            }),
            _ => Ok(()),
        }
    }

    /// Checks rows, (n, width) row-major, like [`Layout::check_row`].
    ///
    /// # Errors
    /// That of the first refused row, [`Error::Core`] when cancelled.
    pub(crate) fn check_rows(
        &self,
        rows: &[f32],
        ids: &[u64],
        numbers: Numbers,
        workers: &Workers,
    ) -> Result<()> {
        let width = self.width();
        let count = (CHECKED / width).max(1);
        let first = AtomicUsize::new(usize::MAX);
        let pieces = rows.chunks(count * width).zip(ids.chunks(count));
        workers.for_each(pieces.enumerate(), |(piece, (rows, ids))| {
            let mut rows = rows.chunks_exact(width).zip(ids);
            if let Some(row) = rows.position(|(row, &id)| self.check_row(row, id, numbers).is_err())
            {
                first.fetch_min(piece * count + row, Ordering::Relaxed);
            }
            Ok::<(), Error>(())
        })?;
        match first.into_inner() {
            usize::MAX => Ok(()),
            row => self.check_row(&rows[row * width..][..width], ids[row], numbers),
        }
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
    fn the_first_refused_row_is_found_by_any_number_of_threads() {
        let column = crate::layout::Column::new("a", 256, "{}").unwrap();
        let layout = Layout::new(Dtype::Bfloat16, vec![column]).unwrap();
        let mut rows = vec![1f32; 3 * CHECKED];
        let ids: Vec<u64> = (0..3 * 1024).collect();
        let last = 3 * CHECKED - 1;
        for threads in [1, 3] {
            let workers = Workers::with_threads(threads);
            let check = |rows: &[f32], numbers| layout.check_rows(rows, &ids, numbers, &workers);
            assert!(check(&rows, Numbers::Finite).is_ok());
            for place in [last, CHECKED + 700] {
                let row = (place / 256) as u64;
                rows[last] = f32::NAN;
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    rows[place] = bad;
                    let found = check(&rows, Numbers::Finite);
                    assert!(
                        matches!(found, Err(Error::NonFinite { id }) if id == row),
                        "{found:?}"
                    );
                    assert!(check(&rows, Numbers::Any).is_ok());
                }
                rows[place] = -f32::MAX;
                for numbers in [Numbers::Any, Numbers::Finite] {
                    let found = check(&rows, numbers);
                    assert!(
                        matches!(found, Err(Error::Overflow { id, .. }) if id == row),
                        "{found:?}"
                    );
                }
                (rows[place], rows[last]) = (1.0, 1.0);
            }
        }
        let nothing = layout.check_rows(&[], &[], Numbers::Finite, &Workers::serial());
        assert!(nothing.is_ok());
    }
}

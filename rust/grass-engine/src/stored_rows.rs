//! Bytes of some stored rows as the kernels and the decoder take them.

use std::ops::Range;

use grass_core::dot::Rows;
use grass_store::Layout;

/// The same coordinates of some stored rows.
#[derive(Clone, Copy)]
pub(crate) struct StoredRows<'a> {
    /// From the first row's scales on.
    pub(crate) scales: &'a [u8],
    /// From the first row's number for coordinate `first` on.
    pub(crate) numbers: &'a [u8],
    pub(crate) first: usize,
    /// Bytes from a row to the next one, in both.
    pub(crate) stride: usize,
    pub(crate) count: usize,
}

impl<'a> StoredRows<'a> {
    /// The numbers of some coordinates.
    pub(crate) fn part(&self, layout: &Layout, coordinates: &Range<usize>) -> Rows<'a> {
        let before = layout.number_bytes(self.first..coordinates.start).len();
        Rows {
            bytes: &self.numbers[before..],
            stride: self.stride,
            count: self.count,
        }
    }

    /// Decodes some coordinates of one of them.
    pub(crate) fn decode(
        &self,
        layout: &Layout,
        row: usize,
        coordinates: Range<usize>,
        out: &mut Vec<f32>,
    ) {
        out.resize(coordinates.len(), 0.0);
        let numbers = self.part(layout, &coordinates).bytes;
        let bytes = layout.number_bytes(coordinates.clone()).len();
        let numbers = &numbers[row * self.stride..][..bytes];
        layout.decode(&self.scales[row * self.stride..], numbers, coordinates, out);
    }
}

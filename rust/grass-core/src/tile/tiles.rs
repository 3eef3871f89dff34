//! Where a tile's coordinates go, and their signs, for a block of the gradient at a time.

use std::ops::Range;

use super::TileSketch;
use super::fast::{BLOCK_ROWS, PACKED_COLUMNS};
use crate::philox::Stream;
use crate::signs::fill_masks;
use crate::simd::Path;

/// Shifts drawn at a time.
const SHIFTS: usize = 8;

/// Masks drawn at a time.
const MASKS: usize = PACKED_COLUMNS;

/// The tiles that some rows and columns of the gradient touch, with the sign masks of these rows and columns.
pub(super) struct Tiles<'a> {
    sketch: &'a TileSketch,
    path: Path,
    /// The drawn rows, at most [`BLOCK_ROWS`], and columns.
    rows: Range<usize>,
    columns: Range<usize>,
    /// Of each row of tiles, the masks of the columns.
    column_masks: &'a mut [f32],
    /// Of each row of tiles and each of its tiles, the masks of the rows.
    row_masks: &'a mut [f32],
}

/// Neighbouring rows and columns of the gradient, of one tile, that go to neighbouring rows and columns of the sketch.
pub(super) struct Run<'a> {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Where the first goes.
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) row_masks: &'a [f32],
    pub(super) column_masks: &'a [f32],
}

impl<'a> Tiles<'a> {
    /// Tiles to be drawn, with masks in `buffer`, as long as [`Self::buffer_len`] says.
    pub(super) fn new(sketch: &'a TileSketch, path: Path, buffer: &'a mut [f32]) -> Self {
        let (column_masks, row_masks) = buffer.split_at_mut(column_masks_len(sketch));
        Self {
            sketch,
            path,
            rows: 0..0,
            columns: 0..0,
            column_masks,
            row_masks,
        }
    }

    /// Masks of as many rows and columns as are drawn at a time, 64 Ki at most.
    pub(super) fn buffer_len(sketch: &TileSketch) -> usize {
        let tiles = most_touched(sketch.in_features.min(PACKED_COLUMNS), sketch.width);
        let rows = row_pitch(sketch) * most_touched_rows(sketch);
        column_masks_len(sketch) + rows * tiles
    }

    /// Draws the tiles that these rows and columns touch.
    pub(super) fn draw(&mut self, rows: Range<usize>, columns: Range<usize>) {
        let (sketch, path) = (self.sketch, self.path);
        let (height, width) = (sketch.height, sketch.width);
        let tiles = columns.start / width..columns.end.div_ceil(width);
        let pitch = row_pitch(sketch);
        // The masks of low tiles' rows are neighbours, and drawn together with those of the rows between.
        let together = if pitch == height { tiles.len() } else { 1 };
        let column_masks = self.column_masks.chunks_exact_mut(columns.len());
        let row_masks = self.row_masks.chunks_exact_mut(tiles.len() * pitch);
        for ((rows, column_masks), row_masks) in
            cut(rows.clone(), height).zip(column_masks).zip(row_masks)
        {
            let before = rows.start / height * sketch.tile_columns();
            let bit = before * width + columns.start;
            fill(sketch, path, Stream::TileColumnSign, bit, column_masks);
            let mut bit = (before + tiles.start) * height + rows.start % height;
            for masks in row_masks.chunks_exact_mut(together * pitch) {
                let len = masks.len() - pitch + rows.len();
                fill(sketch, path, Stream::TileRowSign, bit, &mut masks[..len]);
                bit += together * height;
            }
        }
        (self.rows, self.columns) = (rows, columns);
    }

    /// Cuts the drawn rows and some of the drawn columns at the ends of tiles, where the shifted rows wrap, and where the
    /// shifted columns would go past a row of `stride` sums: there they wrap, too.
    pub(super) fn for_each_run(
        &self,
        columns: Range<usize>,
        stride: usize,
        mut visit: impl FnMut(Run),
    ) {
        let (height, width) = (self.sketch.height, self.sketch.width);
        let first_drawn = self.columns.start / width;
        let drawn = self.columns.end.div_ceil(width) - first_drawn;
        let pitch = row_pitch(self.sketch);
        let first = columns.start / width;
        let last = columns.end.div_ceil(width);
        let mut words = [0; SHIFTS];
        for (index, rows) in cut(self.rows.clone(), height).enumerate() {
            let column_masks = &self.column_masks[index * self.columns.len()..];
            let row_masks = &self.row_masks[index * drawn * pitch..];
            let before = rows.start / height * self.sketch.tile_columns();
            for columns in cut(columns.clone(), width) {
                let tile = columns.start / width;
                let place = (tile - first) % SHIFTS;
                if place == 0 {
                    let words = &mut words[..SHIFTS.min(last - tile)];
                    let number = (before + tile) as u64;
                    self.sketch
                        .philox
                        .fill_double_words(Stream::TileShift, number, words);
                }
                let pair = words[place];
                let (row_shift, column_shift) =
                    self.sketch.shift([pair as u32, (pair >> 32) as u32]);
                let row = (rows.start % height + row_shift) % height;
                let column = (columns.start % width + column_shift) % width;
                let row_masks = &row_masks[(tile - first_drawn) * pitch..][..rows.len()];
                let column_masks =
                    &column_masks[columns.start - self.columns.start..][..columns.len()];
                let row_end = rows.len().min(height - row);
                let column_end = if column + columns.len() > stride {
                    width - column
                } else {
                    columns.len()
                };
                for (row_part, row) in [(0..row_end, row), (row_end..rows.len(), 0)] {
                    for (column_part, column) in
                        [(0..column_end, column), (column_end..columns.len(), 0)]
                    {
                        if row_part.is_empty() || column_part.is_empty() {
                            continue;
                        }
                        visit(Run {
                            rows: rows.start + row_part.start..rows.start + row_part.end,
                            columns: columns.start + column_part.start
                                ..columns.start + column_part.end,
                            row,
                            column,
                            row_masks: &row_masks[row_part.clone()],
                            column_masks: &column_masks[column_part],
                        });
                    }
                }
            }
        }
    }
}

/// Rows of masks a tile.
fn row_pitch(sketch: &TileSketch) -> usize {
    sketch.height.min(BLOCK_ROWS)
}

fn column_masks_len(sketch: &TileSketch) -> usize {
    most_touched_rows(sketch) * sketch.in_features.min(PACKED_COLUMNS)
}

/// The most rows of tiles that the rows of a block touch.
fn most_touched_rows(sketch: &TileSketch) -> usize {
    most_touched(sketch.out_features.min(BLOCK_ROWS), sketch.height)
}

/// The most pieces of `step` that `len` neighbours touch.
fn most_touched(len: usize, step: usize) -> usize {
    (len + step - 2) / step + 1
}

/// Fills `masks` with those of a stream's bits from number `bit` on.
fn fill(sketch: &TileSketch, path: Path, stream: Stream, bit: usize, masks: &mut [f32]) {
    let offset = bit % 64;
    let mut words = [0; MASKS / 64 + 2];
    for (masks, first) in masks
        .chunks_mut(MASKS)
        .zip((bit / 64..).step_by(MASKS / 64))
    {
        // One word more than the last bit needs, as reading signs asks for.
        let words = &mut words[..(offset + masks.len()) / 64 + 2];
        sketch.philox.fill_double_words(stream, first as u64, words);
        fill_masks(path, masks, words, offset);
    }
}

/// `range` cut at the multiples of `step`.
pub(super) fn cut(range: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        let end = range.end.min((start / step + 1) * step);
        let piece = start..end;
        start = end;
        (!piece.is_empty()).then_some(piece)
    })
}

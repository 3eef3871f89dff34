//! Where a tile's coordinates go, and their signs, for a block of the gradient at a time.

use std::ops::Range;

use super::TileSketch;
use crate::philox::Stream;
use crate::signs::fill_masks;
use crate::simd::Path;

/// Shifts and signs of the tiles that some rows and columns of the gradient touch.
#[derive(Default)]
pub(super) struct Tiles {
    height: usize,
    width: usize,
    /// The touched tiles: rows of tiles, and tiles of each.
    tile_rows: Range<usize>,
    tiles: Range<usize>,
    columns: Range<usize>,
    /// Of each tile, its shift of rows and of columns.
    shifts: Vec<(usize, usize)>,
    /// Sign masks of each row of tiles: of the columns, and of the tiles' rows.
    column_masks: Vec<u32>,
    row_masks: Vec<u32>,
    words: Vec<u64>,
}

/// Neighbouring rows and columns of the gradient, of one tile, that go to neighbouring rows and columns of the sketch.
pub(super) struct Run<'a> {
    pub(super) rows: Range<usize>,
    pub(super) columns: Range<usize>,
    /// Where the first goes.
    pub(super) row: usize,
    pub(super) column: usize,
    pub(super) row_masks: &'a [u32],
    pub(super) column_masks: &'a [u32],
}

impl Tiles {
    /// Draws the tiles that these rows and columns touch.
    pub(super) fn draw(
        &mut self,
        sketch: &TileSketch,
        path: Path,
        rows: Range<usize>,
        columns: Range<usize>,
    ) {
        (self.height, self.width) = (sketch.height, sketch.width);
        self.tile_rows = rows.start / self.height..rows.end.div_ceil(self.height);
        self.tiles = columns.start / self.width..columns.end.div_ceil(self.width);
        self.columns = columns;
        self.shifts.clear();
        self.column_masks.clear();
        self.row_masks.clear();
        for tile_row in self.tile_rows.clone() {
            let before = tile_row * sketch.tile_columns();
            let first = before + self.tiles.start;
            self.words.resize(self.tiles.len(), 0);
            sketch
                .philox
                .fill_double_words(Stream::TileShift, first as u64, &mut self.words);
            let pairs = self.words.iter();
            self.shifts
                .extend(pairs.map(|&pair| sketch.shift([pair as u32, (pair >> 32) as u32])));
            let bit = before * self.width;
            let bits = bit + self.columns.start..bit + self.columns.end;
            let (masks, words) = (&mut self.column_masks, &mut self.words);
            append_masks(sketch, path, Stream::TileColumnSign, bits, masks, words);
            let bits = first * self.height..(first + self.tiles.len()) * self.height;
            let masks = &mut self.row_masks;
            append_masks(sketch, path, Stream::TileRowSign, bits, masks, words);
        }
    }

    /// Cuts a block of the drawn rows and columns at the ends of tiles and where the shifted rows wrap.
    pub(super) fn for_each_run(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        mut visit: impl FnMut(Run),
    ) {
        let (height, width) = (self.height, self.width);
        for rows in cut(rows, height) {
            let tile_row = rows.start / height;
            let row_index = tile_row - self.tile_rows.start;
            let column_masks = &self.column_masks[row_index * self.columns.len()..];
            for columns in cut(columns.clone(), width) {
                let tile = columns.start / width;
                let index = row_index * self.tiles.len() + tile - self.tiles.start;
                let (row_shift, column_shift) = self.shifts[index];
                let column = (columns.start - tile * width + column_shift) % width;
                let within = rows.start - tile_row * height;
                let row_masks = &self.row_masks[index * height + within..][..rows.len()];
                let column_masks =
                    &column_masks[columns.start - self.columns.start..][..columns.len()];
                let row = (within + row_shift) % height;
                let wrap = rows.len().min(height - row);
                for (part, row) in [(0..wrap, row), (wrap..rows.len(), 0)] {
                    if !part.is_empty() {
                        visit(Run {
                            rows: rows.start + part.start..rows.start + part.end,
                            columns: columns.clone(),
                            row,
                            column,
                            row_masks: &row_masks[part],
                            column_masks,
                        });
                    }
                }
            }
        }
    }
}

/// Appends the sign masks of some bits of a stream, whose words go through `words`.
fn append_masks(
    sketch: &TileSketch,
    path: Path,
    stream: Stream,
    bits: Range<usize>,
    masks: &mut Vec<u32>,
    words: &mut Vec<u64>,
) {
    let (word, offset) = (bits.start as u64 / 64, bits.start % 64);
    // One word more than the last bit needs, as reading signs asks for.
    words.resize((offset + bits.len()) / 64 + 2, 0);
    sketch.philox.fill_double_words(stream, word, words);
    let start = masks.len();
    masks.resize(start + bits.len(), 0);
    fill_masks(path, &mut masks[start..], words, offset);
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

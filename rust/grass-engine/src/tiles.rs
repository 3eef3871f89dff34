//! Symmetric matrices in tiles, of which the lower half is kept.

use std::ops::Range;

use grass_core::parallel::Workers;
use ndarray::{Array2, ArrayView2, ArrayViewMut1, ArrayViewMut2, s};

use crate::chunks::zeros;
use crate::error::Result;
use crate::gemm::add_long_product;

/// Rows and columns of a tile: one task each.
pub(crate) const TILE: usize = 256;

/// The lower half of a symmetric matrix, tile by tile. What lies above the diagonal in the tiles on the diagonal has no
/// meaning.
#[derive(Debug)]
pub(crate) struct SymmetricTiles {
    pub(crate) size: usize,
    /// Tile (i, j) for j <= i at [`place`]`(i, j)`.
    pub(crate) tiles: Vec<Array2<f64>>,
}

/// One tile's share of a sum of outer products in double precision.
pub(crate) struct GramTask<'a> {
    out: &'a mut Array2<f64>,
    left: ArrayView2<'a, f64>,
    right: ArrayView2<'a, f64>,
}

impl GramTask<'_> {
    pub(crate) fn run(self, workers: &Workers) -> Result<()> {
        add_long_product(
            self.out.view_mut(),
            1.0,
            self.left,
            self.right.reversed_axes(),
            workers,
        )
    }
}

/// Where tile (i, j) lies.
pub(crate) fn place(i: usize, j: usize) -> usize {
    i * (i + 1) / 2 + j
}

/// The rows of tile `index`.
pub(crate) fn tile(index: usize, size: usize) -> Range<usize> {
    index * TILE..size.min((index + 1) * TILE)
}

impl SymmetricTiles {
    /// Memory that a matrix of this size takes.
    pub(crate) fn bytes(size: usize) -> usize {
        let edge = size.next_multiple_of(TILE);
        size.saturating_mul(size + edge.min(TILE)) / 2 * size_of::<f64>()
    }

    /// The zero matrix of (size, size).
    pub(crate) fn zeros(size: usize, column: &str, workers: &Workers) -> Result<Self> {
        let count = size.div_ceil(TILE);
        let mut tiles = Vec::with_capacity(place(count, 0));
        for (i, j) in places(count) {
            workers.check()?;
            let shape = (tile(i, size).len(), tile(j, size).len());
            tiles.push(zeros(
                shape,
                || format!("the Fisher matrix of column {column:?}, a tile of it,"),
                "compress this column to fewer dimensions",
            )?);
        }
        Ok(Self { size, tiles })
    }

    /// Tiles along a side.
    pub(crate) fn count(&self) -> usize {
        self.size.div_ceil(TILE)
    }

    /// All tiles with their places (i, j).
    pub(crate) fn tiles_mut(
        &mut self,
    ) -> impl Iterator<Item = (&mut Array2<f64>, (usize, usize))> + Send {
        let places = places(self.count());
        self.tiles.iter_mut().zip(places)
    }

    /// The part of rows `rows` and columns `columns`, which must lie in one tile each and not above the diagonal's tiles.
    pub(crate) fn part(&self, rows: Range<usize>, columns: Range<usize>) -> ArrayView2<'_, f64> {
        let (i, j) = (rows.start / TILE, columns.start / TILE);
        let part = s![local(rows, i), local(columns, j)];
        self.tiles[place(i, j)].slice(part)
    }

    /// The same, to be changed.
    pub(crate) fn part_mut(
        &mut self,
        rows: Range<usize>,
        columns: Range<usize>,
    ) -> ArrayViewMut2<'_, f64> {
        let (i, j) = (rows.start / TILE, columns.start / TILE);
        let part = s![local(rows, i), local(columns, j)];
        self.tiles[place(i, j)].slice_mut(part)
    }

    /// The rows from `start` on, cut at the tiles.
    pub(crate) fn rows_from(&self, start: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let size = self.size;
        let tiles = start / TILE..self.count();
        tiles.map(move |index| tile(index, size).start.max(start)..tile(index, size).end)
    }

    /// The work of adding `rows rows^T`, for rows of shape (size, terms).
    pub(crate) fn gram_tasks<'a>(&'a mut self, rows: ArrayView2<'a, f64>) -> Vec<GramTask<'a>> {
        let size = self.size;
        let part = |index| rows.slice_move(s![tile(index, size), ..]);
        self.tiles_mut()
            .map(|(out, (i, j))| GramTask {
                out,
                left: part(i),
                right: part(j),
            })
            .collect()
    }

    pub(crate) fn diagonal(&self) -> impl Iterator<Item = f64> {
        let tiles = (0..self.count()).map(|index| &self.tiles[place(index, index)]);
        tiles.flat_map(|tile| tile.diag().into_iter().copied())
    }

    /// The sum of the diagonal.
    pub(crate) fn trace(&self) -> f64 {
        self.diagonal().sum()
    }

    /// Row `row` up to the diagonal and with it, in pieces.
    pub(crate) fn lower_row(&self, row: usize) -> impl Iterator<Item = &[f64]> {
        let i = row / TILE;
        let tiles = self.tiles[place(i, 0)..=place(i, i)].iter().enumerate();
        tiles.map(move |(j, tile)| {
            let values = tile.row(row % TILE).to_slice();
            &values.unwrap_or_default()[..lower_len(row, j)]
        })
    }

    /// The same, to be changed.
    pub(crate) fn lower_row_mut(&mut self, row: usize) -> impl Iterator<Item = &mut [f64]> {
        let i = row / TILE;
        let tiles = self.tiles[place(i, 0)..=place(i, i)].iter_mut().enumerate();
        tiles.map(move |(j, tile)| {
            let values = tile.row_mut(row % TILE).into_slice();
            &mut values.unwrap_or_default()[..lower_len(row, j)]
        })
    }

    /// Copies row `row` of the whole matrix, (size,).
    pub(crate) fn copy_row(&self, row: usize, out: &mut ArrayViewMut1<'_, f64>) {
        let lower = self.lower_row(row).flatten();
        for (out, &value) in out.iter_mut().zip(lower) {
            *out = value;
        }
        for below in row + 1..self.size {
            out[below] = self.tiles[place(below / TILE, row / TILE)][[below % TILE, row % TILE]];
        }
    }

    /// A copy, or an error where the memory for it cannot be had.
    pub(crate) fn try_clone(&self, column: &str, workers: &Workers) -> Result<Self> {
        let mut copy = Self::zeros(self.size, column, workers)?;
        for (copy, tile) in copy.tiles.iter_mut().zip(&self.tiles) {
            copy.assign(tile);
        }
        Ok(copy)
    }

    /// Gives what lies above the diagonal the values below it.
    pub(crate) fn mirror(&mut self) {
        for index in 0..self.count() {
            let tile = &mut self.tiles[place(index, index)];
            for i in 0..tile.nrows() {
                for j in i + 1..tile.ncols() {
                    tile[[i, j]] = tile[[j, i]];
                }
            }
        }
    }
}

/// The places (i, j), j <= i, of so many tiles a side, in the order of [`place`].
pub(crate) fn places(count: usize) -> impl Iterator<Item = (usize, usize)> + Send {
    (0..count).flat_map(|i| (0..=i).map(move |j| (i, j)))
}

/// Columns of tile j that row `row` has up to the diagonal.
fn lower_len(row: usize, j: usize) -> usize {
    (row + 1 - j * TILE).min(TILE)
}

fn local(range: Range<usize>, index: usize) -> Range<usize> {
    range.start - index * TILE..range.end - index * TILE
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A well conditioned matrix, as tiles and whole.
    pub(crate) fn matrix(size: usize, workers: &Workers) -> (SymmetricTiles, Array2<f64>) {
        let rows = Array2::from_shape_fn((size, size + 9), |(i, j)| {
            ((i * 7919 + j * 104_729) % 1009) as f64 / 500.0 - 1.0
        });
        let mut tiles = SymmetricTiles::zeros(size, "c", workers).unwrap();
        workers
            .for_each(tiles.gram_tasks(rows.view()), |task| task.run(workers))
            .unwrap();
        (tiles, rows.dot(&rows.t()) + Array2::<f64>::eye(size) * 3.0)
    }
}

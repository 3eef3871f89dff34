//! Symmetric positive definite matrices in tiles: factored and solved on all threads with the same bits for any
//! number of them.

use grass_core::parallel::Workers;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

use crate::error::{Error, Result};
use crate::gemm::add_product;
use crate::tiles::{SymmetricTiles, place, tile};

/// Below this many rows a triangle is worked on number by number.
const LEAF: usize = 32;

impl SymmetricTiles {
    /// Factors this matrix plus `ridge` times the identity; `None` if it is singular to working precision.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn factor(mut self, ridge: f64, workers: &Workers) -> Result<Option<Cholesky>> {
        for index in 0..self.count() {
            self.tiles[place(index, index)]
                .diag_mut()
                .mapv_inplace(|value| value + ridge);
        }
        let largest = self.diagonal().fold(0.0, f64::max);
        let smallest_pivot = self.size as f64 * f64::EPSILON * largest;
        for k in 0..self.count() {
            if !factor_lower(self.tiles[place(k, k)].view_mut(), smallest_pivot) {
                return Ok(None);
            }
            // The column below the diagonal, then everything right of it.
            let below: Vec<usize> = (k + 1..self.count()).collect();
            let mut column: Vec<Array2<f64>> = below
                .iter()
                .map(|&i| std::mem::take(&mut self.tiles[place(i, k)]))
                .collect();
            let corner = self.tiles[place(k, k)].view();
            workers.for_each(&mut column, |tile| {
                divide_by_transpose(corner, tile.view_mut());
                Ok::<(), Error>(())
            })?;
            let rest = self.tiles_mut().filter(|(_, (_, j))| *j > k);
            workers.for_each(rest, |(tile, (i, j))| {
                let (left, right) = (&column[i - k - 1], &column[j - k - 1]);
                add_product(tile.view_mut(), -1.0, left.view(), right.t());
                Ok::<(), Error>(())
            })?;
            for (i, tile) in below.into_iter().zip(column) {
                self.tiles[place(i, k)] = tile;
            }
        }
        Ok(Some(Cholesky { lower: self }))
    }
}

/// The lower triangle L of L L^T = A.
#[derive(Debug)]
pub(crate) struct Cholesky {
    lower: SymmetricTiles,
}

impl Cholesky {
    /// Replaces every row x of `rows`, (any, size), by L^-1 x.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn solve_lower(
        &self,
        mut rows: ArrayViewMut2<'_, f64>,
        workers: &Workers,
    ) -> Result<()> {
        let (size, count) = (self.lower.size, self.lower.count());
        let lower = |i, j| self.lower.tiles[place(i, j)].view();
        for k in 0..count {
            let (done, mut rest) = rows.view_mut().split_at(Axis(1), tile(k, size).end);
            let mut part = done.slice_move(s![.., tile(k, size)]);
            divide_by_transpose(lower(k, k), part.view_mut());
            for i in k + 1..count {
                workers.check()?;
                let columns =
                    tile(i, size).start - tile(k, size).end..tile(i, size).end - tile(k, size).end;
                add_product(
                    rest.slice_mut(s![.., columns]),
                    -1.0,
                    part.view(),
                    lower(i, k).reversed_axes(),
                );
            }
        }
        Ok(())
    }

    /// Replaces every row x of `rows`, (any, size), by A^-1 x.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn solve(&self, mut rows: ArrayViewMut2<'_, f64>, workers: &Workers) -> Result<()> {
        self.solve_lower(rows.view_mut(), workers)?;
        let (size, count) = (self.lower.size, self.lower.count());
        let lower = |i, j| self.lower.tiles[place(i, j)].view();
        for k in (0..count).rev() {
            let (mut before, after) = rows.view_mut().split_at(Axis(1), tile(k, size).start);
            let mut part = after.slice_move(s![.., ..tile(k, size).len()]);
            divide(lower(k, k), part.view_mut());
            for i in 0..k {
                workers.check()?;
                add_product(
                    before.slice_mut(s![.., tile(i, size)]),
                    -1.0,
                    part.view(),
                    lower(k, i),
                );
            }
        }
        Ok(())
    }
}

/// Where a triangle of this size is cut in two.
fn half(size: usize) -> usize {
    (size / 2).next_multiple_of(LEAF)
}

/// The quarters of a lower triangle without the zero one: top left, bottom left, bottom right.
fn quarters<'a>(lower: ArrayView2<'a, f64>) -> [ArrayView2<'a, f64>; 3] {
    let cut = half(lower.nrows());
    let (top, bottom) = lower.split_at(Axis(0), cut);
    let (left, right) = bottom.split_at(Axis(1), cut);
    [top.slice_move(s![.., ..cut]), left, right]
}

/// Factors a symmetric matrix, of which the lower half is read and replaced; false at a pivot that is too small.
fn factor_lower(mut matrix: ArrayViewMut2<'_, f64>, smallest_pivot: f64) -> bool {
    let size = matrix.nrows();
    if size <= LEAF {
        return factor_leaf(matrix, smallest_pivot);
    }
    let cut = half(size);
    let (mut top, bottom) = matrix.view_mut().split_at(Axis(0), cut);
    let (mut left, mut right) = bottom.split_at(Axis(1), cut);
    let mut corner = top.slice_mut(s![.., ..cut]);
    if !factor_lower(corner.view_mut(), smallest_pivot) {
        return false;
    }
    divide_by_transpose(corner.view(), left.view_mut());
    add_product(right.view_mut(), -1.0, left.view(), left.t());
    factor_lower(right, smallest_pivot)
}

fn factor_leaf(mut matrix: ArrayViewMut2<'_, f64>, smallest_pivot: f64) -> bool {
    for j in 0..matrix.nrows() {
        let (above, mut below) = matrix.view_mut().split_at(Axis(0), j + 1);
        let mut row = above.slice_move(s![j, ..=j]);
        let before = row.slice(s![..j]);
        let pivot = row[j] - before.dot(&before);
        if pivot.is_nan() || pivot <= smallest_pivot {
            return false;
        }
        row[j] = pivot.sqrt();
        for mut other in below.rows_mut() {
            let sum = other.slice(s![..j]).dot(&row.slice(s![..j]));
            other[j] = (other[j] - sum) / row[j];
        }
    }
    true
}

/// X <- X L^-T for a lower triangle L and rows X.
fn divide_by_transpose(lower: ArrayView2<'_, f64>, mut rows: ArrayViewMut2<'_, f64>) {
    let size = lower.nrows();
    if size > LEAF {
        let [corner, left, right] = quarters(lower);
        let (mut first, mut second) = rows.split_at(Axis(1), half(size));
        divide_by_transpose(corner, first.view_mut());
        add_product(second.view_mut(), -1.0, first.view(), left.reversed_axes());
        return divide_by_transpose(right, second);
    }
    let leaf = Leaf::new(lower, true);
    leaf.for_rows(rows.view_mut(), |row| {
        for i in 0..size {
            row[i] /= leaf.values[i][i];
            let (done, rest) = row[..size].split_at_mut(i + 1);
            for (value, factor) in rest.iter_mut().zip(&leaf.values[i][i + 1..]) {
                *value -= done[i] * factor;
            }
        }
    });
}

/// X <- X L^-1 for a lower triangle L and rows X.
fn divide(lower: ArrayView2<'_, f64>, mut rows: ArrayViewMut2<'_, f64>) {
    let size = lower.nrows();
    if size > LEAF {
        let [corner, left, right] = quarters(lower);
        let (mut first, mut second) = rows.split_at(Axis(1), half(size));
        divide(right, second.view_mut());
        add_product(first.view_mut(), -1.0, second.view(), left);
        return divide(corner, first);
    }
    let leaf = Leaf::new(lower, false);
    leaf.for_rows(rows.view_mut(), |row| {
        for i in (0..size).rev() {
            row[i] /= leaf.values[i][i];
            let (rest, done) = row.split_at_mut(i);
            for (value, factor) in rest.iter_mut().zip(&leaf.values[i]) {
                *value -= done[0] * factor;
            }
        }
    });
}

/// A small triangle in an array of fixed size, where the compiler knows all strides.
struct Leaf {
    values: [[f64; LEAF]; LEAF],
}

impl Leaf {
    fn new(lower: ArrayView2<'_, f64>, transposed: bool) -> Self {
        let mut values = [[0.0; LEAF]; LEAF];
        for ((i, j), &value) in lower.indexed_iter() {
            match transposed {
                true => values[j][i] = value,
                false => values[i][j] = value,
            }
        }
        Self { values }
    }

    fn for_rows(&self, mut rows: ArrayViewMut2<'_, f64>, work: impl Fn(&mut [f64; LEAF])) {
        let mut copy = [0.0; LEAF];
        for mut row in rows.rows_mut() {
            for (copy, value) in copy.iter_mut().zip(&row) {
                *copy = *value;
            }
            work(&mut copy);
            for (value, copy) in row.iter_mut().zip(&copy) {
                *value = *copy;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::tiles::tests::matrix;

    #[test]
    fn solving_gives_the_solution_for_sizes_around_leaf_and_tile() {
        for size in [1, 2, 31, 32, 33, 63, 65, 200, 255, 256, 257, 300, 600] {
            let workers = Workers::with_threads(2);
            let (tiles, whole) = matrix(size, &workers);
            let trace = whole.diag().sum() - 3.0 * size as f64;
            assert!((tiles.trace() - trace).abs() < 1e-12 * trace);
            let factor = tiles.factor(3.0, &workers).unwrap().unwrap();
            let solution =
                Array2::from_shape_fn((5, size), |(i, j)| ((i * 13 + j * 5) % 7) as f64 - 3.0);
            let mut rows = solution.dot(&whole);
            let mut halves = rows.clone();
            factor.solve(rows.view_mut(), &workers).unwrap();
            factor.solve_lower(halves.view_mut(), &workers).unwrap();
            for ((half, row), solution) in halves
                .rows()
                .into_iter()
                .zip(solution.dot(&whole).rows())
                .zip(solution.rows())
            {
                // |L^-1 b|^2 = b^T A^-1 b.
                assert!((half.dot(&half) - row.dot(&solution)).abs() <= 1e-9 * half.dot(&half));
            }
            let worst = (&rows - &solution)
                .iter()
                .fold(0.0, |worst: f64, x| worst.max(x.abs()));
            assert!(worst < 1e-9, "size {size}: {worst}");
        }
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let solve = |threads| {
            let workers = Workers::with_threads(threads);
            let factor = matrix(520, &workers)
                .0
                .factor(3.0, &workers)
                .unwrap()
                .unwrap();
            let mut rows = Array2::from_shape_fn((3, 520), |(i, j)| (i + j) as f64);
            factor.solve(rows.view_mut(), &workers).unwrap();
            rows
        };
        assert_eq!(solve(1), solve(4));
    }

    #[test]
    fn a_singular_matrix_is_refused_and_a_ridge_helps() {
        // Fewer outer products than rows, so that pivots vanish somewhere inside.
        for (size, terms) in [(3, 2), (40, 20), (300, 290)] {
            let rows = Array2::from_shape_fn((size, terms), |(i, j)| {
                ((i * 31 + j * 17) % 23) as f64 - 11.0
            });
            let workers = Workers::serial();
            let tiles = || {
                let mut tiles = SymmetricTiles::zeros(size, "c", &workers).unwrap();
                for task in tiles.gram_tasks(rows.view()) {
                    task.run(&workers).unwrap();
                }
                tiles
            };
            assert!(
                tiles().factor(0.0, &workers).unwrap().is_none(),
                "size {size}"
            );
            assert!(
                tiles().factor(1e-3, &workers).unwrap().is_some(),
                "size {size}"
            );
        }
        let workers = Workers::serial();
        let zeros = SymmetricTiles::zeros(4, "c", &workers).unwrap();
        assert!(zeros.factor(f64::NAN, &workers).unwrap().is_none());
    }

    #[test]
    fn every_step_is_stopped_by_the_cancel_flag() {
        let workers = Workers::serial();
        let factor = matrix(300, &workers).0.factor(3.0, &workers).unwrap();
        let (mut tiles, whole) = matrix(300, &workers);
        workers.cancel_flag().store(true, Ordering::Relaxed);
        let stopped = |outcome| {
            assert!(matches!(
                outcome,
                Err(Error::Core(grass_core::Error::Interrupted))
            ));
        };
        stopped(factor.unwrap().solve(whole.clone().view_mut(), &workers));
        for task in tiles.gram_tasks(whole.view()) {
            stopped(task.run(&workers));
        }
        stopped(tiles.factor(3.0, &workers).map(|_| ()));
        stopped(SymmetricTiles::zeros(300, "c", &workers).map(|_| ()));
    }
}

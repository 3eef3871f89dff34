//! One decomposition of a symmetric matrix that serves any number of dampings.
//!
//! A = Q B Q^T with Q orthogonal and B of [`BAND`] diagonals on either side of the main one, by blocked Householder
//! reflections: the first half of what an eigensolver does, and all that is needed here, as Q also brings A + ridge I to a
//! band, B + ridge I, whose Cholesky factor takes size * BAND^2 operations. No iteration, so nothing that could fail to
//! converge. A band in place of a tridiagonal matrix lets all but a sliver of the work be matrix products.
//!
//! A step takes [`BAND`] columns below the band, P = Q_1 R with Q_1 = I - V T V^T, and turns what lies right of them, S, into
//!
//! Q_1^T S Q_1 = S - V W^T - W V^T,  Y = S V T,  W = Y - V (T^T V^T Y) / 2.

use grass_core::parallel::Workers;
use ndarray::{Array2, ArrayViewMut2, Axis, s};

use crate::error::{Error, Result};
use crate::gemm::add_product;
use crate::tiles::{SymmetricTiles, TILE, places, tile};

/// Diagonals below the main one, and reflections made at once.
pub(crate) const BAND: usize = 64;

const _: () = assert!(TILE.is_multiple_of(BAND));

/// A symmetric matrix brought to a band.
#[derive(Debug)]
pub(crate) struct Banded {
    /// V of step k in columns k BAND.. and the rows after them: ones on its diagonal, zeros above.
    reflections: SymmetricTiles,
    /// T of every step.
    factors: Vec<Array2<f64>>,
    /// B[i, i - BAND + d] at (i, d), and zeros left of its first column.
    band: Array2<f64>,
}

/// The lower triangle L of L L^T = B + ridge I, laid out like B.
#[derive(Debug)]
pub(crate) struct BandCholesky {
    lower: Array2<f64>,
}

impl Banded {
    /// Brings a matrix to a band, in its own memory.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn reduce(mut matrix: SymmetricTiles, workers: &Workers) -> Result<Self> {
        matrix.mirror();
        let size = matrix.size;
        let mut band = Array2::zeros((size, BAND + 1));
        let mut factors = Vec::new();
        for start in (0..size).step_by(BAND) {
            workers.check()?;
            let end = size.min(start + BAND);
            let corner = matrix.part(start..end, start..end);
            for (i, row) in corner.rows().into_iter().enumerate() {
                let lower = row.slice_move(s![..=i]);
                band.slice_mut(s![start + i, BAND - i..]).assign(&lower);
            }
            if end == size {
                break;
            }
            let mut columns = Array2::zeros((BAND, size - end));
            for rows in matrix.rows_from(end) {
                let below = matrix.part(rows.clone(), start..end);
                let mut part = columns.slice_mut(s![.., rows.start - end..rows.end - end]);
                part.assign(&below.t());
            }
            let (upper, factor) = reflect(columns.view_mut());
            for (i, row) in upper.rows().into_iter().enumerate() {
                let part = band.slice_mut(s![end + i, ..BAND - i]);
                row.slice(s![i..]).assign_to(part);
            }
            let reflections = columns.slice(s![..factor.nrows(), ..]).reversed_axes();
            for rows in matrix.rows_from(end) {
                let part = reflections.slice(s![rows.start - end..rows.end - end, ..]);
                let mut below = matrix.part_mut(rows, start..end);
                below.slice_mut(s![.., ..part.ncols()]).assign(&part);
            }
            let (left, right) = update_factors(&matrix, end, &columns, &factor, workers)?;
            update(&mut matrix, end, &left, &right, workers)?;
            factors.push(factor);
        }
        Ok(Self {
            reflections: matrix,
            factors,
            band,
        })
    }

    /// Replaces every row x of `rows`, (any, size), by Q^T x.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn rotate(&self, rows: &mut Array2<f64>, workers: &Workers) -> Result<()> {
        for step in 0..self.factors.len() {
            self.apply(step, false, rows.view_mut(), workers)?;
        }
        Ok(())
    }

    /// Replaces every row x of `rows`, (any, size), by Q x.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn rotate_back(
        &self,
        mut rows: ArrayViewMut2<'_, f64>,
        workers: &Workers,
    ) -> Result<()> {
        for step in (0..self.factors.len()).rev() {
            self.apply(step, true, rows.view_mut(), workers)?;
        }
        Ok(())
    }

    /// Replaces every row x by x - (x V) T V^T, or with T^T in place of T.
    fn apply(
        &self,
        step: usize,
        transposed: bool,
        mut rows: ArrayViewMut2<'_, f64>,
        workers: &Workers,
    ) -> Result<()> {
        workers.check()?;
        let factor = match transposed {
            false => self.factors[step].view(),
            true => self.factors[step].t(),
        };
        let columns = step * BAND..step * BAND + factor.nrows();
        let mut products = Array2::zeros((rows.nrows(), factor.nrows()));
        let below = (step + 1) * BAND;
        for part in self.reflections.rows_from(below) {
            let reflections = self.reflections.part(part.clone(), columns.clone());
            add_product(
                products.view_mut(),
                1.0,
                rows.slice(s![.., part]),
                reflections,
            );
        }
        let products = products.dot(&factor);
        for part in self.reflections.rows_from(below) {
            let reflections = self.reflections.part(part.clone(), columns.clone());
            let rows = rows.slice_mut(s![.., part]);
            add_product(rows, -1.0, products.view(), reflections.reversed_axes());
        }
        Ok(())
    }

    /// Factors B + ridge I; `None` if it is singular to working precision.
    pub(crate) fn factor(&self, ridge: f64) -> Option<BandCholesky> {
        let size = self.band.nrows();
        let mut lower = self.band.clone();
        lower.column_mut(BAND).mapv_inplace(|value| value + ridge);
        // No eigenvalue is larger than the largest sum of a row's magnitudes.
        let mut sums = vec![0.0; size];
        for ((i, d), value) in lower.indexed_iter() {
            sums[i] += value.abs();
            if d < BAND && i + d >= BAND {
                sums[i + d - BAND] += value.abs();
            }
        }
        let largest = sums.into_iter().fold(0.0, f64::max);
        let smallest_pivot = size as f64 * f64::EPSILON * largest;
        for i in 0..size {
            let (above, mut rest) = lower.view_mut().split_at(Axis(0), i);
            let mut row = rest.row_mut(0);
            for d in BAND.saturating_sub(i)..BAND {
                // Row j of L from column i - BAND on: what it shares with row i.
                let other = above.row(i + d - BAND);
                let sum = row.slice(s![..d]).dot(&other.slice(s![BAND - d..BAND]));
                row[d] = (row[d] - sum) / other[BAND];
            }
            let before = row.slice(s![..BAND]);
            let pivot = row[BAND] - before.dot(&before);
            if pivot.is_nan() || pivot <= smallest_pivot {
                return None;
            }
            row[BAND] = pivot.sqrt();
        }
        Some(BandCholesky { lower })
    }
}

impl BandCholesky {
    /// Replaces every row x of `rows`, (any, size), by L^-1 x.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn solve_lower(&self, rows: &mut Array2<f64>, workers: &Workers) -> Result<()> {
        for mut row in rows.rows_mut() {
            workers.check()?;
            for (i, lower) in self.lower.rows().into_iter().enumerate() {
                let before = i.min(BAND);
                let sum = row
                    .slice(s![i - before..i])
                    .dot(&lower.slice(s![BAND - before..BAND]));
                row[i] = (row[i] - sum) / lower[BAND];
            }
        }
        Ok(())
    }

    /// Replaces every row x of `rows`, (any, size), by (B + ridge I)^-1 x.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn solve(&self, rows: &mut Array2<f64>, workers: &Workers) -> Result<()> {
        self.solve_lower(rows, workers)?;
        for mut row in rows.rows_mut() {
            workers.check()?;
            for (i, lower) in self.lower.rows().into_iter().enumerate().rev() {
                let before = i.min(BAND);
                let value = row[i] / lower[BAND];
                row[i] = value;
                row.slice_mut(s![i - before..i])
                    .scaled_add(-value, &lower.slice(s![BAND - before..BAND]));
            }
        }
        Ok(())
    }
}

/// Reflections that bring a matrix, given by its columns (BAND, rows), to an upper triangle: replaces the columns by those
/// of V, and returns the triangle R, (reflections, BAND), and T of Q = I - V T V^T.
fn reflect(mut columns: ArrayViewMut2<'_, f64>) -> (Array2<f64>, Array2<f64>) {
    let count = columns.nrows().min(columns.ncols());
    let mut upper = Array2::zeros((count, columns.nrows()));
    let mut scales = vec![0.0; count];
    for c in 0..count {
        let (done, mut rest) = columns.view_mut().split_at(Axis(0), c + 1);
        let mut vector = done.slice_move(s![c, c..]);
        let below = vector.slice(s![1..]);
        let (first, square) = (vector[0], below.dot(&below));
        let mut value = first;
        if square > 0.0 {
            value = -first.signum() * (first * first + square).sqrt();
            scales[c] = (value - first) / value;
            let divisor = first - value;
            vector.mapv_inplace(|entry| entry / divisor);
        }
        vector[0] = 1.0;
        upper[[c, c]] = value;
        for (mut other, upper) in rest
            .rows_mut()
            .into_iter()
            .zip(upper.slice_mut(s![c, c + 1..]))
        {
            let mut other = other.slice_mut(s![c..]);
            let product = vector.dot(&other);
            other.scaled_add(-scales[c] * product, &vector);
            *upper = other[0];
        }
    }
    for (c, mut column) in columns.rows_mut().into_iter().enumerate() {
        let above = c.min(column.len());
        column.slice_mut(s![..above]).fill(0.0);
    }
    let vectors = columns.slice(s![..count, ..]);
    let products = vectors.dot(&vectors.t());
    let mut factor: Array2<f64> = Array2::zeros((count, count));
    for c in 0..count {
        let column = factor.slice(s![..c, ..c]).dot(&products.slice(s![..c, c]));
        let column = column * -scales[c];
        factor.slice_mut(s![..c, c]).assign(&column);
        factor[[c, c]] = scales[c];
    }
    (upper, factor)
}

/// The factors (V W) and (W V) of the update of what lies at and after `end`, both (rows, 2 reflections).
fn update_factors(
    matrix: &SymmetricTiles,
    end: usize,
    columns: &Array2<f64>,
    factor: &Array2<f64>,
    workers: &Workers,
) -> Result<(Array2<f64>, Array2<f64>)> {
    let (count, rows) = (factor.nrows(), matrix.size - end);
    let mut left = Array2::zeros((rows, 2 * count));
    left.slice_mut(s![.., ..count])
        .assign(&columns.slice(s![..count, ..]).t());
    let (vectors, mut products) = left.view_mut().split_at(Axis(1), count);
    let vectors = vectors.view();
    let mut rest = products.view_mut();
    let mut tasks = Vec::new();
    for part in matrix.rows_from(end) {
        let (out, after) = rest.split_at(Axis(0), part.len());
        tasks.push((part, out));
        rest = after;
    }
    workers.for_each(tasks, |(part, mut out)| {
        let mut sums = Array2::zeros((part.len(), count));
        for other in matrix.rows_from(end) {
            let vectors = vectors.slice(s![other.start - end..other.end - end, ..]);
            let block = match other.start <= part.start {
                true => matrix.part(part.clone(), other),
                false => matrix.part(other, part.clone()).reversed_axes(),
            };
            add_product(sums.view_mut(), 1.0, block, vectors);
        }
        out.assign(&sums.dot(factor));
        Ok::<(), Error>(())
    })?;
    let mut inner = Array2::zeros((count, count));
    add_product(inner.view_mut(), 1.0, vectors.t(), products.view());
    let inner = factor.t().dot(&inner);
    add_product(products.view_mut(), -0.5, vectors, inner.view());
    let mut right = Array2::zeros((rows, 2 * count));
    right.slice_mut(s![.., ..count]).assign(&products);
    right.slice_mut(s![.., count..]).assign(&vectors);
    Ok((left, right))
}

/// S <- S - V W^T - W V^T for what lies at and after `end`.
fn update(
    matrix: &mut SymmetricTiles,
    end: usize,
    left: &Array2<f64>,
    right: &Array2<f64>,
    workers: &Workers,
) -> Result<()> {
    let (size, first) = (matrix.size, end / TILE);
    let rows = |index| tile(index, size).start.max(end)..tile(index, size).end;
    let tasks = places(matrix.count()).zip(&mut matrix.tiles);
    let tasks = tasks.filter(|((_, j), _)| *j >= first);
    workers.for_each(tasks, |((i, j), out)| {
        let (rows, columns) = (rows(i), rows(j));
        let (top, start) = (rows.start - i * TILE, columns.start - j * TILE);
        add_product(
            out.slice_mut(s![top.., start..]),
            -1.0,
            left.slice(s![rows.start - end..rows.end - end, ..]),
            right
                .slice(s![columns.start - end..columns.end - end, ..])
                .reversed_axes(),
        );
        Ok::<(), Error>(())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;
    use crate::tiles;

    /// A well conditioned matrix, as tiles and whole. What lies above the diagonal of the tiles has no meaning.
    fn matrix(size: usize, workers: &Workers) -> (SymmetricTiles, Array2<f64>) {
        let (mut tiles, whole) = tiles::tests::matrix(size, workers);
        for index in 0..size.div_ceil(TILE) {
            let rows = tile(index, size);
            let mut corner = tiles.part_mut(rows.clone(), rows);
            for (i, mut row) in corner.rows_mut().into_iter().enumerate() {
                row.slice_mut(s![i + 1..]).fill(f64::NAN);
            }
        }
        // The part that `Cholesky` gets as its ridge is no part of the tiles.
        (tiles, whole - Array2::<f64>::eye(size) * 3.0)
    }

    fn worst(values: &Array2<f64>) -> f64 {
        values
            .iter()
            .fold(0.0, |worst, value| worst.max(value.abs()))
    }

    #[test]
    fn the_band_and_q_give_back_the_matrix_and_q_keeps_lengths() {
        let workers = Workers::with_threads(2);
        for size in [1, 2, 63, 64, 65, 66, 127, 128, 129, 200, 256, 257, 330, 600] {
            let (tiles, whole) = matrix(size, &workers);
            let banded = Banded::reduce(tiles, &workers).unwrap();
            let mut band = Array2::zeros((size, size));
            for ((i, d), &value) in banded.band.indexed_iter() {
                match (i + d).checked_sub(BAND) {
                    Some(j) => (band[[i, j]], band[[j, i]]) = (value, value),
                    None => assert_eq!(value, 0.0),
                }
            }
            // Row i is Q^T e_i, so all of them are Q.
            let mut q = Array2::eye(size);
            banded.rotate(&mut q, &workers).unwrap();
            assert!(worst(&(q.dot(&q.t()) - Array2::<f64>::eye(size))) < 1e-13);
            let error = worst(&(q.dot(&band).dot(&q.t()) - &whole));
            assert!(error < 1e-13 * worst(&whole), "size {size}: {error:e}");
            banded.rotate_back(q.view_mut(), &workers).unwrap();
            assert!(worst(&(q - Array2::<f64>::eye(size))) < 1e-13);
        }
    }

    #[test]
    fn solving_gives_the_solution_for_every_ridge() {
        let workers = Workers::with_threads(2);
        for size in [1, 64, 65, 300] {
            let (tiles, whole) = matrix(size, &workers);
            let banded = Banded::reduce(tiles, &workers).unwrap();
            for ridge in [1.0, 3.0, 1e4] {
                let solution =
                    Array2::from_shape_fn((5, size), |(i, j)| ((i * 13 + j * 5) % 7) as f64 - 3.0);
                let right = solution.dot(&(&whole + Array2::<f64>::eye(size) * ridge));
                let factor = banded.factor(ridge).unwrap();
                let mut rows = right.clone();
                banded.rotate(&mut rows, &workers).unwrap();
                let mut halves = rows.clone();
                factor.solve(&mut rows, &workers).unwrap();
                banded.rotate_back(rows.view_mut(), &workers).unwrap();
                assert!(worst(&(&rows - &solution)) < 1e-9, "size {size}");
                factor.solve_lower(&mut halves, &workers).unwrap();
                for (index, half) in halves.rows().into_iter().enumerate() {
                    // |L^-1 b|^2 = b^T A^-1 b.
                    let square = half.dot(&half);
                    let exact = right.row(index).dot(&solution.row(index));
                    assert!((square - exact).abs() <= 1e-9 * square);
                }
            }
        }
    }

    #[test]
    fn a_matrix_that_is_diagonal_stays_as_it_is() {
        let workers = Workers::serial();
        let mut tiles = SymmetricTiles::zeros(150, "c", &workers).unwrap();
        for i in 0..150 {
            tiles.part_mut(i..i + 1, i..i + 1)[[0, 0]] = i as f64;
        }
        let banded = Banded::reduce(tiles, &workers).unwrap();
        let mut band = banded.band.clone();
        assert!(
            band.column(BAND)
                .iter()
                .zip(0..)
                .all(|(&x, i)| x.abs() == f64::from(i))
        );
        band.column_mut(BAND).fill(0.0);
        assert_eq!(worst(&band), 0.0);
        assert!(banded.factor(0.0).is_none());
        assert!(banded.factor(1e-9).is_some());
        assert!(banded.factor(f64::NAN).is_none());
    }

    #[test]
    fn bits_do_not_depend_on_the_number_of_threads() {
        let reduce = |threads| {
            let workers = Workers::with_threads(threads);
            let banded = Banded::reduce(matrix(520, &workers).0, &workers).unwrap();
            let mut rows = Array2::from_shape_fn((3, 520), |(i, j)| (i + j) as f64);
            banded.rotate(&mut rows, &workers).unwrap();
            (banded.band, rows)
        };
        assert_eq!(reduce(1), reduce(4));
    }

    #[test]
    fn a_singular_matrix_is_refused_and_a_ridge_helps() {
        for (size, terms) in [(3, 2), (70, 20), (300, 290)] {
            let rows = Array2::from_shape_fn((size, terms), |(i, j)| {
                ((i * 31 + j * 17) % 23) as f64 - 11.0
            });
            let workers = Workers::serial();
            let mut tiles = SymmetricTiles::zeros(size, "c", &workers).unwrap();
            for task in tiles.gram_tasks(rows.view()) {
                task.run(&workers).unwrap();
            }
            let banded = Banded::reduce(tiles, &workers).unwrap();
            assert!(banded.factor(0.0).is_none(), "size {size}");
            assert!(banded.factor(1e-3).is_some(), "size {size}");
        }
    }

    #[test]
    fn every_step_is_stopped_by_the_cancel_flag() {
        let workers = Workers::serial();
        let (tiles, mut whole) = matrix(300, &workers);
        let (again, _) = matrix(300, &workers);
        let banded = Banded::reduce(tiles, &workers).unwrap();
        let factor = banded.factor(3.0).unwrap();
        workers.cancel_flag().store(true, Ordering::Relaxed);
        let stopped = |outcome| {
            assert!(matches!(
                outcome,
                Err(Error::Core(grass_core::Error::Interrupted))
            ));
        };
        stopped(banded.rotate(&mut whole, &workers));
        stopped(banded.rotate_back(whole.view_mut(), &workers));
        stopped(factor.solve(&mut whole, &workers));
        stopped(factor.solve_lower(&mut whole, &workers));
        stopped(Banded::reduce(again, &workers).map(|_| ()));
    }
}

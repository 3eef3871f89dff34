//! The inverse of a symmetric matrix plus each of some ridges, applied to rows.

use grass_core::parallel::Workers;
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};

use crate::band::{BandCholesky, Banded};
use crate::cholesky::Cholesky;
use crate::error::{Error, Result};
use crate::tiles::SymmetricTiles;

/// Ridges whose factors are held at once.
pub(crate) const RIDGES: usize = 16;

/// Steps and vectors of the search for a smallest eigenvalue.
const STEPS: usize = 3;
const VECTORS: usize = 2;

/// A decomposed matrix A.
pub(crate) enum Decomposition {
    /// For one ridge, with which it may be singular: a third of the work of the other.
    Cholesky(Option<Cholesky>),
    /// For any number.
    Banded(Banded),
}

/// The inverses for some of the ridges, with the ridges' numbers.
pub(crate) enum Inverses<'a> {
    Cholesky(Option<(usize, &'a Cholesky)>),
    Banded(&'a Banded, Vec<(usize, BandCholesky)>),
}

impl Decomposition {
    /// Decomposes a matrix.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn new(matrix: SymmetricTiles, ridges: &[f64], workers: &Workers) -> Result<Self> {
        Ok(match ridges {
            [ridge] => Self::Cholesky(matrix.factor(*ridge, workers)?),
            _ => Self::Banded(Banded::reduce(matrix, workers)?),
        })
    }

    /// The inverses for up to [`RIDGES`] ridges, given with their numbers, as far as A + ridge I, scaled to ones on its
    /// diagonal, has no eigenvalue below `smallest`. `diagonal` is that of A.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn inverses(
        &self,
        ridges: &[(usize, f64)],
        diagonal: &[f64],
        smallest: f64,
        workers: &Workers,
    ) -> Result<Inverses<'_>> {
        let banded = match self {
            Self::Cholesky(factor) => {
                for (&(number, ridge), factor) in ridges.iter().zip(factor) {
                    let solve = |rows: &mut Array2<f64>| factor.solve(rows.view_mut(), workers);
                    if smallest_eigenvalue(diagonal, ridge, solve)? >= smallest {
                        return Ok(Inverses::Cholesky(Some((number, factor))));
                    }
                }
                return Ok(Inverses::Cholesky(None));
            }
            Self::Banded(banded) => banded,
        };
        let mut factors: Vec<Option<(usize, BandCholesky)>> = ridges.iter().map(|_| None).collect();
        workers.for_each(
            factors.iter_mut().zip(ridges),
            |(slot, &(number, ridge))| {
                let Some(factor) = banded.factor(ridge) else {
                    return Ok(());
                };
                let solve = |rows: &mut Array2<f64>| {
                    banded.rotate(rows, workers)?;
                    factor.solve(rows, workers)?;
                    banded.rotate_back(rows.view_mut(), workers)
                };
                if smallest_eigenvalue(diagonal, ridge, solve)? >= smallest {
                    *slot = Some((number, factor));
                }
                Ok::<(), Error>(())
            },
        )?;
        let factors = factors.into_iter().flatten().collect();
        Ok(Inverses::Banded(banded, factors))
    }
}

/// The smallest eigenvalue of S^-1 (A + ridge I) S^-1, with S^2 the diagonal of A + ridge I, to a small factor, by
/// inverse iteration; `solve` replaces rows x by (A + ridge I)^-1 x.
fn smallest_eigenvalue(
    diagonal: &[f64],
    ridge: f64,
    solve: impl Fn(&mut Array2<f64>) -> Result<()>,
) -> Result<f64> {
    let scales: Array1<f64> = diagonal
        .iter()
        .map(|value| (value + ridge).sqrt())
        .collect();
    // Any fixed vectors that no matrix is likely to have been made for: hashes of the coordinates.
    let mut rows = Array2::from_shape_fn((VECTORS, scales.len()), |(row, coordinate)| {
        let hash = ((coordinate * VECTORS + row + 1) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (hash >> 33) as f64 / 2f64.powi(30) - 1.0
    });
    let mut largest: f64 = 0.0;
    for _ in 0..STEPS {
        for mut row in rows.rows_mut() {
            let length = row.dot(&row).sqrt();
            row.zip_mut_with(&scales, |value, scale| *value *= scale / length);
        }
        solve(&mut rows)?;
        for mut row in rows.rows_mut() {
            row *= &scales;
            largest = largest.max(row.dot(&row).sqrt());
        }
    }
    Ok(1.0 / largest)
}

impl Inverses<'_> {
    /// The numbers of the ridges whose inverses these are.
    pub(crate) fn numbers(&self) -> Vec<usize> {
        match self {
            Self::Cholesky(factor) => factor.iter().map(|(number, _)| *number).collect(),
            Self::Banded(_, factors) => factors.iter().map(|(number, _)| *number).collect(),
        }
    }

    /// Hands over (A + ridge I)^-1 x of every row x, ridge after ridge, with the ridge's number.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn solve(
        &self,
        mut rows: Array2<f64>,
        workers: &Workers,
        mut each: impl FnMut(usize, ArrayView2<'_, f64>),
    ) -> Result<()> {
        match self {
            Self::Cholesky(None) => {}
            Self::Cholesky(Some((number, factor))) => {
                factor.solve(rows.view_mut(), workers)?;
                each(*number, rows.view());
            }
            Self::Banded(banded, factors) => {
                banded.rotate(&mut rows, workers)?;
                for (number, factor) in factors {
                    let mut solved = rows.clone();
                    factor.solve(&mut solved, workers)?;
                    banded.rotate_back(solved.view_mut(), workers)?;
                    each(*number, solved.view());
                }
            }
        }
        Ok(())
    }

    /// Hands over x^T (A + ridge I)^-1 x of every row x, ridge after ridge, with the ridge's number.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn squares(
        &self,
        mut rows: Array2<f64>,
        workers: &Workers,
        mut each: impl FnMut(usize, Vec<f64>),
    ) -> Result<()> {
        let square = |row: ArrayView1<'_, f64>| row.dot(&row);
        let squares = |rows: &Array2<f64>| rows.rows().into_iter().map(square).collect();
        match self {
            Self::Cholesky(None) => {}
            Self::Cholesky(Some((number, factor))) => {
                factor.solve_lower(rows.view_mut(), workers)?;
                each(*number, squares(&rows));
            }
            Self::Banded(banded, factors) => {
                banded.rotate(&mut rows, workers)?;
                for (number, factor) in factors {
                    let mut solved = rows.clone();
                    factor.solve_lower(&mut solved, workers)?;
                    each(*number, squares(&solved));
                }
            }
        }
        Ok(())
    }
}

/// The numbers of so many ridges, at most [`RIDGES`] at a time.
pub(crate) fn batches(ridges: usize) -> impl Iterator<Item = Vec<usize>> {
    let starts = (0..ridges).step_by(RIDGES);
    starts.map(move |start| (start..ridges.min(start + RIDGES)).collect())
}

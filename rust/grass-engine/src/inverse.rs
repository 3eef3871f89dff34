//! The inverse of a symmetric matrix plus each of some ridges, applied to rows.

use std::ops::Range;

use grass_core::parallel::Workers;
use ndarray::{Array2, ArrayView1, ArrayView2};

use crate::band::{BandCholesky, Banded};
use crate::cholesky::Cholesky;
use crate::error::{Error, Result};
use crate::tiles::SymmetricTiles;

/// Ridges whose factors are held at once.
pub(crate) const RIDGES: usize = 16;

/// A decomposed matrix.
pub(crate) enum Decomposition {
    /// For one ridge: a third of the work of the other.
    Cholesky(Cholesky),
    /// For any number.
    Banded(Banded),
}

/// The inverses for some of the ridges.
pub(crate) enum Inverses<'a> {
    Cholesky(&'a Cholesky),
    Banded(&'a Banded, Vec<BandCholesky>),
}

impl Decomposition {
    /// Decomposes a matrix; `None` if it is singular with its only ridge.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn new(
        matrix: SymmetricTiles,
        ridges: &[f64],
        workers: &Workers,
    ) -> Result<Option<Self>> {
        Ok(match ridges {
            [ridge] => matrix.factor(*ridge, workers)?.map(Self::Cholesky),
            _ => Some(Self::Banded(Banded::reduce(matrix, workers)?)),
        })
    }

    /// The inverses for up to [`RIDGES`] ridges; the number of a ridge with which the matrix is singular, if there is one.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn inverses(
        &self,
        ridges: &[f64],
        workers: &Workers,
    ) -> Result<std::result::Result<Inverses<'_>, usize>> {
        let banded = match self {
            Self::Cholesky(factor) => return Ok(Ok(Inverses::Cholesky(factor))),
            Self::Banded(banded) => banded,
        };
        let mut factors: Vec<Option<BandCholesky>> = ridges.iter().map(|_| None).collect();
        workers.for_each(factors.iter_mut().zip(ridges), |(factor, &ridge)| {
            *factor = banded.factor(ridge);
            Ok::<(), Error>(())
        })?;
        Ok(match factors.iter().position(Option::is_none) {
            Some(singular) => Err(singular),
            None => Ok(Inverses::Banded(
                banded,
                factors.into_iter().flatten().collect(),
            )),
        })
    }
}

impl Inverses<'_> {
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
            Self::Cholesky(factor) => {
                factor.solve(rows.view_mut(), workers)?;
                each(0, rows.view());
            }
            Self::Banded(banded, factors) => {
                banded.rotate(&mut rows, workers)?;
                for (index, factor) in factors.iter().enumerate() {
                    let mut solved = rows.clone();
                    factor.solve(&mut solved, workers)?;
                    banded.rotate_back(solved.view_mut(), workers)?;
                    each(index, solved.view());
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
            Self::Cholesky(factor) => {
                factor.solve_lower(rows.view_mut(), workers)?;
                each(0, squares(&rows));
            }
            Self::Banded(banded, factors) => {
                banded.rotate(&mut rows, workers)?;
                for (index, factor) in factors.iter().enumerate() {
                    let mut solved = rows.clone();
                    factor.solve_lower(&mut solved, workers)?;
                    each(index, squares(&solved));
                }
            }
        }
        Ok(())
    }
}

/// Cuts so many ridges into ranges of at most [`RIDGES`].
pub(crate) fn batches(ridges: usize) -> impl Iterator<Item = Range<usize>> {
    let starts = (0..ridges).step_by(RIDGES);
    starts.map(move |start| start..ridges.min(start + RIDGES))
}

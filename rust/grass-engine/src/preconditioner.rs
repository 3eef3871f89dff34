//! The inverse of the damped empirical Fisher matrix, applied to queries, block by block.
//!
//! For each block (a column, or all columns of a checkpoint, as [`Chosen`] says) with rows g_1 .. g_n: F = (1/n) sum g g^T,
//! lambda = damping * tr(F) / n, and a query q becomes (F + lambda I)^-1 q, or, where a block has more coordinates than
//! there are rows, its scores of all rows, as [`crate::dual`] tells. F is summed as [`crate::gram`] tells and kept
//! beside the store as [`crate::fisher_file`] tells. It is decomposed and solved in double precision: for one damping by
//! Cholesky's factor, for several by one reduction to a band that serves them all, [`crate::band`].

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use grass_core::parallel::Workers;
use grass_store::StoreReader;
use ndarray::{Array2, ArrayView2, ArrayViewMut3, Axis, s};

use crate::chosen::Chosen;
use crate::chunks::{check_queries, check_scorable, zeros};
use crate::error::{Error, Result};
use crate::fisher_file::SavedFisher;
use crate::inverse::{Decomposition, Inverses};
use crate::tiles::SymmetricTiles;
use crate::{dual, primal};

/// Memory for Fisher matrices and the rows that go into them, unless the caller says otherwise.
pub const DEFAULT_MEMORY: usize = 128 << 20;

/// Queries solved by one task.
pub(crate) const QUERIES_A_TASK: usize = 16;

/// One column of the store, or some neighbouring ones, as a block of the Fisher matrix.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// The numbers of the columns.
    pub(crate) columns: Range<usize>,
    pub(crate) name: String,
    pub(crate) coordinates: Range<usize>,
    /// By what its part of the scores is multiplied.
    pub(crate) weight: f64,
}

/// What all blocks of one call share.
pub(crate) struct Task<'a> {
    pub(crate) store: &'a StoreReader,
    chosen: &'a Chosen<'a>,
    /// How many rows the store has.
    pub(crate) rows: usize,
    pub(crate) dampings: &'a [f64],
    pub(crate) memory: usize,
    pub(crate) saved: SavedFisher,
    /// Whether a pass over the store has compared every row with its checksum.
    pub(crate) checked: AtomicBool,
    pub(crate) workers: &'a Workers,
}

/// In which precision the products of a Fisher matrix were summed, and those of its queries with rows are to be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Precision {
    Single,
    Double,
}

/// A decomposed matrix, with its diagonal and the ridge of each damping.
pub(crate) struct Damped {
    diagonal: Vec<f64>,
    /// n lambda.
    pub(crate) ridges: Vec<f64>,
    decomposition: Decomposition,
    precision: Precision,
}

/// A column's part of the queries of one damping, in double precision.
#[derive(Debug, Clone, PartialEq)]
pub struct DoubleQueries {
    /// The column's coordinates in a row of the store.
    pub coordinates: Range<usize>,
    /// The first result that it is part of; the others of its damping follow.
    pub first: usize,
    /// (F + lambda I)^-1 q times the block's weight, (n, coordinates) row-major.
    pub values: Vec<f64>,
}

/// Queries whose products with the stored rows are influence scores.
#[derive(Debug, Clone, PartialEq)]
pub struct Preconditioned {
    /// (F + lambda I)^-1 q times the block's weight, of every damping and query, (dampings * n, width of the store)
    /// row-major, the queries of one damping after those of another; zeros in the columns that are left out, or that
    /// `double` or `wide_scores` holds.
    pub queries: Vec<f32>,
    /// The same where single precision would not do, to be multiplied with the stored rows in double precision.
    pub double: Vec<DoubleQueries>,
    /// q^T (F + lambda I)^-1 g of every stored row g, (dampings * n, rows) row-major, summed over the columns that have
    /// more coordinates than the store has rows; empty if there are none.
    pub wide_scores: Vec<f64>,
}

/// Applies the damped inverses to queries, (n, width of the store) row-major, for every damping: the influence of a stored
/// row is its product with a result's query, plus its wide score.
///
/// **Error.** Let s be the smallest eigenvalue of F + lambda I of a column after it is scaled to ones on the diagonal, and
/// u the roundoff. Queries are large, 1 / lambda, where the rows hardly are, and so F and the queries are rounded there with
/// errors that count up to 1 / s times: the root mean square of the errors over the rows is about u / s of
/// sqrt(q^T (F + lambda I)^-1 q), which that of the scores reaches for queries in the span of the rows. In single
/// precision (u = 2^-24) a column is worked on as long as s >= 2^-11, which damping gives, or rows that span it. Else F is
/// summed again and the column multiplied in double precision (u = 2^-53), as long as s >= 2^-32; less is
/// [`Error::Singular`]. For queries (almost) wholly outside the span, whose scores are small, that is
/// much of the scores. s is known by inverse iteration, to a small factor.
///
/// The store is read as often as its Fisher matrices fill `memory` bytes, a block at least at a
/// time, and not at all where all of them were saved by an earlier call. A column with more coordinates than the store has
/// rows goes through the rows' inner products, in memory by rows, and reads the store in any case.
///
/// Beside queries and result, memory stays below 256 MiB and three Fisher matrices of `f32` of the widest block, with
/// [`DEFAULT_MEMORY`] or less. A result's bits depend on the rows, its query, its damping and whether there is one damping
/// or several, and on nothing else.
///
/// # Errors
/// [`Error::Queries`], [`Error::Damping`], [`Error::Unfinished`], [`Error::Empty`], [`Error::Singular`],
/// [`Error::NonFiniteRows`], [`Error::Memory`], [`Error::Store`], [`Error::Core`] when cancelled.
pub fn precondition<'a>(
    store: impl Into<Chosen<'a>>,
    queries: &[f32],
    dampings: &[f64],
    memory: usize,
    workers: &Workers,
) -> Result<Preconditioned> {
    let chosen = store.into();
    let task = Task::new(&chosen, dampings, memory, workers)?;
    let queries = matrix(task.store, queries)?;
    let (mut out, mut double) = (task.results(queries.nrows())?, Vec::new());
    let (wide, narrow) = task.blocks();
    for group in groups(narrow, memory, primal::bytes) {
        primal::precondition(&task, &group, queries, &mut out, &mut double)?;
    }
    let mut wide_scores = match wide.is_empty() {
        true => Array2::zeros((0, 0)),
        false => task.scores(queries.nrows())?,
    };
    for group in groups(wide, memory, |block| dual::bytes(task.rows, block)) {
        dual::add_scores(&task, &group, queries, &mut wide_scores)?;
    }
    Ok(Preconditioned {
        queries: out.into_raw_vec_and_offset().0,
        double,
        wide_scores: wide_scores.into_raw_vec_and_offset().0,
    })
}

/// (F + lambda I)^-1 q times the block's weight, rounded to single precision, (n, width of the store) row-major, of queries of
/// that shape: also in blocks with more coordinates than rows. Zeros in the columns that are left out, and in blocks where all
/// rows are zero.
///
/// Products of these with stored rows are influence scores, as exact as single precision lets them be: [`precondition`]
/// tells where [`crate::score`] does better. Memory is that of [`precondition`] too.
///
/// # Errors
/// Those of [`precondition`], and [`Error::NonFiniteQuery`].
pub fn precondition_queries<'a>(
    store: impl Into<Chosen<'a>>,
    queries: &[f32],
    damping: f64,
    workers: &Workers,
) -> Result<Vec<f32>> {
    let chosen = store.into();
    let dampings = [damping];
    let task = Task::new(&chosen, &dampings, DEFAULT_MEMORY, workers)?;
    check_queries(task.store.layout(), queries, workers)?;
    let queries = matrix(task.store, queries)?;
    let (mut out, mut double) = (task.results(queries.nrows())?, Vec::new());
    let (wide, narrow) = task.blocks();
    for group in groups(narrow, task.memory, primal::bytes) {
        primal::precondition(&task, &group, queries, &mut out, &mut double)?;
        for part in double.drain(..) {
            let mut columns = out.slice_mut(s![.., part.coordinates.clone()]);
            let rows = part.values.chunks_exact(part.coordinates.len());
            for (mut out, values) in columns.axis_iter_mut(Axis(0)).zip(rows) {
                for (out, value) in out.iter_mut().zip(values) {
                    *out = *value as f32;
                }
            }
        }
    }
    for group in groups(wide, task.memory, |block| dual::bytes(task.rows, block)) {
        dual::precondition(&task, &group, queries, &mut out)?;
    }
    Ok(out.into_raw_vec_and_offset().0)
}

/// Queries by rows.
fn matrix<'a>(store: &StoreReader, queries: &'a [f32]) -> Result<ArrayView2<'a, f32>> {
    let width = store.layout().width();
    let count = queries.len() / width;
    match ArrayView2::from_shape((count, width), queries) {
        Ok(rows) if count > 0 && rows.len() == queries.len() => Ok(rows),
        _ => {
            let got = format!("{} numbers", queries.len());
            Err(Error::Queries { width, got })
        }
    }
}

/// Cuts blocks into groups that fit the memory, each of at least one block.
pub(crate) fn groups(
    blocks: Vec<Block>,
    memory: usize,
    bytes: impl Fn(&Block) -> usize,
) -> Vec<Vec<Block>> {
    let mut groups: Vec<Vec<Block>> = Vec::new();
    let mut left = 0;
    for block in blocks {
        let needed = bytes(&block);
        match groups.last_mut() {
            Some(group) if needed <= left => {
                left -= needed;
                group.push(block);
            }
            _ => {
                left = memory.saturating_sub(needed);
                groups.push(vec![block]);
            }
        }
    }
    groups
}

impl<'a> Task<'a> {
    /// The work on a store, for dampings that are checked.
    pub(crate) fn new(
        chosen: &'a Chosen<'a>,
        dampings: &'a [f64],
        memory: usize,
        workers: &'a Workers,
    ) -> Result<Self> {
        let wrong = |damping: &&f64| !(**damping >= 0.0 && damping.is_finite());
        if let Some(damping) = dampings.iter().find(wrong) {
            let got = damping.to_string();
            return Err(Error::Damping { got });
        }
        if dampings.is_empty() {
            let got = "an empty list".to_owned();
            return Err(Error::Damping { got });
        }
        let store = chosen.store;
        check_scorable(store)?;
        Ok(Self {
            store,
            chosen,
            rows: store.rows() as usize,
            dampings,
            memory,
            saved: SavedFisher::new(store)?,
            checked: AtomicBool::new(false),
            workers,
        })
    }

    /// The blocks that count: those with more coordinates than there are rows, and the others.
    pub(crate) fn blocks(&self) -> (Vec<Block>, Vec<Block>) {
        let names = self.store.layout().columns();
        let blocks = self.chosen.blocks().map(|(columns, weight)| Block {
            name: match columns.len() {
                1 => names[columns.start].name.clone(),
                _ => {
                    let (first, last) = (&names[columns.start], &names[columns.end - 1]);
                    format!("{} to {}", first.name, last.name)
                }
            },
            coordinates: self.chosen.coordinates(&columns),
            columns,
            weight,
        });
        blocks.partition(|block| block.coordinates.len() > self.rows)
    }

    /// Room for so many preconditioned queries, for all dampings.
    fn results(&self, count: usize) -> Result<Array2<f32>> {
        self.room(count, self.store.layout().width())
    }

    /// Room for the scores of all rows for so many queries, for all dampings.
    pub(crate) fn scores(&self, count: usize) -> Result<Array2<f64>> {
        self.room(count, self.rows)
    }

    fn room<T: Clone + Default>(&self, count: usize, length: usize) -> Result<Array2<T>> {
        let dampings = self.dampings.len();
        let what = || format!("{count} preconditioned queries for {dampings} dampings");
        let hint = "give fewer queries or dampings at once";
        zeros((dampings * count, length), what, hint)
    }

    /// `gram` + n lambda I decomposed, for gram = sum g g^T or the rows' inner products, which
    /// have one trace, and every damping; `None` where all rows are zero in this block.
    pub(crate) fn decompose(
        &self,
        gram: SymmetricTiles,
        block: &Block,
        precision: Precision,
    ) -> Result<Option<Damped>> {
        let trace = gram.trace();
        if !trace.is_finite() {
            return Err(Error::NonFiniteRows {
                column: block.name.clone(),
            });
        }
        if trace == 0.0 {
            return Ok(None);
        }
        let mut ridges = Vec::new();
        for damping in self.dampings {
            let ridge = damping * trace / self.rows as f64;
            if !ridge.is_finite() {
                let got = format!("{damping:e}, too large for column {:?}", block.name);
                return Err(Error::Damping { got });
            }
            ridges.push(ridge);
        }
        Ok(Some(Damped {
            diagonal: gram.diagonal().collect(),
            decomposition: Decomposition::new(gram, &ridges, self.workers)?,
            ridges,
            precision,
        }))
    }

    /// Refuses the first of the dampings with which a matrix has no inverse, if there is one.
    pub(crate) fn refuse(&self, block: &Block, singular: &[usize]) -> Result<()> {
        match singular.first() {
            Some(&number) => Err(Error::Singular {
                column: block.name.clone(),
                damping: self.dampings[number],
            }),
            None => Ok(()),
        }
    }
}

impl Precision {
    /// The smallest eigenvalue with which scores keep their digits, for a matrix with ones on its diagonal.
    fn smallest_eigenvalue(self) -> f64 {
        2f64.powi(match self {
            Self::Single => -11,
            Self::Double => -32,
        })
    }
}

impl Damped {
    /// The inverses for some of the dampings, as many as [`crate::inverse::batches`] gives, and the numbers of those for
    /// which the precision does not suffice.
    pub(crate) fn inverses(
        &self,
        numbers: &[usize],
        workers: &Workers,
    ) -> Result<(Inverses<'_>, Vec<usize>)> {
        let ridges: Vec<(usize, f64)> = numbers
            .iter()
            .map(|&number| (number, self.ridges[number]))
            .collect();
        let smallest = self.precision.smallest_eigenvalue();
        let inverses = self
            .decomposition
            .inverses(&ridges, &self.diagonal, smallest, workers)?;
        let kept = inverses.numbers();
        let left = numbers.iter().filter(|number| !kept.contains(number));
        let left = left.copied().collect();
        Ok((inverses, left))
    }
}

/// The rows of `out`, (dampings * n, any), by dampings and queries.
pub(crate) fn by_damping<T>(
    out: &mut Array2<T>,
    dampings: usize,
    columns: Range<usize>,
) -> ArrayViewMut3<'_, T> {
    let shape = (dampings, out.nrows() / dampings, out.ncols());
    let Ok(out) = out.view_mut().into_shape_with_order(shape) else {
        unreachable!("a matrix in one piece has any shape of as many numbers");
    };
    out.slice_move(s![.., .., columns])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_fill_the_memory_and_keep_the_order() {
        let block = |width| Block {
            columns: 0..1,
            weight: 1.0,
            name: String::new(),
            coordinates: 0..width,
        };
        let blocks = [3, 4, 3, 20, 1, 9].map(block).to_vec();
        let groups = groups(blocks, 10, |block| block.coordinates.len());
        let widths: Vec<Vec<usize>> = groups
            .iter()
            .map(|group| group.iter().map(|block| block.coordinates.len()).collect())
            .collect();
        assert_eq!(widths, [vec![3, 4, 3], vec![20], vec![1, 9]]);
    }
}

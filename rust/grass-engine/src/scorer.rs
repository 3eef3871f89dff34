//! Scores of all stored rows for some queries, in one pass over the store.

use std::ops::Range;
use std::str::FromStr;

use grass_core::parallel::Workers;
use grass_store::StoreReader;
use ndarray::{Array2, ArrayView2, ArrayViewMut1, s};

use crate::chunks::{RowWindow, check_scorable, zeros};
use crate::error::{Error, Result};
use crate::gemm::{DEPTH, add_long_product};
use crate::preconditioner::precondition;
use crate::topk::TopK;

/// How a query is compared with a stored row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// q^T (F + lambda I)^-1 g, summed over columns: see [`precondition`].
    Influence,
    /// q^T g of the whole rows.
    GradDot,
    /// The cosine of the whole rows; 0 where one of them is zero.
    GradCos,
}

impl FromStr for Method {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "influence" => Ok(Self::Influence),
            "graddot" => Ok(Self::GradDot),
            "gradcos" => Ok(Self::GradCos),
            _ => Err(Error::Method {
                got: name.to_owned(),
            }),
        }
    }
}

/// Scores of training examples for queries.
#[derive(Debug, Clone, PartialEq)]
pub enum Scores {
    /// All of them.
    All {
        /// One a row of the store, in its order.
        ids: Vec<u64>,
        /// (queries, rows) row-major.
        values: Vec<f32>,
    },
    /// The best of each query, best first, equal ones by smaller id; both (queries, k) row-major.
    Top {
        /// The training examples.
        ids: Vec<u64>,
        /// Their scores.
        values: Vec<f32>,
    },
}

/// Bytes of rows that one task scores, as far as the next constant allows.
const BYTES_A_TASK: u64 = 4 << 20;

/// Fewest and most rows of one task: each task reads all queries once, so a few rows share that.
const ROWS_A_TASK: (u64, u64) = (8, 64);

/// Bytes of scores that wait to be ranked when only the best are kept.
const UNRANKED_BYTES: u64 = 64 << 20;

/// Scores every row of `store` for queries of shape (n, width) row-major.
///
/// `damping` and `memory` (see [`precondition`]) count for [`Method::Influence`] alone.
/// The scores equal the formulas in double precision, rounded to `f32` at the end; their bits do
/// not depend on the other queries, the number of threads, the memory, or the cut of the store.
///
/// # Errors
/// [`Error::Queries`], [`Error::NonFiniteQuery`], [`Error::Damping`], [`Error::TopK`],
/// [`Error::Unfinished`], [`Error::Empty`], [`Error::NonFiniteScore`], those of [`precondition`],
/// and [`Error::Store`] with the damaged chunk, as each is compared with its checksum.
pub fn score(
    store: &StoreReader,
    queries: &[f32],
    method: Method,
    damping: f64,
    top_k: Option<usize>,
    memory: usize,
    workers: &Workers,
) -> Result<Scores> {
    check_scorable(store)?;
    let rows = store.rows() as usize;
    if !(damping >= 0.0 && damping.is_finite()) && method == Method::Influence {
        let got = damping.to_string();
        return Err(Error::Damping { got });
    }
    if let Some(k) = top_k.filter(|k| !(1..=rows).contains(k)) {
        let got = k.to_string();
        return Err(Error::TopK { rows, got });
    }
    let mut queries = checked_queries(store, queries, workers)?;
    let ids = store.ids(workers)?;
    if method == Method::Influence {
        precondition(store, &mut queries, damping, memory, workers)?;
    }
    let scorer = Scorer {
        store,
        queries: queries.view(),
        norms: match method {
            Method::GradCos => Some(norms(queries.view(), workers)?),
            Method::Influence | Method::GradDot => None,
        },
        ids: &ids,
        workers,
    };
    match top_k {
        None => {
            let values = scorer.all()?;
            Ok(Scores::All { ids, values })
        }
        Some(k) => scorer.top(k),
    }
}

fn checked_queries(store: &StoreReader, queries: &[f32], workers: &Workers) -> Result<Array2<f64>> {
    let layout = store.layout();
    let width = layout.width();
    let count = queries.len() / width;
    if count == 0 || count * width != queries.len() {
        let got = format!("{} numbers", queries.len());
        return Err(Error::Queries { width, got });
    }
    let what = || format!("{count} queries in double precision");
    let hint = "give fewer queries at once";
    let mut checked = zeros((count, width), what, hint)?;
    let rows = checked.rows_mut().into_iter();
    for (query, (mut out, row)) in rows.zip(queries.chunks_exact(width)).enumerate() {
        workers.check()?;
        if let Some(coordinate) = row.iter().position(|value| !value.is_finite()) {
            let columns = layout.columns().iter().enumerate();
            let mut holding =
                columns.filter(|(index, _)| layout.coordinates(*index).contains(&coordinate));
            return Err(Error::NonFiniteQuery {
                query,
                column: holding
                    .next()
                    .map_or_else(String::new, |(_, column)| column.name.clone()),
                value: row[coordinate],
            });
        }
        for (out, &value) in out.iter_mut().zip(row) {
            *out = f64::from(value);
        }
    }
    Ok(checked)
}

fn norms(rows: ArrayView2<'_, f64>, workers: &Workers) -> Result<Vec<f64>> {
    let norms = rows.rows().into_iter().map(|row| {
        workers.check()?;
        Ok(row.dot(&row).sqrt())
    });
    norms.collect()
}

/// Where the scores of one query and some rows go.
type Slots<'a> = &'a mut [f32];

/// One pass over the store.
struct Scorer<'a> {
    store: &'a StoreReader,
    /// (n, width), preconditioned where the method says so.
    queries: ArrayView2<'a, f64>,
    /// Lengths of the queries, where scores are cosines.
    norms: Option<Vec<f64>>,
    /// Ids of the store's rows.
    ids: &'a [u64],
    workers: &'a Workers,
}

impl Scorer<'_> {
    /// The scores of all rows, (queries, rows) row-major.
    fn all(&self) -> Result<Vec<f32>> {
        let (count, rows) = (self.queries.nrows(), self.ids.len());
        let mut values = zeros(
            (count, rows),
            || format!("all scores of {count} queries and {rows} rows"),
            "keep only the best with top_k, or give fewer queries at once",
        )?;
        let mut window = RowWindow::new(self.store);
        let mut slots: Vec<Slots<'_>> = values
            .rows_mut()
            .into_iter()
            .filter_map(ArrayViewMut1::into_slice)
            .collect();
        for step in self.steps(u64::MAX) {
            self.score_rows(&mut window, step, &mut slots)?;
        }
        Ok(values.into_raw_vec_and_offset().0)
    }

    /// The `k` best rows of each query.
    fn top(&self, k: usize) -> Result<Scores> {
        let count = self.queries.nrows();
        let mut best: Vec<TopK> = (0..count).map(|_| TopK::new(k)).collect();
        let mut window = RowWindow::new(self.store);
        let most = (UNRANKED_BYTES / (count as u64 * size_of::<f32>() as u64)).max(1);
        for step in self.steps(most) {
            let ids = &self.ids[step.start as usize..step.end as usize];
            let mut values = vec![0f32; count * ids.len()];
            let mut slots = values.chunks_exact_mut(ids.len()).collect();
            self.score_rows(&mut window, step, &mut slots)?;
            let ranked = best.iter_mut().zip(values.chunks_exact(ids.len()));
            self.workers.for_each(ranked, |(best, values)| {
                for (&value, &id) in values.iter().zip(ids) {
                    best.push(value, id);
                }
                Ok::<(), Error>(())
            })?;
        }
        let (mut ids, mut values) = (Vec::new(), Vec::new());
        for best in best {
            self.workers.check()?;
            for (id, value) in best.into_sorted() {
                ids.push(id);
                values.push(value);
            }
        }
        Ok(Scores::Top { ids, values })
    }

    /// Rows of one task: from the length of a row alone.
    fn task_rows(&self) -> u64 {
        let fitting = BYTES_A_TASK / self.store.layout().row_bytes() as u64;
        fitting.clamp(ROWS_A_TASK.0, ROWS_A_TASK.1)
    }

    /// Ranges of rows whose tasks run together, of about `most` rows at most.
    fn steps(&self, most: u64) -> Vec<Range<u64>> {
        let unit = self.task_rows();
        let rows = 0..self.ids.len() as u64;
        let steps = RowWindow::steps(self.store, rows, unit).into_iter();
        let length = unit * (most / unit).max(1);
        steps
            .flat_map(|step| {
                let starts =
                    (step.start..step.end).step_by(usize::try_from(length).unwrap_or(usize::MAX));
                starts.map(move |start| start..step.end.min(start.saturating_add(length)))
            })
            .collect()
    }

    /// Scores some rows into the first slots of every query, and takes those slots off.
    fn score_rows<'s>(
        &self,
        window: &mut RowWindow<'_>,
        rows: Range<u64>,
        slots: &mut Vec<Slots<'s>>,
    ) -> Result<()> {
        window.cover(rows.clone(), self.workers)?;
        let unit = self.task_rows();
        let tasks = (rows.start..rows.end).step_by(unit as usize).map(|start| {
            let rows = start..rows.end.min(start + unit);
            let count = (rows.end - rows.start) as usize;
            let taken: Vec<Slots<'s>> = slots
                .iter_mut()
                .filter_map(|slots| slots.split_off_mut(..count))
                .collect();
            (rows, taken)
        });
        let tasks: Vec<(Range<u64>, Vec<Slots<'s>>)> = tasks.collect();
        let window = &*window;
        self.workers
            .for_each(tasks, |(rows, slots)| self.score_task(window, rows, slots))
    }

    fn score_task(
        &self,
        window: &RowWindow<'_>,
        rows: Range<u64>,
        slots: Vec<Slots<'_>>,
    ) -> Result<()> {
        let layout = self.store.layout();
        let count = (rows.end - rows.start) as usize;
        let mut sums = Array2::zeros((self.queries.nrows(), count));
        let mut squares = vec![0f64; count];
        let mut decoded = Array2::zeros((count, DEPTH.min(layout.width())));
        for start in (0..layout.width()).step_by(DEPTH) {
            let coordinates = start..layout.width().min(start + DEPTH);
            let mut part = decoded.slice_mut(s![.., ..coordinates.len()]);
            window.decode_here(rows.start, coordinates.clone(), part.view_mut());
            if self.norms.is_some() {
                for (square, values) in squares.iter_mut().zip(part.rows()) {
                    *square += values.dot(&values);
                }
            }
            add_long_product(
                sums.view_mut(),
                1.0,
                self.queries.slice(s![.., coordinates]),
                part.t(),
                self.workers,
            )?;
        }
        let first = rows.start as usize;
        for (query, (slots, sums)) in slots.into_iter().zip(sums.rows()).enumerate() {
            for (index, (slot, &sum)) in slots.iter_mut().zip(&sums).enumerate() {
                let value = match &self.norms {
                    None => sum,
                    Some(norms) => cosine(sum, norms[query], squares[index].sqrt()),
                };
                *slot = value as f32;
                if !slot.is_finite() {
                    return Err(Error::NonFiniteScore {
                        id: self.ids[first + index],
                        query,
                        value,
                    });
                }
            }
        }
        Ok(())
    }
}

fn cosine(product: f64, left: f64, right: f64) -> f64 {
    match left == 0.0 || right == 0.0 {
        true => 0.0,
        false => product / left / right,
    }
}

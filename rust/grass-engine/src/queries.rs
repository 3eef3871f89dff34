//! Queries as the kernels take them: checked, preconditioned, scaled, and laid out for the numbers of the store.
//!
//! Rows of floats are multiplied as floats, and so are all rows for influence: there the largest coordinates of a query
//! are those that the rows hardly have, and steps of their size would lose the rest. For the other methods a wide
//! column of int8 rows is multiplied in whole numbers: the query's part
//! is rounded to whole numbers from -127 to 127 times one scale s, its largest magnitude over 127, and the product is
//! scale of the row * s * whole product. The rounding of a coordinate is at most s / 2 and spreads evenly, so the score
//! errs by at most |g|_1 s / 2 a column, with a standard deviation of about |g| s / sqrt(12), where g is the row as
//! stored. Columns of fewer than 128 coordinates, where that would not be faster, are multiplied as floats.

use std::borrow::Cow;
use std::ops::Range;

use grass_core::dot::{
    self, Checksum, FLOAT_RUN, Float, Int8Tile, Lanes, Numbers, Rows, TILE, add_float_products,
    add_int8_products, lay_out_floats, lay_out_int8,
};
use grass_core::parallel::Workers;
use grass_core::simd::Path;
use grass_store::{Dtype, Layout};
use ndarray::{Array1, aview1};

use crate::chosen::Chosen;
use crate::chunks::check_queries;
use crate::error::{Error, Result};
use crate::preconditioner::{DEFAULT_MEMORY, DoubleQueries, Preconditioned, precondition};
use crate::runs::{Run, Runs};
use crate::scorer::Method;
use crate::stored_rows::StoredRows;

/// Bytes of queries that are laid out ahead; more are laid out anew for every chunk.
const AHEAD_BYTES: usize = 64 << 20;

/// Most queries whose products a checksum is taken beside: those of four take longer so than one after the other.
const BESIDE: usize = 2;

/// Tiles of queries.
#[derive(Debug, Default)]
struct Tiles {
    lanes: Vec<Lanes>,
    numbers: Vec<Numbers>,
    number_sums: Vec<i32>,
}

/// What a thread needs to multiply, used again.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    tiles: Tiles,
    values: Vec<f32>,
    decoded: Vec<u8>,
    row_scales: Vec<f64>,
}

/// Queries checked, preconditioned, their norms known, laid out for the store's dtype.
#[derive(Debug)]
pub(crate) struct Prepared<'a> {
    layout: &'a Layout,
    /// (count, width), preconditioned where the method says so.
    values: Cow<'a, [f32]>,
    /// Columns of queries that are multiplied in double precision.
    double: Vec<DoubleQueries>,
    /// What preconditioning already knows of the scores, (count, rows), or empty: see [`Preconditioned`].
    wide_scores: Vec<f64>,
    /// How many rows the store has.
    rows: usize,
    /// The coordinates that count, in stretches.
    counted: Vec<Range<usize>>,
    /// The coordinates whose mean weighs a row.
    row_weights: Vec<usize>,
    /// How many were given: of more, `given` follow each other for every damping.
    given: usize,
    /// Powers of two by which the queries are multiplied, so that no product leaves the range of single precision
    /// which the score itself would not leave.
    factors: Vec<f32>,
    /// Lengths of the queries, where scores are cosines.
    norms: Option<Vec<f64>>,
    runs: Runs,
    /// (stretches of whole numbers, count): one step of a query's whole numbers, times its factor.
    scales: Vec<f64>,
    /// All tiles, where they are few.
    ahead: Option<Tiles>,
    path: Path,
}

impl<'a> Prepared<'a> {
    /// Prepares queries of shape (n, width) row-major; `dampings` count for [`Method::Influence`] alone, and give n
    /// queries each, one damping after the other.
    ///
    /// # Errors
    /// [`Error::Queries`], [`Error::NonFiniteQuery`], [`Error::Damping`], those of [`precondition`].
    pub(crate) fn new(
        chosen: &'a Chosen<'a>,
        queries: &'a [f32],
        method: Method,
        dampings: &[f64],
        workers: &Workers,
    ) -> Result<Self> {
        let layout = chosen.store.layout();
        if method == Method::Influence {
            let wrong = |damping: &&f64| !(**damping >= 0.0 && damping.is_finite());
            if let Some(damping) = dampings.iter().find(wrong) {
                let got = damping.to_string();
                return Err(Error::Damping { got });
            }
        }
        check_queries(layout, queries, workers)?;
        let given = queries.len() / layout.width();
        let (values, double, wide_scores) = match method {
            Method::Influence => {
                let Preconditioned {
                    queries,
                    double,
                    wide_scores,
                } = precondition(chosen.clone(), queries, dampings, DEFAULT_MEMORY, workers)?;
                (Cow::Owned(queries), double, wide_scores)
            }
            Method::GradDot | Method::GradCos => {
                let weighted = chosen.weighted(queries);
                let values = weighted.map_or(Cow::Borrowed(queries), Cow::Owned);
                (values, Vec::new(), Vec::new())
            }
        };
        let path = Path::current();
        let (mut factors, mut norms) = (Vec::new(), Vec::new());
        for query in values.chunks_exact(layout.width()) {
            workers.check()?;
            factors.push(factor(query));
            if method == Method::GradCos {
                let squares = query.chunks(FLOAT_RUN).map(|part| dot::squares(path, part));
                norms.push(squares.sum::<f64>().sqrt());
            }
        }
        let mut prepared = Self {
            layout,
            values,
            double,
            wide_scores,
            rows: chosen.store.rows() as usize,
            counted: chosen.counted(),
            row_weights: chosen.row_weights(),
            given,
            factors,
            norms: (method == Method::GradCos).then_some(norms),
            runs: Runs::new(layout, method != Method::Influence),
            scales: Vec::new(),
            ahead: None,
            path,
        };
        prepared.find_scales(workers)?;
        prepared.lay_out_ahead(workers)?;
        Ok(prepared)
    }

    /// How many queries there are, those of all dampings.
    pub(crate) fn count(&self) -> usize {
        self.factors.len()
    }

    /// The number under which the caller gave a query.
    pub(crate) fn given(&self, query: usize) -> usize {
        query % self.given
    }

    /// How many queries were given.
    pub(crate) fn given_count(&self) -> usize {
        self.given
    }

    /// How a row is cut.
    pub(crate) fn runs(&self) -> &Runs {
        &self.runs
    }

    pub(crate) fn are_cosines(&self) -> bool {
        self.norms.is_some()
    }

    fn part(&self, query: usize, coordinates: &Range<usize>) -> &[f32] {
        let start = query * self.layout.width();
        &self.values[start + coordinates.start..start + coordinates.end]
    }

    fn find_scales(&mut self, workers: &Workers) -> Result<()> {
        let mut scales = Vec::new();
        for stretch in self.runs.wide() {
            workers.check()?;
            scales.extend(self.factors.iter().enumerate().map(|(query, &factor)| {
                f64::from(largest(self.part(query, &stretch.coordinates))) / 127.0
                    * f64::from(factor)
            }));
        }
        self.scales = scales;
        Ok(())
    }

    /// Tiles of some queries.
    fn tiles(queries: Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let end = queries.end;
        queries
            .step_by(TILE)
            .map(move |first| first..end.min(first + TILE))
    }

    fn lay_out_ahead(&mut self, workers: &Workers) -> Result<()> {
        let count = self.count();
        let (lanes, numbers, sums) = self.runs.totals();
        let bytes =
            (lanes * size_of::<Lanes>() + numbers * size_of::<Numbers>()).saturating_mul(count);
        if bytes > AHEAD_BYTES {
            return Ok(());
        }
        let mut all = Tiles {
            lanes: vec![Lanes::default(); lanes * count],
            numbers: vec![Numbers::default(); numbers * count],
            number_sums: vec![0; sums * count],
        };
        for run in self.runs.within(0..self.layout.width()) {
            workers.check()?;
            for tile in Self::tiles(0..count) {
                let place = self.place(&run, &tile);
                self.lay_out(&run, &tile, &mut all, place);
            }
        }
        self.ahead = Some(all);
        Ok(())
    }

    /// Where a tile lies among all: its blocks and its sums.
    fn place(&self, run: &Run<'_>, tile: &Range<usize>) -> (Range<usize>, Range<usize>) {
        let first = run.blocks_before * self.count() + run.blocks * tile.start;
        let sums = run.runs_before * self.count();
        (
            first..first + run.blocks * tile.len(),
            sums + tile.start..sums + tile.end,
        )
    }

    fn lay_out(
        &self,
        run: &Run<'_>,
        tile: &Range<usize>,
        tiles: &mut Tiles,
        (blocks, sums): (Range<usize>, Range<usize>),
    ) {
        for (index, query) in tile.clone().enumerate() {
            let values = self.part(query, &run.coordinates);
            let (place, factor) = ((index, tile.len()), self.factors[query]);
            match run.stretch.column {
                None => lay_out_floats(values, factor, place, &mut tiles.lanes[blocks.clone()]),
                Some(_) => {
                    let scale = self.scales[run.stretch.wide * self.count() + query];
                    let inverse = match scale == 0.0 {
                        true => 0.0,
                        false => f64::from(factor) / scale,
                    };
                    let numbers = &mut tiles.numbers[blocks.clone()];
                    tiles.number_sums[sums.start + index] =
                        lay_out_int8(values, inverse, place, numbers);
                }
            }
        }
    }

    /// The checksum of `bytes`, to be taken beside their products, where that costs least: where the products are those
    /// of few queries, with floats.
    pub(crate) fn checksum<'b>(&self, bytes: &'b [u8]) -> Option<Checksum<'b>> {
        match self.count() <= BESIDE && self.runs.wide().next().is_none() {
            true => Checksum::beside_products(self.path, bytes),
            false => None,
        }
    }

    /// `sums += rows * queries` over coordinates that begin and end where runs do. The sums of a tile of queries are
    /// (rows, queries of the tile) row-major, one tile after the other. A checksum goes on beside the products.
    ///
    /// # Errors
    /// [`Error::Core`] when cancelled.
    pub(crate) fn multiply(
        &self,
        rows: StoredRows<'_>,
        coordinates: Range<usize>,
        queries: Range<usize>,
        sums: &mut [f64],
        (scratch, mut checksum): (&mut Scratch, Option<&mut Checksum<'_>>),
        workers: &Workers,
    ) -> Result<()> {
        if !self.double.is_empty() {
            let coordinates = coordinates.clone();
            self.multiply_double(rows, coordinates, queries.clone(), sums, scratch, workers)?;
        }
        let Scratch {
            tiles,
            values,
            decoded,
            row_scales,
        } = scratch;
        for run in self.runs.within(coordinates) {
            workers.check()?;
            let length = run.coordinates.len();
            let mut numbers = rows.part(self.layout, &run.coordinates);
            let mut float = match self.layout.dtype() {
                Dtype::Float32 | Dtype::Int8 => Float::Float32,
                Dtype::Float16 => Float::Float16,
                Dtype::Bfloat16 => Float::Bfloat16,
            };
            if let Some(column) = run.stretch.column {
                row_scales.clear();
                row_scales.extend((0..rows.count).map(|row| {
                    f64::from(self.layout.scale(&rows.scales[row * rows.stride..], column))
                }));
            } else if self.layout.dtype() == Dtype::Int8 {
                decoded.clear();
                for row in 0..rows.count {
                    rows.decode(self.layout, row, run.coordinates.clone(), values);
                    decoded.extend(values.iter().flat_map(|value| value.to_le_bytes()));
                }
                float = Float::Float32;
                numbers = Rows {
                    bytes: decoded,
                    stride: length * size_of::<f32>(),
                    count: rows.count,
                };
            }
            let mut first = 0;
            for tile in Self::tiles(queries.clone()) {
                let (tiles, (blocks, number_sums)) = match &self.ahead {
                    Some(all) => (all, self.place(&run, &tile)),
                    None => {
                        let blocks = 0..run.blocks * tile.len();
                        match run.stretch.column {
                            None => tiles.lanes.resize(blocks.end, Lanes::default()),
                            Some(_) => tiles.numbers.resize(blocks.end, Numbers::default()),
                        }
                        tiles.number_sums.resize(tile.len(), 0);
                        let place = (blocks, 0..tile.len());
                        self.lay_out(&run, &tile, tiles, place.clone());
                        (&*tiles, place)
                    }
                };
                let sums = &mut sums[first..first + rows.count * tile.len()];
                first += sums.len();
                match run.stretch.column {
                    None => {
                        let lanes = &tiles.lanes[blocks];
                        let checksum = checksum.as_deref_mut();
                        add_float_products(
                            self.path, float, numbers, length, lanes, sums, checksum,
                        );
                    }
                    Some(_) => {
                        let scales = run.stretch.wide * self.count();
                        let scales = &self.scales[scales + tile.start..scales + tile.end];
                        let tile = Int8Tile {
                            numbers: &tiles.numbers[blocks],
                            sums: &tiles.number_sums[number_sums],
                        };
                        let scales = (row_scales.as_slice(), scales);
                        add_int8_products(self.path, numbers, length, tile, scales, sums);
                    }
                }
            }
        }
        Ok(())
    }

    /// The part of [`Self::multiply`] for columns of queries in double precision.
    fn multiply_double(
        &self,
        rows: StoredRows<'_>,
        coordinates: Range<usize>,
        queries: Range<usize>,
        sums: &mut [f64],
        scratch: &mut Scratch,
        workers: &Workers,
    ) -> Result<()> {
        let (count, given) = (rows.count, queries.clone());
        // Cut where runs end, as the products of long rows are.
        for run in self.runs.within(coordinates) {
            for part in &self.double {
                let start = run.coordinates.start.max(part.coordinates.start);
                let end = run.coordinates.end.min(part.coordinates.end);
                let width = part.coordinates.len();
                let last = part.first + part.values.len() / width;
                let queries = given.start.max(part.first)..given.end.min(last);
                if start >= end || queries.is_empty() {
                    continue;
                }
                for row in 0..count {
                    workers.check()?;
                    rows.decode(self.layout, row, start..end, &mut scratch.values);
                    let values: Array1<f64> =
                        scratch.values.iter().copied().map(f64::from).collect();
                    for query in queries.clone() {
                        let first = (query - part.first) * width + start - part.coordinates.start;
                        let query_values = &part.values[first..first + values.len()];
                        // The sums of a tile are (rows, queries of the tile).
                        let index = query - given.start;
                        let tile = index / TILE * TILE;
                        let place = row * TILE.min(given.len() - tile) + index - tile;
                        sums[tile * count + place] +=
                            f64::from(self.factors[query]) * values.dot(&aview1(query_values));
                    }
                }
            }
        }
        Ok(())
    }

    /// Adds the squares of some coordinates, as far as they count, to each row's sum.
    pub(crate) fn add_squares(
        &self,
        rows: StoredRows<'_>,
        coordinates: Range<usize>,
        squares: &mut [f64],
        scratch: &mut Scratch,
    ) {
        for counted in &self.counted {
            let start = coordinates.start.max(counted.start);
            let end = coordinates.end.min(counted.end);
            for (row, square) in squares.iter_mut().enumerate() {
                for start in (start..end).step_by(FLOAT_RUN) {
                    let part = start..end.min(start + FLOAT_RUN);
                    rows.decode(self.layout, row, part, &mut scratch.values);
                    *square += dot::squares(self.path, &scratch.values);
                }
            }
        }
    }

    /// Whether rows have weights.
    pub(crate) fn weigh_rows(&self) -> bool {
        !self.row_weights.is_empty()
    }

    /// Adds to each row's weight what is in some coordinates.
    pub(crate) fn add_row_weights(
        &self,
        rows: StoredRows<'_>,
        coordinates: &Range<usize>,
        weights: &mut [f64],
        scratch: &mut Scratch,
    ) {
        let count = self.row_weights.len() as f64;
        let held = self.row_weights.iter();
        for &coordinate in held.filter(|coordinate| coordinates.contains(coordinate)) {
            for (row, weight) in weights.iter_mut().enumerate() {
                let part = coordinate..coordinate + 1;
                rows.decode(self.layout, row, part, &mut scratch.values);
                *weight += f64::from(scratch.values[0]) / count;
            }
        }
    }

    /// Adds to scores of rows from `first` on, (queries, count) row-major, what is known of them.
    pub(crate) fn add_wide_scores(&self, first: u64, count: usize, scores: &mut [f32]) {
        let known = self.wide_scores.chunks_exact(self.rows);
        for (scores, known) in scores.chunks_exact_mut(count).zip(known) {
            for (score, known) in scores.iter_mut().zip(&known[first as usize..]) {
                *score = (f64::from(*score) + known) as f32;
            }
        }
    }

    /// The score of a row whose product with a query and whose own squares have been summed.
    pub(crate) fn score(&self, query: usize, sum: f64, squares: f64) -> f32 {
        // The inverse of a power of two is exact, and so is this division.
        let product = sum * (1.0 / f64::from(self.factors[query]));
        let value = match &self.norms {
            None => product,
            Some(norms) if norms[query] == 0.0 || squares == 0.0 => 0.0,
            Some(norms) => product / norms[query] / squares.sqrt(),
        };
        value as f32
    }
}

fn largest(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |largest, value| largest.max(value.abs()))
}

/// The power of two that brings a query's largest magnitude to about 1.
fn factor(query: &[f32]) -> f32 {
    let exponent = largest(query).to_bits() >> 23;
    f32::from_bits(254u32.saturating_sub(exponent).clamp(1, 254) << 23)
}

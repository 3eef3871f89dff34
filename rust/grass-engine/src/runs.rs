//! How a row is cut into the runs that go to the kernels: by the store's layout alone.

use std::ops::Range;

use grass_core::dot::{FLOAT_RUN, INT8_RUN, LANES, NUMBERS};
use grass_store::{Dtype, Layout};

/// Fewest coordinates of an int8 column that is multiplied in whole numbers.
const WIDE: usize = 128;

/// A stretch of a row that is multiplied in one way: everything, or a column.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(crate) coordinates: Range<usize>,
    /// The column whose scale applies, where its whole numbers are multiplied.
    pub(crate) column: Option<usize>,
    /// Blocks of one query in earlier stretches of this way, and runs.
    blocks: usize,
    runs: usize,
    /// How many stretches of whole numbers come earlier.
    pub(crate) wide: usize,
}

impl Stretch {
    /// Coordinates of a run, and of a block of one query.
    fn lengths(&self) -> (usize, usize) {
        match self.column {
            Some(_) => (INT8_RUN, NUMBERS),
            None => (FLOAT_RUN, LANES),
        }
    }
}

/// A run of coordinates that goes to the kernels at once.
pub(crate) struct Run<'a> {
    pub(crate) stretch: &'a Stretch,
    pub(crate) coordinates: Range<usize>,
    /// Blocks of one query that it takes, and those before it; runs before it.
    pub(crate) blocks: usize,
    pub(crate) blocks_before: usize,
    pub(crate) runs_before: usize,
}

/// The runs of a row.
#[derive(Debug)]
pub(crate) struct Runs {
    stretches: Vec<Stretch>,
}

impl Runs {
    /// Cuts the coordinates of a row. `whole_numbers`: wide int8 columns are multiplied as they are stored, by queries
    /// that are rounded to whole numbers too.
    pub(crate) fn new(layout: &Layout, whole_numbers: bool) -> Self {
        let mut stretches: Vec<Stretch> = Vec::new();
        // Of floats and of whole numbers: blocks and runs so far.
        let mut before = [(0, 0); 2];
        let mut wide = 0;
        let mut add = |coordinates: Range<usize>, column: Option<usize>| {
            let (blocks, runs) = &mut before[usize::from(column.is_some())];
            let stretch = Stretch {
                coordinates,
                column,
                blocks: *blocks,
                runs: *runs,
                wide,
            };
            let (longest, block) = stretch.lengths();
            *blocks += stretch.coordinates.len().div_ceil(block);
            *runs += stretch.coordinates.len().div_ceil(longest);
            wide += usize::from(column.is_some());
            stretches.push(stretch);
        };
        let mut start = 0;
        if whole_numbers && layout.dtype() == Dtype::Int8 {
            for column in 0..layout.columns().len() {
                let coordinates = layout.coordinates(column);
                if coordinates.len() >= WIDE {
                    if start < coordinates.start {
                        add(start..coordinates.start, None);
                    }
                    start = coordinates.end;
                    add(coordinates, Some(column));
                }
            }
        }
        if start < layout.width() {
            add(start..layout.width(), None);
        }
        Self { stretches }
    }

    /// The stretches that are multiplied in whole numbers.
    pub(crate) fn wide(&self) -> impl Iterator<Item = &Stretch> {
        self.stretches
            .iter()
            .filter(|stretch| stretch.column.is_some())
    }

    /// Blocks of floats and of whole numbers that a query takes, and runs of whole numbers.
    pub(crate) fn totals(&self) -> (usize, usize, usize) {
        let (mut lanes, mut numbers, mut runs) = (0, 0, 0);
        for stretch in &self.stretches {
            let (longest, block) = stretch.lengths();
            let length = stretch.coordinates.len();
            match stretch.column {
                None => lanes += length.div_ceil(block),
                Some(_) => {
                    numbers += length.div_ceil(block);
                    runs += length.div_ceil(longest);
                }
            }
        }
        (lanes, numbers, runs)
    }

    /// The runs of some coordinates, which begin and end where runs do.
    pub(crate) fn within(&self, coordinates: Range<usize>) -> impl Iterator<Item = Run<'_>> {
        let first = self
            .stretches
            .partition_point(|stretch| stretch.coordinates.end <= coordinates.start);
        let Range { start, end } = coordinates;
        self.stretches[first..]
            .iter()
            .take_while(move |stretch| stretch.coordinates.start < end)
            .flat_map(move |stretch| {
                let (longest, block) = stretch.lengths();
                let begin = start.max(stretch.coordinates.start);
                let last = end.min(stretch.coordinates.end);
                (begin..last).step_by(longest).map(move |begin| {
                    let coordinates = begin..last.min(begin + longest);
                    let before = begin - stretch.coordinates.start;
                    Run {
                        stretch,
                        blocks: coordinates.len().div_ceil(block),
                        blocks_before: stretch.blocks + before / block,
                        runs_before: stretch.runs + before / longest,
                        coordinates,
                    }
                })
            })
    }

    /// The coordinates of a row, cut where runs end into parts whose numbers take about `bytes` bytes.
    pub(crate) fn parts(
        &self,
        layout: &Layout,
        bytes: usize,
    ) -> impl Iterator<Item = Range<usize>> {
        let width = layout.width();
        let mut start = 0;
        let runs = self.within(0..width);
        runs.filter_map(move |run| {
            let part = start..run.coordinates.end;
            let long = layout.number_bytes(part.clone()).len() >= bytes;
            (long || part.end == width).then(|| {
                start = part.end;
                part
            })
        })
    }
}

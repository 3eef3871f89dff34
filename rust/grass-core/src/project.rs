//! The one loop behind every projection: rows x coordinate segments, shared by threads.
//!
//! A projection is a sum over segments of coordinates. Each segment is summed on its own, then the
//! segments are added in order. The cut depends on the structure alone, so a row's result has the
//! same bits whatever the batch it came in and however many threads worked on it.

use std::ops::Range;

use crate::dtype::Rows;
use crate::error::Result;
use crate::parallel::Workers;
use crate::workspace::with_f32;

/// The most sums of a segment that are kept apart, 1 MiB a thread: a block of rows where k is small, else one row.
const BLOCK_SUMS: usize = 1 << 18;

/// The widest output whose sums are kept apart, 4 MiB a thread. Wider ones are one segment, summed in place.
pub(crate) const MOST_SUMS: usize = 1 << 20;

/// A linear map that can be applied to a range of coordinates at a time.
pub(crate) trait Projection: Sync {
    /// Coordinates of the input.
    fn input_dim(&self) -> usize;

    /// Coordinates of the output.
    fn output_dim(&self) -> usize;

    /// Coordinates a segment; a function of the structure alone.
    fn segment(&self) -> usize;

    /// The most rows that share what is generated for a tile.
    fn row_block(&self) -> usize;

    /// Rows that should share what is generated, rather than threads cut them into fewer.
    fn shared_rows(&self) -> usize {
        1
    }

    /// Arithmetic operations a row, to judge whether threads pay.
    fn operations(&self) -> usize;

    /// Adds the unscaled projection of coordinates `start..end` of rows `first..` to `out`, one output row a row.
    ///
    /// # Errors
    /// [`crate::Error::Interrupted`].
    fn accumulate(
        &self,
        rows: &dyn Rows,
        first: usize,
        start: usize,
        end: usize,
        out: &mut [f32],
        workers: &Workers,
    ) -> Result<()>;
}

/// `out (n, k) = scale * projection(rows (n, p))`.
///
/// # Errors
/// [`crate::Error::Interrupted`].
pub(crate) fn project(
    projection: &dyn Projection,
    rows: &dyn Rows,
    scale: f32,
    out: &mut [f32],
    workers: &Workers,
) -> Result<()> {
    let (p, k, n) = (
        projection.input_dim(),
        projection.output_dim(),
        rows.count(),
    );
    if n == 0 {
        return Ok(());
    }
    let workers = workers.for_operations(projection.operations().saturating_mul(n));
    let segments = if k > MOST_SUMS {
        1
    } else {
        p.div_ceil(projection.segment())
    };
    let bounds = |segment: usize| {
        let start = segment * projection.segment();
        let next = start + projection.segment();
        (start, if segment + 1 == segments { p } else { next })
    };
    let block = n
        .div_ceil(workers.threads())
        .max(projection.shared_rows())
        .min(projection.row_block())
        .min(BLOCK_SUMS / k)
        .max(1);
    if k > MOST_SUMS {
        return workers.for_each_chunk(out, block * k, |index, out| {
            out.fill(0.0);
            projection.accumulate(rows, index * block, 0, p, out, &workers)?;
            multiply(out, scale);
            Ok(())
        });
    }
    if segments == 1 || n.div_ceil(block) >= workers.threads() {
        return workers.for_each_chunk(out, block * k, |index, out| {
            with_f32(out.len(), |sums| {
                for segment in 0..segments {
                    let (start, end) = bounds(segment);
                    sums.fill(0.0);
                    projection.accumulate(rows, index * block, start, end, sums, &workers)?;
                    add(out, sums, segment);
                }
                multiply(out, scale);
                Ok(())
            })
        });
    }
    for (index, out) in out.chunks_mut(block * k).enumerate() {
        // As many at once as their sums have room for: threads wait for each other after each wave.
        let wave = (MOST_SUMS / out.len()).max(workers.threads());
        let wave = wave.min(segments);
        with_f32(wave * out.len(), |sums| {
            for first in (0..segments).step_by(wave) {
                let sums = &mut sums[..wave.min(segments - first) * out.len()];
                workers.for_each_chunk(sums, out.len(), |offset, sums| -> Result<()> {
                    let (start, end) = bounds(first + offset);
                    sums.fill(0.0);
                    projection.accumulate(rows, index * block, start, end, sums, &workers)
                })?;
                for (offset, sums) in sums.chunks(out.len()).enumerate() {
                    add(out, sums, first + offset);
                }
            }
            multiply(out, scale);
            Result::Ok(())
        })?;
    }
    Ok(())
}

/// The parts of `range` of `length` each, the last one perhaps shorter.
pub(crate) fn parts(range: Range<usize>, length: usize) -> impl Iterator<Item = Range<usize>> {
    let end = range.end;
    let starts = range.step_by(length);
    starts.map(move |start| start..end.min(start + length))
}

/// Adds the sums of segment number `segment`: the first ones are all there is so far.
fn add(out: &mut [f32], sums: &[f32], segment: usize) {
    if segment == 0 {
        out.copy_from_slice(sums);
        return;
    }
    for (total, sum) in out.iter_mut().zip(sums) {
        *total += sum;
    }
}

pub(crate) fn multiply(out: &mut [f32], scale: f32) {
    if scale != 1.0 {
        for value in out {
            *value *= scale;
        }
    }
}

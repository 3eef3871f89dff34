//! The one loop behind every projection: rows x coordinate segments, shared by threads.
//!
//! A projection is a sum over segments of coordinates. Each segment is summed on its own, then the
//! segments are added in order. The cut depends on the structure alone, so a row's result has the
//! same bits whatever the batch it came in and however many threads worked on it.

use crate::dtype::Rows;
use crate::error::Result;
use crate::parallel::Workers;

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
    let segments = p.div_ceil(projection.segment());
    let bounds = |segment: usize| {
        let start = segment * projection.segment();
        (start, p.min(start + projection.segment()))
    };
    let block = n
        .div_ceil(workers.threads())
        .clamp(1, projection.row_block());
    let blocks: Vec<_> = out.chunks_mut(block * k).enumerate().collect();
    if segments == 1 || blocks.len() >= workers.threads() {
        return workers.for_each(blocks, |(index, out)| {
            out.fill(0.0);
            let mut partial = vec![0.0; if segments > 1 { out.len() } else { 0 }];
            for segment in 0..segments {
                let (start, end) = bounds(segment);
                if segment == 0 {
                    projection.accumulate(rows, index * block, start, end, out, &workers)?;
                } else {
                    partial.fill(0.0);
                    projection.accumulate(
                        rows,
                        index * block,
                        start,
                        end,
                        &mut partial,
                        &workers,
                    )?;
                    add(out, &partial);
                }
            }
            multiply(out, scale);
            Ok(())
        });
    }
    for (index, out) in blocks {
        out.fill(0.0);
        let mut partials = vec![0.0; out.len() * workers.threads().min(segments)];
        let wave = partials.len() / out.len();
        for first in (0..segments).step_by(wave) {
            let count = wave.min(segments - first);
            let partials = &mut partials[..count * out.len()];
            partials.fill(0.0);
            let tasks = partials.chunks_mut(out.len()).enumerate().collect();
            workers.for_each(tasks, |(offset, partial)| {
                let (start, end) = bounds(first + offset);
                projection.accumulate(rows, index * block, start, end, partial, &workers)
            })?;
            for partial in partials.chunks(out.len()) {
                add(out, partial);
            }
        }
        multiply(out, scale);
    }
    Ok(())
}

fn add(out: &mut [f32], partial: &[f32]) {
    for (total, value) in out.iter_mut().zip(partial) {
        *total += value;
    }
}

pub(crate) fn multiply(out: &mut [f32], scale: f32) {
    if scale != 1.0 {
        for value in out {
            *value *= scale;
        }
    }
}

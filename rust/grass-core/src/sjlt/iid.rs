//! The iid kind: a bucket drawn for each coordinate.

use super::{SIGN_ALIGNMENT, Sjlt, TILE};
use crate::dtype::Rows;
use crate::error::Result;
use crate::parallel::Workers;
use crate::philox::{Stream, scale_word};
use crate::signs::fill_masks;
use crate::simd::Path;

/// Bucket within its draw, and number of the sign bit, of a coordinate.
pub(super) fn entry(sjlt: &Sjlt, draw: usize, coordinate: usize) -> (usize, usize) {
    let number = first_number(sjlt, draw) + coordinate;
    let bucket = sjlt
        .philox
        .draw(Stream::Bucket, sjlt.width() as u64, number as u64);
    (bucket as usize, number)
}

/// Number of the first coordinate's bucket and sign in a draw.
fn first_number(sjlt: &Sjlt, draw: usize) -> usize {
    draw * sjlt.input_dim.next_multiple_of(SIGN_ALIGNMENT)
}

/// Double words for the sign bits of a tile that does not begin at a block, and one more.
const SIGN_WORDS: usize = (TILE + SIGN_ALIGNMENT) / 64 + 1;

/// Adds coordinates `start..end` of rows `first..` to `out`, one row of buckets a row.
pub(super) fn accumulate(
    sjlt: &Sjlt,
    rows: &dyn Rows,
    first: usize,
    (start, end): (usize, usize),
    out: &mut [f32],
    workers: &Workers,
) -> Result<()> {
    let path = Path::current();
    let width = sjlt.width() as u64;
    let mut values = [0.0; TILE];
    let mut signs = [0; SIGN_WORDS];
    let mut masks = [0; TILE];
    let mut words = [0u64; TILE / 2 + 1];
    let mut buckets = [0usize; TILE];
    for start in (start..end).step_by(TILE) {
        workers.check()?;
        let len = TILE.min(end - start);
        for draw in 0..sjlt.nnz {
            let number = first_number(sjlt, draw) + start;
            sjlt.philox
                .fill_double_words(Stream::Bucket, number as u64 / 2, &mut words);
            for (i, bucket) in buckets[..len].iter_mut().enumerate() {
                let at = number % 2 + i;
                let word = (words[at / 2] >> (at % 2 * 32)) as u32;
                *bucket = draw * sjlt.width() + scale_word(word, width) as usize;
            }
            let base = number - number % 64;
            sjlt.philox
                .fill_double_words(Stream::Sign, base as u64 / 64, &mut signs);
            fill_masks(path, &mut masks[..len], &signs, number - base);
            for (row, out) in out.chunks_mut(sjlt.output_dim).enumerate() {
                let values = rows.tile(first + row, start, &mut values[..len]);
                for ((&value, &mask), &bucket) in values.iter().zip(&masks).zip(&buckets) {
                    out[bucket] += f32::from_bits(value.to_bits() ^ mask);
                }
            }
        }
    }
    Ok(())
}

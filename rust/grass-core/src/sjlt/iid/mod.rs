//! The iid kind: a bucket drawn for each coordinate.
//!
//! Many rows go through lanes: 16 rows side by side, so that a coordinate's bucket is one vector of 16 sums. Few rows
//! take their turns. Buckets and signs of a tile are drawn once for all of them.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use super::{ROWS, SIGN_ALIGNMENT, Sjlt};
use crate::dtype::Rows;
use crate::error::Result;
use crate::parallel::Workers;
use crate::philox::{Stream, scale_word};
use crate::signs::{fill_masks, with_sign};
use crate::simd::{Path, for_each_path, for_path};
use crate::workspace::with_f32;

/// Coordinates at a time.
const TILE: usize = 256;

/// Rows side by side.
const LANES: usize = 16;

/// The most groups of rows side by side.
const GROUPS: usize = ROWS / LANES;

/// Fewer rows than this take their turns.
const LEAST: usize = 6;

/// The most buckets that are worth 16 sums each: 2 MiB.
const MOST_BUCKETS: usize = 1 << 15;

/// Rows that take their turns together.
const TOGETHER: usize = 4;

/// Sums of one bucket, of rows side by side.
type Sums = [f32; LANES];

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

/// Buckets and signs of the coordinates of a tile.
struct Table {
    /// Words that are drawn, for either.
    words: [u64; TILE / 2 + 1],
    /// Buckets, after one of another tile where the first word is half used.
    buckets: [usize; TILE + 2],
    /// Masks of the signs.
    signs: [f32; TILE],
}

impl Table {
    /// Draws the buckets and signs of the `len` coordinates from `start` on.
    fn draw(
        &mut self,
        path: Path,
        sjlt: &Sjlt,
        draw: usize,
        (start, len): (usize, usize),
    ) -> (&[usize], &[f32]) {
        let number = first_number(sjlt, draw) + start;
        let (width, first) = (sjlt.width(), draw * sjlt.width());
        let lead = number % 2;
        if width as u64 > 1 << 32 {
            for (number, bucket) in (number as u64..).zip(&mut self.buckets[lead..lead + len]) {
                let drawn = sjlt.philox.draw_wide(Stream::Bucket, width as u64, number);
                *bucket = first + drawn as usize;
            }
        } else {
            let words = &mut self.words[..(lead + len).div_ceil(2)];
            sjlt.philox
                .fill_double_words(Stream::Bucket, number as u64 / 2, words);
            scale_words(path, &mut self.buckets, words, width as u64, first);
        }
        let words = &mut self.words[..(number % 64 + len).div_ceil(64) + 1];
        sjlt.philox
            .fill_double_words(Stream::Sign, number as u64 / 64, words);
        fill_masks(path, &mut self.signs[..len], words, number % 64);
        (&self.buckets[lead..lead + len], &self.signs[..len])
    }
}

for_each_path! {
    /// `first` plus the draws below `width` of both halves of every word.
    fn scale_words(buckets: &mut [usize], words: &[u64], width: u64, first: usize) = scale_words_body
}

#[inline(always)]
fn scale_words_body(buckets: &mut [usize], words: &[u64], width: u64, first: usize) {
    for (buckets, &word) in buckets.as_chunks_mut::<2>().0.iter_mut().zip(words) {
        buckets[0] = first + scale_word(word as u32, width) as usize;
        buckets[1] = first + scale_word((word >> 32) as u32, width) as usize;
    }
}

/// Adds coordinates `start..end` of rows `first..` to `out`, one row of buckets a row.
pub(super) fn accumulate(
    sjlt: &Sjlt,
    path: Path,
    rows: &dyn Rows,
    first: usize,
    (start, end): (usize, usize),
    out: &mut [f32],
    workers: &Workers,
) -> Result<()> {
    let k = sjlt.output_dim;
    let count = out.len() / k;
    let groups = if k <= MOST_BUCKETS {
        ((count + LANES - LEAST) / LANES).min(GROUPS)
    } else {
        0
    };
    let (grouped, rest) = out.split_at_mut((groups * LANES).min(count) * k);
    let next = first + grouped.len() / k;
    let mut table = Table {
        words: [0; TILE / 2 + 1],
        buckets: [0; TILE + 2],
        signs: [0.0; TILE],
    };
    let mut tiles = [[0.0; TILE]; LANES];
    let nothing = [0.0; TILE];
    with_f32(groups * k * LANES, |sums| {
        sums.fill(0.0);
        let (sums, _) = sums.as_chunks_mut::<LANES>();
        let whole: [[&[f32]; LANES]; GROUPS] = std::array::from_fn(|group| {
            std::array::from_fn(|lane| {
                let row = first + group * LANES + lane;
                if row < first + count {
                    rows.in_place(row, start, end - start)
                } else {
                    &[]
                }
            })
        });
        for tile in (start..end).step_by(TILE) {
            workers.check()?;
            let len = TILE.min(end - tile);
            for draw in 0..sjlt.nnz {
                let (buckets, signs) = table.draw(path, sjlt, draw, (tile, len));
                for (group, sums) in sums.chunks_exact_mut(k).enumerate() {
                    let from = first + group * LANES;
                    let lanes = from..next.min(from + LANES);
                    let mut sources = [&nothing[..len]; LANES];
                    let copies = lanes.clone().zip(&mut tiles).zip(&whole[group]);
                    for (source, ((row, copy), whole)) in sources.iter_mut().zip(copies) {
                        *source = if whole.is_empty() {
                            rows.tile(row, tile, &mut copy[..len])
                        } else {
                            &whole[tile - start..]
                        };
                    }
                    add_side_by_side(path, sums, &sources, buckets, signs);
                }
                for (index, out) in rest.chunks_mut(TOGETHER * k).enumerate() {
                    let row = next + index * TOGETHER;
                    let mut sources: [&[f32]; TOGETHER] = [&[]; TOGETHER];
                    let copies = (row..row + out.len() / k).zip(&mut tiles);
                    for (source, (row, copy)) in sources.iter_mut().zip(copies) {
                        *source = rows.tile(row, tile, &mut copy[..len]);
                    }
                    add_in_turn(out, k, &sources, buckets, signs);
                }
            }
        }
        for (sums, out) in sums.chunks_exact(k).zip(grouped.chunks_mut(LANES * k)) {
            for (lane, out) in out.chunks_exact_mut(k).enumerate() {
                for (total, sums) in out.iter_mut().zip(sums) {
                    *total += sums[lane];
                }
            }
        }
        Ok(())
    })
}

/// Adds a tile of rows side by side: to the sums of each coordinate's bucket, what every row has there. What rows have
/// after the tile's last coordinate is brought near.
fn add_side_by_side(
    path: Path,
    sums: &mut [Sums],
    rows: &[&[f32]; LANES],
    buckets: &[usize],
    signs: &[f32],
) {
    for_path!(path, add_side_by_side(sums, rows, buckets, signs))
}

/// Adds up to [`TOGETHER`] rows, each to its own row of `out`.
fn add_in_turn(
    out: &mut [f32],
    k: usize,
    rows: &[&[f32]; TOGETHER],
    buckets: &[usize],
    signs: &[f32],
) {
    let signed = |row: usize, i: usize| with_sign(rows[row][i], signs[i]);
    let mut outs = out.chunks_exact_mut(k);
    if let (Some(a), Some(b), Some(c), Some(d)) =
        (outs.next(), outs.next(), outs.next(), outs.next())
    {
        for (i, &bucket) in buckets.iter().enumerate() {
            a[bucket] += signed(0, i);
            b[bucket] += signed(1, i);
            c[bucket] += signed(2, i);
            d[bucket] += signed(3, i);
        }
        return;
    }
    for (row, out) in out.chunks_exact_mut(k).enumerate() {
        for (i, &bucket) in buckets.iter().enumerate() {
            out[bucket] += signed(row, i);
        }
    }
}

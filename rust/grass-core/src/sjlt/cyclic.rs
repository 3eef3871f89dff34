//! The cyclic kind: pages of coordinates, each turned by one rotation and added in one or two runs.

use super::{SIGN_ALIGNMENT, Sjlt};
use crate::dtype::{InPlace, Rows};
use crate::error::Result;
use crate::parallel::Workers;
use crate::philox::{Philox, Stream, scale_word};
use crate::signs::Signed;
use crate::simd::Path;

/// Coordinates a tile: 8 KiB, by which memory is asked for ahead.
const TILE: usize = 2048;

/// The most tiles that are added to one row before the next row's turn: enough for its buckets to be worth their way into
/// the first-level cache.
const TILES: usize = 64;

/// Sign bits at a time: those of the tiles, and of what stands before them in their first block.
const SIGNS: usize = TILES * TILE + SIGN_ALIGNMENT;

/// The most pieces at a time: those of long pages. Of short pages, with fewer buckets, there are fewer at a time.
const PIECES: usize = 3 * TILES;

/// Bucket within its draw, and number of the sign bit, of a coordinate.
pub(super) fn entry(sjlt: &Sjlt, draw: usize, coordinate: usize) -> (usize, usize) {
    let pages = Pages::new(sjlt);
    let (page, within) = (coordinate / pages.width, coordinate % pages.width);
    let number = draw * pages.count + page;
    let rotation = sjlt
        .philox
        .draw(Stream::Rotation, pages.width as u64, number as u64);
    let bucket = (within + rotation as usize) % pages.width;
    (bucket, number * pages.padded + within)
}

/// How the coordinates are cut.
struct Pages {
    /// Coordinates a page, w.
    width: usize,
    /// Sign bits a page.
    padded: usize,
    /// Pages of all coordinates, the last one may be cut.
    count: usize,
}

impl Pages {
    fn new(sjlt: &Sjlt) -> Self {
        let width = sjlt.width();
        Self {
            width,
            padded: width.next_multiple_of(SIGN_ALIGNMENT),
            count: sjlt.input_dim.div_ceil(width),
        }
    }
}

/// Neighbouring coordinates of one page and one tile.
#[derive(Clone, Copy, Default)]
struct Piece {
    /// The first one, counted from the span's.
    start: usize,
    len: usize,
    /// Bucket of the first one, within the draw.
    bucket: usize,
    /// Its sign bit, counted from the span's first block.
    bit: usize,
}

impl Piece {
    /// Adds the piece's values to the buckets of its draw: up to the last bucket, then from the first.
    fn add<T: Signed>(
        &self,
        path: Path,
        buckets: &mut [f32],
        values: &[T],
        ahead: &[T],
        signs: &[u64],
    ) {
        let until_last = self.len.min(buckets.len() - self.bucket);
        let (head, tail) = values.split_at(until_last);
        let (near, far) = ahead.split_at(until_last.min(ahead.len()));
        T::add_signed(path, buckets, self.bucket, head, near, signs, self.bit);
        if !tail.is_empty() {
            let bit = self.bit + until_last;
            T::add_signed(path, buckets, 0, tail, far, signs, bit);
        }
    }
}

/// Neighbouring coordinates whose signs and rotations are there at once, for all rows.
struct Span {
    pieces: [Piece; PIECES],
    used: usize,
    /// Coordinates.
    len: usize,
    signs: [u64; SIGNS / 64 + 1],
}

impl Span {
    /// Draws signs and rotations of coordinates from `start` on, at most `most` of them: at least one page or tile.
    fn draw(
        &mut self,
        sjlt: &Sjlt,
        pages: &Pages,
        rotations: &mut Rotations,
        draw: usize,
        (start, most): (usize, usize),
    ) {
        let first = draw * pages.count + start / pages.width;
        let mut within = start % pages.width;
        let base = first * pages.padded + within - within % SIGN_ALIGNMENT;
        let mut bits = 0;
        self.len = 0;
        self.used = 0;
        let mut number = first;
        while self.len < most && self.used < PIECES {
            let rotation = rotations.draw(number as u64);
            let bit = number * pages.padded + within - base;
            let len = (pages.width - within)
                .min(most - self.len)
                .min(TILE - self.len % TILE)
                .min(SIGNS.saturating_sub(bit));
            if len == 0 {
                break;
            }
            let turned = within + rotation;
            self.pieces[self.used] = Piece {
                start: self.len,
                len,
                bucket: if turned < pages.width {
                    turned
                } else {
                    turned - pages.width
                },
                bit,
            };
            self.used += 1;
            self.len += len;
            bits = bit + len;
            within += len;
            if within == pages.width {
                within = 0;
                number += 1;
            }
        }
        sjlt.philox.fill_double_words(
            Stream::Sign,
            base as u64 / 64,
            &mut self.signs[..bits.div_ceil(64)],
        );
    }

    /// Adds a row's values to the buckets of the draw, while what is `ahead` of each piece is brought near.
    fn add<'a, T: Signed>(
        &self,
        path: Path,
        buckets: &mut [f32],
        values: &[T],
        ahead: impl Fn(&Piece) -> &'a [T],
    ) {
        for piece in &self.pieces[..self.used] {
            let values = &values[piece.start..piece.start + piece.len];
            piece.add(path, buckets, values, ahead(piece), &self.signs);
        }
    }
}

/// A row's span and where the way goes on after it: row, first coordinate, and how many there are.
struct Way {
    here: (usize, usize, usize),
    next: (usize, usize, usize),
}

impl Way {
    /// What is to be brought near while a piece is added: the same place one tile ahead.
    fn ahead<'a>(&self, piece: &Piece, rows: &'a dyn Rows) -> InPlace<'a> {
        let ahead = piece.start + TILE;
        let ((row, start, len), passed) = if ahead < self.here.2 {
            (self.here, ahead)
        } else {
            (self.next, (piece.start % TILE).min(self.next.2))
        };
        rows.typed(row, start + passed, piece.len.min(len - passed))
    }
}

/// Rotations of the pages, drawn for many pages at a time.
struct Rotations {
    philox: Philox,
    width: u64,
    first: u64,
    words: [u64; Self::WORDS],
}

impl Rotations {
    const WORDS: usize = 32;

    fn new(philox: Philox, width: usize) -> Self {
        Self {
            philox,
            width: width as u64,
            first: u64::MAX,
            words: [0; Self::WORDS],
        }
    }

    /// Rotation number `number`.
    fn draw(&mut self, number: u64) -> usize {
        if self.width > 1 << 32 {
            let drawn = self.philox.draw_wide(Stream::Rotation, self.width, number);
            return drawn as usize;
        }
        let word = number / 2;
        if !(self.first..self.first.saturating_add(Self::WORDS as u64)).contains(&word) {
            self.first = word;
            self.philox
                .fill_double_words(Stream::Rotation, word, &mut self.words);
        }
        let double = self.words[(word - self.first) as usize];
        scale_word((double >> (number % 2 * 32)) as u32, self.width) as usize
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
    let pages = Pages::new(sjlt);
    let mut rotations = Rotations::new(sjlt.philox, pages.width);
    let mut span = Span {
        pieces: [Piece::default(); PIECES],
        used: 0,
        len: 0,
        signs: [0; SIGNS / 64 + 1],
    };
    let mut buffer = [0.0; TILE];
    let count = out.len() / sjlt.output_dim;
    let mut start = start;
    while start < end {
        workers.check()?;
        for draw in 0..sjlt.nnz {
            span.draw(
                sjlt,
                &pages,
                &mut rotations,
                draw,
                (start, (TILES * TILE).min(end - start)),
            );
            for row in 0..count {
                let from = row * sjlt.output_dim + draw * pages.width;
                let buckets = &mut out[from..from + pages.width];
                let way = Way {
                    here: (first + row, start, span.len),
                    next: if row + 1 < count {
                        (first + row + 1, start, TILE.min(span.len))
                    } else {
                        let next = start + span.len;
                        (first, next, TILE.min(end - next))
                    },
                };
                match rows.typed(first + row, start, span.len) {
                    InPlace::F32(whole) => {
                        span.add(path, buckets, whole, |piece| match way.ahead(piece, rows) {
                            InPlace::F32(ahead) => ahead,
                            _ => &[],
                        });
                    }
                    InPlace::F16(whole) => {
                        span.add(path, buckets, whole, |piece| match way.ahead(piece, rows) {
                            InPlace::F16(ahead) => ahead,
                            _ => &[],
                        });
                    }
                    InPlace::Bf16(whole) => {
                        span.add(path, buckets, whole, |piece| match way.ahead(piece, rows) {
                            InPlace::Bf16(ahead) => ahead,
                            _ => &[],
                        });
                    }
                    InPlace::Nowhere => {
                        for piece in &span.pieces[..span.used] {
                            let buffer = &mut buffer[..piece.len];
                            let values = rows.tile(first + row, start + piece.start, buffer);
                            piece.add(path, buckets, values, &[], &span.signs);
                        }
                    }
                }
            }
        }
        start += span.len;
    }
    Ok(())
}

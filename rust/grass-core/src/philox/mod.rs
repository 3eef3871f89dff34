//! Philox4x32-10, a counter-based generator: word `n` of a stream is computed from `n` alone.
//!
//! Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011). The crates of the `rand`
//! family do not promise the same values for years; a store needs that, so the ten rounds are here.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use blake2::Blake2bMac;
use blake2::digest::consts::U8;
use blake2::digest::{FixedOutput, KeyInit, Update};

use crate::simd::{Path, for_path};

/// What a stream of random words is used for. The numbers are part of every stored structure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Stream {
    /// Kept coordinates of a random mask.
    Mask = 1,
    /// Buckets of an iid SJLT.
    Bucket = 2,
    /// Signs of an SJLT.
    Sign = 3,
    /// Rotations of a cyclic SJLT.
    Rotation = 4,
    /// Normal numbers.
    Gaussian = 5,
    /// Shifts of a tile sketch's tiles.
    TileShift = 6,
    /// Signs of the rows of a tile sketch's tiles.
    TileRowSign = 7,
    /// Signs of the columns of a tile sketch's tiles.
    TileColumnSign = 8,
    /// Signs of a Rademacher projection.
    Rademacher = 9,
}

const ROUNDS: usize = 10;
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// Words a block: the generator gives four at a time.
pub const BLOCK_WORDS: u64 = 4;

/// Random words of one seed, addressed by stream and position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Philox {
    key: [u32; 2],
}

impl Philox {
    /// The generator keyed by `seed`.
    pub fn new(seed: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
        }
    }

    /// Words `4 m` to `4 m + 3` of `stream`.
    #[inline]
    pub fn block(&self, stream: Stream, m: u64) -> [u32; 4] {
        philox4x32_10(self.key, [m as u32, (m >> 32) as u32, stream as u32, 0])
    }

    /// Word `n` of `stream`.
    #[inline]
    pub fn word(&self, stream: Stream, n: u64) -> u32 {
        self.block(stream, n / BLOCK_WORDS)[(n % BLOCK_WORDS) as usize]
    }

    /// Bit `n` of `stream`, the lowest of a word first; as a sign, set = minus.
    #[inline]
    pub fn bit(&self, stream: Stream, n: u64) -> bool {
        self.word(stream, n / 32) >> (n % 32) & 1 == 1
    }

    /// Fills `words` with the double words of `stream` (see [`Philox::double_word`]) from number `first` on.
    pub fn fill_double_words(&self, stream: Stream, first: u64, words: &mut [u64]) {
        let odd = words.len().min((first % 2) as usize);
        let (lead, rest) = words.split_at_mut(odd);
        lead.fill_with(|| self.double_word(stream, first));
        let block = first.div_ceil(2);
        fill_blocks(Path::current(), self.key, stream, block, rest);
    }

    /// The two words `2 n` and `2 n + 1` of `stream` as one number, the first one low.
    #[inline]
    pub fn double_word(&self, stream: Stream, n: u64) -> u64 {
        let block = self.block(stream, n / 2);
        let low = (n % 2) as usize * 2;
        u64::from(block[low]) | u64::from(block[low + 1]) << 32
    }

    /// Draw `n` of `stream`, uniform on `0..range` up to a bias below `range / 2^32` (one word) or
    /// `range / 2^64` (two words, taken where the range is larger than `2^32`).
    #[inline]
    pub fn draw(&self, stream: Stream, range: u64, n: u64) -> u64 {
        if range > 1 << 32 {
            self.draw_wide(stream, range, n)
        } else {
            scale_word(self.word(stream, n), range)
        }
    }

    /// Draw `n` of `stream` from two words, whatever the range.
    #[inline]
    pub fn draw_wide(&self, stream: Stream, range: u64, n: u64) -> u64 {
        let value = self.double_word(stream, n);
        ((u128::from(value) * u128::from(range)) >> 64) as u64
    }
}

/// `word` scaled to `0..range`, for ranges up to `2^32`.
#[inline]
pub fn scale_word(word: u32, range: u64) -> u64 {
    (u64::from(word) * range) >> 32
}

/// The seed of the part called `label` of a structure with `seed`: BLAKE2b keyed with the seed.
pub fn derive(seed: u64, label: &str) -> u64 {
    let mut hash = Blake2bMac::<U8>::new_from_slice(&seed.to_le_bytes())
        .expect("BLAKE2b takes keys of up to 64 bytes");
    hash.update(label.as_bytes());
    u64::from_le_bytes(hash.finalize_fixed().into())
}

/// Ten rounds of Philox4x32.
#[inline]
pub fn philox4x32_10(key: [u32; 2], mut counter: [u32; 4]) -> [u32; 4] {
    for key in round_keys(key) {
        let first = u64::from(MULTIPLIERS[0]) * u64::from(counter[0]);
        let second = u64::from(MULTIPLIERS[1]) * u64::from(counter[2]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

/// Fills `words` with the double words of a stream's blocks from number `first` on; the last one may be cut.
fn fill_blocks(path: Path, key: [u32; 2], stream: Stream, first: u64, words: &mut [u64]) {
    for_path!(path, fill_blocks(key, stream as u32, first, words))
}

/// The keys of the rounds.
const fn round_keys(key: [u32; 2]) -> [[u32; 2]; ROUNDS] {
    let mut keys = [key; ROUNDS];
    let mut round = 1;
    while round < ROUNDS {
        let [first, second] = keys[round - 1];
        keys[round] = [first.wrapping_add(WEYL[0]), second.wrapping_add(WEYL[1])];
        round += 1;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_in_bulk_are_the_words_one_by_one() {
        let philox = Philox::new(7);
        for first in 0..5 {
            for len in [0, 1, 2, 3, 31, 32, 33, 100] {
                let mut words = vec![0; len];
                philox.fill_double_words(Stream::Sign, first, &mut words);
                for (n, &word) in (first..).zip(&words) {
                    assert_eq!(word, philox.double_word(Stream::Sign, n));
                }
            }
        }
    }

    #[test]
    fn every_path_fills_the_same_blocks() {
        for path in Path::available() {
            for (first, len) in [(0, 64), (3, 200), (u64::from(u32::MAX) - 5, 130), (7, 1)] {
                let mut words = vec![0; len];
                fill_blocks(path, [1, 2], Stream::Sign, first, &mut words);
                let philox = Philox { key: [1, 2] };
                for (n, &word) in (2 * first..).zip(&words) {
                    assert_eq!(word, philox.double_word(Stream::Sign, n), "{path:?}");
                }
            }
        }
    }

    #[test]
    fn a_range_past_32_bits_is_drawn_from_two_words() {
        let philox = Philox::new(3);
        let range = (1 << 40) + 5;
        let value =
            u64::from(philox.word(Stream::Mask, 6)) | u64::from(philox.word(Stream::Mask, 7)) << 32;
        let expected = (u128::from(value) * u128::from(range)) >> 64;
        assert_eq!(u128::from(philox.draw(Stream::Mask, range, 3)), expected);
    }
}

//! Rows side by side in the vector registers of AVX-512 and AVX2.
//!
//! Four coordinates of every fourth row make a vector; four such vectors are turned into one vector a coordinate by
//! exchanges within blocks of 128 bits.

use std::arch::x86_64::{
    __m128, __m256, __m512, _mm_loadu_ps, _mm_xor_ps, _mm256_add_ps, _mm256_castps128_ps256,
    _mm256_insertf128_ps, _mm256_loadu_ps, _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps, _mm512_add_ps, _mm512_castps128_ps512, _mm512_insertf32x4, _mm512_loadu_ps,
    _mm512_shuffle_ps, _mm512_storeu_ps, _mm512_unpackhi_ps, _mm512_unpacklo_ps,
};

use super::{LANES, Sums, TILE, Tiles, plain};
use crate::simd::prefetch;

/// Coordinates that are turned together.
const FOUR: usize = 4;

/// Values that are copied while four coordinates are added, so that a tile is copied while one is added.
const PART: usize = LANES * FOUR;

/// Values a cache line.
const LINE: usize = 16;

/// Copies part number `part` of the tile that follows, a row after the other, and brings the same part of the next tile
/// near: it is of the same memory page.
#[inline(always)]
fn copy_part(part: usize, upcoming: &[&[f32]; LANES], later: &mut Tiles) {
    let (row, start) = (part * PART / TILE, part * PART % TILE);
    let Some(values) = upcoming[row].get(start..start + PART) else {
        return;
    };
    later[row][start..start + PART].copy_from_slice(values);
    if let Some(values) = upcoming[row].get(start + TILE..start + TILE + PART) {
        values.iter().step_by(LINE).for_each(prefetch);
    }
}

/// Four coordinates of a row, from number `start` on, with their signs.
#[inline(always)]
fn signed(tile: &[f32], start: usize, signs: &[f32; FOUR]) -> __m128 {
    let values = tile[start..].first_chunk::<FOUR>();
    let values = values.expect("a tile has whole vectors");
    #[expect(unsafe_code, reason = "the instructions take pointers")]
    // SAFETY: both references are to as many values as the instructions read, at any alignment; every x86-64 has them.
    unsafe {
        _mm_xor_ps(_mm_loadu_ps(values.as_ptr()), _mm_loadu_ps(signs.as_ptr()))
    }
}

/// Defines `$add_tiles` for vectors of `$lanes` rows.
macro_rules! define_add_tiles {
    (
        $add_tiles:ident, $features:literal, $lanes:literal, $every_fourth:ident, $add:ident,
        $load:ident, $store:ident, $low:ident, $high:ident, $shuffle:ident
    ) => {
        /// Adds rows side by side.
        #[target_feature(enable = $features)]
        pub(super) fn $add_tiles(
            sums: &mut [Sums],
            tiles: &Tiles,
            buckets: &[usize],
            signs: &[f32],
            upcoming: &[&[f32]; LANES],
            later: &mut Tiles,
        ) {
            let (whole, _) = buckets.as_chunks::<FOUR>();
            for (four, (whole, signs)) in whole.iter().zip(signs.as_chunks().0).enumerate() {
                copy_part(four, upcoming, later);
                for part in 0..tiles.len() / $lanes {
                    let tiles = &tiles[part * $lanes..][..$lanes];
                    let [a, b, c, d] = [0, 1, 2, 3].map(|row| {
                        $every_fourth(|block| {
                            signed(&tiles[row + FOUR * block], four * FOUR, signs)
                        })
                    });
                    let low = [$low(a, b), $low(c, d)];
                    let high = [$high(a, b), $high(c, d)];
                    let turned = [
                        $shuffle::<0b01_00_01_00>(low[0], low[1]),
                        $shuffle::<0b11_10_11_10>(low[0], low[1]),
                        $shuffle::<0b01_00_01_00>(high[0], high[1]),
                        $shuffle::<0b11_10_11_10>(high[0], high[1]),
                    ];
                    for (&bucket, vector) in whole.iter().zip(turned) {
                        let sums = &mut sums[bucket].as_chunks_mut::<$lanes>().0[part];
                        #[expect(unsafe_code, reason = "the instructions take pointers")]
                        // SAFETY: the reference is to as many values as the instructions read and write.
                        unsafe {
                            let total = $add($load(sums.as_ptr()), vector);
                            $store(sums.as_mut_ptr(), total);
                        }
                    }
                }
            }
            plain::add_tiles(sums, tiles, whole.len() * FOUR, buckets, signs);
        }
    };
}

#[target_feature(enable = "avx512f")]
fn every_fourth_of_16(block: impl Fn(usize) -> __m128) -> __m512 {
    let vector = _mm512_castps128_ps512(block(0));
    let vector = _mm512_insertf32x4::<1>(vector, block(1));
    let vector = _mm512_insertf32x4::<2>(vector, block(2));
    _mm512_insertf32x4::<3>(vector, block(3))
}

#[target_feature(enable = "avx2")]
fn every_fourth_of_8(block: impl Fn(usize) -> __m128) -> __m256 {
    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(block(0)), block(1))
}

define_add_tiles!(
    add_tiles_avx512,
    "avx512f",
    16,
    every_fourth_of_16,
    _mm512_add_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_unpacklo_ps,
    _mm512_unpackhi_ps,
    _mm512_shuffle_ps
);

define_add_tiles!(
    add_tiles_avx2,
    "avx2",
    8,
    every_fourth_of_8,
    _mm256_add_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_unpacklo_ps,
    _mm256_unpackhi_ps,
    _mm256_shuffle_ps
);

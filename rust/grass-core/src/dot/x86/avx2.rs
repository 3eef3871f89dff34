//! Sixteen lanes in two registers.

use std::arch::x86_64::{
    __m128i, __m256, __m256i, _mm_add_epi32, _mm_add_ps, _mm_add_ss, _mm_cvtsi128_si32,
    _mm_cvtss_f32, _mm_loadu_si128, _mm_movehl_ps, _mm_shuffle_epi32, _mm_shuffle_ps,
    _mm256_add_epi32, _mm256_add_ps, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_castsi256_si128, _mm256_cvtepi8_epi16, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_extractf128_ps, _mm256_extracti128_si256, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_madd_epi16, _mm256_setzero_ps, _mm256_setzero_si256, _mm256_slli_epi32,
};

use crate::dot::{
    Bfloat16, Checksum, Float, Float16, Float32, Format, Int8Tile, LANES, Lanes, NUMBERS, Rows,
    for_format_and_queries,
};

// One row at a time: its sums with a tile of queries fill the registers.
define_float_products!("avx2,fma,f16c", 1, ());
define_int8_products!("avx2", 1);

/// Adds the products of rows and the queries of a tile.
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::dot) fn add_float_products(
    float: Float,
    rows: Rows<'_>,
    length: usize,
    tile: &[Lanes],
    sums: &mut [f64],
    _checksum: Option<&mut Checksum<'_>>,
) {
    add_products(float, rows, length, tile, sums, &mut ());
}

/// Nothing is done beside the products.
#[inline(always)]
fn step<F: Format>(_beside: &mut (), _index: usize) {}

/// One value of each lane: the first eight, then the others.
type Pair = [__m256; 2];

#[target_feature(enable = "avx2")]
#[inline]
fn zero() -> Pair {
    [_mm256_setzero_ps(); 2]
}

#[target_feature(enable = "avx2,fma")]
#[inline]
fn multiply_add(left: Pair, right: Pair, sum: Pair) -> Pair {
    [
        _mm256_fmadd_ps(left[0], right[0], sum[0]),
        _mm256_fmadd_ps(left[1], right[1], sum[1]),
    ]
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_query(lanes: &Lanes) -> Pair {
    let halves = lanes.0.as_chunks::<8>().0;
    #[expect(unsafe_code, reason = "the instruction takes a pointer")]
    // SAFETY: each reference is to as many values as the instruction reads.
    let load = |half: &[f32; 8]| unsafe { _mm256_loadu_ps(half.as_ptr()) };
    [load(&halves[0]), load(&halves[1])]
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn load<F: Format>(block: &F::Block) -> Pair {
    let bytes = block.as_ref();
    let (low, high) = bytes.split_at(bytes.len() / 2);
    [load_half::<F>(low), load_half::<F>(high)]
}

/// Eight numbers of a row.
#[target_feature(enable = "avx2,f16c")]
#[inline]
fn load_half<F: Format>(bytes: &[u8]) -> __m256 {
    match (
        F::FLOAT,
        bytes.as_chunks::<32>().0,
        bytes.as_chunks::<16>().0,
    ) {
        (Float::Float32, [block], _) => {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: the reference is to as many bytes as the instruction reads, at any alignment.
            unsafe {
                _mm256_loadu_ps(block.as_ptr().cast())
            }
        }
        (Float::Float16, _, [block]) => _mm256_cvtph_ps(load_16(block)),
        (Float::Bfloat16, _, [block]) => {
            let wide = _mm256_cvtepu16_epi32(load_16(block));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        }
        _ => unreachable!("a block has one number a lane"),
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn load_16<T>(bytes: &[T; 16]) -> __m128i {
    const { assert!(size_of::<T>() == 1) };
    #[expect(unsafe_code, reason = "the instruction takes a pointer")]
    // SAFETY: the reference is to as many bytes as the instruction reads, at any alignment.
    unsafe {
        _mm_loadu_si128(bytes.as_ptr().cast())
    }
}

#[target_feature(enable = "avx2,f16c")]
#[inline]
fn load_rest<F: Format>(rest: &[u8]) -> Pair {
    load::<F>(&F::padded(rest))
}

/// Adds the lanes of every total to its sum.
#[target_feature(enable = "avx2")]
#[inline]
fn add_lanes<const R: usize, const Q: usize>(totals: [[Pair; Q]; R], sums: &mut [f64]) {
    for (sum, &total) in sums.iter_mut().zip(totals.as_flattened()) {
        *sum += f64::from(sum_lanes(total));
    }
}

/// Lanes half the length apart are added until one is left.
#[target_feature(enable = "avx2")]
#[inline]
fn sum_lanes([low, high]: Pair) -> f32 {
    let lanes = _mm256_add_ps(low, high);
    let fours = _mm_add_ps(
        _mm256_castps256_ps128(lanes),
        _mm256_extractf128_ps::<1>(lanes),
    );
    let twos = _mm_add_ps(fours, _mm_movehl_ps(fours, fours));
    _mm_cvtss_f32(_mm_add_ss(twos, _mm_shuffle_ps::<1>(twos, twos)))
}

#[target_feature(enable = "avx2")]
#[inline]
fn int8_tile<const R: usize, const Q: usize>(
    rows: [&[u8]; R],
    tile: Int8Tile<'_>,
    products: &mut [i32],
) {
    let mut totals = [[_mm256_setzero_si256(); Q]; R];
    for (index, queries) in tile.numbers.as_chunks::<Q>().0.iter().enumerate() {
        for row in 0..R {
            let stored = &rows[row][index * NUMBERS..];
            let mut padded = [0; NUMBERS];
            let block = stored.first_chunk().unwrap_or_else(|| {
                padded[..stored.len()].copy_from_slice(stored);
                &padded
            });
            for (part, values) in block.as_chunks::<16>().0.iter().enumerate() {
                let values = _mm256_cvtepi8_epi16(load_16(values));
                for query in 0..Q {
                    let numbers = load_16(&queries[query].0.as_chunks::<16>().0[part]);
                    let pairs = _mm256_madd_epi16(values, _mm256_cvtepi8_epi16(numbers));
                    totals[row][query] = _mm256_add_epi32(totals[row][query], pairs);
                }
            }
        }
    }
    for (product, &total) in products.iter_mut().zip(totals.as_flattened()) {
        *product = sum_numbers(total);
    }
}

#[target_feature(enable = "avx2")]
#[inline]
fn sum_numbers(numbers: __m256i) -> i32 {
    let fours = _mm_add_epi32(
        _mm256_castsi256_si128(numbers),
        _mm256_extracti128_si256::<1>(numbers),
    );
    let twos = _mm_add_epi32(fours, _mm_shuffle_epi32::<0x4E>(fours));
    _mm_cvtsi128_si32(_mm_add_epi32(twos, _mm_shuffle_epi32::<0xB1>(twos)))
}

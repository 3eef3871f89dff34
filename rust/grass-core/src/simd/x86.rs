//! What kernels share of the vector registers of AVX-512 and AVX2.

use std::arch::x86_64::{
    __m256, __m512, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_unpackhi_ps,
    _mm256_unpacklo_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps, _mm512_unpackhi_ps,
    _mm512_unpacklo_ps,
};

/// The columns of 8 rows of 8 values.
#[target_feature(enable = "avx2")]
#[inline]
pub(crate) fn transpose_8(rows: [__m256; 8]) -> [__m256; 8] {
    // Of every four rows: in the two blocks of a vector, column 4 block + number.
    let mut fours = rows;
    for four in fours.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let (next_low, next_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        *four = [
            _mm256_shuffle_ps::<0x44>(low, next_low),
            _mm256_shuffle_ps::<0xEE>(low, next_low),
            _mm256_shuffle_ps::<0x44>(high, next_high),
            _mm256_shuffle_ps::<0xEE>(high, next_high),
        ];
    }
    let mut columns = rows;
    for number in 0..4 {
        let (first, second) = (fours[number], fours[4 + number]);
        columns[number] = _mm256_permute2f128_ps::<0x20>(first, second);
        columns[4 + number] = _mm256_permute2f128_ps::<0x31>(first, second);
    }
    columns
}

/// The columns of 16 rows of 16 values.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn transpose_16(rows: [__m512; 16]) -> [__m512; 16] {
    // Of every four rows: in the four blocks of a vector, column 4 block + number.
    let mut fours = rows;
    for four in fours.as_chunks_mut::<4>().0 {
        let [a, b, c, d] = *four;
        let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let (next_low, next_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        *four = [
            _mm512_shuffle_ps::<0x44>(low, next_low),
            _mm512_shuffle_ps::<0xEE>(low, next_low),
            _mm512_shuffle_ps::<0x44>(high, next_high),
            _mm512_shuffle_ps::<0xEE>(high, next_high),
        ];
    }
    let mut columns = rows;
    for number in 0..4 {
        let [a, b, c, d] = [0, 4, 8, 12].map(|four| fours[four + number]);
        let (even, next_even) = (
            _mm512_shuffle_f32x4::<0x88>(a, b),
            _mm512_shuffle_f32x4::<0x88>(c, d),
        );
        let (odd, next_odd) = (
            _mm512_shuffle_f32x4::<0xDD>(a, b),
            _mm512_shuffle_f32x4::<0xDD>(c, d),
        );
        columns[number] = _mm512_shuffle_f32x4::<0x88>(even, next_even);
        columns[4 + number] = _mm512_shuffle_f32x4::<0x88>(odd, next_odd);
        columns[8 + number] = _mm512_shuffle_f32x4::<0xDD>(even, next_even);
        columns[12 + number] = _mm512_shuffle_f32x4::<0xDD>(odd, next_odd);
    }
    columns
}

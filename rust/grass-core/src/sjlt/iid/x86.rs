//! Rows side by side in the vector registers of AVX-512 and AVX2.
//!
//! A square of as many coordinates of as many rows as a vector has lanes is read a row at a time, each cache line once, and
//! turned over in registers: rows that are a power of two apart, which share few places of a cache, do no harm.

use crate::simd::prefetch;

/// Coordinates between the square that is added and the one that is brought near, mostly of the same memory page.
const AHEAD: usize = 256;

/// Defines `add_side_by_side` for vectors of `$lanes` rows.
macro_rules! define_add_side_by_side {
    ($features:literal, $lanes:literal, $load:ident, $store:ident, $add:ident, $xor:ident) => {
        /// Adds a tile of rows side by side.
        #[target_feature(enable = $features)]
        pub(in crate::sjlt::iid) fn add_side_by_side(
            sums: &mut [Sums],
            rows: &[&[f32]; LANES],
            buckets: &[usize],
            signs: &[f32],
        ) {
            let (squares, _) = buckets.as_chunks::<$lanes>();
            for (square, (buckets, signs)) in squares
                .iter()
                .zip(signs.as_chunks::<$lanes>().0)
                .enumerate()
            {
                let signs = load(signs);
                for (part, rows) in rows.as_chunks::<$lanes>().0.iter().enumerate() {
                    let mut vectors = [signs; $lanes];
                    for (vector, row) in vectors.iter_mut().zip(rows) {
                        let values = row.as_chunks::<$lanes>().0;
                        if let Some([value, ..]) = values.get(square + AHEAD / $lanes) {
                            prefetch(value);
                        }
                        *vector = $xor(load(&values[square]), signs);
                    }
                    let turned = turn(vectors);
                    for (&bucket, vector) in buckets.iter().zip(turned) {
                        let sums = &mut sums[bucket].as_chunks_mut::<$lanes>().0[part];
                        let total = $add(load(sums), vector);
                        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
                        // SAFETY: the reference is to as many values as the instruction writes, at any alignment.
                        unsafe {
                            $store(sums.as_mut_ptr(), total);
                        }
                    }
                }
            }
            plain::add_side_by_side(sums, rows, squares.len() * $lanes, buckets, signs);
        }

        #[target_feature(enable = $features)]
        #[inline]
        fn load(values: &[f32; $lanes]) -> Vector {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
            unsafe {
                $load(values.as_ptr())
            }
        }
    };
}

pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m512 as Vector, _mm512_add_ps, _mm512_loadu_ps, _mm512_shuffle_f32x4, _mm512_shuffle_ps,
        _mm512_storeu_ps, _mm512_unpackhi_ps, _mm512_unpacklo_ps, _mm512_xor_ps,
    };

    use super::{AHEAD, prefetch};
    use crate::sjlt::iid::{LANES, Sums, plain};

    define_add_side_by_side!(
        "avx512f,avx512dq",
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_xor_ps
    );

    /// The columns of a square of rows.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn turn(rows: [Vector; 16]) -> [Vector; 16] {
        // Of every four rows: in the four blocks of a vector, column 4 block + number.
        let mut fours = rows;
        for four in fours.as_chunks_mut::<4>().0 {
            let [a, b, c, d] = *four;
            let (low, high) = (_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let (later_low, later_high) = (_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
            *four = [
                _mm512_shuffle_ps::<0x44>(low, later_low),
                _mm512_shuffle_ps::<0xEE>(low, later_low),
                _mm512_shuffle_ps::<0x44>(high, later_high),
                _mm512_shuffle_ps::<0xEE>(high, later_high),
            ];
        }
        let mut columns = rows;
        for number in 0..4 {
            let [a, b, c, d] = [0, 4, 8, 12].map(|four| fours[four + number]);
            let even = [
                _mm512_shuffle_f32x4::<0x88>(a, b),
                _mm512_shuffle_f32x4::<0x88>(c, d),
            ];
            let odd = [
                _mm512_shuffle_f32x4::<0xDD>(a, b),
                _mm512_shuffle_f32x4::<0xDD>(c, d),
            ];
            columns[number] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
            columns[4 + number] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
            columns[8 + number] = _mm512_shuffle_f32x4::<0xDD>(even[0], even[1]);
            columns[12 + number] = _mm512_shuffle_f32x4::<0xDD>(odd[0], odd[1]);
        }
        columns
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m256 as Vector, _mm256_add_ps, _mm256_loadu_ps, _mm256_permute2f128_ps,
        _mm256_shuffle_ps, _mm256_storeu_ps, _mm256_unpackhi_ps, _mm256_unpacklo_ps, _mm256_xor_ps,
    };

    use super::{AHEAD, prefetch};
    use crate::sjlt::iid::{LANES, Sums, plain};

    define_add_side_by_side!(
        "avx2",
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_xor_ps
    );

    /// The columns of a square of rows.
    #[target_feature(enable = "avx2")]
    #[inline]
    fn turn(rows: [Vector; 8]) -> [Vector; 8] {
        // Of every four rows: in the two blocks of a vector, column 4 block + number.
        let mut fours = rows;
        for four in fours.as_chunks_mut::<4>().0 {
            let [a, b, c, d] = *four;
            let (low, high) = (_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
            let (later_low, later_high) = (_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
            *four = [
                _mm256_shuffle_ps::<0x44>(low, later_low),
                _mm256_shuffle_ps::<0xEE>(low, later_low),
                _mm256_shuffle_ps::<0x44>(high, later_high),
                _mm256_shuffle_ps::<0xEE>(high, later_high),
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
}

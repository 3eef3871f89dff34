//! Rows side by side in the vector registers of AVX-512 and AVX2.
//!
//! A square of as many coordinates of as many rows as a vector has lanes is read a row at a time, each cache line once, and
//! turned over in registers: rows that are a power of two apart, which share few places of a cache, do no harm.

use crate::simd::prefetch;

/// Coordinates between the square that is added and the one that is brought near, mostly of the same memory page.
const AHEAD: usize = 256;

/// Defines `add_side_by_side` for vectors of `$lanes` rows.
macro_rules! define_add_side_by_side {
    ($features:literal, $lanes:literal, $load:ident, $store:ident, $add:ident, $xor:ident, $transpose:ident) => {
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
                    let turned = $transpose(vectors);
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
            plain::add_from(squares.len() * $lanes, sums, rows, buckets, signs);
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
        __m512 as Vector, _mm512_add_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_xor_ps,
    };

    use super::{AHEAD, prefetch};
    use crate::simd::x86::transpose_16;
    use crate::sjlt::iid::{LANES, Sums, plain};

    define_add_side_by_side!(
        "avx512f,avx512dq",
        16,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_add_ps,
        _mm512_xor_ps,
        transpose_16
    );
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m256 as Vector, _mm256_add_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_xor_ps,
    };

    use super::{AHEAD, prefetch};
    use crate::simd::x86::transpose_8;
    use crate::sjlt::iid::{LANES, Sums, plain};

    define_add_side_by_side!(
        "avx2",
        8,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_add_ps,
        _mm256_xor_ps,
        transpose_8
    );
}

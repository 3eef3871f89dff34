//! Sums of outer products in the vector registers of AVX-512 and AVX2.

/// Defines `add_gram` for vectors of `$lanes` values, with sums of `$height` rows and two vectors in registers.
macro_rules! define_add_gram {
    (
        $features:literal, $vector:ty, $lanes:literal, $height:literal, $zero:ident, $broadcast:ident, $load:ident,
        $multiply_add:ident, $halves:expr, $double_lanes:literal, $broadcast_double:ident, $load_double:ident,
        $store_double:ident, $multiply_add_double:ident
    ) => {
        /// Adds the outer products of two panels to a block of `out`.
        #[target_feature(enable = $features)]
        pub(in crate::gram) fn add_gram(
            left: &Panel,
            right: &Panel,
            scale: f64,
            out: &mut [f64],
            stride: usize,
        ) {
            #[target_feature(enable = $features)]
            fn load(values: &[f32; $lanes]) -> $vector {
                #[expect(unsafe_code, reason = "the instruction takes a pointer")]
                // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
                unsafe {
                    $load(values.as_ptr())
                }
            }

            let scale = $broadcast_double(scale);
            for row in 0..PANEL / $height {
                for column in 0..PANEL / (2 * $lanes) {
                    let mut sums = [[$zero(); 2]; $height];
                    for (left, right) in left.iter().zip(right) {
                        let factors = &left.as_chunks::<$height>().0[row];
                        let right = &right.as_chunks::<{ 2 * $lanes }>().0[column];
                        let [first, second] = right.as_chunks::<$lanes>().0 else {
                            unreachable!("two vectors");
                        };
                        let vectors = [load(first), load(second)];
                        for i in 0..$height {
                            let factor = $broadcast(factors[i]);
                            for v in 0..2 {
                                sums[i][v] = $multiply_add(factor, vectors[v], sums[i][v]);
                            }
                        }
                    }
                    for (i, sums) in sums.iter().enumerate() {
                        let first = (row * $height + i) * stride + column * 2 * $lanes;
                        let out = out[first..first + 2 * $lanes].as_chunks_mut::<$lanes>().0;
                        for (out, &sum) in out.iter_mut().zip(sums) {
                            let out = out.as_chunks_mut::<$double_lanes>().0;
                            for (out, half) in out.iter_mut().zip($halves(sum)) {
                                #[expect(unsafe_code, reason = "the instructions take pointers")]
                                // SAFETY: the reference is to as many values as they read and write, at any alignment.
                                unsafe {
                                    let total = $load_double(out.as_ptr());
                                    let total = $multiply_add_double(half, scale, total);
                                    $store_double(out.as_mut_ptr(), total);
                                }
                            }
                        }
                    }
                }
            }
        }
    };
}

pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m512, __m512d, _mm512_castps512_ps256, _mm512_cvtps_pd, _mm512_extractf32x8_ps,
        _mm512_fmadd_pd, _mm512_fmadd_ps, _mm512_loadu_pd, _mm512_loadu_ps, _mm512_set1_pd,
        _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_pd,
    };

    use crate::gram::{PANEL, Panel};

    /// The values of a vector in double precision.
    #[target_feature(enable = "avx512f,avx512dq")]
    #[inline]
    fn halves(sums: __m512) -> [__m512d; 2] {
        [
            _mm512_cvtps_pd(_mm512_castps512_ps256(sums)),
            _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(sums)),
        ]
    }

    define_add_gram!(
        "avx512f,avx512dq",
        __m512,
        16,
        8,
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_fmadd_ps,
        halves,
        8,
        _mm512_set1_pd,
        _mm512_loadu_pd,
        _mm512_storeu_pd,
        _mm512_fmadd_pd
    );
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m256, __m256d, _mm256_castps256_ps128, _mm256_cvtps_pd, _mm256_extractf128_ps,
        _mm256_fmadd_pd, _mm256_fmadd_ps, _mm256_loadu_pd, _mm256_loadu_ps, _mm256_set1_pd,
        _mm256_set1_ps, _mm256_setzero_ps, _mm256_storeu_pd,
    };

    use crate::gram::{PANEL, Panel};

    /// The values of a vector in double precision.
    #[target_feature(enable = "avx2,fma")]
    #[inline]
    fn halves(sums: __m256) -> [__m256d; 2] {
        [
            _mm256_cvtps_pd(_mm256_castps256_ps128(sums)),
            _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(sums)),
        ]
    }

    define_add_gram!(
        "avx2,fma",
        __m256,
        8,
        4,
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_fmadd_ps,
        halves,
        4,
        _mm256_set1_pd,
        _mm256_loadu_pd,
        _mm256_storeu_pd,
        _mm256_fmadd_pd
    );
}

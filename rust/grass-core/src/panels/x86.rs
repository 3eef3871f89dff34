//! The product of two panels in the vector registers of AVX-512 and AVX2.

use std::arch::x86_64::{
    __m256, __m512, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps,
    _mm256_setzero_ps, _mm256_storeu_ps, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps,
    _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
};

use super::{LEFT, RIGHT};

/// Defines `$add_block` for vectors of `$lanes` values, with sums of `$height` rows and two vectors in registers.
macro_rules! define_add_block {
    (
        $add_block:ident, $features:literal, $vector:ty, $lanes:literal, $height:literal,
        $zero:ident, $broadcast:ident, $load:ident, $store:ident, $add:ident, $multiply_add:ident
    ) => {
        /// Adds the product of a left and a right panel to a block of `out`.
        #[target_feature(enable = $features)]
        pub(super) fn $add_block(
            left: &[[f32; LEFT]],
            right: &[[f32; RIGHT]],
            out: &mut [f32],
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

            #[target_feature(enable = $features)]
            fn store(values: &mut [f32; $lanes], vector: $vector) {
                #[expect(unsafe_code, reason = "the instruction takes a pointer")]
                // SAFETY: the reference is to as many values as the instruction writes, at any alignment.
                unsafe {
                    $store(values.as_mut_ptr(), vector);
                }
            }

            for row in (0..LEFT).step_by($height) {
                for column in (0..RIGHT / $lanes).step_by(2) {
                    let mut sums = [[$zero(); 2]; $height];
                    for (left, right) in left.iter().zip(right) {
                        let right = right.as_chunks::<$lanes>().0;
                        let vectors = [load(&right[column]), load(&right[column + 1])];
                        for i in 0..$height {
                            let factor = $broadcast(left[row + i]);
                            for v in 0..2 {
                                sums[i][v] = $multiply_add(factor, vectors[v], sums[i][v]);
                            }
                        }
                    }
                    for (i, sums) in sums.iter().enumerate() {
                        let first = (row + i) * stride + column * $lanes;
                        let out = out[first..first + 2 * $lanes].as_chunks_mut::<$lanes>().0;
                        for (out, &sum) in out.iter_mut().zip(sums) {
                            store(out, $add(load(out), sum));
                        }
                    }
                }
            }
        }
    };
}

define_add_block!(
    add_block_avx512,
    "avx512f",
    __m512,
    16,
    8,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps
);

define_add_block!(
    add_block_avx2,
    "avx2,fma",
    __m256,
    8,
    4,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps
);

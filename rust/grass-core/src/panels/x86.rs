//! The product of two panels, and the packing of rows, in the vector registers of AVX-512 and AVX2.

/// Defines `add_block` for vectors of `$lanes` values, with sums of `$height` rows and two vectors in registers.
macro_rules! define_add_block {
    (
        $features:literal, $vector:ty, $lanes:literal, $height:literal,
        $zero:ident, $broadcast:ident, $load:ident, $store:ident, $add:ident, $multiply_add:ident
    ) => {
        /// Adds the product of a left and a right panel to a block of `out`.
        #[target_feature(enable = $features)]
        pub(in crate::panels) fn add_block(
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

pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_storeu_ps,
    };

    use crate::panels::{LEFT, RIGHT};

    // A panel's token has eight rows.
    pub(in crate::panels) use super::avx2::pack_rows;

    define_add_block!(
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
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m256, _mm256_add_ps, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_set1_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };

    use crate::panels::{LEFT, RIGHT, plain};
    use crate::simd::x86::transpose_8;

    define_add_block!(
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

    /// Packs rows as the columns of a panel.
    #[target_feature(enable = "avx2")]
    pub(in crate::panels) fn pack_rows(rows: [&[f32]; LEFT], panel: &mut [[f32; LEFT]]) {
        let (panel, panel_rest) = panel.as_chunks_mut::<LEFT>();
        for (number, panel) in panel.iter_mut().enumerate() {
            let start = number * LEFT;
            let rows = rows.map(|row| {
                let values: &[f32; LEFT] = row[start..].first_chunk().unwrap_or(&[0.0; LEFT]);
                #[expect(unsafe_code, reason = "the instruction takes a pointer")]
                // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
                unsafe {
                    _mm256_loadu_ps(values.as_ptr())
                }
            });
            for (token, vector) in panel.iter_mut().zip(transpose_8(rows)) {
                #[expect(unsafe_code, reason = "the instruction takes a pointer")]
                // SAFETY: the reference is to as many values as the instruction writes, at any alignment.
                unsafe {
                    _mm256_storeu_ps(token.as_mut_ptr(), vector);
                }
            }
        }
        let start = panel.len() * LEFT;
        plain::pack_rows(rows.map(|row| &row[start..]), panel_rest);
    }
}

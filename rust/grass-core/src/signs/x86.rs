//! Signed sums in the vector registers of AVX-512 and AVX2.

pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m512, _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_loadu_ps,
        _mm512_mask_loadu_ps, _mm512_mask_storeu_ps, _mm512_mask_xor_epi32, _mm512_maskz_loadu_ps,
        _mm512_set1_epi32, _mm512_set1_ps, _mm512_storeu_ps,
    };

    use crate::signs::define_add_signed;

    define_add_signed!(16, #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]);

    /// The values with the signs of the lowest bits.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn signed(values: __m512, bits: u64) -> __m512 {
        let values = _mm512_castps_si512(values);
        let minus = _mm512_set1_epi32(i32::MIN);
        _mm512_castsi512_ps(_mm512_mask_xor_epi32(values, bits as u16, values, minus))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn add_lanes(out: &mut [f32; 16], values: &[f32; 16], bits: u64) {
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: both references are to as many values as the instructions read and write, at any alignment.
        unsafe {
            let values = signed(_mm512_loadu_ps(values.as_ptr()), bits);
            let sums = _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), values);
            _mm512_storeu_ps(out.as_mut_ptr(), sums);
        }
    }

    /// The lanes of `values`, the first of which is number `first`.
    fn lanes(first: usize, values: &[f32]) -> u16 {
        (((1u32 << values.len().min(16)) - 1) << first) as u16
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn add_within(out: &mut [f32; 16], first: usize, values: &[f32], bits: u64) {
        let lanes = lanes(first, values);
        // Adding -0.0 changes nothing.
        let nothing = _mm512_set1_ps(-0.0);
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: of `values` the lanes of the mask alone are read, which lie inside; `out` is one whole vector.
        unsafe {
            let from = values.as_ptr().wrapping_sub(first);
            let values = _mm512_mask_loadu_ps(nothing, lanes, from);
            let values = signed(values, bits << first & u64::from(lanes));
            let sums = _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), values);
            _mm512_storeu_ps(out.as_mut_ptr(), sums);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    fn add_few(out: &mut [f32], values: &[f32], bits: u64) {
        let lanes = lanes(0, values) & lanes(0, out);
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: the instructions read and write the lanes of the mask alone, which lie inside both slices.
        unsafe {
            let values = signed(_mm512_maskz_loadu_ps(lanes, values.as_ptr()), bits);
            let sums = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, out.as_ptr()), values);
            _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, sums);
        }
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m256, __m256i, _mm256_add_ps, _mm256_and_si256, _mm256_andnot_si256, _mm256_blendv_ps,
        _mm256_castsi256_ps, _mm256_cmpgt_epi32, _mm256_loadu_ps, _mm256_maskload_ps,
        _mm256_maskstore_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
        _mm256_sllv_epi32, _mm256_storeu_ps, _mm256_xor_ps,
    };

    use crate::signs::define_add_signed;

    define_add_signed!(8, #[target_feature(enable = "avx2")]);

    /// The values with the signs of the lowest bits.
    #[target_feature(enable = "avx2")]
    fn signed(values: __m256, bits: u64) -> __m256 {
        let to_top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
        let bits = _mm256_sllv_epi32(_mm256_set1_epi32(bits as i32), to_top);
        let minus = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
        _mm256_xor_ps(values, _mm256_castsi256_ps(minus))
    }

    #[target_feature(enable = "avx2")]
    fn add_lanes(out: &mut [f32; 8], values: &[f32; 8], bits: u64) {
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: both references are to as many values as the instructions read and write, at any alignment.
        unsafe {
            let values = signed(_mm256_loadu_ps(values.as_ptr()), bits);
            let sums = _mm256_add_ps(_mm256_loadu_ps(out.as_ptr()), values);
            _mm256_storeu_ps(out.as_mut_ptr(), sums);
        }
    }

    /// All bits set in the lanes of `values`, the first of which is number `first`.
    #[target_feature(enable = "avx2")]
    fn lanes(first: usize, values: &[f32]) -> __m256i {
        let first = first as i32;
        let end = first + values.len().min(8) as i32;
        let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_andnot_si256(
            _mm256_cmpgt_epi32(_mm256_set1_epi32(first), numbers),
            _mm256_cmpgt_epi32(_mm256_set1_epi32(end), numbers),
        )
    }

    #[target_feature(enable = "avx2")]
    fn add_within(out: &mut [f32; 8], first: usize, values: &[f32], bits: u64) {
        let lanes = lanes(first, values);
        // Adding -0.0 changes nothing.
        let nothing = _mm256_set1_ps(-0.0);
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: of `values` the lanes of the mask alone are read, which lie inside; `out` is one whole vector.
        unsafe {
            let from = values.as_ptr().wrapping_sub(first);
            let values = signed(_mm256_maskload_ps(from, lanes), bits << first);
            let values = _mm256_blendv_ps(nothing, values, _mm256_castsi256_ps(lanes));
            let sums = _mm256_add_ps(_mm256_loadu_ps(out.as_ptr()), values);
            _mm256_storeu_ps(out.as_mut_ptr(), sums);
        }
    }

    #[target_feature(enable = "avx2")]
    fn add_few(out: &mut [f32], values: &[f32], bits: u64) {
        let lanes = _mm256_and_si256(lanes(0, values), lanes(0, out));
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: the instructions read and write the lanes of the mask alone, which lie inside both slices.
        unsafe {
            let values = signed(_mm256_maskload_ps(values.as_ptr(), lanes), bits);
            let sums = _mm256_add_ps(_mm256_maskload_ps(out.as_ptr(), lanes), values);
            _mm256_maskstore_ps(out.as_mut_ptr(), lanes, sums);
        }
    }
}

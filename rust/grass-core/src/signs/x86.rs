//! Signed sums in the vector registers of AVX-512 and AVX2.

pub(super) mod avx512 {
    use std::arch::x86_64::{
        __m256i, __m512, _mm256_loadu_si256, _mm256_mask_loadu_epi16, _mm256_set1_epi16,
        _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
        _mm512_cvtph_ps, _mm512_loadu_ps, _mm512_mask_loadu_ps, _mm512_mask_storeu_ps,
        _mm512_mask_xor_epi32, _mm512_maskz_loadu_ps, _mm512_set1_epi32, _mm512_set1_ps,
        _mm512_slli_epi32, _mm512_storeu_ps,
    };

    use half::{bf16, f16};

    use crate::signs::define_add_signed;

    define_add_signed!(
        add_signed_f32, f32, 16, load_f32, load_part_f32,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    );
    define_add_signed!(
        add_signed_f16, f16, 16, load_f16, load_part_f16,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    );
    define_add_signed!(
        add_signed_bf16, bf16, 16, load_bf16, load_part_bf16,
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    );

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_f32(values: &[f32; 16]) -> __m512 {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
        unsafe {
            _mm512_loadu_ps(values.as_ptr())
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_part_f32(values: &[f32], first: usize) -> __m512 {
        let lanes = lanes(values.len()) << first;
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the lanes of the mask alone are read, which lie inside the slice.
        unsafe {
            _mm512_mask_loadu_ps(
                _mm512_set1_ps(-0.0),
                lanes,
                values.as_ptr().wrapping_sub(first),
            )
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_bf16(values: &[bf16; 16]) -> __m512 {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
        unsafe {
            widen_bf16(_mm256_loadu_si256(values.as_ptr().cast()))
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_part_bf16(values: &[bf16], first: usize) -> __m512 {
        widen_bf16(load_part(values, first))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_f16(values: &[f16; 16]) -> __m512 {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
        unsafe {
            _mm512_cvtph_ps(_mm256_loadu_si256(values.as_ptr().cast()))
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_part_f16(values: &[f16], first: usize) -> __m512 {
        _mm512_cvtph_ps(load_part(values, first))
    }

    /// Half precision of either type in the lanes from `first` on, -0.0 in the others.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn load_part<T>(values: &[T], first: usize) -> __m256i {
        const { assert!(size_of::<T>() == 2) }
        let lanes = lanes(values.len()) << first;
        let nothing = _mm256_set1_epi16(i16::MIN);
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the lanes of the mask alone are read, which lie inside the slice.
        unsafe {
            let from = values.as_ptr().wrapping_sub(first);
            _mm256_mask_loadu_epi16(nothing, lanes, from.cast())
        }
    }

    /// The upper half of an f32 is a bf16.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn widen_bf16(values: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(values)))
    }

    /// The first `count` lanes.
    fn lanes(count: usize) -> u16 {
        ((1u32 << count.min(16)) - 1) as u16
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn signed(vector: __m512, bits: u64) -> __m512 {
        let vector = _mm512_castps_si512(vector);
        let minus = _mm512_set1_epi32(i32::MIN);
        _mm512_castsi512_ps(_mm512_mask_xor_epi32(vector, bits as u16, vector, minus))
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn add_to(out: &mut [f32; 16], vector: __m512) {
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: the reference is to as many values as the instructions read and write, at any alignment.
        unsafe {
            let sums = _mm512_add_ps(_mm512_loadu_ps(out.as_ptr()), vector);
            _mm512_storeu_ps(out.as_mut_ptr(), sums);
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    #[inline]
    fn add_to_first(out: &mut [f32], vector: __m512) {
        let lanes = lanes(out.len());
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: the instructions read and write the lanes of the mask alone, which lie inside the slice.
        unsafe {
            let sums = _mm512_add_ps(_mm512_maskz_loadu_ps(lanes, out.as_ptr()), vector);
            _mm512_mask_storeu_ps(out.as_mut_ptr(), lanes, sums);
        }
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        __m128i, __m256, __m256i, _mm_loadu_si128, _mm_setr_epi16, _mm256_add_ps, _mm256_and_si256,
        _mm256_andnot_si256, _mm256_blendv_ps, _mm256_castsi256_ps, _mm256_cmpgt_epi32,
        _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_loadu_ps, _mm256_maskload_ps,
        _mm256_maskstore_ps, _mm256_set1_epi32, _mm256_set1_ps, _mm256_setr_epi32,
        _mm256_slli_epi32, _mm256_sllv_epi32, _mm256_storeu_ps, _mm256_xor_ps,
    };

    use half::{bf16, f16};

    use crate::signs::define_add_signed;

    define_add_signed!(
        add_signed_f32, f32, 8, load_f32, load_part_f32,
        #[target_feature(enable = "avx2,f16c")]
    );
    define_add_signed!(
        add_signed_f16, f16, 8, load_f16, load_part_f16,
        #[target_feature(enable = "avx2,f16c")]
    );
    define_add_signed!(
        add_signed_bf16, bf16, 8, load_bf16, load_part_bf16,
        #[target_feature(enable = "avx2,f16c")]
    );

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn load_f32(values: &[f32; 8]) -> __m256 {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
        unsafe {
            _mm256_loadu_ps(values.as_ptr())
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn load_part_f32(values: &[f32], first: usize) -> __m256 {
        let lanes = lanes(first, values.len());
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the lanes of the mask alone are read, which lie inside the slice.
        let part = unsafe { _mm256_maskload_ps(values.as_ptr().wrapping_sub(first), lanes) };
        _mm256_blendv_ps(_mm256_set1_ps(-0.0), part, _mm256_castsi256_ps(lanes))
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn load_bf16(values: &[bf16; 8]) -> __m256 {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
        unsafe {
            widen_bf16(_mm_loadu_si128(values.as_ptr().cast()))
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn load_part_bf16(values: &[bf16], first: usize) -> __m256 {
        widen_bf16(part_of(first, |lane| {
            values.get(lane).map(|value| value.to_bits())
        }))
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn load_f16(values: &[f16; 8]) -> __m256 {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction reads, at any alignment.
        unsafe {
            _mm256_cvtph_ps(_mm_loadu_si128(values.as_ptr().cast()))
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn load_part_f16(values: &[f16], first: usize) -> __m256 {
        _mm256_cvtph_ps(part_of(first, |lane| {
            values.get(lane).map(|value| value.to_bits())
        }))
    }

    /// Half precision of either type in the lanes from `first` on, -0.0 in the others.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn part_of(first: usize, bits: impl Fn(usize) -> Option<u16>) -> __m128i {
        let lane = |lane: usize| {
            lane.checked_sub(first)
                .and_then(&bits)
                .map_or(i16::MIN, u16::cast_signed)
        };
        _mm_setr_epi16(
            lane(0),
            lane(1),
            lane(2),
            lane(3),
            lane(4),
            lane(5),
            lane(6),
            lane(7),
        )
    }

    /// The upper half of an f32 is a bf16.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn widen_bf16(values: __m128i) -> __m256 {
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(values)))
    }

    /// All bits set in `count` lanes from number `first` on.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn lanes(first: usize, count: usize) -> __m256i {
        let (first, end) = (first as i32, (first + count).min(8) as i32);
        let numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_andnot_si256(
            _mm256_cmpgt_epi32(_mm256_set1_epi32(first), numbers),
            _mm256_cmpgt_epi32(_mm256_set1_epi32(end), numbers),
        )
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn signed(vector: __m256, bits: u64) -> __m256 {
        let to_top = _mm256_setr_epi32(31, 30, 29, 28, 27, 26, 25, 24);
        let bits = _mm256_sllv_epi32(_mm256_set1_epi32(bits as i32), to_top);
        let minus = _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN));
        _mm256_xor_ps(vector, _mm256_castsi256_ps(minus))
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn add_to(out: &mut [f32; 8], vector: __m256) {
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: the reference is to as many values as the instructions read and write, at any alignment.
        unsafe {
            let sums = _mm256_add_ps(_mm256_loadu_ps(out.as_ptr()), vector);
            _mm256_storeu_ps(out.as_mut_ptr(), sums);
        }
    }

    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn add_to_first(out: &mut [f32], vector: __m256) {
        let lanes = lanes(0, out.len());
        #[expect(unsafe_code, reason = "the instructions take pointers")]
        // SAFETY: the instructions read and write the lanes of the mask alone, which lie inside the slice.
        unsafe {
            let sums = _mm256_add_ps(_mm256_maskload_ps(out.as_ptr(), lanes), vector);
            _mm256_maskstore_ps(out.as_mut_ptr(), lanes, sums);
        }
    }
}

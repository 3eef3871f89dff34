//! Blocks side by side in the vector registers of AVX-512 and AVX2.
//!
//! A lane holds a word in 64 bits, of which the upper half is never looked at: products need no shuffling. The rounds of
//! a block wait for one another, so some vectors of blocks take turns.

/// Defines `fill_blocks` for `$chains` vectors of `$lanes` blocks.
macro_rules! define_fill_blocks {
    (
        $features:literal, $vector:ident, $lanes:literal, $chains:literal, $numbers:expr, $store:ident,
        $set:ident, $set_32:ident, $add:ident, $multiply:ident, $right:ident
    ) => {
        use std::arch::x86_64::{$add, $multiply, $right, $set, $set_32, $store, $vector};

        use crate::philox::{MULTIPLIERS, round_keys};

        /// Fills `words` with the double words of a stream's blocks from number `first` on; the last one may be cut.
        #[target_feature(enable = $features)]
        pub(in crate::philox) fn fill_blocks(
            key: [u32; 2],
            stream: u32,
            first: u64,
            words: &mut [u64],
        ) {
            let keys = round_keys(key);
            let mut m = first;
            let (whole, rest) = words.as_chunks_mut::<{ 2 * $lanes * $chains }>();
            for words in whole {
                fill_lanes(&keys, stream, m, words);
                m = m.wrapping_add($lanes * $chains);
            }
            if !rest.is_empty() {
                let mut words = [0; 2 * $lanes * $chains];
                fill_lanes(&keys, stream, m, &mut words);
                rest.copy_from_slice(&words[..rest.len()]);
            }
        }

        /// One round of a vector of blocks.
        #[target_feature(enable = $features)]
        #[inline]
        fn round(
            counter: [$vector; 4],
            key: [$vector; 2],
            multipliers: [$vector; 2],
        ) -> [$vector; 4] {
            let first = $multiply(counter[0], multipliers[0]);
            let second = $multiply(counter[2], multipliers[1]);
            [
                xor($right::<32>(second), counter[1], key[0]),
                second,
                xor($right::<32>(first), counter[3], key[1]),
                first,
            ]
        }

        /// The double words of the blocks from number `first` on.
        #[target_feature(enable = $features)]
        fn fill_lanes(
            keys: &[[u32; 2]],
            stream: u32,
            first: u64,
            words: &mut [u64; 2 * $lanes * $chains],
        ) {
            let multipliers = MULTIPLIERS.map(|multiplier| $set(i64::from(multiplier)));
            let mut counters = [[$set(0); 4]; $chains];
            for (chain, counter) in counters.iter_mut().enumerate() {
                let start = first.wrapping_add((chain * $lanes) as u64);
                let numbers = $add($set(start as i64), $numbers);
                *counter = [
                    numbers,
                    $right::<32>(numbers),
                    $set(i64::from(stream)),
                    $set(0),
                ];
            }
            // Two rounds at a time: each leaves the words where the next but one looks for them.
            for [first, second] in keys.as_chunks::<2>().0 {
                let first = first.map(|word| $set_32(word as i32));
                let second = second.map(|word| $set_32(word as i32));
                for counter in &mut counters {
                    *counter = round(round(*counter, first, multipliers), second, multipliers);
                }
            }
            let words = words.as_chunks_mut::<$lanes>().0.as_chunks_mut::<2>().0;
            for (words, counter) in words.iter_mut().zip(counters) {
                let vectors =
                    interleave(join(counter[0], counter[1]), join(counter[2], counter[3]));
                for (words, vector) in words.iter_mut().zip(vectors) {
                    #[expect(unsafe_code, reason = "the instruction takes a pointer")]
                    // SAFETY: the reference is to as many words as the instruction writes, at any alignment.
                    unsafe {
                        $store(words.as_mut_ptr().cast(), vector);
                    }
                }
            }
        }
    };
}

pub(super) mod avx512 {
    use std::arch::x86_64::{
        _mm512_mask_blend_epi32, _mm512_permutex2var_epi64, _mm512_setr_epi64, _mm512_slli_epi64,
        _mm512_ternarylogic_epi64,
    };

    define_fill_blocks!(
        "avx512f",
        __m512i,
        8,
        4,
        _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7),
        _mm512_storeu_si512,
        _mm512_set1_epi64,
        _mm512_set1_epi32,
        _mm512_add_epi64,
        _mm512_mul_epu32,
        _mm512_srli_epi64
    );

    #[target_feature(enable = "avx512f")]
    fn xor(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        _mm512_ternarylogic_epi64::<0x96>(a, b, c)
    }

    /// The lower halves of the lanes, those of `high` as the upper halves.
    #[target_feature(enable = "avx512f")]
    fn join(low: __m512i, high: __m512i) -> __m512i {
        _mm512_mask_blend_epi32(0xAAAA, low, _mm512_slli_epi64::<32>(high))
    }

    /// Lanes of both vectors in turn.
    #[target_feature(enable = "avx512f")]
    fn interleave(even: __m512i, odd: __m512i) -> [__m512i; 2] {
        let first = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
        let second = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
        [first, second].map(|lanes| _mm512_permutex2var_epi64(even, lanes, odd))
    }
}

pub(super) mod avx2 {
    use std::arch::x86_64::{
        _mm256_blend_epi32, _mm256_permute2x128_si256, _mm256_setr_epi64x, _mm256_slli_epi64,
        _mm256_unpackhi_epi64, _mm256_unpacklo_epi64, _mm256_xor_si256,
    };

    define_fill_blocks!(
        "avx2",
        __m256i,
        4,
        3,
        _mm256_setr_epi64x(0, 1, 2, 3),
        _mm256_storeu_si256,
        _mm256_set1_epi64x,
        _mm256_set1_epi32,
        _mm256_add_epi64,
        _mm256_mul_epu32,
        _mm256_srli_epi64
    );

    #[target_feature(enable = "avx2")]
    fn xor(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        _mm256_xor_si256(_mm256_xor_si256(a, b), c)
    }

    /// The lower halves of the lanes, those of `high` as the upper halves.
    #[target_feature(enable = "avx2")]
    fn join(low: __m256i, high: __m256i) -> __m256i {
        _mm256_blend_epi32::<0xAA>(low, _mm256_slli_epi64::<32>(high))
    }

    /// Lanes of both vectors in turn.
    #[target_feature(enable = "avx2")]
    fn interleave(even: __m256i, odd: __m256i) -> [__m256i; 2] {
        let (low, high) = (
            _mm256_unpacklo_epi64(even, odd),
            _mm256_unpackhi_epi64(even, odd),
        );
        [
            _mm256_permute2x128_si256::<0x20>(low, high),
            _mm256_permute2x128_si256::<0x31>(low, high),
        ]
    }
}

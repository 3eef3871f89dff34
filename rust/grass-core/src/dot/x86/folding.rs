//! Products with a few queries, and beside them the CRC-32 of the bytes that the rows are among.
//!
//! Folding is bounded by the multiplications without carry, the products by the loads, and a core does both at once.

use std::arch::x86_64::{
    __m512i, _mm512_clmulepi64_epi128, _mm512_loadu_si512, _mm512_set4_epi64, _mm512_setzero_si512,
    _mm512_storeu_si512, _mm512_ternarylogic_epi64,
};

use super::avx512::{add_lanes, load, load_query, load_rest, multiply_add, zero};
use crate::dot::checksum::FOLDED;
use crate::dot::{
    Bfloat16, Checksum, Float, Float16, Float32, Format, LANES, Lanes, Rows, for_format_and_queries,
};

/// Bytes of a register.
const LINE: usize = 64;

/// The remainders of x^(2048 + 32) and x^(2048 - 32), bits in reverse, by which the lower and the upper half of 16 bytes
/// are multiplied to be folded.
const BETWEEN: (i64, i64) = (0x1_1542_778A, 0x1_322D_1430);

define_float_products!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,vpclmulqdq",
    4,
    Folding<'_>
);

/// Adds the products of rows and the queries of a tile, and folds about as many bytes as are multiplied.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,vpclmulqdq")]
pub(super) fn add_float_products(
    float: Float,
    rows: Rows<'_>,
    length: usize,
    tile: &[Lanes],
    sums: &mut [f64],
    checksum: &mut Checksum<'_>,
) {
    let mut folding = Folding::begin(checksum);
    add_products(float, rows, length, tile, sums, &mut folding);
    folding.end(checksum);
}

/// A checksum in registers.
#[derive(Clone, Copy)]
struct Folding<'a> {
    folded: [__m512i; FOLDED / LINE],
    left: &'a [[u8; FOLDED]],
}

impl<'a> Folding<'a> {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn begin(checksum: &Checksum<'a>) -> Self {
        Self {
            folded: load_lines(&checksum.folded),
            left: checksum.left,
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn end(self, checksum: &mut Checksum<'a>) {
        let (lines, _) = checksum.folded.as_chunks_mut::<LINE>();
        for (line, folded) in lines.iter_mut().zip(self.folded) {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: the reference is to as many bytes as the instruction writes, at any alignment.
            unsafe {
                _mm512_storeu_si512(line.as_mut_ptr().cast(), folded);
            }
        }
        checksum.left = self.left;
    }
}

/// Folds the next bytes, where there are some: a tile of four rows has multiplied as many.
#[target_feature(enable = "avx512f,vpclmulqdq")]
#[inline]
fn step<F: Format>(folding: &mut Folding<'_>, index: usize) {
    // Four blocks of half precision are half as many bytes.
    if index.is_multiple_of(4 / F::FLOAT.bytes())
        && let Some((next, left)) = folding.left.split_first()
    {
        folding.left = left;
        let (low, high) = BETWEEN;
        let between = _mm512_set4_epi64(high, low, high, low);
        for (folded, next) in folding.folded.iter_mut().zip(load_lines(next)) {
            let low = _mm512_clmulepi64_epi128::<0x00>(*folded, between);
            let high = _mm512_clmulepi64_epi128::<0x11>(*folded, between);
            // The table of the exclusive or of three.
            *folded = _mm512_ternarylogic_epi64::<0x96>(low, high, next);
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn load_lines(bytes: &[u8; FOLDED]) -> [__m512i; FOLDED / LINE] {
    let mut loaded = [_mm512_setzero_si512(); FOLDED / LINE];
    for (loaded, line) in loaded.iter_mut().zip(bytes.as_chunks::<LINE>().0) {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many bytes as the instruction reads, at any alignment.
        let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
        *loaded = line;
    }
    loaded
}

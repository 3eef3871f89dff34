//! Sixteen lanes in one register, whole numbers with VNNI where the processor has it.

use std::arch::x86_64::{
    __m256i, __m512, __m512i, _mm256_loadu_si256, _mm256_maskz_loadu_epi16, _mm512_add_epi32,
    _mm512_add_ps, _mm512_castps_si512, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_loadu_si512,
    _mm512_mask_blend_ps, _mm512_maskz_loadu_epi8, _mm512_maskz_loadu_ps, _mm512_set1_epi8,
    _mm512_setzero_ps, _mm512_setzero_si512, _mm512_shuffle_f32x4, _mm512_shuffle_ps,
    _mm512_slli_epi32, _mm512_storeu_ps, _mm512_storeu_si512, _mm512_xor_si512,
};

use super::{avx2, folding};
use crate::dot::{
    Bfloat16, Checksum, Float, Float16, Float32, Format, INT8_RUN, Int8Tile, LANES, Lanes, NUMBERS,
    Numbers, Rows, for_format_and_queries,
};

const _: () = assert!(INT8_RUN as u64 * 255 * 128 < 1 << 31);

define_float_products!("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c", 4, ());

/// Adds the products of rows and the queries of a tile, and takes the checksum beside them.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(in crate::dot) fn add_float_products(
    float: Float,
    rows: Rows<'_>,
    length: usize,
    tile: &[Lanes],
    sums: &mut [f64],
    checksum: Option<&mut Checksum<'_>>,
) {
    let Some(checksum) = checksum else {
        return add_products(float, rows, length, tile, sums, &mut ());
    };
    #[expect(
        unsafe_code,
        reason = "calls a function compiled for instructions that not every machine has"
    )]
    // SAFETY: there is a `Checksum` only where the processor was asked for them.
    unsafe {
        folding::add_float_products(float, rows, length, tile, sums, checksum);
    }
}

/// Nothing is done beside the products.
#[inline(always)]
fn step<F: Format>(_beside: &mut (), _index: usize) {}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn zero() -> __m512 {
    _mm512_setzero_ps()
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn multiply_add(left: __m512, right: __m512, sum: __m512) -> __m512 {
    _mm512_fmadd_ps(left, right, sum)
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load_query(lanes: &Lanes) -> __m512 {
    #[expect(unsafe_code, reason = "the instruction takes a pointer")]
    // SAFETY: the reference is to as many values as the instruction reads.
    unsafe {
        _mm512_loadu_ps(lanes.0.as_ptr())
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn load<F: Format>(block: &F::Block) -> __m512 {
    let bytes: *const u8 = block.as_ref().as_ptr();
    match F::FLOAT {
        Float::Float32 => {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: a block has the bytes of one number a lane, which the instruction reads at any alignment.
            unsafe {
                _mm512_loadu_ps(bytes.cast())
            }
        }
        Float::Float16 | Float::Bfloat16 => {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: a block has the bytes of one number a lane, which the instruction reads at any alignment.
            widen::<F>(unsafe { _mm256_loadu_si256(bytes.cast()) })
        }
    }
}

/// The numbers of a row after its last whole block, zeros in the other lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
#[inline]
pub(super) fn load_rest<F: Format>(rest: &[u8]) -> __m512 {
    let mask = (1u16 << (rest.len() / F::FLOAT.bytes())) - 1;
    match F::FLOAT {
        Float::Float32 => {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: the instruction touches the numbers of the mask alone, which `rest` holds.
            unsafe {
                _mm512_maskz_loadu_ps(mask, rest.as_ptr().cast())
            }
        }
        Float::Float16 | Float::Bfloat16 => {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: the instruction touches the numbers of the mask alone, which `rest` holds.
            widen::<F>(unsafe { _mm256_maskz_loadu_epi16(mask, rest.as_ptr().cast()) })
        }
    }
}

#[target_feature(enable = "avx512f")]
#[inline]
fn widen<F: Format>(halves: __m256i) -> __m512 {
    match F::FLOAT {
        Float::Float16 => _mm512_cvtph_ps(halves),
        _ => _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves))),
    }
}

/// Adds the lanes of every total to its sum.
#[target_feature(enable = "avx512f")]
#[inline]
pub(super) fn add_lanes<const R: usize, const Q: usize>(
    totals: [[__m512; Q]; R],
    sums: &mut [f64],
) {
    let mut values = [[0f32; LANES]; 2];
    for (values, &four) in values.iter_mut().zip(&sums_of_lanes::<false, R, Q>(totals)) {
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many values as the instruction writes.
        unsafe {
            _mm512_storeu_ps(values.as_mut_ptr(), four);
        }
    }
    for (row, sums) in sums.chunks_exact_mut(Q).enumerate() {
        for (query, sum) in sums.iter_mut().enumerate() {
            *sum += f64::from(values[query / 4][4 * row + query % 4]);
        }
    }
}

/// The sum of each total's lanes: lanes half the length apart are added until one is left. Lane 4 r + q mod 4 of vector
/// q / 4 is for row r and query q.
#[target_feature(enable = "avx512f")]
#[inline]
fn sums_of_lanes<const WHOLE: bool, const R: usize, const Q: usize>(
    totals: [[__m512; Q]; R],
) -> [__m512; 2] {
    // Of a query, the four lanes that are left of each row.
    let mut fours = [zero(); 8];
    for query in 0..Q {
        let mut rows = [zero(); 4];
        for row in 0..R {
            rows[row] = totals[row][query];
        }
        let pairs = [
            add_halves::<WHOLE>(rows[0], rows[1]),
            add_halves::<WHOLE>(rows[2], rows[3]),
        ];
        let even = _mm512_shuffle_f32x4::<0x88>(pairs[0], pairs[1]);
        fours[query] = add::<WHOLE>(even, _mm512_shuffle_f32x4::<0xDD>(pairs[0], pairs[1]));
    }
    let mut twos = [zero(); 4];
    for (two, pair) in twos.iter_mut().zip(fours.as_chunks::<2>().0) {
        let own = _mm512_mask_blend_ps(0xCCCC, pair[0], pair[1]);
        *two = add::<WHOLE>(own, _mm512_shuffle_ps::<0x4E>(pair[0], pair[1]));
    }
    let mut ones = [zero(); 2];
    for (one, pair) in ones.iter_mut().zip(twos.as_chunks::<2>().0) {
        let even = _mm512_shuffle_ps::<0x88>(pair[0], pair[1]);
        *one = add::<WHOLE>(even, _mm512_shuffle_ps::<0xDD>(pair[0], pair[1]));
    }
    ones
}

/// Of each of two vectors, lane l plus lane l + 8: those of the first, then those of the second.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_halves<const WHOLE: bool>(left: __m512, right: __m512) -> __m512 {
    // A blend where a second shuffle would do: there is one unit for shuffles.
    let own = _mm512_mask_blend_ps(0xFF00, left, right);
    add::<WHOLE>(own, _mm512_shuffle_f32x4::<0x4E>(left, right))
}

/// The sum of two vectors, whose lanes are whole numbers or floats.
#[target_feature(enable = "avx512f")]
#[inline]
fn add<const WHOLE: bool>(left: __m512, right: __m512) -> __m512 {
    if WHOLE {
        let (left, right) = (_mm512_castps_si512(left), _mm512_castps_si512(right));
        _mm512_castsi512_ps(_mm512_add_epi32(left, right))
    } else {
        _mm512_add_ps(left, right)
    }
}

/// The products of rows and the queries of a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(in crate::dot) fn int8_products(
    rows: Rows<'_>,
    length: usize,
    tile: Int8Tile<'_>,
    products: &mut [i32],
) {
    if is_x86_feature_detected!("avx512vnni") {
        #[expect(
            unsafe_code,
            reason = "calls a function compiled for instructions that not every machine has"
        )]
        // SAFETY: the processor was asked for them.
        unsafe {
            vnni::int8_products(rows, length, tile, products);
        }
    } else {
        avx2::int8_products(rows, length, tile, products);
    }
}

mod vnni {
    use super::*;

    define_int8_products!("avx512f,avx512bw,avx512vnni", 4);

    /// The instruction multiplies unsigned by signed bytes: the rows' numbers go in plus 128, and 128 times the sum of
    /// the query's numbers comes off.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline]
    fn int8_tile<const R: usize, const Q: usize>(
        rows: [&[u8]; R],
        tile: Int8Tile<'_>,
        products: &mut [i32],
    ) {
        let (numbers, _) = tile.numbers.as_chunks::<Q>();
        let whole = rows[0].len() / NUMBERS;
        let (numbers, last) = numbers.split_at(whole);
        let mut lanes = multiply_blocks(rows, numbers);
        if let [last] = last {
            for row in 0..R {
                let values = raised(load_rest(rows[row].as_chunks::<NUMBERS>().1));
                for query in 0..Q {
                    let total = _mm512_castps_si512(lanes[row][query]);
                    let total = _mm512_dpbusd_epi32(total, values, load(&last[query].0));
                    lanes[row][query] = _mm512_castsi512_ps(total);
                }
            }
        }
        let mut values = [[0i32; LANES]; 2];
        for (values, &four) in values.iter_mut().zip(&sums_of_lanes::<true, R, Q>(lanes)) {
            #[expect(unsafe_code, reason = "the instruction takes a pointer")]
            // SAFETY: the reference is to as many values as the instruction writes.
            unsafe {
                _mm512_storeu_si512(values.as_mut_ptr().cast(), _mm512_castps_si512(four));
            }
        }
        for (row, products) in products.chunks_exact_mut(Q).enumerate() {
            for (query, product) in products.iter_mut().enumerate() {
                let raised = values[query / 4][4 * row + query % 4];
                *product = raised - 128 * tile.sums[query];
            }
        }
    }

    /// The loop over whole blocks; its lanes are whole numbers. A function of its own, as the compiler then keeps all totals
    /// in registers.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    #[inline(never)]
    fn multiply_blocks<const R: usize, const Q: usize>(
        rows: [&[u8]; R],
        numbers: &[[Numbers; Q]],
    ) -> [[__m512; Q]; R] {
        let mut blocks = [[].as_slice(); R];
        for row in 0..R {
            blocks[row] = &rows[row].as_chunks::<NUMBERS>().0[..numbers.len()];
        }
        let mut totals = [[_mm512_setzero_si512(); Q]; R];
        for (index, queries) in numbers.iter().enumerate() {
            let mut values = [_mm512_setzero_si512(); R];
            for row in 0..R {
                values[row] = raised(load(&blocks[row][index]));
            }
            for query in 0..Q {
                let numbers = load(&queries[query].0);
                for row in 0..R {
                    totals[row][query] =
                        _mm512_dpbusd_epi32(totals[row][query], values[row], numbers);
                }
            }
        }
        let mut lanes = [[zero(); Q]; R];
        for row in 0..R {
            for query in 0..Q {
                lanes[row][query] = _mm512_castsi512_ps(totals[row][query]);
            }
        }
        lanes
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn raised(numbers: __m512i) -> __m512i {
        _mm512_xor_si512(numbers, _mm512_set1_epi8(-128))
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load<T>(numbers: &[T; NUMBERS]) -> __m512i {
        const { assert!(size_of::<T>() == 1) };
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the reference is to as many bytes as the instruction reads, at any alignment.
        unsafe {
            _mm512_loadu_si512(numbers.as_ptr().cast())
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn load_rest(rest: &[u8]) -> __m512i {
        let mask = (1u64 << rest.len()) - 1;
        #[expect(unsafe_code, reason = "the instruction takes a pointer")]
        // SAFETY: the instruction touches the bytes of the mask alone, which `rest` holds.
        unsafe {
            _mm512_maskz_loadu_epi8(mask, rest.as_ptr().cast())
        }
    }
}

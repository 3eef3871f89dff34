//! From f32 to the shorter types that rows are stored in, little endian; every number is rounded to nearest, halves to even.

use crate::simd::{Path, for_each_path};

/// The bits of a number without its sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
/// The magnitude of infinity; those of NaNs are larger.
const INFINITE: u32 = 0x7F80_0000;
/// The largest whole number of an int8 column; -128 is not used, so that the range is symmetric.
const INT8_MAX: f32 = 127.0;
/// Adding it to a number below 2^22 and taking it away again rounds the number to a whole one, halves to even.
const ROUNDING: f32 = 12_582_912.0;

/// Whether any number's magnitude, as bits, is at least `limit`; of those of NaNs all are above that of infinity.
pub fn any_reaches(path: Path, limit: u32, values: &[f32]) -> bool {
    let mut any = false;
    find_any(path, limit, values, &mut any);
    any
}

for_each_path! {
    fn find_any(limit: u32, values: &[f32], any: &mut bool) = find_any_body
}

#[inline(always)]
fn find_any_body(limit: u32, values: &[f32], any: &mut bool) {
    // The sign bit of a sum is set where the magnitude reaches the limit: no branch a number.
    let sums = values.iter().fold(0, |sums, value| {
        sums | ((value.to_bits() & MAGNITUDE) + (!MAGNITUDE - limit))
    });
    *any = sums > MAGNITUDE;
}

for_each_path! {
    /// Writes numbers in half precision, two bytes each. NaNs stay NaNs; what rounds to 65536 or more becomes infinite.
    pub fn f32_to_f16(values: &[f32], out: &mut [u8]) = f32_to_f16_body
}

#[inline(always)]
fn f32_to_f16_body(values: &[f32], out: &mut [u8]) {
    for (bytes, &value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = f16_bits(value).to_le_bytes();
    }
}

/// The number in half precision: without a branch, so that the compiler makes vectors of it.
#[inline(always)]
fn f16_bits(value: f32) -> u16 {
    /// The smallest normal number and 65536, whose exponent is that of infinity.
    const NORMAL: u32 = (127 - 14) << 23;
    const ABOVE: u32 = (127 + 16) << 23;
    /// One half: the last bit of a sum with it has the weight of a subnormal number's last bit.
    const HALF: u32 = (127 - 1) << 23;
    /// The difference of the exponents' biases.
    const BIAS: u32 = (127 - 15) << 23;
    let bits = value.to_bits();
    let magnitude = bits & MAGNITUDE;
    let odd = magnitude >> 13 & 1;
    let normal = magnitude.wrapping_sub(BIAS).wrapping_add(0xFFF + odd) >> 13;
    let subnormal = (f32::from_bits(magnitude) + f32::from_bits(HALF)).to_bits() - HALF;
    let quiet = 0x7E00 | magnitude >> 13 & 0x3FF;
    let finite = if magnitude < NORMAL {
        subnormal
    } else {
        normal
    };
    let unbounded = if magnitude > INFINITE { quiet } else { 0x7C00 };
    let chosen = if magnitude < ABOVE { finite } else { unbounded };
    (chosen | bits >> 16 & 0x8000) as u16
}

for_each_path! {
    /// Writes numbers as bfloat16, two bytes each. NaNs stay NaNs.
    pub fn f32_to_bf16(values: &[f32], out: &mut [u8]) = f32_to_bf16_body
}

#[inline(always)]
fn f32_to_bf16_body(values: &[f32], out: &mut [u8]) {
    for (bytes, &value) in out.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = bf16_bits(value).to_le_bytes();
    }
}

/// The upper half of a number's bits, rounded.
#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
    let quiet = bits >> 16 | 0x40;
    let chosen = if bits & MAGNITUDE > INFINITE {
        quiet
    } else {
        rounded
    };
    chosen as u16
}

/// The value of one step of an int8 column: its largest magnitude over 127, NaN if one is infinite or NaN.
pub fn int8_scale(path: Path, column: &[f32]) -> f32 {
    let mut largest = 0.0;
    find_largest(path, column, &mut largest);
    if !largest.is_finite() {
        return f32::NAN;
    }
    // A subnormal scale would lose the precision that the division of the values needs.
    let scale = (largest / INT8_MAX).max(f32::MIN_POSITIVE);
    match largest {
        0.0 => 0.0,
        // Rounded up, the scale of the largest numbers would read back as infinity.
        _ if (scale * INT8_MAX).is_infinite() => scale.next_down(),
        _ => scale,
    }
}

for_each_path! {
    /// The largest magnitude, or NaN if one is infinite or NaN.
    fn find_largest(column: &[f32], largest: &mut f32) = find_largest_body
}

#[inline(always)]
fn find_largest_body(column: &[f32], largest: &mut f32) {
    // Magnitudes are in the order of their bits, and the compiler makes vectors of a maximum of whole numbers.
    let bits = column.iter().fold(0, |largest: u32, value| {
        largest.max(value.to_bits() & MAGNITUDE)
    });
    *largest = match bits < INFINITE {
        true => f32::from_bits(bits),
        false => f32::NAN,
    };
}

/// Writes the whole numbers of a column with this scale, a byte each; all are 0 where it is 0 or NaN.
pub fn f32_to_int8(path: Path, column: &[f32], scale: f32, out: &mut [u8]) {
    if scale.is_nan() || scale == 0.0 {
        out.fill(0);
        return;
    }
    quantise(path, column, scale, out);
}

for_each_path! {
    fn quantise(column: &[f32], scale: f32, out: &mut [u8]) = quantise_body
}

#[inline(always)]
fn quantise_body(column: &[f32], scale: f32, out: &mut [u8]) {
    for (byte, value) in out.iter_mut().zip(column) {
        let number = (value / scale).clamp(-INT8_MAX, INT8_MAX);
        // The low bits of the sum are the rounded number in two's complement.
        *byte = (number + ROUNDING).to_bits() as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::{bf16, f16};
    use proptest::prelude::*;

    /// Every upper half of an f32, with lower halves around what rounds to either side; and halfway between subnormal
    /// numbers of half precision, at which those are not.
    fn edges() -> Vec<f32> {
        let mut values = Vec::new();
        for upper in 0..=u32::from(u16::MAX) {
            for lower in [
                0, 1, 0xFFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xF000, 0xFFFF,
            ] {
                values.push(f32::from_bits(upper << 16 | lower));
            }
        }
        for step in 0..4096i16 {
            let value = f32::from(step) * 2f32.powi(-25);
            values.extend([value.next_down(), value, value.next_up(), -value]);
        }
        values
    }

    fn assert_converts(values: &[f32]) {
        let mut bytes = vec![0; 2 * values.len()];
        for path in Path::available() {
            f32_to_f16(path, values, &mut bytes);
            for (&value, bytes) in values.iter().zip(bytes.as_chunks().0) {
                let expected = f16::from_f32_const(value).to_bits();
                assert_eq!(u16::from_le_bytes(*bytes), expected, "{path:?} {value:e}");
            }
            f32_to_bf16(path, values, &mut bytes);
            for (&value, bytes) in values.iter().zip(bytes.as_chunks().0) {
                let expected = bf16::from_f32(value).to_bits();
                assert_eq!(u16::from_le_bytes(*bytes), expected, "{path:?} {value:e}");
            }
        }
    }

    #[test]
    fn halves_are_those_of_the_crate_half_at_every_edge() {
        assert_converts(&edges());
    }

    #[test]
    fn a_column_that_is_not_finite_has_no_scale() {
        for path in Path::available() {
            for place in [0, 16, 35, 36] {
                for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    let mut column = [3e38; 37];
                    column[place] = bad;
                    assert!(int8_scale(path, &column).is_nan(), "{path:?} {place}");
                    let mut bytes = [1; 37];
                    f32_to_int8(path, &column, f32::NAN, &mut bytes);
                    assert_eq!(bytes, [0; 37]);
                }
            }
        }
    }

    proptest! {
        #[test]
        fn halves_are_those_of_the_crate_half(bits in proptest::collection::vec(any::<u32>(), 1..100)) {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            assert_converts(&values);
        }

        #[test]
        fn a_limit_is_reached_where_one_number_reaches_it(bits in proptest::collection::vec(any::<u32>(), 0..40), limit in 0..MAGNITUDE) {
            let values: Vec<f32> = bits.iter().copied().map(f32::from_bits).collect();
            for path in Path::available() {
                let expected = bits.iter().any(|bits| bits & MAGNITUDE >= limit);
                prop_assert_eq!(any_reaches(path, limit, &values), expected);
            }
        }

        #[test]
        fn int8_numbers_are_rounded_quotients(values in proptest::collection::vec(-1e3f32..1e3, 1..70), exponent in -120i32..100) {
            let column: Vec<f32> = values.iter().map(|value| value * 2f32.powi(exponent)).collect();
            for path in Path::available() {
                let scale = int8_scale(path, &column);
                let mut bytes = vec![0; column.len()];
                f32_to_int8(path, &column, scale, &mut bytes);
                for (&byte, &value) in bytes.iter().zip(&column) {
                    let expected = if scale == 0.0 { 0.0 } else { (value / scale).round_ties_even() };
                    prop_assert_eq!(f32::from(byte.cast_signed()), expected);
                }
            }
        }

        #[test]
        fn an_int8_scale_is_the_largest_magnitude_over_127(values in proptest::collection::vec(-1e3f32..1e3, 1..70)) {
            let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
            for path in Path::available() {
                prop_assert_eq!(int8_scale(path, &values), largest / 127.0);
            }
        }
    }
}

//! The types of values, and how slices of them become f32.

use half::{bf16, f16};

use crate::simd::{Path, for_each_path};

/// A floating-point type that compressors read; they accumulate in f32.
pub trait Element: Copy + Send + Sync + 'static {
    /// The value, rounded to f32.
    fn to_f32(self) -> f32;

    /// `source` as f32: itself where it already is, otherwise converted into `buffer`, which is as long.
    fn slice_as_f32<'a>(source: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32];
}

impl Element for f32 {
    #[inline]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline]
    fn slice_as_f32<'a>(source: &'a [Self], _buffer: &'a mut [f32]) -> &'a [f32] {
        source
    }
}

impl Element for f64 {
    #[inline]
    fn to_f32(self) -> f32 {
        self as f32
    }

    #[inline]
    fn slice_as_f32<'a>(source: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        convert_f64(Path::current(), source, buffer);
        buffer
    }
}

impl Element for bf16 {
    #[inline]
    fn to_f32(self) -> f32 {
        widen_bf16(self)
    }

    #[inline]
    fn slice_as_f32<'a>(source: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        convert_bf16(Path::current(), source, buffer);
        buffer
    }
}

impl Element for f16 {
    #[inline]
    fn to_f32(self) -> f32 {
        widen_f16(self)
    }

    #[inline]
    fn slice_as_f32<'a>(source: &'a [Self], buffer: &'a mut [f32]) -> &'a [f32] {
        convert_f16(Path::current(), source, buffer);
        buffer
    }
}

/// The upper half of an f32 is a bf16.
#[inline(always)]
fn widen_bf16(value: bf16) -> f32 {
    f32::from_bits(u32::from(value.to_bits()) << 16)
}

/// Exponent and fraction moved to where f32 has them give the magnitude times 2^-112, since the exponents' biases differ:
/// denormal values too. Infinities and NaN keep the largest exponent.
#[inline(always)]
fn widen_f16(value: f16) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 112) << 23);
    const INFINITE: u32 = 0x7c00 << 13;
    let bits = u32::from(value.to_bits());
    let magnitude = (bits & 0x7fff) << 13;
    let finite = (f32::from_bits(magnitude) * SCALE).to_bits();
    let widened = if magnitude >= INFINITE {
        magnitude | 0xff << 23
    } else {
        finite
    };
    f32::from_bits(widened | (bits & 0x8000) << 16)
}

for_each_path! {
    fn convert_f64(source: &[f64], target: &mut [f32]) = convert_f64_body
}

for_each_path! {
    fn convert_bf16(source: &[bf16], target: &mut [f32]) = convert_bf16_body
}

for_each_path! {
    fn convert_f16(source: &[f16], target: &mut [f32]) = convert_f16_body
}

#[inline(always)]
fn convert_f64_body(source: &[f64], target: &mut [f32]) {
    for (target, &value) in target.iter_mut().zip(source) {
        *target = value as f32;
    }
}

#[inline(always)]
fn convert_bf16_body(source: &[bf16], target: &mut [f32]) {
    for (target, &value) in target.iter_mut().zip(source) {
        *target = widen_bf16(value);
    }
}

#[inline(always)]
fn convert_f16_body(source: &[f16], target: &mut [f32]) {
    for (target, &value) in target.iter_mut().zip(source) {
        *target = widen_f16(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_precision_number_becomes_its_f32_on_every_path() {
        let same = |got: f32, expected: f32| {
            got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan()
        };
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let f16s: Vec<f16> = bits.iter().copied().map(f16::from_bits).collect();
        let bf16s: Vec<bf16> = bits.iter().copied().map(bf16::from_bits).collect();
        for path in Path::available() {
            let mut converted = vec![0.0; bits.len()];
            convert_f16(path, &f16s, &mut converted);
            for (value, &got) in f16s.iter().zip(&converted) {
                assert!(same(got, value.to_f32_const()), "{path:?} {value:?} {got}");
            }
            convert_bf16(path, &bf16s, &mut converted);
            for (value, &got) in bf16s.iter().zip(&converted) {
                assert!(same(got, value.to_f32_const()), "{path:?} {value:?} {got}");
            }
        }
    }
}

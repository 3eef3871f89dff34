//! Random signs: bits of a stream of words, applied to values.

use crate::simd::for_each_path;

for_each_path! {
    /// `out += signs * values`, with sign bits from number `bit` of `words` on: bit set = minus. `words` has one more
    /// than the last bit needs.
    pub(crate) fn add_signed(out: &mut [f32], values: &[f32], words: &[u32], bit: usize) = add_signed_body
}

for_each_path! {
    /// Sign bits from number `bit` of `words` on as masks for the sign bit of an f32.
    pub(crate) fn fill_masks(masks: &mut [u32], words: &[u32], bit: usize) = fill_masks_body
}

/// Values that take their signs from one word.
const LANES: usize = 32;

#[inline(always)]
fn add_signed_body(out: &mut [f32], values: &[f32], words: &[u32], bit: usize) {
    let mut out = out.chunks_exact_mut(LANES);
    let mut values = values.chunks_exact(LANES);
    let mut bit = bit;
    for (out, values) in out.by_ref().zip(values.by_ref()) {
        let bits = bits_at(words, bit);
        bit += LANES;
        for lane in 0..LANES {
            out[lane] += f32::from_bits(values[lane].to_bits() ^ mask(bits, lane));
        }
    }
    let (out, values) = (out.into_remainder(), values.remainder());
    if !values.is_empty() {
        let bits = bits_at(words, bit);
        for (lane, (total, value)) in out.iter_mut().zip(values).enumerate() {
            *total += f32::from_bits(value.to_bits() ^ mask(bits, lane));
        }
    }
}

#[inline(always)]
fn fill_masks_body(masks: &mut [u32], words: &[u32], bit: usize) {
    for (index, masks) in masks.chunks_mut(LANES).enumerate() {
        let bits = bits_at(words, bit + index * LANES);
        for (lane, value) in masks.iter_mut().enumerate() {
            *value = mask(bits, lane);
        }
    }
}

/// 32 bits from number `bit` on.
#[inline(always)]
fn bits_at(words: &[u32], bit: usize) -> u32 {
    let pair = u64::from(words[bit / 32]) | u64::from(words[bit / 32 + 1]) << 32;
    (pair >> (bit % 32)) as u32
}

/// Bit number `lane` as the sign bit of an f32.
#[inline(always)]
fn mask(bits: u32, lane: usize) -> u32 {
    (bits << (31 - lane)) & (1 << 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Path;

    #[test]
    fn every_path_adds_with_the_signs_of_the_bits() {
        let words: Vec<u32> = (1..20u32).map(|i| i.wrapping_mul(2_654_435_761)).collect();
        let values: Vec<f32> = (0..500).map(|i| i as f32 + 0.25).collect();
        for path in Path::available() {
            for (bit, len) in [(0, 500), (1, 31), (31, 33), (64, 32), (95, 400), (3, 0)] {
                let mut out = vec![0.5; len];
                let mut masks = vec![7; len];
                add_signed(path, &mut out, &values[..len], &words, bit);
                fill_masks(path, &mut masks, &words, bit);
                for index in 0..len {
                    let at = bit + index;
                    let set = words[at / 32] >> (at % 32) & 1;
                    let sign = if set == 1 { -1.0 } else { 1.0 };
                    assert_eq!(out[index], 0.5 + sign * values[index], "{path:?}");
                    assert_eq!(masks[index], set << 31, "{path:?}");
                }
            }
        }
    }
}

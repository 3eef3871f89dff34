//! Random signs: bits of a stream of words, applied to values.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use crate::simd::{Path, for_each_path, for_path};

/// Adds `signs * values` to `out` from `at` on, with sign bits from number `bit` of `words` on: bit set = minus. `words`
/// has one more than the last bit needs. Meanwhile `ahead`, about as long as `values` or empty, is brought near.
pub(crate) fn add_signed(
    path: Path,
    out: &mut [f32],
    at: usize,
    values: &[f32],
    ahead: &[f32],
    words: &[u64],
    bit: usize,
) {
    for_path!(path, add_signed(out, at, values, ahead, words, bit))
}

for_each_path! {
    /// Sign bits from number `bit` of `words` on as masks, see [`with_sign`]. `words` has one more than the last bit needs.
    pub(crate) fn fill_masks(masks: &mut [f32], words: &[u64], bit: usize) = fill_masks_body
}

/// Defines `add_signed` from `add_lanes`, which adds a vector of values with the signs of the lowest bits, `add_within`,
/// which adds some values to the lanes of a vector from a given one on, and `add_few`, which adds fewer than a vector.
///
/// Sums are read and written as whole, aligned vectors wherever `out` has them: a vector that was written in part and is
/// read soon after halts the processor until all reads before it have come from memory.
macro_rules! define_add_signed {
    ($lanes:literal $(, #[$features:meta])?) => {
        /// Adds `signs * values` to `out`, see [`crate::signs::add_signed`].
        $(#[$features])?
        pub(in crate::signs) fn add_signed(
            out: &mut [f32],
            at: usize,
            values: &[f32],
            ahead: &[f32],
            words: &[u64],
            bit: usize,
        ) {
            use crate::signs::{LINE, WORD, bits_at};
            use crate::simd::prefetch;

            let mut lines = ahead.iter().step_by(LINE);
            let before = (out.as_ptr() as usize / size_of::<f32>() + at) % $lanes;
            let lead = if before == 0 { 0 } else { values.len().min($lanes - before) };
            let (values_lead, values) = values.split_at(lead);
            if lead > 0 {
                let bits = bits_at(words, bit);
                match whole_vector(out, at.checked_sub(before)) {
                    Some(out) => add_within(out, before, values_lead, bits),
                    None => add_few(&mut out[at..at + lead], values_lead, bits),
                }
            }
            let (at, mut bit) = (at + lead, bit + lead);
            let (values, values_rest) = values.as_chunks::<WORD>();
            let (sums, _) = out[at..].as_chunks_mut::<WORD>();
            for (sums, values) in sums.iter_mut().zip(values) {
                let mut bits = bits_at(words, bit);
                bit += WORD;
                let sums = sums.as_chunks_mut::<$lanes>().0;
                let values = values.as_chunks::<$lanes>().0;
                for (vector, (sums, values)) in sums.iter_mut().zip(values).enumerate() {
                    if vector * $lanes % LINE == 0
                        && let Some(line) = lines.next()
                    {
                        prefetch(line);
                    }
                    add_lanes(sums, values, bits);
                    bits >>= $lanes;
                }
            }
            // Not one line is left out: a single one that is missing halts the whole stream.
            lines.for_each(prefetch);
            if values_rest.is_empty() {
                return;
            }
            let at = at + values.len() * WORD;
            let mut bits = bits_at(words, bit);
            let (values, few) = values_rest.as_chunks::<$lanes>();
            let (sums, _) = out[at..].as_chunks_mut::<$lanes>();
            for (sums, values) in sums.iter_mut().zip(values) {
                add_lanes(sums, values, bits);
                bits >>= $lanes;
            }
            if few.is_empty() {
                return;
            }
            let at = at + values.len() * $lanes;
            match whole_vector(out, Some(at)) {
                Some(out) => add_within(out, 0, few, bits),
                None => add_few(&mut out[at..at + few.len()], few, bits),
            }
        }

        /// The vector of `out` that begins at `start`, if all of it is there.
        #[inline(always)]
        fn whole_vector(out: &mut [f32], start: Option<usize>) -> Option<&mut [f32; $lanes]> {
            out.get_mut(start?..)?.first_chunk_mut()
        }
    };
}

use define_add_signed;

/// Values that take their signs from one double word.
const WORD: usize = 64;

/// Values a cache line.
const LINE: usize = 16;

#[inline(always)]
fn fill_masks_body(masks: &mut [f32], words: &[u64], bit: usize) {
    for (index, masks) in masks.chunks_mut(32).enumerate() {
        let bits = bits_at(words, bit + index * 32) as u32;
        for (lane, value) in masks.iter_mut().enumerate() {
            *value = f32::from_bits(mask(bits, lane));
        }
    }
}

/// `value`, its sign changed by a mask, a zero of either sign. Bits are changed, not multiplied: any value takes as long.
#[inline(always)]
pub(crate) fn with_sign(value: f32, mask: f32) -> f32 {
    f32::from_bits(value.to_bits() ^ mask.to_bits())
}

/// 64 bits from number `bit` on.
#[inline(always)]
fn bits_at(words: &[u64], bit: usize) -> u64 {
    let (low, high) = (words[bit / 64], words[bit / 64 + 1]);
    low >> (bit % 64) | high << 1 << (63 - bit % 64)
}

/// Bit number `lane` as the sign bit of an f32.
#[inline(always)]
fn mask(bits: u32, lane: usize) -> u32 {
    (bits << (31 - lane)) & (1 << 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_adds_with_the_signs_of_the_bits() {
        let words: Vec<u64> = (1..11u64)
            .map(|i| i.wrapping_mul(0x9E37_79B9_7F4A_7C15))
            .collect();
        let sign = |bit: usize| 1.0 - 2.0 * (words[bit / 64] >> (bit % 64) & 1) as f32;
        let values: Vec<f32> = (0..500).map(|i| i as f32 + 0.25).collect();
        for path in Path::available() {
            for (bit, len) in [
                (0, 500),
                (1, 31),
                (31, 33),
                (64, 32),
                (95, 400),
                (3, 0),
                (5, 1),
            ] {
                for (before, after) in [(0, 0), (1, 0), (0, 3), (7, 90), (40, 5), (15, 16)] {
                    let mut out = vec![-0.0; before + len + after];
                    let values = &values[..len];
                    add_signed(path, &mut out, before, values, values, &words, bit);
                    for (index, total) in out.iter().enumerate() {
                        let expected = match index.checked_sub(before) {
                            Some(index) if index < len => sign(bit + index) * values[index],
                            _ => -0.0,
                        };
                        assert_eq!(
                            total.to_bits(),
                            expected.to_bits(),
                            "{path:?} {bit} {len} {before}"
                        );
                    }
                }
                let mut masks = vec![f32::NAN; len];
                fill_masks(path, &mut masks, &words, bit);
                for (index, &mask) in masks.iter().enumerate() {
                    let expected = 0f32.copysign(sign(bit + index));
                    assert_eq!(mask.to_bits(), expected.to_bits(), "{path:?}");
                    let signed = sign(bit + index) * 2.5;
                    assert_eq!(with_sign(2.5, mask), signed, "{path:?}");
                }
            }
        }
    }
}

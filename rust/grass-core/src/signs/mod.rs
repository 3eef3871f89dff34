//! Random signs: bits of a stream of words, applied to values.

mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{bf16, f16};

use crate::dtype::Element;
use crate::simd::{Path, for_each_path, for_path};

/// A type whose values are added as they lie, without being written as f32 before.
pub(crate) trait Signed: Element {
    /// Adds `signs * values` to `out` from `at` on, with sign bits from number `bit` of `words` on: bit set = minus.
    /// `words` has one more than the last bit needs. Meanwhile `ahead`, about as long as `values` or empty, is brought
    /// near.
    fn add_signed(
        path: Path,
        out: &mut [f32],
        at: usize,
        values: &[Self],
        ahead: &[Self],
        words: &[u64],
        bit: usize,
    );
}

macro_rules! signed {
    ($value:ty, $add_signed:ident) => {
        impl Signed for $value {
            #[inline]
            fn add_signed(
                path: Path,
                out: &mut [f32],
                at: usize,
                values: &[Self],
                ahead: &[Self],
                words: &[u64],
                bit: usize,
            ) {
                for_path!(path, $add_signed(out, at, values, ahead, words, bit))
            }
        }
    };
}

signed!(f32, add_signed_f32);
signed!(f16, add_signed_f16);
signed!(bf16, add_signed_bf16);

for_each_path! {
    /// Sign bits from number `bit` of `words` on as masks, see [`with_sign`]. `words` has one more than the last bit needs.
    pub(crate) fn fill_masks(masks: &mut [f32], words: &[u64], bit: usize) = fill_masks_body
}

/// Defines `$add_signed` for values of a type from `$load`, which makes a vector of f32 of them, and `$load_part`, which
/// puts some of them into the lanes of a vector of -0.0 from a given one on. Beside it must be: `signed`, which gives a
/// vector the signs of the lowest bits, `add_to`, which adds it to as many sums, and `add_to_first`, to fewer.
///
/// Sums are read and written as whole, aligned vectors wherever `out` has them, and -0.0 added to those that get nothing:
/// a vector that was written in part and is read soon after halts the processor until all reads before it have come from
/// memory.
macro_rules! define_add_signed {
    ($add_signed:ident, $value:ty, $lanes:literal, $load:ident, $load_part:ident $(, #[$features:meta])?) => {
        /// Adds `signs * values` to `out`, see [`crate::signs::Signed`].
        $(#[$features])?
        pub(in crate::signs) fn $add_signed(
            out: &mut [f32],
            at: usize,
            values: &[$value],
            ahead: &[$value],
            words: &[u64],
            bit: usize,
        ) {
            use crate::signs::{WORD, bits_at};
            use crate::simd::prefetch;

            const LINE: usize = 64 / size_of::<$value>();

            /// Adds fewer values than a vector, of which `before` lanes come before the first.
            $(#[$features])?
            #[inline]
            fn add_few(out: &mut [f32], at: usize, before: usize, values: &[$value], bits: u64) {
                let whole = at
                    .checked_sub(before)
                    .and_then(|start| out.get_mut(start..)?.first_chunk_mut());
                let lanes = (1 << values.len()) - 1;
                match whole {
                    Some(out) => {
                        let vector = $load_part(values, before);
                        add_to(out, signed(vector, (bits & lanes) << before));
                    }
                    None => {
                        let vector = signed($load_part(values, 0), bits & lanes);
                        add_to_first(&mut out[at..at + values.len()], vector);
                    }
                }
            }

            let mut lines = ahead.iter().step_by(LINE);
            let before = (out.as_ptr() as usize / size_of::<f32>() + at) % $lanes;
            let lead = if before == 0 { 0 } else { values.len().min($lanes - before) };
            let (values_lead, values) = values.split_at(lead);
            if lead > 0 {
                add_few(out, at, before, values_lead, bits_at(words, bit));
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
                    add_to(sums, signed($load(values), bits));
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
                add_to(sums, signed($load(values), bits));
                bits >>= $lanes;
            }
            if !few.is_empty() {
                add_few(out, at + values.len() * $lanes, 0, few, bits);
            }
        }
    };
}

use define_add_signed;

/// Values that take their signs from one double word.
const WORD: usize = 64;

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
                    f32::add_signed(path, &mut out, before, values, values, &words, bit);
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

//! Normal numbers by Box and Muller's transform, many at a time.
//!
//! Plain f32 operations, one rounding each, in one order: every path gives the same bits.

use crate::simd::for_each_path;

/// Pairs side by side: a vector of the widest path.
pub(super) const LANES: usize = 16;

for_each_path! {
    /// Numbers `2 q` and `2 q + 1` from double word q of `words`, for every q: `sqrt(-2 ln u) cos(2 pi v)` and the same
    /// with sin, for `u = (low + 1) / 2^32` and `v = high / 2^32`.
    pub(super) fn fill_pairs(numbers: &mut [[[f32; 2]; LANES]], words: &[[u64; LANES]]) = fill_pairs_body
}

#[inline(always)]
fn fill_pairs_body(numbers: &mut [[[f32; 2]; LANES]], words: &[[u64; LANES]]) {
    for (numbers, words) in numbers.iter_mut().zip(words) {
        let low = words.map(|word| word as u32);
        let high = words.map(|word| (word >> 32) as u32);
        // Apart at first, so that the compiler fills whole vectors.
        let (mut even, mut odd) = ([0.0; LANES], [0.0; LANES]);
        for lane in 0..LANES {
            let radius = (-2.0 * ln(low[lane])).sqrt();
            let (sin, cos) = sin_cos(high[lane]);
            even[lane] = radius * cos;
            odd[lane] = radius * sin;
        }
        for (lane, pair) in numbers.iter_mut().enumerate() {
            *pair = [even[lane], odd[lane]];
        }
    }
}

/// `ln u` for `u = (word + 1) / 2^32`.
///
/// With `u = 2^exponent (1 + f)` and 1 + f from sqrt(1/2) to sqrt(2), `ln(1 + f) = f - f^2 / 2 + f^3 P(f)`.
#[inline(always)]
fn ln(word: u32) -> f32 {
    const SQRT_HALF: i32 = 0x3F35_04F3;
    /// ln 2: the first part has so few digits that its product with an exponent is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    // The largest word gives 2^32 all the same, by rounding.
    let rounded = (word.min(u32::MAX - 1) + 1) as f32;
    let exponent = (rounded.to_bits() as i32 - SQRT_HALF) >> 23;
    let mantissa = f32::from_bits((rounded.to_bits() as i32 - (exponent << 23)) as u32);
    // Near 1, u has lost its last digits by rounding; 1 - u keeps them.
    let f = if exponent == 32 {
        -((!word) as i32 as f32) * (1.0 / 4_294_967_296.0)
    } else {
        mantissa - 1.0
    };
    let exponent = (exponent - 32) as f32;
    let mut p = -0.078_595_46;
    for coefficient in [
        0.128_816_22,
        -0.131_287_68,
        0.141_811_96,
        -0.166_245_53,
        0.200_022_86,
        -0.250_008_1,
        0.333_333_17,
    ] {
        p = p * f + coefficient;
    }
    let square = f * f;
    let rest = square * f * p + exponent * LN_2[1] - 0.5 * square;
    rest + f + exponent * LN_2[0]
}

/// Sine and cosine of `2 pi v` for `v = word / 2^32`: some quarters of a turn, and an angle `pi / 4 z` with z from -1 to 1.
///
/// The largest terms are taken of the upper digits of z, with coefficients so short that they are exact.
#[inline(always)]
fn sin_cos(word: u32) -> (f32, f32) {
    const EIGHTH: i32 = 1 << 29;
    const LOW_DIGITS: i32 = (1 << 21) - 1;
    const SIN: [f32; 2] = [0.785_400_4, -2.238_082e-6];
    const COS: [f32; 2] = [-0.308_593_75, 1.686_141_6e-4];
    let quarter = word.wrapping_add(EIGHTH as u32) >> 30;
    let angle = word.wrapping_sub(quarter << 30) as i32;
    let high = (angle & !LOW_DIGITS) as f32 * (1.0 / EIGHTH as f32);
    let low = (angle & LOW_DIGITS) as f32 * (1.0 / EIGHTH as f32);
    let z = high + low;
    let square = z * z;
    let p = (-3.587_726e-5 * square + 2.489_872e-3) * square - 8.074_537e-2;
    let sin = z * (p * square + SIN[1]) + low * SIN[0] + high * SIN[0];
    let p = (3.531_334_5e-6 * square - 3.259_42e-4) * square + 1.585_432_8e-2;
    let rest = (p * square + COS[1]) * square + low * (z + high) * COS[0];
    let cos = rest + (high * high * COS[0] + 1.0);
    let (sin, cos) = if quarter & 1 == 1 {
        (cos, sin)
    } else {
        (sin, cos)
    };
    let minus = |value: f32, bit: u32| f32::from_bits(value.to_bits() ^ bit << 30 & 1 << 31);
    (minus(sin, quarter), minus(cos, quarter + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{Philox, Stream};
    use crate::simd::Path;

    /// The formula in double precision.
    fn pair(word: u64) -> [f64; 2] {
        const WORDS: f64 = 4_294_967_296.0;
        let (u, v) = (f64::from(word as u32) + 1.0, f64::from((word >> 32) as u32));
        let radius = (-2.0 * (u / WORDS).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * (v / WORDS)).sin_cos();
        [radius * cos, radius * sin]
    }

    /// Words where something changes: the ends, powers of two, sqrt(1/2), the eighths of a turn, and their neighbours.
    fn edges() -> Vec<u32> {
        let powers = (0..32).map(|power| 1 << power);
        let eighths = (0..8u32).map(|eighth| eighth << 29);
        let switch = [(0.5f64.sqrt() * 4_294_967_296.0) as u32];
        let centers = powers.chain(eighths).chain(switch);
        let near = |center: u32| {
            (0..=300).map(move |offset| center.wrapping_add(offset).wrapping_sub(150))
        };
        centers.flat_map(near).collect()
    }

    fn pairs(path: Path, words: &[u64]) -> Vec<[f32; 2]> {
        let mut padded = words.to_vec();
        padded.resize(words.len().next_multiple_of(LANES), 0);
        let padded = padded.as_chunks().0;
        let mut numbers = vec![[[f32::NAN; 2]; LANES]; padded.len()];
        fill_pairs(path, &mut numbers, padded);
        numbers.as_flattened()[..words.len()].to_vec()
    }

    fn assert_close(words: &[u64]) {
        for path in Path::available() {
            for (&word, numbers) in words.iter().zip(&pairs(path, words)) {
                for (number, exact) in numbers.iter().zip(pair(word)) {
                    let error = (f64::from(*number) - exact).abs();
                    assert!(
                        error <= 1e-6,
                        "{path:?}: word {word:#x} gives {number}, not {exact}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_path_gives_the_formula() {
        let edges = edges();
        let philox = Philox::new(1);
        let mut random = vec![0; edges.len()];
        philox.fill_double_words(Stream::Gaussian, 0, &mut random);
        let both = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let edges = edges.iter().zip(&random);
        let (low, high): (Vec<_>, Vec<_>) = edges
            .map(|(&edge, &word)| (both(edge, word as u32), both(word as u32, edge)))
            .unzip();
        assert_close(&low);
        assert_close(&high);
        // The largest radius at every kind of angle, and angles 0 at every kind of radius.
        let largest: Vec<_> = high.iter().map(|&word| word & !0xFFFF_FFFF).collect();
        assert_close(&largest);
        let zero: Vec<_> = low.iter().map(|&word| word & 0xFFFF_FFFF).collect();
        assert_close(&zero);
        let mut random = vec![0; 1 << 18];
        philox.fill_double_words(Stream::Gaussian, 5, &mut random);
        assert_close(&random);
    }

    #[test]
    fn every_path_gives_the_same_bits() {
        let mut words = vec![0; 1003];
        Philox::new(2).fill_double_words(Stream::Gaussian, 0, &mut words);
        let fill = |path| {
            let pairs = pairs(path, &words);
            let numbers = pairs.as_flattened().iter();
            numbers.map(|number| number.to_bits()).collect::<Vec<_>>()
        };
        let bits: Vec<_> = Path::available().into_iter().map(fill).collect();
        assert!(bits.windows(2).all(|pair| pair[0] == pair[1]));
    }
}

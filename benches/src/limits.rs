//! What bounds every kernel: reading its input, and its multiply-adds. Compiled for the path that the kernels use.

use grass_core::simd::Path;
use half::{bf16, f16};
use std::hint::black_box;

/// Running sums, so many that the additions do not wait for one another.
const SUMS: usize = 64;

/// The sum over `PARTS` parts of the values side by side, some values from each in turn.
#[inline(always)]
fn sum<T: Copy, const PARTS: usize>(values: &[T], to_f32: impl Fn(T) -> f32) -> f32 {
    let (lines, rest) = values.as_chunks::<SUMS>();
    let part = lines.len() / PARTS;
    let (parts, last) = lines.split_at(part * PARTS);
    let parts: [&[[T; SUMS]]; PARTS] =
        std::array::from_fn(|number| &parts[number * part..(number + 1) * part]);
    let mut sums = [0.0; SUMS];
    for position in 0..part {
        for part in parts {
            for (sum, &value) in sums.iter_mut().zip(&part[position]) {
                *sum += to_f32(value);
            }
        }
    }
    let rest = last.as_flattened().iter().chain(rest);
    sums.iter().sum::<f32>() + rest.map(|&value| to_f32(value)).sum::<f32>()
}

#[inline(always)]
fn sum_f32(values: &[f32]) -> f32 {
    sum::<_, 1>(values, |value| value)
}

#[inline(always)]
fn sum_bf16(values: &[bf16]) -> f32 {
    sum::<_, 1>(values, |value| {
        f32::from_bits(u32::from(value.to_bits()) << 16)
    })
}

#[inline(always)]
fn sum_f16(values: &[f16]) -> f32 {
    // Sign, exponent and fraction moved to where f32 has them give the value times 2^-112: the exponents' biases differ.
    let small = sum::<_, 1>(values, |value| {
        f32::from_bits(((i32::from(value.to_bits().cast_signed()) << 13) & !0x7000_1fff) as u32)
    });
    small * 2.0f32.powi(112)
}

/// One stream leaves a part of a core's bandwidth unused, because the prefetcher begins anew at every page of 4 KiB.
#[inline(always)]
fn sum_in_parts(values: &[f32]) -> f32 {
    sum::<_, 8>(values, |value| value)
}

/// Independent sums of products: enough to hide the latency of each.
const CHAINS: usize = 12;

#[inline(always)]
fn chains<const LANES: usize, const FUSED: bool>(operations: usize) -> f32 {
    let (factor, summand) = (black_box(0.5), black_box(1.0));
    let mut sums = [[0.0f32; LANES]; CHAINS];
    for _ in 0..operations / (2 * LANES * CHAINS) {
        for lane in sums.as_flattened_mut() {
            *lane = if FUSED {
                lane.mul_add(factor, summand)
            } else {
                *lane * factor + summand
            };
        }
    }
    sums.as_flattened().iter().sum()
}

/// Defines a function that runs the body for the path in use.
macro_rules! for_current_path {
    ($(#[$doc:meta])* $name:ident($argument:ident: $type:ty) = $avx512:expr, $avx2:expr, $portable:expr) => {
        $(#[$doc])*
        pub fn $name($argument: $type) -> f32 {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($argument: $type) -> f32 {
                    $avx512
                }

                #[target_feature(enable = "avx2,fma")]
                fn avx2($argument: $type) -> f32 {
                    $avx2
                }

                #[expect(unsafe_code, reason = "calls functions compiled for instructions that not every machine has")]
                // SAFETY: a path is current only where the processor was found to have it, and FMA is asked for here.
                unsafe {
                    match Path::current().name() {
                        "avx512" => return avx512($argument),
                        "avx2" if is_x86_feature_detected!("fma") => return avx2($argument),
                        _ => {}
                    }
                }
            }
            $portable
        }
    };
}

for_current_path! {
    /// Reads f32 values and adds them, as a plain sum is written.
    read_f32(values: &[f32]) = sum_f32(values), sum_f32(values), sum_f32(values)
}
for_current_path! {
    /// Reads bf16 values and adds them.
    read_bf16(values: &[bf16]) = sum_bf16(values), sum_bf16(values), sum_bf16(values)
}
for_current_path! {
    /// Reads f16 values and adds them.
    read_f16(values: &[f16]) = sum_f16(values), sum_f16(values), sum_f16(values)
}
for_current_path! {
    /// Reads f32 values and adds them, eight parts side by side: the fastest way known here.
    read_in_parts(values: &[f32]) = sum_in_parts(values), sum_in_parts(values), sum_in_parts(values)
}
for_current_path! {
    /// Does as many multiplications and additions of f32 in registers: nothing is faster on one core.
    multiply_add(operations: usize) =
        chains::<16, true>(operations), chains::<8, true>(operations), chains::<8, false>(operations)
}

//! Signed sums in plain loops, for any machine.

use super::{define_add_signed, mask};

define_add_signed!(16);

#[inline(always)]
fn add_lanes(out: &mut [f32; 16], values: &[f32; 16], bits: u64) {
    add_few(out, values, bits);
}

#[inline(always)]
fn add_within(out: &mut [f32; 16], first: usize, values: &[f32], bits: u64) {
    add_few(&mut out[first..], values, bits);
}

#[inline(always)]
fn add_few(out: &mut [f32], values: &[f32], bits: u64) {
    for (lane, (total, &value)) in out.iter_mut().zip(values).enumerate() {
        *total += f32::from_bits(value.to_bits() ^ mask(bits as u32, lane));
    }
}

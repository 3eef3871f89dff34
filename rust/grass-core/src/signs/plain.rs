//! Signed sums in plain loops, for any machine.

use half::{bf16, f16};

use super::{define_add_signed, mask, with_sign};
use crate::dtype::Element;

const LANES: usize = 16;

define_add_signed!(add_signed_f32, f32, 16, load, load_part);
define_add_signed!(add_signed_f16, f16, 16, load, load_part);
define_add_signed!(add_signed_bf16, bf16, 16, load, load_part);

#[inline(always)]
fn load<T: Element>(values: &[T; LANES]) -> [f32; LANES] {
    values.map(T::to_f32)
}

#[inline(always)]
fn load_part<T: Element>(values: &[T], first: usize) -> [f32; LANES] {
    let mut vector = [-0.0; LANES];
    for (lane, value) in vector[first..].iter_mut().zip(values) {
        *lane = value.to_f32();
    }
    vector
}

#[inline(always)]
fn signed(mut vector: [f32; LANES], bits: u64) -> [f32; LANES] {
    for (lane, value) in vector.iter_mut().enumerate() {
        *value = with_sign(*value, f32::from_bits(mask(bits as u32, lane)));
    }
    vector
}

#[inline(always)]
fn add_to(out: &mut [f32; LANES], vector: [f32; LANES]) {
    add_to_first(out, vector);
}

#[inline(always)]
fn add_to_first(out: &mut [f32], vector: [f32; LANES]) {
    for (total, value) in out.iter_mut().zip(vector) {
        *total += value;
    }
}

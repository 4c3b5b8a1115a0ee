//! Indexer rows: Walsh-Hadamard transform and e2m1 blocks of 32.

use super::RoundTrip;
use super::fp8::{fp4_scale_byte, inverse, round_magnitude};
use crate::cpu::formats::ue8m0_to_f32;

/// Normalised Walsh-Hadamard transform in Sylvester order, in place; its own inverse up to rounding.
/// The sums are taken in f32 with strides 1, 2, 4, ..., then every value is multiplied by `n^-1/2`.
/// The length must be a power of two; other lengths are left as they are.
pub fn hadamard(x: &mut [f32]) {
    let n = x.len();
    debug_assert!(n.is_power_of_two(), "Hadamard transform of {n} values");
    if !n.is_power_of_two() {
        return;
    }
    let mut half = 1;
    while half < n {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    let norm = (1.0 / (n as f64).sqrt()) as f32;
    x.iter_mut().for_each(|v| *v *= norm);
}

/// Rounds `values` to e2m1 in blocks of 32 (the last may be partial): value 2i in the low nibble of `codes[i]`,
/// value 2i + 1 in the high one; `scales[j]` is the ue8m0 scale of block j.
pub fn encode_fp4_blocks(values: &[f32], codes: &mut [u8], scales: &mut [u8], stats: &mut RoundTrip) {
    for ((values, codes), byte) in values.chunks(32).zip(codes.chunks_mut(16)).zip(scales) {
        *byte = fp4_scale_byte(values);
        let (scale, inv) = (ue8m0_to_f32(*byte), inverse(*byte));
        let mut code = |v: f32| {
            let scaled = v * inv;
            let (magnitude, value) = round_magnitude::<1, 127>(if v.is_nan() { 0.0 } else { scaled.abs().min(6.0) });
            stats.note(v, (value * scale).copysign(v), v.is_nan() || scaled.abs() > 6.0);
            if v.is_nan() {
                0
            } else {
                (v.to_bits() >> 28) as u8 & 8 | magnitude as u8
            }
        };
        for (pair, out) in values.chunks(2).zip(codes) {
            let low = code(pair[0]);
            *out = low | pair.get(1).map_or(0, |&v| code(v) << 4);
        }
    }
}

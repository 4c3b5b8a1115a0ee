//! e4m3 blocks with power-of-two scales.

use super::RoundTrip;
use crate::cpu::formats::{ue8m0_from_amax, ue8m0_to_f32};

/// Largest e4m3 value.
const E4M3_MAX: f32 = 448.0;
/// Code of NaN.
const E4M3_NAN: u8 = 0x7f;

/// Scales of consecutive blocks of `len` codes; the last block may be partial.
#[derive(Clone, Copy, Debug)]
pub enum Blocks<'a> {
    /// One byte per block, value 2^(byte - 127).
    E8m0 {
        /// Codes per block.
        len: usize,
        /// One byte per block.
        scales: &'a [u8],
    },
    /// One little-endian f32 per block.
    F32 {
        /// Codes per block.
        len: usize,
        /// Four bytes per block.
        scales: &'a [u8],
    },
}

impl Blocks<'_> {
    /// Codes per block.
    pub fn block_len(&self) -> usize {
        match *self {
            Blocks::E8m0 { len, .. } | Blocks::F32 { len, .. } => len,
        }
    }

    /// The multiplier of block `i`.
    #[inline(always)]
    pub fn scale(&self, i: usize) -> f32 {
        match *self {
            Blocks::E8m0 { scales, .. } => ue8m0_to_f32(scales[i]),
            Blocks::F32 { scales, .. } => {
                let b = &scales[4 * i..4 * i + 4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
        }
    }
}

/// Largest finite magnitude (0 for a block without finite values). Magnitudes compare like their bits.
fn finite_amax(values: &[f32]) -> f32 {
    let finite = |v: &f32| {
        Some(v.abs().to_bits())
            .filter(|b| *b < f32::INFINITY.to_bits())
            .unwrap_or(0)
    };
    f32::from_bits(values.iter().map(finite).fold(0, u32::max))
}

/// Rounds a magnitude to the nearest value of a small float format, ties to even: (code, value). `MANTISSA` are
/// the format's mantissa bits, `LOWEST` the f32 exponent field of its smallest normal value. `a` must not exceed
/// the format's largest value. Adding `2^23` steps leaves the number of steps in the low bits of the sum.
#[inline(always)]
pub(super) fn round_magnitude<const MANTISSA: u32, const LOWEST: u32>(a: f32) -> (u32, f32) {
    let e = (a.to_bits() >> 23).max(LOWEST);
    let steps = (a + f32::from_bits((e + 23 - MANTISSA) << 23)).to_bits() & 0x7f_ffff;
    (
        ((e - LOWEST) << MANTISSA) + steps,
        steps as f32 * f32::from_bits((e - MANTISSA) << 23),
    )
}

/// Scale of a block of values to be stored as e4m3: 105 (2^-22) to 247.
pub fn fp8_scale_byte(values: &[f32]) -> u8 {
    ue8m0_from_amax(finite_amax(values), 1.0 / E4M3_MAX, 1e-4)
}

/// Scale of a block of values to be stored as e2m1: 1 (2^-126) to 253.
pub fn fp4_scale_byte(values: &[f32]) -> u8 {
    ue8m0_from_amax(finite_amax(values), 1.0 / 6.0, 6.0 * f32::MIN_POSITIVE)
}

/// 1 / 2^(byte - 127), exact for bytes 1..=253.
pub(super) fn inverse(byte: u8) -> f32 {
    f32::from_bits((254 - u32::from(byte)) << 23)
}

/// Rounds `values` to e4m3 in blocks of `block` (the last may be partial), one code per byte of `codes`;
/// `set_scale(i, byte)` receives the ue8m0 scale of block i.
pub fn encode_e4m3_blocks(
    values: &[f32],
    block: usize,
    codes: &mut [u8],
    mut set_scale: impl FnMut(usize, u8),
    stats: &mut RoundTrip,
) {
    let block = block.max(1);
    for (i, (values, codes)) in values.chunks(block).zip(codes.chunks_mut(block)).enumerate() {
        let byte = fp8_scale_byte(values);
        let (scale, inv) = (ue8m0_to_f32(byte), inverse(byte));
        set_scale(i, byte);
        let mut local = RoundTrip::default();
        for (&v, code) in values.iter().zip(codes) {
            let scaled = v * inv;
            let sign = (v.to_bits() >> 24) as u8 & 0x80;
            let (magnitude, value) = round_magnitude::<3, 121>(scaled.abs().min(E4M3_MAX));
            *code = if v.is_nan() { E4M3_NAN } else { sign | magnitude as u8 };
            let clamped = v.is_nan() | (scaled.abs() > E4M3_MAX);
            local.note(v, (value * scale).copysign(v), clamped);
        }
        stats.add(&local);
    }
}

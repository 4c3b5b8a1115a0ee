//! e4m3 blocks with power-of-two scales.

use super::RoundTrip;
use crate::cpu::formats::{e4m3_to_f32, f32_to_e4m3, ue8m0_from_amax, ue8m0_to_f32};

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

/// Largest finite magnitude (0 for an empty or all-NaN block).
fn finite_amax(values: &[f32]) -> f32 {
    values
        .iter()
        .fold(0.0, |m, v| if v.is_finite() { v.abs().max(m) } else { m })
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
        for (&v, code) in values.iter().zip(codes) {
            let scaled = v * inv;
            *code = if v.is_nan() {
                E4M3_NAN
            } else {
                f32_to_e4m3(scaled.clamp(-E4M3_MAX, E4M3_MAX))
            };
            let clamped = v.is_nan() || scaled.abs() > E4M3_MAX;
            stats.note(v, e4m3_to_f32(*code) * scale, clamped);
        }
    }
}

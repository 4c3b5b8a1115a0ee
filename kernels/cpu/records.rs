//! Cache rows as bytes: the record formats of MODEL1 and their neighbours, row at a time.
//!
//! A row is `width` f32 values whose last `rope` are the rotated part (0 when there is none or when it is not
//! kept apart). A record is the bytes of one row, contiguous: first all data bytes, then all scale bytes, except
//! where the table says otherwise. All numbers are little endian.
//!
//! | format | data | scales | width 512, rope 64 |
//! |---|---|---|---|
//! | `F32` | 4 * width | - | 2048 |
//! | `Bf16` | 2 * width | - | 1024 |
//! | `Fp8Model1` | 448 e4m3, 64 bf16 | 7 ue8m0 (one per 64), 1 zero byte | 584 |
//! | `Fp8B64` | (width - rope) e4m3, rope bf16 | one ue8m0 per 64 e4m3, the last block may be partial | 583 |
//! | `Fp8V32` | (width - rope) e4m3, *then* one f32 per 128 e4m3, *then* rope bf16 | - | 576+64: 656 |
//! | `IndexFp4` | width / 2 bytes of e2m1 pairs, low nibble first | one ue8m0 per 32 | width 128: 68 |
//! | `IndexFp8` | width e4m3 | one f32 | width 128: 132 |
//!
//! Rounding is the official one: per block `s = 2^ceil(log2(max(amax, floor) * fl32(1/M)))`, codes are
//! `round_to_even(clamp(x / s, -M, M))`; M = 448, floor 1e-4 for e4m3, M = 6, floor 6 * 2^-126 for e2m1.
//! bf16 parts are rounded to nearest even.
//!
//! Values that are not finite never reach `amax`. Infinities become +-M; NaN becomes the NaN code 0x7F in e4m3
//! and 0 in e2m1 (which has no NaN); each counts as `saturated`. bf16 and f32 parts keep them.
//!
//! Decoding is exact, so `decode(encode(decode(r)))` equals `decode(r)`. The bytes of `encode(decode(r))` equal `r` too,
//! unless a block's largest code is exactly M/2 (a value just above it was rounded down): then the scale
//! halves and the codes double.

mod fast;
mod fp8;
mod index;
mod page;

use crate::cpu::formats::ue8m0_to_f32;
use crate::cpu::isa::Isa;

pub use fast::{decode_e4m3_blocks, decode_fp4_blocks};
pub use fp8::{Blocks, encode_e4m3_blocks, fp4_scale_byte, fp8_scale_byte};
pub use index::{encode_fp4_blocks, hadamard};
pub use page::{MODEL1_DATA_BYTES, MODEL1_RECORD_BYTES, MODEL1_SCALE_BYTES, Model1Page};

/// NoPE values of a MODEL1 row (448), stored as e4m3.
pub const MODEL1_NOPE: usize = 448;
/// Rotated values of a MODEL1 row (64), stored as bf16.
pub const MODEL1_ROPE: usize = 64;

/// What rounding did to the quantised values of the rows encoded so far (bf16 and f32 parts are not counted).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RoundTrip {
    /// Sum of squared differences between the values and what decoding gives back (finite values only).
    pub sum_sq_err: f64,
    /// Sum of squares of the values (finite values only).
    pub sum_sq: f64,
    /// Values that were clamped, infinite or NaN.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    /// Values.
    pub count: u64,
}

impl RoundTrip {
    /// Adds the counts of another statistic.
    pub fn add(&mut self, other: &RoundTrip) {
        self.sum_sq_err += other.sum_sq_err;
        self.sum_sq += other.sum_sq;
        self.saturated += other.saturated;
        self.flushed += other.flushed;
        self.count += other.count;
    }

    /// Relative L2 error; 0 when nothing but zeros was encoded.
    pub fn relative(&self) -> f64 {
        if self.sum_sq > 0.0 {
            (self.sum_sq_err / self.sum_sq).sqrt()
        } else {
            0.0
        }
    }

    /// One value, what it decodes to and whether the encoder had to clamp it. No branches: this runs per value.
    #[inline(always)]
    fn note(&mut self, value: f32, stored: f32, clamped: bool) {
        let (v, s) = if value.is_finite() { (value, stored) } else { (0.0, 0.0) };
        let (v, e) = (f64::from(v), f64::from(v) - f64::from(s));
        self.sum_sq += v * v;
        self.sum_sq_err += e * e;
        self.flushed += u64::from((v != 0.0) & (s == 0.0));
        self.saturated += u64::from(clamped);
        self.count += 1;
    }
}

/// How one cache row is stored; the module's table has the layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RowFormat {
    /// 4 bytes per value.
    F32,
    /// 2 bytes per value.
    Bf16,
    /// MODEL1's 584-byte record (width 512, rope 64 only).
    Fp8Model1,
    /// e4m3 with one ue8m0 per 64 values, rope part bf16; any width.
    Fp8B64,
    /// V3.2's record: e4m3, one f32 (a power of two) per 128 values, rope part bf16; 656 bytes for width 576.
    Fp8V32,
    /// e2m1 with one ue8m0 per 32 values. The Hadamard transform is the caller's ([`hadamard`]).
    IndexFp4,
    /// e4m3 with one f32 scale (a power of two) for the row.
    IndexFp8,
}

impl RowFormat {
    /// Every format, for tables and tests.
    pub const ALL: [RowFormat; 7] = [
        RowFormat::F32,
        RowFormat::Bf16,
        RowFormat::Fp8Model1,
        RowFormat::Fp8B64,
        RowFormat::Fp8V32,
        RowFormat::IndexFp4,
        RowFormat::IndexFp8,
    ];

    /// The name shown to people.
    pub const fn name(self) -> &'static str {
        match self {
            RowFormat::F32 => "f32",
            RowFormat::Bf16 => "bf16",
            RowFormat::Fp8Model1 => "fp8_model1",
            RowFormat::Fp8B64 => "fp8_b64",
            RowFormat::Fp8V32 => "fp8_v32",
            RowFormat::IndexFp4 => "fp4",
            RowFormat::IndexFp8 => "fp8_index",
        }
    }

    /// Whether encoding rounds values to 8 bits or fewer (and so counts into [`RoundTrip`]).
    pub const fn quantises(self) -> bool {
        !matches!(self, RowFormat::F32 | RowFormat::Bf16)
    }

    /// Whether rows of this shape can be stored.
    pub const fn supports(self, width: usize, rope: usize) -> bool {
        match self {
            RowFormat::Fp8Model1 => width == MODEL1_NOPE + MODEL1_ROPE && rope == MODEL1_ROPE,
            RowFormat::IndexFp4 | RowFormat::IndexFp8 => width > 0,
            _ => width > 0 && rope <= width,
        }
    }

    /// Bytes of (data, scales) of one record.
    pub const fn split(self, width: usize, rope: usize) -> (usize, usize) {
        let nope = width.saturating_sub(rope);
        match self {
            RowFormat::F32 => (4 * width, 0),
            RowFormat::Bf16 => (2 * width, 0),
            RowFormat::Fp8Model1 => (MODEL1_DATA_BYTES, MODEL1_SCALE_BYTES),
            RowFormat::Fp8B64 => (nope + 2 * rope, nope.div_ceil(64)),
            RowFormat::Fp8V32 => (nope + 2 * rope, 4 * nope.div_ceil(128)),
            RowFormat::IndexFp4 => (width.div_ceil(2), width.div_ceil(32)),
            RowFormat::IndexFp8 => (width, 4),
        }
    }

    /// Bytes of one record.
    pub const fn row_bytes(self, width: usize, rope: usize) -> usize {
        let (data, scales) = self.split(width, rope);
        data + scales
    }

    /// Stores `row` into `out`, which has exactly [`row_bytes`](Self::row_bytes) bytes (index formats ignore
    /// `rope`), and counts what rounding did.
    pub fn encode(self, row: &[f32], rope: usize, out: &mut [u8], stats: &mut RoundTrip) {
        debug_assert!(
            self.supports(row.len(), rope),
            "{self:?} of width {} with rope {rope}",
            row.len()
        );
        debug_assert_eq!(out.len(), self.row_bytes(row.len(), rope));
        let nope = row.len().saturating_sub(rope);
        let (data, scales) = out.split_at_mut(self.split(row.len(), rope).0);
        match self {
            RowFormat::F32 => {
                for (v, o) in row.iter().zip(data.chunks_exact_mut(4)) {
                    o.copy_from_slice(&v.to_le_bytes());
                }
            }
            RowFormat::Bf16 => encode_bf16(row, data),
            RowFormat::Fp8Model1 | RowFormat::Fp8B64 => {
                let (codes, tail) = data.split_at_mut(nope);
                encode_e4m3_blocks(&row[..nope], 64, codes, |i, byte| scales[i] = byte, stats);
                encode_bf16(&row[nope..], tail);
                scales[nope.div_ceil(64)..].fill(0);
            }
            RowFormat::Fp8V32 => {
                let (codes, rest) = out.split_at_mut(nope);
                let (scales, tail) = rest.split_at_mut(4 * nope.div_ceil(128));
                let set = |i: usize, byte| scales[4 * i..4 * i + 4].copy_from_slice(&ue8m0_to_f32(byte).to_le_bytes());
                encode_e4m3_blocks(&row[..nope], 128, codes, set, stats);
                encode_bf16(&row[nope..], tail);
            }
            RowFormat::IndexFp4 => encode_fp4_blocks(row, data, scales, stats),
            RowFormat::IndexFp8 => {
                let set = |_, byte| scales.copy_from_slice(&ue8m0_to_f32(byte).to_le_bytes());
                encode_e4m3_blocks(row, row.len(), data, set, stats);
            }
        }
    }

    /// Reads a record back with [`Isa::detect`]; `out` has the row's width.
    pub fn decode(self, bytes: &[u8], rope: usize, out: &mut [f32]) {
        self.decode_with(Isa::detect(), bytes, rope, out);
    }

    /// Reads a record back with the given instruction set; every set gives the same bits.
    pub fn decode_with(self, isa: Isa, bytes: &[u8], rope: usize, out: &mut [f32]) {
        debug_assert!(
            self.supports(out.len(), rope),
            "{self:?} of width {} with rope {rope}",
            out.len()
        );
        debug_assert_eq!(bytes.len(), self.row_bytes(out.len(), rope));
        let nope = out.len().saturating_sub(rope);
        let (data, scales) = bytes.split_at(self.split(out.len(), rope).0);
        match self {
            RowFormat::F32 => {
                for (b, v) in data.chunks_exact(4).zip(out) {
                    *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                }
            }
            RowFormat::Bf16 => decode_bf16(data, out),
            RowFormat::Fp8Model1 | RowFormat::Fp8B64 => {
                let (head, tail) = out.split_at_mut(nope);
                decode_e4m3_blocks(isa, &data[..nope], Blocks::E8m0 { len: 64, scales }, head);
                decode_bf16(&data[nope..], tail);
            }
            RowFormat::Fp8V32 => {
                let (codes, rest) = bytes.split_at(nope);
                let (scales, rest) = rest.split_at(4 * nope.div_ceil(128));
                let (head, tail) = out.split_at_mut(nope);
                decode_e4m3_blocks(isa, codes, Blocks::F32 { len: 128, scales }, head);
                decode_bf16(rest, tail);
            }
            RowFormat::IndexFp4 => decode_fp4_blocks(isa, data, scales, out),
            RowFormat::IndexFp8 => {
                let len = out.len();
                decode_e4m3_blocks(isa, data, Blocks::F32 { len, scales }, out);
            }
        }
    }
}

/// bf16 little endian, rounded to nearest even; NaN stays NaN. The same as `half::bf16::from_f32`, kept free of
/// branches so that it vectorises.
fn encode_bf16(values: &[f32], out: &mut [u8]) {
    for (v, o) in values.iter().zip(out.chunks_exact_mut(2)) {
        let b = v.to_bits();
        let rounded = b.wrapping_add(0x7fff + (b >> 16 & 1)) >> 16;
        let quiet = b >> 16 | 0x40;
        let bits = if b & 0x7fff_ffff > 0x7f80_0000 { quiet } else { rounded };
        o.copy_from_slice(&(bits as u16).to_le_bytes());
    }
}

fn decode_bf16(bytes: &[u8], out: &mut [f32]) {
    for (b, v) in bytes.chunks_exact(2).zip(out) {
        *v = f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16);
    }
}

#[cfg(test)]
mod tests;

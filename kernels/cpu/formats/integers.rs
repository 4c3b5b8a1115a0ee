//! Block-quantised rows as the integer kernels see them: unsigned bytes, scales and minimums.

use super::blocks::q4_k_scale;
use crate::ir::Format;

/// A row as `weight = (value - offset) * scale + min` with one scale per `sub` columns.
pub(crate) struct IntRow {
    format: Format,
    /// Columns per scale: 16 for Q6_K, else 32.
    pub(crate) sub: usize,
    /// Added to every stored value to make it unsigned.
    pub(crate) offset: u8,
    /// `[cols]`
    pub(crate) values: Vec<u8>,
    /// `[cols / sub]`
    pub(crate) scales: Vec<f32>,
    /// What is added per column, `[cols / sub]`; empty for formats without.
    pub(crate) mins: Vec<f32>,
}

/// Columns per scale, offset, and whether there are minimums.
pub(crate) fn int_shape(format: Format) -> (usize, u8, bool) {
    match format {
        Format::Q8_0 => (32, 128, false),
        Format::Q4_0 => (32, 8, false),
        Format::Q5_0 => (32, 16, false),
        Format::Q6K => (16, 32, false),
        _ => (32, 0, true),
    }
}

impl IntRow {
    /// Room for rows of `cols` columns.
    pub(crate) fn new(format: Format, cols: usize) -> Self {
        let (sub, offset, mins) = int_shape(format);
        let n = cols / sub;
        Self {
            format,
            sub,
            offset,
            values: vec![0; cols],
            scales: vec![0.0; n],
            mins: if mins { vec![0.0; n] } else { Vec::new() },
        }
    }

    /// Unpacks a stored row (or whole blocks of one, as many columns as there is room for).
    pub(crate) fn decode(&mut self, row: &[u8]) {
        unpack(self.format, row, &mut self.values, &mut self.scales, &mut self.mins);
    }
}

/// Unpacks whole blocks as [`IntRow`] has them. Inlined, so that it is compiled for its caller's instruction set.
#[inline(always)]
pub(crate) fn unpack(format: Format, row: &[u8], values: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
    match format {
        Format::Q4K => {
            let blocks = row.chunks_exact(144).zip(values.chunks_exact_mut(256));
            let parts = scales.chunks_exact_mut(8).zip(mins.chunks_exact_mut(8));
            blocks
                .zip(parts)
                .for_each(|((b, v), (scales, mins))| q4_k(b, v, scales, mins));
        }
        Format::Q6K => {
            let blocks = row.chunks_exact(210).zip(values.chunks_exact_mut(256));
            blocks
                .zip(scales.chunks_exact_mut(16))
                .for_each(|((b, v), scales)| q6_k(b, v, scales));
        }
        Format::Q8_0 => simple::<34>(row, values, scales, |b, out| {
            out.iter_mut().zip(&b[2..]).for_each(|(o, q)| *o = q ^ 0x80);
        }),
        Format::Q4_0 => simple::<18>(row, values, scales, |b, out| nibbles(&b[2..], out)),
        Format::Q5_0 => simple::<22>(row, values, scales, |b, out| {
            nibbles(&b[6..], out);
            out_bits(out, u32::from_le_bytes([b[2], b[3], b[4], b[5]]));
        }),
        _ => {
            simple::<20>(row, values, scales, |b, out| nibbles(&b[4..], out));
            let (blocks, _) = row.as_chunks::<20>();
            blocks.iter().zip(mins).for_each(|(b, m)| *m = half(b, 2));
        }
    }
}

/// An f16 number as f32: exact for all values, NaN stays NaN. Shifts and one product, so that it can be inlined.
#[inline(always)]
fn half(b: &[u8], at: usize) -> f32 {
    let bits = u32::from(u16::from_le_bytes([b[at], b[at + 1]]));
    let shifted = (bits & 0x7fff) << 13;
    // The exponents' zeros are 112 apart.
    let value = f32::from_bits(shifted) * f32::from_bits((127 + 112) << 23);
    let not_finite = if shifted >= 0x0f80_0000 { 0x7f80_0000 } else { 0 };
    f32::from_bits(value.to_bits() | not_finite | (bits & 0x8000) << 16)
}

/// Blocks of N bytes that hold 32 values and begin with their scale.
#[inline(always)]
fn simple<const N: usize>(row: &[u8], values: &mut [u8], scales: &mut [f32], unpack: impl Fn(&[u8; N], &mut [u8; 32])) {
    let ((blocks, _), (values, _)) = (row.as_chunks::<N>(), values.as_chunks_mut::<32>());
    for ((b, out), scale) in blocks.iter().zip(values).zip(scales) {
        *scale = half(b, 0);
        unpack(b, out);
    }
}

/// Low nibbles, then high ones.
#[inline(always)]
fn nibbles(quants: &[u8], out: &mut [u8; 32]) {
    let (low, high) = out.split_at_mut(16);
    for ((l, h), q) in low.iter_mut().zip(high).zip(quants) {
        (*l, *h) = (q & 15, q >> 4);
    }
}

#[inline(always)]
fn q4_k(b: &[u8], values: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
    let (d, dmin) = (half(b, 0), half(b, 2));
    for j in 0..8 {
        let (s, m) = q4_k_scale(&b[4..16], j);
        scales[j] = d * f32::from(s);
        mins[j] = -(dmin * f32::from(m));
    }
    for (out, qs) in values.chunks_exact_mut(64).zip(b[16..].chunks_exact(32)) {
        let (low, high) = out.split_at_mut(32);
        for ((l, h), q) in low.iter_mut().zip(high).zip(qs) {
            (*l, *h) = (q & 15, q >> 4);
        }
    }
}

#[inline(always)]
fn q6_k(b: &[u8], values: &mut [u8], scales: &mut [f32]) {
    let d = half(b, 208);
    for (o, s) in scales.iter_mut().zip(&b[192..208]) {
        *o = d * f32::from(*s as i8);
    }
    for (half, out) in values.chunks_exact_mut(128).enumerate() {
        let (ql, qh) = (&b[half * 64..half * 64 + 64], &b[128 + half * 32..160 + half * 32]);
        for k in 0..32 {
            out[k] = (ql[k] & 15) | ((qh[k] & 3) << 4);
            out[k + 32] = (ql[k + 32] & 15) | (((qh[k] >> 2) & 3) << 4);
            out[k + 64] = (ql[k] >> 4) | (((qh[k] >> 4) & 3) << 4);
            out[k + 96] = (ql[k + 32] >> 4) | ((qh[k] >> 6) << 4);
        }
    }
}

#[inline(always)]
fn out_bits(values: &mut [u8; 32], bits: u32) {
    for (k, v) in values.iter_mut().enumerate() {
        *v |= (((bits >> k) & 1) as u8) << 4;
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_f16_is_widened_exactly() {
        for code in 0..=u16::MAX {
            let (ours, want) = (super::half(&code.to_le_bytes(), 0), half::f16::from_bits(code).to_f32());
            assert!(
                ours.to_bits() == want.to_bits() || ours.is_nan() && want.is_nan(),
                "{code:#x}: {ours} instead of {want}"
            );
        }
    }
}

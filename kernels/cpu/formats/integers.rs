//! Block-quantised rows as the integer kernels see them: unsigned bytes, scales and minimums.

use super::blocks::{h, q4_k_scale};
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
        let size = self.format.block_bytes();
        for (i, b) in row.chunks_exact(size).enumerate() {
            match self.format {
                Format::Q4K => self.q4_k(i, b),
                Format::Q6K => self.q6_k(i, b),
                _ => self.block32(i, b),
            }
        }
    }

    fn block32(&mut self, i: usize, b: &[u8]) {
        self.scales[i] = h(b, 0);
        let out = &mut self.values[32 * i..32 * i + 32];
        let (low, high) = match self.format {
            Format::Q8_0 => {
                out.iter_mut().zip(&b[2..34]).for_each(|(o, q)| *o = q ^ 0x80);
                return;
            }
            _ => out.split_at_mut(16),
        };
        let quants = &b[b.len() - 16..];
        for ((l, h), q) in low.iter_mut().zip(high).zip(quants) {
            (*l, *h) = (q & 15, q >> 4);
        }
        if self.format == Format::Q4_1 {
            self.mins[i] = h(b, 2);
        }
        if self.format == Format::Q5_0 {
            let bits = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            out_bits(&mut self.values[32 * i..32 * i + 32], bits);
        }
    }

    fn q4_k(&mut self, i: usize, b: &[u8]) {
        let (d, dmin) = (h(b, 0), h(b, 2));
        for j in 0..8 {
            let (s, m) = q4_k_scale(&b[4..16], j);
            self.scales[8 * i + j] = d * f32::from(s);
            self.mins[8 * i + j] = -(dmin * f32::from(m));
        }
        for (out, qs) in self.values[256 * i..256 * i + 256]
            .chunks_exact_mut(64)
            .zip(b[16..].chunks_exact(32))
        {
            let (low, high) = out.split_at_mut(32);
            for ((l, h), q) in low.iter_mut().zip(high).zip(qs) {
                (*l, *h) = (q & 15, q >> 4);
            }
        }
    }

    fn q6_k(&mut self, i: usize, b: &[u8]) {
        let d = h(b, 208);
        for (o, s) in self.scales[16 * i..16 * i + 16].iter_mut().zip(&b[192..208]) {
            *o = d * f32::from(*s as i8);
        }
        for (half, out) in self.values[256 * i..256 * i + 256].chunks_exact_mut(128).enumerate() {
            let (ql, qh) = (&b[half * 64..half * 64 + 64], &b[128 + half * 32..160 + half * 32]);
            for k in 0..32 {
                out[k] = (ql[k] & 15) | ((qh[k] & 3) << 4);
                out[k + 32] = (ql[k + 32] & 15) | (((qh[k] >> 2) & 3) << 4);
                out[k + 64] = (ql[k] >> 4) | (((qh[k] >> 4) & 3) << 4);
                out[k + 96] = (ql[k + 32] >> 4) | ((qh[k] >> 6) << 4);
            }
        }
    }
}

fn out_bits(values: &mut [u8], bits: u32) {
    for (k, v) in values.iter_mut().enumerate() {
        *v |= (((bits >> k) & 1) as u8) << 4;
    }
}

//! Decoding of one stored row, format by format. GGUF block layouts as in ggml.

use half::{bf16, f16};

use super::{e2m1_to_f32, e4m3_to_f32};
use crate::ir::Format;

pub(super) fn h(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

/// One element of a plain format.
pub(super) fn plain(format: Format, b: &[u8]) -> f32 {
    match format {
        Format::F32 => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
        Format::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        Format::Bf16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        Format::F8E4m3 => e4m3_to_f32(b[0]),
        _ => 0.0,
    }
}

/// Decodes `out.len()` elements.
pub(super) fn decode(format: Format, bytes: &[u8], out: &mut [f32]) {
    match format {
        Format::F32 | Format::F16 | Format::Bf16 | Format::F8E4m3 => {
            for (b, o) in bytes.chunks_exact(format.block_bytes()).zip(out) {
                *o = plain(format, b);
            }
        }
        Format::Fp4E2m1 => {
            for (b, o) in bytes.iter().zip(out.chunks_exact_mut(2)) {
                o[0] = e2m1_to_f32(b & 15);
                o[1] = e2m1_to_f32(b >> 4);
            }
        }
        Format::Q8_0 | Format::Q4_0 | Format::Q4_1 | Format::Q5_0 => {
            for (b, o) in bytes.chunks_exact(format.block_bytes()).zip(out.chunks_exact_mut(32)) {
                block32(format, b, o);
            }
        }
        Format::Q4K => bytes
            .chunks_exact(144)
            .zip(out.chunks_exact_mut(256))
            .for_each(|(b, o)| q4_k(b, o)),
        Format::Q6K => bytes
            .chunks_exact(210)
            .zip(out.chunks_exact_mut(256))
            .for_each(|(b, o)| q6_k(b, o)),
        Format::I32 | Format::I64 => {}
    }
}

fn block32(format: Format, b: &[u8], o: &mut [f32]) {
    let d = h(b, 0);
    match format {
        Format::Q8_0 => o
            .iter_mut()
            .zip(&b[2..])
            .for_each(|(o, &q)| *o = d * f32::from(q as i8)),
        Format::Q4_0 => {
            for (i, &q) in b[2..18].iter().enumerate() {
                o[i] = d * (f32::from(q & 15) - 8.0);
                o[i + 16] = d * (f32::from(q >> 4) - 8.0);
            }
        }
        Format::Q4_1 => {
            let m = h(b, 2);
            for (i, &q) in b[4..20].iter().enumerate() {
                o[i] = d * f32::from(q & 15) + m;
                o[i + 16] = d * f32::from(q >> 4) + m;
            }
        }
        _ => {
            let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
            for (i, &q) in b[6..22].iter().enumerate() {
                let lo = u32::from(q & 15) | ((high >> i) & 1) << 4;
                let hi = u32::from(q >> 4) | ((high >> (i + 16)) & 1) << 4;
                o[i] = d * (lo as f32 - 16.0);
                o[i + 16] = d * (hi as f32 - 16.0);
            }
        }
    }
}

/// 6-bit (scale, minimum) of sub-block j of a Q4_K block's 12 packed bytes.
pub(in crate::cpu) fn q4_k_scale(s: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        (
            (s[j + 4] & 15) | ((s[j - 4] >> 6) << 4),
            (s[j + 4] >> 4) | ((s[j] >> 6) << 4),
        )
    }
}

fn q4_k(b: &[u8], o: &mut [f32]) {
    let (d, dmin) = (h(b, 0), h(b, 2));
    for j in 0..8 {
        let (s, m) = q4_k_scale(&b[4..16], j);
        let (scale, min) = (d * f32::from(s), dmin * f32::from(m));
        let qs = &b[16 + j / 2 * 32..][..32];
        for (o, &q) in o[j * 32..(j + 1) * 32].iter_mut().zip(qs) {
            let q = if j % 2 == 0 { q & 15 } else { q >> 4 };
            *o = scale * f32::from(q) - min;
        }
    }
}

fn q6_k(b: &[u8], o: &mut [f32]) {
    let d = h(b, 208);
    for half in 0..2 {
        let (ql, qh, sc) = (&b[half * 64..], &b[128 + half * 32..], &b[192 + half * 8..]);
        for i in 0..32 {
            let q = [
                (ql[i] & 15) | ((qh[i] & 3) << 4),
                (ql[i + 32] & 15) | (((qh[i] >> 2) & 3) << 4),
                (ql[i] >> 4) | (((qh[i] >> 4) & 3) << 4),
                (ql[i + 32] >> 4) | (((qh[i] >> 6) & 3) << 4),
            ];
            for (k, q) in q.into_iter().enumerate() {
                let scale = d * f32::from(sc[2 * k + i / 16] as i8);
                o[half * 128 + k * 32 + i] = scale * (f32::from(q) - 32.0);
            }
        }
    }
}

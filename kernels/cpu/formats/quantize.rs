//! Making stored rows from f32: for re-stored output layers, tests and benchmark models.

use half::{bf16, f16};

use super::{f32_to_e4m3, ue8m0_from_amax, ue8m0_to_f32};

/// bf16, nearest even.
pub fn quantize_bf16(row: &[f32]) -> Vec<u8> {
    row.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
}

/// Q8_0 as ggml's reference: scale amax / 127.
pub fn quantize_q8_0(row: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() / 32 * 34);
    for b in row.chunks_exact(32) {
        let amax = b.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let d = amax / 127.0;
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(b.iter().map(|x| (x * id).round() as i8 as u8));
    }
    out
}

/// Q4_0 as ggml's reference: scale = signed extreme / -8.
pub fn quantize_q4_0(row: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() / 32 * 18);
    for b in row.chunks_exact(32) {
        let extreme = b.iter().fold(0.0f32, |m, &x| if x.abs() > m.abs() { x } else { m });
        let d = extreme / -8.0;
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend(f16::from_f32(d).to_le_bytes());
        let q = |x: f32| ((x * id + 8.5) as i32).clamp(0, 15) as u8;
        out.extend((0..16).map(|i| q(b[i]) | (q(b[i + 16]) << 4)));
    }
    out
}

/// Q4_1 as ggml's reference: scale (max - min) / 15.
pub fn quantize_q4_1(row: &[f32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(row.len() / 32 * 20);
    for b in row.chunks_exact(32) {
        let min = b.iter().copied().fold(f32::INFINITY, f32::min);
        let max = b.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let d = (max - min) / 15.0;
        let id = if d == 0.0 { 0.0 } else { 1.0 / d };
        out.extend(f16::from_f32(d).to_le_bytes());
        out.extend(f16::from_f32(min).to_le_bytes());
        let q = |x: f32| (((x - min) * id + 0.5) as i32).clamp(0, 15) as u8;
        out.extend((0..16).map(|i| q(b[i]) | (q(b[i + 16]) << 4)));
    }
    out
}

/// FP8 with one power-of-two scale per 128 x 128 block (MODEL1.md 6.3, 7.4). Returns (codes, ue8m0 scales).
pub fn quantize_fp8_block128(w: &[f32], rows: usize, cols: usize) -> (Vec<u8>, Vec<u8>) {
    let (br, bc) = (rows.div_ceil(128), cols.div_ceil(128));
    let mut scales = Vec::with_capacity(br * bc);
    for r in 0..br {
        for c in 0..bc {
            let mut amax = 0.0f32;
            for row in w.chunks_exact(cols).skip(r * 128).take(128) {
                amax = row[c * 128..cols.min((c + 1) * 128)]
                    .iter()
                    .fold(amax, |m, x| m.max(x.abs()));
            }
            scales.push(ue8m0_from_amax(amax, 1.0 / 448.0, 1e-4));
        }
    }
    let mut codes = Vec::with_capacity(rows * cols);
    for (r, row) in w.chunks_exact(cols.max(1)).enumerate() {
        for (c, part) in row.chunks(128).enumerate() {
            let inverse = 1.0 / ue8m0_to_f32(scales[r / 128 * bc + c]);
            codes.extend(part.iter().map(|x| f32_to_e4m3((x * inverse).clamp(-448.0, 448.0))));
        }
    }
    (codes, scales)
}

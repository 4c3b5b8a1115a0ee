//! Making stored rows from f32: for re-stored weights, tests and benchmark models.

use half::{bf16, f16};

use super::{f32_to_e2m1, f32_to_e4m3, ue8m0_from_amax, ue8m0_to_f32};

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

/// FP4: e2m1, two per byte, low nibble first, with one power-of-two scale per 32 values of a row (MODEL1.md 6.3), the
/// smallest under which none of them exceeds 6. The last block of a row may be shorter; `cols` must be even. Returns
/// (codes, ue8m0 scales). NaN becomes 0.
pub fn quantize_fp4_block32(w: &[f32], cols: usize) -> (Vec<u8>, Vec<u8>) {
    let mut codes = Vec::with_capacity(w.len() / 2);
    let mut scales = Vec::with_capacity(w.len() / 32 + 1);
    for row in w.chunks_exact(cols.max(2)) {
        for block in row.chunks(32) {
            let amax = block.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            let byte = ue8m0_from_amax(amax, 1.0 / 6.0, 6.0 * f32::MIN_POSITIVE);
            let inverse = 1.0 / ue8m0_to_f32(byte);
            let code = |x: f32| f32_to_e2m1(x * inverse);
            codes.extend(block.chunks_exact(2).map(|p| code(p[0]) | (code(p[1]) << 4)));
            scales.push(byte);
        }
    }
    (codes, scales)
}

#[cfg(test)]
mod tests {
    use super::super::{BlockScales, Matrix};
    use super::*;
    use crate::ir::{Format, Layout, ScaleFormat, ScaleSpec};

    /// What FP4 should give, the slow way: every power of two, every value an e2m1 can have.
    fn slow(block: &[f32]) -> Vec<f32> {
        const VALUES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        let most = block.iter().fold(0.0f64, |m, x| m.max(f64::from(x.abs())));
        let scale = (-126..128).map(|e| 2f64.powi(e)).find(|s| most <= 6.0 * s).unwrap();
        let nearest = |x: f32| {
            let a = f64::from(x.abs()) / scale;
            let mut best = 0;
            for (code, v) in VALUES.iter().enumerate() {
                let (now, then) = ((v - a).abs(), (VALUES[best] - a).abs());
                // A tie goes to the even code.
                if now < then || now == then && code % 2 == 0 {
                    best = code;
                }
            }
            ((VALUES[best] * scale) as f32).copysign(x)
        };
        block.iter().map(|&x| nearest(x)).collect()
    }

    #[test]
    fn fp4_is_the_nearest_value_under_the_smallest_scale() {
        let mut seed = 1u64;
        let mut next = || {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 40) as f32 / (1 << 24) as f32
        };
        // Whole blocks, short last ones, one value pair; from large through tiny to zero, and exact ties.
        for (rows, cols) in [(3, 64), (5, 72), (2, 2), (4, 34), (1, 32)] {
            for size in [1.0f32, 3e4, 1e-6, 1e-36, 0.0] {
                let mut w: Vec<f32> = (0..rows * cols).map(|_| (next() - 0.5) * size).collect();
                w[0] = size * 6.0;
                w[1] = size * -0.25;
                let (codes, scales) = quantize_fp4_block32(&w, cols);
                assert_eq!(scales.len(), rows * cols.div_ceil(32));
                let spec = ScaleSpec {
                    format: ScaleFormat::E8m0,
                    block_rows: 1,
                    block_cols: 32,
                };
                let scales = Some(BlockScales { spec, data: &scales });
                let m = Matrix::new(rows, cols, Format::Fp4E2m1, Layout::OutIn, &codes, scales).unwrap();
                let mut got = vec![0.0; cols];
                for (r, row) in w.chunks_exact(cols).enumerate() {
                    m.decode_row(r, &mut got);
                    let want: Vec<f32> = row.chunks(32).flat_map(slow).collect();
                    assert_eq!(got, want, "{rows} x {cols}, size {size}, row {r}");
                }
            }
        }
    }
}

//! Stored number formats: scalar conversions, the checked [`Matrix`] view, and row decoding, the reference all SIMD
//! kernels are compared with. Data is only byte-aligned (memory-mapped files): every load is unaligned.

mod blocks;
mod integers;
mod quantize;

use crate::ir::{Format, Layout, ScaleFormat, ScaleSpec, WeightView};

pub(crate) use integers::IntRow;
#[cfg(target_arch = "x86_64")]
pub(crate) use integers::{int_shape, unpack};
pub use quantize::{
    quantize_bf16, quantize_fp4_block32, quantize_fp8_block128, quantize_q4_0, quantize_q4_1, quantize_q8_0,
};

/// E4M3 code to f32 (exact; 0x7f and 0xff are NaN).
pub fn e4m3_to_f32(code: u8) -> f32 {
    let (e, m) = ((code >> 3) & 15, f32::from(code & 7));
    let magnitude = match (code & 0x7f, e) {
        (0x7f, _) => f32::NAN,
        (_, 0) => m * (1.0 / 512.0),
        _ => (8.0 + m) * f32::from_bits((u32::from(e) + 117) << 23),
    };
    if code & 0x80 != 0 { -magnitude } else { magnitude }
}

/// Nearest E4M3 code, ties to even, saturating at 448; NaN becomes 0x7f.
pub fn f32_to_e4m3(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 24) & 0x80) as u8;
    let a = x.abs();
    if a.is_nan() {
        return sign | 0x7f;
    }
    if a >= 448.0 {
        return sign | 0x7e;
    }
    let e = ((a.to_bits() >> 23) as i32 - 127).max(-6);
    // Multiples of the step 2^(e-3); scaling by a power of two is exact.
    let q = (a * f32::from_bits(((3 - e + 127) as u32) << 23)).round_ties_even() as i32;
    sign | ((((e + 6) * 8) + q) as u8).min(0x7e)
}

const E2M1: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// E2M1 code (low 4 bits) to f32.
pub fn e2m1_to_f32(code: u8) -> f32 {
    E2M1[usize::from(code & 15)]
}

/// Nearest E2M1 code, ties to the even code, saturating at 6; NaN becomes 0.
pub fn f32_to_e2m1(x: f32) -> u8 {
    let sign = ((x.to_bits() >> 28) & 8) as u8;
    let a = x.abs();
    if a.is_nan() {
        return sign;
    }
    if a >= 6.0 {
        return sign | 7;
    }
    let e = ((a.to_bits() >> 23) as i32 - 127).max(0);
    let q = (a * f32::from_bits(((1 - e + 127) as u32) << 23)).round_ties_even() as i32;
    sign | ((e * 2 + q) as u8).min(7)
}

/// Power of two of a ue8m0 byte: 2^(byte - 127).
pub fn ue8m0_to_f32(byte: u8) -> f32 {
    if byte == 0 {
        f32::from_bits(0x0040_0000)
    } else {
        f32::from_bits(u32::from(byte) << 23)
    }
}

/// Scale byte of a block (MODEL1.md 7.4): 2^ceil(log2(max(amax, floor) * inv_max)) on fp32 bits.
pub fn ue8m0_from_amax(amax: f32, inv_max: f32, floor: f32) -> u8 {
    let bits = (amax.max(floor) * inv_max).to_bits();
    let exponent = (bits >> 23) & 0xff;
    (exponent + u32::from(bits & 0x7f_ffff != 0)).min(254) as u8
}

/// Why bytes are not the matrix they are said to be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct MatrixError(pub String);

/// Separate scales of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct BlockScales<'a> {
    /// Encoding and block shape.
    pub spec: ScaleSpec,
    /// The scales, row-major.
    pub data: &'a [u8],
}

/// A checked view of a stored weight: `rows` outputs, `cols` inputs.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// Element format.
    pub format: Format,
    /// Stored orientation.
    pub layout: Layout,
    /// Elements.
    pub data: &'a [u8],
    /// Scales kept apart.
    pub scales: Option<BlockScales<'a>>,
}

impl<'a> Matrix<'a> {
    /// Checks sizes and blocks.
    pub fn from_view(view: &WeightView<'a>) -> Result<Self, MatrixError> {
        view.check().map_err(MatrixError)?;
        let d = view.desc;
        if matches!(d.format, Format::I32 | Format::I64) {
            return Err(MatrixError(format!("format {}: accepted are float formats", d.format)));
        }
        Ok(Self {
            rows: d.rows,
            cols: d.cols,
            format: d.format,
            layout: d.layout,
            data: view.data,
            scales: d.scales.map(|spec| BlockScales {
                spec,
                data: view.scales,
            }),
        })
    }

    /// Checks and makes a view from parts.
    pub fn new(
        rows: usize,
        cols: usize,
        format: Format,
        layout: Layout,
        data: &'a [u8],
        scales: Option<BlockScales<'a>>,
    ) -> Result<Self, MatrixError> {
        let desc = crate::ir::WeightDesc {
            name: String::new(),
            rows,
            cols,
            format,
            layout,
            scales: scales.map(|s| s.spec),
        };
        let view = WeightView {
            desc: &desc,
            data,
            scales: scales.map_or(&[], |s| s.data),
        };
        view.check().map_err(MatrixError)?;
        if matches!(format, Format::I32 | Format::I64) {
            return Err(MatrixError(format!("format {format}: accepted are float formats")));
        }
        Ok(Self {
            rows,
            cols,
            format,
            layout,
            data,
            scales,
        })
    }

    /// Bytes of one stored row (outputs for `[out, in]`).
    pub fn row_bytes(&self) -> usize {
        self.format.row_bytes(self.cols).unwrap_or(0)
    }

    /// The bytes of one stored row of an `[out, in]` matrix.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let n = self.row_bytes();
        &self.data[row * n..(row + 1) * n]
    }

    /// Scale of the block (row, col) lies in; 1 without scales.
    pub fn scale(&self, row: usize, col: usize) -> f32 {
        let Some(s) = &self.scales else { return 1.0 };
        let per_row = self.cols.div_ceil(s.spec.block_cols);
        let i = row / s.spec.block_rows * per_row + col / s.spec.block_cols;
        match s.spec.format {
            ScaleFormat::E8m0 => ue8m0_to_f32(s.data[i]),
            ScaleFormat::Bf16 => half::bf16::from_le_bytes([s.data[2 * i], s.data[2 * i + 1]]).to_f32(),
            ScaleFormat::F32 => {
                let b = &s.data[4 * i..4 * i + 4];
                f32::from_le_bytes([b[0], b[1], b[2], b[3]])
            }
        }
    }

    /// Scales of all column blocks of `row`, as f32; `out` has `ceil(cols / block_cols)` slots.
    pub fn scales_of_row(&self, row: usize, out: &mut [f32]) {
        let Some(s) = &self.scales else { return };
        let per_row = self.cols.div_ceil(s.spec.block_cols);
        let at = row / s.spec.block_rows * per_row;
        if s.spec.format == ScaleFormat::E8m0 {
            let bytes = &s.data[at..at + per_row];
            out.iter_mut().zip(bytes).for_each(|(o, b)| *o = ue8m0_to_f32(*b));
        } else {
            out.iter_mut()
                .enumerate()
                .for_each(|(i, o)| *o = self.scale(row, i * s.spec.block_cols));
        }
    }

    /// Decodes the weights of output `row` (inputs in order) into `out`, `cols` values.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        let out = &mut out[..self.cols];
        if self.layout == Layout::InOut {
            let size = self.format.block_bytes();
            for (c, o) in out.iter_mut().enumerate() {
                let at = (c * self.rows + row) * size;
                *o = blocks::plain(self.format, &self.data[at..at + size]);
            }
            return;
        }
        blocks::decode(self.format, self.row(row), out);
        let Some(s) = &self.scales else { return };
        for (b, part) in out.chunks_mut(s.spec.block_cols).enumerate() {
            let scale = self.scale(row, b * s.spec.block_cols);
            part.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// All values of a (small) weight as f32, stored order.
pub fn values(view: &WeightView<'_>) -> Result<Vec<f32>, String> {
    view.check()?;
    let d = view.desc;
    let (rows, cols) = match d.layout {
        Layout::OutIn => (d.rows, d.cols),
        Layout::InOut => (d.cols, d.rows),
    };
    let m = Matrix {
        rows,
        cols,
        format: d.format,
        layout: Layout::OutIn,
        data: view.data,
        scales: d.scales.map(|spec| BlockScales {
            spec,
            data: view.scales,
        }),
    };
    let mut out = vec![0.0; rows * cols];
    for (r, o) in out.chunks_exact_mut(cols.max(1)).enumerate() {
        m.decode_row(r, o);
    }
    Ok(out)
}

/// Decodes one row of elements (scales kept apart not applied).
pub fn decode_elements(format: Format, bytes: &[u8], out: &mut [f32]) {
    blocks::decode(format, bytes, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_round_trips_every_code() {
        for code in 0..=255u8 {
            let x = e4m3_to_f32(code);
            if x.is_nan() {
                assert_eq!(code & 0x7f, 0x7f);
            } else {
                assert_eq!(f32_to_e4m3(x), code, "{x}");
            }
        }
        assert_eq!(e4m3_to_f32(0x7e), 448.0);
        assert_eq!(f32_to_e4m3(1e9), 0x7e);
        // Half way between 0x38 (1.0) and 0x39 (1.125): to even.
        assert_eq!(f32_to_e4m3(1.0625), 0x38);
        assert_eq!(f32_to_e4m3(1.1875), 0x3a);
    }

    #[test]
    fn e2m1_ties_go_to_the_even_code() {
        for (x, want) in [
            (0.25, 0.0),
            (0.75, 1.0),
            (1.25, 1.0),
            (1.75, 2.0),
            (2.5, 2.0),
            (3.5, 4.0),
            (5.0, 4.0),
        ] {
            assert_eq!(e2m1_to_f32(f32_to_e2m1(x)), want, "{x}");
            assert_eq!(e2m1_to_f32(f32_to_e2m1(-x)), -want, "{x}");
        }
        assert_eq!(e2m1_to_f32(f32_to_e2m1(100.0)), 6.0);
    }

    #[test]
    fn scale_bytes_follow_the_example() {
        // MODEL1.md 7.4: block max 3.0 -> 2^-7, byte 120.
        assert_eq!(ue8m0_from_amax(3.0, 1.0 / 448.0, 1e-4), 120);
        assert_eq!(f32_to_e4m3(3.0 * 128.0), 0x7c);
        assert_eq!(f32_to_e4m3(-1.2345 * 128.0), 0xf2);
        assert_eq!(f32_to_e4m3(0.01 * 128.0), 0x3a);
        assert_eq!(f32_to_e4m3(0.0004 * 128.0), 0x15);
    }
}

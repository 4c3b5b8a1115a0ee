//! Re-storing a loaded weight in another format.

use checkpoint::Bytes;
use kernels::cpu::formats::{Matrix, quantize_fp8_block128};
use kernels::ir::{Format, Layout, ScaleFormat, ScaleSpec, WeightDesc, WeightView};

use super::Stored;
use crate::error::EngineError;
use crate::recipe::HeadFormat;

/// Makes `weight` as `format`, row by row from its stored form. `None` for [`HeadFormat::Own`].
pub fn make_variant(weight: WeightView<'_>, format: HeadFormat) -> Result<Option<Stored>, EngineError> {
    let d = weight.desc;
    let matrix = Matrix::from_view(&weight).map_err(|e| EngineError::Invalid(format!("weight `{}`: {e}", d.name)))?;
    let mut desc = WeightDesc {
        layout: Layout::OutIn,
        scales: None,
        ..d.clone()
    };
    match format {
        HeadFormat::Own => Ok(None),
        HeadFormat::Bf16 => {
            let mut data = Vec::with_capacity(d.rows * d.cols * 2);
            let mut row = vec![0.0; d.cols];
            for r in 0..d.rows {
                matrix.decode_row(r, &mut row);
                data.extend(row.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()));
            }
            desc.format = Format::Bf16;
            desc.name = format!("{} as bf16", d.name);
            Ok(Some(Stored {
                desc,
                data: Bytes::from(data),
                scales: None,
            }))
        }
        HeadFormat::Fp8 => {
            let mut data = Vec::with_capacity(d.rows * d.cols);
            let mut scales = Vec::new();
            // 128 rows at a time: a block's scale needs the block only.
            let mut band = vec![0.0; 128 * d.cols];
            for first in (0..d.rows).step_by(128) {
                let n = (d.rows - first).min(128);
                for r in 0..n {
                    matrix.decode_row(first + r, &mut band[r * d.cols..(r + 1) * d.cols]);
                }
                let (codes, s) = quantize_fp8_block128(&band[..n * d.cols], n, d.cols);
                data.extend(codes);
                scales.extend(s);
            }
            desc.format = Format::F8E4m3;
            desc.scales = Some(ScaleSpec {
                format: ScaleFormat::E8m0,
                block_rows: 128,
                block_cols: 128,
            });
            desc.name = format!("{} as fp8", d.name);
            Ok(Some(Stored {
                desc,
                data: Bytes::from(data),
                scales: Some(Bytes::from(scales)),
            }))
        }
    }
}

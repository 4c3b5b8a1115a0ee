//! Joining FP8 and FP4 weights with the scale tensors that belong to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kernels::ir::{Format, ScaleFormat, ScaleSpec};

use crate::error::CheckpointError;
use crate::safetensors::Entry;
use crate::{Tensor, TensorScales};

/// Columns per scale of packed FP4.
const FP4_BLOCK: usize = 32;

/// A tensor as read, with its file.
pub(crate) type Raw = BTreeMap<String, (Entry, PathBuf)>;

fn plain(dtype: &str) -> Option<Format> {
    Some(match dtype {
        "F32" => Format::F32,
        "F16" => Format::F16,
        "BF16" => Format::Bf16,
        "F8_E4M3" => Format::F8E4m3,
        "I32" => Format::I32,
        "I64" => Format::I64,
        _ => return None,
    })
}

fn scale_format(dtype: &str) -> Option<ScaleFormat> {
    Some(match dtype {
        "F32" => ScaleFormat::F32,
        "BF16" => ScaleFormat::Bf16,
        "F8_E8M0" | "U8" => ScaleFormat::E8m0,
        _ => return None,
    })
}

/// Names a weight's scales may have.
fn companions(name: &str) -> [String; 4] {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    [
        format!("{stem}.scale"),
        format!("{name}_scale_inv"),
        format!("{name}.scale"),
        format!("{stem}.weight_scale_inv"),
    ]
}

/// Turns raw entries into tensors; returns those in formats we do not read as name -> format.
pub(crate) fn join(
    raw: &Raw,
    block: (usize, usize),
) -> Result<(BTreeMap<String, Tensor>, BTreeMap<String, String>), CheckpointError> {
    let mut tensors = BTreeMap::new();
    let mut unsupported = BTreeMap::new();
    let mut used = Vec::new();
    for (name, (entry, file)) in raw {
        let scale = companions(name).into_iter().find(|c| raw.contains_key(c) && c != name);
        let scale_entry = scale.as_ref().and_then(|s| raw.get(s));
        let packed = matches!(entry.dtype.as_str(), "I8" | "U8") && entry.shape.len() == 2 && scale.is_some();
        let (format, shape) = match plain(&entry.dtype) {
            Some(f) => (f, entry.shape.clone()),
            None if packed => (Format::Fp4E2m1, vec![entry.shape[0], entry.shape[1].saturating_mul(2)]),
            None => {
                unsupported.insert(name.clone(), entry.dtype.clone());
                continue;
            }
        };
        let needs = matches!(format, Format::F8E4m3 | Format::Fp4E2m1);
        let scales = match (scale, scale_entry) {
            (Some(s), Some((e, _))) if needs => {
                let block = if format == Format::Fp4E2m1 { (1, FP4_BLOCK) } else { block };
                used.push(s.clone());
                Some(attach(file, name, &shape, (&s, e), block)?)
            }
            _ => None,
        };
        let tensor = Tensor {
            name: name.clone(),
            format,
            shape,
            bytes: entry.bytes.clone(),
            scales,
            file: file.clone(),
        };
        tensors.insert(name.clone(), tensor);
    }
    for name in used {
        tensors.remove(&name);
        unsupported.remove(&name);
    }
    Ok((tensors, unsupported))
}

fn attach(
    file: &Path,
    name: &str,
    shape: &[usize],
    (scale_name, e): (&str, &Entry),
    block: (usize, usize),
) -> Result<TensorScales, CheckpointError> {
    let fail = |detail: String| CheckpointError::tensor(file, scale_name, detail);
    let format = scale_format(&e.dtype)
        .ok_or_else(|| fail(format!("found dtype {} for the scales of `{name}`, accepted: F32, BF16, F8_E8M0", e.dtype)))?;
    let &[rows, cols] = shape else {
        return Err(fail(format!("`{name}` has shape {shape:?}; scales are accepted for matrices")));
    };
    let expected = [rows.div_ceil(block.0), cols.div_ceil(block.1)];
    if e.shape != expected {
        return Err(fail(format!(
            "found shape {:?}, `{name}` {shape:?} in blocks of {} x {} needs {expected:?}",
            e.shape, block.0, block.1
        )));
    }
    Ok(TensorScales {
        spec: ScaleSpec { format, block_rows: block.0, block_cols: block.1 },
        bytes: e.bytes.clone(),
        shape: e.shape.clone(),
        name: scale_name.into(),
    })
}

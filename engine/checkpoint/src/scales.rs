//! Joining FP8 and FP4 weights with the scale tensors that belong to them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kernels::ir::{Format, ScaleFormat, ScaleSpec};

use crate::error::CheckpointError;
use crate::safetensors::Entry;
use crate::{Tensor, TensorScales};

/// Columns per scale of packed FP4.
const FP4_BLOCK: usize = 32;

/// A tensor as read, with its file.
pub(crate) type Raw = BTreeMap<String, (Entry, PathBuf)>;

/// What became of the raw tensors.
#[derive(Default)]
pub(crate) struct Joined {
    pub tensors: BTreeMap<String, Tensor>,
    /// Those in formats we do not read: name -> format, in words, and file.
    pub unsupported: BTreeMap<String, (String, PathBuf)>,
}

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
        "F8_E8M0" => ScaleFormat::E8m0,
        _ => return None,
    })
}

/// The names in use for the tensor holding a weight's scales.
fn scale_names(name: &str) -> [String; 3] {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    [
        format!("{stem}.scale"),
        format!("{name}_scale_inv"),
        format!("{name}.scale"),
    ]
}

/// The tensor holding a weight's scales.
fn companion<'a>(raw: &'a Raw, name: &str) -> Option<(&'a str, &'a Entry, &'a PathBuf)> {
    scale_names(name)
        .iter()
        .find_map(|c| raw.get_key_value(c))
        .map(|(n, (entry, file))| (n.as_str(), entry, file))
}

/// `[.., rows, cols]` of weights to `[.., rows / block, cols / block]` of their scales, rounded up.
fn scale_shape(shape: &[usize], block: (usize, usize)) -> Option<Vec<usize>> {
    let (&[rows, cols], stack) = shape.split_last_chunk::<2>().map(|(stack, last)| (last, stack))?;
    let mut out = stack.to_vec();
    out.extend([rows.div_ceil(block.0), cols.div_ceil(block.1)]);
    Some(out)
}

/// Logical shape of a packed FP4 weight (two values a byte), if its shape can be one.
fn unpacked(shape: &[usize]) -> Option<Vec<usize>> {
    let (last, stack) = shape.split_last().filter(|(_, stack)| !stack.is_empty())?;
    let mut out = stack.to_vec();
    out.push(last.checked_mul(2)?);
    Some(out)
}

/// Format and logical shape of an entry, or why we do not read it.
fn classify(raw: &Raw, name: &str, entry: &Entry) -> Result<(Format, Vec<usize>), String> {
    if let Some(format) = plain(&entry.dtype) {
        if format == Format::F8E4m3 && companion(raw, name).is_none() {
            let [scale, scale_inv, _] = scale_names(name);
            return Err(format!(
                "{} without its scales (`{scale}` or `{scale_inv}`)",
                entry.dtype
            ));
        }
        return Ok((format, entry.shape.clone()));
    }
    if !matches!(entry.dtype.as_str(), "I8" | "U8") {
        return Err(entry.dtype.clone());
    }
    let (Some((scale, s, _)), Some(shape)) = (companion(raw, name), unpacked(&entry.shape)) else {
        return Err(format!("{} without FP4 scales beside it", entry.dtype));
    };
    // Power-of-two scales mean FP4; a wrong shape is then reported when they are attached. Other scales may belong to
    // another 8-bit quantisation, which only their shape can tell.
    let wanted = scale_shape(&shape, (1, FP4_BLOCK));
    if s.dtype == "F8_E8M0" || scale_format(&s.dtype).is_some() && wanted.as_ref() == Some(&s.shape) {
        return Ok((Format::Fp4E2m1, shape));
    }
    Err(format!(
        "{} with scales `{scale}` of {} {:?}, not those of packed FP4",
        entry.dtype, s.dtype, s.shape
    ))
}

/// Turns raw entries into tensors; scale tensors move into the weights they belong to.
pub(crate) fn join(raw: &Raw, block: (usize, usize)) -> Result<Joined, CheckpointError> {
    let mut out = Joined::default();
    let mut used = Vec::new();
    for (name, (entry, file)) in raw {
        let (format, shape) = match classify(raw, name, entry) {
            Ok(found) => found,
            Err(dtype) => {
                out.unsupported.insert(name.clone(), (dtype, file.clone()));
                continue;
            }
        };
        let block = match format {
            Format::F8E4m3 => Some(block),
            Format::Fp4E2m1 => Some((1, FP4_BLOCK)),
            _ => None,
        };
        let scales = match (block, companion(raw, name)) {
            (Some(block), Some(found)) => Some(attach(name, &shape, found, block)?),
            _ => None,
        };
        used.extend(scales.as_ref().map(|s| s.name.clone()));
        let (bytes, file) = (entry.bytes.clone(), file.clone());
        out.tensors.insert(
            name.clone(),
            Tensor {
                name: name.clone(),
                format,
                shape,
                bytes,
                scales,
                file,
            },
        );
    }
    for name in used {
        out.tensors.remove(&name);
        out.unsupported.remove(&name);
    }
    Ok(out)
}

fn attach(
    weight: &str,
    shape: &[usize],
    (name, entry, file): (&str, &Entry, &PathBuf),
    block: (usize, usize),
) -> Result<TensorScales, CheckpointError> {
    let fail = |detail: String| CheckpointError::tensor(file, name, detail);
    let Some(format) = scale_format(&entry.dtype) else {
        let found = &entry.dtype;
        return Err(fail(format!(
            "found dtype {found} for the scales of `{weight}`, accepted: F32, BF16, F8_E8M0"
        )));
    };
    let Some(expected) = scale_shape(shape, block) else {
        return Err(fail(format!(
            "found scales of `{weight}`, which has shape {shape:?}, accepted: scales of matrices"
        )));
    };
    if entry.shape != expected {
        return Err(fail(format!(
            "found shape {:?}, accepted: {expected:?} (`{weight}` {shape:?} in blocks of {} x {})",
            entry.shape, block.0, block.1
        )));
    }
    Ok(TensorScales {
        spec: ScaleSpec {
            format,
            block_rows: block.0,
            block_cols: block.1,
        },
        bytes: entry.bytes.clone(),
        shape: entry.shape.clone(),
        name: name.into(),
    })
}

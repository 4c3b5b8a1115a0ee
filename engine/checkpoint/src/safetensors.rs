//! The safetensors header: 8 bytes of length, JSON, then the data without gaps.
//! Format: <https://github.com/huggingface/safetensors#format>.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use crate::bytes::Bytes;
use crate::error::CheckpointError;

/// Largest header accepted, as the format's own library has it.
const MAX_HEADER: u64 = 100_000_000;
/// Most dimensions accepted; bounds what a crafted header makes us keep.
const MAX_DIMS: usize = 16;

/// One entry of a header.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

/// Bits per element of every dtype the format defines.
pub(crate) fn bits(dtype: &str) -> Option<u64> {
    Some(match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    })
}

/// A shape with a bounded number of dimensions.
struct Dims(Vec<u64>);

impl<'de> Deserialize<'de> for Dims {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Dims;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of whole numbers")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Dims, A::Error> {
                let mut out = Vec::new();
                while let Some(d) = seq.next_element()? {
                    if out.len() == MAX_DIMS {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_DIMS} dimensions, accepted: up to {MAX_DIMS}"
                        )));
                    }
                    out.push(d);
                }
                Ok(Dims(out))
            }
        }
        d.deserialize_seq(Visit)
    }
}

#[derive(serde::Deserialize)]
struct Stored {
    dtype: String,
    shape: Dims,
    data_offsets: (u64, u64),
}

/// The header's tensors, names appearing once; `__metadata__` is checked and dropped.
struct Tensors(BTreeMap<String, Stored>);

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Tensors;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tensors, A::Error> {
                let (mut out, mut metadata) = (BTreeMap::new(), false);
                while let Some(name) = map.next_key::<String>()? {
                    let again = if name == "__metadata__" {
                        map.next_value::<Option<BTreeMap<String, String>>>()
                            .map_err(|e| A::Error::custom(format!("`__metadata__`: {e}")))?;
                        std::mem::replace(&mut metadata, true)
                    } else {
                        let stored = map
                            .next_value()
                            .map_err(|e| A::Error::custom(format!("tensor `{name}`: {e}")))?;
                        out.insert(name.clone(), stored).is_some()
                    };
                    if again {
                        return Err(A::Error::custom(format!("`{name}` appears twice, accepted: once")));
                    }
                }
                Ok(Tensors(out))
            }
        }
        d.deserialize_map(Visit)
    }
}

/// Reads and checks a header; the entries point into `file`.
pub(crate) fn read(path: &Path, file: &Bytes) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let fail = |detail: String| CheckpointError::format(path, detail);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(fail(format!(
            "truncated: found {} bytes, accepted: at least the 8 bytes of the header length",
            file.len()
        )));
    };
    let length = u64::from_le_bytes(*length);
    let most = MAX_HEADER.min(rest.len() as u64);
    let header = usize::try_from(length)
        .ok()
        .filter(|_| length <= most)
        .and_then(|n| rest.get(..n));
    let Some(header) = header else {
        return Err(fail(format!(
            "header length: found {length}, accepted: at most {most} (the file has {} bytes after the length)",
            rest.len()
        )));
    };
    if header.first() != Some(&b'{') {
        return Err(fail(
            "header: found no `{` at its start, accepted: a JSON object".into(),
        ));
    }
    let header: Tensors = serde_json::from_slice(header).map_err(|e| fail(format!("header: {e}")))?;
    let data = file.slice(8 + length as usize..file.len());
    let mut entries = BTreeMap::new();
    let mut spans: Vec<(u64, u64, String)> = Vec::new();
    for (name, stored) in header.0 {
        let entry = entry(path, &name, &stored, &data)?;
        spans.push((stored.data_offsets.0, stored.data_offsets.1, name.clone()));
        entries.insert(name, entry);
    }
    spans.sort();
    check_spans(path, &spans, data.len() as u64)?;
    Ok(entries)
}

/// The format allows neither gaps nor overlaps: sorted tensors follow one another from 0 to the end of the data.
fn check_spans(path: &Path, spans: &[(u64, u64, String)], size: u64) -> Result<(), CheckpointError> {
    let mut at = 0;
    for (start, end, name) in spans {
        if *start != at {
            let what = if *start < at {
                "overlaps the tensor before it"
            } else {
                "leaves a gap before it"
            };
            let detail = format!("{what}: found start {start}, accepted: {at}");
            return Err(CheckpointError::tensor(path, name, detail));
        }
        at = *end;
    }
    if at != size {
        let detail = format!("found {size} bytes of data, accepted: the {at} that the header accounts for");
        return Err(CheckpointError::format(path, detail));
    }
    Ok(())
}

fn entry(path: &Path, name: &str, stored: &Stored, data: &Bytes) -> Result<Entry, CheckpointError> {
    let fail = |detail: String| CheckpointError::tensor(path, name, detail);
    let (dtype, shape, (start, end)) = (&stored.dtype, &stored.shape.0, stored.data_offsets);
    if start > end || end > data.len() as u64 {
        return Err(fail(format!(
            "data_offsets: found [{start}, {end}], accepted: within the file's {} bytes of data (is it truncated?)",
            data.len()
        )));
    }
    let overflow = || fail(format!("shape: found {shape:?}, accepted: fewer than 2^64 bits in all"));
    let elements = shape
        .iter()
        .try_fold(1u64, |n, &d| n.checked_mul(d))
        .ok_or_else(overflow)?;
    if let Some(bits) = bits(dtype) {
        let wanted = elements.checked_mul(bits).ok_or_else(overflow)?;
        if !wanted.is_multiple_of(8) {
            return Err(fail(format!(
                "shape: found {shape:?} in {dtype}, accepted: whole bytes"
            )));
        }
        if wanted / 8 != end - start {
            return Err(fail(format!(
                "found {} bytes, accepted: {} ({dtype} {shape:?})",
                end - start,
                wanted / 8
            )));
        }
    }
    // Offsets are within a mapped file, so they fit; dimensions of empty tensors may be anything.
    let dims: Option<Vec<usize>> = shape.iter().map(|&d| usize::try_from(d).ok()).collect();
    let shape = dims.ok_or_else(overflow)?;
    Ok(Entry {
        dtype: dtype.clone(),
        shape,
        bytes: data.slice(start as usize..end as usize),
    })
}

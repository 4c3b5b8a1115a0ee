//! The safetensors header: 8 bytes of length, JSON, then the data without gaps.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::bytes::Bytes;
use crate::error::CheckpointError;

/// Largest header accepted, as the format's own library has it.
const MAX_HEADER: u64 = 100_000_000;

/// One entry of a header.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub bytes: Bytes,
}

/// Bits per element of every dtype the format defines.
fn bits(dtype: &str) -> Option<u64> {
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

/// JSON object with duplicate keys refused.
struct Unique(BTreeMap<String, Value>);

impl<'de> serde::Deserialize<'de> for Unique {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> serde::de::Visitor<'de> for Visit {
            type Value = Unique;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Unique, A::Error> {
                let mut out = BTreeMap::new();
                while let Some((k, v)) = map.next_entry::<String, Value>()? {
                    if out.contains_key(&k) {
                        return Err(serde::de::Error::custom(format!("`{k}` appears twice")));
                    }
                    out.insert(k, v);
                }
                Ok(Unique(out))
            }
        }
        d.deserialize_map(Visit)
    }
}

/// Reads and checks a header; the entries point into `file`.
pub(crate) fn read(path: &Path, file: &Bytes) -> Result<BTreeMap<String, Entry>, CheckpointError> {
    let fail = |detail: String| CheckpointError::format(path, detail);
    let Some(length) = file.get(..8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes) else {
        return Err(fail(format!("truncated: {} bytes, a safetensors file has at least 8", file.len())));
    };
    let left = file.len() as u64 - 8;
    if length > MAX_HEADER || length > left {
        return Err(fail(format!(
            "header length {length}, accepted: at most {} (the file has {left} bytes after the length)",
            MAX_HEADER.min(left)
        )));
    }
    let header = &file[8..8 + length as usize];
    let header: Unique = serde_json::from_slice(header).map_err(|e| fail(format!("header: {e}")))?;
    let data = file.slice(8 + length as usize..file.len());
    let mut entries = BTreeMap::new();
    let mut spans: Vec<(u64, u64, String)> = Vec::new();
    for (name, value) in header.0 {
        if name == "__metadata__" {
            continue;
        }
        let (entry, start, end) = entry(path, &name, &value, &data)?;
        spans.push((start, end, name.clone()));
        entries.insert(name, entry);
    }
    // The format allows neither gaps nor overlaps.
    spans.sort();
    let mut at = 0;
    for (start, end, name) in &spans {
        if *start != at {
            let what = if *start < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(CheckpointError::tensor(path, name, format!("{what}: starts at {start}, expected {at}")));
        }
        at = *end;
    }
    if at != data.len() as u64 {
        return Err(fail(format!("{} bytes of data, the header accounts for {at}", data.len())));
    }
    Ok(entries)
}

fn entry(path: &Path, name: &str, v: &Value, data: &Bytes) -> Result<(Entry, u64, u64), CheckpointError> {
    let fail = |detail: String| CheckpointError::tensor(path, name, detail);
    let dtype = v.get("dtype").and_then(Value::as_str).ok_or_else(|| fail("no dtype in the header".into()))?;
    let numbers = |field: &str| -> Option<Vec<u64>> {
        v.get(field)?.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>()
    };
    let shape = numbers("shape").ok_or_else(|| fail("shape: accepted: a list of whole numbers".into()))?;
    let offsets = numbers("data_offsets").filter(|o| o.len() == 2);
    let [start, end] = offsets.as_deref().and_then(|o| <[u64; 2]>::try_from(o).ok()).ok_or_else(|| {
        fail("data_offsets: accepted: two whole numbers".into())
    })?;
    if start > end || end > data.len() as u64 {
        return Err(fail(format!(
            "data_offsets [{start}, {end}] reach outside the file's {} bytes of data (truncated?)",
            data.len()
        )));
    }
    let elements = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(|| {
        fail(format!("shape {shape:?}: the number of elements overflows"))
    })?;
    if let Some(bits) = bits(dtype) {
        let wanted = elements.checked_mul(bits).map(|b| b.div_ceil(8));
        if wanted != Some(end - start) {
            return Err(fail(format!(
                "{} bytes in the file, {dtype} {shape:?} needs {}",
                end - start,
                wanted.map_or("more than 2^64".into(), |w| w.to_string())
            )));
        }
    }
    let bytes = data.slice(start as usize..end as usize);
    let shape = shape.iter().map(|&d| d as usize).collect();
    Ok((Entry { dtype: dtype.to_string(), shape, bytes }, start, end))
}

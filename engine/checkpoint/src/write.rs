//! Small writers for safetensors and GGUF: for tests and for tools that make models. Tensors are asked for one by
//! one, so large files need little memory.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::path::Path;

use kernels::ir::Format;
use serde_json::json;

pub use crate::gguf::Value;

/// A tensor to write.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Name.
    pub name: String,
    /// dtype as the container spells it (`F32`, `F8_E4M3`, ...; for GGUF `Q4_0`, ...).
    pub dtype: String,
    /// Shape, outermost first.
    pub shape: Vec<usize>,
    /// Bytes.
    pub bytes: u64,
}

fn wrong(name: &str, found: usize, expected: u64) -> io::Error {
    io::Error::other(format!(
        "tensor `{name}`: {found} bytes were made, {expected} were announced"
    ))
}

/// Names may appear once.
fn check_names(specs: &[Spec]) -> io::Result<()> {
    let mut seen = BTreeSet::new();
    match specs.iter().find(|s| !seen.insert(&s.name)) {
        Some(s) => Err(io::Error::other(format!(
            "tensor `{}`: found twice, accepted: once",
            s.name
        ))),
        None => Ok(()),
    }
}

/// Writes a safetensors file; `make(i)` gives the bytes of tensor i.
pub fn write_safetensors(path: &Path, specs: &[Spec], mut make: impl FnMut(usize) -> Vec<u8>) -> io::Result<()> {
    check_names(specs)?;
    let mut header = serde_json::Map::new();
    let mut at = 0u64;
    for s in specs {
        header.insert(
            s.name.clone(),
            json!({ "dtype": s.dtype, "shape": s.shape, "data_offsets": [at, at + s.bytes] }),
        );
        at += s.bytes;
    }
    let mut head = serde_json::to_vec(&header)?;
    head.resize(head.len().next_multiple_of(8), b' ');
    let mut f = io::BufWriter::new(std::fs::File::create(path)?);
    f.write_all(&(head.len() as u64).to_le_bytes())?;
    f.write_all(&head)?;
    for (i, s) in specs.iter().enumerate() {
        let bytes = make(i);
        if bytes.len() as u64 != s.bytes {
            return Err(wrong(&s.name, bytes.len(), s.bytes));
        }
        f.write_all(&bytes)?;
    }
    f.flush()
}

fn text(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn value(out: &mut Vec<u8>, v: &Value) {
    let mut tag = |t: u32| out.extend(t.to_le_bytes());
    match v {
        Value::Int(i) if (0..=i64::from(u32::MAX)).contains(i) => {
            tag(4);
            out.extend((*i as u32).to_le_bytes());
        }
        Value::Int(i) => {
            tag(11);
            out.extend(i.to_le_bytes());
        }
        // The width other readers insist on.
        Value::Float(f) => {
            tag(6);
            out.extend((*f as f32).to_le_bytes());
        }
        Value::Bool(b) => {
            tag(7);
            out.push(u8::from(*b));
        }
        Value::Text(s) => {
            tag(8);
            text(out, s);
        }
        Value::Texts(list) => {
            tag(9);
            out.extend(8u32.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|s| text(out, s));
        }
        Value::Floats(list) => {
            tag(9);
            out.extend(6u32.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            list.iter().for_each(|f| out.extend(f.to_le_bytes()));
        }
        Value::Ints(list) => {
            tag(9);
            let narrow: Option<Vec<i32>> = list.iter().map(|&i| i32::try_from(i).ok()).collect();
            out.extend(if narrow.is_some() { 5u32 } else { 11 }.to_le_bytes());
            out.extend((list.len() as u64).to_le_bytes());
            match narrow {
                Some(list) => list.iter().for_each(|i| out.extend(i.to_le_bytes())),
                None => list.iter().for_each(|i| out.extend(i.to_le_bytes())),
            }
        }
    }
}

/// A GGUF tensor spec: its size follows from format and shape.
pub fn gguf_spec(name: &str, format: Format, shape: &[usize]) -> Option<Spec> {
    let (_, dtype, _) = crate::gguf_model::TYPES.iter().find(|(_, _, f)| *f == format)?;
    let cols = *shape.last()?;
    let mut stack = shape.iter().rev().skip(1);
    let bytes = stack.try_fold(format.row_bytes(cols)?, |n, &d| n.checked_mul(d))? as u64;
    Some(Spec {
        name: name.into(),
        dtype: (*dtype).into(),
        shape: shape.to_vec(),
        bytes,
    })
}

/// Writes a GGUF version 3 file; `make(i)` gives the bytes of tensor i.
pub fn write_gguf(
    path: &Path,
    metadata: &[(String, Value)],
    specs: &[Spec],
    mut make: impl FnMut(usize) -> Vec<u8>,
) -> io::Result<()> {
    const ALIGN: u64 = 32;
    check_names(specs)?;
    let mut head = b"GGUF".to_vec();
    head.extend(3u32.to_le_bytes());
    head.extend((specs.len() as u64).to_le_bytes());
    head.extend((metadata.len() as u64).to_le_bytes());
    for (k, v) in metadata {
        text(&mut head, k);
        value(&mut head, v);
    }
    let mut at = 0u64;
    for s in specs {
        let kind = crate::gguf_model::TYPES
            .iter()
            .find(|(_, n, _)| *n == s.dtype)
            .map(|(k, _, _)| *k);
        let kind = kind.ok_or_else(|| {
            io::Error::other(format!(
                "tensor `{}`: found dtype {}, accepted: {}",
                s.name,
                s.dtype,
                crate::GGUF_FORMATS
            ))
        })?;
        text(&mut head, &s.name);
        head.extend((s.shape.len() as u32).to_le_bytes());
        s.shape
            .iter()
            .rev()
            .for_each(|&d| head.extend((d as u64).to_le_bytes()));
        head.extend(kind.to_le_bytes());
        head.extend(at.to_le_bytes());
        at += s.bytes.next_multiple_of(ALIGN);
    }
    head.resize(head.len().next_multiple_of(ALIGN as usize), 0);
    let mut f = io::BufWriter::new(std::fs::File::create(path)?);
    f.write_all(&head)?;
    for (i, s) in specs.iter().enumerate() {
        let bytes = make(i);
        if bytes.len() as u64 != s.bytes {
            return Err(wrong(&s.name, bytes.len(), s.bytes));
        }
        f.write_all(&bytes)?;
        let pad = s.bytes.next_multiple_of(ALIGN) - s.bytes;
        f.write_all(&vec![0; pad as usize])?;
    }
    f.flush()
}

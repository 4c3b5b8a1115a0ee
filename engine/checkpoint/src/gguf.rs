//! The GGUF container, versions 2 and 3: metadata and tensor infos. Every count is checked against the bytes left, so
//! a crafted file cannot make us allocate more than a small multiple of its size.

use std::collections::BTreeMap;
use std::path::Path;

use crate::bytes::Bytes;
use crate::error::CheckpointError;

/// A metadata value.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer type, as signed (u64 above 2^63 is refused).
    Int(i64),
    /// f32 or f64.
    Float(f64),
    /// Boolean.
    Bool(bool),
    /// UTF-8 string; invalid bytes are replaced.
    Text(String),
    /// Array of strings.
    Texts(Vec<String>),
    /// Array of floats.
    Floats(Vec<f32>),
    /// Array of integers or booleans.
    Ints(Vec<i64>),
}

/// A metadata value in words, for messages.
pub(crate) fn describe(v: Option<&Value>) -> String {
    match v {
        None => "nothing".into(),
        Some(Value::Int(i)) => i.to_string(),
        Some(Value::Float(f)) => format!("{f:?}"),
        Some(Value::Bool(b)) => b.to_string(),
        Some(Value::Text(t)) => format!("{t:?}"),
        Some(Value::Texts(t)) => format!("{} strings", t.len()),
        Some(Value::Floats(t)) => format!("{} numbers", t.len()),
        Some(Value::Ints(t)) => format!("{} numbers", t.len()),
    }
}

/// A tensor's entry; dims as stored, innermost first.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub name: String,
    pub dims: Vec<u64>,
    pub kind: u32,
    pub offset: u64,
}

/// A parsed header.
pub(crate) struct Header {
    pub metadata: BTreeMap<String, Value>,
    pub tensors: Vec<Info>,
    /// What tensor offsets are multiples of.
    pub align: u64,
    pub data: Bytes,
}

struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

const MAX_DEPTH: usize = 4;

impl<'a> Reader<'a> {
    fn fail<T>(&self, detail: impl Into<String>) -> Result<T, CheckpointError> {
        Err(CheckpointError::format(self.path, detail.into()))
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, n: usize, what: &str) -> Result<&'a [u8], CheckpointError> {
        if n > self.left() {
            return self.fail(format!(
                "truncated: {what} needs {n} bytes at {}, {} are left",
                self.at,
                self.left()
            ));
        }
        let part = &self.bytes[self.at..self.at + n];
        self.at += n;
        Ok(part)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N], CheckpointError> {
        let part = self.take(N, what)?;
        let mut out = [0; N];
        out.copy_from_slice(part);
        Ok(out)
    }

    fn u32(&mut self, what: &str) -> Result<u32, CheckpointError> {
        self.number(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64, CheckpointError> {
        self.number(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `size` bytes each.
    fn count(&mut self, size: usize, what: &str) -> Result<usize, CheckpointError> {
        let n = self.u64(what)?;
        let most = (self.left() / size.max(1)) as u64;
        if n > most {
            return self.fail(format!(
                "{what}: found {n}, accepted: at most {most} (bytes left in the file)"
            ));
        }
        Ok(n as usize)
    }

    fn text(&mut self, what: &str) -> Result<String, CheckpointError> {
        let n = self.count(1, what)?;
        Ok(String::from_utf8_lossy(self.take(n, what)?).into_owned())
    }

    fn int(&mut self, kind: u32, what: &str) -> Result<Option<i64>, CheckpointError> {
        Ok(Some(match kind {
            0 => i64::from(self.number::<1>(what)?[0]),
            1 => i64::from(self.number::<1>(what)?[0] as i8),
            2 => i64::from(u16::from_le_bytes(self.number(what)?)),
            3 => i64::from(i16::from_le_bytes(self.number(what)?)),
            4 => i64::from(self.u32(what)?),
            5 => i64::from(self.u32(what)? as i32),
            10 => {
                let v = self.u64(what)?;
                match i64::try_from(v) {
                    Ok(v) => v,
                    Err(_) => return self.fail(format!("{what}: found {v}, accepted: below 2^63")),
                }
            }
            11 => self.u64(what)? as i64,
            _ => return Ok(None),
        }))
    }

    fn value(&mut self, kind: u32, what: &str, depth: usize) -> Result<Value, CheckpointError> {
        if let Some(i) = self.int(kind, what)? {
            return Ok(Value::Int(i));
        }
        match kind {
            6 => Ok(Value::Float(f64::from(f32::from_bits(self.u32(what)?)))),
            7 => Ok(Value::Bool(self.number::<1>(what)?[0] != 0)),
            8 => self.text(what).map(Value::Text),
            9 => self.array(what, depth),
            12 => Ok(Value::Float(f64::from_bits(self.u64(what)?))),
            other => self.fail(format!("{what}: found value type {other}, accepted: 0 to 12")),
        }
    }

    fn array(&mut self, what: &str, depth: usize) -> Result<Value, CheckpointError> {
        if depth >= MAX_DEPTH {
            return self.fail(format!(
                "{what}: found arrays nested deeper than {MAX_DEPTH}, accepted: up to {MAX_DEPTH}"
            ));
        }
        let kind = self.u32(what)?;
        if kind > 12 {
            return self.fail(format!(
                "{what}: found an array of value type {kind}, accepted: 0 to 12"
            ));
        }
        let size = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            8 | 10 | 11 | 12 => 8,
            9 => 12,
            _ => 4,
        };
        let n = self.count(size, what)?;
        match kind {
            8 => (0..n)
                .map(|_| self.text(what))
                .collect::<Result<_, _>>()
                .map(Value::Texts),
            6 => (0..n)
                .map(|_| self.u32(what).map(f32::from_bits))
                .collect::<Result<_, _>>()
                .map(Value::Floats),
            12 => {
                let all: Result<_, _> = (0..n)
                    .map(|_| self.u64(what).map(|b| f64::from_bits(b) as f32))
                    .collect();
                all.map(Value::Floats)
            }
            9 => {
                // Nested arrays carry nothing we use: walked over.
                for _ in 0..n {
                    self.array(what, depth + 1)?;
                }
                Ok(Value::Ints(Vec::new()))
            }
            7 => (0..n)
                .map(|_| self.number::<1>(what).map(|b| i64::from(b[0])))
                .collect::<Result<_, _>>()
                .map(Value::Ints),
            _ => {
                let mut all = Vec::with_capacity(n);
                for _ in 0..n {
                    all.extend(self.int(kind, what)?);
                }
                Ok(Value::Ints(all))
            }
        }
    }
}

/// Reads the header of a mapped file.
pub(crate) fn read(path: &Path, file: &Bytes) -> Result<Header, CheckpointError> {
    let mut r = Reader {
        path,
        bytes: file,
        at: 0,
    };
    let magic = r.take(4, "the magic")?;
    if magic != b"GGUF" {
        return r.fail(format!("the magic: found `{}`, accepted: `GGUF`", magic.escape_ascii()));
    }
    let version = r.u32("the version")?;
    if !(2..=3).contains(&version) {
        return r.fail(format!(
            "the GGUF version: found {version}, accepted: 2, 3 (little endian)"
        ));
    }
    // A tensor info takes at least 24 bytes, a metadata pair at least 13.
    let tensor_count = r.count(24, "the tensor count")?;
    let pairs = r.count(13, "the metadata count")?;
    let mut metadata = BTreeMap::new();
    for _ in 0..pairs {
        let key = r.text("a metadata key")?;
        let what = format!("field `{key}`");
        let kind = r.u32(&what)?;
        let value = r.value(kind, &what, 0)?;
        if metadata.insert(key, value).is_some() {
            return r.fail(format!("{what}: found twice, accepted: once"));
        }
    }
    let mut tensors = Vec::new();
    for _ in 0..tensor_count {
        let name = r.text("a tensor name")?;
        let what = format!("tensor `{name}`");
        let n = r.u32(&what)?;
        if n > 4 {
            return Err(CheckpointError::tensor(
                path,
                &name,
                format!("found {n} dimensions, accepted: up to 4"),
            ));
        }
        let dims = (0..n).map(|_| r.u64(&what)).collect::<Result<Vec<_>, _>>()?;
        let kind = r.u32(&what)?;
        let offset = r.u64(&what)?;
        tensors.push(Info {
            name,
            dims,
            kind,
            offset,
        });
    }
    let align = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Int(a @ 8..=65536)) if a.count_ones() == 1 => *a as usize,
        other => {
            return r.fail(format!(
                "field `general.alignment`: found {}, accepted: a power of two from 8 to 65536",
                describe(other)
            ));
        }
    };
    let start = r.at.next_multiple_of(align);
    Ok(Header {
        metadata,
        tensors,
        align: align as u64,
        data: file.slice(start..file.len()),
    })
}

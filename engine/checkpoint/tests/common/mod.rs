//! Shared by the tests: small checkpoints, made byte by byte, and the messages of those that do not open.
#![allow(dead_code)]

use std::path::{MAIN_SEPARATOR, Path};

use checkpoint::write::Spec;
use checkpoint::{Checkpoint, Silent};
use kernels::ir::Format;
use tempfile::TempDir;

/// A fresh folder holding these files.
pub fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    dir
}

/// Opens a checkpoint that must be fine.
pub fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, &Silent).unwrap_or_else(|e| panic!("{e}"))
}

/// An error's words, the folder left out of its paths (`DIR` where it stands alone).
pub fn words(dir: &Path, error: impl std::fmt::Display) -> String {
    let dir = dir.display().to_string();
    error
        .to_string()
        .replace(&format!("{dir}{MAIN_SEPARATOR}"), "")
        .replace(&dir, "DIR")
}

/// The error of a folder, or of a file in it (`""`: the folder itself).
pub fn refusal(dir: &TempDir, name: &str) -> String {
    let path = if name.is_empty() {
        dir.path().to_path_buf()
    } else {
        dir.path().join(name)
    };
    match Checkpoint::open(&path, &Silent) {
        Ok(_) => panic!("{} opened, an error was expected", path.display()),
        Err(e) => words(dir.path(), e),
    }
}

/// A safetensors file from its parts, nothing checked.
pub fn safetensors(header: &str, data: &[u8]) -> Vec<u8> {
    let mut out = (header.len() as u64).to_le_bytes().to_vec();
    out.extend(header.as_bytes());
    out.extend(data);
    out
}

/// A header entry.
pub fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
}

/// A safetensors file of entries `(name, dtype, shape, bytes)`, laid out without gaps.
pub fn laid_out(tensors: &[(&str, &str, &str, usize)]) -> Vec<u8> {
    let mut at = 0;
    let entries: Vec<String> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            at += *bytes as u64;
            entry(name, dtype, shape, at - *bytes as u64, at)
        })
        .collect();
    safetensors(&format!("{{{}}}", entries.join(",")), &bytes(at as usize, 1))
}

/// `n` bytes that differ from one another, and from those of another seed.
pub fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// A tensor to write.
pub fn spec(name: &str, dtype: &str, shape: &[usize], bytes: usize) -> Spec {
    Spec {
        name: name.into(),
        dtype: dtype.into(),
        shape: shape.to_vec(),
        bytes: bytes as u64,
    }
}

/// The bytes of tensor `i` of a written file.
pub fn data(specs: &[Spec], i: usize) -> Vec<u8> {
    bytes(specs[i].bytes as usize, i as u64 + 1)
}

/// A written tensor, found as it was.
pub fn check(c: &Checkpoint, s: &Spec, format: Format, shape: &[usize], expected: &[u8]) {
    let t = c.require(&s.name, shape).unwrap();
    assert_eq!((t.name.as_str(), t.format), (s.name.as_str(), format));
    assert_eq!(t.bytes[..], *expected, "{}", s.name);
}

/// A GGUF file, put together without checks.
#[derive(Clone)]
pub struct Gguf {
    pub magic: [u8; 4],
    pub version: u32,
    /// Counts to claim instead of the true ones.
    pub tensor_count: Option<u64>,
    pub pair_count: Option<u64>,
    /// Encoded metadata pairs.
    pub pairs: Vec<Vec<u8>>,
    /// Encoded tensor infos.
    pub infos: Vec<Vec<u8>>,
    pub align: usize,
    pub data: Vec<u8>,
}

impl Gguf {
    /// A llama of the least metadata, without tensors.
    pub fn llama() -> Self {
        let mut pairs = vec![pair("general.architecture", 8, &string("llama"))];
        for (key, n) in [
            ("llama.block_count", 1),
            ("llama.embedding_length", 32),
            ("llama.feed_forward_length", 64),
            ("llama.attention.head_count", 2),
            ("llama.context_length", 128),
        ] {
            pairs.push(pair(key, 4, &u32::to_le_bytes(n)));
        }
        pairs.push(pair(
            "llama.attention.layer_norm_rms_epsilon",
            6,
            &1e-5f32.to_le_bytes(),
        ));
        Self {
            magic: *b"GGUF",
            version: 3,
            tensor_count: None,
            pair_count: None,
            pairs,
            infos: Vec::new(),
            align: 32,
            data: Vec::new(),
        }
    }

    /// Adds a metadata pair.
    pub fn with(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        self.pairs.push(pair(key, kind, value));
        self
    }

    /// Leaves out the pair of a key.
    pub fn without(mut self, key: &str) -> Self {
        let start = string(key);
        self.pairs.retain(|p| !p.starts_with(&start));
        self
    }

    /// Adds a tensor info; `dims` innermost first.
    pub fn tensor(mut self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut info = string(name);
        info.extend((dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|d| info.extend(d.to_le_bytes()));
        info.extend(kind.to_le_bytes());
        info.extend(offset.to_le_bytes());
        self.infos.push(info);
        self
    }

    /// `n` bytes of tensor data.
    pub fn data(mut self, n: usize) -> Self {
        self.data = bytes(n, 7);
        self
    }

    /// The file without its tensor data.
    pub fn head(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(self.tensor_count.unwrap_or(self.infos.len() as u64).to_le_bytes());
        out.extend(self.pair_count.unwrap_or(self.pairs.len() as u64).to_le_bytes());
        self.pairs.iter().chain(&self.infos).for_each(|p| out.extend(p));
        out
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut out = self.head();
        out.resize(out.len().next_multiple_of(self.align), 0);
        out.extend(&self.data);
        out
    }

    /// The error of the file, which must be refused.
    pub fn refusal(&self) -> String {
        refuse_gguf(&self.build())
    }
}

/// The error of `x.gguf` holding these bytes.
pub fn refuse_gguf(bytes: &[u8]) -> String {
    refusal(&folder(&[("x.gguf", bytes)]), "x.gguf")
}

/// A GGUF string.
pub fn string(s: &str) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend(s.as_bytes());
    out
}

/// A metadata pair.
pub fn pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    let mut out = string(key);
    out.extend(kind.to_le_bytes());
    out.extend(value);
    out
}

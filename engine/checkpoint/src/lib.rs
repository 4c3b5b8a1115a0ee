//! Checkpoints: Hugging Face folders (config.json, safetensors, tokenizer.json) and GGUF files, memory-mapped. Weights
//! stay in their stored format; nothing is copied.

mod bytes;
mod error;
mod folder;
mod gguf;
mod gguf_model;
mod mmap;
mod prefault;
mod safetensors;
mod scales;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kernels::ir::{Format, ScaleSpec};
use serde_json::{Map, Value};

pub use bytes::Bytes;
pub use error::CheckpointError;
pub use gguf_model::GgufTokenizer;

/// Told about bytes while a checkpoint loads, and asked whether to go on.
pub trait Progress: Sync {
    /// `done` of `total` bytes.
    fn report(&self, done: u64, total: u64);
    /// Whether to stop.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No reports, never cancelled.
pub struct Silent;

impl Progress for Silent {
    fn report(&self, _: u64, _: u64) {}
}

/// Where a checkpoint came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A folder with config.json and safetensors.
    HfFolder,
    /// A single GGUF file.
    Gguf,
}

/// Scales of a tensor kept in another tensor.
#[derive(Clone, Debug)]
pub struct TensorScales {
    /// Encoding and block shape.
    pub spec: ScaleSpec,
    /// The scales, row-major.
    pub bytes: Bytes,
    /// `[rows / block rows, cols / block cols]`, rounded up.
    pub shape: Vec<usize>,
    /// Name of the scale tensor.
    pub name: String,
}

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// Name (Hugging Face names also for GGUF).
    pub name: String,
    /// Element format.
    pub format: Format,
    /// Logical shape, row-major; packed FP4 counts values, not bytes.
    pub shape: Vec<usize>,
    /// Elements.
    pub bytes: Bytes,
    /// Separate scales.
    pub scales: Option<TensorScales>,
    /// File it lies in.
    pub file: PathBuf,
}

/// Where the tokenizer is.
#[derive(Clone, Debug)]
pub enum TokenizerSource {
    /// tokenizer.json.
    HfJson(PathBuf),
    /// Inside the GGUF file.
    Gguf(Box<GgufTokenizer>),
    /// Nowhere.
    Missing,
}

/// An opened checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Folder or GGUF file.
    pub path: PathBuf,
    /// Which of the two.
    pub kind: Kind,
    /// config.json, or an equivalent made from GGUF metadata.
    pub config: Map<String, Value>,
    /// generation_config.json.
    pub generation_config: Option<Map<String, Value>>,
    /// Where the tokenizer is.
    pub tokenizer: TokenizerSource,
    /// tokenizer_config.json.
    pub tokenizer_config: Option<Map<String, Value>>,
    /// Jinja chat template.
    pub chat_template: Option<String>,
    /// Remarks for the user.
    pub warnings: Vec<String>,
    /// Bytes of all weight files.
    pub total_bytes: u64,
    tensors: BTreeMap<String, Tensor>,
    /// Tensors in formats we do not read: name -> format and file.
    unsupported: BTreeMap<String, (String, PathBuf)>,
    maps: Vec<Bytes>,
}

/// Formats accepted in safetensors, for messages.
const SAFETENSORS_FORMATS: &str = "F32, F16, BF16, F8_E4M3 with scales, packed FP4 (I8 or U8 with scales), I32, I64";
/// Formats accepted in GGUF, for messages.
const GGUF_FORMATS: &str = "F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q4_K, Q6_K";

impl Checkpoint {
    /// Opens a Hugging Face folder, a GGUF file, a folder holding exactly one GGUF file, or a file inside a folder.
    /// Reads headers only; weights are mapped.
    pub fn open(path: &Path, progress: &dyn Progress) -> Result<Self, CheckpointError> {
        if progress.cancelled() {
            return Err(CheckpointError::Cancelled);
        }
        let meta = std::fs::metadata(path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => CheckpointError::not_a_model(path, "nothing there".into()),
            _ => CheckpointError::io(path, e),
        })?;
        let extension = path
            .extension()
            .and_then(|e| e.to_str())
            .unwrap_or("")
            .to_ascii_lowercase();
        if meta.is_file() {
            return match extension.as_str() {
                "gguf" => gguf_model::open(path, progress),
                "safetensors" | "json" => {
                    let parent = path
                        .parent()
                        .filter(|p| !p.as_os_str().is_empty())
                        .unwrap_or(Path::new("."));
                    folder::open(parent, progress)
                }
                _ => Err(CheckpointError::not_a_model(path, "a file of another kind".into())),
            };
        }
        if !meta.is_dir() {
            return Err(CheckpointError::not_a_model(path, "neither a folder nor a file".into()));
        }
        if path.join("config.json").is_file() {
            return folder::open(path, progress);
        }
        let ggufs = folder::files_with(path, "gguf")?;
        match ggufs.as_slice() {
            [one] => gguf_model::open(one, progress),
            [] => Err(CheckpointError::not_a_model(
                path,
                "a folder without config.json".into(),
            )),
            many => Err(CheckpointError::not_a_model(
                path,
                format!("a folder with {} GGUF files", many.len()),
            )),
        }
    }

    /// A checkpoint that lies in no file: `name` stands for its path in messages.
    pub fn in_memory(name: PathBuf, config: Map<String, Value>, tensors: Vec<Tensor>) -> Self {
        let scales = |t: &Tensor| t.scales.as_ref().map_or(0, |s| s.bytes.len());
        Self {
            path: name,
            kind: Kind::HfFolder,
            config,
            generation_config: None,
            tokenizer: TokenizerSource::Missing,
            tokenizer_config: None,
            chat_template: None,
            warnings: Vec::new(),
            total_bytes: tensors.iter().map(|t| (t.bytes.len() + scales(t)) as u64).sum(),
            tensors: tensors.into_iter().map(|t| (t.name.clone(), t)).collect(),
            unsupported: BTreeMap::new(),
            maps: Vec::new(),
        }
    }

    /// A tensor by name.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.tensors.get(name)
    }

    /// A tensor that must be there with this shape.
    pub fn require(&self, name: &str, shape: &[usize]) -> Result<&Tensor, CheckpointError> {
        let Some(t) = self.tensors.get(name) else {
            if let Some((found, file)) = self.unsupported.get(name) {
                return Err(CheckpointError::Dtype {
                    path: file.clone(),
                    tensor: name.into(),
                    found: found.clone(),
                    accepted: match self.kind {
                        Kind::HfFolder => SAFETENSORS_FORMATS,
                        Kind::Gguf => GGUF_FORMATS,
                    },
                });
            }
            return Err(CheckpointError::Missing {
                path: self.path.clone(),
                tensor: name.into(),
                shape: shape.to_vec(),
            });
        };
        if t.shape != shape {
            return Err(CheckpointError::Shape {
                path: t.file.clone(),
                tensor: name.into(),
                found: t.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(t)
    }

    /// All readable tensors, by name.
    pub fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.tensors.values()
    }

    /// Whether this is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.kind == Kind::Gguf
    }

    /// The file config fields come from, for messages.
    pub fn config_path(&self) -> PathBuf {
        match self.kind {
            Kind::HfFolder => self.path.join("config.json"),
            Kind::Gguf => self.path.clone(),
        }
    }

    /// Reads every page of the weights once, in parallel, so that the first token does not wait for the disk.
    pub fn prefault(&self, threads: usize, progress: &dyn Progress) -> Result<(), CheckpointError> {
        prefault::run(&self.maps, threads, progress)
    }
}

/// A warning for every config key not in `known`.
pub fn check_known_keys(config: &Map<String, Value>, known: &[&str]) -> Vec<String> {
    let unknown: Vec<&str> = config
        .keys()
        .map(String::as_str)
        .filter(|k| !known.contains(k))
        .collect();
    if unknown.is_empty() {
        return Vec::new();
    }
    vec![format!(
        "config keys not known here and ignored: {}",
        unknown.join(", ")
    )]
}

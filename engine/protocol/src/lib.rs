//! Messages between the interface of MODEL1 Explorer and its host. Plain data: no crate of ours is used here, so that
//! everything, the web interface included, can depend on it.
//!
//! A connection carries binary frames: postcard of [`ClientFrame`] one way, of [`HostFrame`] the other. The first
//! frame of each side is the handshake ([`Hello`], [`Welcome`]); both compare [`PROTOCOL_VERSION`] and
//! [`SCHEMA_HASH`] and refuse a mismatch with a sentence. After that the client sends [`Request`]s, each answered by
//! one [`Reply`] (or an [`ErrorInfo`]), and the host sends an [`Update`] whenever something changed, at most one per
//! [`FRAME_MS`]. What streams (tokens, telemetry) carries sequence numbers: a client that reconnects says how far it
//! got and misses nothing that is still held.
//!
//! Field rules: every field is always written (postcard is not self-describing, so serde's `skip_*` attributes are
//! forbidden), lists are in a fixed order, units are in names or docs.

mod compare;
mod doc;
mod error;
mod frames;
mod free;
mod handshake;
mod inspect;
mod model;
mod plan;
mod reading;
mod recipe;
mod settings;
mod sweep;
mod telemetry;

pub use compare::{
    Change, CompareResult, CompareSide, CompareSpec, CompareText, CompareToken, DeltaP, Divergence, Drift, IsolateRow,
    KlStats, PplStats, RecipeRef,
};
pub use doc::{
    Alternative, DocInfo, DocKind, DocView, FinishView, GenerateSpec, NodeView, Role, Sampling, TokenEntry, TokenInfo,
};
pub use error::{ErrorInfo, ErrorKind};
pub use frames::{
    ClientBody, ClientFrame, Cursor, Event, Hello, HostFrame, HostInfo, JobId, JobKind, JobState, JobView, Notice,
    ProtocolError, Reply, Request, StateView, Update, Welcome, decode, encode,
};
pub use free::{FreeBlock, FreeMode, FreeSide, FreeSpec, FreeSplit, FreeToken, FreeView};
pub use handshake::{RemoteHost, decode_first, decode_welcome, mismatch};
pub use inspect::{
    AttentionMap, AttentionSpec, KeptRows, RouterMap, RowSpan, Segment, TensorStats, TokenLabel, TokenLayerMetric,
};
pub use model::{
    CardModel, DeviceView, FactsView, LayerFactsView, LoadedModel, MemoryBasis, MemoryPlan, ModelSource, ModelState,
    ModelsView, RecentModel, SourceKind,
};
pub use plan::{BlockView, OpTimeView, OpView, PlanView, TensorView};
pub use reading::Statistic;
pub use recipe::{
    ChoiceView, Decimal, Edit, LayerSlots, OptionChoice, OptionKind, OptionValue, OptionView, Preset, RecipeView,
    Refusal, SlotView, VariantView, split_list,
};
pub use settings::{FontFile, Settings, ThemeChoice};
pub use sweep::{SweepCell, SweepGroup, SweepPick, SweepRefusal, SweepRow, SweepSpec, SweepState, SweepView};
pub use telemetry::{KvBaselines, KvBytes, KvFit, Label, LayerRecord, RunSummary, StepRecord, TELEMETRY_VERSION};

/// Raised when the meaning of messages changes.
pub const PROTOCOL_VERSION: u32 = 1;

/// Time between two updates to one client while something streams, in milliseconds.
pub const FRAME_MS: u64 = 33;

/// Largest frame either side accepts, in bytes.
pub const MAX_FRAME: usize = 64 << 20;

/// A hash of this crate's own source: two builds whose messages could differ never talk to each other.
pub const SCHEMA_HASH: u64 = {
    let mut h = 0xcbf2_9ce4_8422_2325;
    h = fnv(h, include_bytes!("lib.rs"));
    h = fnv(h, include_bytes!("compare.rs"));
    h = fnv(h, include_bytes!("doc.rs"));
    h = fnv(h, include_bytes!("error.rs"));
    h = fnv(h, include_bytes!("frames.rs"));
    h = fnv(h, include_bytes!("free.rs"));
    h = fnv(h, include_bytes!("handshake.rs"));
    h = fnv(h, include_bytes!("inspect.rs"));
    h = fnv(h, include_bytes!("model.rs"));
    h = fnv(h, include_bytes!("plan.rs"));
    h = fnv(h, include_bytes!("reading.rs"));
    h = fnv(h, include_bytes!("recipe.rs"));
    h = fnv(h, include_bytes!("settings.rs"));
    h = fnv(h, include_bytes!("sweep.rs"));
    fnv(h, include_bytes!("telemetry.rs"))
};

/// FNV-1a.
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

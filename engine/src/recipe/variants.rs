//! The variants that come with the engine. One struct and one registry line each.

mod ffn;
mod heads;
mod score;
mod skip;
mod transplant;
mod weights;

use std::sync::Arc;

use kernels::ir::{CacheFormat, Mask};

use super::facts::{AttentionKind, LayerFacts};
use super::registry::{AttendSpec, OptionKind, OptionSpec, Options, Reason, Registry, Slot, Variant, option};

/// Registers them all.
pub(super) fn register(r: &mut Registry) {
    r.add(Arc::new(Own { slot: Slot::Attention }));
    r.add(Arc::new(Dense));
    r.add(Arc::new(SlidingWindow));
    r.add(Arc::new(TopK));
    r.add(Arc::new(skip::BlockSkip));
    r.add(Arc::new(IndexTopK));
    r.add(Arc::new(heads::Heads));
    r.add(Arc::new(score::Score));
    r.add(Arc::new(transplant::Transplant { slot: Slot::Attention }));
    r.add(Arc::new(Own { slot: Slot::Ffn }));
    ffn::register(r);
    r.add(Arc::new(transplant::Transplant { slot: Slot::Ffn }));
    for format in [
        CacheFormat::F32,
        CacheFormat::Bf16,
        CacheFormat::Fp8Model1,
        CacheFormat::Fp8B64,
        CacheFormat::Fp8V32,
        CacheFormat::Fp4,
    ] {
        r.add(Arc::new(KvStorage { format }));
    }
    let index = [
        CacheFormat::F32,
        CacheFormat::Bf16,
        CacheFormat::Fp8Model1,
        CacheFormat::Fp8B64,
        CacheFormat::Fp8V32,
        CacheFormat::Fp4,
    ];
    for format in index {
        r.add(Arc::new(IndexStorage { format }));
    }
    weights::register(r);
}

fn refuse(reason: String) -> Result<(), Reason> {
    Err(Reason(reason))
}

/// The checkpoint's own block.
struct Own {
    slot: Slot,
}

impl Variant for Own {
    fn slot(&self) -> Slot {
        self.slot
    }
    fn name(&self) -> &'static str {
        "own"
    }
    fn help(&self) -> &'static str {
        "what the checkpoint was trained with"
    }
    fn accepts(&self, _: &LayerFacts, _: &Options) -> Result<(), Reason> {
        Ok(())
    }
}

const DENSE: [OptionSpec; 2] = [heads::ZERO, heads::MEAN];

/// Every visible key.
struct Dense;

impl Variant for Dense {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "dense"
    }
    fn help(&self) -> &'static str {
        "attends to every key in the cache; on CSA and HCA layers, to every visible compressed row"
    }
    fn options(&self) -> &[OptionSpec] {
        &DENSE
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)?;
        match f.attention {
            AttentionKind::Sliding => refuse(format!(
                "the layer keeps a ring of {} tokens and no compressed rows: older keys are gone, \
                 there is nothing more to attend to",
                f.window
            )),
            _ => Ok(()),
        }
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        spec.select = false;
        heads::place(o, spec);
    }
}

const WINDOW: [OptionSpec; 4] = [
    OptionSpec {
        name: "window",
        help: "tokens visible, the query included",
        kind: OptionKind::Whole {
            min: 1,
            max: 1 << 24,
            default: 128,
        },
    },
    OptionSpec {
        name: "sinks",
        help: "first tokens that stay visible",
        kind: OptionKind::Whole {
            min: 0,
            max: 1 << 16,
            default: 4,
        },
    },
    heads::ZERO,
    heads::MEAN,
];

/// Last tokens and first tokens only; keys stay in the cache.
struct SlidingWindow;

impl Variant for SlidingWindow {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "sliding_window"
    }
    fn help(&self) -> &'static str {
        "attends to the last `window` tokens and the first `sinks`; nothing is evicted"
    }
    fn options(&self) -> &[OptionSpec] {
        &WINDOW
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)?;
        if f.attention.evicts() {
            return refuse(format!(
                "a {} layer already has its own window of {} tokens; use top_k to look at fewer keys",
                f.attention.name(),
                f.window
            ));
        }
        Ok(())
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        spec.mask = Mask::SlidingWindow {
            window: option(self, o, "window") as usize,
            sinks: option(self, o, "sinks") as usize,
        };
        heads::place(o, spec);
    }
}

// No `mean`: a head that looks at all keys alike has no largest scores.
const TOP_K: [OptionSpec; 2] = [
    OptionSpec {
        name: "k",
        help: "keys kept per head and query",
        kind: OptionKind::Whole {
            min: 1,
            max: 1 << 24,
            default: 64,
        },
    },
    heads::ZERO,
];

/// The exact oracle of sparse attention.
struct TopK;

impl Variant for TopK {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "top_k"
    }
    fn help(&self) -> &'static str {
        "per head, keeps the `k` keys with the largest scores (exact: every key is scored first)"
    }
    fn options(&self) -> &[OptionSpec] {
        &TOP_K
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        spec.mask = Mask::TopK {
            k: option(self, o, "k") as usize,
        };
        heads::place(o, spec);
    }
}

const INDEX_TOP_K: [OptionSpec; 3] = [
    OptionSpec {
        name: "k",
        help: "compressed rows the indexer keeps per query",
        kind: OptionKind::Whole {
            min: 1,
            max: 1 << 14,
            default: 16,
        },
    },
    heads::ZERO,
    heads::MEAN,
];

/// Another number of rows for the indexer.
struct IndexTopK;

impl Variant for IndexTopK {
    fn slot(&self) -> Slot {
        Slot::Attention
    }
    fn name(&self) -> &'static str {
        "index_top_k"
    }
    fn help(&self) -> &'static str {
        "the indexer keeps `k` compressed rows per query instead of the checkpoint's number"
    }
    fn options(&self) -> &[OptionSpec] {
        &INDEX_TOP_K
    }
    fn accepts(&self, f: &LayerFacts, o: &Options) -> Result<(), Reason> {
        heads::check(f, o)?;
        if f.index_topk == 0 {
            return refuse(format!(
                "a {} layer has no indexer; use top_k to look at fewer keys",
                f.attention.name()
            ));
        }
        Ok(())
    }
    fn attention(&self, _: &LayerFacts, o: &Options, spec: &mut AttendSpec) {
        spec.index_topk = option(self, o, "k") as usize;
        heads::place(o, spec);
    }
}

/// Storage of keys and values.
struct KvStorage {
    format: CacheFormat,
}

impl Variant for KvStorage {
    fn slot(&self) -> Slot {
        Slot::KvCache
    }
    fn name(&self) -> &'static str {
        self.format.name()
    }
    fn help(&self) -> &'static str {
        match self.format {
            CacheFormat::F32 => "4 bytes per value",
            CacheFormat::Bf16 => "2 bytes per value",
            CacheFormat::Fp8Model1 => "the 584-byte record of MODEL1's 512-wide latents",
            CacheFormat::Fp8B64 => "e4m3 with one power-of-two scale per 64 values",
            CacheFormat::Fp8V32 => {
                "V3.2's rule for latents with their rope part apart: e4m3 with one f32 scale per 128 values, rope bf16"
            }
            CacheFormat::Fp4 => "e2m1 with one power-of-two scale per 32 values, rope values among them",
        }
    }
    fn accepts(&self, f: &LayerFacts, _: &Options) -> Result<(), Reason> {
        if self.format == CacheFormat::Fp8Model1 && !(f.head_dim == 512 && f.rope_tail == 64 && f.kv_heads == 1) {
            return refuse(format!(
                "the 584-byte record holds one 512-wide latent (448 + 64 rope) per row; this layer's rows are {} x {} \
                 with {} rope values apart. Use fp8_b64",
                f.kv_heads, f.head_dim, f.rope_tail
            ));
        }
        if self.format == CacheFormat::Fp8V32 && !(f.rope_tail > 0 && f.kv_heads == 1) {
            return refuse(format!(
                "V3.2's record holds one latent per row with its rotated part apart (512 + 64 values in 656 bytes there, \
                 448 + 64 in 592 in MODEL1); this layer's rows are {} x {} with nothing apart. Use fp8_b64",
                f.kv_heads, f.head_dim
            ));
        }
        Ok(())
    }
    fn cache_format(&self) -> Option<CacheFormat> {
        Some(self.format)
    }
}

/// Storage of indexer rows.
struct IndexStorage {
    format: CacheFormat,
}

impl Variant for IndexStorage {
    fn slot(&self) -> Slot {
        Slot::IndexCache
    }
    fn name(&self) -> &'static str {
        self.format.name()
    }
    fn help(&self) -> &'static str {
        match self.format {
            CacheFormat::F32 => "4 bytes per value",
            CacheFormat::Bf16 => "2 bytes per value",
            CacheFormat::Fp8Model1 => "the 584-byte record of MODEL1's 512-wide latents",
            CacheFormat::Fp8B64 => "e4m3 with one power-of-two scale per 64 values",
            CacheFormat::Fp8V32 => "e4m3 with one f32 scale per 128 values: the 132-byte row of V3.2's indexer",
            CacheFormat::Fp4 => "e2m1 with one power-of-two scale per 32 values after a Hadamard transform (official)",
        }
    }
    fn accepts(&self, f: &LayerFacts, _: &Options) -> Result<(), Reason> {
        if f.index_topk == 0 {
            return refuse(format!("a {} layer has no indexer", f.attention.name()));
        }
        if self.format == CacheFormat::Fp8Model1 {
            return refuse(format!(
                "the 584-byte record holds 512-wide latents; indexer rows are {} wide. Use fp8_b64 or fp4",
                f.index_dim
            ));
        }
        if self.format == CacheFormat::Fp4 && !f.index_dim.is_power_of_two() {
            return refuse(format!(
                "the Hadamard transform needs a power of two; indexer rows are {} wide",
                f.index_dim
            ));
        }
        Ok(())
    }
    fn cache_format(&self) -> Option<CacheFormat> {
        Some(self.format)
    }
}

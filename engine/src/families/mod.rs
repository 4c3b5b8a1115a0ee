//! Model families: reading a checkpoint's config and names, and lowering its blocks to base ops.

mod dense;
mod gpt2;
mod loader;
mod rope;
mod v4;
mod v4_config;
mod v4_weights;

use std::sync::Arc;

use checkpoint::Checkpoint;
use kernels::ir::{CacheDesc, Format, WeightDesc, WeightId};

use crate::error::EngineError;
use crate::lower::Lower;
use crate::model::{Config, WeightStore};
use crate::recipe::{ModelFacts, Recipe, Registry, Slot};

pub use loader::Loader;

/// Most tokens in one step, unless the backend asks for more ([`crate::Engine::chunk`], a multiple of this). Prefill chunks
/// never cross a multiple of their length; a host checkpoint is taken after a step that ends at a multiple of this.
pub const CHUNK: usize = 128;

/// Tokens times elements of bf16 weights whose products take a tenth of a second where steps are longer than [`CHUNK`] (on an
/// H200): a step cannot be stopped in the middle there.
const STEP: u64 = 12_500_000_000_000;

/// Most tokens in a step of a model with these weights on a backend that would take `most`: a power of two times [`CHUNK`],
/// so few that a step stays short.
fn chunk_of(most: usize, weights: &[WeightDesc]) -> usize {
    // Products of other formats take so many times the time of bf16 there: what is exact in bf16 is made so first, most others
    // in two parts.
    let times = |f: Format| match f {
        Format::Bf16 => 1,
        Format::F8E4m3 | Format::Fp4E2m1 => 2,
        Format::F32 => 6,
        _ => 4,
    };
    let work: u64 = weights.iter().map(|d| d.elements() * times(d.format)).sum();
    let mut chunk = CHUNK;
    while 2 * chunk <= most && 2 * chunk as u64 * work <= STEP {
        chunk *= 2;
    }
    chunk
}

/// A family with its weights placed: everything needed to lower any block of the loaded model.
pub trait Family: Send + Sync {
    /// What the checkpoint says.
    fn facts(&self) -> &ModelFacts;
    /// Cache components a session needs under a recipe for steps of up to `chunk` tokens, in the order of their ids.
    fn caches(&self, recipe: &Recipe, registry: &Registry, chunk: usize) -> Vec<CacheDesc>;
    /// Most tokens of a step with which the caches stay small: a ring has room for a step's tokens beside its window.
    fn longest_step(&self) -> usize {
        usize::MAX
    }
    /// Token ids to residual.
    fn lower_embedding(&self, cx: &mut Lower<'_>);
    /// Attention block of a layer with its norm and residual.
    fn lower_attention(&self, cx: &mut Lower<'_>, layer: usize);
    /// Feed-forward block of a layer with its norm and residual.
    fn lower_ffn(&self, cx: &mut Lower<'_>, layer: usize);
    /// Residual to logits.
    fn lower_head(&self, cx: &mut Lower<'_>);
    /// The matrices whose storage a slot of weights decides; none for slots of layers.
    fn matrices(&self, slot: Slot) -> Vec<WeightId>;
}

/// A loaded family, its weights and remarks for the user.
pub struct Loaded {
    /// The family.
    pub family: Arc<dyn Family>,
    /// Its weights.
    pub weights: WeightStore,
    /// Things worth saying once (unknown config keys, tensors not used).
    pub warnings: Vec<String>,
}

impl Loaded {
    /// Most tokens in a step of this model on a backend that would take `most` ([`chunk_of`]).
    pub fn chunk(&self, most: usize) -> usize {
        chunk_of(most.min(self.family.longest_step()), &self.weights.descs())
    }
}

/// `model_type`s this engine runs.
pub const MODEL_TYPES: [&str; 4] = ["deepseek_v4", "llama", "qwen2", "gpt2"];

/// Places a checkpoint's weights.
pub fn load(ckpt: &Checkpoint) -> Result<Loaded, EngineError> {
    let path = ckpt.config_path();
    let config = Config::new(&ckpt.config, &path);
    let mut loader = Loader::new(ckpt);
    let family: Arc<dyn Family> = match config.text("model_type") {
        Some("deepseek_v4") => Arc::new(v4::DeepseekV4::load(&config, &mut loader)?),
        Some("llama" | "qwen2") => Arc::new(dense::Dense::load(&config, &mut loader)?),
        Some("gpt2") => Arc::new(gpt2::Gpt2::load(&config, &mut loader)?),
        _ => return Err(config.error("model_type", &MODEL_TYPES.join(", "))),
    };
    let (weights, warnings) = loader.finish();
    Ok(Loaded {
        family,
        weights,
        warnings,
    })
}

/// The storage a layer's recipe asks for.
pub(crate) fn cache_format(recipe: &Recipe, registry: &Registry, layer: usize, slot: Slot) -> kernels::ir::CacheFormat {
    let choice = recipe
        .layers
        .get(layer)
        .and_then(|l| l.slots().find(|(s, _)| *s == slot).map(|(_, c)| c));
    choice
        .and_then(|c| registry.get(slot, &c.variant))
        .and_then(|v| v.cache_format())
        .unwrap_or(kernels::ir::CacheFormat::F32)
}

#[cfg(test)]
mod tests {
    use kernels::ir::Layout;

    use super::*;

    fn matrix(rows: usize, cols: usize, format: Format) -> Vec<WeightDesc> {
        vec![WeightDesc {
            name: "w".into(),
            rows,
            cols,
            format,
            layout: Layout::OutIn,
            scales: None,
        }]
    }

    #[test]
    fn steps_are_long_where_they_are_short() {
        // 7 billion elements.
        let of = |format| chunk_of(1024, &matrix(1 << 16, 13 << 13, format));
        assert_eq!((of(Format::Bf16), of(Format::Q8_0)), (1024, 256));
        // A hundred times as many.
        assert_eq!(chunk_of(1024, &matrix(1 << 18, 5 << 17, Format::Bf16)), CHUNK);
        // What the backend takes is the most.
        assert_eq!(chunk_of(CHUNK, &matrix(8, 8, Format::Bf16)), CHUNK);
        assert_eq!(chunk_of(700, &matrix(8, 8, Format::Bf16)), 512);
    }
}

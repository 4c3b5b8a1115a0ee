//! Memory of a model at a context length, from its headers alone.

use std::path::Path;

use checkpoint::{Checkpoint, CheckpointError, Silent};
use kernels::ir::{CacheDesc, CacheRows, Component};
use protocol::{KvBytes, MemoryBasis, MemoryPlan};

use crate::error::EngineError;
use crate::families;
use crate::lower::{Bucket, Lowering};
use crate::memory;
use crate::recipe::{Recipe, Registry};
use crate::restore::restored_bytes;

/// Bytes of every component for a context of `context` tokens, rings allocated whole.
pub fn kv_bytes(caches: &[CacheDesc], context: u64) -> KvBytes {
    let mut sum = KvBytes::default();
    for c in caches {
        let (data, scales) = c.row_bytes();
        let rows = match c.rows {
            CacheRows::Ring { capacity, .. } => capacity as u64,
            CacheRows::Growing { rate } => context / rate as u64,
        };
        sum.scales += rows * scales as u64;
        let bytes = rows * data as u64;
        match c.component {
            Component::Keys | Component::Values | Component::Window => sum.window += bytes,
            Component::Rows => sum.rows += bytes,
            Component::Index => sum.index += bytes,
            Component::Pooling | Component::IndexPooling => sum.pooling += bytes,
        }
    }
    sum
}

/// Predicts the memory of the model at `path` for a context of `context` tokens (`None` = the checkpoint's) under a
/// recipe given as JSON (`None` = the checkpoint's own). Reads headers; no weight is touched. What cannot be run is
/// told in the plan's refusal, with the weights' bytes where the headers give them.
///
/// # Errors
/// Nothing at `path` that is a model, headers that cannot be read, a recipe that does not fit.
pub fn predict(path: &Path, context: Option<u64>, recipe: Option<&str>) -> Result<MemoryPlan, EngineError> {
    let mut plan = MemoryPlan {
        basis: MemoryBasis::Headers,
        weights: 0,
        kv: KvBytes::default(),
        workspace: 0,
        free: memory::available().unwrap_or(0),
        context: context.unwrap_or(0),
        max_context: 0,
        refusal: String::new(),
    };
    let checkpoint = match Checkpoint::open(path, &Silent) {
        Ok(c) => c,
        // A model that is half there: say so instead of failing.
        Err(e @ CheckpointError::MissingShard { .. }) => {
            plan.refusal = e.to_string();
            return Ok(plan);
        }
        Err(e) => return Err(e.into()),
    };
    plan.weights = checkpoint
        .tensors()
        .map(|t| (t.bytes.len() + t.scales.as_ref().map_or(0, |s| s.bytes.len())) as u64)
        .sum();
    let loaded = match families::load(&checkpoint) {
        Ok(l) => l,
        Err(e) => {
            plan.refusal = e.to_string();
            return Ok(plan);
        }
    };
    let registry = Registry::default();
    let facts = loaded.family.facts();
    plan.max_context = facts.max_context as u64;
    plan.context = context.unwrap_or(plan.max_context);
    let recipe = match recipe {
        Some(json) => Recipe::parse(json, "recipe", facts, &registry)?,
        None => Recipe::own(facts, &registry),
    };
    let caches = loaded.family.caches(&recipe, &registry, families::CHUNK);
    plan.kv = kv_bytes(&caches, plan.context);
    plan.weights += restored_bytes(loaded.family.as_ref(), &loaded.weights, &recipe, &registry);
    let bucket = Bucket::for_step(families::CHUNK, plan.context, false, false);
    let mut lowering = Lowering::new(loaded.family.clone(), &caches);
    plan.workspace = lowering
        .plan(&recipe, &registry, &loaded.weights, bucket)
        .workspace_bytes();
    plan.refusal = refusal(&plan);
    Ok(plan)
}

/// Why a model cannot be loaded as planned; empty if it can.
pub fn refusal(plan: &MemoryPlan) -> String {
    let human = memory::human;
    if plan.max_context > 0 && plan.context > plan.max_context {
        return format!(
            "a context of {} tokens was asked for, the checkpoint was made for {}",
            plan.context, plan.max_context
        );
    }
    // Weights are mapped files: what does not fit is read again from disk, slowly, but it runs.
    let own = plan.kv.total() + plan.workspace;
    if plan.free == 0 || plan.total() <= plan.free {
        return String::new();
    }
    if own > plan.free {
        return format!(
            "cache and workspace need {}, {} are available: choose a smaller context",
            human(own),
            human(plan.free)
        );
    }
    format!(
        "weights, cache and workspace need {}, {} are available: weights would be read from disk again and again",
        human(plan.total()),
        human(plan.free)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn golden(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../tests/goldens")
            .join(name)
    }

    #[test]
    fn a_prediction_is_what_a_session_takes() {
        let path = golden("tiny-v4");
        let plan = predict(&path, Some(96), None).unwrap();
        assert_eq!(plan.refusal, "");
        let engine = crate::Engine::open(&path, &crate::EngineOptions::default(), &Silent).unwrap();
        let mut session = engine
            .session(engine.recipe(), crate::SessionOptions::default())
            .unwrap();
        assert_eq!(plan.kv.total(), session.predicted_bytes(96));
        assert_eq!(plan.weights, engine.weight_bytes());
        assert_eq!(plan.workspace, session.plan(128, 0).workspace_bytes());
        assert_eq!(plan.max_context, engine.facts().max_context as u64);
        // Half the bytes per value, half the rows' bytes.
        let json = r#"{"schema":1,"set":{"layers.*.kv_cache":"bf16","layers.*.index_cache":"bf16"}}"#;
        let half = predict(&path, Some(96), Some(json)).unwrap();
        assert_eq!(2 * half.kv.rows, plan.kv.rows);
        assert_eq!(half.kv.pooling, plan.kv.pooling);
        // Weights stored otherwise lie beside the loaded ones.
        let json = r#"{"schema":1,"set":{"weights.ffn":"fp4","weights.lm_head":"fp8"}}"#;
        let stored = predict(&path, Some(96), Some(json)).unwrap();
        let recipe = Recipe::parse(json, "test", engine.facts(), engine.registry()).unwrap();
        let more = engine.restored_bytes(&recipe);
        assert!(more > 160 * 64, "an output layer of fp8 and more: {more}");
        assert_eq!(stored.weights, plan.weights + more);
    }

    #[test]
    fn what_cannot_be_run_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["config.json", "model.safetensors"] {
            std::fs::copy(golden("tiny-llama").join(file), dir.path().join(file)).unwrap();
        }
        let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
        let config = config.replace("\"llama\"", "\"mamba\"");
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let plan = predict(dir.path(), None, None).unwrap();
        assert!(plan.weights > 0, "headers are readable");
        assert!(
            plan.refusal.contains("model_type") && plan.refusal.contains("mamba"),
            "{}",
            plan.refusal
        );
        let long = predict(&golden("tiny-llama"), Some(1 << 40), None).unwrap();
        assert!(long.refusal.contains("was made for"), "{}", long.refusal);
        assert!(predict(&dir.path().join("nothing"), None, None).is_err());
    }

    #[test]
    fn refusals_name_what_is_too_large() {
        let mut plan = MemoryPlan {
            basis: MemoryBasis::Headers,
            weights: 4 << 30,
            kv: KvBytes {
                window: 3 << 30,
                ..KvBytes::default()
            },
            workspace: 1 << 30,
            free: 10 << 30,
            context: 10,
            max_context: 10,
            refusal: String::new(),
        };
        assert_eq!(refusal(&plan), "");
        plan.free = 6 << 30;
        assert!(refusal(&plan).contains("8.0 GiB") && refusal(&plan).contains("from disk"));
        plan.free = 2 << 30;
        assert!(refusal(&plan).contains("cache and workspace need 4.0 GiB"));
    }
}

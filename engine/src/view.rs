//! Views for people: the tree of blocks and tensors, and the plan with its costs.

use std::collections::BTreeMap;

use kernels::ir::{BaseOp, Block, Op, Plan, WeightId, fuse};
use protocol::{BlockView, OpView, PlanView, TensorView};

use crate::error::EngineError;
use crate::recipe::{FfnKind, Slot};
use crate::session::Session;

/// Weights an op reads.
pub fn op_weights(op: &Op) -> Vec<WeightId> {
    match op {
        Op::Embed { table, .. } | Op::EmbedPosition { table, .. } => vec![*table],
        Op::Norm { weight, bias, .. } => [*weight, *bias].into_iter().flatten().collect(),
        Op::MatMul { weight, bias, .. } => [Some(*weight), *bias].into_iter().flatten().collect(),
        Op::GroupedMatMul { weight, .. } => vec![*weight],
        Op::Pool { ape, .. } => vec![*ape],
        Op::Attend { sinks, .. } => sinks.iter().copied().collect(),
        Op::Route { bias, table, .. } => [*bias, *table].into_iter().flatten().collect(),
        Op::ExpertMatMul { weights, .. } => weights.clone(),
        Op::HcMix {
            matrix, base, scale, ..
        } => vec![*matrix, *base, *scale],
        _ => Vec::new(),
    }
}

fn block_name(b: Block) -> &'static str {
    match b {
        Block::Embedding => "embedding",
        Block::Attention => "attention",
        Block::Ffn => "ffn",
        Block::Head => "head",
        Block::Sampler => "sampler",
    }
}

/// `mat_mul`, `attend`, ...: the tag of the op in JSON.
fn op_kind(op: &Op) -> String {
    serde_json::to_value(op)
        .ok()
        .and_then(|v| v.get("op").and_then(|t| t.as_str()).map(str::to_string))
        .unwrap_or_default()
}

fn view(
    plan: &Plan,
    i: usize,
    base: &BaseOp,
    (tokens, context): (u64, u64),
    fused_with: u32,
    inputs: Vec<u32>,
) -> OpView {
    let c = base.cost(plan, tokens, context);
    OpView {
        id: i as u32,
        layer: base.layer,
        block: block_name(base.block).into(),
        name: base.name.clone(),
        kind: op_kind(&base.op),
        flops: c.flops,
        weight_bytes: c.weights,
        cache_bytes: c.cache,
        activation_bytes: c.activations,
        fused_with,
        inputs,
        time: None,
    }
}

/// The plan with costs for a step of `tokens` tokens after `context` tokens.
pub fn plan_view(plan: &Plan, tokens: u64, context: u64) -> PlanView {
    let mut fused = vec![1u32; plan.ops.len()];
    for step in fuse(plan) {
        for id in &step.origin {
            fused[id.index()] = step.origin.len() as u32;
        }
    }
    PlanView {
        hash: format!("{:016x}", plan.hash),
        phase: match plan.phase {
            kernels::ir::Phase::Prefill => "prefill".into(),
            kernels::ir::Phase::Decode => "decode".into(),
        },
        tokens,
        context,
        ops: plan
            .ops
            .iter()
            .enumerate()
            .zip(crate::dataflow::inputs(plan))
            .map(|((i, o), inputs)| view(plan, i, o, (tokens, context), fused[i], inputs))
            .collect(),
    }
}

impl Session {
    /// The plan with its costs.
    pub fn plan_view(&mut self, tokens: usize, context: u64) -> Result<PlanView, EngineError> {
        let most = self.engine.chunk();
        if tokens == 0 || tokens > most {
            return Err(EngineError::Invalid(format!(
                "--tokens: found {tokens}, accepted: 1 to {most}"
            )));
        }
        let needed = context.saturating_add(tokens as u64);
        if needed > self.capacity() {
            return Err(EngineError::ContextOverflow {
                needed,
                capacity: self.capacity(),
                hint: "costs are shown for contexts the model can hold".into(),
            });
        }
        let plan = self.plan(tokens, context);
        Ok(plan_view(&plan, tokens as u64, context))
    }

    /// The tree of blocks with their tensors and the recipe's choices.
    pub fn tree(&mut self) -> Vec<BlockView> {
        let plan = self.plan(1, 0);
        let mut blocks: BTreeMap<(u8, u32, u8), BlockView> = BTreeMap::new();
        for base in &plan.ops {
            let order = match base.block {
                Block::Embedding => (0, 0, 0),
                Block::Attention => (1, base.layer.unwrap_or(0), 0),
                Block::Ffn => (1, base.layer.unwrap_or(0), 1),
                Block::Head => (2, 0, 0),
                Block::Sampler => continue,
            };
            let entry = blocks.entry(order).or_insert_with(|| BlockView {
                layer: base.layer,
                block: block_name(base.block).into(),
                kind: self.kind(base),
                slots: self.slots(base),
                tensors: Vec::new(),
            });
            for id in op_weights(&base.op) {
                let d = plan.weight(id);
                if entry.tensors.iter().any(|t| t.name == d.name) {
                    continue;
                }
                entry.tensors.push(TensorView {
                    name: d.name.clone(),
                    shape: [d.rows, d.cols],
                    format: d.format.name().into(),
                    bytes: d.bytes(),
                });
            }
        }
        blocks.into_values().collect()
    }

    fn kind(&self, base: &BaseOp) -> String {
        let Some(f) = base.layer.and_then(|l| self.engine.facts().layers.get(l as usize)) else {
            return match base.block {
                Block::Embedding => "token embedding".into(),
                _ if self.engine.facts().tied => "final norm and output layer (tied to the embedding)".into(),
                _ => "final norm and output layer".into(),
            };
        };
        if base.block == Block::Attention {
            let heads = format!("{} heads x {}", f.heads, f.head_dim);
            let kv = if f.rope_tail > 0 {
                "one shared latent".into()
            } else {
                format!("{} key heads", f.kv_heads)
            };
            let more = match (f.rate, f.index_topk) {
                (0, _) => String::new(),
                (r, 0) => format!(", 1 row per {r} tokens"),
                (r, k) => format!(", 1 row per {r} tokens, indexer keeps {k}"),
            };
            return format!("{} attention, {heads}, {kv}{more}", f.attention.name());
        }
        match f.ffn {
            FfnKind::SwiGlu => "SwiGLU".into(),
            FfnKind::GeluMlp => "GELU MLP".into(),
            FfnKind::Moe => format!("{} experts, {} per token", f.experts, f.experts_per_token),
        }
    }

    fn slots(&self, base: &BaseOp) -> Vec<(String, String)> {
        let weights = self.recipe.weights.slots();
        let stored = |slot: Slot| {
            let choice = weights.iter().find(|(s, _)| *s == slot);
            (
                slot.name().to_string(),
                choice.map(|(_, c)| c.to_string()).unwrap_or_default(),
            )
        };
        let Some(layer) = base.layer.and_then(|l| self.recipe.layers.get(l as usize)) else {
            return match base.block {
                Block::Head => vec![stored(Slot::LmHead)],
                Block::Embedding => vec![stored(Slot::Embedding)],
                _ => Vec::new(),
            };
        };
        let ffn = base.block == Block::Ffn;
        let of_layer = layer.slots().filter(|(s, _)| ffn == (*s == Slot::Ffn));
        of_layer
            .map(|(s, c)| (s.name().to_string(), c.to_string()))
            .chain([stored(if ffn { Slot::FfnWeights } else { Slot::AttentionWeights })])
            .collect()
    }
}

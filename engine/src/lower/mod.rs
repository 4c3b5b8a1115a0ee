//! Lowering: recipe + weights -> plan. Each block is lowered on its own and kept; a swap lowers that block again
//! and nothing else.

mod builder;
mod look;
mod shared;

use std::collections::HashMap;
use std::sync::Arc;

use kernels::ir::{BaseOp, Block, CacheDesc, Op, Phase, Plan, WeightId};

pub use builder::Lower;
use builder::Tables;
pub use look::{Layers, Look};
pub(crate) use shared::{PlanKey, SharedPlans};

use crate::engine::Engine;
use crate::families::Family;
use crate::model::WeightStore;
use crate::recipe::{Recipe, Registry};
use crate::view::op_weights;

/// What a plan is specialised for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Bucket {
    /// Prefill or decode.
    pub phase: Phase,
    /// Most tokens in a step.
    pub tokens: usize,
    /// Largest context.
    pub context: usize,
    /// Logits of every token.
    pub all_logits: bool,
    /// Copy the residual after every block to the output.
    pub probes: bool,
    /// What an inspection copies to the output.
    pub look: Look,
}

impl Bucket {
    /// Token counts plans are made for.
    pub const TOKENS: [usize; 8] = [1, 8, 32, 128, 256, 512, 1024, 2048];

    /// The smallest bucket that holds a step. Context buckets are powers of two from 4096 on.
    pub fn for_step(tokens: usize, context: u64, all_logits: bool, probes: bool) -> Self {
        let phase = if tokens == 1 { Phase::Decode } else { Phase::Prefill };
        let bucket = Self::TOKENS.into_iter().find(|&b| b >= tokens).unwrap_or(tokens);
        let context = (context.max(4096) as usize).next_power_of_two();
        Self {
            phase,
            tokens: bucket,
            context,
            all_logits,
            probes,
            look: Look::default(),
        }
    }
}

/// Counters that show what was (not) done again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LowerStats {
    /// Blocks lowered.
    pub blocks: u64,
    /// Plans assembled for a bucket.
    pub plans: u64,
}

type BlockKey = (Option<u32>, Block);

/// Lowered blocks and assembled plans of one session.
pub struct Lowering {
    family: Arc<dyn Family>,
    tables: Tables,
    blocks: HashMap<BlockKey, (String, Arc<[BaseOp]>)>,
    plans: HashMap<Bucket, Arc<Plan>>,
    stats: LowerStats,
}

impl Lowering {
    /// Nothing lowered yet. `caches` are the components of the session, in the order of their ids.
    pub fn new(family: Arc<dyn Family>, caches: &[CacheDesc]) -> Self {
        Self {
            family,
            tables: Tables::new(caches.to_vec()),
            blocks: HashMap::new(),
            plans: HashMap::new(),
            stats: LowerStats::default(),
        }
    }

    /// Counters.
    pub fn stats(&self) -> LowerStats {
        self.stats
    }

    /// After a swap: plans are assembled anew; blocks whose choices did not change are kept.
    pub fn invalidate(&mut self, caches: &[CacheDesc]) {
        self.plans.clear();
        self.tables.caches = caches.to_vec();
    }

    /// The plan of a bucket, from the cache, from what the engine's sessions share, or assembled for all of them.
    pub(crate) fn plan_shared(
        &mut self,
        shared: &SharedPlans,
        (recipe, registry, weights): (&Recipe, &Registry, &WeightStore),
        bucket: Bucket,
    ) -> Arc<Plan> {
        if let Some(p) = self.plans.get(&bucket) {
            return p.clone();
        }
        let key = PlanKey::of(recipe, &self.tables.caches, weights);
        if let Some(p) = shared.find(&key, &bucket) {
            self.plans.insert(bucket, p.clone());
            return p;
        }
        let plan = self.plan(recipe, registry, weights, bucket);
        shared.keep(key, bucket, plan.clone());
        plan
    }

    /// The plan of a bucket, from the cache if it was assembled before.
    pub fn plan(&mut self, recipe: &Recipe, registry: &Registry, weights: &WeightStore, bucket: Bucket) -> Arc<Plan> {
        if let Some(p) = self.plans.get(&bucket) {
            return p.clone();
        }
        let look = bucket.look;
        let mut ops: Vec<BaseOp> = Vec::new();
        let layers = self.family.facts().layers.len();
        let embedding = self.block(recipe, registry, weights, None, Block::Embedding);
        look.weave(&embedding, &mut ops);
        // The head is lowered before it is reached: plans need its buffers even where they stop earlier.
        let head = self.block(recipe, registry, weights, None, Block::Head);
        for l in (0..layers as u32).filter(|&l| look.runs(l)) {
            for block in [Block::Attention, Block::Ffn] {
                let lowered = self.block(recipe, registry, weights, Some(l), block);
                look.weave(&lowered, &mut ops);
            }
            if bucket.probes {
                let op = Op::Probe {
                    x: self.tables.residual,
                    name: format!("layer_out.{l}"),
                };
                ops.push(BaseOp {
                    op,
                    name: "probe".into(),
                    layer: Some(l),
                    block: Block::Ffn,
                });
            }
            look.lens(&head, self.tables.logits, l, &mut ops);
        }
        if look.until.is_none() {
            ops.extend(head.iter().cloned());
        }
        let op = Op::Sample {
            logits: self.tables.logits,
        };
        ops.push(BaseOp {
            op,
            name: "sample".into(),
            layer: None,
            block: Block::Sampler,
        });
        self.stats.plans += 1;
        let plan = Arc::new(self.assemble(ops, weights, bucket, layers));
        self.plans.insert(bucket, plan.clone());
        plan
    }

    fn assemble(&self, ops: Vec<BaseOp>, weights: &WeightStore, bucket: Bucket, layers: usize) -> Plan {
        let mut plan = Plan {
            phase: bucket.phase,
            token_bucket: bucket.tokens,
            context_bucket: bucket.context,
            all_logits: bucket.all_logits,
            ops,
            buffers: self.tables.buffers.clone(),
            weights: weights.descs(),
            caches: self.tables.caches.clone(),
            ropes: self.tables.ropes.clone(),
            layers,
            experts: self.family.facts().layers.iter().map(|l| l.experts).max().unwrap_or(0),
            logits: self.tables.logits,
            hash: 0,
        };
        plan.hash = plan_hash(&plan);
        plan
    }

    fn block(
        &mut self,
        recipe: &Recipe,
        registry: &Registry,
        weights: &WeightStore,
        layer: Option<u32>,
        block: Block,
    ) -> Arc<[BaseOp]> {
        let key = choice_key(recipe, layer, block);
        if let Some((k, ops)) = self.blocks.get(&(layer, block))
            && *k == key
        {
            return ops.clone();
        }
        self.stats.blocks += 1;
        let mut cx = Lower::new(&mut self.tables, recipe, registry, weights, layer, block);
        match (block, layer) {
            (Block::Attention, Some(l)) => self.family.lower_attention(&mut cx, l as usize),
            (Block::Ffn, Some(l)) => self.family.lower_ffn(&mut cx, l as usize),
            (Block::Embedding, _) => self.family.lower_embedding(&mut cx),
            _ => self.family.lower_head(&mut cx),
        }
        let ops: Arc<[BaseOp]> = cx.finish().into();
        self.blocks.insert((layer, block), (key, ops.clone()));
        ops
    }
}

/// The weights of a layer's block as the checkpoint has it, each once.
pub(crate) fn block_weights(engine: &Engine, layer: usize, block: Block) -> Vec<WeightId> {
    let recipe = engine.recipe();
    let mut tables = Tables::new(engine.family.caches(&recipe, engine.registry(), engine.chunk()));
    let at = Some(layer as u32);
    let mut cx = Lower::new(&mut tables, &recipe, engine.registry(), engine.weights(), at, block);
    match block {
        Block::Ffn => engine.family.lower_ffn(&mut cx, layer),
        _ => engine.family.lower_attention(&mut cx, layer),
    }
    let mut ids = Vec::new();
    for base in cx.finish() {
        ids.extend(op_weights(&base.op));
    }
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Everything of the recipe a block's ops depend on.
fn choice_key(recipe: &Recipe, layer: Option<u32>, block: Block) -> String {
    match (block, layer.and_then(|l| recipe.layers.get(l as usize))) {
        (Block::Attention, Some(l)) => {
            let index = l.index_cache.as_ref().map(ToString::to_string).unwrap_or_default();
            format!("{}|{}|{index}|{}", l.attention, l.kv_cache, recipe.weights.attention)
        }
        (Block::Ffn, Some(l)) => format!("{}|{}", l.ffn, recipe.weights.ffn),
        (Block::Embedding, _) => recipe.weights.embedding.to_string(),
        (Block::Head, _) => recipe.weights.lm_head.to_string(),
        _ => String::new(),
    }
}

/// FNV-1a over the plan's JSON with the hash field zero, eight bytes at a time.
fn plan_hash(plan: &Plan) -> u64 {
    let hashed = (&plan.ops, &plan.buffers, &plan.caches, &plan.ropes, plan.all_logits);
    // A plan is plain data, which always has a JSON form.
    let mut json = serde_json::to_vec(&hashed).unwrap_or_default();
    json.resize(json.len().next_multiple_of(8), 0);
    json.chunks_exact(8).fold(0xcbf2_9ce4_8422_2325, |hash, bytes| {
        let word = bytes.iter().rev().fold(0, |word, b| word << 8 | u64::from(*b));
        (hash ^ word).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

//! The tools a family lowers its blocks with.

use kernels::ir::{
    BaseOp, Block, BufId, BufferDesc, CacheDesc, CacheId, Component, Dim, ElemType, Op, RopeId, RopeTable, WeightId,
};

use crate::model::WeightStore;
use crate::recipe::{AttendSpec, Choice, FfnSpec, LayerFacts, LayerRecipe, Recipe, Registry, Slot, WeightStorage};

/// Tables shared by all blocks of a session's plans.
pub(super) struct Tables {
    pub buffers: Vec<BufferDesc>,
    pub caches: Vec<CacheDesc>,
    pub ropes: Vec<RopeTable>,
    pub residual: BufId,
    pub logits: BufId,
}

impl Tables {
    pub fn new(caches: Vec<CacheDesc>) -> Self {
        Self {
            buffers: Vec::new(),
            caches,
            ropes: Vec::new(),
            residual: BufId(0),
            logits: BufId(0),
        }
    }
}

/// Calls `f` with every weight an op reads.
pub(super) fn weights_mut(op: &mut Op, f: &mut dyn FnMut(&mut WeightId)) {
    match op {
        Op::Embed { table, .. } | Op::EmbedPosition { table, .. } => f(table),
        Op::Norm { weight, bias, .. } => weight.iter_mut().chain(bias).for_each(f),
        Op::MatMul { weight, bias, .. } => {
            f(weight);
            bias.iter_mut().for_each(f);
        }
        Op::GroupedMatMul { weight, .. } => f(weight),
        Op::Pool { ape, .. } => f(ape),
        Op::Attend { sinks, .. } => sinks.iter_mut().for_each(f),
        Op::Route { bias, table, .. } => bias.iter_mut().chain(table).for_each(f),
        Op::ExpertMatMul { weights, .. } => weights.iter_mut().for_each(f),
        Op::HcMix {
            matrix, base, scale, ..
        } => [matrix, base, scale].into_iter().for_each(f),
        Op::Rope { .. }
        | Op::CacheWrite { .. }
        | Op::Hadamard { .. }
        | Op::RoundTrip { .. }
        | Op::IndexScore { .. }
        | Op::SelectTopK { .. }
        | Op::ZeroHeads { .. }
        | Op::Slice { .. }
        | Op::Add { .. }
        | Op::Glu { .. }
        | Op::Activate { .. }
        | Op::TopP { .. }
        | Op::ExpertSum { .. }
        | Op::HcCollapse { .. }
        | Op::HcExpand { .. }
        | Op::TakeOutput { .. }
        | Op::Probe { .. }
        | Op::Sample { .. } => {}
    }
}

/// Lowering context of one block.
pub struct Lower<'a> {
    tables: &'a mut Tables,
    recipe: &'a Recipe,
    registry: &'a Registry,
    weights: &'a WeightStore,
    layer: Option<u32>,
    block: Block,
    ops: Vec<BaseOp>,
}

impl<'a> Lower<'a> {
    pub(super) fn new(
        tables: &'a mut Tables,
        recipe: &'a Recipe,
        registry: &'a Registry,
        weights: &'a WeightStore,
        layer: Option<u32>,
        block: Block,
    ) -> Self {
        Self {
            tables,
            recipe,
            registry,
            weights,
            layer,
            block,
            ops: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<BaseOp> {
        self.ops
    }

    /// A buffer of this name and shape. Blocks that ask for the same name share it: layers run one after another.
    pub fn buffer(&mut self, name: &str, rows: Dim, width: Dim, elem: ElemType) -> BufId {
        // The same name with another shape is another buffer, told apart by a `#n` suffix.
        let stem = |b: &BufferDesc| b.name == name || b.name.split_once('#').is_some_and(|(s, _)| s == name);
        let same = |b: &BufferDesc| stem(b) && b.rows == rows && b.width == width && b.elem == elem;
        if let Some(i) = self.tables.buffers.iter().position(same) {
            return BufId(i as u32);
        }
        let others = self.tables.buffers.iter().filter(|b| stem(b)).count();
        let name = if others == 0 {
            name.to_string()
        } else {
            format!("{name}#{others}")
        };
        self.tables.buffers.push(BufferDesc {
            name,
            rows,
            width,
            elem,
        });
        BufId(self.tables.buffers.len() as u32 - 1)
    }

    /// f32 buffer with one row per token.
    pub fn tokens(&mut self, name: &str, width: usize) -> BufId {
        self.buffer(name, Dim::Tokens, Dim::Const(width), ElemType::F32)
    }

    /// f32 buffer with one row per closed compressed row; the name carries the rate.
    pub fn closed(&mut self, name: &str, rate: usize, width: usize) -> BufId {
        self.buffer(
            &format!("{name}.r{rate}"),
            Dim::Closed(rate),
            Dim::Const(width),
            ElemType::F32,
        )
    }

    /// The residual stream(s), probed after every layer.
    pub fn residual(&mut self, width: usize) -> BufId {
        let id = self.tokens("residual", width);
        self.tables.residual = id;
        id
    }

    /// The logits.
    pub fn logits(&mut self, vocab: usize) -> BufId {
        let id = self.buffer("logits", Dim::Output, Dim::Const(vocab), ElemType::F32);
        self.tables.logits = id;
        id
    }

    /// A rotary table (equal ones are shared).
    pub fn rope(&mut self, freqs: &[f64]) -> RopeId {
        if let Some(i) = self.tables.ropes.iter().position(|r| r.freqs == freqs) {
            return RopeId(i as u32);
        }
        self.tables.ropes.push(RopeTable { freqs: freqs.to_vec() });
        RopeId(self.tables.ropes.len() as u32 - 1)
    }

    /// This layer's cache component.
    pub fn cache(&self, component: Component) -> Option<CacheId> {
        let layer = self.layer?;
        let at = self
            .tables
            .caches
            .iter()
            .position(|c| c.layer == layer && c.component == component)?;
        Some(CacheId(at as u32))
    }

    /// The description of a cache component.
    pub fn cache_desc(&self, id: CacheId) -> &CacheDesc {
        &self.tables.caches[id.index()]
    }

    /// Inputs of a weight.
    pub fn cols(&self, id: WeightId) -> usize {
        self.weights.desc(id).cols
    }

    /// Outputs of a weight.
    pub fn rows(&self, id: WeightId) -> usize {
        self.weights.desc(id).rows
    }

    /// Appends an op.
    pub fn push(&mut self, name: &str, op: Op) {
        let op = self.restored(op);
        self.ops.push(BaseOp {
            op,
            name: name.to_string(),
            layer: self.layer,
            block: self.block,
        });
    }

    /// Appends `out = x W^T + bias` into a fresh token buffer named `name`.
    pub fn matmul(&mut self, name: &str, x: BufId, weight: WeightId, bias: Option<WeightId>) -> BufId {
        let out = self.tokens(name, self.rows(weight));
        self.push(name, Op::MatMul { x, weight, bias, out });
        out
    }

    /// Appends the choice of the hidden units that stay, in runs of `group`; nothing if all do.
    pub fn top_p(&mut self, name: &str, x: BufId, group: usize, p: f32) {
        if p < 1.0 {
            self.push(name, Op::TopP { x, group, p });
        }
    }

    /// Appends `x` = 0 in the named heads of `head_dim` values; nothing if there are none.
    pub fn zero_heads(&mut self, name: &str, x: BufId, head_dim: usize, heads: &[u32]) {
        if heads.is_empty() {
            return;
        }
        let heads = heads.to_vec();
        self.push(name, Op::ZeroHeads { x, head_dim, heads });
    }

    /// The layer's recipe.
    pub fn layer_recipe(&self) -> Option<&LayerRecipe> {
        self.recipe.layers.get(self.layer? as usize)
    }

    /// What the chosen attention variant makes of the checkpoint's own attention.
    pub fn attend_spec(&self, facts: &LayerFacts) -> AttendSpec {
        let mut spec = AttendSpec {
            mask: kernels::ir::Mask::None,
            select: facts.index_topk > 0,
            index_topk: facts.index_topk,
            score: None,
            zero: Vec::new(),
            mean: Vec::new(),
        };
        if let Some(layer) = self.layer_recipe()
            && let Some(v) = self.registry.get(Slot::Attention, &layer.attention.variant)
        {
            v.attention(facts, &layer.attention.options, &mut spec);
        }
        spec
    }

    /// What the chosen feed-forward variant makes of the checkpoint's own block.
    pub fn ffn_spec(&self, facts: &LayerFacts) -> FfnSpec {
        let own = Choice::plain("own");
        let choice = self.layer_recipe().map_or(&own, |l| &l.ffn);
        self.registry.ffn_spec(facts, choice)
    }

    /// The checkpoint this block's weights come from, if not from the loaded one.
    fn donor(&self) -> Option<String> {
        let layer = self.layer_recipe()?;
        match self.block {
            Block::Attention => self.registry.donor(Slot::Attention, &layer.attention),
            Block::Ffn => self.registry.donor(Slot::Ffn, &layer.ffn),
            Block::Embedding | Block::Head | Block::Sampler => None,
        }
    }

    /// An op with its matrices stored as the recipe asks. Matrices that no slot covers (routers, mHC) have no other
    /// form and stay.
    fn restored(&self, mut op: Op) -> Op {
        if let Some(donor) = self.donor() {
            weights_mut(&mut op, &mut |id| *id = self.weights.graft(&donor, *id).unwrap_or(*id));
            return op;
        }
        let slot = match self.block {
            Block::Embedding => Slot::Embedding,
            Block::Attention => Slot::AttentionWeights,
            Block::Ffn => Slot::FfnWeights,
            Block::Head => Slot::LmHead,
            Block::Sampler => return op,
        };
        let storages = self.recipe.weights.storages(self.registry);
        let wanted = storages.into_iter().find(|(s, _)| *s == slot);
        let Some((_, storage)) = wanted.filter(|(_, w)| *w != WeightStorage::Own) else {
            return op;
        };
        let place = |id: &mut WeightId| *id = self.weights.variant(*id, storage).unwrap_or(*id);
        match &mut op {
            Op::Embed { table, .. } => place(table),
            Op::MatMul { weight, .. } | Op::GroupedMatMul { weight, .. } => place(weight),
            Op::ExpertMatMul { weights, .. } => weights.iter_mut().for_each(place),
            _ => {}
        }
        op
    }
}

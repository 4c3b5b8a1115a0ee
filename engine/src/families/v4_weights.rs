//! Tensor names of `deepseek_v4` in its three name spaces (MODEL1.md 6.2) and their placement.

use kernels::ir::WeightId;

use super::Loader;
use super::v4_config::V4Config;
use crate::error::EngineError;
use crate::recipe::AttentionKind;

/// Coefficients of one mHC site.
pub(super) struct Hc {
    pub matrix: WeightId,
    pub base: WeightId,
    pub scale: WeightId,
}

/// One compressor: of the attention rows or of the indexer.
pub(super) struct Compressor {
    pub kv: WeightId,
    pub gate: WeightId,
    pub ape: WeightId,
    pub norm: WeightId,
}

pub(super) struct Indexer {
    pub q: WeightId,
    pub weights: WeightId,
    pub compressor: Compressor,
}

pub(super) struct Experts {
    pub w1: Vec<WeightId>,
    pub w3: Vec<WeightId>,
    pub w2: Vec<WeightId>,
}

pub(super) struct Layer {
    pub hc_attn: Hc,
    pub attn_norm: WeightId,
    pub q_a: WeightId,
    pub q_norm: WeightId,
    pub q_b: WeightId,
    pub kv: WeightId,
    pub kv_norm: WeightId,
    pub sinks: WeightId,
    pub o_a: WeightId,
    pub o_b: WeightId,
    pub compressor: Option<Compressor>,
    pub indexer: Option<Indexer>,
    pub hc_ffn: Hc,
    pub ffn_norm: WeightId,
    pub router: WeightId,
    pub bias: Option<WeightId>,
    pub table: Option<WeightId>,
    pub experts: Experts,
    pub shared: Option<[WeightId; 3]>,
}

pub(super) struct Weights {
    pub embed: WeightId,
    pub hc_head: Hc,
    pub norm: WeightId,
    pub head: WeightId,
    pub layers: Vec<Layer>,
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_string()).collect()
}

/// `layers.L.<original>`, `model.layers.L.<original>` (hybrid, with its own spellings), `model.layers.L.<hf>`.
struct Names(usize);

impl Names {
    fn of(&self, original: &str, hf: &str) -> Vec<String> {
        let l = self.0;
        vec![
            format!("layers.{l}.{original}"),
            format!("model.layers.{l}.{original}"),
            format!("model.layers.{l}.{hf}"),
        ]
    }
}

impl Weights {
    pub fn load(c: &V4Config, l: &mut Loader<'_>) -> Result<Self, EngineError> {
        let (d, n) = (c.hidden, c.streams);
        let hc = |part: &str| names(&[&format!("hc_head_{part}"), &format!("model.hc_head.hc_{part}")]);
        let mut layers = Vec::new();
        let embed = l.matrix(&names(&["embed.weight", "model.embed_tokens.weight"]), c.vocab, d)?;
        for i in 0..c.kinds.len() {
            layers.push(Layer::load(c, l, i)?);
        }
        Ok(Self {
            embed,
            hc_head: Hc {
                matrix: l.matrix(&hc("fn"), n, n * d)?,
                base: l.vector(&hc("base"), n)?,
                scale: l.vector(&hc("scale"), 1)?,
            },
            norm: l.vector(&names(&["norm.weight", "model.norm.weight"]), d)?,
            head: l.matrix(&names(&["head.weight", "lm_head.weight"]), c.vocab, d)?,
            layers,
        })
    }
}

fn load_hc(l: &mut Loader<'_>, n: &Names, site: &str, c: &V4Config) -> Result<Hc, EngineError> {
    let (s, d) = (c.streams, c.hidden);
    let of = |part: &str| n.of(&format!("hc_{site}_{part}"), &format!("{site}_hc.{part}"));
    Ok(Hc {
        matrix: l.matrix(&of("fn"), (2 + s) * s, s * d)?,
        base: l.vector(&of("base"), (2 + s) * s)?,
        scale: l.vector(&of("scale"), 3)?,
    })
}

fn load_compressor(
    l: &mut Loader<'_>,
    n: &Names,
    original: &str,
    hf: &str,
    (d, c, rate, width): (usize, usize, usize, usize),
) -> Result<Compressor, EngineError> {
    let of = |a: &str, b: &str| n.of(&format!("{original}.{a}"), &format!("{hf}.{b}"));
    Ok(Compressor {
        kv: l.matrix(&of("wkv.weight", "kv_proj.weight"), c, d)?,
        gate: l.matrix(&of("wgate.weight", "gate_proj.weight"), c, d)?,
        ape: l.matrix(&of("ape", "position_bias"), rate, c)?,
        norm: l.vector(&of("norm.weight", "kv_norm.weight"), width)?,
    })
}

impl Layer {
    /// Matrices of the attention block: projections, compressors, indexer.
    pub fn attention_matrices(&self) -> Vec<WeightId> {
        let mut out = vec![self.q_a, self.q_b, self.kv, self.o_a, self.o_b];
        let compressors = [self.compressor.as_ref(), self.indexer.as_ref().map(|i| &i.compressor)];
        out.extend(compressors.into_iter().flatten().flat_map(|c| [c.kv, c.gate]));
        out.extend(self.indexer.iter().flat_map(|i| [i.q, i.weights]));
        out
    }

    /// Matrices of the feed-forward block: the experts'. The router keeps its own.
    pub fn ffn_matrices(&self) -> Vec<WeightId> {
        let e = &self.experts;
        let routed = e.w1.iter().chain(&e.w3).chain(&e.w2);
        routed.copied().chain(self.shared.into_iter().flatten()).collect()
    }

    fn load(c: &V4Config, l: &mut Loader<'_>, i: usize) -> Result<Self, EngineError> {
        let n = Names(i);
        let (d, h, w) = (c.hidden, c.heads, c.head_dim);
        let attn = |a: &str, b: &str| n.of(&format!("attn.{a}"), &format!("self_attn.{b}"));
        let mut kv_norm = attn("kv_norm.weight", "kv_norm.weight");
        // The hybrid name space calls it attn.norm.
        kv_norm.push(format!("model.layers.{i}.attn.norm.weight"));
        let compressor = match c.kinds[i] {
            AttentionKind::Csa => Some((2 * w, c.csa_rate)),
            AttentionKind::Hca => Some((w, c.hca_rate)),
            _ => None,
        };
        let compressor = compressor
            .map(|(ch, r)| load_compressor(l, &n, "attn.compressor", "self_attn.compressor", (d, ch, r, w)))
            .transpose()?;
        let indexer = if c.kinds[i] == AttentionKind::Csa {
            let of = |a: &str, b: &str| attn(&format!("indexer.{a}"), &format!("compressor.indexer.{b}"));
            let dims = (d, 2 * c.index_dim, c.csa_rate, c.index_dim);
            Some(Indexer {
                q: l.matrix(
                    &of("wq_b.weight", "q_b_proj.weight"),
                    c.index_heads * c.index_dim,
                    c.q_lora,
                )?,
                weights: l.matrix(
                    &of("weights_proj.weight", "scorer.weights_proj.weight"),
                    c.index_heads,
                    d,
                )?,
                compressor: load_compressor(l, &n, "attn.indexer.compressor", "self_attn.compressor.indexer", dims)?,
            })
        } else {
            None
        };
        let gate = |a: &str, b: &str| n.of(&format!("ffn.gate.{a}"), &format!("mlp.gate.{b}"));
        let (bias, table) = if c.hash[i] {
            (
                None,
                Some(l.integers(&gate("tid2eid", "tid2eid"), c.vocab, c.experts_per_token)?),
            )
        } else {
            (
                Some(l.vector(&gate("bias", "e_score_correction_bias"), c.experts)?),
                None,
            )
        };
        Ok(Self {
            hc_attn: load_hc(l, &n, "attn", c)?,
            attn_norm: l.vector(&n.of("attn_norm.weight", "input_layernorm.weight"), d)?,
            q_a: l.matrix(&attn("wq_a.weight", "q_a_proj.weight"), c.q_lora, d)?,
            q_norm: l.vector(&attn("q_norm.weight", "q_a_norm.weight"), c.q_lora)?,
            q_b: l.matrix(&attn("wq_b.weight", "q_b_proj.weight"), h * w, c.q_lora)?,
            kv: l.matrix(&attn("wkv.weight", "kv_proj.weight"), w, d)?,
            kv_norm: l.vector(&kv_norm, w)?,
            sinks: l.vector(&attn("attn_sink", "sinks"), h)?,
            o_a: l.matrix(
                &attn("wo_a.weight", "o_a_proj.weight"),
                c.o_groups * c.o_lora,
                h * w / c.o_groups,
            )?,
            o_b: l.matrix(&attn("wo_b.weight", "o_b_proj.weight"), d, c.o_groups * c.o_lora)?,
            compressor,
            indexer,
            hc_ffn: load_hc(l, &n, "ffn", c)?,
            ffn_norm: l.vector(&n.of("ffn_norm.weight", "post_attention_layernorm.weight"), d)?,
            router: l.matrix(&gate("weight", "weight"), c.experts, d)?,
            bias,
            table,
            experts: load_experts(c, l, i)?,
            shared: load_shared(c, l, &n)?,
        })
    }
}

fn load_experts(c: &V4Config, l: &mut Loader<'_>, i: usize) -> Result<Experts, EngineError> {
    let (d, f) = (c.hidden, c.expert_width);
    let n = Names(i);
    let mut experts = Experts {
        w1: Vec::new(),
        w3: Vec::new(),
        w2: Vec::new(),
    };
    let stacked = format!("model.layers.{i}.mlp.experts.gate_up_proj");
    if l.find(std::slice::from_ref(&stacked)).is_some() {
        let down = format!("model.layers.{i}.mlp.experts.down_proj");
        for e in 0..c.experts {
            experts.w1.push(l.stacked(&stacked, [c.experts, 2 * f, d], e, 0, f)?);
            experts.w3.push(l.stacked(&stacked, [c.experts, 2 * f, d], e, f, f)?);
            experts.w2.push(l.stacked(&down, [c.experts, d, f], e, 0, d)?);
        }
        return Ok(experts);
    }
    for e in 0..c.experts {
        let of = |w: &str, hf: &str| {
            n.of(
                &format!("ffn.experts.{e}.{w}.weight"),
                &format!("mlp.experts.{e}.{hf}.weight"),
            )
        };
        experts.w1.push(l.matrix(&of("w1", "gate_proj"), f, d)?);
        experts.w3.push(l.matrix(&of("w3", "up_proj"), f, d)?);
        experts.w2.push(l.matrix(&of("w2", "down_proj"), d, f)?);
    }
    Ok(experts)
}

/// [gate, up, down] of the shared experts, side by side when there are several.
fn load_shared(c: &V4Config, l: &mut Loader<'_>, n: &Names) -> Result<Option<[WeightId; 3]>, EngineError> {
    if c.shared_experts == 0 {
        return Ok(None);
    }
    let (d, f) = (c.hidden, c.expert_width * c.shared_experts);
    let of = |w: &str, hf: &str| {
        n.of(
            &format!("ffn.shared_experts.{w}.weight"),
            &format!("mlp.shared_experts.{hf}.weight"),
        )
    };
    Ok(Some([
        l.matrix(&of("w1", "gate_proj"), f, d)?,
        l.matrix(&of("w3", "up_proj"), f, d)?,
        l.matrix(&of("w2", "down_proj"), d, f)?,
    ]))
}

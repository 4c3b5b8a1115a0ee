//! `llama` and `qwen2`: pre-norm blocks with RMSNorm, GQA, rotary positions and SwiGLU.

use kernels::ir::{
    Activation, CacheDesc, CacheRows, Component, Dim, ElemType, KeyRows, KeySource, NormKind, Op, Positions, RopeStyle,
    WeightId,
};

use super::{Family, Loader, cache_format, rope};
use crate::error::EngineError;
use crate::lower::Lower;
use crate::model::Config;
use crate::recipe::{AttentionKind, FfnKind, LayerFacts, MatrixInputs, ModelFacts, Recipe, Registry, Slot};

struct Layer {
    attn_norm: WeightId,
    q: WeightId,
    k: WeightId,
    v: WeightId,
    o: WeightId,
    q_bias: Option<WeightId>,
    k_bias: Option<WeightId>,
    v_bias: Option<WeightId>,
    o_bias: Option<WeightId>,
    ffn_norm: WeightId,
    gate: WeightId,
    up: WeightId,
    down: WeightId,
}

/// A loaded llama or qwen2 model.
pub struct Dense {
    facts: ModelFacts,
    eps: f32,
    freqs: Vec<f64>,
    style: RopeStyle,
    embed: WeightId,
    norm: WeightId,
    head: WeightId,
    layers: Vec<Layer>,
}

const KNOWN: [&str; 47] = [
    "architectures",
    "attention_bias",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "mlp_bias",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "pad_token_id",
    "pretraining_tp",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "use_sliding_window",
    "vocab_size",
    "gguf_rope_interleaved",
    "_name_or_path",
    "use_mrope",
    "rope_interleaved",
    "is_llama_config",
    "transformers.js_config",
    "quantization_config",
    "unk_token_id",
    "name_or_path",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "torchscript",
    "is_decoder",
    "tokenizer_class",
];

impl Dense {
    /// Reads the config and places the weights.
    pub fn load(c: &Config<'_>, l: &mut Loader<'_>) -> Result<Self, EngineError> {
        for w in checkpoint::check_known_keys(&l.checkpoint().config, &KNOWN) {
            l.warn(w);
        }
        let family = if c.text("model_type") == Some("qwen2") {
            "qwen2"
        } else {
            "llama"
        };
        let hidden = c.size(&["hidden_size"])?;
        let heads = c.size(&["num_attention_heads"])?;
        let kv_heads = c.size_or(&["num_key_value_heads"], heads)?;
        let head_dim = c.size_or(&["head_dim"], hidden / heads)?;
        let inner = c.size(&["intermediate_size"])?;
        let count = c.size(&["num_hidden_layers"])?;
        let vocab = c.size(&["vocab_size"])?;
        if heads % kv_heads != 0 {
            return Err(c.error(
                "num_key_value_heads",
                &format!("a divisor of num_attention_heads = {heads}"),
            ));
        }
        if head_dim % 2 != 0 {
            return Err(c.error("head_dim", "an even number"));
        }
        if !matches!(c.text("hidden_act"), None | Some("silu" | "swish")) {
            return Err(c.error("hidden_act", "silu"));
        }
        if c.flag_or("use_sliding_window", false)? {
            return Err(c.error("use_sliding_window", "false"));
        }
        let tied = c.flag_or("tie_word_embeddings", false)?;
        let n = |s: &str| vec![s.to_string()];
        let embed = l.matrix(&n("model.embed_tokens.weight"), vocab, hidden)?;
        let norm = l.vector(&n("model.norm.weight"), hidden)?;
        let has_head = l.find(&n("lm_head.weight")).is_some();
        let head = if tied || !has_head && l.checkpoint().is_gguf() {
            embed
        } else {
            l.matrix(&n("lm_head.weight"), vocab, hidden)?
        };
        let mut layers = Vec::new();
        for i in 0..count {
            layers.push(Self::layer(l, i, hidden, heads * head_dim, kv_heads * head_dim, inner)?);
        }
        let full_precision = l.desc(layers[0].q).format == kernels::ir::Format::F32;
        let facts = |layer| LayerFacts {
            family,
            layer,
            attention: AttentionKind::Dense,
            ffn: FfnKind::SwiGlu,
            activation: Activation::Silu,
            heads,
            kv_heads,
            head_dim,
            rope_tail: 0,
            window: 0,
            rate: 0,
            index_topk: 0,
            index_dim: 0,
            experts: 0,
            experts_per_token: 0,
            hash_routed: false,
            inputs: MatrixInputs {
                attention: vec![hidden, heads * head_dim],
                ffn: vec![hidden, inner],
                hidden,
            },
        };
        Ok(Self {
            facts: ModelFacts {
                family,
                vocab,
                hidden,
                max_context: c.size_or(&["max_position_embeddings"], 4096)?,
                streams: 1,
                tied: head == embed,
                layers: (0..count).map(facts).collect(),
                quantised: false,
                full_precision,
            },
            eps: c.float_or(&["rms_norm_eps"], 1e-6)? as f32,
            freqs: rope::from_config(c, head_dim)?,
            style: if c.flag_or("gguf_rope_interleaved", false)? {
                RopeStyle::Interleaved
            } else {
                RopeStyle::Half
            },
            embed,
            norm,
            head,
            layers,
        })
    }

    fn layer(
        l: &mut Loader<'_>,
        i: usize,
        hidden: usize,
        q: usize,
        kv: usize,
        inner: usize,
    ) -> Result<Layer, EngineError> {
        let n = |s: &str| vec![format!("model.layers.{i}.{s}")];
        Ok(Layer {
            attn_norm: l.vector(&n("input_layernorm.weight"), hidden)?,
            q: l.matrix(&n("self_attn.q_proj.weight"), q, hidden)?,
            k: l.matrix(&n("self_attn.k_proj.weight"), kv, hidden)?,
            v: l.matrix(&n("self_attn.v_proj.weight"), kv, hidden)?,
            o: l.matrix(&n("self_attn.o_proj.weight"), hidden, q)?,
            q_bias: l.optional_vector(&n("self_attn.q_proj.bias"), q)?,
            k_bias: l.optional_vector(&n("self_attn.k_proj.bias"), kv)?,
            v_bias: l.optional_vector(&n("self_attn.v_proj.bias"), kv)?,
            o_bias: l.optional_vector(&n("self_attn.o_proj.bias"), hidden)?,
            ffn_norm: l.vector(&n("post_attention_layernorm.weight"), hidden)?,
            gate: l.matrix(&n("mlp.gate_proj.weight"), inner, hidden)?,
            up: l.matrix(&n("mlp.up_proj.weight"), inner, hidden)?,
            down: l.matrix(&n("mlp.down_proj.weight"), hidden, inner)?,
        })
    }
}

/// Growing key and value caches of a dense layer, one record per key head.
pub(super) fn dense_caches(facts: &ModelFacts, recipe: &Recipe, registry: &Registry) -> Vec<CacheDesc> {
    let mut caches = Vec::new();
    for f in &facts.layers {
        for component in [Component::Keys, Component::Values] {
            caches.push(CacheDesc {
                layer: f.layer as u32,
                component,
                rows: CacheRows::Growing { rate: 1 },
                records: f.kv_heads,
                width: f.head_dim,
                rope: 0,
                format: cache_format(recipe, registry, f.layer, Slot::KvCache),
            });
        }
    }
    caches
}

/// Cache write, attention and nothing else: shared by the dense families.
pub(super) fn lower_dense_attend(
    cx: &mut Lower<'_>,
    f: &LayerFacts,
    q: kernels::ir::BufId,
    k: kernels::ir::BufId,
    v: kernels::ir::BufId,
) -> kernels::ir::BufId {
    let out = cx.tokens("attn.out", f.heads * f.head_dim);
    let (Some(keys), Some(values)) = (cx.cache(Component::Keys), cx.cache(Component::Values)) else {
        return out;
    };
    cx.push(
        "k_write",
        Op::CacheWrite {
            src: k,
            cache: keys,
            rows: Positions::Tokens,
        },
    );
    cx.push(
        "v_write",
        Op::CacheWrite {
            src: v,
            cache: values,
            rows: Positions::Tokens,
        },
    );
    let spec = cx.attend_spec(f);
    let zero = spec.zero;
    cx.zero_heads("q_mean", q, f.head_dim, &spec.mean);
    cx.push(
        "attend",
        Op::Attend {
            q,
            out,
            heads: f.heads,
            kv_heads: f.kv_heads,
            head_dim: f.head_dim,
            scale: (f.head_dim as f32).powf(-0.5),
            sources: vec![KeySource {
                keys,
                values,
                rows: KeyRows::Causal,
            }],
            sinks: None,
            mask: spec.mask,
            score: spec.score,
        },
    );
    cx.zero_heads("out_zero", out, f.head_dim, &zero);
    out
}

impl Family for Dense {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn caches(&self, recipe: &Recipe, registry: &Registry, _chunk: usize) -> Vec<CacheDesc> {
        dense_caches(&self.facts, recipe, registry)
    }

    fn lower_embedding(&self, cx: &mut Lower<'_>) {
        let out = cx.residual(self.facts.hidden);
        cx.push(
            "embed",
            Op::Embed {
                table: self.embed,
                out,
                copies: 1,
            },
        );
    }

    fn lower_attention(&self, cx: &mut Lower<'_>, layer: usize) {
        let (w, f) = (&self.layers[layer], &self.facts.layers[layer]);
        let (hidden, eps) = (self.facts.hidden, self.eps);
        let residual = cx.residual(hidden);
        let x = cx.tokens("attn.x", hidden);
        let norm = Op::Norm {
            kind: NormKind::Rms,
            x: residual,
            weight: Some(w.attn_norm),
            bias: None,
            out: x,
            group: hidden,
            eps,
        };
        cx.push("attn_norm", norm);
        let q = cx.matmul("attn.q", x, w.q, w.q_bias);
        let k = cx.matmul("attn.k", x, w.k, w.k_bias);
        let v = cx.matmul("attn.v", x, w.v, w.v_bias);
        let table = cx.rope(&self.freqs);
        for (name, buf, heads) in [("q_rope", q, f.heads), ("k_rope", k, f.kv_heads)] {
            let rope = Op::Rope {
                x: buf,
                heads,
                head_dim: f.head_dim,
                offset: 0,
                dims: f.head_dim,
                style: self.style,
                table,
                positions: Positions::Tokens,
                inverse: false,
            };
            cx.push(name, rope);
        }
        let attended = lower_dense_attend(cx, f, q, k, v);
        let o = cx.matmul("attn.o", attended, w.o, w.o_bias);
        cx.push(
            "attn_add",
            Op::Add {
                x: residual,
                y: o,
                out: residual,
            },
        );
    }

    fn lower_ffn(&self, cx: &mut Lower<'_>, layer: usize) {
        let (w, f) = (&self.layers[layer], &self.facts.layers[layer]);
        let (hidden, eps) = (self.facts.hidden, self.eps);
        let residual = cx.residual(hidden);
        let x = cx.tokens("ffn.x", hidden);
        let norm = Op::Norm {
            kind: NormKind::Rms,
            x: residual,
            weight: Some(w.ffn_norm),
            bias: None,
            out: x,
            group: hidden,
            eps,
        };
        cx.push("ffn_norm", norm);
        let gate = cx.matmul("ffn.gate", x, w.gate, None);
        let up = cx.matmul("ffn.up", x, w.up, None);
        let spec = cx.ffn_spec(f);
        let glu = Op::Glu {
            gate,
            up,
            out: gate,
            activation: spec.activation,
            limit: None,
            row_weights: None,
        };
        cx.push("ffn_glu", glu);
        cx.top_p("ffn_top_p", gate, cx.rows(w.gate), spec.top_p);
        let down = cx.matmul("ffn.down", gate, w.down, None);
        cx.push(
            "ffn_add",
            Op::Add {
                x: residual,
                y: down,
                out: residual,
            },
        );
    }

    fn lower_head(&self, cx: &mut Lower<'_>) {
        let hidden = self.facts.hidden;
        let residual = cx.residual(hidden);
        let last = cx.buffer("head.x", Dim::Output, Dim::Const(hidden), ElemType::F32);
        cx.push("take_output", Op::TakeOutput { x: residual, out: last });
        let norm = Op::Norm {
            kind: NormKind::Rms,
            x: last,
            weight: Some(self.norm),
            bias: None,
            out: last,
            group: hidden,
            eps: self.eps,
        };
        cx.push("final_norm", norm);
        let out = cx.logits(self.facts.vocab);
        cx.push(
            "lm_head",
            Op::MatMul {
                x: last,
                weight: self.head,
                bias: None,
                out,
            },
        );
    }

    fn matrices(&self, slot: Slot) -> Vec<WeightId> {
        match slot {
            Slot::AttentionWeights => self.layers.iter().flat_map(|l| [l.q, l.k, l.v, l.o]).collect(),
            Slot::FfnWeights => self.layers.iter().flat_map(|l| [l.gate, l.up, l.down]).collect(),
            Slot::Embedding => vec![self.embed],
            Slot::LmHead => vec![self.head],
            Slot::Attention | Slot::Ffn | Slot::KvCache | Slot::IndexCache => Vec::new(),
        }
    }
}

//! `gpt2`, and GPT-3's shape: LayerNorm, learned positions, fused q|k|v, GELU MLP, tied output.

use kernels::ir::{Activation, BufId, CacheDesc, Dim, ElemType, Format, NormKind, Op, WeightId};

use super::dense::{dense_caches, lower_dense_attend};
use super::{Family, Loader};
use crate::error::EngineError;
use crate::lower::Lower;
use crate::model::Config;
use crate::recipe::{AttentionKind, FfnKind, LayerFacts, MatrixInputs, ModelFacts, Recipe, Registry, Slot};

struct Norm {
    weight: WeightId,
    bias: WeightId,
}

struct Layer {
    norm_1: Norm,
    /// q, k, v as column ranges of one stored matrix would need strided reads: kept as one product.
    qkv: WeightId,
    qkv_bias: WeightId,
    proj: WeightId,
    proj_bias: WeightId,
    norm_2: Norm,
    fc: WeightId,
    fc_bias: WeightId,
    out: WeightId,
    out_bias: WeightId,
}

/// A loaded GPT-2.
pub struct Gpt2 {
    facts: ModelFacts,
    eps: f32,
    wte: WeightId,
    wpe: WeightId,
    norm: Norm,
    layers: Vec<Layer>,
}

impl Gpt2 {
    /// Reads the config and places the weights.
    pub fn load(c: &Config<'_>, l: &mut Loader<'_>) -> Result<Self, EngineError> {
        let hidden = c.size(&["n_embd", "hidden_size"])?;
        let heads = c.size(&["n_head", "num_attention_heads"])?;
        let count = c.size(&["n_layer", "num_hidden_layers"])?;
        let vocab = c.size(&["vocab_size"])?;
        let context = c.size(&["n_positions", "n_ctx", "max_position_embeddings"])?;
        let inner = c.size_or(&["n_inner"], 4 * hidden)?;
        if hidden % heads != 0 {
            return Err(c.error("n_head", &format!("a divisor of n_embd = {hidden}")));
        }
        let activation = match c.text("activation_function") {
            None | Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Activation::GeluTanh,
            Some("gelu") => Activation::Gelu,
            Some("relu") => Activation::Relu,
            Some(_) => return Err(c.error("activation_function", "gelu_new, gelu, relu")),
        };
        if !c.flag_or("scale_attn_weights", true)? || c.flag_or("scale_attn_by_inverse_layer_idx", false)? {
            return Err(c.error("scale_attn_weights", "true, with scale_attn_by_inverse_layer_idx false"));
        }
        let top = |s: &str| vec![format!("transformer.{s}"), s.to_string()];
        let wte = l.matrix(&top("wte.weight"), vocab, hidden)?;
        let wpe = l.matrix(&top("wpe.weight"), context, hidden)?;
        let norm = Norm {
            weight: l.vector(&top("ln_f.weight"), hidden)?,
            bias: l.vector(&top("ln_f.bias"), hidden)?,
        };
        let mut layers = Vec::new();
        for i in 0..count {
            layers.push(Self::layer(l, i, hidden, inner)?);
            // Causal-mask buffers in the original repository.
            for prefix in ["transformer.", ""] {
                l.recognise(&format!("{prefix}h.{i}.attn.bias"));
                l.recognise(&format!("{prefix}h.{i}.attn.masked_bias"));
            }
        }
        l.recognise("lm_head.weight");
        let full_precision = l.desc(wte).format == Format::F32;
        let facts = |layer| LayerFacts {
            family: "gpt2",
            layer,
            attention: AttentionKind::Dense,
            ffn: FfnKind::GeluMlp,
            activation,
            heads,
            kv_heads: heads,
            head_dim: hidden / heads,
            rope_tail: 0,
            window: 0,
            rate: 0,
            index_topk: 0,
            index_dim: 0,
            experts: 0,
            experts_per_token: 0,
            hash_routed: false,
            inputs: MatrixInputs {
                attention: vec![hidden],
                ffn: vec![hidden, inner],
                hidden,
            },
        };
        Ok(Self {
            facts: ModelFacts {
                family: "gpt2",
                vocab,
                hidden,
                max_context: context,
                streams: 1,
                tied: true,
                layers: (0..count).map(facts).collect(),
                quantised: false,
                full_precision,
            },
            eps: c.float_or(&["layer_norm_epsilon"], 1e-5)? as f32,
            wte,
            wpe,
            norm,
            layers,
        })
    }

    fn layer(l: &mut Loader<'_>, i: usize, d: usize, inner: usize) -> Result<Layer, EngineError> {
        let n = |s: &str| vec![format!("transformer.h.{i}.{s}"), format!("h.{i}.{s}")];
        Ok(Layer {
            norm_1: Norm {
                weight: l.vector(&n("ln_1.weight"), d)?,
                bias: l.vector(&n("ln_1.bias"), d)?,
            },
            qkv: l.conv1d(&n("attn.c_attn.weight"), d, 3 * d)?,
            qkv_bias: l.vector(&n("attn.c_attn.bias"), 3 * d)?,
            proj: l.conv1d(&n("attn.c_proj.weight"), d, d)?,
            proj_bias: l.vector(&n("attn.c_proj.bias"), d)?,
            norm_2: Norm {
                weight: l.vector(&n("ln_2.weight"), d)?,
                bias: l.vector(&n("ln_2.bias"), d)?,
            },
            fc: l.conv1d(&n("mlp.c_fc.weight"), d, inner)?,
            fc_bias: l.vector(&n("mlp.c_fc.bias"), inner)?,
            out: l.conv1d(&n("mlp.c_proj.weight"), inner, d)?,
            out_bias: l.vector(&n("mlp.c_proj.bias"), d)?,
        })
    }

    fn push_norm(&self, cx: &mut Lower<'_>, name: &str, x: BufId, n: &Norm, out: BufId) {
        let op = Op::Norm {
            kind: NormKind::Layer,
            x,
            weight: Some(n.weight),
            bias: Some(n.bias),
            out,
            group: self.facts.hidden,
            eps: self.eps,
        };
        cx.push(name, op);
    }
}

impl Family for Gpt2 {
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
                table: self.wte,
                out,
                copies: 1,
            },
        );
        cx.push(
            "positions",
            Op::EmbedPosition {
                table: self.wpe,
                x: out,
            },
        );
    }

    fn lower_attention(&self, cx: &mut Lower<'_>, layer: usize) {
        let (w, f, d) = (&self.layers[layer], &self.facts.layers[layer], self.facts.hidden);
        let residual = cx.residual(d);
        let x = cx.tokens("attn.x", d);
        self.push_norm(cx, "ln_1", residual, &w.norm_1, x);
        let qkv = cx.matmul("attn.qkv", x, w.qkv, Some(w.qkv_bias));
        let parts = ["attn.q", "attn.k", "attn.v"].map(|name| cx.tokens(name, d));
        for (i, (&out, name)) in parts.iter().zip(["q_split", "k_split", "v_split"]).enumerate() {
            cx.push(
                name,
                Op::Slice {
                    x: qkv,
                    offset: i * d,
                    out,
                },
            );
        }
        let attended = lower_dense_attend(cx, f, parts[0], parts[1], parts[2]);
        let o = cx.matmul("attn.o", attended, w.proj, Some(w.proj_bias));
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
        let (w, f, d) = (&self.layers[layer], &self.facts.layers[layer], self.facts.hidden);
        let residual = cx.residual(d);
        let x = cx.tokens("ffn.x", d);
        self.push_norm(cx, "ln_2", residual, &w.norm_2, x);
        let inner = cx.matmul("ffn.fc", x, w.fc, Some(w.fc_bias));
        let spec = cx.ffn_spec(f);
        cx.push(
            "ffn_act",
            Op::Activate {
                x: inner,
                activation: spec.activation,
            },
        );
        cx.top_p("ffn_top_p", inner, cx.rows(w.fc), spec.top_p);
        let out = cx.matmul("ffn.out", inner, w.out, Some(w.out_bias));
        cx.push(
            "ffn_add",
            Op::Add {
                x: residual,
                y: out,
                out: residual,
            },
        );
    }

    fn lower_head(&self, cx: &mut Lower<'_>) {
        let d = self.facts.hidden;
        let residual = cx.residual(d);
        let last = cx.buffer("head.x", Dim::Output, Dim::Const(d), ElemType::F32);
        cx.push("take_output", Op::TakeOutput { x: residual, out: last });
        self.push_norm(cx, "ln_f", last, &self.norm, last);
        let out = cx.logits(self.facts.vocab);
        cx.push(
            "lm_head",
            Op::MatMul {
                x: last,
                weight: self.wte,
                bias: None,
                out,
            },
        );
    }

    fn matrices(&self, slot: Slot) -> Vec<WeightId> {
        match slot {
            Slot::AttentionWeights => self.layers.iter().flat_map(|l| [l.qkv, l.proj]).collect(),
            Slot::FfnWeights => self.layers.iter().flat_map(|l| [l.fc, l.out]).collect(),
            Slot::Embedding => vec![self.wte],
            Slot::LmHead => vec![self.wte],
            Slot::Attention | Slot::Ffn | Slot::KvCache | Slot::IndexCache => Vec::new(),
        }
    }
}

//! `deepseek_v4` (MODEL1): sliding, CSA and HCA layers, hash- and score-routed experts, mHC. Formulas: MODEL1.md 1-4.

use kernels::ir::{
    Activation, BufId, CacheDesc, CacheFormat, CacheRows, Component, Dim, ElemType, KeyRows, KeySource, NormKind, Op,
    Positions, RopeId, RopeStyle, Scoring, WeightId,
};

use super::v4_config::V4Config;
use super::v4_weights::{Compressor, Hc, Indexer, Layer, Weights};
use super::{Family, Loader, cache_format};
use crate::error::EngineError;
use crate::lower::Lower;
use crate::model::Config;
use crate::recipe::{AttendSpec, AttentionKind, FfnKind, LayerFacts, MatrixInputs, ModelFacts, Recipe, Registry, Slot};

/// A loaded MODEL1.
pub struct DeepseekV4 {
    facts: ModelFacts,
    c: V4Config,
    w: Weights,
}

impl DeepseekV4 {
    /// Reads the config and places the weights.
    pub fn load(config: &Config<'_>, l: &mut Loader<'_>) -> Result<Self, EngineError> {
        let c = V4Config::parse(config)?;
        let w = Weights::load(&c, l)?;
        let mtp = l.recognise("mtp.") + l.recognise("model.mtp.");
        if mtp > 0 {
            l.warn(format!(
                "{mtp} tensors of {} multi-token-prediction module(s) recognised; not used yet (no speculative decoding)",
                c.mtp.max(1)
            ));
        }
        let full_precision = l.desc(w.layers[0].q_b).format == kernels::ir::Format::F32;
        let quantised = l.desc(w.layers[0].q_b).scales.is_some();
        let layers = (0..c.kinds.len())
            .map(|layer| LayerFacts {
                family: "deepseek_v4",
                layer,
                attention: c.kinds[layer],
                ffn: FfnKind::Moe,
                activation: Activation::Silu,
                heads: c.heads,
                kv_heads: 1,
                head_dim: c.head_dim,
                rope_tail: c.rope_dim,
                window: c.window,
                rate: c.rate(layer),
                index_topk: if c.kinds[layer] == AttentionKind::Csa {
                    c.index_topk
                } else {
                    0
                },
                index_dim: c.index_dim,
                experts: c.experts,
                experts_per_token: c.experts_per_token,
                hash_routed: c.hash[layer],
                inputs: MatrixInputs {
                    attention: vec![
                        c.hidden,
                        c.q_lora,
                        c.heads * c.head_dim / c.o_groups,
                        c.o_groups * c.o_lora,
                    ],
                    ffn: vec![c.hidden, c.expert_width],
                    hidden: c.hidden,
                },
            })
            .collect();
        let facts = ModelFacts {
            family: "deepseek_v4",
            vocab: c.vocab,
            hidden: c.hidden,
            max_context: c.max_context,
            streams: c.streams,
            tied: false,
            layers,
            quantised,
            full_precision,
        };
        Ok(Self { facts, c, w })
    }

    fn norm(&self, cx: &mut Lower<'_>, name: &str, x: BufId, weight: Option<WeightId>, group: usize, out: BufId) {
        let op = Op::Norm {
            kind: NormKind::Rms,
            x,
            weight,
            bias: None,
            out,
            group,
            eps: self.c.eps,
        };
        cx.push(name, op);
    }

    /// mHC at the entrance of a sublayer: coefficients, collapse, norm. Returns (x, post, comb).
    fn enter(&self, cx: &mut Lower<'_>, prefix: &str, hc: &Hc, norm: WeightId) -> (BufId, BufId, BufId) {
        let (n, d) = (self.c.streams, self.c.hidden);
        let residual = cx.residual(n * d);
        let pre = cx.tokens("hc.pre", n);
        let post = cx.tokens("hc.post", n);
        let comb = cx.tokens("hc.comb", n * n);
        let op = Op::HcMix {
            x: residual,
            matrix: hc.matrix,
            base: hc.base,
            scale: hc.scale,
            pre,
            post: Some(post),
            comb: Some(comb),
            streams: n,
            iterations: self.c.sinkhorn,
            eps: self.c.hc_eps,
            norm_eps: self.c.eps,
        };
        cx.push(&format!("{prefix}_hc_mix"), op);
        let x = cx.tokens(&format!("{prefix}.x"), d);
        cx.push(
            &format!("{prefix}_hc_collapse"),
            Op::HcCollapse {
                x: residual,
                pre,
                streams: n,
                out: x,
            },
        );
        self.norm(cx, &format!("{prefix}_norm"), x, Some(norm), d, x);
        (x, post, comb)
    }

    fn leave(&self, cx: &mut Lower<'_>, prefix: &str, o: BufId, post: BufId, comb: BufId) {
        let residual = cx.residual(self.c.streams * self.c.hidden);
        let op = Op::HcExpand {
            o,
            x: residual,
            post,
            comb,
            streams: self.c.streams,
        };
        cx.push(&format!("{prefix}_hc_expand"), op);
    }

    /// Rotation of the last rope dims of every head.
    fn rope(&self, x: BufId, heads: usize, width: usize, table: RopeId, positions: Positions, inverse: bool) -> Op {
        Op::Rope {
            x,
            heads,
            head_dim: width,
            offset: width - self.c.rope_dim,
            dims: self.c.rope_dim,
            style: RopeStyle::Interleaved,
            table,
            positions,
            inverse,
        }
    }

    /// Pools, normalises, rotates and stores the rows that close in a step.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call per compressor, each argument a different part of it"
    )]
    fn compress(
        &self,
        cx: &mut Lower<'_>,
        prefix: &str,
        w: &Compressor,
        (kv, gate): (BufId, BufId),
        (state, rows): (Component, Component),
        (rate, width, overlap): (usize, usize, bool),
        table: RopeId,
    ) {
        let (Some(state), Some(cache)) = (cx.cache(state), cx.cache(rows)) else {
            return;
        };
        let out = cx.closed(&format!("{prefix}.rows"), rate, width);
        cx.push(
            &format!("{prefix}_pool"),
            Op::Pool {
                kv,
                gate,
                ape: w.ape,
                state,
                out,
                rate,
                overlap,
            },
        );
        self.norm(cx, &format!("{prefix}_row_norm"), out, Some(w.norm), width, out);
        let closed = Positions::Closed { rate };
        cx.push(
            &format!("{prefix}_row_rope"),
            self.rope(out, 1, width, table, closed, false),
        );
        // Only the indexer turns what it stores in 4 bits, on both sides of its products.
        let stored = cx.cache_desc(cache);
        if stored.component == Component::Index && stored.format == CacheFormat::Fp4 {
            cx.push(
                &format!("{prefix}_row_hadamard"),
                Op::Hadamard {
                    x: out,
                    width,
                    rows: closed,
                },
            );
        }
        cx.push(
            &format!("{prefix}_row_write"),
            Op::CacheWrite {
                src: out,
                cache,
                rows: closed,
            },
        );
    }

    /// Indexer queries, scores and selection. Returns the selected row indices.
    fn select(
        &self,
        cx: &mut Lower<'_>,
        (q, weights): (BufId, BufId),
        spec: &AttendSpec,
        table: RopeId,
    ) -> Option<BufId> {
        let c = &self.c;
        let keys = cx.cache(Component::Index)?;
        let rate = c.csa_rate;
        cx.push(
            "index_q_rope",
            self.rope(q, c.index_heads, c.index_dim, table, Positions::Tokens, false),
        );
        if cx.cache_desc(keys).format == CacheFormat::Fp4 {
            let hadamard = Op::Hadamard {
                x: q,
                width: c.index_dim,
                rows: Positions::Tokens,
            };
            cx.push("index_q_hadamard", hadamard);
            let round = Op::RoundTrip {
                x: q,
                width: c.index_dim,
                format: CacheFormat::Fp4,
            };
            cx.push("index_q_round", round);
        }
        let k = spec.index_topk;
        let scores = cx.buffer("index.scores", Dim::Tokens, Dim::ContextRows(rate), ElemType::F32);
        let score = Op::IndexScore {
            q,
            weights,
            keys,
            heads: c.index_heads,
            dim: c.index_dim,
            rate,
            scale: (c.index_heads as f32).powf(-0.5) * (c.index_dim as f32).powf(-0.5),
            skip: k,
            out: scores,
        };
        cx.push("index_score", score);
        let out = cx.buffer("index.selected", Dim::Tokens, Dim::Const(k), ElemType::I32);
        cx.push("index_select", Op::SelectTopK { scores, k, rate, out });
        Some(out)
    }

    fn attend(&self, cx: &mut Lower<'_>, layer: usize, q: BufId, selection: Option<BufId>, spec: &AttendSpec) -> BufId {
        let (c, w) = (&self.c, &self.w.layers[layer]);
        let out = cx.tokens("attn.out", c.heads * c.head_dim);
        let mut sources = Vec::new();
        if let Some(window) = cx.cache(Component::Window) {
            sources.push(KeySource {
                keys: window,
                values: window,
                rows: KeyRows::Window { window: c.window },
            });
        }
        if let Some(rows) = cx.cache(Component::Rows) {
            let visible = KeyRows::Compressed {
                rate: c.rate(layer),
                selection,
            };
            sources.push(KeySource {
                keys: rows,
                values: rows,
                rows: visible,
            });
        }
        cx.zero_heads("q_mean", q, c.head_dim, &spec.mean);
        let op = Op::Attend {
            q,
            out,
            heads: c.heads,
            kv_heads: 1,
            head_dim: c.head_dim,
            scale: (c.head_dim as f32).powf(-0.5),
            sources,
            sinks: Some(w.sinks),
            mask: spec.mask,
            score: spec.score.clone(),
        };
        cx.push("attend", op);
        cx.zero_heads("out_zero", out, c.head_dim, &spec.zero);
        out
    }

    /// The input products of the attention block that share x, in one run so that backends can fuse them.
    fn inputs(&self, cx: &mut Lower<'_>, w: &Layer, x: BufId, spec: &AttendSpec) -> Inputs {
        let qr = cx.matmul("attn.qr", x, w.q_a, None);
        let kv = cx.matmul("attn.kv", x, w.kv, None);
        let pair = |cx: &mut Lower<'_>, prefix: &str, k: &Compressor| {
            (
                cx.matmul(&format!("{prefix}.kv"), x, k.kv, None),
                cx.matmul(&format!("{prefix}.gate"), x, k.gate, None),
            )
        };
        let rows = w.compressor.as_ref().map(|k| pair(cx, "comp", k));
        let index = w.indexer.as_ref().map(|i| {
            let (kv, gate) = pair(cx, "index", &i.compressor);
            let weights = spec.select.then(|| cx.matmul("index.weights", x, i.weights, None));
            (kv, gate, weights)
        });
        Inputs { qr, kv, rows, index }
    }

    fn index_rows(&self, cx: &mut Lower<'_>, i: &Indexer, kv: BufId, gate: BufId, table: RopeId) {
        let c = &self.c;
        let dims = (c.csa_rate, c.index_dim, true);
        let parts = (Component::IndexPooling, Component::Index);
        self.compress(cx, "index", &i.compressor, (kv, gate), parts, dims, table);
    }
}

struct Inputs {
    qr: BufId,
    kv: BufId,
    rows: Option<(BufId, BufId)>,
    index: Option<(BufId, BufId, Option<BufId>)>,
}

impl Family for DeepseekV4 {
    fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    fn longest_step(&self) -> usize {
        1024
    }

    fn caches(&self, recipe: &Recipe, registry: &Registry, chunk: usize) -> Vec<CacheDesc> {
        let c = &self.c;
        let mut caches = Vec::new();
        for f in &self.facts.layers {
            let kv = cache_format(recipe, registry, f.layer, Slot::KvCache);
            let row = |component, rows, width, rope, format| CacheDesc {
                layer: f.layer as u32,
                component,
                rows,
                records: 1,
                width,
                rope,
                format,
            };
            // Room for a whole chunk beside the window, so that the chunk's first query still sees its window.
            let capacity = (c.window + chunk).next_multiple_of(64);
            let ring = CacheRows::Ring {
                capacity,
                live: c.window,
                block: 1,
            };
            caches.push(row(Component::Window, ring, c.head_dim, c.rope_dim, kv));
            if f.rate == 0 {
                continue;
            }
            let growing = CacheRows::Growing { rate: f.rate };
            caches.push(row(Component::Rows, growing, c.head_dim, c.rope_dim, kv));
            // Kept per token: value and gate of every channel; with overlap both halves of two blocks.
            let overlap = if f.attention == AttentionKind::Csa { 2 } else { 1 };
            let pool = CacheRows::Ring {
                capacity: f.rate * overlap,
                live: f.rate * overlap,
                block: f.rate,
            };
            caches.push(row(
                Component::Pooling,
                pool,
                2 * overlap * c.head_dim,
                0,
                CacheFormat::F32,
            ));
            if f.attention == AttentionKind::Csa {
                let index = cache_format(recipe, registry, f.layer, Slot::IndexCache);
                caches.push(row(Component::Index, growing, c.index_dim, 0, index));
                caches.push(row(Component::IndexPooling, pool, 4 * c.index_dim, 0, CacheFormat::F32));
            }
        }
        caches
    }

    fn lower_embedding(&self, cx: &mut Lower<'_>) {
        let out = cx.residual(self.c.streams * self.c.hidden);
        cx.push(
            "embed",
            Op::Embed {
                table: self.w.embed,
                out,
                copies: self.c.streams,
            },
        );
    }

    fn lower_attention(&self, cx: &mut Lower<'_>, layer: usize) {
        let (c, w, f) = (&self.c, &self.w.layers[layer], &self.facts.layers[layer]);
        let spec = cx.attend_spec(f);
        let (x, post, comb) = self.enter(cx, "attn", &w.hc_attn, w.attn_norm);
        let i = self.inputs(cx, w, x, &spec);
        self.norm(cx, "q_norm", i.qr, Some(w.q_norm), c.q_lora, i.qr);
        let q = cx.matmul("attn.q", i.qr, w.q_b, None);
        let index_q = match (&w.indexer, spec.select) {
            (Some(ix), true) => Some(cx.matmul("index.q", i.qr, ix.q, None)),
            _ => None,
        };
        let table = cx.rope(if f.rate == 0 { &c.freqs_main } else { &c.freqs_compress });
        self.norm(cx, "q_head_norm", q, None, c.head_dim, q);
        cx.push(
            "q_rope",
            self.rope(q, c.heads, c.head_dim, table, Positions::Tokens, false),
        );
        self.norm(cx, "kv_norm", i.kv, Some(w.kv_norm), c.head_dim, i.kv);
        cx.push(
            "kv_rope",
            self.rope(i.kv, 1, c.head_dim, table, Positions::Tokens, false),
        );
        if let Some(cache) = cx.cache(Component::Window) {
            cx.push(
                "kv_write",
                Op::CacheWrite {
                    src: i.kv,
                    cache,
                    rows: Positions::Tokens,
                },
            );
        }
        if let (Some(k), Some(rows)) = (&w.compressor, i.rows) {
            let dims = (f.rate, c.head_dim, f.attention == AttentionKind::Csa);
            self.compress(cx, "comp", k, rows, (Component::Pooling, Component::Rows), dims, table);
        }
        let mut selection = None;
        if let (Some(ix), Some((kv, gate, weights))) = (&w.indexer, i.index) {
            // Rows are kept even when nothing selects: swapping back must find them.
            self.index_rows(cx, ix, kv, gate, table);
            if let (Some(iq), Some(weights)) = (index_q, weights) {
                selection = self.select(cx, (iq, weights), &spec, table);
            }
        }
        let out = self.attend(cx, layer, q, selection, &spec);
        cx.push(
            "out_rope",
            self.rope(out, c.heads, c.head_dim, table, Positions::Tokens, true),
        );
        let low = cx.tokens("attn.low", c.o_groups * c.o_lora);
        cx.push(
            "o_a",
            Op::GroupedMatMul {
                x: out,
                weight: w.o_a,
                groups: c.o_groups,
                out: low,
            },
        );
        let o = cx.matmul("attn.o", low, w.o_b, None);
        self.leave(cx, "attn", o, post, comb);
    }

    fn lower_ffn(&self, cx: &mut Lower<'_>, layer: usize) {
        let (c, w) = (&self.c, &self.w.layers[layer]);
        let (x, post, comb) = self.enter(cx, "ffn", &w.hc_ffn, w.ffn_norm);
        let spec = cx.ffn_spec(&self.facts.layers[layer]);
        let k = spec.experts_per_token;
        let logits = cx.matmul("ffn.router", x, w.router, None);
        let experts = cx.buffer("ffn.experts", Dim::Tokens, Dim::Const(k), ElemType::I32);
        let weights = cx.tokens("ffn.expert_weights", k);
        let route = Op::Route {
            logits,
            bias: w.bias,
            table: w.table,
            scoring: Scoring::SqrtSoftplus,
            k,
            normalise: c.normalise,
            factor: c.scaling,
            out_experts: experts,
            out_weights: weights,
        };
        cx.push("route", route);
        let product = |cx: &mut Lower<'_>, name: &str, x, w: &[WeightId], per_slot, width| {
            let out = cx.tokens(&format!("ffn.{name}"), k * width);
            cx.push(
                name,
                Op::ExpertMatMul {
                    x,
                    experts,
                    k,
                    weights: w.to_vec(),
                    per_slot,
                    out,
                },
            );
            out
        };
        let gate = product(cx, "experts_w1", x, &w.experts.w1, false, c.expert_width);
        let up = product(cx, "experts_w3", x, &w.experts.w3, false, c.expert_width);
        let glu = |gate, up, row_weights| Op::Glu {
            gate,
            up,
            out: gate,
            activation: spec.activation,
            limit: c.swiglu_limit,
            row_weights,
        };
        cx.push("experts_glu", glu(gate, up, Some(weights)));
        cx.top_p("experts_top_p", gate, c.expert_width, spec.top_p);
        let down = product(cx, "experts_w2", gate, &w.experts.w2, true, c.hidden);
        let shared = w.shared.map(|[w1, w3, w2]| {
            let gate = cx.matmul("ffn.shared_w1", x, w1, None);
            let up = cx.matmul("ffn.shared_w3", x, w3, None);
            cx.push("shared_glu", glu(gate, up, None));
            cx.top_p("shared_top_p", gate, cx.rows(w1), spec.top_p);
            cx.matmul("ffn.shared_w2", gate, w2, None)
        });
        let out = cx.tokens("ffn.out", c.hidden);
        cx.push(
            "experts_sum",
            Op::ExpertSum {
                x: down,
                k,
                shared,
                out,
            },
        );
        self.leave(cx, "ffn", out, post, comb);
    }

    fn lower_head(&self, cx: &mut Lower<'_>) {
        let (c, w) = (&self.c, &self.w);
        let (n, d) = (c.streams, c.hidden);
        let residual = cx.residual(n * d);
        let mut rows = |name: &str, width| cx.buffer(name, Dim::Output, Dim::Const(width), ElemType::F32);
        let (last, pre, x) = (rows("head.streams", n * d), rows("head.pre", n), rows("head.x", d));
        cx.push("take_output", Op::TakeOutput { x: residual, out: last });
        let mix = Op::HcMix {
            x: last,
            matrix: w.hc_head.matrix,
            base: w.hc_head.base,
            scale: w.hc_head.scale,
            pre,
            post: None,
            comb: None,
            streams: n,
            iterations: 0,
            eps: c.hc_eps,
            norm_eps: c.eps,
        };
        cx.push("head_hc_mix", mix);
        cx.push(
            "head_hc_collapse",
            Op::HcCollapse {
                x: last,
                pre,
                streams: n,
                out: x,
            },
        );
        self.norm(cx, "final_norm", x, Some(w.norm), d, x);
        let out = cx.logits(c.vocab);
        cx.push(
            "lm_head",
            Op::MatMul {
                x,
                weight: w.head,
                bias: None,
                out,
            },
        );
    }

    fn matrices(&self, slot: Slot) -> Vec<WeightId> {
        match slot {
            Slot::AttentionWeights => self.w.layers.iter().flat_map(Layer::attention_matrices).collect(),
            Slot::FfnWeights => self.w.layers.iter().flat_map(Layer::ffn_matrices).collect(),
            Slot::Embedding => vec![self.w.embed],
            Slot::LmHead => vec![self.w.head],
            Slot::Attention | Slot::Ffn | Slot::KvCache | Slot::IndexCache => Vec::new(),
        }
    }
}

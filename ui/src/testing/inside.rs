//! Trees, plans, attention and comparisons of the scripted host.

use protocol::{
    AttentionMap, AttentionSpec, BlockView, Change, ChoiceView, CompareResult, CompareSide, CompareSpec, CompareText,
    CompareToken, DeltaP, Divergence, Drift, Edit, IsolateRow, KeptRows, KlStats, KvBytes, Label, OpTimeView, OpView,
    PlanView, PplStats, RecipeRef, RouterMap, RowSpan, Segment, TensorStats, TensorView, TokenLabel, TokenLayerMetric,
};

use super::facts::{self, KINDS};
use super::story::{noise, step, token};

fn tensor_view(name: String, rows: usize, columns: usize, format: &str) -> TensorView {
    let values = (rows * columns) as u64;
    let bytes = match format {
        "f32" => values * 4,
        "bf16" => values * 2,
        _ => values + values.div_ceil(128 * 128),
    };
    TensorView {
        name,
        shape: [rows, columns],
        format: format.into(),
        bytes,
    }
}

fn block(layer: Option<u32>, block: &str, kind: &str, slots: &[(&str, &str)], tensors: Vec<TensorView>) -> BlockView {
    BlockView {
        layer,
        block: block.into(),
        kind: kind.into(),
        slots: slots.iter().map(|(a, b)| ((*a).into(), (*b).into())).collect(),
        tensors,
    }
}

/// The tree of the seven layers.
pub fn tree() -> Vec<BlockView> {
    let mut out = vec![block(
        None,
        "embedding",
        "table of 4096 x 256",
        &[],
        vec![tensor_view("embed.weight".into(), 4096, 256, "bf16")],
    )];
    for (i, kind) in KINDS.iter().enumerate() {
        let l = Some(i as u32);
        let name = |s: &str| format!("layers.{i}.{s}");
        let mut attention = vec![
            tensor_view(name("attn.wq_a.weight"), 128, 256, "fp8"),
            tensor_view(name("attn.wq_b.weight"), 2048, 128, "fp8"),
            tensor_view(name("attn.wkv.weight"), 512, 256, "fp8"),
            tensor_view(name("attn.wo_a.weight"), 256, 1024, "fp8"),
            tensor_view(name("attn.wo_b.weight"), 256, 256, "fp8"),
            tensor_view(name("attn.attn_sink"), 1, 4, "f32"),
        ];
        let mut slots = vec![("attention", "own"), ("kv_cache", "fp8_model1")];
        if *kind != "sliding" {
            attention.push(tensor_view(name("attn.compressor.wkv.weight"), 512, 256, "bf16"));
        }
        if *kind == "csa" {
            attention.push(tensor_view(name("attn.indexer.wq_b.weight"), 1024, 128, "fp8"));
            slots.push(("index_cache", "fp4"));
        }
        out.push(block(
            l,
            "attention",
            &facts::loaded().facts.layers[i].attention_name,
            &slots,
            attention,
        ));
        let mut ffn = vec![tensor_view(name("ffn.gate.weight"), 8, 256, "bf16")];
        for e in 0..8 {
            for w in ["w1", "w2", "w3"] {
                let (r, c) = if w == "w2" { (256, 128) } else { (128, 256) };
                ffn.push(tensor_view(name(&format!("ffn.experts.{e}.{w}.weight")), r, c, "fp8"));
            }
        }
        out.push(block(
            l,
            "ffn",
            "8 experts, 3 per token, 1 shared",
            &[("ffn", "own")],
            ffn,
        ));
    }
    let head = tensor_view("head.weight".into(), 4096, 256, "bf16");
    out.push(block(
        None,
        "head",
        "logits of 4096 tokens",
        &[("weights.lm_head", "own")],
        vec![head],
    ));
    out
}

/// The ops that an op of this name reads: the newest of each name; for the first of a block, the one before.
fn inputs(ops: &[OpView], layer: Option<u32>, block: &str, name: &str) -> Vec<u32> {
    let names: &[&str] = match (block, name) {
        ("attention", "norm") => &["hc pre"],
        ("attention", "q_a" | "kv") => &["norm"],
        ("attention", "q_b") => &["q_a"],
        ("attention", "rope") => &["q_b", "kv"],
        ("attention", "write row") => &["rope"],
        ("attention", "indexer scores") => &["norm", "q_a"],
        ("attention", "select") => &["indexer scores"],
        ("attention", "attend") => &["rope", "write row", "select"],
        ("attention", "out") => &["attend"],
        ("ffn", "route") => &["norm"],
        ("ffn", "experts") => &["norm", "route"],
        ("ffn", "hc post") => &["hc pre", "out", "experts"],
        _ => &[],
    };
    let newest = |name: &&str| ops.iter().rposition(|o| o.layer == layer && o.name == **name);
    let mut found: Vec<u32> = names.iter().filter_map(newest).map(|i| i as u32).collect();
    if names.is_empty() {
        found.extend((ops.len() as u32).checked_sub(1));
    }
    found.sort_unstable();
    found
}

/// A plan with costs.
pub fn plan(tokens: u32, context: u64, timed: bool) -> PlanView {
    let mut ops: Vec<OpView> = Vec::new();
    let t = u64::from(tokens.max(1));
    let mut push = |layer: Option<u32>, block: &str, name: &str, kind: &str, weights: u64, cache: u64, fused: u32| {
        let id = ops.len() as u32;
        let inputs = inputs(&ops, layer, block, name);
        ops.push(OpView {
            id,
            inputs,
            layer,
            block: block.into(),
            name: name.into(),
            kind: kind.into(),
            flops: 2 * weights * t + cache,
            weight_bytes: weights,
            cache_bytes: cache,
            activation_bytes: 4 * 256 * t,
            fused_with: fused,
            time: timed.then(|| OpTimeView {
                nanos: 900.0 + weights as f64 * 0.05 + 400.0 * noise(u64::from(id), 5),
                steps: 24,
            }),
        });
    };
    push(None, "embedding", "embed", "embed", 512 * t, 0, 1);
    for (i, kind) in KINDS.iter().enumerate() {
        let l = Some(i as u32);
        push(l, "attention", "hc pre", "mhc", 4096, 0, 2);
        push(l, "attention", "norm", "norm", 1024, 0, 2);
        push(l, "attention", "q_a", "matmul", 32_768, 0, 3);
        push(l, "attention", "q_b", "matmul", 262_144, 0, 1);
        push(l, "attention", "kv", "matmul", 131_072, 0, 3);
        push(l, "attention", "rope", "rope", 0, 0, 3);
        push(l, "attention", "write row", "cache write", 0, 584 * t, 1);
        if *kind == "csa" {
            push(l, "attention", "indexer scores", "score", 131_072, context / 4 * 68, 1);
            push(l, "attention", "select", "select", 0, context / 4 * 4, 1);
        }
        let keys = context.min(128)
            + if *kind == "csa" {
                (context / 4).min(32)
            } else {
                context / 128
            };
        push(l, "attention", "attend", "attend", 0, keys * 584 * t, 1);
        push(l, "attention", "out", "matmul", 327_680, 0, 1);
        push(l, "ffn", "norm", "norm", 1024, 0, 1);
        push(l, "ffn", "route", "route", 4096, 0, 1);
        push(l, "ffn", "experts", "matmul", 3 * 98_304 + 98_304, 0, 1);
        push(l, "ffn", "hc post", "mhc", 4096, 0, 1);
    }
    push(None, "head", "norm", "norm", 1024, 0, 1);
    push(None, "head", "logits", "matmul", 2_097_152, 0, 1);
    push(None, "head", "sample", "sample", 0, 0, 1);
    let phase = if tokens > 1 { "prefill" } else { "decode" };
    PlanView {
        hash: "5f3a90c2".into(),
        phase: phase.into(),
        tokens: t,
        context,
        ops,
    }
}

/// A bell-shaped tensor.
pub fn tensor(name: &str) -> TensorStats {
    let histogram: Vec<u64> = (0..64)
        .map(|i| {
            let x = (f64::from(i) - 31.5) / 10.0;
            ((-x * x / 2.0).exp() * 2600.0 * (0.9 + 0.2 * noise(i as u64, 77))) as u64
        })
        .collect();
    let total = histogram.iter().sum();
    TensorStats {
        name: name.into(),
        counted: total,
        total,
        min: -0.31,
        max: 0.29,
        mean: 0.0004,
        std: 0.052,
        zeros: 17,
        not_finite: 0,
        limit: 0.32,
        histogram,
    }
}

fn labels(n: u64) -> Vec<TokenLabel> {
    let prompt = [
        "<bos>", "Once", " upon", " a", " time", " there", " was", " a", " little", " dragon", " who",
    ];
    (0..n)
        .map(|i| match prompt.get(i as usize) {
            Some(text) => TokenLabel {
                token: 10 + i as u32,
                text: (*text).into(),
            },
            None => {
                let t = token(i as usize - prompt.len());
                TokenLabel {
                    token: t.token,
                    text: t.text,
                }
            }
        })
        .collect()
}

/// Attention with a window, compressed rows and a sink.
pub fn attention(spec: AttentionSpec) -> AttentionMap {
    let kind = KINDS.get(spec.layer as usize).copied().unwrap_or("sliding");
    let mut segments = vec![Segment::Tokens {
        first: spec.from.saturating_sub(127),
        columns: (spec.to - spec.from.saturating_sub(127)) as u32,
    }];
    let rate = match kind {
        "csa" => 4,
        "hca" => 128,
        _ => 0,
    };
    let rows = spec.to.checked_div(rate).map_or(0, |rows| rows as u32);
    if rows > 0 {
        segments.push(Segment::Rows {
            first: 0,
            columns: rows,
            rate: rate as u32,
            overlap: kind == "csa",
        });
    }
    segments.push(Segment::Sink);
    let first = spec.from.saturating_sub(127);
    let columns: usize = segments.iter().map(|s| s.columns() as usize).sum();
    let mut values = Vec::with_capacity((spec.to - spec.from) as usize * columns);
    for q in spec.from..spec.to {
        let mut row = vec![-1.0f32; columns];
        let mut sum = 0.0;
        for (c, v) in row.iter_mut().enumerate() {
            let tokens = (spec.to - first) as usize;
            let x = if c < tokens {
                let key = first + c as u64;
                if key > q || key + 128 <= q {
                    continue;
                }
                (0.3 + noise(key, q + u64::from(spec.layer))) / (1.0 + (q - key) as f64 * 0.2)
            } else if c < columns - 1 {
                let r = (c - tokens) as u64;
                if (r + 1) * rate > q + 1 {
                    continue;
                }
                0.05 + 0.6 * noise(r, q).powi(6)
            } else {
                0.6
            };
            *v = x as f32;
            sum += x as f32;
        }
        for v in row.iter_mut().filter(|v| **v >= 0.0) {
            *v /= sum;
        }
        values.extend(row);
    }
    AttentionMap {
        spec,
        segments,
        values,
        tokens: labels(spec.to),
        heads: 4,
        head_stats: (0..4).map(|h| (2.1 + 0.7 * h as f32, 0.08 + 0.03 * h as f32)).collect(),
    }
}

/// Kept rows.
pub fn rows(layer: u32, position: u64) -> KeptRows {
    let spans: Vec<RowSpan> = (0..position / 4)
        .map(|r| RowSpan {
            first: (4 * r).saturating_sub(4),
            last: 4 * r + 3,
        })
        .collect();
    let kept: Vec<Vec<u32>> = (0..position)
        .map(|q| {
            let visible = (q + 1) / 4;
            let mut all: Vec<u32> = (0..visible as u32).collect();
            all.sort_by(|a, b| {
                let w = |r: u32| noise(u64::from(r), q / 8) + f64::from(r) / (visible as f64 + 1.0);
                w(*b).total_cmp(&w(*a))
            });
            all.truncate(32);
            all
        })
        .collect();
    let recall: Vec<f32> = (0..position)
        .map(|q| {
            if q / 4 < 64 {
                f32::NAN
            } else {
                0.9 + 0.1 * noise(q, u64::from(layer)) as f32
            }
        })
        .collect();
    let judged = recall.iter().filter(|r| !r.is_nan()).count() as u32;
    KeptRows {
        layer,
        rows: spans,
        kept,
        recall,
        attn_recall: 0.952,
        attn_recall_min: 0.904,
        top1_hit: 0.981,
        select_local_ratio: 0.61,
        judged,
    }
}

/// Router choices.
pub fn router(position: u64) -> RouterMap {
    let mut choices = Vec::new();
    for layer in 0..7u64 {
        for t in 0..position {
            let first = (8.0 * noise(t, 40 + 7 * layer).powf(1.3)) as u16 % 8;
            for k in 0..3u16 {
                choices.push(((first + k * 3) % 8, 0.5 - 0.12 * f32::from(k)));
            }
        }
    }
    RouterMap {
        layers: (0..7).collect(),
        experts: 8,
        per_token: 3,
        choices,
        tokens: labels(position),
    }
}

/// A figure per layer and token.
pub fn metric(name: &str, position: u64) -> TokenLayerMetric {
    let values = (0..7u64)
        .flat_map(|l| (0..position).map(move |t| (4.0 + 2.0 * l as f64 + 3.0 * noise(t, 200 + l)) as f32))
        .collect();
    TokenLayerMetric {
        name: name.into(),
        unit: String::new(),
        layers: 7,
        tokens: position as u32,
        values,
    }
}

fn side(hash: &str, perplexity: f64, factor: f64) -> CompareSide {
    let layers: Vec<KvBytes> = step(1, 511, 1).layers.iter().map(|l| l.kv_used).collect();
    let mut kv = KvBytes::default();
    layers.iter().for_each(|l| kv.add(l));
    kv.window = (kv.window as f64 * factor) as u64;
    CompareSide {
        hash: hash.into(),
        json: "{}".into(),
        perplexity,
        ln_perplexity_se: 0.031,
        kv,
        kv_layers: layers,
        decode_tokens_per_s: 316.0 / factor,
        prefill_tokens_per_s: 1460.0,
    }
}

/// FP8 against bf16 in layers 3-6.
pub fn comparison() -> CompareResult {
    let n = 256u64;
    let edit = |l: u32| Edit {
        selector: format!("layers.{l}.kv_cache"),
        choice: ChoiceView {
            variant: "bf16".into(),
            options: vec![],
        },
    };
    let change = |l: u32| Change {
        edit: edit(l),
        from: "fp8_model1".into(),
    };
    let tokens: Vec<CompareToken> = (0..n)
        .map(|i| {
            let t = token(i as usize);
            let other = i == 143;
            CompareToken {
                token: t.token,
                text: t.text,
                kl: (0.002 * noise(i, 500).powi(3) + if other { 0.08 } else { 0.0 }) as f32,
                logprob: [t.logprob, t.logprob - 0.01],
                top1: [t.token, if other { 3001 } else { t.token }],
                margin_a: if other { 0.0006 } else { 0.3 },
            }
        })
        .collect();
    let spec = CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Current,
        text: CompareText::Current,
        positions: n,
        isolate: true,
    };
    CompareResult {
        spec,
        model: "MODEL1-mini".into(),
        device: "CPU, 2 threads, AVX-512".into(),
        sides: [side("9c41d7e02b6a58f3", 7.31, 1.0), side("51b0aa7c9e3f2d18", 7.30, 1.7)],
        changes: (3..7).map(change).collect(),
        tokens,
        kl: KlStats {
            mean: 0.0009,
            mean_se: 0.0002,
            median: 0.0004,
            p90: 0.002,
            p99: 0.014,
            p999: 0.06,
            max: 0.081,
        },
        same_top1: [0.992, 0.006],
        ln_ppl_ratio: [-0.0014, 0.0009],
        ppl: PplStats {
            cor: 0.9998,
            ratio: [0.9986, 0.0009],
            diff: [-0.01, 0.0066],
        },
        delta_p: DeltaP {
            mean: [-0.0002, 0.0004],
            rms: [0.0061, 0.0007],
            max: 0.031,
            median: 0.0,
            min: -0.044,
        },
        divergence: Some(Divergence {
            position: 143,
            margin: 0.0006,
            near_tie: true,
        }),
        noise_floor: [0.0, 0.0],
        drift: Drift {
            relative_rms: (0..7)
                .flat_map(|l| {
                    (0..n).map(move |t| {
                        if l < 3 {
                            0.0
                        } else {
                            (0.004 * f64::from(l - 2) * (0.5 + noise(t, 900 + l as u64))) as f32
                        }
                    })
                })
                .collect(),
            step: 1,
            layer_rms: vec![0.0, 0.0, 0.0, 0.004, 0.008, 0.012, 0.016],
            layer_cosine: vec![0.0, 0.0, 0.0, 8e-6, 3.2e-5, 7.2e-5, 1.3e-4],
            layer_max: vec![0.0, 0.0, 0.0, 0.05, 0.09, 0.14, 0.2],
            layer_sqnr_db: vec![f32::INFINITY, f32::INFINITY, f32::INFINITY, 48.0, 41.9, 38.4, 35.9],
        },
        isolate: (3..7)
            .map(|l| IsolateRow {
                change: change(l),
                kl_mean: 0.0001 * f64::from(l),
                kl_max: 0.02,
                same_top1: 0.996,
                kv_saved: -46_080,
            })
            .collect(),
        label: Label::Measured,
        reference: "fp8 weights, f32 arithmetic on CPU".into(),
        seconds: 4.2,
        command: "model1 compare --model bundled --set-b layers.3-6.kv_cache=bf16 --positions 256".into(),
        notes: Vec::new(),
    }
}

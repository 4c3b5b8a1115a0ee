//! Shapes of real models: their configs, and their tensors by name.

use kernels::ir::{Format, ScaleFormat, ScaleSpec};
use serde_json::{Map, Value, json};

/// A model whose speed is worth knowing without its weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// R1-Distill-Qwen-1.5B.
    Qwen15,
    /// Llama-2-7B.
    Llama7,
    /// The scaled-down MODEL1 of 1.5 B parameters.
    Model15,
    /// GPT-3, 175 B parameters.
    Gpt3,
}

/// How a shape's matrices are stored. Norms, biases and mHC coefficients stay as checkpoints have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// bfloat16 throughout.
    Bf16,
    /// E4M3 with a ue8m0 scale per 128 x 128 values; embedding, output layer and routers bf16.
    Fp8,
    /// GGUF Q8_0, embedding and output layer included.
    Q8_0,
    /// GGUF Q4_0, with the output layer in Q6_K as llama.cpp's quantiser has it.
    Q4_0,
    /// E2M1 with a ue8m0 scale per 32 values; of `deepseek_v4` the experts only, as in its releases, the rest
    /// [`Storage::Fp8`]; embedding and output layer bf16.
    Fp4,
}

impl Storage {
    /// All of them.
    pub const ALL: [Storage; 5] = [Storage::Bf16, Storage::Fp8, Storage::Q8_0, Storage::Q4_0, Storage::Fp4];

    /// Its name on the command line and in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Storage::Bf16 => "bf16",
            Storage::Fp8 => "fp8",
            Storage::Q8_0 => "q8_0",
            Storage::Q4_0 => "q4_0",
            Storage::Fp4 => "fp4",
        }
    }

    /// The storage with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name().eq_ignore_ascii_case(name))
    }
}

impl Shape {
    /// All of them.
    pub const ALL: [Shape; 4] = [Shape::Qwen15, Shape::Llama7, Shape::Model15, Shape::Gpt3];

    /// The model's name.
    pub const fn name(self) -> &'static str {
        match self {
            Shape::Qwen15 => "R1-Distill-Qwen-1.5B",
            Shape::Llama7 => "Llama-2-7B",
            Shape::Model15 => "model1-1.5b",
            Shape::Gpt3 => "GPT-3-175B",
        }
    }

    /// The shape with this name; case does not matter.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.name().eq_ignore_ascii_case(name))
    }

    /// What its family can be stored in: GGUF's formats are read for `llama` and `qwen2` alone.
    pub const fn storages(self) -> &'static [Storage] {
        match self {
            Shape::Qwen15 | Shape::Llama7 => &Storage::ALL,
            Shape::Model15 | Shape::Gpt3 => &[Storage::Bf16, Storage::Fp8, Storage::Fp4],
        }
    }

    pub(super) const fn size(self) -> Size {
        let (layers, vocab, hidden) = match self {
            Shape::Qwen15 => (28, 151_936, 1536),
            Shape::Llama7 => (32, 32_000, 4096),
            Shape::Model15 => (24, 129_280, 1536),
            // Brown et al. 2020, table 2.1.
            Shape::Gpt3 => (96, 50_257, 12_288),
        };
        Size { layers, vocab, hidden }
    }
}

/// What can be made smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub layers: usize,
    pub vocab: usize,
    pub hidden: usize,
}

/// What the bytes of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Content {
    /// Matrices: values of either sign around 2^-5, in this format.
    Values(Format),
    /// bf16 ones.
    Ones,
    /// f32 values of either sign around 0.02.
    Small,
    /// ue8m0 scales of 2^-6.
    Scales,
}

/// A tensor to make.
pub(super) struct Def {
    pub name: String,
    pub shape: Vec<usize>,
    pub content: Content,
}

impl Def {
    pub fn format(&self) -> Format {
        match self.content {
            Content::Values(f) => f,
            Content::Ones => Format::Bf16,
            Content::Small | Content::Scales => Format::F32,
        }
    }

    /// Separate scales.
    pub fn scales(&self) -> Option<ScaleSpec> {
        let (block_rows, block_cols) = match self.format() {
            Format::F8E4m3 => (128, 128),
            Format::Fp4E2m1 => (1, 32),
            _ => return None,
        };
        Some(ScaleSpec {
            format: ScaleFormat::E8m0,
            block_rows,
            block_cols,
        })
    }

    /// (elements, scales) in bytes.
    pub fn bytes(&self) -> (usize, usize) {
        let cols = self.shape.last().copied().unwrap_or(1);
        let rows = self.shape.iter().product::<usize>() / cols.max(1);
        // Columns of every shape here are whole blocks of every format it has; tests load them all.
        let data = rows * self.format().row_bytes(cols).unwrap_or(0);
        let scales = self.scales();
        let scales = scales.map_or(0, |s| rows.div_ceil(s.block_rows) * cols.div_ceil(s.block_cols));
        (data, scales)
    }
}

/// Tensors of a shape.
struct Tensors {
    defs: Vec<Def>,
    storage: Storage,
}

impl Tensors {
    fn add(&mut self, name: String, shape: &[usize], content: Content) {
        self.defs.push(Def {
            name,
            shape: shape.to_vec(),
            content,
        });
    }

    fn ones(&mut self, name: String, n: usize) {
        self.add(name, &[n], Content::Ones);
    }

    /// A matrix as this storage has it; `name` without `.weight`.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) {
        let format = match self.storage {
            Storage::Bf16 => Format::Bf16,
            Storage::Fp8 => Format::F8E4m3,
            Storage::Q8_0 => Format::Q8_0,
            Storage::Q4_0 => Format::Q4_0,
            Storage::Fp4 => Format::Fp4E2m1,
        };
        self.add(format!("{name}.weight"), &[rows, cols], Content::Values(format));
    }

    /// A matrix of `deepseek_v4` outside its experts: nothing there is FP4.
    fn dense(&mut self, name: &str, rows: usize, cols: usize) {
        let format = match self.storage {
            Storage::Bf16 => Format::Bf16,
            _ => Format::F8E4m3,
        };
        self.add(format!("{name}.weight"), &[rows, cols], Content::Values(format));
    }

    /// A matrix that is bf16 in every storage.
    fn plain(&mut self, name: String, rows: usize, cols: usize) {
        self.add(name, &[rows, cols], Content::Values(Format::Bf16));
    }

    /// Embedding table and output layer: GGUF quantises them, too.
    fn tables(&mut self, embed: &str, head: Option<&str>, vocab: usize, hidden: usize) {
        let (table, output) = match self.storage {
            Storage::Q8_0 => (Format::Q8_0, Format::Q8_0),
            Storage::Q4_0 => (Format::Q4_0, Format::Q6K),
            Storage::Bf16 | Storage::Fp8 | Storage::Fp4 => (Format::Bf16, Format::Bf16),
        };
        self.add(embed.into(), &[vocab, hidden], Content::Values(table));
        if let Some(head) = head {
            self.add(head.into(), &[vocab, hidden], Content::Values(output));
        }
    }
}

/// The tensors of a shape.
pub(super) fn tensors(shape: Shape, size: Size, storage: Storage) -> Vec<Def> {
    let mut t = Tensors {
        defs: Vec::new(),
        storage,
    };
    match shape {
        Shape::Qwen15 => dense(&mut t, size, (12, 2), 8960, true),
        Shape::Llama7 => dense(&mut t, size, (32, 32), 11_008, false),
        Shape::Model15 => model1(&mut t, size),
        Shape::Gpt3 => gpt3(&mut t, size),
    }
    t.defs
}

fn dense(t: &mut Tensors, size: Size, (heads, kv): (usize, usize), inner: usize, bias: bool) {
    let Size { layers, vocab, hidden } = size;
    let d = hidden / heads;
    t.tables("model.embed_tokens.weight", Some("lm_head.weight"), vocab, hidden);
    t.ones("model.norm.weight".into(), hidden);
    for l in 0..layers {
        let at = format!("model.layers.{l}");
        for n in ["input_layernorm", "post_attention_layernorm"] {
            t.ones(format!("{at}.{n}.weight"), hidden);
        }
        for (n, rows) in [("q", heads * d), ("k", kv * d), ("v", kv * d)] {
            t.matrix(&format!("{at}.self_attn.{n}_proj"), rows, hidden);
            if bias {
                t.add(format!("{at}.self_attn.{n}_proj.bias"), &[rows], Content::Small);
            }
        }
        t.matrix(&format!("{at}.self_attn.o_proj"), hidden, hidden);
        t.matrix(&format!("{at}.mlp.gate_proj"), inner, hidden);
        t.matrix(&format!("{at}.mlp.up_proj"), inner, hidden);
        t.matrix(&format!("{at}.mlp.down_proj"), hidden, inner);
    }
}

/// Heads and learned positions of GPT-3.
mod gpt {
    pub const HEADS: usize = 96;
    pub const CONTEXT: usize = 2048;
}

fn gpt3(t: &mut Tensors, Size { layers, vocab, hidden }: Size) {
    t.tables("wte.weight", None, vocab, hidden);
    t.plain("wpe.weight".into(), gpt::CONTEXT, hidden);
    let norm = |t: &mut Tensors, at: String| {
        t.ones(format!("{at}.weight"), hidden);
        t.add(format!("{at}.bias"), &[hidden], Content::Small);
    };
    norm(t, "ln_f".into());
    for l in 0..layers {
        let at = format!("h.{l}");
        norm(t, format!("{at}.ln_1"));
        norm(t, format!("{at}.ln_2"));
        for (name, inputs, outputs) in [
            ("attn.c_attn", hidden, 3 * hidden),
            ("attn.c_proj", hidden, hidden),
            ("mlp.c_fc", hidden, 4 * hidden),
            ("mlp.c_proj", 4 * hidden, hidden),
        ] {
            // GPT-2's own files hold plain matrices as [inputs, outputs]; blocks and scales run along inputs.
            let (rows, cols) = match t.storage {
                Storage::Bf16 => (inputs, outputs),
                _ => (outputs, inputs),
            };
            t.matrix(&format!("{at}.{name}"), rows, cols);
            t.add(format!("{at}.{name}.bias"), &[outputs], Content::Small);
        }
    }
}

/// Sizes of `model1-1.5b`.
mod v4 {
    pub const HEADS: usize = 16;
    pub const DIM: usize = 512;
    pub const LORA: usize = 512;
    pub const GROUPS: usize = 4;
    pub const INDEX: (usize, usize) = (16, 128);
    pub const EXPERTS: usize = 12;
    pub const INNER: usize = 512;
}

fn rate(layer: usize) -> usize {
    match layer {
        0 | 1 => 0,
        l if l % 2 == 0 => 4,
        _ => 128,
    }
}

fn model1(t: &mut Tensors, Size { layers, vocab, hidden }: Size) {
    use v4::*;
    t.tables("embed.weight", Some("head.weight"), vocab, hidden);
    t.ones("norm.weight".into(), hidden);
    let coefficients = |t: &mut Tensors, at: &str, outputs: usize, scales: usize| {
        t.add(format!("{at}_base"), &[outputs], Content::Small);
        t.add(format!("{at}_fn"), &[outputs, 4 * hidden], Content::Small);
        t.add(format!("{at}_scale"), &[scales], Content::Small);
    };
    coefficients(t, "hc_head", 4, 1);
    for l in 0..layers {
        let at = format!("layers.{l}");
        coefficients(t, &format!("{at}.hc_attn"), 24, 3);
        coefficients(t, &format!("{at}.hc_ffn"), 24, 3);
        for n in ["attn_norm", "ffn_norm"] {
            t.ones(format!("{at}.{n}.weight"), hidden);
        }
        let a = format!("{at}.attn");
        t.add(format!("{a}.attn_sink"), &[HEADS], Content::Small);
        t.ones(format!("{a}.kv_norm.weight"), DIM);
        t.ones(format!("{a}.q_norm.weight"), LORA);
        t.dense(&format!("{a}.wkv"), DIM, hidden);
        t.dense(&format!("{a}.wq_a"), LORA, hidden);
        t.dense(&format!("{a}.wq_b"), HEADS * DIM, LORA);
        t.dense(&format!("{a}.wo_a"), GROUPS * LORA, HEADS * DIM / GROUPS);
        t.dense(&format!("{a}.wo_b"), hidden, GROUPS * LORA);
        compressors(t, &a, rate(l), hidden);
        t.plain(format!("{at}.ffn.gate.weight"), EXPERTS, hidden);
        t.add(format!("{at}.ffn.gate.bias"), &[EXPERTS], Content::Small);
        for e in 0..EXPERTS {
            let e = format!("{at}.ffn.experts.{e}");
            t.matrix(&format!("{e}.w1"), INNER, hidden);
            t.matrix(&format!("{e}.w2"), hidden, INNER);
            t.matrix(&format!("{e}.w3"), INNER, hidden);
        }
        let e = format!("{at}.ffn.shared_experts");
        t.dense(&format!("{e}.w1"), INNER, hidden);
        t.dense(&format!("{e}.w2"), hidden, INNER);
        t.dense(&format!("{e}.w3"), INNER, hidden);
    }
}

/// Compressor and indexer of the attention `a`.
fn compressors(t: &mut Tensors, a: &str, rate: usize, hidden: usize) {
    use v4::*;
    let mut one = |at: String, dim: usize, wide: usize| {
        t.add(format!("{at}.ape"), &[rate, wide], Content::Small);
        t.ones(format!("{at}.norm.weight"), dim);
        t.plain(format!("{at}.wgate.weight"), wide, hidden);
        t.plain(format!("{at}.wkv.weight"), wide, hidden);
    };
    match rate {
        0 => {}
        4 => {
            one(format!("{a}.compressor"), DIM, 2 * DIM);
            one(format!("{a}.indexer.compressor"), INDEX.1, 2 * INDEX.1);
            t.plain(format!("{a}.indexer.weights_proj.weight"), INDEX.0, hidden);
            t.dense(&format!("{a}.indexer.wq_b"), INDEX.0 * INDEX.1, LORA);
        }
        _ => one(format!("{a}.compressor"), DIM, DIM),
    }
}

/// config.json of a shape.
pub(super) fn config(shape: Shape, size: Size) -> Map<String, Value> {
    let Size { layers, vocab, hidden } = size;
    let dense = |kind: &str, model_type: &str, inner: usize, heads: usize, kv: usize| {
        json!({ "architectures": [kind], "model_type": model_type,
            "hidden_act": "silu", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1 })
    };
    let value = match shape {
        Shape::Qwen15 => dense("Qwen2ForCausalLM", "qwen2", 8960, 12, 2),
        Shape::Llama7 => dense("LlamaForCausalLM", "llama", 11_008, 32, 32),
        Shape::Gpt3 => json!({ "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": vocab,
            "n_embd": hidden, "n_head": gpt::HEADS, "n_layer": layers, "n_positions": gpt::CONTEXT,
            "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "bos_token_id": 0, "eos_token_id": 1 }),
        Shape::Model15 => return v4_config(size),
    };
    object([value])
}

/// Members of JSON objects.
fn object<const N: usize>(parts: [Value; N]) -> Map<String, Value> {
    let maps = parts.into_iter().filter_map(|p| match p {
        Value::Object(map) => Some(map),
        _ => None,
    });
    maps.flatten().collect()
}

fn v4_config(Size { layers, vocab, hidden }: Size) -> Map<String, Value> {
    use v4::*;
    let general = json!({ "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4",
        "torch_dtype": "bfloat16", "vocab_size": vocab, "hidden_size": hidden, "num_hidden_layers": layers,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 1_048_576, "tie_word_embeddings": false,
        "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1, "num_nextn_predict_layers": 0,
        "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6 });
    let attention = json!({ "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": DIM,
        "qk_rope_head_dim": 64, "q_lora_rank": LORA, "o_groups": GROUPS, "o_lora_rank": LORA, "sliding_window": 128,
        "compress_ratios": (0..layers).map(rate).collect::<Vec<_>>(), "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0, "attention_bias": false,
        "rope_scaling": { "type": "yarn", "factor": 16, "original_max_position_embeddings": 65536,
            "beta_fast": 32, "beta_slow": 1 },
        "index_n_heads": INDEX.0, "index_head_dim": INDEX.1, "index_topk": 512 });
    let experts = json!({ "num_hash_layers": 0, "n_routed_experts": EXPERTS, "num_experts_per_tok": 4,
        "n_shared_experts": 1, "moe_intermediate_size": INNER, "scoring_func": "sqrtsoftplus", "norm_topk_prob": true,
        "topk_method": "noaux_tc", "routed_scaling_factor": 1.5, "swiglu_limit": 10.0 });
    object([general, attention, experts])
}

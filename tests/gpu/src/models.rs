//! Checkpoints of real models' shapes with random weights, written to memory: for timing, never for quality.

use std::path::{Path, PathBuf};

use checkpoint::write::{Spec, write_safetensors};
use serde_json::{Value, json};

/// Shapes timings are made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// R1-Distill-Qwen-1.5B.
    Qwen15,
    /// Llama-2-7B.
    Llama7,
    /// The scaled-down MODEL1 of 1.5 B parameters.
    Model15,
    /// The same with FP8 matrices, 128 x 128 blocks.
    Model15Fp8,
}

impl Shape {
    /// The name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Shape::Qwen15 => "R1-Distill-Qwen-1.5B bf16",
            Shape::Llama7 => "Llama-2-7B bf16",
            Shape::Model15 => "model1-1.5b bf16",
            Shape::Model15Fp8 => "model1-1.5b fp8",
        }
    }
}

/// What a tensor holds.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// bf16 values of either sign around 2^-5.
    Matrix,
    /// bf16 ones.
    Ones,
    /// f32 values of either sign around 0.02.
    Small,
    /// e4m3 codes.
    Fp8,
    /// ue8m0 scales of 2^-6.
    Scale,
}

#[derive(Default)]
struct Tensors {
    specs: Vec<Spec>,
    kinds: Vec<Kind>,
}

impl Tensors {
    fn add(&mut self, name: String, shape: &[usize], kind: Kind) {
        let n: usize = shape.iter().product();
        let (dtype, bytes) = match kind {
            Kind::Matrix | Kind::Ones => ("BF16", 2 * n),
            Kind::Small => ("F32", 4 * n),
            Kind::Fp8 => ("F8_E4M3", n),
            Kind::Scale => ("F8_E8M0", n),
        };
        self.specs.push(Spec {
            name,
            dtype: dtype.into(),
            shape: shape.to_vec(),
            bytes: bytes as u64,
        });
        self.kinds.push(kind);
    }

    /// A matrix, with scales if it is FP8; `name` without `.weight`.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize, fp8: bool) {
        if !fp8 {
            return self.add(format!("{name}.weight"), &[rows, cols], Kind::Matrix);
        }
        self.add(format!("{name}.weight"), &[rows, cols], Kind::Fp8);
        self.add(
            format!("{name}.scale"),
            &[rows.div_ceil(128), cols.div_ceil(128)],
            Kind::Scale,
        );
    }
}

fn fill(kind: Kind, bytes: &mut [u8], seed: u64) {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        x
    };
    match kind {
        Kind::Ones => bytes.chunks_exact_mut(2).for_each(|b| b.copy_from_slice(&[0x80, 0x3f])),
        Kind::Scale => bytes.fill(127 - 6),
        // Sign and mantissa random, exponents of 2^-6 to 2^-4.
        Kind::Matrix => bytes.chunks_mut(8).for_each(|b| {
            let r = next();
            let v = (r & 0x807f_807f_807f_807f) | 0x3c80_3c80_3c80_3c80 | (r >> 1 & 0x0100_0100_0100_0100);
            b.copy_from_slice(&v.to_le_bytes()[..b.len()]);
        }),
        Kind::Small => bytes.chunks_exact_mut(4).for_each(|b| {
            let v = (next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
            b.copy_from_slice(&(0.02 * v).to_le_bytes());
        }),
        Kind::Fp8 => bytes.chunks_mut(8).for_each(|b| {
            b.copy_from_slice(&(next() & 0xbfbf_bfbf_bfbf_bfbf).to_le_bytes()[..b.len()]);
        }),
    }
}

/// Random bytes on all cores.
fn bytes_of(kind: Kind, n: usize, seed: u64) -> Vec<u8> {
    let mut out = vec![0u8; n];
    let part = (n / engine::default_threads().max(1)).next_multiple_of(1 << 16);
    std::thread::scope(|s| {
        for (i, piece) in out.chunks_mut(part.max(1 << 16)).enumerate() {
            s.spawn(move || fill(kind, piece, seed ^ (i as u64) << 32));
        }
    });
    out
}

/// What tests make smaller.
#[derive(Clone, Copy)]
struct Size {
    layers: usize,
    vocab: usize,
}

impl Shape {
    const fn size(self) -> Size {
        let (layers, vocab) = match self {
            Shape::Qwen15 => (28, 151_936),
            Shape::Llama7 => (32, 32_000),
            Shape::Model15 | Shape::Model15Fp8 => (24, 129_280),
        };
        Size { layers, vocab }
    }
}

fn dense(
    Size { layers, vocab }: Size,
    hidden: usize,
    (heads, kv): (usize, usize),
    inner: usize,
    bias: bool,
) -> Tensors {
    let mut t = Tensors::default();
    let d = hidden / heads;
    t.add("model.embed_tokens.weight".into(), &[vocab, hidden], Kind::Matrix);
    t.add("lm_head.weight".into(), &[vocab, hidden], Kind::Matrix);
    t.add("model.norm.weight".into(), &[hidden], Kind::Ones);
    for l in 0..layers {
        let at = format!("model.layers.{l}");
        for n in ["input_layernorm", "post_attention_layernorm"] {
            t.add(format!("{at}.{n}.weight"), &[hidden], Kind::Ones);
        }
        for (n, rows) in [("q", heads * d), ("k", kv * d), ("v", kv * d)] {
            t.matrix(&format!("{at}.self_attn.{n}_proj"), rows, hidden, false);
            if bias {
                t.add(format!("{at}.self_attn.{n}_proj.bias"), &[rows], Kind::Matrix);
            }
        }
        t.matrix(&format!("{at}.self_attn.o_proj"), hidden, hidden, false);
        t.matrix(&format!("{at}.mlp.gate_proj"), inner, hidden, false);
        t.matrix(&format!("{at}.mlp.up_proj"), inner, hidden, false);
        t.matrix(&format!("{at}.mlp.down_proj"), hidden, inner, false);
    }
    t
}

/// Sizes of `model1-1.5b`.
mod v4 {
    pub const HIDDEN: usize = 1536;
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

fn model1(Size { layers, vocab }: Size, fp8: bool) -> Tensors {
    use v4::*;
    let mut t = Tensors::default();
    t.add("embed.weight".into(), &[vocab, HIDDEN], Kind::Matrix);
    t.add("head.weight".into(), &[vocab, HIDDEN], Kind::Matrix);
    t.add("norm.weight".into(), &[HIDDEN], Kind::Ones);
    let coefficients = |t: &mut Tensors, at: &str, outputs: usize, scales: usize| {
        t.add(format!("{at}_base"), &[outputs], Kind::Small);
        t.add(format!("{at}_fn"), &[outputs, 4 * HIDDEN], Kind::Small);
        t.add(format!("{at}_scale"), &[scales], Kind::Small);
    };
    coefficients(&mut t, "hc_head", 4, 1);
    for l in 0..layers {
        let at = format!("layers.{l}");
        coefficients(&mut t, &format!("{at}.hc_attn"), 24, 3);
        coefficients(&mut t, &format!("{at}.hc_ffn"), 24, 3);
        for n in ["attn_norm", "ffn_norm"] {
            t.add(format!("{at}.{n}.weight"), &[HIDDEN], Kind::Ones);
        }
        let a = format!("{at}.attn");
        t.add(format!("{a}.attn_sink"), &[HEADS], Kind::Small);
        t.add(format!("{a}.kv_norm.weight"), &[DIM], Kind::Ones);
        t.add(format!("{a}.q_norm.weight"), &[LORA], Kind::Ones);
        t.matrix(&format!("{a}.wkv"), DIM, HIDDEN, fp8);
        t.matrix(&format!("{a}.wq_a"), LORA, HIDDEN, fp8);
        t.matrix(&format!("{a}.wq_b"), HEADS * DIM, LORA, fp8);
        t.matrix(&format!("{a}.wo_a"), GROUPS * LORA, HEADS * DIM / GROUPS, fp8);
        t.matrix(&format!("{a}.wo_b"), HIDDEN, GROUPS * LORA, fp8);
        let compressor = |t: &mut Tensors, at: &str, rate: usize, dim: usize, wide: usize| {
            t.add(format!("{at}.ape"), &[rate, wide], Kind::Small);
            t.add(format!("{at}.norm.weight"), &[dim], Kind::Ones);
            t.matrix(&format!("{at}.wgate"), wide, HIDDEN, false);
            t.matrix(&format!("{at}.wkv"), wide, HIDDEN, false);
        };
        match rate(l) {
            0 => {}
            4 => {
                compressor(&mut t, &format!("{a}.compressor"), 4, DIM, 2 * DIM);
                compressor(&mut t, &format!("{a}.indexer.compressor"), 4, INDEX.1, 2 * INDEX.1);
                t.matrix(&format!("{a}.indexer.weights_proj"), INDEX.0, HIDDEN, false);
                t.matrix(&format!("{a}.indexer.wq_b"), INDEX.0 * INDEX.1, LORA, fp8);
            }
            r => compressor(&mut t, &format!("{a}.compressor"), r, DIM, DIM),
        }
        t.matrix(&format!("{at}.ffn.gate"), EXPERTS, HIDDEN, false);
        t.add(format!("{at}.ffn.gate.bias"), &[EXPERTS], Kind::Small);
        let names = (0..EXPERTS).map(|e| format!("{at}.ffn.experts.{e}"));
        for e in names.chain([format!("{at}.ffn.shared_experts")]) {
            t.matrix(&format!("{e}.w1"), INNER, HIDDEN, fp8);
            t.matrix(&format!("{e}.w2"), HIDDEN, INNER, fp8);
            t.matrix(&format!("{e}.w3"), INNER, HIDDEN, fp8);
        }
    }
    t
}

fn config(shape: Shape, Size { layers, vocab }: Size) -> Value {
    let dense = |kind: &str, hidden: usize, inner: usize, heads: usize, kv: usize| {
        json!({ "architectures": [kind], "model_type": if kind.starts_with("Q") { "qwen2" } else { "llama" },
            "hidden_act": "silu", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
            "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv,
            "max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "tie_word_embeddings": false, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1 })
    };
    match shape {
        Shape::Qwen15 => dense("Qwen2ForCausalLM", 1536, 8960, 12, 2),
        Shape::Llama7 => dense("LlamaForCausalLM", 4096, 11_008, 32, 32),
        Shape::Model15 | Shape::Model15Fp8 => {
            use v4::*;
            let mut c = json!({ "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4",
                "torch_dtype": "bfloat16", "vocab_size": vocab, "hidden_size": HIDDEN, "num_hidden_layers": layers,
                "num_attention_heads": HEADS, "num_key_value_heads": 1, "head_dim": DIM, "qk_rope_head_dim": 64,
                "q_lora_rank": LORA, "o_groups": GROUPS, "o_lora_rank": LORA, "sliding_window": 128,
                "compress_ratios": (0..layers).map(rate).collect::<Vec<_>>(), "rope_theta": 10000.0,
                "compress_rope_theta": 160000.0,
                "rope_scaling": { "type": "yarn", "factor": 16, "original_max_position_embeddings": 65536,
                    "beta_fast": 32, "beta_slow": 1 },
                "index_n_heads": INDEX.0, "index_head_dim": INDEX.1, "index_topk": 512, "hc_mult": 4,
                "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "num_hash_layers": 0, "n_routed_experts": EXPERTS,
                "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_intermediate_size": INNER,
                "scoring_func": "sqrtsoftplus", "norm_topk_prob": true, "topk_method": "noaux_tc",
                "routed_scaling_factor": 1.5, "swiglu_limit": 10.0, "num_nextn_predict_layers": 0,
                "rms_norm_eps": 1e-6, "max_position_embeddings": 1_048_576, "tie_word_embeddings": false,
                "attention_bias": false, "hidden_act": "silu", "bos_token_id": 0, "eos_token_id": 1 });
            if shape == Shape::Model15Fp8 {
                c["quantization_config"] = json!({ "quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0",
                    "weight_block_size": [128, 128], "activation_scheme": "dynamic" });
            }
            c
        }
    }
}

/// A folder that is removed with its owner.
pub struct Folder(PathBuf);

impl Folder {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes a checkpoint of a shape, in memory where the system has room for that.
pub fn write(shape: Shape) -> Folder {
    let mut why = String::new();
    for base in [PathBuf::from("/dev/shm"), std::env::temp_dir(), PathBuf::from(".")] {
        let folder = Folder(base.join(format!("model1-gpu-tests-{}-{shape:?}", std::process::id())));
        match write_to(shape, shape.size(), folder.path()) {
            Ok(()) => return folder,
            // Containers often have a small /dev/shm.
            Err(e) => why += &format!("{}: {e}\n", base.display()),
        }
    }
    panic!("no place for {}:\n{why}", shape.name());
}

fn write_to(shape: Shape, size: Size, folder: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join("config.json"), config(shape, size).to_string())?;
    let t = match shape {
        Shape::Qwen15 => dense(size, 1536, (12, 2), 8960, true),
        Shape::Llama7 => dense(size, 4096, (32, 32), 11_008, false),
        Shape::Model15 => model1(size, false),
        Shape::Model15Fp8 => model1(size, true),
    };
    let make = |i: usize| bytes_of(t.kinds[i], t.specs[i].bytes as usize, i as u64 + 1);
    write_safetensors(&folder.join("model.safetensors"), &t.specs, make)
}

#[cfg(test)]
mod tests {
    use engine::{Cancel, SessionOptions};
    use kernels::cpu::exec::CpuBackend;
    use std::sync::Arc;

    use super::*;

    /// With fewer layers and a small vocabulary, on the CPU.
    #[test]
    fn every_shape_loads_and_gives_numbers() {
        for shape in [Shape::Qwen15, Shape::Llama7, Shape::Model15, Shape::Model15Fp8] {
            let folder = Folder(std::env::temp_dir().join(format!("model1-shapes-{}-{shape:?}", std::process::id())));
            let size = Size {
                layers: if shape == Shape::Llama7 { 1 } else { 4 },
                vocab: 300,
            };
            write_to(shape, size, folder.path()).unwrap();
            let backend = Arc::new(CpuBackend::new(2));
            let engine = model1_tests::goldens::engine_with(folder.path(), backend).unwrap();
            let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
            session.feed(&[5, 7, 9], None, &Cancel::default(), &mut ()).unwrap();
            let logits = &session.output().logits;
            assert_eq!(logits.len(), 300, "{shape:?}");
            let spread = logits.iter().fold(0f32, |m, v| m.max(v.abs()));
            assert!(spread.is_finite() && spread > 1e-3, "{shape:?}: {spread}");
        }
    }
}

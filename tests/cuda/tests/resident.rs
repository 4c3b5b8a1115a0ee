//! The layers of a dense model in one launch, op by op on the emulator, beside the CPU.

use std::path::PathBuf;
use std::sync::Arc;

use checkpoint::{Checkpoint, Tensor};
use engine::recipe::Registry;
use engine::{Cancel, Engine, SessionOptions};
use half::{bf16, f16};
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::cuda::device::Residency;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::{Backend, Format};
use model1_tests::goldens::relative;
use model1_tests_cuda::{Emulator, Order};
use serde_json::json;

/// A model whose layers fit the launch.
#[derive(Clone, Copy)]
struct Model {
    family: &'static str,
    format: Format,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
}

const HIDDEN: usize = 256;
const FFN: usize = 768;
const VOCAB: usize = 320;

struct Random(u64);

impl Random {
    /// A number from -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn tensor(&mut self, name: String, shape: &[usize], format: Format, scale: f32, around: f32) -> Tensor {
        let n: usize = shape.iter().product();
        let mut bytes = Vec::new();
        match format {
            Format::Bf16 => {
                (0..n).for_each(|_| bytes.extend(bf16::from_f32(around + scale * self.next()).to_le_bytes()))
            }
            Format::Q8_0 | Format::Q4_0 => {
                let (data, most) = if format == Format::Q8_0 { (32, 127.0) } else { (16, 8.0) };
                for _ in 0..n / 32 {
                    bytes.extend(f16::from_f32(scale / most * (1.0 + 0.5 * self.next())).to_le_bytes());
                    bytes.extend((0..data).map(|_| (128.0 * self.next()) as i8 as u8));
                }
            }
            other => panic!("{other}"),
        }
        Tensor {
            name,
            shape: shape.to_vec(),
            format,
            bytes: bytes.into(),
            scales: None,
            file: PathBuf::from("made up"),
        }
    }
}

impl Model {
    fn checkpoint(&self) -> Checkpoint {
        let mut random = Random(7);
        let mut tensors = Vec::new();
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut matrix = |name: &str, rows: usize, cols: usize| {
            let scale = 1.7 / (cols as f32).sqrt();
            tensors.push(random.tensor(format!("{name}.weight"), &[rows, cols], self.format, scale, 0.0));
        };
        for l in 0..self.layers {
            let name = |s: &str| format!("model.layers.{l}.{s}");
            matrix(&name("self_attn.q_proj"), q, HIDDEN);
            matrix(&name("self_attn.k_proj"), kv, HIDDEN);
            matrix(&name("self_attn.v_proj"), kv, HIDDEN);
            matrix(&name("self_attn.o_proj"), HIDDEN, q);
            matrix(&name("mlp.gate_proj"), FFN, HIDDEN);
            matrix(&name("mlp.up_proj"), FFN, HIDDEN);
            matrix(&name("mlp.down_proj"), HIDDEN, FFN);
        }
        matrix("lm_head", VOCAB, HIDDEN);
        let mut vector = |name: String, n: usize, around: f32| {
            tensors.push(random.tensor(name, &[n], Format::Bf16, 0.3, around));
        };
        for l in 0..self.layers {
            let name = |s: &str| format!("model.layers.{l}.{s}");
            vector(name("input_layernorm.weight"), HIDDEN, 1.0);
            vector(name("post_attention_layernorm.weight"), HIDDEN, 1.0);
            if self.family == "qwen2" {
                vector(name("self_attn.q_proj.bias"), q, 0.0);
                vector(name("self_attn.k_proj.bias"), kv, 0.0);
                vector(name("self_attn.v_proj.bias"), kv, 0.0);
            }
        }
        vector("model.norm.weight".into(), HIDDEN, 1.0);
        let embedding = random.tensor(
            "model.embed_tokens.weight".into(),
            &[VOCAB, HIDDEN],
            Format::Bf16,
            1.0,
            0.0,
        );
        tensors.push(embedding);
        let config = json!({
            "architectures": [if self.family == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": self.family, "hidden_act": "silu", "hidden_size": HIDDEN, "intermediate_size": FFN,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "num_hidden_layers": self.layers, "vocab_size": VOCAB, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 2048, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1,
        });
        Checkpoint::in_memory(PathBuf::from("made up"), config.as_object().unwrap().clone(), tensors)
    }

    fn engine(&self, backend: Arc<dyn Backend>) -> Arc<Engine> {
        Engine::with_backend(self.checkpoint(), backend, Registry::default()).unwrap()
    }
}

/// Logits after each of the last `decode` of `ids`, which are read one by one behind the others.
fn logits(engine: &Arc<Engine>, ids: &[u32], decode: usize) -> Vec<Vec<f32>> {
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    let (first, rest) = ids.split_at(ids.len() - decode);
    session.feed(first, None, &Cancel::default(), &mut ()).unwrap();
    let mut all = Vec::new();
    for id in rest {
        session.feed(&[*id], None, &Cancel::default(), &mut ()).unwrap();
        all.push(session.output().logits.clone());
    }
    all
}

fn backend(emulator: Emulator) -> (Arc<Emulator>, Arc<Cuda>) {
    let device = Arc::new(emulator);
    let options = CudaOptions {
        graphs: false,
        guarded: false,
        ahead: true,
        counted: true,
        resident: true,
    };
    (device.clone(), Arc::new(Cuda::on(device, options)))
}

/// Texts of so many tokens, of which the last are read one by one: the CPU's logits, those of single launches, and the same
/// bits in another order of warps.
fn check(model: Model, kernel: &str, texts: &[usize]) {
    for &n in texts {
        let ids: Vec<u32> = (0..n as u32).map(|i| (i * 37 + i / 7 + 3) % VOCAB as u32).collect();
        let decode = 2;
        let want = logits(&model.engine(Arc::new(CpuBackend::with(Cpu::exact(2)))), &ids, decode);
        let (device, cuda) = backend(Emulator::new(Order::Ascending, false).with_multiprocessors(16));
        let got = logits(&model.engine(cuda), &ids, decode);
        let launched = device.launched();
        let count = launched.get(kernel).copied().unwrap_or(0);
        assert!(count > 0, "{kernel} was not launched, these were: {launched:?}");
        let (_, other) = backend(Emulator::new(Order::Descending, false).with_multiprocessors(16));
        assert!(
            logits(&model.engine(other), &ids, decode) == got,
            "{kernel}, {n} tokens: other bits in another order"
        );
        let (_, apart) = backend(Emulator::new(Order::Ascending, false).with_resident(Residency::None));
        let apart = logits(&model.engine(apart), &ids, decode);
        for i in 0..decode {
            let (e, same) = (relative(&got[i], &want[i]), relative(&got[i], &apart[i]));
            println!("{kernel}, {n} tokens: relative difference {e:.1e} from the CPU, {same:.1e} from single launches");
            // Caches hold bf16 numbers, of which the CPU rounds a few the other way.
            assert!(
                e < 2e-3 && same < 1e-5,
                "{kernel}, {n} tokens: logits differ by {e:.1e} and {same:.1e}"
            );
        }
    }
}

#[test]
fn llama_bf16() {
    let model = Model {
        family: "llama",
        format: Format::Bf16,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        layers: 3,
    };
    check(model, "resident_bf16_64", &[5, 140]);
}

#[test]
fn qwen_q8_0() {
    let model = Model {
        family: "qwen2",
        format: Format::Q8_0,
        heads: 6,
        kv_heads: 1,
        head_dim: 128,
        layers: 2,
    };
    check(model, "resident_q8_0_128", &[70, 270]);
}

#[test]
fn qwen_q4_0() {
    let model = Model {
        family: "qwen2",
        format: Format::Q4_0,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        layers: 3,
    };
    check(model, "resident_q4_0_64", &[5]);
}

#[test]
fn llama_bf16_wide() {
    let model = Model {
        family: "llama",
        format: Format::Bf16,
        heads: 4,
        kv_heads: 2,
        head_dim: 128,
        layers: 2,
    };
    check(model, "resident_bf16_128", &[40]);
}

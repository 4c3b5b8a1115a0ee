//! The layers of a dense model and its output layer in one launch, op by op on the emulator, beside the CPU.

use std::collections::BTreeMap;
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
    /// Of the output layer.
    head: Format,
    hidden: usize,
    vocab: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    layers: usize,
}

const FFN: usize = 768;
/// Multiprocessors of the emulator.
const BLOCKS: u32 = 16;
/// Tokens read one by one.
const DECODE: usize = 2;

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
            Format::Q6K => {
                for _ in 0..n / 256 {
                    bytes.extend((0..208).map(|_| (128.0 * self.next()) as i8 as u8));
                    bytes.extend(f16::from_f32(scale / (32.0 * 64.0) * (1.0 + 0.5 * self.next())).to_le_bytes());
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
        let mut of_format = |name: &str, rows: usize, cols: usize, format: Format| {
            let scale = 1.7 / (cols as f32).sqrt();
            tensors.push(random.tensor(format!("{name}.weight"), &[rows, cols], format, scale, 0.0));
        };
        of_format("lm_head", self.vocab, self.hidden, self.head);
        let mut matrix = |name: &str, rows: usize, cols: usize| of_format(name, rows, cols, self.format);
        for l in 0..self.layers {
            let name = |s: &str| format!("model.layers.{l}.{s}");
            matrix(&name("self_attn.q_proj"), q, self.hidden);
            matrix(&name("self_attn.k_proj"), kv, self.hidden);
            matrix(&name("self_attn.v_proj"), kv, self.hidden);
            matrix(&name("self_attn.o_proj"), self.hidden, q);
            matrix(&name("mlp.gate_proj"), FFN, self.hidden);
            matrix(&name("mlp.up_proj"), FFN, self.hidden);
            matrix(&name("mlp.down_proj"), self.hidden, FFN);
        }
        let mut vector = |name: String, n: usize, around: f32| {
            tensors.push(random.tensor(name, &[n], Format::Bf16, 0.3, around));
        };
        for l in 0..self.layers {
            let name = |s: &str| format!("model.layers.{l}.{s}");
            vector(name("input_layernorm.weight"), self.hidden, 1.0);
            vector(name("post_attention_layernorm.weight"), self.hidden, 1.0);
            if self.family == "qwen2" {
                vector(name("self_attn.q_proj.bias"), q, 0.0);
                vector(name("self_attn.k_proj.bias"), kv, 0.0);
                vector(name("self_attn.v_proj.bias"), kv, 0.0);
            }
        }
        vector("model.norm.weight".into(), self.hidden, 1.0);
        let embedding = random.tensor(
            "model.embed_tokens.weight".into(),
            &[self.vocab, self.hidden],
            Format::Bf16,
            1.0,
            0.0,
        );
        tensors.push(embedding);
        let config = json!({
            "architectures": [if self.family == "qwen2" { "Qwen2ForCausalLM" } else { "LlamaForCausalLM" }],
            "model_type": self.family, "hidden_act": "silu", "hidden_size": self.hidden, "intermediate_size": FFN,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "num_hidden_layers": self.layers, "vocab_size": self.vocab, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 2048, "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1,
        });
        Checkpoint::in_memory(PathBuf::from("made up"), config.as_object().unwrap().clone(), tensors)
    }

    fn engine(&self, backend: Arc<dyn Backend>) -> Arc<Engine> {
        Engine::with_backend(self.checkpoint(), backend, Registry::default()).unwrap()
    }
}

/// What every token leaves: logits, then what is probed.
type Left = Vec<Vec<f32>>;

/// What each of the last `DECODE` of `ids` leaves, which are read one by one behind the others.
fn left(engine: &Arc<Engine>, ids: &[u32], probes: bool) -> Vec<Left> {
    let options = SessionOptions {
        probes,
        ..SessionOptions::default()
    };
    let mut session = engine.session(engine.recipe(), options).unwrap();
    let (first, rest) = ids.split_at(ids.len() - DECODE);
    session.feed(first, None, &Cancel::default(), &mut ()).unwrap();
    let mut all = Vec::new();
    for id in rest {
        session.feed(&[*id], None, &Cancel::default(), &mut ()).unwrap();
        let out = session.output();
        let probed = out.probes.iter().map(|p| p.2.clone());
        all.push(std::iter::once(out.logits.clone()).chain(probed).collect());
    }
    all
}

fn backend(emulator: Emulator) -> (Arc<Emulator>, Arc<Cuda>) {
    let device = Arc::new(emulator.with_multiprocessors(BLOCKS));
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
/// bits in another order of warps. Layers and output layer are the launch's.
fn check(model: Model, kernel: &str, texts: &[usize]) {
    for &n in texts {
        let launched = compare(model, kernel, n, false);
        // Products, attention and its end.
        let ops = DECODE * (6 * model.layers + 1);
        let count = launched.get(kernel).copied().unwrap_or(0);
        assert!(
            count == ops as u64,
            "{kernel} was launched for {count} ops of {ops}, these were launched: {launched:?}"
        );
    }
}

/// The same for a text of `n` tokens, perhaps with probes; returns what was launched.
fn compare(model: Model, kernel: &str, n: usize, probes: bool) -> BTreeMap<&'static str, u64> {
    let ids: Vec<u32> = (0..n as u32)
        .map(|i| (i * 37 + i / 7 + 3) % model.vocab as u32)
        .collect();
    let run = |backend: Arc<dyn Backend>| left(&model.engine(backend), &ids, probes);
    let want = run(Arc::new(CpuBackend::with(Cpu::exact(2))));
    let (device, cuda) = backend(Emulator::new(Order::Ascending, false));
    let got = run(cuda);
    let (_, other) = backend(Emulator::new(Order::Descending, false));
    assert!(run(other) == got, "{kernel}, {n} tokens: other bits in another order");
    let (_, apart) = backend(Emulator::new(Order::Ascending, false).with_resident(Residency::None));
    let apart = run(apart);
    for (got, (want, apart)) in got
        .iter()
        .flatten()
        .zip(want.iter().flatten().zip(apart.iter().flatten()))
    {
        let (e, same) = (relative(got, want), relative(got, apart));
        println!("{kernel}, {n} tokens: relative difference {e:.1e} from the CPU, {same:.1e} from single launches");
        // Caches hold bf16 numbers, of which the CPU rounds a few the other way.
        assert!(
            e < 2e-3 && same < 1e-5,
            "{kernel}, {n} tokens: logits differ by {e:.1e} and {same:.1e}"
        );
    }
    device.launched()
}

#[test]
fn llama_bf16() {
    let model = Model {
        family: "llama",
        format: Format::Bf16,
        head: Format::Bf16,
        hidden: 256,
        vocab: 320,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        layers: 3,
    };
    check(model, "resident_bf16_64", &[5, 140]);
    // What is copied out behind the last layer is there, and the output layer apart.
    let launched = compare(model, "resident_bf16_64", 5, true);
    assert!(launched["take_output"] > DECODE as u64, "{launched:?}");
}

#[test]
fn qwen_q8_0() {
    let model = Model {
        family: "qwen2",
        format: Format::Q8_0,
        head: Format::Q8_0,
        hidden: 256,
        vocab: 320,
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
        head: Format::Q4_0,
        hidden: 256,
        vocab: 320,
        heads: 4,
        kv_heads: 4,
        head_dim: 64,
        layers: 3,
    };
    check(model, "resident_q4_0_64", &[5]);
}

/// Places of 768 columns and less, and more rows of a block than there is room for sums.
#[test]
fn llama_q4_0_q6_k() {
    let model = Model {
        family: "llama",
        format: Format::Q4_0,
        head: Format::Q6K,
        hidden: 1024,
        vocab: 300 * BLOCKS as usize + 5,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        layers: 1,
    };
    check(model, "resident_q4_0_64", &[5]);
}

/// A head of another format than the layers' is a launch of its own.
#[test]
fn llama_bf16_wide() {
    let model = Model {
        family: "llama",
        format: Format::Bf16,
        head: Format::Q8_0,
        hidden: 256,
        vocab: 320,
        heads: 4,
        kv_heads: 2,
        head_dim: 128,
        layers: 2,
    };
    let launched = compare(model, "resident_bf16_128", 40, false);
    assert_eq!(launched["resident_bf16_128"], (DECODE * 6 * model.layers) as u64);
}

//! A llama of random numbers that writes small letters, with a tokenizer of single bytes, a chat template and three
//! marks.

use std::path::{Path, PathBuf};

use checkpoint::write::{Spec, write_safetensors};
use serde_json::{Value, json};

#[path = "../../../cli/tests/common/bytes.rs"]
mod bytes;
use bytes::tokenizer_json;

pub const VOCAB: usize = 260;
const HIDDEN: usize = 16;
const HEADS: usize = 2;
const INNER: usize = 16;
const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}\
                        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// How a toy is made.
pub struct Toy {
    pub layers: usize,
    pub context: usize,
    pub chat: bool,
    pub tokenizer: bool,
    /// A letter that breaks the model: whatever follows it has scores that are no numbers.
    pub poison: Option<u8>,
}

impl Default for Toy {
    fn default() -> Self {
        Self {
            layers: 3,
            context: 1 << 20,
            chat: true,
            tokenizer: true,
            poison: None,
        }
    }
}

impl Toy {
    /// Writes the model into a new folder.
    pub fn write(&self, dir: &Path) -> PathBuf {
        std::fs::create_dir_all(dir).unwrap();
        let put = |name: &str, value: Value| std::fs::write(dir.join(name), value.to_string()).unwrap();
        put("config.json", self.config());
        if self.tokenizer {
            put("tokenizer.json", tokenizer_json());
            let mut named = json!({ "eos_token": "<|im_end|>" });
            if self.chat {
                named["chat_template"] = TEMPLATE.into();
            }
            put("tokenizer_config.json", named);
        }
        let weights = self.weights();
        let specs: Vec<Spec> = weights
            .iter()
            .map(|(name, shape, values)| Spec {
                name: name.clone(),
                dtype: "F32".into(),
                shape: shape.clone(),
                bytes: 4 * values.len() as u64,
            })
            .collect();
        write_safetensors(&dir.join("model.safetensors"), &specs, |i| {
            weights[i].2.iter().flat_map(|v| v.to_le_bytes()).collect()
        })
        .unwrap();
        dir.to_path_buf()
    }

    fn config(&self) -> Value {
        json!({
            "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": self.layers,
            "num_attention_heads": HEADS, "num_key_value_heads": 1, "intermediate_size": INNER, "vocab_size": VOCAB,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": self.context,
            "tie_word_embeddings": false, "hidden_act": "silu", "eos_token_id": 258,
        })
    }

    fn weights(&self) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let mut seed = 1u64;
        let mut all = Vec::new();
        let mut matrix = |name: String, rows: usize, cols: usize| {
            let scale = if name.starts_with("model.embed") {
                1.0
            } else {
                3.0 / (cols as f32).sqrt()
            };
            let mut random = || {
                seed = seed
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                scale * ((seed >> 40) as f32 / (1u64 << 23) as f32 - 1.0)
            };
            let values = (0..rows * cols).map(|_| random()).collect();
            all.push((name, vec![rows, cols], values));
        };
        let head_dim = HIDDEN / HEADS;
        matrix("model.embed_tokens.weight".into(), VOCAB, HIDDEN);
        matrix("lm_head.weight".into(), VOCAB, HIDDEN);
        for layer in 0..self.layers {
            let p = format!("model.layers.{layer}");
            matrix(format!("{p}.self_attn.q_proj.weight"), HIDDEN, HIDDEN);
            matrix(format!("{p}.self_attn.k_proj.weight"), head_dim, HIDDEN);
            matrix(format!("{p}.self_attn.v_proj.weight"), head_dim, HIDDEN);
            matrix(format!("{p}.self_attn.o_proj.weight"), HIDDEN, HIDDEN);
            matrix(format!("{p}.mlp.gate_proj.weight"), INNER, HIDDEN);
            matrix(format!("{p}.mlp.up_proj.weight"), INNER, HIDDEN);
            matrix(format!("{p}.mlp.down_proj.weight"), HIDDEN, INNER);
        }
        let mut norms: Vec<String> = vec!["model.norm.weight".into()];
        for layer in 0..self.layers {
            for norm in ["input_layernorm", "post_attention_layernorm"] {
                norms.push(format!("model.layers.{layer}.{norm}.weight"));
            }
        }
        all.extend(norms.into_iter().map(|n| (n, vec![HIDDEN], vec![1.0; HIDDEN])));
        for (name, _, values) in &mut all {
            if name == "lm_head.weight" {
                let letter = |i: usize| (usize::from(b'a')..=usize::from(b'z')).contains(&i);
                for (_, row) in values.chunks_exact_mut(HIDDEN).enumerate().filter(|(i, _)| !letter(*i)) {
                    row.fill(0.0);
                }
            }
            if let Some(letter) = self.poison.filter(|_| name == "model.embed_tokens.weight") {
                let at = usize::from(letter) * HIDDEN;
                values[at..at + HIDDEN].fill(f32::NAN);
            }
        }
        all
    }
}

//! Configuration of `deepseek_v4`: Hugging Face's new form, the released config.json, and the names of DeepSeek's own
//! inference config (MODEL1.md 1.3).

use super::rope;
use crate::error::EngineError;
use crate::model::Config;
use crate::recipe::AttentionKind;

/// Everything the graph needs to know.
#[derive(Clone, Debug)]
pub(super) struct V4Config {
    pub vocab: usize,
    pub hidden: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub rope_dim: usize,
    pub q_lora: usize,
    pub o_groups: usize,
    pub o_lora: usize,
    pub window: usize,
    pub kinds: Vec<AttentionKind>,
    pub csa_rate: usize,
    pub hca_rate: usize,
    pub hash: Vec<bool>,
    pub index_heads: usize,
    pub index_dim: usize,
    pub index_topk: usize,
    pub streams: usize,
    pub sinkhorn: usize,
    pub hc_eps: f32,
    pub experts: usize,
    pub experts_per_token: usize,
    pub shared_experts: usize,
    pub expert_width: usize,
    pub normalise: bool,
    pub scaling: f32,
    pub swiglu_limit: Option<f32>,
    pub eps: f32,
    pub max_context: usize,
    pub mtp: usize,
    pub freqs_main: Vec<f64>,
    pub freqs_compress: Vec<f64>,
}

impl V4Config {
    pub fn parse(c: &Config<'_>) -> Result<Self, EngineError> {
        let layers = c.size(&["num_hidden_layers", "n_layers"])?;
        let head_dim = c.size(&["head_dim"])?;
        let rope_dim = match c.value("partial_rotary_factor").and_then(serde_json::Value::as_f64) {
            Some(f) if !c.has("qk_rope_head_dim") && !c.has("rope_head_dim") => (f * head_dim as f64).round() as usize,
            _ => c.size(&["qk_rope_head_dim", "rope_head_dim"])?,
        };
        let (kinds, csa_rate, hca_rate) = layer_kinds(c, layers)?;
        let (freqs_main, freqs_compress) = frequencies(c, rope_dim)?;
        let this = Self {
            vocab: c.size(&["vocab_size"])?,
            hidden: c.size(&["hidden_size", "dim"])?,
            heads: c.size(&["num_attention_heads", "n_heads"])?,
            head_dim,
            rope_dim,
            q_lora: c.size(&["q_lora_rank"])?,
            o_groups: c.size(&["o_groups"])?,
            o_lora: c.size(&["o_lora_rank"])?,
            window: c.size_or(&["sliding_window", "window_size"], 128)?,
            kinds,
            csa_rate,
            hca_rate,
            hash: hash_layers(c, layers)?,
            index_heads: c.size_or(&["index_n_heads"], 64)?,
            index_dim: c.size_or(&["index_head_dim"], 128)?,
            index_topk: c.size_or(&["index_topk"], 512)?,
            streams: c.size_or(&["hc_mult"], 4)?,
            sinkhorn: c.size_or(&["hc_sinkhorn_iters"], 20)?,
            hc_eps: c.float_or(&["hc_eps"], 1e-6)? as f32,
            experts: c.size(&["n_routed_experts"])?,
            experts_per_token: c.size(&["num_experts_per_tok", "n_activated_experts"])?,
            shared_experts: c.count_or(&["n_shared_experts"], 1)?,
            expert_width: c.size(&["moe_intermediate_size", "moe_inter_dim"])?,
            normalise: c.flag_or("norm_topk_prob", true)?,
            scaling: c.float_or(&["routed_scaling_factor", "route_scale"], 1.0)? as f32,
            swiglu_limit: match c.float_or(&["swiglu_limit"], 0.0)? {
                x if x > 0.0 => Some(x as f32),
                _ => None,
            },
            eps: c.float_or(&["rms_norm_eps", "norm_eps"], 1e-6)? as f32,
            max_context: c.size_or(&["max_position_embeddings", "max_seq_len"], 1 << 20)?,
            mtp: c.count_or(&["num_nextn_predict_layers", "n_mtp_layers"], 0)?,
            freqs_main,
            freqs_compress,
        };
        this.check(c)?;
        Ok(this)
    }

    fn check(&self, c: &Config<'_>) -> Result<(), EngineError> {
        if !matches!(
            c.text("scoring_func").or_else(|| c.text("score_func")),
            None | Some("sqrtsoftplus")
        ) {
            return Err(c.error("scoring_func", "sqrtsoftplus"));
        }
        if !self.rope_dim.is_multiple_of(2) || self.rope_dim > self.head_dim {
            return Err(c.error(
                "qk_rope_head_dim",
                &format!("an even number up to head_dim = {}", self.head_dim),
            ));
        }
        let indexed = self.kinds.contains(&AttentionKind::Csa);
        if indexed && self.rope_dim > self.index_dim {
            return Err(c.error("index_head_dim", &format!("at least the rope width {}", self.rope_dim)));
        }
        if !self.heads.is_multiple_of(self.o_groups) {
            return Err(c.error("o_groups", &format!("a divisor of the {} heads", self.heads)));
        }
        if self.experts_per_token > self.experts {
            return Err(c.error(
                "num_experts_per_tok",
                &format!("at most n_routed_experts = {}", self.experts),
            ));
        }
        if self.streams > 16 {
            return Err(c.error("hc_mult", "1 to 16"));
        }
        if self.window > 1 << 20 {
            return Err(c.error("sliding_window", "1 to 2^20"));
        }
        Ok(())
    }

    /// Tokens per compressed row of a layer (0 = none).
    pub fn rate(&self, layer: usize) -> usize {
        match self.kinds[layer] {
            AttentionKind::Csa => self.csa_rate,
            AttentionKind::Hca => self.hca_rate,
            _ => 0,
        }
    }
}

fn layer_kinds(c: &Config<'_>, layers: usize) -> Result<(Vec<AttentionKind>, usize, usize), EngineError> {
    let list = |field: &str| c.value(field).and_then(|v| v.as_array());
    if let Some(types) = list("layer_types") {
        let rates = c.section("compress_rates");
        let rate = |names: &[&'static str], default| match &rates {
            Some(r) => r.size_or(names, default),
            None => Ok(default),
        };
        let csa = rate(&["compressed_sparse_attention", "csa"], 4)?;
        let hca = rate(&["heavily_compressed_attention", "hca"], 128)?;
        let kinds: Option<Vec<_>> = types
            .iter()
            .take(layers)
            .map(|t| match t.as_str()? {
                "sliding_attention" => Some(AttentionKind::Sliding),
                "compressed_sparse_attention" => Some(AttentionKind::Csa),
                "heavily_compressed_attention" => Some(AttentionKind::Hca),
                _ => None,
            })
            .collect();
        let accepted = "one of sliding_attention, compressed_sparse_attention, heavily_compressed_attention per layer";
        return match kinds {
            Some(k) if k.len() == layers => Ok((k, csa, hca)),
            _ => Err(c.error("layer_types", accepted)),
        };
    }
    // Never guess: neither release follows the library's fallback schedule (MODEL1.md 10.4-7).
    let accepted = "one ratio per layer: 0 (sliding), 4 (CSA) or a larger one (HCA)";
    let Some(ratios) = list("compress_ratios").filter(|r| r.len() >= layers) else {
        return Err(c.error("compress_ratios", accepted));
    };
    let ratios: Option<Vec<u64>> = ratios.iter().take(layers).map(serde_json::Value::as_u64).collect();
    let ratios = ratios
        .filter(|r| r.iter().all(|&x| x <= 1 << 16))
        .ok_or_else(|| c.error("compress_ratios", accepted))?;
    let large: Vec<u64> = ratios.iter().copied().filter(|&r| r > 0).collect();
    let csa = large.iter().copied().min().filter(|&r| r <= 8).unwrap_or(4);
    let hca = large.iter().copied().find(|&r| r != csa).unwrap_or(128);
    let kinds: Option<Vec<_>> = ratios
        .iter()
        .map(|&r| match r {
            0 => Some(AttentionKind::Sliding),
            r if r == csa => Some(AttentionKind::Csa),
            r if r == hca => Some(AttentionKind::Hca),
            _ => None,
        })
        .collect();
    let kinds = kinds.ok_or_else(|| c.error("compress_ratios", accepted))?;
    Ok((kinds, csa as usize, hca as usize))
}

fn hash_layers(c: &Config<'_>, layers: usize) -> Result<Vec<bool>, EngineError> {
    if let Some(types) = c.value("mlp_layer_types").and_then(|v| v.as_array()) {
        let hash: Option<Vec<bool>> = types
            .iter()
            .take(layers)
            .map(|t| match t.as_str()? {
                "hash_moe" => Some(true),
                "moe" => Some(false),
                _ => None,
            })
            .collect();
        return match hash {
            Some(h) if h.len() == layers => Ok(h),
            _ => Err(c.error("mlp_layer_types", "hash_moe or moe per layer")),
        };
    }
    let n = c.count_or(&["num_hash_layers", "n_hash_layers"], 3)?;
    Ok((0..layers).map(|l| l < n).collect())
}

/// (sliding layers, CSA and HCA layers): MODEL1.md 2.4.
fn frequencies(c: &Config<'_>, dims: usize) -> Result<(Vec<f64>, Vec<f64>), EngineError> {
    let parameters = c.section("rope_parameters");
    let main = parameters.as_ref().and_then(|p| p.section("main"));
    let compress = parameters.as_ref().and_then(|p| p.section("compress"));
    let base_main = match &main {
        Some(m) if m.has("rope_theta") => m.float_or(&["rope_theta"], 1e4)?,
        _ => c.float_or(&["rope_theta"], 1e4)?,
    };
    let base_compress = match &compress {
        Some(m) if m.has("rope_theta") => m.float_or(&["rope_theta"], 1.6e5)?,
        _ => c.float_or(&["compress_rope_theta"], 1.6e5)?,
    };
    if base_main <= 1.0 || base_compress <= 1.0 {
        return Err(c.error("rope_theta", "numbers greater than 1"));
    }
    let mut freqs = rope::plain(base_compress, dims);
    let scaling = compress.or_else(|| c.section("rope_scaling"));
    if let Some(s) = scaling {
        let field = if s.has("rope_type") { "rope_type" } else { "type" };
        match s.text(field) {
            None | Some("default") => {}
            Some("yarn") => {
                let factor = s.float_or(&["factor"], 16.0)?;
                let original = s.float_or(&["original_max_position_embeddings"], 65536.0)?;
                let (fast, slow) = (s.float_or(&["beta_fast"], 32.0)?, s.float_or(&["beta_slow"], 1.0)?);
                if factor <= 0.0 || original <= 0.0 || fast <= 0.0 || slow <= 0.0 {
                    return Err(s.error("factor", "positive numbers"));
                }
                rope::yarn(&mut freqs, base_compress, factor, fast, slow, original);
            }
            Some(_) => return Err(s.error(field, "yarn, default")),
        }
    } else if c.has("rope_factor") && c.has("original_seq_len") {
        let factor = c.float_or(&["rope_factor"], 16.0)?;
        let original = c.float_or(&["original_seq_len"], 65536.0)?;
        if original > 0.0 && factor > 0.0 {
            let (fast, slow) = (c.float_or(&["beta_fast"], 32.0)?, c.float_or(&["beta_slow"], 1.0)?);
            rope::yarn(&mut freqs, base_compress, factor, fast, slow, original);
        }
    }
    Ok((rope::plain(base_main, dims), freqs))
}

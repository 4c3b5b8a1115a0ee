//! Facts of small models for tests.

use kernels::ir::Activation;

use super::{AttentionKind, FfnKind, LayerFacts, MatrixInputs, ModelFacts};

/// A MODEL1 of seven layers: two sliding, then CSA and HCA in turn.
pub fn facts() -> ModelFacts {
    let kind = |layer| match layer {
        0 | 1 => AttentionKind::Sliding,
        2 | 4 | 6 => AttentionKind::Csa,
        _ => AttentionKind::Hca,
    };
    model("deepseek_v4", (0..7).map(kind).collect(), 128, 32)
}

/// A llama of four layers.
pub fn dense_facts() -> ModelFacts {
    model("llama", vec![AttentionKind::Dense; 4], 64, 0)
}

fn model(family: &'static str, kinds: Vec<AttentionKind>, head_dim: usize, tail: usize) -> ModelFacts {
    let layer = |(layer, attention): (usize, AttentionKind)| {
        let csa = attention == AttentionKind::Csa;
        let moe = family == "deepseek_v4";
        LayerFacts {
            family,
            layer,
            attention,
            ffn: if moe { FfnKind::Moe } else { FfnKind::SwiGlu },
            activation: Activation::Silu,
            heads: 4,
            kv_heads: if moe { 1 } else { 2 },
            head_dim,
            rope_tail: tail,
            window: if moe { 16 } else { 0 },
            rate: match attention {
                AttentionKind::Csa => 4,
                AttentionKind::Hca => 16,
                _ => 0,
            },
            index_topk: if csa { 8 } else { 0 },
            index_dim: if csa { 32 } else { 0 },
            experts: if moe { 8 } else { 0 },
            experts_per_token: if moe { 2 } else { 0 },
            hash_routed: moe && layer < 1,
            inputs: MatrixInputs {
                attention: vec![64, 4 * head_dim],
                ffn: vec![64, 32],
                hidden: 64,
            },
        }
    };
    ModelFacts {
        family,
        vocab: 512,
        hidden: 64,
        max_context: 4096,
        streams: if family == "deepseek_v4" { 4 } else { 1 },
        tied: false,
        layers: kinds.into_iter().enumerate().map(layer).collect(),
        quantised: false,
        full_precision: false,
    }
}

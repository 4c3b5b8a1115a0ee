//! Facts of a loaded model as the interface sees them.

use std::path::Path;

use engine::Engine;
use engine::recipe::{AttentionKind, FfnKind, LayerFacts};
use kernels::ir::WeightDesc;
use protocol::{FactsView, LayerFactsView, Sampling};

/// Facts of an engine.
pub(crate) fn view(engine: &Engine) -> FactsView {
    let f = engine.facts();
    FactsView {
        family: f.family.to_string(),
        vocab: f.vocab as u32,
        hidden: f.hidden as u32,
        streams: f.streams as u32,
        max_context: f.max_context as u64,
        parameters: engine.weights().descs().iter().map(WeightDesc::elements).sum(),
        weight_bytes: engine.weight_bytes(),
        main_format: engine.main_format().to_string(),
        layers: f.layers.iter().map(layer).collect(),
    }
}

fn layer(f: &LayerFacts) -> LayerFactsView {
    LayerFactsView {
        attention: match f.attention {
            AttentionKind::Dense => "dense",
            AttentionKind::Sliding => "sliding",
            AttentionKind::Csa => "csa",
            AttentionKind::Hca => "hca",
        }
        .into(),
        attention_name: f.attention.name().into(),
        ffn_name: match f.ffn {
            FfnKind::SwiGlu => "SwiGLU".into(),
            FfnKind::GeluMlp => "GELU MLP".into(),
            FfnKind::Moe => format!("{} experts, {} per token", f.experts, f.experts_per_token),
        },
        heads: f.heads as u32,
        kv_heads: f.kv_heads as u32,
        head_dim: f.head_dim as u32,
        window: f.window as u32,
        rate: f.rate as u32,
        index_topk: f.index_topk as u32,
        experts: f.experts as u32,
        experts_per_token: f.experts_per_token as u32,
    }
}

/// Sampler of the model's generation_config, with the alternatives the settings ask for.
pub(crate) fn default_sampling(engine: &Engine, logprobs: u32) -> Sampling {
    let s = engine.default_sampler();
    Sampling {
        temperature: s.temperature,
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        repetition_penalty: s.repetition_penalty,
        frequency_penalty: s.frequency_penalty,
        presence_penalty: s.presence_penalty,
        seed: s.seed,
        logprobs,
    }
}

/// Whether conversations can be rendered for this model; else why not.
pub(crate) fn chat(engine: &Engine) -> Result<(), String> {
    let tokenizer = match engine.tokenizer() {
        Ok(t) => t,
        Err(e) => return Err(e.to_string()),
    };
    let prompt = engine.prompt();
    if matches!(prompt, text::Prompt::Model1) {
        // The format is implied by the family; a model trained without its markers has never seen a conversation.
        let markers = ["<\u{FF5C}User\u{FF5C}>", "<\u{FF5C}Assistant\u{FF5C}>"];
        if markers.iter().any(|m| tokenizer.id_of(m).is_none()) {
            return Err("a base model: it continues stories and was never shown a conversation".into());
        }
    }
    match prompt.render(&[text::Message::user("x")], true, tokenizer) {
        Ok(_) => Ok(()),
        Err(_) if !prompt.can_chat() => Err("a base model: it has no chat template and continues text".into()),
        Err(e) => Err(e.to_string()),
    }
}

/// Prompts that suit a model.
pub(crate) fn starters(engine: &Engine, chat: bool, bundled: bool) -> Vec<String> {
    let list: &[&str] = if engine.tokenizer().is_err() {
        // Models without a tokenizer read token ids.
        return vec!["1, 2, 3".into()];
    } else if chat {
        &[
            "Explain in three sentences why the sky is blue.",
            "Write a short poem about a lighthouse.",
            "Give me three ideas for a rainy afternoon.",
        ]
    } else if bundled {
        &[
            "Once upon a time, there was a little fox who",
            "Lily found a shiny key under the old tree.",
            "One rainy day, Tom and his dog",
        ]
    } else {
        &[
            "Once upon a time",
            "The most important discovery of the century was",
            "def fibonacci(n):",
        ]
    };
    list.iter().map(ToString::to_string).collect()
}

/// A number for the vocabulary: tokens of one model mean nothing to another.
pub(crate) fn vocabulary(engine: &Engine) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut take = |bytes: &[u8]| {
        for &b in bytes.iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    };
    take(&(engine.facts().vocab as u64).to_le_bytes());
    if let Ok(t) = engine.tokenizer() {
        (0..t.vocab_size() as u32).for_each(|id| take(t.token_bytes(id).unwrap_or_default()));
    }
    hash.max(1)
}

/// Most bytes of text one token stands for.
pub(crate) fn longest_piece(engine: &Engine) -> usize {
    let Ok(t) = engine.tokenizer() else { return 8 };
    let ids = 0..t.vocab_size() as u32;
    ids.filter_map(|id| t.token_bytes(id))
        .map(<[u8]>::len)
        .max()
        .unwrap_or(1)
        .max(1)
}

/// Parameters of a checkpoint from its headers; 0 if they cannot be read.
pub(crate) fn parameters_of(path: &Path) -> u64 {
    let Ok(c) = checkpoint::Checkpoint::open(path, &checkpoint::Silent) else {
        return 0;
    };
    c.tensors()
        .map(|t| t.shape.iter().map(|&n| n as u64).product::<u64>())
        .sum()
}

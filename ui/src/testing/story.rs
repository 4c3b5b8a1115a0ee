//! A fake story with probabilities and telemetry. Deterministic: the same call gives the same numbers.

use protocol::{
    Alternative, DocInfo, DocKind, DocView, FinishView, GenerateSpec, KvBytes, LayerRecord, ModelState, NodeView, Role,
    RunSummary, StateView, StepRecord, TELEMETRY_VERSION, TokenEntry, TokenInfo, Update,
};

use super::{Script, facts};

/// The story, a token each.
pub const WORDS: &str = "| lived| in| a| warm| cave| on| the| hill|.| Every| morning| he| sat| by| the| door| and| \
watched| the| sun| come| up| over| the| wood|.| His| name| was| Emb|er|,| and| he| was| a| very| small| dragon|.| He| \
could| not| breathe| fire| like| his| big| brothers|.| He| could| only| make| a| little| puff| of| smoke|.|\n\n|One| \
day|,| a| girl| named| Mia| came| up| the| path|.| She| had| lost| her| red| hat| in| the| wind|.| \"|Have| you| seen| \
my| hat|?\"| she| asked|.| Ember| shook| his| head|,| but| he| wanted| to| help|.| \"|We| can| look| for| it| together|\
,\"| he| said|.|\n\n|They| looked| under| the| old| tree|.| They| looked| by| the| stream|.| Then| Ember| saw| \
something| red| high| up| in| the| branches|.| He| took| a| deep| breath| and| blew| a| big| puff| of| smoke|.| The| \
hat| danced| in| the| air| and| floated| down|,| right| on| Mia|'s| head|.| She| laughed| and| hugged| the| little| \
dragon|.| \"|You| do| not| need| fire|,\"| she| said|.| \"|You| are| just| right|.\"|";

const SEEDS: [&str; 8] = [" fox", " king", " cat", " boy", " tree", " house", " bird", " girl"];
/// First position of the story: the prompt has as many tokens.
pub(super) const PROMPT_TOKENS: u64 = 11;

/// A number in 0..1 from two.
pub(super) fn noise(a: u64, b: u64) -> f64 {
    let mut x = a.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ b.wrapping_mul(0xc2b2_ae3d_27d4_eb4f);
    x ^= x >> 29;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 32;
    (x >> 11) as f64 / (1u64 << 53) as f64
}

fn words() -> Vec<&'static str> {
    WORDS.split('|').filter(|w| !w.is_empty()).collect()
}

/// Token `i` of the story (which starts over after its end).
pub fn token(i: usize) -> TokenInfo {
    let words = words();
    let text = words[i % words.len()];
    let id = 100 + (i % words.len()) as u32;
    // Most tokens are likely, some surprise.
    let p = (0.04 + 0.95 * noise(i as u64, 1).powf(0.6)).min(0.99);
    let mut left = 1.0 - p;
    let mut top = vec![Alternative {
        token: id,
        text: text.into(),
        logprob: p.ln() as f32,
    }];
    for k in 0..7u64 {
        let q = left * (0.35 + 0.3 * noise(i as u64, 10 + k));
        left -= q;
        let at = (i + k as usize * 3) % SEEDS.len();
        top.push(Alternative {
            token: 3000 + at as u32,
            text: SEEDS[at].into(),
            logprob: q.max(1e-9).ln() as f32,
        });
    }
    top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob));
    TokenInfo {
        token: id,
        text: text.into(),
        logprob: p.ln() as f32,
        top,
        position: PROMPT_TOKENS + i as u64,
        recipe: 0,
    }
}

fn spec() -> GenerateSpec {
    GenerateSpec {
        sampling: facts::sampling(),
        max_tokens: 400,
        stop: Vec::new(),
        ignore_eos: false,
        thinking: false,
    }
}

fn node(id: u32, parent: Option<u32>, role: Role, text: &str) -> NodeView {
    NodeView {
        id,
        parent,
        role,
        text: text.into(),
        tokens: Vec::new(),
        finish: FinishView::Eos,
        spec: None,
        recipes: Vec::new(),
        summary: None,
        error: None,
        created: 1_700_000_000,
    }
}

fn written(id: u32, parent: u32, tokens: usize) -> NodeView {
    let mut n = node(id, Some(parent), Role::Assistant, "");
    n.tokens = (0..tokens).map(token).collect();
    n.text = n.tokens.iter().map(|t| t.text.as_str()).collect();
    n.spec = Some(spec());
    n.recipes = vec![facts::recipe().hash];
    n
}

fn info(id: u64, title: &str, kind: DocKind, changed: u64, messages: u32) -> DocInfo {
    DocInfo {
        id,
        title: title.into(),
        kind,
        model: "MODEL1-mini".into(),
        changed,
        messages,
    }
}

/// A text with nothing in it.
pub(super) fn empty_doc() -> DocView {
    DocView {
        info: info(1, "New text", DocKind::Text, 1_700_000_000, 0),
        system: String::new(),
        nodes: Vec::new(),
        leaf: None,
        token_seq: 0,
        command: String::new(),
    }
}

/// The story with `tokens` tokens written by the model.
pub fn doc(tokens: usize) -> DocView {
    let prompt = node(1, None, Role::User, "Once upon a time there was a little dragon who");
    let mut first = written(2, 1, tokens.min(40));
    first.tokens.truncate(12);
    first.text = first.tokens.iter().map(|t| t.text.as_str()).collect();
    first.finish = FinishView::Cancelled;
    let mut story = written(3, 1, tokens);
    story.finish = FinishView::Running;
    DocView {
        info: info(1, "Once upon a time there was a little dragon", DocKind::Text, 1_700_000_300, 3),
        system: String::new(),
        nodes: vec![prompt, first, story],
        leaf: Some(3),
        token_seq: 12 + tokens as u64,
        command: "model1 generate --model bundled --seed 7 --temperature 0.8 --top-p 0.95 --max-tokens 400 'Once upon a time there was a little dragon who'".into(),
    }
}

/// The list of texts beside this one.
pub(super) fn docs(current: &DocView) -> Vec<DocInfo> {
    vec![
        current.info.clone(),
        info(
            5,
            "The old clock on the wall could talk",
            DocKind::Text,
            1_699_990_000,
            2,
        ),
        info(4, "Why is the sky blue?", DocKind::Chat, 1_699_800_000, 6),
        info(
            3,
            "Lily and her brother found a tiny door",
            DocKind::Text,
            1_699_000_000,
            4,
        ),
    ]
}

/// Cache bytes of a layer after `n` tokens: records of 584 bytes.
fn kv(kind: &str, n: u64) -> KvBytes {
    let window = n.min(128) * 576;
    let rows = match kind {
        "csa" => n / 4,
        "hca" => n / 128,
        _ => 0,
    };
    let index = if kind == "csa" { rows * 64 } else { 0 };
    KvBytes {
        window,
        rows: rows * 576,
        index,
        scales: n.min(128) * 8 + rows * 8 + if kind == "csa" { rows * 4 } else { 0 },
        pooling: match kind {
            "csa" => 16_384,
            "hca" => 524_288,
            _ => 0,
        },
        checkpoints: (n / 128) * 75_000,
    }
}

fn layer(i: usize, kind: &str, position: u64, tokens: u64) -> LayerRecord {
    let n = position + tokens;
    let context: u64 = (position..n).map(|p| p + 1).sum();
    let scored = |p: u64| match kind {
        "csa" => (p + 1).min(128) + (p / 4).min(32),
        "hca" => (p + 1).min(128) + p / 128,
        _ => (p + 1).min(128),
    };
    let keys: u64 = (position..n).map(scored).sum();
    let mut load = vec![0u32; 8];
    for t in 0..tokens {
        for k in 0..3u64 {
            // Low experts are a little more popular, as trained routers are.
            let e = (8.0 * noise(position + t, 40 + 7 * i as u64 + k).powf(1.3)) as usize;
            load[e.min(7)] += 1;
        }
    }
    LayerRecord {
        kv_used: kv(kind, n),
        kv_allocated: kv(kind, 4096),
        keys_context: context,
        keys_scored: keys,
        keys_kept: keys,
        ffn_units: 0,
        ffn_kept: 0,
        index_scored: if kind == "csa" {
            (position..n).map(|p| p / 4).sum()
        } else {
            0
        },
        round_trip_error: Some(0.021 + 0.0016 * i as f64 + 0.004 * noise(position, i as u64)),
        saturated: 0.0,
        flushed: 0.0006 * noise(position, 90 + i as u64),
        expert_load: load,
    }
}

/// One step of `tokens` tokens at `position`.
pub(super) fn step(seq: u64, position: u64, tokens: u32) -> StepRecord {
    let base = if tokens > 1 {
        1.1e6 * f64::from(tokens)
    } else {
        2.9e6 + 70.0 * position as f64
    };
    let hiccup = if noise(seq, 3) > 0.985 { 2.4 } else { 1.0 };
    StepRecord {
        version: TELEMETRY_VERSION,
        seq,
        position,
        tokens,
        nanos: (base * hiccup * (0.92 + 0.16 * noise(seq, 2))) as u64,
        plan: 0x5f3a,
        memory: Some(412_000_000 + 9_000 * seq),
        layers: facts::KINDS
            .iter()
            .enumerate()
            .map(|(i, k)| layer(i, k, position, u64::from(tokens)))
            .collect(),
    }
}

/// Steps of the story: the prompt, then a token each.
pub fn steps(tokens: usize) -> Vec<StepRecord> {
    let mut out = vec![step(1, 0, PROMPT_TOKENS as u32)];
    out.extend((0..tokens as u64).map(|i| step(2 + i, PROMPT_TOKENS + i, 1)));
    out
}

/// The state in the middle of the story.
pub(super) fn live() -> (DocView, StateView, Vec<StepRecord>) {
    let tokens = 300;
    let view = doc(tokens);
    let mut state = facts::state(ModelState::Ready(Box::new(facts::loaded())));
    state.recipe = Some(facts::recipe());
    state.doc = Some(view.info.clone());
    state.writing = Some(3);
    state.position = PROMPT_TOKENS + tokens as u64;
    (view, state, steps(tokens))
}

/// Totals of the story.
pub fn summary(tokens: u64) -> RunSummary {
    RunSummary {
        prompt_tokens: PROMPT_TOKENS,
        tokens,
        first_token_s: 0.038,
        prefill_tokens_per_s: 702.0,
        decode_tokens_per_s: 316.4,
        latency_ms: [3.02, 3.41, 7.2],
    }
}

/// Ends the story.
pub(super) fn finish(state: &mut StateView, doc: Option<&mut DocView>) {
    state.writing = None;
    if let Some(node) = doc.and_then(|d| d.nodes.last_mut()) {
        node.finish = FinishView::MaxTokens;
        node.summary = Some(summary(node.tokens.len() as u64));
    }
}

/// `n` more tokens.
pub(super) fn write_more(script: &mut Script, n: usize) -> Update {
    let mut update = Update::default();
    let Some(doc) = &mut script.doc else { return update };
    let id = doc.info.id;
    let Some(node) = doc.nodes.last_mut() else {
        return update;
    };
    for _ in 0..n {
        let index = node.tokens.len();
        let info = token(index);
        script.next_seq += 1;
        node.text.push_str(&info.text);
        node.tokens.push(info.clone());
        let seq = script.steps.last().map_or(0, |s| s.seq) + 1;
        script.steps.push(step(seq, info.position, 1));
        update.tokens.push(TokenEntry {
            seq: script.next_seq,
            doc: id,
            node: node.id,
            index: index as u32,
            info,
        });
        update.steps.extend(script.steps.last().cloned());
        update.last_step = seq;
    }
    doc.token_seq = script.next_seq;
    script.state.position += n as u64;
    script.state.revision += 1;
    update.state = Some(Box::new(script.state.clone()));
    update
}

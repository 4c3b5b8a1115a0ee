//! A free run of the scripted host: the sides part, and say the same again later.

use protocol::{
    CompareText, FinishView, FreeBlock, FreeMode, FreeSide, FreeSpec, FreeSplit, FreeToken, FreeView, KvBytes, Label,
    RecipeRef,
};

use super::story::{noise, token};

/// Where the scripted sides part.
const SPLIT: usize = 41;
/// What only A and only B say there, in tokens.
const APART: [usize; 2] = [9, 14];
/// Tokens each side writes.
const TOKENS: usize = 128;

fn side(i: usize, written: usize) -> Vec<FreeToken> {
    let own = |n: usize| n >= SPLIT && n < SPLIT + APART[i];
    let back = |n: usize| if n < SPLIT { n } else { n - APART[i] };
    let one = |n: usize| {
        let at = if own(n) { 900 + 40 * i + n } else { back(n) };
        let t = token(at);
        FreeToken {
            token: t.token,
            text: t.text,
            logprob: t.logprob,
            margin: if n == SPLIT { 0.0007 } else { noise(n as u64, 31) as f32 },
        }
    };
    (0..written).map(one).collect()
}

/// The run after each side has written `written` tokens; the whole of it with `usize::MAX`. As the host does, it sends
/// the tokens from `since` on.
pub fn free_run(written: usize, since: [u64; 2]) -> FreeView {
    let over = written >= TOKENS;
    let n = written.min(TOKENS);
    let all = [side(0, n), side(1, n)];
    let make = |i: usize| FreeSide {
        hash: ["9c41d7e02b6a58f3", "51b0aa7c9e3f2d18"][i].into(),
        tokens: all[i].get(since[i] as usize..).unwrap_or(&[]).to_vec(),
        finish: if over {
            FinishView::MaxTokens
        } else {
            FinishView::Running
        },
        kv: KvBytes {
            window: if over { [1_930_000, 2_310_000][i] } else { 0 },
            ..KvBytes::default()
        },
        decode_tokens_per_s: if over { [316.0, 301.0][i] } else { 0.0 },
    };
    let split = (n > SPLIT).then(|| FreeSplit {
        at: SPLIT as u64,
        tokens: all.each_ref().map(|t| Some(t[SPLIT].token)),
        texts: all.each_ref().map(|t| t[SPLIT].text.clone()),
        margin: [0.0007, 0.0007],
        near_tie: true,
    });
    let begin = FreeBlock {
        a: 0,
        b: 0,
        len: SPLIT as u64,
    };
    let again = FreeBlock {
        a: (SPLIT + APART[0]) as u64,
        b: (SPLIT + APART[1]) as u64,
        len: (TOKENS - SPLIT - APART[1]) as u64,
    };
    let share = (begin.len + again.len) as f64 / TOKENS as f64;
    FreeView {
        revision: n as u64 + 1,
        spec: FreeSpec {
            a: RecipeRef::Own,
            b: RecipeRef::Current,
            prompt: CompareText::Given("Once upon a time there was a little dragon who".into()),
            tokens: TOKENS as u64,
            temperature: 0.0,
            seed: 1,
            mode: FreeMode::Lockstep,
        },
        model: "MODEL1-mini".into(),
        device: "CPU, 2 threads, AVX-512".into(),
        reference: "fp8 weights, f32 arithmetic on CPU".into(),
        prompt_tokens: 10,
        prompt: "Once upon a time there was a little dragon who".into(),
        from: since.map(|s| s.min(n as u64)),
        sides: [make(0), make(1)],
        kl: (0..n.min(SPLIT + 1))
            .map(|i| (0.002 * noise(i as u64, 500).powi(3)) as f32)
            .collect(),
        kl_most: 4096,
        split,
        blocks: if over { vec![begin, again] } else { Vec::new() },
        rejoin: over.then_some(again),
        shared: if over { [share; 2] } else { [0.0; 2] },
        label: Label::Measured,
        command: "model1 compare --model bundled --b-set layers.3-6.kv_cache=bf16 --free-run 128".into(),
        notes: Vec::new(),
    }
}

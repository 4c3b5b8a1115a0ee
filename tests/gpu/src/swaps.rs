//! What a swap in the middle of a text costs: there and back again, each timed to the end of the next token.

use std::time::Instant;

use engine::bench::{RandomModel, Shape, Storage};
use engine::{Cancel, SamplerParams, SessionOptions, Silent};

use crate::checks::edited;
use crate::runner::{Bench, Case};
use crate::timing::ids;

/// Tokens of context.
const CONTEXT: usize = 2048;
/// Times there and back.
const TURNS: usize = 20;

/// A case per shape, with a swap of each kind: cache, attention, FFN, output layer.
pub fn cases() -> Vec<Case> {
    let dense = [
        "layers.3-6.kv_cache=f32",
        "layers.3-6.attention=sliding_window:window=512",
        "layers.3-6.ffn=relu2",
        "weights.lm_head=fp8",
    ];
    let model1 = [
        "layers.3-6.kv_cache=fp8_model1",
        "layers.3-6.attention=dense",
        "weights.lm_head=fp8",
    ];
    [(Shape::Qwen15, dense.to_vec()), (Shape::Model15, model1.to_vec())]
        .into_iter()
        .map(|(shape, edits)| {
            let name = format!("swaps, {} {}", shape.name(), Storage::Bf16.name());
            Case::new("timing", name, move |b| swaps(b, shape, &edits))
        })
        .collect()
}

fn swaps(b: &Bench, shape: Shape, edits: &[&str]) -> String {
    let engine = RandomModel::new(shape, Storage::Bf16)
        .unwrap()
        .engine(b.cuda(), &Silent)
        .unwrap();
    let options = SessionOptions {
        context: Some(2 * CONTEXT as u64),
        ..SessionOptions::default()
    };
    let prompt = ids(&engine, CONTEXT);
    let (sampler, cancel) = (SamplerParams::default(), Cancel::default());
    let mut text = String::new();
    for edit in edits {
        let recipes = [edited(&engine, &[edit]), engine.recipe()];
        let mut s = engine.session(recipes[1].clone(), options.clone()).unwrap();
        s.feed(&prompt, Some(&sampler), &cancel, &mut ()).unwrap();
        let mut times: Vec<f64> = Vec::new();
        for turn in 0..2 * TURNS {
            // A few tokens with what is there, which run ahead.
            for _ in 0..4 {
                let token = s.sampled().unwrap().token;
                s.go_on(token, &sampler, false, &cancel, &mut ()).unwrap();
            }
            let token = s.sampled().unwrap().token;
            let begin = Instant::now();
            s.apply(recipes[turn % 2].clone()).unwrap();
            s.feed(&[token], Some(&sampler), &cancel, &mut ()).unwrap();
            times.push(begin.elapsed().as_secs_f64() * 1e3);
        }
        let first = times[0];
        times.sort_by(f64::total_cmp);
        let at = |share: usize| times[(times.len() - 1) * share / 100];
        text += &format!(
            "{edit}: first {first:.1} ms, median {:.1}, p95 {:.1}, longest {:.1} ms, of {} swaps behind {CONTEXT} tokens, the next token included\n",
            at(50),
            at(95),
            times[times.len() - 1],
            times.len()
        );
        assert!(s.output().logits.iter().all(|v| v.is_finite()), "{edit}");
    }
    text
}

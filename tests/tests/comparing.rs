//! KL, perplexity, drift and bytes of a comparison against a llama written here in double precision, which is itself
//! held to the golden values of the framework.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::compare::{CompareJob, compare};
use engine::{Cancel, Engine, Watch};
use half::bf16;
use model1_tests::goldens::{self, Values, tensors};
use model1_tests::table::Random;
use protocol::{CompareResult, CompareSpec, CompareText, RecipeRef};

const LAYERS: usize = 4;
const HIDDEN: usize = 64;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD: usize = 8;
const EPS: f64 = 1e-5;

/// What side B does otherwise.
#[derive(Clone, Copy, Default)]
struct Change {
    /// Keys and values are rounded to bf16 when they are stored.
    rounded: bool,
    /// Only the last so many keys and the first so many are seen.
    window: Option<(usize, usize)>,
    /// Values move a little before they are rounded, as they do in f32; otherwise with every seed.
    noise: Option<u64>,
}

/// How far f32 may move a value, as a share of the largest in its row.
const NOISE: f64 = 5e-7;

/// What a run gives.
struct Run {
    /// Log-probabilities per position.
    log_p: Rows,
    /// Per layer the residual after it per position.
    layers: Vec<Rows>,
}

/// The checkpoint, in f64.
struct Llama(BTreeMap<String, Values>);

type Rows = Vec<Vec<f64>>;

impl Llama {
    fn weight(&self, name: &str) -> &Values {
        &self.0[name]
    }

    fn times(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let w = self.weight(name);
        (0..w.shape[0])
            .map(|r| w.row(r).iter().zip(x).map(|(a, b)| f64::from(*a) * b).sum())
            .collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
        let scale = 1.0 / (mean + EPS).sqrt();
        let w = &self.weight(name).data;
        x.iter().zip(w).map(|(v, w)| v * scale * f64::from(*w)).collect()
    }

    fn run(&self, ids: &[u32], change: Change) -> Run {
        let embed = self.weight("model.embed_tokens.weight");
        let mut x: Rows = ids
            .iter()
            .map(|&id| embed.row(id as usize).iter().map(|v| f64::from(*v)).collect())
            .collect();
        let mut layers = Vec::new();
        let mut noise = change.noise.map(Random);
        for l in 0..LAYERS {
            let p = |s: &str| format!("model.layers.{l}.{s}.weight");
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for (i, row) in x.iter().enumerate() {
                let h = self.norm(&p("input_layernorm"), row);
                q.push(turned(&self.times(&p("self_attn.q_proj"), &h), i));
                k.push(stored(
                    turned(&self.times(&p("self_attn.k_proj"), &h), i),
                    change,
                    &mut noise,
                ));
                v.push(stored(self.times(&p("self_attn.v_proj"), &h), change, &mut noise));
            }
            for i in 0..x.len() {
                let mixed = attend(&q[i], &k, &v, i, change);
                let out = self.times(&p("self_attn.o_proj"), &mixed);
                let row: Vec<f64> = x[i].iter().zip(&out).map(|(a, b)| a + b).collect();
                let h = self.norm(&p("post_attention_layernorm"), &row);
                let gate = self.times(&p("mlp.gate_proj"), &h);
                let up = self.times(&p("mlp.up_proj"), &h);
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                let down = self.times(&p("mlp.down_proj"), &inner);
                x[i] = row.iter().zip(&down).map(|(a, b)| a + b).collect();
            }
            layers.push(x.clone());
        }
        let logits = |row: &Vec<f64>| self.times("lm_head.weight", &self.norm("model.norm.weight", row));
        Run {
            log_p: x.iter().map(|row| log_softmax(&logits(row))).collect(),
            layers,
        }
    }
}

/// Rotary embedding of every head, with llama 3's scaling (factor 8, low 1, high 4, original length 64).
fn turned(x: &[f64], position: usize) -> Vec<f64> {
    let mut out = x.to_vec();
    for head in out.chunks_mut(HEAD) {
        for i in 0..HEAD / 2 {
            let plain = 500_000f64.powf(-2.0 * i as f64 / HEAD as f64);
            let wave = 2.0 * std::f64::consts::PI / plain;
            let frequency = if wave < 64.0 / 4.0 {
                plain
            } else if wave > 64.0 {
                plain / 8.0
            } else {
                let smooth = (64.0 / wave - 1.0) / (4.0 - 1.0);
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (a, b) = (head[i], head[i + HEAD / 2]);
            head[i] = a * cos - b * sin;
            head[i + HEAD / 2] = b * cos + a * sin;
        }
    }
    out
}

/// What is read back of a row.
fn stored(row: Vec<f64>, change: Change, noise: &mut Option<Random>) -> Vec<f64> {
    if !change.rounded {
        return row;
    }
    let room = NOISE * row.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    let mut moved = |v: f64| v + noise.as_mut().map_or(0.0, |n| room * f64::from(n.unit()));
    row.into_iter().map(|v| bf16::from_f64(moved(v)).to_f64()).collect()
}

fn attend(q: &[f64], k: &Rows, v: &Rows, i: usize, change: Change) -> Vec<f64> {
    let seen: Vec<usize> = (0..=i)
        .filter(|&j| change.window.is_none_or(|(window, sinks)| j + window > i || j < sinks))
        .collect();
    let mut out = Vec::new();
    for h in 0..HEADS {
        let at = h / (HEADS / KV_HEADS) * HEAD;
        let own = &q[h * HEAD..(h + 1) * HEAD];
        let dot = |j: &usize| -> f64 { own.iter().zip(&k[*j][at..at + HEAD]).map(|(a, b)| a * b).sum() };
        let scores: Vec<f64> = seen.iter().map(|j| dot(j) / (HEAD as f64).sqrt()).collect();
        let weights: Vec<f64> = log_softmax(&scores).iter().map(|w| w.exp()).collect();
        for d in at..at + HEAD {
            out.push(seen.iter().zip(&weights).map(|(j, w)| w * v[*j][d]).sum());
        }
    }
    out
}

fn log_softmax(z: &[f64]) -> Vec<f64> {
    let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = z.iter().map(|v| (v - max).exp()).sum();
    z.iter().map(|v| v - max - sum.ln()).collect()
}

fn compared(engine: &Arc<Engine>, ids: &[u32], edits: &[&str]) -> CompareResult {
    let spec = CompareSpec {
        a: RecipeRef::Own,
        b: RecipeRef::Own,
        text: CompareText::Current,
        positions: ids.len() as u64,
        isolate: false,
    };
    let a = engine.recipe();
    let mut b = a.clone();
    for e in edits {
        b.set(e, engine.facts(), engine.registry()).unwrap();
    }
    let job = CompareJob::from_parts(engine, spec, a, b, ids.to_vec()).unwrap();
    let mut watch = Watch {
        cancel: &Cancel::default(),
        progress: &mut |_, _| {},
    };
    compare(engine, &job, &mut watch).unwrap()
}

/// A figure of a comparison, and how far f32 may be from it.
struct Figure {
    what: String,
    value: f64,
    share: f64,
    floor: f64,
}

/// What the comparison of two runs over `ids` is to say.
fn figures(a: &Run, b: &Run, ids: &[u32]) -> Vec<Figure> {
    let mut all = Vec::new();
    let mut add = |what: String, value: f64, share: f64, floor: f64| {
        all.push(Figure {
            what,
            value,
            share,
            floor,
        });
    };
    let n = ids.len();
    let sides = [a, b];
    let kl = |i: usize| -> f64 {
        let both = a.log_p[i].iter().zip(&b.log_p[i]);
        both.map(|(p, q)| p.exp() * (p - q)).sum()
    };
    for i in 0..n {
        add(format!("KL at {i}"), kl(i), 0.05, 1e-9);
        let Some(&next) = ids.get(i + 1) else { continue };
        for (side, run) in ["A", "B"].into_iter().zip(sides) {
            let what = format!("log-probability under {side} at {i}");
            add(what, run.log_p[i][next as usize], 0.0, 1e-4);
        }
    }
    add("mean KL".into(), (0..n).map(kl).sum::<f64>() / n as f64, 0.02, 1e-10);
    for (side, run) in ["A", "B"].into_iter().zip(sides) {
        let sum: f64 = (0..n - 1).map(|i| -run.log_p[i][ids[i + 1] as usize]).sum();
        add(format!("log perplexity of {side}"), sum / (n - 1) as f64, 1e-5, 0.0);
    }
    for l in 0..LAYERS {
        let (mut err, mut all) = (0.0, 0.0);
        for i in 0..n {
            let (mut e, mut s) = (0.0, 0.0);
            for (x, y) in a.layers[l][i].iter().zip(&b.layers[l][i]) {
                e += (x - y).powi(2);
                s += x * x;
            }
            add(format!("drift of layer {l} at {i}"), (e / s).sqrt(), 0.03, 1e-6);
            err += e;
            all += s;
        }
        add(format!("drift of layer {l}"), (err / all).sqrt(), 0.02, 1e-6);
    }
    all
}

/// The same, in the same order, as the program has it.
fn said(r: &CompareResult, n: usize) -> Vec<f64> {
    assert_eq!(r.tokens.len(), n);
    let mut all = Vec::new();
    for (i, t) in r.tokens.iter().enumerate() {
        all.push(f64::from(t.kl));
        if i + 1 < n {
            all.extend(t.logprob.map(f64::from));
        }
    }
    all.push(r.kl.mean);
    all.extend(r.sides.iter().map(|side| side.perplexity.ln()));
    for l in 0..LAYERS {
        all.extend((0..n).map(|i| f64::from(r.drift.at(l, i).unwrap())));
        all.push(f64::from(r.drift.layer_rms[l]));
    }
    all
}

#[test]
fn figures_of_a_comparison_are_those_of_a_slow_llama() {
    let path = goldens::folder("tiny-llama");
    let llama = Llama(tensors(&path.join("model.safetensors")));
    let golden = tensors(&path.join("golden.safetensors"));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(path.join("golden.json")).unwrap()).unwrap();
    let ids: Vec<u32> = json["input_ids"]
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as u32)
        .collect();
    let n = ids.len();
    let a = llama.run(&ids, Change::default());
    assert_eq!(a.layers[0][0].len(), HIDDEN);
    // The slow llama is the framework's.
    for (i, row) in a.log_p.iter().enumerate() {
        let z: Vec<f64> = golden["logits"].row(i).iter().map(|v| f64::from(*v)).collect();
        let want = log_softmax(&z);
        assert!(row.iter().zip(&want).all(|(x, y)| (x - y).abs() < 1e-4), "position {i}");
    }
    let engine = goldens::engine("tiny-llama", 2);
    let bf16 = "layers.*.kv_cache=bf16";
    let window = "layers.*.attention=sliding_window:window=8,sinks=2";
    for (seen, edits) in [(None, vec![bf16]), (Some((8, 2)), vec![bf16, window])] {
        let change = Change {
            rounded: true,
            window: seen,
            noise: None,
        };
        let b = llama.run(&ids, change);
        let want = figures(&a, &b, &ids);
        // A value in the middle of two bf16 values may be rounded either way, and moves those rounded after it: a few
        // runs say how far the figures follow.
        let mut follow = vec![0.0f64; want.len()];
        for seed in 0..16 {
            let noise = Some(seed);
            let moved = llama.run(&ids, Change { noise, ..change });
            for ((far, base), moved) in follow.iter_mut().zip(&want).zip(figures(&a, &moved, &ids)) {
                *far = far.max((moved.value - base.value).abs());
            }
        }
        let room = |i: usize| 2.0 * follow[i] + want[i].share * want[i].value.abs() + want[i].floor;
        let r = compared(&engine, &ids, &edits);
        let ours = said(&r, n);
        assert_eq!(ours.len(), want.len());
        for (i, ours) in ours.into_iter().enumerate() {
            let Figure { what, value, .. } = &want[i];
            assert!(
                (ours - value).abs() <= room(i),
                "{edits:?}: {what}: {ours} against {value}, more than {} apart",
                room(i)
            );
        }
        let values = (LAYERS * 2 * KV_HEADS * HEAD * n) as u64;
        assert_eq!((r.sides[0].kv.total(), r.sides[1].kv.total()), (4 * values, 2 * values));
    }
}

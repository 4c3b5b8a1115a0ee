//! A timing table: decode and prefill, each with its share of what reading memory at the measured speed would allow.

use std::sync::Arc;
use std::time::Instant;

use engine::bench::{RandomModel, Shape, Storage};
use engine::{Cancel, Engine, Recipe, SamplerParams, Session, SessionOptions, Silent};
use kernels::cuda::measure::read_bandwidth;
use kernels::cuda::{Cuda, CudaOptions};
use kernels::ir::StepOutput;
use model1_tests::goldens::engine_with;
use protocol::StepRecord;

use crate::runner::{Bench, Case};

/// Device memory the largest shape needs, bytes.
const LARGE: u64 = 100 << 30;

/// Timed cases: the bundled model, and shapes with random weights.
pub fn cases() -> Vec<Case> {
    let mut all = vec![Case::new("timing", "bundled model", |b| {
        let cuda = b.cuda();
        let engine = engine_with(&b.root.join("engine/bundled/model1-mini"), cuda.clone()).unwrap();
        table(b, &engine, &cuda, &[0, 2000], 2048)
    })];
    for (shape, storage) in [
        (Shape::Qwen15, Storage::Bf16),
        (Shape::Qwen15, Storage::Q8_0),
        (Shape::Qwen15, Storage::Q4_0),
        (Shape::Model15, Storage::Bf16),
        (Shape::Model15, Storage::Fp8),
        (Shape::Llama7, Storage::Bf16),
        (Shape::Llama7, Storage::Q8_0),
        (Shape::Gpt3, Storage::Fp4),
    ] {
        let name = format!("{} {}", shape.name(), storage.name());
        all.push(Case::new("timing", name, move |b| {
            let start = Instant::now();
            let cuda = b.cuda();
            let large = shape == Shape::Gpt3;
            if large && b.device.info().memory < LARGE {
                return format!("left out: this GPU has less than {} GiB", LARGE >> 30);
            }
            let model = RandomModel::new(shape, storage).unwrap();
            let engine = model.engine(cuda.clone(), &Silent).unwrap();
            let made = start.elapsed().as_secs_f64();
            let depths: &[usize] = if b.quick { &[0] } else { &[0, 2048, 30_000] };
            format!(
                "random weights, made in {made:.1} s\n{}",
                table(b, &engine, &cuda, depths, if large { 128 } else { 2048 })
            )
        }));
    }
    all
}

/// Decode of MODEL1's shape behind ever more tokens of one text, group by group: as stored, and with the output layer in FP8,
/// too, which releases have in bf16.
pub fn by_depth() -> Vec<Case> {
    let head: &[&str] = &["weights.lm_head=fp8"];
    [(Storage::Bf16, &[][..]), (Storage::Fp8, &[]), (Storage::Fp8, head)]
        .into_iter()
        .map(|(storage, edits)| {
            let with = edits.iter().map(|e| format!(", {e}")).collect::<String>();
            let name = format!("{} {}{with} by depth", Shape::Model15.name(), storage.name());
            Case::new("timing", name, move |b| {
                let model = RandomModel::new(Shape::Model15, storage).unwrap();
                let engine = model.engine(b.cuda(), &Silent).unwrap();
                let mut text = String::new();
                let mut recipe = engine.recipe();
                for edit in edits {
                    recipe.set(edit, engine.facts(), engine.registry()).unwrap();
                }
                let mut s = session_of(&engine, recipe, 131_072, false);
                let mut fed = 0;
                let most = if b.quick { 2048 } else { 130_000 };
                for depth in [256, 2048, 30_000, 130_000].into_iter().filter(|d| *d <= most) {
                    s.feed(&ids(&engine, depth - fed), None, &Cancel::default(), &mut ())
                        .unwrap();
                    s.set_trace(false);
                    let t = median(draw(&engine, &mut s));
                    text += &format!("text at {depth}: {:.0} tokens/s\n", 1.0 / mean(&self::text(&mut s)));
                    text += &format!("decode at {depth}: {:.0} tokens/s ({:.3} ms)\n", 1.0 / t, t * 1e3);
                    text += &groups_of(&engine, &mut s, &format!("decode at {depth}"), 1, 6, 40);
                    fed = s.tokens().len();
                }
                text
            })
        })
        .collect()
}

/// What L0 telemetry costs: the same steps with and without, by turns.
pub fn telemetry() -> Vec<Case> {
    [(Shape::Qwen15, Storage::Bf16), (Shape::Model15, Storage::Fp8)]
        .into_iter()
        .map(|(shape, storage)| {
            let name = format!("L0 on and off, {} {}", shape.name(), storage.name());
            Case::new("timing", name, move |b| {
                let model = RandomModel::new(shape, storage).unwrap();
                let engines = [true, false].map(|counted| {
                    let options = CudaOptions {
                        counted,
                        ..CudaOptions::default()
                    };
                    model
                        .engine(Arc::new(Cuda::on(b.device.clone(), options)), &Silent)
                        .unwrap()
                });
                let mut times = [Vec::new(), Vec::new()];
                for _ in 0..6 {
                    for (engine, times) in engines.iter().zip(&mut times) {
                        times.extend(steps(engine, 1024, 0).0);
                    }
                }
                let [on, off] = times.map(median);
                format!(
                    "median step of {} each: {:.4} ms with, {:.4} ms without: {:+.2} %",
                    6 * STEPS,
                    on * 1e3,
                    off * 1e3,
                    (on / off - 1.0) * 100.0
                )
            })
        })
        .collect()
}

/// Timed steps of a run.
const STEPS: usize = 128;
/// Passes over a prompt.
const PASSES: usize = 8;
/// Passes before those that count: the first loads kernels, the next two were up to 10 % slower than those behind them (Qwen in
/// q8_0: 38,000 and 40,800, then 42,300 tokens/s), so that a best of three says little.
const COLD: usize = 3;

/// Made-up tokens.
pub fn ids(engine: &Engine, n: usize) -> Vec<u32> {
    let vocab = engine.facts().vocab as u64;
    (0..n as u64).map(|i| (i * 7919 % (vocab - 2) + 2) as u32).collect()
}

fn median(mut v: Vec<f64>) -> f64 {
    v.sort_by(f64::total_cmp);
    v[v.len() / 2]
}

fn session(engine: &Arc<Engine>, context: u64, trace: bool) -> Session {
    session_of(engine, engine.recipe(), context, trace)
}

fn session_of(engine: &Arc<Engine>, recipe: Recipe, context: u64, trace: bool) -> Session {
    let options = SessionOptions {
        context: Some(context),
        trace,
        ..SessionOptions::default()
    };
    engine.session(recipe, options).unwrap()
}

/// Lines for prefill, decode at each depth, and the ops that take longest.
fn table(b: &Bench, engine: &Arc<Engine>, cuda: &Cuda, depths: &[usize], prompt: usize) -> String {
    let read = read_bandwidth(&b.device, 1 << 30, 10).unwrap();
    let limit = (engine.facts().max_context as u64).min(40_000);
    let start = Instant::now();
    let mut s = session(engine, limit, false);
    s.feed(&[2], None, &Cancel::default(), &mut ()).unwrap();
    let mut text = format!(
        "first step (weights go to the GPU) {:.2} s, {:.2} GiB of weights there\n",
        start.elapsed().as_secs_f64(),
        cuda.weight_bytes() as f64 / f64::from(1 << 30)
    );
    let prompt = ids(engine, prompt.min(limit as usize - 300));
    let mut times = Vec::new();
    let (mut ends, mut lowered) = (Vec::new(), 0.0);
    for _ in 0..PASSES {
        let mut s = session(engine, limit, false);
        ends.clear();
        let start = Instant::now();
        s.plan(prompt.len().min(engine.chunk()), 0);
        lowered = start.elapsed().as_secs_f64() * 1e3;
        let mut note = |_: &StepRecord, _: &StepOutput| ends.push(start.elapsed().as_secs_f64() * 1e3);
        s.feed(&prompt, None, &Cancel::default(), &mut note).unwrap();
        times.push(start.elapsed().as_secs_f64());
    }
    let times = times.split_off(COLD);
    let best = times.iter().copied().fold(f64::INFINITY, f64::min);
    text += &format!(
        "the last prompt, as the host sees it: its plan is there after {lowered:.2} ms, steps end after {ends:.2?} ms\n"
    );
    text += &format!(
        "prefill {} tokens: {:.0} tokens/s (median of {}), best {:.0}\n",
        prompt.len(),
        prompt.len() as f64 / median(times.clone()),
        times.len(),
        prompt.len() as f64 / best
    );
    for &depth in depths.iter().filter(|d| **d + 200 < limit as usize) {
        text += &decode(engine, read, limit, depth);
    }
    for &depth in depths.iter().filter(|d| **d > 4096 && **d + 3000 < limit as usize) {
        text += &slowest(engine, limit, depth, 6);
    }
    text + &slowest(engine, limit, 0, 24)
}

/// Seconds of each of `STEPS` decode steps behind `depth` tokens, and the session.
fn steps(engine: &Arc<Engine>, limit: u64, depth: usize) -> (Vec<f64>, Session) {
    let mut s = behind(engine, limit, depth);
    (draw(engine, &mut s), s)
}

/// A session with so many tokens.
fn behind(engine: &Arc<Engine>, limit: u64, depth: usize) -> Session {
    let mut s = session(engine, limit, false);
    if depth > 0 {
        s.feed(&ids(engine, depth), None, &Cancel::default(), &mut ()).unwrap();
    }
    s
}

/// Seconds of each of `STEPS` decode steps behind a session's text.
fn draw(engine: &Engine, s: &mut Session) -> Vec<f64> {
    let sampler = SamplerParams::default();
    let mut each = Vec::new();
    let mut token = 5u32;
    for i in 0..STEPS as u32 + 8 {
        let begin = Instant::now();
        s.feed(&[token], Some(&sampler), &Cancel::default(), &mut ()).unwrap();
        token = s.sampled().unwrap().token;
        if i >= 8 {
            each.push(begin.elapsed().as_secs_f64());
        }
        // A model of random weights may repeat one token; the next one is varied so that experts vary.
        token = (token + i) % (engine.facts().vocab as u32 - 2) + 2;
    }
    each
}

/// Seconds of each token of a text: each is the one drawn before, so that the GPU goes on with it before it is read here.
fn text(s: &mut Session) -> Vec<f64> {
    let (sampler, cancel) = (SamplerParams::default(), Cancel::default());
    let mut token = 5;
    let mut each = Vec::new();
    for i in 0..STEPS + 8 {
        let begin = Instant::now();
        s.go_on(token, &sampler, i + 1 == STEPS + 8, &cancel, &mut ()).unwrap();
        token = s.sampled().unwrap().token;
        if i >= 8 {
            each.push(begin.elapsed().as_secs_f64());
        }
    }
    each
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

/// The longest of some times, and how many of them came before it.
fn longest(v: &[f64]) -> (f64, usize) {
    let all = v.iter().copied().enumerate();
    all.fold((0.0, 0), |best, (i, t)| if t > best.0 { (t, i) } else { best })
}

fn decode(engine: &Arc<Engine>, read: f64, limit: u64, depth: usize) -> String {
    let (each, mut s) = steps(engine, limit, depth);
    let mut bytes = 0u64;
    let plan = s.plan(1, depth as u64 + 100);
    for op in &plan.ops {
        let c = op.cost(&plan, 1, depth as u64 + 100);
        bytes += c.weights + c.cache;
    }
    let mut sorted = each.clone();
    sorted.sort_by(f64::total_cmp);
    let p95 = sorted[sorted.len() * 95 / 100];
    let t = median(each);
    let written = text(&mut behind(engine, limit, depth));
    format!(
        "text at {depth}: {:.0} tokens/s (mean {:.3} ms, median {:.3} ms, longest {:.3} ms behind {} tokens)\n\
         decode at {depth}: {:.0} tokens/s (median {:.3} ms, p95 {:.3} ms), {:.1} MB a token = {:.0} % of \
         reads at {:.2} TB/s\n",
        1.0 / mean(&written),
        mean(&written) * 1e3,
        median(written.clone()) * 1e3,
        longest(&written).0 * 1e3,
        longest(&written).1,
        1.0 / t,
        t * 1e3,
        p95 * 1e3,
        bytes as f64 / 1e6,
        bytes as f64 / t / read * 100.0,
        read / 1e12
    )
}

/// The `most` launches that take longest in a traced decode step and in a traced chunk of the longest kind, behind `depth` tokens:
/// by the ops they stand for.
fn slowest(engine: &Arc<Engine>, limit: u64, depth: usize, most: usize) -> String {
    let mut text = String::new();
    // Chunks stay within one bucket of contexts: two before, two that count.
    let mut chunk = engine.chunk();
    let bucket = (depth + 1).next_power_of_two().max(4096).min(limit as usize);
    while 4 * chunk > bucket - depth {
        chunk /= 2;
    }
    for (what, n, before, steps) in [
        (format!("decode at {}", depth.max(256)), 1, depth.max(256), 6),
        (format!("prefill of {chunk} at {depth}"), chunk, depth, 2),
    ] {
        let mut s = session(engine, limit, false);
        if before > 0 {
            s.feed(&ids(engine, before), None, &Cancel::default(), &mut ()).unwrap();
        }
        text += &groups_of(engine, &mut s, &what, n, steps, most);
    }
    text
}

/// The `most` launches that take longest in `steps` traced steps of `n` tokens behind a session's text.
pub fn groups_of(engine: &Engine, s: &mut Session, what: &str, n: usize, steps: usize, most: usize) -> String {
    let mut sums: std::collections::BTreeMap<String, (f64, u64, usize)> = Default::default();
    // The first two make the plan's graphs.
    for step in 0..steps + 2 {
        s.set_trace(step > 0);
        let before = s.position();
        let sampler = SamplerParams::default();
        s.feed(&ids(engine, n), Some(&sampler), &Cancel::default(), &mut ())
            .unwrap();
        if step < 2 {
            continue;
        }
        let plan = s.plan(n, before);
        let by_op: std::collections::HashMap<u32, _> =
            s.output().times.iter().map(|t| (t.op, (t.nanos, t.bytes))).collect();
        for group in kernels::cuda::ops::groups(&plan) {
            let name = |id: &kernels::ir::OpId| plan.ops[id.index()].name.clone();
            let key = match &group.origin[..] {
                [one] => name(one),
                all => format!("{} .. {} ({})", name(&all[0]), name(&all[all.len() - 1]), all.len()),
            };
            let e = sums.entry(key).or_default();
            for id in &group.origin {
                let (nanos, bytes) = by_op.get(&id.0).copied().unwrap_or_default();
                *e = (e.0 + nanos / steps as f64, e.1 + bytes, e.2);
            }
            e.2 += 1;
        }
    }
    let total: f64 = sums.values().map(|s| s.0).sum();
    let launches = sums.values().map(|s| s.2).sum::<usize>() / steps;
    let mut text = format!(
        "{what}, group by group in a graph: {:.3} ms in {launches} groups\n",
        total / 1e6
    );
    let mut list: Vec<_> = sums.into_iter().collect();
    list.sort_by(|a, b| b.1.0.total_cmp(&a.1.0));
    for (name, (nanos, bytes, n)) in list.into_iter().take(most) {
        let n = n / steps;
        text += &format!(
            "  {:5.1} % {:7.2} us each, {n:3} of {name}, {:.0} GB/s\n",
            nanos / total * 100.0,
            nanos / 1e3 / n as f64,
            bytes as f64 / steps as f64 / nanos
        );
    }
    text
}

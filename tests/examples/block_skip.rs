//! How fast attention is where it skips blocks: one layer of SmolLM2's shape (9 query heads over 3 of keys, 64 wide, bf16
//! rows), dense against `block_skip`, at 8k and 32k keys.
//!
//! `cargo run --release --example block_skip -p model1-tests`. Keys are made, in two kinds: in blocks with centres of their
//! own, where queries look at some of them (what skipping is for), and all alike (its worst case: nothing can be bounded).

use std::time::Instant;

use kernels::cpu::exec::CpuBackend;
use kernels::ir::{
    Backend, CacheFormat, CacheRows, Component, KeyRows, KeySource, LayerStats, Mask, Op, Positions, SKIP_BLOCK, State,
};
use model1_tests::table::{Case, Random};

const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;
const CHUNK: usize = 128;

/// Caches of keys and values, the same in every plan.
fn caches(c: &mut Case) -> [kernels::ir::CacheId; 2] {
    [Component::Keys, Component::Values].map(|component| {
        let growing = CacheRows::Growing { rate: 1 };
        c.rows(component, growing, KV_HEADS, (DIM, 0), CacheFormat::Bf16)
    })
}

/// A plan that writes rows.
fn writer(keys: usize, rows: &[f32]) -> Case {
    let mut c = Case::new(CHUNK, 2 * keys);
    let width = KV_HEADS * DIM;
    let x = c.given(width, &vec![0.0; width * (CHUNK + 7)]);
    let table = c.values(rows.len() / width, width, rows);
    c.op(Op::EmbedPosition { table, x });
    for cache in caches(&mut c) {
        c.op(Op::CacheWrite {
            src: x,
            cache,
            rows: Positions::Tokens,
        });
    }
    c
}

/// A plan that attends: queries look at keys spread over the text.
fn reader(tokens: usize, keys: usize, rows: &[f32], mask: Mask) -> Case {
    let mut c = Case::new(tokens, 2 * keys);
    let (width, group) = (KV_HEADS * DIM, HEADS / KV_HEADS);
    let query = |i: usize| {
        let key = &rows[i * 7919 % keys * width..][..width];
        (0..HEADS).flat_map(move |h| key[h / group * DIM..][..DIM].iter().map(|k| 2.0 * k))
    };
    let queries: Vec<f32> = (0..tokens).flat_map(query).collect();
    let [k, v] = caches(&mut c);
    let q = c.given(HEADS * DIM, &queries);
    let out = c.floats(HEADS * DIM);
    c.op(Op::Attend {
        q,
        out,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        scale: 0.125,
        sources: vec![KeySource {
            keys: k,
            values: v,
            rows: KeyRows::Causal,
        }],
        sinks: None,
        mask,
        score: None,
    });
    c
}

fn rows(keys: usize, clusters: bool) -> Vec<f32> {
    let width = KV_HEADS * DIM;
    let mut r = Random(7);
    let mut centre = vec![0.0; width];
    let mut out = Vec::with_capacity(keys * width);
    for row in 0..keys {
        if clusters && row % SKIP_BLOCK == 0 {
            centre = (0..width).map(|_| r.normal(1.0)).collect();
        }
        let spread = if clusters { 0.3 } else { 1.0 };
        out.extend(centre.iter().map(|c| c + r.normal(spread)));
    }
    out
}

/// Median milliseconds of a step at the end of `keys` keys, and what it counted.
fn time(backend: &CpuBackend, state: &mut dyn State, c: &Case, keys: usize, tokens: usize) -> (f64, LayerStats) {
    let ids: Vec<u32> = (0..tokens as u32).collect();
    let mut times = Vec::new();
    let mut stats = LayerStats::default();
    for _ in 0..if tokens == 1 { 51 } else { 5 } {
        let start = Instant::now();
        let out = c.step(backend, state, (keys - tokens) as u64, (&ids, &ids), None);
        times.push(start.elapsed().as_secs_f64() * 1e3);
        stats = out.layers[0].clone();
    }
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], stats)
}

fn main() {
    let backend = CpuBackend::new(std::thread::available_parallelism().map_or(1, usize::from));
    println!("{}", backend.describe());
    println!("| keys | kind | tokens | mask | ms per step | scored | kept |\n|---|---|---|---|---|---|---|");
    for keys in [8192, 32768] {
        for clusters in [true, false] {
            let rows = rows(keys, clusters);
            let fill = writer(keys, &rows);
            let mut state = backend.new_state(&fill.plan.caches, 2 * keys as u64).unwrap();
            fill.run_on(&backend, &mut *state, 0, &vec![CHUNK; keys / CHUNK], None);
            for tokens in [1, CHUNK] {
                let skip = |threshold| Mask::BlockSkip { threshold };
                for mask in [Mask::None, skip(1e-4), skip(1e-3), skip(1e-2)] {
                    let c = reader(tokens, keys, &rows, mask);
                    let (ms, stats) = time(&backend, &mut *state, &c, keys, tokens);
                    let share = |n: u64| 100.0 * n as f64 / stats.keys_context as f64;
                    println!(
                        "| {keys} | {} | {tokens} | {mask:?} | {ms:.3} | {:.1} % | {:.1} % |",
                        if clusters { "clusters" } else { "alike" },
                        share(stats.keys_scored),
                        share(stats.keys_kept),
                    );
                }
            }
        }
    }
}

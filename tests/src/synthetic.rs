//! Caches filled with made-up records: a long context without a model that reads one.

use std::path::Path;
use std::sync::Arc;

use engine::{Engine, Recipe, SessionOptions};
use kernels::cpu::exec::{CpuState, row_format};
use kernels::cpu::records::RoundTrip;
use kernels::cuda::state::CudaState;
use kernels::ir::{CacheDesc, CacheId, CacheRows, Component, State, StepOutput, StepParams, StepRequest};

use crate::table::Random;

/// Different records of a component. Prime: rows that are a power of two apart, as a wrong address would have them, differ.
const RECORDS: usize = 4093;
/// Bytes put at once.
const PIECE: usize = 32 << 20;

/// What pooling states hold beside values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gates {
    /// Zeros: the tokens of a row weigh the same, and its bits do not depend on `exp`.
    Even,
    /// Random numbers.
    Random,
}

/// Fills what a context of `position` tokens has in its caches with roughly normal values, stored as the formats say. The
/// state has room for them. Every backend gets the same bytes.
pub fn fill(state: &mut dyn State, position: u64, gates: Gates) {
    for (i, desc) in state.caches().to_vec().iter().enumerate() {
        // A ring has the last tokens' rows; which slots they have depends on its size, which backends choose.
        let (ring, all) = match desc.rows {
            CacheRows::Growing { rate } => (usize::MAX, 0..position as usize / rate),
            CacheRows::Ring { capacity, .. } => {
                let position = position as usize;
                (capacity, position.saturating_sub(capacity)..position)
            }
        };
        let (data, scales) = desc.row_bytes();
        let (row, record) = (data + scales, (data + scales) / desc.records);
        let most = (PIECE / row).clamp(1, all.len().max(1));
        // One period, then as much again as a piece that begins anywhere in it needs.
        let mut bytes = records(desc, i as u64, gates);
        let period = bytes.len();
        while bytes.len() < period + most * row {
            let more = (most * row).min(bytes.len());
            bytes.extend_from_within(..more);
        }
        let mut first = all.start;
        while first < all.end {
            let slot = first % ring;
            let n = most.min(all.end - first).min(ring - slot);
            let at = first * desc.records % RECORDS * record;
            put(state, CacheId(i as u32), slot, &bytes[at..at + n * row]);
            first += n;
        }
    }
}

fn records(desc: &CacheDesc, seed: u64, gates: Gates) -> Vec<u8> {
    let (data, scales) = desc.format.record_bytes(desc.width, desc.rope);
    let mut random = Random(0xfa2 + seed);
    let mut out = vec![0; RECORDS * (data + scales)];
    let pooling = matches!(desc.component, Component::Pooling | Component::IndexPooling);
    let gated = if pooling && gates == Gates::Even {
        desc.width / 2
    } else {
        desc.width
    };
    let mut values = vec![0.0; desc.width];
    for record in out.chunks_exact_mut(data + scales) {
        values[..gated].fill_with(|| random.normal(1.0));
        row_format(desc.format).encode(&values, desc.rope, record, &mut RoundTrip::default());
    }
    out
}

fn put(state: &mut dyn State, cache: CacheId, first: usize, records: &[u8]) {
    let any = state.as_any_mut();
    let done = match any.downcast_mut::<CpuState>() {
        Some(s) => s.put_records(cache, first, records),
        None => match any.downcast_mut::<CudaState>() {
            Some(s) => s.put_records(cache, first, records),
            None => panic!("a state of neither backend"),
        },
    };
    done.unwrap_or_else(|e| panic!("{e}"));
}

/// A copy of a golden that takes contexts of up to `context` tokens.
pub fn long_model(from: &Path, to: &Path, context: usize) {
    let read = |name| std::fs::read(from.join(name)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    config["max_position_embeddings"] = context.into();
    std::fs::create_dir_all(to).unwrap();
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    std::fs::write(to.join("model.safetensors"), read("model.safetensors")).unwrap();
}

/// Every layer's residual and the logits of steps of a whole model behind `position` tokens whose records are made up:
/// (name, width, values) step by step.
pub fn steps_behind(
    engine: &Arc<Engine>,
    recipe: Recipe,
    position: u64,
    steps: &[usize],
) -> Vec<(String, usize, Vec<f32>)> {
    let options = SessionOptions {
        all_logits: true,
        probes: true,
        ..SessionOptions::default()
    };
    let mut session = engine.session(recipe, options).unwrap();
    let end = position + steps.iter().sum::<usize>() as u64;
    let caches = session.plan(1, position).caches.clone();
    let mut state = engine.backend().new_state(&caches, end).unwrap();
    fill(state.as_mut(), position, Gates::Random);
    let vocab = engine.facts().vocab;
    let (mut at, mut all) = (position, Vec::new());
    for &n in steps {
        let plan = session.plan(n, at);
        let ids: Vec<u32> = (0..n as u32).map(|i| (i * 37 + 11) % vocab as u32).collect();
        let request = StepRequest {
            step: StepParams::new(at, n),
            ids: &ids,
            history: &ids,
            sampler: None,
            trace: false,
            ahead: false,
            cancel: None,
        };
        let mut out = StepOutput::default();
        let ran = engine
            .backend()
            .run(&plan, engine.weights(), state.as_mut(), &request, &mut out);
        ran.unwrap_or_else(|e| panic!("{}: {e}", engine.backend().name()));
        all.append(&mut out.probes);
        all.push(("logits".into(), vocab, out.logits));
        at += n as u64;
    }
    all
}

/// tiny-v4 behind 131,072 made-up tokens: edits of its recipe, largest relative difference of a row, steps.
pub const LONG_MODELS: [(&[&str], f64, &[usize]); 3] = [
    (
        &["layers.*.kv_cache=f32", "layers.2,4.index_cache=f32"],
        5e-5,
        &[1, 1, 9, 1],
    ),
    (
        &[
            "layers.2-5.attention=dense",
            "layers.*.kv_cache=bf16",
            "layers.2,4.index_cache=f32",
        ],
        1e-2,
        &[1, 4],
    ),
    (
        &["layers.*.kv_cache=fp8_b64", "layers.2,4.index_cache=fp4"],
        2e-2,
        &[1, 1],
    ),
];

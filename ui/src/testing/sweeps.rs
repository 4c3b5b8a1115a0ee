//! A sweep of the scripted host: cache formats and output layers in all combinations, and in one layer alone.

use protocol::{
    CompareText, KlStats, RecipeRef, SweepCell, SweepGroup, SweepPick, SweepRefusal, SweepRow, SweepSpec, SweepState,
    SweepView,
};

use super::story::noise;

/// Revision of a sweep of which so many recipes are measured.
fn revision(done: usize) -> u64 {
    done as u64 + 1
}

/// The sweep with its first `done` recipes measured and the next eight half read; the whole of it with `usize::MAX`.
/// As the host does, it sends the cells that changed after revision `since`.
pub fn sweep(done: usize, since: u64) -> SweepView {
    let mut all = vec![(SweepGroup::Base, Vec::new(), 0.0, 1.0)];
    let caches = [("bf16", 0.0002, 1.32), ("fp8_b64", 0.0008, 0.98), ("fp4", 0.021, 0.86)];
    for (head, kl, bytes) in [("bf16", 0.0001, 1.08), ("fp8", 0.0011, 0.94), ("fp4", 0.034, 0.88)] {
        all.push((SweepGroup::Grid, vec![format!("weights.lm_head={head}")], kl, bytes));
        for (cache, more, factor) in caches {
            let edits = vec![format!("layers.*.kv_cache={cache}"), format!("weights.lm_head={head}")];
            all.push((SweepGroup::Grid, edits, kl + more, bytes * factor));
        }
    }
    for (cache, kl, factor) in caches {
        for layer in 0..7u64 {
            let kl = kl * (0.05 + 0.4 * noise(layer, 70 + (kl * 1e4) as u64));
            let edit = format!("layers.{layer}.kv_cache={cache}");
            all.push((SweepGroup::Single, vec![edit], kl, 1.0 + (factor - 1.0) / 7.0));
        }
    }
    let edits = vec!["layers.0-3.kv_cache=fp4".to_string(), "weights.lm_head=fp8".into()];
    all.push((SweepGroup::Tried, edits, 0.0071, 0.89));
    let whole = done >= all.len();
    let total = all.len() - usize::from(!whole);
    let cells = all.into_iter().take(total).enumerate();
    let cells = cells.filter(|(i, _)| *i + 8 >= since as usize);
    let cell = |(i, (group, edits, kl, factor)): (usize, (SweepGroup, Vec<String>, f64, f64))| {
        let hash = format!("{:016x}", 0x51b0_aa7c_9e3f_0000u64 + i as u64);
        let state = match i {
            // Five layers take what fits into memory; one recipe does not.
            5 if i < done => SweepState::Failed(
                "not enough memory: 2 caches of 512 tokens need about 3.1 GiB (estimated), 1.2 GiB are available; \
                 compare fewer positions"
                    .into(),
            ),
            _ if i < done => SweepState::Done {
                row: Box::new(row(&hash, &edits, kl, factor)),
                known: i < 3,
            },
            _ if i < done.saturating_add(8) => SweepState::Reading {
                positions: 208,
                kl_mean: kl * 1.2,
            },
            _ => SweepState::Waiting,
        };
        let cell = SweepCell {
            group,
            name: String::new(),
            edits,
            hash,
            state,
        };
        (i as u32, cell)
    };
    SweepView {
        revision: revision(done.min(total)),
        spec: SweepSpec {
            a: RecipeRef::Own,
            text: CompareText::Current,
            positions: 512,
            axes: vec![
                "layers.*.kv_cache=bf16,fp8_b64,fp4".into(),
                "weights.lm_head=own,bf16,fp8,fp4".into(),
            ],
            presets: false,
            per_layer: true,
            budget: Some(0.01),
        },
        model: "MODEL1-mini".into(),
        device: "CPU, 2 threads, AVX-512".into(),
        reference: "fp8 weights, f32 arithmetic on CPU".into(),
        a: "9c41d7e02b6a58f3".into(),
        positions: 512,
        total: total as u32,
        cells: cells.map(cell).collect(),
        refused: vec![SweepRefusal {
            edits: vec!["layers.0.index_cache=fp4".into()],
            reason: "layer 0 has no indexer".into(),
        }],
        pick: if whole {
            SweepPick::Cell(total as u32 - 1)
        } else {
            SweepPick::None
        },
        command: "model1 sweep --model bundled --sweep 'layers.*.kv_cache=bf16,fp8_b64,fp4' --budget 0.01".into(),
        notes: Vec::new(),
    }
}

fn row(hash: &str, edits: &[String], kl: f64, factor: f64) -> SweepRow {
    SweepRow {
        hash: hash.into(),
        name: String::new(),
        edits: edits.to_vec(),
        kl: KlStats {
            mean: kl,
            mean_se: kl * 0.1,
            median: kl * 0.4,
            p90: kl * 2.2,
            p99: kl * 9.0,
            p999: kl * 20.0,
            max: kl * 31.0,
        },
        same_top1: [(1.0 - 8.0 * kl).max(0.4), 0.004],
        ln_ppl_ratio: [0.3 * kl, 0.05 * kl],
        perplexity: 7.31 * (1.0 + 0.3 * kl),
        kv: (1_930_000.0 * factor) as u64,
        step_bytes: (18_600_000.0 * factor) as u64,
        decode_tokens_per_s: 316.0 / (0.6 + 0.4 * factor),
        prefill_tokens_per_s: 1460.0,
    }
}

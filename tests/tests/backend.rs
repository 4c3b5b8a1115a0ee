//! The op table: the CPU backend against a second, independent one (plain double-precision loops), op kind by op kind,
//! through plans that together hold every op there is.

use std::collections::BTreeSet;
use std::sync::Arc;

use engine::SamplerParams;
use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::Backend;
use model1_tests::goldens::{engine_with, folder, probing, relative};
use model1_tests::oracle::Oracle;
use model1_tests::plans::PLANS;

/// Every kind of op, as the plan's JSON names it.
const KINDS: [&str; 28] = [
    "activate",
    "add",
    "attend",
    "cache_write",
    "embed",
    "embed_position",
    "expert_mat_mul",
    "expert_sum",
    "glu",
    "grouped_mat_mul",
    "hadamard",
    "hc_collapse",
    "hc_expand",
    "hc_mix",
    "index_score",
    "mat_mul",
    "norm",
    "pool",
    "probe",
    "rope",
    "round_trip",
    "route",
    "sample",
    "select_top_k",
    "slice",
    "take_output",
    "top_p",
    "zero_heads",
];

fn kinds_of(plan: &kernels::ir::Plan) -> BTreeSet<String> {
    let kind = |op: &kernels::ir::BaseOp| serde_json::to_value(op).unwrap()["op"].as_str().unwrap().to_string();
    plan.ops.iter().map(kind).collect()
}

#[test]
fn a_second_backend_passes_the_op_table() {
    let mut covered = BTreeSet::new();
    for (name, edits, limit) in PLANS {
        let run = |backend: Arc<dyn Backend>| {
            let engine = engine_with(&folder(name), backend).unwrap();
            let mut recipe = engine.recipe();
            for edit in edits {
                recipe
                    .set(edit, engine.facts(), engine.registry())
                    .unwrap_or_else(|e| panic!("{name} {edit}: {e}"));
            }
            let vocab = engine.facts().vocab as u32;
            let ids: Vec<u32> = (0..70u32).map(|i| (i * 7919 + 13) % (vocab - 2) + 2).collect();
            let mut session = probing(&engine, recipe);
            let mut rows: Vec<(String, usize, Vec<f32>)> = Vec::new();
            let greedy = SamplerParams::default();
            let mut drawn = Vec::new();
            let mut rest = &ids[..];
            for n in [33, 1, 1, 5, 30] {
                let mut see = |_: &protocol::StepRecord, out: &kernels::ir::StepOutput| {
                    rows.extend(out.probes.iter().cloned());
                    rows.push(("logits".into(), vocab as usize, out.logits.clone()));
                    drawn.extend(out.sampled.as_ref().map(|s| s.token));
                };
                session
                    .feed(&rest[..n], Some(&greedy), &engine::Cancel::default(), &mut see)
                    .unwrap();
                rest = &rest[n..];
            }
            (rows, drawn, kinds_of(&session.plan(1, 70)))
        };
        let (ours, drawn, kinds) = run(Arc::new(CpuBackend::with(Cpu::exact(2))));
        let (theirs, drawn_too, _) = run(Arc::new(Oracle));
        assert_eq!(ours.len(), theirs.len());
        // Storage in 8 and 4 bits turns a last-bit difference into a whole step, which can change what the indexer
        // keeps: such plans are held to their median row, all others to every row.
        let mut rows: Vec<f64> = Vec::new();
        for ((what, width, a), (_, _, b)) in ours.iter().zip(&theirs) {
            for (a, b) in a.chunks_exact(*width).zip(b.chunks_exact(*width)) {
                let e = relative(a, b);
                assert!(e <= limit || limit > 1e-3, "{name} {edits:?}: {what} differs by {e}");
                rows.push(e);
            }
        }
        rows.sort_by(f64::total_cmp);
        let (median, worst) = (rows[rows.len() / 2], rows[rows.len() - 1]);
        let beyond = rows.iter().filter(|e| **e > limit).count();
        println!(
            "{name} {edits:?}: median {median:.1e}, worst {worst:.1e}, beyond {beyond} of {}",
            rows.len()
        );
        assert!(median <= limit / 4.0 && beyond * 20 <= rows.len(), "{name} {edits:?}");
        if limit < 1e-3 {
            assert_eq!(drawn, drawn_too, "{name} {edits:?}");
        }
        covered.extend(kinds);
    }
    let missing: Vec<&str> = KINDS.into_iter().filter(|k| !covered.contains(*k)).collect();
    let unknown: Vec<&String> = covered.iter().filter(|k| !KINDS.contains(&k.as_str())).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "not covered: {missing:?}; not in the list: {unknown:?}"
    );
}

//! Groups of a plan that run side by side, against a plain look at what ops touch.

use std::collections::HashMap;

use engine::{Engine, SessionOptions};
use kernels::cuda::ops::{Group, groups};
use kernels::cuda::schedule::{Place, STREAMS, dependencies, order, spread, touched};
use kernels::ir::{Backend, Op, Plan};
use model1_tests::goldens::{engine_with, folder};
use std::sync::Arc;

fn plans(name: &str) -> Vec<Arc<Plan>> {
    let backend: Arc<dyn Backend> = Arc::new(kernels::cpu::exec::CpuBackend::new(1));
    let engine: Arc<Engine> = engine_with(&folder(name), backend).unwrap();
    let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
    [(1, 5), (1, 40), (7, 0), (64, 0)]
        .map(|(n, at)| session.plan(n, at))
        .to_vec()
}

/// Whether the second op must not begin before the first has ended.
fn conflict(a: &Op, b: &Op) -> bool {
    let ((ra, wa), (rb, wb)) = (touched(a), touched(b));
    let meet = |x: &[Place], y: &[Place]| x.iter().any(|p| y.contains(p));
    meet(&wa, &rb) || meet(&ra, &wb) || meet(&wa, &wb)
}

fn conflicts(plan: &Plan, a: &Group, b: &Group) -> bool {
    let op = |id: &kernels::ir::OpId| &plan.ops[id.index()].op;
    a.origin.iter().any(|x| b.origin.iter().any(|y| conflict(op(x), op(y))))
}

/// Groups are launched in another order than a plan's ops: those that have to do with each other keep it, and what is launched
/// at once in two parts has nothing to do with each other.
fn keeps_order(name: &str, plan: &Plan, groups: &[Group]) {
    let mut place = vec![None; plan.ops.len()];
    for (g, group) in groups.iter().enumerate() {
        for id in &group.origin {
            assert_eq!(place[id.index()].replace(g), None, "{name}: op {} twice", id.index());
        }
        if let Some(second) = group.origin.windows(2).position(|w| w[1] < w[0]) {
            let (products, rows) = group.origin.split_at(second + 1);
            for (a, b) in products.iter().flat_map(|a| rows.iter().map(move |b| (a, b))) {
                let op = |id: &kernels::ir::OpId| &plan.ops[id.index()].op;
                assert!(!conflict(op(a), op(b)), "{name}: {a:?} and {b:?} in group {g}");
            }
        }
    }
    for (b, later) in plan.ops.iter().enumerate() {
        for (a, earlier) in plan.ops[..b].iter().enumerate() {
            if conflict(&earlier.op, &later.op) {
                assert!(place[a].is_some() && place[a] <= place[b], "{name}: op {b} before {a}");
            }
        }
    }
}

#[test]
fn groups_that_touch_the_same_places_run_in_order() {
    let mut most = HashMap::new();
    for name in ["tiny-v4", "tiny-v4-fp8", "tiny-llama", "tiny-qwen2", "tiny-gpt2"] {
        for plan in plans(name) {
            let groups = groups(&plan);
            keeps_order(name, &plan, &order(&plan, groups.clone()));
            // Several sequences, of which each takes a token, are spread over streams.
            if plan.token_bucket > 1 {
                continue;
            }
            let s = spread(&dependencies(&plan, &groups), &|_| None);
            assert_eq!(s.slots.len(), groups.len());
            // ended[i]: groups that have ended when group i begins, by the streams' order and the signals alone.
            let mut ended: Vec<Vec<bool>> = Vec::new();
            let mut tail: [Option<usize>; STREAMS] = [None; STREAMS];
            for (i, slot) in s.slots.iter().enumerate() {
                let mut mine = vec![false; groups.len()];
                for &before in tail[slot.stream].iter().chain(&slot.after) {
                    assert!(before < i && (tail[slot.stream] == Some(before) || s.slots[before].signals));
                    mine[before] = true;
                    for (m, e) in mine.iter_mut().zip(&ended[before]) {
                        *m |= e;
                    }
                }
                // A stream that is used for the first time joins the first one.
                assert!(slot.stream == 0 || tail[slot.stream].is_some() || !slot.after.is_empty());
                for before in 0..i {
                    if conflicts(&plan, &groups[before], &groups[i]) {
                        assert!(mine[before], "{name}: group {i} may begin before {before} has ended");
                    }
                }
                tail[slot.stream] = Some(i);
                ended.push(mine);
            }
            // At the end all work is behind the first stream.
            for t in tail.iter().skip(1).flatten() {
                let joined = s.last.contains(t) || ended[tail[0].unwrap()][*t];
                assert!(joined, "{name}: nothing waits for group {t}");
            }
            let used = tail.iter().flatten().count();
            let e = most.entry(name).or_insert(0);
            *e = used.max(*e);
        }
    }
    assert_eq!(most["tiny-v4"], STREAMS);
    // Attention and feed-forward of a plain model follow each other.
    assert_eq!(most["tiny-qwen2"], 1);
}

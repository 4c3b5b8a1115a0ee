//! Which op reads what which other op wrote: the edges of the plan's graph.

use std::collections::BTreeMap;

use kernels::ir::{BufId, CacheId, KeyRows, Op, Plan};

/// Something an op reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Buffer(BufId),
    Cache(CacheId),
}

/// What an op reads, and what it writes. What changes in place is both.
fn touched(op: &Op) -> (Vec<Place>, Vec<Place>) {
    let buffers = |ids: &[Option<BufId>]| -> Vec<Place> { ids.iter().flatten().map(|b| Place::Buffer(*b)).collect() };
    let in_place = |x: BufId| (buffers(&[Some(x)]), buffers(&[Some(x)]));
    let from_to = |reads: &[Option<BufId>], out: BufId| (buffers(reads), buffers(&[Some(out)]));
    match op {
        Op::Embed { out, .. } => from_to(&[], *out),
        Op::EmbedPosition { x, .. }
        | Op::Rope { x, .. }
        | Op::Hadamard { x, .. }
        | Op::RoundTrip { x, .. }
        | Op::Activate { x, .. }
        | Op::ZeroHeads { x, .. }
        | Op::TopP { x, .. } => in_place(*x),
        Op::Norm { x, out, .. }
        | Op::MatMul { x, out, .. }
        | Op::GroupedMatMul { x, out, .. }
        | Op::Slice { x, out, .. }
        | Op::TakeOutput { x, out } => from_to(&[Some(*x)], *out),
        Op::CacheWrite { src, cache, .. } => (buffers(&[Some(*src)]), vec![Place::Cache(*cache)]),
        Op::Pool {
            kv, gate, state, out, ..
        } => {
            let (mut reads, mut writes) = from_to(&[Some(*kv), Some(*gate)], *out);
            reads.push(Place::Cache(*state));
            writes.push(Place::Cache(*state));
            (reads, writes)
        }
        Op::IndexScore {
            q, weights, keys, out, ..
        } => {
            let (mut reads, writes) = from_to(&[Some(*q), Some(*weights)], *out);
            reads.push(Place::Cache(*keys));
            (reads, writes)
        }
        Op::SelectTopK { scores, out, .. } => from_to(&[Some(*scores)], *out),
        Op::Attend { q, out, sources, .. } => {
            let (mut reads, writes) = from_to(&[Some(*q)], *out);
            for s in sources {
                reads.extend([Place::Cache(s.keys), Place::Cache(s.values)]);
                if let KeyRows::Compressed { selection, .. } = s.rows {
                    reads.extend(selection.map(Place::Buffer));
                }
            }
            (reads, writes)
        }
        Op::Add { x, y, out } => from_to(&[Some(*x), Some(*y)], *out),
        Op::Glu {
            gate,
            up,
            out,
            row_weights,
            ..
        } => from_to(&[Some(*gate), Some(*up), *row_weights], *out),
        Op::Route {
            logits,
            out_experts,
            out_weights,
            ..
        } => (
            buffers(&[Some(*logits)]),
            buffers(&[Some(*out_experts), Some(*out_weights)]),
        ),
        Op::ExpertMatMul { x, experts, out, .. } => from_to(&[Some(*x), Some(*experts)], *out),
        Op::ExpertSum { x, shared, out, .. } => from_to(&[Some(*x), *shared], *out),
        Op::HcMix { x, pre, post, comb, .. } => (buffers(&[Some(*x)]), buffers(&[Some(*pre), *post, *comb])),
        Op::HcCollapse { x, pre, out, .. } => from_to(&[Some(*x), Some(*pre)], *out),
        Op::HcExpand { o, x, post, comb, .. } => from_to(&[Some(*o), Some(*x), Some(*post), Some(*comb)], *x),
        Op::Probe { x, .. } => (buffers(&[Some(*x)]), Vec::new()),
        Op::Sample { logits } => (buffers(&[Some(*logits)]), Vec::new()),
    }
}

/// Per op, the numbers of the ops of the same step whose results it reads, in order, each once.
pub(crate) fn inputs(plan: &Plan) -> Vec<Vec<u32>> {
    let mut writers: BTreeMap<Place, u32> = BTreeMap::new();
    let ops = plan.ops.iter().enumerate();
    ops.map(|(i, op)| {
        let (reads, writes) = touched(&op.op);
        let mut from: Vec<u32> = reads.iter().filter_map(|p| writers.get(p).copied()).collect();
        from.sort_unstable();
        from.dedup();
        writers.extend(writes.into_iter().map(|p| (p, i as u32)));
        from
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Engine, EngineOptions, SessionOptions, Silent};

    #[test]
    fn every_op_but_the_first_reads_and_all_but_the_last_are_read() {
        for name in ["tiny-llama", "tiny-qwen2", "tiny-gpt2", "tiny-v4", "tiny-v4-fp8"] {
            let path = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("../tests/goldens")
                .join(name);
            let engine = Engine::open(&path, &EngineOptions::default(), &Silent).unwrap();
            let mut session = engine.session(engine.recipe(), SessionOptions::default()).unwrap();
            for tokens in [1, 32] {
                let plan = session.plan(tokens, 0);
                let inputs = inputs(&plan);
                let mut read = vec![false; plan.ops.len()];
                for (i, from) in inputs.iter().enumerate() {
                    let op = &plan.ops[i];
                    assert_eq!(from.is_empty(), i == 0, "{name}: {} reads {from:?}", op.name);
                    assert!(from.iter().all(|&f| (f as usize) < i), "{name}: {}", op.name);
                    from.iter().for_each(|&f| read[f as usize] = true);
                }
                // What only goes into the cache is read by the steps to come: rows closed for later tokens.
                let unread: Vec<&str> = (0..plan.ops.len() - 1)
                    .filter(|&i| !read[i] && !matches!(plan.ops[i].op, Op::CacheWrite { .. }))
                    .map(|i| plan.ops[i].name.as_str())
                    .collect();
                assert!(unread.is_empty(), "{name}: nobody reads {unread:?}");
                assert!(
                    matches!(plan.ops.last().map(|o| &o.op), Some(Op::Sample { .. })),
                    "{name}"
                );
            }
        }
    }
}

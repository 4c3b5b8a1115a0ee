//! Groups of base ops that are launched together.

use std::collections::{HashMap, HashSet};

use super::gemv::{self, Experts, Product, Project};
use super::{Group, GroupKind, attend, chain, gemm, gemm_wg, hc, index, mlp};
use crate::cuda::planes;
use crate::ir::{BufId, KeyRows, NormKind, Op, OpId, Plan, WeightId};

/// Buffers an op reads. What it changes in place counts.
pub(in crate::cuda) fn reads(op: &Op) -> Vec<BufId> {
    let some = |list: &[Option<BufId>]| list.iter().copied().flatten().collect();
    match op {
        Op::Embed { .. } => Vec::new(),
        Op::EmbedPosition { x, .. }
        | Op::Norm { x, .. }
        | Op::MatMul { x, .. }
        | Op::GroupedMatMul { x, .. }
        | Op::Rope { x, .. }
        | Op::Hadamard { x, .. }
        | Op::RoundTrip { x, .. }
        | Op::Slice { x, .. }
        | Op::Activate { x, .. }
        | Op::ZeroHeads { x, .. }
        | Op::TopP { x, .. }
        | Op::HcMix { x, .. }
        | Op::TakeOutput { x, .. }
        | Op::Probe { x, .. } => vec![*x],
        Op::CacheWrite { src, .. } => vec![*src],
        Op::Pool { kv, gate, .. } => vec![*kv, *gate],
        Op::IndexScore { q, weights, .. } => vec![*q, *weights],
        Op::SelectTopK { scores, .. } => vec![*scores],
        Op::Attend { q, sources, .. } => {
            let selected = sources.iter().filter_map(|s| match s.rows {
                KeyRows::Compressed { selection, .. } => selection,
                _ => None,
            });
            std::iter::once(*q).chain(selected).collect()
        }
        Op::Add { x, y, .. } => vec![*x, *y],
        Op::Glu {
            gate, up, row_weights, ..
        } => some(&[Some(*gate), Some(*up), *row_weights]),
        Op::Route { logits, .. } => vec![*logits],
        Op::ExpertMatMul { x, experts, .. } => vec![*x, *experts],
        Op::ExpertSum { x, shared, .. } => some(&[Some(*x), *shared]),
        Op::HcCollapse { x, pre, .. } => vec![*x, *pre],
        Op::HcExpand { o, x, post, comb, .. } => vec![*o, *x, *post, *comb],
        Op::Sample { logits } => vec![*logits],
    }
}

/// Buffers an op writes anew.
pub(in crate::cuda) fn writes(op: &Op) -> Vec<BufId> {
    match op {
        Op::Embed { out, .. }
        | Op::Norm { out, .. }
        | Op::MatMul { out, .. }
        | Op::GroupedMatMul { out, .. }
        | Op::Pool { out, .. }
        | Op::IndexScore { out, .. }
        | Op::SelectTopK { out, .. }
        | Op::Attend { out, .. }
        | Op::Slice { out, .. }
        | Op::Add { out, .. }
        | Op::Glu { out, .. }
        | Op::ExpertMatMul { out, .. }
        | Op::ExpertSum { out, .. }
        | Op::HcCollapse { out, .. }
        | Op::TakeOutput { out, .. } => vec![*out],
        Op::Route {
            out_experts,
            out_weights,
            ..
        } => vec![*out_experts, *out_weights],
        Op::HcMix { pre, post, comb, .. } => [Some(*pre), *post, *comb].into_iter().flatten().collect(),
        Op::EmbedPosition { .. }
        | Op::Rope { .. }
        | Op::CacheWrite { .. }
        | Op::Hadamard { .. }
        | Op::RoundTrip { .. }
        | Op::Activate { .. }
        | Op::ZeroHeads { .. }
        | Op::TopP { .. }
        | Op::HcExpand { .. }
        | Op::Probe { .. }
        | Op::Sample { .. } => Vec::new(),
    }
}

/// Whether nothing reads `b` from op `from` on before it is written anew.
pub(super) fn dead(plan: &Plan, b: BufId, from: usize) -> bool {
    if b == plan.logits {
        return false;
    }
    for base in &plan.ops[from..] {
        if reads(&base.op).contains(&b) {
            return false;
        }
        if writes(&base.op).contains(&b) {
            return true;
        }
    }
    true
}

/// The groups of a plan, in order. What an attention does with its queries first stands before other ops in a plan; it comes
/// with the attention, and nothing in between has to do with it.
pub(super) fn groups(plan: &Plan) -> Vec<Group> {
    let before: HashMap<usize, [usize; 2]> = (0..plan.ops.len())
        .filter_map(|i| Some((i, attend::before(plan, i)?)))
        .collect();
    let pairs: HashMap<usize, usize> = (0..plan.ops.len())
        .filter_map(|i| Some((beside(plan, i)?.0, i)))
        .collect();
    let later: HashSet<usize> = before.values().flatten().chain(pairs.values()).copied().collect();
    let mut out = Vec::new();
    let mut i = 0;
    while i < plan.ops.len() {
        if later.contains(&i) {
            i += 1;
            continue;
        }
        if let Some(&first) = pairs.get(&i) {
            out.push(Group {
                kind: GroupKind::Beside,
                origin: [first, i].map(|i| OpId(i as u32)).to_vec(),
            });
            i += 1;
            continue;
        }
        let turned = attend::turned(plan, &plan.ops[i].op, plan.ops.get(i + 1).map(|o| &o.op)).is_some();
        let (kind, n) = match (projection(plan, i), chain::length(plan, i)) {
            _ if hc::length(plan, i) > 0 => (GroupKind::Site, hc::length(plan, i)),
            _ if index::length(plan, i) > 0 => (GroupKind::Index, index::length(plan, i)),
            _ if turned => (GroupKind::Attend, 2),
            (n, _) if n > 1 => (GroupKind::Project, n),
            _ if mlp::length(plan, i) > 0 => (GroupKind::Mlp, mlp::length(plan, i)),
            _ if gemm_wg::residual(plan, i).is_some() => (GroupKind::Added, 2),
            _ if gemm::norm_before(plan, i, gemm::alike(plan, i + 1)) => {
                (GroupKind::Products, 1 + gemm::alike(plan, i + 1))
            }
            _ if gemm::alike(plan, i) > 1 => (GroupKind::Products, gemm::alike(plan, i)),
            _ if experts(plan, i).is_some() => (GroupKind::Experts, 3),
            (_, n) if n > 1 => (GroupKind::Chain, trim(plan, i, n)),
            _ => (GroupKind::Single, 1),
        };
        let first = before.get(&i).into_iter().flatten().copied();
        out.push(Group {
            kind: if n == 1 { GroupKind::Single } else { kind },
            origin: first.chain(i..i + n).map(|i| OpId(i as u32)).collect(),
        });
        i += n;
    }
    out
}

/// The product of experts at op `first` and the shared expert's that is added to it: the number of that op, products, input.
pub(super) fn beside(plan: &Plan, first: usize) -> Option<(usize, Project, BufId)> {
    let Some(Op::ExpertMatMul {
        x,
        experts,
        k,
        weights,
        per_slot: true,
        out,
    }) = plan.ops.get(first).map(|o| &o.op)
    else {
        return None;
    };
    let rest = plan.ops.iter().enumerate().skip(first + 1);
    let sum = rest.clone().find_map(|(i, o)| match &o.op {
        Op::ExpertSum { x, shared, .. } if x == out => Some((i, (*shared)?)),
        _ => None,
    })?;
    let (at, input, other) = rest.take(sum.0 - first - 1).find_map(|(i, o)| match &o.op {
        Op::MatMul {
            x,
            weight,
            bias: None,
            out,
        } if *out == sum.1 => Some((i, *x, *weight)),
        _ => None,
    })?;
    let d = plan.weight(*weights.first()?);
    let alike = |w: &WeightId| {
        let other = plan.weight(*w);
        gemv::alike(d, other) && d.rows == other.rows
    };
    let widths = plan.width(*x) == k * d.cols && plan.width(input) == d.cols && plan.width(sum.1) == d.rows;
    // Of the block formats of GGUF files not every kernel can.
    let plain = planes::of(d.format).is_none();
    let fits = plain && plan.token_bucket <= gemv::TOKENS && gemv::takes(d) && d.cols.is_multiple_of(4);
    if !(fits && widths && weights.iter().chain([&other]).all(alike) && projection(plan, at) <= 1) {
        return None;
    }
    let product = |weight, out| Product {
        weight,
        bias: None,
        out,
    };
    let project = Project {
        products: vec![product(*weights.first()?, *out), product(other, sum.1)],
        experts: Some(Experts {
            table: 0,
            partners: 0,
            chosen: *experts,
            k: *k,
            per_slot: true,
            weights: None,
            beside: Some(input),
        }),
        ..Project::default()
    };
    Some((at, project, *x))
}

/// A chain leaves its last norm to the products that follow, where they can take it along.
fn trim(plan: &Plan, first: usize, n: usize) -> usize {
    let last = first + n - 1;
    if matches!(plan.ops[last].op, Op::Norm { .. }) && projection(plan, last) > 1 {
        n - 1
    } else {
        n
    }
}

/// How many ops from `first` on are one launch of `gemv`: an optional norm, products of one input, then an optional
/// gate or residual. 0 or 1: nothing to gain.
fn projection(plan: &Plan, first: usize) -> usize {
    describe(plan, first).map_or(0, |(_, n, _)| n)
}

/// The gate and up halves of experts with what joins them, at ops `first` to `first + 2`: products, gate, input.
pub(super) fn experts(plan: &Plan, first: usize) -> Option<(Project, BufId)> {
    let op = |i: usize| plan.ops.get(first + i).map(|o| &o.op);
    let (
        Some(Op::ExpertMatMul {
            x,
            experts,
            k,
            weights: gates,
            per_slot,
            out: g,
        }),
        Some(Op::ExpertMatMul {
            x: x2,
            experts: experts2,
            weights: ups,
            per_slot: per_slot2,
            out: u,
            ..
        }),
        Some(Op::Glu {
            gate,
            up,
            out,
            activation,
            limit,
            row_weights,
        }),
    ) = (op(0), op(1), op(2))
    else {
        return None;
    };
    let weight = gates.first()?;
    let d = plan.weight(*weight);
    let alike = |id: &crate::ir::WeightId| {
        let other = plan.weight(*id);
        gemv::alike(d, other) && d.rows == other.rows
    };
    let same_input = (x, experts, per_slot) == (x2, experts2, per_slot2) && (gate, up) == (g, u);
    let fits = plan.token_bucket <= gemv::TOKENS && gemv::takes(d) && plan.width(*x).is_multiple_of(4);
    let unread = |b: BufId| b == *out || dead(plan, b, first + 3);
    let weights = row_weights.is_none_or(|w| plan.width(w) == *k);
    if !(same_input && fits && weights && gates.iter().chain(ups).all(alike) && out != x && unread(*g) && unread(*u)) {
        return None;
    }
    let product = |weight: &crate::ir::WeightId| Product {
        weight: *weight,
        bias: None,
        out: *out,
    };
    let project = Project {
        products: vec![product(weight), product(ups.first()?)],
        glu: Some((*activation, *limit)),
        experts: Some(Experts {
            table: 0,
            partners: 0,
            chosen: *experts,
            k: *k,
            per_slot: *per_slot,
            weights: *row_weights,
            beside: None,
        }),
        ..Project::default()
    };
    Some((project, *x))
}

fn product(op: &Op) -> Option<(BufId, Product)> {
    match op {
        Op::MatMul { x, weight, bias, out } => Some((
            *x,
            Product {
                weight: *weight,
                bias: *bias,
                out: *out,
            },
        )),
        _ => None,
    }
}

/// The launch that begins at op `first`, how many ops it stands for, and its input.
pub(super) fn describe(plan: &Plan, first: usize) -> Option<(Project, usize, BufId)> {
    if plan.token_bucket > gemv::TOKENS {
        return None;
    }
    let op = |i: usize| plan.ops.get(i).map(|o| &o.op);
    let mut p = Project::default();
    let mut at = first;
    let mut norm_out = None;
    let (input, x) = match op(at)? {
        Op::Norm {
            kind: NormKind::Rms,
            x,
            weight,
            bias: None,
            out,
            group,
            eps,
        } if plan.width(*x) == *group => {
            p.norm = Some((*weight, *eps));
            norm_out = Some(*out);
            at += 1;
            (*x, *out)
        }
        other => product(other).map(|(x, _)| (x, x))?,
    };
    if !plan.width(input).is_multiple_of(4) {
        return None;
    }
    while let Some((from, one)) = op(at).and_then(product) {
        let d = plan.weight(one.weight);
        let fits = gemv::takes(d)
            && p.products.first().is_none_or(|f| gemv::alike(plan.weight(f.weight), d))
            && p.products.iter().all(|f| f.out != one.out);
        if from != x || one.out == x || one.out == input || !fits || p.products.len() == gemv::SEGMENTS {
            break;
        }
        p.products.push(one);
        at += 1;
    }
    if p.products.is_empty() {
        return None;
    }
    at = gate_or_residual(plan, &mut p, at, input);
    // The normalised input is never stored, so nobody else may want it.
    if norm_out.is_some_and(|b| !dead(plan, b, at)) {
        return None;
    }
    Some((p, at - first, input))
}

/// Takes what follows the products into the launch; returns the op after it.
fn gate_or_residual(plan: &Plan, p: &mut Project, at: usize, input: BufId) -> usize {
    match plan.ops.get(at).map(|o| &o.op) {
        Some(Op::Glu {
            gate,
            up,
            out,
            activation,
            limit,
            row_weights: None,
        }) if p.products.len() == 2 => {
            let (g, u) = (p.products[0], p.products[1]);
            let same = plan.weight(g.weight).rows == plan.weight(u.weight).rows;
            let unread = |b: BufId| b == *out || dead(plan, b, at + 1);
            if same && g.out == *gate && u.out == *up && *out != input && unread(g.out) && unread(u.out) {
                p.products[0].out = *out;
                p.glu = Some((*activation, *limit));
                return at + 1;
            }
            at
        }
        Some(Op::Add { x, y, out }) if p.products.len() == 1 => {
            let product = p.products[0].out;
            let residual = if *x == product { *y } else { *x };
            let one = (*x == product) != (*y == product);
            if one && *out != input && residual != input && (*out == product || dead(plan, product, at + 1)) {
                p.products[0].out = *out;
                p.residual = Some(residual);
                return at + 1;
            }
            at
        }
        _ => at,
    }
}

//! Gate, up, what joins them and down, for many tokens: what lies between never leaves the parts that products are made of.

use super::gemm_wg::{self, Joined, Last, Part, Places};
use super::{fuse, gemm, matmul, pointwise};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::ALIGN;
use crate::ir::{Activation, BufId, ExecError, Op, OpId, Plan, WeightDesc};

/// Base ops of such a group, without the `Add` that may follow.
const LENGTH: usize = 4;

/// What joins gate and up.
struct Gate {
    limit: Option<f32>,
    row_weights: Option<BufId>,
}

/// Input, output, experts (their buffer, how many per token, slots apart) and first matrix of a product without a bias.
type Product<'a> = (BufId, BufId, Option<(BufId, usize, bool)>, &'a WeightDesc);

fn product<'a>(plan: &'a Plan, op: &Op) -> Option<Product<'a>> {
    match op {
        Op::MatMul {
            x,
            weight,
            bias: None,
            out,
        } => Some((*x, *out, None, plan.weight(*weight))),
        Op::ExpertMatMul {
            x,
            experts,
            k,
            weights,
            per_slot,
            out,
        } => Some((
            *x,
            *out,
            Some((*experts, *k, *per_slot)),
            plan.weight(*weights.first()?),
        )),
        _ => None,
    }
}

/// Gate, up, `Glu` and down at ops `first` to `first + 3`, where one launch can take the first three.
fn describe(plan: &Plan, first: usize) -> Option<Gate> {
    let ops = plan.ops.get(first..first + LENGTH)?;
    let Op::Glu {
        gate,
        up,
        out,
        activation: Activation::Silu,
        limit,
        row_weights,
    } = &ops[2].op
    else {
        return None;
    };
    let [g, u, down] = [0, 1, 3].map(|i| product(plan, &ops[i].op));
    let (g, u, down) = (g?, u?, down?);
    let all = [0, 1, 3].iter().all(|&i| gemm_wg::takes(plan, &ops[i].op));
    let slots = match (g.2, u.2, down.2) {
        (None, None, None) => row_weights.is_none(),
        (Some(a), Some(b), Some(c)) => {
            a == b && !a.2 && c == (a.0, a.1, true) && row_weights.is_none_or(|w| plan.width(w) == a.1)
        }
        _ => false,
    };
    let joined = (g.1, u.1) == (*gate, *up) && g.0 == u.0 && down.0 == *out;
    let shapes = g.3.rows == u.3.rows && g.3.cols == u.3.cols && g.3.rows == down.3.cols;
    // Whole tiles of gate and up, so that nothing has to be filled up with zeros.
    let whole = g.3.rows.is_multiple_of(gemm_wg::GATES);
    let apart = [*gate, *up, *out].iter().all(|b| *b != g.0) && down.1 != g.0;
    let unread = [*gate, *up, *out]
        .iter()
        .all(|b| *b == down.1 || fuse::dead(plan, *b, first + LENGTH));
    (all && slots && joined && shapes && whole && apart && unread).then_some(Gate {
        limit: *limit,
        row_weights: *row_weights,
    })
}

/// How many ops from `first` on are such a group, with the norm before it; 0 = none.
pub(super) fn length(plan: &Plan, first: usize) -> usize {
    if gemm::norm_before(plan, first, 2) && describe(plan, first + 1).is_some() {
        return 1 + length(plan, first + 1);
    }
    match describe(plan, first) {
        Some(_) => LENGTH + usize::from(gemm_wg::residual(plan, first + LENGTH - 1).is_some()),
        None => 0,
    }
}

/// Bytes of the slots sorted by expert.
fn sorted_bytes(op: &Op, bucket: usize) -> usize {
    match op {
        Op::ExpertMatMul { k, weights, .. } => gemm::sorted(bucket * k, weights.len(), gemm_wg::TOKENS)
            .bytes
            .next_multiple_of(ALIGN),
        _ => 0,
    }
}

/// Working memory, bytes: x in parts, slots sorted by expert, what lies between in parts, shares of the last product's sums.
pub(super) fn scratch_bytes(plan: &Plan, group: &[OpId]) -> usize {
    let normed = matches!(plan.ops[group[0].index()].op, Op::Norm { .. });
    let group = &group[usize::from(normed)..];
    let op = |i: usize| &plan.ops[group[i].index()].op;
    let bucket = plan.token_bucket;
    let parts = |i: usize| product(plan, op(i)).map_or(0, |(_, _, _, d)| gemm::parts_bytes(op(i), d, bucket));
    parts(0) + sorted_bytes(op(0), bucket) + parts(3) + gemm_wg::shares_bytes(plan, &group[3..LENGTH])
}

/// Runs such a group.
pub(super) fn mlp(cx: &LaunchCx<'_>, all: &[OpId]) -> Result<(), ExecError> {
    let (norm, group) = gemm::norm_of(cx, all);
    let op = |i: usize| &cx.plan.ops[group[i].index()].op;
    if !cx.device.info().wgmma {
        let first = all.len() - group.len() + 2;
        matmul::products(cx, &all[..first])?;
        pointwise::glu(cx, op(2))?;
        return if group.len() > LENGTH {
            matmul::added(cx, &group[3..])
        } else {
            matmul::products(cx, &group[3..])
        };
    }
    let Some(gate) = describe(cx.plan, group[0].index()) else {
        return super::args::unsupported("a group that is none of the plan's");
    };
    let part = |i: usize| -> Result<Part<'_>, ExecError> { matmul::arguments(cx, op(i), cx.experts[group[i].index()]) };
    let (first, second, down) = (part(0)?, part(1)?, part(3)?);
    let (d, bucket) = (first.1, gemm::bucket(cx, op(0)));
    let tiled = gemm_wg::tiled(op(0));
    let tiles = gemm::prepare(cx, norm, op(0), &first.0, &[d, second.1], (gemm_wg::TOKENS, tiled))?;
    let next = tiles + sorted_bytes(op(0), bucket) as u64;
    let joined = Joined {
        next,
        pitch: gemm::runs(op(3), down.1).1,
        tiled,
        slot_weights: gate.row_weights.map_or(0, |b| cx.buf(b).ptr),
        limit: gate.limit.unwrap_or(f32::INFINITY),
    };
    let places = Places {
        parts: cx.scratch,
        tiled,
        tiles,
        partial: 0,
    };
    gemm_wg::gemm_wg(cx, op(0), &[first, second], &places, &Last::Join(joined))?;
    let places = Places {
        parts: next,
        tiled,
        tiles,
        partial: next + gemm::parts_bytes(op(3), down.1, bucket) as u64,
    };
    let residual = gemm_wg::residual(cx.plan, group[3].index()).filter(|_| group.len() > LENGTH);
    let last = residual.map_or(Last::Store, |(residual, out)| {
        Last::Add(cx.buf(residual).ptr, cx.buf(out).ptr, op(4))
    });
    gemm_wg::gemm_wg(cx, op(3), &[down], &places, &last)
}

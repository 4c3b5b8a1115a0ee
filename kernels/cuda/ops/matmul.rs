//! Matrix products.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch, unsupported};
use super::gemv::{self, Experts, Product, Project};
use super::{gemm, gemm_wg, pointwise, stream};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, ExecError, Layout, Op, OpId, Plan, WeightDesc, WeightId};

/// Tokens one warp of the kernels for few tokens takes.
const TOKENS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct MatMulArgs {
    pub w: WeightArg,
    pub bias: WeightArg,
    pub x: DevPtr,
    pub out: DevPtr,
    pub step: DevPtr,
    pub experts: DevPtr,
    pub chosen: DevPtr,
    pub tokens: u32,
    pub x_stride: u32,
    pub out_stride: u32,
    pub group_rows: u32,
    pub k: u32,
    pub per_slot: u32,
}

/// Input, output and (first) matrix of a product.
fn places(op: &Op) -> Result<(BufId, BufId, WeightId), ExecError> {
    match op {
        Op::MatMul { x, weight, out, .. } | Op::GroupedMatMul { x, weight, out, .. } => Ok((*x, *out, *weight)),
        Op::ExpertMatMul { x, weights, out, .. } => match weights.first() {
            Some(w) => Ok((*x, *out, *w)),
            None => unsupported("a layer of no experts"),
        },
        _ => unsupported("this op as a product"),
    }
}

/// Arguments of `MatMul`, `GroupedMatMul` and `ExpertMatMul`, and their matrix; `table` is the op's table of experts.
pub(super) fn arguments<'a>(
    cx: &LaunchCx<'a>,
    op: &Op,
    table: DevPtr,
) -> Result<(MatMulArgs, &'a WeightDesc), ExecError> {
    let (x, out, w) = places(op)?;
    let (x, out, weight) = (cx.buf(x), cx.buf(out), cx.weight(w));
    let mut args = MatMulArgs::zeroed();
    args.w = WeightArg::of(&weight);
    (args.x, args.out, args.step) = (x.ptr, out.ptr, cx.step);
    (args.tokens, args.x_stride, args.out_stride) = (x.code, x.width as u32, out.width as u32);
    args.k = 1;
    match op {
        Op::MatMul { bias, .. } => args.bias = WeightArg::optional(cx, *bias),
        Op::GroupedMatMul { groups, .. } => args.group_rows = (weight.desc.rows / groups) as u32,
        Op::ExpertMatMul {
            experts,
            k,
            per_slot,
            weights,
            ..
        } => {
            let first = &cx.plan.weights[w.index()];
            let alike = |id: &WeightId| {
                let d = &cx.plan.weights[id.index()];
                d.format == first.format && d.rows == first.rows && d.cols == first.cols && d.scales == first.scales
            };
            if !weights.iter().all(alike) {
                return unsupported(format!(
                    "experts of one layer in different formats or shapes (`{}`)",
                    first.name
                ));
            }
            (args.experts, args.chosen) = (table, cx.buf(*experts).ptr);
            (args.k, args.per_slot) = (*k as u32, u32::from(*per_slot));
        }
        _ => {}
    }
    Ok((args, weight.desc))
}

/// Products of one input for many tokens (of `gemm::alike`, or one that `gemm` takes), after a norm or without one: the input
/// is prepared once.
pub(super) fn products<'a>(cx: &LaunchCx<'a>, group: &'a [OpId]) -> Result<(), ExecError> {
    let (norm, group) = gemm::norm_of(cx, group);
    let op = |id: &OpId| &cx.plan.ops[id.index()].op;
    let all = group
        .iter()
        .map(|id| arguments(cx, op(id), cx.experts[id.index()]))
        .collect::<Result<Vec<_>, _>>()?;
    let matrices: Vec<&WeightDesc> = all.iter().map(|(_, d)| *d).collect();
    let (Some(first), Some((a, _))) = (group.first(), all.first()) else {
        return Ok(());
    };
    let wide = if cx.device.info().wgmma {
        gemm_wg::taken(cx.plan, group)
    } else {
        Vec::new()
    };
    let run = if wide.is_empty() { gemm::TILE } else { gemm_wg::TOKENS };
    let tiled = wide.len() == group.len() && gemm_wg::tiled(op(first));
    let rest = gemm::prepare(cx, norm, op(first), a, &matrices, (run, tiled))?;
    let (mine, others): (Vec<_>, Vec<_>) = group.iter().zip(all).partition(|(id, _)| wide.contains(id));
    let mine: Vec<gemm_wg::Part<'_>> = mine.into_iter().map(|(_, part)| part).collect();
    let places = gemm_wg::Places {
        parts: cx.scratch,
        tiled,
        tiles: rest,
        partial: rest,
    };
    gemm_wg::gemm_wg(cx, op(first), &mine, &places, &gemm_wg::Last::Store)?;
    others.iter().try_for_each(|(id, (a, d))| gemm::gemm(cx, op(id), a, d))
}

/// A product and the `Add` behind it ([`gemm_wg::residual`]).
pub(super) fn added(cx: &LaunchCx<'_>, group: &[OpId]) -> Result<(), ExecError> {
    let op = |i: usize| &cx.plan.ops[group[i].index()].op;
    let Some((residual, out)) = gemm_wg::residual(cx.plan, group[0].index()) else {
        return unsupported("a group that is none of the plan's");
    };
    if !cx.device.info().wgmma {
        products(cx, &group[..1])?;
        return pointwise::add(cx, op(1));
    }
    let (args, d) = arguments(cx, op(0), 0)?;
    let rest = gemm::prepare(cx, None, op(0), &args, &[d], (gemm_wg::TOKENS, true))?;
    let places = gemm_wg::Places {
        parts: cx.scratch,
        tiled: true,
        tiles: 0,
        partial: rest,
    };
    let last = gemm_wg::Last::Add(cx.buf(residual).ptr, cx.buf(out).ptr, op(1));
    gemm_wg::gemm_wg(cx, op(0), &[(args, d)], &places, &last)
}

/// Whether a product is one of `gemv`'s.
pub(super) fn fast(plan: &Plan, op: &Op) -> bool {
    let Ok((x, _, w)) = places(op) else { return false };
    let groups = match op {
        Op::GroupedMatMul { groups, .. } => gemv::takes_groups(plan, w, *groups),
        _ => true,
    };
    let few = plan.buffer_len(x) / plan.width(x).max(1) <= gemv::TOKENS;
    few && plan.width(x).is_multiple_of(4) && gemv::takes(plan.weight(w)) && groups
}

/// `MatMul`, `GroupedMatMul` and `ExpertMatMul`.
pub(super) fn matmul(cx: &LaunchCx<'_>, id: OpId) -> Result<(), ExecError> {
    let (op, table) = (&cx.plan.ops[id.index()].op, cx.experts[id.index()]);
    let (x, _, w) = places(op)?;
    let x = cx.buf(x);
    if x.rows > gemv::TOKENS && gemm::takes(cx.plan, op) {
        return products(cx, &[id]);
    }
    let (args, d) = arguments(cx, op, table)?;
    if fast(cx.plan, op) {
        let (x, out, bias) = match op {
            Op::MatMul { x, out, bias, .. } => (*x, *out, *bias),
            Op::GroupedMatMul { x, out, .. } | Op::ExpertMatMul { x, out, .. } => (*x, *out, None),
            _ => return unsupported("this op as a product"),
        };
        let mut project = Project {
            products: vec![Product { weight: w, bias, out }],
            ..Project::default()
        };
        match op {
            Op::GroupedMatMul { groups, .. } => project.groups = *groups,
            Op::ExpertMatMul {
                experts, k, per_slot, ..
            } => {
                project.experts = Some(Experts {
                    table,
                    partners: 0,
                    chosen: *experts,
                    k: *k,
                    per_slot: *per_slot,
                    weights: None,
                    beside: None,
                });
            }
            _ => {}
        }
        if stream::launch(cx, x, &project)? {
            return Ok(());
        }
        return gemv::project(cx, x, &project);
    }
    if d.layout == Layout::InOut && args.experts == 0 && args.group_rows == 0 {
        let grid = [d.rows.div_ceil(32), x.rows.div_ceil(TOKENS), 1];
        return launch(cx, "matmul_in_out", grid, 256, 0, &args);
    }
    let slots = match op {
        Op::ExpertMatMul { k, .. } => x.rows * k,
        _ => x.rows.div_ceil(TOKENS),
    };
    let grid = [d.rows.div_ceil(8), slots, 1];
    launch(cx, "matmul_any", grid, 256, 0, &args)
}

/// Working memory of a product, bytes.
pub(super) fn scratch_bytes(plan: &Plan, op: &Op) -> usize {
    if plan.token_bucket > gemv::TOKENS && gemm::takes(plan, op) {
        gemm::scratch_bytes(plan, op)
    } else {
        0
    }
}

/// Working memory of products that are launched together, bytes.
pub(super) fn group_scratch_bytes(plan: &Plan, group: &[OpId]) -> usize {
    gemm_wg::scratch_bytes(plan, group)
}

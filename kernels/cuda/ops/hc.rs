//! mHC coefficients.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch, unsupported};
use super::mixing::RouteArgs;
use super::pointwise::MAX_STREAMS;
use super::{Group, GroupKind, fuse, matmul, mixing};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, ExecError, Format, Layout, NormKind, Op, OpId, Plan};

/// Values of the width per block (`kHcSlice`).
const SLICE: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct HcMixArgs {
    matrix: WeightArg,
    base: WeightArg,
    scale: WeightArg,
    x: DevPtr,
    partial: DevPtr,
    pre: DevPtr,
    post: DevPtr,
    comb: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    n: u32,
    outputs: u32,
    iterations: u32,
    eps: f32,
    norm_eps: f32,
    slices: u32,
}

pub(super) fn args(cx: &LaunchCx<'_>, op: &Op) -> Result<HcMixArgs, ExecError> {
    let Op::HcMix {
        x,
        matrix,
        base,
        scale,
        pre,
        post,
        comb,
        streams,
        iterations,
        eps,
        norm_eps,
    } = op
    else {
        return unsupported("this op as stream mixing");
    };
    if *streams > MAX_STREAMS {
        return unsupported(format!("{streams} residual streams (at most {MAX_STREAMS})"));
    }
    let x = cx.buf(*x);
    let matrix = WeightArg::get(cx, *matrix);
    Ok(HcMixArgs {
        matrix,
        base: WeightArg::get(cx, *base),
        scale: WeightArg::get(cx, *scale),
        x: x.ptr,
        partial: cx.scratch,
        pre: cx.buf(*pre).ptr,
        post: post.map_or(0, |b| cx.buf(b).ptr),
        comb: comb.map_or(0, |b| cx.buf(b).ptr),
        step: cx.step,
        rows: x.code,
        width: x.width as u32,
        n: *streams as u32,
        outputs: matrix.rows,
        iterations: *iterations as u32,
        eps: *eps,
        norm_eps: *norm_eps,
        slices: x.width.div_ceil(SLICE) as u32,
    })
}

/// The products of the streams with the mixing matrix, slice by slice; a chain finishes them.
pub(super) fn partial(cx: &LaunchCx<'_>, op: &Op) -> Result<(), ExecError> {
    let (Op::HcMix { x, .. }, args) = (op, args(cx, op)?) else {
        return unsupported("this op as stream mixing");
    };
    let (rows, slices) = (cx.buf(*x).rows, args.slices as usize);
    if rows > TOKENS {
        let shared = 4 * SLICE * args.outputs as usize;
        let grid = [slices, rows.div_ceil(MANY), 1];
        return launch(cx, "hc_partial_many", grid, 256, shared, &args);
    }
    launch(cx, "hc_partial", [slices, rows, 1], 256, 0, &args)
}

/// Columns per block of `hc_site` (`kSiteColumns`), and its streams (`kSiteStreams`).
const COLUMNS: usize = 64;
const STREAMS: usize = 4;
/// Blocks of `hc_site_near` (`kNear`), the columns one of them can have, and the outputs of the mixing matrix it takes.
const NEAR: usize = 8;
const NEAR_COLUMNS: usize = 512;
const NEAR_OUTPUTS: usize = 24;
/// Narrower streams are sooner through without: what starts a cluster costs more than it saves.
const NEAR_LEAST: usize = 1024;
/// Most tokens of a step that a site is one launch for.
const TOKENS: usize = 8;
/// Tokens per block of `hc_partial_many` (`kHcTokens`).
const MANY: usize = 16;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SiteArgs {
    mix: HcMixArgs,
    experts: DevPtr,
    shared: DevPtr,
    sum: DevPtr,
    o: DevPtr,
    post: DevPtr,
    comb: DevPtr,
    out: DevPtr,
    arrived: DevPtr,
    norm: WeightArg,
    k: u32,
    normed: u32,
    norm_eps: f32,
    raw: u32,
}

/// Most experts whose router a site can take along (`route_warp`).
const EXPERTS: usize = 32;

/// What `hc_site_near` is given.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct NearSiteArgs {
    site: SiteArgs,
    router: WeightArg,
    route: RouteArgs,
}

/// Ops of a site: an optional sum of experts, an optional expansion, what takes the rows that logits are for, mixing, collapse,
/// an optional norm of what comes out, and an optional router (its product and its choice) for that.
struct Site<'a> {
    /// The streams.
    residual: BufId,
    sum: Option<&'a Op>,
    expand: Option<&'a Op>,
    mix: &'a Op,
    collapse: &'a Op,
    norm: Option<&'a Op>,
    router: Option<[&'a Op; 2]>,
}

/// The ops from `first` on that `hc_site` runs together, and how many they are.
fn describe(plan: &Plan, first: usize) -> Option<(Site<'_>, usize)> {
    let mut at = first;
    let op = |i: usize| plan.ops.get(i).map(|o| &o.op);
    let sum = op(at).filter(|o| matches!(o, Op::ExpertSum { .. }));
    at += usize::from(sum.is_some());
    let expand = op(at).filter(|o| matches!(o, Op::HcExpand { .. }));
    at += usize::from(expand.is_some());
    // The last row of one is that row.
    let taken = match (expand, op(at)) {
        (Some(Op::HcExpand { x, .. }), Some(Op::TakeOutput { x: from, out }))
            if plan.token_bucket == 1 && x == from =>
        {
            Some((*x, *out))
        }
        _ => None,
    };
    at += usize::from(taken.is_some());
    let (mix, collapse) = (op(at)?, op(at + 1)?);
    let (
        Op::HcMix {
            x: streams,
            matrix,
            pre,
            streams: STREAMS,
            ..
        },
        Op::HcCollapse {
            x: from,
            pre: by,
            streams: STREAMS,
            out,
        },
    ) = (mix, collapse)
    else {
        return None;
    };
    let d = plan.weight(*matrix);
    let fits = plan.token_bucket <= TOKENS && d.format == Format::F32 && plan.width(*out).is_multiple_of(2);
    let residual = taken.map_or(*streams, |t| t.0);
    let same = |e: &Op| matches!(e, Op::HcExpand { x, streams: STREAMS, .. } if *x == residual);
    let given = match (sum, expand) {
        (Some(Op::ExpertSum { out, .. }), Some(Op::HcExpand { o, .. })) => out == o,
        (Some(_), _) => false,
        _ => true,
    };
    let norm = op(at + 2).filter(|n| takes_norm(plan, n, *out, at + 3));
    at += 2 + usize::from(norm.is_some());
    let x = match norm {
        Some(Op::Norm { out, .. }) => *out,
        _ => *out,
    };
    let router = takes_router(plan, at, x, d.rows);
    let n = at + 2 * usize::from(router.is_some()) - first;
    let alone = taken.is_none_or(|t| t.1 == *streams && fuse::dead(plan, t.1, first + n));
    (fits && given && alone && from == streams && by == pre && expand.is_none_or(same)).then_some((
        Site {
            residual,
            sum,
            expand,
            mix,
            collapse,
            norm,
            router,
        },
        n,
    ))
}

/// Whether streams are wide enough, and no wider than fits, for blocks that see each other's shared memory.
fn near(hidden: usize, outputs: usize) -> bool {
    hidden >= NEAR_LEAST && columns(hidden) <= NEAR_COLUMNS && outputs <= NEAR_OUTPUTS
}

/// Columns of a block of `hc_site_near`.
fn columns(hidden: usize) -> usize {
    hidden.div_ceil(2 * NEAR) * 2
}

/// A router's product of `x` and its choice at ops `at` and the next, where blocks that have x can make them.
fn takes_router(plan: &Plan, at: usize, x: BufId, outputs: usize) -> Option<[&Op; 2]> {
    let [product, choice] = [at, at + 1].map(|i| plan.ops.get(i).map(|o| &o.op));
    let (
        product @ Op::MatMul {
            x: from,
            weight,
            bias: None,
            out,
        },
        choice @ Op::Route { logits, k, .. },
    ) = (product?, choice?)
    else {
        return None;
    };
    let d = plan.weight(*weight);
    let plain = matches!(d.format, Format::F32 | Format::Bf16) && d.layout == Layout::OutIn && d.scales.is_none();
    let fits =
        *from == x && out == logits && d.rows.max(*k) <= EXPERTS && near(d.cols, outputs) && plan.width(x) == d.cols;
    (plain && fits && fuse::dead(plan, *logits, at + 2)).then_some([product, choice])
}

/// Whether an op is a norm of what a site collapses that nobody wants as it was, from op `after` on.
fn takes_norm(plan: &Plan, norm: &Op, collapsed: BufId, after: usize) -> bool {
    let Op::Norm {
        kind: NormKind::Rms,
        x,
        weight,
        bias: None,
        out,
        group,
        ..
    } = norm
    else {
        return false;
    };
    let plain = weight.is_none_or(|w| matches!(plan.weight(w).format, Format::F32 | Format::Bf16));
    *x == collapsed && plan.width(*x) == *group && plain && (out == x || fuse::dead(plan, *x, after))
}

/// How many ops from `first` on are one launch of `hc_site`; 0 = none.
pub(super) fn length(plan: &Plan, first: usize) -> usize {
    describe(plan, first).map_or(0, |(_, n)| n)
}

/// Enqueues a site.
pub(super) fn site(cx: &LaunchCx<'_>, origin: &[OpId]) -> Result<(), ExecError> {
    let first = origin.first().map_or(0, |id| id.index());
    let Some((site, n)) = describe(cx.plan, first).filter(|(_, n)| *n == origin.len()) else {
        return unsupported(format!("a group of {} ops as a site", origin.len()));
    };
    debug_assert!(n >= 2);
    let ptr = |b: &BufId| cx.buf(*b).ptr;
    let mut args = SiteArgs::zeroed();
    args.mix = self::args(cx, site.mix)?;
    args.mix.x = ptr(&site.residual);
    if let Some(Op::ExpertSum { x, k, shared, out }) = site.sum {
        (args.experts, args.k, args.sum) = (ptr(x), *k as u32, ptr(out));
        args.shared = shared.as_ref().map_or(0, ptr);
    }
    if let Some(Op::HcExpand { o, post, comb, .. }) = site.expand {
        (args.o, args.post, args.comb) = (ptr(o), ptr(post), ptr(comb));
    }
    let (Op::HcMix { x, .. }, Op::HcCollapse { out, .. }) = (site.mix, site.collapse) else {
        return unsupported("these ops as a site");
    };
    (args.out, args.arrived) = (ptr(out), cx.arrived);
    if let Some(Op::Norm { weight, out, eps, .. }) = site.norm {
        (args.norm, args.normed, args.norm_eps) = (WeightArg::optional(cx, *weight), 1, *eps);
        args.out = ptr(out);
    }
    let hidden = cx.buf(*out).width;
    if cx.device.info().clusters && near(hidden, args.mix.outputs as usize) {
        let mut near = NearSiteArgs::zeroed();
        near.site = args;
        near.site.raw = u32::from(finisher(cx, cx.group).is_some());
        let mut shared = 0;
        if let Some([Op::MatMul { weight, .. }, choice]) = site.router {
            near.router = WeightArg::get(cx, *weight);
            shared = 4 * near.router.rows as usize * columns(hidden);
            near.route = mixing::route_args(cx, choice, chosen(cx, origin))?;
        }
        return launch(cx, "hc_site_near", [NEAR, cx.buf(*x).rows, 1], 256, shared, &near);
    }
    let slices = hidden.div_ceil(COLUMNS);
    args.mix.slices = slices as u32;
    launch(cx, "hc_site", [slices, cx.buf(*x).rows, 1], 256, 0, &args)?;
    match site.router {
        Some([_, choice]) => {
            matmul::matmul(cx, origin[n - 2])?;
            mixing::route(cx, choice, chosen(cx, origin))
        }
        None => Ok(()),
    }
}

/// The coefficients a site of blocks near each other leaves for the next one: buffer, sinkhorn's iterations and epsilon; and the op
/// behind the site.
fn leaves(plan: &Plan, group: &Group) -> Option<(BufId, usize, f32, usize)> {
    let first = group.origin.first().filter(|_| group.kind == GroupKind::Site)?.index();
    let (site, n) = describe(plan, first)?;
    let (
        Op::HcMix {
            matrix,
            comb: Some(comb),
            iterations,
            eps,
            ..
        },
        Op::HcCollapse { out, .. },
    ) = (site.mix, site.collapse)
    else {
        return None;
    };
    let fits = *iterations > 0 && near(plan.width(*out), plan.weight(*matrix).rows);
    fits.then_some((*comb, *iterations, *eps, first + n))
}

/// The launch between site `group` and whoever reads its coefficients that finishes them: the first pair of products behind it,
/// which has a warp to spare, where sinkhorn's iterations (2 us) would keep all others waiting at the site.
fn finisher(cx: &LaunchCx<'_>, group: usize) -> Option<usize> {
    if cx.plan.token_bucket != 1 || !cx.device.info().clusters {
        return None;
    }
    let (comb, .., end) = leaves(cx.plan, cx.groups.get(group)?)?;
    let pair = group + 1 + cx.groups[group + 1..].iter().position(|g| g.kind == GroupKind::Pair)?;
    let own = |id: &&OpId| id.index() >= end;
    let between = cx.groups[group..=pair].iter().flat_map(|g| &g.origin).filter(own);
    let mut read = between.map(|id| fuse::reads(&cx.plan.ops[id.index()].op));
    (!read.any(|r| r.contains(&comb))).then_some(pair)
}

/// The coefficients that this launch, a pair of products, finishes.
pub(super) fn left(cx: &LaunchCx<'_>) -> Option<(DevPtr, u32, f32)> {
    let site = cx.groups[..cx.group].iter().rposition(|g| g.kind == GroupKind::Site)?;
    let (comb, iterations, eps, _) = leaves(cx.plan, &cx.groups[site])?;
    (finisher(cx, site) == Some(cx.group)).then(|| (cx.buf(comb).ptr, iterations as u32, eps))
}

/// Where the choice of a site's router is noted: the last op's.
fn chosen(cx: &LaunchCx<'_>, origin: &[OpId]) -> DevPtr {
    origin.last().map_or(0, |id| cx.stats[id.index()])
}

/// Working memory, bytes.
pub(super) fn scratch_bytes(plan: &Plan, op: &Op) -> usize {
    let Op::HcMix { x, matrix, .. } = op else { return 0 };
    let width = plan.width(*x);
    let rows = plan.buffer_len(*x) / width.max(1);
    // A site has slices of 64 columns of each of its four streams: as many values.
    const _: () = assert!(COLUMNS * STREAMS == SLICE);
    4 * rows * (width.div_ceil(SLICE) + 1) * (plan.weight(*matrix).rows + 1)
}

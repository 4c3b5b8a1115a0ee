//! Two products of one token in one launch, the second of what the first gives (`src/pair.cuh`): which groups of a plan are
//! one, and the launch.

use std::collections::HashSet;

use bytemuck::{Pod, Zeroable, bytes_of};

use super::args::{WeightArg, unsupported};
use super::gemv::Project;
use super::gemv_mma::{Scales, scales_of};
use super::pointwise::activation_code;
use super::{Group, GroupKind, fuse, hc};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::{Arg, DevPtr, Device, DeviceInfo, Launch, Residency};
use crate::cuda::memory::{Mem, Parts};
use crate::ir::{Activation, BufId, ExecError, Format, Layout, Op, OpId, Plan, WeightDesc, WeightId};

/// Threads that multiply, and those that copy.
pub(super) const THREADS: (u32, u32) = (256, 32);
/// Rows of a tile, tiles of a block (`kPairTiles`), warps.
pub(super) const TILE: usize = 16;
pub(super) const TILES: usize = 8;
pub(super) const WARPS: usize = 8;
/// Columns of a run.
const RUN: usize = 32;
/// Shared memory of a block that is no part of what it asks for.
const STATIC: usize = 6 * 1024;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct MatrixArg {
    pub data: DevPtr,
    pub scales: DevPtr,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(super) struct HalfArg {
    matrices: [MatrixArg; 2],
    beside: [MatrixArg; 2],
    experts: [DevPtr; 2],
    pub x: DevPtr,
    pub out: DevPtr,
    beside_out: DevPtr,
    cols: u32,
    row_bytes: u32,
    group_rows: u32,
    groups: u32,
    blocks: u32,
    each: u32,
    more: u32,
    x_step: u32,
    glu: u32,
    activation: u32,
    limit: f32,
    row_shift: u32,
    col_shift: u32,
    scale_pitch: u32,
    scale_format: u32,
    weights: u32,
    scales: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct PairArgs {
    halves: [HalfArg; 2],
    slot_weights: DevPtr,
    chosen: DevPtr,
    uses: DevPtr,
    k: u32,
    settled: u32,
    hold: u32,
    first: u32,
    last: u32,
    x: u32,
    partial: u32,
    n_experts: u32,
    comb: DevPtr,
    iterations: u32,
    eps: f32,
}

const _: () = assert!(size_of::<HalfArg>() == 176 && size_of::<PairArgs>() == 424);

/// How a format lies in shared memory: bytes of a row, what stands between two rows, bytes of x; see `src/pair.cuh`.
pub(super) struct Lies {
    pub kernel: &'static str,
    pub row: usize,
    pub pad: usize,
    pub x: usize,
    pub scales: Option<Scales>,
}

pub(super) fn lies(d: &WeightDesc) -> Option<Lies> {
    if d.layout != Layout::OutIn || d.cols == 0 || !d.cols.is_multiple_of(RUN) {
        return None;
    }
    let parts = |n: usize| n * (2 * d.cols + 64);
    match (d.format, d.scales) {
        (Format::Bf16, None) => Some(Lies {
            kernel: "pair_bf16",
            row: 2 * d.cols,
            pad: 64,
            x: parts(3),
            scales: None,
        }),
        (Format::F8E4m3, Some(s)) if s.block_cols.is_multiple_of(RUN) => Some(Lies {
            kernel: "pair_f8",
            row: d.cols,
            pad: 32,
            x: parts(2) + d.cols / RUN * 4,
            scales: Some(scales_of(d)?),
        }),
        _ => None,
    }
}

/// One of the two products.
pub(super) struct Half {
    /// A matrix, or gate and up; of experts the first one's.
    pub weights: Vec<WeightId>,
    /// Those of the group beside experts.
    pub beside: Vec<WeightId>,
    /// Ops whose tables of experts these are.
    pub tables: Vec<usize>,
    pub input: BufId,
    /// Whether every group has columns of its own.
    pub apart: bool,
    pub groups: usize,
    pub group_rows: usize,
    pub glu: Option<(Activation, Option<f32>)>,
}

/// Two products that can be one launch.
pub(in crate::cuda) struct Pair {
    halves: [Half; 2],
    out: BufId,
    beside_out: Option<BufId>,
    /// The choice of experts: buffer, how many, what they count.
    chosen: Option<(BufId, usize, Option<BufId>)>,
}

/// Where a half's rows and weights go.
pub(super) struct Place {
    pub blocks: usize,
    pub weights: usize,
    pub scales: usize,
}

/// How a pair is shared out: kernel, its halves, and bytes of shared memory.
struct Room {
    kernel: &'static str,
    places: [Place; 2],
    partial: usize,
    shared: usize,
    grid: usize,
}

/// Joins groups that can be one launch on such a device. With the joined groups come the pairs, in their order.
pub(in crate::cuda) fn join(plan: &Plan, groups: Vec<Group>, info: &DeviceInfo) -> (Vec<Group>, Vec<Pair>) {
    if plan.token_bucket != 1 || info.resident.is_none() {
        return (groups, Vec::new());
    }
    let pair = |some: &[&Group]| found(plan, some).filter(|p| room(plan, p, info).is_some());
    let (mut joined, mut pairs): (Vec<Group>, Vec<Pair>) = (Vec::with_capacity(groups.len()), Vec::new());
    let mut rest = groups.into_iter().peekable();
    while let Some(first) = rest.next() {
        let mut shared = None;
        let mut here = rest.peek().and_then(|second| pair(&[&first, second]));
        if let (GroupKind::Experts, Some(second)) = (first.kind, rest.peek()) {
            // The shared expert's gate and up stand anywhere before; nobody but the last of these reads what they give.
            let before = joined.iter().enumerate().rev();
            let mut before = before.filter(|(_, g)| g.kind == GroupKind::Project);
            (shared, here) = before
                .find_map(|(at, g)| Some((Some(at), Some(pair(&[g, &first, second])?))))
                .unwrap_or_default();
        }
        let (Some(here), Some(second)) = (here, rest.peek()) else {
            joined.push(first);
            continue;
        };
        let mut origin: Vec<OpId> = shared.map_or(Vec::new(), |at: usize| joined.remove(at).origin);
        origin.extend(first.origin.iter().chain(&second.origin));
        joined.push(Group {
            kind: GroupKind::Pair,
            origin,
        });
        pairs.push(here);
        rest.next();
    }
    (joined, pairs)
}

/// What some groups are as a pair.
fn found(plan: &Plan, groups: &[&Group]) -> Option<Pair> {
    let ids: HashSet<usize> = groups.iter().flat_map(|g| &g.origin).map(|o| o.index()).collect();
    let first = |i: usize| groups[i].origin.first().map(|o| o.index());
    match groups.len() {
        2 => outputs(plan, first(0)?, first(1)?, &ids),
        3 => experts(plan, [first(0)?, first(1)?, first(2)?], &ids),
        _ => None,
    }
}

/// Whether nobody but ops `ids` reads what op `from` leaves in `b`.
fn private(plan: &Plan, b: BufId, from: usize, ids: &HashSet<usize>) -> bool {
    if b == plan.logits {
        return false;
    }
    for (i, base) in plan.ops.iter().enumerate().skip(from + 1) {
        if fuse::reads(&base.op).contains(&b) && !ids.contains(&i) {
            return false;
        }
        if fuse::writes(&base.op).contains(&b) && !ids.contains(&i) {
            return true;
        }
    }
    true
}

/// Nothing but products, `n` of them, with or without a gate.
fn plain(p: &Project, n: usize) -> bool {
    p.products.len() == n && p.norm.is_none() && p.residual.is_none() && p.products.iter().all(|p| p.bias.is_none())
}

/// A product in groups and the one of what it gives.
fn outputs(plan: &Plan, first: usize, second: usize, ids: &HashSet<usize>) -> Option<Pair> {
    let Op::GroupedMatMul { x, weight, groups, out } = &plan.ops.get(first)?.op else {
        return None;
    };
    let (p, n, input) = fuse::describe(plan, second)?;
    let product = p.products.first().filter(|_| plain(&p, 1) && p.glu.is_none())?;
    let (d, next) = (plan.weight(*weight), plan.weight(product.weight));
    let fits = input == *out
        && ids.len() == 1 + n
        && product.out != *x
        && private(plan, *out, first, ids)
        && plan.width(*x) == groups * d.cols
        && plan.width(*out) == d.rows
        && d.rows == next.cols
        && d.rows.is_multiple_of(*groups)
        && plan.width(product.out) == next.rows;
    let half = |weight, input, groups: usize, rows: usize| Half {
        weights: vec![weight],
        beside: Vec::new(),
        tables: Vec::new(),
        input,
        apart: groups > 1,
        groups,
        group_rows: rows / groups,
        glu: None,
    };
    fits.then(|| Pair {
        halves: [
            half(*weight, *x, *groups, d.rows),
            half(product.weight, *out, 1, next.rows),
        ],
        out: product.out,
        beside_out: None,
        chosen: None,
    })
}

/// Gate and up of a shared expert, those of the chosen ones, and the products behind them.
fn experts(plan: &Plan, [shared, gates, downs]: [usize; 3], ids: &HashSet<usize>) -> Option<Pair> {
    let (s, n, input) = fuse::describe(plan, shared)?;
    let (e, x) = fuse::experts(plan, gates)?;
    let (_, down, h) = fuse::beside(plan, downs)?;
    let (chosen, last) = (e.experts?, down.experts?);
    let (one, other) = (e.products.first()?, down.products.first()?);
    let (h_beside, d) = (last.beside?, plan.weight(one.weight));
    let same = |w: WeightId| super::gemv::alike(plan.weight(w), d) && plan.weight(w).rows == d.rows;
    let fits = plain(&s, 2)
        && s.glu.is_some()
        && s.glu == e.glu
        && n == 3
        && ids.len() == n + 5
        && input == x
        && s.products.iter().all(|p| same(p.weight))
        && !chosen.per_slot
        && (chosen.chosen, chosen.k) == (last.chosen, last.k)
        && s.products[0].out == h_beside
        && one.out == h
        && private(plan, h_beside, shared + n - 1, ids)
        && private(plan, h, gates + 2, ids)
        && plan.width(x) == d.cols
        && plan.weight(other.weight).cols == d.rows;
    let matrices = |p: &Project| p.products.iter().map(|p| p.weight).collect::<Vec<_>>();
    let groups = chosen.k + 1;
    fits.then(|| Pair {
        halves: [
            Half {
                weights: matrices(&e),
                beside: matrices(&s),
                tables: vec![gates, gates + 1],
                input: x,
                apart: false,
                groups,
                group_rows: d.rows,
                glu: e.glu,
            },
            Half {
                weights: vec![other.weight],
                beside: vec![down.products[1].weight],
                tables: vec![downs],
                input: h,
                apart: true,
                groups,
                group_rows: plan.weight(other.weight).rows,
                glu: None,
            },
        ],
        out: other.out,
        beside_out: Some(down.products[1].out),
        chosen: Some((chosen.chosen, chosen.k, chosen.weights)),
    })
}

/// How a pair finds room, if it does.
fn room(plan: &Plan, pair: &Pair, info: &DeviceInfo) -> Option<Room> {
    let mut kernel = None;
    let (mut x, mut tiles, mut grid) = (0, 0, 0);
    for half in &pair.halves {
        let of = lies(plan.weight(*half.weights.first()?))?;
        if *kernel.get_or_insert(of.kernel) != of.kernel {
            return None;
        }
        x = of.x.max(x);
    }
    let partial = x.next_multiple_of(128);
    let mut share = |half: &Half| {
        let blocks = (info.multiprocessors as usize / half.groups).min(half.group_rows);
        let units = half.group_rows.div_ceil(blocks.max(1));
        let mine = if half.glu.is_some() {
            units.div_ceil(TILE / 2)
        } else {
            units.div_ceil(TILE)
        };
        tiles = mine.max(tiles);
        grid = grid.max(blocks * half.groups);
        (blocks > 0 && mine <= TILES).then_some((blocks, units * half.weights.len()))
    };
    let shares = [share(&pair.halves[0])?, share(&pair.halves[1])?];
    let mut end = partial + tiles * TILE * WARPS * 4;
    let mut place = |half: &Half, (blocks, rows): (usize, usize)| {
        let d = plan.weight(*half.weights.first()?);
        let of = lies(d)?;
        let weights = end.next_multiple_of(128);
        let scales = weights + rows * (of.row + of.pad);
        let per = of.scales.map_or(0, |s| d.cols.div_ceil(1 << s.col_shift));
        end = scales + 4 * rows * per;
        Some(Place {
            blocks,
            weights,
            scales,
        })
    };
    let places = [place(&pair.halves[0], shares[0])?, place(&pair.halves[1], shares[1])?];
    (end + STATIC <= info.shared_per_block).then_some(Room {
        kernel: kernel?,
        places,
        partial,
        // So much that no two blocks share a multiprocessor ([`Launch::apart`]); registers are for the neighbours' blocks.
        shared: end.max(info.shared_per_block / 2),
        // One with nothing to multiply, where there is room: it has time for what a site before has left.
        grid: (grid + 1).min(info.multiprocessors as usize),
    })
}

/// A pair's launch, made ready.
struct Ready {
    kernel: &'static str,
    args: PairArgs,
    grid: usize,
    shared: usize,
}

/// The pairs of a plan.
#[derive(Default)]
pub(in crate::cuda) struct Pairs {
    /// Their counters and what their blocks exchange.
    _mem: Option<Mem>,
    /// By number of their group.
    list: Vec<(usize, Ready)>,
}

impl Pairs {
    /// Makes the pairs among the groups of a plan ready, `found` in their order: `memory` gives memory of so many bytes.
    pub fn new(
        mut cx: LaunchCx<'_>,
        groups: &[Group],
        found: &[Pair],
        memory: &dyn Fn(usize) -> Result<Mem, ExecError>,
    ) -> Result<Self, ExecError> {
        let info = cx.device.info();
        let mut parts = Parts::default();
        let mut all = Vec::new();
        let numbers = groups.iter().enumerate().filter(|(_, g)| g.kind == GroupKind::Pair);
        for ((i, _), pair) in numbers.zip(found) {
            let Some(room) = room(cx.plan, pair, info) else {
                return unsupported("two products of this size in one launch");
            };
            let first = &pair.halves[0];
            let places = (parts.add(8), parts.add(4 * first.groups * first.group_rows));
            all.push((i, pair, room, places));
        }
        if all.is_empty() {
            return Ok(Self::default());
        }
        let mem = memory(parts.bytes())?;
        cx.device.fill(mem.ptr(), 0, parts.bytes())?;
        let at = |offset: usize| mem.ptr() + offset as u64;
        let mut list = Vec::new();
        for (i, pair, room, (uses, between)) in all {
            cx.group = i;
            let args = args(&cx, pair, &room, at(uses), at(between))?;
            list.push((
                i,
                Ready {
                    kernel: room.kernel,
                    args,
                    grid: room.grid,
                    shared: room.shared,
                },
            ));
        }
        Ok(Self { _mem: Some(mem), list })
    }

    /// Enqueues group `i` if it is a pair; `false`: it is none.
    pub fn launch(&self, device: &dyn Device, i: usize) -> Result<bool, ExecError> {
        let Ok(at) = self.list.binary_search_by_key(&i, |p| p.0) else {
            return Ok(false);
        };
        let ready = &self.list[at].1;
        let mut args = ready.args;
        let (launches, threads): (&[(u32, u32)], u32) = match device.info().resident {
            Residency::Whole => (&[(0, 1)], THREADS.0 + THREADS.1),
            _ => (&[(0, 0), (1, 1)], THREADS.0),
        };
        for (first, last) in launches {
            (args.first, args.last) = (*first, *last);
            device.launch(&Launch {
                kernel: ready.kernel,
                grid: [ready.grid as u32, 1, 1],
                block: [threads, 1, 1],
                shared: ready.shared,
                early: true,
                apart: false,
                args: &[Arg::Struct(bytes_of(&args))],
            })?;
        }
        Ok(true)
    }
}

fn args(cx: &LaunchCx<'_>, pair: &Pair, room: &Room, uses: DevPtr, between: DevPtr) -> Result<PairArgs, ExecError> {
    let mut args = PairArgs::zeroed();
    for (i, half) in pair.halves.iter().enumerate() {
        args.halves[i] = half_arg(cx, half, &room.places[i])?;
    }
    (args.halves[0].out, args.halves[1].x) = (between, between);
    args.halves[0].x = cx.buf(pair.halves[0].input).ptr;
    args.halves[1].out = cx.buf(pair.out).ptr;
    args.halves[1].beside_out = pair.beside_out.map_or(0, |b| cx.buf(b).ptr);
    if let Some((chosen, k, weights)) = pair.chosen {
        (args.chosen, args.k) = (cx.buf(chosen).ptr, k as u32);
        args.slot_weights = weights.map_or(0, |b| cx.buf(b).ptr);
        args.settled = u32::from(cx.settled(chosen));
        if let Some(Op::ExpertMatMul { weights, .. }) = pair.halves[0].tables.first().map(|t| &cx.plan.ops[*t].op) {
            args.n_experts = weights.len() as u32;
        }
    }
    if let Some((comb, iterations, eps)) = hc::left(cx) {
        (args.comb, args.iterations, args.eps) = (comb, iterations, eps);
    }
    args.uses = uses;
    args.hold = u32::from(cx.holds.get(cx.group).is_some_and(|h| *h));
    args.partial = room.partial as u32;
    Ok(args)
}

pub(super) fn half_arg(cx: &LaunchCx<'_>, half: &Half, place: &Place) -> Result<HalfArg, ExecError> {
    let w = WeightArg::get(cx, half.weights[0]);
    let Some(lies) = lies(cx.plan.weight(half.weights[0])) else {
        return unsupported("this format in two products of one launch");
    };
    let mut arg = HalfArg::zeroed();
    let matrix = |id: &WeightId| {
        let w = cx.weight(*id);
        MatrixArg {
            data: w.data,
            scales: w.scales,
        }
    };
    for (to, id) in arg.matrices.iter_mut().zip(&half.weights) {
        *to = matrix(id);
    }
    for (to, id) in arg.beside.iter_mut().zip(&half.beside) {
        *to = matrix(id);
    }
    for (to, op) in arg.experts.iter_mut().zip(&half.tables) {
        *to = cx.experts[*op];
    }
    (arg.cols, arg.row_bytes) = (w.cols, lies.row as u32);
    (arg.group_rows, arg.groups) = (half.group_rows as u32, half.groups as u32);
    arg.blocks = place.blocks as u32;
    arg.each = (half.group_rows / place.blocks) as u32;
    arg.more = (half.group_rows % place.blocks) as u32;
    arg.x_step = if half.apart { w.cols } else { 0 };
    arg.limit = f32::INFINITY;
    if let Some((activation, limit)) = half.glu {
        (arg.glu, arg.activation) = (1, activation_code(activation));
        arg.limit = limit.unwrap_or(f32::INFINITY);
    }
    if let Some(s) = lies.scales {
        (arg.row_shift, arg.col_shift, arg.scale_pitch) = (s.row_shift, s.col_shift, s.pitch as u32);
        arg.scale_format = w.scale_format;
    }
    (arg.weights, arg.scales) = (place.weights as u32, place.scales as u32);
    Ok(arg)
}

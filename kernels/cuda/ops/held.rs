//! Products of one token whose weights lie in shared memory before their input is there, with a chain of rows beside them
//! (`src/held.cuh`).

use bytemuck::{Pod, Zeroable, bytes_of};

use super::args::WeightArg;
use super::chain::{Chain, ChainArgs};
use super::gemv::Project;
use super::pair::{Half, PairArgs, Place, THREADS, TILE, TILES, WARPS, half_arg, lies};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::{Arg, Launch, Residency};
use crate::ir::{BufId, ExecError, Format, Plan, WeightId};

/// Shared memory that the kernels declare, with room to spare.
const STATIC: usize = 12 * 1024;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HeldArgs {
    products: PairArgs,
    norm: WeightArg,
    chain: ChainArgs,
    normed: u32,
    eps: f32,
    beside: u32,
    slices: u32,
}

/// Where everything lies, and how many blocks there are.
struct Room {
    kernel: &'static str,
    halves: Vec<(Half, Place)>,
    partial: usize,
    shared: usize,
}

/// Enqueues products of `x` and a chain of rows, where there is a kernel for that; `false`: there is none.
pub(super) fn launch(cx: &LaunchCx<'_>, x: BufId, p: &Project, chain: &Chain) -> Result<bool, ExecError> {
    let info = cx.device.info();
    let blocks = (info.multiprocessors as usize).saturating_sub(chain.blocks());
    let room = room(cx.plan, p, x, blocks, info.shared_per_block);
    let Some(room) = room.filter(|_| cx.plan.token_bucket == 1 && !info.resident.is_none() && chain.grid[0] == 1) else {
        return Ok(false);
    };
    let mut args = HeldArgs::zeroed();
    for (i, (half, place)) in room.halves.iter().enumerate() {
        let mut arg = half_arg(cx, half, place)?;
        (arg.x, arg.out) = (cx.buf(x).ptr, cx.buf(p.products[i].out).ptr);
        args.products.halves[i] = arg;
    }
    args.products.hold = u32::from(cx.holds.get(cx.group).is_some_and(|h| *h));
    args.products.partial = room.partial as u32;
    if let Some((weight, eps)) = p.norm {
        (args.normed, args.norm, args.eps) = (1, WeightArg::optional(cx, weight), eps);
    }
    (args.chain, args.beside, args.slices) = (chain.args, chain.blocks() as u32, chain.grid[2] as u32);
    let threads = match info.resident {
        Residency::Whole => THREADS.0 + THREADS.1,
        _ => THREADS.0,
    };
    let grid = chain.blocks() + room.halves.iter().map(|(_, place)| place.blocks).sum::<usize>();
    cx.device.launch(&Launch {
        kernel: room.kernel,
        grid: [grid as u32, 1, 1],
        block: [threads, 1, 1],
        shared: room.shared.max(chain.shared),
        early: true,
        args: &[Arg::Struct(bytes_of(&args))],
    })?;
    Ok(true)
}

/// How products find room in so many blocks, if they do.
fn room(plan: &Plan, p: &Project, x: BufId, blocks: usize, shared: usize) -> Option<Room> {
    let count = p.products.len();
    let plain = p.residual.is_none() && p.glu.is_none() && p.experts.is_none() && p.groups <= 1;
    if !plain || !(1..=2).contains(&count) || blocks < count || p.products.iter().any(|p| p.bias.is_some()) {
        return None;
    }
    let norm = p.norm.and_then(|n| n.0);
    if !norm.is_none_or(|w| matches!(plan.weight(w).format, Format::F32 | Format::Bf16)) {
        return None;
    }
    let descs: Vec<_> = p.products.iter().map(|p| plan.weight(p.weight)).collect();
    let of = lies(descs[0])?;
    let kernel = match of.kernel {
        "pair_bf16" => "held_bf16",
        _ => "held_f8",
    };
    let alike = descs.iter().all(|d| super::gemv::alike(d, descs[0]));
    if !alike || plan.width(x) != descs[0].cols {
        return None;
    }
    let all: usize = descs.iter().map(|d| d.rows).sum();
    // Each matrix has its share of the blocks, one at least, and no block less than a tile.
    let first = (blocks * descs[0].rows).div_ceil(all.max(1)).clamp(1, blocks - (count - 1));
    let shares = [first, blocks - first].map(|b| b.max(1));
    let shares: Vec<usize> = shares.iter().zip(&descs).map(|(b, d)| (*b).min(d.rows.div_ceil(TILE))).collect();
    let units: Vec<usize> = shares.iter().zip(&descs).map(|(b, d)| d.rows.div_ceil((*b).max(1))).collect();
    let (most, per) = (*units.iter().max()?, of.scales.map_or(0, |s| descs[0].cols.div_ceil(1 << s.col_shift)));
    let tiles = most.div_ceil(TILE);
    let partial = of.x.next_multiple_of(128);
    let weights = (partial + tiles * TILE * WARPS * 4).next_multiple_of(128);
    let scales = weights + most * (of.row + of.pad);
    let end = scales + 4 * most * per;
    if most == 0 || tiles > TILES || end + STATIC > shared {
        return None;
    }
    let half = |weight: WeightId, rows| Half {
        weights: vec![weight],
        beside: Vec::new(),
        tables: Vec::new(),
        input: x,
        apart: false,
        groups: 1,
        group_rows: rows,
        glu: None,
    };
    let halves = p.products.iter().zip(shares).map(|(p, blocks)| {
        let place = Place { blocks, weights, scales };
        (half(p.weight, plan.weight(p.weight).rows), place)
    });
    Some(Room {
        kernel,
        halves: halves.collect(),
        partial,
        shared: end,
    })
}

//! Products of one token whose weights lie in shared memory before their input is there, with a chain of rows beside them
//! (`src/held.cuh`).

use bytemuck::{Pod, Zeroable, bytes_of};

use super::args::WeightArg;
use super::chain::{Chain, ChainArgs};
use super::gemv::{Project, alike};
use super::pair::{Half, HalfArg, Lies, MatrixArg, Place, THREADS, TILE, TILES, WARPS, half_arg, lies};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::{Arg, DevPtr, Launch, Residency};
use crate::ir::{BufId, ExecError, Format, Plan};

/// Matrices of a format (`kHeldMatrices`).
const MATRICES: usize = 8;
/// Shared memory that the kernels declare, with room to spare.
const STATIC: usize = 12 * 1024;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HeldMatrixArg {
    of: MatrixArg,
    out: DevPtr,
    blocks: u32,
    each: u32,
    more: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProductsArg {
    half: HalfArg,
    matrices: [HeldMatrixArg; MATRICES],
    count: u32,
    blocks: u32,
    partial: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct HeldArgs {
    products: [ProductsArg; 2],
    norm: WeightArg,
    chain: ChainArgs,
    normed: u32,
    eps: f32,
    hold: u32,
    beside: u32,
    slices: u32,
    pad: u32,
}

/// How products find room: blocks of each matrix of each format, where what they need lies, and bytes of shared memory.
struct Room {
    blocks: Vec<Vec<usize>>,
    places: Vec<Place>,
    partials: Vec<usize>,
    shared: usize,
}

/// Enqueues products of `x`, of a format each, and a chain of rows, where there is a kernel for that; `false`: there is none.
pub(super) fn launch(cx: &LaunchCx<'_>, x: BufId, all: &[&Project], chain: Option<&Chain>) -> Result<bool, ExecError> {
    let info = cx.device.info();
    let beside = chain.map_or(0, Chain::blocks);
    let one = cx.held && cx.noted.is_none() && cx.plan.token_bucket == 1 && chain.is_none_or(|c| c.grid[0] == 1);
    let blocks = (info.multiprocessors as usize).saturating_sub(beside);
    let found = kernel(cx.plan, x, all)
        .filter(|_| one)
        .and_then(|k| Some((k, room(cx.plan, all, blocks, info.shared_per_block)?)));
    let Some((kernel, room)) = found else {
        return Ok(false);
    };
    let mut args = HeldArgs::zeroed();
    let each = all.iter().zip(&room.blocks).zip(room.places.iter().zip(&room.partials));
    for (to, ((p, blocks), (place, partial))) in args.products.iter_mut().zip(each) {
        let half = Half {
            weights: vec![p.products[0].weight],
            beside: Vec::new(),
            tables: Vec::new(),
            input: x,
            apart: false,
            groups: 1,
            group_rows: 0,
            glu: None,
        };
        to.half = half_arg(cx, &half, place)?;
        to.half.x = cx.buf(x).ptr;
        (to.count, to.partial) = (p.products.len() as u32, *partial as u32);
        to.blocks = blocks.iter().sum::<usize>() as u32;
        for ((m, product), &blocks) in to.matrices.iter_mut().zip(&p.products).zip(blocks) {
            let w = cx.weight(product.weight);
            *m = HeldMatrixArg {
                of: MatrixArg {
                    data: w.data,
                    scales: w.scales,
                },
                out: cx.buf(product.out).ptr,
                blocks: blocks as u32,
                each: (w.desc.rows / blocks) as u32,
                more: (w.desc.rows % blocks) as u32,
                pad: 0,
            };
        }
    }
    if let Some((weight, eps)) = all[0].norm {
        (args.normed, args.norm, args.eps) = (1, WeightArg::optional(cx, weight), eps);
    }
    args.hold = u32::from(cx.holds.get(cx.group).is_some_and(|h| *h));
    args.slices = 1;
    if let Some(chain) = chain {
        (args.chain, args.beside, args.slices) = (chain.args, beside as u32, chain.grid[2] as u32);
    }
    let grid = beside + room.blocks.iter().flatten().sum::<usize>();
    let threads = match info.resident {
        Residency::Whole => THREADS.0 + THREADS.1,
        _ => THREADS.0,
    };
    cx.device.launch(&Launch {
        kernel,
        grid: [grid as u32, 1, 1],
        block: [threads, 1, 1],
        shared: room.shared.max(chain.map_or(0, |c| c.shared)),
        early: true,
        // Of two such launches in a row, input and queries, only one can have more than half of the registers: the first, behind
        // which the other finds a block on every multiprocessor. Chains come with the second.
        apart: chain.is_none(),
        args: &[Arg::Struct(bytes_of(&args))],
    })?;
    Ok(true)
}

/// The kernel of such products, if there is one.
fn kernel(plan: &Plan, x: BufId, all: &[&Project]) -> Option<&'static str> {
    let norm = all.first()?.norm;
    let plain = |p: &&Project| {
        let first = p.products.first().map(|p| plan.weight(p.weight));
        p.residual.is_none()
            && p.glu.is_none()
            && p.experts.is_none()
            && p.groups <= 1
            && p.norm == norm
            && p.products.len() <= MATRICES
            && p.products.iter().all(|p| p.bias.is_none())
            && first
                .is_some_and(|d| d.cols == plan.width(x) && p.products.iter().all(|p| alike(plan.weight(p.weight), d)))
    };
    if !all.iter().all(plain) {
        return None;
    }
    let formats: Vec<_> = all.iter().map(|p| plan.weight(p.products[0].weight).format).collect();
    match formats[..] {
        [Format::Bf16] => Some("held_bf16"),
        [Format::F8E4m3] => Some("held_f8"),
        [Format::F8E4m3, Format::Bf16] => Some("held_f8_bf16"),
        _ => None,
    }
}

/// How products find room in so many blocks and so much shared memory, if they do.
fn room(plan: &Plan, all: &[&Project], most: usize, shared: usize) -> Option<Room> {
    let formats: Vec<Lies> = all
        .iter()
        .map(|p| lies(plan.weight(p.products[0].weight)))
        .collect::<Option<_>>()?;
    // (format, rows) of each matrix.
    let rows: Vec<(usize, usize)> = all
        .iter()
        .enumerate()
        .flat_map(|(f, p)| p.products.iter().map(move |p| (f, plan.weight(p.weight).rows)))
        .collect();
    if rows.len() > most || rows.iter().any(|r| r.1 == 0) {
        return None;
    }
    // Block by block to the matrix whose blocks have most to read, down to a tile each.
    let mut blocks = vec![1usize; rows.len()];
    for _ in rows.len()..most {
        let cost = |i: usize| rows[i].1.div_ceil(blocks[i]) * formats[rows[i].0].row;
        let room = |i: &usize| rows[*i].1.div_ceil(blocks[*i]) > TILE;
        let Some(i) = (0..rows.len()).filter(room).max_by_key(|i| cost(*i)) else {
            break;
        };
        blocks[i] += 1;
    }
    let mut found = Room {
        blocks: Vec::new(),
        places: Vec::new(),
        partials: Vec::new(),
        shared: 0,
    };
    for (f, of) in formats.iter().enumerate() {
        let mine = || (0..rows.len()).filter(|i| rows[*i].0 == f);
        let units = mine().map(|i| rows[i].1.div_ceil(blocks[i])).max()?;
        let tiles = units.div_ceil(TILE);
        let cols = plan.weight(all[f].products[0].weight).cols;
        let per = of.scales.map_or(0, |s| cols.div_ceil(1 << s.col_shift));
        let partial = of.x.next_multiple_of(128);
        let weights = (partial + tiles * TILE * WARPS * 4).next_multiple_of(128);
        let scales = weights + units * (of.row + of.pad);
        found.shared = found.shared.max(scales + 4 * units * per);
        if tiles > TILES || found.shared + STATIC > shared {
            return None;
        }
        found.blocks.push(mine().map(|i| blocks[i]).collect());
        found.partials.push(partial);
        // Rows of a block are those of its matrix.
        found.places.push(Place {
            blocks: 1,
            weights,
            scales,
        });
    }
    Some(found)
}

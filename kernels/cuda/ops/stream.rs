//! A product of one token whose matrix goes through shared memory tile by tile: an FP8 output layer
//! (`src/stream_near.cu`).

use bytemuck::{Pod, Zeroable, bytes_of};

use super::gemv::Project;
use super::pair::{Half, HalfArg, Place, THREADS, TILE, WARPS, half_arg, lies};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::{Arg, Launch, Residency};
use crate::ir::{BufId, ExecError, Format};

/// Places of the ring at most (`kStreamPlaces`), and fewer than which the memory would wait.
const PLACES: usize = 12;
const FEW: usize = 4;
/// Shared memory that the kernel declares, with room to spare.
const STATIC: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StreamArgs {
    half: HalfArg,
    tiles: u32,
    more: u32,
    places: u32,
    partial: u32,
    hold: u32,
    pad: u32,
}

/// Enqueues a product of `x`, where it is one that this is for; `false`: it is not.
pub(super) fn launch(cx: &LaunchCx<'_>, x: BufId, p: &Project) -> Result<bool, ExecError> {
    let info = cx.device.info();
    let one = cx.held && cx.noted.is_none() && cx.plan.token_bucket == 1;
    let plain = p.norm.is_none() && p.residual.is_none() && p.glu.is_none() && p.experts.is_none() && p.groups <= 1;
    let [product] = p.products[..] else {
        return Ok(false);
    };
    let d = cx.plan.weight(product.weight);
    let alone = one && plain && product.bias.is_none() && d.format == Format::F8E4m3 && d.cols == cx.plan.width(x);
    let Some(of) = lies(d).filter(|_| alone) else {
        return Ok(false);
    };
    // A tile's rows have their scales in common.
    let Some(scales) = of.scales.as_ref().filter(|s| 1 << s.row_shift >= TILE) else {
        return Ok(false);
    };
    // Fewer rows than that are shared out more finely elsewhere.
    let (tiles, blocks) = (d.rows.div_ceil(TILE), info.multiprocessors as usize);
    if blocks == 0 || tiles < 2 * blocks {
        return Ok(false);
    }
    let rows = tiles.div_ceil(blocks) * TILE;
    let partial = of.x.next_multiple_of(128);
    let table = partial + 2 * TILE * WARPS * 4;
    let entries = ((rows >> scales.row_shift) + 2) * d.cols.div_ceil(1 << scales.col_shift);
    let ring = (table + 4 * entries).next_multiple_of(128);
    let place = TILE * (of.row + of.pad);
    let places = (info.shared_per_block.saturating_sub(ring + STATIC) / place).min(PLACES);
    if places < FEW {
        return Ok(false);
    }
    let half = Half {
        weights: vec![product.weight],
        beside: Vec::new(),
        tables: Vec::new(),
        input: x,
        apart: false,
        groups: 1,
        group_rows: d.rows,
        glu: None,
    };
    let at = Place {
        blocks: 1,
        weights: ring,
        scales: table,
    };
    let mut args = StreamArgs {
        half: half_arg(cx, &half, &at)?,
        tiles: (tiles / blocks) as u32,
        more: (tiles % blocks) as u32,
        places: places as u32,
        partial: partial as u32,
        hold: u32::from(cx.holds.get(cx.group).is_some_and(|h| *h)),
        pad: 0,
    };
    (args.half.x, args.half.out) = (cx.buf(x).ptr, cx.buf(product.out).ptr);
    let threads = match info.resident {
        Residency::Whole => THREADS.0 + THREADS.1,
        _ => THREADS.0,
    };
    cx.device.launch(&Launch {
        kernel: "stream_f8",
        grid: [blocks as u32, 1, 1],
        block: [threads, 1, 1],
        shared: ring + places * place,
        early: true,
        apart: false,
        args: &[Arg::Struct(bytes_of(&args))],
    })?;
    Ok(true)
}

//! The records of the launch, where they and what blocks exchange lie, and the launch itself.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable, bytes_of};

use super::super::args::{CacheArg, WeightArg, unsupported};
use super::super::pointwise::activation_code;
use super::{COLUMNS, MARKED, Run, SEGMENTS, Work};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::{Arg, DevPtr, Device, DeviceInfo, Launch, Residency};
use crate::cuda::memory::{Mem, Parts};
use crate::ir::{BufId, ExecError, Format, OpId, Plan, RopeStyle};

/// Bytes of a record (`kResidentOp`).
const OP: usize = 512;
/// Shared memory of a block without x and the ring (`ResidentShared`).
const BLOCK: usize = 18944;
/// Threads that multiply, and those that copy.
const THREADS: (u32, u32) = (256, 128);
/// Rows of a tile.
const TILE: usize = 16;
/// Places of the ring, at most (`kResidentSlots`) and at least (`kFillers`).
const SLOTS: (usize, usize) = (16, 4);
/// Heads of a block of an attention (`kAttendHeads`), and its warps.
const HEADS: usize = 8;
const WARPS: usize = 8;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct SegmentArg {
    data: DevPtr,
    scales: DevPtr,
    bias: DevPtr,
    out: DevPtr,
    rows: u32,
    bias_format: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProductArg {
    segments: [SegmentArg; SEGMENTS],
    x: DevPtr,
    residual: DevPtr,
    norm: DevPtr,
    cols: u32,
    row_bytes: u32,
    scale_bytes: u32,
    n_segments: u32,
    each: u32,
    more: u32,
    norm_format: u32,
    normed: u32,
    glu: u32,
    activation: u32,
    limit: f32,
    eps: f32,
    per_column: f32,
    x_kind: u32,
    out_kind: u32,
    residual_kind: u32,
    chunk: u32,
    ring_cols: u32,
    ring_chunk: u32,
    pad: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttendArg {
    keys: CacheArg,
    values: CacheArg,
    q: DevPtr,
    key: DevPtr,
    value: DevPtr,
    out: DevPtr,
    partial: DevPtr,
    heads: u32,
    kv_heads: u32,
    block_heads: u32,
    parts: u32,
    shares: u32,
    kind: u32,
    scale: f32,
    out_kind: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ResidentArgs {
    ops: DevPtr,
    serial: DevPtr,
    step: DevPtr,
    freqs: DevPtr,
    stamps: DevPtr,
    first: u32,
    end: u32,
    slots: u32,
    slot_bytes: u32,
    scratch: u32,
    dims: u32,
    half: u32,
    total: u32,
}

const _: () = assert!(size_of::<SegmentArg>() == 40 && size_of::<ProductArg>() == 224 && size_of::<AttendArg>() == 168);

/// How a format lies in the ring and x beside it: bytes of `n` columns, padding of a row, whether it has scales, and bytes of
/// x of `n` columns; see the formats' structs in `src/resident.cuh`.
struct Lies {
    name: &'static str,
    bytes: fn(usize) -> usize,
    pad: usize,
    scaled: bool,
    x: fn(usize) -> usize,
    /// Columns of a place.
    chunk: usize,
}

fn lies(format: Format) -> Option<Lies> {
    Some(match format {
        Format::Bf16 => Lies {
            name: "bf16",
            bytes: |n| 2 * n,
            pad: 64,
            scaled: false,
            x: |n| 3 * (2 * n + 64),
            chunk: 768,
        },
        Format::Q8_0 => Lies {
            name: "q8_0",
            bytes: |n| n,
            pad: 32,
            scaled: true,
            x: |n| 3 * (n + 32) + 4 * (n / 32),
            chunk: 1536,
        },
        Format::Q4_0 => Lies {
            name: "q4_0",
            bytes: |n| n / 2,
            pad: 16,
            scaled: true,
            x: |n| 3 * (n + 32) + 4 * (n / 32),
            chunk: 1536,
        },
        // In the ring as Q4_0 of twice as many columns.
        Format::Q6K => Lies {
            name: "q6_k",
            bytes: |n| n,
            pad: 16,
            scaled: true,
            x: |n| 3 * (n + 32) + 4 * (n / 32),
            chunk: 768,
        },
        _ => return None,
    })
}

/// How a block's shared memory is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    scratch: usize,
    slots: usize,
    slot_bytes: usize,
}

/// Heads of a block that share a key head.
fn block_heads(group: usize) -> usize {
    (1..=group.min(HEADS))
        .rev()
        .find(|n| group.is_multiple_of(*n))
        .unwrap_or(1)
}

fn room(plan: &Plan, run: &Run, info: &DeviceInfo) -> Option<Room> {
    let lies = lies(run.format)?;
    let needs = run.items.iter().map(|item| match &item.work {
        Work::Product { input, .. } => (lies.x)(plan.width(*input)),
        Work::Attend(a) => {
            let (d, heads) = (run.head_dim, block_heads(a.heads / a.kv_heads));
            // `AttendScratch`.
            3 * HEADS * d * 2 + 4 * d + 2 * 4 * WARPS * HEADS + 4 * WARPS * heads * d
        }
        Work::Combine => 40 * 4 * WARPS,
    });
    let scratch = needs.max()?.next_multiple_of(128);
    let scales = if lies.scaled { lies.chunk / 16 + 16 } else { 0 };
    let slot_bytes = (TILE * ((lies.bytes)(lies.chunk) + lies.pad + scales)).next_multiple_of(128);
    let slots = (info.shared_per_block.checked_sub(BLOCK + scratch)? / slot_bytes).min(SLOTS.0);
    (slots >= SLOTS.1).then_some(Room {
        scratch,
        slots,
        slot_bytes,
    })
}

/// Whether a run finds room in a block's shared memory and in the records.
pub(super) fn fits(plan: &Plan, run: &Run, info: &DeviceInfo) -> bool {
    let heads = run.items.iter().all(|item| match &item.work {
        Work::Attend(a) => blocks_of_heads(a.heads, a.kv_heads) <= info.multiprocessors as usize,
        _ => true,
    });
    heads && kernel(run).is_some() && room(plan, run, info).is_some()
}

fn blocks_of_heads(heads: usize, kv_heads: usize) -> usize {
    heads / block_heads(heads / kv_heads)
}

fn kernel(run: &Run) -> Option<&'static str> {
    Some(match (lies(run.format)?.name, run.head_dim) {
        ("bf16", 64) => "resident_bf16_64",
        ("bf16", 128) => "resident_bf16_128",
        ("q8_0", 64) => "resident_q8_0_64",
        ("q8_0", 128) => "resident_q8_0_128",
        ("q4_0", 64) => "resident_q4_0_64",
        ("q4_0", 128) => "resident_q4_0_128",
        _ => return None,
    })
}

/// A run made ready.
pub(in crate::cuda) struct Resident {
    /// The number of the last launch, times, records, and what blocks exchange.
    _mem: Mem,
    kernel: &'static str,
    args: ResidentArgs,
    stamps: DevPtr,
    blocks: u32,
    shared: usize,
    /// By op of the launch.
    origins: Vec<Vec<OpId>>,
}

/// Where what blocks exchange lies.
struct Exchange {
    vectors: Vec<(BufId, DevPtr)>,
    partial: DevPtr,
}

impl Exchange {
    /// A buffer's vector, or, for `PLAIN`, the buffer.
    fn place(&self, cx: &LaunchCx<'_>, b: BufId, kind: u32) -> DevPtr {
        let own = self.vectors.iter().find(|v| v.0 == b).filter(|_| kind >= MARKED);
        own.map_or(cx.buf(b).ptr, |v| v.1)
    }
}

impl Resident {
    /// Places a run: `memory` gives memory of so many bytes.
    pub fn new(
        cx: &LaunchCx<'_>,
        run: &Run,
        info: &DeviceInfo,
        memory: &dyn Fn(usize) -> Result<Mem, ExecError>,
    ) -> Result<Self, ExecError> {
        let (Some(room), Some(kernel)) = (room(cx.plan, run, info), kernel(run)) else {
            return unsupported("this run of ops as one launch");
        };
        let n = run.items.len();
        let mut parts = Parts::default();
        let serial = parts.add(4);
        let stamps = parts.add(8 * (n + 1));
        let ops = parts.add(OP * n);
        let vectors: Vec<(BufId, usize)> = run
            .exchanged()
            .into_iter()
            .map(|b| (b, parts.add(4 * cx.plan.width(b))))
            .collect();
        let blocks = info.multiprocessors as usize;
        let heads = run.items.iter().filter_map(|item| match &item.work {
            Work::Attend(a) => Some((a.heads, blocks / blocks_of_heads(a.heads, a.kv_heads))),
            _ => None,
        });
        let partial = heads
            .map(|(heads, shares)| 8 * heads * shares * (run.head_dim + 4))
            .max();
        let partial = parts.add(partial.unwrap_or(0));
        let mem = memory(parts.bytes())?;
        let at = |offset: usize| mem.ptr() + offset as u64;
        let exchange = Exchange {
            vectors: vectors.into_iter().map(|(b, offset)| (b, at(offset))).collect(),
            partial: at(partial),
        };
        let mut bytes = vec![0u8; parts.bytes()];
        for i in 0..n {
            let record = record(cx, run, i, &exchange, blocks)?;
            bytes[ops + i * OP..][..record.len()].copy_from_slice(&record);
        }
        cx.device.upload(mem.ptr(), &bytes)?;
        let args = ResidentArgs {
            ops: at(ops),
            serial: at(serial),
            step: cx.step,
            freqs: cx.rope(run.rope.0).freqs,
            slots: room.slots as u32,
            slot_bytes: room.slot_bytes as u32,
            scratch: room.scratch as u32,
            dims: run.head_dim as u32,
            half: u32::from(run.rope.1 == RopeStyle::Half),
            total: n as u32,
            ..ResidentArgs::zeroed()
        };
        Ok(Self {
            kernel,
            args,
            stamps: at(stamps),
            blocks: blocks as u32,
            shared: BLOCK + room.scratch + room.slots * room.slot_bytes,
            origins: run.items.iter().map(|i| i.origin.clone()).collect(),
            _mem: mem,
        })
    }

    /// Enqueues the launch; `timed`: it notes when its ops begin.
    pub fn launch(&self, device: &dyn Device, timed: bool) -> Result<(), ExecError> {
        let mut args = self.args;
        args.stamps = if timed { self.stamps } else { 0 };
        let total = args.total;
        let (each, threads) = match device.info().resident {
            Residency::Whole => (total, THREADS.0 + THREADS.1),
            _ => (1, THREADS.0),
        };
        for first in (0..total).step_by(each as usize) {
            (args.first, args.end) = (first, first + each);
            device.launch(&Launch {
                kernel: self.kernel,
                grid: [self.blocks, 1, 1],
                block: [threads, 1, 1],
                shared: self.shared,
                early: true,
                apart: false,
                args: &[Arg::Struct(bytes_of(&args))],
            })?;
        }
        Ok(())
    }

    /// The ops of the launch that was timed last, with nanoseconds; empty where the device has no clock.
    pub fn times(&self, device: &Arc<dyn Device>) -> Result<Vec<(Vec<OpId>, f64)>, ExecError> {
        let mut stamps = vec![0u64; self.origins.len() + 1];
        device.download(self.stamps, bytemuck::cast_slice_mut(&mut stamps))?;
        if stamps[0] == 0 {
            return Ok(Vec::new());
        }
        let mut times: Vec<(Vec<OpId>, f64)> = Vec::new();
        for (origin, pair) in self.origins.iter().zip(stamps.windows(2)) {
            let nanos = pair[1].saturating_sub(pair[0]) as f64;
            match times.last_mut() {
                // The end of an attention counts as part of it.
                Some(last) if origin.is_empty() => last.1 += nanos,
                _ => times.push((origin.clone(), nanos)),
            }
        }
        Ok(times)
    }
}

/// The record of item `i`.
fn record(cx: &LaunchCx<'_>, run: &Run, i: usize, exchange: &Exchange, blocks: usize) -> Result<Vec<u8>, ExecError> {
    let item = &run.items[i];
    let (kind, body) = match &item.work {
        Work::Product { project, .. } => {
            let other = cx.plan.weight(project.products[0].weight).format != run.format;
            let product = product(cx, run, i, exchange, blocks)?;
            ([0, u32::from(other)], bytes_of(&product).to_vec())
        }
        Work::Attend(_) => ([1, 0], bytes_of(&attend(cx, run, i, exchange, blocks)?).to_vec()),
        Work::Combine => ([2, 0], bytes_of(&attend(cx, run, i - 1, exchange, blocks)?).to_vec()),
    };
    let mut record = bytes_of(&kind).to_vec();
    record.extend(body);
    Ok(record)
}

fn attend(cx: &LaunchCx<'_>, run: &Run, i: usize, exchange: &Exchange, blocks: usize) -> Result<AttendArg, ExecError> {
    let Work::Attend(a) = &run.items[i].work else {
        return unsupported("the end of no attention");
    };
    let ([kind, out_kind, _], heads) = (run.kinds[i], block_heads(a.heads / a.kv_heads));
    Ok(AttendArg {
        keys: CacheArg::of(&cx.cache(a.keys)),
        values: CacheArg::of(&cx.cache(a.values)),
        q: exchange.place(cx, a.q, kind),
        key: exchange.place(cx, a.key, kind),
        value: exchange.place(cx, a.value, kind),
        out: exchange.place(cx, a.out, out_kind),
        partial: exchange.partial,
        heads: a.heads as u32,
        kv_heads: a.kv_heads as u32,
        block_heads: heads as u32,
        parts: (a.heads / a.kv_heads / heads) as u32,
        shares: (blocks / blocks_of_heads(a.heads, a.kv_heads)) as u32,
        kind,
        scale: a.scale,
        out_kind,
    })
}

fn product(
    cx: &LaunchCx<'_>,
    run: &Run,
    i: usize,
    exchange: &Exchange,
    blocks: usize,
) -> Result<ProductArg, ExecError> {
    let Work::Product { project: p, input } = &run.items[i].work else {
        return unsupported("this op as a product");
    };
    let own = lies(cx.plan.weight(p.products[0].weight).format);
    let (Some(ring), Some(own)) = (lies(run.format), own) else {
        return unsupported("products of this format");
    };
    let [x_kind, out_kind, residual_kind] = run.kinds[i];
    let mut arg = ProductArg::zeroed();
    let mut units = 0;
    for (s, product) in arg.segments.iter_mut().zip(&p.products) {
        let w = cx.weight(product.weight);
        let bias = WeightArg::optional(cx, product.bias);
        *s = SegmentArg {
            data: w.data,
            scales: w.scales,
            bias: bias.data,
            out: exchange.place(cx, product.out, out_kind),
            rows: w.desc.rows as u32,
            bias_format: bias.format,
        };
        units += w.desc.rows;
    }
    let w = WeightArg::of(&cx.weight(p.products[0].weight));
    if p.glu.is_some() {
        units = w.rows as usize;
    }
    let cols = w.cols as usize;
    arg.x = exchange.place(cx, *input, x_kind);
    arg.residual = p.residual.map_or(0, |b| exchange.place(cx, b, residual_kind));
    if let Some((weight, eps)) = p.norm {
        let norm = WeightArg::optional(cx, weight);
        (arg.normed, arg.norm, arg.norm_format, arg.eps) = (1, norm.data, norm.format, eps);
    }
    (arg.cols, arg.row_bytes) = (w.cols, w.row_bytes);
    // Columns of the launch's format that have as many bytes as one.
    let share = (own.bytes)(COLUMNS) / (ring.bytes)(COLUMNS);
    let chunk = own.chunk.min(cols);
    (arg.chunk, arg.ring_cols, arg.ring_chunk) = (chunk as u32, (share * cols) as u32, (share * chunk) as u32);
    arg.scale_bytes = if ring.scaled { arg.ring_cols / 16 } else { 0 };
    arg.n_segments = p.products.len() as u32;
    (arg.each, arg.more) = ((units / blocks) as u32, (units % blocks) as u32);
    arg.limit = f32::INFINITY;
    if let Some((activation, limit)) = p.glu {
        (arg.glu, arg.activation) = (1, activation_code(activation));
        arg.limit = limit.unwrap_or(f32::INFINITY);
    }
    arg.per_column = 1.0 / cols as f32;
    (arg.x_kind, arg.out_kind, arg.residual_kind) = (x_kind, out_kind, residual_kind);
    Ok(arg)
}

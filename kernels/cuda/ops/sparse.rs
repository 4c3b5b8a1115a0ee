//! Launches of `sparse.cu`.

use bytemuck::{Pod, Zeroable};

use super::args::{POINTWISE, launch, pointwise, unsupported};
use crate::cuda::cx::LaunchCx;
use crate::cuda::device::DevPtr;
use crate::ir::{BufId, ExecError};

/// Most heads a layer may have (`kMostHeads`).
const MOST_HEADS: usize = 256;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ZeroHeadsArgs {
    heads: [u64; MOST_HEADS / 64],
    x: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    head_dim: u32,
    pad: u32,
}

pub(super) fn zero_heads(cx: &LaunchCx<'_>, x: BufId, head_dim: usize, heads: &[u32]) -> Result<(), ExecError> {
    let x = cx.buf(x);
    let mut args = ZeroHeadsArgs::zeroed();
    for &h in heads {
        let Some(word) = args.heads.get_mut(h as usize / 64) else {
            return unsupported(format!("head {h} (0 to {})", MOST_HEADS - 1));
        };
        *word |= 1 << (h % 64);
    }
    (args.x, args.step, args.rows) = (x.ptr, cx.step, x.code);
    (args.width, args.head_dim) = (x.width as u32, head_dim as u32);
    launch(cx, "zero_heads", pointwise(x.width, x.rows), POINTWISE, 0, &args)
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TopPArgs {
    x: DevPtr,
    kept: DevPtr,
    step: DevPtr,
    rows: u32,
    width: u32,
    group: u32,
    p: f32,
}

pub(super) fn top_p(cx: &LaunchCx<'_>, x: BufId, group: usize, p: f32, kept: DevPtr) -> Result<(), ExecError> {
    let x = cx.buf(x);
    let args = TopPArgs {
        x: x.ptr,
        kept,
        step: cx.step,
        rows: x.code,
        width: x.width as u32,
        group: group as u32,
        p,
    };
    launch(cx, "top_p", [x.width / group, x.rows, 1], 256, 0, &args)
}

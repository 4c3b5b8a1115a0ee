//! Weights in other formats than bf16 for kernels that read nothing else: made bf16 right before the product, in working
//! memory. A matrix is read once for hundreds of tokens, so that this costs a fraction of the product.

use bytemuck::{Pod, Zeroable};

use super::args::{WeightArg, launch};
use super::{Group, gemm, gemm_wg};
use crate::cuda::cx::{LaunchCx, format_code};
use crate::cuda::device::{ALIGN, DevPtr};
use crate::ir::{ExecError, Format, Plan, WeightDesc};

/// Inputs of a part of a row are a multiple of this (`kWgStep`).
const PITCH: usize = 64;
/// Most outputs of a matrix: output layers, which meet one token as a rule, would need gigabytes.
const ROWS: usize = 65_536;

/// `DenseArgs` of `src/dense.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct DenseArgs {
    w: WeightArg,
    out: DevPtr,
    pitch: u32,
    pad: u32,
}

/// How a matrix becomes bf16.
#[derive(Clone, Copy)]
pub(super) struct Dense {
    kernel: &'static str,
    /// bf16 numbers per weight: one where that is exact, or two (16 bits).
    parts: usize,
}

/// How a matrix becomes bf16; `None`: it is, or a plan needs all its bits.
pub(super) fn of(plan: &Plan, d: &WeightDesc) -> Option<Dense> {
    let parts = gemm::weight_parts(plan, d)?;
    if d.rows > ROWS || parts > 2 {
        return None;
    }
    let kernel = match (d.format, parts) {
        (Format::F8E4m3, 1) => "dense_f8",
        (Format::Fp4E2m1, 1) => "dense_fp4",
        (Format::F16, 2) => "dense_f16",
        (Format::Q8_0 | Format::Q5_0, 2) => "dense_q8_0",
        (Format::Q4_0, 2) => "dense_q4_0",
        (Format::Q4_1, 2) => "dense_q4_1",
        (Format::Q4K, 2) => "dense_q4_k",
        (Format::Q6K, 2) => "dense_q6_k",
        _ => return None,
    };
    Some(Dense { kernel, parts })
}

/// bf16 numbers per weight as the kernels read them.
pub(super) fn parts(plan: &Plan, d: &WeightDesc) -> usize {
    of(plan, d).map_or(1, |dense| dense.parts)
}

/// Inputs the kernels go through: those of all parts.
pub(super) fn cols(plan: &Plan, d: &WeightDesc) -> usize {
    of(plan, d).map_or(d.cols, |dense| dense.parts * d.cols.next_multiple_of(PITCH))
}

/// Bytes of a matrix as bf16; 0 where it stays as it is.
fn bytes_of(plan: &Plan, d: &WeightDesc) -> usize {
    let made = |dense: Dense| (2 * d.rows * dense.parts * d.cols.next_multiple_of(PITCH)).next_multiple_of(ALIGN);
    of(plan, d).map_or(0, made)
}

/// Working memory, bytes: all matrices of a group.
pub(super) fn bytes(plan: &Plan, groups: &[Group]) -> usize {
    let group = |g: &Group| -> usize {
        let taken = gemm_wg::taken(plan, &g.origin);
        gemm_wg::matrices(plan, &taken).iter().map(|d| bytes_of(plan, d)).sum()
    };
    groups.iter().map(group).max().unwrap_or(0)
}

/// The weights of a product for a kernel that reads bf16, and their parts; what has to be made lies at `free`, which moves on.
pub(super) fn made(
    cx: &LaunchCx<'_>,
    w: WeightArg,
    d: &WeightDesc,
    free: &mut DevPtr,
) -> Result<(WeightArg, u32), ExecError> {
    let Some(dense) = of(cx.plan, d) else {
        return Ok((w, 1));
    };
    let pitch = d.cols.next_multiple_of(PITCH);
    let args = DenseArgs {
        w,
        out: *free,
        pitch: pitch as u32,
        pad: 0,
    };
    let runs = d.rows * pitch / 16;
    launch(cx, dense.kernel, [runs.div_ceil(256), 1, 1], 256, 0, &args)?;
    let mut made = w;
    (made.data, made.scales) = (*free, 0);
    (made.format, made.row_bytes) = (format_code(Format::Bf16), (2 * dense.parts * pitch) as u32);
    *free += bytes_of(cx.plan, d) as u64;
    Ok((made, dense.parts as u32))
}

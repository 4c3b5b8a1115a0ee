//! Parameter structs of kernels: one per kernel, by value. Every field stands in the `.cu` file of the same name with its
//! shape; the emulator's launch and the static assertions there compare sizes.

use bytemuck::{Pod, Zeroable};

use crate::cuda::cx::{DevCache, DevWeight, LaunchCx, cache_code, format_code, scale_code};
use crate::cuda::device::{Arg, DevPtr};
use crate::cuda::planes;
use crate::ir::{ExecError, Layout, WeightId};

/// Threads of the pointwise kernels.
pub(super) const POINTWISE: usize = 256;

/// `WeightRef` of `weights.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct WeightArg {
    pub data: DevPtr,
    pub scales: DevPtr,
    pub rows: u32,
    pub cols: u32,
    pub format: u32,
    pub in_out: u32,
    pub scale_format: u32,
    pub block_rows: u32,
    pub block_cols: u32,
    pub row_bytes: u32,
}

impl WeightArg {
    /// A weight as it lies.
    pub fn of(w: &DevWeight<'_>) -> Self {
        let (d, planes) = (w.desc, planes::of(w.desc.format));
        let stored_cols = match d.layout {
            Layout::OutIn => d.cols,
            Layout::InOut => d.rows,
        };
        let (format, row_bytes) = match planes {
            Some(p) => (p.format, Some(stored_cols / p.block * p.data)),
            None => (d.format, d.format.row_bytes(stored_cols)),
        };
        let (scale_format, block_rows, block_cols) = match (planes, d.scales) {
            (Some(p), _) => (p.scale_code, 1, p.entry),
            (None, Some(s)) => (scale_code(s.format), s.block_rows, s.block_cols),
            (None, None) => (0, 1, 1),
        };
        Self {
            data: w.data,
            scales: w.scales,
            rows: d.rows as u32,
            cols: d.cols as u32,
            format: format_code(format),
            in_out: u32::from(d.layout == Layout::InOut),
            scale_format,
            block_rows: block_rows as u32,
            block_cols: block_cols as u32,
            row_bytes: row_bytes.unwrap_or(0) as u32,
        }
    }

    /// A weight by id.
    pub fn get(cx: &LaunchCx<'_>, id: WeightId) -> Self {
        Self::of(&cx.weight(id))
    }

    /// A weight that may be left out.
    pub fn optional(cx: &LaunchCx<'_>, id: Option<WeightId>) -> Self {
        id.map_or(Self::zeroed(), |id| Self::get(cx, id))
    }
}

/// `CacheRef` of `records.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(super) struct CacheArg {
    pub data: DevPtr,
    pub scales: DevPtr,
    pub data_bytes: u32,
    pub scale_bytes: u32,
    pub records: u32,
    pub width: u32,
    pub rope: u32,
    pub format: u32,
    pub ring: u32,
    pub rows: u32,
}

impl CacheArg {
    /// A cache component.
    pub fn of(c: &DevCache<'_>) -> Self {
        Self {
            data: c.data,
            scales: c.scales,
            data_bytes: c.data_bytes as u32,
            scale_bytes: c.scale_bytes as u32,
            records: c.desc.records as u32,
            width: c.desc.width as u32,
            rope: c.desc.rope as u32,
            format: cache_code(c.desc.format),
            ring: c.ring(),
            rows: c.rows as u32,
        }
    }
}

/// Enqueues a kernel with its parameter struct.
pub(super) fn launch<T: Pod>(
    cx: &LaunchCx<'_>,
    kernel: &'static str,
    grid: [usize; 3],
    block: usize,
    shared: usize,
    args: &T,
) -> Result<(), ExecError> {
    cx.launch(kernel, grid, block, shared, &[Arg::Struct(bytemuck::bytes_of(args))])
}

/// Grid of a pointwise kernel over `rows` rows of `width` values.
pub(super) fn pointwise(width: usize, rows: usize) -> [usize; 3] {
    [width.div_ceil(POINTWISE), rows, 1]
}

/// An op or shape no kernel takes.
pub(super) fn unsupported<T>(what: impl Into<String>) -> Result<T, ExecError> {
    Err(ExecError::Unsupported {
        backend: "cuda",
        what: what.into(),
    })
}

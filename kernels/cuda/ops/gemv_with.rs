//! Products of one token with something beside them in one launch: a chain of rows, or products of the same input whose
//! matrices have another format.

use bytemuck::{Pod, Zeroable};

use super::args::launch;
use super::chain::{Chain, ChainArgs};
use super::gemv::{BLOCKS, GemvArgs, Project, Ready, WARPS};
use super::{Group, GroupKind, fuse};
use crate::cuda::cx::LaunchCx;
use crate::ir::{BufId, ExecError, Format, Op, OpId, Plan};

/// `GemvRowsArgs` of `src/gemv_rows.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemvRowsArgs {
    products: GemvArgs,
    chain: ChainArgs,
    blocks: u32,
    slices: u32,
}

/// `GemvMixedArgs` of `src/gemv_mixed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct GemvMixedArgs {
    products: [GemvArgs; 2],
    blocks: u32,
    pad: u32,
}

/// Kernels of products that have one with a chain of rows beside them.
static WITH_ROWS: [(&str, &str); 6] = [
    ("gemv_f32_x2", "gemv_f32_x2_rows"),
    ("gemv_bf16_x1", "gemv_bf16_x1_rows"),
    ("gemv_bf16_x2", "gemv_bf16_x2_rows"),
    ("gemv_f8_m3x1", "gemv_f8_m3x1_rows"),
    ("gemv_f8_m4x1", "gemv_f8_m4x1_rows"),
    ("gemv_fp4_m3x1", "gemv_fp4_m3x1_rows"),
];

/// Kernels of products that have one with both.
static MIXED: [([&str; 2], &str); 2] = [
    (["gemv_f8_m3x1", "gemv_bf16_m6x1"], "gemv_f8_m3x1_bf16_m6x1"),
    (["gemv_f8_m4x1", "gemv_bf16_m6x1"], "gemv_f8_m4x1_bf16_m6x1"),
];

/// Two groups that follow each other, of which the second does not need the first, as one launch: where there are kernels for
/// both, or are likely to be.
pub fn joined(plan: &Plan, first: &Group, second: &Group) -> Option<Group> {
    let formats = |g: &Group| {
        let format = g.origin.iter().find_map(|id| match &plan.ops[id.index()].op {
            Op::MatMul { weight, .. } => Some(plan.weight(*weight).format),
            _ => None,
        });
        format.filter(|_| g.kind == GroupKind::Project)
    };
    match (first.kind, formats(first), formats(second)?) {
        (GroupKind::Chain, _, Format::F32 | Format::Bf16 | Format::F8E4m3 | Format::Fp4E2m1) => Some(Group {
            kind: GroupKind::Project,
            origin: [&second.origin[..], &first.origin].concat(),
        }),
        (_, Some(_), _) => {
            let mut origin = [&first.origin[..], &second.origin].concat();
            origin.sort();
            let ([a, b], _) = mixed(plan, &origin)?;
            let of = |p: &Project| plan.weight(p.products[0].weight).format;
            matches!((of(&a), of(&b)), (Format::F8E4m3, Format::Bf16)).then_some(Group {
                kind: GroupKind::Mixed,
                origin,
            })
        }
        _ => None,
    }
}

/// The products of a group of two formats, and their input.
pub(super) fn mixed(plan: &Plan, origin: &[OpId]) -> Option<([Project; 2], BufId)> {
    let (a, n, x) = fuse::describe(plan, origin.first()?.index())?;
    let (b, m, y) = fuse::describe(plan, origin.get(n)?.index())?;
    let alone = |p: &Project| p.norm.is_none() && p.residual.is_none() && p.glu.is_none();
    let all = n + m == origin.len() && x == y && alone(&a) && alone(&b);
    all.then_some(([a, b], x))
}

/// Enqueues products and a chain of rows.
pub(super) fn rows(cx: &LaunchCx<'_>, products: &Ready, chain: &Chain) -> Result<(), ExecError> {
    let with = WITH_ROWS.iter().find(|w| w.0 == products.kernel);
    let Some((_, kernel)) = with.filter(|_| one(products) && chain.grid[0] == 1) else {
        chain.launch(cx)?;
        return products.launch(cx);
    };
    let args = GemvRowsArgs {
        products: products.args,
        chain: chain.args,
        blocks: products.grid[0] as u32,
        slices: chain.grid[2] as u32,
    };
    let grid = [products.grid[0] + chain.blocks(), 1, 1];
    launch(
        cx,
        kernel,
        grid,
        products.threads,
        products.shared.max(chain.shared),
        &args,
    )
}

/// Enqueues products of two formats.
pub(super) fn both(cx: &LaunchCx<'_>, [a, b]: [&Ready; 2]) -> Result<(), ExecError> {
    let with = MIXED.iter().find(|m| m.0 == [a.kernel, b.kernel]);
    // Each as many blocks as it has alone, so that it gives the same bits: as long as there is room for all of them.
    let room = BLOCKS * cx.device.info().multiprocessors as usize;
    let blocks = a.grid[0] + b.grid[0];
    let Some((_, kernel)) = with.filter(|_| one(a) && one(b) && blocks <= room) else {
        a.launch(cx)?;
        return b.launch(cx);
    };
    let args = GemvMixedArgs {
        products: [a.args, b.args],
        blocks: a.grid[0] as u32,
        pad: 0,
    };
    launch(cx, kernel, [blocks, 1, 1], a.threads, a.shared.max(b.shared), &args)
}

/// Whether a launch's blocks can stand beside others: as many threads as those, numbered by one number.
fn one(r: &Ready) -> bool {
    r.threads == 32 * WARPS && r.grid[1] == 1
}

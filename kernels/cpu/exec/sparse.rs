//! Ops that leave values out: heads that are switched off.

use super::run::Ctx;
use super::store::CpuState;
use crate::ir::BufId;

pub(super) fn zero_heads(ctx: &Ctx<'_>, state: &mut CpuState, x: BufId, head_dim: usize, heads: &[u32]) {
    let (n, width) = (ctx.len(x), ctx.width(x));
    for row in state.work.get_mut(x)[..n].chunks_exact_mut(width) {
        for &h in heads {
            let at = h as usize * head_dim;
            row[at..at + head_dim].fill(0.0);
        }
    }
}

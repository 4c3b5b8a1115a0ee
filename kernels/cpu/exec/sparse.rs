//! Ops that leave values out: heads that are switched off, hidden units that say little.

use std::sync::atomic::{AtomicU64, Ordering};

use super::run::Ctx;
use super::store::CpuState;
use super::workspace::Shared;
use crate::ir::{BufId, LayerStats};

pub(super) fn zero_heads(ctx: &Ctx<'_>, state: &mut CpuState, x: BufId, head_dim: usize, heads: &[u32]) {
    let (n, width) = (ctx.len(x), ctx.width(x));
    for row in state.work.get_mut(x)[..n].chunks_exact_mut(width) {
        for &h in heads {
            let at = h as usize * head_dim;
            row[at..at + head_dim].fill(0.0);
        }
    }
}

/// Units of magnitude per largest value of a run.
const UNITS: f32 = (1u32 << 30) as f32;

pub(super) fn top_p(ctx: &Ctx<'_>, state: &mut CpuState, (x, group): (BufId, usize), p: f32, stats: &mut LayerStats) {
    let (n, width) = (ctx.len(x), ctx.width(x));
    let shared = Shared::new(&mut state.work.get_mut(x)[..n]);
    let kept = AtomicU64::new(0);
    ctx.cpu.pool.run(n / width, &|row| {
        // SAFETY: one task per row.
        let row = unsafe { shared.part(row * width, width) };
        let stay: usize = row.chunks_exact_mut(group).map(|run| keep(run, p)).sum();
        kept.fetch_add(stay as u64, Ordering::Relaxed);
    });
    stats.ffn_units += n as u64;
    stats.ffn_kept += kept.into_inner();
}

/// Zeroes what does not belong to the top p of a run. Returns how many values stay.
fn keep(run: &mut [f32], p: f32) -> usize {
    let largest = run.iter().fold(0.0f32, |m, v| if v.abs() <= m { m } else { v.abs() });
    let scale = UNITS / largest;
    if !(largest > 0.0 && largest.is_finite() && scale.is_finite()) {
        return run.len();
    }
    let units = |v: f32| (v.abs() * scale) as u64;
    let total: u64 = run.iter().map(|v| units(*v)).sum();
    let goal = (f64::from(p) * total as f64).ceil() as u64;
    let mut order: Vec<(u32, u32)> = run.iter().zip(0..).map(|(v, i)| (v.abs().to_bits(), i)).collect();
    order.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
    let (mut sum, mut stay) = (0, 0);
    for &(_, i) in &order {
        if sum >= goal && stay > 0 {
            break;
        }
        sum += units(run[i as usize]);
        stay += 1;
    }
    for &(_, i) in &order[stay..] {
        run[i as usize] = 0.0;
    }
    stay
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_set_that_reaches_p_stays() {
        let after = |values: &[f32], p: f32| {
            let mut v = values.to_vec();
            let stay = keep(&mut v, p);
            assert_eq!(stay, v.iter().zip(values).filter(|(a, b)| a == b).count());
            v
        };
        let run = [1.0, -4.0, 2.0, 0.5, -2.0, 0.5];
        assert_eq!(after(&run, 0.39), [0.0, -4.0, 0.0, 0.0, 0.0, 0.0]);
        // Of equals, the first.
        assert_eq!(after(&run, 0.5), [0.0, -4.0, 2.0, 0.0, 0.0, 0.0]);
        assert_eq!(after(&run, 0.9), [1.0, -4.0, 2.0, 0.0, -2.0, 0.0]);
        assert_eq!(after(&run, 0.91), [1.0, -4.0, 2.0, 0.5, -2.0, 0.0]);
        assert_eq!(after(&run, 1e-9), [0.0, -4.0, 0.0, 0.0, 0.0, 0.0]);
        // Nothing to choose by.
        for run in [[0.0f32; 3], [f32::INFINITY, 1.0, 2.0], [1e-45, 0.0, 1e-45]] {
            assert_eq!(after(&run, 0.1), run);
        }
        let mut nan = [f32::NAN, 1.0];
        assert_eq!(keep(&mut nan, 0.1), 2);
    }
}

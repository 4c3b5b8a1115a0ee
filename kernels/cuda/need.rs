//! What a model takes of a device's memory, before anything is allocated: the sizes that are asked for later, each as the
//! driver gives it ([`taken`]).

use super::memory::taken;
use super::planes;
use super::prepared::Arena;
use super::state;
use super::weights::weights_of;
use crate::ir::{CacheDesc, CacheRows, Plan, WeightDesc, WeightId};

/// Bytes for a weight: elements and scales are allocations of their own. An expert's matrix of 1.5 MiB takes 2.
pub fn of_weight(d: &WeightDesc) -> u64 {
    let (data, scales) = planes::parts(d);
    taken(data) + taken(scales)
}

/// Bytes for the weights that a plan's ops read.
pub fn of_weights(plan: &Plan) -> u64 {
    let mut ids: Vec<WeightId> = plan.ops.iter().flat_map(|o| weights_of(&o.op)).collect();
    ids.sort_unstable();
    ids.dedup();
    ids.into_iter().map(|id| of_weight(plan.weight(id))).sum()
}

/// Bytes of working memory a step of a plan takes, for `sequences` sequences at once: one allocation, the larger one of all
/// plans that run.
pub fn of_step(plan: &Plan, sequences: usize) -> u64 {
    taken(Arena::new(plan, 0, sequences).bytes())
}

/// Bytes for caches with room for `context` tokens, as they are allocated.
pub fn of_caches(caches: &[CacheDesc], context: u64) -> u64 {
    let room = state::roomy(context);
    let each = caches.iter().map(|d| {
        let (data, scales) = d.row_bytes();
        let rows = match d.rows {
            CacheRows::Ring { capacity, .. } => capacity,
            CacheRows::Growing { rate } => room as usize / rate,
        };
        taken(rows * data) + taken(rows * scales)
    });
    each.sum()
}

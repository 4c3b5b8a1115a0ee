//! Telemetry steps as they came, newest last.

use std::collections::VecDeque;

use protocol::StepRecord;

/// A recipe was put in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swap {
    /// First position under it.
    pub position: u64,
    /// Cache components whose rows were converted.
    pub converted: u32,
    /// Hash of the recipe.
    pub hash: String,
}

/// Most memory the kept steps may take, in bytes.
const BUDGET: usize = 64 << 20;

/// A ring of steps. Consumers keep the number of the last step they took and ask [`Steps::since`]; numbers never
/// restart, so a consumer that was away only misses what the ring dropped.
#[derive(Clone, Debug, Default)]
pub struct Steps {
    ring: VecDeque<StepRecord>,
    first: u64,
    lost: u64,
    epoch: u64,
    swaps: Vec<Swap>,
}

impl Steps {
    pub(super) fn push(&mut self, steps: Vec<StepRecord>, lost: u64, most: usize) {
        self.lost += lost;
        let size = steps.last().map_or(1, |s| {
            let experts: usize = s.layers.iter().map(|l| 4 * l.expert_load.capacity()).sum();
            size_of::<StepRecord>() + s.layers.len() * size_of::<protocol::LayerRecord>() + experts
        });
        self.ring.extend(steps);
        let keep = most.min(BUDGET / size).max(256);
        while self.ring.len() > keep {
            self.ring.pop_front();
            self.first += 1;
        }
    }

    pub(super) fn swapped(&mut self, swap: Swap) {
        self.swaps.push(swap);
    }

    pub(super) fn clear(&mut self) {
        self.first += self.ring.len() as u64;
        self.ring.clear();
        self.swaps.clear();
        self.lost = 0;
        self.epoch += 1;
    }

    /// Changes when everything was dropped: another model, another run of the host.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Steps that came so far, dropped ones included: the cursor of a consumer that took everything.
    pub fn end(&self) -> u64 {
        self.first + self.ring.len() as u64
    }

    /// Steps from number `cursor` on; fewer where the ring dropped some.
    pub fn since(&self, cursor: u64) -> impl ExactSizeIterator<Item = &StepRecord> {
        let from = cursor.saturating_sub(self.first).min(self.ring.len() as u64) as usize;
        self.ring.range(from..)
    }

    /// The newest step.
    pub fn last(&self) -> Option<&StepRecord> {
        self.ring.back()
    }

    /// The newest step that processed the token at `position`.
    pub fn at_token(&self, position: u64) -> Option<&StepRecord> {
        self.ring
            .iter()
            .rev()
            .find(|s| s.position <= position && position < s.position + u64::from(s.tokens))
    }

    /// Steps kept.
    pub fn len(&self) -> usize {
        self.ring.len()
    }

    /// Nothing yet.
    pub fn is_empty(&self) -> bool {
        self.ring.is_empty()
    }

    /// Steps the host overwrote before this client got them.
    pub fn lost(&self) -> u64 {
        self.lost
    }

    /// Recipe swaps seen, in order.
    pub fn swaps(&self) -> &[Swap] {
        &self.swaps
    }
}

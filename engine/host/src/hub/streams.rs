//! What streams to clients: the log of tokens, the ring of telemetry steps, and short tails of events and notices.
//! All carry sequence numbers from 1 without gaps.

use std::collections::VecDeque;

use protocol::StepRecord;

/// Where a produced token lies. The token itself is in its text; entries are small, so the whole log is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TokenAt {
    pub doc: u64,
    pub node: u32,
    pub index: u32,
}

/// Every token produced by this run of the host.
#[derive(Default)]
pub(crate) struct TokenLog {
    entries: Vec<TokenAt>,
}

impl TokenLog {
    pub fn push(&mut self, at: TokenAt) {
        self.entries.push(at);
    }

    /// Sequence number of the last entry; 0 before the first.
    pub fn last(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Entries after `cursor`, at most `most`, with their numbers.
    pub fn after(&self, cursor: u64, most: usize) -> impl Iterator<Item = (u64, TokenAt)> + '_ {
        let from = (cursor as usize).min(self.entries.len());
        let to = from.saturating_add(most).min(self.entries.len());
        (from..to).filter_map(|i| Some((i as u64 + 1, *self.entries.get(i)?)))
    }
}

/// The latest telemetry steps, bounded by number and by bytes.
pub(crate) struct StepRing {
    steps: VecDeque<(usize, StepRecord)>,
    bytes: usize,
    last: u64,
    most_steps: usize,
    most_bytes: usize,
}

/// Steps for one update.
#[derive(Default)]
pub(crate) struct Steps {
    pub steps: Vec<StepRecord>,
    /// Number of the last of them (or the cursor, if there are none).
    pub last: u64,
    /// Steps between the cursor and the first of them that are gone.
    pub lost: u64,
}

impl StepRing {
    /// At least one step is kept whatever the limits.
    pub fn new(most_steps: usize, most_bytes: usize) -> Self {
        Self {
            steps: VecDeque::new(),
            bytes: 0,
            last: 0,
            most_steps,
            most_bytes,
        }
    }

    /// Another number of steps from now on.
    pub fn resize(&mut self, most_steps: usize) {
        self.most_steps = most_steps;
        self.shrink();
    }

    pub fn push(&mut self, step: StepRecord) {
        let bytes = weight(&step);
        self.bytes += bytes;
        self.last += 1;
        self.steps.push_back((bytes, step));
        self.shrink();
    }

    fn shrink(&mut self) {
        while self.steps.len() > 1 && (self.steps.len() > self.most_steps || self.bytes > self.most_bytes) {
            if let Some((bytes, _)) = self.steps.pop_front() {
                self.bytes -= bytes;
            }
        }
    }

    /// Number of the last step; 0 before the first.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Cursor of a client that wants everything held.
    pub fn start(&self) -> u64 {
        self.last - self.steps.len() as u64
    }

    /// Steps after `cursor`, at most `most_bytes` of them (but at least one).
    pub fn after(&self, cursor: u64, most_bytes: usize) -> Steps {
        let from = cursor.clamp(self.start(), self.last);
        let mut out = Steps {
            steps: Vec::new(),
            last: from,
            lost: self.start().saturating_sub(cursor),
        };
        let mut bytes = 0;
        for (weight, step) in self.steps.iter().skip((from - self.start()) as usize) {
            bytes += weight;
            if bytes > most_bytes && !out.steps.is_empty() {
                break;
            }
            out.steps.push(step.clone());
            out.last += 1;
        }
        out
    }
}

/// Bytes of a record in memory.
fn weight(step: &StepRecord) -> usize {
    let layers = step.layers.iter().map(|l| size_of_val(l) + 4 * l.expert_load.len());
    size_of::<StepRecord>() + layers.sum::<usize>()
}

/// The latest of something rare.
pub(crate) struct Tail<T> {
    items: VecDeque<T>,
    last: u64,
    most: usize,
}

impl<T: Clone> Tail<T> {
    pub fn new(most: usize) -> Self {
        Self {
            items: VecDeque::new(),
            last: 0,
            most,
        }
    }

    /// Number the next item will have.
    pub fn next(&self) -> u64 {
        self.last + 1
    }

    pub fn push(&mut self, item: T) {
        self.last += 1;
        self.items.push_back(item);
        if self.items.len() > self.most {
            self.items.pop_front();
        }
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    /// Items after `cursor` that are still held.
    pub fn after(&self, cursor: u64) -> Vec<T> {
        let first = self.last - self.items.len() as u64;
        let skip = cursor.saturating_sub(first) as usize;
        self.items.iter().skip(skip).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use protocol::{LayerRecord, TELEMETRY_VERSION};

    use super::*;

    fn step(seq: u64) -> StepRecord {
        StepRecord {
            version: TELEMETRY_VERSION,
            seq,
            position: seq,
            tokens: 1,
            nanos: 1,
            plan: 0,
            memory: None,
            layers: vec![LayerRecord::default(); 3],
        }
    }

    #[test]
    fn overwritten_steps_are_counted() {
        let mut ring = StepRing::new(4, usize::MAX);
        (0..10).for_each(|i| ring.push(step(i)));
        assert_eq!((ring.start(), ring.last()), (6, 10));
        let got = ring.after(2, usize::MAX);
        assert_eq!((got.lost, got.last), (4, 10));
        assert_eq!(got.steps.iter().map(|s| s.seq).collect::<Vec<_>>(), [6, 7, 8, 9]);
        let got = ring.after(8, usize::MAX);
        assert_eq!((got.lost, got.last, got.steps.len()), (0, 10, 2));
        // A cursor of another run, or a wrong one, is no way to panic.
        let got = ring.after(99, usize::MAX);
        assert_eq!((got.lost, got.last, got.steps.len()), (0, 10, 0));
    }

    #[test]
    fn the_ring_is_bounded_by_bytes_and_answers_in_pieces() {
        let one = weight(&step(0));
        let mut ring = StepRing::new(1000, 5 * one);
        (0..100).for_each(|i| ring.push(step(i)));
        assert_eq!(ring.start(), 95);
        let got = ring.after(95, 2 * one);
        assert_eq!((got.steps.len(), got.last, got.lost), (2, 97, 0));
        // One step always goes, or a client would wait for ever.
        assert_eq!(ring.after(95, 1).steps.len(), 1);
        ring.resize(2);
        assert_eq!(ring.start(), 98);
    }

    #[test]
    fn log_and_tail_resume_at_a_cursor() {
        let mut log = TokenLog::default();
        (0..5).for_each(|index| {
            log.push(TokenAt { doc: 1, node: 2, index });
        });
        let got: Vec<(u64, u32)> = log.after(2, 2).map(|(seq, t)| (seq, t.index)).collect();
        assert_eq!(got, [(3, 2), (4, 3)]);
        assert_eq!(log.after(5, 9).count() + log.after(u64::MAX, 9).count(), 0);

        let mut tail = Tail::new(3);
        (0..5).for_each(|i| tail.push(i));
        assert_eq!((tail.last(), tail.next()), (5, 6));
        assert_eq!(tail.after(0), [2, 3, 4]);
        assert_eq!(tail.after(4), [4]);
        assert_eq!(tail.after(5), [0; 0]);
    }
}

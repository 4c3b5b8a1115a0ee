//! In which order the groups of a plan are launched, on which streams, and which of them begin early. At one token a launch
//! fills a fraction of the device, but branches that have nothing to do with each other (a shared expert and the routed ones, a
//! compressor and the queries) take registers from each other on streams of their own, and joining streams costs more than a
//! launch: a sequence's launches go one after the other, side branches first. Several sequences share the device.

use std::collections::HashMap;

use super::ops::{Group, joined, products, reads, writes};
use crate::ir::{Op, Plan};

/// Streams that launches are spread over where there are several sequences. A single one's step took 6 % longer on them.
pub const STREAMS: usize = 4;
/// Most tokens of steps that do not fill the device by themselves: their groups are spread, their launches begin early.
pub const FEW: usize = 8;

/// Where and after what a group runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// Its stream.
    pub stream: usize,
    /// Groups on other streams that must have ended; all others it depends on come before it anyway.
    pub after: Vec<usize>,
    /// A group on another stream, or the end of the plan, waits for this one.
    pub signals: bool,
}

/// The streams of a plan's groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// By group.
    pub slots: Vec<Slot>,
    /// Groups the first stream waits for at the end.
    pub last: Vec<usize>,
}

/// What groups can have to do with each other: a buffer, or a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// By number.
    Buffer(usize),
    /// By number.
    Cache(usize),
}

/// Places an op reads and places it changes.
pub fn touched(op: &Op) -> (Vec<Place>, Vec<Place>) {
    let buffer = |b: crate::ir::BufId| Place::Buffer(b.index());
    let cache = |c: crate::ir::CacheId| Place::Cache(c.index());
    let mut read: Vec<Place> = reads(op).into_iter().map(buffer).collect();
    let mut changed: Vec<Place> = writes(op).into_iter().map(buffer).collect();
    match op {
        Op::EmbedPosition { x, .. }
        | Op::Rope { x, .. }
        | Op::Hadamard { x, .. }
        | Op::RoundTrip { x, .. }
        | Op::Activate { x, .. }
        | Op::ZeroHeads { x, .. }
        | Op::TopP { x, .. }
        | Op::HcExpand { x, .. } => changed.push(buffer(*x)),
        Op::CacheWrite { cache: c, .. } => changed.push(cache(*c)),
        Op::Pool { state, .. } => changed.push(cache(*state)),
        Op::IndexScore { keys, .. } => read.push(cache(*keys)),
        Op::Attend { sources, .. } => read.extend(sources.iter().flat_map(|s| [cache(s.keys), cache(s.values)])),
        _ => {}
    }
    (read, changed)
}

/// By group: earlier groups that must have ended before it begins.
pub fn dependencies(plan: &Plan, groups: &[Group]) -> Vec<Vec<usize>> {
    let mut writer: HashMap<Place, usize> = HashMap::new();
    let mut readers: HashMap<Place, Vec<usize>> = HashMap::new();
    let mut all = Vec::with_capacity(groups.len());
    for (i, group) in groups.iter().enumerate() {
        let (mut read, mut changed) = (Vec::new(), Vec::new());
        for id in &group.origin {
            let (r, c) = touched(&plan.ops[id.index()].op);
            read.extend(r);
            changed.extend(c);
        }
        let mut deps: Vec<usize> = read
            .iter()
            .chain(&changed)
            .filter_map(|p| writer.get(p).copied())
            .collect();
        deps.extend(
            changed
                .iter()
                .flat_map(|p| readers.get(p).into_iter().flatten().copied()),
        );
        deps.retain(|d| *d != i);
        deps.sort_unstable();
        deps.dedup();
        for p in read {
            readers.entry(p).or_default().push(i);
        }
        for p in changed {
            writer.insert(p, i);
            readers.remove(&p);
        }
        all.push(deps);
    }
    all
}

/// The groups in an order in which each follows what it depends on as soon as it can: what has to be done beside a chain of
/// groups is done before the chain goes on, while weights of the chain's next group are on their way.
pub fn order(plan: &Plan, groups: Vec<Group>) -> Vec<Group> {
    if plan.token_bucket > FEW {
        return groups;
    }
    let deps = dependencies(plan, &groups);
    let mut order: Vec<usize> = Vec::with_capacity(groups.len());
    for (i, deps) in deps.iter().enumerate() {
        let after = order.iter().rposition(|g| deps.contains(g)).map_or(0, |at| at + 1);
        let at = if deps.is_empty() { order.len() } else { after };
        order.insert(at, i);
    }
    let mut parts: Vec<Option<Group>> = groups.into_iter().map(Some).collect();
    let mut out: Vec<Group> = Vec::with_capacity(parts.len());
    let mut before = None;
    for i in order {
        let Some(group) = parts[i].take() else { continue };
        // What the launch before has nothing to do with is done beside it.
        let apart = plan.token_bucket == 1 && before.is_some_and(|b| !deps[i].contains(&b));
        let both = out.last().filter(|_| apart).and_then(|b| joined(plan, b, &group));
        match (both, out.last_mut()) {
            (Some(both), Some(last)) => *last = both,
            _ => out.push(group),
        }
        before = Some(i);
    }
    out
}

/// By group: whether the launch after it begins only when all that was launched before this one has ended. Products do so right
/// before experts' products, which read the choice before they wait, so that their weights are on their way.
pub fn holds(plan: &Plan, groups: &[Group]) -> Vec<bool> {
    let next = |i: usize| groups.get(i + 1).is_some_and(|g| g.kind.chooses());
    (0..groups.len())
        .map(|i| plan.token_bucket <= FEW && products(plan, &groups[i]) && next(i))
        .collect()
}

/// Spreads launches over streams, each after those of `deps`, which come before it; `own` says which must be on a certain stream.
pub fn spread(deps: &[Vec<usize>], own: &dyn Fn(usize) -> Option<usize>) -> Schedule {
    let mut slots = vec![Slot::default(); deps.len()];
    let mut tails: [Option<usize>; STREAMS] = [None; STREAMS];
    // By group: the last group of each stream that has ended when it begins, itself included.
    let mut known: Vec<[Option<usize>; STREAMS]> = Vec::with_capacity(deps.len());
    for i in 0..deps.len() {
        let stream = own(i).unwrap_or_else(|| pick(&deps[i], &tails, &slots));
        let mut mine = tails[stream].map_or([None; STREAMS], |t| known[t]);
        for &d in deps[i].iter().rev() {
            let on = slots[d].stream;
            if mine[on].is_some_and(|k| k >= d) {
                continue;
            }
            slots[i].after.push(d);
            slots[d].signals = true;
            for (m, k) in mine.iter_mut().zip(known[d]) {
                *m = (*m).max(k);
            }
        }
        mine[stream] = Some(i);
        known.push(mine);
        slots[i].stream = stream;
        tails[stream] = Some(i);
    }
    let end = tails[0].map_or([None; STREAMS], |t| known[t]);
    let last: Vec<usize> = (1..STREAMS)
        .filter_map(|s| tails[s].filter(|&t| end[s].is_none_or(|k| k < t)))
        .collect();
    for &t in &last {
        slots[t].signals = true;
    }
    Schedule { slots, last }
}

/// The stream of a group: one that ends with what it depends on, the latest of those; else one whose end it comes after
/// anyway. The first groups, on which all streams wait, go to the first stream.
fn pick(deps: &[usize], tails: &[Option<usize>; STREAMS], slots: &[Slot]) -> usize {
    if deps.is_empty() {
        return 0;
    }
    if let Some(&d) = deps.iter().rev().find(|d| tails[slots[**d].stream] == Some(**d)) {
        return slots[d].stream;
    }
    let newest = deps.last().copied();
    // A stream that is not used yet, or whose last group is the oldest.
    (1..STREAMS)
        .min_by_key(|&s| tails[s])
        .filter(|&s| tails[s] < newest || tails[s].is_none())
        .unwrap_or(0)
}

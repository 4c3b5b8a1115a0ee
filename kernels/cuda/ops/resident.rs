//! The layers of a dense model for one token, and its output layer, as one launch (`src/resident.cuh`): which groups of a plan
//! it stands for, and how their blocks exchange what one op leaves for the next.

use std::collections::BTreeMap;
use std::ops::Range;

use super::gemv::Project;
use super::{Group, GroupKind, fuse};
use crate::cuda::device::DeviceInfo;
use crate::ir::{
    BufId, CacheFormat, CacheId, CacheRows, Format, KeyRows, KeySource, Layout, Mask, Op, OpId, Plan, Positions,
    RopeId, RopeStyle,
};

mod records;

pub(in crate::cuda) use records::Resident;

/// Matrices of a product (`kResidentSegments`).
const SEGMENTS: usize = 3;
/// Columns in which everything comes: those of eight warps, in runs of 32.
const COLUMNS: usize = 256;
/// Products from which on a launch of its own is worth it.
const LEAST: usize = 3;

/// How a vector is written and read (`ExchangeKind`).
const PLAIN: u32 = 0;
const MARKED: u32 = 4;

/// Rotation, storing and attention of a token.
#[derive(Clone, Debug)]
struct Attention {
    q: BufId,
    key: BufId,
    value: BufId,
    keys: CacheId,
    values: CacheId,
    out: BufId,
    heads: usize,
    kv_heads: usize,
    scale: f32,
}

/// What an op of the launch does.
enum Work {
    Product {
        project: Project,
        input: BufId,
    },
    Attend(Attention),
    /// Puts the shares of the attention before it together.
    Combine,
}

struct Item {
    origin: Vec<OpId>,
    work: Work,
}

/// Groups that are one launch.
pub(in crate::cuda) struct Run {
    items: Vec<Item>,
    format: Format,
    head_dim: usize,
    rope: (RopeId, RopeStyle),
    /// By item: kind of x, of what comes out, and of what is added.
    kinds: Vec<[u32; 3]>,
}

impl Run {
    /// Buffers that ops of the launch leave for others of it.
    fn exchanged(&self) -> Vec<BufId> {
        let mut all: Vec<BufId> = Vec::new();
        for (item, kinds) in self.items.iter().zip(&self.kinds) {
            if kinds[1] >= MARKED {
                all.extend(outputs(&item.work));
            }
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Joins the groups of a plan that can be one launch on such a device. With the joined groups come, by their number, the
/// launches.
pub(in crate::cuda) fn join(plan: &Plan, groups: Vec<Group>, info: &DeviceInfo) -> (Vec<Group>, Vec<(usize, Run)>) {
    if plan.token_bucket != 1 || info.resident.is_none() {
        return (groups, Vec::new());
    }
    let (mut joined, mut runs) = (Vec::new(), Vec::new());
    let mut at = 0;
    while at < groups.len() {
        let Some((range, run)) = run_at(plan, &groups, at, info) else {
            joined.push(groups[at].clone());
            at += 1;
            continue;
        };
        runs.push((joined.len(), run));
        joined.push(Group {
            kind: GroupKind::Resident,
            origin: groups[range.clone()].iter().flat_map(|g| g.origin.clone()).collect(),
        });
        at = range.end;
    }
    (joined, runs)
}

/// The longest run that begins at group `first`.
fn run_at(plan: &Plan, groups: &[Group], first: usize, info: &DeviceInfo) -> Option<(Range<usize>, Run)> {
    let mut items: Vec<Item> = Vec::new();
    let (mut format, mut rope, mut dim) = (None, None, None);
    let mut at = first;
    loop {
        let found = groups.get(at).and_then(|g| product(plan, g, info)).map(|p| (p, 1));
        let found = found.or_else(|| output(plan, groups.get(at..)?, &items, info).map(|p| (p, 2)));
        if let Some(((project, input), n)) = found {
            let f = plan.weight(project.products[0].weight).format;
            if !goes_with(*format.get_or_insert(f), f) {
                break;
            }
            items.push(Item {
                origin: groups[at..at + n].iter().flat_map(|g| g.origin.clone()).collect(),
                work: Work::Product { project, input },
            });
            at += n;
            continue;
        }
        let Some((a, table, head_dim)) = attention(plan, groups, at, items.last()) else {
            break;
        };
        let goes_on = groups.get(at + 2).and_then(|g| product(plan, g, info));
        let fits = goes_on.is_some_and(|(p, input)| {
            let f = plan.weight(p.products[0].weight).format;
            input == a.out && p.norm.is_none() && format.is_some_and(|run| goes_with(run, f))
        });
        if !fits || *rope.get_or_insert(table) != table || *dim.get_or_insert(head_dim) != head_dim {
            break;
        }
        let mut origin = groups[at].origin.clone();
        origin.extend(&groups[at + 1].origin);
        items.push(Item {
            origin,
            work: Work::Attend(a),
        });
        items.push(Item {
            origin: Vec::new(),
            work: Work::Combine,
        });
        at += 2;
    }
    let products = items.iter().filter(|i| matches!(i.work, Work::Product { .. })).count();
    let (format, rope, head_dim) = (format?, rope?, dim?);
    if products < LEAST {
        return None;
    }
    let end = items.iter().flat_map(|i| &i.origin).map(|o| o.index() + 1).max()?;
    let kinds = kinds(plan, &items, end)?;
    let run = Run {
        items,
        format,
        head_dim,
        rope,
        kinds,
    };
    records::fits(plan, &run, info).then_some((first..at, run))
}

/// Whether matrices of a format can be in a launch whose other ones are of format `run`.
fn goes_with(run: Format, own: Format) -> bool {
    match run {
        Format::Bf16 | Format::Q8_0 => own == run,
        Format::Q4_0 => matches!(own, Format::Q4_0 | Format::Q6K),
        _ => false,
    }
}

/// What the first two of these groups are as a product behind `items`: the copy of the row that logits are made of, which is the
/// only one here, and the product that reads it. It then reads the row where it was.
fn output(plan: &Plan, groups: &[Group], items: &[Item], info: &DeviceInfo) -> Option<(Project, BufId)> {
    let (take, head) = (groups.first()?, groups.get(1)?);
    let [id] = take.origin[..] else { return None };
    let Op::TakeOutput { x, out } = plan.ops[id.index()].op else {
        return None;
    };
    let (project, input) = product(plan, head, info)?;
    // Nobody else may want the row, which is made for the launch alone, or its copy, which is not made at all.
    let writer = items.iter().rfind(|item| outputs(&item.work).contains(&x))?;
    let from = writer.origin.iter().map(|o| o.index() + 1).max()?;
    let own: Vec<OpId> = items
        .iter()
        .flat_map(|i| &i.origin)
        .chain(&head.origin)
        .copied()
        .collect();
    let others = |b: BufId, of: fn(&Op) -> Vec<BufId>, from: usize| {
        let mut rest = plan.ops.iter().enumerate().skip(from);
        rest.any(|(i, o)| i != id.index() && !own.contains(&OpId(i as u32)) && of(&o.op).contains(&b))
    };
    let free = !others(x, fuse::reads, from) && !others(x, fuse::writes, from) && !others(out, fuse::reads, 0);
    let fits = free && input == out && plan.width(x) == plan.width(out);
    fits.then_some((project, x))
}

/// What a group is as a product of the launch, with its input.
fn product(plan: &Plan, group: &Group, info: &DeviceInfo) -> Option<(Project, BufId)> {
    if !matches!(group.kind, GroupKind::Project | GroupKind::Single) {
        return None;
    }
    let (p, n, input) = fuse::describe(plan, group.origin.first()?.index())?;
    if n != group.origin.len() || p.products.len() > SEGMENTS || p.experts.is_some() {
        return None;
    }
    let mut units = 0;
    for product in &p.products {
        let d = plan.weight(product.weight);
        let known = match d.format {
            Format::Bf16 => d.scales.is_none(),
            Format::Q8_0 | Format::Q4_0 | Format::Q6K => true,
            _ => false,
        };
        let fits = d.layout == Layout::OutIn && d.cols.is_multiple_of(COLUMNS) && d.cols == plan.width(input);
        if !known || !fits || (p.glu.is_none() && plan.width(product.out) != d.rows) {
            return None;
        }
        units += d.rows;
    }
    if p.glu.is_some() {
        units = plan.weight(p.products[0].weight).rows;
    }
    // Every block has a part in every product: see `kinds`.
    (units >= info.multiprocessors as usize).then_some((p, input))
}

/// What two groups from `at` on are as an attention of the launch, behind the product `before`; its rotation, and the
/// values of a head.
fn attention(
    plan: &Plan,
    groups: &[Group],
    at: usize,
    before: Option<&Item>,
) -> Option<(Attention, (RopeId, RopeStyle), usize)> {
    let Work::Product { project, .. } = &before?.work else {
        return None;
    };
    let (chain, attend) = (groups.get(at)?, groups.get(at + 1)?);
    let op = |id: &OpId| &plan.ops[id.index()].op;
    let ([id], GroupKind::Chain) = (&attend.origin[..], chain.kind) else {
        return None;
    };
    let Op::Attend {
        q,
        out,
        heads,
        kv_heads,
        head_dim: dim @ (64 | 128),
        scale,
        sources,
        sinks: None,
        mask: Mask::None,
        score: None,
    } = op(id)
    else {
        return None;
    };
    let [
        KeySource {
            keys,
            values,
            rows: KeyRows::Causal,
        },
    ] = sources[..]
    else {
        return None;
    };
    let (mut turned, mut stored, mut table) = (Vec::new(), Vec::new(), None);
    for id in &chain.origin {
        match op(id) {
            Op::Rope {
                x,
                heads,
                head_dim,
                offset: 0,
                dims,
                style,
                table: t,
                positions: Positions::Tokens,
                inverse: false,
            } if head_dim == dim && dims == dim && *table.get_or_insert((*t, *style)) == (*t, *style) => {
                turned.push((*x, *heads));
            }
            Op::CacheWrite {
                src,
                cache,
                rows: Positions::Tokens,
            } => stored.push((*src, *cache)),
            _ => return None,
        }
    }
    let store = |cache: CacheId| stored.iter().find(|s| s.1 == cache);
    let (key, value) = (store(keys)?, store(values)?);
    let mut want = [(*q, *heads), (key.0, *kv_heads)];
    turned.sort_unstable();
    want.sort_unstable();
    let plain = |c: CacheId| {
        let d = &plan.caches[c.index()];
        let grows = matches!(d.rows, CacheRows::Growing { rate: 1 });
        d.format == CacheFormat::Bf16 && d.width == *dim && d.records == *kv_heads && grows
    };
    let made = |b: BufId| project.glu.is_none() && project.products.iter().any(|p| p.out == b);
    let fits = turned == want
        && stored.len() == 2
        && keys != values
        && plain(keys)
        && plain(values)
        && [*q, key.0, value.0].into_iter().all(made)
        && plan.width(*q) == heads * dim
        && plan.width(key.0) == kv_heads * dim;
    fits.then_some((
        Attention {
            q: *q,
            key: key.0,
            value: value.0,
            keys,
            values,
            out: *out,
            heads: *heads,
            kv_heads: *kv_heads,
            scale: *scale,
        },
        table?,
        *dim,
    ))
}

/// Buffers an item's products fill.
fn outputs(work: &Work) -> Vec<BufId> {
    match work {
        Work::Product { project, .. } if project.glu.is_some() => vec![project.products[0].out],
        Work::Product { project, .. } => project.products.iter().map(|p| p.out).collect(),
        Work::Attend(a) => vec![a.out],
        Work::Combine => Vec::new(),
    }
}

/// Buffers an item reads.
fn inputs(work: &Work) -> Vec<BufId> {
    match work {
        Work::Product { project, input } => std::iter::once(*input).chain(project.residual).collect(),
        Work::Attend(a) => vec![a.q, a.key, a.value],
        Work::Combine => Vec::new(),
    }
}

/// By item: how x, what comes out and what is added are exchanged; `None` where that would not be safe. `end` is the op behind
/// the run.
///
/// A vector is written again without anybody asking whether all have read it. That is safe where every block that writes it
/// has waited for all outputs of a product behind the last reader: each block has some of those, and makes them after it has
/// read.
fn kinds(plan: &Plan, items: &[Item], end: usize) -> Option<Vec<[u32; 3]>> {
    // By buffer: the items that write it, and who reads what they wrote.
    let mut writes: BTreeMap<BufId, Vec<(usize, Vec<usize>)>> = BTreeMap::new();
    let mut source = vec![None; items.len()];
    for (i, item) in items.iter().enumerate() {
        for b in inputs(&item.work) {
            if let Some(last) = writes.get_mut(&b).and_then(|w| w.last_mut()) {
                last.1.push(i);
            }
        }
        // The product all of whose outputs a block has waited for when it writes.
        source[i] = match &item.work {
            Work::Product { input, .. } => writes.get(input).and_then(|w| w.last()).map(|w| w.0),
            Work::Attend(a) => writes.get(&a.q).and_then(|w| w.last()).map(|w| w.0),
            Work::Combine => None,
        };
        if let Some(Item {
            work: Work::Attend(_), ..
        }) = source[i].map(|s| &items[s])
        {
            source[i] = source[i].and_then(|s: usize| source[s]);
        }
        for b in outputs(&item.work) {
            writes.entry(b).or_default().push((i, Vec::new()));
        }
    }
    let mut kinds = vec![[PLAIN; 3]; items.len()];
    for (b, list) in &writes {
        for pair in list.windows(2) {
            // What a product adds to its own output is read by who writes it.
            let again = pair[1].0;
            let read = pair[0]
                .1
                .iter()
                .rev()
                .find(|r| **r != again)
                .copied()
                .unwrap_or(pair[0].0);
            if source[again].is_none_or(|s| s < read) {
                return None;
            }
        }
        let (last, readers) = list.last()?;
        let attended = matches!(items[*last].work, Work::Attend(_));
        // What others read behind the run is written for them, and for nobody in the run.
        if (!readers.is_empty() || attended) && !fuse::dead(plan, *b, end) {
            return None;
        }
        let used = list.iter().filter(|w| !w.1.is_empty()).count();
        for (n, (i, readers)) in list.iter().filter(|w| !w.1.is_empty()).enumerate() {
            let kind = MARKED | (n % 2) as u32 | ((used % 2) as u32) << 1;
            if ![PLAIN, kind].contains(&kinds[*i][1]) {
                return None;
            }
            kinds[*i][1] = kind;
            for &r in readers {
                match &items[r].work {
                    Work::Product { project, input } => {
                        if input == b {
                            kinds[r][0] = kind;
                        }
                        if project.residual == Some(*b) {
                            kinds[r][2] = kind;
                        }
                    }
                    _ => kinds[r][0] = kind,
                }
            }
        }
    }
    let alike = items.iter().enumerate().all(|(i, item)| {
        let all = outputs(&item.work);
        let same = |b: &BufId| {
            writes[b]
                .iter()
                .any(|w| w.0 == i && w.1.is_empty() == (kinds[i][1] == PLAIN))
        };
        all.iter().all(same)
    });
    alike.then_some(kinds)
}

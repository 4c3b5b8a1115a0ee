//! Launching ops: one function per base op, or per group of base ops that one kernel runs.

mod args;
mod attend;
mod attend_mma;
mod attend_wg;
mod chain;
mod dense;
mod fuse;
mod gemm;
mod gemm_wg;
mod gemv;
mod gemv_mma;
mod gemv_with;
mod hc;
mod held;
mod index;
mod matmul;
mod mixing;
mod mlp;
mod pair;
mod pointwise;
mod resident;
mod rope_write;
mod score;
mod sparse;
mod stream;

use super::cx::LaunchCx;
use crate::ir::{ExecError, Op, OpId, Plan};

/// What a group of base ops is run as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// One base op as it is.
    Single,
    /// Products of one input, with a norm before and a gate or a residual behind them; then ops of a chain beside them, if any.
    Project,
    /// Products of one input and one token whose matrices have two formats.
    Mixed,
    /// Products of one input for many tokens.
    Products,
    /// A product for many tokens and what it is added to.
    Added,
    /// Gate and up products, what joins them, and the product of that, for many tokens.
    Mlp,
    /// Gate and up products of chosen experts and what joins them.
    Experts,
    /// The product of chosen experts, and the shared expert's.
    Beside,
    /// Ops that go row by row.
    Chain,
    /// What is done with the queries of an attention first (norm and rotation, if any), attention, and the rotation of what
    /// comes out.
    Attend,
    /// The rotation and rounding of an indexer's queries, its scores, and the choice of rows by them.
    Index,
    /// The layers of a dense model for one token, and its output layer, in one launch that is made ready with the plan
    /// ([`resident`]).
    Resident,
    /// Two products of one token, the second of what the first gives, in one launch that is made ready with the plan ([`pair`]).
    Pair,
    /// An mHC site: what goes into the streams, the next coefficients, what is taken out.
    Site,
}

impl GroupKind {
    /// Whether its launch reads matrices that were chosen on the device, and can begin to before its predecessor has ended.
    pub fn chooses(self) -> bool {
        matches!(self, Self::Experts | Self::Beside)
    }
}

/// Whether a group is launched as products that can hold the launch after them ([`super::schedule::holds`]).
pub fn products(plan: &Plan, group: &Group) -> bool {
    match group.kind {
        GroupKind::Project | GroupKind::Mixed | GroupKind::Experts | GroupKind::Beside => true,
        GroupKind::Single => matmul::fast(plan, &plan.ops[group.origin[0].index()].op),
        _ => false,
    }
}

/// Base ops that are launched together, in plan order; what other ops stand between them has nothing to do with them. Every op of a plan is in exactly one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What it is run as.
    pub kind: GroupKind,
    /// The base ops it stands for.
    pub origin: Vec<OpId>,
}

/// The groups of a plan, in order.
pub fn groups(plan: &Plan) -> Vec<Group> {
    fuse::groups(plan)
}

pub(super) use fuse::{reads, writes};
pub(super) use gemv_with::joined;
pub(super) use pair::{Pair, Pairs, join as join_pairs};
pub(super) use resident::{Resident, Run, join};

/// Working memory the launches of a plan, in these groups, need for a step of so many sequences, bytes (the largest of all).
pub fn scratch_bytes(plan: &Plan, groups: &[Group], sequences: usize) -> usize {
    let of = |op: &Op| match op {
        Op::Attend { .. } => attend::scratch_bytes(plan, op),
        Op::Sample { logits } => mixing::sample_scratch(plan.width(*logits)),
        Op::MatMul { .. } | Op::GroupedMatMul { .. } | Op::ExpertMatMul { .. } => matmul::scratch_bytes(plan, op),
        Op::HcMix { .. } => sequences * hc::scratch_bytes(plan, op),
        _ => 0,
    };
    let ops = plan.ops.iter().map(|o| of(&o.op)).max().unwrap_or(0);
    let together = |g: &Group| match g.kind {
        GroupKind::Mlp => mlp::scratch_bytes(plan, &g.origin),
        _ => matmul::group_scratch_bytes(plan, &g.origin),
    };
    ops.max(groups.iter().map(together).max().unwrap_or(0))
}

/// Working memory for weights on their way to kernels that read bf16 alone, bytes (the largest of all groups).
pub fn dense_bytes(plan: &Plan, groups: &[Group]) -> usize {
    dense::bytes(plan, groups)
}

/// Enqueues what a group does. Probes are the executor's.
pub fn launch(cx: &LaunchCx<'_>, group: &Group) -> Result<(), ExecError> {
    match group.kind {
        GroupKind::Single => group.origin.iter().try_for_each(|id| single(cx, *id)),
        GroupKind::Products => matmul::products(cx, &group.origin),
        GroupKind::Added => matmul::added(cx, &group.origin),
        GroupKind::Mlp => mlp::mlp(cx, &group.origin),
        GroupKind::Chain => chain::chain(cx, &group.origin),
        GroupKind::Index => index::group(cx, &group.origin),
        GroupKind::Site => hc::site(cx, &group.origin),
        GroupKind::Resident | GroupKind::Pair => args::unsupported("a launch that was not made ready"),
        GroupKind::Attend => {
            let op = |i: usize| &cx.plan.ops[group.origin[i].index()].op;
            match group.origin.len() {
                2 => attend::attend(cx, op(0), None, Some(op(1)), 0),
                4 => attend::attend(cx, op(2), Some([op(0), op(1)]), Some(op(3)), 0),
                _ => args::unsupported("a group that is none of the plan's"),
            }
        }
        GroupKind::Experts => {
            let Some((mut p, x)) = fuse::experts(cx.plan, group.origin[0].index()) else {
                return args::unsupported("a group that is none of the plan's");
            };
            if let Some(e) = &mut p.experts {
                e.table = cx.experts[group.origin[0].index()];
                e.partners = cx.experts[group.origin[1].index()];
            }
            gemv::project(cx, x, &p)
        }
        GroupKind::Beside => {
            let Some((_, mut p, x)) = fuse::beside(cx.plan, group.origin[0].index()) else {
                return args::unsupported("a group that is none of the plan's");
            };
            if let Some(e) = &mut p.experts {
                e.table = cx.experts[group.origin[0].index()];
            }
            gemv::project(cx, x, &p)
        }
        GroupKind::Project => match fuse::describe(cx.plan, group.origin[0].index()) {
            Some((p, n, x)) if n == group.origin.len() => {
                if held::launch(cx, x, &[&p], None)? {
                    return Ok(());
                }
                gemv::project(cx, x, &p)
            }
            Some((p, n, x)) if n < group.origin.len() => {
                let rows = chain::prepare(cx, &group.origin[n..])?;
                if held::launch(cx, x, &[&p], Some(&rows))? {
                    return Ok(());
                }
                gemv_with::rows(cx, &gemv::prepare(cx, x, &p, rows.blocks())?, &rows)
            }
            _ => args::unsupported("a group that is none of the plan's"),
        },
        GroupKind::Mixed => match gemv_with::mixed(cx.plan, &group.origin) {
            Some(([a, b], x)) if held::launch(cx, x, &[&a, &b], None)? => Ok(()),
            Some(([a, b], x)) => gemv_with::both(cx, [&gemv::prepare(cx, x, &a, 0)?, &gemv::prepare(cx, x, &b, 0)?]),
            None => args::unsupported("a group that is none of the plan's"),
        },
    }
}

fn single(cx: &LaunchCx<'_>, id: OpId) -> Result<(), ExecError> {
    let stats = cx.stats[id.index()];
    let op = &cx.plan.ops[id.index()].op;
    match op {
        Op::Embed { table, out, copies } => pointwise::embed(cx, *table, *out, *copies),
        Op::EmbedPosition { table, x } => pointwise::embed_position(cx, *table, *x),
        Op::Norm { .. } => pointwise::norm(cx, op),
        Op::MatMul { .. } | Op::GroupedMatMul { .. } | Op::ExpertMatMul { .. } => matmul::matmul(cx, id),
        Op::Rope { .. } => pointwise::rope(cx, op),
        Op::CacheWrite { src, cache, rows } => mixing::cache_write(cx, *src, *cache, *rows, stats),
        Op::Pool { .. } => mixing::pool(cx, op),
        Op::Hadamard { x, width, .. } => mixing::runs(cx, *x, *width, None),
        Op::RoundTrip { x, width, format } => mixing::runs(cx, *x, *width, Some(*format)),
        Op::IndexScore { .. } => index::score(cx, op),
        Op::SelectTopK { scores, k, rate, out } => index::select(cx, *scores, *k, *rate, *out),
        Op::Attend { .. } => attend::attend(cx, op, None, None, stats),
        Op::Slice { x, offset, out } => pointwise::rows(cx, "slice", *x, None, *out, *offset),
        Op::Add { .. } => pointwise::add(cx, op),
        Op::Glu { .. } | Op::Activate { .. } => pointwise::glu(cx, op),
        Op::TopP { x, group, p } => sparse::top_p(cx, *x, *group, *p, stats),
        Op::ZeroHeads { x, head_dim, heads } => sparse::zero_heads(cx, *x, *head_dim, heads),
        Op::Route { .. } => mixing::route(cx, op, stats),
        Op::ExpertSum { x, k, shared, out } => pointwise::expert_sum(cx, *x, *k, *shared, *out),
        Op::HcMix { .. } => chain::chain(cx, &[id]),
        Op::HcCollapse { .. } | Op::HcExpand { .. } => pointwise::streams(cx, op),
        Op::TakeOutput { x, out } => pointwise::rows(cx, "take_output", *x, None, *out, 0),
        Op::Sample { logits } => mixing::sample(cx, *logits),
        Op::Probe { .. } => Ok(()),
    }
}

//! What an op has to compute and move, as functions of (tokens, context). The roofline column of the explorer and
//! the plan listing come from here. Conventions: a multiply-add is 2 FLOPs; activations are f32; every operand is
//! counted once per step (a cache row read by several tokens of a chunk counts once).

use serde::{Deserialize, Serialize};

use super::op::{BaseOp, BufId, CacheId, KeyRows, Mask, Op, Positions, WeightId};
use super::plan::{CacheRows, Dim, Plan};

/// FLOPs and bytes of one op for one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Floating-point operations.
    pub flops: u64,
    /// Weight bytes read.
    pub weights: u64,
    /// Cache bytes read and written.
    pub cache: u64,
    /// Workspace bytes read and written.
    pub activations: u64,
}

impl Cost {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.weights + self.cache + self.activations
    }

    /// Adds another cost.
    pub fn add(&mut self, o: Cost) {
        self.flops += o.flops;
        self.weights += o.weights;
        self.cache += o.cache;
        self.activations += o.activations;
    }
}

struct Env<'a> {
    plan: &'a Plan,
    tokens: u64,
    position: u64,
}

impl Env<'_> {
    fn rows(&self, id: BufId) -> u64 {
        match self.plan.buffers[id.index()].rows {
            Dim::Closed(rate) => (self.position + self.tokens) / rate as u64 - self.position / rate as u64,
            d => self.plan.dim(d, self.tokens as usize, self.position as usize) as u64,
        }
    }

    fn width(&self, id: BufId) -> u64 {
        let context = (self.position + self.tokens) as usize;
        self.plan
            .dim(self.plan.buffers[id.index()].width, self.tokens as usize, context) as u64
    }

    fn elems(&self, id: BufId) -> u64 {
        self.rows(id) * self.width(id)
    }

    fn act(&self, ids: &[BufId]) -> u64 {
        ids.iter().map(|&i| 4 * self.elems(i)).sum()
    }

    fn weight(&self, id: WeightId) -> u64 {
        self.plan.weight(id).bytes()
    }

    fn row_bytes(&self, id: CacheId) -> u64 {
        let (d, s) = self.plan.cache(id).row_bytes();
        (d + s) as u64
    }

    /// (keys summed over the queries, distinct rows read) of one source.
    fn keys(&self, rows: KeyRows, mask: Mask) -> (u64, u64) {
        let (t, p) = (self.tokens, self.position);
        let causal = t * p + t * (t + 1) / 2;
        match rows {
            KeyRows::Causal => match mask {
                Mask::SlidingWindow { window, sinks } => {
                    let cap = (window + sinks) as u64;
                    (capped(p, t, cap), (p + t).min(cap + t - 1))
                }
                _ => (causal, p + t),
            },
            KeyRows::Window { window } => (capped(p, t, window as u64), (p + t).min(window as u64 + t - 1)),
            KeyRows::Compressed { rate, selection } => {
                let rate = rate as u64;
                let visible = (p + t) / rate;
                let sum: u64 = (0..t).map(|i| (p + i + 1) / rate).sum();
                match selection {
                    None => (sum, visible),
                    Some(s) => {
                        let k = self.width(s);
                        ((0..t).map(|i| ((p + i + 1) / rate).min(k)).sum(), visible.min(k * t))
                    }
                }
            }
        }
    }
}

/// Sum over the step's queries of min(visible tokens, cap).
fn capped(position: u64, tokens: u64, cap: u64) -> u64 {
    (0..tokens).map(|i| (position + i + 1).min(cap)).sum()
}

/// Expected number of distinct experts that `draws` uniform draws touch.
fn experts_touched(experts: usize, draws: u64) -> f64 {
    let e = experts as f64;
    e * (1.0 - (1.0 - 1.0 / e).powf(draws as f64))
}

impl BaseOp {
    /// FLOPs and bytes of this op for a step of `tokens` tokens after `position` tokens of context.
    pub fn cost(&self, plan: &Plan, tokens: u64, position: u64) -> Cost {
        let e = Env { plan, tokens, position };
        let mut c = Cost::default();
        match &self.op {
            Op::Embed { table, out, .. } => {
                let w = plan.weight(*table);
                c.weights = w.bytes() / w.rows.max(1) as u64 * tokens;
                c.activations = e.act(&[*out]);
            }
            Op::EmbedPosition { table, x } => {
                let w = plan.weight(*table);
                c.weights = w.bytes() / w.rows.max(1) as u64 * tokens;
                c.flops = e.elems(*x);
                c.activations = 2 * e.act(&[*x]);
            }
            Op::Norm {
                x, weight, bias, out, ..
            } => {
                c.flops = 4 * e.elems(*x);
                c.weights = [weight, bias].into_iter().flatten().map(|w| e.weight(*w)).sum();
                c.activations = e.act(&[*x, *out]);
            }
            Op::MatMul { x, weight, bias, out } => {
                c.flops = 2 * e.rows(*x) * e.width(*x) * e.width(*out);
                c.weights = e.weight(*weight) + bias.map_or(0, |b| e.weight(b));
                c.activations = e.act(&[*x, *out]);
            }
            Op::GroupedMatMul { x, weight, groups, out } => {
                c.flops = 2 * e.rows(*x) * e.width(*x) * e.width(*out) / *groups as u64;
                c.weights = e.weight(*weight);
                c.activations = e.act(&[*x, *out]);
            }
            Op::Rope { x, heads, dims, .. } => {
                let n = e.rows(*x) * (heads * dims) as u64;
                c.flops = 3 * n;
                c.activations = 8 * n;
            }
            Op::CacheWrite { src, cache, rows } => {
                let n = match rows {
                    Positions::Tokens => tokens,
                    Positions::Closed { .. } => e.rows(*src),
                };
                c.cache = n * e.row_bytes(*cache);
                c.activations = 4 * n * e.width(*src);
            }
            Op::Hadamard { x, width, .. } => {
                c.flops = e.elems(*x) * u64::from(width.max(&1).ilog2() + 1);
                c.activations = 2 * e.act(&[*x]);
            }
            Op::RoundTrip { x, .. } => {
                c.flops = 4 * e.elems(*x);
                c.activations = 2 * e.act(&[*x]);
            }
            Op::Add { x, y, out } => {
                c.flops = e.elems(*x);
                c.activations = e.act(&[*x, *y, *out]);
            }
            Op::Glu { gate, up, out, .. } => {
                c.flops = 6 * e.elems(*gate);
                c.activations = e.act(&[*gate, *up, *out]);
            }
            Op::Activate { x, .. } => {
                c.flops = 6 * e.elems(*x);
                c.activations = 2 * e.act(&[*x]);
            }
            Op::TopP { x, .. } => {
                c.flops = 12 * e.elems(*x);
                c.activations = 2 * e.act(&[*x]);
            }
            Op::ZeroHeads { x, head_dim, heads } => c.activations = 4 * e.rows(*x) * (heads.len() * head_dim) as u64,
            Op::TakeOutput { x: _, out } | Op::Slice { x: _, out, .. } => c.activations = 2 * e.act(&[*out]),
            Op::Probe { .. } => {}
            Op::Sample { logits } => {
                c.flops = e.width(*logits);
                c.activations = 4 * e.width(*logits);
            }
            Op::Pool { .. } | Op::IndexScore { .. } | Op::SelectTopK { .. } | Op::Attend { .. } => {
                self.attention_cost(&e, &mut c);
            }
            Op::Route { .. }
            | Op::ExpertMatMul { .. }
            | Op::ExpertSum { .. }
            | Op::HcMix { .. }
            | Op::HcCollapse { .. }
            | Op::HcExpand { .. } => self.mixing_cost(&e, &mut c),
        }
        c
    }

    fn attention_cost(&self, e: &Env<'_>, c: &mut Cost) {
        match &self.op {
            Op::Pool {
                kv,
                gate,
                ape,
                state,
                out,
                rate,
                overlap,
            } => {
                let slots = (rate * if *overlap { 2 } else { 1 }) as u64;
                c.flops = e.elems(*gate) + e.elems(*out) * slots * 4;
                c.weights = e.weight(*ape);
                let live = match e.plan.cache(*state).rows {
                    CacheRows::Ring { live, .. } => live as u64,
                    CacheRows::Growing { .. } => 0,
                };
                c.cache = e.tokens * e.row_bytes(*state) + e.rows(*out).min(1) * live * e.row_bytes(*state);
                c.activations = e.act(&[*kv, *gate, *out]);
            }
            Op::IndexScore {
                q,
                weights,
                keys,
                heads,
                dim,
                rate,
                skip,
                out: _,
                ..
            } => {
                let rate = *rate as u64;
                let scored: u64 = (0..e.tokens)
                    .map(|i| (e.position + i + 1) / rate)
                    .filter(|&v| v > *skip as u64)
                    .sum();
                c.flops = scored * (heads * (2 * dim + 3)) as u64;
                if scored > 0 {
                    c.cache = (e.position + e.tokens) / rate * e.row_bytes(*keys);
                }
                c.activations = e.act(&[*q, *weights]) + 4 * scored;
            }
            Op::SelectTopK { k, rate, out, .. } => {
                let rate = *rate as u64;
                let read: u64 = (0..e.tokens)
                    .map(|i| (e.position + i + 1) / rate)
                    .filter(|&v| v > *k as u64)
                    .sum();
                c.flops = read;
                c.activations = 4 * read + e.act(&[*out]);
            }
            Op::Attend {
                q,
                out,
                heads,
                head_dim,
                sources,
                sinks,
                mask,
                score,
                ..
            } => {
                let program = score.as_ref().map_or(0, |s| s.ops().len());
                for s in sources {
                    let (keys, rows) = e.keys(s.rows, *mask);
                    c.flops += keys * (heads * (4 * head_dim + program)) as u64;
                    c.cache += rows * e.row_bytes(s.keys);
                    if s.values != s.keys {
                        c.cache += rows * e.row_bytes(s.values);
                    }
                }
                c.weights = sinks.map_or(0, |s| e.weight(s));
                c.activations = e.act(&[*q, *out]);
            }
            _ => {}
        }
    }

    fn mixing_cost(&self, e: &Env<'_>, c: &mut Cost) {
        match &self.op {
            Op::Route {
                logits,
                bias,
                out_experts,
                out_weights,
                ..
            } => {
                c.flops = 6 * e.elems(*logits);
                c.weights = bias.map_or(0, |b| e.weight(b));
                c.activations = e.act(&[*logits, *out_experts, *out_weights]);
            }
            Op::ExpertMatMul {
                x,
                k,
                weights,
                per_slot,
                out,
                ..
            } => {
                let inputs = if *per_slot {
                    e.width(*x) / *k as u64
                } else {
                    e.width(*x)
                };
                c.flops = 2 * e.rows(*x) * inputs * e.width(*out);
                let each = weights.first().map_or(0, |w| e.weight(*w));
                c.weights = (each as f64 * experts_touched(weights.len().max(1), e.tokens * *k as u64)) as u64;
                if e.tokens == 1 {
                    c.weights = each * *k as u64;
                }
                c.activations = e.act(&[*x, *out]);
            }
            Op::ExpertSum { x, shared, out, .. } => {
                c.flops = e.elems(*x) + shared.map_or(0, |s| e.elems(s));
                c.activations = e.act(&[*x, *out]) + shared.map_or(0, |s| e.act(&[s]));
            }
            Op::HcMix {
                x,
                matrix,
                base,
                scale,
                iterations,
                streams,
                comb,
                ..
            } => {
                let outputs = e.plan.weight(*matrix).rows as u64;
                c.flops = 2 * e.elems(*x) * (outputs + 1);
                if comb.is_some() {
                    c.flops += e.rows(*x) * (*iterations * 4 * streams * streams) as u64;
                }
                c.weights = e.weight(*matrix) + e.weight(*base) + e.weight(*scale);
                c.activations = e.act(&[*x]) + 4 * e.rows(*x) * outputs;
            }
            Op::HcCollapse { x, pre, out, .. } => {
                c.flops = 2 * e.elems(*x);
                c.activations = e.act(&[*x, *pre, *out]);
            }
            Op::HcExpand {
                o,
                x,
                post,
                comb,
                streams,
            } => {
                c.flops = 2 * e.elems(*x) * (*streams as u64 + 1);
                c.activations = e.act(&[*o, *post, *comb]) + 2 * e.act(&[*x]);
            }
            _ => {}
        }
    }
}

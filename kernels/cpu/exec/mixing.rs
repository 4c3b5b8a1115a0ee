//! Ops of MODEL1 beside attention: pooling, indexer, experts, hyper-connections.

use super::run::Ctx;
use super::select::top_k;
use super::sparse;
use super::store::CpuState;
use super::workspace::Shared;
use crate::cpu::attn_dot::dot_f32;
use crate::cpu::matmul::{Job, grouped};
use crate::ir::{BufId, CacheFormat, ExecError, LayerStats, Op, Scoring, WeightId};

pub(super) fn run(ctx: &Ctx<'_>, op: &Op, state: &mut CpuState, stats: &mut LayerStats) -> Result<(), ExecError> {
    match op {
        Op::ZeroHeads { x, head_dim, heads } => {
            sparse::zero_heads(ctx, state, *x, *head_dim, heads);
            Ok(())
        }
        Op::TopP { x, group, p } => {
            sparse::top_p(ctx, state, (*x, *group), *p, stats);
            Ok(())
        }
        Op::Pool { .. } => pool(ctx, op, state),
        Op::IndexScore { .. } => {
            index_score(ctx, op, state, stats);
            Ok(())
        }
        Op::SelectTopK { scores, k, rate, out } => {
            select(ctx, state, *scores, *k, *rate, *out);
            Ok(())
        }
        Op::Route { .. } => route(ctx, op, state, stats),
        Op::ExpertMatMul {
            x,
            experts,
            k,
            weights,
            per_slot,
            out,
        } => expert_matmul(ctx, state, (*x, *experts, *out), *k, weights, *per_slot),
        Op::ExpertSum { x, k, shared, out } => {
            let (rows, d) = (ctx.rows(*x), ctx.width(*out));
            let mut y = state.work.take(*out);
            for t in 0..rows {
                let o = &mut y[t * d..(t + 1) * d];
                match shared {
                    Some(s) => o.copy_from_slice(&state.work.get(*s)[t * d..(t + 1) * d]),
                    None => o.fill(0.0),
                }
                for part in state.work.get(*x)[t * k * d..(t + 1) * k * d].chunks_exact(d) {
                    o.iter_mut().zip(part).for_each(|(a, b)| *a += b);
                }
            }
            state.work.put(*out, y);
            Ok(())
        }
        Op::HcMix { .. } => hc_mix(ctx, op, state),
        Op::HcCollapse { x, pre, streams, out } => {
            let (rows, d) = (ctx.rows(*x), ctx.width(*out));
            let mut y = state.work.take(*out);
            let (x, pre) = (state.work.get(*x), state.work.get(*pre));
            for t in 0..rows {
                let o = &mut y[t * d..(t + 1) * d];
                o.fill(0.0);
                for (s, &p) in x[t * streams * d..]
                    .chunks_exact(d)
                    .take(*streams)
                    .zip(&pre[t * streams..])
                {
                    o.iter_mut().zip(s).for_each(|(a, b)| *a += p * b);
                }
            }
            state.work.put(*out, y);
            Ok(())
        }
        Op::HcExpand {
            o,
            x,
            post,
            comb,
            streams,
        } => {
            hc_expand(ctx, state, (*o, *x, *post, *comb), *streams);
            Ok(())
        }
        other => Err(ExecError::Unsupported {
            backend: "cpu",
            what: format!("{other:?}"),
        }),
    }
}

/// Block-diagonal product: group g uses rows g*n.. of the weight and part g of x.
pub(super) fn grouped_matmul(
    ctx: &Ctx<'_>,
    state: &mut CpuState,
    x: BufId,
    weight: WeightId,
    groups: usize,
    out: BufId,
) -> Result<(), ExecError> {
    let m = ctx.matrix(weight)?;
    let (rows, n) = (ctx.rows(x), m.rows / groups);
    let mut y = state.work.take(out);
    let input = state.work.get(x);
    let width = m.rows;
    let mut jobs = Vec::with_capacity(rows * groups);
    for (t, o) in y[..rows * width].chunks_exact_mut(width).enumerate() {
        for (g, o) in o.chunks_exact_mut(n).enumerate() {
            let x = &input[(t * groups + g) * m.cols..][..m.cols];
            jobs.push(Job {
                w: m,
                first_row: g * n,
                x,
                y: o,
            });
        }
    }
    grouped(ctx.cpu, &mut jobs);
    state.work.put(out, y);
    Ok(())
}

/// Compressor (MODEL1.md 2.7). The state keeps, per token slot, [kv | gate + ape].
fn pool(ctx: &Ctx<'_>, op: &Op, state: &mut CpuState) -> Result<(), ExecError> {
    let Op::Pool {
        kv,
        gate,
        ape,
        state: cache,
        out,
        rate,
        overlap,
    } = op
    else {
        return Ok(());
    };
    let ape = ctx.vector(*ape)?;
    let (c, d, tokens) = (ctx.width(*kv), ctx.width(*out), ctx.step.tokens as usize);
    let mut y = state.work.take(*out);
    let (kv, gate) = (state.work.get(*kv), state.work.get(*gate));
    let store = &mut state.stores[cache.index()];
    let slots = rate * if *overlap { 2 } else { 1 };
    let values: &mut [f32] = bytemuck::cast_slice_mut(store.bytes_mut());
    let mut row = 0;
    for t in 0..tokens {
        let position = ctx.step.position as usize + t;
        let slot = &mut values[position % slots * 2 * c..][..2 * c];
        slot[..c].copy_from_slice(&kv[t * c..(t + 1) * c]);
        let bias = &ape[position % rate * c..][..c];
        for ((s, g), b) in slot[c..].iter_mut().zip(&gate[t * c..(t + 1) * c]).zip(bias) {
            *s = g + b;
        }
        if (position + 1).is_multiple_of(*rate) {
            let block = (position + 1 - rate, *rate, *overlap, c, d);
            pool_row(ctx, values, block, &mut y[row * d..(row + 1) * d]);
            row += 1;
        }
    }
    state.work.put(*out, y);
    Ok(())
}

/// One closed row: softmax over the block's tokens per channel; with overlap the A half of the block before joins.
fn pool_row(
    ctx: &Ctx<'_>,
    values: &[f32],
    (start, rate, overlap, c, d): (usize, usize, bool, usize, usize),
    out: &mut [f32],
) {
    let slots = if overlap { 2 * rate } else { rate };
    // (token, offset of the half): own block uses the second half with overlap, the block before the first.
    let mut sources: Vec<(usize, usize)> = Vec::with_capacity(slots);
    if overlap && start >= rate {
        sources.extend((start - rate..start).map(|t| (t % slots, 0)));
    }
    sources.extend((start..start + rate).map(|t| (t % slots, if overlap { d } else { 0 })));
    let shared = Shared::new(out);
    let channels = 64;
    ctx.cpu.pool.run(d.div_ceil(channels), &|task| {
        let from = task * channels;
        let n = channels.min(d - from);
        // SAFETY: one task per range of channels.
        let o = unsafe { shared.part(from, n) };
        for (k, o) in o.iter_mut().enumerate() {
            let ch = from + k;
            let gate = |&(slot, half): &(usize, usize)| values[slot * 2 * c + c + half + ch];
            let max = sources.iter().map(gate).fold(f32::NEG_INFINITY, f32::max);
            let (mut sum, mut acc) = (0.0f32, 0.0f32);
            for s in &sources {
                let e = (gate(s) - max).exp();
                sum += e;
                acc += e * values[s.0 * 2 * c + s.1 + ch];
            }
            *o = acc / sum;
        }
    });
}

fn index_score(ctx: &Ctx<'_>, op: &Op, state: &mut CpuState, stats: &mut LayerStats) {
    let Op::IndexScore {
        q,
        weights,
        keys,
        heads,
        dim,
        rate,
        scale,
        skip,
        out,
    } = op
    else {
        return;
    };
    let tokens = ctx.step.tokens as usize;
    let width = ctx.width(*out);
    let most = ctx.step.rows_visible(*rate, tokens - 1);
    if most <= *skip {
        return;
    }
    let mut y = state.work.take(*out);
    let store = &state.stores[keys.index()];
    let (q, w) = (state.work.get(*q), state.work.get(*weights));
    for t in 0..tokens {
        let visible = ctx.step.rows_visible(*rate, t);
        if visible > *skip {
            stats.index_scored += visible as u64;
        }
    }
    let block = 64;
    let shared = Shared::new(&mut y);
    ctx.cpu.pool.run(most.div_ceil(block), &|b| {
        let (from, to) = (b * block, most.min((b + 1) * block));
        let mut decoded = vec![0.0f32; block * dim];
        if store.desc.format == CacheFormat::F32 {
            let all: &[f32] = bytemuck::cast_slice(store.bytes());
            decoded[..(to - from) * dim].copy_from_slice(&all[from * dim..to * dim]);
        } else {
            for r in from..to {
                store.read(r, 0, &mut decoded[(r - from) * dim..(r - from + 1) * dim]);
            }
        }
        for t in 0..tokens {
            let visible = ctx.step.rows_visible(*rate, t);
            if visible <= *skip || visible <= from {
                continue;
            }
            let n = visible.min(to) - from;
            // SAFETY: (token, block of rows) belongs to this task alone.
            let o = unsafe { shared.part(t * width + from, n) };
            for (o, k) in o.iter_mut().zip(decoded.chunks_exact(*dim)) {
                let mut sum = 0.0f32;
                for h in 0..*heads {
                    let z = dot_f32(ctx.cpu.isa, &q[(t * heads + h) * dim..][..*dim], k);
                    sum += scale * w[t * heads + h] * z.max(0.0);
                }
                *o = sum;
            }
        }
    });
    state.work.put(*out, y);
}

fn select(ctx: &Ctx<'_>, state: &mut CpuState, scores: BufId, k: usize, rate: usize, out: BufId) {
    let width = ctx.width(scores);
    let mut chosen = std::mem::take(state.work.ints_mut(out));
    let scores = state.work.get(scores);
    let shared = Shared::new(&mut chosen);
    ctx.cpu.pool.run(ctx.step.tokens as usize, &|t| {
        // SAFETY: one task per token.
        let o = unsafe { shared.part(t * k, k) };
        let visible = ctx.step.rows_visible(rate, t);
        top_k(&scores[t * width..t * width + visible], o);
    });
    *state.work.ints_mut(out) = chosen;
}

fn score(kind: Scoring, logits: &[f32], out: &mut Vec<f32>) {
    out.clear();
    match kind {
        // softplus without overflow: log1p(exp(-|z|)) + max(z, 0)
        Scoring::SqrtSoftplus => out.extend(logits.iter().map(|&z| ((-z.abs()).exp().ln_1p() + z.max(0.0)).sqrt())),
        Scoring::Sigmoid => out.extend(logits.iter().map(|&z| 1.0 / (1.0 + (-z).exp()))),
        Scoring::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            out.extend(logits.iter().map(|&z| (z - max).exp()));
            let sum: f32 = out.iter().sum();
            out.iter_mut().for_each(|v| *v /= sum);
        }
    }
}

fn route(ctx: &Ctx<'_>, op: &Op, state: &mut CpuState, stats: &mut LayerStats) -> Result<(), ExecError> {
    let Op::Route {
        logits,
        bias,
        table,
        scoring,
        k,
        normalise,
        factor,
        out_experts,
        out_weights,
    } = op
    else {
        return Ok(());
    };
    let (tokens, n) = (ctx.rows(*logits), ctx.width(*logits));
    let bias = ctx.optional(*bias)?;
    let table = table.map(|t| ctx.weights.weight(t)).transpose()?;
    let mut chosen = std::mem::take(state.work.ints_mut(*out_experts));
    let mut weights = state.work.take(*out_weights);
    stats.expert_load.resize(n, 0);
    let (mut scores, mut order) = (Vec::new(), Vec::new());
    for t in 0..tokens {
        score(*scoring, &state.work.get(*logits)[t * n..(t + 1) * n], &mut scores);
        let picks = &mut chosen[t * k..(t + 1) * k];
        match &table {
            Some(view) => {
                let id = ctx.request.ids[t] as usize;
                for (s, p) in picks.iter_mut().enumerate() {
                    *p = crate::cpu::integer(view, id * view.desc.cols + s)
                        .filter(|&e| (0..n as i64).contains(&e))
                        .ok_or_else(|| ExecError::Mismatch {
                            what: "weights",
                            detail: format!("`{}`: row {id} names an expert outside 0..{n}", view.desc.name),
                        })? as i32;
                }
            }
            None => {
                let key = |e: usize| scores[e] + bias.as_ref().map_or(0.0, |b| b[e]);
                order.clear();
                order.extend(0..n);
                order.sort_unstable_by(|&a: &usize, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
                picks.iter_mut().zip(&order).for_each(|(p, &e)| *p = e as i32);
            }
        }
        let sum: f32 = picks.iter().map(|&e| scores[e as usize]).sum();
        for (w, &e) in weights[t * k..(t + 1) * k].iter_mut().zip(picks.iter()) {
            *w = scores[e as usize] / if *normalise { sum } else { 1.0 } * factor;
            stats.expert_load[e as usize] += 1;
        }
    }
    *state.work.ints_mut(*out_experts) = chosen;
    state.work.put(*out_weights, weights);
    Ok(())
}

fn expert_matmul(
    ctx: &Ctx<'_>,
    state: &mut CpuState,
    (x, experts, out): (BufId, BufId, BufId),
    k: usize,
    weights: &[WeightId],
    per_slot: bool,
) -> Result<(), ExecError> {
    let tokens = ctx.rows(x);
    let mut y = state.work.take(out);
    let n = ctx.width(out) / k;
    let input = state.work.get(x);
    let picks = state.work.ints(experts);
    let cols = if per_slot { ctx.width(x) / k } else { ctx.width(x) };
    let mut jobs = Vec::with_capacity(tokens * k);
    for (slot, o) in y[..tokens * k * n].chunks_exact_mut(n).enumerate() {
        let e = picks[slot].max(0) as usize;
        let Some(&w) = weights.get(e) else {
            return Err(ExecError::Mismatch {
                what: "weights",
                detail: format!("expert {e} of {}", weights.len()),
            });
        };
        let from = if per_slot { slot } else { slot / k };
        jobs.push((
            e,
            Job {
                w: ctx.matrix(w)?,
                first_row: 0,
                x: &input[from * cols..(from + 1) * cols],
                y: o,
            },
        ));
    }
    // Tokens of one expert next to each other: its weights are read once. Results do not depend on the order.
    jobs.sort_by_key(|(e, _)| *e);
    let mut jobs: Vec<Job<'_, '_>> = jobs.into_iter().map(|(_, j)| j).collect();
    grouped(ctx.cpu, &mut jobs);
    drop(jobs);
    state.work.put(out, y);
    Ok(())
}

/// mHC coefficients (MODEL1.md 3).
fn hc_mix(ctx: &Ctx<'_>, op: &Op, state: &mut CpuState) -> Result<(), ExecError> {
    let Op::HcMix {
        x,
        matrix,
        base,
        scale,
        pre,
        post,
        comb,
        streams,
        iterations,
        eps,
        norm_eps,
    } = op
    else {
        return Ok(());
    };
    let n = *streams;
    let (rows, width) = (ctx.rows(*x), ctx.width(*x));
    let m = ctx.matrix(*matrix)?;
    let (base, scale) = (ctx.vector(*base)?, ctx.vector(*scale)?);
    let outputs = m.rows;
    let mut mixed = vec![0.0f32; rows * outputs];
    let input = &state.work.get(*x)[..rows * width];
    crate::cpu::matmul::matmul(ctx.cpu, input, rows, &m, None, &mut mixed, outputs);
    for (row, m) in input.chunks_exact(width).zip(mixed.chunks_exact_mut(outputs)) {
        let square = dot_f32(ctx.cpu.isa, row, row);
        let rho = 1.0 / (square / width as f32 + norm_eps).sqrt();
        m.iter_mut().for_each(|v| *v *= rho);
    }
    let sigmoid = |z: f32| 1.0 / (1.0 + (-z).exp());
    for t in 0..rows {
        let m = &mixed[t * outputs..(t + 1) * outputs];
        for i in 0..n {
            state.work.get_mut(*pre)[t * n + i] = sigmoid(m[i] * scale[0] + base[i]) + eps;
        }
        if let Some(post) = post {
            for i in 0..n {
                state.work.get_mut(*post)[t * n + i] = 2.0 * sigmoid(m[n + i] * scale[1] + base[n + i]);
            }
        }
        if let Some(comb) = comb {
            let c = &mut state.work.get_mut(*comb)[t * n * n..(t + 1) * n * n];
            for (i, c) in c.iter_mut().enumerate() {
                *c = m[2 * n + i] * scale[2] + base[2 * n + i];
            }
            sinkhorn(c, n, *iterations, *eps);
        }
    }
    Ok(())
}

/// Softmax over rows, then columns and rows in turn, ending on columns.
fn sinkhorn(c: &mut [f32], n: usize, iterations: usize, eps: f32) {
    for row in c.chunks_exact_mut(n) {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|v| *v = (*v - max).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v = *v / sum + eps);
    }
    for i in 0..iterations {
        if i > 0 {
            for row in c.chunks_exact_mut(n) {
                let sum: f32 = row.iter().sum::<f32>() + eps;
                row.iter_mut().for_each(|v| *v /= sum);
            }
        }
        for k in 0..n {
            let sum: f32 = (0..n).map(|j| c[j * n + k]).sum::<f32>() + eps;
            (0..n).for_each(|j| c[j * n + k] /= sum);
        }
    }
}

fn hc_expand(ctx: &Ctx<'_>, state: &mut CpuState, (o, x, post, comb): (BufId, BufId, BufId, BufId), n: usize) {
    let (rows, d) = (ctx.rows(o), ctx.width(o));
    let mut streams = state.work.take(x);
    let (o, post, comb) = (state.work.get(o), state.work.get(post), state.work.get(comb));
    let shared = Shared::new(&mut streams[..rows * n * d]);
    let one = |t: usize| {
        // SAFETY: one task per token.
        let x = unsafe { shared.part(t * n * d, n * d) };
        let old = x.to_vec();
        let (post, comb) = (&post[t * n..], &comb[t * n * n..]);
        for (k, new) in x.chunks_exact_mut(d).enumerate() {
            for (v, &o) in new.iter_mut().zip(&o[t * d..(t + 1) * d]) {
                *v = post[k] * o;
            }
            for (j, old) in old.chunks_exact(d).enumerate() {
                let c = comb[j * n + k];
                new.iter_mut().zip(old).for_each(|(v, x)| *v += c * x);
            }
        }
    };
    if rows == 1 {
        one(0);
    } else {
        ctx.cpu.pool.run(rows, &one);
    }
    state.work.put(x, streams);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinkhorn_matches_the_check_matrix() {
        // MODEL1.md 3.
        let mut c = [
            2., 0., -1., 0.5, 0., 1., 0., -2., 0.3, -0.7, 1.1, 0., -1., 0.2, 0.4, 0.9f32,
        ];
        let want = [
            0.615985, 0.113090, 0.039770, 0.231154, 0.160982, 0.593621, 0.208754, 0.036641, 0.177591, 0.088627,
            0.512521, 0.221260, 0.045441, 0.204661, 0.238953, 0.510944,
        ];
        sinkhorn(&mut c, 4, 20, 1e-6);
        for (a, b) in c.iter().zip(want) {
            assert!((a - b).abs() < 2e-6, "{c:?}");
        }
    }

    #[test]
    fn sqrt_softplus_values() {
        let mut out = Vec::new();
        score(Scoring::SqrtSoftplus, &[-5.0, 0.0, 2.0, 25.0], &mut out);
        for (a, b) in out.iter().zip([0.0819472f32, 0.8325546, 1.458_399, 5.0]) {
            assert!((a - b).abs() < 1e-6, "{out:?}");
        }
    }
}

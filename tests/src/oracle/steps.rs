//! The ops that take more than a few lines: pooling, attention, routing, mixing of streams.

use kernels::cpu::integer;
use kernels::ir::{CacheId, ExecError, KeyRows, Mask, Op, SKIP_BLOCK, ScoreOp, ScoreProgram, Scoring};

use super::{OracleState, Run};

/// One score through a program.
fn rescored(program: &ScoreProgram, score: f64, q: f64, k: f64, head: f64) -> f64 {
    let truth = |t: bool| f64::from(u8::from(t));
    let mut stack: Vec<f64> = Vec::new();
    for op in program.ops() {
        let args = stack.split_off(stack.len() - op.takes());
        let (a, b) = (
            args.first().copied().unwrap_or_default(),
            args.get(1).copied().unwrap_or_default(),
        );
        stack.push(match op {
            ScoreOp::Const(v) => f64::from(*v),
            ScoreOp::Infinity => f64::INFINITY,
            ScoreOp::Query => q,
            ScoreOp::Key => k,
            ScoreOp::Head => head,
            ScoreOp::Score => score,
            ScoreOp::Neg => -a,
            ScoreOp::Not => truth(a == 0.0),
            ScoreOp::Abs => a.abs(),
            ScoreOp::Exp => a.exp(),
            ScoreOp::Log => a.ln(),
            ScoreOp::Sqrt => a.sqrt(),
            ScoreOp::Floor => a.floor(),
            ScoreOp::Tanh => a.tanh(),
            ScoreOp::Add => a + b,
            ScoreOp::Sub => a - b,
            ScoreOp::Mul => a * b,
            ScoreOp::Div => a / b,
            ScoreOp::Mod => a % b,
            ScoreOp::Pow => a.powf(b),
            ScoreOp::Min => a.min(b),
            ScoreOp::Max => a.max(b),
            ScoreOp::Less => truth(a < b),
            ScoreOp::LessEqual => truth(a <= b),
            ScoreOp::Equal => truth(a == b),
            ScoreOp::And => truth(a != 0.0 && b != 0.0),
            ScoreOp::Or => truth(a != 0.0 || b != 0.0),
            ScoreOp::If => {
                if a != 0.0 {
                    b
                } else {
                    args[2]
                }
            }
        });
    }
    stack[0]
}

impl Run<'_> {
    pub(super) fn pool(&mut self, op: &Op, state: &mut OracleState) -> Result<(), ExecError> {
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
        let ape = self.vector(*ape)?;
        let (c, d) = (self.plan.width(*kv), self.plan.width(*out));
        let mut closed = 0;
        for t in 0..self.step.tokens as usize {
            let p = self.step.position as usize + t;
            let mut row = self.row(*kv, t).to_vec();
            row.extend(
                self.row(*gate, t)
                    .iter()
                    .enumerate()
                    .map(|(i, g)| g + ape[p % rate * c + i]),
            );
            state.store(*cache, p, &row);
            if !(p + 1).is_multiple_of(*rate) {
                continue;
            }
            let start = p + 1 - rate;
            let mut slots: Vec<(usize, usize)> = (start..=p).map(|t| (t, if *overlap { d } else { 0 })).collect();
            if *overlap && start > 0 {
                slots.extend((start - rate..start).map(|t| (t, 0)));
            }
            let mut y = vec![0.0; d];
            for (i, y) in y.iter_mut().enumerate() {
                let gates: Vec<f64> = slots.iter().map(|&(t, h)| state.row(*cache, t)[c + h + i]).collect();
                let max = gates.iter().copied().fold(f64::MIN, f64::max);
                let sum: f64 = gates.iter().map(|g| (g - max).exp()).sum();
                let value = |(g, &(t, h)): (&f64, &(usize, usize))| (g - max).exp() / sum * state.row(*cache, t)[h + i];
                *y = gates.iter().zip(&slots).map(value).sum();
            }
            self.set_row(*out, closed, &y);
            closed += 1;
        }
        Ok(())
    }

    pub(super) fn attend(&mut self, op: &Op, state: &OracleState) -> Result<(), ExecError> {
        let Op::Attend {
            q,
            out,
            heads,
            kv_heads,
            head_dim,
            scale,
            sources,
            sinks,
            mask,
            score,
        } = op
        else {
            return Ok(());
        };
        let sinks = sinks.map(|s| self.vector(s)).transpose()?;
        let d = *head_dim;
        for i in 0..self.rows(*q) {
            let t = self.step.position as usize + i;
            let mut keys: Vec<(CacheId, CacheId, usize)> = Vec::new();
            let mut at: Vec<usize> = Vec::new();
            for s in sources {
                let rate = match s.rows {
                    KeyRows::Compressed { rate, .. } => rate,
                    _ => 1,
                };
                let rows: Vec<usize> = match s.rows {
                    KeyRows::Causal => (0..=t)
                        .filter(|&j| match mask {
                            Mask::SlidingWindow { window, sinks } => j + window > t || j < *sinks,
                            _ => true,
                        })
                        .collect(),
                    KeyRows::Window { window } => ((t + 1).saturating_sub(window)..=t).collect(),
                    KeyRows::Compressed { rate, selection: None } => (0..(t + 1) / rate).collect(),
                    KeyRows::Compressed { selection: Some(b), .. } => {
                        let k = self.plan.width(b);
                        let row = &self.ints[b.index()][i * k..(i + 1) * k];
                        row.iter().filter(|&&j| j >= 0).map(|&j| j as usize).collect()
                    }
                };
                at.extend(rows.iter().map(|r| r * rate));
                keys.extend(rows.into_iter().map(|r| (s.keys, s.values, r)));
            }
            let mut y = vec![0.0; heads * d];
            for h in 0..*heads {
                let kv = h / (heads / kv_heads);
                let part = |row: &[f64]| row[kv * d..(kv + 1) * d].to_vec();
                let query = &self.row(*q, i)[h * d..(h + 1) * d];
                let dot = |k: Vec<f64>| -> f64 { k.iter().zip(query).map(|(a, b)| a * b).sum() };
                let mut z: Vec<f64> = keys
                    .iter()
                    .map(|&(k, _, r)| dot(part(state.row(k, r))) * f64::from(*scale))
                    .collect();
                if let Some(program) = score {
                    for (z, k) in z.iter_mut().zip(&at) {
                        let v = rescored(program, *z, t as f64, *k as f64, h as f64);
                        *z = if v.is_finite() { v } else { f64::NEG_INFINITY };
                    }
                }
                if let Mask::TopK { k } = mask {
                    let mut order: Vec<usize> = (0..z.len()).collect();
                    order.sort_by(|&a, &b| z[b].total_cmp(&z[a]).then(a.cmp(&b)));
                    order.iter().skip(*k).for_each(|&j| z[j] = f64::NEG_INFINITY);
                }
                let sink = sinks.as_ref().map_or(0.0, |s| s[h].exp());
                if let Mask::BlockSkip { threshold } = mask {
                    let all: f64 = z.iter().map(|z| z.exp()).sum::<f64>() + sink;
                    let shares: Vec<f64> = z
                        .chunks(SKIP_BLOCK)
                        .map(|b| b.iter().map(|z| z.exp()).sum::<f64>() / all)
                        .collect();
                    let most = shares.iter().copied().fold(f64::MIN, f64::max);
                    let first = shares.iter().position(|s| *s == most);
                    for (b, block) in z.chunks_mut(SKIP_BLOCK).enumerate() {
                        if shares[b] <= f64::from(*threshold) && first != Some(b) {
                            block.fill(f64::NEG_INFINITY);
                        }
                    }
                }
                let sum: f64 = z.iter().map(|z| z.exp()).sum::<f64>() + sink;
                for (z, &(_, v, r)) in z.iter().zip(&keys) {
                    for (c, v) in part(state.row(v, r)).iter().enumerate() {
                        y[h * d + c] += z.exp() / sum * v;
                    }
                }
            }
            self.set_row(*out, i, &y);
        }
        Ok(())
    }

    pub(super) fn route(&mut self, op: &Op) -> Result<(), ExecError> {
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
        let bias = bias.map(|b| self.vector(b)).transpose()?;
        for t in 0..self.rows(*logits) {
            let z = self.row(*logits, t);
            let total: f64 = z.iter().map(|z| z.exp()).sum();
            let s: Vec<f64> = z
                .iter()
                .map(|z| match scoring {
                    Scoring::SqrtSoftplus => z.exp().ln_1p().sqrt(),
                    Scoring::Sigmoid => 1.0 / (1.0 + (-z).exp()),
                    Scoring::Softmax => z.exp() / total,
                })
                .collect();
            let picks: Vec<usize> = match table {
                Some(table) => {
                    let view = self.weights.weight(*table)?;
                    let id = self.request.ids[t] as usize;
                    (0..*k)
                        .filter_map(|i| integer(&view, id * view.desc.cols + i))
                        .map(|e| e as usize)
                        .collect()
                }
                None => {
                    let key = |e: usize| s[e] + bias.as_ref().map_or(0.0, |b| b[e]);
                    let mut order: Vec<usize> = (0..s.len()).collect();
                    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
                    order.truncate(*k);
                    order
                }
            };
            let sum: f64 = if *normalise {
                picks.iter().map(|&e| s[e]).sum()
            } else {
                1.0
            };
            let w: Vec<f64> = picks.iter().map(|&e| s[e] / sum * f64::from(*factor)).collect();
            for (i, e) in picks.into_iter().enumerate() {
                self.ints[out_experts.index()][t * k + i] = e as i32;
            }
            self.set_row(*out_weights, t, &w);
        }
        Ok(())
    }

    pub(super) fn hc_mix(&mut self, op: &Op) -> Result<(), ExecError> {
        let Op::HcMix {
            x,
            matrix,
            base,
            scale,
            pre,
            post,
            comb,
            streams: n,
            iterations,
            eps,
            norm_eps,
        } = op
        else {
            return Ok(());
        };
        let (n, eps) = (*n, f64::from(*eps));
        let (base, scale) = (self.vector(*base)?, self.vector(*scale)?);
        let sigmoid = |z: f64| 1.0 / (1.0 + (-z).exp());
        for t in 0..self.rows(*x) {
            let v = self.row(*x, t);
            let mean = v.iter().map(|a| a * a).sum::<f64>() / v.len() as f64;
            let rho = 1.0 / (mean + f64::from(*norm_eps)).sqrt();
            let m: Vec<f64> = self.product(*matrix, v)?.iter().map(|a| a * rho).collect();
            let p: Vec<f64> = (0..n).map(|i| sigmoid(m[i] * scale[0] + base[i]) + eps).collect();
            self.set_row(*pre, t, &p);
            if let Some(post) = post {
                let p: Vec<f64> = (n..2 * n).map(|i| 2.0 * sigmoid(m[i] * scale[1] + base[i])).collect();
                self.set_row(*post, t, &p);
            }
            let Some(comb) = comb else { continue };
            let mut c: Vec<f64> = (2 * n..(2 + n) * n).map(|i| m[i] * scale[2] + base[i]).collect();
            for j in 0..n {
                let sum: f64 = (0..n).map(|k| c[j * n + k].exp()).sum();
                (0..n).for_each(|k| c[j * n + k] = c[j * n + k].exp() / sum + eps);
            }
            for i in 0..*iterations {
                if i > 0 {
                    for j in 0..n {
                        let sum: f64 = (0..n).map(|k| c[j * n + k]).sum::<f64>() + eps;
                        (0..n).for_each(|k| c[j * n + k] /= sum);
                    }
                }
                for k in 0..n {
                    let sum: f64 = (0..n).map(|j| c[j * n + k]).sum::<f64>() + eps;
                    (0..n).for_each(|j| c[j * n + k] /= sum);
                }
            }
            self.set_row(*comb, t, &c);
        }
        Ok(())
    }
}

//! A second backend, written from the op descriptions alone: plain loops in f64, one thread, values kept per row as
//! vectors. Slow and simple on purpose. It shares with the CPU backend only the decoding of stored numbers.

mod steps;

use std::any::Any;
use std::sync::Arc;

use kernels::cpu::exec::row_format;
use kernels::cpu::records::{RoundTrip, hadamard};
use kernels::cpu::{sample, weight_values};
use kernels::ir::{
    Activation, Backend, BufId, CacheDesc, CacheId, CacheRows, Dim, ElemType, ExecError, KvBytes, LayerStats, Layout,
    NormKind, Op, Plan, Positions, RopeStyle, Snapshot, State, StepOutput, StepParams, StepRequest, WeightId,
    WeightSource,
};

/// Cache rows by slot, as the stored format reads back.
#[derive(Clone)]
pub struct OracleState {
    descs: Vec<CacheDesc>,
    rows: Vec<Vec<Vec<f64>>>,
}

impl OracleState {
    fn store(&mut self, cache: CacheId, index: usize, values: &[f64]) {
        let d = &self.descs[cache.index()];
        let slot = match d.rows {
            CacheRows::Growing { .. } => index,
            CacheRows::Ring { capacity, .. } => index % capacity,
        };
        let format = row_format(d.format);
        let (a, b) = d.format.record_bytes(d.width, d.rope);
        let mut stored = Vec::new();
        for v in values.chunks(d.width) {
            if d.format == kernels::ir::CacheFormat::F32 {
                // The oracle keeps f32 caches in f64: it is the limit f32 kernels approach.
                stored.extend_from_slice(v);
                continue;
            }
            let v: Vec<f32> = v.iter().map(|&x| x as f32).collect();
            let mut bytes = vec![0u8; a + b];
            let mut back = vec![0f32; d.width];
            format.encode(&v, d.rope, &mut bytes, &mut RoundTrip::default());
            format.decode(&bytes, d.rope, &mut back);
            stored.extend(back.iter().map(|&x| f64::from(x)));
        }
        let rows = &mut self.rows[cache.index()];
        if rows.len() <= slot {
            rows.resize(slot + 1, Vec::new());
        }
        rows[slot] = stored;
    }

    fn row(&self, cache: CacheId, index: usize) -> &[f64] {
        let slot = match self.descs[cache.index()].rows {
            CacheRows::Growing { .. } => index,
            CacheRows::Ring { capacity, .. } => index % capacity,
        };
        &self.rows[cache.index()][slot]
    }
}

impl State for OracleState {
    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
    fn caches(&self) -> &[CacheDesc] {
        &self.descs
    }
    fn reserve(&mut self, _: u64) -> Result<(), ExecError> {
        Ok(())
    }
    fn snapshot(&self, position: u64) -> Result<Snapshot, ExecError> {
        Ok(Snapshot {
            position,
            bytes: 0,
            kept: Arc::new(()),
        })
    }
    fn restore(&mut self, _: &Snapshot) -> Result<(), ExecError> {
        Err(ExecError::Unsupported {
            backend: "oracle",
            what: "restore".into(),
        })
    }
    fn reformat(&mut self, _: CacheId, _: CacheDesc, _: u64) -> Result<(), ExecError> {
        Err(ExecError::Unsupported {
            backend: "oracle",
            what: "reformat".into(),
        })
    }
    fn read_rows(&self, cache: CacheId, first: usize, count: usize) -> Result<Vec<f32>, ExecError> {
        let rows = &self.rows[cache.index()];
        Ok(rows[first..first + count].iter().flatten().map(|&x| x as f32).collect())
    }
    fn fork(&self, _: u64) -> Result<Box<dyn State>, ExecError> {
        Ok(Box::new(self.clone()))
    }
    fn kv_bytes(&self, _: u64) -> Vec<(KvBytes, KvBytes)> {
        Vec::new()
    }
}

/// The backend.
pub struct Oracle;

struct Run<'a> {
    plan: &'a Plan,
    weights: &'a dyn WeightSource,
    request: &'a StepRequest<'a>,
    step: StepParams,
    floats: Vec<Vec<f64>>,
    ints: Vec<Vec<i32>>,
}

impl Backend for Oracle {
    fn name(&self) -> &'static str {
        "oracle"
    }
    fn describe(&self) -> String {
        "f64 loops".into()
    }
    fn new_state(&self, caches: &[CacheDesc], _: u64) -> Result<Box<dyn State>, ExecError> {
        Ok(Box::new(OracleState {
            descs: caches.to_vec(),
            rows: vec![Vec::new(); caches.len()],
        }))
    }
    fn run(
        &self,
        plan: &Plan,
        weights: &dyn WeightSource,
        state: &mut dyn State,
        request: &StepRequest<'_>,
        out: &mut StepOutput,
    ) -> Result<(), ExecError> {
        let Some(state) = state.as_any_mut().downcast_mut::<OracleState>() else {
            return Err(ExecError::Mismatch {
                what: "state",
                detail: "made by another backend".into(),
            });
        };
        let n = plan.buffers.len();
        let lens: Vec<usize> = (0..n).map(|i| plan.buffer_len(BufId(i as u32))).collect();
        let mut run = Run {
            plan,
            weights,
            request,
            step: request.step,
            floats: lens.iter().map(|&l| vec![0.0; l]).collect(),
            ints: lens.iter().map(|&l| vec![-1; l]).collect(),
        };
        *out = StepOutput {
            layers: vec![LayerStats::default(); plan.layers],
            ..StepOutput::default()
        };
        for base in &plan.ops {
            match &base.op {
                Op::Probe { x, name } => {
                    let values = match plan.buffers[x.index()].elem {
                        ElemType::F32 => run.get(*x).iter().map(|&v| v as f32).collect(),
                        ElemType::I32 => run.ints[x.index()][..run.get(*x).len()]
                            .iter()
                            .map(|&v| v as f32)
                            .collect(),
                    };
                    out.probes.push((name.clone(), plan.width(*x), values));
                }
                Op::Sample { logits } => {
                    if let Some(p) = request.sampler {
                        let all = run.get(*logits);
                        let last: Vec<f32> = all[all.len() - plan.width(*logits)..]
                            .iter()
                            .map(|&v| v as f32)
                            .collect();
                        let drawn = sample::sample(&last, p, request.history, request.step.rng_counter);
                        out.sampled = Some(drawn.map_err(|e| ExecError::Sample(e.to_string()))?);
                    }
                }
                op => run.op(op, state)?,
            }
        }
        out.logits = run.get(plan.logits).iter().map(|&v| v as f32).collect();
        Ok(())
    }
}

impl Run<'_> {
    fn rows(&self, id: BufId) -> usize {
        match self.plan.buffers[id.index()].rows {
            Dim::Closed(rate) => self.step.closed(rate),
            d => self.plan.dim(d, self.step.tokens as usize, 0),
        }
    }

    fn get(&self, id: BufId) -> &[f64] {
        &self.floats[id.index()][..self.rows(id) * self.plan.width(id)]
    }

    fn row(&self, id: BufId, i: usize) -> &[f64] {
        let w = self.plan.width(id);
        &self.floats[id.index()][i * w..(i + 1) * w]
    }

    fn set_row(&mut self, id: BufId, i: usize, values: &[f64]) {
        let w = self.plan.width(id);
        self.floats[id.index()][i * w..(i + 1) * w].copy_from_slice(values);
    }

    fn vector(&self, id: WeightId) -> Result<Vec<f64>, ExecError> {
        let v = weight_values(&self.weights.weight(id)?);
        let v = v.map_err(|detail| ExecError::Mismatch {
            what: "weights",
            detail,
        })?;
        Ok(v.into_iter().map(f64::from).collect())
    }

    /// y = W x for `[out, in]`, y = x W for `[in, out]`.
    fn product(&self, id: WeightId, x: &[f64]) -> Result<Vec<f64>, ExecError> {
        let view = self.weights.weight(id)?;
        let w = self.vector(id)?;
        let (o, i) = (view.desc.rows, view.desc.cols);
        assert_eq!(i, x.len(), "{}", view.desc.name);
        let at = |r: usize, c: usize| match view.desc.layout {
            Layout::OutIn => w[r * i + c],
            Layout::InOut => w[c * o + r],
        };
        Ok((0..o).map(|r| (0..i).map(|c| at(r, c) * x[c]).sum()).collect())
    }

    fn op(&mut self, op: &Op, state: &mut OracleState) -> Result<(), ExecError> {
        let position = self.step.position as usize;
        match op {
            Op::Embed { table, out, copies } => {
                let w = self.vector(*table)?;
                let d = self.weights.weight(*table)?.desc.cols;
                for (i, &id) in self.request.ids.iter().enumerate() {
                    let row = w[id as usize * d..(id as usize + 1) * d].repeat(*copies);
                    self.set_row(*out, i, &row);
                }
            }
            Op::EmbedPosition { table, x } => {
                let w = self.vector(*table)?;
                let d = self.plan.width(*x);
                for i in 0..self.rows(*x) {
                    let row: Vec<f64> = self
                        .row(*x, i)
                        .iter()
                        .enumerate()
                        .map(|(c, v)| v + w[(position + i) * d + c])
                        .collect();
                    self.set_row(*x, i, &row);
                }
            }
            Op::Norm {
                kind,
                x,
                weight,
                bias,
                out,
                group,
                eps,
            } => {
                let w = weight.map(|w| self.vector(w)).transpose()?;
                let b = bias.map(|b| self.vector(b)).transpose()?;
                for i in 0..self.rows(*x) {
                    let mut row = self.row(*x, i).to_vec();
                    for g in row.chunks_mut(*group) {
                        let n = g.len() as f64;
                        let mean = if *kind == NormKind::Layer {
                            g.iter().sum::<f64>() / n
                        } else {
                            0.0
                        };
                        let var = g.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n;
                        for (c, v) in g.iter_mut().enumerate() {
                            *v = (*v - mean) / (var + f64::from(*eps)).sqrt();
                            *v = *v * w.as_ref().map_or(1.0, |w| w[c]) + b.as_ref().map_or(0.0, |b| b[c]);
                        }
                    }
                    self.set_row(*out, i, &row);
                }
            }
            Op::MatMul { x, weight, bias, out } => {
                let b = bias.map(|b| self.vector(b)).transpose()?;
                for i in 0..self.rows(*x) {
                    let mut y = self.product(*weight, self.row(*x, i))?;
                    if let Some(b) = &b {
                        y.iter_mut().zip(b).for_each(|(y, b)| *y += b);
                    }
                    self.set_row(*out, i, &y);
                }
            }
            Op::GroupedMatMul { x, weight, groups, out } => {
                let w = self.vector(*weight)?;
                let (n, k) = (self.plan.width(*out) / groups, self.plan.width(*x) / groups);
                for i in 0..self.rows(*x) {
                    let x = self.row(*x, i);
                    let y: Vec<f64> = (0..n * groups)
                        .map(|o| (0..k).map(|c| w[o * k + c] * x[o / n * k + c]).sum())
                        .collect();
                    self.set_row(*out, i, &y);
                }
            }
            Op::Rope {
                x,
                heads,
                head_dim,
                offset,
                dims,
                style,
                table,
                positions,
                inverse,
            } => {
                let freqs = self.plan.ropes[table.index()].freqs.clone();
                for i in 0..self.rows(*x) {
                    let t = match positions {
                        Positions::Tokens => position + i,
                        Positions::Closed { rate } => (self.step.first_closed(*rate) + i) * rate,
                    };
                    let mut row = self.row(*x, i).to_vec();
                    for h in 0..*heads {
                        for (k, f) in freqs.iter().enumerate() {
                            let base = h * head_dim + offset;
                            let (a, b) = match style {
                                RopeStyle::Interleaved => (base + 2 * k, base + 2 * k + 1),
                                RopeStyle::Half => (base + k, base + k + dims / 2),
                            };
                            let angle = t as f64 * f * if *inverse { -1.0 } else { 1.0 };
                            let (p, q) = (row[a], row[b]);
                            row[a] = p * angle.cos() - q * angle.sin();
                            row[b] = p * angle.sin() + q * angle.cos();
                        }
                    }
                    self.set_row(*x, i, &row);
                }
            }
            Op::CacheWrite { src, cache, rows } => {
                let first = match rows {
                    Positions::Tokens => position,
                    Positions::Closed { rate } => self.step.first_closed(*rate),
                };
                for i in 0..self.rows(*src) {
                    let row = self.row(*src, i).to_vec();
                    state.store(*cache, first + i, &row);
                }
            }
            Op::Hadamard { x, width, .. } => self.each(*x, *width, hadamard),
            Op::RoundTrip { x, width, format } => {
                let codec = row_format(*format);
                let (a, b) = format.record_bytes(*width, 0);
                self.each(*x, *width, |v| {
                    let mut bytes = vec![0u8; a + b];
                    codec.encode(v, 0, &mut bytes, &mut RoundTrip::default());
                    codec.decode(&bytes, 0, v);
                });
            }
            Op::Slice { x, offset, out } => {
                let w = self.plan.width(*out);
                for i in 0..self.rows(*x) {
                    let part = self.row(*x, i)[*offset..offset + w].to_vec();
                    self.set_row(*out, i, &part);
                }
            }
            Op::Add { x, y, out } => {
                for i in 0..self.rows(*x) {
                    let sum: Vec<f64> = self
                        .row(*x, i)
                        .iter()
                        .zip(self.row(*y, i))
                        .map(|(a, b)| a + b)
                        .collect();
                    self.set_row(*out, i, &sum);
                }
            }
            Op::Glu {
                gate,
                up,
                out,
                activation,
                limit,
                row_weights,
            } => {
                let l = limit.map_or(f64::INFINITY, f64::from);
                for i in 0..self.rows(*gate) {
                    let (g, u) = (self.row(*gate, i), self.row(*up, i));
                    let mut y: Vec<f64> = g
                        .iter()
                        .zip(u)
                        .map(|(&g, &u)| act(*activation, g.min(l)) * u.clamp(-l, l))
                        .collect();
                    if let Some(w) = row_weights {
                        let w = self.row(*w, i).to_vec();
                        let part = y.len() / w.len();
                        y.iter_mut().enumerate().for_each(|(c, y)| *y *= w[c / part]);
                    }
                    self.set_row(*out, i, &y);
                }
            }
            Op::TopP { x, group, p } => {
                for t in 0..self.rows(*x) {
                    let mut row = self.row(*x, t).to_vec();
                    for run in row.chunks_mut(*group) {
                        let total: f64 = run.iter().map(|v| v.abs()).sum();
                        let mut order: Vec<usize> = (0..run.len()).collect();
                        order.sort_by(|&a, &b| run[b].abs().total_cmp(&run[a].abs()).then(a.cmp(&b)));
                        let mut sum = 0.0;
                        for i in order {
                            if sum >= f64::from(*p) * total {
                                run[i] = 0.0;
                            }
                            sum += run[i].abs();
                        }
                    }
                    self.set_row(*x, t, &row);
                }
            }
            Op::ZeroHeads { x, head_dim, heads } => {
                for t in 0..self.rows(*x) {
                    let mut row = self.row(*x, t).to_vec();
                    for (c, v) in row.iter_mut().enumerate() {
                        if heads.contains(&((c / head_dim) as u32)) {
                            *v = 0.0;
                        }
                    }
                    self.set_row(*x, t, &row);
                }
            }
            Op::Activate { x, activation } => {
                for i in 0..self.rows(*x) {
                    let y: Vec<f64> = self.row(*x, i).iter().map(|&v| act(*activation, v)).collect();
                    self.set_row(*x, i, &y);
                }
            }
            Op::TakeOutput { x, out } => {
                let (from, to) = (self.rows(*x), self.rows(*out));
                for i in 0..to {
                    let row = self.row(*x, from - to + i).to_vec();
                    self.set_row(*out, i, &row);
                }
            }
            Op::Pool { .. } => self.pool(op, state)?,
            Op::IndexScore {
                q,
                weights,
                keys,
                heads,
                dim,
                rate,
                scale,
                out,
                ..
            } => {
                for t in 0..self.step.tokens as usize {
                    let mut scores = vec![0.0; self.plan.width(*out)];
                    for (j, s) in scores.iter_mut().enumerate().take(self.step.rows_visible(*rate, t)) {
                        let key = state.row(*keys, j);
                        for h in 0..*heads {
                            let q = &self.row(*q, t)[h * dim..(h + 1) * dim];
                            let z: f64 = q.iter().zip(key).map(|(a, b)| a * b).sum();
                            *s += f64::from(*scale) * self.row(*weights, t)[h] * z.max(0.0);
                        }
                    }
                    self.set_row(*out, t, &scores);
                }
            }
            Op::SelectTopK { scores, k, rate, out } => {
                for t in 0..self.step.tokens as usize {
                    let n = self.step.rows_visible(*rate, t);
                    let mut order: Vec<usize> = (0..n).collect();
                    let s = self.row(*scores, t);
                    order.sort_by(|&a, &b| s[b].total_cmp(&s[a]).then(a.cmp(&b)));
                    order.truncate(*k);
                    order.sort_unstable();
                    let row = &mut self.ints[out.index()][t * k..(t + 1) * k];
                    row.fill(-1);
                    row.iter_mut().zip(order).for_each(|(r, j)| *r = j as i32);
                }
            }
            Op::Attend { .. } => self.attend(op, state)?,
            Op::Route { .. } => self.route(op)?,
            Op::ExpertMatMul {
                x,
                experts,
                k,
                weights,
                per_slot,
                out,
            } => {
                for t in 0..self.rows(*x) {
                    let mut y = Vec::new();
                    for s in 0..*k {
                        let e = self.ints[experts.index()][t * k + s] as usize;
                        let row = self.row(*x, t);
                        let n = row.len() / k;
                        let x = if *per_slot { &row[s * n..(s + 1) * n] } else { row };
                        y.extend(self.product(weights[e], x)?);
                    }
                    self.set_row(*out, t, &y);
                }
            }
            Op::ExpertSum { x, k, shared, out } => {
                let d = self.plan.width(*out);
                for t in 0..self.rows(*x) {
                    let mut y = shared.map_or(vec![0.0; d], |s| self.row(s, t).to_vec());
                    for s in 0..*k {
                        for c in 0..d {
                            y[c] += self.row(*x, t)[s * d + c];
                        }
                    }
                    self.set_row(*out, t, &y);
                }
            }
            Op::HcMix { .. } => self.hc_mix(op)?,
            Op::HcCollapse { x, pre, streams, out } => {
                let d = self.plan.width(*out);
                for t in 0..self.rows(*x) {
                    let (x, p) = (self.row(*x, t), self.row(*pre, t));
                    let y: Vec<f64> = (0..d)
                        .map(|c| (0..*streams).map(|s| p[s] * x[s * d + c]).sum())
                        .collect();
                    self.set_row(*out, t, &y);
                }
            }
            Op::HcExpand {
                o,
                x,
                post,
                comb,
                streams,
            } => {
                let (n, d) = (*streams, self.plan.width(*o));
                for t in 0..self.rows(*o) {
                    let (o, x) = (self.row(*o, t), self.row(*x, t));
                    let (p, c) = (self.row(*post, t), self.row(*comb, t));
                    let value =
                        |k: usize, i: usize| p[k] * o[i] + (0..n).map(|j| c[j * n + k] * x[j * d + i]).sum::<f64>();
                    let y: Vec<f64> = (0..n * d).map(|i| value(i / d, i % d)).collect();
                    let x_id = if let Op::HcExpand { x, .. } = op {
                        *x
                    } else {
                        unreachable!()
                    };
                    self.set_row(x_id, t, &y);
                }
            }
            Op::Probe { .. } | Op::Sample { .. } => {}
        }
        Ok(())
    }

    fn each(&mut self, x: BufId, width: usize, f: impl Fn(&mut [f32])) {
        for i in 0..self.rows(x) {
            let mut row: Vec<f32> = self.row(x, i).iter().map(|&v| v as f32).collect();
            row.chunks_mut(width).for_each(&f);
            let row: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
            self.set_row(x, i, &row);
        }
    }
}

fn act(kind: Activation, x: f64) -> f64 {
    match kind {
        Activation::Silu => x / (1.0 + (-x).exp()),
        // Trapezoid rule for the normal distribution: independent of the CPU backend's series.
        Activation::Gelu => {
            let n = 20_000;
            let lo = -12.0f64;
            let h = (x - lo) / f64::from(n);
            let f = |u: f64| (-u * u / 2.0).exp();
            let inner: f64 = (1..n).map(|i| f(lo + h * f64::from(i))).sum();
            x * h * (inner + (f(lo) + f(x)) / 2.0) / (2.0 * std::f64::consts::PI).sqrt()
        }
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0).powi(2),
        Activation::Identity => x,
    }
}

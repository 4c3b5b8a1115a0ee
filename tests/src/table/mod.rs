//! One table of cases per op: shapes x dtypes, a device's backend against the CPU oracle. Plans of a few ops made by hand.
//! The emulator and the program for GPU machines run the same table.

mod attention;
mod choices;
mod far;
mod far_large;
mod many;
mod packed;
mod products;
mod rows;
mod sites;

use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{
    Backend, BaseOp, Block, BufId, BufferDesc, CacheDesc, CacheFormat, CacheId, CacheRows, Component, Dim, ElemType,
    ExecError, Format, LayerStats, Layout, Op, Phase, Plan, RopeId, RopeTable, SamplerParams, ScaleFormat, ScaleSpec,
    State, StepOutput, StepParams, StepRequest, WeightDesc, WeightId, WeightSource, WeightView,
};

/// A small deterministic generator (SplitMix64).
#[derive(Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Roughly normal, standard deviation `s`.
    pub fn normal(&mut self, s: f32) -> f32 {
        (0..4).map(|_| self.unit()).sum::<f32>() * s * 0.866
    }
}

struct Weights(Vec<(WeightDesc, Vec<u8>, Vec<u8>)>);

impl WeightSource for Weights {
    fn weight(&self, id: WeightId) -> Result<WeightView<'_>, ExecError> {
        let (desc, data, scales) = &self.0[id.index()];
        Ok(WeightView { desc, data, scales })
    }
}

/// A plan in the making, with its weights.
pub struct Case {
    pub plan: Plan,
    weights: Weights,
    pub random: Random,
}

/// What a run gave: probes of every step, drawn tokens, decoded cache rows at the end.
#[derive(Default)]
pub struct Ran {
    pub probes: Vec<(String, usize, Vec<f32>)>,
    pub drawn: Vec<u32>,
    pub logprobs: Vec<f32>,
    pub rows: Vec<Vec<f32>>,
    /// What the plan's one layer counted, step by step.
    pub stats: Vec<LayerStats>,
}

impl Case {
    /// No ops yet; steps of up to `tokens` tokens, contexts of up to `context`.
    pub fn new(tokens: usize, context: usize) -> Self {
        Self {
            plan: Plan {
                phase: if tokens == 1 { Phase::Decode } else { Phase::Prefill },
                token_bucket: tokens,
                context_bucket: context,
                all_logits: true,
                ops: Vec::new(),
                buffers: Vec::new(),
                weights: Vec::new(),
                caches: Vec::new(),
                ropes: Vec::new(),
                layers: 1,
                experts: 0,
                logits: BufId(0),
                hash: 0,
            },
            weights: Weights(Vec::new()),
            random: Random(0x5eed),
        }
    }

    pub fn op(&mut self, op: Op) {
        self.plan.ops.push(BaseOp {
            op,
            name: "case".into(),
            layer: Some(0),
            block: Block::Ffn,
        });
    }

    pub fn buffer(&mut self, rows: Dim, width: Dim, elem: ElemType) -> BufId {
        let id = BufId(self.plan.buffers.len() as u32);
        self.plan.buffers.push(BufferDesc {
            name: format!("b{}", id.0),
            rows,
            width,
            elem,
        });
        id
    }

    pub fn floats(&mut self, width: usize) -> BufId {
        self.buffer(Dim::Tokens, Dim::Const(width), ElemType::F32)
    }

    /// A weight with given bytes.
    pub fn stored(&mut self, rows: usize, cols: usize, format: Format, data: Vec<u8>) -> WeightId {
        let id = WeightId(self.plan.weights.len() as u32);
        let desc = WeightDesc {
            name: format!("w{}", id.0),
            rows,
            cols,
            format,
            layout: Layout::OutIn,
            scales: None,
        };
        self.plan.weights.push(desc.clone());
        self.weights.0.push((desc, data, Vec::new()));
        id
    }

    /// f32 values.
    pub fn values(&mut self, rows: usize, cols: usize, values: &[f32]) -> WeightId {
        let data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.stored(rows, cols, Format::F32, data)
    }

    /// Random f32 values of standard deviation `s`.
    pub fn normal(&mut self, rows: usize, cols: usize, s: f32) -> WeightId {
        let values: Vec<f32> = (0..rows * cols).map(|_| self.random.normal(s)).collect();
        self.values(rows, cols, &values)
    }

    /// Random bytes of a format, with scales that keep values near 1.
    pub fn weight(&mut self, rows: usize, cols: usize, format: Format, layout: Layout) -> WeightId {
        let (r, c) = if layout == Layout::OutIn {
            (rows, cols)
        } else {
            (cols, rows)
        };
        let bytes = r * format.row_bytes(c).unwrap();
        let mut data: Vec<u8> = (0..bytes).map(|_| self.random.bits() as u8).collect();
        let f16 = |v: f32| half::f16::from_f32(v).to_le_bytes();
        match format {
            Format::F32 => data
                .chunks_exact_mut(4)
                .for_each(|b| b.copy_from_slice(&self.random.normal(0.5).to_le_bytes())),
            Format::F16 => data
                .chunks_exact_mut(2)
                .for_each(|b| b.copy_from_slice(&f16(self.random.normal(0.5)))),
            Format::Bf16 => data.chunks_exact_mut(2).for_each(|b| {
                b.copy_from_slice(&half::bf16::from_f32(self.random.normal(0.5)).to_le_bytes());
            }),
            // Exponents up to 7 of 15 and no NaN.
            Format::F8E4m3 => data.iter_mut().for_each(|b| *b &= 0xbf),
            _ => {
                let scales: &[usize] = match format {
                    Format::Q4_1 | Format::Q4K => &[0, 2],
                    Format::Q6K => &[208],
                    Format::Fp4E2m1 => &[],
                    _ => &[0],
                };
                for block in data.chunks_exact_mut(format.block_bytes()) {
                    for &at in scales {
                        let v = 0.01 + 0.01 * self.random.unit();
                        block[at..at + 2].copy_from_slice(&f16(v));
                    }
                }
            }
        }
        let id = self.stored(rows, cols, format, data);
        self.weights.0[id.index()].0.layout = layout;
        self.plan.weights[id.index()].layout = layout;
        match format {
            Format::F8E4m3 => self.scale(id, ScaleFormat::E8m0, 128, 128),
            Format::Fp4E2m1 => self.scale(id, ScaleFormat::E8m0, 1, 32),
            _ => {}
        }
        id
    }

    /// Gives a weight random scales.
    pub fn scale(&mut self, id: WeightId, format: ScaleFormat, block_rows: usize, block_cols: usize) {
        let (desc, _, scales) = &mut self.weights.0[id.index()];
        desc.scales = Some(ScaleSpec {
            format,
            block_rows,
            block_cols,
        });
        self.plan.weights[id.index()].scales = desc.scales;
        let n = desc.rows.div_ceil(block_rows) * desc.cols.div_ceil(block_cols);
        *scales = (0..n)
            .flat_map(|_| match format {
                ScaleFormat::E8m0 => vec![124 + (self.random.bits() % 4) as u8],
                ScaleFormat::Bf16 => half::bf16::from_f32(0.3 + 0.2 * self.random.unit())
                    .to_le_bytes()
                    .to_vec(),
                ScaleFormat::F32 => (0.3 + 0.2 * self.random.unit()).to_le_bytes().to_vec(),
            })
            .collect();
    }

    /// One product of an input of `cols` values, looked at; its matrix.
    pub fn product(&mut self, rows: usize, cols: usize, format: Format) -> WeightId {
        let x = self.input(cols, 1.0);
        let weight = self.weight(rows, cols, format, Layout::OutIn);
        let out = self.floats(rows);
        self.op(Op::MatMul {
            x,
            weight,
            bias: None,
            out,
        });
        self.probe(out, "product");
        weight
    }

    /// A buffer `[tokens, width]` filled by an embedding: row t of `values` for token t of the step.
    pub fn input(&mut self, width: usize, s: f32) -> BufId {
        let tokens = self.plan.token_bucket.max(57) + 7;
        let table = self.normal(tokens, width, s);
        let out = self.floats(width);
        self.op(Op::Embed { table, out, copies: 1 });
        out
    }

    /// The same with given rows.
    pub fn given(&mut self, width: usize, values: &[f32]) -> BufId {
        let table = self.values(values.len() / width, width, values);
        let out = self.floats(width);
        self.op(Op::Embed { table, out, copies: 1 });
        out
    }

    pub fn probe(&mut self, x: BufId, name: &str) {
        self.op(Op::Probe { x, name: name.into() });
    }

    pub fn cache(&mut self, desc: CacheDesc) -> CacheId {
        self.plan.caches.push(desc);
        CacheId(self.plan.caches.len() as u32 - 1)
    }

    /// A growing or ring cache.
    pub fn rows(
        &mut self,
        component: Component,
        rows: CacheRows,
        records: usize,
        (width, rope): (usize, usize),
        format: CacheFormat,
    ) -> CacheId {
        self.cache(CacheDesc {
            layer: 0,
            component,
            rows,
            records,
            width,
            rope,
            format,
        })
    }

    pub fn rope_table(&mut self, pairs: usize) -> RopeId {
        let freqs = (0..pairs).map(|i| 10000f64.powf(-(i as f64) / pairs as f64)).collect();
        self.plan.ropes.push(RopeTable { freqs });
        RopeId(self.plan.ropes.len() as u32 - 1)
    }

    /// Runs steps of these sizes from `position` on; ids of a step are (first id of it) + 0, 1, 2, ...
    pub fn run(&self, backend: &dyn Backend, position: u64, steps: &[usize], sampler: Option<&SamplerParams>) -> Ran {
        let mut state = backend
            .new_state(&self.plan.caches, self.plan.context_bucket as u64)
            .unwrap();
        self.run_on(backend, &mut *state, position, steps, sampler)
    }

    pub fn run_on(
        &self,
        backend: &dyn Backend,
        state: &mut dyn State,
        mut position: u64,
        steps: &[usize],
        sampler: Option<&SamplerParams>,
    ) -> Ran {
        let mut ran = self.steps(backend, state, position, steps, sampler);
        position += steps.iter().sum::<usize>() as u64;
        let plan = &self.plan;
        for (i, c) in plan.caches.iter().enumerate() {
            let rows = match c.rows {
                CacheRows::Growing { rate } => position as usize / rate,
                CacheRows::Ring { capacity, .. } => capacity.min(position as usize),
            };
            ran.rows.push(state.read_rows(CacheId(i as u32), 0, rows).unwrap());
        }
        ran
    }

    /// What the steps gave, without cache rows.
    fn steps(
        &self,
        backend: &dyn Backend,
        state: &mut dyn State,
        mut position: u64,
        steps: &[usize],
        sampler: Option<&SamplerParams>,
    ) -> Ran {
        let mut ran = Ran::default();
        let mut history: Vec<u32> = Vec::new();
        for &n in steps {
            let first = history.len() as u32 % 7;
            let ids: Vec<u32> = (0..n as u32).map(|i| first + i).collect();
            history.extend(&ids);
            let mut out = self.step(backend, state, position, (&ids, &history), sampler);
            ran.probes.append(&mut out.probes);
            ran.stats.append(&mut out.layers);
            if let Some(s) = out.sampled {
                ran.drawn.push(s.token);
                ran.logprobs.push(s.logprob);
            }
            position += n as u64;
        }
        ran
    }

    /// Nanoseconds that op `op`, and what runs with it, takes in a step of `tokens` tokens: the median of `repeats` steps whose
    /// launches are timed.
    pub fn op_nanos(&self, backend: &dyn Backend, op: usize, tokens: usize, repeats: usize) -> f64 {
        let mut state = backend.new_state(&self.plan.caches, tokens as u64).unwrap();
        let ids: Vec<u32> = (0..tokens as u32).collect();
        let request = StepRequest {
            step: StepParams::new(0, tokens),
            ids: &ids,
            history: &ids,
            sampler: None,
            trace: true,
            ahead: false,
            cancel: None,
        };
        let mut out = StepOutput::default();
        let mut times: Vec<f64> = Vec::new();
        // The first two make the graph.
        for i in 0..repeats + 2 {
            backend
                .run(&self.plan, &self.weights, state.as_mut(), &request, &mut out)
                .unwrap_or_else(|e| panic!("{}: {e}", backend.name()));
            let of_op = out.times.iter().filter(|t| t.op as usize == op);
            times.extend(of_op.map(|t| t.nanos).filter(|_| i >= 2));
        }
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    }

    /// One step of these tokens.
    pub fn step(
        &self,
        backend: &dyn Backend,
        state: &mut dyn State,
        position: u64,
        (ids, history): (&[u32], &[u32]),
        sampler: Option<&SamplerParams>,
    ) -> StepOutput {
        let mut plan = self.plan.clone();
        // Any number that differs from case to case.
        plan.hash = self.random.0;
        let request = StepRequest {
            step: StepParams::new(position, ids.len()),
            ids,
            history,
            sampler,
            trace: false,
            ahead: false,
            cancel: None,
        };
        let mut out = StepOutput::default();
        backend
            .run(&plan, &self.weights, state, &request, &mut out)
            .unwrap_or_else(|e| panic!("{}: {e}", backend.name()));
        out
    }
}

/// The oracle: the CPU backend without any rounding of activations.
pub fn oracle() -> CpuBackend {
    CpuBackend::with(Cpu::exact(1))
}

/// Compares two runs: probes row by row by relative L2 difference (`limit` 0: the same bits), cache rows bit by bit if
/// `bits`.
pub fn compare(what: &str, ours: &Ran, want: &Ran, limit: f64, bits: bool) {
    assert_eq!(ours.probes.len(), want.probes.len(), "{what}");
    for ((name, width, a), (_, _, b)) in ours.probes.iter().zip(&want.probes) {
        assert_eq!(a.len(), b.len(), "{what}: {name}");
        for (row, (a, b)) in a.chunks_exact(*width).zip(b.chunks_exact(*width)).enumerate() {
            if limit == 0.0 {
                let same = a.iter().zip(b).all(|(x, y)| x.to_bits() == y.to_bits());
                assert!(same, "{what}: {name} row {row}: {a:?} instead of {b:?}");
                continue;
            }
            let e = crate::goldens::relative(a, b);
            assert!(e <= limit, "{what}: {name} row {row} differs by {e:.2e}");
        }
    }
    assert_eq!(ours.drawn, want.drawn, "{what}");
    for (c, (a, b)) in ours.rows.iter().zip(&want.rows).enumerate() {
        assert_eq!(a.len(), b.len(), "{what}: cache {c}");
        let same = a
            .iter()
            .zip(b)
            .all(|(x, y)| x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan());
        assert!(same || !bits, "{what}: cache {c} holds other bits");
    }
}

/// Summation order and last bits of exp.
pub const CLOSE: f64 = 1e-5;

/// Makes a fresh backend.
pub type Make = Box<dyn Fn() -> Box<dyn Backend>>;

/// The backends a table is run on: the first is compared with the oracle, the others with the first, bit by bit.
pub struct On(pub Vec<Make>);

impl On {
    /// A fresh one of the first kind.
    pub fn first(&self) -> Box<dyn Backend> {
        self.0[0]()
    }
}

/// Against the oracle within `limit` (0: the same bits), and the same bits on every backend.
pub fn check(on: &On, what: &str, case: &Case, position: u64, steps: &[usize], limit: f64) {
    check_sampled(on, what, case, position, steps, limit, None);
}

/// As [`check`], drawing a token in every step.
pub fn check_sampled(
    on: &On,
    what: &str,
    case: &Case,
    position: u64,
    steps: &[usize],
    limit: f64,
    sampler: Option<&SamplerParams>,
) {
    let want = case.run(&oracle(), position, steps, sampler);
    let ours = case.run(on.first().as_ref(), position, steps, sampler);
    compare(what, &ours, &want, limit, limit == 0.0);
    for (a, b) in ours.logprobs.iter().zip(&want.logprobs) {
        assert!((a - b).abs() < 1e-5, "{what}: log probability {a} instead of {b}");
    }
    for (i, make) in on.0.iter().enumerate().skip(1) {
        let other = case.run(make().as_ref(), position, steps, sampler);
        compare(
            &format!("{what}, backend {i} against the first"),
            &other,
            &ours,
            0.0,
            true,
        );
    }
}

/// A group of cases by name.
pub type Group = (&'static str, fn(&On));

/// Every group.
pub const GROUPS: [Group; 35] = [
    ("embeddings", products::embeddings),
    ("products in every format", products::products_in_every_format),
    (
        "products with scales of every kind",
        products::products_with_scales_of_every_kind,
    ),
    ("products of large matrices", products::products_of_large_matrices),
    ("products stored the other way", products::products_stored_the_other_way),
    ("grouped products", products::grouped_products),
    ("products of one token", packed::products_of_one_token),
    ("products of many tokens", products::products_of_many_tokens),
    ("experts of many tokens", choices::experts_of_many_tokens),
    ("gates of many tokens", choices::gates_of_many_tokens),
    ("norms", rows::norms),
    ("rotations", rows::rotations),
    ("gates and sums", rows::gates_and_sums),
    ("heads and units left out", rows::heads_and_units_left_out),
    ("cache rows have the cpus bytes", rows::cache_rows_have_the_cpus_bytes),
    ("rounding and hadamard", rows::rounding_and_hadamard),
    ("pooling", rows::pooling),
    ("streams", rows::streams),
    ("sites between blocks", sites::sites_between_blocks),
    (
        "the indexer selects what the cpu selects",
        attention::the_indexer_selects_what_the_cpu_selects,
    ),
    ("dense attention", attention::dense_attention),
    (
        "dense attention over stored rows",
        attention::dense_attention_over_stored_rows,
    ),
    ("window and compressed rows", attention::window_and_compressed_rows),
    ("attention of many tokens", many::attention_of_many_tokens),
    ("rotated rows of many tokens", many::rotated_rows_of_many_tokens),
    ("attention over long contexts", many::attention_over_long_contexts),
    ("latents of many tokens", many::latents_of_many_tokens),
    ("score expressions", attention::score_expressions),
    ("routers and experts", choices::routers_and_experts),
    ("draws", choices::draws),
    ("attention at 128k tokens", far::attention),
    ("latents at 128k tokens", far::latents),
    ("indexers at 128k tokens", far::indexers),
    ("pooling at 128k tokens", far::pooling),
    ("cache rows at 128k tokens", far::cache_rows),
];

/// Cases that take a GPU, by name; each says what it ran.
pub type Large = (&'static str, fn(&On) -> String);

/// Every group of those.
pub const LARGE: [Large; 4] = [
    ("attention at 128k tokens, many heads", far_large::attention),
    ("choices by score at 128k tokens", far_large::choices),
    ("MODEL1 at 128k tokens", far_large::model1),
    ("caches of more than 4 GiB", far_large::beyond),
];

//! Steps behind 131,072 tokens, over caches that are filled with made-up records: what a long context asks of addresses,
//! splits and sums. Few heads, so that the emulator has seconds to do. The CPU adds up 131,072 values in 32 bits, one after the
//! other, and is off by 1.5e-5 then; plain attention is held to double precision instead.

use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{
    Backend, CacheDesc, CacheFormat, CacheId, CacheRows, Component, Dim, ElemType, Mask, Op, Positions, State,
};

use super::attention::{Queries, dense, indexer};
use super::many::Latents;
use super::{CLOSE, Case, On, Ran, compare};
use crate::goldens::relative;
use crate::synthetic::{Gates, fill};

/// Tokens of a long context.
pub(super) const LONG: usize = 1 << 17;

/// What the CPU's sums over 131,072 keys lose, twice.
pub(super) const FAR: f64 = 3e-5;
/// What a kernel may lose beside double precision.
const EXACT: f64 = 6e-6;

/// Where a case begins and what it does there.
pub(super) struct Far<'a> {
    pub what: &'a str,
    /// Tokens whose records are made up.
    pub position: usize,
    pub steps: &'a [usize],
    pub gates: Gates,
    pub limit: f64,
    /// Whether the last backend has to give the same bits.
    pub twice: bool,
    /// Whether the attention is held to double precision.
    pub double: bool,
}

/// Steps that end with a context of `end` tokens, over even gates.
pub(super) fn until<'a>(end: usize, what: &'a str, steps: &'a [usize]) -> Far<'a> {
    Far {
        what,
        position: end - steps.iter().sum::<usize>(),
        steps,
        gates: Gates::Even,
        limit: FAR,
        twice: false,
        double: false,
    }
}

/// Against the oracle within the limit, cache rows bit by bit. Returns the largest relative difference of a row of probes.
pub(super) fn far(on: &On, case: &Case, far: &Far<'_>) -> f64 {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(16));
    let want = run(case, &CpuBackend::with(Cpu::exact(threads)), far, far.double);
    let ours = run(case, on.first().as_ref(), far, false);
    compare(far.what, &ours, &want, far.limit, true);
    if let (true, Some(last)) = (far.twice, on.0.last()) {
        let other = run(case, last().as_ref(), far, false);
        compare(&format!("{}, another backend", far.what), &other, &ours, 0.0, true);
    }
    let rows = ours.probes.iter().zip(&want.probes);
    rows.flat_map(|((_, w, a), (_, _, b))| a.chunks(*w).zip(b.chunks(*w)).map(|(a, b)| relative(a, b)))
        .fold(0.0, f64::max)
}

fn run(case: &Case, backend: &dyn Backend, far: &Far<'_>, double: bool) -> Ran {
    let context = case.plan.context_bucket as u64;
    let mut state = backend.new_state(&case.plan.caches, context).unwrap();
    fill(state.as_mut(), far.position as u64, far.gates);
    let mut ran = case.steps(backend, state.as_mut(), far.position as u64, far.steps, None);
    if double {
        in_double(case, state.as_ref(), far, &mut ran);
    }
    let end = far.position + far.steps.iter().sum::<usize>();
    for (i, desc) in case.plan.caches.iter().enumerate() {
        // Rows that went through `exp` may differ in the last bit, and then in a code.
        let weighed = matches!(desc.component, Component::Index)
            || matches!(desc.component, Component::Rows) && far.gates == Gates::Random;
        if !weighed {
            ran.rows.extend(rows(state.as_ref(), i, desc, (far.position, end)));
        }
    }
    ran
}

/// Puts the attention of every step in double precision in place of what it was: `[heads, head_dim]` per token, from the probe
/// `q` and the rows in the caches.
fn in_double(case: &Case, state: &dyn State, far: &Far<'_>, ran: &mut Ran) {
    let attend = case.plan.ops.iter().map(|o| &o.op);
    let Some(Op::Attend {
        heads,
        kv_heads,
        head_dim: d,
        scale,
        sources,
        sinks,
        mask,
        ..
    }) = attend.clone().find(|o| matches!(o, Op::Attend { .. }))
    else {
        panic!("{}: no attention", far.what);
    };
    let end = far.position + far.steps.iter().sum::<usize>();
    let [keys, values] = [sources[0].keys, sources[0].values].map(|c| state.read_rows(c, 0, end).unwrap());
    let sinks = sinks.map(|id| case.weights.0[id.index()].1.chunks_exact(4));
    let sinks: Vec<f64> = sinks.map_or(vec![f64::NEG_INFINITY; *heads], |all| {
        all.map(|b| f64::from(f32::from_le_bytes([b[0], b[1], b[2], b[3]])))
            .collect()
    });
    let queries: Vec<f32> = of(ran, "q").flat_map(|p| p.2.clone()).collect();
    let mut position = far.position;
    let mut next = queries.chunks_exact(heads * d);
    for probe in ran.probes.iter_mut().filter(|p| p.0 == "attention") {
        for (out, q) in probe.2.chunks_exact_mut(heads * d).zip(&mut next) {
            let sees = |row: &usize| match mask {
                Mask::SlidingWindow { window, sinks } => row + window > position || row < sinks,
                _ => true,
            };
            let rows: Vec<usize> = (0..=position).filter(sees).collect();
            for h in 0..*heads {
                let at = |row: usize| (row * kv_heads + h / (heads / kv_heads)) * d;
                let q = &q[h * d..(h + 1) * d];
                let dot = |k: &[f32]| q.iter().zip(k).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
                let scores = rows.iter().map(|r| dot(&keys[at(*r)..at(*r) + d]) * f64::from(*scale));
                let scores: Vec<f64> = scores.collect();
                let top = scores.iter().copied().fold(sinks[h], f64::max);
                let (mut sum, mut acc) = ((sinks[h] - top).exp(), vec![0f64; *d]);
                for (row, z) in rows.iter().zip(scores) {
                    let e = (z - top).exp();
                    sum += e;
                    let v = &values[at(*row)..at(*row) + d];
                    acc.iter_mut().zip(v).for_each(|(a, v)| *a += e * f64::from(*v));
                }
                let out = &mut out[h * d..(h + 1) * d];
                out.iter_mut().zip(acc).for_each(|(o, a)| *o = (a / sum) as f32);
            }
            position += 1;
        }
    }
}

/// Probes of a name, step by step.
fn of<'a>(ran: &'a Ran, name: &'a str) -> impl Iterator<Item = &'a (String, usize, Vec<f32>)> {
    ran.probes.iter().filter(move |p| p.0 == name)
}

/// [`dense`], with its queries for [`in_double`].
pub(super) fn dense_and_q(c: &mut Case, shape: (usize, usize, usize), format: CacheFormat, mask: Mask, sinks: bool) {
    dense(c, shape, format, mask, sinks);
    let q = c.plan.ops.iter().find_map(|o| match o.op {
        Op::Attend { q, .. } => Some(q),
        _ => None,
    });
    c.probe(q.unwrap(), "q");
}

/// [`until`], held to double precision.
pub(super) fn exactly<'a>(end: usize, what: &'a str, steps: &'a [usize]) -> Far<'a> {
    Far {
        double: true,
        limit: EXACT,
        ..until(end, what, steps)
    }
}

/// What the steps wrote, what lies before it, and a few rows that nobody should have touched.
fn rows(state: &dyn State, cache: usize, desc: &CacheDesc, (from, to): (usize, usize)) -> Vec<Vec<f32>> {
    let ranges = match desc.rows {
        CacheRows::Ring { capacity, .. } => vec![(0, capacity)],
        CacheRows::Growing { rate } => {
            let (from, to) = (from / rate, to / rate);
            vec![(0, 2), (from / 2 - 1, 2), (from - 3, to - from + 3)]
        }
    };
    let read = |(first, count)| state.read_rows(CacheId(cache as u32), first, count).unwrap();
    ranges.into_iter().map(read).collect()
}

pub(super) fn attention(on: &On) {
    let window = Mask::SlidingWindow { window: 300, sinks: 5 };
    let cases = [
        (CacheFormat::F32, (4, 2, 64), 1, Mask::None, &[1][..]),
        (CacheFormat::Bf16, (4, 2, 64), 1, Mask::None, &[1]),
        (CacheFormat::Fp8B64, (2, 1, 128), 1, Mask::None, &[1]),
        (CacheFormat::Fp4, (2, 1, 32), 8, Mask::None, &[5]),
        (CacheFormat::Fp8V32, (2, 1, 128), 1, Mask::None, &[1]),
        (CacheFormat::Bf16, (2, 1, 20), 1, Mask::None, &[1]),
        (CacheFormat::Fp8B64, (2, 1, 64), 64, window, &[64, 7]),
        (CacheFormat::F32, (2, 2, 128), 1, window, &[1, 1]),
    ];
    for (i, (format, shape, bucket, mask, steps)) in cases.into_iter().enumerate() {
        let mut c = Case::new(bucket, LONG);
        dense_and_q(&mut c, shape, format, mask, i % 2 == 0);
        let what = format!("{format:?} {shape:?} {mask:?}, up to {bucket} tokens");
        far(on, &c, &exactly(LONG, &what, steps));
    }
    // From one bucket's size into the next one's.
    let mut c = Case::new(8, 2 * LONG);
    dense_and_q(&mut c, (2, 1, 32), CacheFormat::F32, Mask::None, false);
    far(on, &c, &exactly(LONG + 4, "across 131,072 tokens", &[5, 1]));
}

pub(super) fn latents(on: &On) {
    let model1 = (512, 64, CacheFormat::Fp8Model1);
    let cases = [
        // Rows chosen by an indexer, in the numbers of the released models.
        (2, model1, (4, Some(512)), (CacheFormat::Fp8B64, 4, 32), 1, &[1, 1][..]),
        (4, model1, (4, Some(512)), (CacheFormat::Fp4, 2, 64), 5, &[5, 3]),
        (
            2,
            (512, 64, CacheFormat::Bf16),
            (4, Some(512)),
            (CacheFormat::Fp8B64, 4, 32),
            1,
            &[1, 1],
        ),
        // All rows of the heavily compressed kind, and all of the other one.
        (4, model1, (128, None), (CacheFormat::F32, 1, 4), 1, &[1]),
        (2, model1, (128, None), (CacheFormat::F32, 1, 4), 16, &[16]),
        (1, model1, (4, None), (CacheFormat::F32, 1, 4), 1, &[1]),
        (
            2,
            (512, 64, CacheFormat::F32),
            (4, Some(512)),
            (CacheFormat::F32, 4, 32),
            1,
            &[1],
        ),
        (
            3,
            (32, 8, CacheFormat::Bf16),
            (16, None),
            (CacheFormat::F32, 1, 4),
            24,
            &[24],
        ),
        (
            3,
            (32, 8, CacheFormat::F32),
            (4, None),
            (CacheFormat::F32, 1, 4),
            1,
            &[1],
        ),
    ];
    for (heads, (width, rope, format), (rate, chosen), index, bucket, steps) in cases {
        let mut c = Case::new(bucket, LONG);
        let latents = Latents {
            heads,
            width,
            rope,
            format,
            rate,
            chosen,
            window: 128,
            sinks: true,
            index,
        };
        latents.plan(&mut c);
        let what = format!("{format:?} {heads} x {width}, rate {rate}, {chosen:?}, up to {bucket} tokens");
        far(on, &c, &until(LONG, &what, steps));
    }
}

/// Scores of every row and the rows chosen, by a token that sees 32,768.
pub(super) fn indexers(on: &On) {
    for format in [
        CacheFormat::F32,
        CacheFormat::Bf16,
        CacheFormat::Fp8B64,
        CacheFormat::Fp8V32,
        CacheFormat::Fp4,
    ] {
        let mut c = Case::new(1, LONG);
        indexer(&mut c, format, (5, 32), (4, 512), Queries::Random);
        let scores = c.plan.ops.iter().find_map(|o| match o.op {
            Op::IndexScore { out, .. } => Some(out),
            _ => None,
        });
        c.probe(scores.unwrap(), "scores");
        let what = format!("indexer over {format:?} rows");
        far(on, &c, &until(LONG, &what, &[1]));
        // What tensor cores score.
        let mut c = Case::new(1, LONG);
        indexer(&mut c, format, (16, 128), (4, 512), Queries::Turned);
        let what = format!("indexer of 16 x 128 over {format:?} rows");
        far(on, &c, &until(LONG, &what, &[1]));
        let mut c = Case::new(12, 2 * LONG);
        indexer(&mut c, format, (3, 32), (4, 512), Queries::Random);
        let what = format!("indexer over {format:?} rows, across 131,072 tokens");
        let across = until(LONG + 7, &what, &[12, 1, 1]);
        far(on, &c, &Far { limit: 1e-9, ..across });
    }
}

pub(super) fn pooling(on: &On) {
    for (rate, overlap) in [(4, true), (128, false)] {
        let d = 72;
        let width = if overlap { 2 * d } else { d };
        let mut c = Case::new(8, 2 * LONG);
        let (kv, gate) = (c.input(width, 1.0), c.input(width, 3.0));
        let ape = c.normal(rate, width, 1.0);
        let slots = if overlap { 2 * rate } else { rate };
        let ring = CacheRows::Ring {
            capacity: slots,
            live: slots,
            block: 1,
        };
        let state = c.rows(Component::Pooling, ring, 1, (2 * width, 0), CacheFormat::F32);
        let out = c.buffer(Dim::Closed(rate), Dim::Const(d), ElemType::F32);
        c.op(Op::Pool {
            kv,
            gate,
            ape,
            state,
            out,
            rate,
            overlap,
        });
        let growing = CacheRows::Growing { rate };
        let cache = c.rows(Component::Rows, growing, 1, (d, 0), CacheFormat::F32);
        c.op(Op::CacheWrite {
            src: out,
            cache,
            rows: Positions::Closed { rate },
        });
        c.probe(out, "rows");
        let what = format!("pool rate {rate}, overlap {overlap}");
        let across = until(LONG + 6, &what, &[8, 1, 1, 1, 3]);
        let random = Far {
            gates: Gates::Random,
            limit: CLOSE,
            ..across
        };
        far(on, &c, &random);
    }
}

pub(super) fn cache_rows(on: &On) {
    let formats = [
        (CacheFormat::F32, 24, 8),
        (CacheFormat::Bf16, 32, 0),
        (CacheFormat::Fp8Model1, 512, 64),
        (CacheFormat::Fp8V32, 128, 0),
        (CacheFormat::Fp8B64, 130, 2),
        (CacheFormat::Fp4, 64, 0),
    ];
    for (format, width, rope) in formats {
        let mut c = Case::new(8, 2 * LONG);
        let src = c.input(3 * width, 1.0);
        // A ring that the position is no multiple of.
        for rows in [
            CacheRows::Growing { rate: 1 },
            CacheRows::Ring {
                capacity: 1150,
                live: 128,
                block: 1,
            },
        ] {
            let cache = c.rows(Component::Keys, rows, 3, (width, rope), format);
            c.op(Op::CacheWrite {
                src,
                cache,
                rows: Positions::Tokens,
            });
        }
        c.probe(src, "rows");
        let what = format!("{format:?} rows of 3 x {width}");
        far(on, &c, &until(LONG + 5, &what, &[8, 1, 3]));
    }
}

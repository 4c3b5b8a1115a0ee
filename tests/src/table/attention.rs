//! Attention over every kind of source, and the indexer.

use kernels::ir::{
    BufId, CacheFormat, CacheId, CacheRows, Component, Dim, ElemType, KeyRows, KeySource, Mask, NormKind, Op,
    Positions, RopeId, RopeStyle, ScoreOp, ScoreProgram,
};

use super::{CLOSE, Case, On, Random, check};

/// An indexer's queries.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Queries {
    Random,
    /// All scores are equal.
    Zero,
    /// Random ones, rotated and, for keys in FP4, rounded to that.
    Turned,
}

/// Rotates the last half of every head of an indexer's queries and rounds them to FP4.
fn turn_queries(c: &mut Case, x: BufId, (heads, dim): (usize, usize), rounded: bool) {
    let table = c.rope_table(dim / 4);
    c.op(Op::Rope {
        x,
        heads,
        head_dim: dim,
        offset: dim / 2,
        dims: dim / 2,
        style: RopeStyle::Interleaved,
        table,
        positions: Positions::Tokens,
        inverse: false,
    });
    if rounded {
        c.op(Op::Hadamard {
            x,
            width: dim,
            rows: Positions::Tokens,
        });
        c.op(Op::RoundTrip {
            x,
            width: dim,
            format: CacheFormat::Fp4,
        });
    }
}

/// An indexer over rows of `rate`: keys are written step by step. Returns what it chooses.
pub(super) fn indexer(
    c: &mut Case,
    format: CacheFormat,
    (heads, dim): (usize, usize),
    (rate, k): (usize, usize),
    queries: Queries,
) -> BufId {
    let ring = CacheRows::Ring {
        capacity: rate,
        live: rate,
        block: 1,
    };
    let (kv, gate) = (c.input(dim, 1.0), c.input(dim, 1.0));
    let ape = c.normal(rate, dim, 0.1);
    let state = c.rows(Component::IndexPooling, ring, 1, (2 * dim, 0), CacheFormat::F32);
    let out = c.buffer(Dim::Closed(rate), Dim::Const(dim), ElemType::F32);
    c.op(Op::Pool {
        kv,
        gate,
        ape,
        state,
        out,
        rate,
        overlap: false,
    });
    let keys = c.rows(Component::Index, CacheRows::Growing { rate }, 1, (dim, 0), format);
    c.op(Op::CacheWrite {
        src: out,
        cache: keys,
        rows: Positions::Closed { rate },
    });
    let (q, weights) = (
        c.input(heads * dim, if queries == Queries::Zero { 0.0 } else { 1.0 }),
        c.input(heads, 1.0),
    );
    if queries == Queries::Turned {
        turn_queries(c, q, (heads, dim), format == CacheFormat::Fp4);
    }
    let scores = c.buffer(Dim::Tokens, Dim::ContextRows(rate), ElemType::F32);
    c.op(Op::IndexScore {
        q,
        weights,
        keys,
        heads,
        dim,
        rate,
        scale: 0.1,
        skip: k,
        out: scores,
    });
    let chosen = c.buffer(Dim::Tokens, Dim::Const(k), ElemType::I32);
    c.op(Op::SelectTopK {
        scores,
        k,
        rate,
        out: chosen,
    });
    c.probe(chosen, "chosen");
    chosen
}

pub(super) fn the_indexer_selects_what_the_cpu_selects(on: &On) {
    for format in [
        CacheFormat::F32,
        CacheFormat::Bf16,
        CacheFormat::Fp8B64,
        CacheFormat::Fp8V32,
        CacheFormat::Fp4,
    ] {
        for (heads, dim, rate, k) in [(16, 16, 4, 3), (3, 128, 2, 16), (64, 64, 4, 20), (1, 4, 1, 1)] {
            let mut c = Case::new(40, 1024);
            indexer(&mut c, format, (heads, dim), (rate, k), Queries::Random);
            check(
                on,
                &format!("{format:?} {heads} x {dim}, {k} kept"),
                &c,
                0,
                &[40, 1, 40, 5, 40],
                1e-9,
            );
        }
    }
    for format in [CacheFormat::Bf16, CacheFormat::Fp8B64, CacheFormat::Fp4] {
        for (heads, tokens) in [(16, 1), (20, 5)] {
            let mut c = Case::new(tokens, 1024);
            indexer(&mut c, format, (heads, 128), (4, 8), Queries::Turned);
            let what = format!("{format:?} {heads} x 128, queries turned");
            check(on, &what, &c, 0, &vec![tokens; 60], 1e-9);
        }
    }
    // Thousands of rows: scores of both signs, few different ones, ones close together.
    let values: [fn(&mut Random) -> f32; 3] = [
        |r| r.normal(3.0),
        |r| (r.bits() % 5) as f32 - 2.0,
        |r| 1.0 + (r.bits() % 64) as f32 * f32::EPSILON,
    ];
    for (i, value) in values.into_iter().enumerate() {
        for (rows, k) in [(700, 512), (5000, 512), (40_004, 100)] {
            let mut c = Case::new(2, rows + 8);
            let all: Vec<f32> = (0..2 * rows).map(|_| value(&mut c.random)).collect();
            let scores = c.given(rows, &all);
            let chosen = c.buffer(Dim::Tokens, Dim::Const(k), ElemType::I32);
            c.op(Op::SelectTopK {
                scores,
                k,
                rate: 1,
                out: chosen,
            });
            c.probe(chosen, "chosen");
            check(
                on,
                &format!("{k} of {rows}, scores {i}"),
                &c,
                rows as u64 - 3,
                &[2],
                1e-9,
            );
        }
    }
    // All scores are equal: the lower rows stay.
    let mut c = Case::new(40, 1024);
    indexer(&mut c, CacheFormat::F32, (4, 8), (2, 5), Queries::Zero);
    check(on, "ties", &c, 0, &[40, 1, 40], 1e-9);
}

/// Queries over a growing cache of keys and one of values.
pub(super) fn dense(c: &mut Case, shape: (usize, usize, usize), format: CacheFormat, mask: Mask, sinks: bool) {
    scored(c, shape, format, (mask, None), sinks);
}

/// The same with a score expression.
pub(super) fn scored(
    c: &mut Case,
    (heads, kv_heads, d): (usize, usize, usize),
    format: CacheFormat,
    (mask, score): (Mask, Option<ScoreProgram>),
    sinks: bool,
) {
    let growing = CacheRows::Growing { rate: 1 };
    let (k, v, q) = (
        c.input(kv_heads * d, 1.0),
        c.input(kv_heads * d, 1.0),
        c.input(heads * d, 1.0),
    );
    let keys = c.rows(Component::Keys, growing, kv_heads, (d, 0), format);
    let values = c.rows(Component::Values, growing, kv_heads, (d, 0), format);
    for (src, cache) in [(k, keys), (v, values)] {
        c.op(Op::CacheWrite {
            src,
            cache,
            rows: Positions::Tokens,
        });
    }
    attended(c, q, (keys, values), (heads, kv_heads, d), (mask, score), sinks);
}

/// Attention of queries over growing caches of keys and values.
pub(super) fn attended(
    c: &mut Case,
    q: BufId,
    (keys, values): (CacheId, CacheId),
    (heads, kv_heads, d): (usize, usize, usize),
    (mask, score): (Mask, Option<ScoreProgram>),
    sinks: bool,
) {
    let out = c.floats(heads * d);
    let sinks = sinks.then(|| c.normal(1, heads, 1.0));
    c.op(Op::Attend {
        q,
        out,
        heads,
        kv_heads,
        head_dim: d,
        scale: 1.0 / (d as f32).sqrt(),
        sources: vec![KeySource {
            keys,
            values,
            rows: KeyRows::Causal,
        }],
        sinks,
        mask,
        score,
    });
    c.probe(out, "attention");
}

pub(super) fn dense_attention(on: &On) {
    let masks = [
        Mask::None,
        Mask::SlidingWindow { window: 9, sinks: 2 },
        Mask::SlidingWindow { window: 1, sinks: 0 },
        Mask::TopK { k: 5 },
        Mask::BlockSkip { threshold: 0.2 },
    ];
    for (heads, kv_heads, d) in [(4, 2, 8), (6, 1, 64), (3, 3, 128), (32, 1, 20), (2, 1, 256), (5, 5, 4)] {
        for (i, mask) in masks.into_iter().enumerate() {
            for tokens in [1, 20] {
                let mut c = Case::new(tokens, if tokens == 1 { 4096 } else { 128 });
                dense(&mut c, (heads, kv_heads, d), CacheFormat::F32, mask, i % 2 == 0);
                // Skipping needs more than one block of keys.
                let steps: &[usize] = match (tokens, mask) {
                    (1, Mask::BlockSkip { .. }) => &[1; 70],
                    (1, _) => &[1; 12],
                    (_, Mask::BlockSkip { .. }) => &[20, 20, 20, 20, 7],
                    _ => &[20, 1, 17, 3],
                };
                check(
                    on,
                    &format!("dense {heads}/{kv_heads} x {d} {mask:?}, {tokens} tokens"),
                    &c,
                    0,
                    steps,
                    CLOSE,
                );
            }
        }
    }
}

pub(super) fn dense_attention_over_stored_rows(on: &On) {
    for format in [CacheFormat::Bf16, CacheFormat::Fp8B64, CacheFormat::Fp4] {
        for (heads, kv_heads, d) in [(4, 2, 8), (6, 1, 64), (4, 4, 128)] {
            for mask in [Mask::None, Mask::TopK { k: 3 }, Mask::BlockSkip { threshold: 0.3 }] {
                let all: [(usize, &[usize]); 3] = match mask {
                    Mask::BlockSkip { .. } => [(20, &[20, 20, 1, 20, 20]), (1, &[1; 70]), (7, &[7; 12])],
                    _ => [(20, &[20, 1, 1, 19]), (1, &[1; 9]), (7, &[7, 2, 7])],
                };
                for (bucket, steps) in all {
                    let mut c = Case::new(bucket, 4096);
                    dense(&mut c, (heads, kv_heads, d), format, mask, true);
                    let what = format!("dense {format:?} {heads}/{kv_heads} x {d} {mask:?}, up to {bucket} tokens");
                    check(on, &what, &c, 0, steps, CLOSE);
                }
            }
        }
    }
}

/// Rotation of the last `rope` values of every head.
fn turn(c: &mut Case, x: BufId, (heads, d, rope): (usize, usize, usize), table: RopeId, inverse: bool) {
    c.op(Op::Rope {
        x,
        heads,
        head_dim: d,
        offset: d - rope,
        dims: rope,
        style: RopeStyle::Interleaved,
        table,
        positions: Positions::Tokens,
        inverse,
    });
}

/// A window ring and compressed rows in one softmax, all rows or selected ones. For one token with wide heads queries are
/// normalised and rotated before, and what comes out is rotated back.
fn sparse(
    c: &mut Case,
    (heads, d, rope): (usize, usize, usize),
    format: CacheFormat,
    rate: usize,
    k: Option<usize>,
    (mask, score): (Mask, Option<ScoreProgram>),
) {
    let (x, q) = (c.input(d, 1.0), c.input(heads * d, 1.0));
    let table = (c.plan.token_bucket == 1 && d == 512).then(|| c.rope_table(rope / 2));
    if let Some(table) = table {
        c.op(Op::Norm {
            kind: NormKind::Rms,
            x: q,
            weight: None,
            bias: None,
            out: q,
            group: d,
            eps: 1e-6,
        });
        turn(c, q, (heads, d, rope), table, false);
    }
    let ring = CacheRows::Ring {
        capacity: 8 + 40,
        live: 8,
        block: 1,
    };
    let window = c.rows(Component::Window, ring, 1, (d, rope), format);
    c.op(Op::CacheWrite {
        src: x,
        cache: window,
        rows: Positions::Tokens,
    });
    let pool = CacheRows::Ring {
        capacity: rate,
        live: rate,
        block: 1,
    };
    let gate = c.input(d, 1.0);
    let ape = c.normal(rate, d, 0.1);
    let state = c.rows(Component::Pooling, pool, 1, (2 * d, 0), CacheFormat::F32);
    let closed = c.buffer(Dim::Closed(rate), Dim::Const(d), ElemType::F32);
    c.op(Op::Pool {
        kv: x,
        gate,
        ape,
        state,
        out: closed,
        rate,
        overlap: false,
    });
    let rows = c.rows(Component::Rows, CacheRows::Growing { rate }, 1, (d, rope), format);
    c.op(Op::CacheWrite {
        src: closed,
        cache: rows,
        rows: Positions::Closed { rate },
    });
    let selection = k.map(|k| indexer(c, CacheFormat::F32, (4, 8), (rate, k), Queries::Random));
    let out = c.floats(heads * d);
    let sinks = Some(c.normal(1, heads, 1.0));
    c.op(Op::Attend {
        q,
        out,
        heads,
        kv_heads: 1,
        head_dim: d,
        scale: 1.0 / (d as f32).sqrt(),
        sources: vec![
            KeySource {
                keys: window,
                values: window,
                rows: KeyRows::Window { window: 8 },
            },
            KeySource {
                keys: rows,
                values: rows,
                rows: KeyRows::Compressed { rate, selection },
            },
        ],
        sinks,
        mask,
        score,
    });
    if let Some(table) = table {
        turn(c, out, (heads, d, rope), table, true);
    }
    c.probe(out, "attention");
}

pub(super) fn window_and_compressed_rows(on: &On) {
    let shapes = [
        (4, 32, 8, CacheFormat::F32),
        (4, 512, 64, CacheFormat::Fp8Model1),
        (20, 64, 0, CacheFormat::Bf16),
        (3, 32, 8, CacheFormat::Fp8B64),
        (4, 320, 64, CacheFormat::Fp8V32),
    ];
    for (heads, d, rope, format) in shapes {
        for (rate, k) in [(4, Some(3)), (16, None), (2, Some(200))] {
            for mask in [Mask::None, Mask::TopK { k: 6 }, Mask::BlockSkip { threshold: 0.1 }] {
                let mut c = Case::new(40, 4096);
                sparse(&mut c, (heads, d, rope), format, rate, k, (mask, None));
                let what = format!("{format:?} {heads} x {d}, rate {rate}, {k:?} {mask:?}");
                // Rows pooled here differ in the last bit from the CPU's: stored in 8 bits, that can be a whole step.
                let limit = if format == CacheFormat::F32 { CLOSE } else { 2e-2 };
                let steps: &[usize] = if d == 512 { &[18, 1] } else { &[40, 1, 1, 33] };
                check(on, &what, &c, 0, steps, limit);
            }
        }
    }
    // One token and a few at a time.
    for (heads, d, rope, format) in [
        (8, 512, 64, CacheFormat::Fp8Model1),
        (16, 512, 64, CacheFormat::Bf16),
        (6, 512, 64, CacheFormat::F32),
        (4, 512, 64, CacheFormat::F32),
        (3, 512, 64, CacheFormat::Bf16),
        (20, 64, 0, CacheFormat::Bf16),
        (4, 256, 0, CacheFormat::F32),
    ] {
        for k in [Some(3), None] {
            for (bucket, steps) in [(1, &[1; 14][..]), (5, &[5, 3, 5, 1])] {
                let mut c = Case::new(bucket, 4096);
                sparse(&mut c, (heads, d, rope), format, 4, k, (Mask::None, None));
                let limit = if format == CacheFormat::F32 { CLOSE } else { 2e-2 };
                let what = format!("{format:?} {heads} x {d}, {k:?}, up to {bucket} tokens");
                check(on, &what, &c, 0, steps, limit);
            }
        }
    }
    // The first token of all sees nothing compressed.
    let mut c = Case::new(1, 4096);
    sparse(&mut c, (4, 32, 8), CacheFormat::F32, 4, Some(3), (Mask::None, None));
    check(on, "first token", &c, 0, &[1], CLOSE);
}

/// Programs that use every instruction.
pub(super) fn programs() -> Vec<ScoreProgram> {
    use ScoreOp::*;
    let distance = [Query, Key, Sub];
    let all = [
        // score - 0.1 * (q - k) * head
        [&[Score][..], &distance, &[Const(0.1), Mul, Head, Mul, Sub]].concat(),
        // if(q - k < 5, score, -inf)
        [&distance[..], &[Const(5.0), Less, Score, Infinity, Neg, If]].concat(),
        // nothing is seen
        vec![Infinity, Neg],
        // if((k % 3 <= 1 && !(head == 1)) || score == 0, 2 * tanh(score / 2), min(max(score, -0.5), 0.5))
        vec![
            Key,
            Const(3.0),
            Mod,
            Const(1.0),
            LessEqual,
            Head,
            Const(1.0),
            Equal,
            Not,
            And,
            Score,
            Const(0.0),
            Equal,
            Or,
            Const(2.0),
            Score,
            Const(2.0),
            Div,
            Tanh,
            Mul,
            Score,
            Const(-0.5),
            Max,
            Const(0.5),
            Min,
            If,
        ],
        // log(exp(score)) + sqrt(abs(score)) - floor(k / 2) ^ 0.5 / 10
        vec![
            Score,
            Exp,
            Log,
            Score,
            Abs,
            Sqrt,
            Add,
            Key,
            Const(2.0),
            Div,
            Floor,
            Const(0.5),
            Pow,
            Const(10.0),
            Div,
            Sub,
        ],
    ];
    all.map(|ops| ScoreProgram::try_from(ops).unwrap()).to_vec()
}

pub(super) fn score_expressions(on: &On) {
    for (i, program) in programs().into_iter().enumerate() {
        for mask in [Mask::None, Mask::SlidingWindow { window: 9, sinks: 2 }] {
            let mut c = Case::new(20, 4096);
            scored(
                &mut c,
                (4, 2, 20),
                CacheFormat::Bf16,
                (mask, Some(program.clone())),
                i % 2 == 0,
            );
            check(on, &format!("program {i} {mask:?}"), &c, 0, &[20, 1, 17, 20, 3], CLOSE);
        }
        for k in [None, Some(3)] {
            let mut c = Case::new(20, 4096);
            sparse(
                &mut c,
                (4, 32, 8),
                CacheFormat::F32,
                4,
                k,
                (Mask::None, Some(program.clone())),
            );
            check(on, &format!("program {i}, rows {k:?}"), &c, 0, &[20, 1, 17], CLOSE);
        }
    }
}

//! Ops that work row by row: norms, rotations, gates, cache rows, pooling, residual streams.

use kernels::ir::{Activation, CacheFormat, CacheRows, Component, Dim, ElemType, NormKind, Op, Positions, RopeStyle};

use super::{CLOSE, Case, On, Random, check, oracle};

pub(super) fn norms(on: &On) {
    for kind in [NormKind::Rms, NormKind::Layer] {
        for (group, groups) in [(1, 3), (8, 4), (64, 1), (512, 2), (1500, 1)] {
            for in_place in [false, true] {
                let mut c = Case::new(5, 4096);
                let x = c.input(group * groups, 3.0);
                let weight = in_place.then(|| c.normal(1, group, 1.0));
                // Only LayerNorm has a bias.
                let bias = (!in_place && kind == NormKind::Layer).then(|| c.normal(1, group, 1.0));
                let out = if in_place { x } else { c.floats(group * groups) };
                let eps = 1e-3;
                c.op(Op::Norm {
                    kind,
                    x,
                    weight,
                    bias,
                    out,
                    group,
                    eps,
                });
                c.probe(out, "norm");
                check(on, &format!("{kind:?} of {groups} x {group}"), &c, 0, &[5, 1], CLOSE);
            }
        }
    }
}

pub(super) fn rotations(on: &On) {
    for style in [RopeStyle::Interleaved, RopeStyle::Half] {
        for (heads, head_dim, offset, dims) in [(1, 8, 0, 8), (4, 32, 24, 8), (3, 512, 448, 64), (2, 128, 0, 128)] {
            for inverse in [false, true] {
                let mut c = Case::new(6, 1 << 20);
                let x = c.input(heads * head_dim, 1.0);
                let table = c.rope_table(dims / 2);
                c.op(Op::Rope {
                    x,
                    heads,
                    head_dim,
                    offset,
                    dims,
                    style,
                    table,
                    positions: Positions::Tokens,
                    inverse,
                });
                c.probe(x, "rotated");
                for position in [0, 1_000_003] {
                    check(
                        on,
                        &format!("rope {style:?} {heads} x {dims} at {position}"),
                        &c,
                        position,
                        &[6, 1],
                        1e-6,
                    );
                }
            }
        }
    }
}

pub(super) fn gates_and_sums(on: &On) {
    let kinds = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Relu,
        Activation::Relu2,
        Activation::Identity,
    ];
    for activation in kinds {
        for limit in [None, Some(1.5)] {
            for (width, parts) in [(5, 1), (96, 3)] {
                let mut c = Case::new(4, 4096);
                let (gate, up, w) = (c.input(width, 2.0), c.input(width, 2.0), c.input(parts, 1.0));
                let out = if parts == 1 { gate } else { c.floats(width) };
                c.op(Op::Glu {
                    gate,
                    up,
                    out,
                    activation,
                    limit,
                    row_weights: (parts > 1).then_some(w),
                });
                c.probe(out, "glu");
                let x = c.input(300, 4.0);
                c.op(Op::Activate { x, activation });
                c.probe(x, "activated");
                check(on, &format!("{activation:?} {limit:?} {width}"), &c, 0, &[4, 1], CLOSE);
            }
        }
    }
    let mut c = Case::new(9, 4096);
    let (x, y) = (c.input(300, 1.0), c.input(300, 1.0));
    let sum = c.floats(300);
    c.op(Op::Add { x, y, out: sum });
    c.op(Op::Add { x, y, out: x });
    let out = c.floats(7);
    c.op(Op::Slice { x, offset: 290, out });
    let last = c.buffer(Dim::Output, Dim::Const(300), ElemType::F32);
    c.op(Op::TakeOutput { x, out: last });
    for (b, name) in [(sum, "sum"), (x, "in place"), (out, "slice"), (last, "output rows")] {
        c.probe(b, name);
    }
    check(on, "add, slice, output, all rows", &c, 0, &[9, 1], 0.0);
    c.plan.all_logits = false;
    check(on, "add, slice, output, last row", &c, 0, &[9, 1], 0.0);
}

pub(super) fn heads_and_units_left_out(on: &On) {
    for (group, runs) in [(1, 3), (40, 2), (256, 1), (1500, 2)] {
        for p in [1e-6, 0.3, 0.9, 0.999] {
            let mut c = Case::new(5, 4096);
            let x = c.input(group * runs, 3.0);
            c.op(Op::TopP { x, group, p });
            c.probe(x, "kept");
            // Ties: three sizes only, and zeros.
            let steps: Vec<f32> = (0..70 * group).map(|i| [1.0, -2.0, 0.0, 2.0, 0.5][i * 7 % 5]).collect();
            let y = c.given(group, &steps);
            c.op(Op::TopP { x: y, group, p });
            c.probe(y, "kept of equals");
            let z = c.given(group, &hard_values(group.max(2), 70)[..70 * group]);
            c.op(Op::TopP { x: z, group, p });
            c.op(Op::ZeroHeads {
                x: z,
                head_dim: 1,
                heads: vec![0],
            });
            c.probe(z, "kept of hard ones");
            check(on, &format!("top {p} of {runs} x {group}"), &c, 0, &[5, 1], 0.0);
        }
    }
    let mut c = Case::new(7, 4096);
    let x = c.input(200 * 3, 1.0);
    c.op(Op::ZeroHeads {
        x,
        head_dim: 3,
        heads: vec![0, 63, 64, 130, 199],
    });
    c.probe(x, "heads");
    check(on, "heads switched off", &c, 0, &[7, 1], 0.0);
}

/// Values that try the encoders: zeros, exact powers, tiny, huge, infinite, not a number.
fn hard_values(width: usize, rows: usize) -> Vec<f32> {
    let mut r = Random(7);
    let mut v: Vec<f32> = (0..rows * width)
        .map(|i| r.normal(10f32.powi((i / width) as i32 % 7 - 4)))
        .collect();
    for (row, values) in v.chunks_exact_mut(width).enumerate() {
        match row % 8 {
            0 => values.fill(0.0),
            1 => values
                .iter_mut()
                .enumerate()
                .for_each(|(i, v)| *v = 2f32.powi(i as i32 % 9 - 4)),
            2 => values[0] = 448.0,
            3 => values[width / 2] = f32::INFINITY,
            4 => values[width - 1] = f32::NAN,
            5 => values.iter_mut().for_each(|v| *v *= 1e-38),
            6 => values[1] = -3.4e38,
            _ => {}
        }
    }
    v
}

pub(super) fn cache_rows_have_the_cpus_bytes(on: &On) {
    let formats = [
        (CacheFormat::F32, 24, 8),
        (CacheFormat::Bf16, 32, 0),
        (CacheFormat::Bf16, 7, 0),
        (CacheFormat::Fp8Model1, 512, 64),
        (CacheFormat::Fp8B64, 32, 8),
        (CacheFormat::Fp8V32, 576, 64),
        (CacheFormat::Fp8V32, 512, 64),
        (CacheFormat::Fp8V32, 128, 0),
        (CacheFormat::Fp8B64, 130, 2),
        (CacheFormat::Fp8B64, 128, 0),
        (CacheFormat::Fp4, 128, 0),
        (CacheFormat::Fp4, 16, 0),
    ];
    for (format, width, rope) in formats {
        for records in [1, 3] {
            let mut c = Case::new(16, 256);
            let src = c.given(width * records, &hard_values(width * records, 24));
            let growing = CacheRows::Growing { rate: 1 };
            let ring = CacheRows::Ring {
                capacity: 12,
                live: 8,
                block: 1,
            };
            for rows in [growing, ring] {
                let cache = c.rows(Component::Keys, rows, records, (width, rope), format);
                c.op(Op::CacheWrite {
                    src,
                    cache,
                    rows: Positions::Tokens,
                });
            }
            c.probe(src, "rows");
            // 16 tokens overwrite slots of a ring of 12 within one step.
            check(
                on,
                &format!("{format:?} of {records} x {width}"),
                &c,
                0,
                &[16, 1, 5],
                0.0,
            );
        }
    }
}

pub(super) fn rounding_and_hadamard(on: &On) {
    for format in [
        CacheFormat::Bf16,
        CacheFormat::Fp8B64,
        CacheFormat::Fp4,
        CacheFormat::F32,
    ] {
        let mut c = Case::new(16, 256);
        let x = c.given(3 * 128, &hard_values(384, 24));
        c.op(Op::RoundTrip { x, width: 128, format });
        let y = c.input(2 * 64, 1.0);
        c.op(Op::Hadamard {
            x: y,
            width: 64,
            rows: Positions::Tokens,
        });
        c.probe(y, "transformed");
        check(on, &format!("hadamard beside {format:?}"), &c, 0, &[16, 3], 0.0);
        c.probe(x, "rounded");
        let want = c.run(&oracle(), 0, &[16, 3], None);
        let ours = c.run(on.first().as_ref(), 0, &[16, 3], None);
        for ((name, _, a), (_, _, b)) in ours.probes.iter().zip(&want.probes) {
            for (x, y) in a.iter().zip(b) {
                assert!(
                    x.to_bits() == y.to_bits() || x.is_nan() && y.is_nan(),
                    "{format:?} {name}: {x} for {y}"
                );
            }
        }
    }
}

pub(super) fn pooling(on: &On) {
    for (rate, overlap) in [(4, true), (16, false), (1, false), (2, true)] {
        for d in [5, 72] {
            let mut c = Case::new(24, 256);
            let width = if overlap { 2 * d } else { d };
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
            let cache = c.rows(
                Component::Rows,
                CacheRows::Growing { rate },
                1,
                (d, 0),
                CacheFormat::F32,
            );
            c.op(Op::CacheWrite {
                src: out,
                cache,
                rows: Positions::Closed { rate },
            });
            c.probe(out, "rows");
            check(
                on,
                &format!("pool rate {rate}, overlap {overlap}, {d}"),
                &c,
                0,
                &[3, 1, 1, 24, 7, 2, 24],
                CLOSE,
            );
        }
    }
}

pub(super) fn streams(on: &On) {
    for n in [1, 2, 4, 8] {
        for d in [6, 64, 300] {
            let mut c = Case::new(5, 4096);
            let (x, o) = (c.input(n * d, 1.0), c.input(d, 1.0));
            let outputs = (2 + n) * n;
            let (matrix, base, scale) = (
                c.normal(outputs, n * d, 0.1),
                c.normal(1, outputs, 0.5),
                c.normal(1, 3, 1.0),
            );
            let (pre, post, comb) = (c.floats(n), c.floats(n), c.floats(n * n));
            c.op(Op::HcMix {
                x,
                matrix,
                base,
                scale,
                pre,
                post: Some(post),
                comb: Some(comb),
                streams: n,
                iterations: 20,
                eps: 1e-6,
                norm_eps: 1e-6,
            });
            let collapsed = c.floats(d);
            c.op(Op::HcCollapse {
                x,
                pre,
                streams: n,
                out: collapsed,
            });
            c.op(Op::HcExpand {
                o,
                x,
                post,
                comb,
                streams: n,
            });
            let (head, base, scale) = (c.normal(n, n * d, 0.1), c.normal(1, n, 0.5), c.normal(1, 1, 1.0));
            let pre_head = c.floats(n);
            c.op(Op::HcMix {
                x,
                matrix: head,
                base,
                scale,
                pre: pre_head,
                post: None,
                comb: None,
                streams: n,
                iterations: 20,
                eps: 1e-6,
                norm_eps: 1e-6,
            });
            for (b, name) in [
                (pre, "pre"),
                (post, "post"),
                (comb, "comb"),
                (collapsed, "collapsed"),
                (x, "expanded"),
                (pre_head, "head"),
            ] {
                c.probe(b, name);
            }
            check(on, &format!("{n} streams of {d}"), &c, 0, &[5, 1], 2e-5);
        }
    }
}

//! Routers with their experts, and the sampler.

use kernels::ir::{Activation, Dim, ElemType, Format, Layout, Op, SamplerParams, Scoring};

use super::{Case, On, Random, check, check_sampled};

pub(super) fn routers_and_experts(on: &On) {
    for scoring in [Scoring::SqrtSoftplus, Scoring::Sigmoid, Scoring::Softmax] {
        for (experts, k, format) in [
            (4, 2, Format::F32),
            (9, 3, Format::Fp4E2m1),
            (12, 4, Format::Bf16),
            (5, 5, Format::F8E4m3),
            (3, 1, Format::Q4K),
        ] {
            for tokens in [1, 19] {
                for hashed in [false, true] {
                    let mut c = Case::new(tokens, 4096);
                    let logits = c.input(experts, 2.0);
                    let bias = (experts % 2 == 1 && !hashed).then(|| c.normal(1, experts, 0.5));
                    let table = hashed.then(|| {
                        let ids: Vec<u8> = (0..64 * k)
                            .flat_map(|i| {
                                let e = (i * 7 + i / k) % experts;
                                if k % 2 == 0 {
                                    (e as i32).to_le_bytes().to_vec()
                                } else {
                                    (e as i64).to_le_bytes().to_vec()
                                }
                            })
                            .collect();
                        c.stored(64, k, if k % 2 == 0 { Format::I32 } else { Format::I64 }, ids)
                    });
                    let out_experts = c.buffer(Dim::Tokens, Dim::Const(k), ElemType::I32);
                    let out_weights = c.floats(k);
                    c.op(Op::Route {
                        logits,
                        bias,
                        table,
                        scoring,
                        k,
                        normalise: experts != 9,
                        factor: 1.5,
                        out_experts,
                        out_weights,
                    });
                    let (cols, rows) = (2 * format.block_len().max(32), 24);
                    let x = c.input(cols, 1.0);
                    let up: Vec<_> = (0..experts)
                        .map(|_| c.weight(rows * 2, cols, format, Layout::OutIn))
                        .collect();
                    let hidden = c.floats(k * rows * 2);
                    c.op(Op::ExpertMatMul {
                        x,
                        experts: out_experts,
                        k,
                        weights: up,
                        per_slot: false,
                        out: hidden,
                    });
                    let down: Vec<_> = (0..experts)
                        .map(|_| c.weight(10, rows * 2, Format::F32, Layout::OutIn))
                        .collect();
                    let parts = c.floats(k * 10);
                    c.op(Op::ExpertMatMul {
                        x: hidden,
                        experts: out_experts,
                        k,
                        weights: down,
                        per_slot: true,
                        out: parts,
                    });
                    let out = c.floats(10);
                    let shared = hashed.then(|| c.input(10, 1.0));
                    c.op(Op::ExpertSum {
                        x: parts,
                        k,
                        shared,
                        out,
                    });
                    for (b, name) in [
                        (out_experts, "experts"),
                        (out_weights, "weights"),
                        (hidden, "hidden"),
                        (out, "sum"),
                    ] {
                        c.probe(b, name);
                    }
                    check(
                        on,
                        &format!("{scoring:?}, {k} of {experts} {format}, hashed {hashed}"),
                        &c,
                        0,
                        &[tokens, 1],
                        2e-5,
                    );
                }
            }
        }
    }
}

/// More slots of an expert than a block of products takes; two matrices of one input.
pub(super) fn experts_of_many_tokens(on: &On) {
    let (experts, k, tokens, cols, rows) = (3, 2, 200, 72, 64);
    let mut c = Case::new(tokens, 4096);
    let logits = c.input(experts, 2.0);
    let chosen = c.buffer(Dim::Tokens, Dim::Const(k), ElemType::I32);
    let weights = c.floats(k);
    c.op(Op::Route {
        logits,
        bias: None,
        table: None,
        scoring: Scoring::Sigmoid,
        k,
        normalise: true,
        factor: 1.0,
        out_experts: chosen,
        out_weights: weights,
    });
    let x = c.input(cols, 1.0);
    let mut products = Vec::new();
    for _ in 0..2 {
        let weights = (0..experts)
            .map(|_| c.weight(rows, cols, Format::Bf16, Layout::OutIn))
            .collect();
        let out = c.floats(k * rows);
        c.op(Op::ExpertMatMul {
            x,
            experts: chosen,
            k,
            weights,
            per_slot: false,
            out,
        });
        products.push(out);
    }
    let down = (0..experts)
        .map(|_| c.weight(136, rows, Format::Bf16, Layout::OutIn))
        .collect();
    let out = c.floats(k * 136);
    c.op(Op::ExpertMatMul {
        x: products[0],
        experts: chosen,
        k,
        weights: down,
        per_slot: true,
        out,
    });
    products.push(out);
    for b in products {
        c.probe(b, "product");
    }
    check(on, "experts of many tokens", &c, 0, &[tokens, 1, 90], 2e-5);
}

/// Gate, up, what joins them, and down: of a layer, and of its experts with weights of their own.
pub(super) fn gates_of_many_tokens(on: &On) {
    let (experts, k, rows) = (3, 2, 128);
    for (tokens, routed, limit, format, cols) in [
        (133, false, None, Format::Bf16, 72),
        (200, true, Some(0.75), Format::Bf16, 72),
        (70, true, None, Format::Bf16, 72),
        (70, false, Some(0.5), Format::Q8_0, 96),
    ] {
        let mut c = Case::new(tokens, 4096);
        let x = c.input(cols, 1.0);
        let chosen = c.buffer(Dim::Tokens, Dim::Const(k), ElemType::I32);
        let weights = c.floats(k);
        if routed {
            let logits = c.input(experts, 2.0);
            c.op(Op::Route {
                logits,
                bias: None,
                table: None,
                scoring: Scoring::Sigmoid,
                k,
                normalise: true,
                factor: 1.0,
                out_experts: chosen,
                out_weights: weights,
            });
        }
        let slots = if routed { k } else { 1 };
        let product = |c: &mut Case, x, rows, cols, per_slot| {
            let out = c.floats(slots * rows);
            let mut matrix = || c.weight(rows, cols, format, Layout::OutIn);
            let op = if routed {
                Op::ExpertMatMul {
                    x,
                    experts: chosen,
                    k,
                    weights: (0..experts).map(|_| matrix()).collect(),
                    per_slot,
                    out,
                }
            } else {
                Op::MatMul {
                    x,
                    weight: matrix(),
                    bias: None,
                    out,
                }
            };
            c.op(op);
            out
        };
        let gate = product(&mut c, x, rows, cols, false);
        let up = product(&mut c, x, rows, cols, false);
        c.op(Op::Glu {
            gate,
            up,
            out: gate,
            activation: Activation::Silu,
            limit,
            row_weights: routed.then_some(weights),
        });
        let down = product(&mut c, gate, 72, rows, true);
        if routed {
            c.probe(down, "down");
        } else {
            // In place, as residuals are.
            let residual = c.input(72, 1.0);
            c.op(Op::Add {
                x: residual,
                y: down,
                out: residual,
            });
            c.probe(residual, "sum");
        }
        let name = format!("gates of {tokens} tokens, routed {routed}, limit {limit:?}");
        // Three products in a row; where weights are no bf16 numbers each meets 16 of their bits.
        let close = if format == Format::Bf16 { 2e-5 } else { 4e-5 };
        check(on, &name, &c, 0, &[tokens, 1, 37], close);
    }
}

pub(super) fn draws(on: &On) {
    let p = SamplerParams::default();
    let settings = [
        p,
        SamplerParams { temperature: 1.0, ..p },
        SamplerParams {
            temperature: 0.7,
            top_k: 5,
            ..p
        },
        SamplerParams {
            temperature: 1.3,
            top_p: 0.8,
            ..p
        },
        SamplerParams {
            temperature: 1.0,
            min_p: 0.1,
            ..p
        },
        SamplerParams {
            temperature: 0.9,
            top_k: 40,
            top_p: 0.9,
            min_p: 0.02,
            seed: 99,
            ..p
        },
        SamplerParams {
            temperature: 1.0,
            top_k: 1,
            ..p
        },
        SamplerParams {
            repetition_penalty: 1.4,
            frequency_penalty: 0.2,
            presence_penalty: 0.1,
            ..p
        },
        SamplerParams {
            temperature: 1.0,
            repetition_penalty: 0.7,
            penalty_window: 4,
            top_p: 0.5,
            ..p
        },
        SamplerParams {
            temperature: 2.0,
            top_k: 1000,
            top_p: 0.999,
            ..p
        },
    ];
    for vocab in [1, 5, 100, 3000] {
        let mut c = Case::new(3, 4096);
        let logits = c.input(vocab, 3.0);
        c.op(Op::Sample { logits });
        for (i, s) in settings.iter().enumerate() {
            let steps = [2, 1, 1, 3, 1, 1, 1, 2, 1, 1, 1, 1];
            check_sampled(on, &format!("sampler {i} over {vocab}"), &c, 5, &steps, 0.0, Some(s));
        }
    }
    // Ties and masked tokens: few different values, some of them ruled out.
    let mut c = Case::new(3, 4096);
    let mut r = Random(3);
    let values: Vec<f32> = (0..64 * 200)
        .map(|_| match r.bits() % 5 {
            0 => f32::NEG_INFINITY,
            n => n as f32,
        })
        .collect();
    let logits = c.given(200, &values);
    c.op(Op::Sample { logits });
    for (i, s) in settings.iter().enumerate() {
        check_sampled(on, &format!("ties {i}"), &c, 0, &[1; 20], 0.0, Some(s));
    }
}

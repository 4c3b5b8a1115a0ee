//! mHC sites as models have them: the sum of experts before, the norm and the router behind.

use kernels::ir::{Activation, BufId, Dim, ElemType, Format, Layout, NormKind, Op, Scoring};

use super::{Case, On, check};

/// Streams of a site.
const N: usize = 4;

/// Coefficients of a site for streams `x` of width `d`: (pre, post, comb).
fn mix(c: &mut Case, x: BufId, d: usize) -> (BufId, BufId, BufId) {
    let outputs = (2 + N) * N;
    let (matrix, base, scale) = (
        c.normal(outputs, N * d, 0.05),
        c.normal(1, outputs, 0.5),
        c.normal(1, 3, 1.0),
    );
    let (pre, post, comb) = (c.floats(N), c.floats(N), c.floats(N * N));
    c.op(Op::HcMix {
        x,
        matrix,
        base,
        scale,
        pre,
        post: Some(post),
        comb: Some(comb),
        streams: N,
        iterations: 20,
        eps: 1e-6,
        norm_eps: 1e-6,
    });
    (pre, post, comb)
}

/// Collapses `x` and normalises what comes out.
fn enter(c: &mut Case, x: BufId, pre: BufId, d: usize) -> BufId {
    let out = c.floats(d);
    c.op(Op::HcCollapse {
        x,
        pre,
        streams: N,
        out,
    });
    let weight = c.normal(1, d, 0.5);
    c.op(Op::Norm {
        kind: NormKind::Rms,
        x: out,
        weight: Some(weight),
        bias: None,
        out,
        group: d,
        eps: 1e-6,
    });
    out
}

/// A site behind experts, with a router behind it where there are `experts`.
fn site(d: usize, tokens: usize, router: Option<(usize, usize, Format)>) -> Case {
    let mut c = Case::new(tokens, 4096);
    let x = c.input(N * d, 1.0);
    let (pre, post, comb) = mix(&mut c, x, d);
    let first = enter(&mut c, x, pre, d);
    c.probe(first, "first");
    let (parts, shared) = (c.input(3 * d, 0.5), c.input(d, 0.5));
    let o = c.floats(d);
    c.op(Op::ExpertSum {
        x: parts,
        k: 3,
        shared: Some(shared),
        out: o,
    });
    c.op(Op::HcExpand {
        o,
        x,
        post,
        comb,
        streams: N,
    });
    let (pre, post, comb) = mix(&mut c, x, d);
    let second = enter(&mut c, x, pre, d);
    let mut probes = vec![
        (o, "sum"),
        (x, "streams"),
        (post, "post"),
        (comb, "comb"),
        (second, "second"),
    ];
    if let Some((experts, k, format)) = router {
        let (weight, bias) = (c.weight(experts, d, format, Layout::OutIn), c.normal(1, experts, 0.2));
        let logits = c.floats(experts);
        c.op(Op::MatMul {
            x: second,
            weight,
            bias: None,
            out: logits,
        });
        let out_experts = c.buffer(Dim::Tokens, Dim::Const(k), ElemType::I32);
        let out_weights = c.floats(k);
        c.op(Op::Route {
            logits,
            bias: Some(bias),
            table: None,
            scoring: Scoring::SqrtSoftplus,
            k,
            normalise: true,
            factor: 1.5,
            out_experts,
            out_weights,
        });
        probes.extend([(out_experts, "experts"), (out_weights, "weights")]);
    }
    for (b, name) in probes {
        c.probe(b, name);
    }
    c
}

/// What joins gate and up halves; `row_weights` of experts.
fn joined(c: &mut Case, gate: BufId, up: BufId, row_weights: Option<BufId>) {
    c.op(Op::Glu {
        gate,
        up,
        out: gate,
        activation: Activation::Silu,
        limit: Some(10.0),
        row_weights,
    });
}

/// A feed-forward layer of experts and a shared one between two sites, in the order models have: what one launch leaves behind
/// for those soon after it.
fn layer(d: usize, tokens: usize, format: Format) -> Case {
    const EXPERTS: usize = 5;
    const CHOSEN: usize = 2;
    const INNER: usize = 128;
    let mut c = Case::new(tokens, 4096);
    let x = c.input(N * d, 1.0);
    let (pre, post, comb) = mix(&mut c, x, d);
    let y = enter(&mut c, x, pre, d);
    let (router, logits) = (c.weight(EXPERTS, d, Format::Bf16, Layout::OutIn), c.floats(EXPERTS));
    c.op(Op::MatMul {
        x: y,
        weight: router,
        bias: None,
        out: logits,
    });
    let (experts, weights) = (
        c.buffer(Dim::Tokens, Dim::Const(CHOSEN), ElemType::I32),
        c.floats(CHOSEN),
    );
    c.op(Op::Route {
        logits,
        bias: None,
        table: None,
        scoring: Scoring::SqrtSoftplus,
        k: CHOSEN,
        normalise: true,
        factor: 1.5,
        out_experts: experts,
        out_weights: weights,
    });
    let chosen = |c: &mut Case, x, rows: usize, cols: usize, per_slot| {
        let all = (0..EXPERTS).map(|_| c.weight(rows, cols, format, Layout::OutIn));
        let (weights, out) = (all.collect(), c.floats(CHOSEN * rows));
        c.op(Op::ExpertMatMul {
            x,
            experts,
            k: CHOSEN,
            weights,
            per_slot,
            out,
        });
        out
    };
    let (gate, up) = (chosen(&mut c, y, INNER, d, false), chosen(&mut c, y, INNER, d, false));
    joined(&mut c, gate, up, Some(weights));
    let parts = chosen(&mut c, gate, d, INNER, true);
    let product = |c: &mut Case, x, rows: usize, cols: usize| {
        let (weight, out) = (c.weight(rows, cols, format, Layout::OutIn), c.floats(rows));
        c.op(Op::MatMul {
            x,
            weight,
            bias: None,
            out,
        });
        out
    };
    let (gate, up) = (product(&mut c, y, INNER, d), product(&mut c, y, INNER, d));
    joined(&mut c, gate, up, None);
    let shared = product(&mut c, gate, d, INNER);
    let o = c.floats(d);
    c.op(Op::ExpertSum {
        x: parts,
        k: CHOSEN,
        shared: Some(shared),
        out: o,
    });
    c.op(Op::HcExpand {
        o,
        x,
        post,
        comb,
        streams: N,
    });
    let (pre, ..) = mix(&mut c, x, d);
    let second = enter(&mut c, x, pre, d);
    for (b, name) in [(experts, "experts"), (o, "sum"), (x, "streams"), (second, "second")] {
        c.probe(b, name);
    }
    c
}

pub(super) fn sites_between_blocks(on: &On) {
    for (d, tokens, format) in [
        (64, 1, Format::Bf16),
        (1536, 1, Format::Bf16),
        (1536, 1, Format::F8E4m3),
        (1536, 3, Format::Bf16),
        (2048, 1, Format::F32),
    ] {
        let what = format!("a layer of experts {d} wide, {tokens} tokens, {format}");
        check(on, &what, &layer(d, tokens, format), 0, &[tokens, 1, tokens], 3e-5);
    }
    for (d, tokens, router) in [
        (48, 1, None),
        (1024, 1, Some((12, 4, Format::Bf16))),
        (1536, 1, Some((12, 4, Format::F32))),
        (1538, 3, Some((32, 6, Format::Bf16))),
        (4096, 2, Some((5, 1, Format::F32))),
        (2048, 1, None),
    ] {
        let what = format!("{d} wide, {tokens} tokens, router {router:?}");
        check(on, &what, &site(d, tokens, router), 0, &[tokens, 1, tokens], 3e-5);
    }
}

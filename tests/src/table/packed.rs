//! Products of one token in formats of 4, 8 and 16 bits, in the shapes that make a difference to kernels that take 16 rows and
//! four chunks at a time: rows that end within a tile, several rounds, more of x than shared memory holds.

use kernels::ir::{Activation, Dim, ElemType, Format, Layout, NormKind, Op, Scoring};

use super::{Case, On, check};

const PACKED: [Format; 10] = [
    Format::F16,
    Format::Bf16,
    Format::F8E4m3,
    Format::Fp4E2m1,
    Format::Q8_0,
    Format::Q5_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q4K,
    Format::Q6K,
];

pub(super) fn products_of_one_token(on: &On) {
    for format in PACKED {
        // Normalised, three matrices in a launch whose tiles reach from one into the next; large and small numbers.
        for (cols, rows, size) in [
            (256, &[40usize, 6, 21][..], 1.0),
            (1792, &[33, 8], 3e4),
            (5376, &[300, 1], 1e-12),
        ] {
            let mut c = Case::new(1, 4096);
            let x = c.input(cols, size);
            let normed = c.floats(cols);
            let weight = Some(c.normal(1, cols, 1.0));
            c.op(Op::Norm {
                kind: NormKind::Rms,
                x,
                weight,
                bias: None,
                out: normed,
                group: cols,
                eps: 1e-30,
            });
            for &n in rows {
                let weight = c.weight(n, cols, format, Layout::OutIn);
                let bias = (n % 2 == 1).then(|| c.normal(1, n, 1.0));
                let out = c.floats(n);
                c.op(Op::MatMul {
                    x: normed,
                    weight,
                    bias,
                    out,
                });
                c.probe(out, "product");
            }
            check(
                on,
                &format!("{format} {rows:?} x {cols} of {size}"),
                &c,
                0,
                &[1, 1],
                2e-5,
            );
        }
        gate(on, format);
        // Two passes over x, and what the product is added to: on a device with many multiprocessors only of many rows.
        let many = matches!(format, Format::F8E4m3 | Format::Fp4E2m1 | Format::Q4_1);
        let (rows, cols) = (if many { 2200 } else { 70 }, 11520);
        let mut c = Case::new(1, 4096);
        let (x, residual) = (c.input(cols, 1.0), c.input(rows, 1.0));
        let weight = c.weight(rows, cols, format, Layout::OutIn);
        let product = c.floats(rows);
        c.op(Op::MatMul {
            x,
            weight,
            bias: None,
            out: product,
        });
        c.op(Op::Add {
            x: residual,
            y: product,
            out: residual,
        });
        c.probe(residual, "sum");
        check(on, &format!("{format} {rows} x {cols} and a sum"), &c, 0, &[1], 2e-5);
    }
    experts(on);
}

/// Gate and up of one input, joined.
fn gate(on: &On, format: Format) {
    let (rows, cols) = (44, 768);
    let mut c = Case::new(1, 4096);
    let x = c.input(cols, 1.0);
    let outs = [0, 1].map(|_| {
        let weight = c.weight(rows, cols, format, Layout::OutIn);
        let out = c.floats(rows);
        c.op(Op::MatMul {
            x,
            weight,
            bias: None,
            out,
        });
        out
    });
    c.op(Op::Glu {
        gate: outs[0],
        up: outs[1],
        out: outs[0],
        activation: Activation::Silu,
        limit: Some(0.75),
        row_weights: None,
    });
    c.probe(outs[0], "gate");
    check(on, &format!("{format} gate of {rows} x {cols}"), &c, 0, &[1], 2e-5);
}

/// Experts' gates and what follows them, each slot with an input of its own.
fn experts(on: &On) {
    let (experts, k, rows, cols, outputs) = (5, 3, 256, 384, 37);
    for format in [Format::F8E4m3, Format::Fp4E2m1, Format::Q4_0] {
        let mut c = Case::new(3, 4096);
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
        let product = |c: &mut Case, x, rows, cols, per_slot| {
            let out = c.floats(k * rows);
            let weights = (0..experts)
                .map(|_| c.weight(rows, cols, format, Layout::OutIn))
                .collect();
            c.op(Op::ExpertMatMul {
                x,
                experts: chosen,
                k,
                weights,
                per_slot,
                out,
            });
            out
        };
        let gate = product(&mut c, x, rows, cols, false);
        let up = product(&mut c, x, rows, cols, false);
        c.op(Op::Glu {
            gate,
            up,
            out: gate,
            activation: Activation::Silu,
            limit: None,
            row_weights: Some(weights),
        });
        let down = product(&mut c, gate, outputs, rows, true);
        c.probe(down, "down");
        check(on, &format!("{format} experts"), &c, 0, &[1, 3], 2e-5);
    }
}

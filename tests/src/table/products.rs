//! Embeddings and matrix products in every stored format.

use kernels::ir::{Dim, ElemType, Format, Layout, Op, ScaleFormat, Scoring};

use super::{Case, On, check};

const FLOATS: [Format; 11] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::F8E4m3,
    Format::Fp4E2m1,
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q4K,
    Format::Q6K,
];

pub(super) fn embeddings(on: &On) {
    for format in FLOATS {
        let mut c = Case::new(8, 4096);
        let cols = 3 * format.block_len();
        let table = c.weight(20, cols, format, Layout::OutIn);
        let out = c.floats(cols * 2);
        c.op(Op::Embed { table, out, copies: 2 });
        c.probe(out, "embedded");
        check(on, &format!("embed {format}"), &c, 0, &[8, 1, 3], 0.0);
    }
    let mut c = Case::new(8, 4096);
    let x = c.input(24, 1.0);
    let table = c.normal(40, 24, 1.0);
    c.op(Op::EmbedPosition { table, x });
    c.probe(x, "positioned");
    check(on, "embed position", &c, 7, &[8, 1], 0.0);
}

/// (outputs, inputs in blocks, tokens)
const SHAPES: [(usize, usize, usize); 6] = [(1, 1, 1), (37, 2, 1), (33, 5, 3), (40, 3, 8), (70, 2, 9), (130, 4, 21)];

pub(super) fn products_in_every_format(on: &On) {
    for format in FLOATS {
        for (rows, blocks, tokens) in SHAPES {
            // Plain formats in odd widths, too; blocks as they are.
            let unit = format.block_len();
            for cols in [blocks * unit.max(7), blocks * unit.max(16)] {
                if !cols.is_multiple_of(unit) {
                    continue;
                }
                let mut c = Case::new(tokens, 4096);
                let x = c.input(cols, 1.0);
                let weight = c.weight(rows, cols, format, Layout::OutIn);
                let bias = (rows % 2 == 1).then(|| c.normal(1, rows, 1.0));
                let out = c.floats(rows);
                c.op(Op::MatMul { x, weight, bias, out });
                c.probe(out, "product");
                check(
                    on,
                    &format!("{format} {rows} x {cols}, {tokens} tokens"),
                    &c,
                    0,
                    &[tokens, 1],
                    2e-5,
                );
            }
        }
    }
}

pub(super) fn products_with_scales_of_every_kind(on: &On) {
    for format in [ScaleFormat::F32, ScaleFormat::Bf16, ScaleFormat::E8m0] {
        // Partial blocks at both edges; rows of whole steps for one token.
        for (tokens, cols) in [(1, 272), (12, 272), (1, 448)] {
            let rows = 150;
            let mut c = Case::new(tokens, 4096);
            let weight = c.product(rows, cols, Format::F8E4m3);
            c.scale(weight, format, 128, 128);
            check(
                on,
                &format!("fp8 x {cols}, scales {format:?}, {tokens} tokens"),
                &c,
                0,
                &[tokens],
                2e-5,
            );
        }
    }
}

/// Matrices with so many rows that they go through shared memory tile by tile, as output layers do; their last rows are no whole
/// tile. The smaller one has enough rows for that where multiprocessors are few, as the emulator's.
pub(super) fn products_of_large_matrices(on: &On) {
    for (rows, cols) in [(1000, 320), (20_001, 128)] {
        let mut c = Case::new(1, 4096);
        c.product(rows, cols, Format::F8E4m3);
        check(on, &format!("fp8 {rows} x {cols}"), &c, 0, &[1], 2e-5);
    }
}

pub(super) fn products_stored_the_other_way(on: &On) {
    for format in [Format::F32, Format::F16, Format::Bf16] {
        for (rows, cols, tokens) in [(5, 7, 1), (96, 64, 3), (33, 40, 17)] {
            let mut c = Case::new(tokens, 4096);
            let x = c.input(cols, 1.0);
            let weight = c.weight(rows, cols, format, Layout::InOut);
            let bias = Some(c.normal(1, rows, 1.0));
            let out = c.floats(rows);
            c.op(Op::MatMul { x, weight, bias, out });
            c.probe(out, "product");
            check(
                on,
                &format!("[in, out] {format} {rows} x {cols}"),
                &c,
                0,
                &[tokens, 1],
                2e-5,
            );
        }
    }
}

pub(super) fn grouped_products(on: &On) {
    for format in [Format::F32, Format::Bf16, Format::F8E4m3, Format::Q8_0] {
        for tokens in [1, 5, 20] {
            let (groups, n, k) = (3, 24, 64);
            let mut c = Case::new(tokens, 4096);
            let x = c.input(groups * k, 1.0);
            let weight = c.weight(groups * n, k, format, Layout::OutIn);
            let out = c.floats(groups * n);
            c.op(Op::GroupedMatMul { x, weight, groups, out });
            c.probe(out, "grouped");
            check(
                on,
                &format!("grouped {format}, {tokens} tokens"),
                &c,
                0,
                &[tokens, 1],
                2e-5,
            );
        }
    }
}

/// (outputs of each matrix, inputs, tokens of the plan)
const WIDE: [(&[usize], usize, usize); 4] = [
    // Edges in every direction; one of the matrices is too small for the kernels of many outputs.
    (&[136, 72, 20], 200, 133),
    // Inputs shared out, with a bias.
    (&[264], 1040, 70),
    (&[520, 64], 72, 65),
    // More outputs than one round of blocks has.
    (&[64], 64, 128),
];

/// Products of many tokens, several matrices of one input at a time; with and without a choice by what comes out.
pub(super) fn products_of_many_tokens(on: &On) {
    for (rows, cols, tokens) in WIDE {
        for chooses in [false, true] {
            let mut c = Case::new(tokens, 4096);
            let x = c.input(cols, 1.0);
            let mut outs = Vec::new();
            for &n in rows {
                let weight = c.weight(n, cols, Format::Bf16, Layout::OutIn);
                let bias = (n % 16 == 8).then(|| c.normal(1, n, 1.0));
                let out = c.floats(n);
                c.op(Op::MatMul { x, weight, bias, out });
                outs.push(out);
            }
            if chooses {
                choose(&mut c);
            }
            for out in outs {
                c.probe(out, "product");
            }
            let name = format!("bf16 {rows:?} x {cols}, {tokens} tokens, chooses {chooses}");
            check(on, &name, &c, 0, &[tokens, 1, 37], 2e-5);
        }
    }
    products_and_sums(on);
    other_formats_of_many_tokens(on);
    let (groups, n, k) = (2, 256, 72);
    let mut c = Case::new(80, 4096);
    let x = c.input(groups * k, 1.0);
    let weight = c.weight(groups * n, k, Format::Bf16, Layout::OutIn);
    let out = c.floats(groups * n);
    c.op(Op::GroupedMatMul { x, weight, groups, out });
    c.probe(out, "grouped");
    check(on, "grouped bf16 of many tokens", &c, 0, &[80, 3], 2e-5);
}

/// Makes a plan one that chooses by what its products give.
fn choose(c: &mut Case) {
    let logits = c.input(8, 1.0);
    let out_experts = c.buffer(Dim::Tokens, Dim::Const(2), ElemType::I32);
    let out_weights = c.floats(2);
    c.op(Op::Route {
        logits,
        bias: None,
        table: None,
        scoring: Scoring::Softmax,
        k: 2,
        normalise: true,
        factor: 1.0,
        out_experts,
        out_weights,
    });
}

/// A product and what it is added to: in wide tiles of one block and of two, the last of them nearly empty, and with its inputs
/// shared out.
fn products_and_sums(on: &On) {
    for (rows, cols, tokens) in [(72, 72, 80), (136, 2048, 129), (200, 136, 130), (392, 128, 130)] {
        for chooses in [false, true] {
            let mut c = Case::new(tokens, 4096);
            let (x, residual) = (c.input(cols, 1.0), c.input(rows, 1.0));
            let weight = c.weight(rows, cols, Format::Bf16, Layout::OutIn);
            let bias = Some(c.normal(1, rows, 1.0));
            let product = c.floats(rows);
            c.op(Op::MatMul {
                x,
                weight,
                bias,
                out: product,
            });
            c.op(Op::Add {
                x: residual,
                y: product,
                out: residual,
            });
            if chooses {
                choose(&mut c);
            }
            c.probe(residual, "sum");
            let name = format!("bf16 {rows} x {cols} and a sum, {tokens} tokens, chooses {chooses}");
            check(on, &name, &c, 0, &[tokens, 1], 2e-5);
        }
    }
}

/// The same for weights that are made bf16 first: inputs that fill no whole step, two matrices of one input.
fn other_formats_of_many_tokens(on: &On) {
    let formats = FLOATS.into_iter().filter(|f| !matches!(f, Format::F32 | Format::Bf16));
    for format in formats {
        let cols = if format.block_len() > 32 { 512 } else { 224 };
        let mut c = Case::new(70, 4096);
        let x = c.input(cols, 1.0);
        let outs = [136, 72].map(|rows| {
            let weight = c.weight(rows, cols, format, Layout::OutIn);
            let bias = (rows == 72).then(|| c.normal(1, rows, 1.0));
            let out = c.floats(rows);
            c.op(Op::MatMul { x, weight, bias, out });
            out
        });
        outs.into_iter().for_each(|out| c.probe(out, "product"));
        check(on, &format!("{format} x {cols} of many tokens"), &c, 0, &[70, 1], 2e-5);
    }
}

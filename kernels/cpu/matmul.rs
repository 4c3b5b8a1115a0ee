//! Products of activations with stored weights.

use super::Cpu;
use super::attn_dot::dot_f32;
use super::exec::Shared;
use super::formats::Matrix;
use crate::ir::Layout;

/// One product of a shared input: `y[t] = W x[t] + bias`, y is `[tokens, w.rows]`.
pub struct Product<'w, 'y> {
    /// Weights.
    pub w: Matrix<'w>,
    /// Added to every row.
    pub bias: Option<&'y [f32]>,
    /// Output.
    pub y: &'y mut [f32],
}

/// A small independent product `y = W[first_row .. first_row + y.len()] x`.
pub struct Job<'w, 'y> {
    /// Weights.
    pub w: Matrix<'w>,
    /// First output row used.
    pub first_row: usize,
    /// `[w.cols]`
    pub x: &'y [f32],
    /// `[rows used]`
    pub y: &'y mut [f32],
}

/// `y[t * stride + o] = sum_i x[t, i] W[o, i] + bias[o]`.
pub fn matmul(cpu: &Cpu, x: &[f32], tokens: usize, w: &Matrix<'_>, bias: Option<&[f32]>, y: &mut [f32], stride: usize) {
    let step = 16;
    let shared = Shared::new(y);
    cpu.pool.for_ranges(w.rows, step, &|r| {
        let mut row = vec![0.0; w.cols];
        for o in r {
            w.decode_row(o, &mut row);
            for t in 0..tokens {
                let v = dot_f32(cpu.isa, &x[t * w.cols..(t + 1) * w.cols], &row);
                // SAFETY: output o belongs to this task alone.
                let y = unsafe { shared.part(t * stride + o, 1) };
                y.fill(v + bias.map_or(0.0, |b| b[o]));
            }
        }
    });
}

/// Several products of one input.
pub fn matmul_many(cpu: &Cpu, x: &[f32], tokens: usize, products: &mut [Product<'_, '_>]) {
    for p in products {
        let rows = p.w.rows;
        matmul(cpu, x, tokens, &p.w, p.bias, p.y, rows);
    }
}

/// Many small independent products.
pub fn grouped(cpu: &Cpu, jobs: &mut [Job<'_, '_>]) {
    let lens: Vec<usize> = jobs.iter().map(|j| j.y.len()).collect();
    let _ = (lens, Layout::OutIn);
    for j in jobs.iter_mut() {
        let mut row = vec![0.0; j.w.cols];
        for (o, y) in j.y.iter_mut().enumerate() {
            j.w.decode_row(j.first_row + o, &mut row);
            *y = dot_f32(cpu.isa, j.x, &row);
        }
    }
}

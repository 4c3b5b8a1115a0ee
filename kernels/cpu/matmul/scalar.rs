//! Plain forms: the reference the vector kernels are compared with, and the oracle's exact activations.

use super::Task;
use super::prep::Prepared;
use crate::cpu::attn_dot::dot_f32;
use crate::cpu::formats::{IntRow, Matrix};
use crate::cpu::isa::Isa;

/// f32 activations (in natural order) with decoded weights, any format.
pub(super) fn decoded(isa: Isa, task: &Task<'_>) {
    let cols = task.w.cols;
    let mut row = vec![0.0; cols];
    for o in task.rows.clone() {
        task.w.decode_row(o, &mut row);
        for (x, y) in task.x.iter().zip(task.y) {
            let v = dot_f32(isa, &x.values[..cols], &row) + task.bias.map_or(0.0, |b| b[o]);
            // SAFETY: output o belongs to this task alone.
            unsafe { y.write(o - task.first_row, v) };
        }
    }
}

/// int8 activations with block-quantised weights.
pub(super) fn quantised(task: &Task<'_>) {
    let mut row = IntRow::new(task.w.format, task.w.cols);
    for o in task.rows.clone() {
        row.decode(task.w.row(o));
        for (x, y) in task.x.iter().zip(task.y) {
            let v = int_dot(task.w, &row, x) + task.bias.map_or(0.0, |b| b[o]);
            // SAFETY: output o belongs to this task alone.
            unsafe { y.write(o - task.first_row, v) };
        }
    }
}

fn int_dot(w: &Matrix<'_>, row: &IntRow, x: &Prepared<'_>) -> f32 {
    let (q, d, s) = x.parts(w.cols);
    let (sub, offset) = (row.sub, i32::from(row.offset));
    let mut sum = 0.0;
    for (i, (u, q)) in row.values.chunks_exact(sub).zip(q.chunks_exact(sub)).enumerate() {
        let dot: i32 = u
            .iter()
            .zip(q)
            .map(|(u, q)| (i32::from(*u) - offset) * i32::from(*q))
            .sum();
        sum += dot as f32 * (row.scales[i] * d[i * sub / 32]);
    }
    // Minimums exist only for blocks of 32.
    row.mins.iter().zip(s).fold(sum, |sum, (m, s)| sum + m * s)
}

/// `[in, out]` matrices: y += x_i * row i, over a range of outputs.
pub(super) fn axpy_rows(isa: Isa, task: &Task<'_>) {
    let (n, rows, size) = (task.rows.len(), task.w.rows, task.w.format.block_bytes());
    let mut acc = vec![0.0f32; n * task.x.len()];
    let mut row = vec![0.0; n];
    for i in 0..task.w.cols {
        let at = (i * rows + task.rows.start) * size;
        crate::cpu::formats::decode_elements(task.w.format, &task.w.data[at..at + n * size], &mut row);
        for (x, acc) in task.x.iter().zip(acc.chunks_exact_mut(n.max(1))) {
            crate::cpu::attn_dot::axpy_f32(isa, x.values[i], &row, acc);
        }
    }
    for (acc, y) in acc.chunks_exact(n.max(1)).zip(task.y) {
        for (v, o) in acc.iter().zip(task.rows.clone()) {
            // SAFETY: output o belongs to this task alone.
            unsafe { y.write(o - task.first_row, v + task.bias.map_or(0.0, |b| b[o])) };
        }
    }
}

//! Products of many activation rows (prefill).
//!
//! A task takes a panel of weight rows and walks over the tokens in register tiles, so the panel is read (and unpacked)
//! once for all tokens. Every (row, token) pair has one accumulator, summed in an order that its tile does not change.
// Every function: the processor has the instruction set it is compiled for; pointers are valid for whole padded rows.
#![allow(unsafe_op_in_unsafe_fn)]

use std::arch::x86_64::*;
use std::cell::RefCell;

use super::Task;
use super::panel::{IntPanel, LANES};
use super::prep::Aligned;
use super::simd::{Avx2, Avx512, Simd};
use crate::cpu::formats::Matrix;
use crate::cpu::isa::Isa;
use crate::ir::Layout;

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Decoded weights and activations in f32.
    F32,
    /// bf16 weights and activations rounded to bf16, sums in f32.
    Bf16,
    /// Block-quantised weights and int8 activations: exact integers per block, sums in f32.
    Int8,
}

impl Mode {
    /// Weight rows per task.
    pub(super) fn panel(self) -> usize {
        match self {
            Mode::F32 | Mode::Int8 => LANES,
            Mode::Bf16 => 32,
        }
    }
}

thread_local! {
    /// The panel being worked on.
    static PANEL: RefCell<Aligned> = RefCell::default();
}

/// Runs one task: rows `task.rows` for all its tokens.
pub(super) fn run_task(isa: Isa, mode: Mode, task: &Task<'_>) {
    PANEL.with_borrow_mut(|panel| {
        // SAFETY: the instruction set comes from detection; the matrix was checked, prepared rows are padded to whole
        // units, the panel is made as large as each function needs, and outputs belong to this task alone.
        unsafe {
            match (mode, isa) {
                (Mode::Int8, _) => int8(task, panel),
                (Mode::Bf16, _) => bf16(task, panel),
                (Mode::F32, Isa::Avx512) => f32_avx512(task, panel),
                (Mode::F32, _) => f32_avx2(task, panel),
            }
        }
    });
}

/// Decodes rows into a panel of `stride` values a row, padded with zeros.
fn decode_panel(task: &Task<'_>, panel: &mut Aligned, stride: usize) {
    let w = task.w;
    let n = task.rows.len();
    panel.reserve(n * stride);
    let out = &mut panel.as_mut_slice()[..n * stride];
    if w.layout == Layout::InOut {
        return decode_transposed(w, task.rows.start, n, out, stride);
    }
    for (r, out) in task.rows.clone().zip(out.chunks_exact_mut(stride)) {
        w.decode_row(r, out);
        out[w.cols..].fill(0.0);
    }
}

fn decode_transposed(w: &Matrix<'_>, first: usize, n: usize, out: &mut [f32], stride: usize) {
    let size = w.format.block_bytes();
    let mut line = [0.0f32; LANES];
    out.fill(0.0);
    for c in 0..w.cols {
        let at = (c * w.rows + first) * size;
        crate::cpu::formats::decode_elements(w.format, &w.data[at..at + n * size], &mut line[..n]);
        for (r, v) in line[..n].iter().enumerate() {
            out[r * stride + c] = *v;
        }
    }
}

/// Where a tile's outputs go.
#[inline(always)]
unsafe fn store(task: &Task<'_>, row: usize, token: usize, v: f32) {
    let v = v + task.bias.map_or(0.0, |b| b[row]);
    task.y[token].write(row - task.first_row, v);
}

#[inline(always)]
unsafe fn f32_tile<S: Simd, const R: usize, const T: usize>(
    task: &Task<'_>,
    panel: *const f32,
    stride: usize,
    row: usize,
    token: usize,
) {
    let mut x = [std::ptr::null(); T];
    for (x, p) in x.iter_mut().zip(&task.x[token..]) {
        *x = p.values.as_ptr();
    }
    let mut acc = [[S::zero(); T]; R];
    let mut k = 0;
    while k < stride {
        let mut w = [S::zero(); R];
        for (r, w) in w.iter_mut().enumerate() {
            *w = S::load(panel.add(r * stride + k));
        }
        for t in 0..T {
            let v = S::load(x[t].add(k));
            for r in 0..R {
                acc[r][t] = S::fma(w[r], v, acc[r][t]);
            }
        }
        k += S::LANES;
    }
    for (r, acc) in acc.iter().enumerate() {
        for (t, v) in acc.iter().enumerate() {
            store(task, row + r, token + t, S::sum(*v));
        }
    }
}

/// Walks over a panel in tiles of at most R rows by T tokens; `$tile!(r, t)` runs one.
macro_rules! tiles {
    ($task:ident, $R:literal, $T:literal, |$i:ident, $row:ident, $token:ident| ($r:ident, $t:ident) $call:expr) => {{
        let tokens = $task.x.len();
        let mut $token = 0;
        while $token < tokens {
            let t = if tokens - $token >= $T { $T } else { 1 };
            let mut $row = $task.rows.start;
            while $row < $task.rows.end {
                let r = if $task.rows.end - $row >= $R { $R } else { 1 };
                let $i = $row - $task.rows.start;
                match (r, t) {
                    ($R, $T) => {
                        const $r: usize = $R;
                        const $t: usize = $T;
                        $call
                    }
                    (_, $T) => {
                        const $r: usize = 1;
                        const $t: usize = $T;
                        $call
                    }
                    ($R, _) => {
                        const $r: usize = $R;
                        const $t: usize = 1;
                        $call
                    }
                    _ => {
                        const $r: usize = 1;
                        const $t: usize = 1;
                        $call
                    }
                }
                $row += r;
            }
            $token += t;
        }
    }};
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn f32_avx2(task: &Task<'_>, panel: &mut Aligned) {
    let stride = task.w.cols.next_multiple_of(32);
    decode_panel(task, panel, stride);
    let p = panel.as_slice().as_ptr();
    tiles!(task, 2, 4, |i, row, token| (R, T) f32_tile::<Avx2, R, T>(task, p.add(i * stride), stride, row, token));
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn f32_avx512(task: &Task<'_>, panel: &mut Aligned) {
    let stride = task.w.cols.next_multiple_of(32);
    decode_panel(task, panel, stride);
    let p = panel.as_slice().as_ptr();
    tiles!(task, 4, 6, |i, row, token| (R, T) f32_tile::<Avx512, R, T>(task, p.add(i * stride), stride, row, token));
}

#[inline(always)]
unsafe fn bf16_load(p: *const u8) -> __m512bh {
    std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(p.cast()))
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
#[inline]
unsafe fn bf16_tile<const R: usize, const T: usize>(
    task: &Task<'_>,
    w: *const u8,
    stride: usize,
    units: usize,
    row: usize,
    token: usize,
) {
    let mut x = [std::ptr::null::<u8>(); T];
    for (x, p) in x.iter_mut().zip(&task.x[token..]) {
        *x = p.values.as_ptr().cast();
    }
    let mut acc = [[_mm512_setzero_ps(); T]; R];
    for u in 0..units {
        let mut weights = [bf16_load(w.add(u * 64)); R];
        for (r, v) in weights.iter_mut().enumerate().skip(1) {
            *v = bf16_load(w.add(r * stride + u * 64));
        }
        for t in 0..T {
            let v = bf16_load(x[t].add(u * 64));
            for r in 0..R {
                acc[r][t] = _mm512_dpbf16_ps(acc[r][t], weights[r], v);
            }
        }
    }
    for (r, acc) in acc.iter().enumerate() {
        for (t, v) in acc.iter().enumerate() {
            store(task, row + r, token + t, <Avx512 as Simd>::sum(*v));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")]
unsafe fn bf16(task: &Task<'_>, panel: &mut Aligned) {
    let cols = task.w.cols;
    let units = cols.div_ceil(32);
    let bytes = task.w.row_bytes();
    let (w, stride) = if cols.is_multiple_of(32) {
        (task.w.row(task.rows.start).as_ptr(), bytes)
    } else {
        // Rows padded with zeros: 16 f32 slots hold 32 bf16.
        panel.reserve(task.rows.len() * units * 16);
        let out: &mut [u8] = bytemuck::cast_slice_mut(panel.as_mut_slice());
        for (r, out) in task.rows.clone().zip(out.chunks_exact_mut(units * 64)) {
            out[..bytes].copy_from_slice(task.w.row(r));
            out[bytes..].fill(0);
        }
        (out.as_ptr(), units * 64)
    };
    tiles!(task, 4, 6, |i, row, token| (R, T) bf16_tile::<R, T>(task, w.add(i * stride), stride, units, row, token));
}

/// 16 rows by T tokens; QUADS groups of four columns share a scale.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
#[inline]
unsafe fn int8_tile<const T: usize, const QUADS: usize, const MINS: bool>(
    task: &Task<'_>,
    panel: &IntPanel,
    token: usize,
) {
    let cols = task.w.cols;
    let mut x = [task.x[token].quants(cols); T];
    for (x, p) in x.iter_mut().zip(&task.x[token..]) {
        *x = p.quants(cols);
    }
    let mut acc = [_mm512_setzero_ps(); T];
    for b in 0..cols / (4 * QUADS) {
        let mut sums = [_mm512_loadu_si512(panel.correction.add(b * LANES).cast()); T];
        for g in 0..QUADS {
            let w = _mm512_loadu_si512(panel.w.add((b * QUADS + g) * 64).cast());
            for t in 0..T {
                let quad = x[t].q.add(4 * (b * QUADS + g)).cast::<i32>().read_unaligned();
                sums[t] = _mm512_dpbusd_epi32(sums[t], _mm512_set1_epi32(quad), w);
            }
        }
        let scales = _mm512_loadu_ps(panel.scales.add(b * LANES));
        let at = b * QUADS / 8;
        for t in 0..T {
            let scaled = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[t]), scales);
            acc[t] = _mm512_fmadd_ps(scaled, _mm512_set1_ps(*x[t].d.add(at)), acc[t]);
            if MINS {
                let mins = _mm512_loadu_ps(panel.mins.add(b * LANES));
                acc[t] = _mm512_fmadd_ps(mins, _mm512_set1_ps(*x[t].s.add(at)), acc[t]);
            }
        }
    }
    for (t, acc) in acc.iter().enumerate() {
        let mut out = [0.0f32; LANES];
        _mm512_storeu_ps(out.as_mut_ptr(), *acc);
        for (row, v) in task.rows.clone().zip(out) {
            store(task, row, token + t, v);
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
unsafe fn int8_tokens<const QUADS: usize, const MINS: bool>(task: &Task<'_>, panel: &IntPanel) {
    let tokens = task.x.len();
    let mut token = 0;
    while token < tokens {
        token += match tokens - token {
            8.. => {
                int8_tile::<8, QUADS, MINS>(task, panel, token);
                8
            }
            4..8 => {
                int8_tile::<4, QUADS, MINS>(task, panel, token);
                4
            }
            _ => {
                int8_tile::<1, QUADS, MINS>(task, panel, token);
                1
            }
        };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma")]
unsafe fn int8(task: &Task<'_>, panel: &mut Aligned) {
    let panel = IntPanel::new(task, panel);
    match (panel.sub, panel.has_mins) {
        (16, _) => int8_tokens::<4, false>(task, &panel),
        (_, true) => int8_tokens::<8, true>(task, &panel),
        (_, false) => int8_tokens::<8, false>(task, &panel),
    }
}

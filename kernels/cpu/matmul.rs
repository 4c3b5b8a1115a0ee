//! Products of activations with stored weights.
//!
//! A call is a list of [`Part`]s (a weight, some rows of it, some tokens). Activations are prepared once ([`prep`]),
//! then one parallel region computes all outputs: few tokens with dot kernels ([`dot`], [`qdot`]), many with packed
//! panels ([`gemm`]). Every output is summed by one task in an order fixed by the shape and the kernel, so results
//! depend neither on the number of threads nor on which other tokens are in the call.

#[cfg(target_arch = "x86_64")]
mod dot;
#[cfg(target_arch = "x86_64")]
mod gemm;
#[cfg(target_arch = "x86_64")]
mod panel;
mod prep;
#[cfg(target_arch = "x86_64")]
mod qdot;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod simd;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::ops::Range;

use super::Cpu;
use super::formats::Matrix;
use super::isa::Isa;
use crate::ir::{Format, Layout};
use prep::{Aligned, Kind, Prepared};

/// Up to this many tokens the dot kernels run.
const FEW: usize = 8;
/// From this many tokens on activations may be rounded to bf16.
const BF16_TOKENS: usize = 16;

/// One product of a shared input: `y[t] = W x[t] + bias`, y is `[tokens, w.rows]`.
pub struct Product<'w, 'y> {
    /// Weights.
    pub w: Matrix<'w>,
    /// Added to every row, `[w.rows]`.
    pub bias: Option<&'y [f32]>,
    /// Output, `[tokens, w.rows]`.
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

/// Where the outputs of one token start.
#[derive(Clone, Copy)]
struct Dst {
    ptr: *mut f32,
    len: usize,
}

// SAFETY: tasks write disjoint outputs (each weight row of a part belongs to one task), and the slices outlive the call.
unsafe impl Send for Dst {}
// SAFETY: as above.
unsafe impl Sync for Dst {}

impl Dst {
    fn new(y: &mut [f32]) -> Self {
        Self {
            ptr: y.as_mut_ptr(),
            len: y.len(),
        }
    }

    /// Stores output `i`.
    ///
    /// # Safety
    /// No other thread accesses output `i` during the call.
    #[inline(always)]
    unsafe fn write(&self, i: usize, v: f32) {
        debug_assert!(i < self.len);
        // SAFETY: `check` made sure that a token has an output for every row of its part.
        unsafe { *self.ptr.add(i) = v }
    }

    /// `len` outputs from `start` on.
    ///
    /// # Safety
    /// No other thread accesses them while the slice lives, and what this was made from outlives it.
    unsafe fn slice<'a>(&self, start: usize, len: usize) -> &'a mut [f32] {
        assert!(start + len <= self.len, "outside the outputs");
        // SAFETY: within the slice this was made from; the rest is the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}

/// Rows of one weight times some tokens.
struct Part<'a> {
    w: Matrix<'a>,
    bias: Option<&'a [f32]>,
    rows: Range<usize>,
    x: Vec<&'a [f32]>,
    y: Vec<Dst>,
}

/// One task of the dot kernels: `rows` for all prepared tokens.
struct Task<'a> {
    w: &'a Matrix<'a>,
    bias: Option<&'a [f32]>,
    rows: Range<usize>,
    x: &'a [Prepared<'a>],
    /// Output of weight row r is at `r - first_row`.
    y: &'a [Dst],
    first_row: usize,
}

/// Which kernel a part runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// Rows decoded to f32, f32 dot products.
    Decoded,
    /// Integer dot products in plain Rust.
    Quantised,
    /// `[in, out]` weights, row by row.
    Axpy,
    /// Vector dot kernels, f32 activations.
    Dot,
    /// Vector dot kernels, int8 activations.
    QDot,
    /// Packed panels.
    #[cfg(target_arch = "x86_64")]
    Gemm(gemm::Mode),
}

fn path(cpu: &Cpu, w: &Matrix<'_>, tokens: usize) -> Path {
    let quantised = Kind::of(w.format) == Kind::Int8;
    if quantised && cpu.exact_activations {
        return Path::Decoded;
    }
    #[cfg(target_arch = "x86_64")]
    if tokens > FEW && cpu.isa != Isa::Scalar {
        if quantised && cpu.isa.has_vnni() {
            return Path::Gemm(gemm::Mode::Int8);
        }
        if !quantised && cpu.isa.has_bf16() && bf16_rounding(cpu, w, tokens) {
            return Path::Gemm(gemm::Mode::Bf16);
        }
        if !quantised {
            return Path::Gemm(gemm::Mode::F32);
        }
    }
    let whole = w.scales.is_none_or(|s| s.spec.block_cols.is_multiple_of(32));
    match (w.layout, quantised, cpu.isa) {
        (Layout::InOut, _, _) => Path::Axpy,
        (_, true, Isa::Scalar) => Path::Quantised,
        (_, true, _) => Path::QDot,
        (_, false, Isa::Avx2 | Isa::Avx512) if whole => Path::Dot,
        _ => Path::Decoded,
    }
}

/// Whether activations of a prefill product are rounded to bf16.
fn bf16_rounding(cpu: &Cpu, w: &Matrix<'_>, tokens: usize) -> bool {
    let stored = w.format == Format::Bf16 && w.layout == Layout::OutIn;
    stored && cpu.bf16_activations && !cpu.exact_activations && tokens >= BF16_TOKENS
}

/// `y[t * stride + o] = sum_i x[t * w.cols + i] W[o, i] + bias[o]`.
pub fn matmul(cpu: &Cpu, x: &[f32], tokens: usize, w: &Matrix<'_>, bias: Option<&[f32]>, y: &mut [f32], stride: usize) {
    if tokens == 0 || w.rows == 0 {
        return;
    }
    let (y, stride) = (&mut y[..(tokens - 1) * stride + w.rows], stride.max(w.rows));
    let y = y.chunks_mut(stride).map(Dst::new).collect();
    run(cpu, &[part(w, bias, x, tokens, y)]);
}

/// Several products of one input `[tokens, cols]`, in one parallel region.
pub fn matmul_many(cpu: &Cpu, x: &[f32], tokens: usize, products: &mut [Product<'_, '_>]) {
    if tokens == 0 {
        return;
    }
    let mut parts = Vec::with_capacity(products.len());
    for p in products {
        if p.w.rows > 0 {
            let y = p.y[..tokens * p.w.rows].chunks_mut(p.w.rows).map(Dst::new).collect();
            parts.push(part(&p.w, p.bias, x, tokens, y));
        }
    }
    run(cpu, &parts);
}

fn part<'a>(w: &Matrix<'a>, bias: Option<&'a [f32]>, x: &'a [f32], tokens: usize, y: Vec<Dst>) -> Part<'a> {
    let x = (0..tokens).map(|t| &x[t * w.cols..(t + 1) * w.cols]).collect();
    Part {
        w: *w,
        bias,
        rows: 0..w.rows,
        x,
        y,
    }
}

/// Many small independent products in one parallel region. Neighbouring jobs on the same rows of the same weight share
/// one pass over it.
pub fn grouped(cpu: &Cpu, jobs: &mut [Job<'_, '_>]) {
    let mut parts: Vec<Part<'_>> = Vec::new();
    for j in jobs {
        let rows = j.first_row..j.first_row + j.y.len();
        let x = &j.x[..j.w.cols];
        let y = Dst::new(j.y);
        match parts.last_mut() {
            Some(p) if std::ptr::eq(p.w.data, j.w.data) && p.w.cols == j.w.cols && p.rows == rows => {
                p.x.push(x);
                p.y.push(y);
            }
            _ if rows.is_empty() => {}
            _ => parts.push(Part {
                w: j.w,
                bias: None,
                rows,
                x: vec![x],
                y: vec![y],
            }),
        }
    }
    run(cpu, &parts);
}

/// Panics unless every part lies within its matrix and its slices: the kernels use pointers.
fn check(p: &Part<'_>) {
    let n = p.rows.len();
    assert!(
        p.rows.end <= p.w.rows && p.bias.is_none_or(|b| b.len() >= p.w.rows),
        "rows outside the matrix"
    );
    assert!(
        p.x.len() == p.y.len() && p.y.iter().all(|y| y.len >= n),
        "an output is too short"
    );
    assert!(p.x.iter().all(|x| x.len() == p.w.cols), "an input is too short");
}

/// Prepared activations of all parts.
struct Activations {
    /// Distinct (kind, address, columns), sorted.
    keys: Vec<(Kind, usize, usize)>,
    starts: Vec<usize>,
    buffer: Aligned,
}

impl Activations {
    fn new<'a>(cpu: &Cpu, wanted: impl Iterator<Item = (Kind, &'a [f32])>) -> Self {
        let mut rows: Vec<(Kind, usize, usize, &[f32])> = wanted
            .map(|(kind, x)| (kind, x.as_ptr() as usize, x.len(), x))
            .collect();
        rows.sort_unstable_by_key(|r| (r.0, r.1, r.2));
        rows.dedup_by_key(|r| (r.0, r.1, r.2));
        let mut starts = Vec::with_capacity(rows.len());
        let mut end = 0;
        for r in &rows {
            starts.push(end);
            end += prep::row_len(r.0, r.2);
        }
        let mut buffer = Aligned::zeros(end);
        let slots = Dst::new(buffer.as_mut_slice());
        // Few rows are prepared sooner than another thread wakes up.
        let per_task = if rows.len() <= FEW {
            rows.len()
        } else {
            rows.len().div_ceil(2 * cpu.pool.threads())
        };
        cpu.pool.run(rows.len().div_ceil(per_task.max(1)), &|n| {
            for (r, start) in rows.iter().zip(&starts).skip(n * per_task).take(per_task) {
                // SAFETY: the parts of the rows follow each other in `buffer`; each row belongs to one task.
                let out = unsafe { slots.slice(*start, prep::row_len(r.0, r.2)) };
                prep::prepare(cpu.isa, r.0, r.3, out);
            }
        });
        Self {
            keys: rows.iter().map(|r| (r.0, r.1, r.2)).collect(),
            starts,
            buffer,
        }
    }

    fn get(&self, kind: Kind, x: &[f32]) -> Prepared<'_> {
        let key = (kind, x.as_ptr() as usize, x.len());
        let i = self.keys.binary_search(&key).unwrap_or(0);
        let start = self.starts[i];
        Prepared {
            values: &self.buffer.as_slice()[start..start + prep::row_len(kind, x.len())],
        }
    }
}

/// What a path's kernel reads.
fn kind(path: Path, w: &Matrix<'_>) -> Kind {
    match path {
        Path::Decoded | Path::Axpy => Kind::Natural,
        Path::Quantised | Path::QDot | Path::Dot => Kind::of(w.format),
        #[cfg(target_arch = "x86_64")]
        Path::Gemm(gemm::Mode::F32) => Kind::Natural,
        #[cfg(target_arch = "x86_64")]
        Path::Gemm(gemm::Mode::Bf16) => Kind::Bf16,
        #[cfg(target_arch = "x86_64")]
        Path::Gemm(gemm::Mode::Int8) => Kind::Uint8,
    }
}

/// Bytes of weights below which a task is not worth its start.
const TASK_BYTES: usize = 32_768;

/// Weight rows for each task: (part, rows). The dot kernels read memory as fast as it comes, which wants long stretches,
/// and threads do not get it equally fast: every task takes a part of what is left (at least an eighth of a fair share), so the
/// last ones are short and the threads finish together.
fn divide(cpu: &Cpu, parts: &[Part<'_>], paths: &[Path]) -> Vec<(usize, Range<usize>)> {
    let cost = |i: usize| (parts[i].w.row_bytes() * parts[i].x.len()).max(1);
    let fixed = |path: Path| match path {
        Path::Axpy => Some(256),
        #[cfg(target_arch = "x86_64")]
        Path::Gemm(mode) => Some(mode.panel()),
        _ => None,
    };
    let free = (0..parts.len()).filter(|&i| fixed(paths[i]).is_none());
    let all: usize = free.map(|i| cost(i) * parts[i].rows.len()).sum();
    let (mut left, mut tasks) = (all, Vec::new());
    for (i, part) in parts.iter().enumerate() {
        let mut start = part.rows.start;
        while start < part.rows.end {
            let rows = fixed(paths[i]).unwrap_or_else(|| {
                let bytes = (left / (2 * cpu.pool.threads()))
                    .max(all / (8 * cpu.pool.threads()))
                    .max(TASK_BYTES);
                (bytes / cost(i)).max(1).next_multiple_of(4)
            });
            let end = part.rows.end.min(start + rows);
            tasks.push((i, start..end));
            if fixed(paths[i]).is_none() {
                left -= (end - start) * cost(i);
            }
            start = end;
        }
    }
    tasks
}

fn run(cpu: &Cpu, parts: &[Part<'_>]) {
    parts.iter().for_each(check);
    let paths: Vec<Path> = parts.iter().map(|p| path(cpu, &p.w, p.x.len())).collect();
    let kinds: Vec<Kind> = parts.iter().zip(&paths).map(|(p, path)| kind(*path, &p.w)).collect();
    let wanted = parts.iter().zip(&kinds).flat_map(|(p, k)| p.x.iter().map(|x| (*k, *x)));
    let activations = Activations::new(cpu, wanted);
    let rows: Vec<Vec<Prepared<'_>>> = parts
        .iter()
        .zip(&kinds)
        .map(|(p, k)| p.x.iter().map(|x| activations.get(*k, x)).collect())
        .collect();
    let tasks = divide(cpu, parts, &paths);
    cpu.pool.run(tasks.len(), &|n| {
        let (i, rows_of_task) = &tasks[n];
        let p = &parts[*i];
        let task = Task {
            w: &p.w,
            bias: p.bias,
            rows: rows_of_task.clone(),
            x: &rows[*i],
            y: &p.y,
            first_row: p.rows.start,
        };
        match paths[*i] {
            Path::Decoded => scalar::decoded(cpu.isa, &task),
            Path::Quantised => scalar::quantised(&task),
            Path::Axpy => scalar::axpy_rows(cpu.isa, &task),
            #[cfg(target_arch = "x86_64")]
            Path::Dot => dot::run_task(cpu.isa, &task),
            #[cfg(target_arch = "x86_64")]
            Path::QDot => qdot::run_task(cpu.isa, &task),
            #[cfg(target_arch = "x86_64")]
            Path::Gemm(mode) => gemm::run_task(cpu.isa, mode, &task),
            #[cfg(not(target_arch = "x86_64"))]
            Path::Dot | Path::QDot => scalar::decoded(cpu.isa, &task),
        }
    });
}

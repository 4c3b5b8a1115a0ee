//! Activations in the form the kernels read them.

use crate::cpu::isa::Isa;
use crate::ir::Format;

/// Activations meet e4m3 weights that are 2^-120 of their value: 2^96 here and 2^24 on the result make up for it, and
/// nothing overflows or fades for activations below 2^31.
const E4M3_PRE: f32 = f32::from_bits((127 + 96) << 23);
/// See [`E4M3_PRE`].
pub(super) const E4M3_POST: f32 = f32::from_bits((127 + 24) << 23);

/// A form of activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// f32, padded with zeros to whole units.
    Natural,
    /// As `Natural`, times 2^96.
    E4m3,
    /// Within each unit the even columns, then the odd ones.
    EvenOdd,
    /// int8 blocks of 32: scale amax / 127, and scale times the sum of the quants.
    Int8,
    /// As `Int8`, the quants with 128 added (unsigned).
    Uint8,
    /// bf16, padded with zeros to whole units.
    Bf16,
}

impl Kind {
    /// What the dot kernels of a format read.
    pub(super) fn of(format: Format) -> Kind {
        match format {
            Format::Bf16 | Format::Fp4E2m1 => Kind::EvenOdd,
            Format::F8E4m3 => Kind::E4m3,
            Format::F32 | Format::F16 | Format::I32 | Format::I64 => Kind::Natural,
            _ => Kind::Int8,
        }
    }
}

/// 64 aligned bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// Aligned f32 scratch.
#[derive(Default)]
pub(super) struct Aligned(Vec<Line>);

impl Aligned {
    /// At least `n` zeros.
    pub(super) fn zeros(n: usize) -> Self {
        Self(vec![Line([0.0; 16]); n.div_ceil(16)])
    }

    /// Makes room for `n` values (old contents stay, new ones are zero).
    pub(super) fn reserve(&mut self, n: usize) {
        if self.0.len() * 16 < n {
            self.0.resize(n.div_ceil(16), Line([0.0; 16]));
        }
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        // SAFETY: Line is 16 f32 without padding.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() * 16) }
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: Line is 16 f32 without padding.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), self.0.len() * 16) }
    }
}

/// A prepared row: f32 in some [`Kind`]'s order, or the three parts of an int8 row.
#[derive(Clone, Copy)]
pub(super) struct Prepared<'a> {
    pub values: &'a [f32],
}

/// Where the parts of an int8 row are: 32 quants per block, its scale, its scaled sum.
#[derive(Clone, Copy)]
pub(super) struct QRow {
    pub q: *const i8,
    pub d: *const f32,
    pub s: *const f32,
}

impl<'a> Prepared<'a> {
    /// Parts of an int8 row of `cols` columns, as slices.
    pub(super) fn parts(&self, cols: usize) -> (&'a [i8], &'a [f32], &'a [f32]) {
        let nb = cols / 32;
        let (q, rest) = self.values.split_at(nb * 8);
        (bytemuck::cast_slice(q), &rest[..nb], &rest[nb..2 * nb])
    }

    /// The same as pointers.
    pub(super) fn quants(&self, cols: usize) -> QRow {
        let (q, d, s) = self.parts(cols);
        QRow {
            q: q.as_ptr(),
            d: d.as_ptr(),
            s: s.as_ptr(),
        }
    }
}

/// f32 slots a prepared row takes.
pub(super) fn row_len(kind: Kind, cols: usize) -> usize {
    match kind {
        Kind::Int8 | Kind::Uint8 => (cols / 32 * 10).next_multiple_of(16),
        Kind::Bf16 => cols.next_multiple_of(32) / 2,
        _ => cols.next_multiple_of(32),
    }
}

#[inline(always)]
fn quantise_block(x: &[f32; 32], q: &mut [i8; 32]) -> (f32, f32) {
    let mut lanes = [0.0f32; 16];
    let mut poison = [0.0f32; 16];
    for i in 0..16 {
        lanes[i] = x[i].abs().max(x[i + 16].abs());
        poison[i] = x[i] * 0.0 + x[i + 16] * 0.0;
    }
    let amax = lanes.iter().fold(0.0f32, |m, v| m.max(*v));
    // NaN or an infinity in a block makes all of it NaN instead of vanishing.
    let poison: f32 = poison.iter().sum();
    let d = amax / 127.0 + poison;
    let id = if amax > 0.0 { 127.0 / amax } else { 0.0 };
    let mut sum = [0i32; 32];
    for i in 0..32 {
        let v = (x[i] * id).round_ties_even() as i32;
        sum[i] = v;
        q[i] = v as i8;
    }
    (d, d * sum.iter().sum::<i32>() as f32)
}

#[inline(always)]
fn quantise_body(x: &[f32], out: &mut [f32]) {
    let nb = x.len() / 32;
    let (q, rest) = out.split_at_mut(nb * 8);
    let q: &mut [i8] = bytemuck::cast_slice_mut(q);
    let (d, s) = rest.split_at_mut(nb);
    let (x, _) = x.as_chunks::<32>();
    let (q, _) = q.as_chunks_mut::<32>();
    for (((x, q), d), s) in x.iter().zip(q).zip(d).zip(s) {
        (*d, *s) = quantise_block(x, q);
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
fn quantise_avx512(x: &[f32], out: &mut [f32]) {
    quantise_body(x, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn quantise_avx2(x: &[f32], out: &mut [f32]) {
    quantise_body(x, out);
}

fn quantise(isa: Isa, x: &[f32], out: &mut [f32]) {
    match isa {
        // SAFETY: the instruction set comes from detection.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { quantise_avx512(x, out) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { quantise_avx2(x, out) },
        _ => quantise_body(x, out),
    }
}

fn round_to_bf16(x: &[f32], out: &mut [f32]) {
    let out: &mut [u16] = bytemuck::cast_slice_mut(out);
    for (o, x) in out.iter_mut().zip(x) {
        *o = half::bf16::from_f32(*x).to_bits();
    }
}

/// Prepares one row into zeroed (at the padding) slots of [`row_len`].
pub(super) fn prepare(isa: Isa, kind: Kind, x: &[f32], out: &mut [f32]) {
    match kind {
        Kind::Natural => out[..x.len()].copy_from_slice(x),
        Kind::E4m3 => out.iter_mut().zip(x).for_each(|(o, x)| *o = x * E4M3_PRE),
        Kind::EvenOdd => {
            let half = if isa == Isa::Avx512 { 16 } else { 8 };
            for (o, x) in out.chunks_exact_mut(2 * half).zip(x.chunks(2 * half)) {
                if x.len() == 2 * half {
                    for i in 0..half {
                        o[i] = x[2 * i];
                        o[half + i] = x[2 * i + 1];
                    }
                } else {
                    x.iter().enumerate().for_each(|(i, x)| o[i / 2 + half * (i % 2)] = *x);
                }
            }
        }
        Kind::Int8 => quantise(isa, x, out),
        Kind::Uint8 => {
            quantise(isa, x, out);
            let quants: &mut [u8] = bytemuck::cast_slice_mut(&mut out[..x.len() / 32 * 8]);
            quants.iter_mut().for_each(|q| *q ^= 0x80);
        }
        Kind::Bf16 => round_to_bf16(x, out),
    }
}

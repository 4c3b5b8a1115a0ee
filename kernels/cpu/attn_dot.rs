//! Vector building blocks, one source per function, compiled for each instruction set.
//!
//! Each body works on fixed-width lanes that the compiler turns into vector registers; the AVX2 and AVX-512 forms use
//! fused multiply-adds, the scalar form does not, so results differ between instruction sets in the last bits only.

use super::isa::Isa;

/// Lanes of partial sums: four 512-bit registers.
const LANES: usize = 64;

#[inline(always)]
fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines `fn name(isa, args..)` that dispatches to the body compiled for the instruction set.
macro_rules! multi {
    ($(#[$doc:meta])* $name:ident, $body:ident, ($($arg:ident : $ty:ty),*) $(-> $ret:ty)?) => {
        $(#[$doc])*
        pub fn $name(isa: Isa, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                match isa {
                    // SAFETY: Isa values other than Scalar come from detection on this processor.
                    Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    Isa::Scalar => {}
                }
            }
            let _ = isa;
            $body::<false>($($arg),*)
        }
    };
}

#[inline(always)]
fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    let mut l = *lanes;
    while width > 0 {
        for i in 0..width {
            l[i] += l[i + width];
        }
        width /= 2;
    }
    l[0]
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let n = a.len().min(b.len());
    let (a, b) = (&a[..n], &b[..n]);
    let mut lanes = [0.0f32; LANES];
    let (ac, bc) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for i in 0..LANES {
            lanes[i] = madd::<FMA>(x[i], y[i], lanes[i]);
        }
    }
    let (ac, bc) = (ar.chunks_exact(16), br.chunks_exact(16));
    let (ar, br) = (ac.remainder(), bc.remainder());
    for (x, y) in ac.zip(bc) {
        for i in 0..16 {
            lanes[i] = madd::<FMA>(x[i], y[i], lanes[i]);
        }
    }
    let mut sum = sum_lanes(&lanes);
    for (x, y) in ar.iter().zip(br) {
        sum = madd::<FMA>(*x, *y, sum);
    }
    sum
}
multi!(
    /// Sum of a[i] * b[i] over the shorter length, f32.
    dot_f32, dot_body, (a: &[f32], b: &[f32]) -> f32
);

#[inline(always)]
fn axpy_body<const FMA: bool>(alpha: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = madd::<FMA>(alpha, *x, *y);
    }
}
multi!(
    /// y += alpha * x.
    axpy_f32, axpy_body, (alpha: f32, x: &[f32], y: &mut [f32])
);

/// 16 partial sums of a product.
type Sums = [f32; 16];

#[inline(always)]
fn add<const FMA: bool>(sums: &mut Sums, a: &[f32; 16], b: &[f32; 16]) {
    for i in 0..16 {
        sums[i] = madd::<FMA>(a[i], b[i], sums[i]);
    }
}

/// The sum of the partial sums and of what is left of both rows.
#[inline(always)]
fn total<const FMA: bool>(sums: &Sums, a: &[f32], b: &[f32]) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| sums[i] + sums[i + 8]);
    let four: [f32; 4] = std::array::from_fn(|i| eight[i] + eight[i + 4]);
    let sum = (four[0] + four[2]) + (four[1] + four[3]);
    a.iter().zip(b).fold(sum, |sum, (a, b)| madd::<FMA>(*a, *b, sum))
}

/// Four rows share a pass over the query; additions have the same order in every row.
#[inline(always)]
fn dots_body<const FMA: bool>(query: &[f32], rows: &[f32], stride: usize, scale: f32, out: &mut [f32]) {
    let (d, whole) = (query.len(), out.len() / 4 * 4);
    let (q, q_rest) = query.as_chunks::<16>();
    let row = |j: usize| rows[j * stride..][..d].as_chunks::<16>();
    for j in (0..whole).step_by(4) {
        let ((r0, rest0), (r1, rest1), (r2, rest2), (r3, rest3)) = (row(j), row(j + 1), row(j + 2), row(j + 3));
        // Four variables instead of an array: that is what keeps them in registers.
        let (mut s0, mut s1, mut s2, mut s3) = ([0.0; 16], [0.0; 16], [0.0; 16], [0.0; 16]);
        for ((((q, r0), r1), r2), r3) in q.iter().zip(r0).zip(r1).zip(r2).zip(r3) {
            add::<FMA>(&mut s0, q, r0);
            add::<FMA>(&mut s1, q, r1);
            add::<FMA>(&mut s2, q, r2);
            add::<FMA>(&mut s3, q, r3);
        }
        out[j] = total::<FMA>(&s0, q_rest, rest0) * scale;
        out[j + 1] = total::<FMA>(&s1, q_rest, rest1) * scale;
        out[j + 2] = total::<FMA>(&s2, q_rest, rest2) * scale;
        out[j + 3] = total::<FMA>(&s3, q_rest, rest3) * scale;
    }
    for (j, out) in out.iter_mut().enumerate().skip(whole) {
        let (r, rest) = row(j);
        let mut sums = [0.0; 16];
        q.iter().zip(r).for_each(|(q, r)| add::<FMA>(&mut sums, q, r));
        *out = total::<FMA>(&sums, q_rest, rest) * scale;
    }
}
multi!(
    /// out[j] = scale * (query . row j), for rows `stride` values apart.
    dot_rows, dots_body, (query: &[f32], rows: &[f32], stride: usize, scale: f32, out: &mut [f32])
);

#[inline(always)]
fn axpys_part<const FMA: bool, const N: usize>(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    let mut sum = [0.0f32; N];
    sum.copy_from_slice(out);
    for (j, w) in weights.iter().enumerate() {
        let row = &rows[j * stride..][..N];
        for i in 0..N {
            sum[i] = madd::<FMA>(*w, row[i], sum[i]);
        }
    }
    out.copy_from_slice(&sum);
}

#[inline(always)]
fn axpys_body<const FMA: bool>(weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32]) {
    if weights.is_empty() {
        return;
    }
    let mut at = 0;
    let mut parts = out.chunks_exact_mut(64);
    for part in &mut parts {
        axpys_part::<FMA, 64>(weights, &rows[at..], stride, part);
        at += 64;
    }
    let mut parts = parts.into_remainder().chunks_exact_mut(8);
    for part in &mut parts {
        axpys_part::<FMA, 8>(weights, &rows[at..], stride, part);
        at += 8;
    }
    for part in parts.into_remainder().chunks_exact_mut(1) {
        axpys_part::<FMA, 1>(weights, &rows[at..], stride, part);
        at += 1;
    }
}
multi!(
    /// out += sum over j of weights[j] * row j, added in order, for rows `stride` values apart.
    axpy_rows, axpys_body, (weights: &[f32], rows: &[f32], stride: usize, out: &mut [f32])
);

#[inline(always)]
fn scale_body<const FMA: bool>(alpha: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|v| *v *= alpha);
}
multi!(
    /// x *= alpha.
    scale_f32, scale_body, (alpha: f32, x: &mut [f32])
);

/// e^x for x <= 0 or so: 2^n * polynomial on [-ln2/2, ln2/2], relative error below 2e-7; -inf and very small give 0.
#[inline(always)]
fn exp_lane<const FMA: bool>(x: f32) -> f32 {
    let x = x.clamp(-104.0, 88.0);
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    let shifted = madd::<FMA>(x, std::f32::consts::LOG2_E, 12_582_912.0);
    let n = shifted - 12_582_912.0;
    let r = madd::<FMA>(n, -0.693_359_4, x);
    let r = madd::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.388_889_5e-3;
    for c in [8.333_37e-3, 4.166_664_6e-2, 1.666_666_6e-1, 0.5, 1.0, 1.0] {
        p = madd::<FMA>(p, r, c);
    }
    // Two factors, so that results below the smallest normal number fade to zero instead of wrapping.
    let k = n as i32;
    let half = k >> 1;
    let two = |e: i32| f32::from_bits(((e + 127) as u32) << 23);
    p * two(half) * two(k - half)
}

#[inline(always)]
fn exp_softmax_body<const FMA: bool>(x: &mut [f32], max: f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut chunks = x.chunks_exact_mut(16);
    for c in &mut chunks {
        for i in 0..16 {
            let e = if c[i] == f32::NEG_INFINITY {
                0.0
            } else {
                exp_lane::<FMA>(c[i] - max)
            };
            c[i] = e;
            lanes[i] += e;
        }
    }
    let mut sum = sum_lanes(&lanes);
    for v in chunks.into_remainder() {
        *v = if *v == f32::NEG_INFINITY {
            0.0
        } else {
            exp_lane::<FMA>(*v - max)
        };
        sum += *v;
    }
    sum
}
multi!(
    /// x[i] = e^(x[i] - max); returns their sum. -inf gives exactly 0.
    exp_softmax, exp_softmax_body, (x: &mut [f32], max: f32) -> f32
);

#[inline(always)]
fn rmsnorm_body<const FMA: bool>(x: &mut [f32], weight: Option<&[f32]>, eps: f32) {
    let scale = 1.0 / (dot_body::<FMA>(x, x) / x.len() as f32 + eps).sqrt();
    match weight {
        Some(w) => x.iter_mut().zip(w).for_each(|(v, w)| *v = *v * scale * w),
        None => x.iter_mut().for_each(|v| *v *= scale),
    }
}
multi!(
    /// x = x / sqrt(mean(x^2) + eps) * weight (1 without weight), in place.
    rmsnorm_row, rmsnorm_body, (x: &mut [f32], weight: Option<&[f32]>, eps: f32)
);

#[inline(always)]
fn silu_mul_body<const FMA: bool>(gate: &mut [f32], up: &[f32], limit: Option<f32>) {
    let l = limit.unwrap_or(f32::INFINITY);
    for (g, &u) in gate.iter_mut().zip(up) {
        let a = g.min(l);
        let b = u.max(-l).min(l);
        *g = a / (1.0 + exp_lane::<FMA>(-a)) * b;
    }
}
multi!(
    /// gate = silu(min(gate, limit)) * clamp(up, -limit, limit), in place.
    silu_mul_row, silu_mul_body, (gate: &mut [f32], up: &[f32], limit: Option<f32>)
);

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u64) -> Vec<f32> {
        let mut s = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..n)
            .map(|_| {
                s ^= s << 13;
                s ^= s >> 7;
                s ^= s << 17;
                (s >> 40) as f32 / 8_388_608.0 - 1.0
            })
            .collect()
    }

    #[test]
    fn all_instruction_sets_agree_with_f64() {
        for isa in Isa::available() {
            for n in [0, 1, 15, 16, 17, 63, 64, 100, 576, 1000] {
                let (a, b) = (noise(n, 1), noise(n, 2));
                let want: f64 = a.iter().zip(&b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                assert!((f64::from(dot_f32(isa, &a, &b)) - want).abs() < 1e-5 * (n as f64).sqrt().max(1.0));
                let mut y = b.clone();
                axpy_f32(isa, 0.3, &a, &mut y);
                assert!(
                    y.iter()
                        .zip(a.iter().zip(&b))
                        .all(|(y, (a, b))| (y - (0.3 * a + b)).abs() < 1e-6)
                );
                let mut z: Vec<f32> = a.iter().map(|v| v * 40.0).collect();
                let before = z.clone();
                let sum = exp_softmax(isa, &mut z, 40.0);
                let want: f64 = before.iter().map(|v| f64::from(*v - 40.0).exp()).sum();
                assert!((f64::from(sum) - want).abs() <= 1e-6 * want.max(1e-30), "{sum} {want}");
                for (z, v) in z.iter().zip(&before) {
                    // The argument is rounded to f32 first.
                    let want = f64::from(*v - 40.0).exp();
                    assert!((f64::from(*z) - want).abs() <= 4e-7 * want, "{isa:?} {v} {z} {want}");
                }
                let mut g = noise(n, 3).iter().map(|v| v * 20.0).collect::<Vec<_>>();
                let g0 = g.clone();
                silu_mul_row(isa, &mut g, &a, Some(1.5));
                for ((g, g0), u) in g.iter().zip(&g0).zip(&a) {
                    let x = f64::from(g0.min(1.5));
                    let want = x / (1.0 + (-x).exp()) * f64::from(u.clamp(-1.5, 1.5));
                    assert!(
                        (f64::from(*g) - want).abs() < 1e-6 * want.abs().max(1e-3),
                        "{g0} {g} {want}"
                    );
                }
            }
        }
    }

    /// Several rows at once: as one at a time, whatever their number and distance.
    #[test]
    fn rows_at_once() {
        for isa in Isa::available() {
            for (d, stride, n) in [
                (128, 128, 64),
                (64, 200, 7),
                (37, 40, 5),
                (8, 8, 3),
                (1, 1, 2),
                (100, 100, 0),
            ] {
                let (query, rows) = (noise(d, 1), noise(n * stride, 2));
                let mut out = vec![0.0; n];
                dot_rows(isa, &query, &rows, stride, 0.5, &mut out);
                for (j, out) in out.iter().enumerate() {
                    let row = &rows[j * stride..][..d];
                    let want: f64 = query.iter().zip(row).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                    assert!((f64::from(*out) - 0.5 * want).abs() < 1e-5, "{isa:?} {d} {j}");
                    let mut alone = [0.0];
                    dot_rows(isa, &query, row, stride, 0.5, &mut alone);
                    assert_eq!(alone[0], *out, "{isa:?} {d} {j}");
                }
                let mut want = noise(d, 3);
                let mut sum = want.clone();
                axpy_rows(isa, &out, &rows, stride, &mut sum);
                for (j, w) in out.iter().enumerate() {
                    axpy_f32(isa, *w, &rows[j * stride..][..d], &mut want);
                }
                assert_eq!(sum, want, "{isa:?} {d}");
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero_and_tails_fade() {
        for isa in Isa::available() {
            let mut x = vec![f32::NEG_INFINITY, -200.0, -90.0, 0.0];
            let sum = exp_softmax(isa, &mut x, 0.0);
            assert_eq!(x[0], 0.0);
            assert!(x[1] < 1e-44 && x[2] > 0.0 && x[2] < 1e-38);
            assert_eq!(sum, 1.0);
        }
    }
}

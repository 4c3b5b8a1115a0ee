//! The same as in `far.rs` in the sizes of real models, and caches whose addresses need more than 32 bits: for a GPU.

use kernels::ir::{CacheFormat, CacheRows, Component, KeyRows, KeySource, Mask, Op, Positions};

use super::attention::{dense, programs, scored};
use super::far::{Far, LONG, dense_and_q, exactly, far, until};
use super::many::Latents;
use super::{Case, On};

/// Runs a case up to a full context, on two backends; says what it was and how far from the reference.
fn run(on: &On, c: &Case, far_off: Far<'_>) -> String {
    let twice = Far { twice: true, ..far_off };
    format!("{}: {:.1e}\n", twice.what, far(on, c, &twice))
}

/// The same beside the CPU.
fn full(on: &On, c: &Case, what: &str, steps: &[usize]) -> String {
    let end = until(c.plan.context_bucket, what, steps);
    // What the CPU's sums lose grows with their length.
    let length = (c.plan.context_bucket / LONG).clamp(1, 4) as f64;
    let limit = end.limit * length;
    run(on, c, Far { limit, ..end })
}

pub(super) fn attention(on: &On) -> String {
    let all = [
        CacheFormat::F32,
        CacheFormat::Bf16,
        CacheFormat::Fp8B64,
        CacheFormat::Fp4,
    ];
    let mut cases: Vec<(CacheFormat, (usize, usize, usize), usize)> = Vec::new();
    cases.extend(all.map(|f| (f, (12, 2, 128), 1)));
    cases.extend([
        (CacheFormat::Bf16, (32, 8, 128), 1),
        (CacheFormat::Bf16, (12, 2, 128), 8),
        (CacheFormat::Fp8B64, (12, 2, 128), 16),
        (CacheFormat::Bf16, (2, 1, 64), 512),
        (CacheFormat::F32, (2, 1, 64), 128),
        (CacheFormat::Bf16, (2, 1, 256), 64),
    ]);
    let mut text = String::new();
    for (format, shape, tokens) in cases {
        let mut c = Case::new(tokens, LONG);
        dense_and_q(&mut c, shape, format, Mask::None, true);
        let what = format!("{format:?} {shape:?}, {tokens} tokens");
        text += &match tokens {
            1..=8 => run(on, &c, exactly(LONG, &format!("{what}, double precision"), &[tokens])),
            _ => full(on, &c, &what, &[tokens]),
        };
    }
    text
}

/// Masks that choose by scores, and expressions in their place.
pub(super) fn choices(on: &On) -> String {
    let mut text = String::new();
    for mask in [Mask::TopK { k: 2000 }, Mask::BlockSkip { threshold: 3e-4 }] {
        for format in [CacheFormat::F32, CacheFormat::Bf16] {
            let mut c = Case::new(1, LONG);
            dense(&mut c, (4, 2, 64), format, mask, false);
            let what = format!("{format:?} {mask:?}");
            text += &full(on, &c, &what, &[1]);
        }
    }
    for (i, program) in programs().into_iter().enumerate() {
        let mut c = Case::new(1, LONG);
        scored(
            &mut c,
            (2, 1, 64),
            CacheFormat::Bf16,
            (Mask::None, Some(program)),
            false,
        );
        let what = format!("score program {i}");
        text += &full(on, &c, &what, &[1]);
    }
    text
}

/// Layers of the released shape: 16 heads of 512, a window of 128, 512 rows chosen by 16 heads of 128.
fn layer(chosen: bool, rate: usize, index: CacheFormat) -> Latents {
    Latents {
        heads: 16,
        width: 512,
        rope: 64,
        format: CacheFormat::Fp8Model1,
        rate,
        chosen: chosen.then_some(512),
        window: 128,
        sinks: true,
        index: (index, 16, 128),
    }
}

pub(super) fn model1(on: &On) -> String {
    let cases = [
        (true, 4, CacheFormat::Fp8B64, 1),
        (true, 4, CacheFormat::Fp4, 1),
        (true, 4, CacheFormat::Fp4, 8),
        (true, 4, CacheFormat::Fp8V32, 128),
        (false, 4, CacheFormat::F32, 1),
        (false, 4, CacheFormat::F32, 32),
        (false, 128, CacheFormat::F32, 1),
        (false, 128, CacheFormat::F32, 512),
    ];
    let mut text = String::new();
    for (chosen, rate, index, tokens) in cases {
        let mut c = Case::new(tokens, LONG);
        layer(chosen, rate, index).plan(&mut c);
        let rows = if chosen { "512 chosen" } else { "all" };
        let what = format!(
            "rate {rate}, {rows} of {} rows, {index:?} index, {tokens} tokens",
            LONG / rate
        );
        text += &full(on, &c, &what, &[tokens]);
    }
    text
}

/// Records of all heads in one cache, keys that are values: half the memory of two.
fn shared(c: &mut Case, (heads, d): (usize, usize), format: CacheFormat, mask: Mask) {
    let (x, q, out) = (c.input(heads * d, 1.0), c.input(heads * d, 1.0), c.floats(heads * d));
    let keys = c.rows(Component::Keys, CacheRows::Growing { rate: 1 }, heads, (d, 0), format);
    c.op(Op::CacheWrite {
        src: x,
        cache: keys,
        rows: Positions::Tokens,
    });
    c.op(Op::Attend {
        q,
        out,
        heads,
        kv_heads: heads,
        head_dim: d,
        scale: 1.0 / (d as f32).sqrt(),
        sources: vec![KeySource {
            keys,
            values: keys,
            rows: KeyRows::Causal,
        }],
        sinks: None,
        mask,
        score: None,
    });
    c.probe(out, "attention");
}

/// Bytes of the case's caches on the device.
fn cache_bytes(c: &Case) -> u64 {
    let of = |d: &kernels::ir::CacheDesc| match d.rows {
        CacheRows::Ring { .. } => 0,
        CacheRows::Growing { rate } => {
            let (data, scales) = d.row_bytes();
            (c.plan.context_bucket / rate * (data + scales)) as u64
        }
    };
    c.plan.caches.iter().map(of).sum()
}

/// Runs a case whose caches take more bytes than 32 bits count, where the device has room.
fn beyond_one(on: &On, c: &Case, what: &str, steps: &[usize]) -> String {
    let (bytes, free) = (cache_bytes(c), on.first().device_memory().unwrap().map_or(0, |m| m.0));
    let what = format!("{what}, {:.1} GiB of caches", bytes as f64 / f64::from(1 << 30));
    if free < bytes * 5 / 4 {
        return format!(
            "{what}: left out, {:.1} GiB are free\n",
            free as f64 / f64::from(1 << 30)
        );
    }
    full(on, c, &what, steps)
}

pub(super) fn beyond(on: &On) -> String {
    let mut text = String::new();
    let window = Mask::SlidingWindow { window: 1000, sinks: 3 };
    let dense = [
        (CacheFormat::F32, 66, LONG, 1, Mask::None),
        (CacheFormat::Bf16, 66, 2 * LONG, 1, Mask::None),
        (CacheFormat::Bf16, 66, 2 * LONG, 64, window),
        (CacheFormat::Fp8V32, 66, 4 * LONG, 4, window),
    ];
    for (format, heads, context, tokens, mask) in dense {
        let mut c = Case::new(tokens, context);
        shared(&mut c, (heads, 128), format, mask);
        let what = format!("{heads} heads x 128 {format:?} at {context} tokens, {tokens} at once, {mask:?}");
        text += &beyond_one(on, &c, &what, &[tokens]);
    }
    // 8,388,608 pages of 584 bytes; with one token, the indexer's rows too pass 4 GiB.
    for (tokens, index) in [(1, (CacheFormat::Bf16, 1, 264)), (16, (CacheFormat::Fp4, 1, 32))] {
        let mut c = Case::new(tokens, 1 << 25);
        let latents = Latents {
            index,
            ..layer(true, 4, CacheFormat::F32)
        };
        latents.plan(&mut c);
        let what = format!("512 of 8,388,608 pages, {tokens} tokens, {:?} index", index.0);
        text += &beyond_one(on, &c, &what, &[tokens]);
    }
    text
}

//! Attention that skips blocks never leaves out one that holds more than the threshold: random and adversarial keys.
//! Values say which block they belong to, so that an output is the list of what was kept.

use kernels::cpu::Cpu;
use kernels::cpu::exec::CpuBackend;
use kernels::ir::{CacheFormat, CacheRows, Component, KeyRows, KeySource, LayerStats, Mask, Op, Positions, SKIP_BLOCK};
use model1_tests::table::{Case, Random};
use proptest::prelude::*;

/// Values per head: one per block.
const DIM: usize = 64;
/// Keys: as many blocks as values.
const KEYS: usize = DIM * SKIP_BLOCK;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
/// Chunks that end within blocks, and single tokens.
const STEPS: [usize; 7] = [1000, 5, 1, 26, 1, 700, KEYS - 1733];

/// Keys that are easy and hard to bound.
#[derive(Clone, Copy, Debug)]
enum Keys {
    /// All alike in kind.
    Normal,
    /// One key per block points at the query, the others cancel it: the block's centre says nothing.
    Needles,
    /// Blocks with centres of their own and little around them.
    Clusters,
    /// A few dimensions a thousand times larger than the rest.
    Outliers,
    /// Every key the same: all blocks hold the same.
    Equal,
    /// Turning with the position, at many speeds.
    Rotating,
}

const KINDS: [Keys; 6] = [
    Keys::Normal,
    Keys::Needles,
    Keys::Clusters,
    Keys::Outliers,
    Keys::Equal,
    Keys::Rotating,
];

/// `[KEYS][DIM]`.
fn keys(kind: Keys, scale: f32, r: &mut Random) -> Vec<f32> {
    let mut out = Vec::with_capacity(KEYS * DIM);
    let mut centre = vec![0.0; DIM];
    for row in 0..KEYS {
        if row % SKIP_BLOCK == 0 {
            centre = (0..DIM).map(|_| r.normal(scale)).collect();
        }
        for (d, c) in centre.iter().enumerate() {
            out.push(match kind {
                Keys::Normal => r.normal(scale),
                Keys::Needles if row % SKIP_BLOCK == 17 => 3.0 * c,
                Keys::Needles => -c / 10.0 + r.normal(0.01),
                Keys::Clusters => c + r.normal(0.02 * scale),
                Keys::Outliers if d < 3 => r.normal(1000.0 * scale),
                Keys::Outliers => r.normal(scale / 100.0),
                Keys::Equal => 0.3 * scale,
                Keys::Rotating => {
                    let angle = row as f32 * 10f32.powf(-(d as f32) / 16.0);
                    scale * if d % 2 == 0 { angle.cos() } else { angle.sin() }
                }
            });
        }
    }
    out
}

/// Rows of several heads side by side: `[KEYS][heads * DIM]`.
fn side_by_side(heads: &[Vec<f32>]) -> Vec<f32> {
    let row = |i: usize| heads.iter().flat_map(move |h| h[i * DIM..(i + 1) * DIM].to_vec());
    (0..KEYS).flat_map(row).collect()
}

/// A buffer that holds row p of `values` for the token at position p.
fn by_position(c: &mut Case, values: &[f32]) -> kernels::ir::BufId {
    let width = values.len() / KEYS;
    let x = c.given(width, &vec![0.0; width * 1100]);
    let table = c.values(KEYS, width, values);
    c.op(Op::EmbedPosition { table, x });
    x
}

/// Runs the op over all keys and looks at every 31st query: what was left out held at most the threshold, what stayed held
/// more or was the heaviest. Returns the share of the keys that was scored, and that was kept.
fn check(
    kind: Keys,
    seed: u64,
    threshold: f32,
    (scale, sharp): (f32, f32),
    format: CacheFormat,
    sink: bool,
) -> (f64, f64) {
    let mut r = Random(seed);
    let mut c = Case::new(1024, 4096);
    let k: Vec<Vec<f32>> = (0..KV_HEADS).map(|_| keys(kind, scale, &mut r)).collect();
    // Queries look at some key, more or less sharply.
    let q: Vec<Vec<f32>> = (0..HEADS)
        .map(|h| {
            let mut query = || {
                let at = r.bits() as usize % KEYS;
                let key = &k[h * KV_HEADS / HEADS][at * DIM..(at + 1) * DIM];
                key.iter().map(|k| sharp * (k + 0.05 * scale)).collect::<Vec<f32>>()
            };
            (0..KEYS).flat_map(|_| query()).collect()
        })
        .collect();
    let hot: Vec<f32> = (0..KEYS * DIM)
        .map(|i| f32::from(u8::from(i / DIM / SKIP_BLOCK == i % DIM)))
        .collect();
    let (q, k) = (side_by_side(&q), side_by_side(&k));
    let v = side_by_side(&vec![hot; KV_HEADS]);
    let (x, keys, values) = (
        by_position(&mut c, &q),
        by_position(&mut c, &k),
        by_position(&mut c, &v),
    );
    let growing = CacheRows::Growing { rate: 1 };
    let key_rows = c.rows(Component::Keys, growing, KV_HEADS, (DIM, 0), format);
    let value_rows = c.rows(Component::Values, growing, KV_HEADS, (DIM, 0), CacheFormat::F32);
    for (src, cache) in [(keys, key_rows), (values, value_rows)] {
        c.op(Op::CacheWrite {
            src,
            cache,
            rows: Positions::Tokens,
        });
    }
    let out = c.floats(HEADS * DIM);
    let sink: Option<Vec<f32>> = sink.then(|| (0..HEADS).map(|_| r.normal(3.0)).collect());
    let sinks = sink.as_ref().map(|s| c.values(1, HEADS, s));
    let source = KeySource {
        keys: key_rows,
        values: value_rows,
        rows: KeyRows::Causal,
    };
    c.op(Op::Attend {
        q: x,
        out,
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        scale: 0.125,
        sources: vec![source],
        sinks,
        mask: Mask::BlockSkip { threshold },
        score: None,
    });
    c.probe(out, "out");
    let ran = c.run(&CpuBackend::with(Cpu::new(2)), 0, &STEPS, None);
    let got: Vec<f32> = ran.probes.iter().flat_map(|(_, _, v)| v.clone()).collect();
    // Keys as they are stored.
    let stored = &ran.rows[0];
    let what = format!("{kind:?} {seed} {threshold} {scale} {sharp} {format:?}");
    for t in (0..KEYS).step_by(31).chain([KEYS - 1]) {
        for h in 0..HEADS {
            let query = &q[(t * HEADS + h) * DIM..][..DIM];
            let score = |j: usize| -> f64 {
                let key = &stored[(j * KV_HEADS + h * KV_HEADS / HEADS) * DIM..][..DIM];
                0.125
                    * key
                        .iter()
                        .zip(query)
                        .map(|(a, b)| f64::from(*a) * f64::from(*b))
                        .sum::<f64>()
            };
            let z: Vec<f64> = (0..=t).map(score).collect();
            let extra = sink.as_ref().map(|s| f64::from(s[h]));
            let top = z.iter().copied().chain(extra).fold(f64::MIN, f64::max);
            let exp = |z: f64| (z - top).exp();
            let all = z.iter().map(|z| exp(*z)).sum::<f64>() + extra.map_or(0.0, exp);
            let shares: Vec<f64> = z
                .chunks(SKIP_BLOCK)
                .map(|b| b.iter().map(|z| exp(*z)).sum::<f64>() / all)
                .collect();
            let most = shares.iter().copied().fold(f64::MIN, f64::max);
            for (b, &share) in shares.iter().enumerate() {
                let kept = got[(t * HEADS + h) * DIM + b] > 0.0;
                let limit = f64::from(threshold);
                // Within what f32 scores can tell apart.
                let slack = 1.0 + 1e-5 * (1.0 + z.iter().fold(0.0, |m, z| z.abs().max(m)));
                if kept {
                    assert!(share * slack > limit || share * slack >= most, "{what}: kept {share:e}");
                } else {
                    assert!(
                        share <= limit * slack || share < 1e-37,
                        "{what}: query {t} head {h} left out {share:e}"
                    );
                }
            }
        }
    }
    let sum = |f: fn(&LayerStats) -> u64| ran.stats.iter().map(f).sum::<u64>() as f64;
    let context = sum(|s| s.keys_context);
    let (scored, kept) = (sum(|s| s.keys_scored) / context, sum(|s| s.keys_kept) / context);
    assert!(kept <= scored && scored <= 1.0, "{what}: {kept} of {scored}");
    (scored, kept)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_block_above_the_threshold_is_left_out(
        kind in 0..KINDS.len(),
        seed in any::<u64>(),
        threshold in prop_oneof![Just(0.0f32), 1e-6f32..1e-3, 1e-3f32..0.5],
        scale in prop_oneof![Just(0.1f32), Just(1.0), Just(4.0)],
        sharp in -2.0f32..2.0,
        format in prop_oneof![Just(CacheFormat::F32), Just(CacheFormat::Bf16), Just(CacheFormat::Fp8B64)],
        sink in any::<bool>(),
    ) {
        check(KINDS[kind], seed, threshold, (scale, sharp), format, sink);
    }
}

/// Where blocks differ, most keys are neither scored nor read; where none can be bounded, all are scored.
#[test]
fn blocks_that_are_proven_small_are_not_scored() {
    let (scored, kept) = check(Keys::Clusters, 1, 1e-3, (1.0, 2.0), CacheFormat::F32, false);
    assert!(scored < 0.3 && kept < 0.3, "clusters: {scored} scored, {kept} kept");
    let (scored, kept) = check(Keys::Normal, 1, 1e-3, (1.0, 2.0), CacheFormat::F32, false);
    assert!(
        scored > 0.9 && kept < scored,
        "normal keys: {scored} scored, {kept} kept"
    );
    // Nothing is above half, and one block stays.
    let (_, kept) = check(Keys::Equal, 1, 0.5, (1.0, 1.0), CacheFormat::F32, false);
    assert!(kept < 0.1, "equal keys: {kept} kept");
}

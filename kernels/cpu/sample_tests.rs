//! Tests of the sampler.

use proptest::prelude::*;

use super::*;

const NEG: f32 = f32::NEG_INFINITY;

fn hot(temperature: f32) -> SamplerParams {
    SamplerParams {
        temperature,
        ..Default::default()
    }
}

fn token(logits: &[f32], params: &SamplerParams, position: u64) -> u32 {
    sample(logits, params, &[], position).unwrap().token
}

/// Softmax in f64.
fn softmax(logits: &[f32], temperature: f64) -> Vec<f64> {
    let max = logits.iter().copied().fold(NEG, f32::max);
    let w: Vec<f64> = logits
        .iter()
        .map(|&x| (f64::from(x - max) / temperature).exp())
        .collect();
    let sum: f64 = w.iter().sum();
    w.iter().map(|x| x / sum).collect()
}

/// Ids that may be drawn and their probabilities, by a plain full sort.
fn naive(logits: &[f32], p: &SamplerParams) -> Vec<f64> {
    let probs = softmax(logits, f64::from(p.temperature));
    let mut ids: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > NEG).collect();
    ids.sort_by(|&a, &b| logits[b].partial_cmp(&logits[a]).unwrap().then(a.cmp(&b)));
    if p.top_k > 0 {
        ids.truncate(p.top_k as usize);
    }
    let best = probs[ids[0]];
    ids.retain(|&i| probs[i] >= f64::from(p.min_p) * best);
    let total: f64 = ids.iter().map(|&i| probs[i]).sum();
    if p.top_p < 1.0 {
        let mut sum = 0.0;
        let reached = ids.iter().position(|&i| {
            sum += probs[i];
            sum >= f64::from(p.top_p) * total
        });
        ids.truncate(reached.map_or(ids.len(), |n| n + 1));
    }
    let total: f64 = ids.iter().map(|&i| probs[i]).sum();
    let mut out = vec![0.0; logits.len()];
    for i in ids {
        out[i] = probs[i] / total;
    }
    out
}

/// Pearson's statistic over `n` draws; also checks that nothing impossible is drawn.
fn chi_square(logits: &[f32], params: &SamplerParams, n: u64) -> (f64, usize) {
    let expected = naive(logits, params);
    let mut seen = vec![0u64; logits.len()];
    for position in 0..n {
        seen[token(logits, params, position) as usize] += 1;
    }
    let mut statistic = 0.0;
    for (e, &s) in expected.iter().zip(&seen) {
        if *e == 0.0 {
            assert_eq!(s, 0);
        } else {
            statistic += (s as f64 - e * n as f64).powi(2) / (e * n as f64);
        }
    }
    (statistic, expected.iter().filter(|e| **e > 0.0).count() - 1)
}

#[test]
fn philox_matches_the_published_vectors() {
    assert_eq!(
        philox4x32([0; 4], [0; 2]),
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
    );
    assert_eq!(
        philox4x32([!0; 4], [!0; 2]),
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
    );
    assert_eq!(
        philox4x32(
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0]
        ),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
}

#[test]
fn exp_is_close_to_the_library() {
    for i in 0..=88_000 {
        let x = -(i as f32) / 1000.0;
        let want = f64::from(x).exp();
        let got = f64::from(exp(x));
        assert!(
            (got - want).abs() <= want * 3e-7 || x < -87.0 && got == 0.0,
            "{x}: {got} {want}"
        );
    }
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(NEG), 0.0);
}

#[test]
fn greedy_takes_the_lowest_id_on_ties() {
    let mut logits = vec![0.0; 100];
    logits[40] = 2.0;
    logits[7] = 2.0;
    logits[99] = 2.0;
    assert_eq!(token(&logits, &SamplerParams::default(), 0), 7);
    let ties = SamplerParams {
        temperature: 1.0,
        top_k: 1,
        ..Default::default()
    };
    assert_eq!(token(&logits, &ties, 5), 7);
    assert_eq!(token(&[-0.0, 0.0], &SamplerParams::default(), 0), 0);
}

#[test]
fn bad_rows_are_refused_with_a_reason() {
    let p = SamplerParams::default();
    assert_eq!(sample(&[], &p, &[], 0), Err(SampleError::Empty));
    let nan = sample(&[0.0, f32::NAN], &p, &[], 0).unwrap_err().to_string();
    assert!(nan.contains("logit of token 1 is NaN (from the model)"), "{nan}");
    let inf = sample(&[f32::INFINITY, 0.0], &p, &[], 0).unwrap_err().to_string();
    assert!(inf.contains("logit of token 0 is inf"), "{inf}");
    let masked = sample(&[NEG; 3], &p, &[], 0).unwrap_err().to_string();
    assert!(masked.contains("all 3 logits are -inf"), "{masked}");
    let params = sample(&[0.0], &hot(-1.0), &[], 0).unwrap_err().to_string();
    assert!(params.contains("temperature"), "{params}");
    assert_eq!(token(&[NEG, 1.0, NEG], &hot(1.0), 3), 1);
}

#[test]
fn penalties_against_hand_computed_values() {
    let logits = [2.0, -1.0, 0.5, 3.0];
    let params = SamplerParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.25,
        presence_penalty: 0.5,
        ..Default::default()
    };
    // Token 0 twice, token 1 once, token 99 unknown.
    assert_eq!(
        penalised(&logits, &params, &[0, 1, 99, 0]),
        [1.0 - 0.5 - 0.5, -2.0 - 0.25 - 0.5, 0.5, 3.0]
    );
    let window = SamplerParams {
        penalty_window: 1,
        ..params
    };
    assert_eq!(penalised(&logits, &window, &[3, 1, 0]), [1.0 - 0.75, -1.0, 0.5, 3.0]);
    // The winner changes, its reported probability is the model's own.
    let strong = SamplerParams {
        presence_penalty: 2.0,
        logprobs: 2,
        ..Default::default()
    };
    let drawn = sample(&logits, &strong, &[3], 0).unwrap();
    let probs = softmax(&logits, 1.0);
    assert_eq!(drawn.token, 0);
    assert!((f64::from(drawn.logprob) - probs[0].ln()).abs() < 1e-5);
    assert_eq!(drawn.top.iter().map(|t| t.0).collect::<Vec<_>>(), [3, 0]);
    assert!((f64::from(drawn.top[0].1) - probs[3].ln()).abs() < 1e-5);
}

#[test]
fn draws_follow_the_distribution() {
    let logits: Vec<f32> = (0..24).map(|i| ((i * 7) % 24) as f32 / 6.0).collect();
    let settings = [
        hot(1.0),
        hot(0.6),
        SamplerParams { top_k: 9, ..hot(1.3) },
        SamplerParams {
            top_p: 0.8,
            seed: 11,
            ..hot(1.0)
        },
        SamplerParams {
            min_p: 0.2,
            seed: 12,
            ..hot(1.0)
        },
        SamplerParams {
            top_k: 20,
            min_p: 0.1,
            top_p: 0.9,
            seed: 13,
            ..hot(1.5)
        },
    ];
    for params in settings {
        let (statistic, freedom) = chi_square(&logits, &params, 40_000);
        // Mean `freedom`, variance twice that; five deviations.
        let bound = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt();
        assert!(statistic < bound, "{params:?}: {statistic} over {freedom}");
    }
}

#[test]
fn top_p_edges() {
    // Masses 0.5, 0.25, 0.125, 0.125.
    let logits = [8f32.ln(), 4f32.ln(), 2f32.ln(), 2f32.ln()];
    let possible = |top_p: f32| {
        let params = SamplerParams { top_p, ..hot(1.0) };
        let mut seen: Vec<u32> = (0..4000).map(|i| token(&logits, &params, i)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    assert_eq!(possible(0.0), [0]);
    assert_eq!(possible(0.3), [0]);
    assert_eq!(possible(0.55), [0, 1]);
    assert_eq!(possible(0.8), [0, 1, 2]);
    assert_eq!(possible(0.99), [0, 1, 2, 3]);
    assert_eq!(possible(1.0), [0, 1, 2, 3]);
    // A flat row larger than one selection step: the first half in order of id.
    let flat = vec![1.5f32; 5000];
    let params = SamplerParams { top_p: 0.5, ..hot(1.0) };
    let drawn: Vec<u32> = (0..2000).map(|i| token(&flat, &params, i)).collect();
    assert!(drawn.iter().all(|&t| t < 2500));
    assert!(drawn.iter().any(|&t| t > 2300));
}

#[test]
fn draws_depend_on_seed_and_position_only() {
    let logits: Vec<f32> = (0..3000).map(|i| (i % 13) as f32 * 0.1).collect();
    let p = hot(1.0);
    assert_eq!(sample(&logits, &p, &[1, 2], 9), sample(&logits, &p, &[], 9));
    let other = SamplerParams { seed: 1, ..p };
    let differ = (0..50)
        .filter(|&i| token(&logits, &p, i) != token(&logits, &other, i))
        .count();
    assert!(differ > 45, "{differ}");
    // Cuts that cut nothing change nothing.
    let wide = SamplerParams { top_k: 3000, ..p };
    assert!((0..50).all(|i| token(&logits, &p, i) == token(&logits, &wide, i)));
}

#[test]
fn tiny_temperatures_stay_finite() {
    let logits = [1.0, 1.0 + 1e-3, -5.0, NEG];
    for t in [1e-38, 1e-6, 1e-5, 1e-4] {
        assert_eq!(token(&logits, &hot(t), 3), 1);
    }
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    // Few distinct values, so that ties are common.
    let logit = prop_oneof![8 => (-12i32..12).prop_map(|x| x as f32 * 0.5), 1 => Just(NEG)];
    prop::collection::vec(logit, 1..700).prop_filter("something to draw", |v| v.iter().any(|x| *x > NEG))
}

proptest! {
    #[test]
    fn selection_equals_a_full_sort(logits in row(), k in 1usize..800) {
        let mut all: Vec<Candidate> = above(&logits, NEG).collect();
        all.sort_by(by_rank);
        all.truncate(k);
        prop_assert_eq!(largest(&logits, k, NEG), all);
    }

    #[test]
    fn only_possible_tokens_are_drawn(
        logits in row(), k in 0u32..50, top_p in 0.0f32..1.2, min_p in 0.0f32..0.5, t in 0.05f32..3.0, seed: u64,
    ) {
        let params = SamplerParams { top_k: k, top_p: top_p.min(1.0), min_p, temperature: t, seed, ..Default::default() };
        // A hair's width of slack: the reference sums in another order.
        let loose = SamplerParams { top_p: (top_p + 1e-5).min(1.0), min_p: (min_p - 1e-5).max(0.0), ..params };
        let allowed = naive(&logits, &loose);
        for position in 0..20 {
            let drawn = sample(&logits, &params, &[], position).unwrap();
            prop_assert!(allowed[drawn.token as usize] > 0.0);
            prop_assert!(drawn.logprob <= 1e-6 && drawn.logprob.is_finite());
        }
    }

    #[test]
    fn reported_probabilities_are_the_models(logits in row(), n in 1u32..20) {
        let params = SamplerParams { logprobs: n, temperature: 0.3, top_k: 2, ..Default::default() };
        let drawn = sample(&logits, &params, &[], 0).unwrap();
        let probs = softmax(&logits, 1.0);
        prop_assert!(drawn.top.len() <= n as usize);
        for (id, logprob) in drawn.top {
            prop_assert!((f64::from(logprob) - probs[id as usize].ln()).abs() < 1e-4);
        }
    }
}

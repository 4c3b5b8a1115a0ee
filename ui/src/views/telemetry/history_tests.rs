use super::history::*;
use super::metric::*;
use protocol::{KvBytes, LayerRecord, StepRecord, TELEMETRY_VERSION};

fn step(seq: u64, position: u64, tokens: u32, ms: f64, layers: usize) -> StepRecord {
    StepRecord {
        version: TELEMETRY_VERSION,
        seq,
        position,
        tokens,
        nanos: (ms * 1e6) as u64,
        plan: 1,
        memory: Some(1 << 20),
        layers: (0..layers)
            .map(|l| LayerRecord {
                kv_used: KvBytes {
                    window: 10 * (position + u64::from(tokens)),
                    rows: l as u64,
                    ..KvBytes::default()
                },
                keys_context: position + 1,
                keys_scored: position.div_ceil(2),
                expert_load: if l == 0 {
                    vec![]
                } else {
                    vec![0, tokens, 0, position as u32 % 2]
                },
                ..LayerRecord::default()
            })
            .collect(),
    }
}

#[test]
fn a_prompt_and_its_continuation_are_addressed_by_token() {
    let mut h = History::new(64);
    h.push(&step(1, 0, 10, 5.0, 3));
    for i in 0..20 {
        h.push(&step(2 + i, 10 + i, 1, 2.0, 3));
    }
    assert_eq!(h.tokens(), 0..30);
    assert_eq!(h.sample_of(0), Some(0));
    assert_eq!(h.sample_of(9), Some(0));
    assert_eq!(h.sample_of(10), Some(1));
    assert_eq!(h.sample_of(29), Some(20));
    assert_eq!(h.sample_of(30), None);
    assert_eq!(h.samples_of(9..12), 0..3);
    assert_eq!(h.x(0), 9.0);
    assert_eq!(h.step(StepMetric::PrefillRate).get(0), 2000.0);
    assert!(h.step(StepMetric::DecodeRate).get(0).is_nan());
    assert_eq!(h.step(StepMetric::DecodeRate).last(), 500.0);
    assert_eq!(h.step(StepMetric::P99).last(), 2.0);
    assert_eq!(h.layer_parts(2, 20)[0], 300.0);
    assert_eq!(h.parts()[0].last(), 900.0);
}

#[test]
fn a_branch_forgets_what_was_written_after_it() {
    let mut h = History::new(64);
    for i in 0..30 {
        h.push(&step(i + 1, i, 1, if i < 20 { 1.0 } else { 9.0 }, 2));
    }
    assert_eq!(h.step(StepMetric::P99).last(), 9.0);
    h.push(&step(31, 12, 1, 1.0, 2));
    assert_eq!(h.tokens(), 0..13);
    assert_eq!(h.end(), 13);
    assert_eq!(h.step(StepMetric::P99).last(), 1.0, "percentiles forget the lost steps");
    // A new text starts at 0.
    h.push(&step(32, 0, 4, 1.0, 2));
    assert_eq!(h.tokens(), 0..4);
}

#[test]
fn another_session_or_model_starts_over() {
    let mut h = History::new(64);
    h.push(&step(5, 0, 1, 1.0, 2));
    h.push(&step(6, 1, 1, 1.0, 2));
    h.push(&step(1, 2, 1, 1.0, 2));
    assert_eq!(h.end() - h.first(), 1, "a smaller sequence number is another session");
    h.push(&step(2, 3, 1, 1.0, 4));
    assert_eq!(h.layers(), 4);
    assert_eq!(h.end() - h.first(), 1);
    assert!(h.layer(4, LayerMetric::Sparsity).is_none());
}

#[test]
fn the_ring_keeps_the_latest_steps() {
    let mut h = History::new(64);
    for i in 0..200 {
        h.push(&step(i + 1, i, 1, 1.0, 2));
    }
    assert_eq!(h.tokens(), 136..200);
    assert_eq!(h.sample_of(135), None);
    let sample = h.sample_of(150);
    assert_eq!(sample, Some(150));
    assert_eq!(h.layer(1, LayerMetric::KvBytes).map(|s| s.get(150)), Some(1511.0));
    h.note_lost(3);
    assert_eq!(h.lost(), 3);
}

#[test]
fn a_rewind_behind_the_kept_steps_starts_over() {
    let mut h = History::new(16);
    for i in 0..100 {
        h.push(&step(i + 1, i, 1, 1.0, 1));
    }
    h.push(&step(101, 3, 1, 1.0, 1));
    assert_eq!(h.tokens(), 3..4);
    assert_eq!(h.sample_of(3), Some(0));
}

#[test]
fn expert_load_is_summed_over_the_window() {
    let mut h = History::new(1024);
    h.push(&step(1, 0, 8, 1.0, 3));
    for i in 0..10 {
        h.push(&step(2 + i, 8 + i, 1, 1.0, 3));
    }
    let load = h.expert_load(h.end() - 1);
    assert_eq!(load.experts, 4);
    assert_eq!(load.with_experts, [false, true, true]);
    assert_eq!(load.steps, 11);
    assert_eq!(&load.counts[0..4], [0, 0, 0, 0]);
    assert_eq!(&load.counts[4..8], [0, 18, 0, 5]);
    let first = h.expert_load(0);
    assert_eq!(&first.counts[8..12], [0, 8, 0, 0]);
    for i in 0..600 {
        h.push(&step(20 + i, 18 + i, 1, 1.0, 3));
    }
    assert_eq!(h.expert_load(h.end() - 1).steps, EXPERT_WINDOW);
}

#[test]
fn speed_is_not_averaged_across_a_prompt() {
    let mut h = History::new(64);
    for i in 0..5 {
        h.push(&step(1 + i, i, 1, 10.0, 1));
    }
    h.push(&step(6, 5, 32, 3.0, 1));
    h.push(&step(7, 37, 1, 2.0, 1));
    assert_eq!(h.step(StepMetric::DecodeRate).last(), 500.0);
}

#[test]
fn deep_models_keep_fewer_steps() {
    let mut h = History::new(16_384);
    h.push(&step(1, 0, 1, 1.0, 60));
    assert!(h.capacity() >= 4096, "{}", h.capacity());
    h.push(&step(1, 0, 1, 1.0, 5000));
    assert_eq!(h.capacity(), 256);
    assert_eq!(h.layers(), 5000);
}
